"""Read the command line of a command, whose flags are the fields of a dataclass.

PaddleNLP's spellings are understood, too: lists as `--weight_list 0.3 -0.7`, booleans as `--normalize False`, names with
dashes or underscores.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from ..errors import ConfigError
from ..parsing import nearest, parse_bool
from ..records import record

PROGRAM = "python -m paddle_merge"
SWITCHES = {"help", "version", "verbose", "quiet"}
Fields = Mapping[str, dataclasses.Field[Any]]  # by name


def fields_of(config: type, *words: str) -> dict[str, dataclasses.Field[Any]]:
    """Return the fields of a dataclass that are flags, by flag: all but `words`, which are given without a flag.

    A field whose flag is a word of Python ends in an underscore: `with_` is --with.
    """
    return {item.name.rstrip("_"): item for item in dataclasses.fields(config) if item.name not in words}


@record(frozen=True)
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

    def parse(self, argv: Sequence[str], abbreviated: Collection[str] = ()) -> Given:
        """Return what argv gives; see `parse`. Raises ConfigError."""
        if self.argument is None and argv and not argv[0].startswith("-"):
            raise ConfigError(f"unexpected {argv[0]!r}; {self.name} takes flags only")
        return parse(argv, self.fields, self.aliases, self.hint, abbreviated, self.many)


# What other tools, and recipes, call a flag -> the flag.
_ELSEWHERE = {
    "base": "base_model_path",
    "base_model": "base_model_path",
    "density": "reserve_p",
    "dtype": "out_dtype",
    "lambda": "scale",
    "method": "merge_method",
    "model": "model_path_list",
    "models": "model_path_list",
    "output": "output_path",
    "t": "slerp_alpha",
    "tokenizer": "tokenizer_source",
    "weight": "weight_list",
    "weights": "weight_list",
}


def _meant(flag: str, fields: Fields, aliases: Mapping[str, str]) -> str:
    """Return which flag is likely meant by an unknown one, as the end of a sentence; or ""."""
    if (name := _ELSEWHERE.get(flag)) in fields:
        return f"; it is called {name!r} here"
    return nearest(flag, [*fields, *SWITCHES, *aliases])


@record(frozen=True)
class Given:
    """What a command line gives.

    words: those without a flag. flags: the value of each flag that was given, a list if it takes several, by the name of its
    field. switches: the flags without a value that every command has.
    """

    words: list[str]
    flags: dict[str, Any]
    switches: set[str]

    @property
    def first(self) -> str | None:
        return self.words[0] if self.words else None


def parse(
    argv: Sequence[str],
    fields: Fields,
    aliases: Mapping[str, str],
    hint: str,
    abbreviated: Collection[str] = (),
    many: bool = False,
) -> Given:
    """Return what argv gives. Raises ConfigError listing every unknown flag and wrong value.

    `--model-path-list a b` -> {"model_path_list": ["a", "b"]}; `--no_normalize` -> {"normalize": "False"}. Of a flag given
    twice, the last one counts. hint: the end of the message about a second word without a flag. abbreviated: the flags that
    may be abbreviated to any beginning that no other of them has. many: allow any number of words without a flag, also
    behind flags that take no value.
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

    chosen: dict[str, Any] = {}
    switches: set[str] = set()
    for flag, values in groups:
        name, negated = spelled_out(flag), False
        if name not in fields and name.startswith("no_"):
            name, negated = spelled_out(name[3:]), True
        if many and name not in lists:
            takes = name in fields and (name not in bools or parse_bool(values[0] if values else "") is not None)
            first += values[takes:]
            values = values[:takes]
        if flag in SWITCHES:
            switches.add(flag)
            if values:
                problems.append(f"--{flag} takes no value, so {values[0]!r} doesn't belong there")
        elif name not in fields or (negated and name not in bools):
            problems.append(f"unknown flag --{flag}{_meant(flag, fields, aliases)}")
        elif name in bools:
            on = True if not values else parse_bool(values[0])
            if negated and values:
                problems.append(f"--{flag} takes no value, so {values[0]!r} doesn't belong there")
            elif on is None and values[0].startswith("-"):
                problems.append(f"unexpected {values[0]!r}")
            elif on is None or len(values) > 1:
                problems.append(f"--{flag} takes True or False, not {' '.join(values)!r}")
            chosen[name] = str(on and not negated)
        elif name in lists:
            if not values:
                problems.append(f"--{flag} needs at least one value")
            chosen[name] = values
        elif len(values) != 1:
            problems.append(f"--{flag} takes one value, not {len(values)}{': ' if values else ''}{' '.join(values)}")
        else:
            chosen[name] = values[0]
    problems = problems or [f"unexpected {word!r}{hint}" for word in first if word.startswith("-")]
    if problems:
        raise ConfigError(problems)
    return Given(first, {fields[name].name: value for name, value in chosen.items()}, switches)


def is_list(item: dataclasses.Field[Any]) -> bool:
    """Return whether a field is a list."""
    return str(item.type).startswith("list[")
