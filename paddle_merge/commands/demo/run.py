"""Run the demo: train small networks, merge them by every method, and print and draw the results.

Paddle, scikit-learn and matplotlib are imported only inside `run`.
"""

from __future__ import annotations

import contextlib
import logging
import os
import textwrap
import time
import warnings
from collections.abc import Iterator
from importlib.util import find_spec

import typer

from ...errors import ConfigError, OutputError

# Module -> the package that pip installs for it.
NEEDS = {"paddle": "paddlepaddle", "sklearn": "scikit-learn", "matplotlib": "matplotlib"}
PICTURE = "merging.png"
EPOCHS, EPOCHS_QUICK = (40, 12), (25, 8)  # of the base, and of each expert
FEW = 35  # training examples of the base for each place other than the middle


def run(folder: str, seed: int = 0, quick: bool = False) -> dict[str, dict[str, float]]:
    """Run the demo; return row name -> place -> the accuracy of this checkpoint on the test digits there, from 0 to 1.

    Rows: base, "expert top left" and so on, each merge method, "task arithmetic", and three experiments. The trained and
    merged checkpoints and a chart are written to `folder`. Raises ConfigError if a package is missing, OutputError if the
    folder can't be written or holds other checkpoints under the demo's names.
    """
    started = time.perf_counter()
    absent = [package for module, package in NEEDS.items() if find_spec(module) is None]
    if absent:
        raise ConfigError(f'the demo also needs {", ".join(absent)}: pip install "paddle_merge[demo]"')
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Paddle's import warns of a missing ccache
        import numpy as np

        from . import data, merges, network, show

    places = list(data.PLACES)[:5] if quick else list(data.PLACES)
    base_epochs, expert_epochs = EPOCHS_QUICK if quick else EPOCHS
    rows = merges.rows(folder, places, seed)
    _prepare(folder, [row.folder for row in rows if not network.is_ours(row.folder)])
    base, experts = rows[0], rows[1 : len(places)]
    duration = "about half a minute" if quick else "about a minute"
    typer.echo(
        f"This trains a base network and {len(experts)} experts with Paddle on scikit-learn's handwritten digits, merges\n"
        f"the experts by every method, and tests each checkpoint. It takes {duration} on two cores.\n\n"
        f"An image is a page of 3 x 3 places with a digit in one of them. The base is trained on digits in the\n"
        f"{places[0]} and on {FEW} examples of each other place; each expert is the base fine-tuned on one other place.\n"
    )

    rng = np.random.default_rng(seed)
    digits = data.load(rng)
    model = network.new(seed)
    pages, labels = data.for_base(digits, places, FEW, rng)
    with _progress("training base"):
        network.train(model=model, pages=pages, labels=labels, epochs=base_epochs, learning_rate=1e-3, rng=rng)
        network.save(model, base.folder)
    for row, place in zip(experts, places[1:], strict=True):
        with _progress(f"training {row.name}"):
            network.load(model, base.folder)
            network.train(
                model=model,
                pages=data.write(digits.images, place),
                labels=digits.labels,
                epochs=expert_epochs,
                learning_rate=5e-4,
                rng=rng,
            )
            network.save(model, row.folder)

    scores: dict[str, dict[str, float]] = {}
    with _progress("merging and testing"), _quiet():
        for row in rows:
            if row.models:
                merges.make(row, base.folder)
            network.load(model, row.folder)  # from the disk, as any other program would
            scores[row.name] = network.accuracy(model, digits, places)
        picture = os.path.join(folder, PICTURE)
        show.picture(picture, rows, scores, places, digits)

    typer.echo("\nAccuracy on the test digits in per cent, by the place of the digit on the page:\n")
    typer.echo(show.table(rows, scores, places))
    typer.echo(
        "\nThe flags of the merges. --model_path_list is all experts, or the first two for slerp and the last three rows;\n"
        "--base_model_path is the base for all of them.\n"
    )
    typer.echo("\n".join(f"{row.name:24}{row.flags()}" for row in rows if row.models))
    typer.echo("")
    for sentence in show.sentences(scores, places):
        typer.echo(textwrap.fill(sentence, 110, initial_indent="- ", subsequent_indent="  "))
    ties = next(row for row in rows if row.name == "ties")
    typer.echo(
        f"\nThe checkpoints are in the folders of {folder}; the chart is {picture}. This command repeats the TIES merge:\n\n"
        f"{merges.command(ties, base.folder, os.path.join(folder, 'again'))}\n\n({time.perf_counter() - started:.0f} s)"
    )
    return scores


def _prepare(folder: str, taken: list[str]) -> None:
    """Create the folder. taken: folders with contents that the demo must not replace. Raises OutputError."""
    if taken:
        raise OutputError(f"{', '.join(taken)}: not written by an earlier demo, so not replaced; give another --folder")
    try:
        os.makedirs(folder, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{folder}: can't be created ({error.strerror}); give another --folder") from None


@contextlib.contextmanager
def _progress(what: str) -> Iterator[None]:
    """Print what is being done, and when it is done, the seconds it took."""
    typer.echo(f"{what} ... ", nl=False)
    started = time.perf_counter()
    yield
    typer.echo(f"{time.perf_counter() - started:.1f} s")


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Print only the warnings of merges."""
    logger = logging.getLogger("paddle_merge")
    level = logger.level
    logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        logger.setLevel(level)
