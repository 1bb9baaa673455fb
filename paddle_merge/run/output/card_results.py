"""Write evaluations into the model card of a merge: scores into its metadata (`model-index`, which hubs read), and a table
between two comments that mark it. Everything else in the card stays as it is, since people edit cards.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import field
from typing import Any

from ...checkpoints.front_matter import read_keys, texts
from ...errors import OutputError
from ...plan.file_names import CARD
from ...records import record
from .card_index import with_entry

TITLE = "## Evaluation"
_BEGIN, _END = "<!-- paddle_merge evaluate", "<!-- end of paddle_merge evaluate"
_MARK = re.compile(rf"{_BEGIN} [\w. -]+ -->")
_BOM = "\ufeff"
# The tasks of evaluators, as hubs call them; of others it is the card's pipeline_tag.
_TASKS = {"perplexity": "text-generation", "multiple_choice": "multiple-choice", "lm_eval": "text-generation"}


@record(frozen=True)
class CardResult:
    """What a model scored.

    kind: of the evaluator. data: the name of the samples, or of the file that says how models are scored. split: "search" or
    "report". metrics: by name; without any, only the table is written. table: of this model beside others, in Markdown.
    """

    kind: str
    data: str
    split: str
    table: str
    metrics: Mapping[str, float] = field(default_factory=dict)

    @property
    def marks(self) -> tuple[str, str]:
        """The comments around the table, each a line of its own."""
        data = re.sub(r"[^\w.-]|--+", "_", self.data)
        name = f"{self.kind} {self.split} {data}".rstrip()
        return f"{_BEGIN} {name} -->", f"{_END} {name} -->"

    def entry(self, task: str) -> dict[str, Any]:
        """Return the result as `model-index` has it. task: the card's pipeline_tag; "" if it has none.

        The dataset's type would be a link if it were the name of a dataset on a hub, which "command-samples" is not.
        Hugging Face's hub takes no others than such names.
        """
        return {
            "task": {"type": _TASKS.get(self.kind) or task or "other"},
            "dataset": {"name": self.data or self.kind, "type": f"{self.kind}-samples", "split": self.split},
            "metrics": [
                {"type": name, "value": float(f"{value:.6g}"), "name": name} for name, value in sorted(self.metrics.items())
            ],
        }


@record(frozen=True)
class CardFile:
    """The model card in a folder."""

    folder: str

    @property
    def path(self) -> str:
        return os.path.join(self.folder, CARD)

    def read(self) -> str:
        """Return the card's text; "" if there is none yet. Raises OSError, ValueError if it is not UTF-8."""
        if not os.path.exists(self.path):
            return ""
        with open(self.path, encoding="utf-8", newline="") as file:
            return file.read()

    def problems(self) -> list[str]:
        """Return why results can't be written into the card: tables whose end somebody has deleted, and metadata in which
        they can't be. Raises OSError, ValueError if it is not UTF-8."""
        try:
            self._with(self.read(), CardResult("command", "", "report", "", {"metric": 0.0}))
        except OutputError as error:
            return error.problems
        return []

    def write(self, result: CardResult) -> None:
        """Put a result into the card, in place of the one of the same evaluator, samples and split. Raises OutputError.

        The card is read anew: somebody may have edited it while models were scored.
        """
        try:
            text = self._with(self.read(), result)
        except UnicodeError:
            raise OutputError(f"{self.path}: can't be changed (it is not UTF-8 text)") from None
        except OSError as error:
            raise OutputError(f"{self.path}: can't be read ({error.strerror})") from None
        target = os.path.realpath(self.path)
        partial = f"{target}.{os.getpid()}.partial"
        try:
            with open(partial, "w", encoding="utf-8", newline="") as file:
                file.write(text)
            os.replace(partial, target)
        except OSError as error:
            raise OutputError(f"{self.path}: can't be written ({error.strerror})") from None

    def _with(self, text: str, result: CardResult) -> str:
        """Return the text with a result. Raises OutputError."""
        mark, text = (_BOM, text[1:]) if text.startswith(_BOM) else ("", text)
        name = os.path.basename(os.path.abspath(self.folder))
        try:
            task = "".join(texts(read_keys(text, ("pipeline_tag",)).get("pipeline_tag", []))[:1])
            text = _with_table(text, result)
            return mark + (with_entry(text, result.entry(task), name) if result.metrics else text)
        except ValueError as error:
            raise OutputError(f"{self.path}: {error}; repair it, or delete it") from None


def _with_table(text: str, result: CardResult) -> str:
    """Return the card with the table in place of the one between the same marks, else at the end. Raises ValueError."""
    section = "\n".join([result.marks[0], TITLE, "", result.table, result.marks[1], ""])
    lines = text.splitlines(keepends=True)
    if (found := _tables(lines).get(result.marks[0])) is not None:
        return "".join([*lines[: found[0]], section, *lines[found[1] :]])
    return f"{text.rstrip()}\n\n{section}" if text.strip() else section


def _tables(lines: list[str]) -> dict[str, tuple[int, int]]:
    """Return from and to which line each table goes, by the line that begins it. Raises ValueError if one has no end."""
    found: dict[str, tuple[int, int]] = {}
    begin, end, begun = "", "", 0
    for number, line in enumerate(map(str.rstrip, lines)):
        if begin and line == end:
            found.setdefault(begin, (begun, number + 1))
            begin = ""
        elif _MARK.fullmatch(line):
            if begin:
                break
            begin, end, begun = line, line.replace(_BEGIN, _END, 1), number
    if begin:
        raise ValueError(f"the line {begin} has no {end} below it: add that line, or delete the former")
    return found
