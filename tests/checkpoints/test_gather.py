"""Test that tensors in parts are read as NumPy's views of the same bytes are."""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from paddle_merge.checkpoints import gather as gathering
from paddle_merge.checkpoints.files import Files
from paddle_merge.checkpoints.tensors import Part, StoredEntry, files_of
from paddle_merge.dtypes import BFLOAT16, FLOAT32
from paddle_merge.errors import WorkError

View = tuple[tuple[int, ...], tuple[int, ...], int]


@st.composite
def views(draw: Any) -> View:
    """Draw the shape and strides of a view, such as a transposed matrix or every second column, and where it begins."""
    shape = tuple(draw(st.lists(st.integers(1, 5), max_size=4)))
    order, strides, step = draw(st.permutations(range(len(shape)))), [0] * len(shape), draw(st.sampled_from([1, 1, 2]))
    for axis in order:
        strides[axis] = step
        step *= shape[axis] + draw(st.sampled_from([0, 0, 0, 1]))
    return shape, tuple(strides), draw(st.integers(0, 9))


@given(view=views(), dtype=st.sampled_from([BFLOAT16, FLOAT32]), data=st.data())
def test_a_view_is_read_as_numpy_has_it(
    view: tuple[tuple[int, ...], tuple[int, ...], int],
    dtype: Any,
    data: st.DataObject,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    shape, strides, offset = view
    span = 1 + sum((count - 1) * step for count, step in zip(shape, strides, strict=True))
    content = np.random.default_rng(0).integers(0, 1 << 32, offset + span, np.uint32).astype(dtype.raw)
    file = tmp_path_factory.getbasetemp() / "view"
    file.write_bytes(content.tobytes())
    steps = [step * dtype.itemsize for step in strides]
    expected = np.ndarray(shape, dtype.raw, content, offset * dtype.itemsize, steps).reshape(-1)
    part = Part(str(file), offset * dtype.itemsize, (0,) * len(shape), shape, strides)
    entry = StoredEntry("t", dtype, shape, str(file), part.offset, (part,))
    size = math.prod(shape)
    start = data.draw(st.integers(0, size - 1))
    stop = data.draw(st.sampled_from([size, data.draw(st.integers(start + 1, size))]))
    files = Files()
    for first, last in itertools.product({0, start}, {stop}):
        found = np.zeros(last - first, dtype.raw)
        files.read(entry, first, found)
        assert found.tobytes() == expected[first:last].tobytes()
    whole = StoredEntry("u", dtype, (offset + span,), str(file), 0)
    together = np.zeros(3 * size + 2 * whole.shape[0], dtype.raw)
    files.read_all([entry, entry, whole, entry, whole], together)
    view, stored = expected.tobytes(), content.tobytes()
    assert together.tobytes() == view + view + stored + view + stored
    files.close()


def test_tensors_near_one_another_take_one_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, values = str(tmp_path / "values"), np.arange(9000, dtype=np.float32)
    Path(file).write_bytes(values.tobytes())
    part = Part(file, 80, (0, 0), (2, 3), (1, 2))
    entries = [StoredEntry("far", FLOAT32, (3,), file, 32000), StoredEntry("a", FLOAT32, (5,), file, 40)]
    entries += [StoredEntry("b", FLOAT32, (2, 3), file, 80, (part,)), StoredEntry("none", FLOAT32, (0,), file, 400)]
    files, reads, found = Files(), list[int](), np.empty(14, np.float32)
    fill = files._fill
    monkeypatch.setattr(files, "_fill", lambda *args: (reads.append(args[1]), fill(*args)))
    files.read_all(entries, found)
    assert found.tolist() == [8000, 8001, 8002, 10, 11, 12, 13, 14, 20, 22, 24, 21, 23, 25]
    assert reads == [40, 32000]
    Path(file).write_bytes(values.tobytes()[:100])
    with pytest.raises(WorkError, match="ends before tensor 'far' does"):
        files.read_all(entries, found)
    with pytest.raises(WorkError, match="ends before tensor 'b' does"):
        files.read_all(entries[1:], found[3:])


def test_a_small_transposed_matrix_takes_one_read_and_no_boxes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, matrix = tmp_path / "matrix", np.arange(12, dtype=np.float32).reshape(3, 4)
    file.write_bytes(matrix.tobytes())
    part = Part(str(file), 0, (0, 0), (4, 3), (1, 4))
    entry, found = StoredEntry("t", FLOAT32, (4, 3), str(file), 0, (part,)), np.empty(12, np.float32)
    monkeypatch.setattr(gathering, "boxes", None)
    Files().read(entry, 0, found)
    assert found.tolist() == [0, 4, 8, 1, 5, 9, 2, 6, 10, 3, 7, 11]
    file.write_bytes(matrix.tobytes()[:-1])
    with pytest.raises(WorkError, match="ends before tensor 't' does"):
        Files().read(entry, 0, found)


def test_the_files_of_tensors_are_those_of_all_their_parts() -> None:
    parts = tuple(Part(file, 0, (row, 0), (1, 2), (2, 1)) for row, file in enumerate(["b", "c"]))
    entries = [StoredEntry("t", FLOAT32, (2,), "a", 0), StoredEntry("u", FLOAT32, (2, 2), "b", 0, parts)]
    assert files_of(entries) == {"a", "b", "c"}
    assert files_of([]) == set()
