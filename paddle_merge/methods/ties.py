"""TIES, steps 2 and 3: elect a sign for every element, then average the models that agree with it (Yadav et al. 2023,
section 3). Step 1, trimming, is the sparsifier in trim.py.

As in PaddleNLP, the weights enter before the election. The paper lets an element whose votes cancel take the sign that is
most frequent in the whole model; PaddleNLP takes plus, which with deltas of bfloat16 models (many exact cancellations) adds
an offset of a few percent of a delta's size. `zero_sign` chooses; "majority" counts over the tensor.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from . import Tensor
from .linear import normalize_problems


def elect(xp: Any, x: Any, weights: Any, by_count: bool, zero_sign: float) -> Any:
    """x (models, n), weights (models,) -> (n,) in {-1, 0, +1}: the sign of the sum of w_k x_k (or of their signs).

    zero_sign: what a cancelled vote elects. Rescaling and weights leave rounding errors where exact numbers would cancel, so
    a sum no larger than they can be counts as cancelled.
    """
    weighted = weights[:, None] * x
    votes = (xp.sign(weighted) if by_count else weighted).sum(0)
    rounding = (len(x) + 1) * xp.finfo(x.dtype).eps * xp.abs(weighted).sum(0)
    votes = xp.where(xp.abs(votes) > (0 if by_count else rounding), votes, 0)
    return xp.where(votes == 0, zero_sign, xp.sign(votes))


def ties(xp: Any, x: Any, weights: Any, by_count: bool, zero_sign: float, normalize: bool) -> Any:
    """x (models, n), weights (models,) -> (n,): the weighted sum, or mean, over the models that agree with the elected sign.

    Where no model agrees the result is 0; where a model is NaN or Inf it is NaN, so that it stays visible.
    """
    sign = elect(xp, x, weights, by_count, zero_sign)
    weighted = weights[:, None] * x
    agrees = weighted * sign > 0
    merged = xp.where(agrees, weighted, 0).sum(0) + 0 * weighted.sum(0)
    if not normalize:
        return merged
    divisor = (weights[:, None] * agrees).sum(0)
    return merged / xp.where(divisor == 0, 1, divisor)


@dataclass(frozen=True)
class Ties:
    """weights: one per model. normalize: divide by the weights of the models that agree, element by element.
    elect: "sum" or "count" of signs. zero_sign: "positive", "majority" (of the tensor) or "drop" (such elements become 0).
    """

    weights: tuple[float, ...]
    normalize: bool = True
    elect: str = "sum"
    zero_sign: str = "positive"

    @property
    def measures(self) -> bool:
        return self.zero_sign == "majority"

    def problems(self, models: int) -> list[str]:
        if self.normalize and min(self.weights, default=0.0) < 0:
            shown = " ".join(f"{weight:g}" for weight in self.weights)
            return [
                f"--weight_list {shown}: ties divides each element by the weights of the models that agree, which a"
                " negative weight can turn negative or zero; pass --no_normalize to use the weights as they are"
            ]
        return normalize_problems(self.weights) if self.normalize else []

    def effective_weights(self, models: int) -> Sequence[float]:
        return self.weights

    def prepare(self, tensor: Tensor, backend: Any) -> Any:
        weights = backend.array(self.weights)
        by_count = self.elect == "count"
        if self.zero_sign != "majority":
            return weights, by_count, {"positive": 1.0, "drop": 0.0}[self.zero_sign]
        balance = sum(backend.elected_balance(x, weights, by_count) for _, x in tensor.sparsified())
        return weights, by_count, float((balance > 0) - (balance < 0))

    def apply(self, x: Any, state: Any, backend: Any) -> Any:
        return backend.apply(ties, x, *state, self.normalize)
