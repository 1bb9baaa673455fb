"""The settings of an extraction, which are the flags of `python -m paddle_merge extract-lora`."""

from __future__ import annotations

from dataclasses import dataclass

from ...dtypes import FLOATS
from ...errors import ConfigError
from ...recipe.fields import flag, to_types
from .. import common_flags
from ..flags import PROGRAM
from .adapter_files import LAYOUTS

RANK = 32  # the default rank, unless energy is given
_MODELS, _HOW = "The two models", "How much to keep"


@dataclass
class ExtractConfig:
    """The settings of an extraction."""

    finetuned_path: str = flag(
        _MODELS, "The fine-tuned model: a folder, or a file of any format. On the command line it is the first word.", ""
    )
    base_model_path: str = flag(_MODELS, "The base model that it was fine-tuned from. Required.", "", shown="none")
    layout: list[str] | None = common_flags.layout(
        _MODELS, "one word for both models, or one for the fine-tuned model and one for the base"
    )
    rank: int | None = flag(
        _HOW,
        "Rank of all matrices. A higher rank keeps more, and takes more space.",
        shown=f"{RANK}; none with --energy",
        least=1,
    )
    energy: float | None = flag(
        _HOW,
        "Give each matrix the lowest rank that keeps this share of the sum of squares of its change, such as 0.95; with"
        " --rank, at most that rank.",
        shown="none: all matrices get the same rank",
    )
    only_linear: bool = flag(
        _HOW,
        "Leave out changes outside of the matrices of Linear layers (embeddings, norms, biases, lm_head), and list them,"
        " instead of storing these tensors whole.",
        False,
    )
    output_path: str = flag(common_flags.OUTPUT, "Folder for the adapter and extract_report.json.", "lora_output")
    format: str | None = flag(
        common_flags.OUTPUT,
        "The library that is to load the adapter. paddle is paddlenlp or paddleformers, by the base model's layout.",
        choices=(*LAYOUTS, "paddle"),
        shown="by the base model's layout",
    )
    out_dtype: str | None = flag(
        common_flags.OUTPUT,
        "Storage dtype of the low-rank matrices.",
        choices=tuple(FLOATS),
        shown="float32 for peft; the base model's for the others, whose layers require it",
    )
    overwrite: bool = flag(common_flags.OUTPUT, "Replace an adapter in the output folder.", False)

    def __post_init__(self) -> None:
        """Convert the fields to their types. Raises ConfigError."""
        to_types(self)

    def check(self) -> None:
        """Raise ConfigError listing everything that is wrong, as far as no file has to be opened."""
        found = common_flags.problems(self)
        if not self.finetuned_path:
            found.append(f"give the fine-tuned model: {PROGRAM} extract-lora FINETUNED --base_model_path BASE")
        if not self.base_model_path:
            found.append("--base_model_path is missing: the model that the other was fine-tuned from")
        if self.energy is not None and not 0 < self.energy <= 1:
            found.append(f"--energy {self.energy:g} must be above 0 and at most 1: the share to keep")
        if self.layout is not None and len(self.layout) > 2:
            found.append(f"--layout has {len(self.layout)} words for 2 models")
        if found:
            raise ConfigError(found)

    @property
    def layouts(self) -> tuple[str | None, str | None]:
        """The layouts that --layout gives: of the fine-tuned model and of the base."""
        return (self.layout[0], self.layout[-1]) if self.layout else (None, None)

    def most(self, shape: tuple[int, ...]) -> int:
        """Return the highest rank that a matrix of this shape may get."""
        given = self.rank or (RANK if self.energy is None else max(shape))
        return min(given, *shape)
