"""What an extraction says: before it starts, when it is done, and for good in extract_report.json."""

from __future__ import annotations

import dataclasses
import logging
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ...dtypes import DType
from ...version import __version__
from .adapter_files import NewAdapter
from .changes import Change
from .config import RANK, ExtractConfig
from .low_rank import SPREAD

log = logging.getLogger("paddle_merge")
REPORT = "extract_report.json"
INTERPRETER = 180 << 20  # bytes of Python with NumPy and Numba, measured
SHOWN = 5  # tensors that the summary names


def announce(
    config: ExtractConfig, format: str, dtype: DType, tensors: int, linear: Sequence[Change], rest: Sequence[Change]
) -> None:
    """Say what will be done with these of so many tensors, and how much memory that takes."""
    largest = max(_working_memory(change.shape, config.most(change.shape)) for change in linear)
    held = sum(sum(change.shape) * config.most(change.shape) for change in linear) * dtype.itemsize
    rank = str(config.rank or RANK)
    if config.energy is not None:
        rank = f"as keeps {config.energy} of the sum of squares{f', at most {config.rank}' if config.rank else ''}"
    log.info("adapter  for %s: rank %s; factors in %s", format, rank, dtype.name)
    log.info("tensors  %d of %d changed; %d get factors", len(linear) + len(rest), tensors, len(linear))
    names = ", ".join(change.name for change in rest)
    if rest and config.only_linear:
        log.warning("left out, though they changed: %s", names)
    elif rest:
        log.info("whole    %s", names)
    memory = (INTERPRETER + largest + held) / 1e6
    log.info("memory   at most about %.0f MB: the largest matrix a few times, and all factors", memory)


def _working_memory(shape: tuple[int, ...], rank: int) -> int:
    """An upper estimate of the bytes that one matrix takes: itself, a Krylov basis twice, the Gram matrix and its
    eigenvectors, the factors and what they are made of."""
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
    """extract_report.json: what was asked, and what became of every tensor that changed.

    factors: a row per matrix, see run.py; rest: what else changed, of so many tensors.
    """
    lost = sum(row["lost_norm"] ** 2 for row in factors)
    of_factors = sum(row["change_norm"] ** 2 for row in factors)
    # A tied lm_head that Paddle's layouts store is the embedding, and counts once.
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
    """A row of the report. change_norm: Frobenius."""
    return {"name": change.name, "shape": list(change.shape), "change_norm": change.norm}


def summarise(report: Mapping[str, Any], adapter: NewAdapter, seconds: float) -> None:
    """Tell what is kept: of all, and of the tensors that lose most."""
    log.info("kept     %.4f of the change's sum of squares; the tensors of which least is kept:", report["kept"])
    log.info("         %8s %6s %19s %13s", "kept", "rank", "largest singular value", "remaining")
    for row in sorted(report["factors"], key=lambda row: row["kept"])[:SHOWN]:
        values = row["largest_singular_value"], row["largest_remaining_singular_value"]
        log.info("         %8.4f %6d %22.3g %13.3g  %s", row["kept"], row["rank"], *values, row["name"])
    size = adapter.shards[0].nbytes / 1e6
    log.info("written  to %s in %.1f s: %.1f MB; %s tells of every tensor", report["output_path"], seconds, size, REPORT)
