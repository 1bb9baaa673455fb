"""Test merges of models of which one stores every copy of tied weights, and one only what transformers saves: transformers
loads the result, and it computes what the average of the two models computes.

test_loaders.py says what this needs; of the libraries, only the environment of transformers.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from paddle_merge import MergeConfig, merge
from paddle_merge.checkpoints.open import open_checkpoint
from tests.support import libraries
from tests.support.libraries import VARIABLES

PYTHON = os.environ.get(VARIABLES["transformers"])
pytestmark = [
    pytest.mark.loaders,
    pytest.mark.skipif(not PYTHON, reason=f"no interpreter is named by {VARIABLES['transformers']}"),
]
MODELS = ("t5", "flan-t5", "bart", "bert", "gpt2")


def script(*arguments: str) -> None:
    libraries.run({"transformers": ("tied_copies.py", *arguments)})


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("copies")
    script("save", str(folder))
    for name in MODELS:
        few, everything = str(folder / f"{name}-few"), str(folder / f"{name}-all")
        assert len(open_checkpoint(few).tensors) < len(open_checkpoint(everything).tensors), name
        merge(MergeConfig(model_path_list=[few, everything], output_path=str(folder / f"{name}-out")), progress=False)
    script("load", str(folder))
    return folder


@pytest.mark.parametrize("name", MODELS)
def test_the_average_is_that_of_the_models(folder: Path, name: str) -> None:
    with np.load(folder / f"{name}-expected.npz") as expected, np.load(folder / f"{name}-out.npz") as found:
        np.testing.assert_allclose(found["arr_0"], expected["arr_0"], rtol=0, atol=1e-5)
