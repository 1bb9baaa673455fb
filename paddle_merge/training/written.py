"""Write merged weights as a checkpoint that from_pretrained and the Trainer's resume_from_checkpoint load.

The output is like the run's last checkpoint: the same formats and layout, with that checkpoint's optimizer, scheduler and
step beside the merged weights. Where the optimizer holds float32 master weights, they are replaced too (masters.py):
otherwise the first step after resuming would undo the merge.
"""

from __future__ import annotations

import logging
import os
import re
import shlex
import shutil
from collections.abc import Mapping
from typing import Any

from ..checkpoints.names import HEAD
from ..conversion.inputs import open_together
from ..errors import MergeError, WorkError
from ..plan.file_names import RECORD
from ..recipe.config import MergeConfig
from ..run.merge import merge
from . import card, flex, masters
from .checkpoints import adapter_file, copy, describe, form_of, is_lora
from .outputs import publish, scratch_of
from .unified import add_head, names_in, write_index

log = logging.getLogger("paddle_merge")
Fields = Mapping[str, Any]  # of MergeConfig: models, method and its parameters
_LIBRARIES = ("paddlenlp", "paddleformers")  # each also the name of the layout of its models
# What a checkpoint holds of weights, which the merged ones replace.
_REPLACED = re.compile(r"(lora_)?model_state|(model|peft_model|adapter_model|pytorch_model)[.-]|master_weight|\.")
# Of PaddleNLP's checkpoints of tensor and pipeline parallelism.
_OF_RANK = re.compile(r"(lora_)?model_state\..+\.pdparams")


def library_of(args: Any) -> str:
    """Return the library of a Trainer: "paddlenlp" or "paddleformers". args: its TrainingArguments."""
    names = [base.__module__.partition(".")[0] for base in type(args).__mro__]
    return next((name for name in names if name in _LIBRARIES), "paddleformers")


def write(
    output: str,
    like: str | None,
    fields: Fields,
    args: Any,
    model: Any,
    lora: bool | None = None,
    *,
    exact: Fields | None = None,
    about: str,
) -> None:
    """Write a merge into the folder `output`, in place of what an earlier one wrote there; complete, or not at all.

    like: the checkpoint that the output is to be like; None: the run has none, and the output is for from_pretrained only.
    fields: what is merged: model_path_list and so on; of LoRA adapters, their files. lora: whether the output is an adapter;
    None: if the model is one with LoRA. exact: the same with unrounded inputs, for master weights; None: `fields`.
    about: what the model card says that the output is. Raises MergeError; with the command that repeats the merge by hand.
    """
    lora = is_lora(model) if lora is None else lora
    scratch = scratch_of(output)
    shutil.rmtree(scratch, ignore_errors=True)
    # Of the output's own name, because it is written into the model card.
    partial = os.path.join(scratch, os.path.basename(os.path.normpath(output)))
    form = (form_of(like) if like is not None else None) or "safetensors"
    writer = _adapter if lora else {"flex": _flex, "pdparams": _pdparams}.get(form, _safetensors)
    if lora and form == "flex":
        writer = _flex_adapter
    try:
        writer(partial, like, dict(fields), args, model)
        if like is not None:
            unrounded = {**(exact or fields), "output_layout": None if lora else library_of(args)}
            _complete(partial, like, form, unrounded, model)
        card.tell(partial, about)
        publish(partial, output)
    except BaseException as error:
        if isinstance(error, MergeError):
            raise type(error)([*error.problems, f"to repeat the merge by hand: {command(fields, output)}"]) from error
        raise
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _complete(folder: str, like: str, form: str, fields: Fields, model: Any) -> None:
    """Add to merged weights what else a training needs that goes on from them, of the checkpoint `like`.

    fields: of the merge that gives master weights.
    """
    before = set(os.listdir(folder))
    try:
        if any(_OF_RANK.fullmatch(name) for name in os.listdir(like)):
            raise WorkError("every rank has a file of its own weights, and the output is one whole model")
        for name in os.listdir(like):
            if not _REPLACED.match(name) and name not in before:
                copy(os.path.join(like, name), os.path.join(folder, name))
        masters.replace(folder, like, form, fields, model)
    except WorkError as error:
        for name in set(os.listdir(folder)) - before:
            path = os.path.join(folder, name)
            shutil.rmtree(path) if os.path.isdir(path) else os.remove(path)
        log.warning(
            "%s: from_pretrained opens it, but no Trainer can go on from it as from %s: %s",
            os.path.basename(folder),
            like,
            error,
        )


def command(fields: Fields, output: str) -> str:
    """Return the command line that makes the merge of these fields, for people to copy.

    A recipe is written into a file beside the output, which the command names.
    """
    words = ["python -m paddle_merge"]
    for name, value in fields.items():
        if name == "recipe_yaml":
            file = value
            if not os.path.exists(value):
                file = f"{output}.yaml"
                with open(file, "w", encoding="utf-8") as stream:
                    stream.write(value)
            words.insert(1, shlex.quote(file))
            continue
        values = value if isinstance(value, list | tuple) else [value]
        flag = f"--no_{name}" if value is False else f"--{name}"
        words.append(" ".join([flag, *(shlex.quote(str(one)) for one in values if not isinstance(one, bool))]))
    return " ".join([*words, f"--output_path {shlex.quote(output)}"])


def _merge(folder: str, fields: Fields, **more: Any) -> None:
    merge(MergeConfig(**{**fields, **more, "output_path": folder, "overwrite": True}), progress=False)


def _layout(like: str | None, args: Any) -> str | None:
    """Return the layout of a checkpoint; of none, the one that the library's from_pretrained takes."""
    if like is None:
        return "paddlenlp" if library_of(args) == "paddlenlp" else "hf"
    return open_together([like], [], "model").layout


def _safetensors(folder: str, like: str | None, fields: Fields, args: Any, model: Any) -> None:
    unified = like is not None and form_of(like) == "unified"
    # A Trainer in one process loads the first file of a unified checkpoint, and no other one.
    _merge(folder, fields, output_layout=_layout(like, args), **({"max_shard_size": "1000TB"} if unified else {}))
    if like is not None and unified:
        file, index = os.path.join(folder, "model.safetensors"), "model.safetensors.index.json"
        if HEAD in names_in(os.path.join(like, index)):
            add_head(file)
        write_index(file, os.path.join(folder, index))
    describe(model, folder)


def _pdparams(folder: str, like: str | None, fields: Fields, args: Any, model: Any) -> None:
    _merge(folder, fields, output_layout=_layout(like, args), save_format="pdparams")
    describe(model, folder)


def _flex(folder: str, like: str | None, fields: Fields, args: Any, model: Any) -> None:
    """Write safetensors in Hugging Face's layout, for from_pretrained, and model_state/, with which the Trainer resumes."""
    _merge(folder, fields, output_layout="hf")
    own = os.path.join(folder, ".flex")
    _merge(own, fields, output_layout="paddleformers", save_format="pdparams")
    if not flex.from_pdparams(own, os.path.join(folder, "model_state"), getattr(args, "tensor_model_parallel_size", 1)):
        log.warning(
            "%s: is for from_pretrained only: to resume from it, fused gate and up projections would have to be split"
            " between tensor-parallel ranks",
            os.path.basename(folder),
        )
    shutil.rmtree(own)
    describe(model, folder)


def _adapter(folder: str, like: str | None, fields: Fields, args: Any, model: Any) -> None:
    """Write an adapter whose lora_A and lora_B are merged each for itself, in one file as the last checkpoint has it."""
    file = adapter_file(like) if like is not None else None
    name = os.path.basename(file) if file else "lora_model_state.pdparams"
    save_format = name.rpartition(".")[2]
    _merge(f"{folder}.merged", fields, save_format=save_format)
    os.makedirs(folder)
    stem = "model_state" if save_format == "pdparams" else "model"
    os.rename(os.path.join(f"{folder}.merged", f"{stem}.{save_format}"), os.path.join(folder, name))
    os.rename(os.path.join(f"{folder}.merged", RECORD), os.path.join(folder, RECORD))
    shutil.rmtree(f"{folder}.merged")
    index = os.path.join(like, "peft_model.safetensors.index.json") if like is not None else ""
    if os.path.exists(index):
        copy(index, os.path.join(folder, os.path.basename(index)))
    describe(model, folder)


def _flex_adapter(folder: str, like: str | None, fields: Fields, args: Any, model: Any) -> None:
    """Write the adapter as a file, for from_pretrained, and base and adapter in model_state/, as PaddleFormers has them."""
    own = f"{folder}.merged"
    _merge(own, fields, output_layout="paddleformers", save_format="pdparams")
    os.makedirs(folder)
    flex.adapter_from(own, os.path.join(folder, "lora_model_state.pdparams"))
    if not flex.from_pdparams(own, os.path.join(folder, "model_state"), getattr(args, "tensor_model_parallel_size", 1)):
        raise WorkError("an adapter of a model with fused projections, trained with tensor parallelism, can't be written")
    os.rename(os.path.join(own, RECORD), os.path.join(folder, RECORD))
    shutil.rmtree(own)
    describe(model, folder)
