"""RAM, reinforced agent merging (arXiv 2601.13572): an element that one model alone has changed is taken from it; one that
several have changed is the mean of theirs. A model has changed an element by more than epsilon, an absolute number: models
of bfloat16 whose base is below 0.001 change by less.

RAM+ raises what a model alone has changed by 1 + r min(shared / alone, alpha), counts of its changed elements. The authors
count in the whole model; as in mergekit, whose name "tensor-local" says so, counts are those of a tensor.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from ..backends.backend import Backend
from ..backends.formula import formula
from ..records import record
from .shared.base import Merger, Tensor, total
from .shared.method import Method, Parameter, ResolvedMethod
from .shared.problems import Problem


@formula(kernel="mergers.ram")
def ram(xp: Any, x: Any, epsilon: Any, factors: Any) -> Any:
    """Return factor_k x_k where one |x_k| > epsilon, the mean of those where several are, else 0, (n,); NaN and Inf stay
    visible. x: a row (n,) per model. factors: (models,)."""
    active = [(xp.abs(row) > epsilon).astype(row.dtype) for row in x]
    changed = [row * one for row, one in zip(x, active, strict=True)]
    count = total(active)
    alone = (count < 1.5).astype(count.dtype)
    mean = xp.divide(total(changed), count + (count < 0.5).astype(count.dtype))
    return mean * (1 - alone) + total(row * factor for row, factor in zip(changed, factors, strict=True)) * alone


@record(frozen=True)
class Ram(Merger):
    """Merges by who has changed an element.

    epsilon: smaller changes are none. r, alpha: as above; with r 0, what one model alone has changed stays as it is.
    """

    epsilon: float = 1e-5
    r: float = 0.0
    alpha: float = 0.2

    @property
    def measures(self) -> bool:
        return self.r != 0.0

    def prepare(self, tensor: Tensor, backend: Backend) -> Any:
        epsilon, factors = backend.scalar(self.epsilon), [1.0] * tensor.models
        if self.measures:
            counts = np.zeros((tensor.models, 2), np.int64)
            for _, x in tensor.sparsified():
                backend.count_active(x, epsilon, counts)
            factors = [self._factor(int(alone), int(shared)) for alone, shared in counts]
        return epsilon, backend.array(factors)

    def _factor(self, alone: int, shared: int) -> float:
        """Return 1 + r min(shared / alone, alpha). If the model is never alone, no element is multiplied by it."""
        return 1.0 + self.r * min(shared / max(alone, 1), self.alpha)

    def apply(self, x: Any, start: int, state: Any, backend: Backend) -> Any:
        return backend.apply(ram, x, *state)


def _ram(epsilon: float, r: float = 0.0, alpha: float = 0.2) -> ResolvedMethod:
    return ResolvedMethod(None, Ram(epsilon, r, alpha))


def _problems(epsilon: float, **others: float) -> list[Problem]:
    found = [Problem(name, f"{value:g} must be a number") for name, value in others.items() if not math.isfinite(value)]
    if not 0.0 <= epsilon < math.inf:
        found.append(Problem("epsilon", f"{epsilon:g} must not be negative: smaller changes are none"))
    return found


_EPSILON = Parameter("epsilon", float, 1e-5, about="smaller changes are none")
METHODS = (
    Method(
        "ram",
        _ram,
        (_EPSILON,),
        about="models from reinforcement learning, whose changes are sparse",
        about_cn="由强化学习得到的模型，其改动是稀疏的",
        source="arXiv 2601.13572",
        paper="https://arxiv.org/abs/2601.13572",
        problems=_problems,
        base="required",
        mergekit=True,
        place=17,
    ),
    Method(
        "ramplus_tl",
        _ram,
        (
            Parameter("r", float, 0.1, about="how much what one model alone has changed is raised"),
            Parameter("alpha", float, 0.2, about="the largest ratio of shared to lone changes that counts"),
            _EPSILON,
        ),
        about="the same, and what one model alone has changed counts more",
        about_cn="同上，且只有一个模型改动的元素权重更大",
        source="arXiv 2601.13572",
        paper="https://arxiv.org/abs/2601.13572",
        problems=_problems,
        base="required",
        mergekit=True,
        place=18,
    ),
)
