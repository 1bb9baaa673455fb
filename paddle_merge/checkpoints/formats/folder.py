"""Find the files of weights in a folder by the names that libraries give them, and tell a file's format by its first bytes.

Nothing here opens a checkpoint; open.open_folder combines these functions with the readers of formats.
"""

from __future__ import annotations

import glob
import os
from collections.abc import Mapping

from ...errors import CheckpointError
from ...parsing import shown
from ..json_files import open_regular, read_json

_LEGACY_TORCH = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."  # how torch.save's files before 1.6 begin
ADAPTER = "adapter"  # the prefix of a LoRA adapter's weights, whatever their files are called
SHOWN = 20  # the most names that an error message lists
ENDINGS = (".safetensors", ".pdparams", ".bin", ".distcp")


def single_file_names(prefix: str) -> list[str]:
    """Return the file names under which libraries save a whole model, the preferred one first.

    A model in several shards has an index of the same name with ".index.json" appended.
    prefix: "model", "master_weights" (of a Trainer's checkpoint) or ADAPTER; another one is a file's own prefix.
    """
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
    """Return the format of a file, by its first bytes: "safetensors", "pdparams" or "bin".

    Raises CheckpointError if it can't be read or has none of these formats.
    """
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
            f"{file}: has the format that torch.save used before version 1.6; load it with torch and save it again"
        )
    if file.endswith(".safetensors"):
        return "safetensors"
    if head[:1] == b"\x80":
        return "pdparams"
    raise CheckpointError(
        f"{file}: is not a file of weights that can be read (safetensors, Paddle's .pdparams, torch's .bin), or is damaged"
    )


def read_weight_map(index: str) -> dict[str, str]:
    """Read an index file and return its map from tensor names to the file names of shards. Raises CheckpointError."""
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
    """Return a sentence on each tensor that is not in the shard which the index names for it.

    path: the checkpoint's path, with which the sentences begin. files: tensor name -> the file that holds it. weight_map:
    tensor name -> shard name, as the index has it.
    """
    held = {name: os.path.basename(file) for name, file in files.items()}
    return [
        f"{path}: the index puts tensor {name!r} in {weight_map.get(name)}, but it is in {held.get(name)}"
        for name in sorted(held.keys() | weight_map.keys())
        if weight_map.get(name) != held.get(name)
    ]


def no_weights_message(path: str, prefix: str) -> str:
    """Return the sentence that reports a folder without weights of this prefix, with the most likely reason."""
    wanted = f"{path}: has no {', '.join(single_file_names(prefix))}, and no index of one"
    for ending in ENDINGS:
        found = sorted(glob.glob(os.path.join(glob.escape(path), f"*{ending}")))
        if found:
            name = os.path.basename(found[0])
            if not os.path.isfile(found[0]):
                return f"{wanted}; its {name} is not a file, or is a link whose target doesn't exist"
            if ending == ".distcp":
                return f"{wanted}; it has {name}, but not the .metadata file that describes its content"
            return f"{wanted}; it has {name}: give that file, or its prefix with --merge_prefix"
    return wanted
