"""What differs between two checkpoints of one layout, tensor by tensor, block by block."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from ...checkpoints.files import Files
from ...checkpoints.tensors import TensorEntry
from ...errors import CheckpointError
from ..pairs import raw_blocks, same_bits, subtract


@dataclass(frozen=True)
class Change:
    """A tensor of numbers that differs. squares: of its change, summed up."""

    finetuned: TensorEntry
    base: TensorEntry
    squares: float

    @property
    def name(self) -> str:
        return self.base.name

    @property
    def shape(self) -> tuple[int, ...]:
        return self.base.shape

    @property
    def norm(self) -> float:
        return math.sqrt(self.squares)


def find_changes(finetuned: Mapping[str, TensorEntry], base: Mapping[str, TensorEntry], files: Files) -> list[Change]:
    """The tensors that differ, in the base's order. Both hold the same names and shapes.

    Raises CheckpointError listing NaN and Inf where something differs, integers or booleans that do, and what changes by
    more or less than can be squared in float64.
    """
    problems, found = [], []
    for name, entry in base.items():
        other = finetuned[name]
        squares, finite, equal, moved = 0.0, True, True, False
        for raws in raw_blocks(other, entry, files):
            if same_bits(raws, other, entry):
                continue
            equal = False
            if entry.dtype.is_float:
                change, bad = subtract(raws, other, entry)
                moved |= bool(change.any())
                finite &= not bad
                with np.errstate(over="ignore", invalid="ignore"):
                    squares += float(change @ change)
        if not equal and not entry.dtype.is_float:
            problems.append(f"tensor {name!r} is {entry.dtype.name} and differs, which no adapter can say")
        elif not finite:
            where = " or ".join(", ".join(sorted(one.files)) for one in (other, entry))
            problems.append(f"tensor {name!r} differs and holds NaN or Inf in {where}")
        elif moved and not 0 < squares < math.inf:
            problems.append(
                f"tensor {name!r} changes by so {'much' if squares else 'little'} that float64 can't hold its square"
            )
        elif moved:
            found.append(Change(other, entry, squares))
    if problems:
        raise CheckpointError(problems)
    return found


def read_change(change: Change, files: Files) -> np.ndarray:
    """Fine-tuned minus base, float64, of the tensor's shape; exact where both are stored in 16 bits."""
    delta = np.zeros(math.prod(change.shape))
    start = 0
    for raws in raw_blocks(change.finetuned, change.base, files):
        if not same_bits(raws, change.finetuned, change.base):
            delta[start : start + len(raws[0])] = subtract(raws, change.finetuned, change.base)[0]
        start += len(raws[0])
    return delta.reshape(change.shape)
