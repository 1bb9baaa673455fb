"""Score language models by questions with several answers, of which the likeliest one counts as the model's.

The samples of a split are a JSONL file, `data: {search: FILE, report: FILE}`:

    {"question": "...", "choices": ["...", "..."], "answer": 0}    asked as "Question: ...\\nAnswer:"
    {"prompt": "...", "choices": ["...", "..."], "answer": "A"}    asked as it is

The answer is the place of the right choice from 0, a letter from A, or the choice itself. `choices` may also be
{"text": [...], "label": [...]}, as in ARC, and then the answer is a label. A choice is appended to the question behind a
space.

Metrics, larger is better; a sample counts 1 if the right choice is the likeliest, the first of equal ones, else 0:

    acc         by the sum of the log-probabilities of the choice's tokens
    acc_norm    by that sum over the number of the choice's characters (as in lm-eval)

Settings, as `multiple_choice: {batch_size: 16}`: question, prompt, choices, answer (other names of these keys), template
(how a question is asked, with {question} in it), delimiter (what stands before a choice, a space by default), and those of
libraries.models.ModelSettings. The cost of an evaluation is its number of predicted tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ...errors import Attempts, ConfigError
from ...records import record
from ..contract import Candidate, EvaluationError, Scores
from ..job import Setup
from .libraries.likelihood import likelihoods, pair
from .libraries.models import Models, ModelSettings, chosen, import_library
from .perplexity import check_switch
from .samples import Samples, text_at
from .settings import read_settings, setting

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


@dataclass
class ChoiceSettings(ModelSettings):
    """The settings of this evaluator; see above."""

    question: str = setting("question")
    prompt: str = setting("prompt")
    choices: str = setting("choices")
    answer: str = setting("answer")
    template: str = setting("Question: {question}\nAnswer:")
    delimiter: str = setting(" ")


@record(frozen=True)
class Question:
    """What is asked, the texts that may answer it, and the place of the right one."""

    context: str
    choices: tuple[str, ...]
    answer: int


class MultipleChoice:
    """Answers questions."""

    metrics = ("acc", "acc_norm")

    def __init__(self, setup: Setup):
        """Raises ConfigError listing everything wrong with the settings and the samples, or if no library is installed."""
        evaluation, attempt = setup.evaluation, Attempts()
        attempt(check_switch, setup)
        self._settings: ChoiceSettings = attempt(read_settings, evaluation, ChoiceSettings) or ChoiceSettings()
        if "{question}" not in self._settings.template:
            at = evaluation.places.get("template", evaluation.at)
            attempt.errors.append(ConfigError(f"{at}: template must contain {{question}}"))
        self._library = attempt(chosen, self._settings, evaluation.at) or ""
        samples = attempt(Samples, setup, self._converted)
        attempt.finish()
        assert samples is not None
        self._samples: Samples[Question] = samples
        self._models = Models(self._library, self._settings)

    def prepare(self) -> None:
        import_library(self._library)

    def count(self, split: str) -> int | None:
        return len(self._samples.of(split))

    def __call__(self, candidate: Candidate, split: str, seed: int, samples: Sequence[int] | None) -> Scores:
        questions, settings = self._samples.chosen(split, samples), self._settings
        with self._models.opened(candidate) as model:
            texts = [pair(model, one.context, settings.delimiter + choice) for one in questions for choice in one.choices]
            found = likelihoods(model, texts, settings.batch_size)
        if any(not one.tokens for one in found):
            raise EvaluationError("a choice has no token to predict; the question before it must not be empty")
        acc, acc_norm, first = list[float](), list[float](), 0
        for one in questions:
            sums = np.array([of.total for of in found[first : first + len(one.choices)]])
            first += len(one.choices)
            acc.append(float(int(np.argmax(sums)) == one.answer))
            acc_norm.append(float(int(np.argmax(sums / [len(choice) for choice in one.choices])) == one.answer))
        return Scores(
            {"acc": float(np.mean(acc)), "acc_norm": float(np.mean(acc_norm))},
            {"acc": acc, "acc_norm": acc_norm},
            cost={"tokens": float(sum(one.tokens for one in found))},
        )

    def _converted(self, sample: dict[str, Any]) -> Question:
        names = self._settings
        if names.question in sample or names.prompt not in sample:
            context = names.template.replace("{question}", text_at(sample, names.question))
        else:
            context = text_at(sample, names.prompt)
        choices, labels = _choices(sample, names.choices)
        if names.answer not in sample:
            raise ValueError(f"has no {names.answer!r}")
        return Question(context, choices, _place(sample[names.answer], choices, labels, names.answer))


def _choices(sample: dict[str, Any], key: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the texts of the choices, and their labels; the letters if they have none. Raises ValueError."""
    found: Any = sample.get(key)
    labels: Any = None
    if isinstance(found, dict):
        found, labels = found.get("text"), found.get("label")
    if not isinstance(found, list) or len(found) < 2 or not all(isinstance(one, str) and one for one in found):
        raise ValueError(f"{key!r} must be a list of at least two texts")
    if labels is None:
        return tuple(found), tuple(LETTERS[: len(found)])
    if not isinstance(labels, list) or len(labels) != len(found):
        raise ValueError(f"{key!r} must have as many labels as texts")
    return tuple(found), tuple(map(str, labels))


def _place(answer: Any, choices: Sequence[str], labels: Sequence[str], key: str) -> int:
    """Return the place of the right choice. Raises ValueError."""
    if isinstance(answer, str):
        if answer.strip() in labels:
            return labels.index(answer.strip())
        if answer in choices:
            return choices.index(answer)
        answer = int(answer) if answer.strip().isdecimal() else answer
    if isinstance(answer, int) and not isinstance(answer, bool) and 0 <= answer < len(choices):
        return answer
    raise ValueError(f"{key!r} must be one of 0 to {len(choices) - 1}, {labels[0]} to {labels[-1]}, or a choice")


def make(setup: Setup) -> MultipleChoice:
    """Return the evaluator of `evaluate: {multiple_choice: ...}`. Raises ConfigError."""
    return MultipleChoice(setup)
