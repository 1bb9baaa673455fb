"""Open adapters, and decide what their merge consists of, from headers. All problems are reported together."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence

from ...checkpoints.adapters import Adapter, open_adapter
from ...checkpoints.compare import is_zero
from ...checkpoints.files import Files
from ...conversion.lora.fold import by_cause
from ...dtypes import FLOATS
from ...errors import Attempts, CheckpointError, OutputError
from ...plan.file_names import MERGE_LORA_REPORT
from ...recipe.request import Request
from ...records import record
from ...run.output.destination import check_output, shortage
from ..extract_lora.adapter_files import LAYOUTS, PREFIXES
from .base_model import BaseModel, named_as_base, open_base
from .by_method import ByMethod, request_of
from .config import MergeLoraConfig
from .factors import LayerMerger, is_wide, weight_shape
from .layers import INSTEAD, Contents, Layer, as_layers, contents
from .output_files import Arrangement, arrange, base_named
from .peft_types import FACTORWISE
from .tokenizer import tokenizer_of
from .whole import Whole, common, whole_tensors

log = logging.getLogger("paddle_merge")


@record(frozen=True)
class Prepared:
    """A merge that can be done. output: what it makes, with the highest ranks that layers may have. warnings: sentences."""

    output: Arrangement
    merger: LayerMerger
    method: ByMethod | None
    warnings: Sequence[str]


def prepare(config: MergeLoraConfig, files: Files) -> Prepared:
    """Open and check everything. Raises a MergeError of the first problem's class that lists all problems."""
    attempt = Attempts()
    attempt(config.check)
    adapters = [attempt(open_adapter, path) for path in config.adapter_path_list]
    request = attempt(request_of, config) if config.merge_method is not None and not attempt.errors else None
    opened = [one for one in adapters if one is not None]
    parts = attempt(_parts, config, opened) if opened and config.format in (None, *LAYOUTS) else None
    prepared = None
    if parts is not None and not attempt.errors:
        format, base, held = parts
        layers = attempt(as_layers, [one.parts for one in held], config.adapter_path_list)
        whole = attempt(
            whole_tensors,
            [one.whole for one in held],
            config.weights,
            config.adapter_path_list,
            base.tensors if base is not None else None,
            config.merge_method is not None,
        )
        attempt(_check_layers, config, format, layers or [], whole or [], base)
        if layers is not None and whole is not None and not attempt.errors:
            prepared = attempt(_prepared, config, opened, format, base, layers, whole, request, files)
    nbytes = arrange(prepared.output).shards[0].nbytes if prepared is not None and config.energy is None else 0
    prefix = PREFIXES[prepared.output.format] if prepared is not None else "adapter_model"
    problems = check_output(
        folder=config.output_path,
        inputs=[*config.adapter_path_list, *([config.base_model_path] if config.base_model_path else [])],
        save_format="safetensors",
        prefix=prefix,
        names=[MERGE_LORA_REPORT],
        overwrite=config.overwrite,
    )
    if problems := [*problems, *shortage(config.output_path, prefix, nbytes)]:
        attempt.errors.append(OutputError(problems))
    attempt.finish()
    assert prepared is not None
    return prepared


def _parts(config: MergeLoraConfig, adapters: Sequence[Adapter]) -> tuple[str, BaseModel | None, list[Contents]]:
    """Return the output's format, the base model if it is given, and what each adapter holds, by the output's names.

    Raises CheckpointError listing all problems.
    """
    attempt = Attempts()
    held = [attempt(contents, adapter, number) for number, adapter in enumerate(adapters)]
    own = [_format(adapter, one) for adapter, one in zip(adapters, held, strict=True)]
    known = list(dict.fromkeys(own))
    if config.format is None and len(known) > 1:
        said = "; ".join(f"{one.path}: {format}" for one, format in zip(adapters, own, strict=True))
        attempt.errors.append(CheckpointError(f"the adapters are of different libraries ({said}); give --format"))
    format = config.format or known[0]
    if config.base_model_path is None:
        if known != [format] and (config.format or len(known) == 1):
            others = ", ".join(f"{one.path} ({its})" for one, its in zip(adapters, own, strict=True) if its != format)
            attempt.errors.append(
                CheckpointError(
                    f"{others}: to be written for {format}, which names layers otherwise; give --base_model_path, which has"
                    " the names"
                )
            )
        attempt.finish()
        return format, None, [one for one in held if one is not None]
    base = attempt(open_base, config.base_model_path, format, config.layout)
    attempt.finish()
    assert base is not None
    named = [attempt(named_as_base, one, adapter, base) for one, adapter in zip(held, adapters, strict=True) if one]
    attempt.finish()
    return format, base, [one for one in named if one is not None]


def _format(adapter: Adapter, held: Contents | None) -> str:
    """Return the library that an adapter is for: PaddleFormers' modules are called model., PaddleNLP's after the family."""
    if adapter.kind == "peft":
        return "peft"
    names = [*held.parts, *held.whole] if held is not None else adapter.tensors
    return "paddleformers" if any(name.startswith("model.") for name in names) else "paddlenlp"


def _check_layers(
    config: MergeLoraConfig, format: str, layers: Sequence[Layer], whole: Sequence[Whole], base: BaseModel | None
) -> None:
    """Raise CheckpointError listing layers that can't be merged in this way, or be written in this format."""
    wrong: list[tuple[str, str]] = []
    replaced = {one.name for one in whole if not one.kept}
    biased = next((layer.name for layer in layers if layer.has_bias), None) if format == "peft" else None
    for layer in layers:
        ranks = {part.rank for part in layer.parts}
        if config.type in FACTORWISE and len(ranks) > 1:
            remedy = "svd" if config.type == "linear" else f"{config.type}_svd"
            wrong.append(
                (
                    layer.name,
                    f"layer {layer.name!r} has ranks {', '.join(map(str, sorted(ranks)))}, and --combination_type"
                    f" {config.type} takes matrices of one rank; use {remedy}, or cat",
                )
            )
        if format != "peft" and layer.kind == "embedding":
            wrong.append((layer.name, f"layer {layer.name!r} is an embedding, which only PEFT has with low-rank matrices"))
        if biased is not None and layer.kind == "embedding":
            wrong.append(
                (
                    layer.name,
                    f"layer {layer.name!r} is an embedding, for which PEFT has no lora_bias, and layer {biased!r} has one,"
                    f" which PEFT's config sets for all layers; {INSTEAD}",
                )
            )
        elif biased is not None and not layer.has_bias and base is not None and f"{layer.name}.bias" not in base.tensors:
            wrong.append(
                (
                    layer.name,
                    f"layer {layer.name!r} has no bias in the base model, and layer {biased!r} has one of lora_B; PEFT's"
                    f" config sets lora_bias for all layers, and PEFT folds none into a layer without a bias; {INSTEAD}",
                )
            )
        if format != "peft" and layer.has_bias:
            wrong.append((layer.name, f"layer {layer.name!r} has a bias of lora_B, which only PEFT has"))
        if config.merge_method and f"{layer.name}.weight" in replaced:
            wrong.append((layer.name, f"layer {layer.name!r} has low-rank matrices and a weight that was trained whole"))
    if wrong:
        raise CheckpointError(by_cause(wrong))


def _prepared(
    config: MergeLoraConfig,
    adapters: Sequence[Adapter],
    format: str,
    base: BaseModel | None,
    layers: Sequence[Layer],
    whole: Sequence[Whole],
    request: Request | None,
    files: Files,
) -> Prepared:
    """Return the merge. Raises ConfigError if the method doesn't fit, WorkError if a tensor can't be read."""
    dtypes = {entry.dtype for layer in layers for part in layer.parts for entry in part.entries}
    dtype = FLOATS[config.out_dtype] if config.out_dtype else common(dtypes)
    method = None
    if request is not None:
        shapes = {f"{layer.name}.weight": weight_shape(layer) for layer in layers}
        shapes |= {f"{layer.name}.lora_B.bias": (layer.shape[0],) for layer in layers if layer.has_bias}
        shapes |= {one.name: one.shape for one in whole if not one.kept}
        method = ByMethod(request, shapes, is_wide(layers))
    merger = LayerMerger(config, layers, dtype, method, files)
    tokenizer, doubts = tokenizer_of(config.adapter_path_list)
    output = Arrangement(
        format=format,
        adapters=adapters,
        base=base,
        base_path=config.base_model_path,
        layers=layers,
        ranks={layer.name: merger.most(layer) for layer in layers},
        whole=whole,
        scale=merger.scale,
        dtype=dtype,
        tokenizer=tokenizer,
    )
    return Prepared(output, merger, method, [*_warnings(config, adapters, output, request), *doubts])


def _warnings(
    config: MergeLoraConfig, adapters: Sequence[Adapter], output: Arrangement, request: Request | None
) -> list[str]:
    """Return sentences on what is allowed and likely not meant."""
    layers = output.layers
    found = list(request.warnings) if request is not None else []
    named = {name for adapter in adapters if (name := base_named(adapter))}
    if len(named) > 1:
        found.append(f"the adapters' configs name different base models: {', '.join(sorted(named))}")
    for number, adapter in enumerate(adapters):
        parts = [part for layer in layers for part in layer.parts if part.adapter == number]
        if parts and all(is_zero(part.b) for part in parts):
            found.append(
                f"{adapter.path}: changes nothing: every lora_B is zero, as before training; was it saved too early?"
            )
    for number, adapter in enumerate(adapters if len(adapters) > 1 else ()):
        if not any({number} < {part.adapter for part in layer.parts} for layer in layers):
            found.append(f"{adapter.path}: has no layer in common with the other adapters; were they trained on one model?")
    plain = [layer.name for layer in layers if not layer.has_bias] if output.has_biases and output.base is None else []
    if plain:
        found.append(
            f"layers without a lora_B.bias, such as {plain[0]!r} ({len(plain)} in all), get one of zeros, because"
            " others have one and PEFT's lora_bias is for all; PEFT can't fold the adapter if one of them has no bias in the"
            " base model, which --base_model_path checks"
        )
    if len(set(map(os.path.realpath, config.adapter_path_list))) < len(config.adapter_path_list):
        found.append("an adapter is given twice, so its change counts twice")
    return found
