"""Test PEFT's combination types by hand; tests/loaders/test_merged_adapters.py compares them with PEFT."""

from __future__ import annotations

import math

import numpy as np
import pytest

from paddle_merge.commands.merge_lora.peft_types import PRUNING, TYPES, Combination, shared

ONE = np.array([[4.0, -3.0], [2.0, -1.0]], np.float32)
TWO = np.array([[-1.0, -2.0], [3.0, 4.0]], np.float32)


def combined(type: str, weights: tuple[float, float], **more: object) -> list[list[float]]:
    combination = Combination(type, **more)  # type: ignore[arg-type]
    result: list[list[float]] = combination.combine([ONE, TWO], weights, [0, 1], "x").tolist()
    return result


def test_linear() -> None:
    assert combined("linear", (0.5, 2.0)) == [[0.0, -5.5], [7.0, 7.5]]


def test_pruning_keeps_the_largest_half() -> None:
    """[4 -3; 0 0] and [0 0; 3 4]."""
    assert combined("magnitude_prune", (1.0, 10.0), density=0.5) == [[4.0, -3.0], [30.0, 40.0]]


def test_a_share_of_an_element_is_none() -> None:
    """int(0.7 * 4) = 2; int(0.2 * 4) = 0."""
    assert combined("magnitude_prune", (1.0, 10.0), density=0.7) == [[4.0, -3.0], [30.0, 40.0]]
    assert combined("magnitude_prune", (1.0, 10.0), density=0.2) == [[0.0, 0.0], [0.0, 0.0]]


def test_of_equal_elements_the_first_are_kept() -> None:
    array = np.array([1.0, -2.0, 1.0, 1.0], np.float32)
    assert Combination("magnitude_prune", 0.5).combine([array], [1.0], [0], "x").tolist() == [1.0, -2.0, 0.0, 0.0]


def test_signs_are_elected_before_weights_and_the_agreeing_averaged() -> None:
    """Sums 3 -5 5 3 elect + - + +: [4; (-3 * 1 - 2 * 10) / 2; (2 + 30) / 2; 40], although 10 * -1 outweighs 4."""
    assert combined("ties", (1.0, 10.0), density=1.0) == [[4.0, -11.5], [16.0, 40.0]]


def test_signs_by_frequency() -> None:
    """Where one is + and one is -, the count is 0, and + is elected, as for a sum of 0: where 4 and -5 would elect -."""
    arrays = [np.array([4.0, 1.0, 0.0], np.float32), np.array([-5.0, -1.0, 0.0], np.float32)]
    for method, expected in (("total", [-5.0, 1.0, 0.0]), ("frequency", [4.0, 1.0, 0.0])):
        combination = Combination("ties", 1.0, method)
        assert combination.combine(arrays, [1.0, 1.0], [0, 1], "x").tolist() == expected


@pytest.mark.parametrize("scale", [2.0, -2.0, 0.0])
def test_the_scale_is_shared_with_its_sign_on_a(scale: float) -> None:
    a, b = shared(scale)
    assert a * b == pytest.approx(scale)
    assert b == math.sqrt(abs(scale)) >= 0


@pytest.mark.parametrize("density", [0.1, 0.5, 0.9])
def test_random_masks_keep_the_share_and_the_mean(density: float) -> None:
    """Of 100 000 ones: the share within 5 standard deviations, each kept one 1 / density."""
    ones, size = np.ones(100_000, np.float32), 100_000
    got = Combination("dare_linear", density, seed=3).combine([ones], [1.0], [0], "x")
    kept = int(np.count_nonzero(got))
    assert abs(kept - density * size) < 5 * math.sqrt(density * (1 - density) * size)
    assert set(got.tolist()) == {0.0, float(np.float32(1) / np.float32(density))}


def test_masks_are_of_seed_adapter_and_tensor() -> None:
    array = np.ones(200, np.float32)

    def mask(seed: int, adapter: int, name: str) -> bytes:
        return Combination("dare_ties", 0.5, seed=seed).combine([array], [1.0], [adapter], name).tobytes()

    assert mask(0, 0, "x") == mask(0, 0, "x")
    assert len({mask(0, 0, "x"), mask(1, 0, "x"), mask(0, 1, "x"), mask(0, 0, "y")}) == 4


def test_large_tensors_are_masked_as_a_whole() -> None:
    """Element k has the same mask in a tensor of any size: here beyond the first block that is hashed."""
    long = np.ones((1 << 20) + 77, np.float32)
    got = Combination("dare_linear", 0.5).combine([long], [1.0], [0], "x")
    short = Combination("dare_linear", 0.5).combine([long[: 1 << 10]], [1.0], [0], "x")
    np.testing.assert_array_equal(got[: 1 << 10], short)
    assert not np.array_equal(got[-77:], got[:77])
    assert 0 < np.count_nonzero(got[-77:]) < 77


def test_names_are_those_of_peft() -> None:
    on_matrices = {"linear", "ties", "dare_linear", "dare_ties", "magnitude_prune"}
    on_changes = {"svd", *(f"{name}_svd" for name in on_matrices - {"linear"})}
    assert set(TYPES) == on_matrices | on_changes | {"cat"}
    assert set(PRUNING) == (on_matrices | on_changes) - {"linear", "svd"}
