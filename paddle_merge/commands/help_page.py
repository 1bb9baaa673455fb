"""Print help pages, with Typer: a command's from its CommandLine, and the list of all commands."""

from __future__ import annotations

import dataclasses
import inspect
import os
import re
from collections.abc import Callable, Sequence
from typing import Annotated, Any

import typer

from ..parsing import AUTO
from .flags import PROGRAM, CommandLine, is_list

HELP_FLAGS = {"help_option_names": ["--help", "-h"]}


def show(line: CommandLine) -> None:
    """Print the help page of a command. Exits."""
    parameters = [
        *_words(line),
        *map(option, line.fields.values()),
        switch("version", "Print the version and exit."),
        switch("verbose", "Print debug messages."),
        switch("quiet", "Print errors only; results are printed as always."),
    ]
    app = new_app()
    app.command(help=unwrapped(line.help), epilog=_epilog(line), context_settings=HELP_FLAGS)(
        with_parameters(lambda **_: None, parameters)
    )
    app(["--help"], prog_name=f"{PROGRAM} {line.name}")


def _words(line: CommandLine) -> list[inspect.Parameter]:
    """Return the parameter for the words without a flag, if there can be any."""
    if line.argument is None:
        return []
    argument = typer.Argument(metavar=line.argument[0], help=escape(line.argument[1]), show_default=False)
    kind: Any = list[str] | None if line.many else str | None
    return [inspect.Parameter("first", inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[kind, argument])]


def _epilog(line: CommandLine) -> str:
    lines = []
    for what, words in line.examples:
        lines += [f"[dim]{escape(what)}[/dim]", escape(f"{PROGRAM} {line.name} {words}".rstrip())]
    return "\n\n".join(["[bold]Examples[/bold]", *lines])


def escape(text: str) -> str:
    """Return text as Rich markup that is shown as the text itself: `[out, in]` isn't taken for a style.

    The same as rich.markup.escape.
    """
    return re.sub(r"(\\*)(\[[a-z#/@][^[]*?])", r"\1\1\\\2", text)


def unwrapped(text: str) -> str:
    """Return paragraphs as Rich markup with each on one line, so that Typer wraps them to the terminal's width."""
    return escape("\n\n".join(" ".join(paragraph.split()) for paragraph in text.split("\n\n")))


def option(item: dataclasses.Field[Any], group: str | None = None) -> inspect.Parameter:
    """Return one field as a parameter of a command, shown in the help panel `group`, by default the field's own.

    Its default is None, so that only flags that are given override a config file.
    """
    meta = item.metadata
    default = item.default if item.default is not dataclasses.MISSING else None
    shown = meta.get("shown", default)
    text = escape(meta["help"] + (f" One of: {', '.join(meta['choices'])}." if meta.get("choices") else ""))
    if shown is not None:
        text += f" [dim]{escape(f'[default: {shown}]')}[/dim]"
    metavar = str(item.type).removesuffix(" | None").removesuffix(AUTO).removeprefix("list[").removesuffix("]")
    made = typer.Option(
        f"--{item.name.rstrip('_')}",
        help=text,
        rich_help_panel=group or meta["group"],
        show_default=False,
        metavar=f"{metavar} ..." if is_list(item) else metavar,
    )
    kind = list[str] if is_list(item) else str  # the dataclass converts them to their types
    return inspect.Parameter(
        item.name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[kind | None, made]
    )


def switch(name: str, help: str, group: str | None = "Running") -> inspect.Parameter:
    """Return a flag without a value as a parameter of a command. --verbose and --quiet can be given as -v and -q."""
    names = [f"--{name}", *([f"-{name[0]}"] if name in ("verbose", "quiet") else [])]
    made = typer.Option(*names, help=help, rich_help_panel=group)
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=False, annotation=Annotated[bool, made])


def with_parameters(function: Callable[..., None], parameters: Sequence[inspect.Parameter]) -> Callable[..., None]:
    """Give a function that takes **keywords the signature that Typer reads, and return it."""
    function.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    function.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return function


def new_app() -> typer.Typer:
    """Return an empty Typer application with the settings that all commands share."""
    if os.environ.get("COLUMNS") == "0":  # an unknown width; Rich would print empty lines
        del os.environ["COLUMNS"]
    return typer.Typer(add_completion=False, rich_markup_mode="rich", pretty_exceptions_enable=False)
