"""How much memory a worker may use for what it keeps of one tensor."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class MemoryBudget:
    """How much of the host's memory one worker takes for what can also be done in less. No byte of a result depends on it.

    block: elements of each model that are worked on together on the CPU, where all rows stay in its second-level cache; a
        power of two, at least kernels.bits.CHUNK. device_block: the most elements of one on a device; larger ones copy no
        faster.
    resident: a tensor that is measured is read once and kept, if it has up to so many bytes, all sources together.
    panel: bytes of each scattered source that are read together.
    selecting: bytes of the values that are searched for a quantile: those of as many models at a time as fit, one at least.
    """

    block: int = 1 << 16
    device_block: int = 1 << 26
    resident: int = 64 << 20
    panel: int = 16 << 20
    selecting: int = 64 << 20


DEFAULT_BUDGET = MemoryBudget()
