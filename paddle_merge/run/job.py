"""What the parent sends to a worker process, and what a worker reports."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..backends.engine import NUMPY, Engine
from ..checkpoints.fingerprint import sum_of
from ..errors import WorkError
from ..plan.plan import TensorPlan

log = logging.getLogger("paddle_merge")


@dataclass(frozen=True)
class Job:
    """What all pieces have in common.

    paths: of the shards while they are being written, in the order of Plan.shards; None: nothing is written, and reports
        tell the fingerprints of what would be.
    engine: what computes.
    """

    paths: tuple[str, ...] | None
    engine: Engine = NUMPY


@dataclass(frozen=True)
class Report:
    """What was noticed in one piece of a tensor: the inputs (index into Recipe.titles) that hold NaN or Inf; numbers too
    large for the output's dtype; the most bytes of device memory that the worker has taken so far. The piece, elements
    start..stop, and the fingerprints of it as it was written and as each input was read (as Recipe.sources, in the output's
    layout, adapters folded in)."""

    tensor: str
    not_finite: tuple[int, ...] = ()
    overflowed: bool = False
    device_memory: int = 0
    start: int = 0
    stop: int = 0
    written: str = ""
    read: tuple[str, ...] = ()

    @classmethod
    def of(cls, content: Mapping[str, Any]) -> Report:
        """From JSON. Raises ValueError, or TypeError, if it says something else."""
        lists = {name: tuple(content[name]) for name in ("not_finite", "read")}
        report = cls(**{**content, **lists})
        numbers = (report.device_memory, report.start, report.stop, *report.not_finite)
        words = (report.tensor, report.written, *report.read)
        if not (all(type(one) is int for one in numbers) and all(isinstance(one, str) for one in words)):
            raise TypeError("not a report")
        sum_of((report.written, *report.read))
        return report


def notice(reports: Sequence[Report], tensors: Sequence[TensorPlan], paths: Sequence[str], strict: bool) -> None:
    """Warn of NaN and Inf met on the way, or raise WorkError under `strict`. paths: as Recipe.titles."""
    dtypes = {tensor.name: tensor.dtype.name for tensor in tensors}
    found = sorted(
        {
            f"tensor {report.tensor!r} holds NaN or Inf in {paths[number]}"
            for report in reports
            for number in report.not_finite
        }
    )
    overflowed = sorted({report.tensor for report in reports if report.overflowed})
    found += [f"tensor {name!r} overflows {dtypes[name]}: it holds Inf or NaN in the output" for name in overflowed]
    if strict and found:
        raise WorkError(found)
    for sentence in found:
        log.warning("%s", sentence)
