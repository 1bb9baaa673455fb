"""Leave out tensors that only some inputs hold and that no loader needs: buffers, and layers that predict further tokens.

Older libraries stored what is computed from the configuration, such as the frequencies of rotary embeddings; newer ones
don't, and ignore it where it is stored. Layers for multi-token prediction (DeepSeek-V3's last one) are ignored likewise.
"""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Mapping, Sequence
from dataclasses import field
from typing import Any

from ..checkpoints.config_json import read_config
from ..checkpoints.names import HEAD, MOST_NAMES, layer_of
from ..checkpoints.tensors import Checkpoint, Origin, TensorEntry, origins
from ..parsing import tensors_named
from ..records import record
from .modules import suggested

_BUFFER = re.compile(
    r"(.*\.)?(inv_freq|(cos|sin)_cached|position_ids|token_type_ids|relative_position_index|num_batches_tracked"
    r"|(attn|attention|self)\.masked_bias|masked_bias)"
)
_CAUSAL_MASK = re.compile(r"(.*\.)?(attn|attention|self)\.bias")  # GPT-2's and GPT-NeoX's, of four axes
_COUNTER = "num_batches_tracked"  # of a batch normalisation; it has no effect once the model is trained
_FURTHER = re.compile(r"(.*\.)?(mtp|mtp_\w+|nextn\w*)\.")


@record(frozen=True)
class WithoutOptional:
    """Hold inputs without what not all of them need to hold.

    notes: sentences on what was left out. why: the reason for each tensor that is no longer read, by its origin.
    """

    inputs: tuple[Checkpoint, ...]
    notes: list[str] = field(default_factory=list)
    why: dict[Origin, str] = field(default_factory=dict)


def without_optional(inputs: Sequence[Checkpoint]) -> WithoutOptional:
    """Return the inputs without optional tensors that not all of them hold, and with the last input's counters in all."""
    everywhere = set.intersection(*(set(one.tensors) for one in inputs))
    further = {one.path: _further(read_config(one.folder)) for one in inputs}
    left: dict[str, list[str]] = {}
    counters: dict[str, TensorEntry] = {}
    for name, entry in {name: entry for one in inputs for name, entry in one.tensors.items()}.items():
        if name in everywhere:
            if name.endswith(_COUNTER) and not entry.dtype.is_float:
                counters[name] = inputs[-1].tensors[name]
        elif is_buffer(name, entry):
            left.setdefault("loaders compute them", []).append(name)
        elif all(_is_further(name, further[one.path]) for one in inputs if name in one.tensors):
            left.setdefault("they predict further tokens, and loaders ignore them", []).append(name)
    reasons = {name: why for why, names in left.items() for name in names}
    result, whys = [], dict[Origin, str]()
    for one in inputs:
        kept = {name: counters.get(name, entry) for name, entry in one.tensors.items() if name not in reasons}
        for name, entry in one.tensors.items():
            if name in reasons or kept[name] is not entry:
                whys |= dict.fromkeys(origins(entry), reasons.get(name, "a counter, taken from another input"))
        result.append(dataclasses.replace(one, tensors=kept) if reasons or counters else one)
    notes = [
        f"{tensors_named(names)} {'is' if len(names) == 1 else 'are'} not in all inputs, and left out ({why})"
        for why, names in left.items()
    ]
    if counters:
        notes.append(f"{tensors_named(list(counters))}: taken from {inputs[-1].path} (counters of training steps)")
    return WithoutOptional(tuple(result), notes, whys)


def is_buffer(name: str, entry: TensorEntry) -> bool:
    """Return whether a tensor is one that loaders compute from the configuration."""
    return _is_buffer(name) or (len(entry.shape) == 4 and bool(_CAUSAL_MASK.fullmatch(name)))


@functools.lru_cache(MOST_NAMES)
def _is_buffer(name: str) -> bool:
    return bool(_BUFFER.fullmatch(name))


def _further(config: Mapping[str, Any]) -> range:
    """Return the numbers of the layers behind the last that predict further tokens."""
    depth, count = config.get("num_hidden_layers"), config.get("num_nextn_predict_layers")
    return range(depth, depth + count) if type(depth) is int and type(count) is int else range(0)


def _is_further(name: str, further: range) -> bool:
    """Return whether a tensor belongs to a layer of the language model that predicts further tokens."""
    layer = layer_of(name)
    return bool(_FURTHER.match(name)) or (
        layer is not None and layer[1] in further and suggested([name]) == suggested([HEAD])
    )
