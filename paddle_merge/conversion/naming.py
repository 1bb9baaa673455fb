"""Match the names that libraries, versions and wrappers give the same tensors.

wrappers of training         module.X, _orig_mod.X, X._fsdp_wrapped_module.Y
vision-language models       model.layers, language_model.model.layers (as the hub has them; transformers before 4.52),
                             model.language_model.layers (transformers from 4.52 on, in memory, and PEFT)
models with another head     bert.encoder, transformer.h, or without the first word
layer normalisation          LayerNorm.gamma and .beta, from the first BERT
"""

from __future__ import annotations

import dataclasses
import functools
from collections import Counter
from collections.abc import Iterable, Sequence

from ..checkpoints.tensors import Checkpoint
from ..errors import CheckpointError
from ..parsing import tensors_named
from .optional import is_buffer

_WRAPPERS = {"_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "_forward_module"}
_FIRST = {"module", "model", "language_model"}  # words that may precede the same names, one after the other
# Words that precede the names of a model with a head, and are missing in one without.
_BODIES = {
    *("albert", "bert", "deberta", "distilbert", "electra", "esm", "gpt_neox", "mpnet", "roberta", "transformer"),
    *("vit", "xlm_roberta"),
}
_PREFIXES = ("model.", "model.language_model.")  # of Qwen2.5-VL's language model: the hub's, and the one in memory
_FLEET_EMBEDDING = "model.embedding.embed_tokens.weight"
# What paddlefleet's classes call otherwise than the others of PaddleFormers.
_FLEET = (
    ("model.embedding.embed_tokens.", "model.embed_tokens."),
    ("model.lm_head.", "lm_head."),
    (".self_attn.q_layernorm.", ".self_attn.q_norm."),
    (".self_attn.k_layernorm.", ".self_attn.k_norm."),
)
_AFFINE = {"gamma": "weight", "beta": "bias"}
# Model types whose names in memory have been others than those in files since transformers 4.52.
_RENAMED = {
    *("aria", "aya_vision", "emu3", "gemma3", "got_ocr2", "internvl", "llava", "llava_next", "llava_next_video"),
    *("llava_onevision", "mistral3", "mllama", "paligemma", "qwen2_5_vl", "qwen2_vl", "shieldgemma2", "video_llava"),
    "vipllava",
}


def plain(name: str) -> str:
    """Return what a tensor's name has in common with its other names: "layers.0.mlp.up_proj.weight"."""
    words = [word for word in name.split(".") if word not in _WRAPPERS]
    while len(words) > 2 and words[0] in _FIRST:
        del words[0]
    if len(words) > 2 and words[0] in _BODIES:
        del words[0]
    if len(words) > 1 and words[-1] in _AFFINE and "norm" in words[-2].lower():
        words[-1] = _AFFINE[words[-1]]
    return ".".join(words)


def by_plain_name(names: Iterable[str]) -> dict[str, str]:
    """Return the names by their plain names, without those that share one."""
    found: dict[str, list[str]] = {}
    for name in names:
        found.setdefault(plain(name), []).append(name)
    return {short: its[0] for short, its in found.items() if len(its) == 1}


def in_one_naming(inputs: Sequence[Checkpoint], mend: bool) -> tuple[tuple[Checkpoint, ...], list[str]]:
    """Return the inputs with tensors named as in the one that has most; and a sentence on each that was renamed.

    Buffers don't count, and an input whose names contain wrappers of training only counts where all do.

    Only tensors that the others call otherwise are renamed, and only where the names can't be mistaken. mend: whether names
    that PaddleFormers got wrong are mended.
    """
    if mend:
        inputs = [_with_one_prefix(one) for one in inputs]
    like = max(inputs, key=_says_how_to_name)
    theirs = by_plain_name(like.tensors)
    result, notes = [], list[str]()
    for one in inputs:
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


def without_fleet_names(inputs: Sequence[Checkpoint], target: str | None) -> list[Checkpoint]:
    """Return the inputs with tensors that are named as in paddlefleet's classes of PaddleFormers named as in its others.

    The Trainer's checkpoints have such names. They stay if all inputs have them and Hugging Face's layout isn't asked for.
    target: the layout that the user asks for. Raises CheckpointError for mixtures of experts: their routers and experts are
    stored otherwise, too. Source: PaddleFormers 1.2.0's _gen_inv_aoa_config of Qwen2 and Qwen3.
    """
    named = [_FLEET_EMBEDDING in one.tensors for one in inputs]
    if not any(named) or (all(named) and target != "hf"):
        return list(inputs)
    result, problems = list[Checkpoint](), list[str]()
    for one, fleet in zip(inputs, named, strict=True):
        experts = [name for name in one.tensors if ".mlp.gate." in name or "experts" in name] if fleet else []
        if experts:
            problems.append(
                f"{one.path}: stores {tensors_named(experts)} as paddlefleet's classes have them in memory, which can't be"
                " converted; give the model as PaddleFormers saves it by default, in Hugging Face's layout"
            )
        new = {name: functools.reduce(lambda x, pair: x.replace(*pair), _FLEET, name) for name in one.tensors if fleet}
        tensors = {new.get(name, name): entry.renamed(new.get(name, name)) for name, entry in one.tensors.items()}
        result.append(dataclasses.replace(one, tensors=tensors))
    if problems:
        raise CheckpointError(problems)
    return result


def in_files(name: str, family: str) -> str:
    """Return the name that a tensor has in files that PaddleFormers and transformers both open.

    name: as a file or PaddleFormers' Trainer, which saves names as they are in memory, has it. family: the model's
    model_type. Source: PaddleFormers 1.2.0's _gen_aoa_config of Qwen2.5-VL.
    """
    if family in ("qwen2_5_vl", "qwen2_5_vl_text"):
        for memory, file in (("model.language_model.", "model."), ("model.visual.", "visual.")):
            if name.startswith(memory):
                return file + name.removeprefix(memory)
    return name


def _with_one_prefix(one: Checkpoint) -> Checkpoint:
    """Return a checkpoint with all tensors of the language model named as most are.

    PaddleFormers 1.2 saves the biases of Qwen2.5-VL under another prefix than the weights, and can't load them then.
    """
    if not all(any(name.startswith(f"{prefix}layers.") for name in one.tensors) for prefix in _PREFIXES):
        return one
    stems = {name: plain(name) for name in one.tensors if name.startswith(_PREFIXES) and ".layers." in name}
    counts = Counter(name.removesuffix(stem) for name, stem in stems.items() if stem.startswith("layers."))
    if set(counts) != set(_PREFIXES) or len(set(stems.values())) < len(stems):
        return one
    ((prefix, _),) = counts.most_common(1)
    new = {name: prefix + stem for name, stem in stems.items() if stem.startswith("layers.")}
    tensors = {new.get(name, name): entry.renamed(new.get(name, name)) for name, entry in one.tensors.items()}
    return dataclasses.replace(one, tensors=tensors)


def _says_how_to_name(one: Checkpoint) -> tuple[bool, int]:
    """Return what is greatest for the input whose names the output gets."""
    wrapped = any(name.startswith("module.") or not _WRAPPERS.isdisjoint(name.split(".")) for name in one.tensors)
    return not wrapped, sum(not is_buffer(name, entry) for name, entry in one.tensors.items())


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
