"""Merge randomly damaged inputs, many per second.

Bits are flipped, files are cut and spliced, and headers, indexes, configs and pickles are changed in the ways that their
formats allow. Each merge must give the right result or fail with an error message; without a traceback, hang or crash, and
without running code from a file, reading other files or leaving files behind. tests/support/trials.py checks this.

    python tools/fuzz.py                                            # 5000 trials, of all kinds
    python tools/fuzz.py --count 100000 --seed 1 --jobs 2 --kind flex --kind pdparams
    python tools/fuzz.py --replay flex:1000000017                   # repeats one trial, as a reported failure names it

The same seed gives the same trials. The damaged files of failed trials are kept in the folder --failures.
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

STARTING = 120.0  # seconds within which a worker must have compiled its loops


def serve(connection: Connection, kinds: list[str], root: str) -> None:
    """Run, in a worker process, the trials whose words the connection delivers, and send back their outcomes."""
    folder, guard = Path(root) / "trial", Guard()
    for kind in kinds:  # so that no trial includes the time of imports and compilation
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
    """A worker process that runs one trial after the other, and that `replace` restarts if it dies or hangs."""

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
        """Start the trial that the word names."""
        self.word, self.limit = word, time.monotonic() + 1.5 * SECONDS
        self.connection.send(word)

    def replace(self) -> str:
        """Kill the process and start another. Return how the old one ended."""
        self._process.join(timeout=1 if self.limit else 5)  # a process that has closed its pipe is about to exit
        how = "" if self._process.is_alive() else f"the process died ({self._process.exitcode})"
        self._process.kill()
        self._process.join()
        self._start()
        return how or f"hangs: no end within {SECONDS:.0f} s"

    def close(self) -> None:
        self._process.kill()
        self._process.join()


def run(words: Iterator[str], jobs: int, kinds: list[str]) -> Iterator[tuple[str, Outcome, dict[str, bytes]]]:
    """Yield each trial's word, outcome and, if it failed, damaged files, in the order in which trials end."""
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
                        raise SystemExit(f"a worker process doesn't start: {how}")
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
    count: Annotated[int, typer.Option(help="Number of trials, of all kinds together.")] = 5000,
    seed: Annotated[int, typer.Option(help="Seed of the trials.")] = 0,
    jobs: Annotated[int, typer.Option(help="Number of worker processes.")] = 2,
    kind: Annotated[list[str] | None, typer.Option(help=f"Kinds of inputs: {', '.join(KINDS)}. Default: all.")] = None,
    replay: Annotated[str, typer.Option(help="Repeat one trial, given as KIND:NUMBER.")] = "",
    failures: Annotated[Path, typer.Option(help="Folder for the damaged files of failed trials.")] = Path("fuzz_failures"),
) -> None:
    """Merge damaged inputs, and count the outcomes. The exit status is 1 if a trial failed."""
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
