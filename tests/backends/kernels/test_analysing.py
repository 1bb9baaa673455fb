"""Test the loops of an analysis against the mergers' loops."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from paddle_merge.backends.kernels import analysing, mergers
from tests.support.sweeps import few


def sparsified(x: np.ndarray, s: np.ndarray) -> tuple[np.ndarray, ...]:
    """Return counts, sums, summed and both of one tensor."""
    models = len(x)
    counts, sums, summed = np.zeros((1, models, 2), np.int64), np.zeros((1, models, 4)), np.zeros((1, 1))
    both = np.zeros((1, models * (models - 1) // 2), np.int64)
    rounding, work = x.dtype.type((models + 1) * np.finfo(x.dtype).eps), np.empty((3, analysing.LANES), x.dtype)
    analysing.add_sparsified(x[:, None], s[:, None], rounding, work, counts, sums, summed, both)
    return counts[0], sums[0], summed[0], both[0]


def test_by_hand() -> None:
    """Sums 3, -1, 0 and 0: of zero, and of nothing, plus is elected."""
    x = np.array([[1.0, -2.0, 1.0, 5.0], [2.0, 1.0, -1.0, 6.0]], np.float32)
    s = x * np.array([1, 1, 1, 0], np.float32)
    counts, sums, summed, both = sparsified(x, s)
    assert counts.tolist() == [[3, 3], [3, 1]]
    assert sums.tolist() == [[4.0, 4.0, 25.0, 4.0], [4.0, 4.0, 36.0, 2.0]]
    assert (summed.tolist(), both.tolist()) == ([4.0], [3])


@pytest.mark.parametrize("dtype", few([np.float32, np.float64]))
@settings(max_examples=200, deadline=None)
@given(st.data())
def test_the_sign_is_the_one_that_ties_elects(dtype: type, data: st.DataObject) -> None:
    """Also where sums cancel but for rounding, and where they overflow: then ties gives NaN, which has no sign."""
    width, shape = np.dtype(dtype).itemsize * 8, (data.draw(st.integers(1, 4)), data.draw(st.integers(1, 300)))
    near = np.array([0.0, 0.1, 0.2, -0.3, 0.3, -0.1, 1e-8], dtype).tolist()
    s = data.draw(arrays(dtype, shape, elements=st.sampled_from(near) | st.floats(width=width, allow_nan=False)))
    x = np.ones_like(s)
    with np.errstate(all="ignore"):
        counts, sums, summed, _ = sparsified(x, s)
        added, elected = s.copy(), s.copy()
        mergers.linear(added, np.ones(shape[0], dtype))
        mergers.ties(elected, np.ones(shape[0], dtype), False, 1.0, False)
        agree = np.sign(s) * np.sign(elected[0]) > 0
        magnitudes = np.abs(added[0]).astype(np.float64)
        total = np.zeros(analysing.LANES * -(-shape[1] // analysing.LANES))
        total[: shape[1]] = magnitudes
        lanes = total.reshape(-1, analysing.LANES).cumsum(0)[-1]
        while len(lanes) > 1:
            lanes = lanes[: len(lanes) // 2] + lanes[len(lanes) // 2 :]
    assert counts.tolist() == [[np.count_nonzero(row), agrees.sum()] for row, agrees in zip(s, agree, strict=True)]
    assert sums[:, 3].tolist() == agree.sum(1).tolist()
    assert summed.tolist() == lanes.tolist() or (np.isnan(summed).all() and np.isnan(lanes).all())


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 4), st.integers(1, 5), st.integers(1, 700), st.integers(0, 2**32))
def test_several_tensors_as_each_of_them(models: int, tensors: int, size: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    x = (random.standard_normal((models, tensors, size)) * (random.random((models, tensors, size)) < 0.7)).astype(np.float32)
    base, pairs = random.standard_normal((tensors, size)).astype(np.float32), models * (models - 1) // 2

    def measured(x: np.ndarray, base: np.ndarray) -> list[np.ndarray]:
        found = [np.zeros((len(base), models), np.int64), np.zeros((len(base), models, 4)), np.zeros((len(base), models))]
        found += [np.zeros((len(base), pairs, 3), np.int64), np.zeros((len(base), pairs, 2))]
        analysing.add_changes(x, base, *found)
        return found

    together = measured(x, base)
    alone = [measured(x[:, t : t + 1].copy(), base[t : t + 1]) for t in range(tensors)]
    for all_of_them, each in zip(together, zip(*alone, strict=True), strict=True):
        assert all_of_them.tobytes() == np.concatenate(each).tobytes()
    assert (together[0] == np.count_nonzero(x, axis=2).T).all()
    assert (together[2] == np.abs(x).max(2).T).all()
    assert together[1][:, :, 1] == pytest.approx((x.astype(np.float64) ** 2).sum(2).T)
