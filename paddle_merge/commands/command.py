"""Set up logging, and turn errors and signals into messages and exit codes, for every command."""

from __future__ import annotations

import contextlib
import errno
import io
import logging
import os
import signal
import sys
from collections.abc import Iterator
from typing import Any, NoReturn

from ..errors import MergeError
from ..scipy_hiding import hide_scipy, show_scipy


def set_up_logging(verbose: bool, quiet: bool) -> None:
    """Print the package's messages to standard error: also debug messages if verbose, only errors if quiet."""

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
    """Run a command: print errors as sentences and exit with a code; treat SIGTERM and SIGHUP as an interrupt."""
    _open_standard_files()
    output = _Output(sys.stdout)
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _interrupt)
    try:
        with contextlib.redirect_stdout(output):
            yield
    except MergeError as error:
        for problem in error.problems:
            print(f"error: {problem}", file=sys.stderr)
        sys.exit(1)
    except MemoryError:
        print("error: out of memory; try a smaller --n_process", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        print("interrupted: no checkpoint or adapter was written", file=sys.stderr)
        sys.exit(130)
    except FileNotFoundError:
        if not _working_directory_is_gone():
            raise
        print("error: the working directory has been removed; change to another one", file=sys.stderr)
        sys.exit(1)
    finally:
        output.flush()  # Python, when it ends, would print a traceback if this fails


@contextlib.contextmanager
def without_scipy() -> Iterator[None]:
    """Start sooner, for a command that runs nothing of the user's."""
    hide_scipy()
    try:
        yield
    finally:
        show_scipy()


def _open_standard_files() -> None:
    """Open the standard files that the caller closed, so that no other file gets their numbers."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115 - for as long as the process lives


class _Output:
    """Standard output: what can't be written to it ends the command, and what it can't encode is escaped, as on standard
    error: file names that aren't UTF-8, for example."""

    def __init__(self, stream: Any):
        if isinstance(stream, io.TextIOWrapper) and stream.errors == "strict":
            stream.reconfigure(errors="backslashreplace")
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        try:
            return int(self._stream.write(text))
        except OSError as error:
            self._end(error)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except OSError as error:
            self._end(error)

    def _end(self, error: OSError) -> NoReturn:
        """Drop what couldn't be written, which Python would try again; say why, unless the reader has read enough."""
        os.dup2(os.open(os.devnull, os.O_WRONLY), self._stream.fileno())
        if error.errno != errno.EPIPE:  # `| head`
            print(f"error: standard output can't be written to ({error.strerror})", file=sys.stderr)
        sys.exit(1)


def _working_directory_is_gone() -> bool:
    try:
        os.getcwd()
    except FileNotFoundError:
        return True
    return False


def _interrupt(*_: Any) -> None:
    raise KeyboardInterrupt
