"""Merge one layer: of the adapters' low-rank matrices, make those of the output, and measure how near they are to the sum.

c: a weight times an adapter's scale; b [outputs, r] @ a [r, inputs] is a change. Of K adapters

    cat           b = [c_1 b_1 | ... | c_K b_K], a = [a_1; ...; a_K]: the sum of c b a, but for the rounding of b
    svd           the sum, cut off: by way of QR decompositions of the two, so no matrix [outputs, inputs] is made
    ..._svd       PEFT's combination of the changes, and the methods of `merge`: made as matrices, and cut off
    others        PEFT's combination of the b, and of the a, each with the square root of c

What is cut off has b = U S and a = V', as in PEFT.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from threading import Lock
from typing import Any

import numpy as np

from ...backends.np_backend import NumpyBackend, widen
from ...checkpoints.files import Files
from ...checkpoints.tensors import TensorEntry
from ...conversion.lora.adapted import read_matrix
from ...dtypes import FLOAT16, FLOAT64, DType
from ...errors import CheckpointError
from ...records import record
from ..extract_lora.low_rank import low_rank
from .by_method import ByMethod
from .config import MergeLoraConfig
from .layers import Layer, Part
from .peft_types import FACTORWISE, Combination, shared

_ROUNDING = 1e-14  # of a product in float64, relative to the norms of its factors
_LOWERED = 12  # powers of two by which the scale makes room in float16 for layers of a smaller one
_ELEMENTS = 1 << 20  # of a change that are compared at a time


@record(frozen=True)
class MergedLayer:
    """The low-rank matrices of a layer, as they are stored: b [outputs, r], a [r, inputs]; bias [outputs] or None.

    row: of the report.
    """

    b: np.ndarray
    a: np.ndarray
    bias: np.ndarray | None
    row: dict[str, Any]

    @property
    def rank(self) -> int:
        return len(self.a)


class LayerMerger:
    """Merges layers, one at a time. dtype: of the output's matrices. method: with --merge_method.

    scale: of the output's changes, scale * b @ a.
    """

    def __init__(
        self, config: MergeLoraConfig, layers: Sequence[Layer], dtype: DType, method: ByMethod | None, files: Files
    ):
        self._config, self._dtype, self._method, self._files = config, dtype, method, files
        self._weights, self._reading = config.weights, Lock()
        self._real = np.float64 if is_wide(layers) else np.float32  # what PEFT computes in
        self._highest = max(part.rank for layer in layers for part in layer.parts)
        self._combination = Combination(
            (config.type or "").removesuffix("_svd"), config.reserve_p, config.majority_sign_method, config.seed
        )
        self.scale = self._common_scale(layers) if config.type == "cat" else 1.0

    def _common_scale(self, layers: Sequence[Layer]) -> float:
        """Return the magnitude that most c have: their matrices are copied bit by bit, and the scale is the output's.

        In float16 it is divided by a power of two where c is smaller somewhere, so that no b is multiplied by less than 1:
        elements below 6e-5 have fewer bits there.
        """
        counts = Counter(abs(self._scale_of(part)) for layer in layers for part in layer.parts)
        counts.pop(0.0, None)
        if not counts:
            return 1.0
        common = max(counts, key=lambda scale: (counts[scale], scale))
        smaller = 1 - math.frexp(min(counts) / common)[1] if self._dtype == FLOAT16 else 0
        return math.ldexp(common, -min(_LOWERED, max(0, smaller)))

    def _scale_of(self, part: Part) -> float:
        return self._weights[part.adapter] * part.scale

    def most(self, layer: Layer) -> int:
        """Return the rank that a layer's output has; with --energy, the highest that it may have."""
        config = self._config
        if config.type == "cat":
            return layer.rank
        if config.type in FACTORWISE:
            return layer.parts[0].rank
        limit = config.rank or (self._highest if config.energy is None else max(layer.shape))
        return min(limit, *layer.shape, layer.rank if config.type == "svd" else limit)

    def merge(self, layer: Layer) -> MergedLayer:
        """Return the low-rank matrices of a layer; several threads may call it.

        Raises CheckpointError if one holds NaN or Inf, or overflows; WorkError.
        """
        pairs = [self._read(part) for part in layer.parts]
        scales = [self._scale_of(part) for part in layer.parts]
        if self._config.type == "cat" and self._dtype == FLOAT16:
            pairs = [_in_range(b, a, scale / self.scale) for (b, a), scale in zip(pairs, scales, strict=True)]
        left = np.concatenate([b * scale for (b, _), scale in zip(pairs, scales, strict=True)], axis=1)
        right = np.concatenate([a for _, a in pairs])
        change, remaining, largest = None, 0.0, 0.0
        if self._config.type == "cat":
            b = np.concatenate([b * (scale / self.scale) for (b, _), scale in zip(pairs, scales, strict=True)], axis=1)
            a = right
        elif self._config.type in FACTORWISE:
            b, a = self._factorwise(layer, pairs, scales)
        elif self._config.type == "svd":
            b, a, largest, remaining = self._cut_off_product(left, right, layer)
        else:
            change = self._change(layer, pairs)
            b, a, largest, remaining = self._cut_off(change.astype(np.float64, copy=False), layer)
        bias = self._bias(layer)
        stored = [self._store(value, layer, "the merged low-rank matrices overflow") for value in (b, a)]
        numbers = [self._numbers(value) for value in stored]
        row = self._row(layer, left, right, change, *numbers)
        if self._config.truncates:
            row |= {"largest_singular_value": largest, "largest_remaining_singular_value": remaining}
        return MergedLayer(stored[0], stored[1], bias, row)

    # --- reading and storing

    def _read(self, part: Part) -> tuple[np.ndarray, np.ndarray]:
        """Return b [outputs, r], with the mixer if there is one, and a [r, inputs], float64."""
        b, a = (self._matrix(entry) for entry in (part.b, part.a))
        return (b if part.middle is None else b @ self._matrix(part.middle)), a

    def _matrix(self, entry: TensorEntry) -> np.ndarray:
        with self._reading:
            matrix = read_matrix(entry, self._files)
        if not np.isfinite(matrix).all():
            raise CheckpointError(f"{', '.join(sorted(entry.files))}: tensor {entry.name!r} holds NaN or Inf")
        return matrix

    def _store(self, values: np.ndarray, layer: Layer, what: str) -> np.ndarray:
        flat = np.ascontiguousarray(values, np.float64).reshape(-1)
        raw, bad = NumpyBackend("float64").store(flat, self._dtype)
        if bad:
            raise CheckpointError(f"layer {layer.name!r}: {what} {self._dtype.name}; give another --out_dtype")
        return np.asarray(raw.copy().reshape(values.shape))

    def _numbers(self, raw: np.ndarray) -> np.ndarray:
        out = np.empty(raw.size)
        widen(raw.reshape(-1), self._dtype, out)
        return out.reshape(raw.shape)

    # --- ways to merge

    def _factorwise(
        self, layer: Layer, pairs: Sequence[tuple[np.ndarray, np.ndarray]], scales: Sequence[float]
    ) -> tuple[np.ndarray, np.ndarray]:
        adapters, found = [part.adapter for part in layer.parts], []
        for place, word in ((0, "lora_B"), (1, "lora_A")):
            arrays = [pair[place].astype(self._real) for pair in pairs]
            weights = [shared(scale)[1 - place] for scale in scales]
            found.append(self._combination.combine(arrays, weights, adapters, f"{layer.name}.{word}.weight"))
        return found[0], found[1]

    def _change(self, layer: Layer, pairs: Sequence[tuple[np.ndarray, np.ndarray]]) -> np.ndarray:
        """Return the merged change as a matrix [outputs, inputs], float32 or float64."""
        adapters, name = [part.adapter for part in layer.parts], f"{layer.name}.weight"
        if self._method is None:
            changes = [
                (b.astype(self._real) @ a.astype(self._real)) * np.float32(part.scale)
                for (b, a), part in zip(pairs, layer.parts, strict=True)
            ]
            return self._combination.combine(changes, [self._weights[one] for one in adapters], adapters, name)
        held = {
            part.adapter: self._as_weight(b @ a * part.scale, layer) for (b, a), part in zip(pairs, layer.parts, strict=True)
        }
        nothing = np.zeros(weight_shape(layer), self._method.dtype.raw)
        merged = self._method.merge(name, [held.get(number, nothing) for number in range(len(self._weights))])
        if not np.isfinite(merged).all():
            raise CheckpointError(f"layer {layer.name!r}: the merged change overflows {self._method.dtype.name}")
        return merged.T if layer.kind == "embedding" else merged.reshape(layer.shape)

    def _as_weight(self, change: np.ndarray, layer: Layer) -> np.ndarray:
        """Return a change in the shape of the weight, in the method's dtype."""
        turned = change.T if layer.kind == "embedding" else change
        assert self._method is not None
        return np.ascontiguousarray(turned, self._method.dtype.raw).reshape(weight_shape(layer))

    def _bias(self, layer: Layer) -> np.ndarray | None:
        """Return what is added to the bias, divided by the scale: the sum, or what the method makes; None if nothing is."""
        if not layer.has_bias:
            return None
        held = {part.adapter: self._matrix(part.bias)[0] for part in layer.parts if part.bias is not None}
        scales = {part.adapter: part.scale for part in layer.parts}
        nothing = np.zeros(layer.shape[0])
        each = [held[one] * scales[one] if one in held else nothing for one in range(len(self._weights))]
        if self._method is not None:
            total = self._method.merge(f"{layer.name}.lora_B.bias", each)
        else:
            total = np.sum([weight * bias for weight, bias in zip(self._weights, each, strict=True)], axis=0)
        return self._store(total / self.scale, layer, "the merged bias overflows")

    # --- cutting off

    def _cut_off(self, change: np.ndarray, layer: Layer) -> tuple[np.ndarray, np.ndarray, float, float]:
        """Return b and a of the best approximation of a change, its largest singular value, and the largest left out."""
        rank = min(self.most(layer), *change.shape)
        if not change.any():
            rank = 1 if self._config.energy is not None else rank
            return np.zeros((change.shape[0], rank)), np.zeros((rank, change.shape[1])), 0.0, 0.0
        found = low_rank(change, rank, self._config.energy)
        roots = np.sqrt(found.values)
        a = found.right / np.where(roots > 0, roots, 1.0)[:, None]
        return found.left * roots, a, float(found.values[0]), found.remaining

    def _cut_off_product(
        self, left: np.ndarray, right: np.ndarray, layer: Layer
    ) -> tuple[np.ndarray, np.ndarray, float, float]:
        """Return the same of left [outputs, R] @ right [R, inputs]."""
        columns, first = np.linalg.qr(left)
        rows, second = np.linalg.qr(right.T)
        b, a, largest, remaining = self._cut_off(_product(first, second.T), layer)
        return columns @ b, a @ rows.T, largest, remaining

    # --- measuring

    def _row(
        self,
        layer: Layer,
        left: np.ndarray,
        right: np.ndarray,
        change: np.ndarray | None,
        b: np.ndarray,
        a: np.ndarray,
    ) -> dict[str, Any]:
        """Return the report's row of a layer: its size, and how far the stored matrices' product is from what it should be.

        left @ right: the sum of the adapters' changes. change: the merged change, None if it is that sum.
        """
        norm = _norm(left, right)
        if self._config.type == "cat" and np.array_equal(a, right):  # the same, with less rounding
            away = _norm(left - self.scale * b, right)
        else:
            away = _norm(np.hstack([left, -self.scale * b]), np.vstack([right, a]))
        row = {
            "name": layer.name,
            "shape": list(layer.shape),
            "adapters": [part.adapter for part in layer.parts],
            "rank": len(a),
            "sum_norm": norm,
            "distance_from_sum": away / norm if norm else away,
        }
        if not self._config.truncates:
            return row
        total, lost = (norm, away) if change is None else _norms(change, b, a)
        return row | {"change_norm": total, "kept": 1 - (lost / total) ** 2 if total else 1.0, "lost_norm": lost}


def weight_shape(layer: Layer) -> tuple[int, ...]:
    """Return the shape of a layer's weight in torch: [outputs, inputs], [tokens, width], [outputs, inputs, *kernel]."""
    if layer.kind == "embedding":
        return layer.shape[::-1]
    return (layer.shape[0], *layer.a_shape)


def is_wide(layers: Sequence[Layer]) -> bool:
    """Return whether any of the adapters' matrices is float64."""
    return any(dtype == FLOAT64 for layer in layers for dtype in layer.dtypes)


def _in_range(b: np.ndarray, a: np.ndarray, factor: float) -> tuple[np.ndarray, np.ndarray]:
    """Return b and a with the same product, a power of two moved from b to a if b * factor would overflow float16."""
    largest = float(np.abs(b).max(initial=0.0)) * abs(factor)
    power = max(0, math.frexp(largest)[1] - 15) if abs(factor) != 1.0 else 0
    return np.ldexp(b, -power), np.ldexp(a, power)


def _norm(left: np.ndarray, right: np.ndarray) -> float:
    """Return the Frobenius norm of left @ right, which isn't made; to about 1e-8 of the product of the two norms."""
    square = float(np.vdot(left.T @ left, right @ right.T))
    return math.sqrt(square) if square > _ROUNDING * float(np.vdot(left, left)) * float(np.vdot(right, right)) else 0.0


def _norms(change: np.ndarray, b: np.ndarray, a: np.ndarray) -> tuple[float, float]:
    """Return the Frobenius norms of a matrix and of what b @ a lacks of it."""
    total = lost = 0.0
    step = max(1, _ELEMENTS // change.shape[1])
    for start in range(0, len(change), step):
        piece = change[start : start + step].astype(np.float64)
        total += float(np.vdot(piece, piece))
        piece -= b[start : start + step] @ a
        lost += float(np.vdot(piece, piece))
    return math.sqrt(total), math.sqrt(lost)


def _product(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Return left @ right; zeros if all of it is rounding of what cancels."""
    product = left @ right
    cancels = np.linalg.norm(product) <= _ROUNDING * np.linalg.norm(left) * np.linalg.norm(right)
    return np.zeros_like(product) if cancels else product
