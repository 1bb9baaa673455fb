"""Measure the alignment tax: what alignment gained in reward and cost in capability, and what a point between keeps of both.

With r for the reward, c for a capability, and the ends pre and aligned, of a point x:

    kept(x)       (r(x) - r(pre)) / (r(aligned) - r(pre))         the share of the gained reward that it keeps
    bought back   (c(x) - c(aligned)) / (c(pre) - c(aligned))     the share of the tax on c that it doesn't pay

So pre is (0, 1) and aligned is (1, 0), whatever the metrics' units and directions are. The points between them are measured
by the hypervolume of that unit box: the area below and left of the points (the volume, with several capabilities).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from ..records import record

Metrics = Mapping[str, float]


@record(frozen=True)
class Tax:
    """The ends of a sweep. objectives: metric -> direction. reward: the metric that alignment is to raise."""

    objectives: Mapping[str, str]
    reward: str
    pre: Metrics
    aligned: Metrics

    @property
    def capabilities(self) -> list[str]:
        return [name for name in self.objectives if name != self.reward]

    def kept(self, metrics: Metrics) -> float | None:
        """Return the share of the gained reward that a point keeps; None if alignment gained none."""
        return self._share(self.reward, metrics, self.pre, self.aligned)

    def bought_back(self, name: str, metrics: Metrics) -> float | None:
        """Return the share of the tax on a capability that a point doesn't pay; None if alignment cost nothing there."""
        return self._share(name, metrics, self.aligned, self.pre)

    def hypervolume(self, points: Sequence[Metrics]) -> float | None:
        """Return the share of the unit box that the points dominate, from 0 to 1.

        What lies beyond an end counts as on the box's side. Capabilities that alignment cost nothing are left out. None if
        nothing is left, or if alignment gained no reward.
        """
        from moocore import hypervolume

        taxed = self._taxed
        if self.kept(self.pre) is None or not taxed:
            return None
        rows = [
            [self.kept(one), *(self.bought_back(name, one) for name in taxed)] for one in (*points, self.pre, self.aligned)
        ]
        inside = np.clip(np.array(rows, np.float64), 0.0, 1.0)
        return float(hypervolume(inside, ref=np.zeros(1 + len(taxed)), maximise=True))

    def straight_line(self) -> float:
        """Return the hypervolume of all points on the straight line between the ends: 1/2 with one capability that paid a
        tax; with n of them, which then all fall at the same rate, 1 / (n + 1)."""
        return 1.0 / (len(self._taxed) + 1)

    @property
    def _taxed(self) -> list[str]:
        """The capabilities that alignment cost something."""
        return [name for name in self.capabilities if self.bought_back(name, self.pre) is not None]

    def remarks(self) -> list[str]:
        """Return sentences on what can't be measured."""
        found = []
        if self.kept(self.pre) is None:
            found.append(
                f"alignment didn't raise the reward: {self.reward} is {self.pre[self.reward]:.4g} before it and"
                f" {self.aligned[self.reward]:.4g} after it, so there is no share of it to keep"
            )
        found += [
            f"alignment cost nothing on {name}: {self.pre[name]:.4g} before it, {self.aligned[name]:.4g} after it"
            for name in self.capabilities
            if self.bought_back(name, self.pre) is None
        ]
        return found

    def _share(self, name: str, metrics: Metrics, none: Metrics, all_of_it: Metrics) -> float | None:
        whole = all_of_it[name] - none[name]
        better = whole > 0 if self.objectives[name] == "maximize" else whole < 0
        return (metrics[name] - none[name]) / whole + 0.0 if better else None  # never -0.0
