"""Store experts as a matrix for each, or as stacks of all. The results are views; no byte moves.

    split    L.experts.3.gate_proj.weight [i, h], .up_proj.weight [i, h], .down_proj.weight [h, i]; or .w1, .w3, .w2
    stacked  L.experts.gate_up_proj [E, 2 i, h], L.experts.down_proj [E, h, i]

Files of transformers 4 and 5 and of PaddleFormers are split for most models, and models in the memory of transformers 5 are
stacked. gpt-oss, Llama 4, Granite and others that are stacked in files, too, stay so: no library has them apart.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ...checkpoints.adapters import Adapter
from ...checkpoints.tensors import Checkpoint, TensorEntry
from ...checkpoints.views import join, stack
from ...errors import CheckpointError, MalformedError
from ..stacked_experts import matrices
from .layers import ExpertTensor, MoeLayer, has_experts, moe_layers

_SINGLE = re.compile(r"\.experts\.\d+\.")
_WORDS = (("gate_proj", "up_proj", "down_proj"), ("w1", "w3", "w2"))
_WITH_NUMBERS = ("mixtral", "minimax", "minimax_m2", "phimoe", "lfm2_moe")  # families whose files have w1, w3 and w2
# Families whose layers are called mlp in memory, and block_sparse_moe in files.
_SPARSE = ("mixtral", "minimax", "minimax_m2", "phimoe")


def split(one: Checkpoint, config: Mapping[str, Any], asked: bool) -> tuple[Checkpoint, str]:
    """Return a checkpoint with a matrix for each expert, and a sentence on what was done; "" if nothing was.

    config: the model's config.json. asked: whether to raise CheckpointError where experts are stacked in a way that no
    library has apart, or that isn't understood; else these stay.
    """
    if not has_experts(one.tensors):
        return one, ""
    try:
        return _split(one, config)
    except CheckpointError:
        if asked:
            raise
        return one, ""


def _split(one: Checkpoint, config: Mapping[str, Any]) -> tuple[Checkpoint, str]:
    layers = _layers(one, config)
    stacked = [layer for layer in layers.values() if layer.experts[0].stacked]
    if not stacked:
        return one, ""
    words = _WORDS[config.get("model_type") in _WITH_NUMBERS]
    tensors, changed = dict(one.tensors), dict[str, dict[str, TensorEntry]]()
    try:
        for layer in stacked:
            for tensor in layer.experts:
                entry = tensors[tensor.names[0]]
                changed[entry.name] = matrices(entry, _words(entry, tensor, words), f"{layer.prefix}.experts.")
    except MalformedError as error:
        raise CheckpointError(f"{one.path}: {error}; leave out --expert_layout split") from None
    found: dict[str, TensorEntry] = {}
    for name, entry in tensors.items():
        for new, its in changed.get(name, {name: entry}).items():
            named = _in_files(new, config) if any(new.startswith(f"{layer.prefix}.") for layer in stacked) else new
            if named in found:
                raise CheckpointError(f"{one.path}: tensor {name!r} would become {named!r}, which exists already")
            found[named] = its.renamed(named)
    return dataclasses.replace(one, tensors=found), f"{one.path}: the experts of {len(stacked)} layers are read one by one"


def stacked(one: Checkpoint, config: Mapping[str, Any], layout: str | None) -> tuple[Checkpoint, str]:
    """Return a checkpoint with stacks of experts, and a sentence on what was done; "" if nothing was.

    layout: of the tensors. Raises CheckpointError if it isn't Hugging Face's, or where experts can't be stacked.
    """
    its = _layers(one, config) if has_experts(one.tensors) else {}
    layers = [layer for layer in its.values() if not layer.experts[0].stacked]
    if not layers:
        return one, ""
    if layout != "hf":
        raise CheckpointError(
            f"{one.path}: --expert_layout stacked is for Hugging Face's layout, and this is {layout or 'an unknown one'}:"
            " pass --output_layout hf too"
        )
    changed: dict[str, TensorEntry] = {}  # new tensors, by the names of those that they begin with
    gone = set[str]()
    try:
        for layer in layers:
            changed |= _together(one.tensors, layer)
            gone |= {name for tensor in layer.experts for name in tensor.names}
    except MalformedError as error:
        raise CheckpointError(f"{one.path}: {error}; leave out --expert_layout stacked") from None
    tensors: dict[str, TensorEntry] = {}
    for name, entry in one.tensors.items():
        if name in changed:
            tensors[changed[name].name] = changed[name]
        elif name not in gone:
            tensors[name] = entry
    return dataclasses.replace(one, tensors=tensors), f"{one.path}: the experts of {len(layers)} layers are stacked"


def problems_of_adapters(adapters: Iterable[Adapter]) -> list[str]:
    """Return a sentence on each adapter that changes single experts, which can't be stacked then: they aren't stored so."""
    return [
        f"{one.path}: adapts single experts, which --expert_layout stacked can't stack: fold it into its base"
        " first, with --lora_model_path, and stack the experts in a second merge"
        for one in adapters
        if any(_SINGLE.search(name) for name in one.tensors)
    ]


def _layers(one: Checkpoint, config: Mapping[str, Any]) -> dict[str, MoeLayer]:
    try:
        return moe_layers(one.tensors, config, "hf")
    except MalformedError as error:
        raise CheckpointError(f"{one.path}: {error}") from None


def _words(entry: TensorEntry, tensor: ExpertTensor, words: tuple[str, str, str]) -> Sequence[str]:
    """Return what each expert has in a stack. Raises MalformedError for a stack that no library has apart."""
    known = {"gate_up_proj": words[:2], "up_proj": ("up_proj",), "down_proj": words[2:]}
    up = tensor.word != "down_proj"
    if tensor.word not in known or len(entry.shape) != 3 or tensor.neurons != int(not up) or tensor.pairs == "interleaved":
        raise MalformedError(
            f"{entry.name!r}, {list(entry.shape)}, can't be split: it is stacked in the files of its family, too"
        )
    return known[tensor.word]


def _together(tensors: Mapping[str, TensorEntry], layer: MoeLayer) -> dict[str, TensorEntry]:
    """Return the stacks of a layer, by the names of the first tensors in each. Raises MalformedError."""
    by_word = {tensor.word: tensor.names for tensor in layer.experts}
    words = next((words for words in _WORDS if set(words) == set(by_word) and len(layer.experts) == 3), None)
    if words is None:
        raise MalformedError(f"the experts of {layer.prefix!r} have {', '.join(by_word)}, which no library stacks")
    gate, up, down = ([tensors[name] for name in by_word[word]] for word in words)
    name, halves = (
        f"{layer.prefix}.experts.gate_up_proj",
        {"gate": [(0, layer.neurons)], "up": [(layer.neurons, 2 * layer.neurons)]},
    )
    both = [join({"gate": first, "up": second}, 0, halves, name) for first, second in zip(gate, up, strict=True)]
    return {gate[0].name: stack(both, name), down[0].name: stack(down, f"{layer.prefix}.experts.down_proj")}


def _in_files(name: str, config: Mapping[str, Any]) -> str:
    """Return the name that files have for a tensor of a layer of experts as it is called in memory."""
    if config.get("model_type") not in _SPARSE:
        return name
    return name.replace(".mlp.", ".block_sparse_moe.", 1).replace(".router.weight", ".gate.weight")
