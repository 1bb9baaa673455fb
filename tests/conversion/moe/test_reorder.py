"""Test that a model with its experts and neurons in another order computes the same, and that it is read in that order."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paddle_merge.checkpoints.files import Files
from paddle_merge.checkpoints.open import open_checkpoint
from paddle_merge.checkpoints.tensors import StoredEntry
from paddle_merge.checkpoints.views import transpose
from paddle_merge.conversion.moe import reordered as reading
from paddle_merge.conversion.moe.entry import ReorderedEntry
from paddle_merge.conversion.moe.layers import moe_layers
from paddle_merge.conversion.moe.matching import LayerOrder
from paddle_merge.conversion.moe.reorder import reordered
from paddle_merge.conversion.moe.reordered import ReorderedReader
from paddle_merge.dtypes import FLOAT64
from paddle_merge.run.sources import reader
from tests.support.checkpoints import write
from tests.support.experts import (
    EXPERTS,
    FAMILIES,
    HIDDEN,
    LAYERS,
    NEURONS,
    computed,
    config,
    layer,
    loaded,
    shuffled,
    stored,
)  # fmt: skip


@pytest.mark.parametrize("family", FAMILIES)
def test_the_function_is_unchanged(tmp_path: Path, family: str) -> None:
    """The layers' outputs stay, to the rounding of sums in another order; and the tensors are those in that order."""
    random = np.random.default_rng(1)
    layers = [layer(random) for _ in range(LAYERS)]
    one = open_checkpoint(str(write(tmp_path / "model", stored(layers, family), "float64", config=config(family))))
    found = moe_layers(one.tensors, config(family), "hf")
    orders = [
        LayerOrder(random.permutation(EXPERTS), np.array([random.permutation(NEURONS) for _ in range(EXPERTS)]))
        for _ in range(LAYERS)
    ]
    other, files = reordered(one, found, dict(zip(found, orders, strict=True))), Files()
    state = {}
    for name, entry in other.tensors.items():
        out = np.empty(entry.shape)
        reader(entry, "float64", files).read(0, out.reshape(-1))
        state[name] = out
    files.close()
    expected = stored(
        [shuffled(its, order.experts, order.neurons) for its, order in zip(layers, orders, strict=True)], family
    )
    assert state.keys() == expected.keys()
    for name, values in expected.items():
        np.testing.assert_array_equal(state[name], values, err_msg=name)
    tokens = random.normal(size=(7, HIDDEN))
    for before, after in zip(layers, loaded(state, family), strict=True):
        np.testing.assert_allclose(computed(after, tokens, family), computed(before, tokens, family), rtol=0, atol=1e-12)


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_any_range_is_read_in_the_new_order(data: st.DataObject) -> None:
    """Against indexing in NumPy; for matrices that are held and that are not, in steps of few elements."""
    count, rows, columns = (data.draw(st.integers(1, 5)) for _ in range(3))
    axis, seed = data.draw(st.sampled_from([1, 2])), data.draw(st.integers(0, 1000))
    random = np.random.default_rng(seed)
    values = np.arange(float(count * rows * columns)).reshape(count, rows, columns)
    matrices = random.permutation(count).astype(np.int32)
    slices = np.array([random.permutation((rows, columns)[axis - 1]) for _ in range(count)], np.int32)
    expected = values[matrices]
    expected = np.stack([one[its] if axis == 1 else one[:, its] for one, its in zip(expected, slices, strict=True)])
    like = StoredEntry("x", FLOAT64, values.shape, "", 0)
    entry = ReorderedEntry("x", FLOAT64, values.shape, like, values.shape, matrices.tobytes(), slices.tobytes(), axis)

    class Memory:
        dtype = FLOAT64

        def read(self, start: int, out: np.ndarray) -> None:
            out[:] = values.reshape(-1)[start : start + out.size]

    step, reading.STEP = reading.STEP, data.draw(st.integers(1, 9))
    try:
        source = ReorderedReader(entry, lambda _: Memory())
        source._holds = source._holds and data.draw(st.booleans())
        start = data.draw(st.integers(0, values.size - 1))
        out = np.empty(data.draw(st.integers(1, values.size - start)))
        source.read(start, out)
    finally:
        reading.STEP = step
    np.testing.assert_array_equal(out, expected.reshape(-1)[start : start + out.size])


def test_a_transposed_matrix_is_held(tmp_path: Path) -> None:
    """Its rows are scattered in the file; a row at a time would read all of it for each."""
    large = StoredEntry("x", FLOAT64, (4096, 4096), "file", 0)
    index = np.arange(4096, dtype=np.int32).tobytes()
    for entry, held in ((large, False), (transpose(large, "x"), True)):
        assert ReorderedEntry("x", FLOAT64, entry.shape, entry, (1, 4096, 4096), b"", index, 1).holds is held
