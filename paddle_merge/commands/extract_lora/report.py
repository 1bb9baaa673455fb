"""Report an extraction: before it starts, when it is done, and in extract_report.json."""

from __future__ import annotations

import dataclasses
import logging
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ...dtypes import DType
from ...parsing import size_text
from ...plan.file_names import EXTRACT_REPORT
from ...version import __version__
from .adapter_files import NewAdapter
from .changes import Change
from .config import RANK, ExtractConfig
from .low_rank import SPREAD

log = logging.getLogger("paddle_merge")
INTERPRETER = 180 << 20  # bytes of memory of Python with NumPy, and with Numba if loops are to be compiled, measured
SHOWN = 5  # tensors listed in the summary


def announce(
    config: ExtractConfig, format: str, dtype: DType, tensors: int, linear: Sequence[Change], rest: Sequence[Change]
) -> None:
    """Log what will be done, and how much memory it takes.

    tensors: number of tensors of the model. linear: the changes that get factors. rest: the other changes.
    """
    largest = max(_working_memory(change.shape, config.most(change.shape)) for change in linear)
    held = sum(sum(change.shape) * config.most(change.shape) for change in linear) * dtype.itemsize
    rank = str(config.rank or RANK)
    if config.energy is not None:
        rank = f"that keeps {config.energy} of the sum of squares{f', at most {config.rank}' if config.rank else ''}"
    log.info("adapter  for %s; rank %s; low-rank matrices in %s", format, rank, dtype.name)
    changed = len(linear) + len(rest)
    log.info("tensors  %d of %d changed; %d are approximated by low-rank matrices", changed, tensors, len(linear))
    names = ", ".join(change.name for change in rest)
    if rest and config.only_linear:
        log.warning("not in the adapter, although they changed: %s", names)
    elif rest:
        log.info("whole    %s (stored as they are)", names)
    log.info("memory   at most about %s, by the size of the largest matrix", size_text(INTERPRETER + largest + held))


def _working_memory(shape: tuple[int, ...], rank: int) -> int:
    """Return an upper estimate of the bytes of memory that one matrix takes.

    These are the matrix, a Krylov basis twice, the Gram matrix and its eigenvectors, and the factors with their parts.
    """
    basis = sum(shape) * min(shape) // SPREAD
    return 8 * (math.prod(shape) + 2 * basis + 4 * min(shape) ** 2 + 4 * sum(shape) * rank)


def report(
    config: ExtractConfig,
    format: str,
    dtype: DType,
    tensors: int,
    factors: Sequence[Mapping[str, Any]],
    rest: Sequence[Change],
) -> dict[str, Any]:
    """Return the content of extract_report.json: the settings, and what is stored of every tensor that changed.

    tensors: number of tensors of the model. factors: a row for each matrix, see run.py. rest: the other changes.
    """
    lost = sum(row["lost_norm"] ** 2 for row in factors)
    of_factors = sum(row["change_norm"] ** 2 for row in factors)
    # A tied lm_head that is stored in one of Paddle's layouts is the embedding, and is counted once.
    of_rest = sum({change.base.nameless: change.squares for change in rest}.values())
    described = [describe(change) for change in rest]
    return {
        "paddle_merge_version": __version__,
        "numpy_version": np.__version__,
        **dataclasses.asdict(config),
        "format": format,
        "out_dtype": dtype.name,
        "kept": 1 - (lost + (of_rest if config.only_linear else 0.0)) / (of_factors + of_rest),
        "kept_by_factors": 1 - lost / of_factors,
        "unchanged_tensors": tensors - len(factors) - len(rest),
        "factors": list(factors),
        "whole": [] if config.only_linear else described,
        "left_out": described if config.only_linear else [],
    }


def describe(change: Change) -> dict[str, Any]:
    """Return a row of the report. change_norm: the Frobenius norm."""
    return {"name": change.name, "shape": list(change.shape), "change_norm": change.norm}


def summarise(report: Mapping[str, Any], adapter: NewAdapter, seconds: float) -> None:
    """Log which share of the change is kept: in total, and of the tensors of which least is kept."""
    log.info("kept     %.4f of the sum of squares of the change; the tensors of which least is kept:", report["kept"])
    log.info("         %8s %6s %22s %13s  %s", "kept", "rank", "largest singular value", "largest lost", "tensor")
    for row in sorted(report["factors"], key=lambda row: row["kept"])[:SHOWN]:
        values = row["largest_singular_value"], row["largest_remaining_singular_value"]
        log.info("         %8.4f %6d %22.3g %13.3g  %s", row["kept"], row["rank"], *values, row["name"])
    size = size_text(adapter.shards[0].nbytes)
    log.info("written  to %s in %.1f s (%s); %s lists every tensor", report["output_path"], seconds, size, EXTRACT_REPORT)
