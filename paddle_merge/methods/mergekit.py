"""mergekit's methods: its names, its parameters with their meanings and defaults, and the parts that they consist of.

Weighted sums, of models and of sparsified task vectors; two models on an arc; one model as it is. mergekit's other methods
are each in a file of this folder. The facing table of PaddleNLP's methods, and how they differ, is paddlenlp.py.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from .breadcrumbs import Breadcrumbs
from .dare import Bernoulli
from .della import ByRowRank
from .linear import Linear
from .shared.method import LAMBDA, WEIGHT, Method, Parameter, ResolvedMethod
from .shared.problems import Problem, listed
from .shared.sparsify import Keep, KeepAndRescale, Rescale
from .slerp import Slerp
from .ties import Ties
from .trim import Largest

_DENSITY = Parameter("density", float, 1.0, each=True, about="share of elements to keep")
_EPSILON = Parameter("epsilon", float, 0.15, each=True, about="half the width of the range of keep probabilities")
_GAMMA = Parameter("gamma", float, 0.01, each=True, about="share of elements to drop as outliers, the largest")
_NORMALIZE = "divide by the sum of weights"

# name in merge_lock.json -> (the rule that keeps elements, made of density and these parameters; the parameters)
_SPARSIFIERS: dict[str, tuple[Callable[..., Keep], tuple[Parameter, ...]]] = {
    "magnitude": (Largest, ()),
    "bernoulli": (Bernoulli, ()),
    "della": (ByRowRank, (_EPSILON,)),
    "breadcrumbs": (Breadcrumbs, (_GAMMA,)),
}
Each = tuple[float, ...]


def _problems(density: Each, epsilon: Each = (), gamma: Each = (), **others: Any) -> list[Problem]:
    """Return what is wrong with epsilon or gamma, where anything is dropped at all."""
    if min(density) >= 1.0:
        return []
    if gamma and (min(gamma) < 0.0 or max(gamma) > 1.0):
        return [Problem("gamma", f"{listed(gamma)} is the share of elements to drop as outliers, from 0 to 1")]
    for kept, half in zip(density, epsilon, strict=False):
        if 0.0 < kept < 1.0 and not abs(half) < min(kept, 1.0 - kept):
            sentence = (
                f"{half:g} with {{density}} {kept:g}: keep probabilities span density -/+ epsilon and must stay between 0"
                f" and 1; set epsilon below {min(kept, 1.0 - kept):g}"
            )
            return [Problem("epsilon", sentence)]
    return []


def _sparsified(
    name: str, sparsifier: str, elects: bool, normalize: bool, rescale: bool, place: int, source: str, **about: str
) -> Method:
    """Return the method that sparsifies task vectors, and merges them by sign election (ties) or as a weighted sum."""
    keep, own = _SPARSIFIERS[sparsifier]

    def make(weight: Each, density: Each, normalize: bool, rescale: bool, **others: Any) -> ResolvedMethod:
        scale, kept = others.pop("lambda"), None
        if min(density) < 1.0:
            way = Rescale.L1 if rescale else Rescale.NONE
            kept = KeepAndRescale(sparsifier, keep(density, *others.values()), way)
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
    return Method(
        name,
        make,
        parameters,
        source=source,
        paper=_PAPERS[source],
        example={"weight": 1.0, "density": 0.7},
        problems=_problems,
        base="required",
        mergekit=True,
        place=place,
        **about,  # type: ignore[arg-type]
    )


def _linear(weight: Each, normalize: bool) -> ResolvedMethod:
    return ResolvedMethod(None, Linear(weight, normalize))


def _linear_problems(weight: Each, normalize: bool) -> list[Problem]:
    if normalize and abs(sum(weight)) <= 1e-9 * sum(map(abs, weight)):
        return [Problem("weight", f"{listed(weight)} sums to zero, so it can't be normalised; {{normalize:false}}")]
    return []


def _task_arithmetic(weight: Each, normalize: bool, **others: float) -> ResolvedMethod:
    if normalize and abs(sum(weight)) < 1e-8:  # as mergekit
        normalize = False
    return ResolvedMethod(None, Linear(weight, normalize), others["lambda"])


def _slerp(t: float) -> ResolvedMethod:
    return ResolvedMethod(None, Slerp(t))


def _passthrough(scale: Each) -> ResolvedMethod:
    return ResolvedMethod(None, Linear(scale, normalize=False))


_YADAV, _YU, _DEEP, _DAVARI = "Yadav et al. 2023", "Yu et al. 2024", "Deep et al. 2024", "Davari & Belilovsky 2023"
_PAPERS = {
    _YADAV: "https://arxiv.org/abs/2306.01708",
    _YU: "https://arxiv.org/abs/2311.03099",
    _DEEP: "https://arxiv.org/abs/2406.11617",
    _DAVARI: "https://arxiv.org/abs/2312.06795",
}
METHODS = (
    Method(
        "linear",
        _linear,
        (WEIGHT, Parameter("normalize", bool, True, about=_NORMALIZE)),
        about="models were fine-tuned alike, or are checkpoints of one run; try it first",
        about_cn="各模型的微调方式相近，或是同一次训练的检查点；建议首先尝试",
        source="Wortsman et al. 2022, model soups",
        paper="https://arxiv.org/abs/2203.05482",
        example={"weight": 1.0},
        problems=_linear_problems,
        base="model",
        mergekit=True,
        place=1,
    ),
    Method(
        "task_arithmetic",
        _task_arithmetic,
        (WEIGHT, Parameter("normalize", bool, False, about=_NORMALIZE), LAMBDA),
        about="skills are added up, or removed by negative weights",
        about_cn="叠加多种能力，或用负权重去除某种能力",
        source="Ilharco et al. 2023",
        paper="https://arxiv.org/abs/2212.04089",
        example={"weight": 1.0},
        base="required",
        mergekit=True,
        place=2,
    ),
    Method(
        "slerp",
        _slerp,
        (Parameter("t", float, about="0: the base, 1: the other model"),),
        about="two models, interpolated along the arc, which keeps their norm",
        about_cn="两个模型，沿圆弧插值，保持范数",
        source="Shoemake 1985",
        paper="https://doi.org/10.1145/325165.325242",
        example={"t": 0.5},
        base="first",
        least=2,
        most=2,
        mergekit=True,
        place=3,
    ),
    Method(
        "passthrough",
        _passthrough,
        (Parameter("scale", float, 1.0, each=True, about="factor on the tensor"),),
        about="layers are used as they are: stacked models, depth up-scaling",
        about_cn="按原样使用各层：堆叠模型、加深模型",
        source="layers as they are: frankenmerges, depth up-scaling",
        example={"scale": 0.5},
        base="model",
        most=1,
        mergekit=True,
        place=4,
    ),
    _sparsified(
        "ties",
        "magnitude",
        elects=True,
        normalize=True,
        rescale=False,
        place=5,
        source=_YADAV,
        about="several models change the same weights in different directions",
        about_cn="多个模型对相同权重的改动方向不一致",
    ),
    _sparsified(
        "dare_linear",
        "bernoulli",
        elects=False,
        normalize=False,
        rescale=True,
        place=6,
        source=_YU,
        about="many models with small changes to one base",
        about_cn="许多模型对同一基础模型只作了较小的改动",
    ),
    _sparsified(
        "dare_ties",
        "bernoulli",
        elects=True,
        normalize=False,
        rescale=True,
        place=7,
        source=_YU,
        about="the same, and the changes conflict",
        about_cn="同上，且改动互相冲突",
    ),
    _sparsified(
        "della",
        "della",
        elects=True,
        normalize=True,
        rescale=True,
        place=8,
        source=_DEEP,
        about="dare_ties loses too much: large changes are kept more often",
        about_cn="dare_ties 损失过多时：较大的改动更可能被保留",
    ),
    _sparsified(
        "della_linear",
        "della",
        elects=False,
        normalize=False,
        rescale=True,
        place=9,
        source=_DEEP,
        about="dare_linear loses too much: large changes are kept more often",
        about_cn="dare_linear 损失过多时：较大的改动更可能被保留",
    ),
    _sparsified(
        "breadcrumbs",
        "breadcrumbs",
        elects=False,
        normalize=False,
        rescale=False,
        place=10,
        source=_DAVARI,
        about="the largest changes are outliers, to be dropped as well",
        about_cn="最大的改动是离群值，也应去除",
    ),
    _sparsified(
        "breadcrumbs_ties",
        "breadcrumbs",
        elects=True,
        normalize=False,
        rescale=False,
        place=11,
        source=_DAVARI,
        about="the same, and the changes conflict",
        about_cn="同上，且改动互相冲突",
    ),
)
