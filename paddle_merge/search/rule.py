"""Read the rule by which one of several best candidates is picked:

    maximize reading subject to reward >= 0.98 of ./aligned and length <= 300

A condition compares a metric with a number, or with a multiple of what a reference has: `best`, the best of all candidates,
or a model by its name in the search file. Names with spaces stand in quotes.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from ..errors import ConfigError
from ..parsing import nearest, shown
from ..records import record
from .contract import DIRECTIONS

BEST = "best"
FORM = "maximize|minimize METRIC [subject to METRIC >=|<= NUMBER [of best|MODEL] [and ...]]"
_WORDS = re.compile(r"""\s*("[^"]*"|'[^']*'|[<>=!]+|[^\s<>="']+)""")
_SPELLINGS = {"maximise": "maximize", "minimise": "minimize"}


@record(frozen=True)
class Condition:
    """metric, at least or at most a number, or that many times what a reference has (None: the number itself)."""

    metric: str
    least: bool
    number: float
    reference: str | None = None

    def __str__(self) -> str:
        of = f" of {self.reference}" if self.reference is not None else ""
        return f"{self.metric} {'>=' if self.least else '<='} {self.number:g}{of}"


@record(frozen=True)
class Rule:
    """The best value of `metric` among the candidates that meet all conditions. at: where it stands, for messages."""

    metric: str
    direction: str
    conditions: tuple[Condition, ...]
    text: str
    at: str

    def check(self, references: Sequence[str]) -> None:
        """Raise ConfigError if a condition names a model that isn't among the references."""
        known = [BEST, *references]
        if unknown := [one.reference for one in self.conditions if one.reference is not None and one.reference not in known]:
            raise ConfigError(
                f"{self.at}: unknown {shown(unknown[0])} behind of{nearest(unknown[0], known)}; there are {', '.join(known)}"
            )


def parse_rule(text: str, at: str, objectives: Mapping[str, str]) -> Rule:
    """Return the rule that a text says. at: what messages begin with: a place in a file, or a flag.

    Raises ConfigError with one sentence that says what is allowed.
    """
    try:
        return _parsed(_words(text), text, at, objectives)
    except ValueError as error:
        raise ConfigError(f"{at}: {error}") from None


def _words(text: str) -> list[str]:
    found, end = [], 0
    while text[end:].strip():
        word = _WORDS.match(text, end)
        if word is None:
            raise ValueError(f"can't read {text[end:].strip()[:20]!r} in the rule; it has the form {FORM}")
        found.append(word[1])
        end = word.end()
    return found


def _parsed(words: list[str], text: str, at: str, objectives: Mapping[str, str]) -> Rule:
    left = list(words)

    def take(what: str) -> str:
        if not left:
            raise ValueError(f"the rule ends where {what} should stand; it has the form {FORM}")
        return left.pop(0)

    def expect(*allowed: str) -> str:
        word = take(" or ".join(allowed))
        if (plain := _SPELLINGS.get(word.lower(), word.lower())) not in allowed:
            raise ValueError(f"{word!r} stands in the rule where {' or '.join(allowed)} should; it has the form {FORM}")
        return plain

    def metric() -> str:
        name = _unquoted(take("a metric"))
        if name not in objectives:
            raise ValueError(
                f"the rule names {name!r}, which is no objective{nearest(name, objectives)};"
                f" there are {', '.join(objectives)}"
            )
        return name

    direction = expect(*DIRECTIONS)
    best = metric()
    if objectives[best] != direction:
        raise ValueError(f"the rule says {direction} {best}, and the objectives say {objectives[best]}")
    conditions = []
    if left:
        expect("subject")
        expect("to")
        while True:
            name, least = metric(), expect(">=", "<=") == ">="
            number = _number(take("a number"))
            reference = None
            if left and left[0].lower() == "of":
                left.pop(0)
                reference = _unquoted(take("best or a model"))
            conditions.append(Condition(name, least, number, reference))
            if not left:
                break
            expect("and")
    return Rule(best, direction, tuple(conditions), text, at)


def _number(word: str) -> float:
    try:
        number = float(word.removesuffix("%"))
    except ValueError:
        raise ValueError(f"{word!r} stands in the rule where a number should; it has the form {FORM}") from None
    if not abs(number) < 1e300:
        raise ValueError(f"{word!r} in the rule is no finite number")
    return number / 100 if word.endswith("%") else number


def _unquoted(word: str) -> str:
    return word[1:-1] if word[:1] in ("'", '"') else word
