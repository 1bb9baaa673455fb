"""Draw which layer of which model becomes each layer of the output.

Draws depend on the seed and on what is drawn alone, like random masks (backends/masks.py): not on a library's generator.
"""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Sequence

from ...backends.masks import mask_key

Layer = tuple[int, int]  # the place of a model, and the number of one of its layers


def same_places(depth: int, weights: Sequence[float], seed: int) -> list[Layer]:
    """Return, for each of `depth` layers, the same layer of a model, drawn with these probabilities (of any sum)."""
    bounds = list(itertools.accumulate(weights))
    drawn = [bisect.bisect_right(bounds, _share(seed, f"model of layer {number}") * bounds[-1]) for number in range(depth)]
    return list(zip(drawn, range(depth), strict=True))


def any_places(depths: Sequence[int], fractions: Sequence[float], seed: int, distinct: bool) -> list[Layer]:
    """Return layers in random order: of each model the given fraction of as many as it has, rounded down.

    depths: how many layers each model has. distinct: whether no layer is drawn twice; then fractions are at most 1.
    """
    drawn: list[Layer] = []
    for model, (depth, count) in enumerate(zip(depths, counts(depths, fractions), strict=True)):
        if distinct:
            drawn += [(model, layer) for layer in _shuffled(range(depth), seed, f"layers of model {model}")[:count]]
        else:
            drawn += [(model, int(_share(seed, f"layer {number} of model {model}") * depth)) for number in range(count)]
    order = _shuffled(range(len(drawn)), seed, "order")
    return [drawn[place] for place in order]


def counts(depths: Sequence[int], fractions: Sequence[float]) -> list[int]:
    """Return how many layers each model gives."""
    return [int(depth * fraction + 1e-9) for depth, fraction in zip(depths, fractions, strict=True)]


def slices(layers: Sequence[Layer]) -> list[tuple[int, int, int]]:
    """Return (model, first, end) for each run of consecutive layers of one model."""
    found: list[tuple[int, int, int]] = []
    for model, layer in layers:
        if found and found[-1][0] == model and found[-1][2] == layer:
            found[-1] = model, found[-1][1], layer + 1
        else:
            found.append((model, layer, layer + 1))
    return found


def _share(seed: int, what: str) -> float:
    """Return a number that is drawn evenly from [0, 1)."""
    high, low = mask_key(seed, 0, f"layer-shuffle: {what}")
    return (high * 2**21 + (low >> 11)) / 2**53


def _shuffled(numbers: Sequence[int], seed: int, what: str) -> list[int]:
    return sorted(numbers, key=lambda number: mask_key(seed, number, f"layer-shuffle: {what}"))
