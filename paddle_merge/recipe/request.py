"""Turn the fields of a configuration into one frozen request."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import yaml

from ..errors import ConfigError
from ..methods.registry import NAMED

if TYPE_CHECKING:
    from .config import MergeConfig


def as_yaml(config: MergeConfig) -> str:
    """--weight_list is weight (1 each if it isn't given), --reserve_p density, --scale lambda, --normalize and --rescale are
    what they are called; --method_parameters names all others. Raises ConfigError.
    """
    known = {parameter.name: parameter for parameter in NAMED[str(config.merge_method)].parameters}
    models = config.models
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
    content |= {"base_model": config.base} if config.base else {}
    entries: list[dict[str, Any]] = [{"model": path} for path in models]
    if "weight" in known and "weight" not in shared:
        entries = [{**entry, "parameters": {"weight": weight}} for entry, weight in zip(entries, weights, strict=True)]
        if NAMED[str(config.merge_method)].base in ("model", "first") and config.base:
            entries.append({"model": config.base, "parameters": {"weight": 1.0}})
    content["models"] = entries
    return yaml.safe_dump({**content, "parameters": shared}, sort_keys=False, allow_unicode=True, width=10**6)
