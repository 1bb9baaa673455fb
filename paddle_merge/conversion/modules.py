"""Find which module of a recipe a tensor belongs to, such as the language model or the vision tower, by the tensor's name.

There is no list of architectures. A tensor belongs to "vision_tower" if its name contains that word, or a synonym of it
(_KINDS), before the number of its layer. If several words match, the last one decides: model.visual.merger belongs to the
projector if the recipe has one, else to the vision tower. A tensor that matches none belongs to the language model, or to
the module `default` if the recipe has it; of both, the language model has what is named as a model of text alone names it.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TypeVar

from ..checkpoints.names import layer_of

REST = "default"  # the module of all tensors that no other module has
# Synonyms for the modules of models: first mergekit's, then words in tensors' names. The first row is the language model,
# which has all tensors that match no word.
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
# How the names of a language model begin whose part of a larger model has no word of its own (Qwen2-VL's model.layers).
_PLAIN = re.compile(r"(model\.|transformer\.)?(layers|h|embed_tokens|wte|wpe|norm|ln_f|lm_head)\.")
_SHARED = ("shared", "lm_head")  # T5's tied embedding
T = TypeVar("T")


def within(tensors: Mapping[str, T], module: str | None, modules: tuple[str, ...]) -> dict[str, T]:
    """Return the tensors of one module of a recipe that has `modules`; all of them if `module` is None."""
    if module is None:
        return dict(tensors)
    return {name: one for name, one in tensors.items() if module_of(name, modules) == module}


def module_of(name: str, modules: tuple[str, ...]) -> str | None:
    """Return which of the modules a tensor belongs to; None if it belongs to none, or equally to several."""
    claiming = claiming_modules(name, modules)
    return claiming[0] if len(claiming) == 1 else None


@functools.lru_cache(1 << 16)
def claiming_modules(name: str, modules: tuple[str, ...]) -> tuple[str, ...]:
    """Return the modules that a tensor belongs to: one, none, or several if their words match it equally well."""
    claims = {module: claim for module in modules if (claim := _claim(name, module)) is not None}
    if claims:
        best = max(claims.values())
        return tuple(module for module, claim in claims.items() if claim == best)
    if REST in modules and not _PLAIN.match(name):
        return (REST,)
    texts = tuple(module for module in modules if module in _TEXT)
    if REST in modules:
        return texts or (REST,)
    return texts if _kind_of(name) in (None, _TEXT) else ()


def _claim(name: str, module: str) -> tuple[int, bool] | None:
    """Return how well a module matches a tensor's name: (position of the last matching word, whether it is no synonym).

    None if no word matches. A module with dots in its name is a prefix of the tensor's name.
    """
    if "." in module:
        return (module.count(".") + 1, True) if name.startswith(f"{module}.") else None
    kind = next((kind for kind in (*_KINDS, _SHARED) if module in kind), (module,))
    return max(((depth, word == module) for depth, word in _front(name) if word in kind), default=None)


def _front(name: str) -> Iterator[tuple[int, str]]:
    """Return the words of a tensor's name before its layer's number, counted from 1."""
    layer = layer_of(name)
    return enumerate((layer[0] if layer else name).split("."), 1)


def _kind_of(name: str) -> tuple[str, ...] | None:
    """Return the row of _KINDS that a tensor's name matches last; None if it matches none."""
    found = [kind for _, word in _front(name) for kind in _KINDS if word in kind]
    return found[-1] if found else None


def is_language(name: str) -> bool:
    """Return whether a tensor is one of the language model, as all are that no word says is another's."""
    return _kind_of(name) in (None, _TEXT)


def suggested(names: Iterable[str]) -> list[str]:
    """Return mergekit's names of the modules that have these tensors, each once."""
    return list(dict.fromkeys((_kind_of(name) or _TEXT)[0] for name in names))


def module_names(found: Sequence[str]) -> dict[str, str]:
    """Return mergekit's name of the module of each stack of layers.

    A stack that matches no known module is the language model; if several do, each is named by the word before its layers.
    """
    unknown = [stack for stack in found if _kind_of(stack) is None]
    names = {stack: (_kind_of(stack) or _TEXT)[0] for stack in found}
    if len(unknown) > 1:
        names |= {stack: stack.split(".")[-2] if "." in stack else stack for stack in unknown}
    return names
