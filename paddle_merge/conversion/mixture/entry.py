"""Describe tensors of a mixture of experts that no input stores: drawn at random, computed, or an expert that is changed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import field

from ...checkpoints.tensors import TensorEntry
from ...records import record

STEP = 1 << 16  # elements that are read and changed at a time; every element comes out the same for any other number


@record(frozen=True)
class DrawnEntry(TensorEntry):
    """Describe a tensor that nothing is read for.

    kind: "normal", of standard deviation `width`; "uniform", between -width and width; "zeros"; or "values".
    seed, key: what random numbers are drawn from; key is the tensor's name in the output. values: float32 in row-major
    order, as bytes so that entries can be compared; empty until they are computed (run/gates.py). shared: whether it is the
    gate of a shared expert.
    """

    kind: str
    key: str
    seed: int = 0
    width: float = 1.0
    values: bytes = field(default=b"", repr=False)
    shared: bool = False

    @property
    def made_of(self) -> Sequence[TensorEntry]:
        return ()

    @property
    def computed(self) -> bool:
        return True

    @property
    def memory(self) -> int:
        return (4 * math.prod(self.shape) if self.kind == "values" else 0) + 6 * 8 * STEP

    @property
    def remarks(self) -> Sequence[str]:
        said = {
            "normal": f"drawn at random, normal of standard deviation {self.width:g}",
            "uniform": f"drawn at random, uniform within {self.width:.4g} of 0",
            "zeros": "zeros, which change nothing",
            "values": "of the prompts",
        }
        return (said[self.kind],)


@record(frozen=True)
class Dropped:
    """Say which neurons of an expert are drawn anew: floor(rate * size) of the indices along `axis`.

    key: which they are drawn from, with the seed; the same for all matrices of an expert.
    """

    axis: int
    rate: float
    key: str


@record(frozen=True)
class ExpertEntry(TensorEntry):
    """Describe a matrix of an expert that is changed: neurons are drawn anew, noise is added, and it is scaled, in this
    order.

    source: the matrix of the dense model. seed, key: as of DrawnEntry. noise: the standard deviation. scale: the factor.
    """

    source: TensorEntry
    key: str
    seed: int = 0
    noise: float = 0.0
    scale: float = 1.0
    dropped: Dropped | None = None

    @property
    def made_of(self) -> Sequence[TensorEntry]:
        return [self.source]

    def parts_of(self, number: int) -> Sequence[tuple[int, TensorEntry]]:
        return ((number, self.source),)

    @property
    def remarks(self) -> Sequence[str]:
        found = [f"{self.dropped.rate:.0%} of the neurons drawn anew"] if self.dropped is not None else []
        found += [f"plus noise of standard deviation {self.noise:g}"] if self.noise else []
        return found + ([f"times {self.scale:g}"] if self.scale != 1 else [])

    @property
    def computed(self) -> bool:
        return True

    @property
    def whole(self) -> bool:
        return self.dropped is not None or self.source.whole

    @property
    def scattered(self) -> bool:
        return self.source.scattered

    @property
    def memory(self) -> int:
        neurons = 2 * self.shape[self.dropped.axis] * 8 if self.dropped is not None else 0
        return neurons + 8 * 8 * STEP + self.source.memory
