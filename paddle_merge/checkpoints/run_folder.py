"""Find the checkpoints that a Trainer saved in the folder of a run, and read what it saved beside the weights.

Paddle's Trainers and transformers' write a folder checkpoint-N after step N. PaddleFormers also writes hf_checkpoint-N, the
same weights as from_pretrained reads them, and its averages: ema_hf_checkpoint-N, or the folder ema_state of checkpoint-N.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any

from ..errors import CheckpointError
from ..records import record
from .formats.pickles import load, open_window
from .formats.standins import Record
from .json_files import read_json

EMA = "ema_state"  # the kind, and the name of the folder
EMAS = (EMA, "ema_hf_checkpoint")  # kinds that hold a moving average in place of the weights
KINDS = ("checkpoint", "hf_checkpoint", *EMAS)
CHECKPOINT = re.compile(r"(checkpoint|hf_checkpoint|ema_hf_checkpoint)-(\d{1,12})")
_RANK = re.compile(r"(\d+)_\d+\.distcp")
_STATE = ("trainer_state.json", "trainer_state.bin")  # of PaddleNLP and transformers, and of PaddleFormers
_ARGUMENTS = "training_args.bin"


@record(frozen=True)
class Saved:
    """A checkpoint of a run. kind: one of KINDS. missing: why it isn't finished, or counts no more; "" if it does."""

    path: str
    kind: str
    step: int
    missing: str = ""


def find_checkpoints(run: str) -> dict[str, list[Saved]]:
    """Return the checkpoints of each kind that a run has, in the order of their steps. Raises CheckpointError.

    PaddleFormers writes a file saved_signal_RANK when a rank has written everything. Where one checkpoint has such files,
    another one that has none is not finished.
    """
    try:
        names = sorted(os.listdir(run))
    except OSError as error:
        raise CheckpointError(f"{run}: can't be read ({error.strerror}); give the output folder of a training run") from None
    found: dict[str, list[Saved]] = {}
    for name in names:
        path, match = os.path.join(run, name), CHECKPOINT.fullmatch(name)
        if match is None or not os.path.isdir(path):
            continue
        found.setdefault(match[1], []).append(Saved(path, match[1], int(match[2])))
        if match[1] == "checkpoint" and os.path.isdir(inner := os.path.join(path, EMA)):
            found.setdefault(EMA, []).append(Saved(inner, EMA, int(match[2])))
    return {kind: list(_judged(found[kind])) for kind in KINDS if kind in found}


def _judged(saved: list[Saved]) -> Iterator[Saved]:
    """Yield checkpoints of one kind, in the order of their steps, with what is missing of each."""
    looked = {one.path: _look(one) for one in saved}
    signed = any(signals for signals, _, _ in looked.values())
    seen: dict[str | int, str] = {}  # folders, by which links are told, and steps -> path
    for one in sorted(saved, key=lambda one: (one.step, one.path)):
        signals, ranks, missing = looked[one.path]
        places = os.path.realpath(one.path), one.step
        other = next((seen[place] for place in places if place in seen), None)
        if not missing and other is not None:
            missing = f"it is {other} once more"
        elif not missing and signed and (not signals or ranks - signals):
            rank = min(ranks - signals, default=0)
            missing = f"rank {rank} has not finished it: there is no saved_signal_{rank}"
        elif not missing:
            seen |= dict.fromkeys(places, one.path)
        yield replace(one, missing=missing)


def _look(saved: Saved) -> tuple[set[int], set[int], str]:
    """Return the ranks that have finished a checkpoint, those that have files in it, and why it can't be read ("")."""
    try:
        return _signals(saved), _ranks(saved.path), ""
    except OSError as error:
        return set(), set(), f"it can't be read ({error.strerror})"


def _signals(saved: Saved) -> set[int]:
    """Return the ranks that have finished a checkpoint."""
    folder = os.path.dirname(saved.path) if saved.kind == EMA else saved.path
    return {int(name[13:]) for name in os.listdir(folder) if re.fullmatch(r"saved_signal_\d+", name)}


def _ranks(folder: str) -> set[int]:
    """Return the ranks that have files of a distributed checkpoint in a folder or in its folders."""
    inner = [entry.path for entry in os.scandir(folder) if entry.is_dir()]
    names = [name for one in (folder, *inner) for name in os.listdir(one)]
    return {int(match[1]) for name in names if (match := _RANK.fullmatch(name))}


def trainer_state(folder: str) -> Mapping[str, Any]:
    """Return what the Trainer's state in a checkpoint says: global_step, log_history and so on; nothing if none is there.

    Raises CheckpointError if it can't be read.
    """
    for name in _STATE:
        if os.path.isfile(path := os.path.join(folder, name)):
            content = read_json(path) if name.endswith(".json") else _attributes(path)
            return content if isinstance(content, dict) else {}
    return {}


def training_arguments(folder: str) -> Mapping[str, Any]:
    """Return the arguments of the training that saved a checkpoint, by name; nothing if the file isn't there.

    Of values, only numbers, text and what is made of them are meaningful. Raises CheckpointError if it can't be read.
    """
    path = os.path.join(folder, _ARGUMENTS)
    return _attributes(path) if os.path.isfile(path) else {}


def _attributes(path: str) -> dict[str, Any]:
    """Return the attributes of the object in a pickle. Nothing that the file names is imported or called."""
    with open_window(path) as window:
        content = load(window, _AnyWord())
    return content.fields if isinstance(content, Record) else {}


class _Anything(Record):
    """Stand in for any object, made with any arguments."""

    def __init__(self, *_: Any) -> None:
        super().__init__()

    def build(self, state: Any) -> None:
        if isinstance(state, dict):
            super().build(state)


class _AnyWord(Mapping[tuple[str, str], Callable[..., Any]]):
    """Make the same stand-in of every name: attributes are looked at, and objects of unknown kinds are not."""

    def __getitem__(self, key: tuple[str, str]) -> Callable[..., Any]:
        return _Anything

    def __contains__(self, key: object) -> bool:
        return True

    def __iter__(self) -> Iterator[tuple[str, str]]:
        return iter(())

    def __len__(self) -> int:
        return 0
