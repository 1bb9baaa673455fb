"""Turn decays of the learning rate into averages of checkpoints (Tian et al. 2025, WSM: arXiv 2507.17634, theorem 3.1).

A run with a constant learning rate leaves checkpoints theta_1 to theta_k. Had the changes between them been multiplied by
w_1 >= w_2 >= ... >= w_k, as a decaying learning rate does approximately, the run would have ended at

    theta_1 + sum_(j=2..k) w_j (theta_j - theta_(j-1)) = sum_j c_j theta_j,  c_j = w_j - w_(j+1),  w_1 = 1,  w_(k+1) = 0

so an average replaces the decay. Here w_j = f((j - 1) / k) for a curve f that falls from f(0) = 1 to f(1) = 0.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence

from ..errors import ConfigError
from ..parsing import nearest

# Curve -> the factor on the learning rate after a share t of the decay. The average of a linear decay is the plain mean.
CURVES: dict[str, Callable[[float], float]] = {
    "uniform": lambda t: 1.0 - t,
    "linear": lambda t: 1.0 - t,
    "cosine": lambda t: (1.0 + math.cos(math.pi * t)) / 2.0,
    "1-sqrt": lambda t: 1.0 - math.sqrt(t),
}


def average_weights(decay: str | Sequence[float], count: int) -> tuple[float, ...]:
    """Return the weights c_1 to c_count of checkpoints in the order of their steps; none is negative, and their sum is 1.

    decay: the name of a curve; or w_1 to w_count, numbers from 1 down to 0; or w_2 to w_count alone, since w_1 is 1.
    Raises ConfigError if it is neither.
    """
    if count < 1:
        raise ConfigError("an average needs at least one checkpoint")
    if isinstance(decay, str):
        if decay not in CURVES:
            choices = ", ".join(CURVES)
            raise ConfigError(f"decay {decay!r} must be one of {choices}, or a list of numbers{nearest(decay, [*CURVES])}")
        factors = [CURVES[decay](j / count) for j in range(count)]
    else:
        factors = [float(factor) for factor in decay]
        if len(factors) == count - 1:
            factors = [1.0, *factors]
        if len(factors) != count or factors[0] != 1.0:
            raise ConfigError(
                f"decay has {len(decay)} numbers; {count} checkpoints need {count}, of which the first is 1, or the"
                f" {count - 1} after it"
            )
        if any(not 0.0 <= after <= before for before, after in itertools.pairwise(factors)):
            raise ConfigError("decay must be numbers that fall from 1 to 0: factors on the learning rate")
    return tuple(before - after for before, after in zip(factors, [*factors[1:], 0.0], strict=True))
