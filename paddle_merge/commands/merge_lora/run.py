"""Merge LoRA adapters into one adapter, layer by layer."""

from __future__ import annotations

import dataclasses
import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import Any

import numpy as np

from ...backends.np_backend import NumpyBackend
from ...checkpoints.files import Files
from ...conversion.lora.adapted import read_matrix
from ...errors import CheckpointError
from ...plan.file_names import MERGE_LORA_REPORT
from ..extract_lora.adapter_files import Stored
from ..extract_lora.write import write_adapter
from ..progress import watched
from .by_method import ByMethod
from .config import MergeLoraConfig
from .factors import MergedLayer
from .layers import Layer
from .output_files import arrange, tensors_of, whole_name
from .prepare import Prepared, prepare
from .report import announce, report, summarise, workers
from .tokenizer import drop_others
from .whole import Whole, blocks


def merge_lora(config: MergeLoraConfig, progress: bool | None = None) -> dict[str, Any]:
    """Write the merged adapter; return its report, which is also written beside it as merge_lora_report.json.

    progress: whether to show a progress bar; None (default): if standard error is a terminal. With `dry_run` nothing is
    written, and the report has no layers.
    Raises MergeError (ConfigError, CheckpointError, OutputError), each listing all problems found. A merge that fails or is
    interrupted leaves no adapter in the output folder.
    """
    started, files = time.perf_counter(), Files()
    try:
        prepared = prepare(config, files)
        announce(config, prepared.output, prepared.warnings)
        if config.dry_run:
            return report(config, prepared.output, [])
        output, made = prepared.output, dict[str, MergedLayer]()
        if config.energy is not None:  # ranks follow from values, and the file's header from ranks
            made = {layer.name: one for layer, one in _merged(prepared, config, progress)}
            output = dataclasses.replace(output, ranks={name: one.rank for name, one in made.items()})
        adapter, rows = arrange(output), list[dict[str, Any]]()

        def tensors() -> Iterator[tuple[str, Stored]]:
            stored = ((layer, made.pop(layer.name)) for layer in output.layers)
            for layer, merged in stored if made else _merged(prepared, config, progress):
                rows.append(merged.row)
                yield from tensors_of(layer, merged, output)
            for one in output.whole:
                yield whole_name(one, output), _whole(one, config, prepared, files)

        write_adapter(config.output_path, adapter, tensors(), MERGE_LORA_REPORT, lambda: report(config, output, rows), files)
        drop_others(config.output_path, adapter.configs)
    finally:
        files.close()
    said = report(config, output, rows)
    summarise(said, adapter, time.perf_counter() - started)
    return said


def _merged(prepared: Prepared, config: MergeLoraConfig, progress: bool | None) -> Iterator[tuple[Layer, MergedLayer]]:
    """Yield all layers merged, in their order: several threads merge layers, each one with one core, on which results don't
    depend."""
    from threadpoolctl import threadpool_limits

    layers, waiting = prepared.output.layers, deque[Future[MergedLayer]]()
    most = workers(config, prepared.output)
    pool = ThreadPoolExecutor(most)
    try:
        with threadpool_limits(1, "blas"):
            following = iter(layers)
            for layer in watched(layers, "merging", progress):
                waiting += [pool.submit(prepared.merger.merge, one) for one in islice(following, most - len(waiting))]
                yield layer, waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def _whole(one: Whole, config: MergeLoraConfig, prepared: Prepared, files: Files) -> Stored:
    """Return a whole tensor of the output. Raises CheckpointError."""
    if one.kept:
        return one.first
    if prepared.method is not None and one.base is not None:
        return _by_method(one, prepared.method, len(config.weights), files)
    merged = np.empty(one.shape, one.dtype.raw)
    flat = merged.reshape(-1)
    for start, raw in blocks(one, config.weights, files):
        flat[start : start + len(raw)] = raw
    return merged


def _by_method(one: Whole, method: ByMethod, adapters: int, files: Files) -> np.ndarray:
    """Return a whole tensor that a method merges; an adapter that lacks it counts as the base. Raises CheckpointError."""
    assert one.base is not None
    base = read_matrix(one.base, files).reshape(one.shape)
    models = [
        read_matrix(one.held[number], files).reshape(one.shape) if number in one.held else base for number in range(adapters)
    ]
    merged = method.merge(one.name, models, base).astype(np.float64)
    raw, bad = NumpyBackend("float64").store(merged.reshape(-1), one.dtype)
    if bad:
        raise CheckpointError(
            f"tensor {one.name!r} holds NaN or Inf, or what the method makes is too large for {one.dtype.name}"
        )
    return np.asarray(raw.copy().reshape(one.shape))
