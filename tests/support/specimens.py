"""Define a small merge for every kind of input, which fuzzing damages, and an independent reader for each kind.

The readers use the safetensors library, Python's pickle (restricted to the names that weights need) and zipfile, and no code
of the package.
"""

from __future__ import annotations

import io
import json
import pickle
import tempfile
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import safetensors

from tests.checkpoints.formats import test_flex, test_torch_bin
from tests.support import checkpoints

State = dict[str, np.ndarray]
SIZES = {"hidden_size": 8, "intermediate_size": 12, "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 10}
# Shape in Paddle's layout, and the axis that tensor-parallel ranks split.
LLAMA: dict[str, tuple[tuple[int, ...], int | None]] = {
    "embed_tokens.weight": ((10, 8), 0),
    "layers.0.self_attn.q_proj.weight": ((8, 8), 1),
    "layers.0.self_attn.k_proj.weight": ((8, 4), 1),
    "layers.0.self_attn.v_proj.weight": ((8, 4), 1),
    "layers.0.input_layernorm.weight": ((8,), None),
    "layers.0.mlp.gate_proj.weight": ((8, 12), 1),
    "layers.0.mlp.down_proj.weight": ((12, 8), 0),
}


@dataclass(frozen=True)
class Specimen:
    """A merge whose inputs are to be damaged.

    files: the files of the models a and b, by path. targets: which of them to damage. expected: returns the merge of the
    files in a folder, computed independently; raises any exception if it can't read them; returns nothing where damage
    may transpose or tie tensors, but change no number. fields: of the MergeConfig, with paths relative to the folder.
    merge_config: the file that holds `fields`, if that is what is damaged.
    """

    files: dict[str, bytes]
    targets: tuple[str, ...]
    expected: Callable[[Path], State]
    fields: dict[str, Any] = field(default_factory=lambda: {"model_path_list": ["a", "b"], "output_path": "out"})
    merge_config: str | None = None


def average(read: Callable[[Path], State]) -> Callable[[Path], State]:
    """Return a function that averages the models a and b in a folder; tensors that aren't floats must be equal."""

    def expected(folder: Path) -> State:
        one, two = read(folder / "a"), read(folder / "b")
        if {name: x.shape for name, x in one.items()} != {name: x.shape for name, x in two.items()}:
            raise ValueError("not the same tensors")
        with np.errstate(all="ignore"):
            return {name: (x / 2 + two[name] / 2) if x.dtype.kind == "f" else x for name, x in one.items()}

    return expected


def make(write: Callable[[Path], Any]) -> dict[str, bytes]:
    """Return the files that `write` puts into an empty folder, by path."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write(folder)
        return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def values(seed: int, shapes: Mapping[str, tuple[int, ...]]) -> State:
    """Return random float32 tensors of these shapes."""
    random = np.random.default_rng(seed)
    return {name: random.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


def plain(seed: int) -> State:
    """Return tensors of several ranks and dtypes, one of them empty."""
    shapes = {"w": (3, 5), "b": (5,), "s": (), "none": (0, 2)}
    return {**values(seed, shapes), "steps": np.arange(4), "mask": np.array([True, False])}


# --- independent readers ---------------------------------------------------------------------------------------------


def read_safetensors(folder: Path) -> State:
    """Read a folder as transformers does: by its index, or the single file if there is no index."""
    index = folder / "model.safetensors.index.json"
    names = {"model.safetensors"}
    if index.exists():
        names = set(json.loads(index.read_bytes())["weight_map"].values())
    found: State = {}
    for name in names:
        for tensor, info in safetensors.deserialize((folder / name).read_bytes()):
            kind = checkpoints.TAGS[info["dtype"]]
            raw = np.frombuffer(info["data"], checkpoints.RAW[kind]).reshape(info["shape"])
            found[tensor] = checkpoints.from_bits(raw, "bfloat16" if kind == "uint16" else kind)
    return found


class Unpickler(pickle.Unpickler):
    """Python's unpickler for files that have already been merged, restricted to the names that weights need."""

    def __init__(self, content: bytes, names: Mapping[tuple[str, str], Any], storage: Callable[[Any], Any] | None = None):
        super().__init__(io.BytesIO(content))
        self._names, self._storage = names, storage

    def find_class(self, module: str, name: str) -> Any:
        return self._names[module, name]

    def persistent_load(self, identity: Any) -> Any:
        assert self._storage is not None
        return self._storage(identity)


def _names_of_numpy() -> dict[tuple[str, str], Any]:
    reconstruct, scalar = np.zeros(1).__reduce__()[0], np.float32(1).__reduce__()[0]
    names = {("numpy", "ndarray"): np.ndarray, ("numpy", "dtype"): np.dtype, ("collections", "OrderedDict"): OrderedDict}
    for module in ("numpy.core.multiarray", "numpy._core.multiarray"):
        names |= {(module, "_reconstruct"): reconstruct, (module, "scalar"): scalar}
    for module in ("builtins", "__builtin__"):
        names |= {(module, "tuple"): tuple, (module, "bytes"): bytes}
    return names | {("_codecs", "encode"): lambda word, encoding: word.encode({"latin1": "latin1"}[encoding])}


def as_floats(array: Any) -> np.ndarray:
    """Return floats as float64; uint16 is bfloat16, as in Paddle's files."""
    array = np.asarray(array)
    if array.dtype.kind not in "fiub":
        raise TypeError("no numbers")
    return checkpoints.from_bits(array, {"uint16": "bfloat16"}.get(array.dtype.name, array.dtype.name))


def read_pdparams(file: Path) -> State:
    content = Unpickler(file.read_bytes(), _names_of_numpy()).load()
    content.pop("StructuredToParameterName@@", None)
    for name, info in content.pop("UnpackBigParamInfor@@", {}).items():
        content[name] = np.concatenate([content.pop(key) for key in info["slices"]]).reshape(info["OriginShape"])
    return {name: as_floats(value[1] if type(value) is tuple else value) for name, value in content.items()}


def read_bin(file: Path) -> State:
    archive = zipfile.ZipFile(file)
    (root,) = (name.removesuffix("data.pkl") for name in archive.namelist() if name.endswith("/data.pkl"))
    kinds = {kind: dtype for dtype, kind in test_torch_bin.STORAGES.items()}

    def member(name: str) -> bytes:
        with archive.open(root + name) as stream:
            stream._expected_crc = None  # type: ignore[attr-defined]  # torch doesn't check it either
            return stream.read()

    def storage(identity: Any) -> np.ndarray:
        _, kind, key, _, count = identity
        return np.frombuffer(member(f"data/{key}"), kinds[kind], count)

    def tensor(held: np.ndarray, offset: int, shape: Any, strides: Any, *_: Any) -> np.ndarray:
        last = offset + sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))
        if all(shape) and not 0 <= last < len(held):
            raise ValueError("beyond its storage")
        return np.lib.stride_tricks.as_strided(held[offset:], shape, [stride * held.itemsize for stride in strides])

    names: dict[tuple[str, str], Any] = {("torch", kind): kind for kind in kinds}
    names |= {("torch._utils", "_rebuild_tensor_v2"): tensor, ("collections", "OrderedDict"): OrderedDict}
    return {name: as_floats(x) for name, x in Unpickler(member("data.pkl"), names, storage).load().items()}


def read_flex(folder: Path) -> State:
    made = (test_flex.Metadata, test_flex.Described, test_flex.Index)
    modules = (test_flex.MODULE, "paddle.distributed.checkpoint.metadata")
    names = {(module, kind.__name__): kind for module in modules for kind in made}
    newest = max(folder.glob("*.metadata"), key=lambda file: int(file.stem))
    metadata = Unpickler(newest.read_bytes(), names).load()
    held = {name: read_pdparams(folder / name) for name in set(metadata.storage_metadata.values())}
    found: State = {}
    for name, boxes in metadata.state_dict_metadata.items():
        found[name] = np.full(boxes[0].global_shape, np.nan)
    for index, file in metadata.storage_metadata.items():
        box = held[file][index.tensor_key]
        if index.is_flattened:
            whole = np.full(index.local_shape, np.nan)
            whole.reshape(-1)[slice(*index.flattened_range)] = box
            box = np.where(np.isnan(whole), found[index.tensor_key][_place(index)], whole)
        elif box.shape != index.local_shape:
            raise ValueError("another shape")
        found[index.tensor_key][_place(index)] = box
    return found


def _place(index: Any) -> tuple[slice, ...]:
    return tuple(slice(at, at + size) for at, size in zip(index.global_offset, index.local_shape, strict=True))


def read_ranks(folder: Path) -> State:
    ranks = [read_pdparams(file) for file in sorted(folder.glob("model_state.tp*.pdparams"))]
    found: State = {}
    for name in ranks[0]:
        axis = LLAMA[name.removeprefix("llama.")][1]
        found[name] = ranks[0][name] if axis is None else np.concatenate([rank[name] for rank in ranks], axis)
    return found


# --- specimens -------------------------------------------------------------------------------------------------------


def safetensors_file(dtype: str) -> Specimen:
    def write(folder: Path) -> None:
        for seed, name in enumerate("ab"):
            checkpoints.write(folder / name, plain(seed), dtype, format="pt")

    return Specimen(make(write), ("a/model.safetensors",), average(read_safetensors))


def safetensors_index() -> Specimen:
    def write(folder: Path) -> None:
        for seed, name in enumerate("ab"):
            checkpoints.write(folder / name, plain(seed), shards=2, format="pt")
        checkpoints.write(folder, plain(2), prefix="secret")

    targets = ("a/model.safetensors.index.json",) * 3 + ("a/model-00001-of-00002.safetensors",)
    return Specimen(make(write), targets, average(read_safetensors))


def config_json(fused: bool) -> Specimen:
    """Return a merge of Llamas in two layouts or, if `fused`, with and without fused q, k and v.

    config.json decides which weights are transposed, and where fused ones are split.
    """
    names = {f"model.{name}": shape for name, (shape, _) in LLAMA.items()}

    def write(folder: Path) -> None:
        for seed, layout in enumerate("ab"):
            tensors = values(seed, names)
            if fused and layout == "a":
                words = [f"model.layers.0.self_attn.{word}_proj.weight" for word in "qkv"]
                q, k, v = (tensors.pop(word) for word in words)
                groups = [
                    part for n in range(2) for part in (q[:, 4 * n : 4 * n + 4], k[:, 2 * n :][:, :2], v[:, 2 * n :][:, :2])
                ]
                tensors["model.layers.0.self_attn.qkv_proj.weight"] = np.concatenate(groups, 1)
            if layout == "b" and not fused:
                tensors = {name: x.T.copy() if "_proj" in name else x for name, x in tensors.items()}
            said = {
                **SIZES,
                "model_type": "llama",
                "tie_word_embeddings": False,
                "rms_norm_eps": 1e-6,
                "torch_dtype": "float32",
            }
            said["head_dim"] = 2
            said["rope_parameters"] = {"rope_theta": 10000.0, "rope_type": "default"}
            checkpoints.write(folder / layout, tensors, format="np", config=said)
        (folder / "a" / "generation_config.json").write_text(json.dumps({"eos_token_id": [1, 2]}))

    def expected(folder: Path) -> State:
        said = json.loads((folder / "a" / "config.json").read_bytes())
        if not fused or said.get("model_type") != "phi3":
            return {}

        def in_one(model: Path) -> State:
            """Read a model, with q, k and v fused as in Phi-3: not grouped by heads."""
            tensors, stem = read_safetensors(model), "model.layers.0.self_attn."
            apart = [tensors.pop(f"{stem}{word}_proj.weight", np.empty((8, 0))) for word in "qkv"]
            return {f"{stem}qkv_proj.weight": np.concatenate(apart, 1), **tensors}

        return average(in_one)(folder)

    return Specimen(make(write), ("a/config.json",) * 3 + ("b/config.json",), expected)


def pdparams(form: str, protocol: int) -> Specimen:
    def content(seed: int) -> Any:
        tensors: dict[str, Any] = dict(plain(seed))
        if form == "table":
            tensors["StructuredToParameterName@@"] = {name: f"linear_0.{name}" for name in tensors}
        elif form == "nested":
            return {name: (f"linear_0.{name}", x) for name, x in tensors.items()}
        elif form == "sliced":
            flat = tensors.pop("w").reshape(-1)
            tensors |= {"w@@.0": flat[:7], "w@@.1": flat[7:]}
            tensors["UnpackBigParamInfor@@"] = {"w": {"OriginShape": (3, 5), "slices": ["w@@.0", "w@@.1"]}}
        elif form == "odd":
            tensors["w"] = np.asfortranarray(tensors["w"])
            tensors["scalar"] = np.float32(seed)
            tensors["bits"] = checkpoints.to_bits(tensors["b"], "bfloat16")
        return tensors

    def write(folder: Path) -> None:
        for seed, name in enumerate("ab"):
            (folder / name).mkdir()
            (folder / name / "model_state.pdparams").write_bytes(pickle.dumps(content(seed), protocol=protocol))

    return Specimen(
        make(write), ("a/model_state.pdparams",), average(lambda folder: read_pdparams(folder / "model_state.pdparams"))
    )


def torch_bin() -> Specimen:
    def write(folder: Path) -> None:
        for seed, name in enumerate("ab"):
            test_torch_bin.write(folder / name, plain(seed))

    return Specimen(make(write), ("a/pytorch_model.bin",), average(lambda folder: read_bin(folder / "pytorch_model.bin")))


def flex() -> Specimen:
    boxes = {
        "rows": test_flex.cut((4, 3), (1,), ()),
        "both": test_flex.cut((4, 4), (2,), (1,)),
        "flat": test_flex.cut((5, 2), (), ()),
        "vector": test_flex.cut((5,), (2,)),
        "scalar": [((), ())],
    }
    shapes = {"rows": (4, 3), "both": (4, 4), "flat": (5, 2), "vector": (5,), "scalar": ()}

    def write(folder: Path) -> None:
        for seed, name in enumerate("ab"):
            test_flex.save(folder / name, values(seed, shapes), boxes, flat=("flat",))
        (folder / "secret.distcp").write_bytes((folder / "a" / "0_0.distcp").read_bytes())

    return Specimen(make(write), ("a/0.metadata",) * 3 + ("a/0_0.distcp", "a/1_0.distcp"), average(read_flex))


def ranks() -> Specimen:
    """Return a merge of models stored by two tensor-parallel ranks."""

    def write(folder: Path) -> None:
        for seed, name in enumerate("ab"):
            (folder / name).mkdir()
            (folder / name / "config.json").write_text(
                json.dumps({**SIZES, "architectures": ["Tiny"], "model_type": "llama"})
            )
            whole = values(seed, {f"llama.{tensor}": shape for tensor, (shape, _) in LLAMA.items()})
            for rank in range(2):
                held = {}
                for tensor, x in whole.items():
                    axis = LLAMA[tensor.removeprefix("llama.")][1]
                    held[tensor] = x if axis is None else np.split(x, 2, axis)[rank]
                (folder / name / f"model_state.tp{rank:02d}.pdparams").write_bytes(pickle.dumps(held, protocol=4))

    targets = ("a/config.json", "a/model_state.tp00.pdparams", "a/model_state.tp01.pdparams")
    return Specimen(make(write), targets, average(read_ranks))


ADAPTED = "model.layers.0.mlp.down_proj"


def adapter(kind: str) -> Specimen:
    """Return a fold of an adapter with one low-rank update."""
    config = {"r": 2, "lora_alpha": 3, "target_modules": ["down_proj"], "bias": "none"}
    name, file = (
        ("lora_config.json", "lora_model_state.pdparams")
        if kind == "paddle"
        else ("adapter_config.json", "adapter_model.safetensors")
    )

    def write(folder: Path) -> None:
        weights = values(0, {f"{ADAPTED}.weight": (8, 12), "model.norm.weight": (8,)})
        checkpoints.write(folder / "a", weights, format="pt", config={**SIZES, "model_type": "llama"})
        factors = values(1, {"A": (12, 2), "B": (2, 8)})
        (folder / "b").mkdir()
        if kind == "paddle":
            (folder / "b" / file).write_bytes(
                pickle.dumps({f"{ADAPTED}.lora_{word}": x for word, x in factors.items()}, protocol=4)
            )
        else:
            transposed = {f"base_model.model.{ADAPTED}.lora_{word}.weight": x.T.copy() for word, x in factors.items()}
            checkpoints.write(folder / "b", transposed, prefix="adapter_model", format="pt")
            (folder / "b" / "config.json").unlink()
        extra = {"peft_type": "LORA", "rank_pattern": {}, "alpha_pattern": {}} if kind == "peft" else {"scaling": 1.5}
        (folder / "b" / name).write_text(json.dumps({**config, **extra}))

    def expected(folder: Path) -> State:
        weights = read_safetensors(folder / "a")
        said = json.loads((folder / "b" / name).read_bytes())
        if kind == "paddle":
            held = read_pdparams(folder / "b" / file)
            a, b = (held.pop(f"{ADAPTED}.lora_{word}") for word in "AB")
        else:
            held = {}
            for tensor, info in safetensors.deserialize((folder / "b" / file).read_bytes()):
                held[tensor] = np.frombuffer(info["data"], checkpoints.RAW[checkpoints.TAGS[info["dtype"]]]).reshape(
                    info["shape"]
                )
            a, b = (held.pop(f"base_model.model.{ADAPTED}.lora_{word}.weight").T for word in "AB")
        assert not held
        rank, alpha = said["r"], said["lora_alpha"]
        for pattern, value in (said.get("rank_pattern") or {}).items():
            rank = value if ADAPTED.endswith(pattern) else rank
        for pattern, value in (said.get("alpha_pattern") or {}).items():
            alpha = value if ADAPTED.endswith(pattern) else alpha
        root = said.get("use_rslora" if kind == "peft" else "rslora")
        with np.errstate(all="ignore"):
            weights[f"{ADAPTED}.weight"] = (
                weights[f"{ADAPTED}.weight"]
                + alpha / (rank**0.5 if root else rank) * (a.astype(np.float64) @ b.astype(np.float64)).T
            )
        return weights

    fields = {"base_model_path": "a", "lora_model_path": "b", "output_path": "out"}
    return Specimen(make(write), (f"b/{name}",) * 3 + (f"b/{file}",), expected, fields)


def merge_config(ending: str) -> Specimen:
    """Return a merge whose fields are in a file, which is to be damaged. ending: json or yaml."""
    fields: dict[str, Any] = {
        "model_path_list": ["a", "b"], "base_model_path": None, "output_path": "out", "merge_method": "linear",
        "weight_list": [0.5, 0.5], "normalize": True, "reserve_p": 0.7, "seed": 3, "max_shard_size": "1GB", "n_process": 1,
        "copy_file_list": ["generation_config.json"],
    }  # fmt: skip
    text = (
        json.dumps(fields)
        if ending == "json"
        else "".join(f"{name}: {json.dumps(value)}\n" for name, value in fields.items())
    )

    def write(folder: Path) -> None:
        for seed, name in enumerate("ab"):
            checkpoints.write(folder / name, plain(seed), format="pt")
            (folder / name / "generation_config.json").write_text("{}")
        (folder / f"merge.{ending}").write_text(text)

    return Specimen(make(write), (f"merge.{ending}",), lambda _: {}, fields, f"merge.{ending}")


KINDS: dict[str, Callable[[], list[Specimen]]] = {
    "safetensors": lambda: [safetensors_file("float32"), safetensors_file("bfloat16")],
    "index": lambda: [safetensors_index()],
    "config": lambda: [config_json(False), config_json(True)],
    "recipe": lambda: [merge_config("json"), merge_config("yaml")],
    "pdparams": lambda: [pdparams(form, n) for form in ("table", "nested", "sliced", "odd") for n in (2, 3, 4)],
    "bin": lambda: [torch_bin()],
    "flex": lambda: [flex()],
    "adapter": lambda: [adapter("peft"), adapter("paddle")],
    "ranks": lambda: [ranks()],
}
