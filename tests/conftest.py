"""What every test starts from."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest

from paddle_merge.backends.engine import Engine, import_paddle


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
