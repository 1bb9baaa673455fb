"""Read a config file: the fields of a merge in JSON or YAML, or a recipe."""

from __future__ import annotations

import json
import os
from typing import Any

from ..checkpoints.json_files import read_small, unique_keys
from ..errors import ConfigError

# Keys of a recipe that are not the names of flags.
_OF_RECIPES = {"models", "slices", "modules", "base_model", "parameters", "dtype", "tokenizer", "name", "experts", "upcycle"}

SECTIONS = {
    "search": "evolve",
    "sweep": "sweep",
    "evaluate": "evaluate --with",
}  # of other files -> the command that takes them


def _is_recipe(text: str, where: str) -> bool:
    """Return whether YAML text is a recipe, possibly one with mistakes, rather than flags as fields.

    where: what error messages call the text. Raises ConfigError if the text is not YAML.
    """
    import yaml

    from .yaml_nodes import documents

    nodes = documents(text, where)
    pairs = [pair for node in nodes if isinstance(node, yaml.MappingNode) for pair in node.value]
    items = [item for _, value in pairs if isinstance(value, yaml.SequenceNode) for item in value.value]
    return (
        len(nodes) > 1
        or any(isinstance(item, yaml.MappingNode) for item in items)
        or any(isinstance(key, yaml.ScalarNode) and key.value in _OF_RECIPES | SECTIONS.keys() for key, _ in pairs)
    )


def _parse_yaml(text: str, where: str) -> Any:
    """Return the content of YAML text. Raises ValueError, RecursionError, or ConfigError with a line and a column."""
    import yaml

    class Loader(yaml.SafeLoader):
        """Refuse a key that stands twice in one mapping, as YAML requires and PyYAML doesn't check."""

        def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
            keys = [key for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
            names = [key.value for key in keys]
            for place, key in enumerate(keys):
                if key.value in names[:place]:
                    raise yaml.constructor.ConstructorError(None, None, "the same key twice", key.start_mark)
            return super().construct_mapping(node, deep)

    try:
        return yaml.load(text, Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        at = f"{where}:{mark.line + 1}:{mark.column + 1}" if mark else where
        raise ConfigError(f"{at}: can't be parsed ({error.problem})") from None
    except yaml.YAMLError as error:
        raise ValueError(" ".join(str(error).split())) from None
    except (LookupError, TypeError, AttributeError, ArithmeticError) as error:  # of a tag like !!int on an empty value
        raise ValueError(f"a value does not fit its tag: {error}") from None


def read_config_file(path: str) -> dict[str, Any]:
    """Return the fields that a JSON or YAML file sets, without checking them; of a recipe, recipe_yaml with the path.

    Raises ConfigError if the file can't be read or parsed.
    """
    try:
        text = read_small(path).decode("utf-8-sig")
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        remedy = "; models follow --model_path_list" if os.path.isdir(path) else ""
        raise ConfigError(f"{path}: can't be read ({reason}){remedy}") from None
    is_json = path.lower().endswith(".json")
    if not is_json and _is_recipe(text, path):
        return {"recipe_yaml": path}
    try:
        content = json.loads(text, object_pairs_hook=unique_keys) if is_json else _parse_yaml(text, path)
    except ConfigError:
        raise
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path}: can't be parsed ({error})") from None
    if not isinstance(content, dict):
        raise ConfigError(
            f"{path}: must hold the fields of a merge, such as merge_method and model_path_list; or a recipe, with models"
        )
    return content
