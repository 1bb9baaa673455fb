"""Interrupt merges in many ways, and check what they leave.

Merges are killed at any time and at any system call, run out of disk space, memory or power, and lose their inputs or disks
while they run. After each, the output folder must hold the complete merge, the earlier one, or nothing that loads; and the
same command with --resume must end with the same bytes as a merge without faults. The faults are defined in
tests/support/disturbances.py.

    python tools/chaos.py                                       # some faults of every kind; takes a few minutes
    python tools/chaos.py --trials 1000 --seed 1 --jobs 2 --kind kill-call --kind power
    python tools/chaos.py --replay power:1000000017             # repeats one trial, as a reported violation names it

The same seed gives the same faults; their timing depends partly on the machine. Needs Linux; as root it also mounts disks.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Annotated

import typer

sys.path.insert(0, str(Path(__file__).parent.parent))

from tests.support.chaos import RECIPES, earlier, make_models, wanted
from tests.support.disturbances import KINDS, run


def main(
    trials: Annotated[int, typer.Option(help="Number of trials, of all kinds together.")] = 120,
    seed: Annotated[int, typer.Option(help="Seed of the trials.")] = 0,
    jobs: Annotated[int, typer.Option(help="Number of trials to run at a time.")] = 2,
    kind: Annotated[list[str] | None, typer.Option(help=f"Kinds of faults: {', '.join(KINDS)}. Default: all.")] = None,
    replay: Annotated[str, typer.Option(help="Repeat one trial, given as KIND:NUMBER.")] = "",
    folder: Annotated[Path | None, typer.Option(help="Folder to merge in. Default: one in memory.")] = None,
) -> None:
    """Interrupt merges, and count the outcomes. The exit status is 1 if a merge left something wrong."""
    kinds = [replay.partition(":")[0]] if replay else list(kind or KINDS)
    if unknown := [name for name in kinds if name not in KINDS]:
        raise SystemExit(f"--kind {unknown[0]} must be one of {', '.join(KINDS)}")
    words = [replay] if replay else [f"{kinds[n % len(kinds)]}:{seed * 10**9 + n}" for n in range(trials)]
    memory = Path("/dev/shm")
    root = Path(tempfile.mkdtemp(prefix="paddle_merge_chaos_", dir=folder or (memory if memory.is_dir() else None)))
    counts: Counter[tuple[str, str]] = Counter()
    started = shown = time.monotonic()
    try:
        with ThreadPoolExecutor(jobs) as pool:
            models = make_models(root / "models")
            list(pool.map(lambda recipe: (wanted(recipe, models), earlier(recipe, models)), RECIPES))
            todo = {pool.submit(run, word, root, models): word for word in words}
            for number, done in enumerate(as_completed(todo), 1):
                word = todo[done]
                events, violation = done.result()
                happened = ["trials", *events.elements(), *(["violations"] * bool(violation))]
                counts.update((word.partition(":")[0], event) for event in happened)
                if violation:
                    print(f"python tools/chaos.py --replay {word}: {violation}", flush=True)
                if time.monotonic() - shown > 10:
                    shown = time.monotonic()
                    print(f"{number} of {len(words)}, {shown - started:.0f} s", file=sys.stderr, flush=True)
    finally:
        shutil.rmtree(root, ignore_errors=True)
    columns = ("trials", "faults", "stopped", "finished", "resumed", "violations")
    print(f"| kind | {' | '.join(columns)} |\n| --- |{' ---: |' * len(columns)}")
    for name in dict.fromkeys(kinds):
        print(f"| {name} | {' | '.join(str(counts[name, column]) for column in columns)} |")
    failed = sum(counts[name, "violations"] for name in dict.fromkeys(kinds))
    print(f"{len(words)} trials in {time.monotonic() - started:.0f} s, {failed} violations")
    raise SystemExit(1 if failed else 0)


if __name__ == "__main__":
    typer.run(main)
