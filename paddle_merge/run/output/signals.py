"""Delay signals while files are renamed, or modules imported."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator


@contextlib.contextmanager
def uninterrupted(redeliver: bool = True) -> Iterator[None]:
    """Delay signals that would end the merge until the block is done; without `redeliver` they are dropped.

    Launchers and people send several. Outside of the main thread no signals arrive.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    arrived: list[int] = []
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.signal(number, lambda received, _: arrived.append(received)) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if arrived and redeliver:
        signal.raise_signal(arrived[0])
