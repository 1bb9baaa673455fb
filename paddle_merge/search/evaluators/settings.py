"""Read the settings of an evaluator: a mapping from a search file becomes a dataclass, whose fields say what there is."""

from __future__ import annotations

import dataclasses
from typing import Any, TypeVar

from ...errors import ConfigError
from ...parsing import coerce, nearest, shown
from ..spec import Evaluation

T = TypeVar("T")


def setting(default: Any = None, *, choices: tuple[str, ...] = (), least: float | None = None) -> Any:
    """Return a field of a dataclass of settings. choices: the values that it may have. least: the smallest number."""
    return dataclasses.field(default=default, metadata={"choices": choices, "least": least})


def read_settings(evaluation: Evaluation, kind: type[T]) -> T:
    """Return the settings of an evaluation: the keys beside that of its kind, and those that this one holds itself.

    `perplexity: {max_length: 512}` and `perplexity: true` with `max_length: 512` beside it are the same.
    kind: a dataclass whose fields are made by `setting`; their types are as parsing.coerce takes them.
    Raises ConfigError with every unknown key and wrong value, by line and column.
    """
    given = {**evaluation.settings, **(evaluation.what if isinstance(evaluation.what, dict) else {})}
    fields = {item.name: item for item in dataclasses.fields(kind)}  # type: ignore[arg-type]
    values: dict[str, Any] = {}
    problems: list[str] = []
    for name, value in given.items():
        if value is None or value == "null":
            continue
        try:
            if name not in fields:
                problem = f"unknown key {name!r}{nearest(name, fields)}; {evaluation.kind} has {', '.join(fields)}"
            else:
                values[name] = coerce(value, str(fields[name].type))
                problem = _wrong(name, values[name], fields[name].metadata)
        except ValueError as error:
            problem = f"{name} {error}"
        if problem:
            problems.append(f"{evaluation.places.get(name, evaluation.at)}: {problem}")
    if problems:
        raise ConfigError(problems)
    return kind(**values)


def check_no_settings(evaluation: Evaluation, what: str) -> None:
    """Raise ConfigError, by line and column, if there are keys beside that of the evaluator's kind. what: takes none."""
    if evaluation.settings:
        known = (evaluation.kind, "time_limit")
        raise ConfigError(
            [
                f"{evaluation.places.get(name, evaluation.at)}: {name!r} has no effect{nearest(name, known)}; {what}"
                " takes no settings but time_limit"
                for name in evaluation.settings
            ]
        )


def is_switch(what: Any) -> bool:
    """Return whether what stands behind an evaluator's kind says only that it is the one: nothing, true or a mapping."""
    return what is True or what in ("", "null", "~", "true") or isinstance(what, dict)


def _wrong(name: str, value: Any, limits: Any) -> str:
    if limits["choices"] and value not in limits["choices"]:
        return f"{name} must be one of {', '.join(limits['choices'])}, not {shown(value)}{nearest(value, limits['choices'])}"
    if limits["least"] is not None and not value >= limits["least"]:
        return f"{name} must be at least {limits['least']:g}, not {shown(value)}"
    return ""
