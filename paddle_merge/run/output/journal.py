"""The journal of a merge: which pieces of the output are whole on the disk, so that a merge that was stopped can go on.

A file beside the unfinished shards, one per rank: a line that says what is being merged, then a line per piece. A piece's
line is written only after its bytes have reached the disk, and its checksum is looked at again before it is believed.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import dataclasses
import glob
import hashlib
import json
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ...checkpoints.fingerprint import of_file
from ...errors import MergeError, OutputError, WorkError
from ...plan.file_names import JOURNALS, journal_name
from ...plan.plan import Piece, Plan
from ...recipe.request import Request
from ...version import __version__
from ..job import Report
from .disk import fsync, remedy

SECONDS = 10.0  # between two visits to the disk; a merge that is stopped before the first leaves nothing
# Fields that change neither what the output's bytes are nor where they go.
IRRELEVANT = frozenset(
    ["n_process", "max_memory", "max_tensor_mem", "split_pieces", "strict", "strict_layout", "output_path", "copy_file_list"]
)


@dataclass(frozen=True)
class Stopped:
    """What the journals of a merge that was stopped say. header: what was merged; reports: the pieces that were whole."""

    header: Mapping[str, Any]
    reports: Sequence[Report]


def read(folder: str) -> Stopped | None:
    """The merge into `folder` that was stopped, by its journals, as far as they are whole; None if there is none."""
    header: Mapping[str, Any] | None = None
    reports: list[Report] = []
    for path in sorted(glob.glob(os.path.join(glob.escape(folder), JOURNALS))):
        with contextlib.suppress(OSError, ValueError, TypeError, KeyError), open(path, encoding="utf-8") as file:
            for number, line in enumerate(file):  # ends at the first that was cut off
                content = json.loads(line)
                if number:
                    reports.append(Report.of(content))
                elif content != (header := header or _header(content)):
                    break  # of another merge
    return Stopped(header, reports) if header is not None and reports else None


def _header(content: Any) -> dict[str, Any]:
    """Raises TypeError if it says something else."""
    header = dict(content)
    if not (isinstance(header.get("fields"), dict) and isinstance(header.get("inputs"), dict)):
        raise TypeError("not a header")
    return header


def describe(request: Request, plan: Plan) -> dict[str, Any]:
    """What decides the output's bytes and places: fields, input files, and a digest of the plan."""
    record = {name: value for name, value in request.record.items() if name not in IRRELEVANT}
    files = sorted({file for tensor in plan.tensors for entry in tensor.inputs for file in entry.files})
    digest = hashlib.sha256()
    for part in (*plan.shards, *plan.tensors):
        digest.update(repr(part).encode("utf-8", "surrogatepass"))
    inputs = {os.path.abspath(file): _state(file) for file in files}
    said = {"version": __version__, "fields": record, "inputs": inputs, "plan": digest.hexdigest()}
    return dict(json.loads(json.dumps(said)))  # as it is read back


def _state(file: str) -> list[int]:
    """Its size, and when it was changed; nothing of a file that isn't there any more, which the merge will find."""
    try:
        state = os.stat(file)
    except OSError:
        return []
    return [state.st_size, state.st_mtime_ns]


def changes(then: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Why a merge that was stopped can't go on: what has changed, in sentences."""
    found = []
    if then.get("version") != now["version"]:
        found.append(f"it was begun by paddle_merge {then.get('version')}, and this is {now['version']}")
    fields, inputs = then["fields"], then["inputs"]
    for name, value in now["fields"].items():
        if fields.get(name) != value:
            found.append(f"--{name} was {fields.get(name)!r} and is {value!r}")
    for file, state in now["inputs"].items():
        if inputs.get(file) != state:
            found.append(f"{file} {'has changed since' if file in inputs else 'was not one of its inputs'}")
    found += [f"{file} was one of its inputs" for file in inputs if file not in now["inputs"]]
    if not found and then.get("plan") != now["plan"]:
        found.append("its inputs have other headers now")
    return found


def whole(reports: Sequence[Report], plan: Plan, paths: Sequence[str]) -> list[Report]:
    """Those whose bytes are in the unfinished shards. paths: of the shards."""
    tensors = {tensor.name: tensor for tensor in plan.tensors}
    found = []
    for report in reports:
        tensor = tensors.get(report.tensor)
        if tensor is None or not 0 <= report.start < report.stop <= tensor.size or len(report.read) != len(tensor.inputs):
            continue
        place = tensor.offset, tensor.dtype.itemsize, report.start, report.stop
        with contextlib.suppress(OSError, EOFError, ValueError):
            if of_file(paths[tensor.shard], *place) == report.written:
                found.append(report)
    return found


def remaining(plan: Plan, done: Sequence[Report]) -> tuple[Piece, ...]:
    """The plan's pieces without what is done."""
    ranges: dict[str, list[tuple[int, int]]] = {}
    for report in done:
        ranges.setdefault(report.tensor, []).append((report.start, report.stop))
    pieces = []
    for piece in plan.pieces:
        start = piece.start
        for first, stop in sorted(ranges.get(plan.tensors[piece.tensor].name, [])):
            if first > start and start < piece.stop:
                pieces.append(Piece(piece.tensor, start, min(first, piece.stop)))
            start = max(start, stop)
        if start < piece.stop:
            pieces.append(Piece(piece.tensor, start, piece.stop))
    return tuple(pieces)


class Journal:
    """One rank's. Visits to the disk happen in a thread of its own, while the merge goes on."""

    def __init__(self, folder: str, rank: int, plan: Plan, paths: Sequence[str]):
        self._path, self._new_path = (os.path.join(folder, journal_name(rank, new)) for new in (False, True))
        self._shards = {tensor.name: paths[tensor.shard] for tensor in plan.tensors}
        self._new: list[Report] = []
        self._thread = concurrent.futures.ThreadPoolExecutor(1)
        self._visit: concurrent.futures.Future[None] | None = None
        self._last = time.monotonic()
        self._inputs: Mapping[str, Any] = {}
        self._lost = False  # a write that the system has taken, and could not bring to the disk
        self.kept = False  # whether there is anything to go on from

    def start(self, header: Mapping[str, Any], done: Sequence[Report]) -> None:
        """Replace the journal of this rank. Raises OutputError."""
        try:
            with open(self._new_path, "w", encoding="utf-8") as file:
                file.writelines(json.dumps(line) + "\n" for line in (header, *map(dataclasses.asdict, done)))
                file.flush()
                os.fsync(file.fileno())
            os.rename(self._new_path, self._path)
            fsync(os.path.dirname(self._path))
        except OSError as error:
            raise self._failure(error) from None
        self.kept, self._inputs = bool(done), header["inputs"]

    def add(self, report: Report) -> None:
        """A piece is written. Raises OutputError if an earlier one could not be brought to the disk."""
        self._new.append(report)
        if self._visit is not None and self._visit.done():
            self._finish_visit()
        if self._visit is None and time.monotonic() - self._last >= SECONDS:
            new, self._new = self._new, []
            self._visit = self._thread.submit(self._bring, new)

    def close(self, stopped: bool) -> None:
        """End the thread; of a merge that was stopped, and is worth it, note the last pieces. Raises nothing then, and else
        OutputError, or WorkError if an input has changed while it was read."""
        with contextlib.suppress(*((MergeError, OSError) if stopped else ())):
            if self._visit is not None:
                self._finish_visit()
            if not stopped:
                self._check_inputs()
            elif self.kept and not self._lost:
                self._bring(self._new)
        self._thread.shutdown()

    def _finish_visit(self) -> None:
        visit, self._visit = self._visit, None
        try:
            if visit is not None:
                visit.result()
        except OSError as error:
            # Once only does the system tell that it has lost what was written: the next sync would say that all is well.
            self._lost = True
            raise self._failure(error) from None
        self._last = time.monotonic()

    def _failure(self, error: OSError) -> OutputError:
        return OutputError(
            f"{os.path.dirname(self._path)}: can't be written to ({error.strerror}){remedy(error, self._path)}"
        )

    def _check_inputs(self) -> None:
        """Raises WorkError if what has been merged may come of other inputs than the plan."""
        changed = [file for file, state in self._inputs.items() if _state(file) != state]
        if changed:
            raise WorkError([f"{file} has changed while it was merged: merge again" for file in changed])

    def _bring(self, reports: Sequence[Report]) -> None:
        """First the pieces to the disk, then their lines. Raises OSError; WorkError."""
        for path in {self._shards[report.tensor] for report in reports}:
            fsync(path)
        self._check_inputs()
        with open(os.open(self._path, os.O_WRONLY | os.O_APPEND), "w", encoding="utf-8") as file:
            file.writelines(json.dumps(dataclasses.asdict(report)) + "\n" for report in reports)
            file.flush()
            os.fsync(file.fileno())
        self.kept = self.kept or bool(reports)
