"""Find out which parameters of its modules an adapter of PEFT is for, where its config lists target_parameters.

PEFT wraps a module once for every such parameter of it, the first one innermost, and names the factors by the nesting:
"experts.base_layer.lora_A" may be for experts.gate_up_proj, and "experts.lora_A" for experts.down_proj.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence

from ...checkpoints.adapters import Adapter, Module
from .targets import Targets

# Parameters of a stack of experts -> the Linear layers that an expert may have instead, where each has its own. Those of
# Paddle's libraries are [gate | up], too.
_LAYERS = {
    "gate_up_proj": (("gate_proj", "up_proj"), ("up_gate_proj",), ("gate_up_fused_proj",), ("gate_up_proj",)),
    "up_proj": (("up_proj",),),
    "down_proj": (("down_proj",),),
}
# The order in which classes of transformers register their parameters, and so that of PEFT's wrappers.
_ORDER = ("gate_up_proj", "up_proj", "gate_up_proj_bias", "w1", "v1", "w2", "down_proj", "down_proj_bias", "weight", "bias")
_WRAPPER = ".base_layer"
_TURNED = ("gpt_oss", "openai_privacy_filter", "aria")  # model types that hold experts as [E, inputs, outputs] in memory
_EITHER = ("qwen3_vl_moe",)  # model types that have been saved as [E, inputs, outputs] and as [E, outputs, inputs]


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
    return _with_axes(found, adapter, targets) if targets is not None else found, wrong


def _with_axes(modules: Sequence[Module], adapter: Adapter, targets: Targets) -> list[Module]:
    """Return the modules with first_axis set, by the shape of each; else by that of others; else by PEFT's version.

    Up to 0.18 PEFT always made A for the first axis of the matrices in memory, and B for the last; 0.19.0 did for all
    families but those that hold matrices as [inputs, outputs], and later versions do for these only. (Up to 4, transformers
    didn't tell PEFT which these are.)
    """
    own = {module.title: _first_axis(module, targets) for module in modules}
    version = tuple(map(int, re.findall(r"\d+", str(adapter.config.get("peft_version") or ""))[:3]))
    transposed = targets.family.startswith(_TURNED)
    says: bool | None = version < (0, 19) or (not transposed if version == (0, 19, 0) else transposed)
    if targets.family.startswith(_EITHER):
        says = None
    others = next((first for first in own.values() if first is not None), says)
    return [
        dataclasses.replace(module, first_axis=others if own[module.title] is None else own[module.title])
        for module in modules
    ]


def _first_axis(module: Module, targets: Targets) -> bool | None:
    """Return whether A is for the first axis of an expert's matrix in memory; None if shapes don't tell."""
    a, b = module.tensors.get("A"), module.tensors.get("B")
    layers, stack = layers_of(module.name, module.parameter, targets), targets.find(module.title)
    if not (layers or stack) or a is None or b is None or len(a.shape) != 2 or len(b.shape) != 2:
        return None
    if stack is not None:
        axes = targets.shape(stack)[1:]
    else:
        layer = targets.find(f"{module.name}.0.{layers[0]}.weight")
        turned = targets.stored_transposed(layer) if layer is not None else None
        if layer is None or turned is None:
            return None
        inputs, outputs = targets.shape(layer) if turned else targets.shape(layer)[::-1]
        axes = outputs * len(layers), inputs
    pair = a.shape[1], b.shape[0]
    fits = [first for first in (True, False) if axes == (pair if first else pair[::-1])]
    return fits[0] if len(fits) == 1 else None


def _is_listed(name: str, listed: Sequence[str]) -> bool:
    return any(name == one or name.endswith(f".{one}") for one in listed)


def layers_of(name: str, parameter: str, targets: Targets) -> tuple[str, ...]:
    """Return the layers that each expert of a module has instead of a parameter of the stack; empty if it has none."""
    for layers in _LAYERS.get(parameter, ()):
        if all(targets.find(f"{name}.0.{layer}.weight") is not None for layer in layers):
            return layers
    return ()


def _exists(name: str, parameter: str, listed: Sequence[str], targets: Targets | None) -> bool:
    """Return whether the checkpoint has this parameter of a module: as it is, or as layers of each expert."""
    if targets is None:
        return parameter == "weight" if _is_listed(f"{name}.weight", listed) else name.endswith("experts")
    if targets.find(f"{name}.{parameter}") is not None:
        return True
    if parameter == "up_proj" and targets.find(f"{name}.0.gate_proj.weight") is not None:  # in memory they are one
        return False
    return bool(layers_of(name, parameter, targets))
