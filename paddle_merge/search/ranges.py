"""Read evenly spaced numbers, `low:high:step`, both ends included.

YAML takes 0:1:0.1 for a number in base 60, 60.1; so a range is read from the text of a node, not from its value.
"""

from __future__ import annotations

import math
import re
import sys
from typing import Any

import yaml

_NUMBER = r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?"
_RANGE = re.compile(rf"\s*({_NUMBER}):({_NUMBER}):({_NUMBER})\s*")
MOST_POINTS = 10_000
_SLACK = 1e-3  # of a step: so 0.3333 is a third


def is_number(value: Any) -> bool:
    """Return whether a scalar is a number that a float can hold; a whole number may be too large."""
    return not isinstance(value, bool | str) and abs(value) <= sys.float_info.max


def read_range(node: yaml.Node) -> tuple[float, float, float] | None:
    """Return low, high and step if a node's text is a range."""
    found = _RANGE.fullmatch(node.value) if isinstance(node, yaml.ScalarNode) else None
    return (float(found[1]), float(found[2]), float(found[3])) if found else None


def spaced(low: float, high: float, step: float) -> tuple[float, ...]:
    """Return the numbers from low to high at a distance of step. Raises ValueError with a sentence."""
    if not low < high:
        raise ValueError(f"low must be below high, and {low:g} isn't below {high:g}")
    if not step > 0:
        raise ValueError(f"the step must be above 0, not {step:g}")
    steps = (high - low) / step
    if not steps < MOST_POINTS:
        raise ValueError(f"the step {step:g} makes more than {MOST_POINTS:,} points of {low:g} to {high:g}")
    count = max(1, round(steps))
    if abs(steps - count) > _SLACK:
        fitting = (high - low) / math.ceil(steps)
        raise ValueError(f"steps of {step:g} from {low:g} don't end at {high:g}; steps of {fitting:.6g} do")
    return tuple(float(f"{low + (high - low) * place / count:.10g}") for place in range(count + 1))
