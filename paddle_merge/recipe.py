"""Recipe: what was asked, checked as far as it can be without looking at a file."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from .dtypes import DType


@dataclass(frozen=True)
class Recipe:
    """A merge, method and all.

    models: paths of the checkpoints to merge, in order; weights and masks go by this order.
    base: path of the base model; with it methods work on task vectors, without it on the weights themselves.
    sparsifier, merger: see methods.Sparsifier and methods.Merger; sparsifier may be None.
    method: how to call the pair, "dare_ties" or "trim+slerp".
    scale: factor on the merged task vector before the base is added back.
    seed: of the masks.
    prefix: which weights of a checkpoint folder, "model" or "master_weights".
    out_dtype: storage dtype of all floating-point tensors; None: each tensor's own.
    layouts: of each source, as layout.LAYOUTS; None where it is to be detected.
    output_layout: None: the first source's.
    strict_layout: refuse sources of different layouts.
    save_format: "safetensors" or "pdparams".
    config_from: the folder of config.json and the tokenizer; None: the base's, or a model's.
    """

    models: tuple[str, ...]
    base: str | None
    sparsifier: Any
    merger: Any
    method: str
    scale: float = 1.0
    seed: int = 0
    prefix: str = "model"
    out_dtype: DType | None = None
    layouts: tuple[str | None, ...] = ()
    output_layout: str | None = None
    strict_layout: bool = False
    save_format: str = "safetensors"
    config_from: str | None = None

    @property
    def sources(self) -> tuple[str, ...]:
        """All input paths: the models, then the base."""
        return self.models if self.base is None else (*self.models, self.base)

    @property
    def measures(self) -> bool:
        """Whether a tensor is read twice: once to measure it, once to merge it."""
        return self.merger.measures or (self.sparsifier is not None and self.sparsifier.measures)
