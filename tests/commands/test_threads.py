"""Test how commands divide work among threads."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest

from paddle_merge.checkpoints.files import Files
from paddle_merge.commands import threads
from paddle_merge.commands.threads import BATCH, in_threads


@pytest.mark.parametrize("sizes", [[], [3], [5] * 1000, [1, BATCH, 2, 3 * BATCH, BATCH - 1, 4]])
def test_each_item_is_done_once_and_results_are_in_order(sizes: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "THREAD_BYTES", 1)
    done, lock, read = list[int](), threading.Lock(), list[Files]()

    def worker(files: Files, advance: Callable[[int], None]) -> Callable[[int], str]:
        def work(number: int) -> str:
            with lock:
                done.append(number)
                read.append(files)
            return f"item {number}"

        return work

    found = in_threads(worker=worker, sizes=sizes, n_process=3, nbytes=sum(sizes), what="counting", progress=False)
    assert found == [f"item {number}" for number in range(len(sizes))]
    assert sorted(done) == list(range(len(sizes)))
    if len(sizes) == 1000:  # small items are one thread's together
        assert len({id(one) for one in read}) == 1


def test_the_largest_are_started_first_and_small_ones_together() -> None:
    assert list(threads._batches([1, BATCH, 2, 3 * BATCH, BATCH - 1, 4])) == [[3], [1], [4, 5], [2, 0]]
