"""Test mixtures of experts with transformers: a model and itself with experts and neurons in another order, which computes
the same, are matched; their average is the model. Experts are stored split and stacked, and load from both.

test_loaders.py says what this needs; of the libraries, only the environment of transformers.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from paddle_merge import MergeConfig, merge
from tests.support import libraries
from tests.support.checkpoints import read
from tests.support.libraries import VARIABLES

PYTHON = os.environ.get(VARIABLES["transformers"])
pytestmark = [
    pytest.mark.loaders,
    pytest.mark.skipif(not PYTHON, reason=f"no interpreter is named by {VARIABLES['transformers']}"),
]
FILES_SPLIT = ("mixtral", "qwen3_moe", "deepseek_v3")
FAMILIES = (*FILES_SPLIT, "granitemoe", "gpt_oss", "llama4_text")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("experts")
    libraries.run({"transformers": ("experts.py", "save", str(folder))})

    def merged(first: str, second: str, out: str, **settings: str) -> None:
        paths = [str(folder / first), str(folder / second)]
        merge(MergeConfig(model_path_list=paths, output_path=str(folder / out), **settings), progress=False)  # type: ignore[arg-type]

    for name in FAMILIES:
        merged(name, f"{name}-scrambled", f"{name}-out", expert_alignment="match")
    for name in FILES_SPLIT:
        merged(name, f"{name}-scrambled-memory", f"{name}-out-mixed", expert_alignment="match")
        merged(name, name, f"{name}-out-stacked", expert_layout="stacked")
        merged(f"{name}-memory", f"{name}-memory", f"{name}-out-split", expert_layout="split")
    libraries.run({"transformers": ("experts.py", "load", str(folder))})
    return folder


def logits(path: Path) -> list[np.ndarray]:
    with np.load(path) as file:
        return [file[name] for name in file.files]


@pytest.mark.parametrize("name", FAMILIES)
def test_scrambled_and_matched(folder: Path, name: str) -> None:
    """The weights bit for bit, and what transformers computes with them."""
    plain, scrambled = logits(folder / f"{name}.npz")
    np.testing.assert_allclose(scrambled, plain, rtol=0, atol=1e-5)
    before, other, after = (read(folder / f"{name}{ending}") for ending in ("", "-scrambled", "-out"))
    assert before.keys() == after.keys()
    assert any((before[key] != other[key]).any() for key in before)
    for key, values in before.items():
        np.testing.assert_array_equal(after[key], values, err_msg=key)
    np.testing.assert_allclose(logits(folder / f"{name}-out.npz")[0], plain, rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", FILES_SPLIT)
def test_split_and_stacked(folder: Path, name: str) -> None:
    """Split in one model and stacked in the other; made stacks, and made split, both to the byte."""
    plain, _ = logits(folder / f"{name}.npz")
    for out in ("mixed", "stacked", "split"):
        np.testing.assert_allclose(logits(folder / f"{name}-out-{out}.npz")[0], plain, rtol=0, atol=1e-6, err_msg=out)
    files, memory = read(folder / name), read(folder / f"{name}-memory")
    for out in ("mixed", "split"):
        found = read(folder / f"{name}-out-{out}")
        assert found.keys() == files.keys()
        assert all((found[key] == files[key]).all() for key in files)
    stacks = {key: values for key, values in read(folder / f"{name}-out-stacked").items() if ".experts." in key}
    theirs = {key: values for key, values in memory.items() if ".experts." in key}
    assert {key.replace("block_sparse_moe", "mlp") for key in stacks} == theirs.keys()
    for key, values in stacks.items():
        np.testing.assert_array_equal(values, theirs[key.replace("block_sparse_moe", "mlp")])
