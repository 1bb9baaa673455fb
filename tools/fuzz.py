"""Merges of inputs made wrong at random, many a second: bits flipped, files cut and spliced, headers, indexes, configs and
pickles changed in the ways that their formats have. Every one must end in a merge that is right, or in sentences that say
why not; with no traceback, hang or crash, nothing run, nothing read elsewhere, nothing left behind
(tests/support/trials.py judges).

    python tools/fuzz.py                                            # some thousand trials of every kind
    python tools/fuzz.py --count 100000 --seed 1 --jobs 2 --kind flex --kind pdparams
    python tools/fuzz.py --replay flex:1000000017                   # one of them again, as the summary of failures says

The same seed makes the same trials. Damaged files of trials that failed are kept in --failures.
"""

from __future__ import annotations

import multiprocessing
import shutil
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Iterator
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Annotated

import typer

sys.path.insert(0, str(Path(__file__).parent.parent))

from tests.support.specimens import KINDS
from tests.support.trials import SECONDS, Guard, Outcome, limit_memory, right, specimens, trial, warm_up

STARTING = 120.0  # seconds until a worker has compiled its loops


def serve(connection: Connection, kinds: list[str], root: str) -> None:
    """A worker: takes words, gives outcomes."""
    folder, guard = Path(root) / "trial", Guard()
    for kind in kinds:  # what is imported and compiled on the way is no part of a trial
        for specimen in specimens(kind):
            right(specimen, folder)
    warm_up(folder)
    limit_memory()
    connection.send(None)
    while word := connection.recv():
        try:
            outcome, files = trial(word, folder, guard)
        except Exception:
            outcome, files = Outcome("fault", f"the fuzzer itself failed: {traceback.format_exc()}"), {}
        connection.send((outcome, files if outcome.ending == "fault" else {}))


class Worker:
    """A process that is given one word after the other, and replaced if it dies or hangs."""

    def __init__(self, kinds: list[str], root: Path):
        self._kinds, self._root = kinds, root
        self._start()

    def _start(self) -> None:
        self.root = tempfile.mkdtemp(dir=self._root)
        context = multiprocessing.get_context("spawn")
        self.connection, other = context.Pipe()
        self._process = context.Process(target=serve, args=(other, self._kinds, self.root), daemon=True)
        self._process.start()
        other.close()
        self.word, self.limit = "", time.monotonic() + STARTING

    def give(self, word: str) -> None:
        self.word, self.limit = word, time.monotonic() + 1.5 * SECONDS
        self.connection.send(word)

    def replace(self) -> str:
        """How the process ended."""
        self._process.join(timeout=1 if self.limit else 5)  # one that has closed its pipe is on its way out
        how = "" if self._process.is_alive() else f"the process died ({self._process.exitcode})"
        self._process.kill()
        self._process.join()
        self._start()
        return how or f"hangs: no end within {SECONDS:.0f} s"

    def close(self) -> None:
        self._process.kill()
        self._process.join()


def run(words: Iterator[str], jobs: int, kinds: list[str]) -> Iterator[tuple[str, Outcome, dict[str, bytes]]]:
    """Every word with its outcome, as they come."""
    memory = Path("/dev/shm")
    root = Path(tempfile.mkdtemp(prefix="paddle_merge_fuzz_", dir=memory if memory.is_dir() else None))
    workers = [Worker(kinds, root) for _ in range(jobs)]
    idle = False
    try:
        while not idle or any(worker.word for worker in workers):
            ready = wait([worker.connection for worker in workers], timeout=1)
            for worker in workers:
                word, found = worker.word, None
                if worker.connection in ready:
                    try:
                        found = worker.connection.recv()
                    except EOFError:
                        worker.limit = 0.0
                if time.monotonic() > worker.limit and found is None and (word or not idle or worker.limit == 0.0):
                    how = worker.replace()
                    if not word:
                        raise SystemExit(f"a worker doesn't start: {how}")
                    yield word, Outcome("fault", how), {}
                elif worker.connection in ready:
                    if found is not None:
                        yield word, *found
                    worker.word = ""
                    following = next(words, "")
                    idle = idle or not following
                    if following:
                        worker.give(following)
                    else:
                        worker.limit = float("inf")
    finally:
        for worker in workers:
            worker.close()
        shutil.rmtree(root)


def main(
    count: Annotated[int, typer.Option(help="Trials, of all kinds together.")] = 5000,
    seed: Annotated[int, typer.Option(help="Which trials.")] = 0,
    jobs: Annotated[int, typer.Option(help="Processes.")] = 2,
    kind: Annotated[list[str] | None, typer.Option(help=f"Of {', '.join(KINDS)}; all if not given.")] = None,
    replay: Annotated[str, typer.Option(help="One trial: its word, KIND:NUMBER.")] = "",
    failures: Annotated[Path, typer.Option(help="Folder for the files of trials that failed.")] = Path("fuzz_failures"),
) -> None:
    """Merge inputs made wrong, and count how it ends. Exits 1 if a trial failed."""
    kinds = [replay.partition(":")[0]] if replay else list(kind or KINDS)
    if unknown := [name for name in kinds if name not in KINDS]:
        raise SystemExit(f"--kind {unknown[0]} must be one of {', '.join(KINDS)}")
    words = [replay] if replay else [f"{kinds[n % len(kinds)]}:{seed * 10**9 + n}" for n in range(count)]
    endings: Counter[tuple[str, str]] = Counter()
    started = shown = time.monotonic()
    for done, (word, outcome, files) in enumerate(run(iter(words), 1 if replay else jobs, kinds), 1):
        endings[word.partition(":")[0], outcome.ending] += 1
        if outcome.ending == "fault":
            folder = failures / word.replace(":", "-")
            for name, content in files.items():
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                (folder / name).write_bytes(content)
            print(f"{word} failed ({folder}): {outcome.detail.strip()}", flush=True)
        elif replay:
            print(f"{word} {outcome.ending} {outcome.detail}")
        if time.monotonic() - shown > 10:
            shown = time.monotonic()
            print(f"{done} of {len(words)}, {done / (shown - started):.0f} a second", file=sys.stderr, flush=True)
    columns = ("refused", "merged", "changed", "fault")
    print(f"| kind | {' | '.join(columns)} |\n| --- |{' ---: |' * len(columns)}")
    for name in kinds:
        print(f"| {name} | {' | '.join(str(endings[name, ending]) for ending in columns)} |")
    failed = sum(endings[name, "fault"] for name in kinds)
    print(f"{len(words)} trials in {time.monotonic() - started:.0f} s, {failed} failed")
    raise SystemExit(1 if failed else 0)


if __name__ == "__main__":
    typer.run(main)
