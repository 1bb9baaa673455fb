"""Replicate what papers on merging report, on small networks and tiny language models that are trained here.

    python tools/replications.py                              # everything, three seeds
    python tools/replications.py wsm expo --output results    # two claims; checkpoints, pictures and numbers in results/
    python tools/replications.py tax --seeds 5

Each claim is a file in tools/claims/: what the paper says, what is done here, and when the numbers count as agreeing. All
merges are made by paddle_merge, from checkpoints in folders. For each claim a table and the verdicts are printed in
Markdown, and a picture is drawn.
"""

from __future__ import annotations

import json
import logging
import multiprocessing
import os
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Annotated

import numpy as np
import paddle
import typer
from PIL import Image  # which matplotlib brings along

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parent))
from claims import dare, expo, negation, tax, ties, wsm
from claims.claim import QUICK, Claim, Effort, Numbers, Run, mean
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from paddle_merge.backends.machine import cores

CLAIMS: dict[str, Claim] = {
    "negation": negation.CLAIM,
    "dare": dare.CLAIM,
    "ties": ties.CLAIM,
    "wsm": wsm.CLAIM,
    "expo": expo.CLAIM,
    "tax": tax.CLAIM,
}


def of_seed(names: Sequence[str], run: Run) -> dict[str, dict[str, float]]:
    """Train what the claims need with one seed, in this process, and return the numbers of each."""
    logging.getLogger("paddle_merge").setLevel(logging.ERROR)
    paddle.device.set_device("cpu")
    found = {}
    for name in names:
        began = time.perf_counter()
        found[name] = CLAIMS[name].measured(run)
        print(f"{name}, seed {run.seed}: {time.perf_counter() - began:.0f} s", file=sys.stderr, flush=True)
    return found


def measured(names: Sequence[str], seeds: int, output: Path, effort: Effort, processes: int) -> dict[str, Numbers]:
    """Return the numbers of claims, over the seeds; checkpoints are written into the folder `output`."""
    runs = [Run(output / f"seed{seed}", seed, effort) for seed in range(seeds)]
    os.environ["OMP_NUM_THREADS"] = "1"  # of the processes, one for each core
    with ProcessPoolExecutor(processes, multiprocessing.get_context("spawn")) as pool:
        tables = list(pool.map(of_seed, [names] * seeds, runs))
    return {name: {key: [table[name][key] for table in tables] for key in tables[0][name]} for name in names}


def report(claim: Claim, numbers: Numbers) -> str:
    """Return a claim's table and verdicts in Markdown."""
    seeds = len(next(iter(numbers.values())))
    lines = [f"## {claim.title}", "", f"{claim.paper}: {claim.says}", "", f"Here: {claim.did}", ""]
    lines += [f"| | paper | {' | '.join(f'seed {seed}' for seed in range(seeds))} | mean |"]
    lines += [f"| --- |{' ---: |' * (seeds + 2)}"]
    for key, row in claim.rows.items():
        values = [f"{value:.{row.decimals}f}" for value in (*numbers[key], mean(numbers[key]))]
        lines.append(f"| {row.title} | {row.reported} | {' | '.join(values)} |")
    lines.append("")
    for finding in claim.findings(numbers):
        lines.append(f"- {finding.statement} {'Agrees' if finding.agrees else 'DOES NOT AGREE'}: {finding.ours}.")
    return "\n".join(lines) + "\n"


def picture(claim: Claim, numbers: Numbers, path: Path) -> None:
    """Draw a claim's numbers into a PNG file."""
    figure = Figure(figsize=(9, 3.6), layout="constrained", dpi=90)
    canvas = FigureCanvasAgg(figure)
    claim.draw(figure, numbers)
    canvas.draw()
    image = Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")
    image.quantize(64, dither=Image.Dither.NONE).save(path, optimize=True)  # a third of the size


def main(
    claims: Annotated[list[str] | None, typer.Argument(help=f"Which claims: {', '.join(CLAIMS)}. Default: all.")] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Number of trainings, each with its own seed.")] = 3,
    output: Annotated[Path, typer.Option(help="A new folder for checkpoints, pictures and numbers.")] = Path("replications"),
    processes: Annotated[int, typer.Option(min=0, help="Seeds at a time. 0: one for each core.")] = 0,
    quick: Annotated[bool, typer.Option(help="Train next to nothing, to see that everything runs.")] = False,
) -> None:
    """Replicate claims of papers: train, merge, measure, and print and draw what came out."""
    names = list(dict.fromkeys(claims or CLAIMS))
    if unknown := [name for name in names if name not in CLAIMS]:
        raise typer.BadParameter(f"{', '.join(unknown)}: not among {', '.join(CLAIMS)}")
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise typer.BadParameter(f"{output}: there is something already; give another --output")
    output.mkdir(parents=True, exist_ok=True)
    numbers = measured(names, seeds, output, QUICK if quick else Effort(), min(seeds, processes or cores()))
    (output / "numbers.json").write_text(json.dumps(numbers, indent=1))
    for name in names:
        print(report(CLAIMS[name], numbers[name]), flush=True)
        picture(CLAIMS[name], numbers[name], output / f"{name}.png")
    print(f"The pictures and checkpoints are in {output}.", file=sys.stderr)


if __name__ == "__main__":
    typer.run(main)
