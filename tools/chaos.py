"""Merges that are stopped: killed at any time and at any call to the system, out of disk, memory or power, with inputs and
disks that fail under them. Whatever happens, the output folder holds the whole merge, the earlier one, or nothing that
loads; and the same command with --resume ends with the bytes of a merge that nothing disturbed. The faults are in
tests/support/disturbances.py.

    python tools/chaos.py                                       # some of every kind, in a few minutes
    python tools/chaos.py --trials 1000 --seed 1 --jobs 2 --kind kill-call --kind power
    python tools/chaos.py --replay power:1000000017             # one of them again, as the summary of violations says

The same seed makes the same faults; when they come is in part the machine's affair. Needs Linux; as root it mounts disks.
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
    trials: Annotated[int, typer.Option(help="Of all kinds together.")] = 120,
    seed: Annotated[int, typer.Option(help="Which trials.")] = 0,
    jobs: Annotated[int, typer.Option(help="At a time.")] = 2,
    kind: Annotated[list[str] | None, typer.Option(help=f"Of {', '.join(KINDS)}; all if not given.")] = None,
    replay: Annotated[str, typer.Option(help="One trial: its word, KIND:NUMBER.")] = "",
    folder: Annotated[Path | None, typer.Option(help="Where to merge; a folder in memory if not given.")] = None,
) -> None:
    """Stop merges, and count how it ends. Exits 1 if anything was left that should not be."""
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
