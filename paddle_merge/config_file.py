"""A config file: the fields of a merge in JSON or YAML."""

from __future__ import annotations

import json
from typing import Any

from .errors import ConfigError
from .readers import read_small, unique_keys
from .recipe import is_recipe


def _parse_yaml(text: str) -> Any:
    """Raises ValueError, or RecursionError."""
    import yaml

    class Loader(yaml.SafeLoader):
        """YAML's own rule, which PyYAML doesn't keep: no key twice in one mapping."""

        def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
            keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
            if len(set(keys)) != len(keys):
                raise ValueError("the same key twice")
            return super().construct_mapping(node, deep)

    try:
        return yaml.load(text, Loader)
    except yaml.YAMLError as error:
        raise ValueError(" ".join(str(error).split())) from None
    except (
        LookupError,
        TypeError,
        AttributeError,
        ArithmeticError,
    ) as error:  # of a tag on a value it doesn't fit: !!int ''
        raise ValueError(f"a value doesn't fit its tag: {error}") from None


def read_config_file(path: str) -> dict[str, Any]:
    """The fields a JSON or YAML file sets, not yet checked. Raises ConfigError."""
    try:
        text = read_small(path).decode("utf-8-sig")
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise ConfigError(f"{path}: can't be read ({reason})") from None
    try:
        is_json = path.lower().endswith(".json")
        content = json.loads(text, object_pairs_hook=unique_keys) if is_json else _parse_yaml(text)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path}: can't be parsed ({error})") from None
    if not isinstance(content, dict):
        raise ConfigError(f"{path}: must hold the fields of a merge, such as merge_method and model_path_list")
    return {"recipe_yaml": path} if is_recipe(content) else content
