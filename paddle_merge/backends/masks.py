"""Random masks without a random state: whether an element is kept is a function of (seed, tensor, model, element index).

So a mask does not depend on the number of workers, on the size of a block, or on what was merged before. The generator is
a counter put through two rounds of "lowbias32" (Wellons' hash prospector), each round keyed: an integer hash that passes
the usual tests of bit balance, neighbour and cross-stream correlation and costs a third of a nanosecond per element.
"""

from __future__ import annotations

from hashlib import blake2b
from typing import Any

import numpy as np

Key = tuple[int, int]
FINEST = 2.0**-32  # the smallest probability of keeping an element, but 0


def mask_key(seed: int, model: int, tensor: str) -> Key:
    """The two 32-bit keys of one (seed, model, tensor) stream; `model` is its position in model_path_list, from 0."""
    digest = blake2b(f"{seed}\0{model}\0{tensor}".encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest[:4], "little"), int.from_bytes(digest[4:], "little")


def block_key(key: Key, start: int) -> Key:
    """The keys for a block that begins at flat element index `start` < 2**64: the high half of the index folds into k1.

    A block must not cross a multiple of 2**32 elements; blocks of a power-of-two size never do.
    """
    k0, k1 = key
    return (k0 + start) & 0xFFFFFFFF, k1 ^ (start >> 32)


def keep_limit(probability: Any) -> Any:
    """The largest hash that is still kept: round(p * 2**32) - 1, for p in (0, 1]. Scalars and arrays, as uint32."""
    count = np.clip(np.rint(np.asarray(probability, np.float64) * 2.0**32), 1.0, 2.0**32)
    return (count - 1.0).astype(np.uint32)


def hash_block(key: Key, start: int, size: int) -> np.ndarray:
    """(size,) uint32: the hash of elements start .. start+size. The plain reading of what kernels.dare does in registers."""
    k0, k1 = (np.uint32(word) for word in block_key(key, start))
    x: np.ndarray = np.arange(size, dtype=np.uint32) + k0
    x ^= x >> np.uint32(16)
    x *= np.uint32(0x7FEB352D)
    x ^= x >> np.uint32(15)
    x *= np.uint32(0x846CA68B)
    x ^= x >> np.uint32(16)
    x ^= k1
    x ^= x >> np.uint32(16)
    x *= np.uint32(0x21F0AAAD)
    x ^= x >> np.uint32(15)
    x *= np.uint32(0xD35A2D97)
    x ^= x >> np.uint32(15)
    return x
