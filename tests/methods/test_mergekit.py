"""Test mergekit's task arithmetic on sparsified task vectors, against mergekit's numbers and a float64 oracle."""

from __future__ import annotations

import json
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from paddle_merge import ConfigError, MergeConfig, merge
from paddle_merge.backends.budget import MemoryBudget
from paddle_merge.backends.masks import mask_key
from paddle_merge.backends.np_backend import NumpyBackend
from paddle_merge.methods import ties as consensus
from paddle_merge.methods.della import ByRowRank
from paddle_merge.methods.shared import selection
from paddle_merge.methods.shared.rank_masks import keep_ranks
from paddle_merge.methods.shared.rescale import l1_factors
from paddle_merge.methods.shared.selection import find_equals, select_ranks
from paddle_merge.methods.shared.sparsify import KeepAndRescale, Rescale
from tests.methods.shared.test_selection import InMemory
from tests.support import oracle
from tests.support.checkpoints import from_bits, read, to_bits, write

METHODS = ("ties", "dare_linear", "dare_ties", "della", "della_linear", "breadcrumbs", "breadcrumbs_ties")
SHAPES = {"w": (33, 65), "bias": (13,), "one": (1,), "scalar": (), "none": (0,), "kernel": (5, 7, 3), "large": (300, 200)}
DEFAULTS: dict[str, dict[str, Any]] = {
    "ties": {"normalize": True, "rescale": False},
    "dare_linear": {"normalize": False, "rescale": True},
    "dare_ties": {"normalize": False, "rescale": True},
    "della": {"normalize": True, "rescale": True, "epsilon": 0.15},
    "della_linear": {"normalize": False, "rescale": True, "epsilon": 0.15},
    "breadcrumbs": {"normalize": False, "rescale": False, "gamma": 0.01},
    "breadcrumbs_ties": {"normalize": False, "rescale": False, "gamma": 0.01},
}
EACH = ("weight", "density", "epsilon", "gamma")


def run(
    tmp_path: Path,
    method: str,
    base: dict[str, np.ndarray],
    models: list[dict[str, np.ndarray]],
    dtype: str = "float64",
    out: str = "out",
    fields: dict[str, Any] | None = None,
    **parameters: Any,
) -> Path:
    """A list is a value for each model."""
    lines = [f"merge_method: {method}", f"base_model: {write(tmp_path / 'base', base, dtype)}", "models:"]
    for number, model in enumerate(models):
        lines.append(f"  - model: {write(tmp_path / f'm{number}', model, dtype)}")
        own = {name: value[number] for name, value in parameters.items() if isinstance(value, list)}
        lines.append(f"    parameters: {json.dumps({'weight': 1.0, **own})}")
    shared = {name.rstrip("_"): value for name, value in parameters.items() if not isinstance(value, list)}
    lines += [f"parameters: {json.dumps(shared)}", ""]
    merge(MergeConfig(recipe_yaml="\n".join(lines), output_path=str(tmp_path / out), seed=5, **(fields or {})))
    return tmp_path / out


def stored(values: np.ndarray, dtype: str) -> np.ndarray:
    return from_bits(to_bits(values, dtype), dtype)


def some(
    dtype: str, models: int = 3, **shapes: tuple[int, ...]
) -> tuple[dict[str, np.ndarray], list[dict[str, np.ndarray]]]:
    generator = np.random.default_rng(0)

    def tensors(scale: float, near: dict[str, np.ndarray] | None) -> dict[str, np.ndarray]:
        return {
            name: stored(np.asarray(scale * generator.standard_normal(shape)) + (near[name] if near else 0.0), dtype)
            for name, shape in (shapes or SHAPES).items()
        }

    base = tensors(1.0, None)
    return base, [tensors(0.1, base) for _ in range(models)]


# --- the reading -------------------------------------------------------------------------------------------------------


def kept(method: str, x: np.ndarray, model: int, name: str, p: dict[str, Any]) -> np.ndarray:
    """mergekit's sparsify.py as a sentence each, in whole arrays; sorts are stable."""
    n, density = x.size, p["density"]
    if density >= 1 or n == 0:
        return x
    size = np.abs(x).reshape(-1)
    mask = np.zeros(n, bool)
    if density <= 0:
        pass
    elif method == "ties":
        mask[np.argsort(-size, kind="stable")[: max(1, int(density * n))]] = True
    elif method.startswith("breadcrumbs"):
        target = int(density * n)
        first = max(0, n - target - int(p["gamma"] * n))
        mask[np.argsort(size, kind="stable")[first : first + target]] = True
    else:
        probability: Any = np.full(n, density)
        if method.startswith("della"):
            lines = np.abs(x).reshape(1, -1) if x.ndim < 2 else np.abs(x)
            ranks = np.argsort(np.argsort(lines, axis=1, kind="stable"), axis=1, kind="stable")
            share = ranks / (lines.shape[1] - 1) if lines.shape[1] > 1 else np.full(lines.shape, 0.5)
            probability = (density - p["epsilon"] + share * 2 * p["epsilon"]).reshape(-1)
        drawn = np.array(oracle.hashes(5, model, name, n))
        mask = drawn < np.rint(probability * 2**32)
    result = np.where(mask.reshape(x.shape), x, 0.0)
    whole, left = np.abs(x).sum(), np.abs(result).sum()
    return result * (whole / left) if p["rescale"] and min(whole, left) >= 1e-7 else result


def expected(method: str, base: np.ndarray, models: list[np.ndarray], name: str, parameters: dict[str, Any]) -> np.ndarray:
    given = {"weight": 1.0, "density": 1.0, "lambda_": 1.0, **DEFAULTS[method], **parameters}
    deltas = []
    weights = []
    for number, model in enumerate(models):
        own = {key: value[number] if isinstance(value, list) else value for key, value in given.items()}
        deltas.append(own["weight"] * kept(method, np.asarray(model - base), number, name, own))
        weights.append(own["weight"])
    x, w = np.array(deltas), np.array(weights).reshape(-1, *[1] * base.ndim)
    if method.endswith("ties") or method == "della":
        votes, rounding = x.sum(0), 1e-13 * np.abs(x).sum(0)
        agree = np.sign(x) == np.where(votes >= -rounding, 1.0, -1.0)
        divisor = (w * agree).sum(0)
        divisor = np.where(divisor == 0, 1.0, divisor)
        merged = (x * agree).sum(0)
    else:
        divisor = w.sum(0) if abs(w.sum()) >= 1e-8 else np.ones_like(w[0])
        merged = x.sum(0)
    result: np.ndarray = base + given["lambda_"] * (merged / divisor if given["normalize"] else merged)
    return result


CASES: list[dict[str, Any]] = [
    {},
    {"density": 0.5},
    {"density": [0.2, 0.7, 1.0], "weight": [1.0, 0.5, 2.0], "normalize": True, "rescale": True, "lambda_": 0.7},
    {"density": [0.0, 0.4, 0.6], "weight": [1.0, -0.5, 0.25], "normalize": True, "rescale": False},
    {"density": 0.3, "weight": [1.0, -2.0, 1.0], "normalize": True},
]


@pytest.mark.parametrize("case", range(len(CASES)))
@pytest.mark.parametrize("method", METHODS)
def test_an_independent_reading(tmp_path: Path, method: str, case: int, each_backend: str) -> None:
    base, models = some("float64")
    result = read(run(tmp_path, method, base, models, **CASES[case]))
    for name, values in base.items():
        wanted = expected(method, values, [model[name] for model in models], name, CASES[case])
        np.testing.assert_allclose(result[name], wanted, rtol=1e-12, atol=1e-12, err_msg=name)


@pytest.mark.parametrize("method", ["breadcrumbs", "breadcrumbs_ties", "della", "della_linear"])
def test_parameters_of_their_own(tmp_path: Path, method: str) -> None:
    base, models = some("float64")
    name = "gamma" if method.startswith("breadcrumbs") else "epsilon"
    parameters: dict[str, Any] = {name: [0.0, 0.3, 0.09], "density": [0.9, 0.5, 0.1]}
    result = read(run(tmp_path, method, base, models, **parameters))
    for tensor, values in base.items():
        wanted = expected(method, values, [model[tensor] for model in models], tensor, parameters)
        np.testing.assert_allclose(result[tensor], wanted, rtol=1e-12, atol=1e-12)


# --- mergekit 0.1.5's numbers ------------------------------------------------------------------------------------------


PINNED = [
    ("ties", {}, [1.5, -2.75, 0.5, 3.0]),
    ("ties", {"rescale": True}, [1.625, -3.125, 0.5, 2.75]),
    ("breadcrumbs", {"gamma": 0.25}, [2.5, -2.75, 0.875, 4.5]),
]


@pytest.mark.parametrize(("method", "parameters", "wanted"), PINNED)
def test_pinned(tmp_path: Path, method: str, parameters: dict[str, Any], wanted: list[float], each_backend: str) -> None:
    """What mergekit 0.1.5 gives for these, with weights 3 and 1."""
    base = np.array([1.0, -2.0, 0.5, 4.0])
    deltas = np.array([[0.5, -0.25, 0.125, -1.0], [-0.25, -0.75, 0.375, 0.5]])
    models = [{"w": base + delta} for delta in deltas]
    out = run(tmp_path, method, {"w": base}, models, density=0.5, weight=[3.0, 1.0], **parameters)
    assert read(out)["w"].tolist() == wanted


def test_equals_are_kept_by_their_indices(tmp_path: Path, each_backend: str) -> None:
    """By hand, from a stable sort: by descending magnitude of ties, ascending of breadcrumbs."""
    model = {"w": np.array([1.0, -2.0, 1.0, -1.0, 1.0, 4.0, -1.0, 4.0])}
    zeros = {"w": np.zeros(8)}
    ties = read(run(tmp_path / "t", "ties", zeros, [model], density=0.625))["w"]
    assert ties.tolist() == [1.0, -2.0, 1.0, 0.0, 0.0, 4.0, 0.0, 4.0]
    crumbs = read(run(tmp_path / "b", "breadcrumbs", zeros, [model], density=0.5, gamma=0.125))["w"]
    assert crumbs.tolist() == [0.0, -2.0, 0.0, 0.0, 1.0, 4.0, -1.0, 0.0]


# --- selection ---------------------------------------------------------------------------------------------------------

grid = st.sampled_from([0.0, -0.0, 1.0, -1.0, 1.5, -2.0, float(np.float32(1e-45)), float(np.float32(3e38)), np.inf])
wide = st.floats(width=32, allow_nan=False)


def stable(row: np.ndarray, first: int, stop: int, descending: bool) -> np.ndarray:
    """The indices of those of ascending rank first..stop, in order."""
    if descending:
        return np.sort(np.argsort(-np.abs(row), kind="stable")[len(row) - stop : len(row) - first])
    return np.sort(np.argsort(np.abs(row), kind="stable")[first:stop])


@settings(max_examples=300, deadline=None)
@given(
    values=st.one_of(*(arrays(np.float32, st.integers(1, 200), elements=elements) for elements in (grid, wide))),
    ends=st.tuples(st.floats(0, 1), st.floats(0, 1)),
    descending=st.booleans(),
    narrow=st.booleans(),
    data=st.data(),
)
def test_what_is_kept(
    values: np.ndarray, ends: tuple[float, float], descending: bool, narrow: bool, data: st.DataObject
) -> None:
    """Exactly the wanted ranks, of equals by index; whatever the blocks."""
    n = len(values)
    first, stop = sorted(round(end * n) for end in ends)
    stop = n if descending else stop
    dtype = np.float32 if narrow else np.float64
    values[np.isinf(values)] = np.float32(3.4e38)  # Inf times 0 is NaN, so it would seem to be kept
    tensor = InMemory(values.astype(dtype)[None], narrow, block=data.draw(st.sampled_from([1, 7, 64, 1024])))
    backend = NumpyBackend(np.dtype(dtype).name)
    got = keep_ranks(tensor, backend, {0: (first, stop)}, descending)[0]  # type: ignore[arg-type]
    ones = np.concatenate([got.apply(x[0] * 0 + np.abs(x[0]), start, backend) for start, x in tensor.deltas()])
    wanted = stable(values, first, stop, descending)
    zeros = np.flatnonzero(values == 0)
    assert set(np.flatnonzero(ones)) == set(wanted) - set(zeros)
    size = np.abs(values)
    assert np.sort(ones[ones > 0]).tolist() == np.sort(size[wanted][size[wanted] > 0]).tolist()


@settings(max_examples=200, deadline=None)
@given(
    values=arrays(np.float32, st.integers(1, 200), elements=st.one_of(grid, wide, st.just(np.nan))),
    rank=st.floats(0, 1, exclude_max=True),
    capacity=st.integers(1, 40),
    small=st.sampled_from([0, selection.SMALL]),
)
def test_ranks_and_equals(values: np.ndarray, rank: float, capacity: int, small: int) -> None:
    """NaN counts as infinite. Small tensors, here of two models, are read whole; others block by block."""
    size = np.where(np.isnan(values), np.inf, np.abs(values))
    at = int(rank * len(values))
    tensor, backend = InMemory(np.stack([values[::-1], values]), block=16), NumpyBackend("float32")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(selection, "SMALL", small)
        other, cut = select_ranks(tensor, backend, [(0, at), (1, at)], capacity + small)  # type: ignore[arg-type]
        value = np.sort(size)[at]
        assert (cut.value, cut.below, cut.equal) == (value, (size < value).sum(), (size == value).sum())
        assert other == cut
        assert type(cut.value) is np.float32
        wanted = [(1, cut.value, number) for number in range(cut.equal)]
        assert find_equals(tensor, backend, wanted) == np.flatnonzero(size == value).tolist()  # type: ignore[arg-type]


@pytest.mark.parametrize("small", [0, selection.SMALL])
def test_ranks_of_what_leaves_float32(small: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Numbers of float32 that are merged as float64, whose difference is compared as float32. Block by block, and whole."""
    monkeypatch.setattr(selection, "SMALL", small)
    rows = np.array([[1.0, -6e38, 3e38, np.nan, 5e38]])
    tensor, backend = InMemory(rows, block=2), NumpyBackend("float64")
    with backend.at_work():
        (cut,) = select_ranks(tensor, backend, [(0, 2)])  # type: ignore[arg-type]
        assert (cut.value, cut.below, cut.equal) == (np.inf, 2, 3)
        wanted = [(0, cut.value, number) for number in range(3)]
        assert find_equals(tensor, backend, wanted) == [1, 3, 4]  # type: ignore[arg-type]


def test_large_tensors_with_many_equals() -> None:
    """More than the sample and a block: bfloat16's grid, one model without equals, one all equal."""
    generator = np.random.default_rng(0)
    coarse = stored(generator.standard_normal(100_000) * 1e-3, "bfloat16")
    rows = np.stack([coarse, generator.standard_normal(100_000), np.full(100_000, -0.5)]).astype(np.float32)
    tensor, backend = InMemory(rows), NumpyBackend("float32")
    intervals = {0: (30_001, 90_003), 1: (1, 99_999), 2: (50_000, 70_000)}
    for model, got in keep_ranks(tensor, backend, intervals).items():  # type: ignore[arg-type]
        left = got.apply(rows[model].copy(), 0, backend)
        assert np.flatnonzero(left).tolist() == stable(rows[model], *intervals[model], False).tolist()


# --- rescaling ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "factor"),
    [
        ([3.0, 1.0, -4.0, 2.0], 2.5),  # 10 / (3 + 1)
        ([1e308, 1e308, 1e308, 1e308], 2.0),  # their sum leaves float64
        ([1e-8, 1e-8, 1e-8, 1e-8], 1.0),  # as mergekit: below 1e-7
        ([0.0, 0.0, 1.0, 1.0], 1.0),  # nothing is left
        ([1.0, np.nan, 1.0, 1.0], 1.0),
        ([1.0, 1.0, np.inf, 1.0], 1.0),
    ],
)
def test_the_factor(values: list[float], factor: float) -> None:
    tensor, backend = InMemory(np.array([values]), narrow=False), NumpyBackend("float64")
    half = np.array([1.0, 1.0, 0.0, 0.0])
    got = l1_factors(tensor, backend, [0], lambda model, x, start: np.where(half, x, 0.0))  # type: ignore[arg-type]
    assert got == {0: factor}


# --- della's rows ------------------------------------------------------------------------------------------------------


class Shaped(InMemory):
    """Also what a method knows of where its elements lie."""

    name = "t"
    shape: tuple[int, ...] = ()
    transposed = False

    def mask_key(self, model: int) -> tuple[int, int]:
        return mask_key(5, model, self.name)


@pytest.mark.parametrize("selecting", [64 << 20, 4000, 100])
@pytest.mark.parametrize(
    ("shape", "transposed"),
    [
        ((40, 70), False),
        ((40, 70), True),
        ((2500,), False),
        ((5, 7, 11), False),
        ((), False),
        ((300, 1), False),
        ((0, 3), True),
    ],
)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_ranks_of_rows_however_they_lie(shape: tuple[int, ...], transposed: bool, dtype: str, selecting: int) -> None:
    """With any memory budget: rows of torch's matrix are columns in Paddle's layout. Many values are equal."""
    x = np.round(np.random.default_rng(0).standard_normal((2, *shape)), 1).astype(dtype)
    tensor, backend = Shaped(x.reshape(2, -1), dtype == "float32"), NumpyBackend(dtype, MemoryBudget(selecting=selecting))
    tensor.shape, tensor.transposed = shape, transposed
    rule = ByRowRank((0.5, 0.4), (0.3, 0.1))
    sparsifier = KeepAndRescale("della", rule, Rescale.NONE)
    states = sparsifier.prepare(tensor, backend)  # type: ignore[arg-type]
    for model, row in enumerate(x):
        blocks = [sparsifier.apply(b[model], start, states[model], backend) for start, b in tensor.deltas()]
        got = np.concatenate([*blocks, np.zeros(0)]).reshape(shape)
        lines = np.abs(row) if row.ndim > 1 else np.abs(row).reshape(1, -1)
        lines = lines.T if transposed else lines
        n = lines.shape[1]
        ranks = np.argsort(np.argsort(lines, axis=1, kind="stable"), axis=1, kind="stable")
        density, epsilon = rule.density_of(model), rule.epsilon[model]
        limit = density - epsilon + (ranks / (n - 1) if n > 1 else np.full(lines.shape, 0.5)) * 2 * epsilon
        limit = (limit.T if transposed else limit).reshape(shape)
        drawn = np.array(oracle.hashes(5, model, "t", row.size)).reshape(shape)
        assert (got == np.where(drawn < np.rint(limit * 2**32), row, 0.0)).all()


@pytest.mark.parametrize("layout", ["hf", "paddleformers"])
def test_a_layer_ranks_its_inputs(tmp_path: Path, layout: str) -> None:
    """Each output's smallest weight is kept with probability 0.1, its largest with 0.9, in either layout: 4000 outputs, so
    a share's standard error is 0.005."""
    name = "model.layers.0.mlp.up_proj.weight"
    weights = np.random.default_rng(0).permuted(np.tile(np.arange(1.0, 6.0), (4000, 1)), axis=1)  # [out, in]
    model = {name: weights if layout == "hf" else weights.T.copy()}
    fields = {"layout": [layout, layout]}
    base = {name: np.zeros_like(model[name])}
    out = run(tmp_path, "della_linear", base, [model], fields=fields, density=0.5, epsilon=0.4, rescale=False)
    kept = read(out)[name]
    shares = [(kept == value).sum() / 4000 for value in range(1, 6)]
    assert shares == pytest.approx([0.1, 0.3, 0.5, 0.7, 0.9], abs=0.025)


@pytest.mark.parametrize(("shape", "transposed"), [((512, 2048), False), ((512, 2048), True), ((1 << 20,), False)])
def test_memory_is_told(shape: tuple[int, ...], transposed: bool) -> None:
    rows = np.random.default_rng(0).standard_normal((2, 1 << 20)).astype(np.float32)
    budget = MemoryBudget(selecting=1 << 20)
    tensor, backend = Shaped(rows, block=1 << 14), NumpyBackend("float32", budget)
    tensor.shape, tensor.transposed = shape, transposed
    sparsifier = KeepAndRescale("della", ByRowRank((0.5, 0.4), (0.3, 0.1)), Rescale.L1)
    sparsifier.prepare(tensor, backend)  # type: ignore[arg-type] - compiles its loops
    tracemalloc.start()
    sparsifier.prepare(tensor, backend)  # type: ignore[arg-type]
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    announced = sparsifier.memory(2, 1 << 20, 4, budget) + sparsifier.row_memory(2, shape, transposed, 4)
    assert announced / 4 < peak < announced + (1 << 20)  # and a few blocks


# --- laws --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["bfloat16", "float32", "float8_e5m2"])
@pytest.mark.parametrize("method", METHODS)
def test_nothing_changes(tmp_path: Path, method: str, dtype: str, each_backend: str) -> None:
    """Models equal to the base give the base; so does density 0, and lambda 0."""
    base, models = some(dtype)
    same = read(run(tmp_path / "same", method, base, [base, base], dtype, density=0.5))
    none = read(run(tmp_path / "none", method, base, models, dtype, density=0.0))
    off = read(run(tmp_path / "off", method, base, models, dtype, density=0.5, lambda_=0.0))
    for name, values in base.items():
        assert all((result[name] == values).all() for result in (same, none, off)), name


@pytest.mark.parametrize("method", ["dare_linear", "della_linear", "breadcrumbs"])
def test_all_kept_is_task_arithmetic(tmp_path: Path, method: str, each_backend: str) -> None:
    base, models = some("float32")
    weights = [0.5, 0.25, 1.0]
    result = read(run(tmp_path / "a", method, base, models, "float32", weight=weights))
    plain = read(run(tmp_path / "b", "task_arithmetic", base, models, "float32", weight=weights))
    assert all((result[name] == plain[name]).all() for name in base)


@pytest.mark.parametrize("method", METHODS)
def test_nan_and_inf_stay_where_they_are(tmp_path: Path, method: str, each_backend: str) -> None:
    base, models = some("float32", models=2, w=(20, 30))
    models[0]["w"][3, 4], models[1]["w"][5, 6] = np.nan, np.inf
    result = read(run(tmp_path, method, base, models, "float32", density=0.5, rescale=True))["w"]
    assert np.argwhere(~np.isfinite(result)).tolist() == [[3, 4], [5, 6]]


def test_masks_of_models_and_shares_of_elements(tmp_path: Path) -> None:
    """Unlike: 60 000 elements, so a share's standard error is 0.002."""
    base = {"w": np.zeros((300, 200))}
    model = {"w": np.ones((300, 200))}
    for method in ("dare_linear", "della_linear"):
        out = run(tmp_path / method, method, base, [model, model], density=[0.5, 0.3], weight=[1.0, 10.0], rescale=False)
        values, counts = np.unique(read(out)["w"], return_counts=True)
        assert values.tolist() == [0.0, 1.0, 10.0, 11.0]
        assert counts[[1, 3]].sum() / 60_000 == pytest.approx(0.5, abs=0.01)
        assert counts[[2, 3]].sum() / 60_000 == pytest.approx(0.3, abs=0.01)
    independent = read(tmp_path / "dare_linear" / "out")["w"]
    assert (independent == 11.0).mean() == pytest.approx(0.15, abs=0.01)


# --- weights that cancel, and mistakes ---------------------------------------------------------------------------------


def test_a_negative_divisor_divides() -> None:
    """By hand: weighted by 1 and -3, 1 and -1 both are positive; their sum 4 is divided by -2."""
    x = np.array([[1.0], [-1.0]])
    formula = consensus.ties(np, x, [1.0, -3.0], False, 1.0, True)
    assert formula.tolist() == [4.0 / -2.0]
    assert NumpyBackend("float64").apply(consensus.ties, x, np.array([1.0, -3.0]), False, 1.0, True).tolist() == [-2.0]


@pytest.mark.parametrize(
    ("method", "parameters", "sentence"),
    [
        ("della", {"density": 0.9}, "parameter 'epsilon' 0.15 with 'density' 0.9: keep probabilities span"),
        (
            "della_linear",
            {"density": 0.2, "epsilon": [0.1, 0.2]},
            "'epsilon' 0.2 with 'density' 0.2: .*; set epsilon below 0.2",
        ),
        ("breadcrumbs", {"density": 0.9, "gamma": -0.1}, "parameter 'gamma' -0.1 -0.1 is the share of elements to drop"),
        ("ties", {"density": [0.5, float("nan")]}, "parameter 'density' must be a number below 1e30, not 'NaN'"),
        ("dare_ties", {"weight": [float("inf"), 1.0]}, "parameter 'weight' must be a number below 1e30, not 'Infinity'"),
    ],
)
def test_mistakes(tmp_path: Path, method: str, parameters: dict[str, Any], sentence: str) -> None:
    base, models = some("float32", models=2, w=(3,))
    with pytest.raises(ConfigError, match=sentence) as caught:
        run(tmp_path, method, base, models, "float32", **parameters)
    assert len(caught.value.problems) == 1
    assert not (tmp_path / "out").exists()
