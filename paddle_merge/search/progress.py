"""Show how far a search is: a progress line on a terminal, log messages elsewhere, and scalars for VisualDL if asked for."""

from __future__ import annotations

import importlib.util
import logging
import os
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

from ..errors import ConfigError, OutputError
from .journal import Place
from .outcome import Scored
from .spec import SearchSpec

log = logging.getLogger("paddle_merge")
LINE_SECONDS = 10.0  # the shortest time between two log messages
RECORDS = "vdlrecords.paddle_merge.log"  # VisualDL reads files whose names contain vdlrecords
PHASES = {  # of journal.Place -> what is being scored
    "search": "searching",
    "final": "scoring the finalists",
    "baselines": "scoring inputs and uniform merges",
    "report": "scoring on the report split",
}


def check_visualdl(folder: str | None) -> None:
    """Raise ConfigError if scalars are asked for, and the package that writes them is missing. folder: None: none are."""
    if folder is not None and importlib.util.find_spec("visualdl") is None:
        raise ConfigError("--visualdl needs the package visualdl, which is not installed: python -m pip install visualdl")


class Progress:
    """What is shown while a search runs.

    total: number of candidates that will be scored. progress: whether to show a progress line; None: if standard error is a
    terminal. visualdl: the folder for scalars; None: none. Scalars of an earlier search there are replaced. part: of a
    search in two parts, which one it is; its scalars are in a folder of that name.
    """

    def __init__(
        self, spec: SearchSpec, total: int, progress: bool | None = None, visualdl: str | None = None, part: str = ""
    ):
        from tqdm import tqdm

        self._objectives, self._total = spec.objectives, total
        shown = log.isEnabledFor(logging.INFO) and sys.stderr.isatty() if progress is None else progress
        self._bar = tqdm(total=total, desc=PHASES["search"], unit="candidate") if shown else None
        self._writer = _writer(os.path.join(visualdl, part) if part else visualdl) if visualdl is not None else None
        self._phase = "search"
        self._done = 0  # candidates whose first score is known
        self._fresh = 0  # of them, those that were not in the journal
        self._state = ""
        self._warned = False
        self._began = self._last = time.monotonic()

    def scored(self, place: Place) -> None:
        """Hear that an evaluation has ended that was not in the journal."""
        phase = place.phase.split()[-1]  # of a search in two parts, "first" stands before it
        if phase != self._phase:
            self._enter(phase)
        if phase == "search" and place.round == 0:
            self._fresh += 1
            self._advance(self._done + 1)
            self._message()

    def generation(self, found: Sequence[Scored]) -> None:
        """Hear that a generation is complete. found: all candidates so far."""
        self._advance(len(found))
        if failed := [one for one in found if one.known.error][:1]:
            self._warn(failed[0])
        self._state = described(found, self._objectives)
        if self._bar is not None:
            self._bar.set_postfix_str(self._state)
        if self._writer is not None:
            for tag, value in scalars(found, self._objectives).items():
                self._writer.add_scalar(tag=tag, value=value, step=len(found))
        self._message()

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()
        if self._writer is not None:
            self._writer.close()

    def _warn(self, failed: Scored) -> None:
        """Say why the first candidate failed, while there is time to stop a search whose evaluator is broken."""
        if self._warned:
            return
        self._warned = True
        if self._bar is not None:
            self._bar.clear()
        log.warning("%s failed, which counts as the worst score: %s", failed.title, failed.known.error)

    def _advance(self, done: int) -> None:
        if self._bar is not None:
            self._bar.update(done - self._done)
        self._done = done

    def _enter(self, phase: str) -> None:
        self._phase = phase
        if self._bar is not None:
            self._bar.set_description_str(PHASES[phase])
        else:
            log.info("%s", PHASES[phase])

    def _message(self) -> None:
        now = time.monotonic()
        if self._bar is not None or now - self._last < LINE_SECONDS:
            return
        self._last = now
        state = f"; {self._state}" if self._state else ""
        left = ""
        if self._fresh and self._done < self._total:
            left = f"; about {duration((now - self._began) / self._fresh * (self._total - self._done))} left"
        log.info("%d of %d candidates%s%s", self._done, self._total, state, left)


def scalars(found: Sequence[Scored], objectives: Mapping[str, str]) -> dict[str, float]:
    """Return the best value so far and the mean of the last generation of each objective, and how many have failed.

    The best is that of candidates that were scored in full; without a race all are. What isn't known is left out.
    """
    complete = max(one.round for one in found)
    values: dict[str, float] = {}
    for name, direction in objectives.items():
        full = [one.known.metrics[name] for one in found if not one.known.error and one.round == complete]
        last = [one.known.metrics[name] for one in found if not one.known.error and one.generation == found[-1].generation]
        if full:
            values[f"best/{name}"] = (max if direction == "maximize" else min)(full)
        if last:
            values[f"mean/{name}"] = sum(last) / len(last)
    return values | {"failed": float(sum(bool(one.known.error) for one in found))}


def described(found: Sequence[Scored], objectives: Mapping[str, str]) -> str:
    """Return the best and mean of the first objective as text: "generation 3, loss best 0.12, mean 0.4, 2 failed"."""
    known, name = scalars(found, objectives), next(iter(objectives))
    best, mean = (f"{known[key]:.4g}" if key in known else "-" for key in (f"best/{name}", f"mean/{name}"))
    failed = f", {known['failed']:.0f} failed" if known["failed"] else ""
    return f"generation {found[-1].generation}, {name} best {best}, mean {mean}{failed}"


def duration(seconds: float) -> str:
    """Return a time as text: "50 s", "3 min 20 s", "2 h 5 min"."""
    whole = max(1, round(seconds))
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def _writer(folder: str) -> Any:
    """Return what writes scalars into a folder; a search that goes on writes those of all its generations again.

    Raises ConfigError without VisualDL, OutputError if the folder can't be written.
    """
    check_visualdl(folder)
    from visualdl import LogWriter

    path = os.path.join(folder, RECORDS)
    try:
        if os.path.exists(path):
            os.remove(path)
        return LogWriter(logdir=folder, file_name=RECORDS)
    except OSError as error:
        raise OutputError(f"--visualdl {folder}: can't be written ({error.strerror})") from None
