"""Measure all tensors and make the report that `analyze --json` prints."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import chain, combinations, islice
from typing import Any

import numpy as np

from ...checkpoints.files import Files
from ...checkpoints.names import layer_of, letters, word_of
from ...conversion.inputs import Opened
from ...methods.paddlenlp import METHODS, sparsifier
from ...records import record
from ...version import __version__
from ..threads import in_threads
from .advice import advice
from .group import groups
from .measure import ROUNDS, Measured, Measuring
from .sums import KeptSums, ModelSums, PairSums, json_of, ratio, root, total
from .tensors import Survey, survey

_MODEL = ("elements", "changed", "changed_fraction", "norm", "relative", "base_cosine", "mean", "largest")
_PAIR = ("elements", "both", "conflicts", "cosine", "overlap", "trimmed_overlap", "sign_conflict", "weighted_sign_conflict")


@record(frozen=True)
class Asked:
    """The parameters of the methods, named as their flags."""

    reserve_p: float
    epsilon: float
    rescale: bool

    @property
    def sparsifiers(self) -> dict[str | None, Any]:
        """The sparsifiers by name; None stands for keeping all elements."""
        return {
            None: None,
            "trim": sparsifier("trim", self.reserve_p, self.rescale),
            "dare": sparsifier("dare", self.reserve_p, self.rescale),
            "magprune": sparsifier("magprune", self.reserve_p, self.rescale, epsilon=self.epsilon),
        }


def analyse(opened: Opened, asked: Asked, n_process: int, progress: bool | None = None) -> dict[str, Any]:
    """Measure the models and return the report. Raises WorkError.

    opened: the models, and the base last. progress: as in threads.in_threads.
    """
    *models, base = opened.checkpoints
    found = survey(models, base)
    sparsifiers = asked.sparsifiers

    together = groups(found.compared)

    def worker(files: Files, advance: Callable[[int], None]) -> Callable[[int], list[Measured]]:
        measuring = Measuring(sparsifiers, files, advance)
        return lambda place: measuring.measure([found.compared[number] for number in together[place]])

    sizes = [sum([found.compared[number].nbytes for number in group]) for group in together]
    done = in_threads(
        worker=worker, sizes=sizes, n_process=n_process, nbytes=sum(sizes), what="analysing", progress=progress
    )
    by_number = dict(zip(chain.from_iterable(together), chain.from_iterable(done), strict=True))
    measured = [by_number[number] for number in range(len(found.compared))]
    labels = list(islice(letters(), len(models)))
    report = _Report(labels, [one.path for one in models], found, measured).json()
    return {
        "paddle_merge_version": __version__,
        "base": base.path,
        "layout": opened.layout,
        "notes": opened.notes,
        **dataclasses.asdict(asked),
        "advice": advice(report, asked.reserve_p),
        **report,
    }


@record(frozen=True)
class _Report:
    """The parts of the report. labels, paths: of the models. measured: of every tensor in found.compared."""

    labels: Sequence[str]
    paths: Sequence[str]
    found: Survey
    measured: Sequence[Measured]

    def json(self) -> dict[str, Any]:
        """Return the report without advice."""
        tensors = self._tensors()
        layers, kinds = self._groups(layer_of), self._groups(word_of)
        models = range(len(self.labels))
        totals = [total(ModelSums, (one.models[k] for one in self.measured if k in one.models)) for k in models]
        return {
            "compared_tensors": len(tensors),
            "missing": {name: self._named(without) for name, without in self.found.missing.items()},
            "different_shapes": {name: self._named(models) for name, models in self.found.shapes.items()},
            "different_integers": {name: self._named(models) for name, models in self.found.unmerged.items() if models},
            "not_finite": {row["name"]: row["not_finite"] for row in tensors if row["not_finite"]},
            "same_bytes": self.found.shared,
            "models": [self._model(k, sums) for k, sums in enumerate(totals)],
            "pairs": [self._pair(j, k, totals) for j, k in combinations(models, 2)],
            "methods": self._methods(totals),
            "average_norm": self._average(totals),
            "layers": [{"stack": key[0], "layer": key[1], **rows} for key, rows in layers.items()],
            "kinds": [{"kind": key, **rows} for key, rows in kinds.items()],
            "tensors": tensors,
        }

    def _named(self, models: Sequence[int | None]) -> list[str]:
        return ["base" if model is None else self.labels[model] for model in models]

    # --- tensors, and groups of them

    def _rows(self, models: Mapping[int, ModelSums], pairs: Mapping[tuple[int, int], PairSums]) -> dict[str, Any]:
        labels = self.labels
        return {
            "models": {labels[k]: json_of(sums, *_MODEL) for k, sums in sorted(models.items())},
            "pairs": {f"{labels[j]}-{labels[k]}": json_of(sums, *_PAIR) for (j, k), sums in sorted(pairs.items())},
        }

    def _added(self, parts: Sequence[Measured]) -> dict[str, Any]:
        models: dict[int, list[ModelSums]] = {}
        pairs: dict[tuple[int, int], list[PairSums]] = {}
        for part in parts:
            for model, sums in part.models.items():
                models.setdefault(model, []).append(sums)
            for pair, both in part.pairs.items():
                pairs.setdefault(pair, []).append(both)
        return self._rows(
            {model: total(ModelSums, its) for model, its in models.items()},
            {pair: total(PairSums, its) for pair, its in pairs.items()},
        )

    def _groups(self, key: Callable[[str], Any]) -> dict[Any, dict[str, Any]]:
        """Return key -> the rows of the tensors with this key. Tensors whose key is None are left out."""
        parts: dict[Any, list[Measured]] = {}
        for tensor, one in zip(self.found.compared, self.measured, strict=True):
            if (group := key(tensor.name)) is not None:
                parts.setdefault(group, []).append(one)
        return {group: self._added(held) for group, held in parts.items()}

    def _tensors(self) -> list[dict[str, Any]]:
        return [
            {"name": tensor.name, "shape": list(tensor.base.shape), "dtype": tensor.base.dtype.name}
            | self._rows(one.models, one.pairs)
            | {"not_finite": self._named(one.not_finite)}
            for tensor, one in zip(self.found.compared, self.measured, strict=True)
        ]

    # --- totals

    def _model(self, k: int, sums: ModelSums) -> dict[str, Any]:
        tensors = [tensor.name for tensor in self.found.compared]
        held = [(name, one.models[k]) for name, one in zip(tensors, self.measured, strict=True) if k in one.models]
        farthest = max(held, key=lambda pair: pair[1].squares, default=("", ModelSums()))
        return {
            "label": self.labels[k],
            "path": self.paths[k],
            **json_of(sums, *_MODEL),
            "equals_base": bool(sums.elements) and not sums.changed and self._comparable(k),
            "compared_tensors": len(held),
            "changed_tensors": sum(bool(one.changed) for _, one in held),
            "unchanged_tensors": [name for name, one in held if not one.changed],
            "longest_tensor": farthest[0] if farthest[1].changed else None,
        }

    def _comparable(self, k: int) -> bool:
        """Return whether all tensors of a model were measured, and its integers are those of the base."""
        found = self.found
        left_out: list[Sequence[int | None]] = [*found.missing.values(), *found.shapes.values(), *found.unmerged.values()]
        left_out += [one.not_finite for one in self.measured]
        return not any(k in models for models in left_out) and not any(None in one.not_finite for one in self.measured)

    def _pair(self, j: int, k: int, totals: Sequence[ModelSums]) -> dict[str, Any]:
        sums = total(PairSums, (one.pairs[j, k] for one in self.measured if (j, k) in one.pairs))
        same = sums.elements == totals[j].elements == totals[k].elements and not sums.different
        return {
            "a": self.labels[j],
            "b": self.labels[k],
            **json_of(sums, *_PAIR, "distance"),
            "identical": bool(sums.elements) and same and self._comparable(j) and self._comparable(k),
        }

    def _average(self, totals: Sequence[ModelSums]) -> float | None:
        """Return the norm of the average of all task vectors."""
        products = sum(both.products for one in self.measured for both in one.pairs.values())
        norm = root(max(0.0, sum(sums.squares for sums in totals) + 2 * products))
        return ratio(norm, len(totals))

    def _methods(self, totals: Sequence[ModelSums]) -> list[dict[str, Any]]:
        kept = zip(*[self._kept(k, sums) for k, sums in enumerate(totals)], strict=True)
        by_sparsifier = dict(zip(ROUNDS, kept, strict=True))
        return [
            self._method(method, by_sparsifier[sparsifier])
            for method, (sparsifier, merge_type) in METHODS.items()
            if merge_type != "slerp" or len(self.labels) == 2
        ]

    def _kept(self, k: int, x: ModelSums) -> Iterator[KeptSums]:
        """Yield what each sparsifier of ROUNDS keeps of all tensors of a model. x: the sums of its task vector."""
        held = [(one, list(one.models).index(k)) for one in self.measured if k in one.models]
        counts, sums = np.zeros((1, len(ROUNDS), 2), np.int64), np.zeros((1, len(ROUNDS), 4))
        if held:
            counts = np.stack([one.kept_counts[:, place] for one, place in held if one.kept_counts is not None])
            sums = np.stack([one.kept_sums[:, place] for one, place in held if one.kept_sums is not None])
        with np.errstate(all="ignore"):
            added = np.add.accumulate(sums)[-1]  # in order
        for (kept, agreed), of_round in zip(counts.sum(0).tolist(), added.tolist(), strict=True):
            kept_absolute, scaled, error, agreed_absolute = of_round
            changes = x.changed, x.absolute, x.squares
            yield KeptSums(*changes, kept, kept_absolute, agreed, agreed_absolute, scaled, error)

    def _method(self, method: str, kept: Sequence[KeptSums]) -> dict[str, Any]:
        """Return the share of the changes that a method drops. kept: of each model."""
        sparsifier, merge_type = METHODS[method]
        everything = total(KeptSums, kept)
        summed = sum(one.summed.get(sparsifier, 0.0) for one in self.measured)
        left = ratio(summed, everything.scaled) if merge_type == "linear" else None
        return {
            "method": method,
            "sparsifier": sparsifier,
            "merge_type": merge_type,
            **_dropped(everything, merge_type == "ties"),
            "cancelled": None if left is None else max(0.0, 1.0 - left),
            "sparsified_distance": everything.distance,
            "models": {label: _dropped(sums, merge_type == "ties") for label, sums in zip(self.labels, kept, strict=True)},
        }


def _dropped(sums: KeptSums, elected: bool) -> dict[str, Mapping[str, float | None] | None]:
    """Return the shares of the changes that are dropped: of the elements, and of the mass, the sum of magnitudes."""

    def shares(elements: int, mass: float) -> dict[str, float | None]:
        return {"elements": ratio(elements, sums.changed), "mass": ratio(max(0.0, mass), sums.absolute)}

    last, last_mass = (sums.agreed, sums.agreed_absolute) if elected else (sums.kept, sums.kept_absolute)
    return {
        "dropped": shares(sums.changed - last, sums.absolute - last_mass),
        "dropped_by_sparsifier": shares(sums.changed - sums.kept, sums.absolute - sums.kept_absolute),
        "dropped_by_election": shares(sums.kept - last, sums.kept_absolute - last_mass) if elected else None,
    }
