"""Match the names that libraries, versions and wrappers give the same tensors.

wrappers of training         module.X, _orig_mod.X, X._fsdp_wrapped_module.Y
vision-language models       model.layers, language_model.model.layers (as the hub has them; transformers before 4.52),
                             model.language_model.layers (transformers from 4.52 on, in memory, and PEFT)
models with another head     bert.encoder, transformer.h, or without the first word
layer normalisation          LayerNorm.gamma and .beta, from the first BERT
transformers 5 in memory     mlp, in files block_sparse_moe; a router's parts; lm_head, embed_out; stacked experts
"""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Iterable, Sequence

from ..checkpoints.names import MOST_NAMES
from ..checkpoints.tensors import Checkpoint
from .optional import is_buffer
from .stacked_experts import with_experts_apart

_WRAPPERS = {"_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "_forward_module"}
_FIRST = {"module", "model", "language_model", "backbone"}  # words that may precede the same names, one after the other
# Words that precede the names of a model with a head, and are missing in one without.
_BODIES = {
    *("albert", "bert", "deberta", "distilbert", "electra", "esm", "gpt_neox", "mpnet", "roberta", "transformer"),
    *("vit", "xlm_roberta"),
}
_AFFINE = {"gamma": "weight", "beta": "bias"}
_OTHER_WORDS = {"block_sparse_moe": "mlp", "embed_out": "lm_head"}  # embed_out: GPT-NeoX's, in files
# What is called otherwise in files and in the memory of transformers 5, in one of its names: Phi-MoE's, ERNIE's and EXAONE's
# routers, and Granite's experts.
_PARTS = (
    (re.compile(r"\bmlp\.router(\.layer)?\.weight$"), "mlp.gate.weight"),
    (re.compile(r"\bmlp\.gate\.((moe_statics\.)?e_score_correction_bias)$"), r"mlp.\1"),
    (re.compile(r"\bmlp\.input_linear\.weight$"), "mlp.experts.gate_up_proj"),
    (re.compile(r"\bmlp\.output_linear\.weight$"), "mlp.experts.down_proj"),
)
# A name like these is that of a file, where an input has another name for the same tensor.
_IN_FILES = re.compile(r"\b(experts\.\d+|embed_out|backbone|input_linear|mlp\.(moe_statics\.)?e_score_correction_bias)\b")
# Model types whose names in memory have been others than those in files since transformers 4.52.
_RENAMED = {
    *("aria", "aya_vision", "emu3", "gemma3", "got_ocr2", "internvl", "llava", "llava_next", "llava_next_video"),
    *("llava_onevision", "mistral3", "mllama", "paligemma", "qwen2_5_vl", "qwen2_vl", "shieldgemma2", "video_llava"),
    "vipllava",
}


def plain(name: str) -> str:
    """Return what a tensor's name has in common with its other names: "layers.0.mlp.up_proj.weight"."""
    words = [_OTHER_WORDS.get(word, word) for word in name.split(".") if word not in _WRAPPERS]
    while len(words) > 2 and words[0] in _FIRST:
        del words[0]
    if len(words) > 2 and words[0] in _BODIES:
        del words[0]
    if len(words) > 1 and words[-1] in _AFFINE and "norm" in words[-2].lower():
        words[-1] = _AFFINE[words[-1]]
    short = ".".join(words)
    for pattern, new in _PARTS:
        short = pattern.sub(new, short)
    return short


def by_plain_name(names: Iterable[str]) -> dict[str, str]:
    """Return the names by their plain names, without those that share one."""
    found: dict[str, list[str]] = {}
    for name in names:
        found.setdefault(plain(name), []).append(name)
    return {short: its[0] for short, its in found.items() if len(its) == 1}


def in_one_naming(inputs: Sequence[Checkpoint]) -> tuple[tuple[Checkpoint, ...], list[str]]:
    """Return the inputs with tensors named as in the one that has most; and a sentence on each that was renamed.

    Buffers don't count, and an input whose names contain wrappers of training only counts where all do.

    Only tensors that the others call otherwise are renamed, and only where the names can't be mistaken.
    """
    apart, notes = with_experts_apart(inputs, plain)
    if all(one.tensors.keys() == apart[0].tensors.keys() for one in apart[1:]):
        return tuple(apart), notes
    like = max(zip(apart, inputs, strict=True), key=lambda pair: _says_how_to_name(*pair))[0]
    alike = all(one.tensors.keys() <= like.tensors.keys() for one in apart)
    theirs = {} if alike else by_plain_name(like.tensors)
    result = []
    for one in apart:
        mine = by_plain_name(name for name in one.tensors if name not in like.tensors)
        new = {name: theirs[short] for short, name in mine.items() if short in theirs}
        new = {name: other for name, other in new.items() if other not in one.tensors}
        if new:
            tensors = {new.get(name, name): entry.renamed(new.get(name, name)) for name, entry in one.tensors.items()}
            one = dataclasses.replace(one, tensors=tensors)
            example = next(iter(new.items()))
            count = f"{len(new)} tensors" if len(new) > 1 else "1 tensor"
            notes.append(f"{one.path}: {count} named as in {like.path}: {example[0]} is {example[1]} there")
        result.append(one)
    return tuple(result), notes


def _says_how_to_name(one: Checkpoint, stored: Checkpoint) -> tuple[bool, bool, int]:
    """Return what is greatest for the input whose names the output gets: loaders look for those of files.

    stored: the input before its experts were taken apart.
    """
    return (
        not any(map(_is_wrapped, one.tensors)),
        any(map(_IN_FILES.search, stored.tensors)),
        sum(not is_buffer(name, entry) for name, entry in one.tensors.items()),
    )


@functools.lru_cache(MOST_NAMES)
def _is_wrapped(name: str) -> bool:
    """Return whether a name contains a wrapper of training."""
    return name.startswith("module.") or not _WRAPPERS.isdisjoint(name.split("."))


def in_memory(module: str, family: str) -> str:
    """Return the name that a module has in memory in current versions of transformers, where PEFT looks for it.

    module: its name as files have it, "model.norm". family: the model's model_type.
    """
    if family not in _RENAMED:
        return module
    short = plain(f"{module}.weight").removesuffix(".weight")
    first = short.split(".")[0]
    if first == "lm_head":
        return short
    return f"model.language_model.{short}" if first in ("layers", "embed_tokens", "norm") else f"model.{short}"
