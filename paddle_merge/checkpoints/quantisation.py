"""Read what config.json says about a quantised model: quantization_config, in the words of the libraries that write it.

    fp8                 DeepSeek-V3, Qwen3-FP8, transformers' FineGrainedFP8Config; vLLM's with one scale per tensor
    compressed-tensors  llm-compressor's
    fbgemm_fp8          Llama 3.1's FP8, with one scale per output
    modelopt            NVIDIA's, FP8 with one scale per tensor

All of them multiply: a weight is its code times the scale of its block.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from ..dtypes import BFLOAT16, FLOATS, DType
from ..records import record

BLOCK = (128, 128)  # of DeepSeek-V3, where config.json doesn't say
FP8 = ("float8_e4m3fn", "float8_e5m2")
_MULTIPLIED = {"fp8": FP8, "fbgemm_fp8": FP8, "modelopt": FP8, "compressed-tensors": (*FP8, "int8")}
# Formats of compressed-tensors in which every weight is one element of a tensor of its shape.
_UNPACKED = ("float-quantized", "int-quantized", "naive-quantized", "mxfp8-quantized", "dense", "mixed-precision")
_PACKED = "pack-quantized"  # in which words hold several integers


@record(frozen=True)
class Quantisation:
    """Hold what config.json says about the codes of a model.

    method: quant_method; "" if config.json has no quantization_config.
    dtype: which the numbers stand for: config.json's dtype or torch_dtype; bfloat16 if it has none.
    codes: names of the dtypes that weights can be stored in.
    blocks: sizes (rows, columns) of the blocks that have a scale each, as far as config.json gives them. A scale of a whole
        tensor, or of a whole row, is always possible.
    kept: names or patterns of modules that are not quantised.
    exponents: whether scales of one byte are exponents of 2 (UE8M0).
    packed: whether weights may be integers that are packed into words, as compressed-tensors does.
    refused: why such weights can't be read, as part of a sentence; "" if they can.
    """

    method: str
    dtype: DType
    codes: tuple[str, ...] = FP8
    blocks: tuple[tuple[int, int], ...] = ()
    kept: tuple[str, ...] = ()
    exponents: bool = False
    packed: bool = False
    refused: str = ""


def quantisation(config: Mapping[str, Any]) -> Quantisation:
    """Return what a config.json says about quantised weights; also of one that has no quantization_config."""
    dtype = FLOATS.get(str(config.get("dtype") or config.get("torch_dtype") or "").removeprefix("torch."), BFLOAT16)
    if dtype.itemsize == 1:  # what is stored, not what it stands for
        dtype = BFLOAT16
    said = config.get("quantization_config")
    if not said:
        return Quantisation("", dtype, blocks=(BLOCK,))
    try:
        return _parsed(said, dtype)
    except (AttributeError, KeyError, TypeError, ValueError):
        return Quantisation("", dtype, refused="its quantization_config isn't as any library writes it")


def _parsed(said: Mapping[str, Any], dtype: DType) -> Quantisation:
    """Return what a quantization_config says. Raises various errors if it isn't one."""
    method = str(said.get("quant_method") or "").lower()
    if method not in _MULTIPLIED:
        return Quantisation(method, dtype, refused=_reason(method, said))
    kept = next((said[name] for name in ("modules_to_not_convert", "ignored_layers", "ignore") if said.get(name)), ())
    refused, formats = "", set[str]()
    if method == "modelopt" and (algorithm := said.get("quant_algo")) != "FP8":
        refused = f"the quant_algo {algorithm} of ModelOpt can't be read, only FP8"
    if said.get("expert_dtype", "fp8") != "fp8":
        refused = f"its experts are {said['expert_dtype']}, which can't be read"
    blocks = [tuple(said["weight_block_size"])] if said.get("weight_block_size") else []
    if method == "compressed-tensors":
        groups = list((said.get("config_groups") or {}).values())
        refused, formats = next(_unreadable(said, groups), ""), _formats(said, groups)
        blocks = [block for group in groups for block in _blocks(group.get("weights") or {})]
    sizes = [(int(rows), int(columns)) for rows, columns in dict.fromkeys(blocks)]
    if any(min(size) < 1 for size in sizes):
        raise ValueError("a block without elements")
    return Quantisation(
        method=method,
        dtype=dtype,
        codes=_MULTIPLIED[method],
        blocks=tuple(sizes),
        kept=tuple(map(str, kept)),
        exponents=said.get("scale_fmt") == "ue8m0" or "mxfp8-quantized" in formats,
        packed=_PACKED in formats,
        refused=refused,
    )


def _blocks(weights: Mapping[str, Any]) -> Iterator[tuple[int, int]]:
    """Yield the size of the blocks that compressed-tensors says of a group of modules, if it isn't that of tensors."""
    strategy, size = weights.get("strategy"), weights.get("group_size")
    if strategy == "block" and weights.get("block_structure"):
        rows, columns = weights["block_structure"]
        yield rows, columns
    elif strategy in ("group", "tensor_group") and size:
        yield 1, size


def _formats(said: Mapping[str, Any], groups: list[dict[str, Any]]) -> set[str]:
    """Return the formats that compressed-tensors names, of the model and of groups of modules."""
    return {str(one["format"]) for one in (said, *groups) if one.get("format")}


def _unreadable(said: Mapping[str, Any], groups: list[dict[str, Any]]) -> Iterator[str]:
    """Yield why weights of compressed-tensors can't be read."""
    for format in sorted(_formats(said, groups) - {*_UNPACKED, _PACKED}):
        yield f"the format {format} of compressed-tensors can't be read"
    if said.get("transform_config"):
        yield "its transform_config says that the weights were rotated, and that can't be undone"
    if (said.get("sparsity_config") or {}).get("format", "dense") != "dense":
        yield "its sparsity_config says that zeros were left out, which can't be read"
    for weights in (group.get("weights") or {} for group in groups):
        if weights.get("actorder") not in (None, "static", "weight"):
            yield "its groups of columns are in another order (actorder), which can't be read"


def _reason(method: str, said: Mapping[str, Any]) -> str:
    """Return why the weights of a method can't be read."""
    if said.get("weight_quantize_algo") or said.get("quant_type"):
        return (
            "Paddle's weight_quantize orders the bytes of weights as the GPU that it was called for needs them, and the"
            " checkpoint doesn't say for which that was"
        )
    return f"the quantization_config of {method} can't be read" if method else "its quantization_config has no quant_method"
