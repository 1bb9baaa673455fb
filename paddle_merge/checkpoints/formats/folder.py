"""Find the files of weights in a folder, by the names that libraries give them and by their first bytes."""

from __future__ import annotations

import glob
import os
from collections.abc import Mapping

from ...errors import CheckpointError
from ...parsing import shown
from ..json_files import open_regular, read_json

_LEGACY_TORCH = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."
ADAPTER = "adapter"  # the prefix of a LoRA adapter's weights, whatever their files are called
SHOWN = 20  # names in a sentence
ENDINGS = (".safetensors", ".pdparams", ".bin", ".distcp")


def singles(prefix: str) -> list[str]:
    """The names of a whole model in one file, the preferred first; with .index.json, of the index of one in several."""
    if prefix == ADAPTER:
        return [
            "adapter_model.safetensors",
            "peft_model.safetensors",
            "lora_model_state.safetensors",
            "lora_model_state.pdparams",
            "adapter_model.bin",
        ]
    names = [f"{prefix}.safetensors", f"{'model_state' if prefix == 'model' else prefix}.pdparams"]
    return [*names, "pytorch_model.bin"] if prefix == "model" else names


def sniff(file: str) -> str:
    """The kind of a file: "safetensors", "pdparams" or "bin". Raises CheckpointError if it is none of them."""
    try:
        with open_regular(file) as stream:
            head = stream.read(16)
    except OSError as error:
        raise CheckpointError(f"{file}: can't be read ({error.strerror})") from None
    if head[4:9] == b"\0\0\0\0{":
        return "safetensors"
    if head[:4] == b"PK\x03\x04":
        return "bin"
    if head.startswith(_LEGACY_TORCH):
        raise CheckpointError(
            f"{file}: is of the format torch wrote before version 1.6; load it with torch and save it again"
        )
    if file.endswith(".safetensors"):
        return "safetensors"
    if head[:1] == b"\x80":
        return "pdparams"
    raise CheckpointError(
        f"{file}: is not a file of weights that can be read (safetensors, Paddle's .pdparams, torch's .bin), or is damaged"
    )


def read_weight_map(index: str) -> dict[str, str]:
    """Tensor name -> shard name. Raises CheckpointError."""
    content = read_json(index)
    weight_map = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(weight_map, dict) or not all(isinstance(shard, str) for shard in weight_map.values()):
        raise CheckpointError(f"{index}: has no weight_map from tensor names to shard names")
    for shard in sorted(set(weight_map.values())):
        if os.path.basename(shard) != shard or shard in ("", ".", ".."):
            raise CheckpointError(f"{index}: names a shard outside its folder: {shown(shard)}")
    if not weight_map:
        raise CheckpointError(f"{index}: its weight_map is empty")
    return weight_map


def misplaced(path: str, files: Mapping[str, str], weight_map: Mapping[str, str]) -> list[str]:
    """Sentences about tensors that aren't where the index says. files: tensor name -> the file that holds it."""
    held = {name: os.path.basename(file) for name, file in files.items()}
    return [
        f"{path}: the index puts tensor {name!r} in {weight_map.get(name)}, but it is in {held.get(name)}"
        for name in sorted(held.keys() | weight_map.keys())
        if weight_map.get(name) != held.get(name)
    ]


def nothing_here(path: str, prefix: str) -> str:
    wanted = f"{path}: has no {', '.join(singles(prefix))}, and no index of one"
    for ending in ENDINGS:
        found = sorted(glob.glob(os.path.join(glob.escape(path), f"*{ending}")))
        if found:
            name = os.path.basename(found[0])
            if not os.path.isfile(found[0]):
                return f"{wanted}; its {name} is no file, or a link to what isn't there"
            if ending == ".distcp":
                return f"{wanted}; it has {name}, but not the .metadata file that says what is in it"
            return f"{wanted}; it has {name}: give that file, or its prefix with --merge_prefix"
    return wanted
