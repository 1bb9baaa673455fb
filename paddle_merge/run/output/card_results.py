"""Write evaluations into the model card of a merge: scores into its metadata (`model-index`, which hubs read), and a table
between two comments that mark it. Everything else in the card stays as it is, since people edit cards.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ...checkpoints.front_matter import MOST_YAML, blocks, read_keys, span, texts
from ...errors import OutputError
from ...plan.file_names import CARD

TITLE = "## Evaluation"
INDEX = "model-index"
_BEGIN, _END = "<!-- paddle_merge evaluate", "<!-- end of paddle_merge evaluate"
# The tasks of evaluators, as hubs call them; of others it is the card's pipeline_tag.
_TASKS = {"perplexity": "text-generation", "multiple_choice": "multiple-choice", "lm_eval": "text-generation"}


@dataclass(frozen=True)
class CardResult:
    """What a model scored.

    kind: of the evaluator. data: the name of the samples; "" if they have none. split: "search" or "report". metrics: by
    name. table: of this model beside others, in Markdown.
    """

    kind: str
    data: str
    split: str
    table: str
    metrics: Mapping[str, float] = field(default_factory=dict)

    @property
    def marks(self) -> tuple[str, str]:
        """The comments around the table."""
        name = f"{self.kind} {self.split}"
        return f"{_BEGIN} {name} -->", f"{_END} {name} -->"

    def entry(self, task: str) -> dict[str, Any]:
        """Return the result as `model-index` has it. task: the card's pipeline_tag; "" if it has none.

        The dataset's type would be a link if it were the name of a dataset on a hub. These aren't, so it has a space.
        """
        return {
            "task": {"type": _TASKS.get(self.kind) or task or "other"},
            "dataset": {"name": self.data or self.kind, "type": f"{self.kind} samples", "split": self.split},
            "metrics": [
                {"type": name, "value": float(f"{value:.6g}"), "name": name} for name, value in sorted(self.metrics.items())
            ],
        }


@dataclass(frozen=True)
class CardFile:
    """The model card in a folder. text: its content; "" if it doesn't exist yet."""

    folder: str
    text: str

    @property
    def path(self) -> str:
        return os.path.join(self.folder, CARD)

    @classmethod
    def read(cls, folder: str) -> CardFile:
        """Return the card of a folder. Raises OSError, ValueError if it is not UTF-8."""
        path = os.path.join(folder, CARD)
        if not os.path.exists(path):
            return cls(folder, "")
        with open(path, encoding="utf-8", newline="") as file:
            return cls(folder, file.read())

    def problems(self) -> list[str]:
        """Return why results can't be written into the card: tables whose end somebody has deleted, and metadata that is
        damaged."""
        found = []
        for line in self.text.splitlines():
            if line.startswith(_BEGIN):
                end = line.replace(_BEGIN, _END, 1)
                if end not in self.text.partition(line)[2]:
                    found.append(f"{self.path}: the line {line} has no {end} below it; delete it, or add that line")
        try:
            _models(self.text)
            _task(self.text)
        except ValueError as error:
            found.append(f"{self.path}: {error}; repair it, or delete it")
        return found

    def write(self, result: CardResult) -> None:
        """Put a result into the card, in place of the one of the same evaluator and split. Raises OutputError."""
        name = os.path.basename(os.path.abspath(self.folder))
        try:
            text = _with_index(_with_table(self.text, result), name, result)
        except ValueError as error:
            raise OutputError(f"{self.path}: {error}; repair it, or delete it") from None
        try:
            with open(f"{self.path}.partial", "w", encoding="utf-8", newline="") as file:
                file.write(text)
            os.replace(f"{self.path}.partial", self.path)
        except OSError as error:
            raise OutputError(f"{self.path}: can't be written ({error.strerror})") from None


def _with_table(text: str, result: CardResult) -> str:
    """Return the card with the table in place of the one between the same marks, else at the end."""
    begin, end = result.marks
    section = f"{begin}\n{TITLE}\n\n{result.table}\n{end}\n"
    before, found, rest = text.partition(begin)
    if found:
        return before + section + rest.partition(end)[2].removeprefix("\n")
    return f"{text.rstrip()}\n\n{section}" if text.strip() else section


def _with_index(text: str, name: str, result: CardResult) -> str:
    """Return the card with the scores in its metadata. name: of the model, if no result names it yet."""
    import yaml

    models, entry = _models(text), result.entry(_task(text))
    place = [entry["dataset"][key] for key in ("type", "split")]
    results = models[0]["results"] if models else []
    results = [one for one in results if [_dataset(one).get(key) for key in ("type", "split")] != place]
    results += [entry] if result.metrics else []
    models = [{**(models[0] if models else {"name": name}), "results": results}, *models[1:]] if results else models[1:]
    where = span(text)
    written = yaml.safe_dump({INDEX: models}, sort_keys=False, allow_unicode=True, width=1000) if models else ""
    if where is None:
        return f"---\n{written}---\n\n{text}" if written else text
    # The line break before the dashes belongs to the last key's lines.
    kept = "".join(lines for key, lines in blocks(f"{text[slice(*where)]}\n") if key != INDEX)
    return text[: where[0]] + (kept + written).removesuffix("\n") + text[where[1] :]


def _task(text: str) -> str:
    """Return the card's pipeline_tag; "" if it has none. Raises ValueError if that isn't YAML."""
    return "".join(texts(read_keys(text, ("pipeline_tag",)).get("pipeline_tag", []))[:1])


def _dataset(result: Any) -> Mapping[str, Any]:
    found = result.get("dataset") if isinstance(result, dict) else None
    return found if isinstance(found, dict) else {}


def _models(text: str) -> list[dict[str, Any]]:
    """Return the models of a card's `model-index`, each with its results. Raises ValueError if that is none."""
    import yaml

    where = span(text)
    written = "".join(lines for key, lines in blocks(text[slice(*where)]) if key == INDEX) if where else ""
    if len(written) > MOST_YAML:
        raise ValueError(f"its {INDEX} is longer than {MOST_YAML // 1024} KiB")
    try:
        content = yaml.safe_load(written)
    except (yaml.YAMLError, ValueError, RecursionError):
        raise ValueError(f"its {INDEX} is not valid YAML") from None
    models = content.get(INDEX) if isinstance(content, dict) else None
    if models is None:
        return []
    if isinstance(models, list) and all(isinstance(one, dict) and isinstance(one.get("results"), list) for one in models):
        return models
    raise ValueError(f"its {INDEX} is no list of models with their results")
