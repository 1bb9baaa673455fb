"""Draw random masks without a random state: whether an element is kept is a function of (seed, tensor, model, index).

So a mask does not depend on the number of workers, on the size of a block, or on what was merged before. From the seed to a
mask: `mask_key` makes two numbers of seed, model and tensor name (TensorPlan.seed and masked_as, see plan/tensor_plan.py);
`block_key` moves them to the first element of a block; the hash of an element's index under the key is compared with the
limit that `keep_limit` makes of a probability. The rules that draw are in methods/dare.py and methods/della.py.

The hash is a counter put through two keyed rounds of "lowbias32" (Wellons' hash prospector), an integer hash that passes the
usual tests of bit balance, neighbour and cross-stream correlation and costs a third of a nanosecond per element.
"""

from __future__ import annotations

import functools
from hashlib import blake2b
from typing import Any

import numpy as np

Key = tuple[int, int]
FINEST = 2.0**-32  # the smallest probability of keeping an element, but 0


@functools.lru_cache(64)  # an analysis draws several masks of each tensor
def mask_key(seed: int, model: int, tensor: str) -> Key:
    """Return the two 32-bit keys of one (seed, model, tensor). model: its position among the models, from 0."""
    digest = blake2b(f"{seed}\0{model}\0{tensor}".encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest[:4], "little"), int.from_bytes(digest[4:], "little")


def block_key(key: Key, start: int) -> Key:
    """Return the keys of a block that begins at element `start` < 2**64; the second key takes the high 32 bits of the index.

    A block must not cross a multiple of 2**32 elements; blocks of a power-of-two size never do.
    """
    k0, k1 = key
    return (k0 + start) & 0xFFFFFFFF, k1 ^ (start >> 32)


def keep_limit(probability: Any) -> Any:
    """Return the largest hash that is kept with this probability, uint32: round(p * 2**32) - 1.

    probability: in (0, 1], a number or an array, of whose shape the result is.
    """
    count = np.rint(np.asarray(probability, np.float64) * 2.0**32)
    return (np.minimum(np.maximum(count, 1.0), 2.0**32) - 1.0).astype(np.uint32)  # np.clip is slow where there are few


def hash_block(key: Key, start: int, size: int) -> np.ndarray:
    """Return the hashes of elements start .. start + size, (size,) uint32, as the compiled loop in
    kernels/folds.py computes them."""
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
