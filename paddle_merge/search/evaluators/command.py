"""Score candidates by a shell command that is given the folder of a checkpoint.

In the command, {model} stands for the folder of the candidate, {split} for "search" or "report", {data} for the file of the
split, {seed} for the seed, {samples} for a file with the places of the samples to score (one per line), and {result} for the
file to which it may write its result. The result is JSON: {"accuracy": 0.71}, or {"metrics": {...}, "samples": {"accuracy":
[1, 0, 1]}}. Without {result} in the command, the last line that it prints must be that.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
from collections.abc import Mapping, Sequence
from typing import Any

from ...errors import ConfigError
from ...parsing import nearest
from ..contract import Candidate, EvaluationError, Scores, scratch_folder
from ..data import count_samples
from ..job import Setup
from .settings import check_no_settings

WORDS = ("model", "split", "data", "seed", "samples", "result")
_PIECE = re.compile(rf"{{({'|'.join(WORDS)})}}|\\[\\\"'`]|[\"'`()]|\$\(")  # words, and what opens and closes quotes
TAIL = 400  # characters of what a failed command printed last


class Command:
    """Runs a command for each candidate."""

    metrics = None

    def __init__(self, setup: Setup):
        """Raises ConfigError if the command has an unknown word in braces, lacks {model}, or can't tell two splits apart."""
        evaluation = setup.evaluation
        check_no_settings(evaluation, "a command")
        self._command, self._setup = str(evaluation.what), setup
        words = [part.partition("}")[0] for part in self._command.split("{")[1:]]
        unknown = [word for word in words if word.isidentifier() and word not in WORDS]
        if unknown:
            known = ", ".join(f"{{{word}}}" for word in WORDS)
            raise ConfigError(
                f"{evaluation.at}: unknown {{{unknown[0]}}} in the command{nearest(unknown[0], WORDS)}; there are {known}"
            )
        if "model" not in words:
            raise ConfigError(f"{evaluation.at}: the command has no {{model}}, which stands for the folder of the candidate")
        if setup.data.search and setup.data.report and not {"split", "data"} & set(words):
            raise ConfigError(
                f"{evaluation.at}: the command scores both splits alike; put {{data}} where the file of samples belongs, or"
                " {split}"
            )
        self._chooses = "samples" in words

    def count(self, split: str) -> int | None:
        path = self._setup.data.of(split)
        return count_samples(self._path(path)) if path and self._chooses else None

    def __call__(self, candidate: Candidate, split: str, seed: int, samples: Sequence[int] | None) -> Scores:
        with scratch_folder() as folder:
            result = os.path.join(folder, "result.json")
            chosen = os.path.join(folder, "samples.txt")
            places = range(self.count(split) or 0) if samples is None else samples
            with open(chosen, "w") as file:
                file.writelines(f"{place}\n" for place in places)
            values = {
                "model": candidate.folder(),
                "split": split,
                "data": self._path(self._setup.data.of(split) or ""),
                "seed": str(seed),
                "samples": chosen,
                "result": result,
            }
            command = filled(self._command, values)
            done = subprocess.run(
                command, shell=True, capture_output=True, text=True, errors="replace", cwd=self._setup.folder
            )
            if done.returncode:
                words = (done.stderr.strip() or done.stdout.strip()).split()
                said = " ".join(word for word in words if word.strip("~^"))[-TAIL:]  # without marks below lines of Python
                raise EvaluationError(
                    f"the command ended with exit status {done.returncode}: {said or 'it printed nothing'}"
                )
            if os.path.exists(result):
                with open(result, encoding="utf-8") as file:
                    return parsed(file.read(), "the result file")
            lines = done.stdout.strip().splitlines()
            return parsed(lines[-1] if lines else "", "the last line that the command printed")

    def _path(self, path: str) -> str:
        return os.path.join(self._setup.folder, os.path.expanduser(path)) if path else ""


def filled(command: str, values: Mapping[str, str]) -> str:
    """Return a shell command with values in place of its words.

    They are escaped as the quotes around a word ask for, so that it is the same text in all of them: as a part of a path,
    and of a program in the command.
    """
    within = [""]  # what is open: quotes, and commands in "(" and in "`", which are as if outside of quotes

    def piece(found: re.Match[str]) -> str:
        text, place = found[0], within[-1]
        if found[1]:
            return _escaped(values[found[1]], place)
        if place == "'":
            if text.endswith("'"):  # no backslash counts there
                within.pop()
        elif text == {"(": ")"}.get(place, place):
            within.pop()
        elif text in ('"', "`", "$(") or (place != '"' and text in ("'", "(")):
            within.append(text[-1])
        return text

    return _PIECE.sub(piece, command)


def _escaped(value: str, quote: str) -> str:
    """Return what stands for a value within a quote."""
    if quote == "'":
        return value.replace("'", "'\\''")
    return re.sub(r'([\\"$`])', r"\\\1", value) if quote == '"' else shlex.quote(value)


def parsed(text: str, what: str) -> Scores:
    """Return the scores that JSON text gives. what: what messages call the text. Raises EvaluationError."""
    try:
        content: Any = json.loads(text)
    except ValueError:
        raise EvaluationError(f"{what} is no JSON: {text[:80]!r}") from None
    if not isinstance(content, dict):
        raise EvaluationError(f'{what} must be a JSON object, such as {{"accuracy": 0.71}}, not {text[:80]!r}')
    nested = content.get("metrics")
    metrics = nested if isinstance(nested, dict) else content
    samples = content.get("samples") if isinstance(nested, dict) else None
    per_sample = {
        name: values
        for name, values in (samples if isinstance(samples, dict) else {}).items()
        if isinstance(values, list) and all(isinstance(value, int | float) for value in values)
    }
    cost = content.get("cost") if isinstance(nested, dict) else None
    return Scores(metrics, per_sample, cost=cost if isinstance(cost, dict) else {})


def make(setup: Setup) -> Command:
    """Return the evaluator of `evaluate: {command: ...}`. Raises ConfigError."""
    return Command(setup)
