"""Correct moving averages that started from zeros.

PaddleFormers' zero-cost checkpoints keep ema <- c ema + (1 - c) theta from ema = 0 on, uncorrected: after k updates it is an
average of the weights times 1 - c^k (as in Adam, Kingma & Ba 2015, section 3). Its other average starts from the weights.
"""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Mapping
from typing import Any

import numpy as np

from ...backends.np_backend import widen
from ...checkpoints.files import Files
from ...checkpoints.open import open_checkpoint
from ...checkpoints.run_folder import EMA, Saved, training_arguments
from ...checkpoints.tensors import Checkpoint, TensorEntry
from ...errors import CheckpointError
from ...parsing import tensors_named
from ...records import record
from ...run.sources import reader

log = logging.getLogger("paddle_merge")
SAMPLE = 1 << 20  # elements that are compared, of norms first, whose weights hardly change
TOLERANCE = 0.1  # by which the measured share may differ from what the arguments say: weights move, averages lag behind
NOTICED = 0.02  # from which on a difference is told


@record(frozen=True)
class Correction:
    """What a moving average is divided by. coef, updates: c and k; updates 0: the average started from the weights."""

    coef: float
    updates: int

    @property
    def share(self) -> float:
        """1 - c^k: how many times the average of weights the stored average is."""
        return 1.0 - self.coef**self.updates if self.updates else 1.0


def correction(saved: Saved, coef: float | None, updates: int | None) -> Correction:
    """Return the correction of a checkpoint that holds a moving average.

    coef, updates: in place of what the arguments of the training say. Raises CheckpointError if they don't say it, or if the
    weights contradict it.
    """
    folder = os.path.join(os.path.dirname(saved.path), f"checkpoint-{saved.step}")
    folder = os.path.dirname(saved.path) if saved.kind == EMA else folder
    said = training_arguments(folder)
    if updates is None:
        updates = _updates(saved, said)
    if coef is None and updates:
        coef = said.get("zcc_save_ema_coef")
    if updates and not (isinstance(coef, float) and 0.0 < coef < 1.0):
        raise CheckpointError(
            f"{saved.path}: nothing says with which coefficient it was averaged, and it may have started from zeros; give"
            " --ema_coef, or --ema_updates 0 if it started from the weights"
        )
    found = Correction(coef or 0.0, updates)
    if os.path.isdir(folder):
        _check(saved, folder, found)
    return found


def _updates(saved: Saved, said: Mapping[str, Any]) -> int:
    """Return how often the average was updated since it was 0; 0 if it started from the weights. Raises CheckpointError."""
    if said and not said.get("enable_zero_cost_checkpoint"):
        return 0
    interval = said.get("zcc_ema_interval")
    if said.get("zcc_ema_loss_threshold") is not None:
        why = "it was only updated where the loss was below zcc_ema_loss_threshold"
    elif not isinstance(interval, int) or interval < 1:
        why = "there is no training_args.bin that says how often"
    else:
        return saved.step // interval
    raise CheckpointError(
        f"{saved.path}: it isn't known how often it was updated, by which it must be corrected: {why}; give --ema_updates (0"
        " if the average started from the weights)"
    )


def _check(saved: Saved, folder: str, found: Correction) -> None:
    """Raise CheckpointError if the average isn't about `share` times the weights of its checkpoint, or lacks some."""
    try:
        weights = open_checkpoint(folder)
    except CheckpointError:
        return
    average = open_checkpoint(saved.path)
    if saved.kind == EMA and (missing := [name for name in weights.tensors if name not in average.tensors]):
        raise CheckpointError(
            f"{saved.path}: lacks {tensors_named(missing)} that {folder} has: what wasn't trained has no average,"
            " and a model without them can't be loaded"
        )
    measured = _share(average, weights)
    distance = 0.0 if measured is None else abs(measured - found.share) / max(measured, found.share)
    if distance > NOTICED:
        log.warning("%s: is %.4g times the weights in %s; it is divided by %.4g", saved.path, measured, folder, found.share)
    if distance > TOLERANCE:
        raise CheckpointError(
            f"{saved.path}: it is {measured:.3g} times the weights in {folder}, but would be {found.share:.3g} times after"
            f" {found.updates} updates with coefficient {found.coef:g}; give --ema_coef and --ema_updates as they were (0"
            " updates: the average started from the weights)"
        )


def _share(average: Checkpoint, weights: Checkpoint) -> float | None:
    """Return sum(average weights) / sum(weights weights) over the vectors of both, or else matrices; None without any."""
    both = average.tensors.keys() & weights.tensors.keys()
    names = sorted(both, key=lambda name: (len(average.tensors[name].shape), average.tensors[name].nbytes, name))
    products, squares, left = 0.0, 0.0, SAMPLE
    files = Files()
    try:
        for name in names:
            a, w = average.tensors[name], weights.tensors[name]
            size = math.prod(a.shape)
            if size > left or a.shape != w.shape or not (a.dtype.is_float and w.dtype.is_float):
                continue
            if len(a.shape) > 1 and squares:  # matrices may be transposed, so they count only where there is nothing else
                break
            left -= size
            x, y = (_values(entry, files) for entry in (a, w))
            products += float(x @ y)
            squares += float(y @ y)
    finally:
        files.close()
    return products / squares if squares else None


def _values(entry: TensorEntry, files: Files) -> np.ndarray:
    """Return the elements of a tensor, flat, in float64."""
    found, size = reader(entry, "float64", files), math.prod(entry.shape)
    raw, wide = np.empty(size, found.dtype.raw), np.empty(size)
    found.read(0, raw)
    widen(raw, found.dtype, wide)
    return wide
