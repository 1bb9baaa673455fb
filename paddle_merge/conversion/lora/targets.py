"""Find the tensor of a checkpoint that an adapter's tensor is for, and how it is stored ([out, in] or [in, out])."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from functools import cached_property
from typing import Any

from ...checkpoints import views
from ...checkpoints.adapters import Adapter
from ...checkpoints.config_json import is_tied
from ...checkpoints.names import EMBEDDINGS, last_word
from ...checkpoints.tensors import Checkpoint, TensorEntry
from ...errors import MalformedError
from .. import fused
from ..leftovers import is_leftover
from ..naming import plain
from ..orientation import is_transposed


class Targets:
    """Look up the tensors of a checkpoint by the names that an adapter uses, whatever the layout of either.

    layout: that of the checkpoint; None if it is unknown. config: the model's config.json. tied: whether the model ties
    lm_head to the embedding. path: what the user calls the checkpoint. family: the model type.
    """

    def __init__(self, checkpoint: Checkpoint, adapter: Adapter, layout: str | None, config: Mapping[str, Any]):
        self._checkpoint, self._kind, self._layout, self._config = checkpoint, adapter.kind, layout, config
        self._own = list(checkpoint.tensors)  # without those that are added
        self.tied, self.path = is_tied(checkpoint, config), checkpoint.path
        self.family = str(config.get("model_type", ""))

    @cached_property
    def _names(self) -> Mapping[str, str]:
        """The checkpoint's own names by their stems, without those that share one; few adapters need them."""
        stems = {name: stem(name, self._config) for name in self._own}
        twice = {stem for stem, count in Counter(stems.values()).items() if count > 1}
        return {stem: name for name, stem in stems.items() if stem not in twice}

    def find(self, name: str) -> str | None:
        """Return the name of this tensor in the checkpoint, whatever layouts the two have; None if it has no such tensor."""
        return name if name in self._checkpoint.tensors else self._names.get(stem(name, self._config))

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of the checkpoint's tensor of exactly this name."""
        return self._checkpoint.tensors[name].shape

    def to_change(self, name: str) -> str:
        """Return the checkpoint's name of a tensor to change. Raises MalformedError if there is none, or none of floats."""
        target = self.find(name)
        if target is None or (self.tied and target == "lm_head.weight"):
            raise MalformedError(self.why_missing(name))
        dtype = self._checkpoint.tensors[target].dtype
        if not dtype.is_float:
            raise MalformedError(f"is for {target!r}, which is {dtype.name}, and only floats can be adapted")
        return target

    def stored_transposed(self, name: str, fan_in_fan_out: bool = False) -> bool | None:
        """Return whether the checkpoint stores this weight [in, out], not [out, in]; None if only its shape can show that.

        fan_in_fan_out: PEFT's setting for layers that store [in, out] in torch, such as GPT-2's Conv1D.
        """
        checkpoint, word = self._checkpoint, last_word(name)
        if word in EMBEDDINGS or word == "lm_head":
            return None
        layout = self._layout
        if layout is None and self._kind == "peft" and (checkpoint.kind == "bin" or checkpoint.format == "pt"):
            layout = "hf"  # both are torch's
        if layout is None and self._kind == "paddle" and checkpoint.kind in ("pdparams", "flex"):
            layout = "paddleformers"  # both are Paddle's
        if layout is None:
            return None
        family = self._config.get("model_type")
        if is_leftover(name, layout, family):
            return not fan_in_fan_out
        return (layout != "hf" and is_transposed(name, (1, 1), family) is not False) != fan_in_fan_out

    def stacks_as_paddle(self, name: str) -> bool | None:
        """Return True if the matrices of this stack of experts are [in, out], as Paddle has them; None if only their shapes
        can show that."""
        same = is_transposed(name, self.shape(name), self._config.get("model_type")) is False
        return True if same or self._layout in ("paddlenlp", "paddleformers") else None

    def is_transposed(self, name: str, shape: tuple[int, int], fan_in_fan_out: bool = False) -> bool:
        """Return whether the checkpoint stores this weight [in, out], by its layout and by its shape, which must agree.

        shape: (in, out), by the adapter's factors. Raises MalformedError if the shape is another one, or if the weight is
        square and the layout is unknown.
        """
        held, expected = self._checkpoint.tensors[name].shape, self.stored_transposed(name, fan_in_fan_out)
        ways = [transposed for transposed in (True, False) if held == (shape if transposed else shape[::-1])]
        if not ways or (expected is not None and expected not in ways):
            raise MalformedError(
                f"is for a weight of {shape[0]} inputs and {shape[1]} outputs, but {name!r} is {list(held)}"
            )
        if expected is None and len(ways) == 2:
            raise MalformedError(
                f"may or may not have to be transposed for {name!r}, which is square; state its layout with --layout"
            )
        return ways[0] if expected is None else expected

    def why_missing(self, name: str) -> str:
        """Return why the checkpoint has no tensor of this name that could be changed, as part of a sentence."""
        if self.tied and name.endswith("lm_head.weight"):
            return "can't be folded: the model ties lm_head to the embedding"
        parent = self._find_fused(name)
        if parent:
            everywhere = fused.always_fused(last_word(parent), self._config.get("model_type"))
            remedy = "every layout of this model fuses it, so no base fits" if everywhere else "pass --output_layout hf"
            return f"is for {name!r}, which is part of the fused {parent!r} in {self._checkpoint.path}; {remedy}"
        return f"is for {name!r}, which {self._checkpoint.path} doesn't have; was it trained on another model?"

    def _find_fused(self, name: str) -> str | None:
        """Return the name of the fused tensor that contains this one; None if there is none."""
        word = last_word(name)
        words = [fused_word for fused_word, pieces in fused.PIECES.items() if word in pieces]
        return next((found for whole in words if (found := self.find(name.replace(word, whole)))), None)

    def split(self, name: str, entry: TensorEntry, axis: int, kind: str) -> dict[str, TensorEntry]:
        """Return the slices of a fused layer's tensor, by the names of the separate tensors in the checkpoint.

        name: of the fused layer. axis: along which its outputs are. kind: "weight" or "bias". Raises MalformedError if it
        is unknown how the layer is fused, or if its size contradicts config.json.
        """
        word = last_word(f"{name}.")
        layouts = ("paddlenlp", "paddleformers") if self._kind == "paddle" else ("hf",)
        outputs = entry.shape[axis]
        slices = next((found for layout in layouts if (found := fused.slices(word, layout, self._config, outputs))), None)
        if slices is None:
            raise MalformedError(f"{self.why_missing(f'{name}.{kind}')} It isn't known how {word} is fused, either")
        total = sum(stop - first for ranges in slices.values() for first, stop in ranges)
        if total != outputs:
            raise MalformedError(f"has {outputs} outputs, but config.json says that {word} has {total}")
        parent = name.removesuffix(word)
        return {f"{parent}{piece}.{kind}": views.select(entry, axis, cut, entry.name) for piece, cut in slices.items()}


# Names in files -> names in memory in transformers 5, which PEFT's are, where the two differ within a layer.
# The first word of each is in all names that the pattern matches, and looked for in less time.
_IN_MEMORY = (
    (".block_sparse_moe.", re.compile(r"\.block_sparse_moe\."), ".mlp."),
    (".mlp.router", re.compile(r"\.mlp\.router(\.layer)?\."), ".mlp.gate."),  # PhiMoE's and Granite's
    # Granite's stacks of experts
    (".input_linear.", re.compile(r"\.mlp\.input_linear\.weight$"), ".mlp.experts.gate_up_proj"),
    (".output_linear.", re.compile(r"\.mlp\.output_linear\.weight$"), ".mlp.experts.down_proj"),
    (".fc1.", re.compile(r"\.mlp\.experts\.fc1\.weight$"), ".mlp.experts.gate_up_proj"),  # Aria's
    (".fc2.", re.compile(r"\.mlp\.experts\.fc2\.weight$"), ".mlp.experts.down_proj"),
    (".w1.", re.compile(r"(\.experts\.\d+)\.w1\."), r"\1.gate_proj."),  # Mixtral's experts, and those named after them
    (".w2.", re.compile(r"(\.experts\.\d+)\.w2\."), r"\1.down_proj."),
    (".w3.", re.compile(r"(\.experts\.\d+)\.w3\."), r"\1.up_proj."),
)


def stem(name: str, config: Mapping[str, Any]) -> str:
    """Return a tensor's name without what libraries write before it, as in memory: "layers.0.mlp.up_proj.weight"."""
    short = without_prefix(name, config)
    if ".experts." in short or ".block_sparse_moe." in short or ".router." in short:
        for word, pattern, other in _IN_MEMORY:
            if word in short:
                short = pattern.sub(other, short)
    return short


def without_prefix(name: str, config: Mapping[str, Any]) -> str:
    """Return a tensor's name without what libraries write before it."""
    family = str(config.get("model_type", "")).replace("-", "_")
    first, dot, rest = name.partition(".")
    return plain(rest if dot and first in ("model", "backbone", family) else name)
