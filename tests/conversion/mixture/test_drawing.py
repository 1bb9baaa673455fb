"""Test tensors of mixtures that are drawn at random, and experts that are changed when they are read."""

from __future__ import annotations

import math

import numpy as np
import pytest

from paddle_merge.checkpoints.tensors import TensorEntry
from paddle_merge.conversion.mixture.drawing import DrawnReader, ExpertReader, dropped_neurons, normal, uniform
from paddle_merge.conversion.mixture.entry import STEP, DrawnEntry, Dropped, ExpertEntry
from paddle_merge.dtypes import FLOAT32
from tests.support.oracle import hashes


def test_numbers_are_functions_of_seed_tensor_and_index() -> None:
    """By Python's own arithmetic: uniform is (hash + 1/2) / 2**32, normal is Box and Muller's transform of two of them."""
    u, v = ([(number + 0.5) / 2**32 for number in hashes(5, stream, "w", 20)] for stream in (2, 3))
    np.testing.assert_allclose(uniform(5, 2, "w", 0, 20), u, rtol=1e-15)
    expected = [math.sqrt(-2 * math.log(a)) * math.cos(2 * math.pi * b) for a, b in zip(u, v, strict=True)]
    np.testing.assert_allclose(normal(5, 1, "w", 0, 20), expected, rtol=1e-12)


def test_normal_numbers_are_normal() -> None:
    drawn = normal(0, 0, "w", 0, 1 << 16)
    assert abs(drawn.mean()) < 4 / 256  # standard errors of mean and variance: 1/256 and sqrt(2)/256
    assert abs(drawn.var() - 1) < 4 * 1.42 / 256
    assert abs((drawn**4).mean() - 3) < 4 * math.sqrt(96) / 256
    assert abs((drawn * normal(0, 0, "v", 0, 1 << 16)).mean()) < 4 / 256


class Stored:
    """A reader of a matrix in memory."""

    dtype = FLOAT32

    def __init__(self, values: np.ndarray):
        self._values = values.reshape(-1)

    def read(self, start: int, out: np.ndarray) -> None:
        out[:] = self._values[start : start + out.size]


def read(entry: ExpertEntry, values: np.ndarray, pieces: list[int] | None = None) -> np.ndarray:
    """Return the elements of an expert whose dense matrix has these values, read in pieces of these sizes."""
    reader = ExpertReader(entry, "float64", lambda *_: Stored(values))
    out = np.empty(values.size)
    start = 0
    for size in pieces or [values.size]:
        reader.read(start, out[start : start + size])
        start += size
    return out.reshape(values.shape)


def expert(shape: tuple[int, ...], key: str = "w", **changes: object) -> ExpertEntry:
    source = TensorEntry("source", FLOAT32, shape)
    return ExpertEntry(key, FLOAT32, shape, source, key, 7, **changes)  # type: ignore[arg-type]


def test_noise_then_scale() -> None:
    values = np.random.default_rng(0).normal(size=(5, 6)).astype(np.float32)
    found = read(expert((5, 6), noise=0.1, scale=0.5), values)
    np.testing.assert_allclose(found, (values + 0.1 * normal(7, 1, "w", 0, 30).reshape(5, 6)) * 0.5, rtol=1e-12)
    assert (read(expert((5, 6), scale=0.5), values) == values * 0.5).all()


@pytest.mark.parametrize("axis", [0, 1])
def test_the_same_neurons_are_drawn_anew_in_all_matrices(axis: int) -> None:
    """Half of 9 neurons are 4, the lowest hashes'; they get the mean and deviation of what they replace."""
    lowest = np.argsort(hashes(7, 4, "layers.0.0", 9), kind="stable")[:4]
    chosen = np.isin(np.arange(9), lowest)
    dropped = Dropped(axis, 0.5, "layers.0.0")
    assert (dropped_neurons(dropped, 7, 9) == chosen).all()
    shape = (9, 4) if axis == 0 else (4, 9)
    values = np.random.default_rng(1).normal(3, 2, shape).astype(np.float32)
    found = read(expert(shape, dropped=dropped), values)
    kept = np.take(values, np.flatnonzero(~chosen), axis)
    assert (np.take(found, np.flatnonzero(~chosen), axis) == kept).all()
    replaced = np.take(values, np.flatnonzero(chosen), axis).astype(np.float64)
    drawn = np.take(normal(7, 0, "w", 0, 36).reshape(shape), np.flatnonzero(chosen), axis)
    expected = replaced.mean() + replaced.std(ddof=1) * drawn
    np.testing.assert_allclose(np.take(found, np.flatnonzero(chosen), axis), expected, rtol=1e-6)
    others = dropped_neurons(Dropped(axis, 0.5, "layers.0.1"), 7, 9)
    assert (others != chosen).any()  # of another expert


def test_elements_do_not_depend_on_what_is_read_together() -> None:
    shape = (300, 500)
    values = np.random.default_rng(2).normal(size=shape).astype(np.float32)
    entry = expert(shape, noise=0.3, scale=0.9, dropped=Dropped(1, 0.4, "k"))
    pieces = [1, STEP - 7, 12345, 77, 150000 - 1 - (STEP - 7) - 12345 - 77]
    assert (read(entry, values) == read(entry, values, pieces)).all()


def test_tensors_that_nothing_is_read_for() -> None:
    def drawn(kind: str, **more: object) -> np.ndarray:
        out = np.empty(6)
        DrawnReader(DrawnEntry("r", FLOAT32, (2, 3), kind, "r", 7, **more), "float64").read(0, out)  # type: ignore[arg-type]
        return out

    np.testing.assert_allclose(drawn("normal", width=0.02), 0.02 * normal(7, 0, "r", 0, 6))
    np.testing.assert_allclose(drawn("uniform", width=0.25), 0.25 * (2 * uniform(7, 0, "r", 0, 6) - 1))
    assert (drawn("zeros") == 0).all()
    assert (drawn("values", values=np.arange(6, dtype=np.float32).tobytes()) == np.arange(6)).all()
    with pytest.raises(RuntimeError, match="the values of 'r' were not computed"):
        drawn("values")
