"""Merge adapters' changes by the methods of `merge`, as task vectors on a base of zeros."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from ...backends.engine import NUMPY
from ...checkpoints.tensors import Checkpoint, StoredEntry
from ...dtypes import FLOAT32, FLOAT64, DType
from ...errors import ConfigError
from ...methods.paddlenlp import METHODS
from ...methods.registry import NAMED
from ...plan.assemble import assemble
from ...recipe.config import MergeConfig
from ...recipe.request import Request
from ...run.pipeline import merge_tensor
from ...run.state_dicts import MemorySource
from .config import MergeLoraConfig

_SAME = (
    "weight_list",
    "merge_method",
    "method_parameters",
    "normalize",
    "scale",
    "rescale",
    "epsilon",
    "ties_elect_type",
    "ties_zero_sign",
    "slerp_alpha",
)


def request_of(config: MergeLoraConfig) -> Request:
    """Return the request for a merge of models that differ from their base by the adapters' changes.

    Raises ConfigError listing what is wrong with the method's parameters.
    """
    named = NAMED[str(config.merge_method)] if config.merge_method not in METHODS else None
    based = named is None or named.base in ("required", "optional")
    fields = {name: getattr(config, name) for name in _SAME} | {"seed": config.seed or None}
    if config.reserve_p is not None:
        fields["reserve_p"] = config.reserve_p
    labels = [f"adapter-{number + 1}" for number in range(len(config.adapter_path_list))]
    request = Request.of(MergeConfig(model_path_list=labels, base_model_path="base" if based else None, **fields))
    if request.problems:
        raise ConfigError(request.problems)
    return request


class ByMethod:
    """Merges changes, tensor by tensor, with the masks and parameters that the tensors of these names have in a merge.

    shapes: of all tensors, by name. wide: whether they are computed from float64.
    """

    def __init__(self, request: Request, shapes: Mapping[str, tuple[int, ...]], wide: bool):
        recipe = request.checked_recipe()
        self.dtype: DType = FLOAT64 if wide else FLOAT32
        self._based = recipe.base is not None
        inputs = [
            Checkpoint(
                label, label, None, {name: StoredEntry(name, self.dtype, shape, label, 0) for name, shape in shapes.items()}
            )
            for label in recipe.sources
        ]
        made, _ = assemble(recipe, inputs)
        self._plans = {one.name: one.plan(recipe, masked_as=one.name, transposed=False) for one in made}

    def merge(self, name: str, models: Sequence[np.ndarray], base: np.ndarray | None = None) -> np.ndarray:
        """Return the tensor `name` merged, in its shape. models: of each adapter; base: None for zeros."""
        plan = self._plans[name]
        values = [np.ascontiguousarray(value, self.dtype.raw).reshape(-1) for value in models]
        if self._based:
            values.append(np.zeros(plan.size, self.dtype.raw) if base is None else base.reshape(-1))
        backend = NUMPY.backend(plan.compute)
        merged = np.empty(plan.size, self.dtype.raw)
        with backend.at_work():
            source = MemorySource([values[number] for number in plan.numbers], [self.dtype] * len(plan.numbers))
            for block, start in merge_tensor(plan, source, backend).merged():
                merged[start : start + len(block)] = block
        return merged.reshape(plan.shape)
