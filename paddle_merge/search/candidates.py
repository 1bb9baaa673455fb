"""Make candidates: the merge of a recipe in memory, or a checkpoint on disk."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import os
import tempfile
from collections.abc import Mapping
from typing import Any

import numpy as np

from ..checkpoints.config_json import read_config
from ..errors import OutputError
from ..recipe.config import MergeConfig
from ..recipe.recipe import Recipe
from ..recipe.yaml_read import parse
from ..recipe.yaml_write import to_yaml
from .contract import as_paddle, copy_into
from .merger import Merger, Tensor, without_settings


class MergedCandidate:
    """The merge of a recipe.

    merger: merges it in memory. near: the folder in which a checkpoint is written, if one is asked for. stored: the folder
    that holds it already; "" if there is none.
    """

    def __init__(self, title: str, recipe: Recipe, merger: Merger, near: str, stored: str = ""):
        self.title, self._recipe, self._merger, self._near = title, recipe, merger, near
        self._folder, self._tensors = stored, dict[str, Tensor]()
        self._stored, self._out = bool(stored), os.path.join(near, "model")

    @property
    def kind(self) -> str:
        """What is equal for merges that differ in nothing but the values of tensors, so not in config or tokenizer either.

        "" if nothing is known of that, as of a checkpoint on disk.
        """
        return "" if self._stored or self._merger.stores_codes(self._recipe) else without_settings(self._recipe)

    def arrays(self) -> Mapping[str, np.ndarray]:
        """Return its tensors by name, as state_dict("np") has them, in memory that must not be changed."""
        return self._values()

    @functools.cached_property
    def config(self) -> Mapping[str, Any]:  # a plan costs as much as many tensors' values
        if self._stored:
            return self._merger.config(self._recipe)
        if self._folder:
            return read_config(self._folder)
        from ..recipe.request import Request
        from ..run.merge import prepare  # what folder() writes: with the dtype and the vocabulary of the merge

        _, beside, _ = prepare(Request.of(dataclasses.replace(self._merge, dry_run=True)))
        return dict(json.loads(beside.get("config.json", b"{}")))

    def state_dict(self, tensor_type: str = "np") -> dict[str, Any]:
        if tensor_type == "pd":
            return as_paddle(self._values())
        return {name: tensor.copy() for name, tensor in self._merged().items()}

    def load_into(self, model: Any) -> None:
        copy_into(model, self._values())

    def folder(self) -> str:
        if not self._folder:
            from ..run.merge import merge  # what a merge of the recipe from the command line does

            out = self._out
            try:
                merge(self._merge, progress=False)
            except OutputError as error:  # nobody gave this --output_path
                place = f"a candidate's folder in {tempfile.gettempdir()}"
                said = [problem.replace(f"--output_path {out}", place) for problem in error.problems]
                raise OutputError([f"{sentence}; TMPDIR names another place" for sentence in said]) from None
            self._folder = out
        return self._folder

    @property
    def _merge(self) -> MergeConfig:
        config_from = self._recipe.config_from
        return MergeConfig(recipe_yaml=to_yaml(self._recipe), output_path=self._out, config_from=config_from)

    def _merged(self) -> dict[str, Tensor]:
        if not self._tensors and not self._stored and self._merger.stores_codes(self._recipe):
            with contextlib.closing(Merger()) as written:
                self._tensors = written.merge(parse(alone(self.folder()), self.title).recipe)
        self._tensors = self._tensors or self._merger.merge(self._recipe)
        return self._tensors

    def _values(self) -> dict[str, np.ndarray]:
        return {name: tensor.values for name, tensor in self._merged().items()}


def stored_candidate(path: str, merger: Merger, near: str) -> MergedCandidate:
    """Return the candidate of a checkpoint of any format, or of base+adapter, as it is. Raises ConfigError."""
    folder = os.path.abspath(os.path.expanduser(path))  # an evaluator may run in another folder, as commands do
    return MergedCandidate(path, parse(alone(path), path).recipe, merger, near, folder if os.path.isdir(folder) else "")


def alone(path: str) -> str:
    """Return the recipe of one model as it is, as YAML."""
    return f"merge_method: passthrough\nmodels: [{{model: {json.dumps(path)}}}]\n"
