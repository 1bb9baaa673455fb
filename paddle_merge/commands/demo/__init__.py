"""python -m paddle_merge demo: train small experts, merge them by every method, and show what came of it.

Paddle, scikit-learn and matplotlib are imported only when it runs.
"""

from __future__ import annotations

import contextlib
import logging
import os
import textwrap
import time
import warnings
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from typing import Annotated

import typer

from ...errors import ConfigError, OutputError

# module -> the name under which pip knows it
NEEDS = {"paddle": "paddlepaddle", "sklearn": "scikit-learn", "matplotlib": "matplotlib", "safetensors": "safetensors"}
PICTURE = "merging.png"
FEW = 35  # examples that the base sees of each place but the middle

app = typer.Typer(add_completion=False, rich_markup_mode="rich", pretty_exceptions_enable=False)


@app.command(context_settings={"help_option_names": ["--help", "-h"]})
def demo(
    folder: Annotated[str, typer.Option(help="Where checkpoints and picture go.")] = "demo",
    seed: Annotated[int, typer.Option(min=0, help="Another seed: other splits, other training, other numbers.")] = 0,
    quick: Annotated[bool, typer.Option("--quick", help="Four experts instead of six, trained for a shorter time.")] = False,
) -> None:
    """Train a few small networks with Paddle, merge them by every method, and show what merging did."""
    run(folder, seed, quick)


def main(argv: Sequence[str]) -> None:
    """python -m paddle_merge demo *argv."""
    app(list(argv), prog_name="python -m paddle_merge demo")


def run(folder: str, seed: int = 0, quick: bool = False) -> dict[str, dict[str, float]]:
    """The demo. Returns row name -> place -> the fraction of the test digits that this checkpoint reads rightly there.

    Rows: base, "expert top left" and so on, each merge method, "task arithmetic", and three experiments. Trained and merged
    checkpoints and a picture are left in `folder`. Raises ConfigError if a package is missing, OutputError if the folder
    can't be written or holds other checkpoints under the demo's names.
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
    base_epochs, expert_epochs = (25, 8) if quick else (40, 12)
    rows = merges.rows(folder, places, seed)
    _prepare(folder, [row.folder for row in rows if not network.is_ours(row.folder)])
    base, experts = rows[0], rows[1 : len(places)]
    duration = "about ten seconds" if quick else "about half a minute"
    typer.echo(
        f"Trains a base network and {len(experts)} experts with Paddle on scikit-learn's handwritten digits, merges the\n"
        f"experts by every method, and tests each checkpoint. That takes {duration} on two cores.\n\n"
        f"An image is a page of 3 x 3 places, with a digit in one of them. The base learns to read digits in the\n"
        f"{places[0]}, and from {FEW} examples each also a little elsewhere; each expert then learns one other place.\n"
    )

    rng = np.random.default_rng(seed)
    digits = data.load(rng)
    model = network.new(seed)
    pages, labels = data.for_base(digits, places, FEW, rng)
    with _progress("training base"):
        network.train(model, pages, labels, base_epochs, 1e-3, rng)
        network.save(model, base.folder)
    for row, place in zip(experts, places[1:], strict=True):
        with _progress(f"training {row.name}"):
            network.load(model, base.folder)
            network.train(model, data.write(digits.images, place), digits.labels, expert_epochs, 5e-4, rng)
            network.save(model, row.folder)

    scores: dict[str, dict[str, float]] = {}
    with _progress("merging and testing"), _quiet():
        for row in rows:
            if row.models:
                merges.make(row, base.folder)
            network.load(model, row.folder)  # from the disk, what any reader of the checkpoint would get
            scores[row.name] = network.accuracy(model, digits, places)
        picture = os.path.join(folder, PICTURE)
        show.picture(picture, rows, scores, places, digits)

    typer.echo("\nTest digits read rightly, in per cent, by where on the page they stand:\n")
    typer.echo(show.table(rows, scores, places))
    typer.echo(
        "\nThe merges' flags. --model_path_list: all experts; for slerp and the last three rows, the first two.\n"
        "--base_model_path: the base, for each of them.\n"
    )
    typer.echo("\n".join(f"{row.name:24}{row.flags()}" for row in rows if row.models))
    typer.echo("")
    for sentence in show.sentences(scores, places):
        typer.echo(textwrap.fill(sentence, 110, initial_indent="- ", subsequent_indent="  "))
    ties = next(row for row in rows if row.name == "ties")
    typer.echo(
        f"\nThe checkpoints are the folders in {folder}, the picture is {picture}. This repeats the TIES merge:\n\n"
        f"{merges.command(ties, base.folder, os.path.join(folder, 'again'))}\n\n({time.perf_counter() - started:.0f} s)"
    )
    return scores


def _prepare(folder: str, taken: list[str]) -> None:
    """Make the folder. Raises OutputError."""
    if taken:
        raise OutputError(f"{', '.join(taken)}: not from an earlier demo, so it isn't overwritten; give another --folder")
    try:
        os.makedirs(folder, exist_ok=True)
    except OSError as error:
        raise OutputError(f"can't make the folder {folder}: {error.strerror}; give another --folder") from None


@contextlib.contextmanager
def _progress(what: str) -> Iterator[None]:
    """A line that says what is being done, and then for how long it was."""
    typer.echo(f"{what} ... ", nl=False)
    started = time.perf_counter()
    yield
    typer.echo(f"{time.perf_counter() - started:.1f} s")


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Of the merges, only warnings are heard."""
    logger = logging.getLogger("paddle_merge")
    level = logger.level
    logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        logger.setLevel(level)
