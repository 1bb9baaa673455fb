"""Assign the tensors of the inputs to the modules of a recipe, and report those that fit none or several."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from ..checkpoints.names import stacks
from ..checkpoints.tensors import Checkpoint
from ..conversion.modules import REST, claiming_modules, module_names, suggested, within
from ..parsing import nearest
from ..recipe.recipe import Recipe, Slice, Stage, names_of, parts
from ..records import record


def problems(recipe: Recipe | Stage, inputs: Sequence[Checkpoint]) -> list[str]:
    """Return a sentence on each kind of tensor that doesn't belong to exactly one module, and on each module without
    tensors."""
    modules = names_of(recipe)
    if not modules:
        return []
    found: dict[tuple[tuple[str, ...], str], list[tuple[str, str]]] = {}
    for number in {one.number: None for part in recipe.slices for one in part.everything}:
        for name in inputs[number].tensors:
            if len(claiming := claiming_modules(name, modules)) != 1:
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
    """Return the stack of layers that is sliced, and ""; or None, and why there isn't exactly one."""
    found, at = list(stacks(tensors)), f"{part.at}: " if part.at else ""
    if len(found) == 1:
        return found[0], ""
    named, where = ", ".join(found) or "none", f" in module {part.module!r}" if part.module else ""
    remedy = "" if found else "; merge it whole, with models instead of slices"
    if found and not part.module:
        first, *others = dict.fromkeys(module_names(found).values())
        rest = "".join(f", {one}: {{models: ...}}" for one in others)
        remedy = f"; write slices below a module, as in modules: {{{first}: {{slices: ...}}{rest}}}"
    return None, f"{at}{path}: layer_range needs a model of one stack of layers, and it has {named}{where}{remedy}"


def described(recipe: Recipe, names: Iterable[str]) -> list[str]:
    """Return a line for each module on the tensors of the output that belong to it."""
    modules, tensors = names_of(recipe), dict.fromkeys(names)
    found = []
    for module in modules:
        its = within(tensors, module, modules)
        counts = [(f"{count} layer" + "s" * (count > 1), stack) for stack, count in stacks(its).items()]
        layers = "".join(f", {count} of {stack}" for count, stack in counts)
        found.append(f"{module}: {len(its)} tensors{layers}")
    return found


@record(frozen=True)
class Claim:
    """What a slice takes of an input: which layers (None: all, and tensors in no layer) of which module."""

    layers: frozenset[int] | None
    module: str | None
    modules: tuple[str, ...]


def taken(recipe: Recipe) -> dict[int, list[Claim]]:
    """Return what the recipe takes of each input, by number; of an earlier merge's inputs, what is needed for its output."""
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
    """Return the layers of a merge's module that claims take; None for all."""
    its = [one.layers for one in claims if one.modules != modules or one.module == module]
    known = [layers for layers in its if layers is not None]
    return frozenset().union(*known) if len(known) == len(its) else None
