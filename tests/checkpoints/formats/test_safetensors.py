"""Test how headers of safetensors files are read: files that have the same one, and where tensors come from."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest

from paddle_merge import CheckpointError
from paddle_merge.checkpoints.open import open_checkpoint
from paddle_merge.checkpoints.tensors import stored
from paddle_merge.dtypes import DTYPES
from tests.support.checkpoints import write


def test_files_with_the_same_header_have_tensors_of_their_own(tmp_path: Path) -> None:
    """A header that was read before isn't parsed again; what belongs to the file is looked at in each."""
    folders = [write(tmp_path / name, {"x": np.full(6, k, np.float32), "y": np.zeros(2)}) for k, name in enumerate("abc")]
    a, b = (open_checkpoint(str(folder)) for folder in folders[:2])
    for one, folder in ((a, folders[0]), (b, folders[1])):
        assert list(one.tensors) == ["x", "y"]
        for name, entry in one.tensors.items():
            assert stored(entry).file.startswith(f"{folder}/")
            assert stored(entry).origin == (str(folder), name)
    assert a.tensors["x"].shape is b.tensors["x"].shape  # parsed once

    (file,) = folders[2].glob("*.safetensors")
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(CheckpointError, match=rf"{file}: is truncated"):
        open_checkpoint(str(folders[2]))


def test_each_dtype_is_one_object() -> None:
    for dtype in DTYPES:
        assert pickle.loads(pickle.dumps(dtype)) is dtype
