"""PaddleNLP's MergeModel: an object that merges by a config."""

from __future__ import annotations

import dataclasses
import logging
import os
import shutil
from collections.abc import Mapping
from typing import Any

from ..errors import ConfigError
from ..methods.paddlenlp import METHODS
from ..run.ranks import Ranks
from .config import MergeConfig
from .tensors import MergeMethod, SparsifyMethod

log = logging.getLogger("paddle_merge")


class MergeModel:
    """Merge the models of `merge_config`, together with the other processes of a paddle.distributed.launch."""

    def __init__(self, merge_config: MergeConfig):
        self.is_peft = False
        self.reset_merge_model(merge_config=merge_config)

    def reset_merge_model(
        self, merge_config: MergeConfig | None = None, merge_param_dict: Mapping[str, Any] | None = None
    ) -> None:
        """Replace the config, or change some of its fields, for the next merge.

        merge_config: the new config. merge_param_dict: fields to change in the present one, if no config is given.
        Raises ConfigError if a field doesn't exist or a value can't be used.
        """
        if merge_config is not None:
            self.merge_config = merge_config
        elif merge_param_dict is not None:
            self._change(merge_param_dict)
        config = self.merge_config
        config.config_check()
        if config.merge_method is not None:
            wanted = config.sparsify_type, config.merge_type
            config.sparsify_type, config.merge_type = METHODS[config.merge_method]
            if config.merge_method == "linear" and wanted not in ((None, "linear"), (None, None)):
                log.warning(
                    "merge_method 'linear' takes precedence, as in PaddleNLP: sparsify_type %r and merge_type %r have no"
                    " effect; to use them, pass merge_method=None",
                    *wanted,
                )
        if config.merge_type == "slerp" and len(set(config.weight_list or ())) > 1:
            log.warning("slerp uses slerp_alpha: weight_list %s has no effect", config.weight_list)
        self.merge_method = MergeMethod(config, SparsifyMethod(config))

    def _change(self, fields: Mapping[str, Any]) -> None:
        config = self.merge_config
        known = [item.name for item in dataclasses.fields(config)]
        unknown = [f"merge_param_dict: {name!r} is not a field of MergeConfig" for name in fields if name not in known]
        if unknown:
            raise ConfigError(unknown)
        if "model_path_list" in fields:
            config.model_path_str = None  # which would win
        filled_in = config.normalize and set(config.weight_list or ()) == {1.0}
        if filled_in and {"model_path_list", "model_path_str"} & fields.keys():
            config.weight_list = None  # there may be more models now
        for name, value in fields.items():
            setattr(config, name, value)

    def merge_model(self) -> None:
        """Write the merged model to output_path, and replace an earlier merge there. Raises MergeError."""
        from ..run.merge import merge

        config = self.merge_config.ours()
        config.copy_file_list = self._existing_files() or None
        merge(config, ranks=Ranks.from_environment())

    def copy_file(self) -> None:
        """Copy the files of copy_file_list to output_path, as `merge_model` does too."""
        assert self.merge_config.output_path is not None
        for name in self._existing_files():
            target = os.path.join(self.merge_config.output_path, name)
            os.makedirs(os.path.dirname(target), exist_ok=True)
            shutil.copyfile(os.path.join(self._config_source(), name), target)

    def _config_source(self) -> str:
        """Return the folder that copy_file_list is copied from: the base model's, else the first model's."""
        config = self.merge_config
        return config.base_model_path or (config.model_path_list or ["."])[0]

    def _existing_files(self) -> list[str]:
        """Return the files of copy_file_list that exist; log a warning for each of the others."""
        names = self.merge_config.copy_file_list or []
        for name in names:
            if not os.path.isfile(os.path.join(self._config_source(), name)):
                log.warning("copy_file_list: %s is not in %s, so it is not copied", name, self._config_source())
        return [name for name in names if os.path.isfile(os.path.join(self._config_source(), name))]
