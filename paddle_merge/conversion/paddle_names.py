"""Match names that only PaddleFormers gives tensors: paddlefleet's classes, its Trainer, and a mistaken prefix."""

from __future__ import annotations

import dataclasses
import functools
from collections import Counter
from collections.abc import Sequence

from ..checkpoints.tensors import Checkpoint
from ..errors import CheckpointError
from ..parsing import tensors_named
from .naming import plain

_PREFIXES = ("model.", "model.language_model.")  # of Qwen2.5-VL's language model: the hub's, and the one in memory
_FLEET_EMBEDDING = "model.embedding.embed_tokens.weight"
# What paddlefleet's classes call otherwise than the others of PaddleFormers.
_FLEET = (
    ("model.embedding.embed_tokens.", "model.embed_tokens."),
    ("model.lm_head.", "lm_head."),
    (".self_attn.q_layernorm.", ".self_attn.q_norm."),
    (".self_attn.k_layernorm.", ".self_attn.k_norm."),
)


def in_standard_names(inputs: Sequence[Checkpoint], target: str | None) -> list[Checkpoint]:
    """Return the inputs with tensors named as PaddleFormers' own files name them. target: the layout that the user asks for.

    A single input keeps a mistaken prefix if no layout is asked for: an adapter folded into its base changes no names.
    Raises CheckpointError as without_fleet_names does.
    """
    plainly = without_fleet_names(inputs, target)
    return [with_one_prefix(one) for one in plainly] if len(inputs) > 1 or target is not None else plainly


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


def with_one_prefix(one: Checkpoint) -> Checkpoint:
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
