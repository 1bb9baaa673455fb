"""Know a Trainer's checkpoints: their paths, whether all their files are there, and how to keep their weights."""

from __future__ import annotations

import errno
import os
import re
import shutil
from collections.abc import Mapping, Sequence
from typing import Any

from ..checkpoints.formats.folder import ADAPTER, single_file_names

CHECKPOINT = re.compile(r"checkpoint-(\d+)")
# What a checkpoint holds besides weights and what describes them: states of the training, and of callbacks.
_STATE = re.compile(r"(optimizer|master_weight|rng_state|scheduler|scaler|ema|trainer_state|training_args|save\w*_signal)")
SMALL = 1 << 20  # bytes up to which a file is copied, so that nobody who edits it edits two checkpoints


def path_of(args: Any, step: int) -> str:
    """Return the folder of the checkpoint of a step. args: the Trainer's TrainingArguments."""
    return os.path.join(args.output_dir, f"checkpoint-{step}")


def steps_in(folder: str) -> list[int]:
    """Return the steps of the checkpoints in a folder, in ascending order."""
    names = os.listdir(folder) if os.path.isdir(folder) else []
    return sorted(int(found[1]) for name in names if (found := CHECKPOINT.fullmatch(name)))


def will_exist(args: Any, step: int) -> bool:
    """Return whether the Trainer writes the checkpoint of a step for which it has called on_save.

    With zero-cost checkpoints it calls on_save also where one is written only to the memory of the machine.
    """
    return not _zero_cost(args) or (args.save_steps > 0 and step % args.save_steps == 0)


def is_ready(args: Any, step: int, stale: Mapping[str, int]) -> bool:
    """Return whether all files of a checkpoint are written. stale: what signals_after gave when the run began."""
    return os.path.isdir(path_of(args, step)) and all(
        any(_changed(file) not in (None, stale.get(file)) for file in files) for files in _signals(args, step)
    )


def signals_after(args: Any, step: int) -> dict[str, int]:
    """Return the times of the files by which earlier runs' checkpoints of steps after this one say that they are complete.

    The run writes these checkpoints again, and they are complete when these files have changed.
    """
    files = [file for later in steps_in(args.output_dir) if later > step for one in _signals(args, later) for file in one]
    return {file: time for file in files if (time := _changed(file)) is not None}


def _signals(args: Any, step: int) -> list[list[str]]:
    """Return for each rank the paths of the files of which one says that the rank has written its files.

    Zero-cost checkpoints of PaddleFormers, and unified ones that are saved asynchronously, are completed after on_save, and
    have them.
    """
    folder = path_of(args, step)
    names: tuple[str, ...] = ()
    if _zero_cost(args):
        names = ("saved_signal_{}", "save_signal_TMP_{}")  # the second one as long as an EMA is to be assembled
    elif args.world_size > 1 and "async_save" in unified_options(args):
        names = (".model_weight.done.{}",)
        folder = os.path.join(getattr(args, "output_signal_dir", None) or args.output_dir, os.path.basename(folder))
    ranks = range(max(args.world_size, 1)) if names else ()
    return [[os.path.join(folder, name.format(rank)) for name in names] for rank in ranks]


def _changed(file: str) -> int | None:
    """Return the time at which a file was changed, in ns; None if there is no such file."""
    try:
        return os.stat(file).st_mtime_ns
    except FileNotFoundError:
        return None


def saves_slices(args: Any) -> bool:
    """Return whether each rank saves a file of its own slices of weights, as PaddleNLP's Trainer does by default."""
    degrees = [getattr(args, name, 1) or 1 for name in ("tensor_parallel_degree", "pipeline_parallel_degree")]
    return max(degrees) > 1 and not getattr(args, "unified_checkpoint", False)


def saves_shards(args: Any) -> str:
    """Return the option by which each sharding rank saves some weights, and those with float32 master weights not at all; ""
    if it isn't set, or has no effect."""
    form = getattr(args, "save_checkpoint_format", None)  # of PaddleFormers, which goes before save_sharded_model
    option = getattr(args, "save_sharded_model", False)
    sharded = form == "sharding_io" if form else option and not getattr(args, "unified_checkpoint", False)
    ranks = max(getattr(args, name, 1) for name in ("sharding_parallel_degree", "sharding_parallel_size"))
    if not sharded or ranks < 2 or not getattr(args, "should_save_sharding_stage1_model", True):  # as in stages 2 and 3
        return ""
    return "save_sharded_model" if option else "save_checkpoint_format sharding_io"


def unified_options(args: Any) -> Sequence[str]:
    """Return the options of unified checkpoints. Trainers split their text where they have an effect; elsewhere there are
    none."""
    options = getattr(args, "unified_checkpoint_config", None)
    return () if options is None or isinstance(options, str) else options


def never_comes(args: Any, step: int) -> bool:
    """Return whether a checkpoint that the Trainer has saved isn't there, and won't be."""
    return not _zero_cost(args) and not os.path.isdir(path_of(args, step))


def _zero_cost(args: Any) -> bool:
    return bool(getattr(args, "enable_zero_cost_checkpoint", False))


def form_of(folder: str) -> str | None:
    """Return how a checkpoint stores weights: "flex" (Paddle's distributed checkpoints), "unified" (safetensors with an
    index), "pdparams", "safetensors"; None if it has none."""
    names = os.listdir(folder) if os.path.isdir(folder) else []
    model_state = os.path.join(folder, "model_state")
    if os.path.isdir(model_state) and any(name.endswith(".metadata") for name in os.listdir(model_state)):
        return "flex"
    if any(name in names for name in ("model.safetensors.index.json", "peft_model.safetensors.index.json")):
        return "unified"
    if any(re.fullmatch(r"(lora_)?model_state.*\.pdparams(\.index.*)?", name) for name in names):
        return "pdparams"
    return "safetensors" if any(name.endswith(".safetensors") for name in names) else None


def adapter_file(folder: str) -> str | None:
    """Return the path of the only file with the weights of a LoRA adapter in a folder; None if there is no such file."""
    found = [name for name in single_file_names(ADAPTER) if os.path.isfile(os.path.join(folder, name))]
    found = found or [name for name in sorted(os.listdir(folder)) if name == "peft_model-00001-of-00001.safetensors"]
    return os.path.join(folder, found[0]) if found else None


def keep_weights(checkpoint: str, folder: str) -> None:
    """Put the weights of a checkpoint, and what describes them, into a folder of their own, by hard links where possible.

    A link takes neither time nor space, and stays when the Trainer removes the checkpoint.
    """
    partial = f"{folder}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    os.makedirs(partial)
    for name in os.listdir(checkpoint):
        if not _STATE.match(name) and not name.startswith("."):
            _link(os.path.join(checkpoint, name), os.path.join(partial, name))
    shutil.rmtree(folder, ignore_errors=True)
    os.rename(partial, folder)


def _link(source: str, target: str) -> None:
    """Put a file or a folder at a second path: small files as copies, large ones as hard links where possible."""
    if os.path.isdir(source):
        os.makedirs(target, exist_ok=True)
        for name in os.listdir(source):
            _link(os.path.join(source, name), os.path.join(target, name))
        return
    if os.path.getsize(source) > SMALL:
        try:
            os.link(os.path.realpath(source), target)
            return
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.EEXIST, errno.ENOSPC):
                raise
    copy(source, target)


def copy(source: str, target: str) -> None:
    """Copy a file or a folder into an output, without links: a later run may write into the files of its checkpoints.

    Times and modes are not copied: mounted object stores let nobody set them.
    """
    if not os.path.isdir(source):
        shutil.copyfile(source, target)
        return
    os.makedirs(target, exist_ok=True)
    for name in os.listdir(source):
        copy(os.path.join(source, name), os.path.join(target, name))


def describe(model: Any, folder: str, tokenizer: Any = None) -> None:
    """Write config.json of a model, lora_config.json of one with LoRA, and the tokenizer into a folder that lacks them.

    PaddleFormers' checkpoints have none of them.
    """
    if tokenizer is not None and not any(name.startswith("tokenizer") for name in os.listdir(folder)):
        tokenizer.save_pretrained(folder)
    lora = getattr(model, "lora_config", None)
    inner = model.model if lora is not None else model
    if lora is not None and not os.path.exists(os.path.join(folder, "lora_config.json")):
        lora.save_pretrained(folder)
    config = getattr(inner, "config", None)
    if config is not None and not os.path.exists(os.path.join(folder, "config.json")):
        before = getattr(config, "architectures", None)
        config.architectures = before or [type(inner).__name__]
        try:
            config.save_pretrained(folder)
        finally:
            config.architectures = before


def is_lora(model: Any) -> bool:
    """Return whether a model is a base with LoRA, of which only the adapter is trained."""
    return getattr(model, "lora_config", None) is not None


def state_of(model: Any) -> Mapping[str, Any]:
    """Return the weights of a model by the names that its checkpoints have: without the prefix of what LoRA wraps it in."""
    state: Mapping[str, Any] = (model.model if is_lora(model) else model).state_dict()
    return state
