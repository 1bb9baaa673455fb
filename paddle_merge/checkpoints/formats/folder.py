"""Find the files of weights in a folder by the names that libraries give them, and tell a file's format by its first bytes.

Nothing here opens a checkpoint; open.open_folder combines these functions with the readers of formats.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence

from ...errors import CheckpointError
from ...parsing import shown, tensors_named
from ..json_files import open_regular, read_json

_LEGACY_TORCH = b"\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."  # what ends the pickle with which torch.save's files before 1.6 begin
_ZIP = b"PK\x03\x04"
_HEAD = 32  # bytes at the beginning of a file that tell its format
DIFFUSERS = "diffusion_pytorch_model"  # the prefix of the weights of a diffusion pipeline's components
PREFIXES = ("model", "master_weights", DIFFUSERS)  # of the weights of models
ADAPTER = "adapter"  # the prefix of a LoRA adapter's weights, whatever their files are called
ADAPTER_CONFIGS = {"peft": "adapter_config.json", "paddle": "lora_config.json"}  # kind of adapter -> name of its config
SHOWN = 20  # the most names that an error message lists
ENDINGS = (".safetensors", ".pdparams", ".bin", ".distcp")


def single_file_names(prefix: str) -> list[str]:
    """Return the file names under which libraries save a whole model, the preferred one first.

    A model in several shards has an index of the same name with ".index.json" appended.
    prefix: "model", "master_weights" (of a Trainer's checkpoint), DIFFUSERS or ADAPTER; another one is a file's own prefix.
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
    more = {"model": ["pytorch_model.bin"], DIFFUSERS: [f"{DIFFUSERS}.bin"]}
    return names + more.get(prefix, [])


def written_by_diffusers(path: str) -> bool:
    """Return whether a path is a file, or a folder with files, of weights under the name that diffusers gives them."""
    if os.path.isfile(path):
        return os.path.basename(path).startswith(DIFFUSERS)
    names = [one for name in single_file_names(DIFFUSERS) for one in (name, f"{name}.index.json")]
    return any(os.path.isfile(os.path.join(path, name)) for name in names)


def sniff(file: str) -> str:
    """Return the format of a file, by its first bytes: "safetensors", "pdparams" or "bin".

    Raises CheckpointError if it can't be read or has none of these formats.
    """
    head = _head(file)
    if head.startswith(b"version https://"):
        raise CheckpointError(f"{file}: is a Git LFS pointer instead of the weights: fetch them with git lfs pull")
    if head[4:9] == b"\0\0\0\0{":
        return "safetensors"
    if head[:4] == _ZIP or _LEGACY_TORCH in head:
        return "bin"
    if file.endswith(".safetensors"):
        return "safetensors"
    if head[:1] == b"\x80":
        return "pdparams"
    raise CheckpointError(
        f"{file}: is not a file of weights that can be read (safetensors, Paddle's .pdparams, torch's .bin), or is damaged"
    )


def is_zip(file: str) -> bool:
    """Return whether a file begins as a zip file. Raises CheckpointError if it can't be read."""
    return _head(file)[:4] == _ZIP


def _head(file: str) -> bytes:
    """Return the first bytes of a file. Raises CheckpointError if it can't be read."""
    try:
        with open_regular(file) as stream:
            return stream.read(_HEAD)
    except OSError as error:
        raise CheckpointError(f"{file}: can't be read ({error.strerror})") from None


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
    """Return a sentence on the tensors that are not in the shard which the index names for them: one for each cause.

    path: the checkpoint's path, with which the sentences begin. files: tensor name -> the file that holds it. weight_map:
    tensor name -> shard name, as the index has it.
    """
    shards = {file: os.path.basename(file) for file in set(files.values())}
    held = {name: shards[file] for name, file in files.items()}
    if held == weight_map:
        return []
    found: dict[tuple[str | None, str | None], list[str]] = {}
    for name in sorted(held.keys() | weight_map.keys()):
        if weight_map.get(name) != held.get(name):
            found.setdefault((weight_map.get(name), held.get(name)), []).append(name)
    problems = []
    for (shard, file), names in found.items():
        are, they, them = ("is", "it is", "it") if len(names) == 1 else ("are", "they are", "them")
        where = "in no file" if file is None else f"in {file}"
        says = f"doesn't list {them}" if shard is None else f"says that {they} in {shard}"
        problems.append(
            f"{path}: {tensors_named(names)} {are} {where}, but the index {says}; the index may be another model's:"
            " replace it"
        )
    return problems


# What training leaves, whose names end as those of weights do.
_NOT_WEIGHTS = re.compile(r"(training_args|optimizer|scheduler|scaler|rng_state|random_states)[\w.-]*")
_SHARD = re.compile(r"(.+)-\d{5}-of-(\d{5})(\.\w+)")
# What Trainers put before the ending of a file of one rank: its tensor-parallel rank, pipeline stage, expert-parallel rank.
RANK = re.compile(r"(?:tp(\d{2,4}))?_?(?:pp(\d{2,4}))?_?(?:moe(?:_sharding)?(\d{2,4}))?")
_RANK_FILE = re.compile(rf"\w+\.{RANK.pattern}\.\w+")
_SHARDING = re.compile(r"[._]shard\d{2,4}[._]")  # sharding stage 1, with save_sharded_model
# Files that hold weights in other forms, by the ends of their names -> what to do.
_FOREIGN = {
    ".gguf": "is GGUF, llama.cpp's form of a model: merge the model that it was made of, and convert the result",
    ".onnx": "is ONNX, a graph for inference: merge the model that it was exported from, and export the result",
    ".pdiparams": "is Paddle's form for inference: merge the model that it was exported from, and export the result",
    ".pdopt": "is an optimizer's state: merge the weights that were saved beside it",
    ".h5": "is TensorFlow's: save the model as safetensors first",
    ".msgpack": "is Flax's: save the model as safetensors first",
}
_META = re.compile(r"consolidated\.\d\d\.pth")  # what a tensor-parallel rank of Meta's trainings saves
_CONVERT = "convert it to Hugging Face's form, and merge that"
_OTHER_TORCH = (".pt", ".pth", ".ckpt")


def no_weights_message(path: str, prefix: str) -> str:
    """Return the sentence that reports a folder without weights of this prefix, with the most likely reason."""
    wanted = f"{path}: has no {', '.join(single_file_names(prefix))}, and no index of one"
    return f"{wanted}; {why}" if (why := _why_no_weights(path, prefix)) else wanted


def _why_no_weights(path: str, prefix: str) -> str:
    """Return the likely reason why a folder holds no weights of this prefix, and what to do; "" if there is none."""
    present = sorted(os.listdir(path))
    if sharded := [name for name in present if re.match(r"global_step\d+$|(bf16_)?zero_pp_rank|mp_rank_\d+_model", name)]:
        return (
            f"{sharded[0]} is what DeepSpeed's ZeRO saves, in parts: run zero_to_fp32.py, which lies beside it, as"
            " python zero_to_fp32.py . pytorch_model.bin"
        )
    if sharded := [name for name in present if re.match(r"pytorch_model_fsdp_\d+$", name)]:
        return f"{sharded[0]} is what FSDP saves, in parts: gather them with accelerate merge-weights"
    if "model_index.json" in present:
        parts = [name for name in present if written_by_diffusers(os.path.join(path, name))]
        return f"it is a pipeline of diffusers: merge its components one by one ({', '.join(parts[:SHOWN])})"
    files = [name for name in present if name.endswith(ENDINGS) and not _NOT_WEIGHTS.fullmatch(name)]
    if files:
        return _why_not(path, files[0], prefix)
    torch = [name for name in present if name.endswith(_OTHER_TORCH) and not _NOT_WEIGHTS.fullmatch(name)]
    if torch := [name for name in torch if os.path.isfile(os.path.join(path, name))]:
        if len(parts := [name for name in torch if _META.fullmatch(name)]) > 1:
            return f"it has {parts[0]} to {parts[-1]}, a slice of a model for each rank: {_CONVERT}"
        which = "that file" if len(torch) == 1 else "the one to merge"
        return f"it has {' and '.join(torch[:2])}{' and more' * (len(torch) > 2)}: give the path of {which}"
    within = [name for name in present if _holds_weights(os.path.join(path, name), prefix)]
    if within:
        more = f" (or {', '.join(within[1:4])})" if len(within) > 1 else ""
        return f"{within[0]} holds some: give {os.path.join(path, within[0])}{more}"
    return next((f"{name} {said}" for name in present if (said := foreign(name))), "")


def foreign(name: str) -> str:
    """Return what a file holds that no reader is for, and what to do, by the end of its name; "" if that tells nothing."""
    return next((said for end, said in _FOREIGN.items() if name.lower().endswith(end)), "")


def shards_alone(paths: Sequence[str]) -> list[str]:
    """Return a sentence on each of these paths that is one of a model's shards, or of its ranks' files, by its name."""
    found = []
    for path in dict.fromkeys(paths):
        folder, name = os.path.split(path)
        give = f"give the folder, {folder or '.'}, to merge all"
        if (shard := _SHARD.fullmatch(name)) and int(shard[2]) > 1:
            found.append(f"{path} is one of {int(shard[2])} shards of a model: {give}")
        elif name.endswith(ENDINGS) and (rank := _RANK_FILE.match(name)) and any(rank.groups()):
            found.append(f"{path} is what one rank of a parallel training saved of a model: {give}")
        elif _META.fullmatch(name) and os.path.exists(os.path.join(folder, "consolidated.01.pth")):
            found.append(f"{path} is one rank's slice of a model: {_CONVERT}")
    return found


def _why_not(path: str, name: str, prefix: str) -> str:
    """Return why a folder's file, whose name ends as those of weights do, is not taken for weights of this prefix."""
    if not os.path.isfile(os.path.join(path, name)):
        return f"its {name} is not a file, or is a link whose target doesn't exist"
    if name.endswith(".distcp"):
        return f"it has {name}, but not the .metadata file that describes its content"
    if (shard := _SHARD.fullmatch(name)) and int(shard[2]) > 1:
        index = f"{shard[1]}{shard[3]}.index.json"
        if not os.path.isfile(os.path.join(path, index)):
            return f"it has {name}, one of {int(shard[2])} shards, but not their index, {index}: add it"
    if _SHARDING.search(name):
        return (
            f"it has {name}, of a training that saved each sharding rank's weights apart, and those with float32 master"
            " weights only in the optimizer's state: save it in one piece, as PaddleNLP does with unified_checkpoint"
        )
    if name.startswith("master_weights") and prefix != "master_weights":
        return f"it has {name}: pass --merge_prefix master_weights to merge that"
    if name.startswith(("model", "pytorch_model")) and prefix != "model":
        return f"it has {name}: pass --merge_prefix model to merge that"
    return f"it has {name}: give the path of that file"


def _holds_weights(folder: str, prefix: str) -> bool:
    names = [one for name in single_file_names(prefix) for one in (name, f"{name}.index.json")]
    return any(os.path.isfile(os.path.join(folder, name)) for name in names)
