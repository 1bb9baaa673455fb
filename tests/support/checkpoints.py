"""Write small checkpoints for the tests byte by byte, and read them with the safetensors library, not with the package."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import ml_dtypes
import numpy as np
import safetensors

# Our dtype names -> NumPy's type for the bytes; bfloat16 and 8-bit floats as bits.
RAW = {
    "bfloat16": "<u2",
    "float16": "<f2",
    "float32": "<f4",
    "float64": "<f8",
    "int64": "<i8",
    "int32": "<i4",
    "uint8": "|u1",
    "bool": "|b1",
    "uint16": "<u2",
    "float8_e4m3fn": "|u1",
    "float8_e5m2": "|u1",
}
FLOAT8 = {"float8_e4m3fn": ml_dtypes.float8_e4m3fn, "float8_e5m2": ml_dtypes.float8_e5m2}
TAGS = {
    "BF16": "bfloat16", "F16": "float16", "F32": "float32", "F64": "float64", "I64": "int64", "I32": "int32",
    "U8": "uint8", "BOOL": "bool", "U16": "uint16", "F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2",
}  # fmt: skip


def to_bits(values: np.ndarray, dtype: str) -> np.ndarray:
    """Return values as they are stored, rounded to nearest even. bfloat16 follows the definition, computed in float64."""
    if dtype in FLOAT8:
        return np.asarray(values, np.float32).astype(FLOAT8[dtype]).view(np.uint8)
    if dtype != "bfloat16":
        with np.errstate(over="ignore"):
            return np.asarray(values).astype(RAW[dtype])
    single = np.asarray(values, np.float32)
    bits = single.view(np.uint32)
    high = bits >> np.uint32(16)
    with np.errstate(invalid="ignore"):
        down = (high << np.uint32(16)).view(np.float32).astype(np.float64)
        up = ((high + np.uint32(1)) << np.uint32(16)).view(np.float32).astype(np.float64)
        up = np.where(np.isinf(up), np.copysign(2.0**128, down), up)
        exact = single.astype(np.float64)
        below, above = np.abs(exact - down), np.abs(up - exact)
        take_up = np.isfinite(exact) & ((above < below) | ((above == below) & (high % 2 == 1)))
    return (high + take_up).astype("<u2")


def from_bits(raw: np.ndarray, dtype: str) -> np.ndarray:
    """Return stored elements as float64; integers and booleans are unchanged."""
    if dtype == "bfloat16":
        return (raw.astype(np.uint32) << np.uint32(16)).view(np.float32).astype(np.float64)
    if dtype in FLOAT8:
        return raw.view(FLOAT8[dtype]).astype(np.float64)
    return raw.astype(np.float64) if dtype.startswith("float") else raw


def write(
    folder: Path,
    tensors: Mapping[str, np.ndarray],
    dtype: str = "float32",
    *,
    shards: int = 1,
    prefix: str = "model",
    format: str | None = "np",
    config: Mapping[str, object] | None = None,
) -> Path:
    """Write a checkpoint folder and return it. Floats are stored as `dtype`, others unchanged; shards are filled in turn."""
    folder.mkdir(parents=True, exist_ok=True)
    groups: list[dict[str, dict[str, object]]] = [{} for _ in range(shards)]
    names: dict[str, str] = {}
    total = 0
    for number, (name, values) in enumerate(tensors.items()):
        kind = dtype if values.dtype.kind == "f" else values.dtype.name
        data = to_bits(values, dtype) if values.dtype.kind == "f" else values
        file = f"{prefix}.safetensors" if shards == 1 else f"{prefix}-{number % shards + 1:05d}-of-{shards:05d}.safetensors"
        groups[number % shards][name] = {"dtype": kind, "shape": list(values.shape), "data": data.tobytes()}
        names[name] = file
        total += data.nbytes
    tags = {name: tag for tag, name in TAGS.items()}
    for number, group in enumerate(groups):
        file = f"{prefix}.safetensors" if shards == 1 else f"{prefix}-{number + 1:05d}-of-{shards:05d}.safetensors"
        header: dict[str, object] = {"__metadata__": {"format": format}} if format else {}
        body = b""
        for name, info in group.items():
            data = info["data"]
            assert isinstance(data, bytes)
            offsets = [len(body), len(body) + len(data)]
            header[name] = {"dtype": tags[str(info["dtype"])], "shape": info["shape"], "data_offsets": offsets}
            body += data
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % 8)
        (folder / file).write_bytes(len(text).to_bytes(8, "little") + text + body)
    if shards > 1:
        index = {"metadata": {"total_size": total}, "weight_map": names}
        (folder / f"{prefix}.safetensors.index.json").write_text(json.dumps(index))
    (folder / "config.json").write_text(json.dumps({"architectures": ["Tiny"], "dtype": dtype, **(config or {})}))
    return folder


def read(folder: Path, prefix: str = "model") -> dict[str, np.ndarray]:
    """Return all tensors of a checkpoint folder, floating-point ones as float64."""
    index = folder / f"{prefix}.safetensors.index.json"
    files = [f"{prefix}.safetensors"]
    if index.exists():
        files = sorted(set(json.loads(index.read_text())["weight_map"].values()))
    tensors: dict[str, np.ndarray] = {}
    for file in files:
        for name, info in safetensors.deserialize((folder / file).read_bytes()):
            dtype = TAGS[info["dtype"]]
            raw = np.frombuffer(info["data"], RAW[dtype]).reshape(info["shape"])
            tensors[name] = from_bits(raw, dtype)
    return tensors


def dtypes(folder: Path, prefix: str = "model") -> dict[str, str]:
    """Return the stored dtype of each tensor of a single-file checkpoint, by name."""
    return {
        name: TAGS[info["dtype"]] for name, info in safetensors.deserialize((folder / f"{prefix}.safetensors").read_bytes())
    }


def damaged(good: bytes, random: np.random.Generator, cut: bool, first: int = 0) -> bytes:
    """Return a file's content with one to three bytes changed, none before `first`; if `cut`, also truncated somewhere."""
    content = bytearray(good)
    for _ in range(random.integers(1, 4)):
        content[random.integers(first, len(content))] = random.integers(256)
    if cut:
        del content[random.integers(len(content)) :]
    return bytes(content)
