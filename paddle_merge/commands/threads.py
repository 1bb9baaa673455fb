"""Divide work among threads, with a progress bar.

Threads suffice where nearly all time goes to compiled loops and reads, which release Python's global interpreter lock.
"""

from __future__ import annotations

import contextlib
import logging
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import TypeVar

from ..checkpoints.files import Files

T = TypeVar("T")
THREAD_BYTES = 1 << 24  # that a thread must have to read, or the threads would do nothing but wait for the interpreter
BATCH = 1 << 16  # size of the items that are one thread's together

log = logging.getLogger("paddle_merge")


def in_threads(
    worker: Callable[[Files, Callable[[int], None]], Callable[[int], T]],
    sizes: Sequence[int],
    n_process: int,
    nbytes: int,
    what: str,
    progress: bool | None = None,
) -> list[T]:
    """Call work(number) for the number of each item; return the results in order. Raises what `work` raises.

    worker(files, advance): returns the `work` of items that are one thread's together. files: what they are read from, which
    is closed behind them, so that many threads don't exceed the limit of open files. advance: `work` calls it with the
    number of bytes it has read, which the progress bar counts; it raises KeyboardInterrupt once another item has failed.
    sizes: the size of each item; the largest are started first, and small ones are one thread's together. nbytes: the number
    of bytes of all items. what: the label of the bar. progress: whether to show the bar; None: if standard error is a
    terminal.
    """
    from tqdm import tqdm

    found: dict[int, T] = {}
    lock, stopped = threading.Lock(), threading.Event()
    disable = not log.isEnabledFor(logging.INFO) or (not sys.stderr.isatty() if progress is None else not progress)

    def advance(count: int) -> None:
        if stopped.is_set():
            raise KeyboardInterrupt
        if not disable:
            with lock:
                bar.update(count)

    def some(numbers: Sequence[int]) -> None:
        with contextlib.closing(Files()) as files:
            work = worker(files, advance)
            for number in numbers:
                found[number] = work(number)

    threads = max(1, min(n_process, len(sizes), nbytes // THREAD_BYTES))
    with tqdm(total=nbytes, unit="B", unit_scale=True, desc=what, disable=disable) as bar:
        pool = ThreadPoolExecutor(threads)
        try:
            for future in as_completed([pool.submit(some, numbers) for numbers in _batches(sizes)]):
                future.result()
        except BaseException:
            stopped.set()
            raise
        finally:
            pool.shutdown(cancel_futures=True)
    return [found[number] for number in range(len(sizes))]


def _batches(sizes: Sequence[int]) -> Iterator[list[int]]:
    """Yield the numbers of all items, the largest first, small ones together."""
    batch, size = list[int](), 0
    for number in sorted(range(len(sizes)), key=lambda number: -sizes[number]):
        batch.append(number)
        size += sizes[number]
        if size >= BATCH:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch
