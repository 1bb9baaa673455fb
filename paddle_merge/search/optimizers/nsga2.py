"""NSGA-II for several objectives, over numbers, integers and choices together.

Deb, Pratap, Agarwal and Meyarivan (2002), A Fast and Elitist Multiobjective Genetic Algorithm: NSGA-II. Numbers are crossed
by simulated binary crossover (Deb and Agrawal 1995) and changed by polynomial mutation, both between bounds; a choice comes
from either parent, and is another one where it mutates. A child that was a candidate before is changed until it is new.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ...recipe.recipe import Value
from ..gene import Gene, Values, settled
from .optimizer import Losses, Optimizer, Settings

CROSSOVER = 0.9  # the share of pairs that are crossed, as in the paper
CLOSE = 15.0  # distribution index of crossover and ...
CLOSE_MUTATION = 20.0  # ... of mutation: the larger, the closer are children to their parents. pymoo's defaults
ATTEMPTS = 20  # to find a child that wasn't a candidate before


class NSGA2:
    """Keeps the best candidates so far, and asks for as many children of them."""

    def __init__(self, genes: Sequence[Gene], settings: Settings, first: Sequence[Values]):
        self._genes = genes
        self._generator = np.random.Generator(np.random.Philox(key=settings.seed))
        self.population = settings.population or min(max(settings.evaluations // 10, 12), 48)
        start = tuple(gene.start for gene in genes)
        self._first = list(dict.fromkeys([*first, settled(genes, start)]))
        self._seen: set[Values] = set()
        self._asked: list[Values] = []
        self._parents: list[Values] = []
        self._rows = np.empty((0, 0))
        self._ranks = self._crowding = np.empty(0)

    def ask(self) -> list[Values]:
        self._asked, self._first = self._first[: self.population], self._first[self.population :]
        self._seen.update(self._asked)
        while len(self._asked) < self.population:
            made = self._children() if self._parents else [self._drawn()]
            self._asked += [self._new(values) for values in made[: self.population - len(self._asked)]]
        return list(self._asked)

    def tell(self, losses: Losses) -> None:
        rows = np.array([list(row) for row in losses], np.float64)
        every = [*self._parents, *self._asked]
        self._rows = np.concatenate([self._rows, rows]) if self._parents else rows
        ranks, crowding = _ranks(self._rows), np.empty(len(every))
        for rank in np.unique(ranks):
            its = np.flatnonzero(ranks == rank)
            crowding[its] = _crowding(self._rows[its])
        kept = np.lexsort((np.arange(len(every)), -crowding, ranks))[: self.population]
        self._parents = [every[place] for place in kept]
        self._rows, self._ranks, self._crowding = self._rows[kept], ranks[kept], crowding[kept]

    def mean(self) -> None:
        return None

    # --- making candidates

    def _drawn(self) -> Values:
        found: list[Value] = []
        for gene in self._genes:
            if gene.choices and gene.likely is not None and self._generator.random() < gene.likely:
                found.append(gene.start)
            else:
                found.append(gene.value(self._generator.random()))
        return tuple(found)

    def _children(self) -> list[Values]:
        """Return two children of two parents."""
        one, two = (self._parents[self._tournament()] for _ in range(2))
        if self._generator.random() < CROSSOVER:
            one, two = self._crossed(one, two)
        return [self._mutated(one), self._mutated(two)]

    def _tournament(self) -> int:
        """Return the better one of two parents: by rank, then by the distance to its neighbours on the front."""
        first, second = self._generator.integers(len(self._parents), size=2)
        if self._ranks[first] != self._ranks[second]:
            return int(first if self._ranks[first] < self._ranks[second] else second)
        return int(first if self._crowding[first] >= self._crowding[second] else second)

    def _crossed(self, one: Values, two: Values) -> tuple[Values, Values]:
        left, right = list(one), list(two)
        for place, gene in enumerate(self._genes):
            crosses, swaps, share = self._generator.random(3)
            if not gene.choices and crosses < 0.5:
                units = _sbx(gene.unit(one[place]), gene.unit(two[place]), share)
                left[place], right[place] = (gene.value(unit) for unit in units)
            if swaps < 0.5:
                left[place], right[place] = right[place], left[place]
        return tuple(left), tuple(right)

    def _mutated(self, values: Values) -> Values:
        changed = list(values)
        for place, gene in enumerate(self._genes):
            whether, share = self._generator.random(2)
            if whether >= 1 / len(self._genes):
                continue
            if gene.choices:
                others = [choice for choice in range(len(gene.choices)) if choice != gene.place(changed[place])]
                changed[place] = gene.choices[others[int(share * len(others))]]
            else:
                changed[place] = _moved(gene, changed[place], share)
        return tuple(changed)

    def _new(self, values: Values) -> Values:
        """Return values, changed until they are none that were asked for before; as they are if that doesn't succeed."""
        found = values
        for attempt in range(ATTEMPTS):
            if settled(self._genes, found) not in self._seen:
                break
            found = self._mutated(found) if attempt < ATTEMPTS // 2 else self._drawn()
        found = settled(self._genes, found)
        self._seen.add(found)
        return found


def _ranks(rows: np.ndarray) -> np.ndarray:
    """Return the front that each row is on, from 0."""
    from moocore import pareto_rank

    return np.asarray(pareto_rank(rows), np.int64)


def _crowding(rows: np.ndarray) -> np.ndarray:
    """Return how far each row of a front is from its neighbours, as a share of the front's extent; infinite at its ends."""
    found = np.zeros(len(rows))
    for axis in range(rows.shape[1]):
        order = np.argsort(rows[:, axis], kind="stable")
        ordered = rows[order, axis]
        extent = ordered[-1] - ordered[0]
        found[order[[0, -1]]] = np.inf
        if extent > 0:
            found[order[1:-1]] += (ordered[2:] - ordered[:-2]) / extent
    return found


def _sbx(one: float, two: float, share: float) -> tuple[float, float]:
    """Return two children of numbers between 0 and 1. share: drawn uniformly."""
    low, high = sorted((one, two))
    if high - low < 1e-12:
        return one, two

    def spread(room: float) -> float:
        beta = 1 + 2 * room / (high - low)
        alpha = 2 - beta ** -(CLOSE + 1)
        inner = share * alpha if share <= 1 / alpha else 1 / (2 - share * alpha)
        return float(inner ** (1 / (CLOSE + 1)))

    middle, width = (low + high) / 2, (high - low) / 2
    return middle - spread(max(low, 0.0)) * width, middle + spread(max(1 - high, 0.0)) * width


def _polynomial(unit: float, share: float) -> float:
    """Return a changed number between 0 and 1. share: drawn uniformly."""
    power = 1 / (CLOSE_MUTATION + 1)
    if share < 0.5:
        inner = 2 * share + (1 - 2 * share) * (1 - unit) ** (CLOSE_MUTATION + 1)
        return unit + float(inner**power) - 1
    inner = 2 * (1 - share) + 2 * (share - 0.5) * unit ** (CLOSE_MUTATION + 1)
    return unit + 1 - float(inner**power)


def _moved(gene: Gene, value: Value, share: float) -> Value:
    """Return another number near by: polynomial mutation, of integers and numbers with a step by one at least.

    share: drawn uniformly.
    """
    moved = gene.value(_polynomial(gene.unit(value), share))
    if moved != value or not (gene.integer or gene.step):
        return moved
    step = 1 if (share >= 0.5 and value < gene.high) or value <= gene.low else -1  # type: ignore[operator]
    return gene.points[gene.points.index(value) + step] if gene.points else int(value) + step


def make(name: str, genes: Sequence[Gene], settings: Settings, first: Sequence[Values]) -> Optimizer:
    import moocore  # noqa: F401 - so that a missing package shows before anything is scored

    return NSGA2(genes, settings, first)
