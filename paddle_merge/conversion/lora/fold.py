"""LoRA adapters folded into a checkpoint, on paper: which of its tensors are read with which changes (adapted.py makes
them).

    Hu et al. 2021, arXiv 2106.09685, eq. 3: W0 + B A, here scaled: W + (alpha / r) B A; rsLoRA (Kalajdzievski 2023, arXiv
    2312.03732): alpha / sqrt(r). DoRA (Liu et al. 2024, arXiv 2402.09353, eq. 5): every output's row of that, at a trained
    length.

Every tensor of an adapter is used, or the merge is refused, naming those that aren't.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ...checkpoints.adapters import Adapter, Module, sort
from ...checkpoints.compare import equal, is_zero
from ...checkpoints.config_json import has_language_head, read_config
from ...checkpoints.names import EMBEDDINGS, is_linear, last_word
from ...checkpoints.tensors import Checkpoint, StoredEntry, TensorEntry, stored
from ...checkpoints.views import transpose
from ...errors import CheckpointError, MalformedError
from .. import fused
from .config import check_tensors, scaling, unfit
from .entry import AdaptedEntry, Lengths, LowRank, read_from
from .targets import Targets
from .tied import Sharers, without_head


def adapt(
    checkpoints: Sequence[Checkpoint],
    adapters: Sequence[Sequence[Adapter]],
    specs: Sequence[str],
    layout: str | None,
    fallback: Mapping[str, Any],
) -> tuple[tuple[Checkpoint, ...], list[str], list[str]]:
    """Each checkpoint with its adapters folded in, one after the other; a sentence on each adapter; and sentences on what
    doesn't become what was trained.

    specs: what the user calls each, adapters and all. layout: in which the checkpoints' tensors are now. fallback: the
    config of one without its own.
    Raises CheckpointError listing everything that can't be folded.
    """
    problems: list[str] = []
    notes: list[str] = []
    warnings: list[str] = []
    result = []
    for checkpoint, its_adapters, spec in zip(checkpoints, adapters, specs, strict=True):
        for adapter in its_adapters:
            try:
                fold = _Fold(checkpoint, adapter, layout, read_config(checkpoint.folder) or fallback)
                notes.append(fold.run())
                warnings += fold.warnings
                checkpoint = dataclasses.replace(checkpoint, path=spec, tensors=fold.tensors)
            except CheckpointError as error:
                problems += error.problems
        result.append(checkpoint)
    if problems:
        raise CheckpointError(problems)
    return tuple(result), notes, list(dict.fromkeys(warnings))


class _Fold:
    """One adapter being folded. tensors: the checkpoint's, so far. warnings: sentences for the user, once it has run."""

    def __init__(self, checkpoint: Checkpoint, adapter: Adapter, layout: str | None, config: Mapping[str, Any]):
        self.tensors = dict(checkpoint.tensors)
        self._checkpoint, self._adapter, self._config = checkpoint, adapter, config
        self._targets = Targets(checkpoint, adapter, layout, config)
        self._sharers = Sharers(checkpoint, config)
        self.warnings: list[str] = []
        self._changes: list[LowRank | Lengths] = []
        self._replaced: list[tuple[TensorEntry, TensorEntry]] = []
        self._taken: dict[tuple[str, bool], str] = {}  # (tensor, whether it is replaced) -> what of the adapter it is for

    def run(self) -> str:
        """Change `tensors`; a sentence on what was done. Raises CheckpointError."""
        problems = unfit(self._adapter)
        if not self._adapter.tensors:
            problems.append(f"{self._adapter.path}: holds no tensors")
        modules, others = sort(self._adapter) if not problems else ([], [])
        if self._targets.tied:
            modules, others, apart = without_head(self._adapter, modules, others)
            problems += self._untying(apart)
        for name, entry in others:
            try:
                self._replace(name, entry)
            except MalformedError as error:
                problems.append(f"{self._adapter.path}: tensor {entry.name!r} {error}")
        for module in modules:
            try:
                self._fold(module)
            except MalformedError as error:
                names = ", ".join(repr(entry.name) for entry in module.tensors.values())
                problems.append(f"{self._adapter.path}: {module.name!r} {error} (its tensors: {names})")
        if not problems and not self._matters():
            problems.append(
                f"{self._adapter.path}: changes nothing: every lora_B is zero, as before training; was it saved too early?"
            )
        if problems:
            raise CheckpointError(problems)
        if lost := [new.name for old, new in self._replaced if isinstance(old, AdaptedEntry)]:
            self.warnings.append(
                f"{self._adapter.path}: replaces {len(lost)} tensors that an adapter before it changed, {lost[0]!r} for one:"
                " that change is lost"
            )
        return f"{self._adapter.path}: {', '.join(self._account())}"

    def _account(self) -> Iterator[str]:
        updates = [change for change in self._changes if isinstance(change, LowRank)]
        if updates:
            ranks = sorted({change.right.shape[0] for change in updates if change.left is not None})
            scales = sorted({change.scale for change in updates})
            shown = ", ".join(f"{scale:.6g}" for scale in scales)
            yield f"{len(updates)} updates of rank {', '.join(map(str, ranks))}, scale {shown}"
        if len(updates) < len(self._changes):
            yield f"{len(self._changes) - len(updates)} with DoRA's lengths"
        if self._replaced:
            yield f"{len(self._replaced)} tensors replaced"

    def _matters(self) -> bool:
        """Whether folding changes any value, as far as single factors tell."""
        for change in self._changes:
            if isinstance(change, Lengths) or (change.scale and not any(map(is_zero, change.entries))):
                return True
        return any(not equal(new, old) for old, new in self._replaced)

    # --- tensors that replace others

    def _untying(self, apart: Sequence[tuple[str, TensorEntry | None]]) -> list[str]:
        """Why the embedding can't be changed in a model that ties lm_head to it. apart: what changes it alone, by name; with
        the values, if it is whole, which may be those it has."""
        changed = []
        for name, entry in apart:
            target = self._targets.find(name)
            if entry is None or (target is not None and not equal(entry, self.tensors[target])):
                changed.append(name)
        if not changed or not has_language_head(self._config):
            return []
        return [
            f"{self._adapter.path}: changes {' and '.join(map(repr, changed))} apart from lm_head, which"
            f" {self._checkpoint.path} ties to it, so what was trained is no tied model. Give a base that isn't one: with"
            " tie_word_embeddings false in its config.json, and lm_head.weight beside the embedding"
        ]

    def _replace(self, name: str, entry: TensorEntry) -> None:
        """Raises MalformedError."""
        module, _, kind = name.rpartition(".")
        target = self._targets.find(name)
        if target is None and last_word(name) in fused.PIECES:
            axis = len(entry.shape) - 1 if self._adapter.kind == "paddle" else 0
            for piece, part in self._targets.split(module, entry, axis, kind).items():
                self._replace(piece, part)
            return
        if target is None or (self._targets.tied and target == "lm_head.weight"):
            raise MalformedError(self._targets.nowhere(name))
        old = self.tensors[target]
        if len(old.shape) == 2 == len(entry.shape) and last_word(target) not in EMBEDDINGS:
            transposed = self._targets.stored_transposed(target)
            flip = transposed != (self._adapter.kind == "paddle")
            if transposed is None or (flip and not is_linear(target)):  # only shapes can tell
                if entry.shape == entry.shape[::-1]:
                    remedy = "say it with --layout" if transposed is None else "give a base of the adapter's own layout"
                    raise MalformedError(f"is square, so it can't be told how {target!r} is stored; {remedy}")
                flip = entry.shape != old.shape
            entry = transpose(entry, target) if flip else entry
        if entry.shape != old.shape:
            raise MalformedError(f"is {list(entry.shape)}, but {target!r}, which it should replace, is {list(old.shape)}")
        if not (entry.dtype.is_float and old.dtype.is_float):
            raise MalformedError(f"is {entry.dtype.name}, which can't replace {target!r}, {old.dtype.name}")
        self._take(target, entry.name, replaces=True)
        self._replaced.append((old, entry))
        self._put(target, stored(entry.renamed(target)), (), replaces=True)

    def _take(self, target: str, name: str, replaces: bool = False) -> None:
        """Raises MalformedError if the adapter replaces, or changes, this tensor twice, under different names."""
        other = self._taken.setdefault((target, replaces), name)
        if other != name:
            raise MalformedError(f"and {other!r} are both for {target!r}")

    def _put(self, target: str, read: StoredEntry, changes: tuple[LowRank | Lengths, ...], replaces: bool = False) -> None:
        """Put a tensor, and what is tied to it, in the place of the checkpoint's."""
        names = [target]
        if self._targets.tied and last_word(target) in EMBEDDINGS and "lm_head.weight" in self.tensors:
            names.append("lm_head.weight")
        if others := [name for name in self._sharers.of(target) if name not in names]:
            raise MalformedError(
                f"is for {target!r}, which {others[0]!r} seems to be tied to: both hold the same; say in config.json whether"
                " tie_word_embeddings is true or false, or save the model as safetensors, which hold no tensor twice"
            )
        for name in names:
            old = self.tensors[name]
            if old.shape != read.shape:
                raise MalformedError(f"would leave {name!r}, which is tied to {target!r}, as it is")
            before = old if replaces else old.replaced if isinstance(old, AdaptedEntry) else None
            self.tensors[name] = AdaptedEntry(name, old.dtype, old.shape, read, changes, before)

    # --- low-rank updates

    def _fold(self, module: Module) -> None:
        """Raises MalformedError."""
        check_tensors(self._adapter, module)
        if "embedding A" in module.tensors:
            update = self._embedding(module)
            target = self._target(f"{module.name}.weight")
            self._take(target, module.name)
            self._change(target, [update, *self._lengths(module, target, 1)])
        else:
            self._linear(module)

    def _target(self, name: str) -> str:
        target = self._targets.find(name)
        if target is None or (self._targets.tied and target == "lm_head.weight"):
            raise MalformedError(self._targets.nowhere(name))
        if not self.tensors[target].dtype.is_float:
            raise MalformedError(f"is for {target!r}, which is {self.tensors[target].dtype.name} and can't be added to")
        return target

    def _embedding(self, module: Module) -> LowRank:
        """W [V, h] + (B [h, r] @ A [r, V]).T * s."""
        a, b = _matrices(module.tensors["embedding A"], module.tensors["embedding B"])
        if a.shape[0] != b.shape[1]:
            raise MalformedError(f"has the ranks {a.shape[0]} and {b.shape[1]}, which don't go together")
        target = self._target(f"{module.name}.weight")
        if self.tensors[target].shape != (a.shape[1], b.shape[0]):
            shape = list(self.tensors[target].shape)
            raise MalformedError(f"is for an embedding [{a.shape[1]}, {b.shape[0]}], but {target!r} is {shape}")
        scale = scaling(self._adapter, module.name, a.shape[0])
        return LowRank(transpose(a, a.name), transpose(b, b.name), scale)

    def _linear(self, module: Module) -> None:
        """W [in, out] + A [in, r] @ AB [r, r] @ B [r, out] * s, in Paddle's words; or turned."""
        a, b = _matrices(module.tensors["A"], module.tensors["B"])
        if self._adapter.kind == "peft":
            a, b = transpose(a, a.name), transpose(b, b.name)
        if a.shape[1] != b.shape[0]:
            raise MalformedError(f"has the ranks {a.shape[1]} and {b.shape[0]}, which don't go together")
        middle = module.tensors.get("AB")
        if middle is not None and middle.shape != (a.shape[1], a.shape[1]):
            raise MalformedError(f"has rank {a.shape[1]}, but the mixer between them is {list(middle.shape)}")
        scale = scaling(self._adapter, module.name, a.shape[1])
        pieces = {f"{module.name}.weight": b}
        if self._targets.find(f"{module.name}.weight") is None and last_word(f"{module.name}.") in fused.PIECES:
            pieces = self._targets.split(module.name, b, 1, "weight")
        swap = bool(self._adapter.config.get("fan_in_fan_out")) and self._adapter.kind == "peft"
        for name, columns in pieces.items():
            target = self._target(name)
            self._take(target, module.name)
            transposed = self._targets.is_transposed(target, (a.shape[0], columns.shape[1]), swap)
            if transposed:
                update = LowRank(a, columns, scale, middle)
            else:
                between = transpose(middle, middle.name) if middle is not None else None
                update = LowRank(transpose(columns, columns.name), transpose(a, a.name), scale, between)
            self._change(target, [update, *self._lengths(module, target, 1 if transposed else 0)])
        if "bias" in module.tensors:
            self._bias(module, scale)

    def _bias(self, module: Module, scale: float) -> None:
        bias, target = module.tensors["bias"], self._targets.find(f"{module.name}.bias")
        if target is None:
            raise MalformedError(f"has a bias, but {self._checkpoint.path} has no {module.name}.bias to add it to")
        if self.tensors[target].shape != bias.shape:
            raise MalformedError(f"has a bias {list(bias.shape)}, but {target!r} is {list(self.tensors[target].shape)}")
        self._change(target, [LowRank(None, bias, scale)])

    def _lengths(self, module: Module, target: str, axis: int) -> list[Lengths]:
        """DoRA's, of every output. Raises MalformedError."""
        if "lengths" not in module.tensors:
            return []
        lengths, shape = module.tensors["lengths"], self.tensors[target].shape
        if math.prod(lengths.shape) != shape[axis]:
            raise MalformedError(f"has a magnitude vector {list(lengths.shape)} for {shape[axis]} outputs of {target!r}")
        return [Lengths(lengths, axis)]

    def _change(self, target: str, changes: Sequence[LowRank | Lengths]) -> None:
        self._changes += changes
        entry = self.tensors[target]
        before = entry.changes if isinstance(entry, AdaptedEntry) else ()
        self._put(target, read_from(entry), (*before, *changes))


# --- small questions ---------------------------------------------------------------------------------------------------


def _matrices(*entries: TensorEntry) -> tuple[TensorEntry, ...]:
    """Raises MalformedError unless all are matrices of floats."""
    for entry in entries:
        if len(entry.shape) != 2 or not entry.dtype.is_float:
            raise MalformedError(f"can't be folded: {list(entry.shape)} {entry.dtype.name} is no matrix of floats")
    return entries
