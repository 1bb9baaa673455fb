"""The base of all callbacks: events that a callback doesn't handle, errors that don't end a training, and several ranks.

The Trainers call callbacks by the names of their events and check no class, so one class serves both libraries. Settings
that can't work raise ConfigError in on_train_begin, in all ranks, before the first step. What fails later is logged; the
training goes on.
"""

from __future__ import annotations

import functools
import logging
import numbers
import os
import time
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import xxhash

from ..errors import ConfigError, MergeError
from .checkpoints import form_of, is_ready, path_of, saves_shards, signals_after, unified_options, will_exist
from .outputs import MERGED, check_replaceable, contains

log = logging.getLogger("paddle_merge")
WAIT = 0.2  # seconds between two looks at a file


class TrainingCallback:
    """Handles no event. Subclasses define those they need, as on_save(self, args, state, control, **kwargs)."""

    def __init__(self, output: str | os.PathLike[str]):
        """output: the folder to write at the end of the training: a name in the run's output_dir, or a path."""
        self.output = os.path.normpath(path_from("output", output))
        if self.output in (".", ".."):
            raise ConfigError("output must be the name of a folder in the run's output_dir, or a path")
        if os.path.basename(self.output).startswith("checkpoint-"):
            raise ConfigError(
                f"output {output}: the Trainer takes folders called checkpoint-... for its own, and removes them"
            )
        self.failed = False
        self.steps: list[int] = []  # of the checkpoints that the run has saved since it began, or has gone on
        self.resumed: str | None = None  # the folder of the checkpoint that it has gone on from
        self._stale: dict[str, int] = {}  # signals of earlier runs' checkpoints
        self._state: Any = None  # the Trainer's, by which callbacks of one training know each other

    def __getattr__(self, name: str) -> Callable[..., None]:
        """Return a function that does nothing for every event that a subclass doesn't define. Raises AttributeError."""
        if name.startswith("on_"):
            return _nothing
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    def folder(self, args: Any) -> str:
        """Return the path of the output folder. args: the Trainer's TrainingArguments."""
        return os.path.join(args.output_dir, self.output)

    def outputs(self, args: Any) -> dict[str, Sequence[str]]:
        """Return all folders that this callback writes, each with the files by which its earlier versions are known."""
        return {self.folder(args): MERGED}

    def scratch(self, args: Any) -> str:
        """Return the path of the folder in which this callback keeps files until the training ends.

        Outputs of the same name in different folders have different ones.
        """
        parent, name = os.path.split(self.output)
        unique = f"-{xxhash.xxh3_64_hexdigest(os.fsencode(self.output))[:8]}" if parent else ""
        return os.path.join(args.output_dir, f".{name}{unique}")

    def weights(self, args: Any) -> str:
        """Return the path of the folder for what is merged, at the end of the training."""
        return f"{self.scratch(args)}.weights"

    def begin(self, args: Any, state: Any) -> None:
        """Check the output, and begin to note which checkpoints are this run's. Raises ConfigError."""
        self.failed, self.steps, self.resumed, self._state = False, [], None, state
        if state.global_step:
            given = getattr(args, "resume_from_checkpoint", None)
            named = isinstance(given, str) and os.path.isdir(given)
            self.resumed = given if named else path_of(args, state.global_step)
        self._stale = signals_after(args, state.global_step)
        _begun.add(self)
        self.check_outputs(args)

    def saved(self, args: Any, state: Any) -> bool:
        """Note that the Trainer has saved a checkpoint; return whether this process, rank 0, has something to do for it."""
        if not will_exist(args, state.global_step):
            return False
        if state.global_step not in self.steps:
            self.steps.append(state.global_step)
        return bool(state.is_world_process_zero)

    def ready(self, args: Any, step: int) -> bool:
        """Return whether all files of a checkpoint of this run are written."""
        return is_ready(args, step, self._stale)

    def last_checkpoint(self, args: Any) -> str | None:
        """Return the folder of the newest complete checkpoint of this run; None if there is none.

        What else is in output_dir may be of earlier runs.
        """
        for step in reversed(self.steps):
            if form_of(path_of(args, step)) is not None and self.ready(args, step):
                return path_of(args, step)
        return self.resumed if self.resumed is not None and form_of(self.resumed) is not None else None

    def attempt(self, args: Any, state: Any, work: Callable[[], None]) -> None:
        """Do something, and log what it raises. After an error, the callback does nothing more."""
        if self.failed:
            return
        try:
            work()
        except Exception as error:
            self.failed = True
            log.error(
                "%s stopped at step %d, and %s is not written; the training is not affected: %s",
                type(self).__name__,
                state.global_step,
                self.folder(args),
                error,
                exc_info=not isinstance(error, MergeError | OSError),
            )

    def check_weights(self, args: Any) -> None:
        """Check that the Trainer saves weights, not only the optimizer's master weights of them, and in files that can be
        joined. Raises ConfigError."""
        if "skip_save_model_weight" in unified_options(args):
            raise ConfigError(
                f"{type(self).__name__} needs the weights of checkpoints, and unified_checkpoint_config has"
                " skip_save_model_weight"
            )
        if option := saves_shards(args):
            raise ConfigError(
                f"{type(self).__name__} can't join what sharding ranks save with {option}; leave that out, or set"
                " unified_checkpoint"
            )

    def check_outputs(self, args: Any) -> None:
        """Check that what is in the output folders may be replaced, and is no other callback's. Raises ConfigError."""
        for folder, marks in self.outputs(args).items():
            if contains(folder, args.output_dir):
                raise ConfigError(
                    f"output {folder} is the run's output_dir, or contains it; give the name of a folder in it"
                )
            check_replaceable(folder, marks)
            for other in _begun:
                if other is self or other._state is not self._state:
                    continue
                if any(contains(folder, path) or contains(path, folder) for path in other.outputs(args)):
                    raise ConfigError(
                        f"output {folder}: another {type(other).__name__} of this training writes there; give each callback"
                        " an output of its own"
                    )

    def finish(self, args: Any, state: Any, work: Callable[[], None]) -> None:
        """Do something in rank 0 at the end of a training, once all ranks are there; the others wait until it is done.

        They wait for a file to vanish, since a barrier gives up after a while, and a merge may take longer.
        """
        working = f"{self.scratch(args)}.working"
        if not state.is_world_process_zero:
            meet(args)
            while os.path.exists(working):
                time.sleep(WAIT)
            meet(args)
            return
        if args.world_size > 1:
            os.makedirs(args.output_dir, exist_ok=True)
            with open(working, "w"):
                meet(args)
        self.attempt(args, state, work)
        if args.world_size > 1:
            os.remove(working)
            meet(args)


_begun: weakref.WeakSet[TrainingCallback] = weakref.WeakSet()  # those whose training has begun


def _nothing(*args: Any, **kwargs: Any) -> None:
    pass


def harmless(event: Callable[..., None]) -> Callable[..., None]:
    """Return the handler of an event, with errors logged instead of raised. After one, the callback does nothing more."""

    @functools.wraps(event)
    def handled(self: TrainingCallback, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.attempt(args, state, lambda: event(self, args, state, control, **kwargs))

    return handled


def together(begin: Callable[..., None]) -> Callable[..., None]:
    """Return the handler of on_train_begin, with what one rank raises raised in all of them, before any waits for another.

    Files that can't be read raise ConfigError, which names them.
    """

    @functools.wraps(begin)
    def handled(self: TrainingCallback, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        raised: Exception | None = None
        try:
            begin(self, args, state, control, **kwargs)
        except OSError as error:
            raised = ConfigError(f"{type(self).__name__}: {error.filename or args.output_dir}: {error.strerror or error}")
        except Exception as error:
            raised = error
        problems: list[str | None] = [None if raised is None else str(raised)]
        if args.world_size > 1:
            import paddle

            own, problems = problems[0], []
            paddle.distributed.all_gather_object(problems, own)
        if raised is not None:
            raise raised
        for rank, problem in enumerate(problems):
            if problem is not None:
                raise ConfigError(f"in rank {rank}: {problem}")

    return handled


def path_from(name: str, value: object) -> str:
    """Return a path that a setting of this name gives, with ~ expanded. Raises ConfigError."""
    if not isinstance(value, str | os.PathLike) or not isinstance(path := os.fspath(value), str):
        raise ConfigError(f"{name} must be a path, not {value!r}")
    return os.path.expanduser(path)


def number_from(name: str, value: object) -> float:
    """Return a setting of this name that is a number. Raises ConfigError."""
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise ConfigError(f"{name} must be a number, not {value!r}")
    return float(value)


def whole_from(name: str, value: object, what: str) -> int:
    """Return a setting of this name that is a number of things, 1 or more. what: which things. Raises ConfigError."""
    if isinstance(value, bool) or not isinstance(value, numbers.Integral) or value < 1:
        raise ConfigError(f"{name} must be a number of {what}, 1 or more, not {value!r}")
    return int(value)


def meet(args: Any) -> None:
    """Wait until all ranks of a training are here. There is nobody to wait for in a training of one process."""
    if args.world_size > 1:
        import paddle

        paddle.distributed.barrier()
