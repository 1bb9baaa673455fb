"""Test the streamed quantile of a whole tensor against NumPy's."""

from __future__ import annotations

import tracemalloc
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from paddle_merge import MergeConfig, merge
from paddle_merge.backends.budget import DEFAULT_BUDGET
from paddle_merge.backends.np_backend import NumpyBackend
from paddle_merge.methods.shared import selection
from paddle_merge.methods.shared.selection import select_quantile
from tests.support.checkpoints import read, write


@dataclass
class InMemory:
    """A tensor of one or more models in memory, as select_quantile sees it."""

    rows: np.ndarray
    narrow: bool = True
    block: int = 1024
    passes: int = 0

    @property
    def size(self) -> int:
        return int(self.rows.shape[1])

    @property
    def models(self) -> int:
        return int(self.rows.shape[0])

    def deltas(self) -> Iterator[tuple[int, Any]]:
        self.passes += 1
        for start in range(0, self.size, self.block):
            yield start, self.rows[:, start : start + self.block].copy()

    def sample(self, count: int) -> np.ndarray:
        clusters = max(1, count // 64)
        step = self.size // clusters
        return np.stack([self.rows[:, i * step : i * step + min(64, step)] for i in range(clusters)], axis=1)


def kept(values: np.ndarray, threshold: Any) -> np.ndarray:
    return np.abs(values).astype(threshold.dtype) >= threshold


def agrees(tensor: InMemory, q: float, capacity: int) -> None:
    for row, cut in zip(
        tensor.rows, select_quantile(tensor, NumpyBackend(str(tensor.rows.dtype)), q, capacity), strict=True
    ):  # type: ignore[arg-type]
        size = np.abs(row).astype(np.float32 if tensor.narrow else np.float64)
        expected = size >= np.quantile(size, q)
        assert (kept(row, cut.threshold) == expected).all()
        assert cut.total == pytest.approx(float(size.astype(np.float64).sum()), rel=1e-12)
        assert cut.kept == pytest.approx(float(size[expected].astype(np.float64).sum()), rel=1e-12)


# few distinct values, so that ties are everywhere; and all of float32's finite range, denormals and zeros included
grid = st.sampled_from([0.0, -0.0, 1.0, -1.0, 1.5, -2.0, float(np.float32(1e-45)), float(np.float32(3e38))])
wide = st.floats(width=32, allow_nan=False, allow_infinity=False)


@settings(max_examples=300, deadline=None)
@given(
    values=st.one_of(
        arrays(np.float32, st.integers(1, 300), elements=grid), arrays(np.float32, st.integers(1, 300), elements=wide)
    ),
    q=st.one_of(st.floats(0, 1), st.sampled_from([0.0, 0.3, 0.5, 1.0, 0.7])).map(lambda density: 1 - density),
    capacity=st.integers(1, 40),
)
def test_any_values_any_capacity(values: np.ndarray, q: float, capacity: int) -> None:
    """A capacity of a few values makes the search take each of its branches."""
    agrees(InMemory(values[None], block=1024), q, capacity)


def folded(terms: np.ndarray) -> float:
    """The sum of float64 terms: halves of chunks added onto each other, and then the chunks in order."""
    chunks = np.pad(terms, (0, -len(terms) % 1024)).reshape(-1, 1024)
    while chunks.shape[1] > 1:
        half = chunks.shape[1] // 2
        chunks = chunks[:, :half] + chunks[:, half:]
    return float(np.cumsum(chunks[:, 0])[-1])


@settings(max_examples=300, deadline=None)
@given(
    values=st.one_of(
        arrays(np.float32, st.integers(1, 300), elements=grid),
        arrays(np.float32, st.integers(1, 300), elements=st.floats(width=32)),
        arrays(np.float64, st.integers(1, 300), elements=st.floats()),
        st.builds(
            lambda seed, size: np.random.default_rng(seed).standard_normal(size), st.integers(0), st.integers(1, 9000)
        ),
    ),
    q=st.floats(0, 1),
    narrow=st.booleans(),
)
def test_every_bit_of_a_small_tensor(values: np.ndarray, q: float, narrow: bool) -> None:
    """NaN counts as infinite; what is finite is added up in ascending order."""
    values = np.where(np.isnan(values), values.dtype.type(np.nan), values)  # of several kinds, any can be that of the sum
    compared = np.dtype(np.float32 if narrow else np.float64)
    with np.errstate(all="ignore"):
        found = select_quantile(InMemory(np.stack([values, -values]), narrow), NumpyBackend(str(values.dtype)), q)  # type: ignore[arg-type]
        sizes = np.abs(values)
        wide, finite = sizes.astype(np.float64), sizes.astype(compared) < np.inf
        ascending = np.sort(np.where(finite, sizes.astype(compared), compared.type(np.inf)))
        position = (len(values) - 1) * q
        low = int(position)
        lower, upper = ascending[low], ascending[min(low + 1, len(values) - 1)]
        share, difference = position - low, float(upper - lower)
        between = float(lower) + difference * share if share < 0.5 else float(upper) - difference * (1 - share)
        threshold = compared.type(between) if upper < np.inf else upper
        kept = np.sort(wide[finite & (sizes.astype(compared) >= threshold)])
        total = folded(wide)
        above = folded(np.where(finite, 0.0, wide)) + (np.cumsum(kept)[-1] if len(kept) else 0.0)
    for one in found:
        assert one.threshold.dtype == compared
        assert np.array([one.threshold, one.total, one.kept]).tobytes() == np.array([threshold, total, above]).tobytes()


@pytest.mark.parametrize("q", [0.0, 0.3, 0.5, 0.95, 1.0])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_large_gaussian_in_one_pass(q: float, dtype: str) -> None:
    rows = np.random.default_rng(0).standard_normal((3, 1_000_000)).astype(dtype)
    tensor = InMemory(rows, narrow=dtype == "float32", block=1 << 16)
    agrees(tensor, q, selection.CAPACITY)
    assert tensor.passes == 1


def test_rows_of_different_scale() -> None:
    """Neighbours are alike: the sample's error is larger than that of independent elements."""
    generator = np.random.default_rng(0)
    rows = (generator.standard_normal((500, 4096)) * np.exp(generator.standard_normal((500, 1)))).astype(np.float32)
    tensor = InMemory(rows.reshape(1, -1), block=1 << 16)
    agrees(tensor, 0.3, selection.CAPACITY)
    assert tensor.passes <= 2


@pytest.mark.parametrize("order", ["ascending", "descending", "zeros then values", "quantised"])
def test_orders_that_mislead_a_sample(order: str) -> None:
    values = np.sort(np.abs(np.random.default_rng(0).standard_normal(300_000))).astype(np.float32)
    if order == "descending":
        values = values[::-1].copy()
    elif order == "zeros then values":
        values[:250_000] = 0
    elif order == "quantised":
        values = np.round(values * 50) / 50
    for q in (0.1, 0.3, 0.9):
        agrees(InMemory(values[None], block=1 << 14), q, selection.CAPACITY)
        agrees(InMemory(values[None], block=1 << 14), q, 1000)


def test_an_infinity_does_not_spread(tmp_path: Path) -> None:
    """Inf in one element: the threshold is that of the rest, nothing is rescaled, and the Inf stays visible."""
    values = np.array([1.0, 2, 3, 4, 5, 6, 7, np.inf])
    paths = [str(write(tmp_path / name, {"w": values})) for name in "ab"]
    base = str(write(tmp_path / "base", {"w": np.zeros(8)}))
    merge(
        MergeConfig(
            sparsify_type="trim",
            reserve_p=0.5,
            model_path_list=paths,
            base_model_path=base,
            output_path=str(tmp_path / "out"),
        )
    )
    result = read(tmp_path / "out")["w"]
    assert result[:7].tolist() == [0, 0, 0, 0, 5, 6, 7]
    assert result[7] == np.inf


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 40_000), st.floats(0, 1), st.floats(0, 1), st.sampled_from([0.0, 0.5, 0.999]), st.integers(0, 2**32))
def test_a_rank_that_is_known_late(size: int, guess: float, share: float, zeros: float, seed: int) -> None:
    """The rank follows from what the first pass counts; wherever the guess was, it is the same element."""
    rng = np.random.default_rng(seed)
    values = np.where(rng.random(size) < zeros, 0.0, rng.standard_normal(size)).astype(np.float32)
    tensor, backend = InMemory(values[None]), NumpyBackend("float32")
    rank = int(share * (size - 1))

    def late() -> int:
        assert tensor.passes > 0  # it is asked for only when the tensor was read
        return rank

    got = selection.select_late(tensor, backend, int(guess * (size - 1)), late)  # type: ignore[arg-type]
    assert got == np.sort(np.abs(values))[rank]
    if size <= selection.SMALL:
        assert tensor.passes == 1


@pytest.mark.parametrize("size", [6, selection.SMALL + 6])
def test_an_element_that_is_not_there_is_never_made_up(size: int) -> None:
    """Three elements equal 2; the fourth (number 3, counted from 0) isn't there."""
    rows = np.zeros((1, size), np.float32)
    rows[0, [1, 4, size - 1]] = 2, -2, 2
    tensor, backend, two = InMemory(rows), NumpyBackend("float32"), np.float32(2)
    assert selection.find_equals(tensor, backend, [(0, two, 2), (0, two, 0)]) == [size - 1, 1]  # type: ignore[arg-type]
    with pytest.raises(LookupError, match="fewer elements are equal"):
        selection.find_equals(tensor, backend, [(0, two, 3)])  # type: ignore[arg-type]


@pytest.mark.parametrize("shape", [(1, 5), (3000, 100), (64, 257), (3, selection.SMALL)], ids=str)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_memory_of_small_tensors(shape: tuple[int, int], dtype: str) -> None:
    """The announced memory is enough."""
    rows = np.random.default_rng(0).standard_normal(shape).astype(dtype)
    rows[0, 3] = np.inf
    tensor, backend = InMemory(rows, dtype == "float32"), NumpyBackend(dtype)
    tracemalloc.start()
    select_quantile(tensor, backend, 0.4)  # type: ignore[arg-type]
    taken = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    objects = 300 * len(rows)  # what is returned
    assert taken < selection.memory(*shape, rows.itemsize, DEFAULT_BUDGET) + objects
