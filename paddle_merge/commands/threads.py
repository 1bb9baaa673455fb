"""Divide work among threads, with a progress bar.

Threads suffice where nearly all time goes to compiled loops and reads, which release Python's global interpreter lock.
"""

from __future__ import annotations

import logging
import sys
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import TypeVar

T = TypeVar("T")

log = logging.getLogger("paddle_merge")


def in_threads(
    work: Callable[[int, Callable[[int], None]], T],
    sizes: Sequence[int],
    n_process: int,
    nbytes: int,
    what: str,
    progress: bool | None = None,
) -> list[T]:
    """Call work(number, advance) for the number of each item; return the results in order. Raises what `work` raises.

    sizes: the size of each item; the largest are started first. advance: `work` calls it with the number of bytes it has
    read, which the progress bar counts; it raises KeyboardInterrupt once another call of `work` has failed. nbytes: the
    number of bytes of all items. what: the label of the bar. progress: whether to show the bar; None: if standard error is a
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

    def one(number: int) -> None:
        found[number] = work(number, advance)

    largest_first = sorted(range(len(sizes)), key=lambda number: -sizes[number])
    with tqdm(total=nbytes, unit="B", unit_scale=True, desc=what, disable=disable) as bar:
        pool = ThreadPoolExecutor(max(1, min(n_process, len(sizes))))
        try:
            for future in as_completed([pool.submit(one, number) for number in largest_first]):
                future.result()
        except BaseException:
            stopped.set()
            raise
        finally:
            pool.shutdown(cancel_futures=True)
    return [found[number] for number in range(len(sizes))]
