"""Fingerprints of tensors: what was read and written, in 128 bits, taken while the bytes pass by.

A tensor's fingerprint is the sum, modulo 2^128, of the XXH3 (128 bits) of each of its blocks of BLOCK elements, seeded with
the block's number. So pieces of a tensor can be taken apart, by any workers in any order, and added up. It finds damage, not
forgery: XXH3 is no cryptographic hash.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import xxhash

BLOCK = 1 << 16  # elements; pieces of a tensor start at multiples of it
_MODULUS = 1 << 128


class Fingerprint:
    """Of the elements of one tensor from index `start`, a multiple of BLOCK, on."""

    def __init__(self, start: int = 0):
        if start % BLOCK:
            raise ValueError(f"element {start} doesn't begin a block of {BLOCK}")
        self.stop = start  # the element after the last that was taken
        self._sum = 0
        self._block: Any = None  # the hash of the block that isn't complete

    def add(self, raw: np.ndarray, start: int) -> None:
        """Take (n,) elements from index `start` on, C-contiguous; does nothing if they aren't the next: they come again."""
        if start != self.stop:
            return
        while len(raw):
            if self._block is None:
                self._block = xxhash.xxh3_128(seed=self.stop // BLOCK)
            part = raw[: BLOCK - self.stop % BLOCK]
            self._block.update(part.view(np.uint8).data)
            self.stop += len(part)
            raw = raw[len(part) :]
            if self.stop % BLOCK == 0:
                self._sum, self._block = self._sum + self._block.intdigest(), None

    def hexdigest(self) -> str:
        """32 digits."""
        rest = self._block.intdigest() if self._block is not None else 0
        return f"{(self._sum + rest) % _MODULUS:032x}"


def added(fingerprints: Iterable[str]) -> str:
    """The fingerprint of a tensor from those of its pieces."""
    return f"{sum(int(one, 16) for one in fingerprints) % _MODULUS:032x}"


def of_file(path: str, offset: int, itemsize: int, start: int, stop: int) -> str:
    """Of the elements start..stop of a tensor whose first byte stands at `offset`. Raises OSError, or EOFError."""
    found = Fingerprint(start)
    with open(path, "rb", buffering=0) as file:
        file.seek(offset + start * itemsize)
        buffer = np.empty(BLOCK * itemsize * 8, np.uint8)
        while found.stop < stop:
            wanted = buffer.data[: (stop - found.stop) * itemsize]
            filled = 0
            while filled < len(wanted):
                count = file.readinto(wanted[filled:])
                if not count:
                    raise EOFError(path)
                filled += count
            found.add(buffer[:filled].view(f"V{itemsize}"), found.stop)
    return found.hexdigest()
