"""Make a recipe, and the record of a merge, of the fields of a configuration."""

from __future__ import annotations

import dataclasses
import os
from typing import TYPE_CHECKING, Any

from ..checkpoints.adapters import absolute
from ..dtypes import FLOATS
from ..errors import ConfigError
from ..methods.paddlenlp import MERGE_TYPES, METHODS, SPARSIFIERS, method
from ..methods.registry import NAMED
from ..methods.shared.method import Method
from . import fields
from .parameters import Resolver
from .recipe import Input, Recipe, Slice, constant, tokenizer_of

if TYPE_CHECKING:
    from .config import MergeConfig
    from .yaml_read import ParsedRecipe

# Fields that a recipe has words of its own for: which models and which method, and the parameters of PaddleNLP's methods.
MODEL_FIELDS = ("model_path_list", "model_path_str", "base_model_path", "lora_model_path")
METHOD_FIELDS = ("merge_method", "merge_type", "sparsify_type")
PARAMETER_FIELDS = (
    *("weight_list", "normalize", "scale"),
    *("reserve_p", "rescale", "epsilon", "ties_elect_type", "ties_zero_sign"),
    *("slerp_alpha", "slerp_dot_threshold", "slerp_normalize_eps"),
)
# Fields that merge_config.json leaves out: they say what to do with this output folder now, not which merge to make.
NOT_RECORDED = ("model_path_str", "overwrite", "resume", "dry_run", "account", "print_recipe")


def models_of(config: MergeConfig) -> list[str]:
    """Return the models' paths as flags give them: model_path_str if given, else model_path_list; or the base and the
    adapter to fold into it."""
    if config.lora_model_path:
        return [f"{config.base_model_path}+{config.lora_model_path}"] if config.base_model_path else []
    if config.model_path_str:
        return [part.strip() for part in config.model_path_str.split(",") if part.strip()]
    return list(config.model_path_list or [])


def base_of(config: MergeConfig) -> str | None:
    """Return the base model's path as flags give it; None where the one model is a base with its adapter folded in."""
    return None if config.lora_model_path else config.base_model_path


def pair_of(config: MergeConfig) -> tuple[str | None, str]:
    """Return the names of the sparsifier (or None) and of the merge type."""
    if config.merge_method in METHODS:
        return METHODS[config.merge_method]
    sparsifier = None if config.sparsify_type in (None, "none") else config.sparsify_type
    return sparsifier, config.merge_type or "linear"


def title_of(config: MergeConfig) -> str:
    """Return what to call the method: the merge method of this pair if there is one, else "trim+slerp"; "fold" for a single
    model without a base."""
    if len(models_of(config)) == 1 and base_of(config) is None:
        return "fold"
    names = {pair: name for name, pair in METHODS.items()}
    sparsifier, merge_type = pair_of(config)
    return names.get((sparsifier, merge_type), f"{sparsifier}+{merge_type}")


def recipe_of(config: MergeConfig) -> tuple[Recipe | None, list[str]]:
    """Return the recipe that the flags of PaddleNLP's methods mean, and what is wrong with the method's parameters.

    The recipe is None if single fields are wrong, which fields.of_fields reports.
    """
    sparsifier, merge_type = pair_of(config)
    if (
        fields.of_fields(config)
        or (sparsifier is not None and sparsifier not in SPARSIFIERS)
        or merge_type not in MERGE_TYPES
    ):
        return None, []
    recipe = _recipe_of_pair(config, method(sparsifier, merge_type, title_of(config)))
    models = len(recipe.models)
    weighted = config.weight_list is None or len(config.weight_list) == models >= 1
    resolver = Resolver(recipe)
    resolved = resolver.resolved(resolver.values(recipe.slices[0], "", 0.0))
    problems = resolved.sparsifier.problems() if resolved.sparsifier is not None else []
    problems += resolved.merger.problems(models) if weighted and models else []
    return recipe, problems


def _recipe_of_pair(config: MergeConfig, method: Method) -> Recipe:
    models, path = models_of(config), base_of(config)
    weights = config.weight_list if config.weight_list is not None else [1.0] * len(models)
    given = {**dataclasses.asdict(config), "normalize": config.normalize or config.weight_list is None}
    settings = {one.name: constant(given[one.name]) for one in method.parameters if not one.each}
    inputs = [Input(number, settings={"weight": constant(weight)}) for number, weight in enumerate(weights)]
    base = Input(len(models)) if path else None
    recipe = Recipe(
        models=tuple(models),
        base=path,
        method=method,
        slices=(Slice(tuple(inputs), base),),
        settings=settings,
    )
    return with_flags(recipe, config)


def with_flags(recipe: Recipe, config: MergeConfig) -> Recipe:
    """Return the recipe with what flags say of any recipe: seed, dtype, layouts, format, tokenizer and chat template."""
    tokenizer = recipe.tokenizer
    if config.tokenizer_source:
        places = {absolute(path): number for number, path in enumerate(recipe.sources)}
        base = len(recipe.models) if recipe.base is not None else None
        tokenizer = tokenizer_of(str(_tokenizer_source(config)), None, places, base, recipe.taken[0])
    return dataclasses.replace(
        recipe,
        seed=recipe.seed if config.seed is None else config.seed,
        stages=tuple(
            dataclasses.replace(stage, seed=stage.seed if config.seed is None else config.seed) for stage in recipe.stages
        ),
        prefix=config.merge_prefix,
        out_dtype=FLOATS.get(config.out_dtype or "") or recipe.out_dtype,
        layouts=tuple(config.layout or ()),
        output_layout=_stored_layout(config),
        strict_layout=config.strict_layout,
        save_format=config.save_format,
        config_from=config.config_from,
        tokenizer=tokenizer,
        chat_template=config.chat_template or recipe.chat_template,
    )


def _stored_layout(config: MergeConfig) -> str | None:
    """Return output_layout, or what PaddleFormers' two flags mean; None: the first model's layout."""
    if config.output_layout or config.convert_from_hf == config.save_to_hf:
        return config.output_layout
    return "hf" if config.save_to_hf else "paddleformers"


def _tokenizer_source(config: MergeConfig) -> str | None:
    """Return tokenizer_source, a path made absolute."""
    source = config.tokenizer_source
    return source if source in (None, "union", "base") else absolute(str(source))


def record_of(config: MergeConfig, parsed: ParsedRecipe | None, title: str, output: str) -> dict[str, Any]:
    """Return the fields that, read back in any folder, repeat this merge: paths made absolute, the method resolved.

    parsed: the recipe that recipe_yaml holds, or that the flags of a method mean that only recipes know.
    title: the method's name; output: the folder to write to.
    """
    record = {**dataclasses.asdict(config), "tokenizer_source": _tokenizer_source(config)}
    for name in NOT_RECORDED:
        del record[name]
    record["output_path"] = os.path.abspath(output)
    record["config_from"] = os.path.abspath(config.config_from) if config.config_from else None
    if parsed is not None:
        from .yaml_write import to_yaml  # imports YAML

        defaults = type(config)()
        said = {*MODEL_FIELDS, *METHOD_FIELDS, *PARAMETER_FIELDS, "method_parameters"} & record.keys()
        record.update({name: getattr(defaults, name) for name in said})
        record["recipe_yaml"] = to_yaml(parsed.recipe, absolute)
        return record
    sparsifier, merge_type = pair_of(config)
    record.update(
        model_path_list=None if config.lora_model_path else [absolute(spec) for spec in models_of(config)],
        lora_model_path=absolute(config.lora_model_path) if config.lora_model_path else None,
        base_model_path=absolute(config.base_model_path) if config.base_model_path else None,
        merge_method=title if title in METHODS else None,
        merge_type=merge_type,
        sparsify_type=sparsifier,
    )
    return record


def as_yaml(config: MergeConfig) -> str:
    """--weight_list is weight (1 each if it isn't given), --reserve_p density, --scale lambda, --normalize and --rescale are
    what they are called; --method_parameters names all others. Raises ConfigError.
    """
    import yaml

    known = {parameter.name: parameter for parameter in NAMED[str(config.merge_method)].parameters}
    models = models_of(config)
    weights = config.weight_list or [1.0] * len(models)
    if len(weights) != len(models):
        raise ConfigError(f"--weight_list has {len(weights)} numbers for {len(models)} models")
    shared: dict[str, Any] = {"density": config.reserve_p} if "density" in known else {}
    shared |= {"lambda": config.scale} if "lambda" in known else {}
    shared |= {name: False for name in ("normalize", "rescale") if name in known and not getattr(config, name)}
    problems = []
    for word in config.method_parameters or ():
        name, equals, value = word.partition("=")
        if not equals:
            problems.append(
                f"--method_parameters {word!r} must be name=value; {config.merge_method} takes {', '.join(known)}"
            )
        shared[name] = value
    if problems:
        raise ConfigError(problems)
    content: dict[str, Any] = {"merge_method": config.merge_method}
    content |= {"base_model": base_of(config)} if base_of(config) else {}
    entries: list[dict[str, Any]] = [{"model": path} for path in models]
    if "weight" in known and "weight" not in shared:
        entries = [{**entry, "parameters": {"weight": weight}} for entry, weight in zip(entries, weights, strict=True)]
        if NAMED[str(config.merge_method)].base in ("model", "first") and base_of(config):
            entries.append({"model": base_of(config), "parameters": {"weight": 1.0}})
    content["models"] = entries
    return yaml.safe_dump({**content, "parameters": shared}, sort_keys=False, allow_unicode=True, width=10**6)
