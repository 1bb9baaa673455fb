"""Evaluators: what scores candidates. One kind, one file; contract.py says what they get and give."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Mapping
from importlib import import_module
from typing import cast

from ...errors import ConfigError
from ...parsing import nearest
from ..contract import Evaluator
from ..job import Setup
from ..spec import File


def make(setup: Setup) -> Evaluator:
    """Return the evaluator that a search file names. Raises ConfigError naming the line of what is wrong."""
    if setup.folder not in sys.path:  # where the modules of python functions and of tasks lie
        sys.path.insert(0, setup.folder)
    module = import_module(f".{setup.evaluation.kind}", __package__)
    return cast(Evaluator, module.make(setup))


def prepare(evaluator: Evaluator) -> None:
    """Let an evaluator do what takes time and is needed only once, such as importing a library, if it has anything to do.

    So it doesn't count as time of the first evaluation. What fails here fails there again, with its reason.
    """
    if hasattr(evaluator, "prepare"):
        with contextlib.suppress(Exception):
            evaluator.prepare()


def cautions(evaluator: Evaluator) -> list[str]:
    """Return what a user should know before a search with an evaluator, a sentence each."""
    return list(evaluator.cautions()) if hasattr(evaluator, "cautions") else []


def check_objectives(evaluator: Evaluator, objectives: Mapping[str, str], file: File) -> None:
    """Raise ConfigError with every objective that is no metric of an evaluator, by line and column."""
    given = evaluator.metrics
    if given is None:
        return
    unknown = [name for name in objectives if name not in given]
    if unknown:
        raise ConfigError(
            [
                f"{file.at('objectives', name)}: the evaluator gives no {name!r}{nearest(name, given)}; it gives"
                f" {', '.join(given)}"
                for name in unknown
            ]
        )
