"""Test special values: zeros of both signs, denormals, the largest numbers, Inf and NaN; parameters at their bounds.

Every method, backend and storage dtype is compared with tests/support/oracle.py in extended precision: it must give the
right number, or an error message that names the tensor.
"""

from __future__ import annotations

import functools
import itertools
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from paddle_merge import ConfigError, MergeConfig, WorkError, merge
from paddle_merge.recipe.request import Request
from tests.support import oracle
from tests.support.checkpoints import read, write
from tests.support.sweeps import every

BLOCK = 1024  # elements: as small as blocks get
SIZE = 2 * BLOCK + 37
FINFO = {
    "float64": np.finfo(np.float64),
    "float32": np.finfo(np.float32),
    "float16": np.finfo(np.float16),
    "bfloat16": ml_dtypes.finfo(ml_dtypes.bfloat16),
    "float8_e4m3fn": ml_dtypes.finfo(ml_dtypes.float8_e4m3fn),
    "float8_e5m2": ml_dtypes.finfo(ml_dtypes.float8_e5m2),
}
COMPUTE_EPS = {name: 2.0**-52 if name in ("float64", "float32") else 2.0**-23 for name in FINFO}
EDGES = (0, 1, BLOCK - 1, BLOCK, 2 * BLOCK - 1, 2 * BLOCK, SIZE - 1)  # of blocks, and of the tensor
Tensors = dict[str, np.ndarray]


@pytest.fixture(params=["np", "pd", "pd device"])
def backend(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """As conftest's each_backend, but in the smallest blocks there are, and tensors read again for every pass."""
    from paddle_merge.backends.budget import MemoryBudget
    from paddle_merge.backends.engine import Engine, import_paddle
    from paddle_merge.backends.np_backend import NumpyBackend

    budget = MemoryBudget(BLOCK, BLOCK, resident=0, panel=BLOCK)
    monkeypatch.setattr("paddle_merge.recipe.request.Engine", functools.partial(Engine, budget=budget))
    if request.param != "np":
        import_paddle()
        from paddle_merge.backends.pd_backend import PaddleBackend
        from paddle_merge.backends.pd_host import PaddleOnHost

        made: Any = {"pd": PaddleOnHost, "pd device": lambda compute, budget: PaddleBackend(compute, "cpu", 0, budget)}
        monkeypatch.setattr(Engine, "backend", lambda _, compute: made[request.param](compute, budget))
    else:
        monkeypatch.setattr(Engine, "backend", lambda _, compute: NumpyBackend(compute, budget))
    return str(request.param)


def number(dtype: str, what: str) -> float:
    info = FINFO[dtype]
    return float({"tiny": info.smallest_subnormal, "normal": info.smallest_normal, "largest": info.max}[what])


def rounded(values: Any, dtype: str) -> np.ndarray:
    """To nearest even in dtype, as float64."""
    kind = {"float16": np.float16, "float32": np.float32, "float64": np.float64}.get(dtype) or getattr(ml_dtypes, dtype)
    with np.errstate(all="ignore"):
        return np.asarray(values, np.float64).astype(kind).astype(np.float64)


def tensors(dtype: str, source: int) -> Tensors:
    """Finite ones. source: a model's number, or that of the base."""
    generator = np.random.default_rng(source)
    tiny, normal, largest = (number(dtype, what) for what in ("tiny", "normal", "largest"))
    ordinary = rounded(generator.standard_normal(SIZE), dtype)
    special = [0.0, -0.0, tiny, -tiny, normal, -normal, rounded(normal - tiny, dtype).item(), 3 * tiny]
    mixed = ordinary.copy()
    mixed[list(EDGES)] = generator.choice(special, len(EDGES))
    mixed[10:400] = generator.choice(special, 390)
    small = rounded(generator.integers(-9, 10, SIZE) * tiny, dtype)
    return {
        "mixed": mixed,
        "denormal": small[:200],
        "wide": rounded(generator.standard_normal(200) * 2.0 ** generator.integers(-12, 3, 200), dtype),
        "large": rounded(generator.choice([-1.0, 1.0], 200) * largest / 16 * (0.5 + generator.random(200) / 2), dtype),
        "one": ordinary[:1],
        "scalar": ordinary[1].reshape(()),
        "none": ordinary[:0],
        "zero": np.zeros(9),
    }


CASES: list[dict[str, Any]] = [
    {},
    {"weight_list": [2.0, -1.0]},
    {"weight_list": [1.0, -1.0], "normalize": False},
    {"weight_list": [0.0, 1.0]},
    {"weight_list": [3.0, 0.0], "normalize": False},
    {"weight_list": [0.0, 0.0], "normalize": False},
    {"weight_list": [1e-28, 3e-28]},
    {"weight_list": [1e28, 3e28]},
    {"reserve_p": 1.0, "epsilon": 0.0},
    {"reserve_p": 1e-6, "epsilon": 2e-6},
    {"reserve_p": 1 - 1e-9, "epsilon": 1e-9},
    {"reserve_p": 0.5, "epsilon": 1.0},
    {"reserve_p": 0.25, "epsilon": 0.5, "rescale": False},
    {"slerp_alpha": 0.0},
    {"slerp_alpha": 1.0},
    {"ties_elect_type": "count", "ties_zero_sign": "drop"},
    {"scale": -0.5},
]


def wanted(models: list[np.ndarray], base: np.ndarray | None, name: str, dtype: str, fields: dict[str, Any]) -> Any:
    """(the number, where it is certain, how far off it may be)."""
    wide = [np.asarray(x, np.longdouble).reshape(-1) for x in models]
    wide_base = None if base is None else np.asarray(base, np.longdouble).reshape(-1)
    normalize = fields.get("normalize", True) or fields.get("weight_list") is None
    kinds = {"sparsify": fields["sparsify_type"], "merge_type": fields["merge_type"]}
    density = fields.get("reserve_p", 0.7)
    said: dict[str, Any] = {
        "tensor": name,
        "weights": fields.get("weight_list"),
        "normalize": normalize,
        "density": density,
        "epsilon": fields.get("epsilon", 0.14),
        "rescale": fields.get("rescale", True),
        "t": fields.get("slerp_alpha", 0.5),
        "elect": fields.get("ties_elect_type", "sum"),
        "zero_sign": fields.get("ties_zero_sign", "positive"),
        "scale": fields.get("scale", 1.0),
        "narrow": dtype != "float64",
    }
    result, certain = oracle.merge(wide, wide_base, **kinds, **said)
    # The same with all terms added up by size: what rounding errors are relative to.
    deltas = [x if wide_base is None else x - wide_base for x in wide]
    sparse = [
        np.abs(oracle.merge([x], None, **{**kinds, "merge_type": "linear"}, **{**said, "weights": [1.0]})[0]) for x in deltas
    ]
    weights = np.abs(fields.get("weight_list") or [1.0, 1.0])
    total = abs(sum(fields.get("weight_list") or [1.0, 1.0])) if normalize and kinds["merge_type"] != "slerp" else 1.0
    if kinds["merge_type"] == "ties" and normalize:
        total = 1.0
        weights = np.ones(2)
    if kinds["merge_type"] == "slerp":
        weights = np.full(2, 4.0)
    size = sum(w * x for w, x in zip(weights, sparse, strict=True)) / (total or 1.0)
    # Masks are by position: the second model's hashes differ from those of a lone one, so take all elements as kept.
    if kinds["sparsify"] in ("dare", "magprune"):
        factor = 1.0 if not fields.get("rescale", True) else 1 / max(density - fields.get("epsilon", 0.14) / 2, 1e-9)
        size = sum(w * np.abs(x) for w, x in zip(weights, deltas, strict=True)) * factor / (total or 1.0)
    if wide_base is not None:
        size = size * abs(said["scale"]) + np.abs(wide_base) + sum(map(np.abs, wide))
    if kinds["merge_type"] == "ties":  # where rounding errors may decide
        terms = [w * x for w, x in zip(said["weights"] or [1.0, 1.0], deltas, strict=True)]
        most = max(map(abs, said["weights"] or [1.0, 1.0])) or 1.0
        least = 64 * np.longdouble(most) * number(dtype, "tiny") / density if dtype == "float64" else 0.0
        certain = certain & np.all([(np.abs(x) > least) | (x == 0) for x in terms], axis=0)
        if said["elect"] == "sum" and kinds["sparsify"] == "none":
            certain = certain & (np.abs(sum(terms)) > 1e-6 * sum(map(np.abs, terms)))
    # float64 is merged in float64, whose denormals are as coarse on the way.
    coarse = 4 * number(dtype, "tiny") / min(density, 1.0) if dtype == "float64" else 0.0
    return result, certain, 16 * COMPUTE_EPS[dtype] * size + coarse


def spacing(values: np.ndarray, dtype: str) -> np.ndarray:
    """Between a number of this size and the next in dtype."""
    info = FINFO[dtype]
    with np.errstate(all="ignore"):
        size = np.maximum(np.abs(values), np.longdouble(float(info.smallest_normal)))
        return np.exp2(np.floor(np.log2(size))) * np.longdouble(float(info.eps))


def check(got: np.ndarray, exact: np.ndarray, certain: np.ndarray, slack: np.ndarray, dtype: str) -> list[int]:
    """The places of wrong numbers."""
    got = got.reshape(-1)
    largest = np.longdouble(number(dtype, "largest"))
    with np.errstate(all="ignore"):
        off = np.abs(got - exact)
        fine = off <= slack + spacing(exact, dtype) * 0.50001
        beyond = np.abs(exact) + slack > largest
        fine |= beyond & ~(np.abs(got) < largest * 0.9)
    return np.flatnonzero(~(fine | ~certain)).tolist()


@pytest.fixture
def said(caplog: pytest.LogCaptureFixture) -> Callable[[], list[str]]:
    logging.getLogger("paddle_merge").propagate = True
    caplog.set_level(logging.WARNING, "paddle_merge")
    return lambda: [record.getMessage() for record in caplog.records]


KINDS = list(itertools.product(("none", "trim", "dare", "magprune"), ("linear", "ties", "slerp")))


def fits(fields: dict[str, Any]) -> bool:
    weights, merger = fields.get("weight_list"), fields["merge_type"]
    if merger == "slerp":
        return weights is None
    return not (merger == "ties" and weights and min(weights) < 0 and fields.get("normalize", True))


@pytest.mark.parametrize("dtype", FINFO)
@pytest.mark.parametrize(("sparsify", "merge_type"), every(KINDS, 4, unpack=True))
def test_finite_numbers(
    tmp_path: Path, backend: str, said: Any, caplog: Any, sparsify: str, merge_type: str, dtype: str
) -> None:
    if backend == "pd" and dtype not in ("float32", "bfloat16"):
        return  # its way in and out is np's, its formulas are those of "pd device"
    models = [tensors(dtype, 0), tensors(dtype, 1)]
    base = tensors(dtype, 2)
    if merge_type == "slerp":  # nearly parallel, and opposite
        for x, y in zip(models, (1.0, -1.0), strict=True):
            x["parallel"], x["opposite"] = models[0]["mixed"], y * models[0]["mixed"]
        base["parallel"] = base["opposite"] = np.zeros(SIZE)
    paths = [str(write(tmp_path / f"m{number}", x, dtype)) for number, x in enumerate(models)]
    written = str(write(tmp_path / "base", base, dtype))
    wrong = []
    for number_, case in enumerate(CASES):
        based = "scale" in case or number_ % 4 != 0
        fields = {"sparsify_type": sparsify, "merge_type": merge_type, **case}
        if not fits(fields):
            continue
        if based:
            fields["base_model_path"] = written
        if sparsify == "none" and {"reserve_p", "epsilon", "rescale"} & case.keys():
            continue
        if merge_type != "slerp" and "slerp_alpha" in case:
            continue
        caplog.clear()
        out = tmp_path / f"out{number_}"
        merge(MergeConfig(model_path_list=paths, output_path=str(out), **fields))
        result, warned = read(out), said()
        for name, x in models[0].items():
            if not x.size:
                assert result[name].shape == x.shape
                continue
            with np.errstate(all="ignore"):
                exact, certain, slack = wanted(
                    [model[name] for model in models], base[name] if based else None, name, dtype, fields
                )
            places = check(result[name], exact, certain, slack, dtype)
            flat = result[name].reshape(-1)
            if places:
                at = places[0]
                wrong.append(
                    f"{case} {name}: {len(places)} wrong, [{at}] {flat[at]!r} not {float(exact[at])!r} of "
                    f"{[float(m[name].reshape(-1)[at]) for m in [*models, base]]}"
                )
            finite = bool(np.isfinite(flat).all())
            told = any(f"tensor {name!r} overflows {dtype}" in line for line in warned)
            if finite == told:
                wrong.append(f"{case} {name}: finite {finite}, but warned {warned}")
    assert not wrong, "\n".join(wrong)


NOT_FINITE = {
    "float64": [0x7FF8000000000123, 0xFFF0000000000001, 0x7FF0000000000000, 0xFFF0000000000000],
    "float32": [0x7FC00123, 0xFF800001, 0x7F800000, 0xFF800000],
    "float16": [0x7E12, 0xFC01, 0x7C00, 0xFC00],
    "bfloat16": [0x7FC1, 0xFF81, 0x7F80, 0xFF80],
    "float8_e4m3fn": [0x7F, 0xFF],
    "float8_e5m2": [0x7E, 0xFD, 0x7C, 0xFC],
}


def spoil(folder: Path, dtype: str, places: tuple[int, ...]) -> None:
    """Put NaNs, quiet and signalling, with payloads, and both Infs at these elements of "w", as bits."""
    file = folder / "model.safetensors"
    content = bytearray(file.read_bytes())
    length = int.from_bytes(content[:8], "little")
    start = 8 + length + json.loads(content[8 : 8 + length])["w"]["data_offsets"][0]
    width = {"float64": 8, "float32": 4, "float16": 2, "bfloat16": 2}.get(dtype, 1)
    for place, bits in zip(places, itertools.cycle(NOT_FINITE[dtype])):
        content[start + place * width : start + (place + 1) * width] = bits.to_bytes(width, "little")
    file.write_bytes(content)


@pytest.mark.parametrize("dtype", FINFO)
@pytest.mark.parametrize(("sparsify", "merge_type"), KINDS)
def test_nan_and_inf(
    tmp_path: Path, backend: str, said: Any, caplog: Any, sparsify: str, merge_type: str, dtype: str
) -> None:
    """In one model, in the other, in the base: named, and where they were, and nowhere else."""
    folders = [tmp_path / name for name in ("a", "b", "base")]
    for number_, spoilt in enumerate(folders):
        for source, folder in enumerate(folders):
            held = {"w": tensors(dtype, source)["mixed"], "other": tensors(dtype, source)["wide"]}
            write(folder, held, dtype)
        spoil(spoilt, dtype, EDGES)
        caplog.clear()
        fields: dict[str, Any] = {
            "model_path_list": [str(folders[0]), str(folders[1])], "base_model_path": str(folders[2]),
            "sparsify_type": sparsify, "merge_type": merge_type, "reserve_p": 0.7 if sparsify == "none" else 0.5,
        }  # fmt: skip
        merge(MergeConfig(output_path=str(tmp_path / f"out{number_}"), **fields))
        result = read(tmp_path / f"out{number_}")
        assert tuple(np.flatnonzero(~np.isfinite(result["w"])).tolist()) == EDGES
        assert np.isfinite(result["other"]).all()
        assert said() == [f"tensor 'w' holds NaN or Inf in {spoilt}"]
        with pytest.raises(WorkError, match="tensor 'w' holds NaN or Inf in "):
            merge(MergeConfig(output_path=str(tmp_path / "strict"), strict=True, **fields))
        assert not (tmp_path / "strict").exists()


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64", "float8_e4m3fn", "float8_e5m2"])
@pytest.mark.parametrize("sparsify", ["trim", "dare", "magprune"])
def test_overflow_after_rescaling(tmp_path: Path, backend: str, said: Any, sparsify: str, dtype: str) -> None:
    """Values that rescaling lifts above the largest number become Inf (NaN where there is no Inf), with a warning."""
    largest = number(dtype, "largest")
    x = rounded(np.linspace(0.5, 1, 500) * largest, dtype)
    paths = [str(write(tmp_path / name, {"w": x, "small": rounded(np.ones(9), dtype)}, dtype)) for name in "ab"]
    base = str(write(tmp_path / "base", {"w": np.zeros(500), "small": rounded(np.ones(9), dtype)}, dtype))
    fields: dict[str, Any] = {"model_path_list": paths, "base_model_path": base, "sparsify_type": sparsify, "reserve_p": 0.3}
    merge(MergeConfig(output_path=str(tmp_path / "out"), **fields))
    result = read(tmp_path / "out")["w"]
    assert not np.isfinite(result).all()
    assert (result[np.isfinite(result)] >= 0).all()  # nothing wrapped around
    assert said() == [f"tensor 'w' overflows {dtype}: it holds Inf or NaN in the output"]
    with pytest.raises(WorkError, match=f"tensor 'w' overflows {dtype}"):
        merge(MergeConfig(output_path=str(tmp_path / "strict"), strict=True, **fields))
    assert not (tmp_path / "strict").exists()
    merge(MergeConfig(output_path=str(tmp_path / "wide"), out_dtype="float64", **fields))
    if dtype != "float64":
        assert np.isfinite(read(tmp_path / "wide")["w"]).all()


def test_sums_and_squares_that_leave_float64(tmp_path: Path, backend: str, said: Any) -> None:
    """Of elements that don't: L1 norms (trim) and angles (slerp) of float64 tensors. The small ones, times 2.0**1000, show
    what is right."""
    generator = np.random.default_rng(0)
    small = [generator.standard_normal(3000) for _ in range(2)]
    for name, scale in (("small", 1.0), ("large", 2.0**1018)):
        for number_, x in enumerate(small):
            write(tmp_path / f"{name}{number_}", {"w": x * scale}, "float64")
        write(tmp_path / f"{name}base", {"w": np.zeros(3000)}, "float64")
    linear = {"sparsify_type": "trim", "merge_type": "linear", "weight_list": [0.125, 0.125], "normalize": False}
    for fields in ({"merge_method": "slerp"}, linear):
        results = {}
        for name in ("small", "large"):
            out = tmp_path / f"{name}-{len(fields)}"
            paths = [str(tmp_path / f"{name}{number_}") for number_ in (0, 1)]
            merge(
                MergeConfig(
                    model_path_list=paths, base_model_path=str(tmp_path / f"{name}base"), output_path=str(out), **fields
                )
            )
            results[name] = read(out)["w"]
        assert (results["small"] * 2.0**1018 == results["large"]).all()
    assert not said()


@pytest.mark.parametrize("name", ["ties", "dare_ties", "della"])
def test_ratios_of_weights_are_all_that_counts_in_ties(tmp_path: Path, backend: str, name: str) -> None:
    paths = [str(write(tmp_path / f"m{k}", tensors("bfloat16", k), "bfloat16")) for k in (0, 1)]
    base = str(write(tmp_path / "base", tensors("bfloat16", 2), "bfloat16"))
    digests = set()
    for power in (-95, 0, 95):
        out = tmp_path / f"out{power}"
        weights = [1.0 * 2.0**power, 3.0 * 2.0**power]
        merge(
            MergeConfig(
                model_path_list=paths, base_model_path=base, weight_list=weights, merge_method=name, output_path=str(out)
            )
        )
        digests.add((out / "model.safetensors").read_bytes())
    assert len(digests) == 1


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"weight_list": [1, -1]}, r"--weight_list 1 -1 sums to zero, so it can't be normalised; pass --no_normalize"),
        ({"weight_list": [0, 0]}, r"--weight_list 0 0 sums to zero.*--no_normalize"),
        ({"weight_list": [1e20, -1e20, 1e-20][:2]}, r"sums to zero.*--no_normalize"),
        ({"weight_list": [-2, 1]}, r"--weight_list -2 1 sums to -1; dividing by it would flip every sign; pass --no_norm"),
        ({"weight_list": [2, -1], "merge_method": "ties"}, r"--weight_list 2 -1: ties.*--no_normalize"),
        ({"weight_list": [1e-31, 1]}, r"--weight_list has a weight smaller than 1e-30.*scale them all up"),
        ({"weight_list": [float("nan"), 1]}, r"--weight_list must be finite"),
        ({"weight_list": [1, float("inf")]}, r"--weight_list must be finite"),
        ({"weight_list": [1]}, r"--weight_list has 1 numbers for 2 models"),
        ({"merge_method": "dare_linear", "reserve_p": 0.0}, r"--reserve_p 0 keeps nothing.*greater than 0 and at most 1"),
        ({"merge_method": "dare_linear", "reserve_p": 1e-10}, r"--reserve_p 1e-10 keeps less than one.*raise it"),
        ({"merge_method": "della", "reserve_p": 5e-324, "epsilon": 0}, r"--reserve_p 4.94066e-324 keeps less than one"),
        ({"merge_method": "ties", "reserve_p": 1.0000001}, r"--reserve_p 1.* greater than 0 and at most 1"),
        ({"merge_method": "ties", "reserve_p": -0.5}, r"--reserve_p -0.5 is the fraction.* greater than 0 and at most 1"),
        ({"merge_method": "ties", "reserve_p": float("nan")}, r"--reserve_p must be finite"),
        ({"merge_method": "della", "reserve_p": 0.9, "epsilon": 0.2001}, r"--epsilon 0.2001.*epsilon may be at most 0.2"),
        ({"merge_method": "della", "reserve_p": 1.0, "epsilon": 0.01}, r"--epsilon 0.01 with --reserve_p 1.*at most 0"),
        ({"merge_method": "della", "epsilon": -0.1}, r"--epsilon -0.1"),
        ({"merge_method": "slerp", "slerp_alpha": -0.01}, r"--slerp_alpha -0.01 must lie between 0 .* and 1"),
        ({"merge_method": "slerp", "slerp_alpha": 1.01}, r"--slerp_alpha 1.01 must lie between 0 .* and 1"),
        ({"merge_method": "slerp", "weight_list": [1, 2]}, r"slerp uses --slerp_alpha, not --weight_list"),
        ({"merge_method": "slerp", "weight_list": [1, 1, 1]}, r"--weight_list has 3 numbers for 2 models"),
    ],
)
def test_what_is_said_of_parameters(fields: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words) as caught:
        Request.of(MergeConfig(model_path_list=["a", "b"], base_model_path="base", **fields)).checked_recipe()
    assert len(caught.value.problems) == 1
