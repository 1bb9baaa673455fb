"""Find exact quantiles and order statistics of |x| over a whole tensor, block by block, without sorting it: usually in one
pass.

A sample brackets the wanted order statistics between two of its values. One pass then counts what lies below, at and between
the two, and collects the few values between. If the order statistics are among those, they are exact. If not (an unlucky
sample, or more values between than fit, as with a hundred million elements whose rows differ much), the pass has still
narrowed the candidates, and the next pass uses a bracket inside them. Every failed pass rules out at least one distinct
value, so the search ends. Equal values cost nothing, since the two ends of the bracket are counted apart.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ...records import record
from .bracket import Bracket, Cut, around, needed_sums
from .quantiles import TEMPORARY, interpolate, small_quantiles
from .small import SMALL, elements

if TYPE_CHECKING:
    from ...backends.backend import Backend
    from ...backends.budget import MemoryBudget
    from .base import Tensor

CAPACITY = 1 << 22  # values a pass may collect, per model
_TOO_FEW = "fewer elements are equal to a value than were counted"


@record(frozen=True)
class Quantile:
    """A quantile of |x|, and the sums around it.

    threshold: the quantile, a NumPy scalar in the dtype in which magnitudes are compared: float32, or float64 for float64
    storage. total: the sum of |x|. kept: the sum of |x| over |x| >= threshold. Both float64.
    """

    threshold: Any
    total: float
    kept: float


def select_quantile(tensor: Tensor, backend: Backend, q: float, capacity: int = CAPACITY) -> list[Quantile]:
    """Return, for each model, np.quantile(|x|, q) (linear interpolation, NumPy 1.26's arithmetic), and the sums around it.

    q: in [0, 1]. The tensor must not be empty. capacity: how many values a pass may collect of each model.
    """
    position = (tensor.size - 1) * q
    low = math.floor(position)
    if tensor.size <= min(SMALL, capacity):
        parts = small_quantiles(elements(tensor, backend), low, position - low, _compared(tensor))
        return [Quantile(*its) for part in parts for its in zip(part[0], part[1].tolist(), part[2].tolist(), strict=True)]
    ranks = low, min(low + 1, tensor.size - 1)

    def read(search: Bracket) -> Quantile | Bracket:
        lower, upper = (search.value(rank) for rank in ranks)
        if lower is None or upper is None:
            return search.next(ranks)
        if search.counts[4] < search.counts[2]:  # known, but not all that lies between, which sum_from needs
            return search.narrowed_to(float(lower), float(upper))
        threshold = interpolate(lower, upper, position - low)
        return Quantile(threshold, float(search.sums[0]), search.sum_from(threshold))

    with np.errstate(over="ignore"):  # of sums
        return _search(tensor, backend, [(model, ranks, read) for model in range(tensor.models)], capacity, True)


def select_ranks(tensor: Tensor, backend: Backend, wanted: Sequence[tuple[int, int]], capacity: int = CAPACITY) -> list[Cut]:
    """Return, for each (model, rank), the rank-th smallest |x| (from 0) of that model. NaN counts as infinite."""
    if wanted and 0 < tensor.size <= min(SMALL, capacity):
        ascending = _magnitudes(tensor, backend)
        ascending.sort(axis=1)
        models, ranks = np.array(wanted).T
        values, rows = ascending[models, ranks], ascending[models]
        below, equal = (np.count_nonzero(of, axis=1) for of in (rows < values[:, None], rows == values[:, None]))
        return list(map(Cut, values, below.tolist(), equal.tolist()))

    def reader(rank: int) -> Callable[[Bracket], Cut | Bracket]:
        def read(search: Bracket) -> Cut | Bracket:
            value = search.value(rank)
            return search.next((rank, rank)) if value is None else search.cut(value)

        return read

    return _search(tensor, backend, [(model, (rank, rank), reader(rank)) for model, rank in wanted], capacity, False)


def select_late(tensor: Tensor, backend: Backend, guess: int, rank: Callable[[], int]) -> Any:
    """Return an order statistic of |x| of model 0 whose rank is known only when the tensor has been read: as Cut.value.

    guess: where to look during the first pass. rank: is called after each pass. If the two are near, one pass is enough.
    """

    def read(search: Bracket) -> Any:
        value = search.value(rank())
        return search.next((rank(), rank())) if value is None else value

    return _search(tensor, backend, [(0, (guess, guess), read)], CAPACITY, False)[0]


def find_equals(tensor: Tensor, backend: Backend, wanted: Sequence[tuple[int, Any, int]]) -> list[int]:
    """Return, for each (model, value, number), the index of the number-th element (from 0) whose |x| equals the value.

    value: one that `select_ranks` returned, with more than `number` equals. Reads the tensor once, at most. Raises
    LookupError if fewer are found, which would mean that counting and looking compare differently.
    """
    if wanted and tensor.size <= SMALL:
        models, values, numbers = zip(*wanted, strict=True)
        equal = _magnitudes(tensor, backend)[list(models)] == np.array(values)[:, None]
        reached = equal.cumsum(axis=1, dtype=np.uint16) > np.array(numbers)[:, None]
        if not reached[:, -1].all():
            raise LookupError(_TOO_FEW)
        indices: list[int] = reached.argmax(axis=1).tolist()
        return indices
    found: dict[int, int] = {}
    passed = [0] * len(wanted)
    for start, x in tensor.deltas() if wanted else ():
        for place, (model, value, number) in enumerate(wanted):
            if place in found:
                continue
            equal = backend.count_equal(x[model], value)
            if passed[place] + equal > number:
                size = np.abs(backend.fetch(x[model])()).astype(type(value))
                equals = np.flatnonzero((size == value) | (np.isnan(size) & np.isinf(value)))
                found[place] = start + int(equals[number - passed[place]])
            passed[place] += equal
        if len(found) == len(wanted):
            break
    if len(found) < len(wanted):
        raise LookupError(_TOO_FEW)
    return [found[place] for place in range(len(wanted))]


def _search(
    tensor: Tensor,
    backend: Backend,
    wanted: Sequence[tuple[int, tuple[int, int], Callable[[Bracket], Any]]],
    capacity: int,
    summing: bool,
) -> list[Any]:
    """Return the results of searches, one for each (model, ranks, read).

    read(bracket): the result after a pass, or the bracket for the next pass. summing: whether `read` uses sums.
    """
    if not wanted:
        return []
    dtype = _compared(tensor)
    capacity = min(capacity, tensor.size)

    def make(limits: tuple[float, float], lo: float, hi: float) -> Bracket:
        sums = np.zeros(needed_sums(backend.dtype) if summing else 0)
        return Bracket(dtype, backend.dtype, capacity, limits, lo, hi, sums=sums)

    searches = _first_brackets(tensor, [(model, ranks) for model, ranks, _ in wanted], dtype, make)
    done: dict[int, Any] = {}
    together = max(1, backend.budget.selecting // max(1, searches[0].values.nbytes))
    while len(done) < len(wanted):
        turn = [place for place in range(len(wanted)) if place not in done][:together]
        for _, x in tensor.deltas():
            for place in turn:
                search = searches[place]
                backend.count_between(
                    x[wanted[place][0]], search.bounds, search.stride, search.counts, search.sums, search.values
                )
        for place in turn:
            search = searches[place]
            search.between.sort()
            result = wanted[place][2](search)
            if isinstance(result, Bracket):
                searches[place] = result
            else:
                done[place] = result
                search.values = np.empty(0, search.compute)
    return [done[place] for place in range(len(wanted))]


def sampled(size: int) -> int:
    """Return how many elements to sample: n^(2/3) balances the work on the sample against that on the values between."""
    return int(size ** (2 / 3))


def memory(models: int, size: int, itemsize: int, budget: MemoryBudget) -> int:
    """Return the bytes that selecting one value of each model takes, at most, beside the blocks.

    These are samples as they are read, converted and joined; the values between; and a copy of one model's values while a
    bracket is narrowed. Of a small tensor they are its elements, copies of them, and what a few rows take.
    """
    if size <= SMALL:
        return 3 * models * size * itemsize + TEMPORARY
    values = min(CAPACITY, size) * itemsize
    together = min(models, max(1, budget.selecting // max(1, values)))
    samples = sampled(size)
    return samples * ((models + 1) * (8 + itemsize) + (models + 2) * itemsize) + (together + 1) * values


def _magnitudes(tensor: Tensor, backend: Backend) -> np.ndarray:
    """Return |x| of a small tensor as it is compared, (models, size), NaN as Inf."""
    sizes = elements(tensor, backend)
    np.abs(sizes, out=sizes)
    np.fmin(sizes, np.inf, out=sizes)
    with np.errstate(over="ignore"):  # differences of two numbers of float32
        return sizes.astype(_compared(tensor), copy=False)


def _compared(tensor: Tensor) -> Any:
    """Return the dtype in which magnitudes are compared."""
    return np.float32 if tensor.narrow else np.float64


def _first_brackets(
    tensor: Tensor, wanted: Sequence[tuple[int, tuple[int, int]]], dtype: Any, make: Callable[..., Bracket]
) -> list[Bracket]:
    whole = -1.0, math.inf
    if tensor.size <= SMALL:
        return [make(whole, *whole) for _ in wanted]
    samples = tensor.sample(sampled(tensor.size))
    samples = np.abs(samples, out=samples).astype(dtype, copy=False)
    return [make(whole, *around(samples[model], [rank / tensor.size for rank in ranks], whole)) for model, ranks in wanted]
