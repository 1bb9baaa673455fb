"""The command `merge`: flags, or the fields of a config file, -> MergeConfig -> run.merge."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from typing import Any

from ..recipe.config import ALIASES, MergeConfig
from ..run.output.signals import uninterrupted
from .flags import CommandLine, fields_of
from .run_line import run_line

FIELDS = fields_of(MergeConfig)
# Flag -> the fields of a config file that it overrides, besides the field of its own name.
OVERRIDES = {
    "model_path_list": ["model_path_str"],
    "merge_method": ["merge_type", "sparsify_type"],
    "merge_type": ["merge_method"],
    "sparsify_type": ["merge_method"],
}

HELP = """Merge models into one checkpoint.

Give the models, a method, and the base model that they were fine-tuned from. The output folder gets the merged checkpoint
with config, tokenizer, and a record from which the merge can be repeated; a merge that fails writes no checkpoint. The flags
are those of PaddleNLP's mergekit, and further ones. A file given as the first word can hold them as well: JSON or YAML with
the flags' names as fields, or a recipe in mergekit's YAML. Flags override the file.

Lists are written with spaces; booleans as `--flag`, `--flag False` or `--no_flag`.
"""
# Method -> when it is used, and the flags of an example.
EXAMPLES = {
    "linear": ("weighted average", "--model_path_list a b --weight_list 0.6 0.4"),
    "slerp": ("spherical interpolation between two models", "--model_path_list a b --slerp_alpha 0.3"),
    "ties": (
        "trims small changes, elects a sign for each element",
        "--model_path_list a b c --base_model_path base --reserve_p 0.2 --no_rescale",
    ),
    "dare_linear": (
        "drops random changes, adds the rest",
        "--model_path_list a b --base_model_path base --reserve_p 0.3",
    ),
    "dare_ties": (
        "drops random changes, elects signs",
        "--model_path_list a b c --base_model_path base --reserve_p 0.5",
    ),
    "della": (
        "as dare_ties, but keeps large changes with a higher probability",
        "--model_path_list a b c --base_model_path base --epsilon 0.2",
    ),
    "della_linear": (
        "as dare_linear, but keeps large changes with a higher probability",
        "--model_path_list a b --base_model_path base --epsilon 0.2",
    ),
}
LINE = CommandLine(
    name="merge",
    fields=FIELDS,
    argument=(
        "CONFIG",
        "A JSON or YAML file with the flags' names as fields, such as PaddleNLP's, or a recipe in mergekit's YAML.",
    ),
    help=HELP,
    examples=[
        (f"{method}: {when}", f"--merge_method {method} {flags} --output_path out")
        for method, (when, flags) in EXAMPLES.items()
    ],
    aliases=ALIASES,
    many=False,
    hint="; paths follow --model_path_list",
)


def main(argv: Sequence[str]) -> None:
    """Run `python -m paddle_merge merge *argv`. Raises MergeError."""
    run_line(LINE, argv, _run)


def read_fields(config: str | None, flags: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields that a config file gives, overridden by the flags. Raises ConfigError.

    flags: by name; None, [] and "None" mean not given.
    """
    given = {name: value for name, value in flags.items() if value not in (None, [], "None")}
    config = os.path.expanduser(config) if config else None
    fields = MergeConfig.known_fields(MergeConfig.from_file(config), config) if config else {}
    for flag, overridden in OVERRIDES.items():
        if flag in given:
            for name in overridden:
                fields.pop(name, None)
    return {**fields, **given}


def recipe_text(content: Mapping[str, Any]) -> str:
    """Return a recipe as YAML, of which JSON is a part. What isn't UTF-8 in names of files is escaped, as YAML needs."""
    return json.dumps(content, indent=1, ensure_ascii=False).encode(errors="backslashreplace").decode() + "\n"


def _run(config: str | None, flags: dict[str, Any]) -> None:
    run(MergeConfig(**read_fields(config, flags)))


def run(config: MergeConfig) -> None:
    """Merge, together with the other processes of a distributed launch; or print the recipe. Raises MergeError."""
    if config.print_recipe:
        from ..recipe.request import Request
        from ..recipe.yaml_write import to_yaml  # imports YAML

        print(to_yaml(Request.of(config).checked_recipe()), end="")
        return
    with uninterrupted():
        from ..run.merge import merge
        from ..run.ranks import Ranks

    merge(config, ranks=Ranks.from_environment())
