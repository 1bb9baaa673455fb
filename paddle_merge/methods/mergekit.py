"""mergekit's task arithmetic on sparsified task vectors: ties, dare_*, della*, breadcrumbs*, as mergekit means them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from .bernoulli import Bernoulli
from .della import Della
from .linear import Linear
from .magnitude import Breadcrumbs, Magnitude
from .shared.method import LAMBDA, WEIGHT, Method, Parameter, ResolvedMethod
from .ties import Ties

_DENSITY = Parameter("density", float, 1.0, each=True, about="share of elements to keep")
_EPSILON = Parameter("epsilon", float, 0.15, each=True, about="half the width of the range of keep probabilities")
_GAMMA = Parameter("gamma", float, 0.01, each=True, about="share of elements to drop as outliers, the largest")


def _method(
    name: str, sparsifier: Callable[..., Any], own: tuple[Parameter, ...], *, normalize: bool, rescale: bool, source: str
) -> Method:
    """Its merge type is ties, with an elected sign, or "..._linear" and breadcrumbs: the weighted sum."""
    elects = name.endswith("ties") or name == "della"

    def make(
        weight: tuple[float, ...], density: tuple[float, ...], normalize: bool, rescale: bool, **others: Any
    ) -> ResolvedMethod:
        scale = others.pop("lambda")
        kept = sparsifier(density, *others.values(), rescale) if min(density) < 1.0 else None
        if elects:
            return ResolvedMethod(kept, Ties(weight, normalize), scale)
        return ResolvedMethod(kept, Linear(weight, normalize and abs(sum(weight)) >= 1e-8), scale)

    parameters = (
        WEIGHT,
        _DENSITY,
        *own,
        Parameter("normalize", bool, normalize, about="divide by the sum of the weights that count"),
        Parameter("rescale", bool, rescale, about="restore each task vector's L1 norm"),
        LAMBDA,
    )
    return Method(name, make, parameters, base="required", source=source)


def _shown(values: tuple[float, ...]) -> str:
    return " ".join(f"{value:g}" for value in values)


def _breadcrumbs(density: tuple[float, ...], gamma: tuple[float, ...], rescale: bool) -> Breadcrumbs:
    if min(gamma) < 0.0 or max(gamma) > 1.0:
        raise ValueError(f"parameter 'gamma' {_shown(gamma)} is the share of elements to drop as outliers, from 0 to 1")
    return Breadcrumbs(density, gamma, rescale)


def _della(density: tuple[float, ...], epsilon: tuple[float, ...], rescale: bool) -> Della:
    for kept, half in zip(density, epsilon, strict=True):
        if 0.0 < kept < 1.0 and not abs(half) < min(kept, 1.0 - kept):
            raise ValueError(
                f"parameter 'epsilon' {half:g} with 'density' {kept:g}: keep probabilities span density -/+ epsilon and must"
                f" stay between 0 and 1; set epsilon below {min(kept, 1.0 - kept):g}"
            )
    return Della(density, epsilon, rescale)


METHODS = (
    _method("ties", Magnitude, (), normalize=True, rescale=False, source="Yadav et al. 2023"),
    _method("dare_linear", Bernoulli, (), normalize=False, rescale=True, source="Yu et al. 2024"),
    _method("dare_ties", Bernoulli, (), normalize=False, rescale=True, source="Yu et al. 2024"),
    _method("della", _della, (_EPSILON,), normalize=True, rescale=True, source="Deep et al. 2024"),
    _method("della_linear", _della, (_EPSILON,), normalize=False, rescale=True, source="Deep et al. 2024"),
    _method("breadcrumbs", _breadcrumbs, (_GAMMA,), normalize=False, rescale=False, source="Davari & Belilovsky 2023"),
    _method("breadcrumbs_ties", _breadcrumbs, (_GAMMA,), normalize=False, rescale=False, source="Davari & Belilovsky 2023"),
)
