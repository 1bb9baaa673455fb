"""Choose which checkpoints of a run are averaged, and with which weights."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from ...checkpoints.adapters import is_factor, kind_of, open_model
from ...checkpoints.open import open_checkpoint
from ...checkpoints.run_folder import EMA, EMAS, Saved, find_checkpoints, trainer_state
from ...errors import Attempts, CheckpointError, ConfigError
from ...recipe.decay import average_weights
from ...records import record
from .config import SoupConfig
from .ema import Correction, correction

_LEFT_OUT = ("runtime", "_per_second", "_steps", "epoch", "_ppl_runtime")  # ends of the names of metrics that aren't scores


@record(frozen=True)
class Member:
    """A checkpoint of a run, as it may be averaged.

    spec: the path that the merge takes: of an adapter, behind the base. nbytes: of all tensors. metrics: what the Trainer
    measured after this step, by name. why_not: why it can't be averaged; "" if it can. weight: in the average; 0 outside.
    correction: of a moving average. form: a hash of the names and shapes of its tensors.
    """

    saved: Saved
    spec: str
    nbytes: int = 0
    metrics: Mapping[str, float] | None = None
    why_not: str = ""
    weight: float = 0.0
    correction: Correction | None = None
    form: int = 0

    @property
    def share(self) -> float:
        """What a moving average is divided by; 1 for weights."""
        return self.correction.share if self.correction is not None else 1.0


@record(frozen=True)
class Found:
    """What a run has. kind: of the members. others: kind -> how many checkpoints of it there are also.

    config: the folder with config.json that the checkpoints lack; None if they have one, or none is there.
    dtype: of the weights, where the checkpoints are their averages in float32; None: the output is stored as these are.
    """

    run: str
    kind: str
    members: Sequence[Member]
    others: Mapping[str, int]
    config: str | None
    dtype: str | None = None

    @property
    def chosen(self) -> list[Member]:
        """The members of the average, in the order of their steps."""
        return [member for member in self.members if member.weight]

    def only(self, numbers: Sequence[int]) -> Found:
        """Return the plain mean of some of the chosen checkpoints. numbers: their places among these."""
        kept = [self.chosen[number] for number in numbers]
        return replace(self, members=[replace(member, weight=1.0 / len(kept)) for member in kept])


def choose(config: SoupConfig) -> Found:
    """Return the checkpoints of a run, with their weights in the average. Raises ConfigError and CheckpointError."""
    kinds = find_checkpoints(config.run)
    if not kinds:
        raise CheckpointError(
            f"{config.run}: has no folder checkpoint-N or hf_checkpoint-N; give the output folder of a training run"
        )
    kind = _kind(kinds, config)
    measured = _measured(config.run, kinds)
    members = [_member(saved, config.base_model_path, measured.get(saved.step)) for saved in kinds[kind]]
    if config.base_model_path and all(member.spec == member.saved.path and not member.why_not for member in members):
        raise ConfigError(f"--base_model_path is for runs that saved LoRA adapters; {config.run} saved whole models")
    chosen = [member for member in members if not member.why_not and _within(member, config)]
    if config.last is not None and config.last > len(chosen):
        raise ConfigError(f"--last {config.last}: {_few(chosen, members, config)}")
    chosen = chosen[-config.last :] if config.last is not None else chosen
    if not chosen:
        raise CheckpointError(f"{config.run}: {_few(chosen, members, config)}")
    if apart := [member for member in chosen if member.form != chosen[-1].form]:
        raise CheckpointError(
            f"{apart[-1].saved.path} and {chosen[-1].saved.path} differ in the names or shapes of their tensors (diff"
            " compares them), so the run changed its model; --steps or --last takes checkpoints that belong together"
        )
    if kind not in EMAS and (config.ema_coef is not None or config.ema_updates is not None):
        raise ConfigError(f"--ema_coef and --ema_updates are for moving averages (--kind); {config.run} has weights")
    weights = average_weights(config.curve, len(chosen))
    corrections = _corrections(chosen, config) if kind in EMAS else [None] * len(chosen)
    weighted = {
        member.spec: replace(member, weight=weight, correction=one)
        for member, weight, one in zip(chosen, weights, corrections, strict=True)
    }
    members = [weighted.get(member.spec, member) for member in members]
    others = {name: len(found) for name, found in kinds.items() if name != kind}
    dtype = _dtype(os.path.dirname(chosen[-1].saved.path)) if kind == EMA else None
    return Found(config.run, kind, members, others, _config_folder(config.run, chosen, kinds), dtype)


def _kind(kinds: Mapping[str, Sequence[Saved]], config: SoupConfig) -> str:
    """Return the kind of checkpoints to average. Raises ConfigError."""
    if config.kind is not None and config.kind not in kinds:
        there = ", ".join(f"{len(found)} {kind}" for kind, found in kinds.items())
        raise ConfigError(f"--kind {config.kind}: {config.run} has none; it has {there}")
    if config.kind is not None:
        return config.kind
    plain = [kind for kind in kinds if kind not in EMAS]
    if not plain:
        raise ConfigError(f"{config.run}: has only moving averages; --kind {next(iter(kinds))} averages these")
    return max(plain, key=lambda kind: (len(kinds[kind]), kind))  # of equals hf_checkpoint, which loaders read as it is


def _member(saved: Saved, base: str | None, metrics: Mapping[str, float] | None) -> Member:
    """Return a checkpoint after a look at its headers."""
    adapter = saved.kind != EMA and _is_adapter(saved.path)
    member = Member(saved, f"{base}+{saved.path}" if adapter and base else saved.path, metrics=metrics)
    if saved.missing:
        return replace(member, why_not=saved.missing)
    if adapter and not base:
        why = (
            "it is a LoRA adapter: give the model that it was trained on by --base_model_path, or make one adapter of"
            " several by merge-lora"
        )
        return replace(member, why_not=why)
    try:
        opened, _ = open_model(member.spec, "model")
    except CheckpointError as error:
        return replace(member, why_not=error.problems[0])
    if factors := [name for name in opened.tensors if is_factor(name)]:
        why = (
            f"it has a LoRA adapter ({factors[0]}) among the weights of its base, and the mean of such factors isn't the"
            " mean of what they do; let the Trainer save the adapter alone (unified_checkpoint), or merge it first"
        )
        return replace(member, why_not=why)
    form = hash(tuple(sorted((name, entry.shape) for name, entry in opened.tensors.items())))
    return replace(member, nbytes=sum(entry.nbytes for entry in opened.tensors.values()), form=form)


def _is_adapter(path: str) -> bool:
    """Return whether a folder holds a LoRA adapter and no whole model."""
    if kind_of(path) is None:
        return False
    try:
        open_checkpoint(path)
    except CheckpointError:
        return True
    return False


def _within(member: Member, config: SoupConfig) -> bool:
    first, last = config.steps or (0, member.saved.step)
    return first <= member.saved.step <= last


def _few(chosen: Sequence[Member], members: Sequence[Member], config: SoupConfig) -> str:
    """Return a sentence that says how many checkpoints can be averaged, and why not more."""
    steps = f" between steps {config.steps[0]} and {config.steps[1]}" if config.steps else ""
    there = f"{len(chosen)} {'checkpoint' if len(chosen) == 1 else 'checkpoints'}{steps} can be averaged"
    reasons = [f"{member.saved.path}: {member.why_not}" for member in members if member.why_not and _within(member, config)]
    more = f", and {len(reasons) - 1} other{'s' * (len(reasons) > 2)} can't either" if len(reasons) > 1 else ""
    return there + (f"; {reasons[0]}{more}" if reasons else "")


def _corrections(chosen: Sequence[Member], config: SoupConfig) -> list[Correction | None]:
    """Return the correction of each moving average. Raises ConfigError, and CheckpointError with all problems."""
    updates: Sequence[int | None] = config.ema_updates or [None] * len(chosen)
    if len(updates) != len(chosen):
        raise ConfigError(f"--ema_updates has {len(updates)} numbers for {len(chosen)} averages; give one for each")
    attempt = Attempts()
    found = [
        attempt(correction, member.saved, config.ema_coef, count) for member, count in zip(chosen, updates, strict=True)
    ]
    attempt.finish()
    return found


def _dtype(folder: str) -> str | None:
    """Return the dtype of a checkpoint's floating-point tensors; None if there are several, or it can't be opened."""
    try:
        found = {entry.dtype.name for entry in open_checkpoint(folder).tensors.values() if entry.dtype.is_float}
    except CheckpointError:
        return None
    return found.pop() if len(found) == 1 else None


def _measured(run: str, kinds: Mapping[str, Sequence[Saved]]) -> dict[int, dict[str, float]]:
    """Return what the Trainer measured on held-out data, by step, as the latest state that can be read says."""
    saved = sorted((one for found in kinds.values() for one in found), key=lambda one: one.step, reverse=True)
    for folder in [*(one.path for one in saved), run]:
        try:
            history = trainer_state(folder).get("log_history")
        except CheckpointError:
            continue
        if isinstance(history, list):
            return _scores(history)
    return {}


def _scores(history: Sequence[Any]) -> dict[int, dict[str, float]]:
    found: dict[int, dict[str, float]] = {}
    for line in history:
        step = line.get("step", line.get("global_step")) if isinstance(line, dict) else None
        if not isinstance(step, int):
            continue
        for name, value in line.items():
            if name.startswith("eval_") and not name.endswith(_LEFT_OUT) and isinstance(value, int | float):
                found.setdefault(step, {})[str(name)] = float(value)
    return found


def _config_folder(run: str, chosen: Sequence[Member], kinds: Mapping[str, Sequence[Saved]]) -> str | None:
    """Return the folder of the run that has the config.json which the chosen checkpoints lack."""
    if any(os.path.isfile(os.path.join(member.saved.path, "config.json")) for member in chosen):
        return None
    if "+" in chosen[0].spec and chosen[0].spec != chosen[0].saved.path:
        return None
    latest = sorted((one for found in kinds.values() for one in found), key=lambda one: one.step, reverse=True)
    folders = [run, *(one.path for one in latest), *(os.path.dirname(one.path) for one in latest if one.kind == EMA)]
    return next((folder for folder in folders if os.path.isfile(os.path.join(folder, "config.json"))), None)
