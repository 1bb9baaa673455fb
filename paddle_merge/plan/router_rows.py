"""Read the weights of routers, by which experts are chosen or grouped before the merge begins."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping

import numpy as np

from ..checkpoints.files import Files
from ..checkpoints.tensors import TensorEntry
from ..conversion.moe.entry import ReorderedEntry
from ..conversion.moe.layers import MoeLayer
from ..conversion.moe.reordered import ReorderedReader
from ..conversion.readers import reader
from .assemble import AssembledTensor
from .tensor_plan import StagedEntry


def router_rows(its: Mapping[str, AssembledTensor], mixture: MoeLayer) -> np.ndarray:
    """Return a row of numbers for each expert, float64 [experts, n]: the router's matrix, the mean of the models'.

    Raises WorkError if it can't be read.
    """
    files, found = Files(), list[np.ndarray]()
    try:
        for name, axis in mixture.router:
            shape = its[name].sources[0].shape
            if len(shape) == 2 and min(shape) > 1:
                mean = np.mean([_values(entry, files) for entry in its[name].sources], axis=0)
                found.append(np.moveaxis(mean, axis, 0))
    finally:
        files.close()
    return np.concatenate([*found, np.zeros((mixture.count, 0))], axis=1)


def _values(entry: TensorEntry, files: Files) -> np.ndarray:
    """Return the elements of a tensor, float64, in its shape; if an earlier merge makes it, the mean of its models."""
    from ..backends.np_backend import widen  # planning does without

    if isinstance(entry, StagedEntry):
        return np.asarray(np.mean([_values(one, files) for one in entry.plan.sources], axis=0))
    open_stored = functools.partial(reader, compute="float64", files=files)
    one = ReorderedReader(entry, open_stored) if isinstance(entry, ReorderedEntry) else open_stored(entry)
    raw, out = np.empty(math.prod(entry.shape), one.dtype.raw), np.empty(math.prod(entry.shape), np.float64)
    one.read(0, raw)
    widen(raw, one.dtype, out)
    return out.reshape(entry.shape)
