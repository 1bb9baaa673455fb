"""PaddleNLP's methods: its names, its parameters with their meanings and defaults, and the parts that they consist of.

Command-line flags mean these methods; recipes call them paddlenlp:ties and so on. The flags repeat the defaults
(recipe/fields.py). The facing table of mergekit's methods is mergekit.py, where the same name can mean another method:

    method                    here                                    in mergekit.py
    ties                      trim.Threshold at reserve_p 0.7,        trim.Largest at density 1, not rescaled
                              L1 norm restored
    dare_linear, dare_ties    dare.Bernoulli, divided by density      dare.Bernoulli, L1 norm restored
    della, della_linear       della.ByTensorRank, divided by the      della.ByRowRank, L1 norm restored
                              probability of each element
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from ..backends.masks import FINEST
from .dare import Bernoulli
from .della import ByTensorRank
from .linear import Linear
from .shared.base import Merger
from .shared.method import WEIGHT_OF_ONE, Method, Parameter, ResolvedMethod
from .shared.problems import Problem, listed
from .shared.sparsify import Keep, KeepAndRescale, Rescale
from .slerp import Slerp
from .ties import Ties
from .trim import Threshold

PREFIX = "paddlenlp:"
_KEPT = (
    Parameter("reserve_p", float, 0.7, about="share of elements to keep"),
    Parameter("rescale", bool, True, about="scale what is kept up to make up for what is dropped"),
)
_EPSILON = Parameter("epsilon", float, 0.14, about="full width of the range of keep probabilities")
_WEIGHTS = (WEIGHT_OF_ONE, Parameter("normalize", bool, True, about="divide by the sum of weights"))
_SCALE = Parameter("scale", float, 1.0, about="factor on the merged task vector")

# name -> (the rule that keeps elements, made of reserve_p and the parameters after `_KEPT`; how it rescales; parameters)
_SPARSIFIERS: dict[str, tuple[Callable[..., Keep], Rescale, tuple[Parameter, ...]]] = {
    "trim": (Threshold, Rescale.L1, _KEPT),
    "dare": (Bernoulli, Rescale.PROBABILITY, _KEPT),
    "magprune": (ByTensorRank, Rescale.PROBABILITY, (*_KEPT, _EPSILON)),
}
# name -> (the merger, parameters)
_MERGERS: dict[str, tuple[Callable[..., Merger], tuple[Parameter, ...]]] = {
    "linear": (Linear, _WEIGHTS),
    "ties": (
        Ties,
        (
            *_WEIGHTS,
            Parameter("ties_elect_type", str, "sum", about="sum, or count of signs"),
            Parameter("ties_zero_sign", str, "positive", about="positive, majority or drop"),
        ),
    ),
    "slerp": (
        Slerp,
        (
            Parameter("slerp_alpha", float, 0.5, about="0: the first model, 1: the second"),
            Parameter("slerp_normalize_eps", float, 1e-8, about="norms up to this count as 1"),
            Parameter("slerp_dot_threshold", float, 0.9995, about="beyond this cosine the interpolation is linear"),
        ),
    ),
}
# The paper of a sparsifier, or, where there is none, of a merge type.
_PAPERS = {
    "trim": "https://arxiv.org/abs/2306.01708",
    "dare": "https://arxiv.org/abs/2311.03099",
    "magprune": "https://arxiv.org/abs/2406.11617",
    "linear": "https://arxiv.org/abs/2203.05482",
    "ties": "https://arxiv.org/abs/2306.01708",
    "slerp": "https://doi.org/10.1145/325165.325242",
}
_WORDS = {"ties_elect_type": ("sum", "count"), "ties_zero_sign": ("positive", "majority", "drop")}

SPARSIFIERS = tuple(_SPARSIFIERS)
MERGE_TYPES = tuple(_MERGERS)

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


def sparsifier(name: str, reserve_p: float, rescale: bool, **others: float) -> KeepAndRescale:
    """Return the sparsifier that PaddleNLP calls trim, dare or magprune. others: epsilon, of magprune."""
    keep, way, _ = _SPARSIFIERS[name]
    return KeepAndRescale(name, keep(reserve_p, *others.values()), way if rescale else Rescale.NONE)


def method(sparsify_type: str | None, merge_type: str, name: str) -> Method:
    """Return the method of a sparsifier, or none, and a merge type. It is called paddlenlp:`name`."""
    kept = _SPARSIFIERS[sparsify_type][2] if sparsify_type is not None else ()
    merger, others = _MERGERS[merge_type]

    def make(*, scale: float, **values: Any) -> ResolvedMethod:
        own = {parameter.name: values.pop(parameter.name) for parameter in kept}
        ordered = [values.pop(parameter.name) for parameter in others]
        return ResolvedMethod(sparsifier(sparsify_type, **own) if sparsify_type else None, merger(*ordered), scale)

    def problems(**values: Any) -> list[Problem]:
        found = [
            Problem(one, f"must be {', '.join(words[:-1])} or {words[-1]}, not {values[one]!r}")
            for one, words in _WORDS.items()
            if values.get(one, words[0]) not in words
        ]
        if sparsify_type is not None:
            found += sparsifier_problems(sparsify_type, values["reserve_p"], values.get("epsilon", 0.0))
        return found + _MERGER_PROBLEMS[merge_type](**values)

    return Method(
        PREFIX + name,
        make,
        (*kept, *others, _SCALE),
        about="what PaddleNLP's flags of this name mean",
        about_cn="与 PaddleNLP 同名参数的含义相同",
        source="PaddleNLP's mergekit",
        paper=_PAPERS[sparsify_type or merge_type],
        problems=problems,
        least=2 if merge_type == "slerp" else 1,
        most=2 if merge_type == "slerp" else None,
    )


# --- what is wrong with parameters


def sparsifier_problems(name: str, reserve_p: float, epsilon: float = 0.0) -> list[Problem]:
    """Return why reserve_p is not a fraction of elements to keep, or epsilon too wide a range around it.

    FINEST is the smallest probability that random masks can tell from 0.
    """
    if name != "trim" and 0.0 < reserve_p < FINEST:
        sentence = "keeps less than one element of 2**32, which masks can't tell from none; raise it"
        return [Problem("reserve_p", f"{reserve_p:g} {sentence}")]
    if reserve_p == 0.0:
        return [Problem("reserve_p", "0 keeps nothing of the models; it must be greater than 0 and at most 1")]
    if not 0.0 < reserve_p <= 1.0:
        return [Problem("reserve_p", f"{reserve_p:g} is the fraction of elements to keep: greater than 0 and at most 1")]
    widest = 2.0 * min(reserve_p, 1.0 - reserve_p)
    if name == "magprune" and not 0.0 <= epsilon <= widest + 1e-12:
        sentence = (
            f"{epsilon:g} with {{reserve_p}} {reserve_p:g} would need probabilities outside 0 to 1: keep probabilities span"
            f" reserve_p -/+ epsilon/2, so epsilon may be at most {widest:g}"
        )
        return [Problem("epsilon", sentence)]
    return []


def _linear_problems(weight: Sequence[float], normalize: bool, **others: Any) -> list[Problem]:
    """Return why weights can't be divided by their sum: it is zero, or negative and would flip every sign."""
    total = sum(weight)
    if normalize and abs(total) <= 1e-9 * sum(map(abs, weight)):
        sentence = "sums to zero, so it can't be normalised; {normalize:false} to use the weights as they are"
        return [Problem("weight", f"{listed(weight)} {sentence}")]
    if normalize and total < 0:
        sentence = (
            f"sums to {total:g}; dividing by it would flip every sign; {{normalize:false}} to use the weights as they are"
        )
        return [Problem("weight", f"{listed(weight)} {sentence}")]
    return []


def _ties_problems(weight: Sequence[float], normalize: bool, **others: Any) -> list[Problem]:
    if normalize and min(weight, default=0.0) < 0:
        sentence = (
            "ties divides each element by the weights of the models that agree, which a negative weight can turn negative or"
            " zero; {normalize:false} to use the weights as they are"
        )
        return [Problem("weight", f"{listed(weight)}: {sentence}")]
    return _linear_problems(weight, normalize)


def _slerp_problems(
    slerp_alpha: float, slerp_normalize_eps: float, slerp_dot_threshold: float, **others: Any
) -> list[Problem]:
    found = []
    if not 0.0 <= slerp_alpha <= 1.0:
        found.append(Problem("slerp_alpha", f"{slerp_alpha:g} must lie between 0 (the first model) and 1 (the second)"))
    if not 0.0 <= slerp_dot_threshold <= 1.0:
        sentence = f"{slerp_dot_threshold:g} is a cosine and must lie between 0 and 1"
        found.append(Problem("slerp_dot_threshold", sentence))
    if not slerp_normalize_eps >= 0.0:
        found.append(Problem("slerp_normalize_eps", f"{slerp_normalize_eps:g} must not be negative"))
    return found


_MERGER_PROBLEMS: dict[str, Callable[..., list[Problem]]] = {
    "linear": _linear_problems,
    "ties": _ties_problems,
    "slerp": _slerp_problems,
}
