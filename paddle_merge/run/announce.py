"""Print the plan of a merge before it starts, and predict its duration."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

from ..parsing import size_text
from ..plan import memory_estimate
from ..plan.account import account
from ..plan.describe import describe, input_lines, log, sidecar_bytes, tensor_lines
from ..plan.plan import Plan
from ..recipe.request import Request
from .output.account_file import Predicted, as_json, write
from .output.destination import free_bytes
from .time_estimate import forecast


def announce(plan: Plan, request: Request, sidecars: Mapping[str, bytes], planning: float) -> None:
    """Log the plan, or in a dry run print it with every kind of tensor and a prediction; write it to request.account, if
    given.

    planning: seconds that making the plan took. Raises CheckpointError if a tensor would be lost; OutputError, WorkError.
    """
    accounted = account(plan)
    predicted = predict(plan, request, sidecars, planning)
    lines = describe(plan, request, sidecars, predicted["memory"])
    if request.dry_run:
        varying = plan.resolved is None
        lines += [*input_lines(accounted), *tensor_lines(accounted, varying), *_prediction(predicted)]
        print("\n".join(lines))
    else:
        log.info("%s", "\n".join(lines))
    if request.account:
        write(request.account, as_json(plan, request, accounted, predicted))


def predict(plan: Plan, request: Request, sidecars: Mapping[str, bytes], planning: float) -> Predicted:
    """Return the memory and disk space that the merge needs, in bytes; for a dry run also its duration, in seconds."""
    found: dict[str, Any] = {
        "workers": plan.n_process,
        "memory": memory_estimate.memory(plan, sidecar_bytes(sidecars)),
        "disk": plan.bytes_out + sidecar_bytes(sidecars),
        "disk_free": free_bytes(request.output, request.prefix),
    }
    if request.dry_run:
        time = forecast(plan, request.output, planning)
        found["time"] = {"seconds": time.seconds, **dataclasses.asdict(time)}
    return found


def _prediction(predicted: Predicted) -> Iterator[str]:
    yield f"disk     {size_text(predicted['disk'])}, of {size_text(predicted['disk_free'])} free"
    time = predicted["time"]
    parts = {"starting": "starting", "reading": "reading", "computing": "computing", "writing": "writing"}
    parts |= {"flushing": "waiting for the disk"} if time["flushing"] >= 0.05 else {}
    shown = ", ".join(f"{word} {_seconds(time[name])}" for name, word in parts.items())
    cached = time["cached"]
    where = "" if cached is None or not predicted["disk"] else f"; {cached:.0%} of the inputs are in memory already"
    yield f"time     about {_seconds(time['seconds'])} ({shown}{where})"
    yield from (f"         {note}" for note in time["notes"])


def _seconds(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
