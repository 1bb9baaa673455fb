"""Write what a search or a sweep found into the model card of its merge: scores, and the table that compares them."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence

from ..checkpoints.adapters import short_specs
from ..drawing.markdown import escaped, table
from ..run.output.card_results import CardFile, CardResult
from ..version import __version__
from .job import Result
from .outcome import Scored
from .report.summary import cell
from .spec import SearchSpec
from .sweep_spec import SweepSpec


def write_card(
    folder: str, spec: SearchSpec | SweepSpec, compared: Sequence[tuple[str, Scored]], reported: Mapping[str, Result]
) -> None:
    """Write the scores of a result, and the models that it is compared with, into the card in a folder. Raises OutputError.

    compared: models with their titles, the result last. reported: results on the report split, by the models' own titles;
    empty if there is none, and then scores are those that the result was chosen by, which the card says.
    """
    split = "report" if reported else "search"
    objectives, data = list(spec.objectives), os.path.basename(spec.data.of(split) or "")
    paths = [one.path for _, one in compared if one.path]
    names = dict(zip(paths, short_specs(paths), strict=True))
    known = [reported.get(one.title) if reported else one.result for _, one in compared]
    rows = [
        [names.get(title, title), *(cell(result, name) for name in objectives)]
        for (title, _), result in zip(compared, known, strict=True)
    ]
    samples = f" ({data})" if data else ""
    caption = f"{spec.evaluate.kind} on the {split} split{samples}, seed {spec.seed}, by paddle_merge {__version__}."
    if split == "search":
        caption += " The result was chosen by its scores on these samples, so it may do worse on others."
    made = f"{table([['model', *objectives], *rows])}\n\n{escaped(caption)}"
    found = known[-1]
    CardFile(folder).write(CardResult(spec.evaluate.kind, data, split, made, found.metrics if found is not None else {}))
