"""What every command does: set up logging, print errors as one sentence, and set the exit status."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import sys
from collections.abc import Iterator
from typing import Any

from ..errors import MergeError


def set_up_logging(verbose: bool, quiet: bool) -> None:
    class Format(logging.Formatter):
        def format(self, record: logging.LogRecord) -> str:
            text = super().format(record)
            return text if record.levelno == logging.INFO else f"{record.levelname.lower()}: {text}"

    handler = logging.StreamHandler()
    handler.setFormatter(Format("%(message)s"))
    logger = logging.getLogger("paddle_merge")
    logger.handlers = [handler]
    logger.propagate = False  # importing Paddle gives the root logger a handler
    logger.setLevel(logging.DEBUG if verbose else logging.ERROR if quiet else logging.INFO)


@contextlib.contextmanager
def command() -> Iterator[None]:
    """What surrounds a command: errors become sentences and exit codes, and signals that end it an interrupt."""
    _open_standard_files()
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _interrupt)
    try:
        yield
    except MergeError as error:
        for problem in error.problems:
            print(f"error: {problem}", file=sys.stderr)
        sys.exit(1)
    except MemoryError:
        print("error: out of memory; try a smaller --n_process", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        print("interrupted: no checkpoint was written", file=sys.stderr)
        sys.exit(130)


def _open_standard_files() -> None:
    """Where a caller closed one of them, so that no file of ours takes its number."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115 - for as long as the process lives


def _interrupt(*_: Any) -> None:
    raise KeyboardInterrupt
