"""Decide in which form each tensor of the output is stored: as plain numbers of a dtype, or as 8-bit codes with scales."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

from ..checkpoints.config_json import read_config
from ..checkpoints.names import HEAD, TOKEN_EMBEDDINGS, is_correction, is_linear, last_word, layer_of
from ..checkpoints.quantisation import quantisation
from ..checkpoints.scaled import Grid, ScaledEntry
from ..checkpoints.tensors import Checkpoint, StoredEntry, TensorEntry
from ..conversion.lora.entry import AdaptedEntry, read_from
from ..conversion.modules import is_language
from ..dtypes import BFLOAT16, FLOAT8_E4M3FN, FLOAT32, FP8_BLOCK, FP8_CHANNEL, DType, ScaledForm
from ..errors import CheckpointError
from ..parsing import count_text, tensors_named
from ..recipe.recipe import Recipe
from ..records import record
from .assemble import AssembledTensor
from .scales import Scales
from .tensor_plan import StagedEntry, TensorPlan

# Linear layers that stay as they are: routers and gates, which are small and decide much, and what joins MTP's two inputs.
PLAIN = ("gate", "shared_expert_gate", "in_proj_ba", "eh_proj")
_EXPERTS = re.compile(r".*\.experts\.(gate_up_proj|up_proj|down_proj)")  # of a layer, stacked: a matrix for each expert
_WEIGHT = ".weight"
_LISTS = ("modules_to_not_convert", "ignored_layers", "ignore")  # of modules that hold plain numbers, in quantization_config


@record(frozen=True)
class Storage:
    """How the tensors of one output are stored.

    form: of the weights in `coded`; None: all tensors are plain. narrow: whether most other tensors have 16 bits.
    like: the input that is stored in the same form, of which the output has the weights as codes that this has; None: there
        is none. note: a line on this for the plan, if the form isn't asked for.
    """

    recipe: Recipe
    form: ScaledForm | None = None
    coded: Collection[str] = ()
    narrow: bool = True
    like: Checkpoint | None = None
    note: str = ""

    def dtype(self, one: AssembledTensor) -> DType:
        """Return the dtype of a tensor as it is stored.

        Beside codes, numbers of 16 bits keep their dtype. Wider ones become bfloat16, except for vectors of a model of 16
        bits: such as the routers' biases, which DeepSeek-V3 has in float32.
        """
        if self.form is None or is_correction(one.name):
            return one.dtype(self.recipe)
        own = one.own_dtype
        if one.name in self.coded:
            return self.form.codes
        keeps = own.itemsize == 2 or (own.itemsize > 2 and self.narrow and len(one.shape) < 2)
        return own if keeps or not own.is_float else BFLOAT16

    def scales(self, one: AssembledTensor) -> Scales | None:
        """Return the scales of a tensor, without their place; None if it is stored as plain numbers."""
        if self.form is None or one.name not in self.coded:
            return None
        rows, columns = self.form.block
        block = rows, columns or one.shape[-1]
        return Scales(one.name + self.form.scales, one.shape, block, self.form.scale, self.form.powers)

    def config(self, tensors: Sequence[TensorPlan]) -> Mapping[str, Any] | None:
        """Return the quantization_config that config.json needs; None if it must have none.

        tensors: of the output. transformers takes every Linear layer for quantised that the list doesn't name, also lm_head.
        """
        if self.form is None:
            return None
        plain = [HEAD.removesuffix(_WEIGHT)]
        for tensor in tensors:
            name, matrix = tensor.name, tensor.merged and len(tensor.shape) > 1
            if matrix and tensor.scales is None and last_word(name) not in TOKEN_EMBEDDINGS:
                plain.append(name.removesuffix(_WEIGHT) if name.endswith(_WEIGHT) else name.rpartition(".")[0])
        plain = list(dict.fromkeys(plain))
        if self.like is None:
            return _config(self.form, plain)
        said = dict(read_config(self.like.folder)["quantization_config"])
        keys = [key for key in _LISTS if said.get(key)] or [_LISTS[0] if said["quant_method"] == "fp8" else _LISTS[-1]]
        for key in keys if self._has_others(tensors) else ():  # what they say of layers is of other layers now
            others = [module for module in map(str, said.get(key) or ()) if not layer_of(module)]
            said[key] = list(dict.fromkeys([*others, *plain]))
        return said

    def _has_others(self, tensors: Sequence[TensorPlan]) -> bool:
        """Return whether the output has other matrices than `like`, or some of them in another form."""
        assert self.like is not None
        its = {
            name: bool(_grids(one)) for name, one in self.like.tensors.items() if one.dtype.is_float and len(one.shape) > 1
        }
        return its != {one.name: one.scales is not None for one in tensors if one.merged and len(one.shape) > 1}

    def described(self, tensors: Sequence[TensorPlan]) -> Iterator[str]:
        """Yield what the plan says of codes."""
        if self.note:
            yield self.note
        asked = self.recipe.out_dtype
        wide = [one.name for one in tensors if isinstance(asked, DType) and is_correction(one.name) and one.dtype != asked]
        if wide:
            yield f"{tensors_named(wide)}: float32, as loaders keep it; rounded, it would make routers choose other experts"
        if self.form is None:
            return
        coded = sum(tensor.size for tensor in tensors if tensor.scales is not None)
        share = coded / max(1, sum(tensor.size for tensor in tensors))
        rows, columns = self.form.block
        each = f"block of {rows} x {columns}" if columns else "row"
        yield (
            f"{self.form.name}: {len(self.coded)} weights of Linear layers ({count_text(coded)} parameters, {share:.0%})"
            f" become 8-bit codes, with a {self.form.scale.name} scale for each {each}"
        )


def storage(
    recipe: Recipe, made: Sequence[AssembledTensor], own: Checkpoint, layout: str | None, transposed: Collection[str]
) -> tuple[Storage, list[str]]:
    """Return how the output of a recipe is stored, and sentences on what is allowed but likely not meant.

    own: the base, or else the first model, whose form the output has if the recipe asks for none. layout: of the output, if
    it is known. transposed: names of matrices [in, out]. Raises CheckpointError.
    """
    asked, found = recipe.out_dtype, _form_of(own, made)
    if asked is None and found is not None:
        if problems := _unsuited(recipe, found, layout):
            return Storage(recipe, note=f"plain numbers, though {own.path} holds codes: {problems[0]}"), []
        note = f"as {own.path}; --out_dtype bfloat16 stores plain numbers instead"
        return Storage(recipe, found, _codes(made), _is_narrow(made), own, note), []
    if not isinstance(asked, ScaledForm):
        return Storage(recipe), []
    if problems := _unsuited(recipe, asked, layout):
        raise CheckpointError(problems)
    if found == asked:
        return Storage(recipe, found, _codes(made), _is_narrow(made), own), []
    could = [one for one in made if _is_weight(one) and one.name not in transposed]
    could = [one for one in could if len(one.shape) == 2 or asked.block[1]]  # compressed-tensors has no stacked experts
    coded = [one for one in could if not _misread(one, asked)]
    if not coded:
        raise CheckpointError(
            f"out_dtype {asked.name}: the output has no weight of a Linear layer that can be stored so"
            f"{_because(could, asked)}; give another dtype, such as bfloat16"
        )
    return Storage(recipe, asked, frozenset(one.name for one in coded), _is_narrow(made)), _doubts(could, coded, asked)


def _config(form: ScaledForm, plain: list[str]) -> dict[str, Any]:
    """Return the quantization_config of a form. plain: the modules that hold plain numbers.

    That of fp8_channel is llm-compressor's FP8_DYNAMIC: activations are rounded token by token, when they are computed.
    """
    if form.block[1]:
        return {
            "activation_scheme": "dynamic",
            "fmt": "e4m3",
            "modules_to_not_convert": plain,
            "quant_method": "fp8",
            "weight_block_size": list(form.block),
        }
    code = {"num_bits": 8, "type": "float", "symmetric": True}
    group = {
        "targets": ["Linear"],
        "weights": {**code, "strategy": "channel", "dynamic": False},
        "input_activations": {**code, "strategy": "token", "dynamic": True},
    }
    return {
        "config_groups": {"group_0": group},
        "format": "float-quantized",
        "ignore": plain,
        "quant_method": "compressed-tensors",
        "quantization_status": "compressed",
    }


def _form_of(own: Checkpoint, made: Sequence[AssembledTensor]) -> ScaledForm | None:
    """Return the form of the output's own tensors, if it is one that can be written; `own` is what they are stored in.

    Scales of activations can't be written: they follow from data, so models with such are merged to plain numbers.
    """
    config = read_config(own.folder)
    said, raw = quantisation(config), config.get("quantization_config")
    dtypes = {grid.scales.dtype for one in made for grid in _grids(one.own)}
    if len(dtypes) != 1 or said.refused or not isinstance(raw, dict):
        return None
    scale = dtypes.pop()
    if said.method == "fp8" and len(said.blocks) == 1 and raw.get("activation_scheme", "dynamic") == "dynamic":
        return dataclasses.replace(FP8_BLOCK, block=said.blocks[0], powers=said.exponents) if scale is FLOAT32 else None
    groups = list((raw.get("config_groups") or {}).values())
    if said.method != "compressed-tensors" or len(groups) != 1 or raw.get("kv_cache_scheme"):
        return None
    weights, inputs = groups[0].get("weights") or {}, groups[0].get("input_activations") or {}
    fits = weights.get("strategy") == "channel" and inputs.get("dynamic", True) and scale in (FLOAT32, BFLOAT16)
    return dataclasses.replace(FP8_CHANNEL, scale=scale) if fits else None


def _grids(entry: TensorEntry) -> Sequence[Grid]:
    """Return the scales of a tensor that is read from codes of E4M3, without zero points; none of another.

    Those of a tensor that is made of others are those of its first part, or of the base's in an earlier merge.
    """
    if isinstance(entry, AdaptedEntry):
        return _grids(read_from(entry))
    if isinstance(entry, StagedEntry):
        return _grids(entry.plan.base or entry.plan.sources[0])
    if not isinstance(entry, ScaledEntry):
        return _grids(entry.made_of[0]) if not isinstance(entry, StoredEntry) and entry.made_of else ()
    coded = entry.codes.dtype is FLOAT8_E4M3FN and not entry.zero and all(grid.zeros is None for grid in entry.grids)
    return entry.grids if coded else ()


def _codes(made: Sequence[AssembledTensor]) -> frozenset[str]:
    """Return the names of the tensors that the base, or else the first model, stores as codes."""
    return frozenset(one.name for one in made if _grids(one.own))


def _is_narrow(made: Sequence[AssembledTensor]) -> bool:
    """Return whether what isn't a weight of a Linear layer is mostly stored in 16 bits."""
    return any(one.own_dtype.is_float and one.own_dtype.itemsize == 2 and not _is_weight(one) for one in made)


def _unsuited(recipe: Recipe, form: ScaledForm, layout: str | None) -> list[str]:
    """Return why the output can't be stored in the form at all."""
    if recipe.save_format != "safetensors":
        return [f"out_dtype {form.name} needs --save_format safetensors: a .pdparams file can't hold 8-bit floats"]
    if layout in ("paddlenlp", "paddleformers"):
        return [
            f"out_dtype {form.name} is a form of Hugging Face's checkpoints, and the merged model would be in"
            f" {layout}'s layout: pass --output_layout hf too"
        ]
    return []


def _is_weight(one: AssembledTensor) -> bool:
    """Return whether a tensor is certainly the weight of a Linear layer, or of experts, in a layer of the language model,
    and such as is usually quantised."""
    if not one.own_dtype.is_float or not layer_of(one.name) or not is_language(one.name) or 0 in one.shape:
        return False
    if len(one.shape) == 3:
        return _EXPERTS.fullmatch(one.name) is not None
    return len(one.shape) == 2 and is_linear(one.name) and last_word(one.name) not in PLAIN


def _misread(one: AssembledTensor, form: ScaledForm) -> bool:
    """Return whether transformers would silently cut a weight into other blocks than these: where it dequantises, it divides
    each side by the number of its scales. (192 rows with two scales: 96 rows each, not 128 and 64.) No stacked experts are
    known whose sides aren't multiples of a block's."""
    sides = [(side, block, -(-side // block)) for side, block in _sides(one, form)]
    if len(one.shape) > 2:
        return any(side % block for side, block, _ in sides)
    return any(count > 1 and side % block and side % count == 0 for side, block, count in sides)


def _sides(one: AssembledTensor, form: ScaledForm) -> list[tuple[int, int]]:
    return [(side, block or side) for side, block in zip(one.shape[-2:], form.block, strict=True)]


def _because(could: Sequence[AssembledTensor], form: ScaledForm) -> str:
    if not could:
        return ""
    first = could[0]
    return f": the sides of {first.name!r}, {list(first.shape)} for one, are no multiples of {form.block[0]}"


def _doubts(could: Sequence[AssembledTensor], coded: Sequence[AssembledTensor], form: ScaledForm) -> list[str]:
    """Return sentences on weights whose sides aren't multiples of a block's."""
    found, names = [], {one.name for one in coded}
    if left := [one.name for one in could if one.name not in names]:
        found.append(
            f"{tensors_named(left)}: not stored as {form.name}, because transformers would read"
            f" {'it' if len(left) == 1 else 'them'} with the wrong scales: a side is no multiple of {form.block[0]}"
        )
    if odd := [one.name for one in coded if any(side % block and side > block for side, block in _sides(one, form))]:
        found.append(
            f"{tensors_named(odd)}: a side is no multiple of {form.block[0]}, as in DeepSeek-V3's own files. vLLM and SGLang"
            " read such weights; transformers refuses to dequantise them"
        )
    return found
