"""Define what an optimiser is asked and told."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from ...records import record
from ..gene import Values

SIGMA = 1 / 6
Losses = Sequence[Sequence[float]]  # one row per candidate, one finite number per objective; smaller is better


@record(frozen=True)
class Settings:
    """How to search.

    population: candidates of one generation; None: the optimiser's own. sigma: the first step of CMA-ES, as a share of the
    bounds; None: SIGMA. noisy: whether losses are noisy. evaluations: how many there may be in all. objectives: how many
    there are.
    """

    seed: int = 0
    population: int | None = None
    sigma: float | None = None
    noisy: bool = False
    evaluations: int = 100
    objectives: int = 1

    @property
    def first_step(self) -> float:
        return self.sigma or SIGMA


class Optimizer(Protocol):
    """Proposes candidates, generation by generation."""

    @property
    def population(self) -> int:
        """The number of candidates of one generation."""

    def ask(self) -> list[Values]:
        """Return the candidates of the next generation; none if there are no more.

        Those that it returned last may have failed, all of them; tell() is not called then.
        """

    def tell(self, losses: Losses) -> None:
        """Learn the losses of the candidates that ask() returned last, in their order."""

    def mean(self) -> Values | None:
        """Return the centre of what it would ask for next; None if there is none."""
