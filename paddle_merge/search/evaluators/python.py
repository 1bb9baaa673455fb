"""Score candidates by a Python function, `package.module:function`.

The function is called as `function(candidate, split, seed, samples)`, as contract.py says, and returns Scores or a mapping
from metrics to values. If it takes a parameter `data`, it gets the path of the split's file too. A class is made once
in each process that scores, and once more to check the file, with the further keys of the section as keyword arguments;
its instance is called. If the function has an attribute `count`,
`count(split)` says how many samples a split has.
"""

from __future__ import annotations

import importlib
import inspect
import os
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from ...errors import ConfigError
from ..contract import Candidate, EvaluationError, Scores, place_of
from ..data import count_samples
from ..job import Setup
from .settings import check_no_settings


class Function:
    """Calls a function for each candidate."""

    metrics = None

    def __init__(self, setup: Setup):
        """Raises ConfigError if the function can't be imported."""
        self._setup = setup
        evaluation = setup.evaluation
        module, colon, name = str(evaluation.what).partition(":")
        if not colon or not name:
            raise ConfigError(f"{evaluation.at}: python must be package.module:function, not {evaluation.what!r}")
        try:
            found: Any = _imported(module, setup.folder)
            for word in name.split("."):
                found = getattr(found, word)
            self._function: Any = found(**evaluation.settings) if inspect.isclass(found) else found
        except (Exception, SystemExit) as error:  # a module may raise anything when it is imported
            raise ConfigError(
                f"{evaluation.at}: {evaluation.what!r} can't be imported ({_reason(error)}{place_of(error, setup.folder)})"
            ) from None
        if not callable(self._function):
            raise ConfigError(f"{evaluation.at}: {evaluation.what!r} is no function")
        if not inspect.isclass(found):
            check_no_settings(evaluation, "a function, other than a class,")
        self._takes_data = "data" in _signature(self._function).parameters
        more = {"data": ""} if self._takes_data else {}
        try:
            _signature(self._function, follow_wrapped=False).bind("candidate", "split", "seed", "samples", **more)
        except TypeError as error:
            call = ", ".join(["candidate", "split", "seed", "samples", *[f"{key}={key}" for key in more]])
            raise ConfigError(f"{evaluation.at}: {evaluation.what!r} is called as {name}({call}) ({error})") from None

    def count(self, split: str) -> int | None:
        if callable(given := getattr(self._function, "count", None)):
            try:
                return int(given(split))
            except Exception as error:  # it is the user's
                at = self._setup.evaluation.at
                raise ConfigError(f"{at}: count({split!r}) of the function failed ({_reason(error)})") from None
        path = self._data(split)
        return count_samples(path) if path and os.path.isfile(path) else None

    def __call__(self, candidate: Candidate, split: str, seed: int, samples: Sequence[int] | None) -> Scores:
        more = {"data": self._data(split)} if self._takes_data else {}
        found = self._function(candidate, split, seed, samples, **more)
        if isinstance(found, Scores):
            return found
        if not isinstance(found, Mapping):
            raise EvaluationError(f"the function must return a mapping of metrics to values, not a {type(found).__name__}")
        return Scores(dict(found))

    def _data(self, split: str) -> str | None:
        path = self._setup.data.of(split)
        return os.path.join(self._setup.folder, os.path.expanduser(path)) if path else None


def _signature(function: Any, follow_wrapped: bool = True) -> inspect.Signature:
    """Return what a function takes: anything, if Python can't tell, as of some that are written in C."""
    try:
        return inspect.signature(function, follow_wrapped=follow_wrapped)
    except (TypeError, ValueError):
        return inspect.signature(lambda *args, **kwargs: None)


def _reason(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


def _imported(module: str, folder: str) -> Any:
    """Import a module. One in the folder of the search file comes before another of its name, which an earlier search of
    this process may have imported."""
    first = module.partition(".")[0]
    beside = [os.path.join(folder, f"{first}.py"), os.path.join(folder, first, "__init__.py")]
    held = getattr(sys.modules.get(first), "__file__", None)
    if held is not None and any(map(os.path.exists, beside)) and held not in map(os.path.abspath, beside):
        for name in [one for one in sys.modules if one == first or one.startswith(f"{first}.")]:
            del sys.modules[name]
    if sys.path[0] != folder:
        sys.path.insert(0, folder)
    return importlib.import_module(module)


def make(setup: Setup) -> Function:
    """Return the evaluator of `evaluate: {python: ...}`. Raises ConfigError."""
    return Function(setup)
