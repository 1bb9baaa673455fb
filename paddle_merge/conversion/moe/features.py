"""Compute what experts are compared by: the weights of each neuron, and what doesn't depend on the order of neurons.

A neuron's weights are its rows of gate and up and its column of down, with biases: F [i, 3 h]. An expert's second moments,
F^T F, are the same in any order of its neurons; here those of F S, where S projects each part's h features to WIDTH random
signs (Achlioptas 2003, "Database-friendly random projections"), which keeps squared distances up to about a tenth.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

import numpy as np

from ...backends.masks import hash_block, mask_key
from ...checkpoints.files import Files
from ...checkpoints.tensors import TensorEntry
from ..readers import reader
from .layers import ExpertTensor, MoeLayer

WIDTH = 32  # random projections of each part
_STEP = 1 << 20  # elements that are widened at a time


def parts(tensors: Mapping[str, TensorEntry], layer: MoeLayer, expert: int, files: Files) -> Iterator[np.ndarray]:
    """Yield the weights of an expert's neurons, one part after the other, (neurons, h or 1) float32; not finite ones as 0.

    Raises WorkError.
    """
    for tensor in layer.experts:
        if tensor.neurons is None:
            continue
        matrix = _matrix(tensors, tensor, expert, files)
        matrix = matrix.reshape(-1, 1) if matrix.ndim == 1 else matrix.T if tensor.neurons == 1 else matrix
        if tensor.pairs == "interleaved":
            yield from (matrix[::2], matrix[1::2])
        elif tensor.pairs:
            yield from (matrix[: layer.neurons], matrix[layer.neurons :])
        else:
            yield matrix


def moments(tensors: Mapping[str, TensorEntry], layer: MoeLayer, expert: int, files: Files) -> np.ndarray:
    """Return an expert's second moments, (n,) float64. Raises WorkError."""
    projected = [
        part @ _signs(part.shape[1]) if part.shape[1] > 1 else part for part in parts(tensors, layer, expert, files)
    ]
    together = np.concatenate(projected, axis=1).astype(np.float64)
    second: np.ndarray = together.T @ together
    return second.reshape(-1)


def router_rows(tensors: Mapping[str, TensorEntry], layer: MoeLayer, files: Files) -> np.ndarray:
    """Return the rows of the layer's routers, (experts, width) float64. Raises WorkError."""
    found = []
    for name, axis in layer.router:
        if len(tensors[name].shape) == 2 and min(tensors[name].shape) > 1:
            rows = _values(tensors[name], 0, tensors[name].shape, files).astype(np.float64)
            found.append(rows.T if axis else rows)
    return np.concatenate(found, axis=1)


def _matrix(tensors: Mapping[str, TensorEntry], tensor: ExpertTensor, expert: int, files: Files) -> np.ndarray:
    entry = tensors[tensor.names[0 if tensor.stacked else expert]]
    shape = entry.shape[1:] if tensor.stacked else entry.shape
    return _values(entry, math.prod(shape) * expert if tensor.stacked else 0, shape, files)


def _values(entry: TensorEntry, start: int, shape: tuple[int, ...], files: Files) -> np.ndarray:
    """Return elements of a tensor from index `start` on, in float32; not finite ones as 0."""
    from ...backends.np_backend import widen  # planning does without

    source = reader(entry, "float32", files)
    found = np.empty(math.prod(shape), np.float32)
    raw = np.empty(min(_STEP, found.size), source.dtype.raw)
    for first in range(0, found.size, _STEP):
        block = found[first : first + _STEP]
        source.read(start + first, raw[: block.size])
        widen(raw[: block.size], source.dtype, block)
    if not np.isfinite(found).all():
        found[~np.isfinite(found)] = 0
    return found.reshape(shape)


def _signs(count: int) -> np.ndarray:
    """Return the matrix S of one part, (count, WIDTH) float32: the same for all experts and models."""
    bits = hash_block(mask_key(0, 0, "experts"), 0, count * WIDTH) >> np.uint32(31)
    signs: np.ndarray = bits.astype(np.float32) * 2 - 1
    signs /= np.float32(math.sqrt(WIDTH))
    return signs.reshape(count, WIDTH)
