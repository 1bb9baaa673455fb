"""Put the tensors of one candidate after another into the same open model, instead of writing and opening a checkpoint.

Where a tensor of a checkpoint goes in a library's model, and whether it is turned on the way, is never assumed: it is learnt
from a candidate that the library opened itself, by comparing values. Where one parameter can't be found, or could lie either
way, candidates are opened from folders as before.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np

from ....records import record


class Writable(Protocol):
    """An open model whose parameters can be changed."""

    def slots(self) -> Mapping[str, Any]:
        """Return its parameters by name, each once; empty if it has other state that a checkpoint gives."""

    def holds(self, slot: Any, values: np.ndarray) -> bool:
        """Return whether a parameter has these values, after rounding them to its dtype."""

    def put(self, slot: Any, values: np.ndarray) -> None:
        """Round values to a parameter's dtype and put them there."""


@record(frozen=True)
class Place:
    """Where a tensor goes: a parameter's name, and whether rows and columns are exchanged."""

    slot: str
    turned: bool


@record(frozen=True)
class Places:
    """The place of each tensor that a model takes, by the tensor's name; shapes: of all tensors of the checkpoint."""

    places: Mapping[str, Place]
    shapes: Mapping[str, tuple[int, ...]]

    def put(self, model: Writable, tensors: Mapping[str, np.ndarray]) -> bool:
        """Put tensors into a model; return whether they fit. Nothing is changed if they don't."""
        if {name: value.shape for name, value in tensors.items()} != self.shapes:
            return False
        slots = model.slots()
        for name, place in self.places.items():
            value = tensors[name]
            model.put(slots[place.slot], np.ascontiguousarray(value.T) if place.turned else value)
        return True


def learn(model: Writable, tensors: Mapping[str, np.ndarray]) -> Places | None:
    """Return where the tensors are in a model that was opened from a checkpoint with them; None if that isn't certain."""
    slots = model.slots()
    named = {_without_prefix(name): name for name in tensors}
    if not slots or len(named) < len(tensors):
        return None
    places: dict[str, Place] = {}
    for slot, parameter in slots.items():
        name = slot if slot in tensors else named.get(_without_prefix(slot))
        if name is None or name in places:
            return None
        value = tensors[name]
        straight = model.holds(parameter, value)
        turned = value.ndim == 2 and model.holds(parameter, np.ascontiguousarray(value.T))
        if straight == turned:
            return None
        places[name] = Place(slot, turned)
    return Places(places, {name: value.shape for name, value in tensors.items()})


def _without_prefix(name: str) -> str:
    """Return a name without its first word, which differs between libraries: model., llama., transformer."""
    _, _, rest = name.partition(".")
    return rest if "." in rest else name
