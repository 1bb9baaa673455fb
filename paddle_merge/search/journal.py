"""Keep a journal of a search, so that it can go on after it was stopped: one JSON object per line, only ever appended.

The first line says which search it is. Every other line is one evaluation: generation, candidate, round, values, and either
metrics or an error. A search that goes on replays the optimiser: it asks for the same candidates as before, and takes the
scores of those that are in the journal.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Mapping
from typing import Any

from ..errors import ConfigError, OutputError
from ..records import record
from ..run.output.flock import taken
from .job import Job, Result

NAME = "journal.jsonl"
_HEADER, _FILES = "paddle_merge search", "files"
Key = tuple[str, int, int, str]  # phase, candidate, round, split


@record(frozen=True)
class Place:
    """Where an evaluation belongs.

    phase: "search", or what else is scored: "baselines", "final". generation, candidate: from 0; a candidate's number is
    unique in its phase. round: of a race, from 0.
    """

    phase: str
    generation: int
    candidate: int
    round: int = 0


class Journal:
    """The journal in a folder.

    header: what makes this search the same as another: JSON values. files: what scores depend on -> its size and time.
    """

    def __init__(self, folder: str, header: Mapping[str, Any], files: Mapping[str, list[int]], resume: bool):
        """Read what is there, and write the first line if nothing is.

        resume: whether to go on with what is there; else it is begun again. Raises ConfigError if it is the journal of
        another search, or damaged; OutputError if it can't be written, or another search is writing it.
        """
        self.path = os.path.join(folder, NAME)
        self._known: dict[Key, dict[str, Any]] = {}
        self._header = {_HEADER: 1, **header}
        self._files = dict(files)
        try:  # unbuffered: what could not be written is not written later, when the file is closed
            self._file = open(self.path, "ab", buffering=0)  # noqa: SIM115 - for as long as the search runs
        except OSError as error:
            raise OutputError(f"{self.path}: can't be written ({error.strerror})") from None
        try:
            if taken(self._file.fileno()):
                raise OutputError(f"{self.path}: another search is running there; give another --output_path")
            if resume:
                self._read()
            else:
                self._file.truncate(0)
            if not os.path.getsize(self.path):
                self._append({**self._header, _FILES: {_hash(name): state for name, state in self._files.items()}})
        except OSError as error:
            self.close()
            raise OutputError(f"{self.path}: can't be written ({error.strerror})") from None
        except BaseException:
            self.close()
            raise

    @property
    def evaluations(self) -> int:
        """The number of evaluations that it holds."""
        return len(self._known)

    def find(self, place: Place, job: Job) -> Result | None:
        """Return the result of an evaluation, if it is in the journal. Raises ConfigError if it was another candidate."""
        line = self._known.get((place.phase, place.candidate, place.round, job.split))
        if line is None:
            return None
        if line["values"] != _plain(job):
            if job.values is None:
                raise ConfigError(
                    f"{self.path}: {job.title} was scored as another merge than it would be now, with other flags or in"
                    " another folder; give them as they were, another --output_path, or --overwrite to begin again"
                )
            raise ConfigError(
                f"{self.path}: candidate {place.candidate} was {line['values']}, and would be {_plain(job)} now: it was"
                " written by another version of an optimiser; begin again in an empty folder"
            )
        fields = {name: line[name] for name in ("metrics", "samples", "seconds", "cost", "error") if name in line}
        return Result(job.number, **fields)

    def add(self, place: Place, job: Job, result: Result) -> None:
        """Append an evaluation. Raises OutputError if the disk is full."""
        line: dict[str, Any] = {
            "phase": place.phase,
            "generation": place.generation,
            "candidate": place.candidate,
            "round": place.round,
            "split": job.split,
            "title": job.title,
            "values": _plain(job),
        }
        line |= {"metrics": dict(result.metrics)} if not result.error else {"error": result.error}
        line |= {"samples": {name: list(values) for name, values in result.samples.items()}} if result.samples else {}
        line |= {"cost": dict(result.cost)} if result.cost else {}
        line |= {"seconds": round(result.seconds, 4)}
        try:
            self._append(line)
        except OSError as error:
            raise OutputError(f"{self.path}: can't be written ({error.strerror}); --resume continues the search") from None
        self._keep(line)

    def close(self) -> None:
        self._file.close()

    def _append(self, line: Mapping[str, Any]) -> None:
        """Write a line, or nothing. Raises OSError."""
        data = (json.dumps(line, ensure_ascii=False) + "\n").encode("utf-8", "surrogatepass")
        before = os.fstat(self._file.fileno()).st_size
        try:
            done = 0
            while done < len(data):
                done += self._file.write(data[done:])
        except OSError:
            with contextlib.suppress(OSError):
                os.truncate(self.path, before)
            raise

    def _keep(self, line: dict[str, Any]) -> None:
        self._known[line["phase"], line["candidate"], line["round"], line["split"]] = line

    def _read(self) -> None:
        """Read all whole lines, and cut off one that was being written when the search was killed."""
        with open(self.path, "rb") as file:
            content = file.read()
        whole = content[: content.rfind(b"\n") + 1]
        if len(whole) < len(content):
            os.truncate(self.path, len(whole))
        lines = whole.splitlines()
        for number, text in enumerate(lines):
            try:
                line = json.loads(text)
                if number:
                    self._keep(line)
                    continue
                held = dict(line)
                assert held[_HEADER] == 1
            except (ValueError, KeyError, TypeError, AssertionError):
                raise ConfigError(f"{self.path}: line {number + 1} is damaged; begin again in an empty folder") from None
            if len(lines) == 1:  # nothing is lost if it is begun again, whatever it was to be
                self._file.truncate(0)
                return
            self._check(held)

    def _check(self, held: Mapping[str, Any]) -> None:
        """Raise ConfigError if the first line that a journal has is that of another search, or of other files."""
        differing = [name for name in self._header if held.get(name) != json.loads(json.dumps(self._header[name]))]
        undone = ["put the file back as it was"] if "file" in differing else []
        if differing:
            raise ConfigError(
                f"{self.path}: is the journal of another search ({', '.join(differing)} differ);"
                f" {', '.join([*undone, 'give another --output_path'])}, or --overwrite to begin again"
            )
        before = held.get(_FILES)
        changed = [name for name, state in self._files.items() if before is not None and before.get(_hash(name)) != state]
        if changed:  # before is None: an earlier version wrote it, or somebody has taken it out
            raise ConfigError(
                f"{self.path}: holds scores of other files ({', '.join(changed[:3])}{' ...' if changed[3:] else ''} changed,"
                " or was not read then); --overwrite begins again; if only times or places differ, as of copies, take"
                f" {_FILES!r} out of the journal's first line to go on"
            )


def _hash(path: str) -> str:
    """Return what stands for a path in a journal, which may be published: it tells of no folders of this machine."""
    return hashlib.sha256(path.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def is_empty(path: str) -> bool:
    """Return whether a file is a journal without evaluations, as that of a search whose evaluator can't be used."""
    try:
        with open(path, "rb") as file:
            lines = file.readlines()
    except OSError:
        return False
    return len(lines) == 1 and _HEADER.encode() in lines[0]


def _plain(job: Job) -> Any:
    """Return what a job scores as JSON gives it back."""
    return json.loads(json.dumps(list(job.values))) if job.values is not None else job.path or job.recipe
