"""The command line of `python -m paddle_merge transplant`: flags -> a recipe with a tokenizer -> a merge."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ...checkpoints.adapters import absolute_spec
from ...errors import ConfigError
from ...recipe.fields import flag, to_types
from ...recipe.missing_tokens import METHODS, MOST, PIECES
from .. import common_flags
from ..flags import PROGRAM, CommandLine, fields_of
from ..merge import FIELDS as MERGE_FIELDS
from ..merge import recipe_text, run
from ..run_line import run_line

_HOW = "How rows of missing tokens are made"
# The flags of a merge that this takes, too.
MERGE = (
    *("overwrite", "resume", "max_shard_size", "out_dtype", "layout", "output_layout", "save_format", "tie"),
    *("chat_template", "merge_prefix", "n_process", "max_memory", "dry_run", "account"),
)


@dataclass
class TransplantConfig:
    """The settings of a transplant that aren't those of a merge. paths: the model, and the donor of the tokenizer."""

    paths: list[str] = field(default_factory=list)
    method: str = flag(
        _HOW,
        "omp: of those tokens of the model that make up the token in the donor (orthogonal matching pursuit), by the same"
        " coefficients; subword: of the pieces into which the model's own tokenizer splits the token; mean: the mean of the"
        " rows of all tokens that are kept; zeros.",
        "omp",
        choices=METHODS,
    )
    k: int = flag(_HOW, "omp: of how many tokens a token is made, at most.", 64, least=1)
    subword_method: str = flag(
        _HOW,
        "subword: how the rows of the pieces are combined. weighted_mean: the last of n pieces counts n times; last: it"
        " alone. Of an untied lm_head it is the first piece instead, which has to be predicted first.",
        "mean",
        choices=PIECES,
    )
    pad_to_multiple_of: int | None = flag(
        _HOW, "Round the number of rows up to a multiple of this.", shown="as many rows as the tokenizer has ids", least=1
    )
    print_recipe: bool = flag(_HOW, "Print the recipe that the flags describe, in YAML, and don't merge.", False)
    output_path: str = flag("Output", "Folder to write the checkpoint to.", "./transplanted")

    def __post_init__(self) -> None:
        """Convert the fields to their types. Raises ConfigError."""
        to_types(self)

    def check(self) -> None:
        """Raise ConfigError listing everything that is wrong with the flags."""
        found = common_flags.problems(self)
        if len(self.paths) != 2:
            found.append(
                f"give the model, and then the model whose tokenizer it gets: {PROGRAM} transplant ./model ./donor"
                " --output_path ./out"
            )
        if self.k > MOST:
            found.append(f"--k {self.k} must be at most {MOST}")
        if self.k != 64 and self.method != "omp":
            found.append(f"--k has no effect with --method {self.method}; it is of omp")
        if self.subword_method != "mean" and self.method != "subword":
            found.append(f"--subword_method has no effect with --method {self.method}; it is of subword")
        if found:
            raise ConfigError(found)

    @property
    def recipe(self) -> str:
        """The recipe of the transplant, in YAML."""
        model, donor = map(absolute_spec, self.paths)
        missing = {"method": self.method, "k": self.k, "pieces": self.subword_method}
        tokenizer: dict[str, Any] = {"source": donor, "missing": missing}
        tokenizer |= {"pad_to_multiple_of": self.pad_to_multiple_of} if self.pad_to_multiple_of is not None else {}
        content = {"merge_method": "passthrough", "models": [{"model": model}], "tokenizer": tokenizer}
        return recipe_text(content)


FIELDS = {**fields_of(TransplantConfig, "paths"), **{name: MERGE_FIELDS[name] for name in MERGE}}
HELP = """Give a model the tokenizer of another.

Rows of tokens that both tokenizers have are kept: tokens are the same if they stand for the same text, however it is
spelled ("Ġthe" and "▁the"), or have the same role (eos_token). The rows of the donor's other tokens are made of the
model's own: by --method omp, each is the combination of a few common tokens that comes closest to the token in the donor's
embedding, made of the model's rows with the same coefficients (arXiv 2506.06607). An lm_head that isn't tied gets
coefficients of its own, from the donor's lm_head.

All other weights are copied. The output has the donor's tokenizer and chat template, and config.json gets the vocabulary's
size and the ids of special tokens. The output can be merged with models that have the donor's tokenizer; how well it uses
the new tokens has to be measured, and training helps. If the tokenizers differ in few tokens only, such as special tokens,
merge with --tokenizer_source instead.
"""
LINE = CommandLine(
    name="transplant",
    fields=FIELDS,
    argument=("MODEL DONOR", "The model, and the model (or, without omp, the folder) whose tokenizer it gets."),
    help=HELP,
    examples=[
        ("By orthogonal matching pursuit:", "./model ./donor --output_path ./transplanted"),
        ("What would be done:", "./model ./donor --dry_run"),
        ("Without the donor's weights:", "./model ./tokenizer --method subword --output_path ./transplanted"),
    ],
)


def main(argv: Sequence[str]) -> None:
    """Run `python -m paddle_merge transplant *argv`. Raises MergeError."""
    run_line(LINE, argv, _run)


def _run(paths: list[str], flags: dict[str, Any]) -> None:
    merge: Mapping[str, Any] = {name: value for name, value in flags.items() if name in MERGE}
    config = TransplantConfig(paths, **{name: flags[name] for name in flags.keys() - merge.keys()})
    config.check()
    from ...recipe.config import MergeConfig

    given: dict[str, Any] = {
        "recipe_yaml": config.recipe,
        "output_path": config.output_path,
        "print_recipe": config.print_recipe,
    }
    run(MergeConfig(**given, **merge))
