"""MergeConfig: the fields of a merge, brought to their types. request.py says what they mean together."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..errors import ConfigError
from ..parsing import coerce, nearest
from .config_file import read_config_file
from .fields import Fields, to_types

# Other names that PaddleNLP's documentation and older versions use for a field.
ALIASES = {
    "merge_preifx": "merge_prefix",
    "model_name_or_path_list": "model_path_list",
    "base_model_name_or_path": "base_model_path",
}
# Written beside the fields into merge_config.json; ignored when it is read back.
RECORD_KEYS = ("paddle_merge_version",)


@dataclass
class MergeConfig(Fields):
    """Hold the fields of a merge, with PaddleNLP's names and defaults (recipe/fields.py describes each).

    Values are converted to the types of their fields, and `~` in paths to the home folder. Raises ConfigError for values
    that can't be converted. Whether the fields make sense together is checked when a merge is requested (recipe/request.py).
    """

    def __post_init__(self) -> None:
        to_types(self)

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any], where: str = "the config") -> MergeConfig:
        """Return the config that a JSON or YAML object describes, as PaddleNLP reads and writes it.

        values: by field name or alias; None and "None" mean that a field isn't given.
        where: what error messages call the source of the values.
        Raises ConfigError listing every unknown field and every value of a wrong type.
        """
        return cls(**cls.known_fields(values, where))

    @classmethod
    def known_fields(cls, values: Mapping[str, Any], where: str) -> dict[str, Any]:
        """Return the given values by the names of their fields, aliases resolved. Raises as from_mapping does."""
        problems: list[str] = []
        known: dict[str, Any] = {}
        types = {item.name: str(item.type) for item in dataclasses.fields(cls)}
        for key, value in values.items():
            name = ALIASES.get(key, key)
            if name in RECORD_KEYS or value is None or value == "None":
                continue
            if name not in types:
                problems.append(f"{where}: unknown field {key!r}{nearest(key, types)}")
                continue
            if name in known and known[name] != value:
                problems.append(f"{where}: {key!r} and another spelling of it disagree")
            try:
                known[name] = coerce(value, types[name])
            except ValueError as error:
                problems.append(f"{where}: {key!r} {error}")
        if problems:
            raise ConfigError(problems)
        return known

    from_file = staticmethod(read_config_file)
