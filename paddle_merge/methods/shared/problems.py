"""What is wrong with parameters, in words that fit command line and recipe alike."""

from __future__ import annotations

from collections.abc import Sequence

from ...records import record


@record(frozen=True)
class Problem:
    """What is wrong with one parameter.

    parameter: its name, as in Method.parameters; None: the sentence is about the method.
    sentence: what follows the parameter's name, beginning with its value. It refers to other parameters in braces:
        "{density}" stands for the name of one, "{normalize:false}" for how to set it so. Whoever shows the problem knows
        whether these are flags or a recipe's words.
    """

    parameter: str | None
    sentence: str


def listed(values: Sequence[float]) -> str:
    """Return numbers as a person would type them: "0.5 1"."""
    return " ".join(f"{value:g}" for value in values)
