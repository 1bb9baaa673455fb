"""The form of a finding, and how ranges of values are written in one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

Row = Mapping[str, Any]


def finding(code: str, rows: Sequence[Row], text: str, warning: bool = True) -> dict[str, Any]:
    """Return a finding for JSON. rows: of the models that it is about; empty if it is about all. code: its kind."""
    return {"code": code, "about": [row["label"] for row in rows], "warning": warning, "text": text}


def span(values: Sequence[float], form: str) -> str:
    """Return the range of values as text, each in the format `form`."""
    least, most = form.format(min(values) + 0.0), form.format(max(values) + 0.0)
    return least if least == most else f"{least} to {most}"
