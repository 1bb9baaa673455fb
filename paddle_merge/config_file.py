"""A config file: the fields of a merge in JSON or YAML."""

from __future__ import annotations

import json
from typing import Any

from .errors import ConfigError
from .readers import unique_keys


def read_config_file(path: str) -> dict[str, Any]:
    """The fields a JSON or YAML file sets, not yet checked. Raises ConfigError."""
    try:
        with open(path, "rb") as file:
            text = file.read().decode("utf-8-sig")
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise ConfigError(f"{path}: can't be read ({reason})") from None
    try:
        if path.lower().endswith(".json"):
            content = json.loads(text, object_pairs_hook=unique_keys)
        else:
            import yaml

            try:
                content = yaml.safe_load(text)
            except yaml.YAMLError as error:
                raise ValueError(" ".join(str(error).split())) from None
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path}: can't be parsed ({error})") from None
    if not isinstance(content, dict):
        raise ConfigError(f"{path}: must hold the fields of a merge, such as merge_method and model_path_list")
    if {"models", "slices"} & content.keys():
        raise ConfigError(f"{path}: looks like a mergekit recipe; those can't be read yet, only the flags as fields")
    return content
