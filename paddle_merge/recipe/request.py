"""The request for a merge: everything that a configuration asks for, read once and never changed afterwards."""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..backends.engine import GIB, Engine, most_workers
from ..checkpoints.formats.folder import DIFFUSERS, single_file_names, written_by_diffusers
from ..errors import ConfigError
from ..parsing import parse_size
from . import checks
from .to_recipe import base_of, models_of, recipe_of, record_of, title_of, with_flags

if TYPE_CHECKING:
    from .config import MergeConfig
    from .recipe import ParsedRecipe, Recipe


@dataclass(frozen=True)
class Request:
    """A merge as it was asked for. Planning, merging and the record in merge_config.json all go by the same request.

    recipe: what to merge, and how; None if there are problems.
    problems: why the merge can't be done, as far as no checkpoint needs to be opened, one sentence each.
    warnings: what is allowed but likely not meant, one sentence each; empty if there are problems.
    models, base: paths of the checkpoints, also where there are problems; base: None if there is none.
    output: the folder to write to.
    prefix: which weights of a checkpoint folder to read and to write, "model" or "master_weights".
    save_format: "safetensors" or "pdparams".
    config_from: the folder to take config.json and the tokenizer from; None if it isn't given.
    copied_files: names of further files to copy from there.
    engine: what computes, and on which device.
    n_process: the number of worker processes; None: as many as are worth while.
    shard_bytes: the largest size of an output file, in bytes.
    max_memory: the ceiling for all processes, in bytes; None if there is none.
    strict, overwrite, resume, dry_run, account: as the fields of these names.
    record: the fields that repeat this merge from any folder, as merge_config.json holds them; empty if there are problems.
    """

    recipe: Recipe | None
    problems: tuple[str, ...]
    warnings: tuple[str, ...]
    models: tuple[str, ...]
    base: str | None
    output: str
    prefix: str
    save_format: str
    config_from: str | None
    copied_files: tuple[str, ...]
    engine: Engine
    n_process: int | None
    shard_bytes: int
    max_memory: int | None
    strict: bool
    overwrite: bool
    resume: bool
    dry_run: bool
    account: str | None
    record: Mapping[str, Any]

    @property
    def sources(self) -> tuple[str, ...]:
        """The models' paths, then the base's."""
        return self.models if self.base is None else (*self.models, self.base)

    def checked_recipe(self) -> Recipe:
        """Return the recipe. Raises ConfigError listing every problem."""
        if self.recipe is None:
            raise ConfigError(self.problems)
        return self.recipe

    @classmethod
    def of(cls, config: MergeConfig) -> Request:
        """Return what `config` asks for, as its fields and the recipe file that it may name are now.

        Raises ConfigError if the recipe can't be read. All other problems are in `problems`, so that they can be reported
        together with those of the checkpoints and the output folder.
        """
        engine = _engine(config)
        parsed: ParsedRecipe | None
        if config.recipe_yaml:
            from .yaml_read import read  # imports YAML

            parsed = read(config.recipe_yaml)
            models, base, title = parsed.recipe.models, parsed.recipe.base, parsed.recipe.title
            problems = checks.of_recipe(config, parsed.recipe.sources, engine)
        else:
            parsed, found = recipe_of(config)
            models, base, title = tuple(models_of(config)), base_of(config), title_of(config)
            problems = checks.of_flags(config, engine) + found
        prefix = _prefix(config.merge_prefix, models if base is None else (*models, base))
        output = config.output_path or os.path.join(".", f"merged-{title}")
        recipe: Recipe | None = None
        warnings: tuple[str, ...] = ()
        record: Mapping[str, Any] = {}
        if parsed is not None and not problems:
            recipe = dataclasses.replace(with_flags(parsed.recipe, config), prefix=prefix)
            warnings = (*parsed.notes, *checks.warnings(config, engine))
            record = record_of(config, parsed.recipe, output)
        return cls(
            recipe=recipe,
            problems=tuple(problems),
            warnings=warnings,
            models=models,
            base=base,
            output=output,
            prefix=prefix,
            save_format=config.save_format,
            config_from=config.config_from,
            copied_files=tuple(config.copy_file_list or ()),
            engine=engine,
            n_process=None if config.n_process == "auto" else config.n_process,
            shard_bytes=0 if problems else parse_size(config.max_shard_size),
            max_memory=parse_size(config.max_memory) if config.max_memory and not problems else None,
            strict=config.strict,
            overwrite=config.overwrite,
            resume=config.resume,
            dry_run=config.dry_run,
            account=config.account,
            record=record,
        )


def _prefix(given: str, sources: Sequence[str]) -> str:
    """Return which weights of folders to read and write: those of diffusers if all models have them, and none others."""
    paths = [os.path.expanduser(path) for path in sources]
    diffusers = bool(paths) and all(written_by_diffusers(path) for path in paths)
    others = any(os.path.isfile(os.path.join(path, name)) for path in paths for name in single_file_names("model"))
    return DIFFUSERS if given == "model" and diffusers and not others else given


def _engine(config: MergeConfig) -> Engine:
    """Return what computes. np computes on the CPU, whatever the device; a warning says so."""
    device = "cpu" if config.tensor_type == "np" else config.device
    memory = config.max_tensor_mem if math.isfinite(config.max_tensor_mem) else 0.0  # which is among the problems then
    workers = most_workers(device) if config.n_process == "auto" else config.n_process
    return Engine(config.tensor_type, device, int(memory * GIB), workers=workers)
