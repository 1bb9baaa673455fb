"""Name what adapters hold as a base model does, in the layout of the output's library."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from ...checkpoints.adapters import Adapter
from ...checkpoints.config_json import model_type, read_config
from ...checkpoints.names import last_word
from ...checkpoints.tensors import Checkpoint, TensorEntry
from ...checkpoints.views import transpose
from ...conversion import fused
from ...conversion.inputs import open_inputs
from ...conversion.layout import normalise
from ...conversion.lora.fold import by_cause
from ...conversion.lora.targets import Targets
from ...conversion.lora.whole import fitted, is_new_head
from ...conversion.naming import in_memory
from ...errors import CheckpointError, MalformedError
from ...records import record
from ..extract_lora.adapter_files import LAYOUTS, module_of
from .layers import Contents, Part, to_merge


@record(frozen=True)
class BaseModel:
    """The model that adapters were trained on. format: of the output, whose layout and names its tensors have.

    tensors: by the names that the output's library has in memory.
    """

    checkpoint: Checkpoint
    format: str
    config: Mapping[str, Any]
    tensors: Mapping[str, TensorEntry]


def open_base(path: str, format: str, stated: str | None) -> BaseModel:
    """Read the headers of the base model. stated: its layout, if the user says it. Raises CheckpointError."""
    ((_, adapters, numbers),) = open_inputs([path], "model")
    checkpoint = numbers.checkpoint
    if adapters:
        raise CheckpointError(f"--base_model_path {path}: give the model alone, without adapters")
    config, layout = read_config(checkpoint.folder), LAYOUTS[format]
    try:
        found = normalise(
            inputs=(checkpoint,), given=(stated,), target=layout, strict=False, prefix="model", fallback=config
        )
    except CheckpointError as error:  # here --layout has one word, for the one model
        raise CheckpointError([one.replace(" for each model and then for the base", "") for one in error.problems]) from None
    (checkpoint,) = found.inputs
    family = model_type(checkpoint.folder)
    tensors = {_in_memory(name, format, family): entry for name, entry in checkpoint.tensors.items()}
    return BaseModel(checkpoint, format, config, tensors)


def named_as_base(held: Contents, adapter: Adapter, base: BaseModel) -> Contents:
    """Return what an adapter holds with the base model's names, fused layers apart where the base has them apart.

    Whole tensors are as the base model stores them. Raises CheckpointError listing what the base model doesn't have.
    """
    targets = Targets(base.checkpoint, adapter, LAYOUTS[base.format], base.config)
    family = str(base.config.get("model_type", ""))
    parts: dict[str, tuple[str, Part]] = {}
    whole: dict[str, TensorEntry] = {}
    wrong: list[tuple[str, str]] = []
    for module, (kind, part) in held.parts.items():
        try:
            for name, piece in _located(module, kind, part, adapter, targets):
                parts[_in_memory(name, base.format, family).removesuffix(".weight")] = kind, piece
        except MalformedError as error:
            wrong.append((module, f"{module!r} {error}"))
    for name, entry in held.whole.items():
        try:
            for target, replacing in _replacing(name, entry, adapter, targets, base):
                whole[_in_memory(target, base.format, family)] = replacing
        except MalformedError as error:
            wrong.append((name, f"tensor {entry.name!r} {error}"))
    if wrong:
        raise CheckpointError([f"{adapter.path}: {to_merge(sentence)}" for sentence in by_cause(wrong)])
    return Contents(parts, whole)


def _in_memory(name: str, format: str, family: str) -> str:
    """Return the name that a tensor has in memory in the output's library."""
    return f"{in_memory(module_of(name), family)}.{name.rpartition('.')[2]}" if format == "peft" and "." in name else name


def _located(module: str, kind: str, part: Part, adapter: Adapter, targets: Targets) -> Iterator[tuple[str, Part]]:
    """Yield (the base's weight, what is added to it): several for a fused layer. Raises MalformedError."""
    weight = f"{module}.weight"
    if targets.find(weight) is None and last_word(weight) in fused.PIECES and kind == "linear":
        for name, rows in _pieces(module, part, adapter, targets):
            yield _checked(name, kind, rows, adapter, targets), rows
        return
    yield _checked(weight, kind, part, adapter, targets), part


def _pieces(module: str, part: Part, adapter: Adapter, targets: Targets) -> Iterator[tuple[str, Part]]:
    """Yield the layers of a fused layer, with the rows of b and elements of bias that are theirs. Raises MalformedError."""
    biases = targets.split(module, part.bias, 0, "weight") if part.bias is not None else {}
    for name, rows in targets.split(module, part.b, 0, "weight").items():
        yield name, Part(part.adapter, part.a, rows, part.scale, part.middle, biases.get(name))


def _checked(name: str, kind: str, part: Part, adapter: Adapter, targets: Targets) -> str:
    """Return the base's name of a weight. Raises MalformedError if it has none of this size."""
    target = targets.to_change(name)
    inputs, outputs = part.a.shape[1:], part.b.shape[0]
    if kind == "linear":
        swap = adapter.kind == "peft" and bool(adapter.config.get("fan_in_fan_out"))
        targets.is_transposed(target, (inputs[0], outputs), swap)
        return target
    shape = (*inputs, outputs) if kind == "embedding" else (outputs, *inputs)
    if targets.shape(target) != shape:
        raise MalformedError(f"is for a weight {list(shape)}, but {target!r} is {list(targets.shape(target))}")
    return target


def _replacing(
    name: str, entry: TensorEntry, adapter: Adapter, targets: Targets, base: BaseModel
) -> Iterator[tuple[str, TensorEntry]]:
    """Yield (the base's tensor, the adapter's as the base stores it): several for a fused layer's. Raises MalformedError."""
    target, module, kind = targets.find(name), module_of(name), name.rpartition(".")[2]
    if target is None and last_word(name) in fused.PIECES:
        axis = len(entry.shape) - 1 if adapter.kind == "paddle" else 0
        for piece, part in targets.split(module, entry, axis, kind).items():
            yield from _replacing(piece, part, adapter, targets, base)
        return
    if target is None and is_new_head(adapter, name):
        flip = len(entry.shape) == 2 and targets.stored_transposed(name) is True
        yield name, transpose(entry, entry.name) if flip else entry
        return
    if target is None:
        raise MalformedError(targets.why_missing(name))
    yield target, fitted(entry, target, adapter.kind, targets, base.checkpoint.tensors)
