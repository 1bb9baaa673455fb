"""Score language models by the perplexity of texts.

The samples of a split are a JSONL file, `data: {search: FILE, report: FILE}`, of one of two forms:

    {"text": "..."}                            every token counts, but for the first one, before which nothing stands
    {"prompt": "...", "completion": "..."}     only the completion's tokens count

Metrics, smaller is better:

    nll          the mean over all counted tokens of all samples of the negative natural log-probability
    perplexity   exp(nll); exp(700) at most, so that it is a number

Settings, as `perplexity: {max_length: 512}`: text, prompt, completion (other names of these keys), and those of
libraries.models.ModelSettings. The cost of an evaluation is its number of counted tokens.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ...errors import Attempts, ConfigError
from ..contract import Candidate, EvaluationError, Scores
from ..job import Setup
from .libraries.likelihood import Likelihood, Text, likelihoods, pair
from .libraries.models import Models, ModelSettings, chosen, import_library
from .samples import Samples, text_at
from .settings import is_switch, read_settings, setting


@dataclass
class PerplexitySettings(ModelSettings):
    """The settings of this evaluator; the names of keys of samples."""

    text: str = setting("text")
    prompt: str = setting("prompt")
    completion: str = setting("completion")


class Perplexity:
    """Computes perplexities."""

    metrics = ("perplexity", "nll")

    def __init__(self, setup: Setup):
        """Raises ConfigError listing everything wrong with the settings and the samples, or if no library is installed."""
        attempt = Attempts()
        attempt(check_switch, setup)
        settings = attempt(read_settings, setup.evaluation, PerplexitySettings)
        self._settings: PerplexitySettings = settings or PerplexitySettings()
        self._library = attempt(chosen, self._settings, setup.evaluation.at) or ""
        samples = attempt(Samples, setup, self._converted)
        attempt.finish()
        assert samples is not None
        self._samples: Samples[tuple[str, str]] = samples
        self._models = Models(self._library, self._settings)

    def prepare(self) -> None:
        import_library(self._library)

    def count(self, split: str) -> int | None:
        return len(self._samples.of(split))

    def __call__(self, candidate: Candidate, split: str, seed: int, samples: Sequence[int] | None) -> Scores:
        texts = self._samples.chosen(split, samples)
        with self._models.opened(candidate) as model:
            tokens = [pair(model, prompt, text) if prompt else Text(model.encode(text)) for prompt, text in texts]
            return scores(likelihoods(model, tokens, self._settings.batch_size))

    def _converted(self, sample: dict[str, Any]) -> tuple[str, str]:
        """Return what comes before the text, which may be empty, and the text."""
        names = self._settings
        if names.text in sample or names.completion not in sample:
            return "", text_at(sample, names.text)
        return text_at(sample, names.prompt), text_at(sample, names.completion)


def scores(found: Sequence[Likelihood]) -> Scores:
    """Return perplexity and nll of the likelihoods of samples. Raises EvaluationError if they have no tokens to predict.

    Both are functions of a ratio of sums, the negative log-likelihoods' over the tokens'. The value per sample is the
    linearised one (delta method), so that the mean of these values is the metric and their spread gives its standard error:
    nll + (nll_i - nll tokens_i) / mean(tokens), and perplexity times 1 + that difference.
    """
    tokens = np.array([one.tokens for one in found], np.float64)
    losses = np.array([-one.total for one in found], np.float64)
    if not tokens.sum():
        raise EvaluationError("no sample has a token to predict: texts need at least two tokens")
    nll = float(losses.sum() / tokens.sum())
    perplexity = math.exp(min(nll, 700.0))  # not infinite, so that a search can tell bad candidates apart
    apart = (losses - nll * tokens) / tokens.mean()
    per_sample = {"nll": (nll + apart).tolist(), "perplexity": (perplexity * (1 + apart)).tolist()}
    return Scores({"perplexity": perplexity, "nll": nll}, per_sample, cost={"tokens": float(tokens.sum())})


def check_switch(setup: Setup) -> None:
    """Raise ConfigError if something other than settings stands behind the evaluator's kind."""
    evaluation = setup.evaluation
    if not is_switch(evaluation.what):
        raise ConfigError(
            f"{evaluation.at}: {evaluation.kind} takes settings, such as {{batch_size: 8}}, or true; the samples are in the"
            " files that data names"
        )


def make(setup: Setup) -> Perplexity:
    """Return the evaluator of `evaluate: {perplexity: ...}`. Raises ConfigError."""
    return Perplexity(setup)
