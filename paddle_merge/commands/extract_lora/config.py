"""The fields of an extraction, which are the flags of `python -m paddle_merge extract-lora`."""

from __future__ import annotations

from dataclasses import dataclass

from ...checkpoints.names import LAYOUTS as STORED
from ...dtypes import FLOATS
from ...errors import ConfigError
from ...recipe import fields
from ...recipe.fields import _flag, to_types
from .adapter_files import LAYOUTS

RANK = 32  # where neither rank nor energy is given
_MODELS, _HOW, _OUTPUT = "The two models", "How much to keep", "Output"


@dataclass
class ExtractConfig:
    """Everything an extraction can be told."""

    finetuned_path: str = _flag(
        _MODELS, "The fine-tuned model, a folder or file of any format; on the command line it comes first.", ""
    )
    base_model_path: str = _flag(_MODELS, "The model that it was fine-tuned from.", "", shown="none, it must be given")
    layout: list[str] | None = _flag(
        _MODELS,
        "How the two store Linear weights, if that can't be told: one word for both, or one for the fine-tuned model and one"
        " for the base.",
        choices=STORED,
        shown="detected",
    )
    rank: int | None = _flag(
        _HOW, "The rank of every factor: the adapter's size and precision.", shown=f"{RANK}, or none with --energy"
    )
    energy: float | None = _flag(
        _HOW,
        "Give each tensor the smallest rank that keeps this share of the sum of squares of its change, such as 0.95; with"
        " --rank, at most that rank.",
        shown="none: every tensor has the same rank",
    )
    only_linear: bool = _flag(
        _HOW,
        "Leave out, by name, what changed and is no Linear layer's matrix (embeddings, norms, biases, lm_head), instead of"
        " storing it whole.",
        False,
    )
    output_path: str = _flag(_OUTPUT, "Folder for the adapter and extract_report.json.", "lora_output")
    format: str | None = _flag(
        _OUTPUT,
        "Which library the adapter is for. paddle means the one of the two in whose layout the base model is.",
        choices=(*LAYOUTS, "paddle"),
        shown="the one in whose layout the base model is",
    )
    out_dtype: str | None = _flag(
        _OUTPUT,
        "What the factors are stored as.",
        choices=tuple(FLOATS),
        shown="float32 for peft; for the others the base model's, which their layers need",
    )
    overwrite: bool = _flag(_OUTPUT, "Replace an adapter in the output folder.", False)

    def __post_init__(self) -> None:
        """Raises ConfigError."""
        to_types(self)

    def check(self) -> None:
        """Raises ConfigError listing everything wrong, as far as no file needs to be looked at."""
        found = fields.of_fields(self)
        if not self.finetuned_path:
            found.append("give the fine-tuned model: python -m paddle_merge extract-lora FINETUNED --base_model_path BASE")
        if not self.base_model_path:
            found.append("--base_model_path is missing: the model that the other was fine-tuned from")
        if self.rank is not None and self.rank < 1:
            found.append(f"--rank {self.rank} must be at least 1")
        if self.energy is not None and not 0 < self.energy <= 1:
            found.append(f"--energy {self.energy:g} must be above 0 and at most 1: the share to keep")
        if self.layout is not None and len(self.layout) > 2:
            found.append(f"--layout has {len(self.layout)} words for 2 models")
        if found:
            raise ConfigError(found)

    @property
    def layouts(self) -> tuple[str | None, str | None]:
        """The layouts that are stated, of the fine-tuned model and of the base."""
        return (self.layout[0], self.layout[-1]) if self.layout else (None, None)

    def most(self, shape: tuple[int, ...]) -> int:
        """The highest rank that a matrix of this shape may get."""
        given = self.rank or (RANK if self.energy is None else max(shape))
        return min(given, *shape)
