"""Test that transformers opens merged models of FP8 codes, and that its own quantiser makes no better ones.

test_loaders.py says what this needs; of the libraries, only the environment of transformers. Without a GPU, transformers
turns the codes into bfloat16 numbers.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from paddle_merge import MergeConfig, merge
from tests.support import libraries
from tests.support.libraries import VARIABLES

PYTHON = os.environ.get(VARIABLES["transformers"])
pytestmark = [
    pytest.mark.loaders,
    pytest.mark.skipif(not PYTHON, reason=f"no interpreter is named by {VARIABLES['transformers']}"),
]
MODELS = {"qwen3": 14, "qwen3_moe": 32, "deepseek_v3": 40}  # and how many weights become codes


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("encoded")
    libraries.run({"transformers": ("encoded.py", "save", str(folder))})
    for name in MODELS:
        models = [str(folder / f"{name}-{which}") for which in "ab"]
        for out_dtype, to in (("fp8_block", "fp8"), ("bfloat16", "plain")):
            config = MergeConfig(model_path_list=models, output_path=str(folder / f"{name}-{to}"), out_dtype=out_dtype)
            merge(config, progress=False)
    models = [str(folder / f"qwen3-{which}") for which in "ab"]
    config = MergeConfig(model_path_list=models, output_path=str(folder / "qwen3-rows"), out_dtype="fp8_channel")
    merge(config, progress=False)
    libraries.run({"transformers": ("encoded.py", "load", str(folder))})
    return folder


@pytest.mark.parametrize("name", MODELS)
def test_it_computes_what_the_plain_model_does(folder: Path, name: str) -> None:
    """But for the rounding to 8 bits, 2.6 % of each weight, which makes 5 to 7 % of these random models' logits."""
    found = json.loads((folder / f"{name}.json").read_text())
    assert found["weights"] == MODELS[name]
    assert 0.01 < found["apart"] < 0.1


@pytest.mark.parametrize("name", MODELS)
def test_transformers_quantiser_gives_the_same_codes(folder: Path, name: str) -> None:
    """And scales that differ in the last place at most, because it rounds 448 / largest, and then its reciprocal."""
    found = json.loads((folder / f"{name}.json").read_text())
    assert found["other codes"] == 0
    assert found["our error"] == pytest.approx(found["their error"], rel=1e-6)


def test_compressed_tensors_opens_rows_with_a_scale_each(folder: Path) -> None:
    """It rounds activations to 8 bits, too."""
    assert 0.01 < json.loads((folder / "rows.json").read_text()) < 0.12
