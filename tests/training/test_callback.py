"""What all callbacks share."""

from __future__ import annotations

import subprocess
import sys
from types import SimpleNamespace

import pytest

from paddle_merge.training import AverageCallback, EmaCallback, MergeCallback, WindowCallback


def test_importing_callbacks_imports_no_library() -> None:
    code = "import sys, paddle_merge.training; print({'paddle', 'paddlenlp', 'paddleformers'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "set()\n", done.stderr


@pytest.mark.parametrize("callback", [AverageCallback(), EmaCallback(), WindowCallback(2), MergeCallback("reference")])
def test_events_that_a_callback_does_not_handle_do_nothing(callback: AverageCallback) -> None:
    """Also those that Trainers will have; other names are no attributes."""
    callback.on_something_new(SimpleNamespace(), SimpleNamespace(), None, model=None)
    with pytest.raises(AttributeError, match="has no attribute 'anything'"):
        callback.anything  # noqa: B018
