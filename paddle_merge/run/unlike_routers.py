"""Warn of experts that are merged by their index although routers say that they don't correspond.

Fine-tuning hardly turns the rows of a router. Where those of two models, of one layer, point elsewhere, the models were
trained apart, or one has its experts in another order. Only that one small tensor of each model is read.
"""

from __future__ import annotations

import math
from contextlib import closing

import numpy as np

from ..checkpoints.files import Files, StoredReader
from ..checkpoints.tensors import Checkpoint, StoredEntry
from ..conversion.moe.layers import MoeLayer, has_experts
from ..conversion.moe.order import layers_of
from ..dtypes import BFLOAT16, FLOAT16, FLOAT32, FLOAT64
from ..errors import CheckpointError
from ..plan.expert_alignment import INDEX, takes_layers
from ..plan.plan import Plan
from ..plan.tensor_plan import leaves

UNLIKE = 0.5  # the mean cosine between rows of the same index below which a warning is given


def warnings(plan: Plan) -> list[str]:
    """Return a sentence on each input whose experts don't seem to correspond to those of the base, or of the first model.

    Inputs that aren't merged with others, whose layers aren't understood, or whose routers have adapters, are left out.
    Raises WorkError if a file can't be read.
    """
    recipe, found = plan.recipe, list[str]()
    first = len(recipe.models) if recipe.base is not None else 0
    inputs = plan.inputs[: len(recipe.sources)]
    if recipe.expert_alignment != INDEX or len(inputs) < 2 or not has_experts(inputs[first].tensors):
        return []
    sliced = takes_layers(recipe)
    mixed, where = (_mixed(plan), ", without slices,") if sliced else (range(len(inputs)), "")
    with closing(Files()) as files:
        routers = _Routers(plan, files)
        like = routers.rows(inputs[first]) if first in mixed else None
        for number, one in enumerate(inputs):
            rows = routers.rows(one) if number != first and number in mixed and like is not None else None
            if rows is None or like is None or rows.shape != like.shape:
                continue
            cosines = like @ rows.T
            own, best = float(np.diagonal(cosines).mean()), float(cosines.max(axis=1).mean())
            if own < UNLIKE:
                order = f"; in another order they do ({best:.2f})" if best > UNLIKE else ""
                found.append(
                    f"{one.path}: expert k doesn't seem to correspond to expert k of {inputs[first].path}: the rows of their"
                    f" routers hardly resemble one another (mean cosine {own:.2f}){order}. If the models were trained apart,"
                    f" --expert_alignment match{where} finds which experts correspond"
                )
    return found


def _mixed(plan: Plan) -> set[int]:
    """Return the inputs that are merged with others: not those that only give whole layers, as passthrough takes them."""
    found = set[int]()
    for tensor in plan.tensors:
        numbers = {number for number, _ in leaves(tensor)}
        found |= numbers if len(numbers) > 1 else set()
    return found


class _Routers:
    """Reads a router of each input of a plan."""

    def __init__(self, plan: Plan, files: Files):
        self._plan, self._files = plan, files
        self._shapes: list[tuple[str, tuple[int, ...]]] = []  # of the last input
        self._layers: list[MoeLayer] = []  # of it, and of others with the same shapes, as most have

    def rows(self, one: Checkpoint) -> np.ndarray | None:
        """Return the rows of a router in the middle of a model, of length 1, (experts, width); None if there is none to
        read, or all are zeros, as in a mixture that was made of a dense model."""
        layers = self._layers_of(one)
        names = _weights(layers[len(layers) // 2], one) if layers else []
        if not names:
            return None
        (name, axis), *_ = names
        entry = one.tensors[name]
        if not isinstance(entry, StoredEntry):
            return None
        raw = np.empty(math.prod(entry.shape), entry.dtype.raw)
        StoredReader(entry, self._files).read(0, raw)
        if entry.dtype is BFLOAT16:
            values = (raw.astype(np.uint32) << np.uint32(16)).view(np.float32)
        else:
            values = raw.view("<f2") if entry.dtype is FLOAT16 else raw
        rows = values.astype(np.float64).reshape(entry.shape)
        rows = rows.T if axis else rows
        with np.errstate(all="ignore"):
            directions: np.ndarray = np.nan_to_num(rows / np.linalg.norm(rows, axis=1, keepdims=True))
        return directions if directions.any() else None

    def _layers_of(self, one: Checkpoint) -> list[MoeLayer]:
        """Return the layers of experts of an input; none if they aren't understood."""
        shapes = [(name, entry.shape) for name, entry in one.tensors.items()]
        if shapes != self._shapes:
            try:
                self._layers = list(layers_of(one, self._plan.config_source.config, self._plan.layout).values())
            except CheckpointError:
                self._layers = []
            self._shapes = shapes
        return self._layers


def _weights(layer: MoeLayer, one: Checkpoint) -> list[tuple[str, int]]:
    """Return (name, axis of the experts) of the layer's routers that can be read here."""
    known = (BFLOAT16, FLOAT16, FLOAT32, FLOAT64)
    entries = [(one.tensors[name], name, axis) for name, axis in layer.router]
    return [
        (name, axis)
        for entry, name, axis in entries
        if len(entry.shape) == 2 and min(entry.shape) > 1 and entry.dtype in known
    ]
