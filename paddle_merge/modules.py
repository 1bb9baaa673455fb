"""Modules of a recipe: models of several parts, such as language and vision, each merged in its own way.

There is no list of architectures. A module is found in the names of tensors: "vision_tower" is what has that word, or
another that such a part is called by, before its layers. The deepest such word decides: model.visual.merger is the
projector's, if the recipe has one, else the vision tower's. What is in no other is the language model's, or that of a module
`default`.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from .names import layer_of, stacks
from .parsing import nearest
from .readers import Checkpoint
from .recipe import Recipe, Slice, Stage

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


def parts(recipe: Recipe | Stage) -> list[tuple[str | None, list[Slice]]]:
    """The slices of each module, in order; of the one module None, if the recipe names none."""
    found: dict[str | None, list[Slice]] = {}
    for part in recipe.slices:
        found.setdefault(part.module, []).append(part)
    return list(found.items())


def names_of(recipe: Recipe | Stage) -> tuple[str, ...]:
    """Of its modules; () if it names none."""
    return tuple(name for name, _ in parts(recipe) if name is not None)


def within(tensors: Mapping[str, T], module: str | None, modules: tuple[str, ...]) -> dict[str, T]:
    """Those of one module; None: all."""
    return {name: one for name, one in tensors.items() if module is None or module_of(name, modules) == module}


def module_of(name: str, modules: tuple[str, ...]) -> str | None:
    """Which of the modules a tensor belongs to; None if to none, or to several as well."""
    claiming = _claiming(name, modules)
    return claiming[0] if len(claiming) == 1 else None


@functools.lru_cache(1 << 16)
def _claiming(name: str, modules: tuple[str, ...]) -> tuple[str, ...]:
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


def problems(recipe: Recipe | Stage, inputs: Sequence[Checkpoint]) -> list[str]:
    """A sentence on each kind of tensor that doesn't belong to exactly one module, and on each module that has none."""
    modules = names_of(recipe)
    if not modules:
        return []
    found: dict[tuple[tuple[str, ...], str], list[tuple[str, str]]] = {}
    for number in {one.number: None for part in recipe.slices for one in part.everything}:
        for name in inputs[number].tensors:
            if len(claiming := _claiming(name, modules)) != 1:
                found.setdefault((claiming, suggested([name])[0]), []).append((name, inputs[number].path))
    sentences = []
    for (claiming, fitting), ((name, path), *others) in found.items():
        more = f" (and {len(others)} more)" if others else ""
        belongs = f"to {' and '.join(claiming)} alike" if claiming else f"to none of {', '.join(modules)}"
        remedy = "leave one of them out" if claiming else f"add {fitting}, or {REST}, which takes what is in no other"
        sentences.append(f"{recipe.slices[0].at}: tensor {name!r}{more} of {path} belongs {belongs}; {remedy}")
    disputed = {module for claiming, _ in found for module in claiming}
    for module, slices in parts(recipe):
        for one in {one.number: one for part in slices for one in part.everything}.values():
            there = inputs[one.number]
            if module is not None and module not in disputed and not within(there.tensors, module, modules):
                fitting = ", ".join(suggested(there.tensors))
                meant = nearest(module, suggested(there.tensors))
                sentences.append(
                    f"{slices[0].at}: {there.path} has no tensor of a module {module!r}{meant}; it has {fitting}, and a"
                    " module may also be called as its tensors' names begin"
                )
    return sentences


def one_stack(part: Slice, tensors: Iterable[str], path: str) -> tuple[str | None, str]:
    """The stack of layers that is sliced, and ""; or None, and why there isn't one."""
    found, at = list(stacks(tensors)), f"{part.at}: " if part.at else ""
    if len(found) == 1:
        return found[0], ""
    named, where = ", ".join(found) or "none", f" in module {part.module!r}" if part.module else ""
    remedy = "" if found else "; merge it whole, with models instead of slices"
    if found and not part.module:
        first, *others = dict.fromkeys(called(found).values())
        rest = "".join(f", {one}: {{models: ...}}" for one in others)
        remedy = f"; write slices below a module, as in modules: {{{first}: {{slices: ...}}{rest}}}"
    return None, f"{at}{path}: layer_range needs a model of one stack of layers, and it has {named}{where}{remedy}"


def called(found: Sequence[str]) -> dict[str, str]:
    """Stacks of layers -> what mergekit calls the module; one that nothing tells of is language, several by their names."""
    unknown = [stack for stack in found if _kind_of(stack) is None]
    names = {stack: (_kind_of(stack) or _TEXT)[0] for stack in found}
    if len(unknown) > 1:
        names |= {stack: stack.split(".")[-2] if "." in stack else stack for stack in unknown}
    return names


def described(recipe: Recipe, names: Iterable[str]) -> list[str]:
    """Which tensors of the output each module has, in a line."""
    modules, tensors = names_of(recipe), dict.fromkeys(names)
    found = []
    for module in modules:
        its = within(tensors, module, modules)
        layers = "".join(f", {count} layers of {stack}" for stack, count in stacks(its).items())
        found.append(f"{module}: {len(its)} tensors{layers}")
    return found


@dataclass(frozen=True)
class Claim:
    """What a slice takes of an input: layers (None: all, and what is in none), of which of the modules."""

    layers: frozenset[int] | None
    module: str | None
    modules: tuple[str, ...]


def taken(recipe: Recipe) -> dict[int, list[Claim]]:
    """What is claimed of each input, and of each earlier merge, by what is claimed of its output in turn."""
    found: dict[int, list[Claim]] = {}
    stages = list(enumerate(recipe.stages, len(recipe.sources)))
    merges: list[tuple[int, Recipe | Stage]] = [(-1, recipe), *reversed(stages)]  # each after those that take it
    for number, merge in merges:
        modules = names_of(merge)
        for module, slices in parts(merge):
            wanted = _wanted(found[number], module, modules) if number in found else None
            before = 0
            for part in slices:
                for one in part.everything:
                    layers = wanted
                    if part.layers is not None:
                        some = (layer for layer in range(part.layers) if wanted is None or before + layer in wanted)
                        layers = frozenset(one.first + layer for layer in some)
                    found.setdefault(one.number, []).append(Claim(layers, module, modules))
                before += part.layers or 0
    return found


def _wanted(claims: Iterable[Claim], module: str | None, modules: tuple[str, ...]) -> frozenset[int] | None:
    """The layers of a merge's module that are claimed."""
    its = [one.layers for one in claims if one.modules != modules or one.module == module]
    known = [layers for layers in its if layers is not None]
    return frozenset().union(*known) if len(known) == len(its) else None
