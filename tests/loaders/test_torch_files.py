"""Test torch's .bin files against torch itself: it writes them, and says what their tensors are.

test_loaders.py says what this needs; of the libraries, only the environment of transformers.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from paddle_merge import CheckpointError
from paddle_merge.checkpoints.files import Files
from paddle_merge.checkpoints.open import open_checkpoint
from tests.support import libraries
from tests.support.libraries import VARIABLES

PYTHON = os.environ.get(VARIABLES["transformers"])
pytestmark = [
    pytest.mark.loaders,
    pytest.mark.skipif(not PYTHON, reason=f"no interpreter is named by {VARIABLES['transformers']}"),
]
# What is said of each kind of tensor whose stored bytes aren't its elements.
REASONS = {
    "negative": "is a view with torch's negative or conjugate bit; save its resolve_conj().resolve_neg()",
    "conjugate": "is a view with torch's negative or conjugate bit; save its resolve_conj().resolve_neg()",
    "complex": "has dtype complex64, which isn't supported; save torch.view_as_real of it",
    "sparse": "is sparse: only the elements that aren't 0 are stored; save its to_dense()",
    "compressed": "is sparse: only the elements that aren't 0 are stored; save its to_dense()",
    "quantized": "is quantized: its elements are stored as integers; save its dequantize()",
    "by_channel": "is quantized: its elements are stored as integers; save its dequantize()",
    "meta": "was on the meta device: the file has no values for it",
    "distributed": "is a DTensor, of which every process has a part; save its full_tensor()",
    "other_float8": "has dtype float8_e4m3fnuz, which isn't supported; convert it to bfloat16 first",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("torch")
    libraries.run({"transformers": ("torch_files.py", str(folder))})
    return folder


def held(path: Path) -> dict[str, bytes]:
    """The bytes of a checkpoint's tensors."""
    reader, found = Files(), {}
    for name, entry in open_checkpoint(str(path)).tensors.items():
        out = np.empty(entry.nbytes // entry.dtype.itemsize, entry.dtype.raw)
        reader.read(entry, 0, out)
        found[name] = out.tobytes()
    reader.close()
    return found


def test_all_that_torch_loads_is_read_as_torch_does(folder: Path) -> None:
    files = sorted(folder.glob("*.npz"))
    assert len(files) == 13 * 5
    for file in files:
        with np.load(file) as expected:
            assert held(file.with_suffix("")) == {name: expected[name].tobytes() for name in expected}, file.name


@pytest.mark.parametrize("name", REASONS)
def test_tensors_that_are_not_stored_as_their_elements(folder: Path, name: str) -> None:
    path = folder / "refused" / name
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(str(path))
    assert caught.value.problems == [f"{path / 'pytorch_model.bin'}: tensor 'w' {REASONS[name]}"]
    if name != "meta":
        with np.load(folder / "remedied" / f"{name}.npz") as expected:
            assert held(folder / "remedied" / name) == {key: expected[key].tobytes() for key in expected}
