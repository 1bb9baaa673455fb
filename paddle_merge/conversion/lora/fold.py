"""Fold LoRA adapters into checkpoints: decide which tensors are read with which changes. adapted.py computes them.

    LoRA (Hu et al. 2021, arXiv 2106.09685, eq. 3): W + (alpha / r) B A
    rsLoRA (Kalajdzievski 2023, arXiv 2312.03732): W + (alpha / sqrt(r)) B A
    DoRA (Liu et al. 2024, arXiv 2402.09353, eq. 5): the same, with every output's row scaled to a trained length

Every tensor of an adapter is used; if one can't be, the adapter is refused, and the error names the tensor.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ...checkpoints.adapters import Adapter, Module
from ...checkpoints.compare import equal, is_zero
from ...checkpoints.config_json import has_language_head
from ...checkpoints.names import EMBEDDINGS, HEAD, last_word
from ...checkpoints.scaled import ScaledEntry
from ...checkpoints.tensors import Checkpoint, Origin, StoredEntry, TensorEntry, stored
from ...checkpoints.views import transpose
from ...errors import CheckpointError, MalformedError
from ...parsing import tensors_named
from .. import fused
from .config import config_problems
from .entry import AdaptedEntry, Change, Lengths, LowRank, Rows, read_from
from .missing import missing
from .parameters import named_parameters
from .targets import Targets
from .tied import Following, Sharers, following, turned, without_head
from .updates import updates
from .whole import fitted, is_new_head, uneven_rows, without_copies


def is_all_low_rank(adapter: Adapter) -> bool:
    """Return whether an adapter of Paddle says that it holds nothing but low-rank factors.

    PaddleFormers 1.2 writes adapters of some vision-language models with every weight of the base, uninitialised.
    """
    names = ("trainable_modules", "trainable_bias")
    return adapter.kind == "paddle" and names[0] in adapter.config and not any(adapter.config.get(name) for name in names)


def by_cause(wrong: Sequence[tuple[str, str]]) -> list[str]:
    """Return the first sentence on each cause, with the other names that it holds for. wrong: pairs of name and sentence."""
    causes: dict[str, list[tuple[str, str]]] = {}
    for name, sentence in wrong:
        causes.setdefault(re.sub(r"'[^']*'|\d+", "", re.sub(r" \(its tensors: .*\)$", "", sentence)), []).append(
            (name, sentence)
        )
    found = []
    for (_, sentence), *more in causes.values():
        names = ", ".join(repr(name) for name, _ in more[:2])
        count = f" and {len(more) - 2} more" if len(more) > 2 else ""
        found.append(f"{sentence}; likewise {names}{count}" if more else sentence)
    return found


class Fold:
    """Fold one adapter into a checkpoint.

    config: the model's, with tie_word_embeddings as the merge has it; own: as the model has it. tensors: the checkpoint's
    tensors, which run() changes. warnings: sentences for the user, after run(). left_out: why tensors of the adapter are
    not read, by their origins, after run().
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        adapter: Adapter,
        layout: str | None,
        config: Mapping[str, Any],
        own: Mapping[str, Any],
    ):
        self.tensors = dict(checkpoint.tensors)
        self._checkpoint, self._adapter, self._config = checkpoint, adapter, config
        self._targets = Targets(dataclasses.replace(checkpoint, tensors=self.tensors), adapter, layout, config)
        self._sharers, self._own, self._following = Sharers(checkpoint, config), own, Following()
        self.warnings: list[str] = []
        self.left_out: dict[Origin, str] = {}
        self._changes: list[Change] = []
        self._replaced: list[tuple[TensorEntry, TensorEntry]] = []
        self._added: list[str] = []  # tensors that the checkpoint lacks
        self._taken: dict[tuple[str, bool], str] = {}  # (tensor, whether it is replaced) -> what of the adapter changes it

    def run(self) -> str:
        """Change `tensors` and return a sentence on what was done. Raises CheckpointError."""
        problems = config_problems(self._adapter)
        if not self._adapter.tensors:
            problems.append(f"{self._adapter.path}: holds no tensors")
        modules, others = self._adapter.grouped if not problems else ([], [])
        if others and is_all_low_rank(self._adapter):
            problems.append(
                f"{self._adapter.path}: its lora_config.json says that nothing but LoRA was trained, and yet it holds"
                f" {tensors_named([name for name, _ in others])}, which may never have been initialised; save it with"
                ' save_checkpoint_format="unified_checkpoint"'
            )
            others = []
        others, self.left_out = without_copies(others)
        if self._targets.tied:
            modules, others, apart = without_head(self._adapter, modules, others)
            problems += self._untying(apart)
        else:
            self._following = following(self._adapter, self._checkpoint, self._own, modules, others)
        wrong: list[tuple[str, str]] = []  # names of the adapter's tensors and modules, and what is wrong with each
        for name, entry in others:
            try:
                self._replace(name, entry)
            except MalformedError as error:
                wrong.append((entry.name, f"tensor {entry.name!r} {error}"))
        modules, unknown = named_parameters(modules, self._adapter, self._targets)
        wrong += unknown
        for module in sorted(modules, key=lambda module: "rows" not in module.tensors):  # under lm_head's own factors
            try:
                self._fold(module)
            except MalformedError as error:
                names = ", ".join(repr(entry.name) for entry in module.tensors.values())
                wrong.append((module.title, f"{module.name!r} {error} (its tensors: {names})"))
        problems += [f"{self._adapter.path}: {sentence}" for sentence in by_cause(wrong)]
        if not problems and (uneven := uneven_rows(self._checkpoint.tensors, self.tensors)):
            problems.append(f"{self._adapter.path}: {uneven}")
        if problems:
            raise CheckpointError(problems)
        if lost := [new.name for old, new in self._replaced if isinstance(old, AdaptedEntry)]:
            self.warnings.append(
                f"{self._adapter.path}: replaces {len(lost)} tensors that an adapter before it changed, {lost[0]!r} for one:"
                " that change is lost"
            )
        if self._added:
            self.warnings.append(
                f"{self._adapter.path}: brings {tensors_named(self._added)}, which {self._checkpoint.path} lacks: set"
                " architectures in the output's config.json to the class that has it"
            )
        before = self._checkpoint.tensors
        changed = {name for name, entry in self.tensors.items() if entry is not before.get(name)}
        self.warnings += missing(self._adapter, before, changed, self._config)
        return f"{self._adapter.path}: {', '.join(self._account())}"

    def _account(self) -> Iterator[str]:
        """Yield what was done, as parts of a sentence."""
        products = [change for change in self._changes if isinstance(change, LowRank)]
        if products:
            ranks = sorted({change.rank for change in products if change.left is not None})
            scales = sorted({change.scale for change in products})
            shown = ", ".join(f"{scale:.6g}" for scale in scales)
            yield f"{len(products)} updates of rank {', '.join(map(str, ranks))}, scale {shown}"
        if lengths := sum(isinstance(change, Lengths) for change in self._changes):
            yield f"{lengths} with DoRA's lengths"
        if rows := sum(len(change.numbers) for change in self._changes if isinstance(change, Rows)):
            yield f"{rows} rows replaced"
        if self._replaced:
            yield f"{len(self._replaced)} tensors replaced"
        if self._added:
            yield f"{tensors_named(self._added)} added"

    def has_effect(self) -> bool:
        """Return whether folding changes any value: some replaced tensor differs, or some update has no factor of zeros."""
        if self._added:
            return True
        for change in self._changes:
            if not isinstance(change, LowRank) or (change.scale and not any(map(is_zero, change.entries))):
                return True
        return any(not equal(new, old) for old, new in self._replaced)

    def is_unscaled(self) -> bool:
        """Return whether updates without a factor of zeros have a scale of 0, by which they change nothing."""
        products = (change for change in self._changes if isinstance(change, LowRank) and not change.scale)
        return any(not any(map(is_zero, change.entries)) for change in products)

    # --- tensors that replace others

    def _untying(self, apart: Sequence[tuple[str, TensorEntry | None]]) -> list[str]:
        """Return a sentence if the adapter changes the embedding and not lm_head, which the model ties to it.

        apart: as tied.without_head returns it. A replacement that has the values of the embedding changes nothing.
        """
        changed = []
        for name, entry in apart:
            target = self._targets.find(name)
            if entry is None or (target is not None and not equal(entry, self.tensors[target])):
                changed.append(name)
        if not changed or not has_language_head(self._config):
            return []
        return [
            f"{self._adapter.path}: changes {' and '.join(map(repr, changed))} but not lm_head, which"
            f" {self._checkpoint.path} ties to it, so the trained model isn't tied. Give an untied base: with"
            " tie_word_embeddings false in its config.json, and with lm_head.weight as well as the embedding; or, in a"
            " merge, leave out --tie keep"
        ]

    def _replace(self, name: str, entry: TensorEntry) -> None:
        """Replace the checkpoint's tensor `name` by one of the adapter, transposed if needed. Raises MalformedError."""
        module, _, kind = name.rpartition(".")
        target = self._targets.find(name)
        if target is None and last_word(name) in fused.PIECES:
            axis = len(entry.shape) - 1 if self._adapter.kind == "paddle" else 0
            for piece, part in self._targets.split(module, entry, axis, kind).items():
                self._replace(piece, part)
            return
        if target is None and is_new_head(self._adapter, name):
            flip = len(entry.shape) == 2 and self._targets.stored_transposed(name) is True
            self.tensors[name] = stored((transpose(entry, name) if flip else entry).renamed(name))
            self._added.append(name)
            return
        if target is None or (self._targets.tied and target == "lm_head.weight"):
            raise MalformedError(self._targets.why_missing(name))
        old = self.tensors[target]
        own, entry = entry.name, fitted(entry, target, self._adapter.kind, self._targets, self._checkpoint.tensors)
        self._take(target, own, replaces=True)
        self._replaced.append((old, entry))
        self._put(target, stored(entry.renamed(target)), (), replaces=True)
        follows = self._following.others and last_word(target) in EMBEDDINGS
        if follows or (self._following.base and ".base_layer." in own):
            self._put_in_partner(target, entry)

    def _put_in_partner(self, target: str, entry: TensorEntry) -> None:
        """Replace lm_head as the embedding is replaced, or the embedding as lm_head is."""
        partner = HEAD if last_word(target) in EMBEDDINGS else self._following.embedding
        if target in (HEAD, self._following.embedding):
            same = self.tensors[partner].shape[1] == entry.shape[1]
            new = entry.renamed(partner) if same else transpose(entry, partner)
            self._put(partner, stored(new), (), replaces=True)

    def _take(self, target: str, name: str, replaces: bool = False) -> None:
        """Note that `name` of the adapter changes `target`, or replaces it.

        Raises MalformedError if the adapter does so twice, under different names.
        """
        other = self._taken.setdefault((target, replaces), name)
        if other != name:
            raise MalformedError(f"and {other!r} are both for {target!r}")

    def _put(
        self, target: str, read: StoredEntry | ScaledEntry, changes: tuple[Change, ...], replaces: bool = False
    ) -> None:
        """Set `target`, and the tensors that are tied to it, to `read` with these changes. Raises MalformedError.

        replaces: whether `read` is the adapter's.
        """
        names = [target]
        if self._targets.tied and last_word(target) in EMBEDDINGS and "lm_head.weight" in self.tensors:
            names.append("lm_head.weight")
        if others := [name for name in self._sharers.of(target) if name not in names]:
            raise MalformedError(
                f"is for {target!r}, to which {others[0]!r} may be tied, because both hold the same values; set"
                " tie_word_embeddings in config.json to true or false, or save the model as safetensors, which stores tied"
                " tensors once"
            )
        for name in names:
            old = self.tensors[name]
            if old.shape != read.shape and not replaces:
                raise MalformedError(f"would not change {name!r}, which is tied to {target!r}")
            before = old if replaces else old.replaced if isinstance(old, AdaptedEntry) else None
            self.tensors[name] = AdaptedEntry(
                name=name, dtype=old.dtype, shape=read.shape, stored=read, changes=changes, replaced=before
            )

    # --- low-rank changes

    def _fold(self, module: Module) -> None:
        """Apply the low-rank changes of one module. Raises MalformedError."""
        for update in updates(module, self._adapter, self._targets, self.tensors):
            if update.exclusive:
                self._take(update.target, module.name)
            self._change(update.target, update.changes)
            follows = self._following.rows if "rows" in module.tensors else self._following.others
            if follows and last_word(update.target) in EMBEDDINGS:
                same = self.tensors[HEAD].shape == self.tensors[update.target].shape
                self._change(HEAD, update.changes if same else [turned(change) for change in update.changes])

    def _change(self, target: str, changes: Sequence[Change]) -> None:
        """Add changes to those of a tensor. Raises MalformedError."""
        self._changes += changes
        entry = self.tensors[target]
        before = entry.changes if isinstance(entry, AdaptedEntry) else ()
        self._put(target, read_from(entry), (*before, *changes))
