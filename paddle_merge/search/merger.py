"""Merge the inputs of a search again and again, each time by another recipe, in memory.

Inputs are opened once. Their tensors are read once, and kept in memory in the dtype in which they are merged, as far as
`memory` allows. A candidate then costs the plan of its tensors and the loops over their elements. The steps are those of a
merge of files (run/pipeline.py), so values are the same to the last bit.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Hashable, Mapping
from typing import Any

import numpy as np

from ..backends.engine import NUMPY, Engine
from ..backends.np_backend import widen
from ..checkpoints.config_json import read_config
from ..checkpoints.files import Files
from ..checkpoints.names import stacks
from ..checkpoints.tensors import Checkpoint, TensorEntry
from ..conversion.vocabulary.entry import AlignedEntry, CompletedEntry
from ..dtypes import FLOAT32, FLOAT64, DType, ScaledForm
from ..errors import CheckpointError
from ..plan.config_source import different_settings
from ..plan.matched import Matched, matched
from ..plan.output_config import changes_config, output_config
from ..plan.planner import make, plan_tensors
from ..plan.smaller import MERGED
from ..plan.storage import storage
from ..plan.tensor_plan import StagedEntry, TensorPlan
from ..recipe.recipe import Recipe
from ..records import record
from ..run.pipeline import merge_tensor
from ..run.sources import reader
from ..run.state_dicts import MemorySource
from ..run.worker import Backends


@record(frozen=True)
class Tensor:
    """A merged tensor: its raw elements, flat, and what they are."""

    raw: np.ndarray
    dtype: DType
    shape: tuple[int, ...]

    @property
    def values(self) -> np.ndarray:
        """The elements in the tensor's shape, as numbers: floats that NumPy lacks are widened to float32, which is exact."""
        if not self.dtype.is_float or self.dtype in (FLOAT32, FLOAT64):
            return self.raw.reshape(self.shape)
        wide = np.empty(self.raw.size, np.float32)
        widen(self.raw, self.dtype, wide)
        return wide.reshape(self.shape)

    def copy(self) -> np.ndarray:
        """Return the elements as `values` does, in new memory."""
        values = self.values
        return values.copy() if np.shares_memory(values, self.raw) else values


_PROBE = {"": np.empty(0)}
_UNSHARED = sys.getrefcount(_PROBE[""])  # references to an array in a dictionary that nothing else holds


class Merger:
    """Merges by one recipe after another. engine: what computes. memory: bytes that tensors kept in memory may take."""

    def __init__(self, engine: Engine = NUMPY, memory: int = 0):
        self._backends, self._files = Backends(engine), Files()
        self._memory = memory
        self._held: dict[Hashable, tuple[np.ndarray, DType]] = {}
        self._stages: Any = None  # the earlier merges of the last recipe, and what they made
        self._staged: dict[tuple[str, str], np.ndarray] = {}
        self._matched: dict[str, Matched] = {}
        self._coded: dict[str, bool] = {}
        self._copies: dict[Any, Hashable] = {}
        self._made: dict[str, np.ndarray] = {}  # the tensors of the last output

    def inputs(self, recipe: Recipe) -> Matched:
        """Return the inputs of a recipe, opened, in matching names and layouts. Raises CheckpointError."""
        if recipe.mixture is not None:
            raise CheckpointError("a mixture of experts is not made in memory: let the evaluator open candidate.folder()")
        key = without_settings(recipe)
        if key not in self._matched:
            self._matched[key] = matched(recipe)
        return self._matched[key]

    def stores_codes(self, recipe: Recipe) -> bool:
        """Return whether a merge into a folder stores 8-bit codes, which are other numbers than those that merge() returns:
        because the recipe says so, or because its base, or else its first model, does. Raises CheckpointError."""
        if recipe.out_dtype is not None or recipe.mixture is not None:
            return isinstance(recipe.out_dtype, ScaledForm)
        key = without_settings(recipe)
        if key not in self._coded:
            its = self.inputs(recipe)
            self._coded[key] = any("quantization_config" in read_config(one.folder) for one in its.inputs)
            if self._coded[key]:
                found, first = make(recipe, its), recipe.slices[0].base or recipe.slices[0].inputs[0]
                stored, _ = storage(recipe, found.tensors, found.inputs[first.number], its.layout, ())
                self._coded[key] = stored.form is not None
        return self._coded[key]

    def layers(self, recipe: Recipe) -> int:
        """Return the number of layers of the deepest stack of the recipe's last model. Raises CheckpointError."""
        part = recipe.slices[0]
        number = (part.base or part.inputs[0]).number
        inputs = self.inputs(recipe).inputs
        return max(stacks(inputs[min(number, len(inputs) - 1)].tensors).values(), default=1)

    def config(self, recipe: Recipe) -> Mapping[str, Any]:
        """Return the content of the output's config.json: of the folder that gives it, with the number of layers and what
        it says of each, if slices pick some. Raises CheckpointError."""
        return self._restacked(recipe)[0]

    def doubts(self, recipe: Recipe) -> list[str]:
        """Return sentences on inputs that use weights in another way than the output will, and on what config.json can't say
        of layers that are stacked in a new order. Raises CheckpointError."""
        its = self.inputs(recipe)
        return [*different_settings(its.inputs, its.config_source), *self._restacked(recipe)[1]]

    def outputs(self, recipe: Recipe) -> tuple[Checkpoint, ...]:
        """Return the inputs of a recipe, and the outputs of its earlier merges, as Recipe.titles. Raises CheckpointError."""
        return make(recipe, self.inputs(recipe)).inputs

    def plan(self, recipe: Recipe) -> list[TensorPlan]:
        """Return the plan of each tensor of the output. Raises CheckpointError and ConfigError, listing all problems."""
        return plan_tensors(recipe, self.inputs(recipe), self._copies)

    def merge(self, recipe: Recipe) -> dict[str, Tensor]:
        """Return the merged tensors by name. Raises CheckpointError, ConfigError; WorkError where files can't be read.

        The memory of an earlier output is used again, of tensors that nobody holds any more.
        """
        stages = recipe.sources, recipe.stages
        if stages != self._stages:
            self._memory += sum(raw.nbytes for raw in self._staged.values())
            self._stages, self._staged = stages, {}
        plans = self.plan(recipe)
        return {plan.name: Tensor(self._merged(plan, self._room(plan)), plan.dtype, plan.shape) for plan in plans}

    def _restacked(self, recipe: Recipe) -> tuple[Mapping[str, Any], list[str]]:
        config = read_config(self.inputs(recipe).config_source.folder)
        if not config or not changes_config(recipe):
            return config, []
        return output_config(config, recipe, self.plan(recipe), self.outputs(recipe))

    def close(self) -> None:
        self._files.close()

    def _room(self, plan: TensorPlan) -> np.ndarray | None:
        """Return memory for a tensor of the output; None if it takes none. New pages cost as much as merging into them."""
        if not _is_made(plan):
            return None
        held = self._made
        fits = plan.name in held and held[plan.name].dtype == plan.dtype.raw and held[plan.name].size == plan.size
        if not fits or sys.getrefcount(held[plan.name]) > _UNSHARED:  # a view of an array holds it too
            held[plan.name] = np.empty(plan.size, plan.dtype.raw)
        return held[plan.name]

    def _merged(self, plan: TensorPlan, out: np.ndarray | None) -> np.ndarray:
        """Return the raw elements of a tensor, flat. out: where they go; None: it is copied, not merged."""
        if out is None:
            return self._values(plan.inputs[0], plan.compute)[0]
        found = [self._values(entry, plan.compute) for entry in plan.inputs]
        backend = self._backends.of(plan)
        end = 0
        with backend.at_work():
            source = MemorySource([raw for raw, _ in found], [dtype for _, dtype in found])
            for stored, _ in merge_tensor(plan, source, backend).merged():
                block = backend.fetch(stored)()
                out[end : end + len(block)] = block
                end += len(block)
        return out

    def _values(self, entry: TensorEntry, compute: str) -> tuple[np.ndarray, DType]:
        """Return the raw elements of an input's tensor, flat, and their dtype."""
        if isinstance(entry, StagedEntry):
            return self._staged_values(entry), entry.plan.dtype
        key = entry.nameless, compute
        if key not in self._held:
            found = reader(entry, compute, self._files)
            dtype, raw = found.dtype, np.empty(int(np.prod(entry.shape)), found.dtype.raw)
            found.read(0, raw)
            if _depends(entry):
                return raw, dtype
            wanted = FLOAT64 if compute == "float64" else FLOAT32
            if dtype.is_float and dtype not in (FLOAT32, FLOAT64) and raw.size * wanted.itemsize <= self._memory:
                wide = np.empty(raw.size, wanted.raw)
                widen(raw, dtype, wide)
                raw, dtype = wide, wanted
            if raw.nbytes > self._memory:
                return raw, dtype
            self._memory -= raw.nbytes
            self._held[key] = raw, dtype
        return self._held[key]

    def _staged_values(self, entry: StagedEntry) -> np.ndarray:
        """Return the raw elements of a tensor that an earlier merge makes, flat.

        They are kept as long as the earlier merges stay the same: a path takes layers several times, and candidates of a
        search for paths may all have the same ones. What this merge makes, before experts are left out, differs between
        candidates, and isn't kept.
        """
        key = entry.title, entry.plan.name
        if key not in self._staged:
            its = entry.plan
            raw = self._merged(its, np.empty(its.size, its.dtype.raw) if _is_made(its) else None)
            if entry.title == MERGED or raw.nbytes > self._memory:
                return raw
            self._memory -= raw.nbytes
            self._staged[key] = raw
        return self._staged[key]


def _is_made(plan: TensorPlan) -> bool:
    """Return whether a tensor is merged, element by element."""
    return plan.merged and plan.size > 0


def _depends(entry: TensorEntry) -> bool:
    """Return whether a tensor is made of one that an earlier merge makes, so that it differs between candidates."""
    return isinstance(entry, StagedEntry) or (
        isinstance(entry, AlignedEntry | CompletedEntry) and any(map(_depends, entry.made_of))
    )


def without_settings(recipe: Recipe) -> str:
    """Return what is equal for two recipes whose inputs are opened and matched in the same way.

    Which layers are taken makes no difference.
    """

    def stripped(one: Any) -> Any:
        slices = tuple(
            dataclasses.replace(
                part,
                settings=(),
                inputs=tuple(dataclasses.replace(model, settings=()) for model in part.inputs),
                base=dataclasses.replace(part.base, settings=()) if part.base is not None else None,
            )
            for part in one.slices
        )
        sliced = all(part.layers is not None and part.module is None for part in slices)
        return dataclasses.replace(one, settings=(), slices=() if sliced else slices, seed=0)

    return repr(stripped(dataclasses.replace(recipe, stages=tuple(map(stripped, recipe.stages)))))
