"""Express what one module of an adapter does as changes of a checkpoint's tensors, in the layout of those tensors.

h: inputs, o: outputs, r: rank, s: scale
Linear     W [h, o] + s A [h, r] B [r, o], or its transpose; with a mixer (PaddleNLP): W + s A AB [r, r] B
embedding  W [V, h] + s (B [h, r] A [r, V]) transposed
bias       b [o] + s lora_B.bias [o]
rows       some rows of W [V, h] are replaced by trained ones
experts    experts.py
DoRA       every output's row of the changed weight is scaled to a trained length (magnitude vector)
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

from ...checkpoints.adapters import Adapter, Module
from ...checkpoints.names import EMBEDDINGS, last_word
from ...checkpoints.tensors import TensorEntry
from ...checkpoints.views import transpose
from ...errors import MalformedError
from .. import fused
from .config import check_tensors, scaling, token_numbers
from .entry import Lengths, LowRank, Rows, Update
from .experts import expert_updates
from .targets import Targets


def updates(module: Module, adapter: Adapter, targets: Targets, tensors: Mapping[str, TensorEntry]) -> Iterator[Update]:
    """Return the changes that a module of an adapter makes. tensors: the checkpoint's. Raises MalformedError, as `next`
    does."""
    check_tensors(adapter, module)
    if "rows" in module.tensors:
        return iter([_rows(module, adapter, targets, tensors)])
    if "embedding A" in module.tensors:
        return iter([_embedding(module, adapter, targets, tensors)])
    if module.parameter not in ("", "weight"):
        return expert_updates(module, adapter, targets, tensors)
    if len(module.tensors["A"].shape) > 2:
        return _convolution(module, adapter, targets, tensors)
    return _linear(module, adapter, targets, tensors)


def _rows(module: Module, adapter: Adapter, targets: Targets, tensors: Mapping[str, TensorEntry]) -> Update:
    """Return the replacement of rows of an embedding or lm_head W [V, h], or columns of [h, V]. Raises MalformedError."""
    (values,) = _matrices(module.tensors["rows"])
    numbers, target = token_numbers(adapter, module.name), targets.to_change(f"{module.name}.weight")
    shape = tensors[target].shape
    if values.shape[0] != len(numbers):
        raise MalformedError(f"has {values.shape[0]} rows, but the adapter's config lists {len(numbers)} tokens")
    axes = [axis for axis in (0, 1) if len(shape) == 2 and shape[1 - axis] == values.shape[1]]
    if not axes:
        raise MalformedError(f"has rows of {values.shape[1]} elements, but {target!r} is {list(shape)}")
    if len(axes) == 2 and last_word(target) not in EMBEDDINGS:
        raise MalformedError(f"may or may not have to be transposed for {target!r}, which is square")
    if max(numbers) >= shape[axes[0]]:
        raise MalformedError(
            f"is for token {max(numbers)}, but {target!r} has {shape[axes[0]]} rows: it was trained on a model with more"
            " tokens; give that model as the base, or save the adapter with save_embedding_layers=True"
        )
    return Update(target, [Rows(tuple(numbers), values, axes[0])])


def _convolution(module: Module, adapter: Adapter, targets: Targets, tensors: Mapping[str, TensorEntry]) -> Iterator[Update]:
    """Yield the changes of a convolution's weight W [o, i, *kernel], and of its bias.

    All libraries store A [r, i, *kernel] and B [o, r, 1 ...]: W is a matrix [o, i * kernel]. Raises MalformedError.
    """
    a, b = module.tensors["A"], module.tensors["B"]
    target = targets.to_change(f"{module.name}.weight")
    shape = tensors[target].shape
    if math.prod(b.shape[2:]) != 1 or len(a.shape) != len(b.shape) or a.shape[0] % b.shape[1]:
        raise MalformedError(f"has factors {list(a.shape)} and {list(b.shape)}, which don't fit")
    if a.shape[0] != b.shape[1] or (len(shape) == len(a.shape) and a.shape[1] > shape[1]):
        raise MalformedError(
            "can't be folded: it is for a convolution with groups, in which LoRA connects all inputs with all outputs and"
            " the weight doesn't"
        )
    if (b.shape[0], *a.shape[1:]) != shape:
        raise MalformedError(f"is for a weight {[b.shape[0], *a.shape[1:]]}, but {target!r} is {list(shape)}")
    scale = scaling(adapter, module.title, a.shape[0])
    if adapter.kind == "paddle" and adapter.config.get("rslora"):  # of which Paddle's convolutions know nothing
        scale /= math.sqrt(a.shape[0])
    yield Update(target, [LowRank(b, a, scale), *_lengths(module, target, 0, tensors)])
    if "bias" in module.tensors:
        yield _bias(module, scale, targets, tensors)


def _embedding(module: Module, adapter: Adapter, targets: Targets, tensors: Mapping[str, TensorEntry]) -> Update:
    """Return the change of an embedding W [V, h], from B [h, r] and A [r, V]. Raises MalformedError."""
    a, b = _matrices(module.tensors["embedding A"], module.tensors["embedding B"])
    if a.shape[0] != b.shape[1]:
        raise MalformedError(f"has factors of different ranks, {a.shape[0]} and {b.shape[1]}")
    target = targets.to_change(f"{module.name}.weight")
    if tensors[target].shape != (a.shape[1], b.shape[0]):
        shape = list(tensors[target].shape)
        raise MalformedError(f"is for an embedding [{a.shape[1]}, {b.shape[0]}], but {target!r} is {shape}")
    scale = scaling(adapter, module.title, a.shape[0])
    update = LowRank(transpose(a, a.name), transpose(b, b.name), scale)
    return Update(target, [update, *_lengths(module, target, 1, tensors)])


def _linear(module: Module, adapter: Adapter, targets: Targets, tensors: Mapping[str, TensorEntry]) -> Iterator[Update]:
    """Yield the changes of a Linear layer's weight, or of several weights if the adapter has them fused, and of its bias.

    Paddle stores A [in, r] and B [r, out]; PEFT stores them transposed. Raises MalformedError.
    """
    a, b = _matrices(module.tensors["A"], module.tensors["B"])
    peft = adapter.kind == "peft"
    inputs, rank = a.shape[::-1] if peft else a.shape
    outputs = 0 if peft else 1  # the axis of B
    if rank != b.shape[1 - outputs]:
        raise MalformedError(f"has factors of different ranks, {rank} and {b.shape[1 - outputs]}")
    middle = module.tensors.get("AB")
    if middle is not None and middle.shape != (rank, rank):
        raise MalformedError(f"has rank {rank}, but the mixer between them is {list(middle.shape)}")
    name = f"{module.name}.weight"
    if targets.find(name) is None and last_word(name) in fused.PIECES:
        pieces = targets.split(module.name, b, outputs, "weight")
        found = {targets.to_change(piece): part for piece, part in pieces.items()}
    else:
        found = {targets.to_change(name): b}
    scale = scaling(adapter, module.title, rank)
    swap = bool(adapter.config.get("fan_in_fan_out")) and peft
    for target, part in found.items():
        transposed = targets.is_transposed(target, (inputs, part.shape[outputs]), swap)
        left, right = (a, part) if transposed else (part, a)
        if transposed == peft:
            left, right = transpose(left, left.name), transpose(right, right.name)
        between = transpose(middle, middle.name) if middle is not None and not transposed else middle
        update = LowRank(left, right, scale, between)
        yield Update(target, [update, *_lengths(module, target, 1 if transposed else 0, tensors)])
    if "bias" in module.tensors:
        yield _bias(module, scale, targets, tensors)


def _bias(module: Module, scale: float, targets: Targets, tensors: Mapping[str, TensorEntry]) -> Update:
    """Return the change of a Linear layer's bias. Raises MalformedError if the model has none of this shape."""
    bias, target = module.tensors["bias"], targets.find(f"{module.name}.bias")
    if target is None:
        raise MalformedError(f"has a bias, but {targets.path} has no {module.name}.bias to add it to")
    if tensors[target].shape != bias.shape:
        raise MalformedError(f"has a bias {list(bias.shape)}, but {target!r} is {list(tensors[target].shape)}")
    return Update(target, [LowRank(None, bias, scale)], exclusive=False)


def _lengths(module: Module, target: str, axis: int, tensors: Mapping[str, TensorEntry]) -> list[Lengths]:
    """Return DoRA's change of the outputs' lengths, along `axis` of the target; none without a magnitude vector.

    Raises MalformedError if it has another size.
    """
    if "lengths" not in module.tensors:
        return []
    lengths, shape = module.tensors["lengths"], tensors[target].shape
    if math.prod(lengths.shape) != shape[axis]:
        raise MalformedError(f"has a magnitude vector {list(lengths.shape)} for {shape[axis]} outputs of {target!r}")
    return [Lengths(lengths, axis)]


def _matrices(*entries: TensorEntry) -> tuple[TensorEntry, ...]:
    """Return the tensors. Raises MalformedError unless all are matrices of floats."""
    for entry in entries:
        if len(entry.shape) != 2 or not entry.dtype.is_float:
            raise MalformedError(f"can't be folded: {list(entry.shape)} {entry.dtype.name} is not a matrix of floats")
    return entries
