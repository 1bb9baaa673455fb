"""Compute fingerprints of tensors: 128-bit checksums of their stored bytes, taken while the bytes are read or written.

A tensor's fingerprint is the sum, modulo 2^128, of the XXH3 hashes (128 bits) of its blocks of BLOCK elements (fewer of a
tensor of scales, see plan/scales.py), each seeded with the block's number. So workers can compute those of pieces in any
order, and the pieces' fingerprints are added. It detects damage, not forgery: XXH3 is not a cryptographic hash.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import xxhash

BLOCK = 1 << 16  # elements; pieces of a tensor start at multiples of it
_MODULUS = 1 << 128


def of_elements(raw: np.ndarray, start: int) -> str:
    """Return the fingerprint of elements of shape (n,), C-contiguous, from index `start` on, a multiple of BLOCK."""
    if 0 < len(raw) < BLOCK and start % BLOCK == 0:  # as of most tensors of models that have very many
        return xxhash.xxh3_128_hexdigest(raw.data, start // BLOCK)
    found = Fingerprint(start)
    found.add(raw, start)
    return found.hexdigest()


class Fingerprint:
    """Compute the fingerprint of a tensor's elements from index `start` on, which is a multiple of `block`.

    block: how many elements are hashed together. stop: the index behind the last element that was added.
    """

    def __init__(self, start: int = 0, block: int = BLOCK):
        if start % block:
            raise ValueError(f"element {start} doesn't begin a block of {block}")
        self.stop, self._size = start, block
        self._sum = 0
        self._block: Any = None  # the hash of the last block, while it is incomplete

    def add(self, raw: np.ndarray, start: int) -> None:
        """Add elements of shape (n,), C-contiguous, from index `start` on.

        Ignores elements that are not the next ones: a merge that needs several passes reads elements more than once, and
        reads them in order at least once.
        """
        if start != self.stop:
            return
        block, view, size = self._size, raw.data, len(raw)
        self.stop += size
        while size:
            seed, at = divmod(start, block)
            count = min(block - at, size)
            part = view[:count]
            if count == block:
                self._sum += xxhash.xxh3_128_intdigest(part, seed)
            elif at == 0:
                self._block = xxhash.xxh3_128(part, seed)
            else:
                self._block.update(part)
                if at + count == block:
                    self._sum, self._block = self._sum + self._block.intdigest(), None
            view, start, size = view[count:], start + count, size - count

    def hexdigest(self) -> str:
        """Return the fingerprint as 32 hexadecimal digits."""
        if self._block is not None and not self._sum:
            return str(self._block.hexdigest())
        rest = self._block.intdigest() if self._block is not None else 0
        return f"{(self._sum + rest) % _MODULUS:032x}"


def sum_of(fingerprints: Iterable[str]) -> str:
    """Return the fingerprint of a tensor, given the fingerprints of its pieces."""
    return f"{sum(int(one, 16) for one in fingerprints) % _MODULUS:032x}"


def of_file(path: str, offset: int, itemsize: int, start: int, stop: int, block: int = BLOCK) -> str:
    """Return the fingerprint of the elements start..stop of a tensor in a file.

    offset: byte offset of the tensor. itemsize: bytes per element. block: as of Fingerprint. Raises OSError, or EOFError if
    the file ends too early.
    """
    found = Fingerprint(start, block)
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
