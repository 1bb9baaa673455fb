"""Decide what the tensors of a mixture of experts are made of; mixture_checks.py has checked that the models fit together.

Everything that is no MLP comes from the base, or is the average of the experts' models; every expert is the MLP of its model
under the family's names; the router's rows are drawn at random, or computed later of the prompts (run/gates.py).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

from ..checkpoints.mixtures import MLP, Family, mlp_of
from ..checkpoints.tensors import Checkpoint, Origin, TensorEntry, origins
from ..conversion.mixture.entry import DrawnEntry, Dropped, ExpertEntry
from ..dtypes import BY_NAME, DType
from ..errors import ConfigError
from ..methods.linear import Linear
from ..methods.shared.method import ResolvedMethod
from ..recipe.mixture import COPY, Expert, Mixture
from ..recipe.recipe import Recipe
from ..records import record
from .assemble import AssembledTensor
from .mixture_checks import choose_family, fitting_family


def in_hf_layout(recipe: Recipe) -> Recipe:
    """Return the recipe of a mixture with Hugging Face's layout for its output, the only one that mixtures are made in.

    Other recipes are returned as they are. Raises ConfigError if another layout or format is asked for.
    """
    if recipe.mixture is None:
        return recipe
    asked = f"--output_layout {recipe.output_layout}" if recipe.output_layout not in (None, "hf") else ""
    asked = "--save_format pdparams" if recipe.save_format == "pdparams" else asked
    if recipe.tokenizer is not None:
        raise ConfigError("--tokenizer_source has no meaning for a mixture of experts, which has the base's tokens")
    if asked:
        raise ConfigError(
            f"{asked}: a mixture of experts is made in Hugging Face's layout, in safetensors, which PaddleNLP and"
            " PaddleFormers read too; leave the flag out, and convert the mixture by a second merge (passthrough) if need be"
        )
    return dataclasses.replace(recipe, output_layout="hf")


@record(frozen=True)
class MadeMixture:
    """The tensors of a mixture. left_out: why stored tensors are not read, by their origins. warnings: sentences on what is
    likely not meant."""

    tensors: list[AssembledTensor]
    left_out: Mapping[Origin, str]
    warnings: list[str]


def assemble_mixture(recipe: Recipe, mixture: Mixture, inputs: Sequence[Checkpoint]) -> MadeMixture:
    """Return the tensors of a mixture, in the base's order, each layer's experts in place of its MLP.

    Raises CheckpointError listing everything because of which the models don't fit together.
    """
    family, doubts = fitting_family(recipe, mixture, inputs)
    maker = _Maker(recipe, mixture, inputs, family)
    return MadeMixture(maker.tensors(), maker.left_out(), doubts)


def mixture_config(mixture: Mixture, dense: Mapping[str, Any]) -> dict[str, Any]:
    """Return the content of the output's config.json. dense: that of the base."""
    family, _ = choose_family(mixture, dense, "")
    assert family is not None  # the plan has been made
    return family.config(dense, len(mixture.experts), len(mixture.shared), mixture.per_token)


def described(recipe: Recipe, mixture: Mixture, dense: Mapping[str, Any]) -> list[str]:
    """Return lines on the mixture for people. dense: the base's config.json."""
    family, _ = choose_family(mixture, dense, "")
    title, count, titles = family.title if family else "", len(mixture.experts), recipe.titles
    lines = [f"method   moe: {title} of {count} experts, {mixture.per_token} for each token; gate_mode {mixture.gate_mode}"]
    if mixture.upcycled:
        anew = f"; {mixture.drop_rate:.0%} of the neurons of each are drawn anew" if mixture.drop_rate else ""
        lines.append(f"experts  {count} copies of {titles[mixture.base]}{anew}")
    else:
        lines += [f"expert   {number}: {_expert(one, titles)}" for number, one in enumerate(mixture.experts)]
    lines += [f"shared   {_expert(one, titles)}" for one in mixture.shared]
    rest = "the average of the experts' models" if mixture.non_experts == "average" else "the base's"
    return [*lines, f"base     {titles[mixture.base]}; all but the experts is {rest}"]


def _expert(one: Expert, titles: Sequence[str]) -> str:
    prompts = (one.positive, "positive"), (one.negative, "negative")
    counts = [f"{len(its)} {word} prompt{'s' if len(its) > 1 else ''}" for its, word in prompts if its]
    counts += [f"noise_scale {one.noise:g}"] if one.noise else []
    counts += [f"residual_scale {one.residual:g}"] if one.residual != 1 else []
    return ", ".join([titles[one.number], *counts])


class _Maker:
    """Makes the tensors of a mixture."""

    def __init__(self, recipe: Recipe, mixture: Mixture, inputs: Sequence[Checkpoint], family: Family):
        self._recipe, self._mixture, self._inputs, self._family = recipe, mixture, inputs, family
        self._base = inputs[mixture.base]
        average = mixture.non_experts == "average"
        self._others = tuple(one.number for one in mixture.experts) if average else (mixture.base,)
        count = len(self._others)
        self._mean = ResolvedMethod(None, Linear((1.0,) * count)) if count > 1 else COPY

    def tensors(self) -> list[AssembledTensor]:
        """Return all tensors."""
        found, layers = list[AssembledTensor](), set[str]()
        for name, entry in self._base.tensors.items():
            place = mlp_of(name)
            if place is None:
                found.append(self._other(name, entry))
            elif place.layer not in layers:
                layers.add(place.layer)
                found += self._experts(place.layer, entry.dtype)
        return found

    def left_out(self) -> dict[Origin, str]:
        """Return why tensors of the inputs are not read, by their origins."""
        found, used = dict[Origin, str](), {one.number for one in self._mixture.gated}
        for number, one in enumerate(self._inputs):
            for name, entry in one.tensors.items():
                if mlp_of(name) is None and number not in self._others:
                    why = "the mixture takes only its MLPs"
                elif mlp_of(name) is not None and number not in used:
                    why = "the experts replace it"
                else:
                    continue
                found.update(dict.fromkeys(origins(entry), why))
        return found

    def _other(self, name: str, entry: TensorEntry) -> AssembledTensor:
        """Return a tensor that is no MLP."""
        if not entry.dtype.is_float or len(self._others) == 1:
            return self._one(name, entry.renamed(name), self._mixture.base)
        entries = tuple(self._inputs[number].tensors[name] for number in self._others)
        return self._made(name, entries, self._others, self._mean)

    def _experts(self, layer: str, dtype: DType) -> list[AssembledTensor]:
        """Return what is in place of the MLP of a layer."""
        family, mixture, base = self._family, self._mixture, self._mixture.base
        hidden = self._base.tensors[f"{layer}mlp.{MLP[0]}.weight"].shape[1]
        router = self._router(layer + family.router, dtype, len(mixture.experts), hidden)
        found = [self._one(router.name, router, base)]
        for number, expert in enumerate(mixture.experts):
            for word in MLP:
                name = layer + family.expert.format(number=number, word=family.words.get(word, word))
                found.append(self._matrix(name, expert, layer, word, number))
        for expert in mixture.shared:
            found += [self._matrix(f"{layer}{family.shared}{word}.weight", expert, layer, word, -1) for word in MLP]
            if family.shared_gate:
                gate = dataclasses.replace(self._router(layer + family.shared_gate, dtype, 1, hidden), shared=True)
                found.append(self._one(gate.name, gate, base))
        for zeros in family.zeros:
            if (name := layer + zeros.name) not in self._base.tensors:
                like = self._base.tensors.get(layer + zeros.like)
                shape = (like.shape[0],) if like is not None else (1, len(mixture.experts))
                own = BY_NAME[zeros.dtype] if zeros.dtype else dtype
                found.append(self._one(name, DrawnEntry(name, own, shape, "zeros", name), base))
        return found

    def _matrix(self, name: str, expert: Expert, layer: str, word: str, number: int) -> AssembledTensor:
        """Return a matrix of an expert. number: of the expert; -1 for the shared one."""
        source = self._inputs[expert.number].tensors[f"{layer}mlp.{word}.weight"]
        residual = word == MLP[-1]
        scale, rate = expert.residual if residual else 1.0, self._mixture.drop_rate if number >= 0 else 0.0
        dropped = (
            Dropped(int(residual), rate, f"{layer}{number}") if math.floor(rate * source.shape[int(residual)]) else None
        )
        if dropped is None and not expert.noise and scale == 1:
            return self._one(name, source.renamed(name), expert.number)
        seed = self._recipe.seed
        entry = ExpertEntry(name, source.dtype, source.shape, source, name, seed, expert.noise, scale, dropped)
        return self._one(name, entry, expert.number)

    def _router(self, name: str, dtype: DType, rows: int, hidden: int) -> DrawnEntry:
        """Return the weight of a router, or of the shared expert's gate."""
        mixture = self._mixture
        kind = {"random": "normal", "uniform_random": "uniform"}.get(mixture.gate_mode, "values")
        width = mixture.router_std if kind == "normal" else math.sqrt(1 / hidden)
        return DrawnEntry(name, dtype, (rows, hidden), kind, name, self._recipe.seed, width)

    def _one(self, name: str, entry: TensorEntry, number: int) -> AssembledTensor:
        return self._made(name, (entry,), (number,), COPY)

    def _made(
        self, name: str, entries: tuple[TensorEntry, ...], numbers: tuple[int, ...], resolved: ResolvedMethod
    ) -> AssembledTensor:
        weights = tuple(resolved.merger.effective_weights(len(entries)))
        drawn = isinstance(entries[0], DrawnEntry)
        how = f"of {self._recipe.titles[numbers[0]]}" if len(entries) == 1 else f"average of {len(entries)} models"
        return AssembledTensor(name, entries, None, numbers, resolved, weights, (), how="made" if drawn else how)
