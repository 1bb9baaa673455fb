"""Model Stock (Jang et al. 2024, eq. 3): the average of the models, moved toward the base by how much they disagree.

The result is theta_0 + t (mean - theta_0), t = N c / (1 + (N - 1) c), where c is the mean cosine between task vectors. The
paper has one angle for a layer. As in mergekit it is that of a tensor, or of each of its rows; the product of two norms
counts as 1e-6 if it is smaller; and t is negative, which moves away from the average, where c is.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ..records import record
from .shared.angles import Angles, ByAngles
from .shared.method import Method, Parameter, ResolvedMethod
from .shared.rows import Rows, rows_of

_LEAST = 1e-6


def ratio(found: Angles) -> Any:
    """Return t of each of n vectors, (n,). Where it would be infinite it is 0, the base; where numbers aren't finite, 1, the
    average."""
    count = len(found.norms)
    first, second = np.triu_indices(count, 1)
    norms = np.where(found.known, found.norms, 0.0)
    with np.errstate(over="ignore"):
        shares = np.minimum(norms[first] * norms[second], _LEAST) / _LEAST
    cosine = np.mean(found.cosines[first, second] * shares, 0)
    divisor = 1.0 + (count - 1) * cosine
    singular = np.abs(divisor) < 1e-6
    t = np.where(singular, 0.0, count * cosine / np.where(singular, 1.0, divisor))
    return np.where(found.known, t, 1.0)


@record(frozen=True)
class ModelStock(ByAngles):
    """Moves the average toward the base.

    filter_wise: each vector along torch's last axis has its own t, which are a matrix's rows, one for each output of a
    layer.
    """

    filter_wise: bool = False

    def along(self, shape: tuple[int, ...], transposed: bool) -> Rows | None:
        return rows_of(shape, transposed) if self.filter_wise else None

    def factors(self, found: Angles) -> Any:
        return np.repeat(ratio(found)[None] / len(found.norms), len(found.norms), 0)


def _model_stock(filter_wise: bool) -> ResolvedMethod:
    return ResolvedMethod(None, ModelStock(filter_wise))


METHODS = (
    Method(
        "model_stock",
        _model_stock,
        (Parameter("filter_wise", bool, False, about="an angle for each row, not one for the tensor"),),
        about="a few models of one base, for a result between them and it",
        about_cn="同一基础模型的少数几个模型，结果介于它们与基础模型之间",
        source="Jang et al. 2024",
        paper="https://arxiv.org/abs/2403.19522",
        base="required",
        least=2,
        mergekit=True,
        place=15,
    ),
)
