"""Make the files beside the weights: config and tokenizer (of the folder that plan/config_source.py chooses), the merge's
record, and the model card (card.py)."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from typing import Any

from ...checkpoints.adapters import absolute_spec
from ...checkpoints.json_files import parsed, read_small
from ...checkpoints.names import is_correction, last_word
from ...conversion.vocabulary.ids import rewrite_ids, sized
from ...conversion.vocabulary.write import is_tokenizer_file, with_tokens
from ...errors import CheckpointError
from ...plan import chat
from ...plan.file_names import CARD, EXPERTS, LOCK, RECORD, WEIGHTS
from ...plan.loader_files import loader_files
from ...plan.mixture import mixture_config
from ...plan.output_config import output_config
from ...plan.plan import Plan
from ...recipe.request import Request
from ...version import __version__
from .card import model_card
from .disk import json_bytes

MAX_SIDECAR = 1 << 30  # bytes; they are held in memory


# How many ranks a model was trained on, as PaddleNLP and PaddleFormers write it: they would split whole weights once more.
_RANKS = ("tensor_parallel_degree", "tensor_model_parallel_size")
_DROPPED = (*_RANKS, "quantization_config")  # the weights are numbers, whatever codes they were read from
# What PaddleNLP's config.json says about layers that the weights have fused.
FUSED_FLAGS = {"fuse_attention_qkv": {"qkv_proj"}, "fuse_attention_ffn": {"gate_up_fused_proj"}}


def read_sidecars(plan: Plan, request: Request) -> dict[str, bytes]:
    """Return what to write beside the weights, by name: the model card, the order of experts if they were matched, and
    copies from plan.config_source.folder (config.json with the new dtype and vocabulary, if there are such), the
    tokenizer's from plan.tokens or plan.added; with the chat template that was asked for, if one was. Raises
    CheckpointError listing the files of copy_file_list that aren't there or may not be copied."""
    folder, tokens = plan.config_source.folder, plan.tokens
    problems = []
    extra = [os.path.normpath(name) for name in request.copied_files]
    for name in extra:
        if os.path.isabs(name) or name.split(os.sep)[0] == "..":
            problems.append(f"--copy_file_list {name}: must be inside {folder}")
        elif name.endswith(WEIGHTS) or name in (RECORD, LOCK):
            problems.append(f"--copy_file_list {name}: would stand in the way of the merged weights or their record")
        elif plan.chat_template is not None and name in (chat.FILE, chat.OLDER):
            problems.append(f"--copy_file_list {name}: would contradict the chat template that is asked for")
        elif not os.path.isfile(os.path.join(folder, name)):
            problems.append(f"--copy_file_list {name}: no such file in {folder}")
    if problems:
        raise CheckpointError(problems)

    contents = _read(folder, [*loader_files(folder)[0], *extra])
    if tokens is not None:
        theirs = [name for name in loader_files(tokens.source.folder)[0] if is_tokenizer_file(name)]
        contents = {name: content for name, content in contents.items() if name in extra or not is_tokenizer_file(name)}
        stored = tokens.vocabulary.stored or tokens.vocabulary
        contents |= with_tokens(_read(stored.folder, theirs), stored, tokens.vocabulary)
        contents = rewrite_ids(contents, tokens, folder)
    elif plan.added is not None and plan.added.folder is not None:
        theirs = [name for name in loader_files(plan.added.folder)[0] if is_tokenizer_file(name)]
        contents = {name: content for name, content in contents.items() if name in extra or not is_tokenizer_file(name)}
        contents |= _read(plan.added.folder, theirs)
    path = os.path.join(folder, "config.json")
    if "config.json" in contents and isinstance(model := parsed(path, contents["config.json"]), dict):
        contents["config.json"] = _model_config(contents["config.json"], model, plan)
    if plan.chat_template is not None:
        contents = chat.placed(plan.chat_template, contents)
    card = model_card(plan, request, contents).encode("utf-8", "surrogateescape")
    orders = plan.experts.orders
    experts = {EXPERTS: orders.to_bytes([absolute_spec(path) for path in plan.recipe.sources])} if orders is not None else {}
    return {CARD: card} | contents | experts


def _read(folder: str, names: Sequence[str]) -> dict[str, bytes]:
    """Read files of a folder, by name. Raises CheckpointError."""
    contents = {}
    for name in names:
        path = os.path.join(folder, name)
        if not os.path.isfile(path) or name.endswith(WEIGHTS):
            continue
        try:
            contents[name] = read_small(path, MAX_SIDECAR)
        except OSError as error:
            raise CheckpointError(f"{path}: can't be read ({error.strerror})") from None
    return contents


def _model_config(content: bytes, model: dict[str, Any], plan: Plan) -> bytes:
    """Return config.json as the output's loaders need it: the weights' dtype under both of its names, transformers' and
    Paddle's libraries, rotary embeddings likewise; nothing of ranks, because the output's tensors are whole; of codes, if it
    has such; and, where the layout is known, PaddleFormers' mark and what is fused. As it is where it says all that already.

    8-bit floats are only stored: loaders compute in what config.json says, and fail if it says float8. Beside codes, that is
    the dtype of what is stored as plain numbers.
    """
    plain = [one for one in plan.tensors if one.merged and one.scales is None and not is_correction(one.name)]
    if plan.storage.form is not None:  # a few vectors may be wider
        plain = [tensor for tensor in plain if len(tensor.shape) > 1] or plain
    dtypes = {tensor.dtype.name for tensor in plain}
    wanted = {name: value for name, value in model.items() if name not in _DROPPED}
    stored_only = any(tensor.dtype.itemsize == 1 for tensor in plain)
    has_dtype = plan.recipe.out_dtype is not None or {"dtype", "torch_dtype", "model_type"} & model.keys()
    if len(dtypes) == 1 and not stored_only and has_dtype:
        wanted["dtype"] = wanted["torch_dtype"] = dtypes.pop()
    if (codes := plan.storage.config(plan.tensors)) is not None:
        wanted["quantization_config"] = codes
    if plan.added is not None and plan.added.rows is not None:
        wanted = sized(wanted, plan.added.rows)
    if plan.tied is not None:
        wanted["tie_word_embeddings"] = plan.tied
    wanted.update(_older_rope(model))
    wanted, _ = output_config(wanted, plan.recipe, plan.tensors, plan.inputs)
    if isinstance(text := wanted.get("text_config"), dict):
        says = {"tie_word_embeddings": plan.tied} if plan.tied is not None and "tie_word_embeddings" in text else {}
        own = {name: value for name, value in text.items() if name not in _DROPPED}
        wanted["text_config"] = {**own, **_older_rope(text), **says}
    if plan.layout is not None:
        wanted.pop("source", None)
        if plan.layout == "paddleformers":
            wanted["source"] = "paddle"
        words = {last_word(tensor.name) for tensor in plan.tensors}
        for flag, layers in FUSED_FLAGS.items():
            if flag in wanted or (plan.layout == "paddlenlp" and words & layers):
                wanted[flag] = bool(words & layers)
    if plan.recipe.mixture is not None:
        wanted = mixture_config(plan.recipe.mixture, wanted)
    return content if wanted == model else json_bytes(wanted)


def _older_rope(model: Mapping[str, Any]) -> dict[str, Any]:
    """Return rope_parameters, which transformers 5 writes, as the entries that PaddleNLP and transformers 4 read.

    Without these entries they would take their defaults, and silently compute something else.
    """
    parameters = model.get("rope_parameters")
    if not isinstance(parameters, dict) or "rope_theta" not in parameters:  # none, or some for each type of layer
        return {}
    missing = {name: parameters[name] for name in ("rope_theta", "partial_rotary_factor") if name in parameters}
    scaling = {name: value for name, value in parameters.items() if name not in missing}
    if scaling.get("rope_type", "default") != "default":
        missing["rope_scaling"] = scaling
    return {name: value for name, value in missing.items() if model.get(name) is None}


def record(request: Request, plan: Plan) -> bytes:
    """Return the content of merge_config.json, which given to the command repeats the merge.

    Experts that were chosen by a score are listed there, so that the file with their statistics isn't needed again.
    """
    fields, kept = dict(request.record), plan.recipe.keep_experts
    if request.recipe is not None and request.recipe.keep_experts != kept:
        from ...recipe.yaml_write import to_yaml  # imports YAML

        fields["recipe_yaml"] = to_yaml(dataclasses.replace(request.recipe, keep_experts=kept), absolute_spec)
    return json_bytes({"paddle_merge_version": __version__, **fields})
