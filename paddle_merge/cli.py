"""The command line: flags -> MergeConfig -> merge. Computes nothing.

The flags are MergeConfig's fields. PaddleNLP's spellings are brought to the one that Typer reads first (`normal_form`):
lists as `--weight_list 0.3 -0.7`, booleans as `--normalize False`, dashes or underscores.
"""

from __future__ import annotations

import dataclasses
import inspect
import logging
import os
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from typing import Annotated, Any

import typer

from . import __version__
from .config import ALIASES, MergeConfig
from .errors import ConfigError, MergeError
from .parsing import nearest, parse_bool

FIELDS = {item.name: item for item in dataclasses.fields(MergeConfig)}
# First words that don't merge -> the module of this package whose `main` takes the rest of the command line.
SUBCOMMANDS = {"demo": "demo", "extract-lora": "extract_cli"}
# What a flag overrides in a config file besides the field of its own name.
OVERRIDES = {
    "model_path_list": ["model_path_str"],
    "merge_method": ["merge_type", "sparsify_type"],
    "merge_type": ["merge_method"],
    "sparsify_type": ["merge_method"],
}
SWITCHES = {"help", "version", "verbose", "quiet"}

HELP = """Merge model checkpoints into one.

Give the models, a method, and the base model they were fine-tuned from; the merged checkpoint, with config, tokenizer and
a record that repeats the merge, appears in the output folder, or nothing does. Flags are PaddleNLP's mergekit flags, plus
a few. They can also stand in a JSON or YAML file given first; flags after it override it. Lists are written with spaces,
booleans as `--flag`, `--flag False` or `--no_flag`.

`python -m paddle_merge demo` shows what merging does, on models it trains itself in about a minute;
`python -m paddle_merge extract-lora` makes a LoRA adapter of a fine-tuned model; --help after either tells more.
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


def normal_form(
    argv: Sequence[str],
    fields: Mapping[str, dataclasses.Field[Any]] = FIELDS,
    aliases: Mapping[str, str] = ALIASES,
    first_word: str = "; paths follow --model_path_list",
) -> list[str]:
    """argv in the one spelling that Typer reads. Raises ConfigError listing every flag it doesn't know.

    `--model-path-list a b` -> `--model_path_list=a --model_path_list=b`; `--normalize False` -> `--no_normalize`; a flag
    given twice: the last one counts. first_word: what to say of a second word that no flag stands before.
    """
    lists = {name for name, item in fields.items() if _is_list(item)}
    bools = {name for name, item in fields.items() if item.type == "bool"}
    first = [argv[0]] if argv and not argv[0].startswith("-") else []
    groups: list[tuple[str, list[str]]] = []
    problems: list[str] = []
    for word in argv[len(first) :]:
        if word.startswith("--") and len(word) > 2:
            flag, equals, value = word[2:].partition("=")
            groups.append((flag.replace("-", "_"), [value] if equals else []))
        elif word in ("-h", "-v", "-q"):
            groups.append(({"-h": "help", "-v": "verbose", "-q": "quiet"}[word], []))
        elif groups:
            groups[-1][1].append(word)
        else:
            problems.append(f"unexpected {word!r}{first_word}")

    chosen: dict[str, list[str]] = {}
    for flag, values in groups:
        name, negated = aliases.get(flag, flag), False
        if name not in fields and name.startswith("no_"):
            name, negated = aliases.get(name[3:], name[3:]), True
        if flag in SWITCHES:
            chosen[flag] = [f"--{flag}"]
            if values:
                problems.append(f"--{flag} takes no value, so {values[0]!r} doesn't belong there")
        elif name not in fields or (negated and name not in bools):
            problems.append(f"unknown flag --{flag}{nearest(flag, [*fields, *SWITCHES, *aliases])}")
        elif name in bools:
            on = True if not values else parse_bool(values[0])
            if on is None or len(values) > 1 or (negated and values):
                problems.append(f"--{flag} takes True or False, not {' '.join(values)!r}")
            chosen[name] = [f"--{name}={on and not negated}"]
        elif name in lists:
            if not values:
                problems.append(f"--{flag} needs at least one value")
            chosen[name] = [f"--{name}={value}" for value in values]
        elif len(values) != 1:
            problems.append(f"--{flag} takes one value, not {len(values)}{': ' if values else ''}{' '.join(values)}")
        else:
            chosen[name] = [f"--{name}={values[0]}"]
    if problems:
        raise ConfigError(problems)
    return first + [word for words in chosen.values() for word in words]


def _is_list(item: dataclasses.Field[Any]) -> bool:
    return str(item.type).startswith("list[")


def _run(config: str | None, verbose: bool, quiet: bool, flags: dict[str, Any]) -> None:
    set_up_logging(verbose, quiet)
    given = {name: value for name, value in flags.items() if value not in (None, [], "None")}
    fields = MergeConfig.known_fields(MergeConfig.from_file(config), config) if config else {}
    for flag, overridden in OVERRIDES.items():
        if flag in given:
            for name in overridden:
                fields.pop(name, None)
    merge_config = MergeConfig(**{**fields, **given})
    from .ranks import Ranks
    from .run import merge

    try:
        merge(merge_config, ranks=Ranks.from_environment())
    except KeyboardInterrupt:
        print("interrupted: nothing was written", file=sys.stderr)
        raise typer.Exit(130) from None


def set_up_logging(verbose: bool, quiet: bool) -> None:
    class Format(logging.Formatter):
        def format(self, record: logging.LogRecord) -> str:
            text = super().format(record)
            return text if record.levelno == logging.INFO else f"{record.levelname.lower()}: {text}"

    handler = logging.StreamHandler()
    handler.setFormatter(Format("%(message)s"))
    logger = logging.getLogger("paddle_merge")
    logger.handlers = [handler]
    logger.propagate = False  # importing Paddle gives the root logger a handler
    logger.setLevel(logging.DEBUG if verbose else logging.ERROR if quiet else logging.INFO)


def _option(item: dataclasses.Field[Any]) -> inspect.Parameter:
    """One field as a parameter of the command. Its default is None, so that only what is given overrides a config file."""
    meta = item.metadata
    default = item.default if item.default is not dataclasses.MISSING else None
    shown = meta.get("shown", default)
    text = meta["help"] + (f" One of: {', '.join(meta['choices'])}." if meta.get("choices") else "")
    if shown is not None:
        text += f" [dim]\\[default: {shown}][/dim]"
    metavar = str(item.type).removesuffix(" | None").removeprefix("list[").removesuffix("]")
    option = typer.Option(
        f"--{item.name}",
        help=text,
        rich_help_panel=meta["group"],
        show_default=False,
        metavar=f"{metavar} ..." if _is_list(item) else metavar,
    )
    kind = list[str] if _is_list(item) else str  # MergeConfig brings them to their types
    return inspect.Parameter(
        item.name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[kind | None, option]
    )


def build_app(
    fields: Mapping[str, dataclasses.Field[Any]] = FIELDS,
    run: Callable[[str | None, bool, bool, dict[str, Any]], None] = _run,
    argument: tuple[str, str] = ("CONFIG", "JSON or YAML file with the flags' names as fields (PaddleNLP's, for one)."),
    help: str = HELP,
    epilog: str | None = None,
) -> typer.Typer:
    """A command with one option per field, by default the merge's.

    run: called with the first word, --verbose, --quiet and the flags. argument: what the first word is, and its help.
    """

    def command(
        first: str | None = None, version: bool = False, verbose: bool = False, quiet: bool = False, **flags: Any
    ) -> None:
        if version:
            typer.echo(f"paddle_merge {__version__}")
        else:
            run(first, verbose, quiet, flags)

    extra: dict[str, Any] = {
        "first": typer.Argument(metavar=argument[0], help=argument[1], show_default=False),
        "version": typer.Option("--version", help="Print the version.", rich_help_panel="Running"),
        "verbose": typer.Option("--verbose", "-v", help="Say more.", rich_help_panel="Running"),
        "quiet": typer.Option("--quiet", "-q", help="Say nothing but errors.", rich_help_panel="Running"),
    }
    parameters = [
        inspect.Parameter(
            name,
            inspect.Parameter.KEYWORD_ONLY,
            default=None if name == "first" else False,
            annotation=Annotated[kind, extra[name]],
        )
        for name, kind in (("first", str | None), ("version", bool), ("verbose", bool), ("quiet", bool))
    ]
    parameters[1:1] = [_option(item) for item in fields.values()]
    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    command.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    app = typer.Typer(add_completion=False, rich_markup_mode="rich", pretty_exceptions_enable=False)
    unwrapped = "\n\n".join(" ".join(paragraph.split()) for paragraph in help.split("\n\n"))
    app.command(help=unwrapped, epilog=epilog, context_settings={"help_option_names": ["--help", "-h"]})(command)
    return app


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point of `python -m paddle_merge` and of `paddle-merge`. Exits 0, 1 (refused or failed), 2 (usage), 130."""
    argv = list(sys.argv[1:] if argv is None else argv)
    _open_standard_files()
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _interrupt)
    try:
        if argv and argv[0].replace("_", "-") in SUBCOMMANDS:
            import_module(f".{SUBCOMMANDS[argv[0].replace('_', '-')]}", __package__).main(argv[1:])
        build_app(epilog=examples())(normal_form(argv) or ["--help"], prog_name="python -m paddle_merge")
    except MergeError as error:
        for problem in error.problems:
            print(f"error: {problem}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        print("interrupted: nothing was written", file=sys.stderr)
        sys.exit(130)


def _open_standard_files() -> None:
    """Where a caller closed one of them, so that no file of ours takes its number."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115 - for as long as the process lives


def _interrupt(*_: Any) -> None:
    raise KeyboardInterrupt
