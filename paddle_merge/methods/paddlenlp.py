"""PaddleNLP's methods, with its parameters' names, meanings and defaults: what flags mean, and a recipe's paddlenlp:ties."""

from __future__ import annotations

import dataclasses
from typing import Any

from .dare import Dare
from .linear import Linear
from .magprune import Magprune
from .shared.method import Method, Parameter, ResolvedMethod
from .slerp import Slerp
from .ties import Ties
from .trim import Trim

PREFIX = "paddlenlp:"
_KEPT = (
    Parameter("reserve_p", float, 0.7, about="share of elements to keep"),
    Parameter("rescale", bool, True, about="scale what is kept up to make up for what is dropped"),
)
_WEIGHTS = (
    Parameter("weight", float, 1.0, each=True, about="how much a model counts"),
    Parameter("normalize", bool, True, about="divide by the sum of weights"),
)
_SPARSIFIERS: dict[str | None, tuple[Parameter, ...]] = {
    None: (),
    "trim": _KEPT,
    "dare": _KEPT,
    "magprune": (*_KEPT, Parameter("epsilon", float, 0.14, about="full width of the range of keep probabilities")),
}
_MERGERS = {
    "linear": _WEIGHTS,
    "ties": (
        *_WEIGHTS,
        Parameter("ties_elect_type", str, "sum", about="sum, or count of signs"),
        Parameter("ties_zero_sign", str, "positive", about="positive, majority or drop"),
    ),
    "slerp": (
        Parameter("slerp_alpha", float, 0.5, about="0: the first model, 1: the second"),
        Parameter("slerp_normalize_eps", float, 1e-8, about="norms up to this count as 1"),
        Parameter("slerp_dot_threshold", float, 0.9995, about="beyond this cosine the interpolation is linear"),
    ),
}
_SCALE = Parameter("scale", float, 1.0, about="factor on the merged task vector")


_WORDS = {"ties_elect_type": ("sum", "count"), "ties_zero_sign": ("positive", "majority", "drop")}
# What flags are called in recipes.
_IN_RECIPES = {"--weight_list": "parameter 'weight'", "pass --no_normalize": "set normalize: false", "--": ""}


def method(sparsifier: str | None, merge_type: str, name: str) -> Method:
    """The pair, called paddlenlp:`name`, as flags mean it. make raises nothing: what is wrong is said by `problems` of the
    parts."""

    def make(*, scale: float, **values: Any) -> ResolvedMethod:
        kept = [values.pop(parameter.name) for parameter in _SPARSIFIERS[sparsifier]]
        weights, *others = (values.pop(parameter.name) for parameter in _MERGERS[merge_type])
        parts: dict[str | None, Any] = {None: lambda *_: None, "trim": Trim, "dare": Dare}
        parts["magprune"] = lambda density, rescale, epsilon: Magprune(density, epsilon, rescale)
        merger = {"linear": Linear, "ties": Ties, "slerp": Slerp}[merge_type]
        return ResolvedMethod(parts[sparsifier](*kept), merger(weights, *others), scale)

    least, most = (2, 2) if merge_type == "slerp" else (1, None)
    parameters = (*_SPARSIFIERS[sparsifier], *_MERGERS[merge_type], _SCALE)
    return Method(PREFIX + name, make, parameters, least=least, most=most, source="PaddleNLP's mergekit")


def in_recipes(one: Method) -> Method:
    """The same, whose make raises ValueError, in a recipe's words."""

    def make(**values: Any) -> ResolvedMethod:
        found = [
            f"parameter {name!r} must be {', '.join(words[:-1])} or {words[-1]}, not {values[name]!r}"
            for name, words in _WORDS.items()
            if values.get(name, words[0]) not in words
        ]
        resolved = one.make(**values)
        found += resolved.sparsifier.problems() if resolved.sparsifier is not None else []
        found += resolved.merger.problems(len(values.get("weight", (1.0, 1.0))))
        if found:
            told = "; ".join(found)
            for flag, parameter in _IN_RECIPES.items():
                told = told.replace(flag, parameter)
            raise ValueError(told)
        return resolved

    return dataclasses.replace(one, make=make)


SPARSIFIERS = ("trim", "dare", "magprune")
MERGE_TYPES = ("linear", "ties", "slerp")

# merge method -> (sparsifier, merge type)
METHODS: dict[str, tuple[str | None, str]] = {
    "linear": (None, "linear"),
    "slerp": (None, "slerp"),
    "ties": ("trim", "ties"),
    "dare_linear": ("dare", "linear"),
    "dare_ties": ("dare", "ties"),
    "della": ("magprune", "ties"),
    "della_linear": ("magprune", "linear"),
}
