"""Compute log-likelihoods of texts by a language model, in batches, also of texts that are longer than it takes."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from ....records import record
from ...contract import EvaluationError
from .models import LanguageModel


@record(frozen=True)
class Text:
    """Tokens, of which those from place `start` on are to be predicted, each from all that stand before it."""

    tokens: Sequence[int]
    start: int = 1


@dataclass
class Likelihood:
    """total: the sum of the natural log-probabilities of the predicted tokens; tokens: how many they are; greedy: whether
    each of them is the likeliest one."""

    total: float = 0.0
    tokens: int = 0
    greedy: bool = True


@record(frozen=True)
class _Window:
    """Part of a text: tokens begin .. end - 1, of which those from `start` on are predicted."""

    text: int
    begin: int
    start: int
    end: int


def pair(model: LanguageModel, context: str, continuation: str) -> Text:
    """Return the tokens of a text whose last part is to be predicted.

    As lm-eval does (TemplateLM._encode_pair): white space at the end of the context goes to the continuation, both are
    encoded together, and the continuation is what follows on as many tokens as the context alone has. At least one token is
    predicted. An empty context is the model's prefix token.
    """
    if not context:
        first = [model.prefix] if model.prefix is not None else []
        tokens = [*first, *model.encode(continuation, special=not first)]
        return Text(tokens)
    stripped = context.rstrip()
    context, continuation = (stripped, context[len(stripped) :] + continuation) if stripped else (context, continuation)
    tokens, start = model.encode(context + continuation), len(model.encode(context))
    return Text(tokens, max(1, min(start, len(tokens) - 1)))


def likelihoods(model: LanguageModel, texts: Sequence[Text], batch: int) -> list[Likelihood]:
    """Return the likelihood of each text.

    A text of more than model.length + 1 tokens is computed in parts: every token is predicted once, from the model.length
    tokens before it at most, as lm-eval does (utils.get_rolling_token_windows). batch: parts that are computed at a time.
    Raises EvaluationError if a probability is NaN.
    """
    windows = [window for place, text in enumerate(texts) for window in _windows(place, text, model.length)]
    order = sorted(windows, key=lambda window: (window.begin - window.end, window.text, window.begin))  # the longest first
    parts: dict[_Window, tuple[float, bool]] = {}
    for first in range(0, len(order), batch):
        some = order[first : first + batch]
        shape = len(some), some[0].end - some[0].begin - 1
        tokens, targets = np.zeros(shape, np.int64), np.full(shape, -1, np.int64)
        for row, window in enumerate(some):
            ids = np.asarray(texts[window.text].tokens[window.begin : window.end], np.int64)
            skip = window.start - window.begin - 1
            tokens[row, : len(ids) - 1] = ids[:-1]  # what stands behind a text changes nothing before it
            targets[row, skip : len(ids) - 1] = ids[skip + 1 :]
        values, likeliest = model.score(tokens, targets)
        for row, window in enumerate(some):
            asked = targets[row] >= 0
            parts[window] = float(values[row][asked].sum()), bool(likeliest[row][asked].all())
        if any(math.isnan(parts[window][0]) for window in some):
            raise EvaluationError("its probabilities are NaN")
    found = [Likelihood() for _ in texts]
    for window in windows:
        total, greedy = parts[window]
        one = found[window.text]
        one.total, one.greedy = one.total + total, one.greedy and greedy
        one.tokens += window.end - window.start
    return found


def _windows(place: int, text: Text, length: int) -> Iterator[_Window]:
    """Yield the parts in which a text is computed, each of at most length + 1 tokens, the last one not being given."""
    count, start = len(text.tokens), text.start
    while start < count:
        begin = max(0, min(start - 1, count - length - 1))
        end = min(count, begin + length + 1)
        yield _Window(place, begin, start, end)
        start = end
