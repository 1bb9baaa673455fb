"""Show how far a command is that works matrix by matrix."""

from __future__ import annotations

import logging
import math
import sys
from collections.abc import Iterator, Sequence
from typing import Protocol, TypeVar

log = logging.getLogger("paddle_merge")


class _Shaped(Protocol):
    @property
    def shape(self) -> tuple[int, ...]: ...


S = TypeVar("S", bound=_Shaped)


def watched(matrices: Sequence[S], what: str, progress: bool | None) -> Iterator[S]:
    """Yield the matrices, with a progress bar that counts their elements.

    what: the word before the bar. progress: whether to show it; None: if standard error is a terminal.
    """
    from tqdm import tqdm

    disable = not log.isEnabledFor(logging.INFO) or (not sys.stderr.isatty() if progress is None else not progress)
    total = sum(math.prod(one.shape) for one in matrices)
    with tqdm(total=total, unit="", unit_scale=True, desc=what, disable=disable) as bar:
        for one in matrices:
            yield one
            bar.update(math.prod(one.shape))
