"""Define fixtures for all tests, and choose the cases of the default run."""

from __future__ import annotations

import gc
import logging
import os
import shutil
from collections import defaultdict
from collections.abc import Hashable, Iterator

import pytest
from hypothesis import settings

import paddle_merge.backends.np_backend  # noqa: F401 - a process that has it merges itself what the command line is given
from paddle_merge.backends.engine import Engine, import_paddle
from tests.support import compiled
from tests.support.sweeps import diagonal, in_pairs

settings.register_profile("no deadline", deadline=None)  # other tests run beside, so an example's time says nothing
settings.load_profile("no deadline")

MEMORY = "/dev/shm"
ROOM = 4_000_000_000  # bytes, more than the tests' files take at any one time


def pytest_configure(config: pytest.Config) -> None:
    """Set what is faster when tests run in parallel, where the user has not set it, and forbid huggingface_hub the network.

    Files are written to memory, if there is room: every merge waits for the disk several times. Libraries use one thread
    each, for all cores have a test to run.
    """
    if os.path.isdir(MEMORY) and os.access(MEMORY, os.W_OK) and shutil.disk_usage(MEMORY).free > ROOM:
        os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", MEMORY)
    os.environ.setdefault("HF_HUB_OFFLINE", "1")  # no test asks a hub on the internet
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # each of hundreds of processes would compile all that it imports
    if config.getoption("numprocesses", default=None):
        os.environ.setdefault("OMP_NUM_THREADS", "1")
        if not hasattr(config, "workerinput") and not config.option.collectonly and compiled.is_needed():
            print("compiling the loops ...", flush=True)
            compiled.compile_all()


@pytest.hookimpl(tryfirst=True)  # before pytest deselects by marker
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Choose the cases of tests with several parameters: those of the default run, those marked `exhaustive`, and none else.

    The default run has every value of every parameter at least once, but for values that are marked so themselves; with the
    cases marked `exhaustive`, any two values of two parameters meet. Tests of the libraries that load models run whole, and
    so does what the command line names.
    """
    all_pairs = "not exhaustive" not in config.option.markexpr  # else those cases aren't run anyway, and seconds are saved
    tests: dict[str, list[pytest.Function]] = defaultdict(list)
    for item in items:
        if isinstance(item, pytest.Function) and hasattr(item, "callspec") and not item.get_closest_marker("loaders"):
            tests[item.nodeid.partition("[")[0]].append(item)
    left = set[pytest.Item]()
    for cases in tests.values():
        values = [_values(case) for case in cases]
        unmarked = [index for index, case in enumerate(cases) if not case.get_closest_marker("exhaustive")]
        kept = {unmarked[place] for place in diagonal([values[index] for index in unmarked])}
        for index in set(unmarked) - kept:
            cases[index].add_marker("exhaustive")
        if all_pairs:
            left |= {cases[index] for index in set(range(len(cases))).difference(in_pairs(values, kept))}
    if left:
        config.hook.pytest_deselected(items=[item for item in items if item in left])
        items[:] = [item for item in items if item not in left]


def pytest_collection_finish() -> None:
    """Leave out of every later search for garbage what is there for the whole run: modules, and thousands of tests."""
    gc.freeze()


def _values(case: pytest.Function) -> dict[str, Hashable]:
    """Return what identifies the value that each parameter has; names that are given values together are one parameter."""
    params = dict(case.callspec.params)
    values: dict[str, Hashable] = {}
    for mark in case.iter_markers("parametrize"):
        names = mark.args[0] if isinstance(mark.args[0], str) else ",".join(mark.args[0])
        values[names] = tuple(id(params.pop(name.strip())) for name in names.split(","))
    return values | {name: id(value) for name, value in params.items()}  # those of fixtures


@pytest.fixture(autouse=True)
def _fresh_logger() -> Iterator[None]:
    """The command line sets up the package's logger for its process; here many commands share one."""
    logger = logging.getLogger("paddle_merge")
    level, handlers, propagate = logger.level, logger.handlers, logger.propagate
    yield
    logger.setLevel(level)
    logger.handlers, logger.propagate = handlers, propagate


@pytest.fixture(params=["np", "pd", "pd device"])
def each_backend(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Merges in this process compute with NumPy, with Paddle on the CPU, and as Paddle does on a device, in small blocks."""
    if request.param != "np":
        import_paddle()
        from paddle_merge.backends.pd_backend import PaddleBackend
        from paddle_merge.backends.pd_host import PaddleOnHost

        class InBlocks(PaddleBackend):
            def block(self, models: int) -> int:
                return 1 << 14

        made = {
            "pd": lambda _, compute: PaddleOnHost(compute),
            "pd device": lambda _, compute: InBlocks(compute, "cpu", 0),
        }
        monkeypatch.setattr(Engine, "backend", made[request.param])
    return str(request.param)
