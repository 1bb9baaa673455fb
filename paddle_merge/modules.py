"""Modules of a recipe: models of several parts, such as language and vision, each merged in its own way.

There is no list of architectures. A module is found in the names of tensors: "vision_tower" is what has that word, or
another that such a part is called by, before its layers. The deepest such word decides: model.visual.merger is the
projector's, if the recipe has one, else the vision tower's. What is in no other is the language model's, or that of a module
`default`.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

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
# Where config.json says something of each, and what it calls the number of layers.
_SECTIONS = dict(
    zip(
        (kind[0] for kind in _KINDS), (("text_config", "llm_config"), ("vision_config",), (), ("audio_config",)), strict=True
    )
)
_DEPTHS = ("num_hidden_layers", "num_layers", "n_layer", "n_layers", "depth")
_BY_LAYER = ("layer_types", "mlp_layer_types", "layers_block_type")  # lists of one word per layer
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
        first, *others = _called(found)
        rest = "".join(f", {one}: {{models: ...}}" for one in others)
        remedy = f"; write slices below a module, as in modules: {{{first}: {{slices: ...}}{rest}}}"
    return None, f"{at}{path}: layer_range needs a model of one stack of layers, and it has {named}{where}{remedy}"


def _called(found: Sequence[str]) -> list[str]:
    """Names of modules for stacks of layers: the one that nothing tells of is language."""
    unknown = [stack for stack in found if _kind_of(stack) is None]
    names = {stack: (_kind_of(stack) or _TEXT)[0] for stack in found}
    if len(unknown) > 1:
        names |= {stack: stack.split(".")[-2] if "." in stack else stack for stack in unknown}
    return list(dict.fromkeys(names.values()))


def described(recipe: Recipe, names: Iterable[str]) -> list[str]:
    """Which tensors of the output each module has, in a line."""
    modules, tensors = names_of(recipe), dict.fromkeys(names)
    found = []
    for module in modules:
        its = within(tensors, module, modules)
        layers = "".join(f", {count} layers of {stack}" for stack, count in stacks(its).items())
        found.append(f"{module}: {len(its)} tensors{layers}")
    return found


def taken(recipe: Recipe) -> dict[int, list[tuple[range | None, str | None, tuple[str, ...]]]]:
    """Of each input that is merged, what slices take: layers (None: all, and what is in none), of which module of which."""
    found: dict[int, list[tuple[range | None, str | None, tuple[str, ...]]]] = {}
    merges: list[Recipe | Stage] = [recipe, *recipe.stages]
    for merge in merges:
        modules = names_of(merge)
        for part in merge.slices:
            for one in part.everything:
                layers = None if part.layers is None else range(one.first, one.first + part.layers)
                found.setdefault(one.number, []).append((layers, part.module, modules))
    return found


# --- config.json -----------------------------------------------------------------------------------------------------------


def with_depths(config: Mapping[str, Any], recipe: Recipe) -> tuple[dict[str, Any], list[str]]:
    """config.json as slices of layers make it: how many there are, and what each is, of every module that is sliced; and
    sentences on what had no place there, or is left as it was."""
    changed, worries = dict(config), list[str]()
    for module, slices in parts(recipe):
        if slices[0].layers is None:
            continue
        picked = [part.inputs[0].first + layer for part in slices for layer in range(part.layers or 0)]
        known = _kind_of(module) if module else _TEXT
        kind = known[0] if known else None
        placed = False
        for section in ("", *_SECTIONS.get(kind or "", ())):
            its = changed if not section else changed.get(section)
            if not isinstance(its, dict) or (not section and kind not in (None, _TEXT[0])):
                continue
            words = _DEPTHS if kind else (f"{module}_layers", f"num_{module}_layers")
            if not section and module == "encoder":  # T5's is called like a decoder's elsewhere
                words = (*words, "num_layers", "num_hidden_layers")
            new, indexes = _resized(its, words, picked)
            placed |= new is not None
            if new is not None:
                changed = {**changed, section: new} if section else new
            worries += [
                f"config.json: {name} names layers{f' of {module}' if module else ''} by number, and stays as it was; see"
                " whether that is still right"
                for name in indexes
            ]
        if not placed and module:
            worries.append(
                f"config.json: how many layers {module} has isn't said where it was expected; write {len(picked)}"
            )
    return changed, list(dict.fromkeys(worries))


def _resized(
    config: Mapping[str, Any], words: Sequence[str], picked: Sequence[int]
) -> tuple[dict[str, Any] | None, list[str]]:
    """The same for one section; None if it counts no layers. And its lists of layers' numbers."""
    counts = {name: len(picked) for name in words if name in config}
    if not counts:
        return None, []
    new = {**config, **counts}
    for name in _BY_LAYER:
        each = config.get(name)
        if isinstance(each, list) and max(picked) < len(each):
            new[name] = [each[layer] for layer in picked]
        elif isinstance(each, list):  # of another model's layers: loaders know better
            del new[name]
    return new, [name for name in config if name.endswith("_indexes") and config[name]]
