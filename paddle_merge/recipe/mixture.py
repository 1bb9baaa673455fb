"""A mixture of experts: what a recipe says of one that is made of dense models."""

from __future__ import annotations

from ..methods.linear import Linear
from ..methods.shared.method import Method, ResolvedMethod
from ..records import record

COPY = ResolvedMethod(None, Linear((1.0,), normalize=False))  # of tensors that one model gives
METHOD = Method("moe", lambda: COPY, about="a mixture of experts made of dense models")

RANDOM = ("random", "uniform_random")
HIDDEN = ("hidden", "hidden_avg", "hidden_last")
GATE_MODES = ("hidden", "cheap_embed", "random", "uniform_random", "hidden_avg", "hidden_last")
NON_EXPERTS = ("base", "average")


@record(frozen=True)
class Expert:
    """A model whose MLPs become an expert of every layer.

    number: of the input. positive, negative: prompts that the router shall give to the expert, and that it shall not.
    noise: the standard deviation of normal noise that is added to its weights. residual: the factor on its down_proj, so on
    all that it adds to the residual stream.
    """

    number: int
    positive: tuple[str, ...] = ()
    negative: tuple[str, ...] = ()
    noise: float = 0.0
    residual: float = 1.0


@record(frozen=True)
class Mixture:
    """A mixture of experts.

    base: the number of the input that gives everything but experts, the tokenizer, and what gates are computed with.
    experts: in the order of the router's rows. shared: the expert that every token is given to, if there is one.
    per_token: how many experts a token is given to. gate_mode: one of GATE_MODES: how routers' weights are made.
    router_std: the standard deviation of the router's weights where gate_mode is "random".
    architecture: the family of the output; None: the first that the models fit.
    non_experts: "base", or "average": of the experts' models, as Branch-Train-Mix has it.
    upcycled: whether all experts are copies of the base. drop_rate: the share of every expert's intermediate neurons that
    are drawn anew (drop-upcycling).
    """

    base: int
    experts: tuple[Expert, ...]
    shared: tuple[Expert, ...] = ()
    per_token: int = 2
    gate_mode: str = "hidden"
    router_std: float = 1.0
    architecture: str | None = None
    non_experts: str = "base"
    upcycled: bool = False
    drop_rate: float = 0.0

    @property
    def gated(self) -> tuple[Expert, ...]:
        """The experts, then the shared one."""
        return (*self.experts, *self.shared)
