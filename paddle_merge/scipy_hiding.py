"""Hide SciPy from Numba, which imports it for products of matrices in loops: ours have none, and it takes 0.3 s.

For processes of our own: in a user's process SciPy must stay what it is.
"""

from __future__ import annotations

import sys

_NAME = "scipy"


def hide_scipy() -> None:
    """Make imports of SciPy fail in this process, unless it is imported already."""
    sys.modules.setdefault(_NAME, None)  # type: ignore[arg-type]  # what Python takes for a module that can't be imported


def show_scipy() -> None:
    """Let this process import SciPy again, for a library that needs it."""
    if sys.modules.get(_NAME, sys) is None:
        del sys.modules[_NAME]
