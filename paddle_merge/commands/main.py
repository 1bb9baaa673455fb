"""The command line: flags -> MergeConfig -> merge. Computes nothing."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Collection, Mapping, Sequence
from importlib import import_module
from typing import Any

import typer

from ..recipe.config import ALIASES, MergeConfig
from .command import command, set_up_logging
from .flags import build_app, normal_form

FIELDS = {item.name: item for item in dataclasses.fields(MergeConfig)}
# First words that don't merge -> the module of this package whose `main` takes the rest of the command line.
SUBCOMMANDS = {
    "demo": "demo",
    "analyze": "analyze.cli",
    "extract-lora": "extract_lora.cli",
    "inspect": "inspect.cli",
    "diff": "diff.cli",
    "verify": "verify.cli",
}
# What a flag overrides in a config file besides the field of its own name.
OVERRIDES = {
    "model_path_list": ["model_path_str"],
    "merge_method": ["merge_type", "sparsify_type"],
    "merge_type": ["merge_method"],
    "sparsify_type": ["merge_method"],
}

HELP = """Merge model checkpoints into one.

Give the models, a method, and the base model they were fine-tuned from; the merged checkpoint, with config, tokenizer and
a record that repeats the merge, appears in the output folder, or nothing does. Flags are PaddleNLP's mergekit flags, plus
a few. They can also stand in a JSON or YAML file given first; flags after it override it. Lists are written with spaces,
booleans as `--flag`, `--flag False` or `--no_flag`.

`python -m paddle_merge demo` shows what merging does, on models it trains itself in about a minute;
`python -m paddle_merge extract-lora` makes a LoRA adapter of a fine-tuned model; `python -m paddle_merge inspect` tells what
checkpoints are, `python -m paddle_merge diff` what two of them differ by, `python -m paddle_merge analyze` what models have
changed in their base, and `python -m paddle_merge verify` whether a checkpoint is what a merge wrote; --help after any of
them tells more.
"""

EXAMPLES = {
    "linear": ("average", "--model_path_list a b --weight_list 0.6 0.4"),
    "slerp": ("two models, on the arc between them", "--model_path_list a b --slerp_alpha 0.3"),
    "ties": ("skills that disagree on signs", "--model_path_list a b c --base_model_path base --reserve_p 0.2 --no_rescale"),
    "dare_linear": ("thin out, then add", "--model_path_list a b --base_model_path base --reserve_p 0.3"),
    "dare_ties": ("thin out, then elect signs", "--model_path_list a b c --base_model_path base --reserve_p 0.5"),
    "della": ("like dare_ties, large changes kept more", "--model_path_list a b c --base_model_path base --epsilon 0.2"),
    "della_linear": ("like dare_linear, likewise", "--model_path_list a b --base_model_path base --epsilon 0.2"),
}


def examples() -> str:
    """One command per method, for the help page."""
    lines = ["[bold]One example per method[/bold] (after python -m paddle_merge):"]
    for method, (when, flags) in EXAMPLES.items():
        lines.append(f"[cyan]{method}[/cyan]: {when}")
        lines.append(f"--merge_method {method} {flags} --output_path out")
    return "\n\n".join(lines)


def merge_words(argv: Sequence[str], abbreviated: Collection[str] = ()) -> list[str]:
    """A merge's command line as flags.normal_form puts it. Raises ConfigError."""
    return normal_form(argv, FIELDS, ALIASES, "; paths follow --model_path_list", abbreviated)


def read_fields(config: str | None, flags: Mapping[str, Any]) -> dict[str, Any]:
    """What a config file says, unless flags (by name; None, [] and "None" aren't given) override it. Raises ConfigError."""
    given = {name: value for name, value in flags.items() if value not in (None, [], "None")}
    fields = MergeConfig.known_fields(MergeConfig.from_file(config), config) if config else {}
    for flag, overridden in OVERRIDES.items():
        if flag in given:
            for name in overridden:
                fields.pop(name, None)
    return {**fields, **given}


def _run(config: str | None, verbose: bool, quiet: bool, flags: dict[str, Any]) -> None:
    set_up_logging(verbose, quiet)
    merged = MergeConfig(**read_fields(config, flags))
    if merged.print_recipe:
        from ..recipe.request import Request
        from ..recipe.yaml_write import to_yaml  # and with it YAML

        print(to_yaml(Request.of(merged).checked_recipe()), end="")
    else:
        run(merged)


def run(config: MergeConfig) -> None:
    """Merge, together with the other processes of a launch. Raises MergeError."""
    from ..run.merge import merge
    from ..run.ranks import Ranks

    try:
        merge(config, ranks=Ranks.from_environment())
    except KeyboardInterrupt:
        print("interrupted: no checkpoint was written", file=sys.stderr)
        raise typer.Exit(130) from None


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point of `python -m paddle_merge` and of `paddle-merge`. Exits 0, 1 (refused or failed), 2 (usage), 130."""
    argv = list(sys.argv[1:] if argv is None else argv)
    with command():
        if argv and argv[0].replace("_", "-") in SUBCOMMANDS:
            import_module(f".{SUBCOMMANDS[argv[0].replace('_', '-')]}", __package__).main(argv[1:])
        argument = "CONFIG", "JSON or YAML file with the flags' names as fields (PaddleNLP's, for one)."
        app = build_app(FIELDS, _run, argument, HELP, examples())
        app(merge_words(argv) or ["--help"], prog_name="python -m paddle_merge")
