"""Make a recipe, and the record of a merge, of the fields of a configuration."""

from __future__ import annotations

import dataclasses
import os
from typing import TYPE_CHECKING, Any

from ..checkpoints.adapters import absolute_spec
from ..dtypes import OUT_DTYPES
from ..methods.paddlenlp import MERGE_TYPES, METHODS, SPARSIFIERS, method
from ..methods.registry import IDLE, NAMED, parameter_names
from ..methods.shared.method import REQUIRED, Method
from ..parsing import nearest
from . import fields
from .parameters import Resolver, typed
from .recipe import (
    Input,
    ParsedRecipe,
    Recipe,
    Setting,
    Slice,
    Tokenizer,
    assign_roles,
    constant,
    count_problem,
    tokenizer_of,
)
from .wording import WITH_FLAGS, as_flags, flag_of

if TYPE_CHECKING:
    from .config import MergeConfig

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


def sources_of(config: MergeConfig) -> list[str]:
    """Return the paths of the models and then of the base as flags give them; a path may be given several times."""
    base = base_of(config)
    return [*models_of(config), *([base] if base else [])]


def pair_of(config: MergeConfig) -> tuple[str | None, str]:
    """Return the names of the sparsifier (or None) and of the merge type."""
    if config.merge_method in METHODS:
        return METHODS[config.merge_method]
    sparsifier = None if config.sparsify_type in (None, "none") else config.sparsify_type
    return sparsifier, config.merge_type or "linear"


def title_of(config: MergeConfig) -> str:
    """Return what to call the method: its name; of a pair without a name "trim+slerp"; "fold" where a single model, without
    a base, is written as it is."""
    if is_named(config):
        return str(config.merge_method)
    if len(models_of(config)) == 1 and base_of(config) is None:
        return "fold"
    names = {pair: name for name, pair in METHODS.items()}
    sparsifier, merge_type = pair_of(config)
    return names.get((sparsifier, merge_type), f"{sparsifier}+{merge_type}")


def is_named(config: MergeConfig) -> bool:
    """Return whether the flags name a method that PaddleNLP doesn't have."""
    return config.merge_method not in METHODS and config.merge_method in NAMED


def recipe_of(config: MergeConfig) -> tuple[ParsedRecipe | None, list[str]]:
    """Return the recipe that the flags mean, and what is wrong with the method's parameters, one sentence each.

    The recipe is None if there is none to be made of such flags. Flags that count for any recipe are left to `with_flags`.
    """
    return _recipe_of_named(config, NAMED[str(config.merge_method)]) if is_named(config) else _recipe_of_pair(config)


def _recipe_of_pair(config: MergeConfig) -> tuple[ParsedRecipe | None, list[str]]:
    """Return the recipe of a sparsifier and a merge type of PaddleNLP's."""
    sparsifier, merge_type = pair_of(config)
    if fields.of_fields(config) or sparsifier not in (None, *SPARSIFIERS) or merge_type not in MERGE_TYPES:
        return None, []
    pair, models, path = method(sparsifier, merge_type, title_of(config)), models_of(config), base_of(config)
    weights = config.weight_list if config.weight_list is not None else [1.0] * len(models)
    each = any(one.name == "weight" for one in pair.parameters)
    given = {**dataclasses.asdict(config), "normalize": config.normalize or config.weight_list is None}
    recipe = Recipe(
        models=tuple(models),
        base=path,
        method=pair,
        slices=(
            Slice(
                tuple(
                    Input(number, settings={"weight": constant(weight)} if each else {})
                    for number, weight in enumerate(weights)
                ),
                Input(len(models)) if path else None,
            ),
        ),
        settings={one.name: constant(given[one.name]) for one in pair.parameters if not one.each},
    )
    weighted = config.weight_list is None or len(config.weight_list) == len(models) >= 1
    counted = weighted and bool(models)  # else checks.py says what is wrong with models and weights
    problems = []
    if counted and pair.most == 2 != len(models):
        problems.append(f"{merge_type} merges two models, not {len(models)}; use linear or ties for more")
    for one in pair.problems(**Resolver(recipe).values(recipe.slices[0], "", 0.0)):
        if counted or one.parameter in ("reserve_p", "epsilon"):
            problems.append(as_flags(one))
    return ParsedRecipe(recipe), problems


def _recipe_of_named(config: MergeConfig, named: Method) -> tuple[ParsedRecipe | None, list[str]]:
    """Return the recipe of a method that PaddleNLP doesn't have, and what is wrong with its flags."""
    models, base = models_of(config), base_of(config)
    settings, problems, notes = _settings(config, named)
    weights = config.weight_list or [1.0] * len(models)
    if len(weights) != len(models):
        problems.append(f"--weight_list has {len(weights)} numbers for {len(models)} models")
    needed = [one.name for one in named.parameters if one.default is REQUIRED and one.name not in {"weight", *settings}]
    problems += [f"{named.name} needs --method_parameters {name}=..." for name in needed]
    if not models:
        problems.append("give the models to merge: --model_path_list a b")
    if base is None and named.base in ("required", "first"):
        role = f", {named.base_role}" if named.base_role else ""
        problems.append(f"--merge_method {named.name} needs --base_model_path{role}")
    order = [*dict.fromkeys(path for path in models if path != base), *([base] if base is not None else [])]
    own = any(
        one.name == "weight" and (config.weight_list is not None or one.default is not None)  # else the method finds them
        for one in named.parameters
        if "weight" not in settings
    )
    listed = [
        Input(order.index(path), settings={"weight": constant(weight)} if own else {})
        for path, weight in zip(models, weights, strict=False)
    ]
    based = None
    if base is not None:
        merged = own and named.base in ("model", "first")
        based = Input(len(order) - 1, settings={"weight": constant(1.0)} if merged else {})
        listed += [based] if merged else []
    inputs, subtracted = assign_roles(named, listed, based)
    if not problems and (problem := count_problem(named, len(inputs))):
        problems.append(problem)
    if problems or fields.of_fields(config):
        return None, problems
    paths = tuple(path for path in order if path != base)
    recipe = Recipe(paths, base, named, (Slice(inputs, subtracted),), settings)
    found = named.problems(**Resolver(recipe).values(recipe.slices[0], "", 0.0))
    by_name = {word.partition("=")[0] for word in config.method_parameters or ()}
    by_name |= {one.name for one in named.parameters if one.name not in WITH_FLAGS}
    return ParsedRecipe(recipe, tuple(notes)), [as_flags(one, by_name) for one in found]


def _settings(config: MergeConfig, named: Method) -> tuple[dict[str, Setting], list[str], list[str]]:
    """Return the parameters that flags set for all models, problems, and notes on what has no effect.

    wording.py says which parameters have a flag; --method_parameters names the others. --no_normalize and --no_rescale turn
    off what a method does by default; --normalize and --rescale, the flags' defaults, leave it as the method has it.
    """
    known = {parameter.name: parameter for parameter in named.parameters}
    given = {name: getattr(config, flag_of(name)) for name in WITH_FLAGS if name in known and name != "weight"}
    settings = {name: constant(value) for name, value in given.items() if value is not True}
    problems, notes = [], []
    for word in config.method_parameters or ():
        name, equals, value = word.partition("=")
        flag, takes = f"--method_parameters {word!r}", f"{named.name} takes {', '.join(known) or 'none'}"
        if not equals:
            problems.append(f"{flag} must be name=value; {takes}")
        elif name in known:
            try:
                settings[name] = constant(typed(value, known[name]))
            except ValueError as error:
                problems.append(f"{flag}: {error}")
        elif name in IDLE:
            notes.append(f"{flag} has no effect: {IDLE[name]}")
        elif name in parameter_names():
            notes.append(f"{flag} has no effect: {takes}")
        else:
            problems.append(f"{flag}: unknown parameter {name!r}{nearest(name, known)}; {takes}")
    return settings, problems, notes


def with_flags(recipe: Recipe, config: MergeConfig) -> Recipe:
    """Return the recipe with what flags say of any recipe: seed, dtype, layouts, format, tokenizer and chat template."""
    tokenizer = recipe.tokenizer
    if config.tokenizer_source:
        places = {absolute_spec(path): number for number, path in enumerate(recipe.sources)}
        base = len(recipe.models) if recipe.base is not None else None
        said = tokenizer or Tokenizer("union")
        source, first = str(_tokenizer_source(config)), recipe.taken[0]
        tokenizer = tokenizer_of(source, said.multiple, places, base, first, said.rows, said.missing)
    return dataclasses.replace(
        recipe,
        seed=recipe.seed if config.seed is None else config.seed,
        stages=tuple(
            dataclasses.replace(stage, seed=stage.seed if config.seed is None else config.seed) for stage in recipe.stages
        ),
        prefix=config.merge_prefix,
        out_dtype=OUT_DTYPES.get(config.out_dtype or "") or recipe.out_dtype,
        layouts=_layouts(recipe, config),
        output_layout=_stored_layout(config),
        strict_layout=config.strict_layout,
        allow_untrained=config.allow_untrained,
        missing_tensors=config.missing_tensors,
        requantise=config.merge_with_qdq_base_model,
        tie=config.tie,
        save_format=config.save_format,
        config_from=config.config_from,
        tokenizer=tokenizer,
        chat_template=config.chat_template or recipe.chat_template,
        expert_alignment=_expert_alignment(config) or recipe.expert_alignment,
        router=config.router or recipe.router,
        expert_layout=config.expert_layout,
    )


def _layouts(recipe: Recipe, config: MergeConfig) -> tuple[str, ...]:
    """Return the layouts of a recipe's sources, of which flags may give one several times; () if no layout is given."""
    given = dict(zip(recipe.sources if config.recipe_yaml else sources_of(config), config.layout or (), strict=False))
    return tuple(given[path] for path in recipe.sources) if given else ()


def _stored_layout(config: MergeConfig) -> str | None:
    """Return output_layout, or what PaddleFormers' two flags mean; None: the first model's layout."""
    if config.output_layout or config.convert_from_hf == config.save_to_hf:
        return config.output_layout
    return "hf" if config.save_to_hf else "paddleformers"


def _tokenizer_source(config: MergeConfig) -> str | None:
    """Return tokenizer_source, a path made absolute."""
    source = config.tokenizer_source
    return source if source in (None, "union", "base") else absolute_spec(str(source))


def _expert_alignment(config: MergeConfig) -> str | None:
    """Return expert_alignment, a path made absolute."""
    given = config.expert_alignment
    return given if given in (None, "index", "match") else os.path.abspath(str(given))


def record_of(config: MergeConfig, recipe: Recipe, output: str) -> dict[str, Any]:
    """Return the fields that, read back in any folder, repeat this merge: paths made absolute, the method resolved.

    recipe: what is merged, and how; it is recorded in YAML unless fields of PaddleNLP's say all of it.
    output: the folder to write to.
    """
    record = {**dataclasses.asdict(config), "tokenizer_source": _tokenizer_source(config)}
    for name in NOT_RECORDED:
        del record[name]
    if record["n_process"] == "auto":  # which PaddleNLP, that reads the record, too, would not understand
        del record["n_process"]
    record["expert_alignment"] = _expert_alignment(config)
    record["output_path"] = os.path.abspath(output)
    record["config_from"] = os.path.abspath(config.config_from) if config.config_from else None
    if config.recipe_yaml or is_named(config):
        from .yaml_write import to_yaml  # imports YAML

        defaults = type(config)()
        said = {*MODEL_FIELDS, *METHOD_FIELDS, *PARAMETER_FIELDS, "method_parameters"} & record.keys()
        record.update({name: getattr(defaults, name) for name in said})
        record["recipe_yaml"] = to_yaml(recipe, absolute_spec)
        record["layout"] = list(_layouts(recipe, config)) or None
        return record
    sparsifier, merge_type = pair_of(config)
    title = title_of(config)
    record.update(
        model_path_list=None if config.lora_model_path else [absolute_spec(spec) for spec in models_of(config)],
        lora_model_path=absolute_spec(config.lora_model_path) if config.lora_model_path else None,
        base_model_path=absolute_spec(config.base_model_path) if config.base_model_path else None,
        merge_method=title if title in METHODS else None,
        merge_type=merge_type,
        sparsify_type=sparsifier,
    )
    return record
