"""Linear: the weighted sum of the models, or of their task vectors.

Without a base model and normalised it is a model soup (Wortsman et al. 2022). With a base model and not normalised it is
task arithmetic (Ilharco et al. 2023, eq. 1): base + scale * sum_k w_k delta_k.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..backends.backend import Backend
from ..records import record
from .shared.base import Merger, Tensor, linear


@record(frozen=True)
class Linear(Merger):
    """Adds up the models, each multiplied by its weight.

    weights: one per model. normalize: divide by their sum, which must not be 0 then.
    """

    weights: tuple[float, ...]
    normalize: bool = True

    def effective_weights(self, models: int) -> Sequence[float]:
        total = sum(self.weights) if self.normalize else 1.0
        return [weight / total for weight in self.weights]

    def prepare(self, tensor: Tensor, backend: Backend) -> Any:
        return backend.array(self.effective_weights(tensor.models))

    def apply(self, x: Any, start: int, state: Any, backend: Backend) -> Any:
        return backend.apply(linear, x, state)
