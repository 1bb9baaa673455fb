"""Make a LoRA adapter from a fine-tuned model and its base, tensor by tensor.

The base model with the adapter folded in is the fine-tuned model, up to the error of the low-rank approximation, which the
report gives.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ...backends.np_backend import NumpyBackend
from ...checkpoints.config_json import model_type, read_config
from ...checkpoints.files import Files
from ...checkpoints.names import EMBEDDINGS, LINEARS, is_linear, last_word
from ...checkpoints.tensors import Checkpoint, TensorEntry
from ...conversion.detect import detect
from ...conversion.inputs import differences, open_inputs
from ...conversion.layout import normalise
from ...dtypes import FLOAT32, FLOATS, DType
from ...errors import Attempts, CheckpointError, OutputError
from ...plan.file_names import EXTRACT_REPORT
from ...records import record
from ...run.output.destination import check_output, shortage
from ..pairs import BLOCK
from ..progress import watched
from .adapter_files import LAYOUTS, PREFIXES, Factors, make_adapter, whole_modules
from .changes import Change, find_changes, read_change
from .config import ExtractConfig
from .low_rank import low_rank
from .report import SHOWN, announce, describe, report, summarise
from .write import write_adapter

log = logging.getLogger("paddle_merge")


@record(frozen=True)
class Inputs:
    """The two checkpoints in the layout of the adapter.

    format: of the adapter. dtype: of the factors. tied: whether lm_head is tied to the embedding.
    """

    finetuned: Checkpoint
    base: Checkpoint
    format: str
    dtype: DType
    tied: bool


def extract_lora(config: ExtractConfig, progress: bool | None = None) -> dict[str, Any]:
    """Write a LoRA adapter; return its report, which is also written beside it as extract_report.json.

    progress: whether to show a progress bar; None (default): if standard error is a terminal.
    Raises MergeError (ConfigError, CheckpointError, OutputError), each listing all problems found. An extraction that fails
    or is interrupted leaves no adapter in the output folder.
    """
    started = time.perf_counter()
    inputs = _open(config)
    files = Files()
    try:
        linear, rest = _changes(inputs, files)
        tensors = len(inputs.base.tensors)
        announce(config, inputs.format, inputs.dtype, tensors=tensors, linear=linear, rest=rest)
        factors, kept = {}, []
        for change in watched(linear, "approximating", progress):
            factors[change.name], row = _factorise(change, config, inputs.dtype, files)
            kept.append(row)
        whole = {} if config.only_linear else _whole(inputs, rest, factors)
        adapter, stored = make_adapter(
            format=inputs.format,
            factors=factors,
            whole=whole,
            base=inputs.base.tensors,
            base_path=config.base_model_path,
            family=model_type(inputs.base.folder),
        )
        said = report(config=config, format=inputs.format, dtype=inputs.dtype, tensors=tensors, factors=kept, rest=rest)
        write_adapter(config.output_path, adapter, stored.items(), EXTRACT_REPORT, lambda: said, files)
    finally:
        files.close()
    summarise(said, adapter, time.perf_counter() - started)
    return said


# --- before anything is computed ---------------------------------------------------------------------------------------


def _open(config: ExtractConfig) -> Inputs:
    """Open and check the inputs. Raises a MergeError of the first problem's class that lists all problems."""
    attempt = Attempts()
    attempt(config.check)
    paths = [path for path in (config.finetuned_path, config.base_model_path) if path]
    pairs = attempt(open_inputs, paths, "model")
    if pairs and any(one.adapters for one in pairs):
        attempt.errors.append(CheckpointError("extract-lora takes models without adapters; fold the adapters first"))
    opened = [one.numbers.checkpoint for one in pairs or ()]
    inputs = attempt(_in_one_layout, config, opened) if opened and not attempt.errors else None
    nbytes, files = 0, []
    if inputs is not None:
        shapes = [entry.shape for name, entry in inputs.base.tensors.items() if _factored(entry)]
        size = sum(sum(shape) * config.most(shape) for shape in shapes)
        nbytes = 0 if config.energy is not None else size * inputs.dtype.itemsize
        entries = [*inputs.base.tensors.values(), *inputs.finetuned.tensors.values()]
        files = sorted({file for entry in entries for file in entry.files})
    prefix = PREFIXES[inputs.format] if inputs is not None else "adapter_model"
    problems = check_output(
        folder=config.output_path,
        inputs=[*paths, *files],
        save_format="safetensors",
        prefix=prefix,
        names=[EXTRACT_REPORT],
        overwrite=config.overwrite,
    )
    if problems := [*problems, *shortage(config.output_path, prefix, nbytes)]:
        attempt.errors.append(OutputError(problems))
    attempt.finish()
    assert inputs is not None
    return inputs


def _in_one_layout(config: ExtractConfig, opened: Sequence[Checkpoint]) -> Inputs:
    """Bring both checkpoints to the layout of the adapter. Raises CheckpointError listing what doesn't match."""
    finetuned, base = opened
    finetuned_layout, base_layout = config.layouts
    target = LAYOUTS.get(config.format or "")
    given = (base_layout, finetuned_layout)
    normalised = normalise(
        inputs=(base, finetuned), given=given, target=target, strict=False, prefix="model", fallback=read_config(base.folder)
    )
    pair, layout = normalised.inputs, normalised.layout
    if layout is None and all(detect(one, "model", {}).likely for one in pair):
        layout = "hf"  # both files are torch's
    if layout is None:
        raise CheckpointError(
            f"{base.path}: its layout is unknown, which determines the names and the orientation of the adapter's factors;"
            f" state it with --layout, one of {', '.join(LAYOUTS.values())}"
        )
    if config.format == "paddle" and layout == "hf":
        raise CheckpointError(
            f"{base.path} is in Hugging Face's layout, which both of Paddle's libraries read; give --format paddlenlp or"
            " --format paddleformers"
        )
    problems = differences(pair, FLOAT32, offered=())
    if problems:
        raise CheckpointError(problems)
    for sentence in normalised.notes:
        log.info("layout   %s", sentence)
    base, finetuned = pair
    mixed = [name for name, entry in base.tensors.items() if entry.dtype != finetuned.tensors[name].dtype]
    if mixed:
        log.warning(
            "the models' dtypes differ (%s is %s and %s), so the change includes differences from rounding",
            mixed[0],
            base.tensors[mixed[0]].dtype.name,
            finetuned.tensors[mixed[0]].dtype.name,
        )
    format = next(name for name, other in LAYOUTS.items() if other == layout)
    dtypes = [entry.dtype for entry in base.tensors.values() if _factored(entry)]
    dtype = FLOAT32 if format == "peft" or not dtypes else dtypes[0]
    dtype = FLOATS[config.out_dtype] if config.out_dtype else dtype
    return Inputs(finetuned, base, format, dtype, detect(opened[1], "model", {}, base_layout).tied)


def _factored(entry: TensorEntry) -> bool:
    """Return whether the change of a tensor gets factors: a matrix of a Linear layer, but not the router of a mixture of
    experts, which is small, and isn't a Linear layer in some libraries."""
    word = last_word(entry.name)
    router = word in LINEARS and LINEARS[word] is None
    return is_linear(entry.name) and not router and len(entry.shape) == 2 and entry.dtype.is_float


def _changes(inputs: Inputs, files: Files) -> tuple[list[Change], list[Change]]:
    """Return the changes that get factors, and the other changes. Raises CheckpointError, also if there are none of the
    former."""
    changes = find_changes(inputs.finetuned.tensors, inputs.base.tensors, files)
    linear = [change for change in changes if _factored(change.base)]
    rest = [change for change in changes if not _factored(change.base)]
    if not changes:
        raise CheckpointError(
            f"{inputs.finetuned.path} and {inputs.base.path} have the same weights, so there is nothing to extract"
        )
    if not linear:
        names = ", ".join(change.name for change in rest[:SHOWN])
        raise CheckpointError(
            f"{inputs.finetuned.path}: no matrix that is known as a Linear layer's changed from {inputs.base.path}, so there"
            f" is nothing to approximate; changed: {names}"
        )
    return linear, rest


# --- factors -------------------------------------------------------------------------------------------------------------


def _factorise(change: Change, config: ExtractConfig, dtype: DType, files: Files) -> tuple[Factors, dict[str, Any]]:
    """Return the factors of a change, and a row of the report with what the stored factors keep. Raises CheckpointError."""
    shape, backend = change.shape, NumpyBackend("float64")
    delta = read_change(change, files)
    found = low_rank(delta, config.most(shape), config.energy)
    stored, numbers = [], []
    for factor in (found.left, found.right):
        raw, bad = backend.store(np.ascontiguousarray(factor).reshape(-1), dtype)
        if bad:
            raise CheckpointError(
                f"tensor {change.name!r}: the low-rank matrices overflow {dtype.name}; give another --out_dtype"
            )
        stored.append(raw.copy().reshape(factor.shape))
        numbers.append(backend.load([raw.copy()], [dtype], based=False)[0][0].copy().reshape(factor.shape))
    left, right = numbers
    lost = 0.0
    rows = max(1, BLOCK * 16 // shape[1])
    for start in range(0, shape[0], rows):
        piece = delta[start : start + rows] - left[start : start + rows] @ right
        lost += float(np.einsum("ij,ij->", piece, piece))
    row = describe(change) | {
        "rank": len(found.values),
        "kept": 1 - lost / change.squares,
        "lost_norm": math.sqrt(lost),
        "largest_singular_value": float(found.values[0]),
        "largest_remaining_singular_value": found.remaining,
    }
    return Factors(stored[0], stored[1], dtype), row


# --- what is written -----------------------------------------------------------------------------------------------------


def _whole(inputs: Inputs, rest: Sequence[Change], factors: Mapping[str, Factors]) -> dict[str, TensorEntry]:
    """Return the tensors that the adapter stores whole, by name."""
    tensors, names = inputs.finetuned.tensors, [change.name for change in rest]
    if inputs.format != "peft":
        return {name: tensors[name] for name in names}
    whole = {name: tensors[name] for name in whole_modules(names, factors, tensors)}
    if inputs.tied and "lm_head.weight" not in tensors:  # PEFT replaces only the embedding
        heads = [entry for name, entry in whole.items() if last_word(name) in EMBEDDINGS and len(entry.shape) == 2]
        if heads:
            whole["lm_head.weight"] = heads[0].renamed("lm_head.weight")
    return whole
