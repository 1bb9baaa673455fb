"""Find what an adapter's config says it trained, and its file doesn't hold: a file that was saved or copied in part."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from ...checkpoints.adapters import Adapter
from ...checkpoints.names import layer_of
from ...checkpoints.tensors import TensorEntry
from ...parsing import tensors_named
from .config import is_slow
from .targets import stem, without_prefix

_EXPERT = re.compile(r"\.experts\.\d+\.(gate|up|down)_proj\.weight$")
_STACKS = (".experts.gate_up_proj", ".experts.up_proj", ".experts.down_proj")


def missing(
    adapter: Adapter, tensors: Mapping[str, TensorEntry], changed: Collection[str], config: Mapping[str, Any]
) -> list[str]:
    """Return a sentence on tensors that an adapter's config says it changes, and that it doesn't; and on modules_to_save.

    tensors: the checkpoint's. changed: the names of those that the adapter changes or replaces. config: the model's. The
    names in target_modules that fit no tensor are not among them, for libraries ignore them too.
    """
    are_targets = _targets(adapter, tensors, config)
    if are_targets is None:
        return []
    depth, more = config.get("num_hidden_layers"), config.get("num_nextn_predict_layers")
    unread = range(depth, depth + more) if type(depth) is int and type(more) is int else range(0)  # loaders ignore these
    lacking = [
        name
        for name, entry in tensors.items()
        if name not in changed
        and len(entry.shape) > 1
        and ((layer := layer_of(name)) is None or layer[1] not in unread)
        and are_targets(name)
    ]
    sentences = []
    if lacking:
        sentences.append(
            f"{adapter.path}: its config says that it changes {tensors_named(lacking)}, and it holds nothing for"
            f" {'it' if len(lacking) == 1 else 'them'}: the base's stay as they are; was it saved, or copied, in part?"
        )
    listed = adapter.config.get("modules_to_save") if adapter.kind == "peft" else None
    saved = {
        word: [name for name in tensors if f".{stem(name, config).rpartition('.')[0]}".endswith(f".{word}")]
        for word in (listed if isinstance(listed, list) else ())
        if isinstance(word, str)
    }
    absent = [word for word, names in saved.items() if names and not set(names) & set(changed)]
    if absent:
        sentences.append(
            f"{adapter.path}: its config lists {', '.join(map(repr, absent))} in modules_to_save, and it doesn't hold"
            f" {'it' if len(absent) == 1 else 'them'}: the base's stay as they are; was it saved, or copied, in part?"
        )
    return sentences


def _targets(
    adapter: Adapter, tensors: Mapping[str, TensorEntry], config: Mapping[str, Any]
) -> Callable[[str], bool] | None:
    """Return a function that says whether an adapter's config makes a tensor of this name a target.

    None if that is unknown: PEFT's regular expressions are for names in memory, which files may not have.
    """
    lists = [adapter.config.get(name) or [] for name in ("target_modules", "target_parameters", "exclude_modules")]
    lists.append(adapter.config.get("modules_to_save") or [])
    if not all(isinstance(one, list) and all(isinstance(word, str) for word in one) for one in lists):
        return None
    modules, parameters, excluded, saved = lists
    if adapter.kind == "paddle":
        return _matching(modules)
    words, excluded, saved = (
        [without_prefix(f"{word}.weight", config).removesuffix(".weight") for word in one]
        for one in (modules, excluded, saved)
    )
    layers = adapter.config.get("layers_to_transform")
    chosen = layers if isinstance(layers, list) else [] if layers is None else [layers]
    if any(type(number) is not int for number in chosen):
        return None

    def are_targets(name: str) -> bool:
        if parameters and _ends(_parameter(name, tensors, config), parameters):
            return True
        short = without_prefix(name, config)
        module = short.removesuffix(".weight")
        if module == short or _ends(module, excluded) or _ends(module, saved):
            return False
        if chosen and ((layer := layer_of(name)) is None or layer[1] not in chosen):
            return False
        return _ends(module, words)

    return are_targets


def _matching(patterns: Sequence[str]) -> Callable[[str], bool] | None:
    """Return a function that says whether Paddle's patterns match the layer of a weight; None if that could take long."""
    try:
        expressions = [re.compile(word) for word in patterns]
    except (re.error, OverflowError, RecursionError):
        return None
    if any(map(is_slow, patterns)):
        return None

    def are_targets(name: str) -> bool:
        return name.endswith(".weight") and any(one.fullmatch(name.removesuffix(".weight")) for one in expressions)

    return are_targets


def _parameter(name: str, tensors: Mapping[str, TensorEntry], config: Mapping[str, Any]) -> str:
    """Return the name of the parameter in memory that a tensor is a part of, without its beginning."""
    short = stem(name, config)
    if not (found := _EXPERT.search(short)):
        return short if short.endswith(_STACKS) else without_prefix(name, config)
    whole = "down_proj" if found[1] == "down" else "gate_up_proj"
    gates = name.replace("up_proj", "gate_proj"), name.replace("w3", "w1")
    if found[1] == "up" and not any(gate != name and gate in tensors for gate in gates):
        whole = "up_proj"
    return f"{short[: found.start()]}.experts.{whole}"


def _ends(name: str, words: Sequence[str]) -> bool:
    return any(name == word or name.endswith(f".{word}") for word in words)
