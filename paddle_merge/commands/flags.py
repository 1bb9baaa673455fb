"""The fields of a dataclass as the flags of a command.

PaddleNLP's spellings are brought to the one that Typer reads first (`normal_form`): lists as `--weight_list 0.3 -0.7`,
booleans as `--normalize False`, dashes or underscores.
"""

from __future__ import annotations

import dataclasses
import inspect
import itertools
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Annotated, Any

import typer

from ..errors import ConfigError
from ..parsing import nearest, parse_bool
from ..version import __version__

SWITCHES = {"help", "version", "verbose", "quiet"}
Fields = Mapping[str, dataclasses.Field[Any]]  # by name


def normal_form(
    argv: Sequence[str],
    fields: Fields,
    aliases: Mapping[str, str],
    first_word: str,
    abbreviated: Collection[str] = (),
    many: bool = False,
) -> list[str]:
    """argv in the one spelling that Typer reads. Raises ConfigError listing every flag it doesn't know.

    `--model-path-list a b` -> `--model_path_list=a --model_path_list=b`; `--normalize False` -> `--no_normalize`; a flag
    given twice: the last one counts. first_word: what to say of a second word that no flag stands before. abbreviated: flags
    for which a beginning that no other of them has is enough. many: any number of words may stand without a flag, also
    behind flags that don't take them.
    """

    def spelled_out(flag: str) -> str:
        name = aliases.get(flag, flag)
        begin_so = [other for other in abbreviated if other.startswith(name)]
        return begin_so[0] if name not in fields and len(begin_so) == 1 else name

    lists = {name for name, item in fields.items() if is_list(item)}
    bools = {name for name, item in fields.items() if item.type == "bool"}
    first = list(itertools.takewhile(lambda word: not word.startswith("-"), argv if many else argv[:1]))
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
        name, negated = spelled_out(flag), False
        if name not in fields and name.startswith("no_"):
            name, negated = spelled_out(name[3:]), True
        if many and name not in lists:
            takes = name in fields and (name not in bools or parse_bool(values[0] if values else "") is not None)
            first += values[takes:]
            values = values[:takes]
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


def is_list(item: dataclasses.Field[Any]) -> bool:
    """Whether a field is a list."""
    return str(item.type).startswith("list[")


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
        metavar=f"{metavar} ..." if is_list(item) else metavar,
    )
    kind = list[str] if is_list(item) else str  # MergeConfig brings them to their types
    return inspect.Parameter(
        item.name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[kind | None, option]
    )


def build_app(
    fields: Fields,
    run: Callable[[Any, bool, bool, dict[str, Any]], None],
    argument: tuple[str, str],
    help: str,
    epilog: str,
    many: bool = False,
) -> typer.Typer:
    """A command with one option per field.

    run: called with the first word (None if it isn't given), --verbose, --quiet and the flags. argument: what the first word
    is, and its help. many: there may be several, and run gets a list.
    """

    def command(first: Any = None, version: bool = False, verbose: bool = False, quiet: bool = False, **flags: Any) -> None:
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
        for name, kind in (
            ("first", list[str] | None if many else str | None),
            ("version", bool),
            ("verbose", bool),
            ("quiet", bool),
        )
    ]
    parameters[1:1] = [_option(item) for item in fields.values()]
    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    command.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    app = typer.Typer(add_completion=False, rich_markup_mode="rich", pretty_exceptions_enable=False)
    unwrapped = "\n\n".join(" ".join(paragraph.split()) for paragraph in help.split("\n\n"))
    app.command(help=unwrapped, epilog=epilog, context_settings={"help_option_names": ["--help", "-h"]})(command)
    return app
