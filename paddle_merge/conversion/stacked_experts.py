"""Take stacked experts apart where other inputs store a matrix for each expert. The results are views; no byte moves.

transformers 5 holds the experts of a layer in two tensors, and writes files with a matrix for each expert; so a state dict
saved by other means has the stacked ones:

    experts.gate_up_proj  [experts, 2 * inner, hidden]   experts.E.gate_proj and .up_proj, or .w1 and .w3  [inner, hidden]
    experts.up_proj       [experts, inner, hidden]       experts.E.up_proj                                 [inner, hidden]
    experts.down_proj     [experts, hidden, inner]       experts.E.down_proj, or .w2                       [hidden, inner]
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Sequence

from ..checkpoints.tensors import Checkpoint, TensorEntry
from ..checkpoints.views import nth, select

_ONE = re.compile(r"(?:.*\.)?experts\.\d+\.(\w+)\.weight")
_ALL = re.compile(r"(?:.*\.)?experts\.(gate_up_proj|up_proj|down_proj)")
_WORDS = {
    "gate_up_proj": (("gate_proj", "up_proj"), ("w1", "w3")),
    "up_proj": (("up_proj",),),
    "down_proj": (("down_proj",), ("w2",)),
}


def matrices(entry: TensorEntry, words: Sequence[str], prefix: str) -> dict[str, TensorEntry]:
    """Return the matrices of a stack [E, len(words) * rows, columns], named PREFIX + "3.gate_proj.weight", by name.

    words: what each expert has in the stack, one below the other.
    """
    found: dict[str, TensorEntry] = {}
    height = entry.shape[1] // len(words)
    for expert in range(entry.shape[0]):
        matrix = nth(entry, expert, entry.name)
        for number, word in enumerate(words):
            name = f"{prefix}{expert}.{word}.weight"
            found[name] = select(matrix, 0, [(number * height, (number + 1) * height)], name)
    return found


def with_experts_apart(inputs: Sequence[Checkpoint], plain: Callable[[str], str]) -> tuple[list[Checkpoint], list[str]]:
    """Return the inputs with a matrix for each expert where any input has such; and a sentence on each that was changed.

    They stay as they are if all inputs have the same stacked tensors, whatever other layers hold. A stacked tensor whose
    slices have other shapes than the other inputs' matrices stays as it is, too. plain: returns what a name has in common
    with other names of the same tensor.
    """
    stacked = [{plain(name) for name in one.tensors if _ALL.fullmatch(name)} for one in inputs]
    if all(names == stacked[0] for names in stacked):
        return list(inputs), []
    shapes: dict[str, set[tuple[int, ...]]] = {}  # of the matrices of one expert, by the last word of their layers
    for one in inputs:
        for name, entry in one.tensors.items():
            if found := _ONE.fullmatch(name):
                shapes.setdefault(found[1], set()).add(entry.shape)
    result, notes = [], list[str]()
    for one in inputs:
        tensors: dict[str, TensorEntry] = {}
        taken: list[str] = []
        for name, entry in one.tensors.items():
            apart = _apart(name, entry, shapes)
            taken += [name] if apart else []
            tensors |= apart or {name: entry}
        if taken:
            notes.append(
                f"{one.path}: {len(taken)} tensors of stacked experts, such as {taken[0]!r}, are read expert by expert"
            )
        result.append(dataclasses.replace(one, tensors=tensors) if taken else one)
    return result, notes


def _apart(name: str, entry: TensorEntry, shapes: dict[str, set[tuple[int, ...]]]) -> dict[str, TensorEntry]:
    """Return the matrices of each expert, by name; none if the tensor isn't one of stacked experts, or of other shapes."""
    found = _ALL.fullmatch(name)
    words = next((words for words in _WORDS[found[1]] if shapes.keys() >= set(words)), ()) if found else ()
    if not found or not words or len(entry.shape) != 3 or entry.shape[1] % len(words):
        return {}
    _, rows, columns = entry.shape
    height = rows // len(words)
    if any((height, columns) not in shapes[word] for word in words):
        return {}
    return matrices(entry, words, name.removesuffix(found[1]))
