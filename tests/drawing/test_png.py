"""Test pictures of matplotlib's figures."""

from __future__ import annotations

import warnings

import pytest

from paddle_merge.drawing import png


def test_names_in_chinese(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawn in a font for them if there is one, else as boxes, without warnings from the middle of matplotlib."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    monkeypatch.setattr(png, "FONTS", ("no such font", "DejaVu Serif"))
    figure = Figure()
    FigureCanvasAgg(figure)
    words = [figure.text(0, 0, "数学"), figure.text(0, 1, "math")]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert png.png(figure).startswith(b"\x89PNG")
    assert [word.get_fontfamily() for word in words] == [["sans-serif", "DejaVu Serif"], ["sans-serif"]]
