"""PaddleNLP's MergeConfig: its fields in its order, its checks, and its conversion to paddle_merge.MergeConfig."""

# PaddleNLP's PdArgumentParser, which makes flags of these fields, knows Optional, but not `| None`.
# ruff: noqa: UP045

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass
from typing import Any, Optional

from ..backends.engine import LEAST, import_paddle
from ..errors import ConfigError
from ..methods.paddlenlp import METHODS, sparsifier_problems
from ..parsing import nearest
from ..plan.file_names import RECORD
from ..recipe.config import MergeConfig as OurConfig
from ..recipe.wording import as_flags

MAY_BE_NONE = ("merge_method", "merge_type")  # although their default is something else


@dataclass
class MergeConfig:
    """Hold what to merge and how, in PaddleNLP's and PaddleFormers' fields. Raises ConfigError, which is a ValueError.

    Three keyword arguments are added, for what these fields don't say:
    device: the device that tensor_type "pd" computes on, as paddle_merge.MergeConfig.device; None: Paddle's current device.
    seed: the seed of dare's and magprune's masks; None: 0. The random states of NumPy and Paddle have no influence.
    layout: the layout of the models where it can't be detected, as paddle_merge.MergeConfig.layout.
    """

    tensor_type: str = "np"
    n_process: int = 1
    merge_prefix: str = "model"
    merge_method: Optional[str] = "linear"
    merge_type: Optional[str] = "linear"
    sparsify_type: Optional[str] = None
    split_pieces: int = 8
    max_tensor_mem: float = 0.5
    model_path_list: Optional[list[str]] = None
    model_path_str: Optional[str] = None
    base_model_path: Optional[str] = None
    output_path: Optional[str] = None
    lora_model_path: Optional[str] = None
    copy_file_list: Optional[list[str]] = None
    weight_list: Optional[list[float]] = None
    normalize: bool = True
    slerp_alpha: float = 0.5
    slerp_normalize_eps: float = 1e-8
    slerp_dot_threshold: float = 0.9995
    ties_elect_type: str = "sum"
    rescale: bool = True
    reserve_p: float = 0.7
    epsilon: float = 0.14
    # PaddleFormers'
    convert_from_hf: bool = True
    save_to_hf: bool = True
    merge_with_qdq_base_model: bool = False
    _: KW_ONLY
    device: Optional[str] = None
    seed: Optional[int] = None
    layout: Optional[list[str]] = None

    def __post_init__(self) -> None:
        self.config_check()

    def config_check(self) -> None:
        """Convert fields to their types, fill in fields that follow from others, and make the output folder.

        Raises ConfigError listing every problem.
        """
        for item in dataclasses.fields(self):
            value = getattr(self, item.name)
            if value is None or (isinstance(value, str) and value == "None"):
                setattr(self, item.name, None if item.name in MAY_BE_NONE else item.default)
        given = {name: value for name, value in self.to_dict().items() if value is not None}
        typed = OurConfig(**given)
        for name in given:
            setattr(self, name, getattr(typed, name))
        problems = self._lora_problems() if self.lora_model_path is not None else self._problems()
        if self.tensor_type not in ("np", "pd"):
            problems.append(f"tensor_type {self.tensor_type!r} must be np or pd")
        if problems:
            raise ConfigError(problems)
        if self.output_path is not None:  # scripts put files there before the merge
            os.makedirs(self.output_path, exist_ok=True)

    def _lora_problems(self) -> list[str]:
        """Return why an adapter can't be folded."""
        return [] if self.base_model_path else ["lora_model_path needs base_model_path, the model to fold it into"]

    def _problems(self) -> list[str]:
        """Return what PaddleNLP refuses, one sentence each. Fill in model_path_list and weight_list."""
        found = []
        if self.merge_method is not None and self.merge_method not in METHODS:
            named = ", ".join(METHODS)
            found.append(f"merge_method {self.merge_method!r} must be one of {named}{nearest(self.merge_method, METHODS)}")
        if self.merge_method is None and self.merge_type is None:
            found.append("either merge_method or merge_type must be given")
        if self.model_path_str is not None:
            self.model_path_list = [path.strip() for path in self.model_path_str.split(",") if path.strip()]
        if self.model_path_list is not None:
            if len(self.model_path_list) < 2:
                found.append(f"model_path_list needs at least two models, not {self.model_path_list}")
            if self.weight_list is None:
                self.weight_list, self.normalize = [1.0] * len(self.model_path_list), True
            if len(self.weight_list) != len(self.model_path_list):
                found.append(f"weight_list has {len(self.weight_list)} numbers for {len(self.model_path_list)} models")
        if not 0 <= self.reserve_p <= 1:
            found.append(f"reserve_p {self.reserve_p:g} must lie between 0 and 1")
        elif "della" in (self.merge_method or "") or self.sparsify_type == "magprune":
            found += map(as_flags, sparsifier_problems("magprune", self.reserve_p, self.epsilon))
        return found

    # --- to and from dicts and files

    def to_dict(self) -> dict[str, Any]:
        """Return the fields by name."""
        return dataclasses.asdict(self)

    def save_pretrained(self, save_directory: str) -> None:
        """Write merge_config.json into a folder, which is made if need be. Raises AssertionError if it is a file."""
        if os.path.isfile(save_directory):
            raise AssertionError(f"{save_directory} is a file; give a folder to save the config in")
        os.makedirs(save_directory, exist_ok=True)
        with open(os.path.join(save_directory, RECORD), "w", encoding="utf-8") as file:
            json.dump(self.to_dict(), file, indent=2, sort_keys=True)

    @classmethod
    def from_pretrained(cls, pretrained_model_path: str, **kwargs: Any) -> MergeConfig:
        """Return the config of a folder's merge_config.json, whether PaddleNLP or this package wrote it.

        kwargs: fields that override the file's. Raises ConfigError if there is no such file, or its fields can't be used.
        """
        path = os.path.join(pretrained_model_path, RECORD)
        if not os.path.isfile(path):
            raise ConfigError(f"{pretrained_model_path}: holds no {RECORD}")
        return cls(**{**cls.known_fields(OurConfig.from_file(path), path), **kwargs})

    @classmethod
    def from_json_file(cls, path_json_file: str) -> dict[str, Any]:
        """Return the content of a JSON file."""
        with open(path_json_file, encoding="utf-8") as file:
            content: dict[str, Any] = json.load(file)
        return content

    @classmethod
    def known_fields(cls, values: Mapping[str, Any], where: str) -> dict[str, Any]:
        """Return the given values that are fields of this class. If types are given and no method, the types decide.

        where: what error messages call the source of the values.
        Raises ConfigError for fields that only paddle_merge.MergeConfig has, if their values aren't its defaults: leaving
        them out would change the merge.
        """
        names = {item.name for item in dataclasses.fields(cls)}
        defaults = OurConfig()
        foreign = [
            f"{where}: PaddleNLP has no field {name}; use paddle_merge.MergeConfig or python -m paddle_merge"
            for name, value in values.items()
            if name not in {*names, "allow_untrained"} and value is not None and value != getattr(defaults, name, value)
        ]
        if foreign:
            raise ConfigError(foreign)
        types = [values[name] for name in ("merge_type", "sparsify_type") if values.get(name) not in (None, "None")]
        decided = {"merge_method": None} if types else {}  # else the default would win over them
        return decided | {name: value for name, value in values.items() if name in names}

    # --- as paddle_merge.MergeConfig

    def ours(self) -> OurConfig:
        """Return the paddle_merge.MergeConfig of the same merge, which replaces an earlier merge in output_path.

        As in PaddleNLP, an adapter that was never trained is folded; a warning says so.

        Paddle is imported if tensor_type is "pd" and no device is given.
        """
        values = {name: value for name, value in self.to_dict().items() if value is not None}
        if self.lora_model_path is not None:
            for name in ("merge_method", "merge_type", "sparsify_type", "weight_list"):
                values.pop(name, None)
        elif self.merge_method is not None:  # it decides
            sparsifier, merge_type = METHODS[self.merge_method]
            values |= {"merge_type": merge_type, "sparsify_type": sparsifier}
        if values.get("merge_type") == "slerp":  # goes by slerp_alpha
            values.pop("weight_list", None)
        if self.device is None and self.tensor_type == "pd":
            values["device"] = import_paddle().device.get_device()
        return OurConfig(
            **{**values, "max_tensor_mem": max(LEAST, self.max_tensor_mem), "overwrite": True, "allow_untrained": True}
        )
