"""Make a command's flags and its help page from the fields of a dataclass.

`normal_form` first brings PaddleNLP's spellings to the one that Typer reads: lists as `--weight_list 0.3 -0.7`, booleans as
`--normalize False`, names with dashes or underscores.
"""

from __future__ import annotations

import dataclasses
import inspect
import itertools
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import typer

from ..errors import ConfigError
from ..parsing import AUTO, nearest, parse_bool
from ..version import __version__
from .command import set_up_logging

PROGRAM = "python -m paddle_merge"
SWITCHES = {"help", "version", "verbose", "quiet"}
Fields = Mapping[str, dataclasses.Field[Any]]  # by name


def fields_of(config: type, *words: str) -> dict[str, dataclasses.Field[Any]]:
    """Return the fields of a dataclass that are flags, by flag: all but `words`, which are given without a flag.

    A field whose flag is a word of Python ends in an underscore: `with_` is --with.
    """
    return {item.name.rstrip("_"): item for item in dataclasses.fields(config) if item.name not in words}


@dataclass(frozen=True)
class CommandLine:
    """The command line of one command: its flags, and the text of its help page.

    name: the word after `python -m paddle_merge`.
    fields: the flags, by name.
    argument: the name of the words without a flag in the usage line, and their help; None if there can be none.
    help: paragraphs, separated by blank lines.
    examples: pairs of what an example does and the words that follow the command's name.
    aliases: other names of flags -> their names.
    many: whether any number of words may be given without a flag, before and behind the flags; else only the first word may.
    hint: the end of the error message about a further word without a flag.
    needs_words: whether the command without any words prints its help page instead of running.
    """

    name: str
    fields: Fields
    argument: tuple[str, str] | None
    help: str
    examples: Sequence[tuple[str, str]]
    aliases: Mapping[str, str] = dataclasses.field(default_factory=dict)
    many: bool = True
    hint: str = ""
    needs_words: bool = True

    def normal_form(self, argv: Sequence[str], abbreviated: Collection[str] = ()) -> list[str]:
        """Return argv in the spelling that Typer reads; see `normal_form`. Raises ConfigError."""
        if self.argument is None and argv and not argv[0].startswith("-"):
            raise ConfigError(f"unexpected {argv[0]!r}; {self.name} takes flags only")
        return normal_form(argv, self.fields, self.aliases, self.hint, abbreviated, self.many)

    def main(self, argv: Sequence[str], run: Callable[[Any, dict[str, Any]], None]) -> None:
        """Parse argv and call `run`, then exit; SystemExit is always raised, unless it is ConfigError, an error of
        `run` or KeyboardInterrupt.

        run: is called with the words given without a flag (a list if `many`, else the first one or None) and with the flags
        that were given, by name.
        """
        words = self.normal_form(argv) or ["--help"] * self.needs_words
        try:
            self._app(run)(words, prog_name=f"{PROGRAM} {self.name}")
        except SystemExit as end:
            if isinstance(getattr(end.__context__, "__cause__", None), KeyboardInterrupt):
                raise KeyboardInterrupt from None  # of which Typer made an exit without a word
            raise

    def _app(self, run: Callable[[Any, dict[str, Any]], None]) -> typer.Typer:
        def command(
            first: Any = None, version: bool = False, verbose: bool = False, quiet: bool = False, **flags: Any
        ) -> None:
            if version:
                typer.echo(f"paddle_merge {__version__}")
                return
            set_up_logging(verbose, quiet)
            given = {name: value for name, value in flags.items() if value not in (None, [])}
            run(list(first or ()) if self.many else first, given)

        parameters = [
            *self._words(),
            *map(option, self.fields.values()),
            switch("version", "Print the version and exit."),
            switch("verbose", "Print debug messages."),
            switch("quiet", "Print errors only; results are printed as always."),
        ]
        app = new_app()
        names = {"help_option_names": ["--help", "-h"]}
        app.command(help=unwrapped(self.help), epilog=self._epilog(), context_settings=names)(
            with_parameters(command, parameters)
        )
        return app

    def _words(self) -> list[inspect.Parameter]:
        """Return the parameter for the words without a flag, if there can be any."""
        if self.argument is None:
            return []
        argument = typer.Argument(metavar=self.argument[0], help=escape(self.argument[1]), show_default=False)
        kind: Any = list[str] | None if self.many else str | None
        return [
            inspect.Parameter("first", inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[kind, argument])
        ]

    def _epilog(self) -> str:
        lines = []
        for what, words in self.examples:
            lines += [f"[dim]{escape(what)}[/dim]", escape(f"{PROGRAM} {self.name} {words}".rstrip())]
        return "\n\n".join(["[bold]Examples[/bold]", *lines])


def normal_form(
    argv: Sequence[str],
    fields: Fields,
    aliases: Mapping[str, str],
    hint: str,
    abbreviated: Collection[str] = (),
    many: bool = False,
) -> list[str]:
    """Return argv in the one spelling that Typer reads. Raises ConfigError listing every unknown flag and wrong value.

    `--model-path-list a b` -> `--model_path_list=a --model_path_list=b`; `--normalize False` -> `--normalize=False`. Of a
    flag given twice, the last one counts. hint: the end of the message about a second word without a flag. abbreviated: the
    flags that may be abbreviated to any beginning that no other of them has. many: allow any number of words without a flag,
    also behind flags that take no value.
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
            problems.append(f"unexpected {word!r}{hint}")

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
    """Return whether a field is a list."""
    return str(item.type).startswith("list[")


# --- help pages ----------------------------------------------------------------------------------------------------------


def escape(text: str) -> str:
    """Return text as Rich markup that is shown as the text itself: `[out, in]` isn't taken for a style.

    The same as rich.markup.escape, without importing Rich, which only help pages need.
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
    return typer.Typer(add_completion=False, rich_markup_mode="rich", pretty_exceptions_enable=False)
