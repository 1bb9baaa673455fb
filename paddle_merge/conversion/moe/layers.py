"""Tell which tensors belong to a layer of experts, and what their axes are, by names and shapes.

E: experts, h: hidden size, i: neurons of an expert.

    apart    L.experts.3.gate_proj.weight [i, h], .up_proj, .down_proj [h, i]; or .w1, .w3, .w2; fused: up_gate_proj [2 i, h]
    stacked  L.experts.gate_up_proj [E, 2 i, h], .down_proj [E, h, i]; of gpt-oss and Llama 4 [E, h, 2 i], [E, i, h]
    Granite  L.input_linear.weight [E, 2 i, h], L.output_linear.weight [E, h, i]
    router   everything else in L that has an axis of E elements: weight [E, h], bias [E], e_score_correction_bias [E]

Paddle's layouts have matrices transposed. Shared experts (a name with "shared") work for all tokens, and belong to no
expert.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from itertools import accumulate
from typing import Any

from ...checkpoints.config_json import widths
from ...checkpoints.names import MOST_NAMES
from ...checkpoints.tensors import TensorEntry
from ...errors import MalformedError
from ...records import record

_UP = ("gate_proj", "up_proj", "w1", "w3", "fc1", "linear_fc1")
_FUSED = ("gate_up_proj", "up_gate_proj", "gate_up_fused_proj", "input_linear")
_DOWN = ("down_proj", "w2", "fc2", "linear_fc2", "output_linear")
_WORDS = "|".join((*_UP, *_FUSED, *_DOWN))
_APART = re.compile(r"(.+)\.experts\.(\d+)\.(.+)")
_STACKED = re.compile(r"(.+)\.(?:experts\.(.+)|((?:input|output)_linear\.weight))")
_KIND = re.compile(rf"({_WORDS})(?:\.(weight)|[._](bias))?")
_INTERLEAVED = ("gpt_oss",)  # families whose gate_up_proj has the gate at even and up at odd places


@record(frozen=True)
class ExpertTensor:
    """A tensor of a layer's experts.

    names: of each expert's tensor; or one name, of a stack of all.
    neurons: the axis of a single expert's tensor that has its neurons; None: none has, as a bias of the outputs.
    pairs: how gate and up lie along that axis: "" (there is one of them), "halves", or "interleaved".
    """

    word: str
    names: tuple[str, ...]
    neurons: int | None
    pairs: str = ""

    @property
    def stacked(self) -> bool:
        return len(self.names) == 1


@record(frozen=True)
class MoeLayer:
    """A layer of experts. prefix: what the names of all its tensors begin with. groups: consecutive experts that are routed
    to together; 1: none are.

    experts, router: in an order that doesn't depend on the file's. router: (name, axis) of each tensor that has an element,
    or a row, for each expert along that axis.
    """

    prefix: str
    count: int
    neurons: int
    experts: tuple[ExpertTensor, ...]
    router: tuple[tuple[str, int], ...]
    groups: int = 1


def moe_layers(tensors: Mapping[str, TensorEntry], config: Mapping[str, Any], layout: str | None) -> dict[str, MoeLayer]:
    """Return the layers of experts of a model, by their prefixes.

    config: the model's config.json. layout: that of the tensors; None if it is unknown. Raises MalformedError with a
    sentence on the first layer whose tensors aren't understood.
    """
    apart: dict[str, dict[int, dict[str, str]]] = {}
    stacked: dict[str, dict[str, str]] = {}
    others = list[str]()
    for name, entry in tensors.items():
        if one := _apart(name):
            prefix, expert, tail = one
            apart.setdefault(prefix, {}).setdefault(int(expert), {})[tail] = name
        elif found := _stacked(name, entry):
            stacked.setdefault(found[1], {})[found[2] or found[3]] = name
        else:
            others.append(name)
    prefixes = dict.fromkeys([*apart, *stacked])
    beside: dict[str, dict[str, TensorEntry]] = {prefix: {} for prefix in prefixes}
    for name in others:
        for prefix in accumulate(name.split("."), "{}.{}".format):
            if prefix in beside and "shared" not in name.removeprefix(prefix):
                beside[prefix][name] = tensors[name]
    layers = {}
    for prefix in prefixes:
        try:
            layers[prefix] = _layer(
                prefix, apart.get(prefix, {}), stacked.get(prefix, {}), tensors, beside[prefix], config, layout
            )
        except MalformedError as error:
            raise MalformedError(f"the experts of {prefix!r} aren't understood: {error}") from None
    return layers


def has_experts(tensors: Mapping[str, TensorEntry]) -> bool:
    """Return whether a model has layers of experts, whether or not they are understood."""
    return any(_apart(name) or _stacked(name, entry) for name, entry in tensors.items())


def expert_counts(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, int]:
    """Return how many experts each layer of experts has, by prefix, whether or not these are understood. shapes: of all
    tensors, by name."""
    found = dict[str, int]()
    for name, shape in shapes.items():
        if apart := _apart(name):
            prefix, expert, _ = apart
            found[prefix] = max(found.get(prefix, 0), int(expert) + 1)
        elif (one := _STACKED.fullmatch(name)) and (one[2] or len(shape) == 3) and shape:
            found[one[1]] = shape[0]
    return found


@functools.lru_cache(MOST_NAMES)
def _apart(name: str) -> tuple[str, str, str] | None:
    """Return the parts of the name of an expert's tensor: the layer's prefix, the expert's number, and what follows."""
    found = _APART.fullmatch(name)
    return (found[1], found[2], found[3]) if found else None


def _stacked(name: str, entry: TensorEntry) -> re.Match[str] | None:
    """Return the parts of the name of a stack of experts: the layer's prefix, and what follows; None if it is none."""
    found = _STACKED.fullmatch(name)
    return found if found and (found[2] or len(entry.shape) == 3) else None


def _layer(
    prefix: str,
    apart: Mapping[int, Mapping[str, str]],
    stacked: Mapping[str, str],
    tensors: Mapping[str, TensorEntry],
    beside: Mapping[str, TensorEntry],
    config: Mapping[str, Any],
    layout: str | None,
) -> MoeLayer:
    """Return the layer of these tensors: names by expert and by what follows in the name.

    beside: what else the layer has. Raises MalformedError.
    """
    if apart and stacked:
        raise MalformedError("some are stacked and some are apart")
    if "attn" in prefix or "attention" in prefix:
        raise MalformedError("they are experts of attention, whose neurons can't change places across heads")
    if apart:
        count = len(apart)
        if set(apart) != set(range(count)) or any(set(its) != set(apart[0]) for its in apart.values()):
            raise MalformedError(f"not all of the {count} have the same tensors")
        families = {tail: tuple(apart[expert][tail] for expert in range(count)) for tail in apart[0]}
    else:
        families = {tail: (name,) for tail, name in stacked.items()}
        count = tensors[next(iter(stacked.values()))].shape[0]
    shapes = {}
    for tail, names in families.items():
        its = {tensors[name].shape if apart else tensors[name].shape[1:] for name in names}
        if len(its) > 1 or any(not apart and tensors[name].shape[0] != count for name in names):
            raise MalformedError(f"their {tail} differ in shape")
        (shapes[tail],) = its
    router = _router(beside, count, layout)
    hidden = _hidden(router, beside, config)
    experts, neurons = _experts(families, shapes, hidden, config, layout)
    return MoeLayer(prefix, count, neurons, experts, tuple(sorted(router.items())), _groups(config, count))


def _router(beside: Mapping[str, TensorEntry], count: int, layout: str | None) -> dict[str, int]:
    """Return the axis of the experts in each tensor that has one, of those beside the experts. Raises MalformedError."""
    found = {}
    for name, entry in beside.items():
        axes = [axis for axis, size in enumerate(entry.shape) if size == count]
        if len(axes) > 1 and len(entry.shape) == 2 and layout is not None:  # as many experts as hidden units
            axes = [0 if layout == "hf" else 1]
        if len(axes) > 1:
            raise MalformedError(f"{name!r} is {list(entry.shape)}, of which either axis may be that of the {count} experts")
        if axes:
            found[name] = axes[0]
    weights = [name for name in found if len(beside[name].shape) == 2 and min(beside[name].shape) > 1]
    if not weights:
        raise MalformedError(f"no tensor beside them has a row for each of the {count}, as a router has")
    hidden = {beside[name].shape[1 - found[name]] for name in weights}
    for name, entry in beside.items():
        if name not in found and not (set(entry.shape) <= {1, *hidden} and entry.dtype.is_float):
            raise MalformedError(f"it isn't known what {name!r}, {list(entry.shape)}, is for")
    return found


def _hidden(router: Mapping[str, int], tensors: Mapping[str, TensorEntry], config: Mapping[str, Any]) -> set[int]:
    """Return what may be the size of the experts' inputs: the width of a router, or config.json's hidden size."""
    shapes = [(tensors[name].shape, axis) for name, axis in router.items()]
    found = {shape[1 - axis] for shape, axis in shapes if len(shape) == 2 and shape[1 - axis] > 1}
    return found | ({size} if (size := widths(config).get("hidden")) else set())


def _experts(
    families: Mapping[str, tuple[str, ...]],
    shapes: Mapping[str, tuple[int, ...]],
    hidden: set[int],
    config: Mapping[str, Any],
    layout: str | None,
) -> tuple[tuple[ExpertTensor, ...], int]:
    """Return the tensors of the experts, and how many neurons each expert has. Raises MalformedError.

    families: names by their last words. shapes: of one expert's tensor. hidden: as _hidden.
    """
    kinds = {}
    for tail in families:
        if (found := _KIND.fullmatch(tail)) is None:
            raise MalformedError(f"it isn't known what {families[tail][0]!r} is for")
        kinds[tail] = found[1], bool(found[3])
    downs = [shapes[tail] for tail, (word, bias) in kinds.items() if word in _DOWN and not bias]
    if len(downs) != 1 or len(downs[0]) != 2:
        raise MalformedError(f"of {', '.join(families)}, not exactly one is the matrix of their outputs")
    family = config.get("model_type")
    possible = []
    for turned in (False, True):  # [out, in]; [in, out]
        outputs, inputs = downs[0][::-1] if turned else downs[0]
        if outputs in hidden and all(
            _fits(shapes[tail], word, bias, inputs, outputs, turned) for tail, (word, bias) in kinds.items()
        ):
            possible.append((turned, inputs))
    if len(possible) > 1 and layout is not None and all(len(names) > 1 for names in families.values()):
        possible = [pair for pair in possible if pair[0] == (layout != "hf")]
    if len(possible) != 1:
        said = ", ".join(f"{tail} {list(shape)}" for tail, shape in shapes.items())
        how = "may be either [out, in] or [in, out]" if possible else "don't fit together"
        raise MalformedError(f"{said} {how}")
    ((turned, neurons),) = possible
    result = []
    for tail, (word, bias) in kinds.items():
        axis = (None if word in _DOWN else 0) if bias else int((word in _DOWN) != turned)
        pairs = ("interleaved" if family in _INTERLEAVED else "halves") if word in _FUSED else ""
        result.append(ExpertTensor(word, families[tail], axis, pairs))
    return tuple(sorted(result, key=lambda one: (one.word, one.neurons is None, one.names))), neurons


def _fits(shape: tuple[int, ...], word: str, bias: bool, neurons: int, hidden: int, turned: bool) -> bool:
    """Return whether a tensor of an expert has the shape that so many neurons and hidden units give it."""
    outputs, inputs = (hidden, neurons) if word in _DOWN else (neurons * (2 if word in _FUSED else 1), hidden)
    return shape == ((outputs,) if bias else (inputs, outputs) if turned else (outputs, inputs))


def _groups(config: Mapping[str, Any], count: int) -> int:
    """Return in how many groups of consecutive experts tokens are routed: DeepSeek's n_group. Raises MalformedError."""
    text = config.get("text_config")
    config = {**config, **text} if isinstance(text, dict) else config
    number = config.get("n_group") or config.get("num_expert_group") or 1
    if config.get("topk_method") == "greedy" or number in (1, config.get("topk_group")):
        return 1
    if type(number) is not int or number < 1 or count % number:
        raise MalformedError(f"config.json has n_group {number!r}, of which {count} experts are no multiple")
    return number
