"""Put together what the model card says of a merge's inputs: names, licences, languages; and warn of what speaks against it.

The facts are those of checkpoints/origins.py; run/output/card.py writes the card.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cached_property

from ..checkpoints import hub
from ..checkpoints.adapters import Adapter, split_spec
from ..checkpoints.origins import License, Origin, read_origin
from ..checkpoints.tensors import Checkpoint
from ..methods.ties import Ties
from ..parsing import short_paths
from ..records import record
from .tensor_plan import TensorPlan


@record(frozen=True)
class Provenance:
    """Where a merge's inputs come from. inputs: of each of Recipe.sources, the model and then its adapters. further: other
    folders that the recipe names, for the tokenizer or the config."""

    inputs: tuple[tuple[Origin, ...], ...]
    further: tuple[str, ...] = ()

    @property
    def origins(self) -> list[Origin]:
        """All models and adapters, each once, in order."""
        return list(dict.fromkeys(one for its in self.inputs for one in its))

    @cached_property
    def labels(self) -> Mapping[str, str]:
        """What publications call each path: its name on a hub, or else the last parts of the path."""
        return {one.path: self._labels[_place(one.path)] for one in self.origins}

    @cached_property
    def _labels(self) -> Mapping[str, str]:
        """The same by _place of the path, for all folders that the recipe names, so that no two of them are called alike."""
        named = {_place(one.path): f"{one.name}@{one.revision}".rstrip("@") for one in self.origins if one.name}
        paths = [*(one.path for one in self.origins), *(one for one in self.further if not hub.is_name(one))]
        local = [place for place in dict.fromkeys(map(_place, paths)) if place not in named]
        return named | dict(zip(local, short_paths(local), strict=True))

    @property
    def titles(self) -> list[str]:
        """What publications call each of Recipe.sources: "math", "org/base+adapter"."""
        return ["+".join(self.labels[one.path] for one in its) for its in self.inputs]

    def public(self, spec: str) -> str:
        """Return a spec, or the path of a folder, as a published recipe has it: names on a hub, and of other paths the
        last parts, in the current folder."""
        named = {_place(one.path) for one in self.origins if one.name}

        def shown(path: str) -> str:
            place = _place(path)
            if place in named or hub.is_name(path):
                return self._labels.get(place, path)
            return f"./{self._labels.get(place) or short_paths([path])[0]}"

        return "+".join(map(shown, split_spec(spec)))

    @property
    def base_models(self) -> list[str]:
        """The names of the nearest published models."""
        return _union(one.published for one in self.origins)

    @property
    def languages(self) -> list[str]:
        return _union(one.languages for one in self.origins)

    @property
    def task(self) -> str:
        """The pipeline_tag on which all inputs that state one agree; "" if there is none."""
        tasks = {one.task for one in self.origins if one.task}
        return tasks.pop() if len(tasks) == 1 else ""

    @property
    def license(self) -> License | None:
        """The licence that all inputs state; None if they don't agree, or if some state none."""
        return next(iter(self._stated))[0] if len(self._stated) == 1 else None

    @property
    def _stated(self) -> set[tuple[License | None, str]]:
        """The inputs' licences, each once: those without a name once for each input, since they may differ."""
        return {(one.license, one.path if one.license and one.license.unnamed else "") for one in self.origins}

    def license_groups(self, name: Callable[[Origin], str]) -> str:
        """Return which inputs have which licence: "mit (a, b); none stated (c)"; "" if none states any.

        name: what to call an input.
        """
        groups: dict[License | None, list[str]] = {}
        for one in self.origins:
            groups.setdefault(one.license, []).append(name(one))
        unstated = groups.pop(None, None)
        if not groups:
            return ""
        found = [f"{stated} ({', '.join(names)})" for stated, names in groups.items()]
        return "; ".join([*found, *([f"none stated ({', '.join(unstated)})"] if unstated else [])])

    @property
    def note(self) -> str:
        """What the plan says of the card's licence; "" if no input states one, or a warning says more."""
        groups = self.license_groups(lambda one: one.path)
        if len(self._stated - {(None, "")}) != 1:
            return ""
        return f"license {self.license}" if self.license else f"no license, because not all inputs state one: {groups}"

    def warnings(self, tensors: Sequence[TensorPlan]) -> list[str]:
        """Return sentences on cards that can't be read, on licences that differ, and on models trained by verifiable rewards
        whose signs are elected."""
        found = [f"{one.trouble}; the merge's card is made without it" for one in self.origins if one.trouble]
        if len(self._stated - {(None, "")}) > 1:
            found.append(
                f"the licenses of the inputs differ: {self.license_groups(lambda one: one.path)}; the model card names none"
                " in its metadata: check under which one the merge may be published"
            )
        if rewarded := self.rewarded(tensors):
            named = ", ".join(f"{path} ({why})" for path, why in rewarded)
            found.append(
                f"models trained by reinforcement learning with verifiable rewards: {named}; their changes are sparse and"
                " nearly orthogonal, and electing signs loses much of what they do (arXiv 2606.18521): consider"
                " --merge_method ram"
            )
        return found

    def rewarded(self, tensors: Sequence[TensorPlan]) -> list[tuple[str, str]]:
        """Return path and evidence of the models trained by verifiable rewards between which signs are elected."""
        if not any(one.rewards for one in self.origins):  # then there is no need to look at every tensor
            return []
        elected = elected_by_sign(tensors)
        return [(one.path, one.rewards) for number in sorted(elected) for one in self._at(number) if one.rewards]

    def _at(self, number: int) -> tuple[Origin, ...]:
        return self.inputs[number] if number < len(self.inputs) else ()  # else it is an earlier stage's output


def _place(path: str) -> str:
    """Return the absolute path, or the name on a hub as it is: what tells inputs apart, however they are written."""
    return path if hub.is_name(path) else os.path.abspath(os.path.expanduser(path))


def provenance(opened: Sequence[tuple[Checkpoint, Sequence[Adapter]]], further: Sequence[str] = ()) -> Provenance:
    """Return where inputs come from. opened: each input as it is stored, with its adapters. further: as of Provenance."""
    return Provenance(
        tuple(
            (read_origin(checkpoint.path, checkpoint.folder), *(read_origin(one.path, one.folder) for one in adapters))
            for checkpoint, adapters in opened
        ),
        tuple(further),
    )


def elected_by_sign(tensors: Iterable[TensorPlan]) -> set[int]:
    """Return the numbers of the inputs whose task vectors are merged with others by electing signs, as in TIES."""
    return {number for tensor in electing(tensors) for number in tensor.numbers[: len(tensor.sources)]}


def electing(tensors: Iterable[TensorPlan]) -> Iterator[TensorPlan]:
    """Yield the tensors, also of earlier stages, for which signs are elected between several sources, as in TIES."""
    for tensor in tensors:
        if isinstance(tensor.resolved.merger, Ties) and len(tensor.sources) > 1:
            yield tensor
        if stages := tensor.stages:
            yield from electing(stages)


def _union(groups: Iterable[Iterable[str]]) -> list[str]:
    return list(dict.fromkeys(one for group in groups for one in group))
