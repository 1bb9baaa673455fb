"""Layouts: how a language model's weights are named and turned. Hugging Face stores a Linear's weight [out, in], Paddle
[in, out]; PaddleNLP also calls tensors after the model's type. Nothing in a file says which it is, so it is detected from
names and shapes, never guessed; then all inputs are viewed in one layout, without moving a byte.

    layout         names       Linear     lm_head
    hf             model.      [out, in]  [V, h]; absent if tied to the embedding
    paddleformers  model.      [in, out]  [V, h]
    paddlenlp      llama. ...  [in, out]  [h, V]; [V, h] if tied
"""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .errors import CheckpointError
from .readers import Checkpoint, TensorEntry, read_json
from .readers.parts import as_boxes

LAYOUTS = ("hf", "paddlenlp", "paddleformers")
FORMATS = {"hf": "pt", "paddlenlp": "np", "paddleformers": "np"}  # what loaders want to read in safetensors' metadata
EMBEDDINGS = ("embed_tokens", "wte", "word_embeddings", "embeddings")
# Linear layers by the last word of their name -> (rows, columns) of their weight in HF's layout, by _sizes' names.
LINEARS: dict[str, tuple[str, str] | None] = {
    "q_proj": ("heads", "hidden"),
    "k_proj": ("kv", "hidden"),
    "v_proj": ("kv", "hidden"),
    "o_proj": ("hidden", "heads"),
    "qkv_proj": ("qkv", "hidden"),
    "gate_proj": ("intermediate", "hidden"),
    "up_proj": ("intermediate", "hidden"),
    "down_proj": ("hidden", "intermediate"),
    "gate_up_fused_proj": ("gate_up", "hidden"),
    "up_gate_proj": ("gate_up", "hidden"),
    "gate_up_proj": ("gate_up", "hidden"),
    "gate": None,  # a mixture's router: as many rows as experts
    "shared_expert_gate": None,
}


@dataclass(frozen=True)
class Detected:
    """layout: None if it can't be told. evidence: why, for people. tied: whether lm_head is the embedding."""

    layout: str | None
    evidence: str
    tied: bool
    config: Mapping[str, Any]


def detect(checkpoint: Checkpoint, prefix: str, fallback: Mapping[str, Any]) -> Detected:
    """By names, by the shapes of non-square weights that config.json explains, and by what wrote the file.

    fallback: a config of the same architecture, for a checkpoint without one. Raises CheckpointError where the evidence
    contradicts itself.
    """
    config = _config(checkpoint) or fallback
    tied = bool(config.get("tie_word_embeddings", False))

    def found(layout: str | None, evidence: str) -> Detected:
        return Detected(layout, evidence, tied, config)

    family = _family(checkpoint, config)
    if family is not None and family != "model":
        return found("paddlenlp", f"its tensors are called {family}...., as PaddleNLP calls them")
    if family is None:
        return found(None, "its tensors aren't called as those of a language model")
    if checkpoint.kind in ("pdparams", "flex"):
        return found("paddleformers", f"{checkpoint.kind} files hold Paddle's layout")
    if prefix == "master_weights":
        return found("paddleformers", "master weights are in Paddle's layout")
    hf, paddle = _votes(checkpoint, _sizes(config))
    if hf and paddle:
        raise CheckpointError(
            f"{checkpoint.path}: {hf[0]!r} is stored as Hugging Face does, {paddle[0]!r} as Paddle does; it is damaged, or"
            " its config.json belongs to another model"
        )
    if hf or paddle:
        name = (hf or paddle)[0]
        return found("hf" if hf else "paddleformers", f"the shape of {name!r}")
    if config.get("source") == "paddle":
        return found("paddleformers", 'config.json says "source": "paddle"')
    if checkpoint.kind == "bin" or checkpoint.format == "pt":
        return found("hf", "torch's file format")
    return found(None, "all its Linear weights are square, or config.json doesn't tell their sizes")


def normalise(
    inputs: Sequence[Checkpoint], given: Sequence[str | None], target: str | None, strict: bool, prefix: str
) -> tuple[tuple[Checkpoint, ...], str | None, list[str]]:
    """All inputs in one layout: `target`, else the first one's. given: layouts that the user states, one per input.

    Returns the inputs, their layout (None if it can't be told, but is the same as far as can be told), and a sentence on
    each that was turned. Raises CheckpointError listing what can't be told or turned.
    """
    fallback = next((config for checkpoint in inputs if (config := _config(checkpoint))), {})
    found = [detect(checkpoint, prefix, fallback) for checkpoint in inputs]
    found = [
        dataclasses.replace(one, layout=said, evidence="as --layout says") if said else one
        for one, said in zip(found, given, strict=True)
    ]
    goal = target or found[0].layout
    if all(one.layout == goal for one in found):
        return tuple(inputs), goal, []
    pairs = list(zip(inputs, found, strict=True))
    shown = [f"{checkpoint.path}: {one.layout or 'unknown'} ({one.evidence})" for checkpoint, one in pairs]
    if strict and len({one.layout for one in found}) > 1:
        raise CheckpointError(f"--strict_layout: the inputs' layouts differ: {'; '.join(shown)}")
    problems = [
        f"{checkpoint.path}: can't tell its layout ({one.evidence}), and it may have to be turned to {goal or 'the others'};"
        f" say it with --layout, one of {', '.join(LAYOUTS)} for each model and then the base"
        for checkpoint, one in pairs
        if one.layout is None
    ]
    if len({one.tied for one in found}) > 1:
        ties = "; ".join(f"{checkpoint.path} {'does' if one.tied else 'does not'}" for checkpoint, one in pairs)
        problems.append(f"some inputs tie lm_head to the embedding and some don't, so they can't be turned alike: {ties}")
    turned = []
    for checkpoint, one in pairs if not problems else ():
        try:
            turned.append(_turn(checkpoint, one, str(goal)))
        except CheckpointError as error:
            problems += error.problems
    if problems:
        raise CheckpointError(problems)
    return (
        tuple(turned),
        goal,
        [f"{text}, read as {goal}" for text, one in zip(shown, found, strict=True) if one.layout != goal],
    )


# --- detecting -------------------------------------------------------------------------------------------------------


def _config(checkpoint: Checkpoint) -> Mapping[str, Any]:
    path = os.path.join(checkpoint.folder, "config.json")
    config = read_json(path) if os.path.isfile(path) else {}
    return config if isinstance(config, dict) else {}


def _family(checkpoint: Checkpoint, config: Mapping[str, Any]) -> str | None:
    """What the tensors of the layers are called after: "model", or PaddleNLP's name of the model's type."""
    first = {name.partition(".")[0] for name in checkpoint.tensors if re.search(r"\.layers\.\d+\.", name)}
    if len(first) != 1:
        return None
    (family,) = first
    return family if family in ("model", str(config.get("model_type", "")).replace("-", "_")) else None


def _sizes(config: Mapping[str, Any]) -> dict[str, int]:
    """The widths that config.json tells."""
    hidden, heads = config.get("hidden_size"), config.get("num_attention_heads")
    sizes: dict[str, Any] = {"hidden": hidden, "intermediate": config.get("intermediate_size")}
    if isinstance(hidden, int) and isinstance(heads, int) and heads > 0:
        width = config.get("head_dim") or hidden // heads
        sizes["heads"] = heads * width
        sizes["kv"] = (config.get("num_key_value_heads") or heads) * width
        sizes["qkv"] = sizes["heads"] + 2 * sizes["kv"]
    if isinstance(sizes["intermediate"], int):
        sizes["gate_up"] = 2 * sizes["intermediate"]
    return {name: size for name, size in sizes.items() if isinstance(size, int)}


def _votes(checkpoint: Checkpoint, sizes: Mapping[str, int]) -> tuple[list[str], list[str]]:
    """The names of the weights that are stored as Hugging Face, and as Paddle, would; square ones say nothing."""
    hf, paddle = [], []
    for name, entry in checkpoint.tensors.items():
        wanted = LINEARS.get(_word(name)) if name.endswith(".weight") else None
        if wanted is None or not set(wanted) <= sizes.keys() or sizes[wanted[0]] == sizes[wanted[1]]:
            continue
        shape = sizes[wanted[0]], sizes[wanted[1]]
        if entry.shape == shape:
            hf.append(name)
        elif entry.shape == shape[::-1]:
            paddle.append(name)
    return hf, paddle


def _word(name: str) -> str:
    """The layer's own name: "q_proj" of "model.layers.0.self_attn.q_proj.weight"."""
    return (["", *name.split(".")])[-2]


# --- turning ---------------------------------------------------------------------------------------------------------


def _turn(checkpoint: Checkpoint, found: Detected, goal: str) -> Checkpoint:
    """The same tensors, named and turned as in `goal`. Raises CheckpointError listing those it doesn't know how to turn."""
    assert found.layout is not None
    model_type = str(found.config.get("model_type", "")).replace("-", "_")
    if "paddlenlp" in (goal, found.layout) and not model_type:
        raise CheckpointError(f"{checkpoint.path}: its config.json has no model_type, after which PaddleNLP names tensors")
    before, after = (f"{model_type}." if layout == "paddlenlp" else "model." for layout in (found.layout, goal))
    flips = (found.layout == "hf") != (goal == "hf")
    problems, tensors = [], {}
    for name, entry in checkpoint.tensors.items():
        word = _word(name)
        new = after + name.removeprefix(before) if name.startswith(before) else name
        if word == "lm_head":
            flip = not found.tied and (found.layout == "paddlenlp") != (goal == "paddlenlp")
        elif len(entry.shape) < 2 or word in EMBEDDINGS:
            flip = False
        elif len(entry.shape) == 2 and word in LINEARS and name.endswith(".weight"):
            flip = flips
        elif flips:
            problems.append(
                f"{checkpoint.path}: tensor {name!r} {list(entry.shape)}: it isn't known whether it is turned between"
                f" {found.layout} and {goal}"
            )
            continue
        else:
            flip = False
        tensors[new] = transposed(entry, new) if flip else dataclasses.replace(entry, name=new)
    if problems:
        raise CheckpointError(problems)
    if found.tied and goal == "hf":
        tensors.pop("lm_head.weight", None)
    return dataclasses.replace(checkpoint, tensors=tensors)


def transposed(entry: TensorEntry, name: str) -> TensorEntry:
    """The matrix on its side, without moving a byte."""
    boxes = [
        dataclasses.replace(box, at=box.at[::-1], shape=box.shape[::-1], strides=box.strides[::-1])
        for box in as_boxes(entry)
    ]
    return dataclasses.replace(entry, name=name, shape=entry.shape[::-1], parts=tuple(boxes))
