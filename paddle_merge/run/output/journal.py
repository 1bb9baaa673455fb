"""Record in a journal which pieces of the output are complete on the disk, so that an interrupted merge can continue.

A journal is a file beside the unfinished shards, one for each rank: a line that says what is being merged, then a line for
each piece. A piece's line is written only after its bytes have reached the disk, and its checksum is verified before the
piece is taken as complete.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import glob
import hashlib
import json
import math
import os
import time
from collections.abc import Mapping, Sequence
from typing import Any

from ...checkpoints.fingerprint import of_file
from ...checkpoints.scaled import ScaledEntry
from ...checkpoints.tensors import StoredEntry, TensorEntry
from ...conversion.lora.entry import AdaptedEntry, Change, LowRank
from ...errors import MergeError, OutputError, WorkError
from ...plan.file_names import JOURNALS, journal_name
from ...plan.plan import Plan
from ...plan.tensor_plan import Piece, TensorPlan
from ...recipe.request import Request
from ...records import record
from ...version import __version__
from ..job import Report
from .disk import fsync, remedy

SECONDS = 10.0  # between two flushes to the disk; a merge that is interrupted before the first leaves nothing
# Fields that change neither the output's bytes nor their places.
IRRELEVANT = frozenset(
    ["n_process", "max_memory", "max_tensor_mem", "split_pieces", "strict", "strict_layout", "output_path", "copy_file_list"]
)


@record(frozen=True)
class Stopped:
    """What the journals of an interrupted merge say. header: what was being merged; reports: of the complete pieces."""

    header: Mapping[str, Any]
    reports: Sequence[Report]


def read(folder: str) -> Stopped | None:
    """Return the interrupted merge into `folder`, from its journals up to the first damaged line; None if there is none."""
    header: Mapping[str, Any] | None = None
    reports: list[Report] = []
    for path in sorted(glob.glob(os.path.join(glob.escape(folder), JOURNALS))):
        with contextlib.suppress(OSError, ValueError, TypeError, KeyError), open(path, encoding="utf-8") as file:
            for number, line in enumerate(file):  # up to the first line that was cut off
                content = json.loads(line)
                if number:
                    reports.append(Report.of(content))
                elif content != (header := header or _header(content)):
                    break  # of another merge
    return Stopped(header, reports) if header is not None and reports else None


def _header(content: Any) -> dict[str, Any]:
    """Return the first line of a journal. Raises TypeError if it is something else."""
    header = dict(content)
    if not (isinstance(header.get("fields"), dict) and isinstance(header.get("inputs"), dict)):
        raise TypeError("not a header")
    return header


def describe(request: Request, plan: Plan) -> dict[str, Any]:
    """Return what determines the output's bytes and their places: fields, input files, and a digest of the plan."""
    record = {name: value for name, value in request.record.items() if name not in IRRELEVANT}
    digest, common = hashlib.sha256(repr(plan.shards).encode("utf-8", "surrogatepass")), _Numbers()
    methods = {id(tensor.resolved): tensor.resolved for tensor in plan.tensors}
    shown = {key: repr(method) for key, method in methods.items()}
    for tensor in plan.tensors:
        how = common[tensor.numbers, tensor.base is None, shown[id(tensor.resolved)], tensor.seed, tensor.transposed]
        written = tensor.name, tensor.masked_as, tensor.dtype.name, tensor.shard, tensor.offset, tensor.scales or ()
        read = [_read(entry, common) for entry in tensor.inputs]
        digest.update(repr((read, how, written)).encode("utf-8", "surrogatepass"))
    digest.update(repr(list(common)).encode("utf-8", "surrogatepass"))
    inputs = {os.path.abspath(file): file_state(file) for file in plan.files}
    said = {"version": __version__, "fields": record, "inputs": inputs, "plan": digest.hexdigest()}
    said |= {"experts": orders} if (orders := plan.experts.digest) else {}
    return dict(json.loads(json.dumps(said)))  # as it is read back


class _Numbers(dict[object, int]):
    """Number what many tensors have in common, in order of appearance: to write it for each would take several times as
    long."""

    def __missing__(self, key: object) -> int:
        return self.setdefault(key, len(self))


def _read(entry: TensorEntry, common: _Numbers) -> object:
    """Return what is read for a tensor and what is done to it, as tuples: the text of a dataclass takes several times as
    long."""
    if isinstance(entry, StoredEntry):
        if not entry.parts:
            return common[entry.dtype.name, entry.shape, entry.file], entry.offset
        forms = tuple([(one.file, one.at, one.shape, one.strides, one.text, one.nibbles) for one in entry.parts])
        return common[entry.dtype.name, entry.shape, forms], [one.offset for one in entry.parts]
    if isinstance(entry, AdaptedEntry):
        its = common["adapted", entry.dtype.name, entry.shape]
        return its, _read(entry.stored, common), [_change(one, common) for one in entry.changes]
    return entry.nameless if isinstance(entry, ScaledEntry) else entry


def _change(change: Change, common: _Numbers) -> object:
    """Return a change of a tensor as `_read` does what is read."""
    if not isinstance(change, LowRank):
        return change
    factors = [one and _read(one, common) for one in (change.left, change.middle, change.right)]
    return common[change.scale, change.place], factors


def file_state(file: str) -> list[int]:
    """Return the size and modification time of a file; [] if it is gone, which the merge will report."""
    try:
        state = os.stat(file)
    except OSError:
        return []
    return [state.st_size, state.st_mtime_ns]


def changes(then: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Return sentences on what has changed, so that an interrupted merge can't continue."""
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
    if then.get("experts") != now.get("experts"):
        found.append("its experts match in another order now, as they may with another processor or library for matrices")
    if not found and then.get("plan") != now["plan"]:
        found.append(f"its inputs have other headers now, or another build of paddle_merge {__version__} began it")
    return found


def whole(reports: Sequence[Report], plan: Plan, paths: Sequence[str]) -> list[Report]:
    """Return the reports whose bytes are in the unfinished shards. paths: of the shards."""
    tensors = {tensor.name: tensor for tensor in plan.tensors}
    found = []
    for report in reports:
        tensor = tensors.get(report.tensor)
        if tensor is None or not 0 <= report.start < report.stop <= tensor.size or len(report.read) != len(tensor.inputs):
            continue
        with contextlib.suppress(OSError, EOFError, ValueError):
            if _is_there(report, tensor, paths[tensor.shard]):
                found.append(report)
    return found


def _is_there(report: Report, tensor: TensorPlan, path: str) -> bool:
    """Return whether a file has what a report says was written. Raises OSError, EOFError, ValueError."""
    start, stop, scales = report.start, report.stop, tensor.scales
    if of_file(path, tensor.offset, tensor.dtype.itemsize, start, stop) != report.written:
        return False
    if scales is None:
        return not report.scales
    first, last = scales.first(start), scales.first(stop) if stop < tensor.size else math.prod(scales.grid)
    return of_file(path, scales.offset, scales.dtype.itemsize, first, last, scales.hashed) == report.scales


def remaining(plan: Plan, done: Sequence[Report]) -> tuple[Piece, ...]:
    """Return the plan's pieces without what is complete."""
    if not done:
        return plan.pieces
    ranges: dict[str, list[tuple[int, int]]] = {}
    for report in done:
        ranges.setdefault(report.tensor, []).append((report.start, report.stop))
    pieces = []
    for piece in plan.pieces:
        start = piece.start
        for first, stop in sorted(ranges.get(plan.tensors[piece.tensor].name, [])):
            if first > start and start < piece.stop:
                pieces.append(piece._replace(start=start, stop=min(first, piece.stop)))
            start = max(start, stop)
        if start < piece.stop:
            pieces.append(piece._replace(start=start))
    return tuple(pieces)


class Journal:
    """The journal of one rank. It is flushed to the disk by a thread of its own, while the merge goes on."""

    def __init__(self, folder: str, rank: int, plan: Plan, paths: Sequence[str]):
        self._path, self._new_path = (os.path.join(folder, journal_name(rank, new)) for new in (False, True))
        self._shards = {tensor.name: paths[tensor.shard] for tensor in plan.tensors}
        self._new: list[Report] = []
        self._thread = concurrent.futures.ThreadPoolExecutor(1)
        self._visit: concurrent.futures.Future[None] | None = None
        self._last = time.monotonic()
        self._inputs: Mapping[str, Any] = {}
        self._lost = False  # whether the system accepted a write, but failed to bring it to the disk
        self.kept = False  # whether there is anything to continue from

    def start(self, header: Mapping[str, Any], done: Sequence[Report]) -> None:
        """Replace the journal of this rank. Raises OutputError."""
        try:
            with open(self._new_path, "w", encoding="utf-8") as file:
                file.writelines(json.dumps(line) + "\n" for line in (header, *map(Report._asdict, done)))
                file.flush()
                os.fsync(file.fileno())
            os.rename(self._new_path, self._path)
            fsync(os.path.dirname(self._path))
        except OSError as error:
            raise self._failure(error) from None
        self.kept, self._inputs = bool(done), header["inputs"]

    def add(self, report: Report) -> None:
        """Note that a piece is written. Raises OutputError if an earlier one could not be flushed to the disk."""
        self._new.append(report)
        if self._visit is not None and self._visit.done():
            self._finish_visit()
        if self._visit is None and time.monotonic() - self._last >= SECONDS:
            new, self._new = self._new, []
            self._visit = self._thread.submit(self._bring, new)

    def close(self, stopped: bool) -> None:
        """End the thread. stopped: the merge is interrupted; if it has a journal, the last pieces are added to it.

        Raises nothing if stopped; else OutputError, or WorkError if an input has changed while it was read.
        """
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
            # The system reports a lost write only once: the next fsync would succeed.
            self._lost = True
            raise self._failure(error) from None
        self._last = time.monotonic()

    def _failure(self, error: OSError) -> OutputError:
        return OutputError(
            f"{os.path.dirname(self._path)}: can't be written to ({error.strerror}){remedy(error, self._path)}"
        )

    def _check_inputs(self) -> None:
        """Check that the inputs are still the files that were planned with. Raises WorkError."""
        changed = [file for file, state in self._inputs.items() if file_state(file) != state]
        if changed:
            raise WorkError([f"{file} has changed while it was merged: merge again" for file in changed])

    def _bring(self, reports: Sequence[Report]) -> None:
        """Flush the pieces to the disk, then write their lines. Raises OSError, WorkError."""
        for path in {self._shards[report.tensor] for report in reports}:
            fsync(path)
        self._check_inputs()
        with open(os.open(self._path, os.O_WRONLY | os.O_APPEND), "w", encoding="utf-8") as file:
            file.writelines(json.dumps(report._asdict()) + "\n" for report in reports)
            file.flush()
            os.fsync(file.fileno())
        self.kept = self.kept or bool(reports)
