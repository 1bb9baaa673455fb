"""Express factors for all experts of a layer as changes of a checkpoint's tensors.

E: experts, h: inputs, o: outputs, r: rank, s: scale; of expert e:

PEFT (target_parameters)  W[e] [o, h] + s B[:, e::E] A[e r : (e + 1) r]     from A [E r, h] and B [o, r E]
PaddleFormers             W[e] [h, o] + s A[e] B[e]                         from A [E, h, r] and B [E, r, o]

W is stored as a stack [E, o, h] or [E, h, o] or as a matrix per expert, where gate_up_proj is two: [gate | up] along o.
parameters.py says which parameter a module's factors are for.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import count

from ...checkpoints.adapters import Adapter, Module
from ...checkpoints.tensors import TensorEntry
from ...checkpoints.views import every, nth, select, transpose
from ...errors import MalformedError
from .config import scaling
from .entry import LowRank, Update
from .parameters import layers_of
from .targets import Targets


def expert_updates(
    module: Module, adapter: Adapter, targets: Targets, tensors: Mapping[str, TensorEntry]
) -> Iterator[Update]:
    """Yield the changes that a module with a parameter other than its weight makes. Raises MalformedError."""
    name, layers = module.title, layers_of(module.name, module.parameter, targets)
    stack = targets.find(name)
    if stack is not None and len(tensors[stack].shape) == 3:
        number = tensors[stack].shape[0]
    elif stack is not None or not layers:
        number = int(stack is not None)
    else:
        number = next(n for n in count() if targets.find(f"{module.name}.{n}.{layers[0]}.weight") is None)
    if not number:
        raise MalformedError(targets.why_missing(name))
    pairs = _pairs(module, adapter, number)
    scale = scaling(adapter, name, pairs[0][0].shape[1])
    if stack is not None:
        first_axis = module.first_axis if adapter.kind == "peft" else targets.stacks_as_paddle(stack)
        yield Update(stack, _of_stack(pairs, stack, first_axis, targets, tensors, scale))
        return
    if module.first_axis and adapter.kind == "peft":  # [E, o, h] in memory: A is [r, o] and B [h, r]
        pairs = [(transpose(b, b.name), transpose(a, a.name)) for a, b in pairs]
    for expert, (a, b) in enumerate(pairs):
        width, rest = divmod(b.shape[1], len(layers))
        if rest:
            raise MalformedError(f"has {b.shape[1]} outputs, which can't be those of {' and '.join(layers)}")
        for place, layer in enumerate(layers):
            target = targets.to_change(f"{module.name}.{expert}.{layer}.weight")
            piece = select(b, 1, [(place * width, (place + 1) * width)], b.name)
            if targets.is_transposed(target, (a.shape[0], width)):
                yield Update(target, [LowRank(a, piece, scale)])
            else:
                yield Update(target, [LowRank(transpose(piece, b.name), transpose(a, a.name), scale)])


def _of_stack(
    pairs: Sequence[tuple[TensorEntry, TensorEntry]],
    stack: str,
    first_axis: bool | None,
    targets: Targets,
    tensors: Mapping[str, TensorEntry],
    scale: float,
) -> list[LowRank]:
    """Return the changes of a stack of matrices, or of one matrix. Raises MalformedError if it doesn't fit."""
    target = targets.to_change(stack)
    shape, inner = tensors[target].shape[-2:], (pairs[0][0].shape[0], pairs[0][1].shape[1])
    matrix = len(tensors[target].shape) == 2  # PEFT takes any to be [o, h]
    ways = [turned for turned in (True, False) if shape == (inner if turned else inner[::-1]) and not (turned and matrix)]
    if not ways:
        full = list(tensors[target].shape)
        raise MalformedError(f"is for matrices of {inner[0]} inputs and {inner[1]} outputs, but {target!r} is {full}")
    turned = ways[0] if len(ways) == 1 else first_axis
    if turned is None:
        raise MalformedError(f"may or may not have to be transposed for {target!r}, whose matrices are square")
    found = []
    for place, (a, b) in enumerate(pairs):
        left, right = (a, b) if turned else (transpose(b, b.name), transpose(a, a.name))
        found.append(LowRank(left, right, scale, place=place))
    return found


def _pairs(module: Module, adapter: Adapter, number: int) -> list[tuple[TensorEntry, TensorEntry]]:
    """Return A [h, r] and B [r, o] of each of so many experts. Raises MalformedError if they are for another number."""
    a, b = module.tensors["A"], module.tensors["B"]
    if adapter.kind == "paddle":
        if len(a.shape) != 3 or len(b.shape) != 3 or (a.shape[0], a.shape[2]) != b.shape[:2]:
            raise MalformedError(f"has factors {list(a.shape)} and {list(b.shape)}, which don't fit")
        if a.shape[0] != number:
            raise MalformedError(f"is for {a.shape[0]} experts, and the model has {number}")
        return [(nth(a, expert, a.name), nth(b, expert, b.name)) for expert in range(number)]
    if len(a.shape) != 2 or len(b.shape) != 2 or a.shape[0] != b.shape[1]:
        raise MalformedError(f"has factors {list(a.shape)} and {list(b.shape)}, which don't fit")
    rank, rest = divmod(a.shape[0], number)
    if rest or not rank:
        raise MalformedError(f"has factors of {a.shape[0]} rows, which aren't those of {number} experts")
    pairs = list[tuple[TensorEntry, TensorEntry]]()
    for expert in range(number):
        rows = select(a, 0, [(expert * rank, (expert + 1) * rank)], a.name)
        columns = every(b, 1, expert, number, b.name)
        pairs.append((transpose(rows, a.name), transpose(columns, b.name)))
    return pairs
