"""Test that views of quantised tensors take their scales along, wherever blocks begin and end."""

from __future__ import annotations

import contextlib
import math
from itertools import pairwise
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paddle_merge.checkpoints.files import Files
from paddle_merge.checkpoints.scaled import Grid, ScaledEntry
from paddle_merge.checkpoints.tensors import StoredEntry, TensorEntry
from paddle_merge.checkpoints.views import every, join, nth, select, stack, transpose
from paddle_merge.dtypes import BFLOAT16, FLOAT8_E4M3FN, FLOAT32, DType
from paddle_merge.errors import MalformedError
from paddle_merge.run.sources import reader
from tests.support.quantised import expanded, random_codes


def stored(folder: Path, name: str, x: np.ndarray, dtype: DType) -> StoredEntry:
    file = folder / f"{name}.bin"
    file.write_bytes(x.tobytes())
    return StoredEntry(name, dtype, x.shape, str(file), 0)


def scaled(
    folder: Path, name: str, shape: tuple[int, ...], block: tuple[int, ...], rng: np.random.Generator
) -> tuple[ScaledEntry, np.ndarray]:
    """Return a tensor of random codes and scales, with zero points, and the numbers that it stands for."""
    codes = random_codes(shape, rng)
    grid = tuple(-(-size // each) for size, each in zip(shape, block, strict=True))
    scales = rng.random(grid).astype(np.float32)
    zeros = rng.integers(-3, 4, grid).astype(np.float32)
    origin = (0,) * len(shape)
    held = Grid(
        origin,
        shape,
        stored(folder, f"{name}.scales", scales, FLOAT32),
        block,
        origin,
        stored(folder, f"{name}.zeros", zeros, FLOAT32),
    )
    entry = ScaledEntry(name, BFLOAT16, shape, stored(folder, f"{name}.codes", codes, FLOAT8_E4M3FN), (held,))
    shifted = codes.astype(np.float64) - expanded(zeros, block, shape)  # a float32, as codes have few digits
    return entry.renamed(name), (shifted.astype(np.float32) * expanded(scales, block, shape)).astype(np.float32)


def read(entry: TensorEntry, start: int, stop: int) -> np.ndarray:
    out = np.empty(stop - start, np.float32)
    with contextlib.closing(Files()) as files:
        reader(entry, "float32", files).read(start, out)
    return out


def test_a_hand_sized_view(tmp_path: Path) -> None:
    """Columns 1 and 2 of rows 2 and 1, transposed, of a matrix with 2 x 2 blocks."""
    codes = np.array([[1, 2, 3, 4, 5], [6, 7, 8, 9, 10], [11, 12, 13, 14, 15]]).astype(ml_dtypes.float8_e4m3fn)
    scales = np.array([[1, 10, 100], [0.5, 2, 4]], np.float32)
    grid = Grid((0, 0), (3, 5), stored(tmp_path, "scales", scales, FLOAT32), (2, 2), (0, 0))
    entry = ScaledEntry("w", BFLOAT16, (3, 5), stored(tmp_path, "codes", codes, FLOAT8_E4M3FN), (grid,))
    whole = [1, 2, 30, 40, 500, 6, 7, 80, 90, 1000, 5.5, 6, 26, 28, 60]  # each row: two, two and one by a scale
    assert read(entry, 0, 15).tolist() == whole
    part = transpose(select(select(entry, 0, [(2, 3), (1, 2)], "v"), 1, [(1, 3)], "v"), "v")
    assert part.shape == (2, 2)
    assert read(part, 0, 4).tolist() == [6, 7, 26, 80]


@st.composite
def steps(draw: Any, shape: tuple[int, ...]) -> list[tuple[Any, ...]]:
    """Draw a few steps, each with its arguments, that make views of a tensor of this shape."""
    found: list[tuple[Any, ...]] = []
    for _ in range(draw(st.integers(0, 4))):
        kind = draw(st.sampled_from(["select", "every", "transpose", "join", "nth"]))
        axis = draw(st.integers(0, len(shape) - 1))
        size = shape[axis]
        if kind == "select":
            cuts = sorted(draw(st.lists(st.integers(0, size), min_size=2, max_size=4)))
            ranges = [(low, high) for low, high in pairwise(cuts) if low < high]
            if not ranges:
                continue
            ranges = list(draw(st.permutations(ranges)))
            found.append((kind, axis, ranges))
            shape = (*shape[:axis], sum(high - low for low, high in ranges), *shape[axis + 1 :])
        elif kind == "every":
            step = draw(st.integers(1, 4))
            first = draw(st.integers(0, min(step, size) - 1))
            found.append((kind, axis, first, step))
            shape = (*shape[:axis], len(range(first, size, step)), *shape[axis + 1 :])
        elif kind == "transpose" and len(shape) == 2:
            found.append((kind,))
            shape = shape[::-1]
        elif kind == "nth" and len(shape) == 3:
            found.append((kind, draw(st.integers(0, shape[0] - 1))))
            shape = shape[1:]
        elif kind == "join" and size > 1:
            found.append((kind, axis, draw(st.integers(1, size - 1))))
    return found


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_any_view(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    """Any chain of views gives the numbers that NumPy takes from the whole tensor, from any element on."""
    folder = tmp_path_factory.mktemp("views")
    shape = tuple(data.draw(st.lists(st.integers(1, 9), min_size=2, max_size=3), "shape"))
    block = tuple(data.draw(st.integers(1, 6), "block") for _ in shape)
    if len(shape) == 3:
        block = (data.draw(st.sampled_from([1, shape[0]])), *block[1:])
    entry, x = scaled(folder, "w", shape, block, np.random.default_rng(data.draw(st.integers(0, 9))))
    view: TensorEntry = entry
    for kind, *given_ in data.draw(steps(shape), "steps"):
        if kind == "select":
            axis, ranges = given_
            view = select(view, axis, ranges, "v")
            x = np.concatenate([x.take(range(low, high), axis) for low, high in ranges], axis)
        elif kind == "every":
            axis, first, step = given_
            try:
                view = every(view, axis, first, step, "v")
            except MalformedError:  # blocks of 3, every second index
                continue
            x = x.take(range(first, x.shape[axis], step), axis)
        elif kind == "transpose":
            view, x = transpose(view, "v"), x.T
        elif kind == "nth":
            view, x = nth(view, given_[0], "v"), x[given_[0]]
        else:  # exchange the first part and the rest
            axis, cut = given_
            size = x.shape[axis]
            parts = {"a": select(view, axis, [(0, cut)], "a"), "b": select(view, axis, [(cut, size)], "b")}
            view = join(parts, axis, {"a": [(size - cut, size)], "b": [(0, size - cut)]}, "v")
            x = np.concatenate([x.take(range(cut, size), axis), x.take(range(cut), axis)], axis)
    assert view.shape == x.shape
    start = data.draw(st.integers(0, x.size - 1), "start")
    stop = data.draw(st.integers(start, x.size), "stop")
    assert read(view, start, stop).tobytes() == np.ascontiguousarray(x).reshape(-1)[start:stop].tobytes()


def test_larger_than_a_step(tmp_path: Path) -> None:
    """Rows, columns and panels that are read in several steps, as stored and transposed."""
    entry, x = scaled(tmp_path, "w", (300, 517), (128, 128), np.random.default_rng(0))
    assert read(entry, 1, math.prod(x.shape)).tobytes() == x.reshape(-1)[1:].tobytes()
    turned = transpose(entry, "w")
    assert read(turned, 3, math.prod(x.shape)).tobytes() == np.ascontiguousarray(x.T).reshape(-1)[3:].tobytes()
    out = np.empty(x.size)
    with contextlib.closing(Files()) as files:
        reader(entry, "float64", files).read(0, out)
    assert (out == x.reshape(-1)).all()


def test_parts_that_are_not_quantised_alike(tmp_path: Path) -> None:
    one, _ = scaled(tmp_path, "a", (2, 3), (1, 3), np.random.default_rng(0))
    other = StoredEntry("b", BFLOAT16, (2, 3), "b", 0)
    with pytest.raises(MalformedError, match="only some of them are"):
        join({"a": one, "b": other}, 0, {"a": [(0, 2)], "b": [(2, 4)]}, "v")
    for parts in ([one, other], [one, scaled(tmp_path, "c", (2, 3), (2, 3), np.random.default_rng(0))[0]]):
        with pytest.raises(MalformedError, match="can't be stacked: the parts are quantised in different ways"):
            stack(parts, "v")


def test_stacks(tmp_path: Path) -> None:
    """Experts, each of which consists of two matrices whose blocks aren't whole."""
    rng = np.random.default_rng(0)
    made = [scaled(tmp_path, str(number), (7, 5), (2, 3), rng) for number in range(6)]
    halves = {"gate": [(0, 5)], "up": [(5, 10)]}
    pairs = [
        join({"gate": select(gate, 0, [(1, 6)], "g"), "up": select(up, 0, [(2, 7)], "u")}, 0, halves, "both")
        for (gate, _), (up, _) in zip(made[:3], made[3:], strict=True)
    ]
    both = np.stack([np.concatenate([gate[1:6], up[2:7]]) for (_, gate), (_, up) in zip(made[:3], made[3:], strict=True)])
    view = stack(pairs, "v")
    assert view.shape == (3, 10, 5)
    assert read(view, 7, both.size).tobytes() == both.reshape(-1)[7:].tobytes()
    assert read(nth(view, 1, "one"), 0, 50).tobytes() == both[1].tobytes()
