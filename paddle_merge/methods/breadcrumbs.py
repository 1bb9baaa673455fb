"""Model Breadcrumbs: drop the largest elements of a task vector, which are outliers, and the smallest (Davari & Belilovsky
2023, section 3), as in mergekit.

Ranks are over the whole tensor. Of equally large elements at a cut, those of the lowest indices count as smaller: the order
of a stable sort by ascending magnitude. (mergekit's sort isn't stable beyond 16 elements, so there it is left to chance.)
"""

from __future__ import annotations

from ..records import record
from .shared.rank_masks import KeepRanks


@record(frozen=True)
class Breadcrumbs(KeepRanks):
    """Keep int(density * n) elements: those next in magnitude after the int(gamma * n) largest.

    gamma: of each model, the fraction to drop as outliers. Where too little would be left, fewer outliers are dropped. From
        density 1 on all is kept, outliers too.
    """

    gamma: tuple[float, ...]

    def interval(self, model: int, size: int) -> tuple[int, int]:
        count = max(0, int(self.density_of(model) * size))
        first = max(0, size - count - int(self.gamma[model] * size))
        return first, first + count
