"""Express factors for all experts of a layer as changes of a checkpoint's tensors.

E: experts, h: inputs, o: outputs, r: rank, s: scale; of expert e:

PEFT (target_parameters)  W[e] [o, h] + s B[:, e::E] A[e r : (e + 1) r]     from A [E r, h] and B [o, r E]
PaddleFormers             W[e] [h, o] + s A[e] B[e]                         from A [E, h, r] and B [E, r, o]

W is stored as a stack [E, o, h] or [E, h, o] or as a matrix per expert, where gate_up_proj is two: [gate | up] along o.
PEFT wraps a module once for every parameter of it, the first one innermost, and names the factors by the nesting:
"experts.base_layer.base_layer.lora_A". named_parameters() finds out which is which.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import count

from ...checkpoints.adapters import Adapter, Module
from ...checkpoints.tensors import TensorEntry
from ...checkpoints.views import every, nth, select, transpose
from ...errors import MalformedError
from .config import scaling
from .entry import LowRank, Update
from .targets import Targets

# Parameters of a stack of experts -> the Linear layers that an expert has instead, where each has its own.
_LAYERS = {"gate_up_proj": ("gate_proj", "up_proj"), "up_proj": ("up_proj",), "down_proj": ("down_proj",)}
# The order in which classes of transformers register their parameters, and so that of PEFT's wrappers.
_ORDER = ("gate_up_proj", "up_proj", "gate_up_proj_bias", "w1", "v1", "w2", "down_proj", "down_proj_bias", "weight", "bias")
_WRAPPER = ".base_layer"
# Model types that hold a stack as [E, h, o] in memory, so that PEFT calls its axes by these names.
_TURNED = ("gpt_oss", "openai_privacy_filter", "aria")
_EITHER = ("qwen3_vl_moe",)  # model types that have been saved as [E, h, o] and as [E, o, h]


def named_parameters(
    modules: Sequence[Module], adapter: Adapter, targets: Targets | None = None
) -> tuple[list[Module], list[tuple[str, str]]]:
    """Return the modules with the parameters set that PEFT's target_parameters names; and (name, sentence) of those whose
    names fit no parameters of the checkpoint, which are left out.

    targets: of the checkpoint; without it, modules called experts are taken to have every parameter that is listed.
    """
    listed = adapter.config.get("target_parameters") if adapter.kind == "peft" else None
    if not isinstance(listed, list) or not listed:
        return list(modules), []
    found, wrong = list[Module](), list[tuple[str, str]]()
    wrappers: dict[str, list[Module]] = {}
    for module in modules:
        wrappers.setdefault(module.name.replace(_WRAPPER, ""), []).append(module)
    for name, its in wrappers.items():
        words = dict.fromkeys(str(one).rpartition(".")[2] for one in listed)
        held = [word for word in words if _is_listed(f"{name}.{word}", listed) and _exists(name, word, listed, targets)]
        if not held and len(its) == 1:
            found += its
            continue
        known = sorted(held, key=lambda word: _ORDER.index(word) if word in _ORDER else -1)
        its = sorted(its, key=lambda module: -module.name.count(_WRAPPER))  # innermost first
        if len(held) != len(its) or (len(held) > 1 and not set(held) <= set(_ORDER)):
            where = f"{targets.path if targets else 'the model'} has {', '.join(map(repr, known)) or 'none'}"
            wrong.append(
                (
                    name,
                    f"it isn't known which factors of {name!r} are for which parameter: it has {len(its)} pairs, and of its"
                    f" target_parameters {where}; was it trained on another model?",
                )
            )
            continue
        for module, word in zip(its, known, strict=True):
            found.append(dataclasses.replace(module, name=name, parameter=word))
    return found, wrong


def _is_listed(name: str, listed: Sequence[str]) -> bool:
    return any(name == one or name.endswith(f".{one}") for one in listed)


def _exists(name: str, parameter: str, listed: Sequence[str], targets: Targets | None) -> bool:
    """Return whether the checkpoint has this parameter of a module: as it is, or as layers of each expert."""
    if targets is None:
        return parameter == "weight" if _is_listed(f"{name}.weight", listed) else name.endswith("experts")
    layers = {layer for layer in ("gate_proj", "up_proj", "down_proj") if targets.find(f"{name}.0.{layer}.weight")}
    if targets.find(f"{name}.{parameter}") is not None:
        return True
    if parameter == "up_proj" and "gate_proj" in layers:  # in memory they are one parameter
        return False
    return parameter in _LAYERS and layers.issuperset(_LAYERS[parameter])


def expert_updates(
    module: Module, adapter: Adapter, targets: Targets, tensors: Mapping[str, TensorEntry]
) -> Iterator[Update]:
    """Yield the changes that a module with a parameter other than its weight makes. Raises MalformedError."""
    name, layers = module.title, _LAYERS.get(module.parameter, ())
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
        yield Update(stack, _of_stack(pairs, stack, adapter, targets, tensors, scale))
        return
    if _is_exchanged(pairs[0], f"{module.name}.0.{layers[0]}.weight", len(layers), adapter, targets, tensors):
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
    adapter: Adapter,
    targets: Targets,
    tensors: Mapping[str, TensorEntry],
    scale: float,
) -> list[LowRank]:
    """Return the changes of a stack of matrices, or of one matrix. Raises MalformedError if it doesn't fit."""
    target = targets.to_change(stack)
    shape, inner = tensors[target].shape[-2:], (pairs[0][0].shape[0], pairs[0][1].shape[1])
    ways = [turned for turned in (True, False) if shape == (inner if turned else inner[::-1])]
    if len(tensors[target].shape) == 2:  # PEFT takes any matrix to be [o, h]
        ways = [turned for turned in ways if not turned]
    if not ways:
        full = list(tensors[target].shape)
        raise MalformedError(f"is for matrices of {inner[0]} inputs and {inner[1]} outputs, but {target!r} is {full}")
    turned = ways[0] if len(ways) == 1 else _is_turned(target, adapter, targets)
    found = []
    for place, (a, b) in enumerate(pairs):
        left, right = (a, b) if turned else (transpose(b, b.name), transpose(a, a.name))
        found.append(LowRank(left, right, scale, place=place))
    return found


def _is_exchanged(
    pair: tuple[TensorEntry, TensorEntry],
    layer: str,
    count: int,
    adapter: Adapter,
    targets: Targets,
    tensors: Mapping[str, TensorEntry],
) -> bool:
    """Return whether PEFT had the axes of [E, o, h] exchanged: A is then [r, o] and B [h, r].

    pair: [h, r] and [r, o] if they are not. layer: the name of one of `count` layers that share o.
    """
    target = targets.to_change(layer)
    shape, turned = tensors[target].shape, targets.stored_transposed(target)
    first, last = pair[0].shape[0], pair[1].shape[1]
    inner = {True: shape, False: shape[::-1], None: None}[turned]
    fits = [
        exchanged for exchanged, of in ((False, (first, last)), (True, (last, first))) if (of[0], of[1] // count) == inner
    ]
    return fits[0] if len(fits) == 1 else adapter.kind == "peft" and _takes_first_axis(adapter, targets)


def _is_turned(target: str, adapter: Adapter, targets: Targets) -> bool:
    """Return whether a stack of square matrices is [E, h, o]. Raises MalformedError if that is unknown."""
    if adapter.kind == "paddle":
        return True
    if targets.family.startswith(_EITHER):
        raise MalformedError(f"may or may not have to be transposed for {target!r}, whose matrices are square")
    return _takes_first_axis(adapter, targets)


def _takes_first_axis(adapter: Adapter, targets: Targets) -> bool:
    """Return whether PEFT made A for the first axis of a matrix in memory, and B for the last.

    Up to 0.18 it always did; 0.19.0 did for all families but those that hold matrices as [h, o], and later versions do for
    these only. Where the axes differ in size, the factors show it.
    """
    version = tuple(map(int, re.findall(r"\d+", str(adapter.config.get("peft_version") or ""))[:3]))
    transposed = targets.family.startswith(_TURNED)
    return version < (0, 19) or (not transposed if version == (0, 19, 0) else transposed)


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
