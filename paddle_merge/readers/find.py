"""Which files of a folder are its weights, and what they are: by their first bytes, for names say little."""

from __future__ import annotations

import glob
import os
from collections.abc import Mapping

from ..errors import CheckpointError
from ..parsing import shown
from . import Checkpoint, open_regular, read_json

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


def open_folder(path: str, prefix: str) -> Checkpoint:
    """The first of singles(prefix) that is there, in one file or in the shards its index names.

    If none is: one of them in a file per rank; else a distributed checkpoint. Raises CheckpointError.
    """
    from . import flex, parallel

    if not os.access(path, os.R_OK | os.X_OK):
        raise CheckpointError(f"{path}: can't be read (no permission to look into it)")
    for name in singles(prefix):
        single = os.path.join(path, name)
        if os.path.isfile(f"{single}.index.json"):
            return open_index(path, f"{single}.index.json", single)
        if os.path.isfile(single):
            return _open_files(path, path, [single], None)
    for name in singles(prefix):
        files, indexes = parallel.rank_files(path, name), parallel.rank_files(path, f"{name}.index.json")
        if files or indexes:
            return parallel.open_ranks(path, files, indexes)
    if (folder := flex.metadata_folder(path, prefix)) is not None:
        return flex.open_folder(path, folder)
    raise CheckpointError(_nothing_here(path, prefix))


def open_index(path: str, index: str, single: str | None) -> Checkpoint:
    """The checkpoint in the shards, in the folder `path`, that an index names.

    single: the file that it would be without an index, which must not be there too. Raises CheckpointError.
    """
    weight_map = read_weight_map(index)
    shards = sorted(set(weight_map.values()))
    if single is not None and os.path.isfile(single) and shards != [os.path.basename(single)]:
        raise CheckpointError(
            f"{path}: has both {os.path.basename(single)} and {os.path.basename(index)}, and loaders disagree about which"
            " counts; remove the stale one"
        )
    missing = [shard for shard in shards if not os.path.isfile(os.path.join(path, shard))]
    if missing:
        more = f" and {len(missing) - SHOWN} more" if len(missing) > SHOWN else ""
        raise CheckpointError(
            f"{index}: names shards that are not there: {', '.join(name[:100] for name in missing[:SHOWN])}{more}"
        )
    return _open_files(path, path, [os.path.join(path, shard) for shard in shards], weight_map)


def open_file(path: str) -> Checkpoint:
    """The checkpoint that is one file. Raises CheckpointError."""
    if path.endswith((".distcp", ".metadata")):
        raise CheckpointError(f"{path}: is one file of a distributed checkpoint; give the folder that holds them all")
    return _open_files(path, os.path.dirname(path) or ".", [path], None)


def _open_files(path: str, folder: str, files: list[str], weight_map: dict[str, str] | None) -> Checkpoint:
    from . import pdparams, safetensors, torch_bin

    kinds = {sniff(file) for file in files}
    if len(kinds) > 1:
        raise CheckpointError(f"{path}: its shards are of different formats: {', '.join(sorted(kinds))}")
    openers = {"safetensors": safetensors.open_files, "pdparams": pdparams.open_files, "bin": torch_bin.open_files}
    return openers[kinds.pop()](path, folder, files, weight_map)


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


def _nothing_here(path: str, prefix: str) -> str:
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
