"""Write what a search found: the best recipe, its merge, and the report."""

from __future__ import annotations

import contextlib
import json
import logging
import os
from collections.abc import Mapping, Sequence
from typing import Any

from ..errors import OutputError
from ..recipe.config import MergeConfig
from ..recipe.recipe import Recipe
from ..recipe.yaml_write import to_yaml
from .card import write_card
from .gene import Values
from .job import Result
from .journal import NAME as JOURNAL
from .journal import is_empty
from .outcome import Outcome, Scored, standard_error
from .report.summary import BEST, shown
from .space import Space

log = logging.getLogger("paddle_merge")
REPORT, PAGE = "report.json", "report.html"
PICTURES = ("score.png", "front.png", "recipe.png")  # report/figures.py draws those that there is something for
SWEEP = "sweep.png"  # scatter.py draws it


def check_folder(folder: str, resume: bool, overwrite: bool) -> None:
    """Check that a search may begin, or go on, in a folder. Raises OutputError with the remedy."""
    journal = os.path.join(folder, JOURNAL)
    if os.path.lexists(folder) and not os.path.isdir(folder):
        raise OutputError(f"--output_path {folder} exists and is not a folder")
    held = sorted(os.listdir(folder)) if os.path.isdir(folder) else []
    if resume and not os.path.exists(journal):
        raise OutputError(f"--resume: {folder} holds no search; leave it out to begin one")
    if resume or not held or (held == [JOURNAL] and is_empty(journal)):
        return
    if not overwrite:
        found = "a search" if os.path.exists(journal) else held[0]
        how = "--resume goes on with it, --overwrite begins again" if os.path.exists(journal) else "give another folder"
        raise OutputError(f"--output_path {folder} holds {found}; {how}")


def make_folder(folder: str) -> None:
    """Make a folder, unless it exists. Raises OutputError."""
    try:
        os.makedirs(folder, exist_ok=True)
    except OSError as error:
        raise OutputError(f"--output_path {folder}: can't be made ({error.strerror})") from None


def check_best(folder: str, recipe: Recipe) -> Sequence[str]:
    """Check that the merge of a recipe can be made, and written into a folder by write_best; return the files that it reads.
    Raises MergeError.

    recipe: of any candidate: inputs and sizes are those of the best one, as far as nothing of them is searched.
    """
    from ..recipe.request import Request
    from ..run.merge import prepare

    return prepare(Request.of(_config(to_yaml(recipe), folder)))[0].files


def clear_folder(folder: str) -> None:
    """Remove what an earlier search found, so that nobody takes it for what this one finds. Raises OutputError.

    The merged checkpoint stays until the new one replaces it.
    """
    for name in (BEST, REPORT, PAGE, SWEEP, *PICTURES):
        _remove(os.path.join(folder, name))


def write(folder: str, outcome: Outcome) -> Outcome:
    """Write best.yaml, the merged checkpoint with its scores in its card, report.json, report.html and pictures.

    Raises MergeError.
    """
    from .report.page import page

    recipe = outcome.space.recipe(outcome.best.values)
    write_best(folder, recipe)
    write_card(folder, outcome.spec, shown(outcome), outcome.reported)
    write_report(folder, report(outcome))
    _write(os.path.join(folder, PAGE), page(outcome, to_yaml(recipe), folder))
    _draw(folder, outcome)
    return outcome


def _draw(folder: str, outcome: Outcome) -> None:
    """Write the pictures; of an earlier search none remain. Raises OutputError."""
    from ..drawing.png import png
    from .report.figures import draw

    for name in PICTURES:
        _remove(os.path.join(folder, name))
    try:
        for name, figure in draw(outcome):
            path = os.path.join(folder, name)
            with open(f"{path}.partial", "wb") as file:
                file.write(png(figure))
            os.replace(f"{path}.partial", path)
    except ImportError:
        log.warning('no pictures: matplotlib is not installed: python -m pip install "paddle_merge[search]"')
    except OSError as error:
        raise OutputError(f"{folder}: pictures can't be written ({error.strerror})") from None


def write_best(folder: str, recipe: Recipe) -> None:
    """Write best.yaml and its merge. Raises MergeError."""
    from ..run.merge import merge

    path = os.path.join(folder, BEST)
    _write(path, to_yaml(recipe))
    merge(_config(path, folder), progress=False)


def _config(recipe: str, folder: str) -> MergeConfig:
    return MergeConfig(recipe_yaml=recipe, output_path=folder, overwrite=True)


def write_report(folder: str, content: Mapping[str, Any]) -> None:
    """Write report.json. Raises OutputError."""
    _write(os.path.join(folder, REPORT), json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def report(outcome: Outcome) -> dict[str, Any]:
    """Return the content of report.json."""

    def entry(one: Scored) -> dict[str, Any]:
        found: dict[str, Any] = {"title": one.title, "search": result_entry(one.known)}
        if one.title in outcome.reported:
            found["report"] = result_entry(outcome.reported[one.title])
        return found | ({"values": named(outcome.space, one.values)} if one.values else {})

    failed = [one for one in outcome.candidates if one.known.error]
    return ({"first": report(outcome.first)} if outcome.first is not None else {}) | {
        "objectives": dict(outcome.spec.objectives),
        "optimizer": outcome.optimizer,
        "seed": outcome.spec.seed,
        "candidates": len(outcome.candidates),
        "failed": len(failed),
        "seconds": round(outcome.seconds, 1),
        "best": entry(outcome.best),
        "front": [entry(one) for one in outcome.front],
        "finalists": [entry(one) for one in outcome.finalists],
        "baselines": [entry(one) for one in outcome.baselines],
    }


def named(space: Space, values: Values) -> dict[str, Any]:
    """Return the values of a candidate by the names of their genes."""
    return {gene.name: value for gene, value in zip(space.genes, values, strict=True)}


def result_entry(result: Result) -> dict[str, Any]:
    if result.error:
        return {"error": result.error, "seconds": result.seconds}
    errors = {name: error for name in result.metrics if (error := standard_error(result, name)) is not None}
    return {"metrics": dict(result.metrics), "seconds": result.seconds} | ({"standard_errors": errors} if errors else {})


def _write(path: str, text: str) -> None:
    try:
        with open(f"{path}.partial", "w", encoding="utf-8", errors="backslashreplace") as file:
            file.write(text)
        os.replace(f"{path}.partial", path)
    except OSError as error:
        raise OutputError(f"{path}: can't be written ({error.strerror})") from None


def _remove(path: str) -> None:
    try:
        with contextlib.suppress(FileNotFoundError):
            os.remove(path)
    except OSError as error:
        raise OutputError(f"{path}: can't be removed ({error.strerror})") from None
