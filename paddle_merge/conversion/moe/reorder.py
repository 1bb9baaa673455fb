"""Put the experts of a model, and the neurons of each, in another order. The model computes the same.

A router's rows, its biases and score corrections move with the experts; rows of gate and up and columns of down with the
neurons. Nothing is read here: tensors become ReorderedEntry.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping

import numpy as np

from ...checkpoints.tensors import Checkpoint, TensorEntry
from .entry import ReorderedEntry
from .layers import ExpertTensor, MoeLayer
from .matching import LayerOrder


def reordered(one: Checkpoint, layers: Mapping[str, MoeLayer], orders: Mapping[str, LayerOrder]) -> Checkpoint:
    """Return a checkpoint with the experts of its layers in these orders. layers, orders: by prefix."""
    changed: dict[str, TensorEntry] = {}
    for prefix, order in orders.items():
        layer = layers[prefix]
        for name, axis in layer.router:
            changed[name] = _along(one.tensors[name], axis, order.experts)
        indices: dict[tuple[str, int | None], bytes] = {}  # one copy for all tensors of an expert
        for tensor in layer.experts:
            if tensor.stacked:
                changed[tensor.names[0]] = _stack(one.tensors[tensor.names[0]], tensor, order)
                continue
            for place, name in enumerate(tensor.names):
                entry = one.tensors[tensor.names[order.experts[place]]]
                slices = b""
                if tensor.neurons is not None:
                    index = tensor.pairs, place
                    if index not in indices:
                        indices[index] = _bytes(_paired(order.neurons[place], tensor.pairs))
                    slices = indices[index]
                changed[name] = _matrix(entry, name, tensor, slices)
    return dataclasses.replace(one, tensors={name: changed.get(name, entry) for name, entry in one.tensors.items()})


def _matrix(entry: TensorEntry, name: str, tensor: ExpertTensor, slices: bytes) -> TensorEntry:
    """Return the tensor of one expert with its neurons in another order. slices: b"" if none are."""
    if not slices:
        return entry.renamed(name)
    rows, columns = (*entry.shape, 1)[:2]
    return ReorderedEntry(name, entry.dtype, entry.shape, entry, (1, rows, columns), b"", slices, (tensor.neurons or 0) + 1)


def _stack(entry: TensorEntry, tensor: ExpertTensor, order: LayerOrder) -> TensorEntry:
    """Return a stack with its experts, and the neurons of each, in another order."""
    count, rows, columns = (*entry.shape, 1)[:3]
    matrices, slices = _bytes(order.experts), b""
    if tensor.neurons is not None:
        slices = b"".join([_bytes(_paired(its, tensor.pairs), always=True) for its in order.neurons])
        if not any(_bytes(its) for its in order.neurons):
            slices = b""
    if not matrices and not slices:
        return entry
    form = count, rows, columns
    return ReorderedEntry(entry.name, entry.dtype, entry.shape, entry, form, matrices, slices, (tensor.neurons or 0) + 1)


def _along(entry: TensorEntry, axis: int, order: np.ndarray) -> TensorEntry:
    """Return a tensor with its slices along an axis in another order."""
    if not (slices := _bytes(order)):
        return entry
    shape = entry.shape
    before, behind = math.prod(shape[:axis]), math.prod(shape[axis + 1 :])
    if behind == 1:  # as columns, which are read together
        form, place = (1, before, shape[axis]), 2
    elif before == 1:
        form, place = (1, shape[axis], behind), 1
    else:
        form, place, slices = (before, shape[axis], behind), 1, slices * before
    return ReorderedEntry(entry.name, entry.dtype, shape, entry, form, b"", slices, place)


def _paired(neurons: np.ndarray, pairs: str) -> np.ndarray:
    """Return the order of rows of gate and up together."""
    if pairs == "interleaved":
        return np.stack([2 * neurons, 2 * neurons + 1], axis=1).reshape(-1)
    return np.concatenate([neurons, neurons + len(neurons)]) if pairs else neurons


def _bytes(order: np.ndarray, always: bool = False) -> bytes:
    """Return what ReorderedEntry holds of an order; b"" if it is that of the index, unless it is asked for always."""
    return order.astype(np.int32).tobytes() if always or (order != np.arange(len(order))).any() else b""
