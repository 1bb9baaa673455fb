"""Test merges with each of PaddleNLP's methods, from files to file, against hand-made numbers and a float64 oracle."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from paddle_merge import MergeConfig, merge
from paddle_merge.backends.kernels.keep_tables import keep_probability
from paddle_merge.backends.masks import Key, mask_key
from paddle_merge.backends.np_backend import NumpyBackend
from paddle_merge.methods import della
from paddle_merge.methods.dare import dare
from paddle_merge.methods.della import ByTensorRank
from paddle_merge.methods.paddlenlp import MERGE_TYPES, METHODS, SPARSIFIERS
from paddle_merge.methods.paddlenlp import method as method_of_pair
from paddle_merge.methods.shared.base import linear
from paddle_merge.methods.ties import ties
from tests.support import oracle
from tests.support.checkpoints import from_bits, read, to_bits, write

# MATH.md, section 1.3: PaddleNLP's own code gives these, bit for bit, in float64.
BASE = np.array([1, -2, 0.5, 4])
DELTAS = [np.array([0.5, -0.25, 0.125, -1]), np.array([-0.25, -0.75, 0.375, 0.5])]
PINNED: dict[str, tuple[dict[str, Any], list[float]]] = {
    "linear": ({"merge_method": "linear"}, [1.3125, -2.375, 0.6875, 3.375]),
    "ties": ({"merge_method": "ties"}, [1.625, -3.125, 0.5, 2.75]),
    "ties without rescale": ({"merge_method": "ties", "rescale": False}, [1.5, -2.75, 0.5, 3]),
    "ties not normalised": ({"merge_method": "ties", "normalize": False}, [2.875, -3.125, 0.5, 0.25]),
    "ties by count": ({"merge_method": "ties", "ties_elect_type": "count"}, [1.625, -3.125, 0.5, 4.75]),
    # by hand: base + 0.5 * (3 delta1 + delta2)
    "task arithmetic": ({"merge_method": "linear", "normalize": False, "scale": 0.5}, [1.625, -2.75, 0.875, 2.75]),
    # w = (1, -1): PaddleNLP's np reading, in which weights enter before the election
    "ties against": (
        {"merge_method": "ties", "normalize": False, "rescale": False, "weight_list": [1.0, -1.0]},
        [1.5, -1.25, 0.5, 2.5],
    ),
}


def merged(
    tmp_path: Path, models: list[dict[str, np.ndarray]], base: dict[str, np.ndarray] | None, dtype: str, **fields: Any
) -> dict[str, np.ndarray]:
    """The tensors that a merge of these makes, as float64."""
    paths = [str(write(tmp_path / f"m{k}", tensors, dtype)) for k, tensors in enumerate(models)]
    if base is not None:
        fields["base_model_path"] = str(write(tmp_path / "base", base, dtype))
    merge(MergeConfig(model_path_list=paths, output_path=str(tmp_path / "out"), **fields))
    return read(tmp_path / "out")


@pytest.mark.usefixtures("each_backend")
@pytest.mark.parametrize("name", PINNED)
def test_pinned_numbers(tmp_path: Path, name: str) -> None:
    fields, expected = PINNED[name]
    fields = {"weight_list": [3.0, 1.0], "reserve_p": 0.5, **fields}
    models = [{"w": BASE + delta} for delta in DELTAS]
    assert merged(tmp_path, models, {"w": BASE}, "float64", **fields)["w"].tolist() == expected


@pytest.mark.usefixtures("each_backend")
def test_pinned_slerp(tmp_path: Path) -> None:
    """MATH.md, section 1.3: without a base, t = 0.5."""
    result = merged(tmp_path, [{"w": BASE + delta} for delta in DELTAS], None, "float64", merge_method="slerp")["w"]
    expected = [1.1340677874957361, -2.5201506388794135, 0.7560451916638241, 3.7802259583191207]
    np.testing.assert_allclose(result, expected, rtol=4e-16)


def test_pinned_stochastic_methods_given_the_masks() -> None:
    """MATH.md, section 1.3: what dare and magprune kept there, then merged with weights (3, 1)."""
    dropped = np.array([[1, 0, 0, 0], [-0.5, -1.5, 0.75, 0]])
    weights = np.array([3.0, 1.0])
    assert (BASE + linear(np, dropped, weights / 4)).tolist() == [1.625, -2.375, 0.6875, 4]
    assert (BASE + ties(np, dropped, weights, False, 1.0, True)).tolist() == [2, -3.5, 1.25, 4]
    pruned = np.array([[0.8333333333333334, 0, 0.31250000000000006, -1.4285714285714286], [0, -1.0714285714285714, 0.75, 0]])
    expected = [1.625, -2.267857142857143, 0.921875, 2.928571428571429]
    np.testing.assert_allclose(BASE + linear(np, pruned, weights / 4), expected, rtol=4e-16)
    expected = [1.8333333333333335, -3.071428571428571, 0.921875, 2.571428571428571]
    np.testing.assert_allclose(BASE + ties(np, pruned, weights, False, 1.0, True), expected, rtol=4e-16)


def test_pinned_dare_keeps_and_rescales() -> None:
    kept = dare(np, DELTAS[0], np.array([0, 2**32 - 1, 2**31, 2**31 + 1], np.uint32), np.uint32(2**31 - 1), 2.0)
    assert kept.tolist() == [1, 0, 0, 0]


def test_pinned_drop_probabilities() -> None:
    """MATH.md, section 1.3: epsilon 0.4, density 0.5; drop [.4, .5, .6, .3] for delta 1, whose ranks are 1, 2, 3, 0."""
    ascending = [keep_probability(1, larger, 4, 0.5, 0.4) for larger in (3, 2, 1, 0)]
    np.testing.assert_allclose(ascending, [0.4, 0.5, 0.6, 0.7], rtol=4e-16)
    assert keep_probability(2, 1, 4, 0.5, 0.4) == pytest.approx(0.55, rel=4e-16)  # two that are equal share their mean rank


@pytest.mark.parametrize("divide", [True, False])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_magprune_draws_small_tensors_as_large_ones(dtype: type, divide: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Elements that are sorted get the probabilities of those that are counted, in blocks of any size."""
    numbers = np.random.default_rng(0).standard_normal((3, 5000)) * 10.0 ** (np.arange(-2500, 2500) / 10)
    rows = np.clip(numbers, -3e38, 3e38).astype(dtype)
    rows[1, :7] = 0.0, -0.0, 1.0, -1.0, 1e-45, -np.inf, np.nan
    rows[2] = np.round(rows[2])

    class InBlocks:
        size, models = 5000, 3

        def mask_key(self, model: int) -> Key:
            return mask_key(3, 1 + model, "w")

        def deltas(self) -> Iterator[tuple[int, np.ndarray]]:
            yield from ((start, rows[:, start : start + 2048].copy()) for start in range(0, 5000, 2048))

    backend, keep = NumpyBackend(np.dtype(dtype).name), ByTensorRank((0.5, 0.55, 0.6), 0.8)
    found = []
    for small in (0, 5000):
        monkeypatch.setattr(della, "SMALL", small)
        masks = keep.masks(InBlocks(), backend, divide)  # type: ignore[arg-type]
        with np.errstate(all="ignore"):
            for start, x in InBlocks().deltas():
                found.append([mask.apply(row, start, backend).tobytes() for mask, row in zip(masks, x, strict=True)])  # type: ignore[union-attr]
    assert found[:3] == found[3:]
    kept = np.frombuffer(b"".join(block[0] for block in found[:3]), dtype) != 0
    assert kept[4000:].mean() > 0.7 > 0.3 > kept[:1000].mean()


def test_official_ties_example(tmp_path: Path) -> None:
    """By hand: k = 50 %, equal weights, no rescale. The paper trims over the whole model, which here is one tensor."""
    models = [{"w": BASE + delta} for delta in DELTAS]
    result = merged(tmp_path, models, {"w": BASE}, "float64", merge_method="ties", reserve_p=0.5, rescale=False)
    # trim keeps [.5,0,0,-1] and [0,-.75,0,.5]: at element 3 the sum -.5 elects minus
    assert result["w"].tolist() == [1.5, -2.75, 0.5, 3]


SHAPES = {"a": (37, 41), "b": (70_001,), "one": (1,), "bias": (7,), "none": (0, 3)}
PAIRS = [(s, m) for s in ("none", *SPARSIFIERS) for m in MERGE_TYPES]


def ulp(values: np.ndarray, dtype: str) -> np.ndarray:
    """The spacing of `dtype` at these magnitudes."""
    bits = {"bfloat16": 7, "float16": 10, "float32": 23, "float64": 52, "float8_e4m3fn": 3}[dtype]
    smallest = {"bfloat16": -126, "float16": -14, "float32": -126, "float64": -1022, "float8_e4m3fn": -6}[dtype]
    exponent = np.frexp(np.abs(values))[1] - 1
    return np.ldexp(1.0, np.maximum(exponent, smallest) - bits)


def inputs(dtype: str, count: int, seed: int = 0) -> tuple[list[dict[str, np.ndarray]], dict[str, np.ndarray]]:
    """Models and base already rounded to dtype, as float64; deltas a tenth of the weights."""
    generator = np.random.default_rng(seed)

    def stored(values: np.ndarray) -> np.ndarray:
        return from_bits(to_bits(values, dtype), dtype)

    base = {name: stored(generator.standard_normal(shape)) for name, shape in SHAPES.items()}
    models = [
        {name: stored(values + 0.1 * generator.standard_normal(values.shape)) for name, values in base.items()}
        for _ in range(count)
    ]
    return models, base


ANSWERS: dict[Any, tuple[np.ndarray, np.ndarray]] = {}


def answer(key: Any, models: list[np.ndarray], base: np.ndarray | None, **fields: Any) -> tuple[np.ndarray, np.ndarray]:
    """The oracle's, computed once for all backends. It reads in plain Python, which takes seconds."""
    key = (*key, base is None)
    if key not in ANSWERS:
        ANSWERS[key] = oracle.merge(models, base, **fields)
    return ANSWERS[key]


def check(
    tmp_path: Path, dtype: str, with_base: bool, count: int, oracle_fields: dict[str, Any], fields: dict[str, Any]
) -> None:
    models, base = inputs(dtype, count)
    result = merged(tmp_path, models, base if with_base else None, dtype, **fields)
    assert result.keys() == SHAPES.keys()
    for name, shape in SHAPES.items():
        assert result[name].shape == shape
        if not result[name].size:
            continue
        flat = [model[name].reshape(-1) for model in models]
        expected, certain = answer(
            (name, dtype, count, repr(oracle_fields)),
            flat,
            base[name].reshape(-1) if with_base else None,
            tensor=name,
            narrow=dtype != "float64",
            **oracle_fields,
        )
        # float64 is computed in float64, as the oracle is, so there a handful of roundings of the terms is the limit.
        size = expected if dtype != "float64" else np.max(np.abs([*flat, base[name].reshape(-1), expected]), axis=0) * 32
        error = np.where(certain, np.abs(result[name].reshape(-1) - expected), 0)
        worst = np.argmax(error / ulp(size, dtype))
        assert certain.mean() > 0.9 or len(certain) < 10
        assert (error <= ulp(size, dtype)).all(), (name, worst, result[name].reshape(-1)[worst], expected[worst])


@pytest.mark.usefixtures("each_backend")
@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32", "float64", "float8_e4m3fn"])
@pytest.mark.parametrize(("sparsify", "merge_type"), PAIRS)
@pytest.mark.parametrize("with_base", [True, False])
def test_every_pair_agrees_with_the_oracle(
    tmp_path: Path, sparsify: str, merge_type: str, dtype: str, with_base: bool
) -> None:
    count = 2 if merge_type == "slerp" else 3
    weights = None if merge_type == "slerp" else [1.0, 0.3, 2.0]
    check(
        tmp_path,
        dtype,
        with_base,
        count,
        {"sparsify": sparsify, "merge_type": merge_type, "weights": weights, "seed": 42, "t": 0.3},
        {"sparsify_type": sparsify, "merge_type": merge_type, "weight_list": weights, "seed": 42, "slerp_alpha": 0.3},
    )


@pytest.mark.usefixtures("each_backend")
def test_flags_have_the_defaults_of_the_methods() -> None:
    """They are written in recipe/fields.py, for the help pages, and in the table of methods."""
    flags = MergeConfig()
    checked = set()
    for sparsifier in (None, *SPARSIFIERS):
        for merge_type in MERGE_TYPES:
            for parameter in method_of_pair(sparsifier, merge_type, "any").parameters:
                if not parameter.each:
                    assert getattr(flags, parameter.name) == parameter.default, parameter.name
                    checked.add(parameter.name)
    assert checked >= {"reserve_p", "rescale", "epsilon", "normalize", "scale", "ties_elect_type", "slerp_alpha"}


@pytest.mark.parametrize("method", METHODS)
def test_every_method_is_its_pair(tmp_path: Path, method: str) -> None:
    sparsifier, merge_type = METHODS[method]
    count = 2 if merge_type == "slerp" else 3
    oracle_fields = {
        "sparsify": sparsifier or "none",
        "merge_type": merge_type,
        "density": 0.4,
        "epsilon": 0.2,
        "scale": 0.8,
    }
    check(
        tmp_path,
        "bfloat16",
        True,
        count,
        oracle_fields,
        {"merge_method": method, "reserve_p": 0.4, "epsilon": 0.2, "scale": 0.8},
    )


@pytest.mark.usefixtures("each_backend")
@pytest.mark.parametrize("elect", ["sum", "count"])
@pytest.mark.parametrize("zero_sign", ["positive", "majority", "drop"])
@pytest.mark.parametrize("normalize", [True, False])
def test_ties_options(tmp_path: Path, elect: str, zero_sign: str, normalize: bool) -> None:
    """bfloat16 deltas cancel exactly at some elements, so zero_sign matters."""
    weights = [1.0, 1.0] if normalize else [1.0, -1.0]
    check(
        tmp_path,
        "bfloat16",
        True,
        2,
        {"merge_type": "ties", "elect": elect, "zero_sign": zero_sign, "normalize": normalize, "weights": weights},
        {
            "merge_type": "ties",
            "ties_elect_type": elect,
            "ties_zero_sign": zero_sign,
            "normalize": normalize,
            "weight_list": weights,
        },
    )


@pytest.mark.usefixtures("each_backend")
@pytest.mark.parametrize("sparsify", SPARSIFIERS)
def test_no_rescale(tmp_path: Path, sparsify: str) -> None:
    check(
        tmp_path, "float32", True, 2, {"sparsify": sparsify, "rescale": False}, {"sparsify_type": sparsify, "rescale": False}
    )


@pytest.mark.usefixtures("each_backend")
def test_cancelled_votes_by_zero_sign(tmp_path: Path) -> None:
    """Deltas (1, -1), (2, -2), (-3, -3), (-1, -2): the first two cancel; of the others both elect minus."""
    base = {"w": np.zeros(4)}
    models = [{"w": np.array([1.0, 2, -3, -1])}, {"w": np.array([-1.0, -2, -3, -2])}]
    expected = {"positive": [1, 2, -3, -1.5], "majority": [-1, -2, -3, -1.5], "drop": [0, 0, -3, -1.5]}
    for zero_sign, values in expected.items():
        result = merged(tmp_path / zero_sign, models, base, "bfloat16", merge_type="ties", ties_zero_sign=zero_sign)
        assert result["w"].tolist() == values


@pytest.mark.usefixtures("each_backend")
def test_slerp_of_parallel_and_opposite_tensors_is_linear(tmp_path: Path) -> None:
    models = [
        {"same": np.array([1.0, 2]), "opposite": np.array([1.0, 2]), "zero": np.zeros(2)},
        {"same": np.array([2.0, 4]), "opposite": np.array([-1.0, -2]), "zero": np.zeros(2)},
    ]
    result = merged(tmp_path, models, None, "float64", merge_method="slerp", slerp_alpha=0.25)
    assert result["same"].tolist() == [1.25, 2.5]
    assert result["opposite"].tolist() == [0.5, 1.0]
    assert result["zero"].tolist() == [0.0, 0.0]


def test_slerp_angle_of_large_float16_tensors(tmp_path: Path) -> None:
    """PaddleNLP sums squares in float16 and is off by 8 % in the cosine here; norms of 300 overflow float16 when squared."""
    generator = np.random.default_rng(0)
    a = generator.standard_normal(1 << 20)
    b = 0.9 * a + np.sqrt(1 - 0.81) * generator.standard_normal(1 << 20)
    models = [{"w": from_bits(to_bits(v, "float16"), "float16")} for v in (a, b)]
    result = merged(tmp_path, models, None, "float16", merge_method="slerp")["w"]
    expected = oracle.slerp([model["w"] for model in models], 0.5)
    assert np.linalg.norm(result) == pytest.approx(np.linalg.norm(expected), rel=1e-5)


@pytest.mark.usefixtures("each_backend")
@pytest.mark.parametrize(
    ("weights", "fields"),
    [
        (None, {"merge_method": "dare_ties"}),  # 1 / 0.7 is rounded, so its multiples don't cancel to the bit
        ([0.3, 0.3, 0.6], {"merge_type": "ties"}),
        ([0.1, 0.2, 0.3], {"merge_type": "ties"}),
    ],
)
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_votes_that_cancel_in_exact_numbers_cancel(
    tmp_path: Path, dtype: str, weights: list[float] | None, fields: dict[str, Any]
) -> None:
    """Deltas are small integers and weights integers up to a factor, so which votes cancel is known exactly."""
    generator = np.random.default_rng(0)
    whole = generator.integers(-4, 5, (3, 20_000))
    models = [{"w": row.astype(float)} for row in whole]
    result = merged(tmp_path, models, {"w": np.zeros(20_000)}, dtype, weight_list=weights, ties_zero_sign="drop", **fields)[
        "w"
    ]
    kept = whole.copy()
    if fields.get("merge_method") == "dare_ties":
        for k in range(3):
            kept[k] *= np.array(oracle.hashes(0, k, "w", 20_000)) < round(0.7 * 2**32)
    integers = np.array([1, 1, 1] if weights is None else np.rint(np.array(weights) * 10).astype(int))
    cancelled = (integers[:, None] * kept).sum(0) == 0
    assert cancelled.mean() > 0.02
    assert (result[cancelled] == 0).all()
    assert (result[~cancelled] != 0).all()


def test_trim_rescales_many_small_float32_tensors_exactly(tmp_path: Path) -> None:
    """With three elements each, an error in a sum is not averaged away."""
    generator = np.random.default_rng(0)
    base = {f"t{number}": from_bits(to_bits(generator.standard_normal(3), "float32"), "float32") for number in range(300)}
    models = [
        {name: from_bits(to_bits(v + 0.01 * generator.standard_normal(3), "float32"), "float32") for name, v in base.items()}
        for _ in range(2)
    ]
    result = merged(tmp_path, models, base, "float32", sparsify_type="trim", merge_type="linear", reserve_p=0.5)
    for name, values in base.items():
        expected, _ = oracle.merge([model[name] for model in models], values, tensor=name, sparsify="trim", density=0.5)
        assert (np.abs(result[name] - expected) <= ulp(expected, "float32")).all(), name


@pytest.mark.usefixtures("each_backend")
def test_the_widest_epsilon(tmp_path: Path) -> None:
    """Keep probabilities from 0 to 1 (warnings are errors here)."""
    fields: dict[str, Any] = {"merge_method": "della", "reserve_p": 0.7, "epsilon": 0.6}
    oracle_fields: dict[str, Any] = {"sparsify": "magprune", "merge_type": "ties", "density": 0.7, "epsilon": 0.6}
    check(tmp_path, "bfloat16", True, 2, oracle_fields, fields)


@pytest.mark.usefixtures("each_backend")
def test_a_nan_has_no_vote(tmp_path: Path) -> None:
    """By count, the signs are -, +, and at the third element one of a NaN: the others there elect minus, and the majority
    of all elements is minus."""
    base = {"w": np.zeros(4)}
    models = [{"w": np.array([-1.0, -2, np.nan, -1])}, {"w": np.array([1.0, 2, -1, -4])}]
    fields: dict[str, Any] = {"merge_type": "ties", "ties_elect_type": "count", "ties_zero_sign": "majority"}
    result = merged(tmp_path, models, base, "float32", **fields)["w"]
    np.testing.assert_array_equal(result, [-1, -2, np.nan, -2.5])
