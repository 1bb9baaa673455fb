"""Chat vector: add what made a chat model of a pretrained model to another model of the same origin (Huang et al. 2023, Chat
Vector): target + gamma (chat - pretrained).

The base model is the pretrained one, from which both others were trained, so this is base + delta_target + gamma delta_chat.
gamma is 1 in the paper.
"""

from __future__ import annotations

import math

from .linear import Linear
from .shared.method import Method, Parameter, ResolvedMethod
from .shared.problems import Problem


def _chat_vector(gamma: float) -> ResolvedMethod:
    return ResolvedMethod(None, Linear((1.0, gamma), normalize=False))


def _problems(gamma: float) -> list[Problem]:
    if not 0.0 <= gamma < math.inf:
        return [Problem("gamma", f"{gamma:g} must not be negative; task_arithmetic takes a skill away")]
    return []


METHODS = (
    Method(
        "chat_vector",
        _chat_vector,
        (Parameter("gamma", float, 1.0, about="factor on the chat vector"),),
        about="a model trained further on a language or a field learns to chat, without training",
        about_cn="让继续预训练（某种语言或领域）的模型无需训练即获得对话能力",
        source="Huang et al. 2023, chat vector",
        paper="https://arxiv.org/abs/2310.04799",
        problems=_problems,
        base="required",
        least=2,
        most=2,
        base_role="the pretrained model from which both others were trained",
        roles=("the model that is to learn to chat", "the chat model"),
        place=26,
    ),
)
