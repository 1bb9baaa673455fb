"""Which tensor of a checkpoint an adapter's is for, and how that is stored: by names, layouts, and shapes, which agree."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from ...checkpoints import views
from ...checkpoints.adapters import Adapter
from ...checkpoints.config_json import is_tied
from ...checkpoints.names import EMBEDDINGS, last_word
from ...checkpoints.tensors import Checkpoint, TensorEntry
from ...errors import MalformedError
from .. import fused


class Targets:
    """The tensors of a checkpoint, in `layout` now, as an adapter of their model knows them.

    tied: whether lm_head is the embedding.
    """

    def __init__(self, checkpoint: Checkpoint, adapter: Adapter, layout: str | None, config: Mapping[str, Any]):
        self._checkpoint, self._kind, self._layout, self._config = checkpoint, adapter.kind, layout, config
        stems = {name: _stem(name, config) for name in checkpoint.tensors}
        twice = {stem for stem, count in Counter(stems.values()).items() if count > 1}
        self._names = {stem: name for name, stem in stems.items() if stem not in twice}
        self.tied = is_tied(checkpoint, config)

    def find(self, name: str) -> str | None:
        """What the checkpoint calls this tensor, in whatever layout either is."""
        return name if name in self._checkpoint.tensors else self._names.get(_stem(name, self._config))

    def stored_transposed(self, name: str, fan_in_fan_out: bool = False) -> bool | None:
        """Whether the checkpoint stores this weight [in, out], not [out, in]; None if only shapes can tell."""
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
        return (layout != "hf") != fan_in_fan_out

    def is_transposed(self, name: str, shape: tuple[int, int], fan_in_fan_out: bool = False) -> bool:
        """Whether the checkpoint stores this weight as [in, out]. shape: (in, out), as the adapter says.

        Raises MalformedError where that can't be told, or shapes contradict it.
        """
        held, expected = self._checkpoint.tensors[name].shape, self.stored_transposed(name, fan_in_fan_out)
        ways = [transposed for transposed in (True, False) if held == (shape if transposed else shape[::-1])]
        if not ways or (expected is not None and expected not in ways):
            raise MalformedError(
                f"is for a weight of {shape[0]} inputs and {shape[1]} outputs, but {name!r} is {list(held)}"
            )
        if expected is None and len(ways) == 2:
            raise MalformedError(
                f"may or may not have to be turned for {name!r}, which is square; say its layout with --layout"
            )
        return ways[0] if expected is None else expected

    def nowhere(self, name: str) -> str:
        """Why there is no tensor of this name to change."""
        if self.tied and name.endswith("lm_head.weight"):
            return "can't be folded: the model ties lm_head to the embedding"
        parent = self._find_fused(name)
        if parent:
            return f"is for {name!r}, which {self._checkpoint.path} has fused in {parent!r}; fold it with --output_layout hf"
        return f"is for {name!r}, which {self._checkpoint.path} doesn't have; was it trained on another model?"

    def _find_fused(self, name: str) -> str | None:
        """The fused weight that holds this one."""
        word = last_word(name)
        words = [fused_word for fused_word, pieces in fused.PIECES.items() if word in pieces]
        return next((found for whole in words if (found := self.find(name.replace(word, whole)))), None)

    def split(self, name: str, entry: TensorEntry, axis: int, kind: str) -> dict[str, TensorEntry]:
        """Where the outputs of a fused layer, which lie along `axis`, go in a model that has them apart.

        kind: "weight" or "bias". Raises MalformedError.
        """
        word = last_word(f"{name}.")
        layouts = ("paddlenlp", "paddleformers") if self._kind == "paddle" else ("hf",)
        slices = next((found for layout in layouts if (found := fused.slices(word, layout, self._config))), None)
        if slices is None:
            raise MalformedError(f"{self.nowhere(f'{name}.{kind}')} Nor is it certain how {word} is fused")
        total = sum(stop - first for ranges in slices.values() for first, stop in ranges)
        if total != entry.shape[axis]:
            raise MalformedError(f"has {entry.shape[axis]} outputs, but config.json says that {word} has {total}")
        parent = name.removesuffix(word)
        return {f"{parent}{piece}.{kind}": views.select(entry, axis, cut, entry.name) for piece, cut in slices.items()}


def _stem(name: str, config: Mapping[str, Any]) -> str:
    """A tensor's name without what the library that stored it calls the model: "layers.0.mlp.up_proj.weight"."""
    family = str(config.get("model_type", "")).replace("-", "_")
    first, dot, rest = name.partition(".")
    return rest if dot and first in ("model", family) else name
