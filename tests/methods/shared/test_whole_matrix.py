"""Test methods that need whole tensors or layers: sce, arcee_fusion, tsv, iso_c, consensus_ta, lines, safe_merge."""

from __future__ import annotations

import functools
import os
import re
import subprocess
import sys
import tracemalloc
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from threadpoolctl import threadpool_limits

from paddle_merge import ConfigError, MergeConfig, merge
from paddle_merge.backends.budget import DEFAULT_BUDGET, MemoryBudget
from paddle_merge.backends.engine import Engine
from paddle_merge.backends.np_backend import NumpyBackend
from paddle_merge.methods.iso_c import IsoC
from paddle_merge.methods.safe_merge import SafeMerge
from paddle_merge.methods.shared.whole_matrix import spectrum
from paddle_merge.methods.tsv import Tsv
from paddle_merge.recipe.request import Request
from tests.conversion.test_layout import CONFIG, laid_out, llama
from tests.support import oracle
from tests.support.checkpoints import from_bits, read, to_bits, write
from tests.support.sweeps import few

METHODS = {
    "sce": "{select_topk: 0.4}",
    "arcee_fusion": "{}",
    "tsv": "{lambda: 0.9}",
    "iso_c": "{lambda: 0.8}",
    "consensus_ta": "{lambda: 0.7}",
    "lines": "{alpha: 0.3, beta: 0.5}",
    "safe_merge": "{tau: 0.8}",
}
SHAPES = {
    "w": (33, 65), "tall": (90, 17), "bias": (13,), "one": (1,), "scalar": (), "none": (0,), "row": (1, 40),
    "cube": (3, 4, 5), "model.layers.0.w": (6, 6), "model.layers.1.w": (6, 6), "model.layers.2.w": (6, 6),
    "large": (300, 700),
}  # fmt: skip
BASE = np.array([1.0, -2.0, 0.5, 4.0])
FIRST = np.array([0.5, -0.25, 0.125, -1.0])
SECOND = np.array([-0.25, -0.75, 0.375, 0.5])
State = dict[str, np.ndarray]


def count(method: str) -> int:
    return 1 if method == "arcee_fusion" else 3


def stored(values: np.ndarray, dtype: str) -> np.ndarray:
    return from_bits(to_bits(values, dtype), dtype)


def tensors(seed: int, dtype: str, about: State | None = None) -> State:
    """Random ones, or ones a tenth away from others."""
    generator = np.random.default_rng(seed)
    found = {name: generator.standard_normal(shape) for name, shape in SHAPES.items()}
    if about is not None:
        found = {name: about[name] + 0.1 * values for name, values in found.items()}
    return {name: stored(np.asarray(values), dtype) for name, values in found.items()}


def run(
    folder: Path, method: str, models: Sequence[State], base: State, dtype: str, parameters: str | None = None, **fields: Any
) -> Path:
    write(folder / "base", base, dtype)
    for number, model in enumerate(models):
        write(folder / f"m{number}", model, dtype)
    listed = "".join(f"  - model: {folder}/m{number}\n" for number in range(len(models)))
    given = METHODS[method] if parameters is None else parameters
    recipe = f"merge_method: {method}\nbase_model: {folder}/base\nmodels:\n{listed}parameters: {given}\n"
    out = folder / fields.pop("out", "out")
    merge(MergeConfig(recipe_yaml=recipe, output_path=str(out), **fields))
    return out


def merged(folder: Path, method: str, parameters: str, base: np.ndarray, *deltas: np.ndarray) -> np.ndarray:
    out = run(folder, method, [{"w": base + delta} for delta in deltas], {"w": base}, "float64", parameters)
    return read(out)["w"]


# --- by hand -----------------------------------------------------------------------------------------------------------


def test_sce_as_mergekit(tmp_path: Path) -> None:
    """From mergekit 0.1.5 (select_topk 0.5). Variances are .14, .06, .016, .56: the first and last are selected, the second
    of them elects minus, the first plus."""
    got = merged(tmp_path, "sce", "{select_topk: 0.5}", BASE, FIRST, SECOND)
    assert got.tolist() == [1.5, -2.0, 0.5, 3.0]


def test_sce_weighs_small_changes_too(tmp_path: Path) -> None:
    """Squares of 1e-4 and 3e-4 are 1 to 9: mergekit would give the mean, 2e-4, for they sum to less than its 1e-6."""
    got = merged(tmp_path, "sce", "{}", np.zeros(8), np.full(8, 1e-4), np.full(8, 3e-4))
    np.testing.assert_allclose(got, 2.8e-4, rtol=1e-12)


def test_sce_of_numbers_whose_squares_leave_float64(tmp_path: Path) -> None:
    for scale in (1e-180, 1e180):
        got = merged(tmp_path / str(scale), "sce", "{}", np.zeros(3), np.full(3, scale), np.full(3, 3 * scale))
        np.testing.assert_allclose(got / scale, 2.8, rtol=1e-12)


def test_arcee_fusion_as_mergekit(tmp_path: Path) -> None:
    """From mergekit 0.1.5, in float64: importance .068 .034 .017 .136, .031 .092 .046 .061, .030 .954 .060 0;
    threshold .1033."""
    base = np.array([BASE, [0.25, 0.75, -0.5, 1.0], [0.0, 0.0, 0.125, -0.25]])
    delta = np.array([FIRST, SECOND, [0.0625, 2.0, -0.125, 0.0]])
    expected = base + delta * [[0, 0, 0, 1], [0, 0, 0, 0], [0, 1, 0, 0]]
    assert (merged(tmp_path / "rows", "arcee_fusion", "{}", base, delta) == expected).all()
    # The same matrix on its side is another: lines are its own. Threshold .1965.
    expected = base.T + delta.T * [[0, 0, 0], [0, 1, 1], [0, 0, 0], [0, 0, 0]]
    assert (merged(tmp_path / "columns", "arcee_fusion", "{}", base.T, delta.T) == expected).all()


def test_tsv_of_tasks_apart(tmp_path: Path) -> None:
    """One singular vector each, at right angles already: diag(4, 1) gives 4 in one corner, diag(1, 3) 3 in the other."""
    got = merged(tmp_path, "tsv", "{}", np.zeros((2, 2)), np.diag([4.0, 1.0]), np.diag([1.0, 3.0]))
    np.testing.assert_allclose(got, np.diag([4.0, 3.0]), atol=1e-12)


def test_tsv_turns_vectors_apart(tmp_path: Path) -> None:
    """Right vectors e1 and e2; left ones e1 and (e1 + e2)/sqrt 2, 45 degrees apart: each turns by 22.5, to 90."""
    c, s = np.cos(np.pi / 8), np.sin(np.pi / 8)
    deltas = np.array([[2.0, 0.0], [0.0, 0.0]]), np.array([[0.0, 1.0], [0.0, 1.0]])
    got = merged(tmp_path, "tsv", "{}", np.zeros((2, 2)), *deltas)
    np.testing.assert_allclose(got, [[2 * c, 2**0.5 * s], [-2 * s, 2**0.5 * c]], atol=1e-12)


def test_iso_c_by_hand(tmp_path: Path) -> None:
    """The sum is diag(5, -1): singular values 5 and 1, their mean 3. A vector: the mean of both."""
    got = merged(tmp_path / "m", "iso_c", "{}", np.zeros((2, 2)), np.diag([4.0, 1.0]), np.diag([1.0, -2.0]))
    np.testing.assert_allclose(got, np.diag([3.0, -3.0]), atol=1e-12)
    got = merged(tmp_path / "v", "iso_c", "{}", BASE, FIRST, SECOND)
    assert got.tolist() == [1.125, -2.5, 0.75, 3.75]


def test_consensus_by_hand(tmp_path: Path) -> None:
    """With lambda_mask .4 the changes .5 and -.25, and -1 and .5, are each more than .4 of the other; the others aren't."""
    got = merged(tmp_path, "consensus_ta", "{}", BASE, FIRST, SECOND)
    assert got.tolist() == [1.25, -2.0, 0.5, 3.5]
    got = merged(tmp_path / "selfish", "consensus_ta", "{k: 1, lambda: 0.5}", BASE, FIRST, SECOND)
    assert got.tolist() == [1.125, -2.5, 0.75, 3.75]


def test_lines_by_layer(tmp_path: Path) -> None:
    """alpha .2: .2, .6 and 1 for three layers, .2 for what is in none; with beta 1: .2, .7, 1.2."""
    names = ["embed.w", "layers.0.w", "layers.1.w", "layers.2.w", "norm.w"]
    base, model = dict.fromkeys(names, BASE), dict.fromkeys(names, BASE + 10.0)
    for parameters, expected in {
        "{alpha: 0.2}": [2, 2, 6, 10, 2],
        "{alpha: 0.2, beta: 1, lambda: 2}": [4, 4, 14, 24, 4],
    }.items():
        got = read(run(tmp_path / str(expected[1]), "lines", [model], base, "float64", parameters))
        for name, value in zip(names, expected, strict=True):
            np.testing.assert_allclose(got[name], BASE + value, rtol=1e-12)


# --- against plain float64 ---------------------------------------------------------------------------------------------


def plain_sce(deltas: np.ndarray, topk: float) -> np.ndarray:
    pairs = [(one - other) ** 2 for number, one in enumerate(deltas) for other in deltas[:number]]
    spread = np.sum(pairs, axis=0) / len(deltas) ** 2  # the variance, of small whole numbers without rounding
    variances = spread.reshape(-1)
    if topk < 1:
        kept = int((variances > 0).sum() * topk)
        least = np.sort(variances)[len(variances) - kept] if kept else np.inf
        deltas = np.where(spread >= least, deltas, 0.0)
    weights = np.array([np.mean(delta**2) for delta in deltas])
    weights = weights / weights.sum() if weights.sum() else np.ones(len(deltas)) / len(deltas)
    total, divisor = np.zeros(deltas[0].shape), np.zeros(deltas[0].shape)
    elected = np.where(deltas.sum(0) >= 0, 1.0, -1.0)
    for weight, delta in zip(weights, deltas, strict=True):
        agrees = np.sign(delta) == elected
        total += weight * delta * agrees
        divisor += weight * agrees
    return np.divide(total, divisor, out=np.zeros_like(total), where=divisor > 0)


def plain_arcee(base: np.ndarray, delta: np.ndarray) -> np.ndarray:
    def softmax(x: np.ndarray) -> np.ndarray:
        powers = np.exp(x - x.max(-1, keepdims=True))
        return powers / powers.sum(-1, keepdims=True)

    if base.ndim == 0:
        return delta
    p, q = softmax(base + delta) + 1e-8, softmax(base) + 1e-8
    importance = np.abs(delta) * (p * np.log(p / q)).sum(-1, keepdims=True)
    ordered = np.sort(importance, axis=None)
    first, median, third = (ordered[int(q * (ordered.size - 1))] for q in (0.25, 0.5, 0.75))
    return np.where(importance >= median + 1.5 * (third - first), delta, 0.0)


def plain_tsv(deltas: np.ndarray, share: float | None = None) -> np.ndarray:
    if deltas[0].ndim != 2 or min(deltas[0].shape) < 2:
        return np.asarray(deltas.mean(0))
    n = min(deltas[0].shape)
    r = max(1, n // len(deltas) if share is None else int(n * share + 1e-9))
    parts = [np.linalg.svd(delta, full_matrices=False) for delta in deltas]
    left, right = np.hstack([u[:, :r] for u, _, _ in parts]), np.vstack([v[:r] for _, _, v in parts])
    values = np.concatenate([s[:r] for _, s, _ in parts])
    (p, _, q), (a, _, b) = (np.linalg.svd(side, full_matrices=False) for side in (left, right))
    return np.asarray(p @ q @ np.diag(values) @ a @ b)


def plain_iso(deltas: np.ndarray) -> np.ndarray:
    if deltas[0].ndim != 2 or min(deltas[0].shape) < 2:
        return np.asarray(deltas.mean(0))
    u, s, v = np.linalg.svd(deltas.sum(0), full_matrices=False)
    return np.asarray(s.mean() * (u @ v))


def plain_consensus(deltas: np.ndarray, factor: float, k: int) -> np.ndarray:
    together = deltas.sum(0)
    votes = sum((np.abs(delta) > factor * np.abs(together - delta)).astype(int) for delta in deltas)
    return np.where(votes >= k, together, 0.0)


def plain(method: str, name: str, base: np.ndarray, deltas: np.ndarray) -> np.ndarray:
    """base + what METHODS' parameters make of the deltas."""
    if not base.size:
        return base
    if method == "safe_merge":
        kept = base.ndim != 2 or oracle.alignment_cosine(base, base + deltas[2], base + deltas[0]) >= 0.8
        return np.asarray(base + (deltas[0] if kept else 0.8 * deltas[0] + 0.2 * deltas[1]))
    if method == "lines":
        layer = int(name.split(".")[2]) / 2 if "layers" in name else 0.0
        return np.asarray(base + (0.3 + 0.5 * layer) * deltas.sum(0))
    made = {
        "sce": lambda: plain_sce(deltas, 0.4),
        "arcee_fusion": lambda: plain_arcee(base, deltas[0]),
        "tsv": lambda: 0.9 * plain_tsv(deltas),
        "iso_c": lambda: 0.8 * plain_iso(deltas),
        "consensus_ta": lambda: 0.7 * plain_consensus(deltas, 0.4, 2),
    }
    return np.asarray(base + made[method]())


@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16"])
@pytest.mark.parametrize("method", METHODS)
def test_every_tensor_as_by_definition(tmp_path: Path, method: str, dtype: str, each_backend: str) -> None:
    base = tensors(0, dtype)
    models = [tensors(number + 1, dtype, base) for number in range(count(method))]
    got = read(run(tmp_path, method, models, base, dtype))
    for name in SHAPES:
        expected = plain(method, name, base[name], np.array([model[name] - base[name] for model in models]))
        close = {"float64": 1e-9, "float32": 2e-6, "bfloat16": 2**-7}[dtype]
        apart = np.abs(got[name] - expected) > close * np.maximum(1, np.abs(expected))
        # Where float32's rounding brings an importance or a variance to the threshold's other side, so it does its element.
        # bfloat16's differences are of so few sizes that many variances are equal, but for rounding.
        few = 3 + 0.001 * apart.size if method == "sce" and dtype == "bfloat16" else 3
        assert apart.sum() <= (few if method in ("sce", "arcee_fusion", "consensus_ta") and dtype != "float64" else 0), name


small = hnp.arrays(np.float64, st.tuples(st.integers(2, 4), st.integers(1, 40)), elements=st.integers(-4, 4).map(float))


@settings(max_examples=60, deadline=None)
@given(small, st.sampled_from([0.0, 0.3, 0.5, 0.99, 1.0]), st.floats(0.0, 2.0), st.integers(0, 2))
def test_small_numbers_by_definition(deltas: np.ndarray, topk: float, factor: float, k: int) -> None:
    """Many ties, zeros and cancellations, in arithmetic that is exact, or nearly so."""
    from paddle_merge.methods.consensus import Consensus
    from paddle_merge.methods.sce import Sce

    backend, source = NumpyBackend("float64"), InMemory(deltas)
    sce = Sce(topk)
    got = sce.apply(deltas.copy(), 0, sce.prepare(source, backend), backend)
    np.testing.assert_allclose(got, plain_sce(deltas, topk), atol=1e-12)
    weights = (1.0,) * len(deltas)
    consensus = Consensus(weights, (factor,) * len(deltas), k)
    got = consensus.apply(deltas.copy(), 0, consensus.prepare(source, backend), backend)
    assert (got == plain_consensus(deltas, factor, k)).all()


class InMemory:
    """A tensor, as methods see it."""

    name, seed, transposed = "w", 0, False

    def __init__(self, rows: np.ndarray, shape: tuple[int, ...] | None = None, narrow: bool = False):
        self.models, self.size = rows.shape
        self.shape, self.narrow, self._rows = shape or (self.size,), narrow, rows

    def deltas(self) -> Any:
        for start in range(0, self.size, 1 << 16):
            yield start, self._rows[:, start : start + (1 << 16)].copy()

    sparsified = deltas

    def sample(self, count: int) -> np.ndarray:
        raise AssertionError("it is small")


# --- singular vectors ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("smallest", [1e-2, 1e-5, 1e-9])
def test_spectrum_is_an_svd(smallest: float) -> None:
    """Values from 1 down to `smallest`, evenly in their logarithm: to 1e-6 of the largest, and orthonormal to rounding."""
    generator = np.random.default_rng(0)
    u, v = (np.linalg.qr(generator.standard_normal((size, 60)))[0] for size in (200, 60))
    matrix = u * np.geomspace(1, smallest, 60) @ v.T
    left, values, right = spectrum(matrix, 60)
    for vectors in (left, right):
        np.testing.assert_allclose(vectors.T @ vectors, np.eye(len(values)), atol=1e-12)
    assert np.abs(left * values @ right.T - matrix).max() < 1e-6
    assert np.abs(values - np.geomspace(1, smallest, 60)[: len(values)]).max() < 1e-9
    kept = np.geomspace(1, smallest, 60) > 1e-5
    assert len(values) >= kept.sum()
    head = left[:, kept.nonzero()[0]] @ right[:, kept.nonzero()[0]].T
    np.testing.assert_allclose(head, u[:, kept] @ v[:, kept].T, atol=1e-6)


@pytest.mark.parametrize("models", [1, 2, 3])
def test_equal_models_give_what_is_kept_of_the_model(tmp_path: Path, models: int) -> None:
    """An SVD would leave half the vectors open, and give them full weight."""
    delta = np.random.default_rng(0).standard_normal((12, 9))
    u, s, v = np.linalg.svd(delta, full_matrices=False)
    r = 9 // models
    got = merged(tmp_path, "tsv", "{}", np.zeros((12, 9)), *[delta] * models)
    np.testing.assert_allclose(got, u[:, :r] * s[:r] @ v[:r], atol=1e-9)


@pytest.mark.parametrize("method", ["tsv", "iso_c"])
def test_low_ranks_stay_low(tmp_path: Path, method: str) -> None:
    """Of two task vectors of rank 2 comes one of rank 4 at most: directions that no model changed stay as they are."""
    generator = np.random.default_rng(0)
    deltas = [generator.standard_normal((20, 2)) @ generator.standard_normal((2, 16)) for _ in range(2)]
    got = merged(tmp_path, method, "{}", np.zeros((20, 16)), *deltas)
    found = np.linalg.svd(got)[1]
    assert found[3] > 0.1
    assert found[4] < 1e-9
    changed = np.linalg.svd(np.hstack(deltas))[0][:, :4]
    np.testing.assert_allclose(changed @ (changed.T @ got), got, atol=1e-9)


def test_tsv_keeps_the_share_that_is_asked_for(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    deltas = generator.standard_normal((3, 10, 8))
    for share in (0.25, 0.5, 1.0):  # 3 * 4 and 3 * 8 vectors are more than the 8 there is room for
        got = merged(tmp_path / str(share), "tsv", f"{{k: {share}}}", np.zeros((10, 8)), *deltas)
        np.testing.assert_allclose(got, plain_tsv(deltas, share), atol=1e-9)


def test_weights_multiply_task_vectors(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    deltas = generator.standard_normal((2, 10, 8))
    base = {"w": np.zeros((10, 8)), "v": np.zeros(4)}
    for method, formula in {"tsv": plain_tsv, "iso_c": plain_iso}.items():
        listed = ""
        for number, (delta, weight) in enumerate(zip(deltas, (2.0, -0.5), strict=True)):
            model = write(tmp_path / f"m{number}", {"w": delta, "v": delta[0, :4]}, "float64")
            listed += f"  - {{model: {model}, parameters: {{weight: {weight}}}}}\n"
        recipe = f"merge_method: {method}\nbase_model: {write(tmp_path / 'base', base, 'float64')}\nmodels:\n{listed}"
        merge(MergeConfig(recipe_yaml=recipe, output_path=str(tmp_path / method)))
        got, weighted = read(tmp_path / method), np.array([2.0 * deltas[0], -0.5 * deltas[1]])
        np.testing.assert_allclose(got["w"], formula(weighted), atol=1e-9)
        np.testing.assert_allclose(got["v"], weighted[:, 0, :4].mean(0), atol=1e-12)


def test_a_stage_of_singular_vectors_may_be_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a merge of a merge measures is read twice, in pieces; as if the first had been written."""
    generator = np.random.default_rng(0)
    states = [{"w": generator.standard_normal((300, 250))} for _ in range(3)]
    budget = MemoryBudget(1 << 14, 1 << 14, resident=0, panel=1 << 14)
    monkeypatch.setattr("paddle_merge.recipe.request.Engine", functools.partial(Engine, budget=budget))
    first = run(tmp_path, "tsv", states[1:], states[0], "float64")
    listed = "".join(f"  - model: {tmp_path}/m{number}\n" for number in range(2))
    then = "merge_method: sce\nbase_model: {base}\nmodels:\n  - model: {one}\n  - model: {base}\n  - model: {two}\n"
    stage = f"name: first\nmerge_method: tsv\nbase_model: {tmp_path}/base\nmodels:\n{listed}parameters: {METHODS['tsv']}\n"
    names = {"base": f"{tmp_path}/base", "two": f"{tmp_path}/m0"}
    for out, recipe in {
        "staged": stage + "---\n" + then.format(one="first", **names),
        "apart": then.format(one=first, **names),
    }.items():
        merge(MergeConfig(recipe_yaml=recipe, output_path=str(tmp_path / out)))
    assert (read(tmp_path / "staged")["w"] == read(tmp_path / "apart")["w"]).all()


def test_zeros_and_what_cancels(tmp_path: Path) -> None:
    """Models without a change, or with hardly any, have no singular vectors; sums may be nothing."""
    delta = np.random.default_rng(0).standard_normal((5, 4))
    for method in ("tsv", "iso_c"):
        got = merged(tmp_path / method, method, "{}", np.zeros((5, 4)), delta, 0 * delta, 1e-200 * delta)
        expected = plain_tsv(np.array([delta]), 0.26) if method == "tsv" else plain_iso(np.array([delta]))
        np.testing.assert_allclose(got, expected, atol=1e-9)
    got = merged(tmp_path / "cancelled", "iso_c", "{}", np.ones((5, 4)), delta.round(1), -delta.round(1))
    assert np.abs(got - 1).max() < 1e-12


@pytest.mark.parametrize("method", ["tsv", "iso_c"])
def test_numbers_whose_squares_leave_float64(tmp_path: Path, method: str) -> None:
    deltas = np.random.default_rng(0).standard_normal((2, 6, 5))
    expected = {"tsv": plain_tsv, "iso_c": plain_iso}[method](deltas)
    for scale in (1e-200, 1e200):
        got = merged(tmp_path / str(scale), method, "{}", np.zeros((6, 5)), *scale * deltas)
        np.testing.assert_allclose(got / scale, expected, rtol=1e-9)


@pytest.mark.parametrize("shape", [(700, 300), (300, 700), (400, 400)])
@pytest.mark.parametrize(
    "merger",
    [Tsv((1.0,) * 3, 1 / 3), Tsv((1.0,) * 3, 0.8), Tsv((1.0,) * 3, 0.05), IsoC((1.0,) * 3), SafeMerge(0.35, 0.8)],
)
def test_memory_is_what_they_say(
    merger: Tsv | IsoC | SafeMerge, shape: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Arrays as NumPy counts them; LAPACK's own, which it doesn't, are at most three of the Gram matrix."""
    rows = np.random.default_rng(0).standard_normal((3, shape[0] * shape[1]), np.float32)
    source, backend = InMemory(rows, shape, narrow=True), NumpyBackend("float32")
    monkeypatch.setattr("paddle_merge.methods.safe_merge._STEP", 1 << 14)
    tracemalloc.start()
    try:
        merger.prepare(source, backend)  # type: ignore[arg-type]
        taken = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    said = merger.row_memory(3, shape, False, 4)
    kept = max(min(shape), 3 * merger.kept(min(shape))) if isinstance(merger, Tsv) else min(shape)
    hidden, blocks = 3 * 8 * kept**2, 3 * 4 * (1 << 16) * 2
    assert taken <= said + blocks
    assert said < 1.7 * taken + hidden


THREADS = """
import sys
import numpy as np
from paddle_merge.backends.np_backend import NumpyBackend
from paddle_merge.methods.tsv import Tsv
from tests.methods.shared.test_whole_matrix import InMemory
rows = np.random.default_rng(0).standard_normal((2, 500 * 400), np.float32)
sys.stdout.write(Tsv((1.0, 1.0), 0.5).prepare(InMemory(rows, (500, 400), True), NumpyBackend("float32")).tobytes().hex())
"""


@pytest.mark.exhaustive
def test_bytes_do_not_depend_on_threads() -> None:
    """As BLAS's own results do."""
    found = set()
    for threads in ("1", "2", "3"):
        env = {**os.environ, "OPENBLAS_NUM_THREADS": threads, "MKL_NUM_THREADS": threads, "OMP_NUM_THREADS": threads}
        found.add(subprocess.run([sys.executable, "-c", THREADS], env=env, capture_output=True, check=True).stdout)
    assert len(found) == 1
    with threadpool_limits(2):  # and it is left as it was
        before = threadpool_limits().get_original_num_threads()
    assert before


# --- laws ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32", "float64", "float8_e5m2"])
@pytest.mark.parametrize("method", METHODS)
def test_models_equal_to_the_base_give_the_base(tmp_path: Path, method: str, dtype: str, each_backend: str) -> None:
    base = tensors(0, dtype)
    got = read(run(tmp_path, method, [base] * count(method), base, dtype))
    assert all((got[name] == base[name]).all() for name in SHAPES)


@pytest.mark.parametrize("method", METHODS)
def test_nan_and_inf_stay_in_their_elements(tmp_path: Path, method: str, each_backend: str) -> None:
    """Others are what they are without them, but for thresholds, and what is made of the whole of a matrix."""
    base = {"w": np.zeros((6, 8)), "v": np.zeros(20)}
    generator = np.random.default_rng(0)
    models = [{name: generator.standard_normal(values.shape) for name, values in base.items()} for _ in range(count(method))]
    models[0]["w"][2, 3], models[0]["w"][4, 4], models[0]["v"][5], models[0]["v"][7] = np.nan, np.inf, np.nan, -np.inf
    parameters = "{select_topk: 1.0}" if method == "sce" else None
    got = read(run(tmp_path, method, models, base, "float32", parameters))
    for name, places in {"w": [(2, 3), (4, 4)], "v": [(5,), (7,)]}.items():
        spoilt = np.zeros(base[name].shape, bool)
        spoilt[tuple(zip(*places, strict=True))] = True
        assert not np.isfinite(got[name][spoilt]).any()
        assert np.isfinite(got[name][~spoilt]).all()
    assert any(np.abs(values[np.isfinite(values)]).sum() > 0 for values in got.values())


@pytest.mark.parametrize("layout", ["paddlenlp", "paddleformers"])
@pytest.mark.parametrize("method", few(METHODS, 3))
def test_paddles_layout_gives_the_same_model(tmp_path: Path, method: str, layout: str) -> None:
    """To the bit: lines are torch's rows, and singular vectors are computed of one and the same matrix."""
    base = llama(0)
    models = [
        {name: stored(v + 0.1 * llama(n + 1)[name], "bfloat16") for name, v in base.items()} for n in range(count(method))
    ]
    made = {}
    for kind in ("hf", layout):
        folder = tmp_path / kind
        for name, state in {"base": base, **{f"m{n}": model for n, model in enumerate(models)}}.items():
            write(folder / name, laid_out(state, kind), "bfloat16", format="pt" if kind == "hf" else "np", config=CONFIG)
        listed = "".join(f"  - model: {folder}/m{n}\n" for n in range(len(models)))
        recipe = f"merge_method: {method}\nbase_model: {folder}/base\nmodels:\n{listed}parameters: {METHODS[method]}\n"
        merge(MergeConfig(recipe_yaml=recipe, output_path=str(folder / "out")))
        made[kind] = read(folder / "out")
    expected = laid_out(made["hf"], layout)
    assert made[layout].keys() == expected.keys()
    for name, values in expected.items():
        assert (made[layout][name] == values).all(), name


# --- mistakes ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "parameters", "models", "said"),
    [
        ("sce", "{select_topk: 1.5}", 2, "parameter 'select_topk' 1.5 is the share of elements to select: from 0 to 1"),
        ("arcee_fusion", "{}", 2, "arcee_fusion takes 2 models, not 3"),
        ("tsv", "{k: 0}", 2, "parameter 'k' 0 is the share of singular vectors to keep: greater than 0 and at most 1"),
        ("consensus_ta", "{}", 1, "parameter 'k' 2 is how many models an element must matter to: from 0 to the 1 that"),
        ("consensus_ta", "{lambda_mask: -1}", 2, "parameter 'lambda_mask' -1 -1 must not be negative"),
        ("lines", "{}", 1, "parameter 'alpha' is required"),
    ],
)
def test_mistakes_are_named(tmp_path: Path, method: str, parameters: str, models: int, said: str) -> None:
    state = {"w": np.ones((3, 3))}
    with pytest.raises(ConfigError, match=re.escape(said)):
        run(tmp_path, method, [state] * models, state, "float32", parameters)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("method", few(METHODS, 2))
def test_dry_runs(tmp_path: Path, method: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Pieces of tensors are tried; a note says that what is computed of whole matrices isn't."""
    base = tensors(0, "bfloat16")
    models = [tensors(number + 1, "bfloat16", base) for number in range(count(method))]
    out = run(tmp_path, method, models, base, "bfloat16", dry_run=True)
    said = capsys.readouterr()
    assert ("what is computed of whole matrices isn't counted" in said.out + said.err) == (
        method in ("tsv", "iso_c", "safe_merge")
    )
    assert not out.exists()


def test_the_plan_counts_whole_matrices(tmp_path: Path) -> None:
    """A worker's memory holds what `prepare` takes, of the largest matrix."""
    from paddle_merge.plan.memory_estimate import memory
    from paddle_merge.plan.planner import make_plan

    base = {"w": np.zeros((500, 400)), "v": np.zeros(7)}
    taken = {}
    for method in ("lines", "tsv"):
        write(tmp_path / "base", base)
        paths = [write(tmp_path / f"m{n}", base) for n in range(2)]
        listed = "".join(f"  - model: {path}\n" for path in paths)
        recipe = f"merge_method: {method}\nbase_model: {tmp_path}/base\nmodels:\n{listed}parameters: {METHODS[method]}\n"
        config = MergeConfig(recipe_yaml=recipe, output_path=str(tmp_path / "out"))
        taken[method] = memory(make_plan(Request.of(config).checked_recipe()))
    assert taken["tsv"] - taken["lines"] >= Tsv((1.0, 1.0), 0.5).row_memory(2, (500, 400), False, 4)
    assert Tsv((1.0, 1.0), 0.5).memory(2, 7, 4, DEFAULT_BUDGET) == Tsv((1.0, 1.0), 0.5).row_memory(2, (7,), False, 4) == 0
