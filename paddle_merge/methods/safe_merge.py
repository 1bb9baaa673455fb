"""SafeMERGE: mix a safe model into those weight matrices in which fine-tuning left the directions of alignment (Djuhera et
al. 2025, SafeMERGE).

    V = aligned - unaligned,  C = V V' / ||V||,  d = fine-tuned - aligned,  d_safe = safe - aligned
    cos(C d, d) < tau:  aligned + alpha d + (1 - alpha) d_safe;  else the fine-tuned matrix as it is

Matrices are [out, in], and ||V|| is the Frobenius norm, on which the cosine doesn't depend. The base model is the aligned
one; tau is 0.35 and alpha 0.8 in the authors' code. Fine-tuned and safe model are adapters on the aligned one there, and
whole models here; the unit is a weight matrix in both. A cosine that isn't defined, because alignment or fine-tuning didn't
change the matrix, counts as 0, as there. Tensors that aren't matrices (norms, biases) stay fine-tuned, as there.

Where V' d is smaller than C, C isn't formed: cos(C d, d) = ||V' d||^2 / (||V (V' d)|| ||d||).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from ..backends.backend import Backend
from ..records import record
from .shared.base import Merger, Tensor, linear
from .shared.method import Method, Parameter, ResolvedMethod
from .shared.problems import Problem

_STEP = 1 << 20  # elements that are multiplied together
_FINE_TUNED, _UNALIGNED = 0, 2  # models, by place


def cosine(v: np.ndarray, d: np.ndarray) -> float:
    """Return the cosine between V V' d and d, from 0 to 1; 0 if either is zero.

    v, d: (out, in) in compute dtype, finite. Computed in float64, by steps that depend on the shape alone, and of the same
    numbers in the same order however the matrices lie in memory.
    """
    powers = [math.frexp(max(float(one.max()), -float(one.min())))[1] for one in (v, d)]  # so that no square leaves float64
    tall = v.shape[0] > v.shape[1]
    long, side = max(v.shape), min(v.shape)

    def parts() -> Iterator[list[np.ndarray]]:
        """Yield both matrices in float64, some at a time of their rows, or of their columns if these are more."""
        step = max(1, _STEP // side)
        for begin in range(0, long, step):
            some = [one[begin : begin + step] if tall else one[:, begin : begin + step] for one in (v, d)]
            wide = [np.ldexp(one, -power, dtype=np.float64) for one, power in zip(some, powers, strict=True)]
            yield [np.ascontiguousarray(one) for one in wide]

    middle = np.zeros((side, side))  # V' d of a tall matrix, else V V'
    for some_v, some_d in parts():
        middle += some_v.T @ some_d if tall else some_v @ some_v.T
    dot, square, length = float(np.square(middle).sum()) if tall else 0.0, 0.0, 0.0
    for some_v, some_d in parts():
        projected = some_v @ middle if tall else middle @ some_d
        square += float(np.square(projected).sum())
        length += float(np.square(some_d).sum())
        dot += 0.0 if tall else float((projected * some_d).sum())
    norms = math.sqrt(square) * math.sqrt(length)
    return dot / norms if norms > 0.0 else 0.0


@record(frozen=True)
class SafeMerge(Merger):
    """Mixes in the safe model where fine-tuning left the directions of alignment.

    tau: the cosine below which it does. alpha: the fine-tuned model's share there.
    """

    tau: float
    alpha: float

    whole_matrices = True

    @property
    def measures(self) -> bool:
        return True

    def effective_weights(self, models: int) -> Sequence[float]:
        return self.alpha, 1.0 - self.alpha, 0.0

    def row_memory(self, models: int, shape: tuple[int, ...], transposed: bool, itemsize: int) -> int:
        """Return the bytes of two matrices, of the product of the smaller size with what is added to it, and of parts."""
        if len(shape) != 2:
            return 0
        side, part = min(shape), max(_STEP, *shape)
        return 2 * math.prod(shape) * itemsize + 8 * (2 * side * side + 4 * part)

    def prepare(self, tensor: Tensor, backend: Backend) -> Any:
        kept, mixed = (1.0, 0.0, 0.0), (self.alpha, 1.0 - self.alpha, 0.0)
        if len(tensor.shape) != 2 or not tensor.size:
            return backend.array(kept)
        from threadpoolctl import threadpool_limits

        d, v = np.empty((2, tensor.size), backend.dtype)
        for start, x in tensor.deltas():
            place = slice(start, start + x[0].shape[0])
            d[place], v[place] = backend.fetch(x[_FINE_TUNED])(), backend.fetch(x[_UNALIGNED])()
            spoilt = ~(np.isfinite(d[place]) & np.isfinite(v[place]))
            d[place][spoilt] = v[place][spoilt] = 0
        matrices = [one.reshape(tensor.shape).T if tensor.transposed else one.reshape(tensor.shape) for one in (v, d)]
        with threadpool_limits(1, "blas"):
            far = cosine(*matrices) < self.tau
        return backend.array(mixed if far else kept)

    def apply(self, x: Any, start: int, state: Any, backend: Backend) -> Any:
        return backend.apply(linear, x, state)


def _safe_merge(tau: float, alpha: float) -> ResolvedMethod:
    return ResolvedMethod(None, SafeMerge(tau, alpha))


def _problems(tau: float, alpha: float) -> list[Problem]:
    found = []
    if not 0.0 <= tau <= 1.0:
        found.append(Problem("tau", f"{tau:g} is the cosine below which a matrix is mixed: from 0 to 1"))
    if not 0.0 <= alpha <= 1.0:
        found.append(Problem("alpha", f"{alpha:g} is the fine-tuned model's share of a mixed matrix: from 0 to 1"))
    return found


METHODS = (
    Method(
        "safe_merge",
        _safe_merge,
        (
            Parameter("tau", float, 0.35, about="cosine with the alignment subspace below which a matrix is mixed"),
            Parameter("alpha", float, 0.8, about="the fine-tuned model's share of a mixed matrix"),
        ),
        about="fine-tuning made an aligned model less safe, and only the matrices that did so are to change",
        about_cn="微调降低了对齐模型的安全性，且只修改偏离对齐方向的矩阵",
        source="Djuhera et al. 2025, SafeMERGE",
        paper="https://arxiv.org/abs/2503.17239",
        problems=_problems,
        base="required",
        least=3,
        most=3,
        base_role="the aligned model",
        roles=("the model fine-tuned from it", "the safe model trained from it", "the unaligned model"),
        place=30,
    ),
)
