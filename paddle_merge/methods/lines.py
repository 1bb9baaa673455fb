"""LiNeS: task arithmetic whose task vectors count less in shallow layers (Wang et al. 2024, LiNeS: post-training layer
scaling, section 4): layer l of L, from 0, is scaled by alpha + beta * l / (L - 1).

Tensors that are in no layer (embeddings, the last norm, lm_head) are scaled by alpha, as in the authors' code. For one model
the paper takes beta = 1 - alpha, which leaves the last layer as it was fine-tuned: the default. For several it takes
alpha = (|sum of task vectors|_1 / |the merged one|_1) / number of models, over the whole model, and tunes beta.
"""

from __future__ import annotations

from .linear import Linear
from .shared.method import LAMBDA, WEIGHT_OF_ONE, Method, Parameter, ResolvedMethod


def _lines(weight: tuple[float, ...], alpha: float, beta: float | None, layer: float, **others: float) -> ResolvedMethod:
    """Return task arithmetic, scaled by the layer. layer: from 0, the first, to 1, the last."""
    scale = alpha + (1.0 - alpha if beta is None else beta) * layer
    return ResolvedMethod(None, Linear(weight, normalize=False), others["lambda"] * scale)


METHODS = (
    Method(
        "lines",
        _lines,
        (
            WEIGHT_OF_ONE,
            Parameter("alpha", float, about="factor of the first layer, and of what is in no layer"),
            Parameter("beta", float, None, about="what the last layer's factor has more; 1 - alpha unless given"),
            LAMBDA,
        ),
        about="early layers stay closer to the base",
        about_cn="浅层更接近基础模型",
        source="Wang et al. 2024, LiNeS",
        paper="https://arxiv.org/abs/2410.17146",
        example={"weight": 1.0, "alpha": 0.3, "beta": 0.5},
        base="required",
        by_layer=True,
        place=24,
    ),
)
