"""Test that quantised weights of which it isn't known how to read them are refused by name, and plain numbers are not.

Those that are read are in tests/conversion/test_scaled.py.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from paddle_merge import CheckpointError, MergeConfig, merge, merge_state_dicts
from tests.support.checkpoints import FLOAT8, read, to_bits, write

CODES = np.arange(64, dtype=np.uint8).reshape(8, 8)
X = np.arange(64.0).reshape(8, 8)


def refusal(*paths: Path) -> list[str]:
    out = paths[0].parent / "out"
    with pytest.raises(CheckpointError) as caught:
        merge(MergeConfig(model_path_list=[str(path) for path in paths], output_path=str(out)))
    assert not out.exists()
    return caught.value.problems


def float8(folder: Path, scales: dict[str, np.ndarray]) -> Path:
    """A weight in E4M3, and tensors of float32 beside it."""
    stored = {"l.weight": to_bits(X, "float8_e4m3fn"), **{name: to_bits(x, "float32") for name, x in scales.items()}}
    header, body = dict[str, Any](), b""
    for name, x in stored.items():
        tag = "F8_E4M3" if name == "l.weight" else "F32"
        header[name] = {"dtype": tag, "shape": x.shape, "data_offsets": [len(body), len(body) + x.nbytes]}
        body += x.tobytes()
    text = json.dumps(header).encode()
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + body)
    return folder


_NO_CONFIG = "tensor 'l.weight' has scales, but its config.json has no quantization_config, which says what they mean"
_NO_SCALES = "tensor 'l.weight' has no scales"


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("l.weight_scale", _NO_CONFIG),  # compressed-tensors, ModelOpt
        ("l.scale", _NO_CONFIG),
        ("l.input_scale", _NO_SCALES),
        ("l.weight_scale_2", _NO_SCALES),
        ("l.k_scale", _NO_SCALES),
        ("l.experts.down_proj_scale", _NO_SCALES),
        ("l.activation_scale", _NO_SCALES),  # PaddleNLP
        ("l.scale_weight", _NO_SCALES),
        ("scaled_fp8", _NO_SCALES),
        ("l.weight.scale", _NO_SCALES),
        ("l.weight_inv_scale", _NO_SCALES),
    ],
)
def test_float8_with_scales(tmp_path: Path, name: str, reason: str) -> None:
    models = [float8(tmp_path / folder, {name: np.ones(1)}) for folder in "ab"]
    problems = refusal(*models)
    assert len(problems) == 2
    for problem, model in zip(problems, models, strict=True):
        assert problem == (
            f"{model}: is quantised (1 of its tensors hold scales or packed codes, {name!r} for one), and {reason}; convert"
            " it to bfloat16 first"
        )


def test_names_that_are_no_scales(tmp_path: Path) -> None:
    """Of plain casts to float8, and of models that aren't quantised at all."""
    plain = {"norm.key_norm.scale": np.ones(4), "logit_scale": np.ones(1), "rescale.weight": np.ones(2)}
    a = float8(tmp_path / "a", plain)
    merge(MergeConfig(model_path_list=[str(a), str(a)], output_path=str(tmp_path / "out")))
    assert (read(tmp_path / "out")["norm.key_norm.scale"] == 1).all()
    b = write(tmp_path / "b", {"l.weight": X, "l.weight_scale": np.ones(1), "l.scale": np.ones(1), "on": np.array([True])})
    merge(MergeConfig(model_path_list=[str(b), str(b)], output_path=str(tmp_path / "out2")))


@pytest.mark.parametrize(
    ("tensors", "count", "first"),
    [
        (  # GPTQ, AWQ
            {"l.qweight": np.ones((8, 8), np.int32), "l.qzeros": np.ones(8, np.int32), "l.scales": np.ones(8)},
            2,
            "l.qweight",
        ),
        ({"l.weight_packed": np.ones(8, np.int32), "l.weight_scale": np.ones(8)}, 1, "l.weight_packed"),
        ({"l.weight": CODES, "l.weight.absmax": np.ones(2), "l.weight.quant_map": np.ones(16)}, 2, "l.weight.absmax"),
        ({"l.quant_weight": CODES, "l.quant_scale": np.ones(8)}, 2, "l.quant_weight"),  # PaddleNLP's weight_only_int8
    ],
)
def test_packed_integers(tmp_path: Path, tensors: dict[str, np.ndarray], count: int, first: str) -> None:
    """Equal ones, which would be copied if they were anything else."""
    a, plain = write(tmp_path / "a", tensors), write(tmp_path / "plain", {"l.weight": X})
    (problem,) = refusal(a, plain)
    assert problem.startswith(f"{a}: is quantised ({count} of its tensors hold scales or packed codes, {first!r} for one)")


@pytest.mark.parametrize("nested", [True, False])
def test_config_says_so(tmp_path: Path, nested: bool) -> None:
    said: dict[str, Any] = {"quantization_config": {"quant_method": "fp8", "weight_block_size": [128, 128]}}
    a = write(tmp_path / "a", {"w": X}, "float8_e4m3fn", config={"text_config": said} if nested else said)
    (problem,) = refusal(a, write(tmp_path / "b", {"w": X}, "float8_e4m3fn"))
    assert problem.startswith(f"{a}: is quantised (its config.json has a quantization_config)")
    assert "remove quantization_config from its config.json" in problem
    for empty in ({}, None):
        a = write(tmp_path / "a", {"w": X}, "float8_e4m3fn", config={"quantization_config": empty})
        merge(MergeConfig(model_path_list=[str(a), str(a)], output_path=str(tmp_path / "out"), overwrite=True))


def test_state_dicts() -> None:
    weight = to_bits(X, "float8_e5m2").view(FLOAT8["float8_e5m2"])
    states = [{"l.weight": weight, "l.weight_scale_inv": np.ones(1, np.float32)}] * 2
    with pytest.raises(CheckpointError) as caught:
        merge_state_dicts(states, MergeConfig())
    assert [problem.partition(":")[0] for problem in caught.value.problems] == ["state_dicts[0]", "state_dicts[1]"]
