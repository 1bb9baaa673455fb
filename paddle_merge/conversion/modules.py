"""Modules of a recipe: models of several parts, such as language and vision, each merged in its own way.

There is no list of architectures. A module is found in the names of tensors: "vision_tower" is what has that word, or
another that such a part is called by, before its layers. The deepest such word decides: model.visual.merger is the
projector's, if the recipe has one, else the vision tower's. What is in no other is the language model's, or that of a module
`default`.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TypeVar

from ..checkpoints.names import layer_of

REST = "default"
# What the parts of models are called: by mergekit, which comes first, and in names of tensors. The first has the rest.
_KINDS = (
    ("text_decoder", "language_model", "text_model", "llm"),
    ("vision_tower", "vision_model", "visual", "vision_encoder", "vit"),
    (
        *("multi_modal_projector", "mm_projector", "projector", "connector", "aligner", "resampler_model"),
        *("merger", "deepstack_merger_list", "patch_merger", "mlp1", "mlp_AR"),
    ),
    ("audio_tower", "audio_model", "audio_encoder"),
)
_TEXT = _KINDS[0]
_SHARED = ("shared", "lm_head")  # of T5
T = TypeVar("T")


def within(tensors: Mapping[str, T], module: str | None, modules: tuple[str, ...]) -> dict[str, T]:
    """Those of one module; None: all."""
    return {name: one for name, one in tensors.items() if module is None or module_of(name, modules) == module}


def module_of(name: str, modules: tuple[str, ...]) -> str | None:
    """Which of the modules a tensor belongs to; None if to none, or to several as well."""
    claiming = claiming_modules(name, modules)
    return claiming[0] if len(claiming) == 1 else None


@functools.lru_cache(1 << 16)
def claiming_modules(name: str, modules: tuple[str, ...]) -> tuple[str, ...]:
    claims = {module: claim for module in modules if (claim := _claim(name, module)) is not None}
    if claims:
        best = max(claims.values())
        return tuple(module for module, claim in claims.items() if claim == best)
    if REST in modules:
        return (REST,)
    return tuple(module for module in modules if module in _TEXT) if _kind_of(name) in (None, _TEXT) else ()


def _claim(name: str, module: str) -> tuple[int, bool] | None:
    """How deep in the name the module is called, and whether so and not by another word; None: nowhere."""
    if "." in module:
        return (module.count(".") + 1, True) if name.startswith(f"{module}.") else None
    kind = next((kind for kind in (*_KINDS, _SHARED) if module in kind), (module,))
    return max(((depth, word == module) for depth, word in _front(name) if word in kind), default=None)


def _front(name: str) -> Iterator[tuple[int, str]]:
    """Words up to the layers, with their places."""
    layer = layer_of(name)
    return enumerate((layer[0] if layer else name).split("."), 1)


def _kind_of(name: str) -> tuple[str, ...] | None:
    found = [kind for _, word in _front(name) for kind in _KINDS if word in kind]
    return found[-1] if found else None


def suggested(names: Iterable[str]) -> list[str]:
    """Names of modules that would have these tensors, as mergekit calls them."""
    return list(dict.fromkeys((_kind_of(name) or _TEXT)[0] for name in names))


def called(found: Sequence[str]) -> dict[str, str]:
    """Stacks of layers -> what mergekit calls the module; one that nothing tells of is language, several by their names."""
    unknown = [stack for stack in found if _kind_of(stack) is None]
    names = {stack: (_kind_of(stack) or _TEXT)[0] for stack in found}
    if len(unknown) > 1:
        names |= {stack: stack.split(".")[-2] if "." in stack else stack for stack in unknown}
    return names
