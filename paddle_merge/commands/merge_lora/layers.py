"""Find what each adapter adds to each layer, from headers: its low-rank matrices in one orientation, and their scale.

Whatever library an adapter is from, b [outputs, r] @ a [r, inputs] is the change of a Linear layer's weight [outputs,
inputs] (of an embedding [tokens, width] it is the transpose). So PEFT's matrices are taken as they are, and Paddle's
transposed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from ...checkpoints.adapters import Adapter, Module
from ...checkpoints.names import last_word
from ...checkpoints.tensors import TensorEntry
from ...checkpoints.views import transpose
from ...conversion import fused
from ...conversion.lora.config import check_tensors, config_problems, scaling
from ...conversion.lora.fold import by_cause, is_all_low_rank
from ...conversion.lora.whole import without_copies
from ...dtypes import DType
from ...errors import CheckpointError, MalformedError
from ...parsing import tensors_named
from ...records import record

INSTEAD = "merge the models that they make: `merge --model_path_list BASE+ADAPTER BASE+ADAPTER --base_model_path BASE`"


@record(frozen=True)
class Part:
    """What one adapter adds to a layer: scale * b @ middle @ a to its weight, and scale * bias to its bias.

    adapter: its number. a: [r, inputs]; b: [outputs, r]; of a convolution [r, inputs, *kernel] and [outputs, r, 1 ...].
    middle: [r, r], None for the identity. bias: [outputs] or None.
    """

    adapter: int
    a: TensorEntry
    b: TensorEntry
    scale: float
    middle: TensorEntry | None = None
    bias: TensorEntry | None = None

    @property
    def rank(self) -> int:
        return self.a.shape[0]

    @property
    def entries(self) -> list[TensorEntry]:
        return [entry for entry in (self.a, self.b, self.middle, self.bias) if entry is not None]


@record(frozen=True)
class Layer:
    """A layer of the output, and what each adapter that has it adds to it, in the adapters' order.

    name: of the module, as the output has it. kind: "linear", "embedding" or "convolution".
    """

    name: str
    kind: str
    parts: tuple[Part, ...]

    @property
    def a_shape(self) -> tuple[int, ...]:
        """The shape of a, without the rank."""
        return self.parts[0].a.shape[1:]

    @property
    def b_shape(self) -> tuple[int, ...]:
        """The shape of b, without the rank."""
        return (self.parts[0].b.shape[0], *self.parts[0].b.shape[2:])

    @property
    def shape(self) -> tuple[int, int]:
        """The outputs and inputs of the change b @ a."""
        return self.parts[0].b.shape[0], math.prod(self.a_shape)

    @property
    def rank(self) -> int:
        """The sum of the adapters' ranks."""
        return sum(part.rank for part in self.parts)

    @property
    def has_bias(self) -> bool:
        return any(part.bias is not None for part in self.parts)

    @property
    def dtypes(self) -> list[DType]:
        return [entry.dtype for part in self.parts for entry in part.entries]


@record(frozen=True)
class Contents:
    """What one adapter holds. parts: module -> its kind and part. whole: the tensors that replace those of the model."""

    parts: Mapping[str, tuple[str, Part]]
    whole: Mapping[str, TensorEntry]


def contents(adapter: Adapter, number: int) -> Contents:
    """Return what an adapter holds, by its own names. number: its place among the adapters.

    Raises CheckpointError listing everything that can't be merged into an adapter.
    """
    problems = [to_merge(sentence) for sentence in config_problems(adapter)]
    if adapter.config.get("target_parameters"):
        problems.append(f"{adapter.path}: adapts stacks of experts (target_parameters), which PEFT doesn't merge; {INSTEAD}")
    if not adapter.tensors:
        problems.append(f"{adapter.path}: holds no tensors")
    if problems:
        raise CheckpointError(problems)
    modules, others = adapter.grouped
    if others and is_all_low_rank(adapter):
        problems.append(
            f"{adapter.path}: its lora_config.json says that nothing but LoRA was trained, and yet it holds"
            f" {tensors_named([name for name, _ in others])}, which may never have been initialised"
        )
    others, _ = without_copies(others)
    parts: dict[str, tuple[str, Part]] = {}
    wrong: list[tuple[str, str]] = []
    for module in modules:
        try:
            parts[module.name] = _part(module, adapter, number)
        except MalformedError as error:
            wrong.append((module.name, f"{module.name!r} {error}"))
    whole: dict[str, TensorEntry] = {}
    for name, entry in others:
        if name in whole:
            wrong.append((entry.name, f"{entry.name!r} and {whole[name].name!r} are both for {name!r}"))
        elif not entry.dtype.is_float:
            wrong.append((entry.name, f"{entry.name!r} is {entry.dtype.name}, which can't be added up"))
        whole[name] = entry
    problems += [f"{adapter.path}: {sentence}" for sentence in by_cause(wrong)]
    if problems:
        raise CheckpointError([to_merge(sentence) for sentence in problems])
    return Contents(parts, whole)


def to_merge(sentence: str) -> str:
    """Return a sentence on an adapter that can't be folded as one on an adapter that can't be merged."""
    return sentence.replace("can't be folded", "can't be merged")


def _part(module: Module, adapter: Adapter, number: int) -> tuple[str, Part]:
    """Return the kind of a module's layer, and what the adapter adds to it. Raises MalformedError."""
    held = module.tensors
    if "lengths" in held:
        raise MalformedError(f"has DoRA's magnitudes, which don't add up, because they depend on the base model; {INSTEAD}")
    if "rows" in held:
        raise MalformedError(f"replaces rows of single tokens, which don't add up; {INSTEAD}")
    if module.parameter:
        raise MalformedError(f"is for a stack of experts, {module.title!r}, which can't be merged yet; {INSTEAD}")
    check_tensors(adapter, module)
    kind = "embedding" if "embedding A" in held else "convolution" if len(held["A"].shape) > 2 else "linear"
    a, b = (held[f"embedding {key}" if kind == "embedding" else key] for key in "AB")
    middle, bias = held.get("AB"), held.get("bias")
    if kind == "linear" and adapter.kind == "paddle":
        a, b = transpose(a, a.name), transpose(b, b.name)
        middle = None if middle is None else transpose(middle, middle.name)
    plain = len(a.shape) == len(b.shape) >= 2 and math.prod(b.shape[2:]) == 1
    if not plain or (kind != "convolution" and len(a.shape) != 2):
        raise MalformedError(f"has factors {list(a.shape)} and {list(b.shape)}, which don't fit")
    if a.shape[0] != b.shape[1]:
        raise MalformedError(f"has factors of different ranks, {a.shape[0]} and {b.shape[1]}")
    if middle is not None and middle.shape != (a.shape[0], a.shape[0]):
        raise MalformedError(f"has rank {a.shape[0]}, but the mixer between them is {list(middle.shape)}")
    if bias is not None and bias.shape != b.shape[:1]:
        raise MalformedError(f"has a bias {list(bias.shape)} for {b.shape[0]} outputs")
    scale = scaling(adapter, module.title, a.shape[0])
    if kind == "convolution" and adapter.kind == "paddle" and adapter.config.get("rslora"):
        scale /= math.sqrt(a.shape[0])  # Paddle's convolutions know nothing of rsLoRA
    return kind, Part(number, a, b, scale, middle, bias)


def as_layers(held: Sequence[Mapping[str, tuple[str, Part]]], paths: Sequence[str]) -> list[Layer]:
    """Return the layers that any adapter has, in the order in which they first occur.

    held: of each adapter, the kind and part of each layer. paths: the adapters', for messages. Raises CheckpointError
    listing layers that don't fit together.
    """
    found: dict[str, list[tuple[str, Part]]] = {}
    for one in held:
        for name, of_layer in one.items():
            found.setdefault(name, []).append(of_layer)
    wrong: list[tuple[str, str]] = []
    layers = []
    for name, its in found.items():
        kind, first = its[0]
        for other_kind, part in its[1:]:
            mine, others = (_shapes(one) for one in (first, part))
            if (kind, mine) != (other_kind, others):
                wrong.append(
                    (
                        name,
                        f"{name!r} is a {kind} layer {mine} in {paths[first.adapter]}, and a {other_kind} layer {others} in"
                        f" {paths[part.adapter]}; were they trained on one model?",
                    )
                )
        layers.append(Layer(name, kind, tuple(part for _, part in its)))
        for piece in fused.PIECES.get(last_word(f"{name}."), ()):
            apart = f"{name.rpartition('.')[0]}.{piece}".lstrip(".")
            if apart in found:
                wrong.append(
                    (
                        name,
                        f"{paths[first.adapter]} has {name!r} and {paths[found[apart][0][1].adapter]} has {apart!r}, a part"
                        " of it; give --base_model_path, in which the layers are apart",
                    )
                )
    if not layers:
        raise CheckpointError("the adapters hold no low-rank matrices, so there is nothing to merge into an adapter")
    if wrong:
        raise CheckpointError(by_cause(wrong))
    return layers


def _shapes(part: Part) -> str:
    """Return the outputs and inputs of a part, for messages."""
    return str([part.b.shape[0], *part.a.shape[1:]])
