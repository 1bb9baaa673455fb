"""Choose the family of a mixture of experts, and check that the models that it is made of fit it, and one another."""

from __future__ import annotations

from collections.abc import Collection, Hashable, Mapping, Sequence
from typing import Any

from ..checkpoints.config_json import read_config, widths
from ..checkpoints.mixtures import FAMILIES, MLP, Family, families_named, mlp_of
from ..checkpoints.tensors import Checkpoint
from ..errors import CheckpointError
from ..parsing import tensors_named
from ..recipe.mixture import RANDOM, Mixture
from ..recipe.recipe import Recipe

# What config.json says that the base and the experts' models must agree on, as people call it.
_EQUAL = {
    "hidden_size": "hidden size",
    "intermediate_size": "intermediate size",
    "num_hidden_layers": "number of layers",
    "num_attention_heads": "number of attention heads",
    "num_key_value_heads": "number of key-value heads",
    "hidden_act": "activation function",
}


def fitting_family(recipe: Recipe, mixture: Mixture, inputs: Sequence[Checkpoint]) -> tuple[Family, list[str]]:
    """Return the family of the output, and sentences on what is allowed but likely not meant.

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
    return family, _doubts(mixture, inputs, configs)


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
            for name, title in _EQUAL.items()
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
