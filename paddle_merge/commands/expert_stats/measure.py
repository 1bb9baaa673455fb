"""Compute with a model on texts, and measure its experts."""

from __future__ import annotations

import dataclasses
import logging
import os
import sys
from collections.abc import Sequence
from typing import cast

import numpy as np
from tqdm import tqdm

from ...checkpoints.expert_statistics import ExpertStatistics
from ...errors import ConfigError, WorkError
from ...search.contract import EvaluationError
from ...search.data import read_samples
from ...search.evaluators.libraries.models import ModelSettings, StoredModel, chosen, opened
from ...search.evaluators.libraries.torch_models import TorchModel

log = logging.getLogger("paddle_merge")


def texts_of(path: str) -> list[str]:
    """Return the texts of a JSONL file: "text", or "prompt" and "completion" joined. Raises ConfigError."""
    found, wrong = list[str](), list[int]()
    for line, sample in read_samples(path):
        held = sample if isinstance(sample, dict) else {}
        words = [held.get("text")] if "text" in held else [held[key] for key in ("prompt", "completion") if key in held]
        if words and all(isinstance(word, str) for word in words):
            found.append("".join(map(str, words)))
        else:
            wrong.append(line)
    if wrong:
        more = f" (and {len(wrong) - 1} more lines)" if wrong[1:] else ""
        raise ConfigError(f'{path}:{wrong[0]}: must be {{"text": "..."}}, or a "prompt" with its "completion"{more}')
    if not any(found):
        raise ConfigError(f"{path}: has no texts")
    return found


def measure(model: str, prompts: str, settings: ModelSettings) -> ExpertStatistics:
    """Return the statistics of a model's experts on the texts of a file.

    Texts are cut into parts of at most the model's length, and computed in batches of parts of similar length; padding
    doesn't count. Raises ConfigError for what is wrong with the texts, or if transformers isn't installed; WorkError if
    the model can't be measured.
    """
    texts = texts_of(prompts)
    settings = dataclasses.replace(settings, library="transformers")
    library = chosen(settings, "expert-stats")
    try:
        held = cast(TorchModel, opened(StoredModel(os.path.expanduser(model)), library, settings))
        from .torch_hooks import Recorder

        recorder = Recorder(held.model)
        parts = [part for text in texts for part in _parts(held.encode(text), held.length)]
        total = sum(map(len, parts))
        parts.sort(key=len, reverse=True)
        batches = range(0, len(parts), settings.batch_size)
        for first in tqdm(batches, "measuring", unit=" batches", disable=not shows_progress()):
            some = parts[first : first + settings.batch_size]
            tokens = np.zeros((len(some), len(some[0])), np.int64)
            for row, part in enumerate(some):
                tokens[row, : len(part)] = part
            recorder.run(held.model, tokens, [*map(len, some)])
        return ExpertStatistics(model, prompts, total, recorder.layers())
    except EvaluationError as error:
        raise WorkError(f"{model}: {error}") from error


def shows_progress() -> bool:
    """Return whether to show a progress bar."""
    return log.isEnabledFor(logging.INFO) and sys.stderr.isatty()


def _parts(tokens: Sequence[int], length: int) -> list[Sequence[int]]:
    return [tokens[start : start + length] for start in range(0, len(tokens), length)]
