"""Evaluators: what scores candidates. One kind, one file; contract.py says what they get and give."""

from __future__ import annotations

from importlib import import_module
from typing import cast

from ..contract import Evaluator
from ..job import Setup


def make(setup: Setup) -> Evaluator:
    """Return the evaluator that a search file names. Raises ConfigError naming the line of what is wrong."""
    module = import_module(f".{setup.evaluation.kind}", __package__)
    return cast(Evaluator, module.make(setup))
