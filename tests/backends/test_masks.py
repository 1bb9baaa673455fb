"""Test the random masks: their exact bits, and their statistics."""

from __future__ import annotations

import math

import numpy as np
import pytest

from paddle_merge.backends.kernels import sparsifiers
from paddle_merge.backends.masks import block_key, hash_block, keep_limit, mask_key
from paddle_merge.backends.np_backend import NumpyBackend
from paddle_merge.methods.dare import dare
from tests.support import oracle

N = 1 << 20


def mask(seed: int, model: int, tensor: str, density: float, size: int = N) -> np.ndarray:
    """What the dare loop keeps."""
    ones = np.ones(size, np.float32)
    NumpyBackend("float32").apply_masked(
        dare, ones, mask_key(seed, model, tensor), np.array([keep_limit(density)]), np.ones(1, np.float32)
    )
    return ones.astype(bool)


def test_first_hashes() -> None:
    """By MATH.md's definition in Python's integers; pinned, because changing them changes everybody's merges."""
    expected = oracle.hashes(42, 1, "model.norm.weight", 4)
    assert expected == [2520749951, 2785882346, 4264718621, 3750160004]
    assert hash_block(mask_key(42, 1, "model.norm.weight"), 0, 4).tolist() == expected


def test_loop_and_plain_reading_agree_at_any_start() -> None:
    for start in (0, 1 << 16, 2**32 - (1 << 16), 2**32, 5 * 2**32 + (1 << 16)):
        key = block_key(mask_key(7, 0, "w"), start)
        expected = hash_block(mask_key(7, 0, "w"), start, 4096) <= keep_limit(0.5)
        ones = np.ones(4096, np.float32)
        sparsifiers.dare(ones, np.uint32(key[0]), np.uint32(key[1]), np.array([keep_limit(0.5)]), np.ones(1, np.float32))
        assert (ones.astype(bool) == expected).all()


def test_keep_limit_at_its_ends() -> None:
    assert keep_limit(1.0) == 2**32 - 1
    assert keep_limit(1e-12) == 0
    assert keep_limit(0.5) == 2**31 - 1
    assert mask(0, 0, "w", 1.0).all()


@pytest.mark.parametrize("density", [0.01, 0.1, 0.3, 0.5, 0.7, 0.9, 0.99])
def test_keep_rate(density: float) -> None:
    """Within 4 standard errors, for each of 20 streams; their mean within 4 of its own."""
    error = math.sqrt(density * (1 - density) / N)
    rates = np.array([mask(0, model, f"t{model}", density).mean() for model in range(20)])
    assert (np.abs(rates - density) < 4 * error).all()
    assert abs(rates.mean() - density) < 4 * error / math.sqrt(20)


def correlation(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.corrcoef(a, b)[0, 1])


@pytest.mark.parametrize("lag", [1, 2, 3, 64, 896, 1024, 4096, 11008, 65536])
def test_neighbours_are_independent(lag: int) -> None:
    kept = mask(0, 0, "w", 0.5)
    assert abs(correlation(kept[:-lag], kept[lag:])) < 4 / math.sqrt(N)


def test_streams_are_independent() -> None:
    """Other models, other tensors, other seeds, seeds one bit apart."""
    first = mask(0, 0, "a", 0.5)
    for other in (
        mask(0, 1, "a", 0.5),
        mask(0, 2, "a", 0.5),
        mask(0, 0, "b", 0.5),
        mask(1, 0, "a", 0.5),
        mask(2**31, 0, "a", 0.5),
    ):
        assert abs(correlation(first, other)) < 4 / math.sqrt(N)


def test_joint_outcomes_of_four_neighbours_are_even() -> None:
    """Chi-square of 16 outcomes, 15 degrees of freedom: 99.99 % below 44.3."""
    kept = mask(3, 0, "w", 0.5).reshape(-1, 4)
    counts = np.bincount(kept @ np.array([1, 2, 4, 8]), minlength=16)
    expected = len(kept) / 16
    assert ((counts - expected) ** 2 / expected).sum() < 44.3
