"""Test quantised inputs against what compressed-tensors and transformers make of them, bit for bit.

test_loaders.py says what this needs; of the libraries, only the environment of transformers, with compressed-tensors in it.
"""

from __future__ import annotations

import os
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import safetensors

from paddle_merge import MergeConfig, merge
from tests.support import libraries
from tests.support.libraries import VARIABLES
from tests.support.quantised import blocks, random_codes, write_typed

PYTHON = os.environ.get(VARIABLES["transformers"])
pytestmark = [
    pytest.mark.loaders,
    pytest.mark.skipif(not PYTHON, reason=f"no interpreter is named by {VARIABLES['transformers']}"),
]
LLAMA = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_hidden_layers": 2,
    "vocab_size": 40,
    "tie_word_embeddings": False,
}


def average(model: Path, out: Path) -> dict[str, bytes]:
    """Merge a model with itself, which rounds its numbers to bfloat16; return the bytes of its tensors."""
    merge(MergeConfig(model_path_list=[str(model)] * 2, output_path=str(out), out_dtype="bfloat16"))
    return held(out / "model.safetensors")


def held(file: Path) -> dict[str, bytes]:
    return {name: bytes(info["data"]) for name, info in safetensors.deserialize(file.read_bytes())}


def test_all_formats_of_compressed_tensors(tmp_path: Path) -> None:
    libraries.run({"transformers": ("quantised.py", "write", str(tmp_path))})
    folders = [one for one in sorted(tmp_path.iterdir()) if one.is_dir()]
    assert len(folders) == 12
    for folder in folders:
        assert average(folder, tmp_path / "out" / folder.name) == held(tmp_path / f"{folder.name}.safetensors"), folder.name


def test_blocks_of_fp8_are_what_transformers_dequantises(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    tensors = {
        f"{name}.weight": rng.normal(size=(40, 32)).astype(ml_dtypes.bfloat16) for name in ("model.embed_tokens", "lm_head")
    }
    norms = ["model.norm"]
    for layer in (f"model.layers.{number}" for number in range(2)):
        norms += [f"{layer}.input_layernorm", f"{layer}.post_attention_layernorm"]
        shapes = {"self_attn.q_proj": (32, 32), "self_attn.k_proj": (16, 32), "self_attn.v_proj": (16, 32)}
        shapes |= {
            "self_attn.o_proj": (32, 32),
            "mlp.gate_proj": (48, 32),
            "mlp.up_proj": (48, 32),
            "mlp.down_proj": (32, 48),
        }
        for word, (rows, columns) in shapes.items():
            tensors[f"{layer}.{word}.weight"] = random_codes((rows, columns), rng)
            tensors[f"{layer}.{word}.weight_scale_inv"] = (rng.random((rows // 16, columns // 8)) / 100).astype(np.float32)
    tensors |= {f"{name}.weight": np.ones(32, ml_dtypes.bfloat16) for name in norms}
    model = write_typed(tmp_path / "fp8", tensors, {**LLAMA, **blocks((16, 8))})
    average(model, tmp_path / "out")
    libraries.run({"transformers": ("quantised.py", "same", str(model), str(tmp_path / "out"))})
