"""Detect the layout in which a checkpoint is stored (layout.py describes the layouts) from names, shapes and file formats.

A layout is never assumed: where the evidence is missing or contradictory, it stays unknown.
"""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Mapping, Sequence
from typing import Any

from ..checkpoints.config_json import is_tied, read_config, widths
from ..checkpoints.names import LINEARS, MOST_NAMES, is_linear, last_word
from ..checkpoints.tensors import Checkpoint
from ..errors import CheckpointError
from ..records import record
from .fused import ALWAYS_FUSED, PIECES
from .modules import is_language
from .orientation import is_transposed

_LAYER = re.compile(r"(.*?)\.layers\.\d+\.")


@record(frozen=True)
class Detected:
    """Hold what is known about a checkpoint's layout.

    layout: one of names.LAYOUTS; None if it is unknown. evidence: the reason, as part of a sentence. tied: whether lm_head
    is tied to the embedding. config: the model's config.json. likely: the layout of a file of torch's whose names don't show
    one, which counts where another input's layout is known.
    """

    layout: str | None
    evidence: str
    tied: bool
    config: Mapping[str, Any]
    likely: str | None = None


def detect(checkpoint: Checkpoint, prefix: str, fallback: Mapping[str, Any], stated: str | None = None) -> Detected:
    """Return the layout of a checkpoint, by its tensors' names, its file format, and its shapes; these must agree.

    Shapes count for non-square Linear weights whose sizes config.json gives.
    prefix: which weights these are, "model" or "master_weights". fallback: a config of the same architecture, for a
    checkpoint without one. stated: the layout that the user states. Raises CheckpointError if shapes contradict it.
    """
    config = read_config(checkpoint.folder) or fallback
    tied = is_tied(checkpoint, config)
    hf, paddle = _votes(checkpoint, widths(config), config.get("model_type"))
    torch = checkpoint.kind == "bin" or checkpoint.format == "pt"

    def found(layout: str | None, evidence: str) -> Detected:
        """Return this layout, or none if the shapes of some weights contradict it."""
        against = paddle if layout == "hf" else hf if layout else []
        if against:
            layout, evidence = None, f"{evidence}; the shape of {against[0]!r} contradicts that"
        return Detected(layout, evidence, tied, config)

    if stated is not None:
        result = found(stated, f"--layout says {stated}")
        if result.layout is None:
            raise CheckpointError(f"{checkpoint.path}: {result.evidence}")
        return result
    family = _family(checkpoint, config)
    if family is None:
        likely = "hf" if torch else None
        return Detected(None, "its tensors don't have the names of a language model's", tied, config, likely)
    if family != "model":
        if torch:
            evidence = f"its tensors' names begin with {family}. as PaddleNLP's do, but the file is torch's"
            return Detected(None, evidence, tied, config)
        return found("paddlenlp", f"its tensors' names begin with {family}. as PaddleNLP's do")
    if checkpoint.kind in ("pdparams", "flex"):
        return found("paddleformers", f"{checkpoint.kind} files are in Paddle's layout")
    if prefix == "master_weights":
        return found("paddleformers", "master weights are in Paddle's layout")
    if hf or paddle:
        return found("hf" if hf else "paddleformers", f"by the shape of {(hf or paddle)[0]!r}")
    if config.get("source") == "paddle":
        evidence = 'config.json says "source": "paddle"'
        if torch:
            return Detected(None, f"{evidence}, but the file is torch's", tied, config)
        return found("paddleformers", evidence)
    if torch:
        return found("hf", "the file is torch's")
    return Detected(None, "its Linear weights are all square, or config.json doesn't give their sizes", tied, config)


def infer_from_others(inputs: Sequence[Checkpoint], found: Sequence[Detected]) -> list[Detected]:
    """Return what is known about the inputs' layouts, after comparing them with one another.

    Where the layout of one is known, likely ones count. An input of unknown layout takes that of one whose names and shapes
    are all the same, if a Linear weight is not square.
    """
    some = any(one.layout for one in found)
    result = [dataclasses.replace(one, layout=one.layout or one.likely) if some else one for one in found]
    for number, checkpoint in enumerate(inputs):
        for other, known in zip(inputs, found, strict=True):
            if result[number].layout is not None or not known.layout:
                continue
            shapes = {name: entry.shape for name, entry in checkpoint.tensors.items()}
            oblong = any(len(set(shape)) == 2 == len(shape) and is_linear(name) for name, shape in shapes.items())
            if oblong and shapes == {name: entry.shape for name, entry in other.tensors.items()}:
                result[number] = dataclasses.replace(known, evidence=f"its shapes are those of {other.path}")
    return result


def _family(checkpoint: Checkpoint, config: Mapping[str, Any]) -> str | None:
    """Return the first word of the names of the language model's layers: "model", or the model's type, as PaddleNLP has it.

    None if it is neither, or if there are several. What a vision tower's layers are called says nothing.
    """
    stacks = {found[1] for name in checkpoint.tensors if (found := _LAYER.match(name))}
    first = {stack.partition(".")[0] for stack in stacks if _is_language(stack)}
    if len(first) != 1:
        return None
    (family,) = first
    return family if family in ("model", str(config.get("model_type", "")).replace("-", "_")) else None


def _votes(checkpoint: Checkpoint, sizes: Mapping[str, int], family: Any) -> tuple[list[str], list[str]]:
    """Return the names of the weights whose shapes are Hugging Face's, and of those whose shapes are Paddle's.

    sizes: as config_json.widths returns them. Square weights, those of unknown size, those that are the same in all layouts,
    and those of a vision tower, whose sizes are its own, are in neither list; nor are fused weights in safetensors files,
    which PaddleFormers writes [in, out] even where it turns all others to [out, in].
    """
    hf, paddle = [], []
    fused = {word for word in PIECES if word != "gate_up_fused_proj"} if checkpoint.kind == "safetensors" else set()
    fused -= {word for word, families in ALWAYS_FUSED.items() if family in families}
    for name, entry in checkpoint.tensors.items():
        wanted = _widths_of(name, str(family))
        if wanted is None or last_word(name) in fused:
            continue
        shape = sizes.get(wanted[0]), sizes.get(wanted[1])
        if None in shape or shape[0] == shape[1]:
            continue
        if entry.shape == shape:
            hf.append(name)
        elif entry.shape == shape[::-1]:
            paddle.append(name)
    return hf, paddle


@functools.lru_cache(1 << 10)
def _is_language(stack: str) -> bool:
    """Return whether layers are those of the language model, by what is before ".layers." in their names."""
    return is_language(f"{stack}.layers.0.")


@functools.lru_cache(MOST_NAMES)
def _widths_of(name: str, family: str) -> tuple[str, str] | None:
    """Return which widths of config.json the rows and columns of a Linear weight are in Hugging Face's layout; None if that
    isn't known, if the weight is the same in all layouts, or if it isn't in a layer of the language model."""
    found = _LAYER.match(name) if name.endswith(".weight") else None
    if not found or not _is_language(found[1]):
        return None
    if last_word(name) == "gate":  # a router
        return ("experts", "hidden") if is_transposed(name, (1, 1), family) else None
    wanted = LINEARS.get(last_word(name))
    if wanted is None or ".experts." not in name:
        return wanted
    rows, columns = ({"intermediate": "moe", "gate_up": "moe_gate_up"}.get(width, width) for width in wanted)
    return rows, columns
