"""Decide in which form each tensor of the output is stored: as plain numbers of a dtype, or as 8-bit codes with scales."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from ..checkpoints.names import HEAD, TOKEN_EMBEDDINGS, is_linear, last_word, layer_of
from ..conversion.modules import is_language
from ..dtypes import BFLOAT16, DType, ScaledForm
from ..errors import CheckpointError
from ..parsing import count_text, tensors_named
from ..recipe.recipe import Recipe
from .assemble import AssembledTensor
from .scales import Scales
from .tensor_plan import TensorPlan

# Linear layers that stay as they are: routers and gates, which are small and decide much, and what joins MTP's two inputs.
PLAIN = ("gate", "shared_expert_gate", "in_proj_ba", "eh_proj")
_EXPERTS = re.compile(r".*\.experts\.(gate_up_proj|up_proj|down_proj)")  # of a layer, stacked: a matrix for each expert
_WEIGHT = ".weight"


@dataclass(frozen=True)
class Storage:
    """How the tensors of one output are stored.

    form: of the weights in `coded`; None: all tensors are plain. narrow: whether most other tensors have 16 bits.
    """

    recipe: Recipe
    form: ScaledForm | None = None
    coded: Collection[str] = ()
    narrow: bool = True

    def dtype(self, one: AssembledTensor) -> DType:
        """Return the dtype of a tensor as it is stored.

        Beside codes, numbers of 16 bits keep their dtype. Wider ones become bfloat16, except for vectors of a model of 16
        bits: such as the routers' biases, which DeepSeek-V3 has in float32.
        """
        if self.form is None:
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
        return Scales(one.name + self.form.scales, one.shape, (rows, columns or one.shape[-1]))


def storage(
    recipe: Recipe, made: Sequence[AssembledTensor], layout: str | None, transposed: Collection[str]
) -> tuple[Storage, list[str]]:
    """Return how the output of a recipe is stored, and sentences on what is allowed but likely not meant.

    layout: of the output, if it is known. transposed: names of matrices [in, out]. Raises CheckpointError.
    """
    form = recipe.out_dtype
    if not isinstance(form, ScaledForm):
        return Storage(recipe), []
    if problems := _unsuited(recipe, form, layout):
        raise CheckpointError(problems)
    could = [one for one in made if _is_weight(one) and one.name not in transposed]
    coded = [one for one in could if not _misread(one, form)]
    if not coded:
        raise CheckpointError(
            f"out_dtype {form.name}: the output has no weight of a Linear layer that can be stored so"
            f"{_because(could, form)}; give another dtype, such as bfloat16"
        )
    others = {one.own_dtype.itemsize for one in made if one.own_dtype.is_float and not _is_weight(one)}
    names = frozenset(one.name for one in coded)
    return Storage(recipe, form, names, 2 in others), _doubts(could, coded, form)


def quantization_config(form: ScaledForm, tensors: Sequence[TensorPlan]) -> dict[str, Any]:
    """Return what config.json has to say of an output with codes: the form, and the modules that hold plain numbers.

    transformers takes every Linear layer for quantised that the list doesn't name, lm_head included.
    """
    plain = [HEAD.removesuffix(_WEIGHT)]
    for tensor in tensors:
        name, matrix = tensor.name, tensor.merged and len(tensor.shape) > 1
        if matrix and tensor.scales is None and last_word(name) not in TOKEN_EMBEDDINGS:
            plain.append(name.removesuffix(_WEIGHT) if name.endswith(_WEIGHT) else name.rpartition(".")[0])
    return {
        "activation_scheme": "dynamic",
        "fmt": "e4m3",
        "modules_to_not_convert": list(dict.fromkeys(plain)),
        "quant_method": "fp8",
        "weight_block_size": list(form.block),
    }


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


def described(form: ScaledForm, tensors: Sequence[TensorPlan]) -> str:
    """Return what is stored as codes, in a line of the plan."""
    coded = [tensor for tensor in tensors if tensor.scales is not None]
    share = sum(tensor.size for tensor in coded) / max(1, sum(tensor.size for tensor in tensors))
    rows, columns = form.block
    of = f"blocks of {rows} x {columns}" if columns else "rows"
    return (
        f"{form.name}: {len(coded)} weights of Linear layers ({count_text(sum(tensor.size for tensor in coded))} parameters,"
        f" {share:.0%}) become 8-bit codes in {of} with float32 scales"
    )
