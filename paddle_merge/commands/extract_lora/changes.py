"""Find the tensors in which two checkpoints of one layout differ, block by block."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

import numpy as np

from ...checkpoints.files import Files
from ...checkpoints.tensors import TensorEntry
from ...errors import CheckpointError
from ...records import record
from ..pairs import TensorReader, same_bits, side_by_side


@record(frozen=True)
class Change:
    """A floating-point tensor that differs. squares: the sum of squares of its change."""

    finetuned: TensorEntry
    base: TensorEntry
    squares: float

    @property
    def name(self) -> str:
        """The tensor's name in the base model."""
        return self.base.name

    @property
    def shape(self) -> tuple[int, ...]:
        """The tensor's shape, the same in both models."""
        return self.base.shape

    @property
    def norm(self) -> float:
        """The Frobenius norm of the change."""
        return math.sqrt(self.squares)


def find_changes(finetuned: Mapping[str, TensorEntry], base: Mapping[str, TensorEntry], files: Files) -> list[Change]:
    """Return the tensors that differ as numbers, in the base's order. Both models have the same names and shapes.

    Raises CheckpointError listing tensors that differ and hold NaN or Inf, integers and booleans that differ, and changes
    whose sum of squares overflows or underflows float64.
    """
    problems, found = [], []
    for name, entry in base.items():
        other = finetuned[name]
        squares, finite, equal, changed = 0.0, True, True, False
        for _, change, good in _differing_blocks(other, entry, files):
            equal = False
            if change is not None:
                finite &= good
                changed |= bool(change.any())
                with np.errstate(over="ignore", invalid="ignore"):
                    squares += float(change @ change)
        if not equal and not entry.dtype.is_float:
            problems.append(f"tensor {name!r} is {entry.dtype.name} and differs, which an adapter can't express")
        elif not finite:
            where = " or ".join(", ".join(sorted(one.files)) for one in (other, entry))
            problems.append(f"tensor {name!r} differs and holds NaN or Inf in {where}")
        elif changed and not 0 < squares < math.inf:
            problems.append(
                f"tensor {name!r} changes by so {'much' if squares else 'little'} that the square doesn't fit into float64"
            )
        elif changed:
            found.append(Change(other, entry, squares))
    if problems:
        raise CheckpointError(problems)
    return found


def read_change(change: Change, files: Files) -> np.ndarray:
    """Return the fine-tuned tensor minus the base's: float64, in the tensor's shape; exact if both are stored in 16 bits."""
    delta = np.zeros(math.prod(change.shape))
    for start, block, _ in _differing_blocks(change.finetuned, change.base, files):
        assert block is not None
        delta[start : start + len(block)] = block
    return delta.reshape(change.shape)


def _differing_blocks(
    finetuned: TensorEntry, base: TensorEntry, files: Files
) -> Iterator[tuple[int, np.ndarray | None, bool]]:
    """Yield (start, change, finite) for the blocks that differ in their bits. Raises WorkError.

    change: fine-tuned minus base, [n] float64; None for integers and booleans. finite: whether both blocks are.
    """
    readers = TensorReader(finetuned, files), TensorReader(base, files)
    for start, _ in side_by_side(*readers, 0, math.prod(base.shape)):
        if same_bits(*readers):
            continue
        if not base.dtype.is_float:
            yield start, None, True
            continue
        a, b = (reader.numbers for reader in readers)
        with np.errstate(invalid="ignore", over="ignore"):
            change = np.subtract(a, b, dtype=np.float64)
        yield start, change, bool(np.isfinite(a).all() and np.isfinite(b).all())
