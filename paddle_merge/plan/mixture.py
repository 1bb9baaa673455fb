"""Decide what the tensors of a mixture of experts are made of, and check that the models fit together.

Everything that is no MLP comes from the base, or is the average of the experts' models; every expert is the MLP of its model
under the family's names; the router's rows are drawn at random, or computed later of the prompts (run/gates.py).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..checkpoints.config_json import read_config, widths
from ..checkpoints.mixtures import FAMILIES, MLP, Family, families_named, mlp_of
from ..checkpoints.tensors import Checkpoint, Origin, TensorEntry, origins
from ..conversion.mixture.entry import DrawnEntry, Dropped, ExpertEntry
from ..dtypes import BY_NAME, DType
from ..errors import CheckpointError, ConfigError
from ..methods.linear import Linear
from ..methods.shared.method import ResolvedMethod
from ..parsing import tensors_named
from ..recipe.mixture import COPY, RANDOM, Expert, Mixture
from ..recipe.recipe import Recipe
from .assemble import AssembledTensor

# What config.json says that the base and the experts' models must agree on, as people call it.
_SIZES = {
    "hidden_size": "hidden size",
    "intermediate_size": "intermediate size",
    "num_hidden_layers": "number of layers",
    "num_attention_heads": "number of attention heads",
    "num_key_value_heads": "number of key-value heads",
}


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


@dataclass(frozen=True)
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
    configs = [read_config(one.folder) for one in inputs]
    unlike = _unlike(mixture, inputs, configs)
    problems = [*unlike.values(), *_unfit_tensors(recipe, mixture, inputs, unlike.keys())]
    family, more = choose_family(mixture, configs[mixture.base], inputs[mixture.base].path)
    problems += more
    if family is not None:
        problems += _unsupported(family, inputs[mixture.base], configs[mixture.base])
    if problems or family is None:
        raise CheckpointError(problems)
    maker = _Maker(recipe, mixture, inputs, family)
    return MadeMixture(maker.tensors(), maker.left_out(), _doubts(mixture, inputs, configs))


def mixture_config(mixture: Mixture, dense: Mapping[str, Any]) -> dict[str, Any]:
    """Return the content of the output's config.json. dense: that of the base."""
    family, _ = choose_family(mixture, dense, "")
    assert family is not None  # the plan has been made
    return family.config(dense, len(mixture.experts), len(mixture.shared), mixture.per_token)


def choose_family(mixture: Mixture, dense: Mapping[str, Any], path: str) -> tuple[Family | None, list[str]]:
    """Return the family of the output; or None, and why there is none. dense, path: the base's config.json and path."""
    kind = dense.get("model_type")
    named = families_named(mixture.architecture) if mixture.architecture else FAMILIES
    reasons = []
    for family in named:
        why = _unsuitable(family, mixture, kind)
        if not why:
            return family, []
        if kind in family.dense or mixture.architecture:
            reasons.append(f"{family.title} {why}")
    if reasons:
        return None, [f"{path}: no mixture can be made as the recipe says: {'; '.join(reasons)}"]
    known = ", ".join(dict.fromkeys(one for family in FAMILIES for one in family.dense))
    return None, [f"{path}: its config.json says model_type {kind!r}; mixtures are made of models of {known}"]


def _unsuitable(family: Family, mixture: Mixture, kind: Any) -> str:
    """Return why a family can't be made of models of a type with these experts, as the end of a sentence; "" if it can."""
    count = len(mixture.shared)
    if kind not in family.dense:
        return f"is made of models of {' or '.join(family.dense)}, not {kind}"
    if count < family.least_shared:
        return (
            "needs a shared expert, which every token is given to beside those that the router chooses: add"
            " shared_experts, a list of one source_model with positive_prompts (or gate_mode: random), and a small"
            " residual_scale such as 0.1, because its output is added to the others'"
        )
    if count > (1 if family.shared else 0):
        return f"has {'one shared expert at most' if family.shared else 'no shared experts'}"
    prompted = any(one.positive or one.negative for one in mixture.shared)
    if prompted and not family.shared_gate:
        return "has no gate for its shared expert, so that can't have prompts"
    if count and family.shared_gate and not prompted and mixture.gate_mode not in RANDOM:
        return "has a gate for its shared expert, which needs positive_prompts, or gate_mode: random"
    return ""


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


# --- what must fit together


def _unlike(mixture: Mixture, inputs: Sequence[Checkpoint], configs: Sequence[Mapping[str, Any]]) -> dict[int, str]:
    """Return a sentence on each expert's model that is of another family or size than the base, by its number."""
    base, found = configs[mixture.base], dict[int, str]()
    family = next((one.dense for one in FAMILIES if base.get("model_type") in one.dense), ())
    for number in _experts_models(mixture):
        its = configs[number]
        if not its or not base:
            continue
        wrong = [
            f"{title} {its[name]} (not {base[name]})"
            for name, title in _SIZES.items()
            if its.get(name) is not None and base.get(name) is not None and its[name] != base[name]
        ]
        heads = widths(its).get("head"), widths(base).get("head")
        wrong += (
            [f"head size {heads[0]} (not {heads[1]})"] if heads[0] != heads[1] and None not in heads and not wrong else []
        )
        kinds = its.get("model_type"), base.get("model_type")
        if None not in kinds and kinds[0] != kinds[1] and not {*kinds} <= {*family}:
            wrong.insert(0, f"model_type {kinds[0]} (not {kinds[1]})")
        if mixture.non_experts == "average" and its.get("vocab_size") != base.get("vocab_size"):
            wrong.append(f"vocabulary of {its.get('vocab_size')} (not {base.get('vocab_size')})")
        if wrong:
            found[number] = (
                f"{inputs[number].path}: {', '.join(wrong)}: experts must be models of the same family and size as the base,"
                f" {inputs[mixture.base].path}"
            )
    return found


def _experts_models(mixture: Mixture) -> list[int]:
    """Return the numbers of the models that give experts, the base left out."""
    return list(dict.fromkeys(one.number for one in mixture.gated if one.number != mixture.base))


def _unfit_tensors(recipe: Recipe, mixture: Mixture, inputs: Sequence[Checkpoint], told: Collection[int]) -> list[str]:
    """Return sentences on tensors of the experts' models that are missing, or don't have the base's shape or dtype.

    told: the numbers of models of which it is known already that they don't fit.
    """
    base, found = inputs[mixture.base], list[str]()
    matrices = [name for name in base.tensors if mlp_of(name)]
    if not matrices:
        return [f"{base.path}: has no MLPs of {', '.join(MLP)}, of which experts could be made"]
    for one in (base, *(inputs[number] for number in _experts_models(mixture))):
        if others := [name for name in one.tensors if ".mlp." in name and not mlp_of(name)]:
            found.append(f"{one.path}: its MLPs have {tensors_named(others)}, and an expert has only {', '.join(MLP)}")
    wanted = list(base.tensors) if mixture.non_experts == "average" else matrices
    for number in _experts_models(mixture):
        if number in told:
            continue
        its, missing, shapes, dtypes = inputs[number], list[str](), list[str](), list[str]()
        for name in wanted:
            mine, other = base.tensors[name], its.tensors.get(name)
            if other is None:
                missing.append(name)
            elif other.shape != mine.shape:
                shapes.append(name)
            elif other.dtype != mine.dtype and (recipe.out_dtype is None or not other.dtype.is_float):
                dtypes.append(name)
        if missing:
            found.append(f"{its.path}: has no {tensors_named(missing)}, which {base.path} has")
        if shapes:
            own, of_base = (list(one.tensors[shapes[0]].shape) for one in (its, base))
            found.append(
                f"{its.path}: {tensors_named(shapes)}: another shape than in {base.path}, {own} instead of {of_base}"
            )
        if dtypes:
            own_dtype, its_dtype = base.tensors[dtypes[0]].dtype.name, its.tensors[dtypes[0]].dtype.name
            found.append(
                f"{its.path}: {tensors_named(dtypes)}: {its_dtype}, and {own_dtype} in {base.path}; give the dtype of the"
                " output (dtype in the recipe, or --out_dtype)"
            )
    return found


def _unsupported(family: Family, base: Checkpoint, config: Mapping[str, Any]) -> list[str]:
    """Return sentences on what the base has and the family can't have."""
    found = []
    known = tuple(f".self_attn.{word}.bias" for word in family.biases)
    biases = [name for name in base.tensors if name.endswith(".bias") and not name.endswith(known)]
    if biases:
        such = f"biases but of {', '.join(family.biases)}" if family.biases else "biases"
        found.append(f"{base.path}: {family.title} has no {such}, and the base has {tensors_named(biases)}")
    head = widths(config).get("head")
    if family.title == "deepseek" and head and head * config.get("num_attention_heads", 0) != config.get("hidden_size"):
        found.append(f"{base.path}: heads of {head} elements, but deepseek has heads of hidden_size / num_attention_heads")
    if family.title == "qwen3_moe" and config.get("use_sliding_window") and config.get("max_window_layers", 28) != 0:
        found.append(
            f"{base.path}: has sliding windows in some layers (max_window_layers {config.get('max_window_layers', 28)}), and"
            " qwen3_moe in all layers or none"
        )
    return found


def _doubts(mixture: Mixture, inputs: Sequence[Checkpoint], configs: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return sentences on what is allowed but likely not meant."""
    base, found = configs[mixture.base], list[str]()
    for number in _experts_models(mixture):
        rows = configs[number].get("vocab_size")
        if rows is not None and base.get("vocab_size") is not None and rows != base["vocab_size"]:
            found.append(
                f"{inputs[number].path} has a vocabulary of {rows}, not {base['vocab_size']}: the mixture has the tokens of"
                f" the base, {inputs[mixture.base].path}"
            )
    known: dict[tuple[Hashable, ...], int] = {}
    for number in (mixture.base, *_experts_models(mixture)):
        mlps = tuple(entry.nameless for name, entry in inputs[number].tensors.items() if mlp_of(name))
        if (other := known.setdefault(mlps, number)) != number:
            found.append(
                f"{inputs[number].path} has the very MLPs of {inputs[other].path}, so as an expert it is the same: a mixture"
                " has nothing of an adapter that changes other layers only"
            )
    return found


# --- the tensors


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
