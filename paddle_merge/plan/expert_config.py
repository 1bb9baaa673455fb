"""Adapt config.json to fewer experts, and find what it can't say of the experts that an output keeps."""

from __future__ import annotations

from collections.abc import Mapping, Set
from typing import Any

from .layer_config import DEPTHS

# What config.json calls the number of experts, and how many of them a token is sent to.
COUNTS = (
    *("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts", "num_routed_experts"),
    *("n_experts", "num_moe_experts"),
)
PER_TOKEN = (
    *("num_experts_per_tok", "num_experts_per_token", "experts_per_token", "moe_k", "moe_topk", "moe_top_k"),
    *("top_k_experts", "num_selected_experts"),
)
# Settings that say which layers have experts.
KINDS = (
    *("mlp_layer_types", "mlp_only_layers", "decoder_sparse_step", "first_k_dense_replace", "moe_layer_freq"),
    *("moe_layer_start_index", "moe_layer_end_index", "moe_layer_interval"),
)


def with_experts(config: Mapping[str, Any], before: int, after: int) -> dict[str, Any]:
    """Return config.json with `after` in place of the number of experts, `before`, in every section that has it."""
    new = {name: with_experts(value, before, after) if isinstance(value, dict) else value for name, value in config.items()}
    return new | {name: after for name in COUNTS if _is(new.get(name), before)}


def problems(config: Mapping[str, Any], before: int, after: int, path: str) -> list[str]:
    """Return why config.json can't say that a model has `after` experts instead of `before`.

    config: updated with its text_config; empty if there is none. path: of its folder, for messages.
    """
    found = list[str]()
    if not config:
        return found
    if not any(_is(config.get(name), before) for name in COUNTS):
        others = {name: config[name] for name in COUNTS if name in config}
        says = ", ".join(f"{name} {value}" for name, value in others.items()) or "none of " + ", ".join(COUNTS)
        found.append(f"{path}: config.json must give the number of experts, {before}, for keep_experts, and it has {says}")
    asked = {name: config[name] for name in PER_TOKEN if type(config.get(name)) is int}
    for name, value in asked.items():
        if value > after:
            found.append(f"{path}: a token is sent to {value} experts ({name}), so keep_experts must keep at least {value}")
    parts, top = config.get("n_group"), config.get("topk_group")
    if type(parts) is int and parts > 1 and config.get("topk_method") != "greedy":
        top = top if type(top) is int else parts
        least = parts * max(2, -(-max([*asked.values(), 1]) // top))
        if after % parts or after < least:
            found.append(
                f"{path}: its router ranks {parts} groups of experts by the best two of each, and sends a token to experts"
                f" of {top} of them (n_group, topk_group), so keep_experts must keep a multiple of {parts}, at least {least}"
            )
    return found


def misplaced(before: Mapping[str, Any], had: Set[int], after: Mapping[str, Any], has: Set[int]) -> str:
    """Return why loaders will take some layers for others than they are, with or without experts; "" if they won't.

    before, after: config.json, updated with its text_config, of the inputs and of the output. had, has: the layers that
    have experts. Where the former doesn't say which these are, in a way that is known here, nothing is said of the latter.
    """
    depth, left = (next((one[name] for name in DEPTHS if type(one.get(name)) is int), 0) for one in (before, after))
    had, has = ({number for number in its if number < end} for its, end in ((had, depth), (has, left)))
    if _predicted(before, depth) != had or (found := _predicted(after, left)) == has:
        return ""
    wrong = min(found ^ has)
    said = ", ".join(f"{name} {after[name]}" for name in KINDS if name in after)
    return (
        f"drop_layers moves layers with experts to where config.json can't say so: by {said}, layer {wrong} of the output"
        f" would {'have' if wrong in found else 'not have'} experts; drop other layers, so that the others move by a"
        " multiple of the period"
    )


def _predicted(config: Mapping[str, Any], depth: int) -> set[int]:
    """Return the layers that have experts by config.json's settings, as its libraries read them."""
    types = config.get("mlp_layer_types")
    if isinstance(types, list) and len(types) == depth:
        return {layer for layer, kind in enumerate(types) if kind == "sparse"}
    dense, step = config.get("mlp_only_layers"), _number(config, "decoder_sparse_step", 1)
    freq, every = _number(config, "moe_layer_freq", 1), _number(config, "moe_layer_interval", 1)
    first = max(_number(config, "first_k_dense_replace", 0), _number(config, "moe_layer_start_index", 0))
    last = _number(config, "moe_layer_end_index", -1)
    return {
        layer
        for layer in range(depth)
        if layer not in (dense if isinstance(dense, list) else ())
        and layer >= first
        and (last < 0 or layer <= last)
        and (layer + 1) % max(1, step) == 0
        and layer % max(1, freq) == 0
        and (layer + 1) % max(1, every) == 0
    }


def _number(config: Mapping[str, Any], name: str, default: int) -> int:
    value = config.get(name)
    return value if type(value) is int else default


def _is(value: Any, number: int) -> bool:
    return type(value) is int and value == number
