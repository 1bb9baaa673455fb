"""TIES, steps 2 and 3: elect a sign for every element, then average the models that agree with it (Yadav et al. 2023,
section 3). Step 1, trimming, is the sparsifier in trim.py.

Both PaddleNLP and mergekit call a method "ties". They differ in step 1: PaddleNLP trims at a quantile and rescales, mergekit
keeps an exact count and does not; and in parameters and their defaults: the tables paddlenlp.py and mergekit.py have both.
This merger is the same in both.

As in PaddleNLP, weights are applied before the election. The paper gives an element whose votes cancel the sign that is most
frequent in the whole model; PaddleNLP gives it plus, which with task vectors of bfloat16 models (many exact cancellations)
adds an offset of a few percent of a task vector's size. `zero_sign` chooses; "majority" counts over the tensor.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from ..backends.backend import Backend
from ..backends.formula import formula
from ..records import record
from .shared.base import Merger, Tensor, total


@formula(measure="measures.elected_balance")
def elect(xp: Any, weighted: Any, by_count: bool | None, zero_sign: float) -> Any:
    """Return the elected sign of each element, (n,) in {-1, 0, +1}.

    weighted: a row w_k x_k (n,) per model. by_count: take the sign of the sum of their signs, not of their sum. zero_sign:
    what a cancelled vote elects. Rescaling and weights leave rounding errors where exact numbers would cancel, so a vote
    counts as cancelled if its sum is no larger than such errors can be.
    """
    if by_count:
        votes = total((row > 0).astype(row.dtype) - (row < 0).astype(row.dtype) for row in weighted)  # NaN has no vote
        rounding = 0
    else:
        votes = total(weighted)
        rounding = total(xp.abs(row) for row in weighted) * ((len(weighted) + 1) * float(xp.finfo(votes.dtype).eps))
    decided = (xp.abs(votes) > rounding).astype(votes.dtype)
    return xp.sign(votes) * decided + (1 - decided) * zero_sign


@formula(kernel="mergers.ties")
def ties(xp: Any, x: Any, weights: Any, by_count: bool | None, zero_sign: float, normalize: bool) -> Any:
    """Return the weighted sum, or mean, of the models that agree with the elected sign, (n,).

    x: a row (n,) per model. weights: (models,). by_count, zero_sign: as in `elect`. normalize: the mean. Where no model
    agrees, the result is 0; where a model is NaN or Inf, it is NaN, so that it stays visible.
    """
    weighted = [weight * row for weight, row in zip(weights, x, strict=True)]
    sign = elect(xp, weighted, by_count, zero_sign)
    along = [row * sign for row in weighted]  # positive where the model agrees
    merged = total(xp.maximum(row, 0) for row in along)
    if normalize:
        divisor = total((row > 0).astype(row.dtype) * weight for row, weight in zip(along, weights, strict=True))
        some = (divisor > 0).astype(divisor.dtype) + (divisor < 0).astype(divisor.dtype)
        merged = xp.divide(merged, divisor + (1 - some))  # where none agrees, or their weights cancel, by 1
    return merged * sign + total(weighted) * 0


@record(frozen=True)
class Ties(Merger):
    """Merges by sign election.

    weights: one per model. normalize: divide by the weights of the models that agree, element by element; by 1 where these
    cancel. (paddlenlp.py refuses negative weights with it; mergekit.py takes them, as mergekit does.)
    elect: "sum", or "count" of signs. zero_sign: "positive", "majority" (of the tensor) or "drop" (such elements become 0).
    """

    weights: tuple[float, ...]
    normalize: bool = True
    elect: str = "sum"
    zero_sign: str = "positive"

    @property
    def measures(self) -> bool:
        return self.zero_sign == "majority"

    def effective_weights(self, models: int) -> Sequence[float]:
        return self.weights

    def _weights(self) -> list[float]:
        """Return the weights, multiplied by a power of two if only their ratios matter.

        So no weighted element leaves the range of floats, and no bit changes of those within it. Negative weights are not
        scaled: where they cancel, sums are divided by 1.
        """
        power = math.frexp(max(self.weights))[1] - 1 if self.normalize and min(self.weights) >= 0 else 0
        return [math.ldexp(weight, -power) for weight in self.weights]

    def prepare(self, tensor: Tensor, backend: Backend) -> Any:
        weights = backend.array(self._weights())
        by_count = True if self.elect == "count" else None  # for False, more would be compiled
        if self.zero_sign != "majority":
            return weights, by_count, {"positive": 1.0, "drop": 0.0}[self.zero_sign]
        balance = sum(backend.elected_balance(elect, x, weights, bool(by_count)) for _, x in tensor.sparsified())
        return weights, by_count, float((balance > 0) - (balance < 0))

    def apply(self, x: Any, start: int, state: Any, backend: Backend) -> Any:
        return backend.apply(ties, x, *state, self.normalize)
