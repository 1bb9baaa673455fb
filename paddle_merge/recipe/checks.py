"""Check the fields of a configuration together: what is wrong with them, and what is likely not meant."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ..backends import engine as engines
from ..backends.engine import Engine
from ..checkpoints.adapters import split_spec
from ..dtypes import LARGEST
from ..methods.paddlenlp import METHODS
from ..methods.registry import NAMED
from ..parsing import parse_size
from . import chat_template
from .fields import of_fields
from .to_recipe import METHOD_FIELDS, MODEL_FIELDS, PARAMETER_FIELDS, is_named, models_of, pair_of, sources_of, title_of
from .wording import WITH_FLAGS, flag_of

if TYPE_CHECKING:
    from .config import MergeConfig


def of_recipe(config: MergeConfig, sources: Sequence[str], engine: Engine) -> list[str]:
    """Return why the flags beside the recipe that recipe_yaml names can't be carried out, one sentence each.

    sources: the recipe's. No checkpoint is opened.
    """
    return _beside_a_recipe(config) + of_fields(config) + _running(config, sources, engine)


def of_flags(config: MergeConfig, engine: Engine) -> list[str]:
    """Return why a merge that flags alone describe can't be carried out, the method's parameters aside."""
    if is_named(config):
        return of_fields(config) + _running(config, sources_of(config), engine)
    models = models_of(config)
    found = of_fields(config) + _models(config)
    if config.merge_method in METHODS:
        sparsifier, merge_type = METHODS[config.merge_method]
        if config.merge_type not in (None, merge_type) or config.sparsify_type not in (None, sparsifier or "none"):
            found.append(
                f"--merge_method {config.merge_method} means --sparsify_type {sparsifier or 'none'} --merge_type"
                f" {merge_type}; leave out the method or the types that contradict it"
            )
    if config.weight_list is not None:
        if pair_of(config)[1] == "slerp" and len(set(config.weight_list)) > 1:
            found.append("slerp uses --slerp_alpha, not --weight_list")
        elif len(config.weight_list) != len(models):
            found.append(f"--weight_list has {len(config.weight_list)} numbers for {len(models)} models")
    if any(0 < abs(weight) < 1 / LARGEST for weight in config.weight_list or ()):
        found.append(f"--weight_list has a weight smaller than {1 / LARGEST:g}, too small for float32; scale them all up")
    if config.method_parameters:
        found.append(
            "--method_parameters is for methods that PaddleNLP doesn't have; the parameters of"
            f" {title_of(config)} are flags, such as --weight_list and --reserve_p"
        )
    if config.scale != 1.0 and not config.base_model_path:
        found.append("--scale is a factor on the merged task vector, so it needs --base_model_path")
    found += _running(config, sources_of(config), engine)
    if config.strict:
        found += _without_base(config)
    return found


def _beside_a_recipe(config: MergeConfig) -> list[str]:
    """Return a sentence on the flags that say what the recipe already says."""
    defaults = type(config)()
    given = [
        name
        for name in (*MODEL_FIELDS, *METHOD_FIELDS, *PARAMETER_FIELDS, "method_parameters")
        if getattr(config, name) != getattr(defaults, name)
    ]
    if not given:
        return []
    flags = ", ".join(f"--{name}" for name in given)
    return [f"{flags}: a recipe gives the models, the method and the parameters, so leave these flags out"]


def _running(config: MergeConfig, sources: Sequence[str], engine: Engine) -> list[str]:
    """Return why the merge can't be carried out here, whatever is merged."""
    found = []
    if config.layout is not None and len(config.layout) != len(sources):
        found.append(f"--layout has {len(config.layout)} words for {len(sources)} models (the base last)")
    for path in dict.fromkeys(sources):
        words = dict.fromkeys(word for source, word in zip(sources, config.layout or (), strict=False) if source == path)
        if len(words) > 1:
            found.append(f"--layout says {' and '.join(map(str, words))} of {path}")
    if config.n_process != "auto" and config.n_process < 1:
        found.append(f"--n_process {config.n_process} must be at least 1")
    for name, size in (("max_shard_size", config.max_shard_size), ("max_memory", config.max_memory)):
        try:
            parse_size("1GB" if size is None else size)
        except ValueError as error:
            found.append(f"--{name} {error}")
    if config.chat_template and (wrong := chat_template.mistake(config.chat_template)):
        found.append(f"--chat_template {wrong}")
    return found + _device(config, engine)


def _models(config: MergeConfig) -> list[str]:
    """Return why these models can't be merged: there are too few, or an adapter is not given as it should be."""
    models = models_of(config)
    plain = pair_of(config) == (None, "linear") and config.scale == 1.0 and config.weight_list in (None, [1.0])
    if not config.lora_model_path:
        if len(models) >= 2 or (models and config.base_model_path):
            return []
        if not models or len(split_spec(models[0])) == 1:
            spaces = " (with a space between them, not a comma)" if models and "," in models[0] else ""
            return [f"give at least two models: --model_path_list a b{spaces}; or one model and its --base_model_path"]
        if plain:
            return []
        return [
            f"{models[0]} is the only model, so its adapter is folded as it was trained; to sparsify or scale it, give"
            " --base_model_path too"
        ]
    found = []
    if not config.base_model_path:
        found.append("--lora_model_path needs --base_model_path, the model that the adapter was trained on")
    if config.model_path_list or config.model_path_str:
        found.append(
            "--lora_model_path folds one adapter into its base; to merge it with other models, write --model_path_list"
            " BASE+ADAPTER OTHER"
        )
    if not plain:
        found.append(
            "--lora_model_path folds the adapter as it was trained; to sparsify or scale it, write --model_path_list"
            " BASE+ADAPTER --base_model_path BASE with a method or --scale"
        )
    return found


def _device(config: MergeConfig, engine: Engine) -> list[str]:
    """Return why the device can't be used: it doesn't exist here, or gets too little memory."""
    if wrong := engines.unknown(config.device):  # an engine of np has none
        return wrong
    if config.max_tensor_mem < engines.LEAST:
        return [f"--max_tensor_mem {config.max_tensor_mem:g} (GiB) must be at least {engines.LEAST:g}"]
    return engines.problems(engine)


def _without_base(config: MergeConfig) -> list[str]:
    """Return a sentence on sparsification without a base model: a warning, or an error with --strict."""
    sparsifier, _ = pair_of(config)
    if sparsifier is None or config.base_model_path or config.reserve_p == 1:
        return []
    return [
        f"without --base_model_path, {sparsifier} zeroes {1 - config.reserve_p:.0%} of the models' weights themselves, not"
        " of what fine-tuning changed; the merged model will likely be broken"
    ]


def _idle(config: MergeConfig) -> list[str]:
    """Return a sentence on the flags of PaddleNLP's methods that the named method doesn't have."""
    defaults = type(config)()
    parameters = {parameter.name for parameter in NAMED[str(config.merge_method)].parameters}
    known = {flag_of(name) for name in WITH_FLAGS if name in parameters}
    given = [name for name in PARAMETER_FIELDS if getattr(config, name) != getattr(defaults, name)]
    idle = [name for name in given if name not in known]
    return [f"{', '.join(f'--{name}' for name in idle)}: no effect with {config.merge_method}"] if idle else []


def warnings(config: MergeConfig, engine: Engine) -> list[str]:
    """Return which flags are allowed but likely not meant, one sentence each."""
    found = []
    if config.tensor_type == "np" and config.device != "cpu":
        found.append(
            f"--device {config.device} has no effect: np computes on the CPU; pass --tensor_type pd to compute on the device"
        )
    if config.recipe_yaml:
        return found
    if is_named(config):
        return found + _idle(config)
    found += _without_base(config)
    sparsifier, merge_type = pair_of(config)
    used = {
        "reserve_p": sparsifier is not None,
        "rescale": sparsifier is not None,
        "epsilon": sparsifier == "magprune",
        "seed": sparsifier in ("dare", "magprune"),
        "ties_elect_type": merge_type == "ties",
        "ties_zero_sign": merge_type == "ties",
        "slerp_alpha": merge_type == "slerp",
        "slerp_dot_threshold": merge_type == "slerp",
        "slerp_normalize_eps": merge_type == "slerp",
        "normalize": merge_type != "slerp",
        "split_pieces": False,
        "merge_with_qdq_base_model": any(
            "+" in path for path in [*(config.model_path_list or ()), config.base_model_path or ""]
        ),
        "max_tensor_mem": engine.budgeted,
    }
    defaults = type(config)()
    idle = [name for name, matters in used.items() if not matters and getattr(config, name) != getattr(defaults, name)]
    if idle:
        found.append(f"{', '.join(f'--{name}' for name in idle)}: no effect with {title_of(config)}")
    if not config.normalize and config.weight_list is None and merge_type != "slerp":
        found.append("--no_normalize without --weight_list has no effect: the models are averaged, as in PaddleNLP")
    return found
