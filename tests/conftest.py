"""What every test starts from."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest


@pytest.fixture(autouse=True)
def _fresh_logger() -> Iterator[None]:
    """The command line sets up the package's logger for its process; here many commands share one."""
    logger = logging.getLogger("paddle_merge")
    level, handlers = logger.level, logger.handlers
    yield
    logger.setLevel(level)
    logger.handlers = handlers
