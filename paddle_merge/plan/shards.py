"""Give the tensors of the output their places in its files."""

from __future__ import annotations

import math
from collections.abc import Sequence, Set

from ..checkpoints.formats.header import Held
from ..checkpoints.formats.naming import FORMATS, shard_name
from ..errors import CheckpointError
from .assemble import AssembledTensor
from .copies import masked_as
from .plan import Shard
from .scales import Scales
from .storage import Storage
from .tensor_plan import TensorPlan


def lay_out(
    made: Sequence[AssembledTensor], stored: Storage, format: str | None, shard_bytes: int, transposed: Set[str]
) -> tuple[tuple[TensorPlan, ...], tuple[Shard, ...]]:
    """Give each tensor its place in an output file: files are filled up to shard_bytes in the given order, and within a file
    wide dtypes come first. A tensor and its scales are in one file.

    format: of the safetensors metadata. transposed: names of matrices [in, out].
    Raises CheckpointError listing the tensors that the output's format can't hold.
    """
    groups: list[list[tuple[AssembledTensor, Held, Scales | None]]] = [[]]
    filled = 0
    for one in made:
        dtype, scales = stored.dtype(one), stored.scales(one)
        held = Held(one.name, dtype, one.shape, math.prod(one.shape) * dtype.itemsize)
        nbytes = held.nbytes + (scales.nbytes if scales is not None else 0)
        if groups[-1] and filled + nbytes > shard_bytes:
            groups.append([])
            filled = 0
        groups[-1].append((one, held, scales))
        filled += nbytes

    tensors: list[TensorPlan] = []
    shards: list[Shard] = []
    problems: list[str] = []
    recipe, same = stored.recipe, masked_as(made)
    form = FORMATS[recipe.save_format]
    for number, group in enumerate(groups):
        group.sort(key=lambda row: -row[1].dtype.itemsize)  # so that every tensor is aligned to its own width
        content = [held for _, held, _ in group]
        content[:0] = [scales.held for _, _, scales in group if scales is not None]
        content.sort(key=lambda held: -held.dtype.itemsize)
        problems += form.problems(content)
        header = form.header(content, format)
        places = {held.name: offset for held, offset in zip(content, header.offsets, strict=True)}
        if len(places) < len(content):
            problems += _twice([held.name for held in content])
        for one, held, scales in group:
            like = same[one.name]
            tensors.append(
                one.plan(
                    recipe,
                    masked_as=like,
                    transposed=one.name in transposed,
                    shard=number,
                    offset=places[one.name],
                    dtype=held.dtype,
                    scales=scales.at(places[scales.name]) if scales is not None else None,
                )
            )
        name = shard_name(recipe.save_format, recipe.prefix, number, len(groups))
        shards.append(Shard(name, header.pieces, header.nbytes))
    if problems:
        raise CheckpointError(problems)
    return tuple(tensors), tuple(shards)


def _twice(names: Sequence[str]) -> list[str]:
    """Return a sentence on each name that two tensors of a file would have: scales, and a tensor of the models."""
    twice = dict.fromkeys(name for name in names if names.count(name) > 1)
    return [f"the output would have two tensors {name!r}: rename it in the models" for name in twice]
