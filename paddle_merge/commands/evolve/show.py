"""Show what a search found as text."""

from __future__ import annotations

import os
import textwrap

from ...search.outcome import Outcome
from ...search.report import summary
from ..tables import WIDTH, table


def lines(outcome: Outcome, folder: str) -> list[str]:
    """Return a table of the inputs, the uniform merges and the result on both splits, and what to do next.

    folder: of the search.
    """
    tables = {split: summary.table(outcome, list(outcome.spec.objectives), split) for split in summary.splits(outcome)}
    rows = [row for split, (_, *rest) in tables.items() for row in ([f"On the {split} split:"], *rest)]
    doubt = "; ± is a standard error" if summary.has_errors(rows) else ""
    said = [f"{summary.done(outcome)}{doubt}."]
    said += [f"{count} failed with: {reason}" for reason, count, _ in summary.failures(outcome)[:3]]
    said += summary.compared(outcome)
    next_step = f"{os.path.join(folder, 'report.html')} shows the search. {summary.BEST} repeats the merge without a search:"
    wrapped = [line for one in said for line in textwrap.wrap(one, WIDTH, break_on_hyphens=False, break_long_words=False)]
    return [*table(tables["search"][0], rows), "", *wrapped, next_step, f"    {summary.repeat(folder)}"]
