"""Split and fuse weights: query, key and value in one matrix, or gate and up in one. The results are views; no byte moves.

Which slices along `out` (the outputs of a Linear layer) belong to which weight:

    PaddleNLP, PaddleFormers        qkv_proj            by groups: the queries of one key head, the key, its value; repeated
    Phi-3, in every layout          qkv_proj            [queries | keys | values]
    PaddleNLP                       gate_up_fused_proj  [gate | up]
    PaddleFormers                   up_gate_proj        [gate | up]
    Phi-3 and GLM, in every layout  gate_up_proj        [gate | up]

[gate | up] are the halves of the matrix at hand: experts and shared experts have widths of their own. Other fused weights
are not split, because wrong slices would give a model with right shapes and wrong outputs.

The entry points are slices(), for one layer, split(), for one tensor, and refit(), for a whole checkpoint.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any

from ..checkpoints.config_json import widths
from ..checkpoints.names import last_word
from ..checkpoints.parts import MAX_PARTS
from ..checkpoints.tensors import TensorEntry
from ..checkpoints.views import Range, join, repeated, select
from ..errors import MalformedError
from ..parsing import shown
from .modules import is_language

_QKV, _FFN = ("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj")
# Names of fused layers -> the names of the layers that they consist of.
PIECES = {"qkv_proj": _QKV, "gate_up_fused_proj": _FFN, "up_gate_proj": _FFN, "gate_up_proj": _FFN}
# Model types whose qkv_proj PaddleNLP or PaddleFormers fuses by groups, and whose weights Hugging Face stores separately.
BY_GROUPS = (
    *("llama", "qwen2", "qwen2_moe", "qwen3", "qwen3_moe", "qwen3_next", "ernie4_5", "ernie4_5_moe", "gemma3_text"),
    *("glm4_moe", "qwen2_5_vl", "qwen2_5_vl_text", "qwen3_vl", "qwen3_vl_text", "qwen3_vl_moe", "qwen3_vl_moe_text"),
)
# Of these, those whose q_proj holds a gate behind each head's query, so that it is twice as wide as the heads.
_GATED = ("qwen3_next",)
# Model types that are fused in every layout, in the same way.
ALWAYS_FUSED = {"qkv_proj": ("phi3",), "gate_up_proj": ("phi3", "glm", "glm4")}
# Of those fused by groups, PaddleFormers never fuses Llama's layers, and always the others': q, k and v, and gate and up.
FUSED_IN_PADDLEFORMERS = tuple(family for family in BY_GROUPS if family != "llama")
# Model types that PaddleFormers has in memory otherwise still: in classes of paddlefleet, which is not on PyPI, or, GLM-OCR,
# with an untied lm_head that is [h, V].
UNKNOWN_IN_PADDLEFORMERS = (
    *("qwen3_5", "qwen3_5_text", "qwen3_5_moe", "qwen3_5_moe_text", "minimax_m2", "kimi_k2", "kimi_k25", "deepseek_v32"),
    *("deepseek_v4", "glm_moe_dsa", "glm4v_moe", "glm4v_moe_text", "qwen3_omni_moe", "glm_ocr"),
    "glm_ocr_text",
)
_FFN_NAMES = {"paddlenlp": "gate_up_fused_proj", "paddleformers": "up_gate_proj"}


def slices(
    word: str, layout: str | None, config: Mapping[str, Any], outputs: int | None = None
) -> dict[str, list[Range]] | None:
    """Return which indices along a fused layer's `out` belong to which layer: {"q_proj": [(0, 8), (16, 24)], ...}.

    word: the fused layer's name, a key of PIECES. layout: that of its checkpoint. config: the model's config.json, which
    gives the sizes of query, key and value. outputs: those of the fused layer, of which gate and up are the halves; None:
    config.json's intermediate_size gives theirs. Returns None if it is unknown how this model type fuses the layer in this
    layout, or if the sizes aren't given.
    """
    sizes, family = widths(config), config.get("model_type")
    always = always_fused(word, family) and layout in ("hf", "paddleformers")
    if word == "qkv_proj":
        if not {"head", "heads", "kv"} <= sizes.keys() or sizes["heads"] % sizes["kv"]:
            return None
        if not always and (family not in BY_GROUPS or layout not in _FFN_NAMES):
            return None
        groups = 1 if always else sizes["kv"] // sizes["head"]
        if groups > MAX_PARTS:
            return None
        queries, keys = sizes["heads"] * (2 if family in _GATED else 1) // groups, sizes["kv"] // groups
        return repeated(_QKV, [queries, keys, keys], groups)
    inner = sizes.get("intermediate") if outputs is None else outputs // 2
    if word not in PIECES or not inner:
        return None
    if not always and word != _FFN_NAMES.get(str(layout)):
        return None
    return repeated(_FFN, [inner] * 2, 1)


def always_fused(word: str, family: Any) -> bool:
    """Return whether models of this type have the fused layer `word` in every layout. family: config.json's model_type."""
    return family in ALWAYS_FUSED.get(word, ())


# --- whole checkpoints -----------------------------------------------------------------------------------------------


def fused_name(word: str, layout: str, goal: str, config: Mapping[str, Any]) -> str | None:
    """Return the name that the fused layer `word` of layout `layout` has in layout `goal`.

    None if it is not fused there, or if that is unknown.
    """
    if layout == goal or (always_fused(word, config.get("model_type")) and "paddlenlp" not in (layout, goal)):
        return word
    if "hf" in (layout, goal) or slices(word, layout, config, outputs=2) is None:  # of any size
        return None
    return word if word == "qkv_proj" else _FFN_NAMES[goal]


def split_names(names: Iterable[str], layout: str, config: Mapping[str, Any]) -> set[str]:
    """Return the tensors' names with each fused layer replaced by its pieces, unless Hugging Face's layout fuses it too."""
    found = set()
    for name in names:
        word = last_word(name)
        if word in PIECES and fused_name(word, layout, "hf", config) is None:
            found |= {_renamed(name, piece) for piece in PIECES[word]}
        else:
            found.add(name)
    return found


def names_in_paddleformers(names: Iterable[str], config: Mapping[str, Any]) -> set[str]:
    """Return the tensors' names with the layers fused that PaddleFormers always fuses in models of this type.

    These are layers of the language model, not of vision towers. Raises MalformedError for a model type whose names in
    PaddleFormers aren't known.
    """
    family = config.get("model_type")
    if family in UNKNOWN_IN_PADDLEFORMERS:
        raise MalformedError(
            f"can't be written as PaddleFormers has a model of type {shown(family)} in memory, because that isn't known;"
            " leave out --output_layout paddleformers (for the Python API, save_to_hf=False): PaddleFormers loads Hugging"
            " Face's layout"
        )
    if family not in FUSED_IN_PADDLEFORMERS:
        return set(names)
    fused = {**dict.fromkeys(_QKV, "qkv_proj"), **dict.fromkeys(_FFN, _FFN_NAMES["paddleformers"])}
    return {
        _renamed(name, fused[last_word(name)]) if last_word(name) in fused and is_language(name) else name for name in names
    }


def refit(
    tensors: Mapping[str, TensorEntry], wanted: Collection[str], layout: str, config: Mapping[str, Any]
) -> tuple[dict[str, TensorEntry], list[str], list[str]]:
    """Split and fuse the tensors of a checkpoint, so that they have the names in `wanted` where that is possible.

    layout: that of the tensors. config: the model's config.json. Returns the tensors; the names of those that were split or
    fused; and a sentence on each that can't be, which begins with its name. Tensors that are not concerned stay as they are.
    """
    found: dict[str, TensorEntry] = {}
    made: list[str] = []
    problems: list[str] = []
    for name, entry in tensors.items():
        if name in wanted:
            found[name] = entry
            continue
        word = last_word(name)
        fused = [whole for whole, pieces in PIECES.items() if word in pieces and _renamed(name, whole) in wanted]
        pieces = [_renamed(name, piece) for piece in PIECES.get(word, ())]
        try:
            if pieces and all(piece in wanted for piece in pieces):
                taken = split(entry, layout, config)
            elif fused:
                if _renamed(name, fused[0]) in made:
                    continue
                taken = _fuse(tensors, name, fused[0], layout, config)
            else:
                found[name] = entry
                continue
            made += [new for new in taken if new not in found]
            if twice := [new for new in taken if new in tensors]:
                raise MalformedError(f"would be converted to {twice[0]!r}, which exists already")
        except MalformedError as error:
            problems.append(f"tensor {name!r} {error}")
            continue
        found |= taken
    return found, made, problems


def split(entry: TensorEntry, layout: str, config: Mapping[str, Any]) -> dict[str, TensorEntry]:
    """Return the pieces of a fused tensor, by name. Raises MalformedError if its size contradicts config.json."""
    axis = _axis(entry, layout)
    ranges = _certain(last_word(entry.name), layout, config, entry.shape[axis])
    total = max(stop for piece in ranges.values() for _, stop in piece)
    if entry.shape[axis] != total:
        raise MalformedError(f"is {list(entry.shape)}, but config.json says {total} along axis {axis}")
    hidden = widths(config).get("hidden")
    if len(entry.shape) == 2 and hidden and entry.shape[1 - axis] != hidden:
        raise MalformedError(f"is {list(entry.shape)}, but config.json says {hidden} along axis {1 - axis}")
    names = {word: _renamed(entry.name, word) for word in ranges}
    return {names[word]: select(entry, axis, piece, names[word]) for word, piece in ranges.items()}


def _fuse(
    tensors: Mapping[str, TensorEntry], name: str, word: str, layout: str, config: Mapping[str, Any]
) -> dict[str, TensorEntry]:
    """Return {name: tensor} of the fused tensor of layer `word` that contains `name`. Raises MalformedError."""
    axis = _axis(tensors[name], layout)
    ranges = _certain(word, layout, config, 2 * tensors[name].shape[axis])
    whole, entries = _renamed(name, word), {piece: tensors.get(_renamed(name, piece)) for piece in ranges}
    held = {piece: entry for piece, entry in entries.items() if entry is not None}
    if len(held) < len(ranges):
        raise MalformedError(f"would be fused into {whole!r}, but not all of {', '.join(ranges)} exist")
    return {whole: join(held, axis, ranges, whole)}


def _certain(word: str, layout: str, config: Mapping[str, Any], outputs: int) -> dict[str, list[Range]]:
    """Return slices(), and raise MalformedError where it returns None."""
    ranges = slices(word, layout, config, outputs)
    if ranges is None:
        raise MalformedError(
            f"can't be converted between {word} and {', '.join(PIECES[word])}: how a model of type"
            f" {shown(config.get('model_type'))} in layout {layout} fuses them isn't known, or config.json doesn't give the"
            " sizes"
        )
    return ranges


def _axis(entry: TensorEntry, layout: str) -> int:
    """Return the axis of a tensor that is `out`. Raises MalformedError unless it is the weight or bias of a Linear layer."""
    kind = entry.name.rpartition(".")[2]
    if (kind, len(entry.shape)) not in (("weight", 2), ("bias", 1)):
        raise MalformedError(f"{list(entry.shape)} is not the weight or bias of one Linear layer, so it can't be converted")
    return 1 if kind == "weight" and layout != "hf" else 0


def _renamed(name: str, word: str) -> str:
    """Return a tensor's name with the name of its layer replaced by `word`."""
    *module, _, kind = name.split(".")
    return ".".join([*module, word, kind])
