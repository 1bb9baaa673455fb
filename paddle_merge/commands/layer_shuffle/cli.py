"""The command line of `python -m paddle_merge layer-shuffle`: flags -> a recipe of slices -> a merge."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ...checkpoints.adapters import absolute_spec, open_model
from ...checkpoints.names import stacks
from ...errors import Attempts, CheckpointError, ConfigError, OutputError
from ...recipe.fields import flag, to_types
from .. import common_flags
from ..flags import PROGRAM, CommandLine, fields_of
from ..merge import FIELDS as MERGE_FIELDS
from ..merge import recipe_text, run
from ..run_line import run_line
from .draw import any_places, counts, same_places, slices

_WHICH, _RECIPE = "Which layers", "The recipe"
# The flags of a merge that this takes, too.
MERGE = (
    *("overwrite", "resume", "max_shard_size", "out_dtype", "layout", "output_layout", "save_format", "tie"),
    *("config_from", "tokenizer_source", "chat_template", "merge_prefix", "n_process", "max_memory", "dry_run", "account"),
)
MOST_LAYERS = 10_000  # of the output: more than any model has, and few enough for a recipe


@dataclass
class ShuffleConfig:
    """The settings of a shuffle that aren't those of a merge. paths: the models."""

    paths: list[str] = field(default_factory=list)
    weight_list: list[float] | None = flag(
        _WHICH,
        "How probable each model is, for each layer. With --full_random: how many layers each gives, as a fraction of those"
        " that it has; 1.5 of 8 layers are 12.",
        shown="equal; with --full_random, 1 divided by the number of models",
    )
    full_random: bool = flag(_WHICH, "Take layers of any number, in random order, instead of the same number.", False)
    distinct: bool = flag(_WHICH, "With --full_random: take no layer of a model twice.", False)
    seed: int = flag(_WHICH, "Seed of the draws.", 0)
    write_yaml: str | None = flag(_RECIPE, "File to write the recipe to, in mergekit's YAML.")
    print_recipe: bool = flag(_RECIPE, "Print the recipe, and don't merge.", False)
    output_path: str = flag("Output", "Folder to write the checkpoint to.", "./shuffled")

    def __post_init__(self) -> None:
        """Convert the fields to their types. Raises ConfigError."""
        to_types(self)
        if self.write_yaml is not None:
            self.write_yaml = os.path.expanduser(self.write_yaml)

    @property
    def weights(self) -> list[float]:
        """The weight of each model."""
        return self.weight_list or [1.0 / len(self.paths)] * len(self.paths)

    def check(self) -> None:
        """Raise ConfigError listing everything that is wrong with the flags."""
        found, weights = common_flags.problems(self), self.weight_list or []
        if len(self.paths) < 2 and not (self.full_random and self.paths):
            found.append(f"give at least two models: {PROGRAM} layer-shuffle ./a ./b --output_path ./shuffled")
        if self.weight_list is not None and len(weights) != len(self.paths):
            found.append(f"--weight_list has {len(weights)} numbers for {len(self.paths)} models")
        if weights and (min(weights) < 0 or sum(weights) <= 0):
            found.append("--weight_list must be numbers from 0 on, not all 0")
        if self.distinct and not self.full_random:
            found.append("--distinct has no effect without --full_random, which may take a layer twice")
        if self.distinct and weights and max(weights) > 1:
            found.append(f"--distinct takes no layer twice, so a weight, here {max(weights):g}, must be at most 1")
        if self.write_yaml is not None:
            found += common_flags.file_problems("write_yaml", self.write_yaml, (".yaml", ".yml"))
        if found:
            raise ConfigError(found)


FIELDS = {**fields_of(ShuffleConfig, "paths"), **{name: MERGE_FIELDS[name] for name in MERGE}}
HELP = """Take the layers of a model from several models at random.

By default each layer of the output is the layer of the same number of one of the models, drawn with the probabilities of
--weight_list. With --full_random each model gives a share of its layers, drawn with repetition, and all are put in random
order. What isn't in layers (embeddings, norm, lm_head) is the first model's.

The draws depend on --seed alone. They become a recipe with slices, which is merged as any recipe, and which --write_yaml
keeps to be changed by hand. Such models are raw material for training or for a search (evolve): expect most to be bad.
"""
LINE = CommandLine(
    name="layer-shuffle",
    fields=FIELDS,
    argument=("MODEL ...", "Folders or files of models with layers of the same shapes."),
    help=HELP,
    examples=[
        ("Most layers of the first model:", "./a ./b --weight_list 3 1 --output_path ./shuffled"),
        ("Only the recipe:", "./a ./b --seed 7 --write_yaml recipe.yaml --print_recipe"),
        ("Any layers, in any order:", "./a ./b --full_random --weight_list 0.5 0.75 --output_path ./shuffled"),
    ],
    aliases={"weight": "weight_list", "print_yaml": "print_recipe"},
)


def main(argv: Sequence[str]) -> None:
    """Run `python -m paddle_merge layer-shuffle *argv`. Raises MergeError."""
    run_line(LINE, argv, _run)


def _run(paths: list[str], flags: dict[str, Any]) -> None:
    merge: Mapping[str, Any] = {name: value for name, value in flags.items() if name in MERGE}
    config = ShuffleConfig(paths, **{name: flags[name] for name in flags.keys() - merge.keys()})
    config.check()
    from ...recipe.config import MergeConfig
    from ...recipe.yaml_read import parse  # imports YAML
    from ...recipe.yaml_write import to_yaml

    text = to_yaml(parse(recipe(config, merge.get("merge_prefix", "model")), "layer-shuffle").recipe)
    if config.write_yaml is not None:
        try:
            with open(config.write_yaml, "w", encoding="utf-8") as file:
                file.write(text)
        except OSError as error:
            raise OutputError(f"--write_yaml {config.write_yaml}: can't be written ({error.strerror})") from None
    if config.print_recipe:
        print(text, end="")
    else:
        run(MergeConfig(recipe_yaml=text, output_path=config.output_path, **merge))


def recipe(config: ShuffleConfig, prefix: str) -> str:
    """Return the recipe, in YAML. Raises CheckpointError listing the models that can't be used."""
    attempt = Attempts()
    depths = [attempt(_depth, path, prefix) for path in config.paths]
    if None not in depths and not config.full_random and len(set(depths)) > 1:
        listed = ", ".join(f"{depth} in {path}" for path, depth in zip(config.paths, depths, strict=True))
        attempt.errors.append(
            CheckpointError(f"the models have different numbers of layers: {listed}; --full_random takes any of them")
        )
    attempt.finish()
    known = [depth for depth in depths if depth is not None]
    count = sum(counts(known, config.weights)) if config.full_random else known[0]
    if not 0 < count <= MOST_LAYERS:
        raise ConfigError(f"--weight_list gives the output {count} layers; it must have from 1 to {MOST_LAYERS}")
    if config.full_random:
        drawn = any_places(known, config.weights, config.seed, config.distinct)
    else:
        drawn = same_places(known[0], config.weights, config.seed)
    paths = [absolute_spec(path) for path in config.paths]
    ends = {"sources": [{"model": paths[0], "layer_range": [0, 0]}]}
    parts = [{"sources": [{"model": paths[model], "layer_range": [first, end]}]} for model, first, end in slices(drawn)]
    content = {"merge_method": "passthrough", "slices": [ends, *parts, ends]}
    return recipe_text(content)


def _depth(path: str, prefix: str) -> int:
    """Return how many layers a model has. Raises CheckpointError if it hasn't exactly one stack of layers."""
    checkpoint, _ = open_model(path, prefix)
    found = stacks(checkpoint.tensors)
    if len(found) != 1:
        named = ", ".join(found) or "none"
        raise CheckpointError(f"{path}: layers are shuffled of models with one stack of layers, and it has {named}")
    return next(iter(found.values()))
