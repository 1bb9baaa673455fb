"""Write quantised checkpoints for the tests, and compute what they stand for in plain float64 NumPy."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

_TAGS = {
    "float8_e4m3fn": "F8_E4M3", "float8_e5m2": "F8_E5M2", "float8_e8m0fnu": "F8_E8M0", "bfloat16": "BF16", "float16": "F16",
    "float32": "F32", "int8": "I8", "uint8": "U8", "int32": "I32", "int64": "I64",
}  # fmt: skip
FP8 = {"quant_method": "fp8", "activation_scheme": "dynamic", "fmt": "e4m3"}


def write_typed(folder: Path, tensors: Mapping[str, np.ndarray], config: Mapping[str, Any]) -> Path:
    """Write arrays of NumPy's and ml_dtypes' types as they are, and a config.json. Return the folder."""
    header, body = dict[str, Any](), b""
    for name, x in tensors.items():
        header[name] = {"dtype": _TAGS[x.dtype.name], "shape": x.shape, "data_offsets": [len(body), len(body) + x.nbytes]}
        body += np.ascontiguousarray(x).tobytes()
    text = json.dumps({"__metadata__": {"format": "pt"}, **header}).encode()
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "model.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + body)
    (folder / "config.json").write_text(json.dumps({"architectures": ["Tiny"], "torch_dtype": "bfloat16", **config}))
    return folder


def blocks(block: tuple[int, int]) -> dict[str, Any]:
    """Return the quantization_config of DeepSeek-V3 and Qwen3-FP8 with blocks of this size."""
    return {"quantization_config": {**FP8, "weight_block_size": list(block)}}


def random_codes(shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    """Return finite numbers of E4M3, all of them equally likely."""
    codes = rng.integers(0, 127, shape) + 128 * rng.integers(0, 2, shape)
    return codes.astype(np.uint8).view(ml_dtypes.float8_e4m3fn)


def expanded(scales: np.ndarray, block: tuple[int, ...], shape: tuple[int, ...]) -> np.ndarray:
    """Return the scale of every element of a tensor of this shape, in float64."""
    found = np.asarray(scales, np.float64)
    for axis, size in enumerate(block):
        found = np.repeat(found, size, axis)
    return found[tuple(slice(size) for size in shape)]


def numbers(codes: np.ndarray, scales: np.ndarray, block: tuple[int, ...]) -> np.ndarray:
    """Return what codes stand for: their products with the scales of their blocks, rounded to float32."""
    return (codes.astype(np.float64) * expanded(scales, block, codes.shape)).astype(np.float32)
