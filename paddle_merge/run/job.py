"""Define what the command sends to a worker process, and what a worker reports."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from ..backends.engine import NUMPY, Engine
from ..checkpoints.fingerprint import sum_of
from ..errors import WorkError
from ..plan.tensor_plan import TensorPlan
from ..records import record

log = logging.getLogger("paddle_merge")


@record(frozen=True)
class Job:
    """What all pieces have in common.

    paths: of the shards while they are being written, in the order of Plan.shards; None: nothing is written, and reports
        tell the fingerprints of what would be.
    engine: what computes.
    """

    paths: tuple[str, ...] | None
    engine: Engine = NUMPY


class Report(NamedTuple):
    """What a worker found while it merged one piece of a tensor.

    not_finite: the inputs, by their places in Recipe.titles, that hold NaN or Inf. overflowed: whether numbers were too
    large for the output's dtype. device_memory: the most bytes of device memory that the worker has taken so far.
    start, stop: the piece's elements. written: their fingerprint as they were written; read: as each input was read, in the
    output's layout and with adapters folded in. scales: the fingerprint of the piece's scales; "" if it has none.
    """

    tensor: str
    not_finite: tuple[int, ...] = ()
    overflowed: bool = False
    device_memory: int = 0
    start: int = 0
    stop: int = 0
    written: str = ""
    read: tuple[str, ...] = ()
    scales: str = ""

    @classmethod
    def of(cls, content: Mapping[str, Any]) -> Report:
        """Return a report from its JSON content. Raises ValueError or TypeError if that is no report."""
        lists = {name: tuple(content[name]) for name in ("not_finite", "read")}
        report = cls(**{**content, **lists})
        numbers = (report.device_memory, report.start, report.stop, *report.not_finite)
        words = (report.tensor, report.written, report.scales, *report.read)
        if not (all(type(one) is int for one in numbers) and all(isinstance(one, str) for one in words)):
            raise TypeError("not a report")
        sum_of((report.written, report.scales or "0", *report.read))
        return report


def notice(reports: Sequence[Report], tensors: Sequence[TensorPlan], paths: Sequence[str], strict: bool) -> None:
    """Log a warning for each NaN, Inf and overflow that was found, or raise WorkError if `strict`. paths: Recipe.titles."""
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
