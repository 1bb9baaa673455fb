"""Match the experts of one model to those of a reference, and then the neurons of matched experts.

Experts: the assignment with the smallest sum of squared distances between second moments (features.py) plus those between
rows of the router, each divided by its spread among the reference's experts. Neurons: the assignment with the smallest
squared distance between all weights of the two experts, as "weight matching" for one layer (Ainsworth et al. 2023, "Git
Re-Basin"). Where the order of the index is as good, it stays.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, TypeVar

import numpy as np

from ...checkpoints.files import Files
from ...checkpoints.tensors import TensorEntry
from ...records import record
from .features import moments, parts, router_rows
from .layers import MoeLayer

T = TypeVar("T")
Map = Callable[[Callable[[int], T], Iterable[int]], Iterator[T]]
_ROWS = 1024  # neurons whose products with all others are computed at once
_EQUAL = 1e-7  # of the costs' size: differences that come of rounding


@record(frozen=True)
class LayerOrder:
    """Say which expert and which neuron of a model takes which place.

    experts: (E,) int32; place e gets expert experts[e]. neurons: (E, i) int32; neuron n of place e is neuron neurons[e, n]
    of that expert. cosine: between all weights of the reference's experts and the model's in their places; nan if unknown.
    """

    experts: np.ndarray
    neurons: np.ndarray
    cosine: float = float("nan")


@record(frozen=True)
class Side:
    """Hold a model's layer of experts."""

    tensors: Mapping[str, TensorEntry]
    layer: MoeLayer


def match(reference: Side, other: Side, run: Map[Any]) -> LayerOrder:
    """Return the order that brings the experts of `other` to their places. run: maps a function over experts, in threads.

    Raises WorkError.
    """
    experts = _match_experts(reference, other, run)

    def one(place: int) -> tuple[np.ndarray, float, float, float]:
        return _match_neurons(reference, other, place, int(experts[place]))

    found = list(run(one, range(len(experts))))
    product, squares, others = (sum(numbers[k] for numbers in found) for k in (1, 2, 3))
    cosine = product / np.sqrt(squares * others) if squares and others else float("nan")
    return LayerOrder(experts.astype(np.int32), np.stack([numbers[0] for numbers in found]), float(cosine))


def _match_experts(reference: Side, other: Side, run: Map[Any]) -> np.ndarray:
    """Return which expert takes each place, (E,) int64."""
    count, groups = reference.layer.count, reference.layer.groups
    cost = np.zeros((count, count))
    kinds = [[_moments(side, run) for side in (reference, other)], [_routers(side) for side in (reference, other)]]
    for ours, theirs in kinds:
        spread = float(np.square(ours - ours.mean(axis=0)).sum(axis=1).mean())
        if spread > _EQUAL**2 * float(np.square(ours).sum(axis=1).mean()):  # else all experts are equal
            squares = np.square(ours).sum(axis=1)[:, None] + np.square(theirs).sum(axis=1)
            cost += np.nan_to_num((squares - 2 * ours @ theirs.T) / spread)
    if groups == 1:
        return _assigned(cost)
    # Groups as wholes, and experts within them.
    size = count // groups
    blocks = cost.reshape(groups, size, groups, size).transpose(0, 2, 1, 3)
    within = [[_assigned(block) for block in row] for row in blocks]
    places = np.arange(size)
    sums = np.array([[blocks[g, h][places, within[g][h]].sum() for h in range(groups)] for g in range(groups)])
    taken = _assigned(sums)
    return np.concatenate([taken[place] * size + within[place][taken[place]] for place in range(groups)])


def _moments(side: Side, run: Map[Any]) -> np.ndarray:
    def one(expert: int) -> np.ndarray:
        files = Files()
        try:
            return moments(side.tensors, side.layer, expert, files)
        finally:
            files.close()

    return np.stack(list(run(one, range(side.layer.count))))


def _routers(side: Side) -> np.ndarray:
    files = Files()
    try:
        return router_rows(side.tensors, side.layer, files)
    finally:
        files.close()


def _match_neurons(reference: Side, other: Side, place: int, expert: int) -> tuple[np.ndarray, float, float, float]:
    """Return which neuron of an expert takes each place of the reference's; the product of their weights then, and the
    squares of both."""
    count = reference.layer.neurons
    gains, squares = np.zeros((count, count), np.float32), [0.0, 0.0]
    files = Files()
    try:
        pairs = zip(
            parts(reference.tensors, reference.layer, place, files),
            parts(other.tensors, other.layer, expert, files),
            strict=True,
        )
        for ours, theirs in pairs:
            for first in range(0, count, _ROWS):
                gains[first : first + _ROWS] += ours[first : first + _ROWS] @ theirs.T
            for number, part in enumerate((ours, theirs)):
                squares[number] += float(np.square(part).sum(dtype=np.float64))
    finally:
        files.close()
    cost = np.negative(gains, out=gains)
    if not np.isfinite(cost).all():
        cost = np.nan_to_num(cost)
    order = _assigned(cost)
    product = -float(cost[np.arange(count), order].sum(dtype=np.float64))
    return order.astype(np.int32), product, squares[0], squares[1]


def _assigned(cost: np.ndarray) -> np.ndarray:
    """Return the column of each row with the smallest sum of costs, (n,) int64; each its own if that is as good."""
    from ...backends.kernels.assignment import assign  # planning does without

    order = np.empty(len(cost), np.int64)
    assign(np.ascontiguousarray(cost), order)
    places = np.arange(len(cost))
    least, own = (float(cost[places, to].sum(dtype=np.float64)) for to in (order, places))
    size = float(np.abs(cost[places, order]).sum(dtype=np.float64))
    return places if own <= least + _EQUAL * size else order
