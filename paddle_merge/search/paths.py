"""Search for a path of layers through several models: which layers follow one another, and factors on the stream between.

Akiba et al. (2025), Evolutionary Optimization of Model Merging Recipes, merging in the data flow space. In a document of the
search file, `paths` stands in place of `slices`:

    paths: {models: [./math, ./code], repeats: 3, scales: [0.5, 1.5]}

All layers of the first model, then all of the second, and so on, are offered `repeats` times in a row, and each is kept or
dropped. Where it is kept, the stream that enters it is multiplied by a number within `scales`; without `scales` it isn't.
What comes before and behind the layers (embeddings, the last norm, lm_head), config.json and the tokenizer are the first
model's. A model may be the name of another document of the file, whose own free values are searched together with the path;
or before it, if the section `search` has `then`, which says how paths are searched with the best values of all else:

    search: {evaluations: 200, ..., then: {evaluations: 400}}

A candidate is an ordinary recipe: slices of passthrough, in which factors on the stream are folded into the layers
(residual.py), so that its merge loads everywhere.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from ..checkpoints.config_json import read_config
from ..checkpoints.names import layer_of, pattern_of, stacks
from ..checkpoints.tensors import Checkpoint
from ..errors import ConfigError
from ..recipe.recipe import Recipe
from ..recipe.yaml_read import parse_documents
from ..records import record
from .free import has_free_values
from .gene import Gene, Values
from .merger import Merger
from .path_file import MOST, Path, read_paths, with_slices, without_paths
from .residual import writers
from .space import RecipeSpace

# In the first generation a candidate differs from the first model's path in about as many layers as FLIPS, and in a share of
# all layers that is between these bounds; the lower one is the paper's, whose search begins 2 sigma away from a change.
FLIPS, RARELY, OFTEN = 2, 0.023, 0.25


@record(frozen=True)
class Step:
    """A layer that a path may take. model: its number in Paths.models. layer: from 0. turn: which of the repeats it is."""

    model: int
    layer: int
    turn: int


class PathSpace:
    """The candidates of a search file in which a document has `paths`.

    first: the path of each model alone, the first model's before the others': they are in the first generation. baselines:
    the same with their names, to compare what is found with. notes: sentences on what is allowed but likely not meant.
    """

    def __init__(self, nodes: Sequence[yaml.Node], where: str, merger: Merger):
        """nodes: documents without the sections of the search. Raises ConfigError by line and column, CheckpointError."""
        self._where = where
        self._paths = read_paths(nodes, where)
        self._nodes = list(nodes)
        # One layer of each model, so that all are opened, and what is wrong with the rest of the file is found.
        every = [(model, 0, 1.0) for model in range(len(self._paths.models))]
        sample = with_slices(self._nodes, self._paths, every, ())
        self._inner: RecipeSpace | None = None
        if has_free_values(sample):  # of layers there are as many as the other documents' merge has, not as the path has
            others = without_paths(nodes)
            self._inner = RecipeSpace(sample, where, lambda _: RecipeSpace(others, where, merger.layers).depth)
        inner = self._inner.genes if self._inner is not None else ()
        start = tuple(gene.start for gene in inner)
        recipe = self._inner.recipe(start) if self._inner is not None else parse_documents(sample, where).recipe
        outputs = merger.outputs(recipe)
        held = [outputs[recipe.slices[model].inputs[0].number] for model in range(len(self._paths.models))]
        self._check_alike(held)
        self._filters = self._fold(merger.config(recipe), held) if self._paths.scales is not None else ()
        depths = [max(stacks(one.tensors).values()) for one in held]
        self._steps = [
            Step(model, layer, turn)
            for turn in range(self._paths.repeats)
            for model, depth in enumerate(depths)
            for layer in range(depth)
        ]
        if len(self._steps) > MOST:
            raise ConfigError(
                f"{self._paths.at}: {len(self._steps):,} layers, of which a path may have {MOST:,}; repeat fewer"
            )
        self.genes: tuple[Gene, ...] = (*inner, *self._genes(len(inner)))
        self.baselines = [
            (f"the layers of {name}", (*start, *self._own(number))) for number, name in enumerate(self._paths.models)
        ]
        self.first = [values for _, values in self.baselines]
        filled = self._inner.filled(start) if self._inner is not None else self._nodes
        self.notes = [*self._paths.notes, *merger.doubts(self._recipe(filled, self._shuffled()))]

    def recipe(self, values: Values) -> Recipe:
        """Return the recipe of a candidate. Raises ConfigError if it keeps no layer."""
        count = len(self.genes) - len(self._steps) * (2 if self._paths.scales is not None else 1)
        nodes = self._inner.filled(values[:count]) if self._inner is not None else self._nodes
        keeps = values[count : count + len(self._steps)]
        scales = values[count + len(self._steps) :] or (1.0,) * len(self._steps)
        path, factor = list[tuple[int, int, float]](), 1.0
        for step, kept, scale in zip(self._steps, keeps, scales, strict=True):
            if kept:
                factor *= float(scale)
                path.append((step.model, step.layer, factor))
        if not path:
            raise ConfigError("the candidate keeps no layer")
        return self._recipe(nodes, path)

    def _recipe(self, nodes: Sequence[yaml.Node], path: Path) -> Recipe:
        return parse_documents(with_slices(nodes, self._paths, path, self._filters), self._where).recipe

    def _genes(self, before: int) -> list[Gene]:
        """Return a choice for each layer, then the factor of each if they are searched. before: number of other genes."""
        paths, likely = self._paths, 1 - min(max(FLIPS / len(self._steps), RARELY), OFTEN)
        keeps, scales = [], []
        for place, step in enumerate(self._steps):
            turn = f", turn {step.turn}" if paths.repeats > 1 else ""
            group = f"{paths.models[step.model]}{turn}"
            name, own = f"{group}: layer {step.layer}", step.model == 0 and step.turn == 0
            keeps.append(Gene(name, group, choices=(True, False), start=own, layer=step.layer, likely=likely))
            if paths.scales is not None:
                low, high = paths.scales
                name, group, log_ = f"{group}: scale before layer {step.layer}", f"{group}: scale", True
                scales.append(Gene(name, group, low, high, log=log_, start=1.0, layer=step.layer, needs=before + place))
        return [*keeps, *scales]

    def _own(self, model: int) -> Values:
        """Return the values of the path that is a model's own layers."""
        keeps = tuple(step.model == model and step.turn == 0 for step in self._steps)
        return (*keeps, *((1.0,) * len(keeps) if self._paths.scales is not None else ()))

    def _shuffled(self) -> Path:
        """Return a path in which every layer has moved by one, to learn what config.json can't say of such paths."""
        path = [(step.model, step.layer, 1.0) for step in self._steps]
        return [path[-1], *path]

    def _check_alike(self, held: Sequence[Checkpoint]) -> None:
        """Raise ConfigError if the layers of a model have other tensors or shapes than the first model's, with
        whose config.json they are loaded."""
        first, *others = [_shapes(one) for one in held]
        problems = []
        for name, its in zip(self._paths.models[1:], others, strict=True):
            apart = [one for one in {**first, **its} if first.get(one) != its.get(one)]
            if apart:
                more = f" (and {len(apart) - 1} more differ)" if apart[1:] else ""
                problems.append(
                    f"{self._paths.at}: the layers of {name} can't stand among those of {self._paths.models[0]}:"
                    f" {apart[0]!r} {_said(its.get(apart[0]))}, and {_said(first.get(apart[0]))} there{more}"
                )
        if problems:
            raise ConfigError(problems)

    def _fold(self, config: Mapping[str, Any], held: Sequence[Checkpoint]) -> tuple[str, ...]:
        """Return the filters of the tensors into which factors are folded. Raises ConfigError if they can't be.

        config: counts for models that have none.
        """
        problems, found = list[str](), dict[tuple[str, ...], str]()
        for name, one in zip(self._paths.models, held, strict=True):
            own, depth = read_config(one.folder) or config, max(stacks(one.tensors).values())
            said = own.get("num_hidden_layers", depth) if one.path == name else depth
            try:
                found[writers(own, one.tensors)] = name
                if said != depth:
                    raise ValueError(f"it has {depth} layers, and {said} in config.json")
                if len(found) > 1:
                    raise ValueError(f"its layers are of another kind than those of {next(iter(found.values()))}")
            except ValueError as error:
                problems.append(
                    f"{self._paths.at}: scales of {name} can't be folded into its layers: {error}; leave scales out, or give"
                    " other models"
                )
        if problems:
            raise ConfigError(problems)
        return next(iter(found))


def _shapes(checkpoint: Checkpoint) -> dict[str, set[tuple[int, ...]]]:
    """Return the shapes that tensors of layers have, by their names with * in place of the layer's number."""
    found: dict[str, set[tuple[int, ...]]] = {}
    for name, entry in checkpoint.tensors.items():
        if layer_of(name) is not None:
            found.setdefault(pattern_of(name), set()).add(entry.shape)
    return found


def _said(shapes: set[tuple[int, ...]] | None) -> str:
    return "is missing" if shapes is None else f"is {' or '.join(str(list(one)) for one in sorted(shapes))}"
