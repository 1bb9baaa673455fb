"""The base of all callbacks: events that a callback doesn't handle, errors that don't end a training, and several ranks.

The Trainers call callbacks by the names of their events and check no class, so one class serves both libraries. Settings
that can't work raise ConfigError in on_train_begin, before the first step. What fails later is logged; the training goes on.
"""

from __future__ import annotations

import functools
import logging
import os
import time
from collections.abc import Callable
from typing import Any

from ..errors import ConfigError, MergeError
from ..plan.file_names import RECORD

log = logging.getLogger("paddle_merge")
WAIT = 0.2  # seconds between two looks at a file


class TrainingCallback:
    """Handles no event. Subclasses define those they need, as on_save(self, args, state, control, **kwargs)."""

    def __init__(self, output: str):
        """output: the folder to write at the end of the training: a name in the run's output_dir, or a path."""
        if not output or output in (".", ".."):
            raise ConfigError("output must be the name of a folder in the run's output_dir, or a path")
        if os.path.basename(output.rstrip("/")).startswith("checkpoint-"):
            raise ConfigError(
                f"output {output}: the Trainer takes folders called checkpoint-... for its own, and removes them"
            )
        self.output = output
        self.failed = False

    def __getattr__(self, name: str) -> Callable[..., None]:
        """Return a function that does nothing for every event that a subclass doesn't define. Raises AttributeError."""
        if name.startswith("on_"):
            return _nothing
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    def folder(self, args: Any) -> str:
        """Return the path of the output folder. args: the Trainer's TrainingArguments."""
        return os.path.join(args.output_dir, os.path.expanduser(self.output))

    def scratch(self, args: Any) -> str:
        """Return the path of the folder in which this callback keeps files until the training ends."""
        return os.path.join(args.output_dir, f".{os.path.basename(self.output.rstrip('/'))}")

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

    def check_output(self, args: Any) -> None:
        """Check that what is in the output folder may be replaced. Raises ConfigError."""
        folder = self.folder(args)
        held = os.listdir(folder) if os.path.isdir(folder) else []
        if os.path.isfile(folder) or (held and RECORD not in held):
            raise ConfigError(f"output {folder} holds what is not of an earlier merge; give another name, or remove it")

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


def _nothing(*args: Any, **kwargs: Any) -> None:
    pass


def harmless(event: Callable[..., None]) -> Callable[..., None]:
    """Return the handler of an event, with errors logged instead of raised. After one, the callback does nothing more."""

    @functools.wraps(event)
    def handled(self: TrainingCallback, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.attempt(args, state, lambda: event(self, args, state, control, **kwargs))

    return handled


def meet(args: Any) -> None:
    """Wait until all ranks of a training are here. There is nobody to wait for in a training of one process."""
    if args.world_size > 1:
        import paddle

        paddle.distributed.barrier()
