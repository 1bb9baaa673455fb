"""Say how much memory a worker may use for what it keeps of one tensor."""

from __future__ import annotations

from ..records import record

TOGETHER = 1 << 15  # elements of each model that small tensors have, at most, which are merged as one: few beside a block's
MOST_TOGETHER = 1 << 8  # of such tensors; for each of them there are objects of Python, too


@record(frozen=True)
class MemoryBudget:
    """How much of the host's memory one worker takes where it can also do with less. No byte of a result depends on it.

    block: how many elements of each model are computed together on the CPU, so that all rows stay in its second-level cache;
        a power of two, at least kernels.bits.CHUNK. device_block: the same on a device, at most; larger ones copy no faster.
    resident: the largest tensor, in bytes of all sources together, that is kept in memory if it is read more than once.
    panel: how many bytes are read together of each source whose elements are scattered.
    selecting: bytes of the values that are searched for a quantile. As many models as fit are searched at a time, at least
        one.
    """

    block: int = 1 << 16
    device_block: int = 1 << 26
    resident: int = 64 << 20
    panel: int = 16 << 20
    selecting: int = 64 << 20

    @property
    def together(self) -> int:
        """How many elements of each model small tensors have, at most, that are merged as one."""
        return min(TOGETHER, self.block)


DEFAULT_BUDGET = MemoryBudget()
