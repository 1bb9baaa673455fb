"""Which layout a checkpoint is stored in: by evidence, never by hope. See layout.py for what the layouts are."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..checkpoints.config_json import is_tied, read_config, widths
from ..checkpoints.names import LINEARS, is_linear, last_word
from ..checkpoints.tensors import Checkpoint
from ..errors import CheckpointError


@dataclass(frozen=True)
class Detected:
    """layout: None if it can't be told. evidence: why, for people. tied: whether lm_head is the embedding."""

    layout: str | None
    evidence: str
    tied: bool
    config: Mapping[str, Any]


def detect(checkpoint: Checkpoint, prefix: str, fallback: Mapping[str, Any], said: str | None = None) -> Detected:
    """By names, the kind of file, and the shapes of non-square weights that config.json explains; these must agree.

    fallback: a config of the same architecture, for a checkpoint without one. said: the layout that the user states. Raises
    CheckpointError if shapes say otherwise.
    """
    config = read_config(checkpoint.folder) or fallback
    tied = is_tied(checkpoint, config)
    hf, paddle = _votes(checkpoint, widths(config))
    torch = checkpoint.kind == "bin" or checkpoint.format == "pt"

    def found(layout: str | None, evidence: str) -> Detected:
        against = paddle if layout == "hf" else hf if layout else []
        if against:
            layout, evidence = None, f"{evidence}, but not the shape of {against[0]!r}"
        return Detected(layout, evidence, tied, config)

    if said is not None:
        result = found(said, f"--layout says {said}")
        if result.layout is None:
            raise CheckpointError(f"{checkpoint.path}: {result.evidence}")
        return result
    family = _family(checkpoint, config)
    if family is None:
        return Detected(None, "its tensors aren't called as those of a language model", tied, config)
    if family != "model":
        if torch:
            return Detected(None, f"its tensors are called {family}. as PaddleNLP's, but the file is torch's", tied, config)
        return found("paddlenlp", f"its tensors are called {family}. as PaddleNLP calls them")
    if checkpoint.kind in ("pdparams", "flex"):
        return found("paddleformers", f"{checkpoint.kind} files hold Paddle's layout")
    if prefix == "master_weights":
        return found("paddleformers", "master weights are in Paddle's layout")
    if hf or paddle:
        return found("hf" if hf else "paddleformers", f"the shape of {(hf or paddle)[0]!r} says so")
    if config.get("source") == "paddle":
        evidence = 'config.json says "source": "paddle"'
        if torch:
            return Detected(None, f"{evidence}, but the file is torch's", tied, config)
        return found("paddleformers", evidence)
    if torch:
        return found("hf", "the file is torch's")
    return Detected(None, "its Linear weights are all square, or config.json doesn't tell their sizes", tied, config)


def alike(inputs: Sequence[Checkpoint], found: Sequence[Detected]) -> list[Detected]:
    """Where a layout can't be told, but all names and shapes are those of one that can, non-square Linear ones among them,
    it is the same."""
    result = list(found)
    for number, checkpoint in enumerate(inputs):
        for other, known in zip(inputs, found, strict=True):
            shapes = {name: entry.shape for name, entry in checkpoint.tensors.items()}
            tells = any(len(set(shape)) == 2 == len(shape) and is_linear(name) for name, shape in shapes.items())
            same = shapes == {name: entry.shape for name, entry in other.tensors.items()}
            if result[number].layout is None and known.layout and tells and same:
                result[number] = dataclasses.replace(known, evidence=f"its shapes are those of {other.path}")
    return result


def _family(checkpoint: Checkpoint, config: Mapping[str, Any]) -> str | None:
    """What the tensors of the layers are called after: "model", or PaddleNLP's name of the model's type."""
    first = {name.partition(".")[0] for name in checkpoint.tensors if re.search(r"\.layers\.\d+\.", name)}
    if len(first) != 1:
        return None
    (family,) = first
    return family if family in ("model", str(config.get("model_type", "")).replace("-", "_")) else None


def _votes(checkpoint: Checkpoint, sizes: Mapping[str, int]) -> tuple[list[str], list[str]]:
    """The names of the weights that are stored as Hugging Face, and as Paddle, would; square ones say nothing."""
    hf, paddle = [], []
    for name, entry in checkpoint.tensors.items():
        wanted = LINEARS.get(last_word(name)) if re.search(r"\.layers\.\d+\..*\.weight$", name) else None
        if wanted is None or not set(wanted) <= sizes.keys() or sizes[wanted[0]] == sizes[wanted[1]]:
            continue
        shape = sizes[wanted[0]], sizes[wanted[1]]
        if entry.shape == shape:
            hf.append(name)
        elif entry.shape == shape[::-1]:
            paddle.append(name)
    return hf, paddle
