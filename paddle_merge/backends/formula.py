"""Declare which compiled loops compute what a formula computes.

A formula is a function of blocks, written in NumPy's functions: `formula(xp, x, ...)`, xp being NumPy or Paddle's twin of it
(pd_words.py). The NumPy backend runs it as it stands, or, much faster, by the loop that it names. Loops are named, not
imported: reading a recipe and planning a merge do without them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

_Formula = TypeVar("_Formula", bound=Callable[..., Any])

# Formula -> the name of its loop, "module.function" of backends/kernels.
KERNELS: dict[Callable[..., Any], str] = {}
MEASURES: dict[Callable[..., Any], str] = {}


def formula(kernel: str | None = None, *, measure: str | None = None) -> Callable[[_Formula], _Formula]:
    """Declare a formula's compiled loops, each by its name in backends/kernels: "mergers.ties".

    kernel: the loop that computes the formula of a block and leaves the result in the block's first row: loop(x, *args).
        The loop of a masked formula, which takes hashes, takes the key's two numbers instead: loop(x, k0, k1, *args).
    measure: the loop that adds up what the formula gives of a block, without storing it: measures.elected_balance of an
        elected sign, measures.add_bins of the bins of magnitudes.

    A formula without a loop is run as it stands. A loop that doesn't exist is an error when the formula is first used.
    """

    def declare(function: _Formula) -> _Formula:
        for names, name in ((KERNELS, kernel), (MEASURES, measure)):
            if name is not None:
                names[function] = name
        return function

    return declare
