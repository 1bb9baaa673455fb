"""mergekit's simplest methods: weighted sums, of models and of task vectors; two models on an arc; one model as it is."""

from __future__ import annotations

from .linear import Linear
from .shared.method import LAMBDA, WEIGHT, Method, Parameter, ResolvedMethod
from .slerp import Slerp


def _linear(weight: tuple[float, ...], normalize: bool) -> ResolvedMethod:
    if normalize and abs(sum(weight)) <= 1e-9 * sum(map(abs, weight)):
        shown = " ".join(f"{one:g}" for one in weight)
        raise ValueError(f"parameter 'weight' {shown} sums to zero, so it can't be normalised; set normalize: false")
    return ResolvedMethod(None, Linear(weight, normalize))


def _task_arithmetic(weight: tuple[float, ...], normalize: bool, **others: float) -> ResolvedMethod:
    if normalize and abs(sum(weight)) < 1e-8:  # as mergekit
        normalize = False
    return ResolvedMethod(None, Linear(weight, normalize), others["lambda"])


def _slerp(t: float) -> ResolvedMethod:
    return ResolvedMethod(None, Slerp(t))


def _passthrough(scale: tuple[float, ...]) -> ResolvedMethod:
    return ResolvedMethod(None, Linear(scale, normalize=False))


METHODS = (
    Method(
        "linear",
        _linear,
        (WEIGHT, Parameter("normalize", bool, True, about="divide by the sum of weights")),
        base="model",
        source="Wortsman et al. 2022, model soups",
    ),
    Method(
        "task_arithmetic",
        _task_arithmetic,
        (WEIGHT, Parameter("normalize", bool, False, about="divide by the sum of weights"), LAMBDA),
        base="required",
        source="Ilharco et al. 2023",
    ),
    Method(
        "slerp",
        _slerp,
        (Parameter("t", float, about="0: the base, 1: the other model"),),
        base="first",
        least=2,
        most=2,
        source="Shoemake 1985",
    ),
    Method(
        "passthrough",
        _passthrough,
        (Parameter("scale", float, 1.0, each=True, about="factor on the tensor"),),
        base="model",
        most=1,
        source="layers as they are: frankenmerges, depth up-scaling",
    ),
)
