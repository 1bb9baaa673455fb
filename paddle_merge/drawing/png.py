"""Make PNGs of matplotlib's figures, with names in Chinese, Japanese and Korean where a font for them is installed."""

from __future__ import annotations

import io
import warnings
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DPI = 120
IDEOGRAPHS = "\u2e80"  # where these scripts begin, which matplotlib's own font lacks
FONTS = (
    *("Noto Sans CJK SC", "Noto Sans SC", "Source Han Sans SC", "Source Han Sans CN", "WenQuanYi Micro Hei"),
    *("WenQuanYi Zen Hei", "Droid Sans Fallback", "Microsoft YaHei", "SimHei", "PingFang SC", "Hiragino Sans GB"),
    *("Noto Sans CJK JP", "Arial Unicode MS"),
)


def png(figure: Figure) -> bytes:
    """Return a figure as a PNG. Characters that no font has are boxes."""
    from matplotlib.font_manager import fontManager
    from matplotlib.text import Text

    texts = [text for text in figure.findobj(Text) if max(text.get_text(), default="") >= IDEOGRAPHS]
    held = {font.name for font in fontManager.ttflist} if texts else set()
    for text in texts:
        text.set_fontfamily(["sans-serif", *(name for name in FONTS if name in held)])
    picture = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        figure.savefig(picture, format="png", dpi=DPI)
    return picture.getvalue()
