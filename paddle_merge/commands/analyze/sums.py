"""Counts and sums of task vectors, and the measures that follow from them.

The sums of several tensors can be added, to those of a layer or of all tensors. Measures that aren't defined, such as a
cosine of zeros, or whose sums overflow float64, are None.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from functools import reduce
from operator import add
from typing import Any, NamedTuple, TypeVar

S = TypeVar("S", "ModelSums", "PairSums", "KeptSums")


def total(kind: type[S], parts: Iterable[S]) -> S:
    """Return the sums of all parts together, added in order. (sum() of floats would depend on Python's version.)"""
    columns = zip(*(kind(), *parts), strict=True)  # kind(): the sums of no parts
    return kind._make(map(reduce, [max if name == "largest" else add for name in kind._fields], columns))


class ModelSums(NamedTuple):
    """The sums of a task vector x and the base b.

    elements: number of elements. changed: number of elements of x that aren't zero. absolute: sum |x|. squares: sum x^2.
    along_base: sum x b. base_squares: sum b^2. largest: max |x|.
    """

    elements: int = 0
    changed: int = 0
    absolute: float = 0.0
    squares: float = 0.0
    along_base: float = 0.0
    base_squares: float = 0.0
    largest: float = 0.0

    @property
    def norm(self) -> float | None:
        """The Euclidean norm of the task vector."""
        return root(self.squares)

    @property
    def relative(self) -> float | None:
        """The norm of the task vector divided by the norm of the base."""
        return 0.0 if self.elements and not self.changed else ratio(root(self.squares), root(self.base_squares))

    @property
    def base_cosine(self) -> float | None:
        """The cosine similarity of the model (not the task vector) and the base."""
        squares = self.base_squares + 2 * self.along_base + self.squares
        return _cosine(self.base_squares + self.along_base, self.base_squares, squares)

    @property
    def changed_fraction(self) -> float | None:
        """The fraction of elements that changed."""
        return ratio(self.changed, self.elements)

    @property
    def mean(self) -> float | None:
        """The mean magnitude of the elements that changed."""
        return ratio(self.absolute, self.changed)


class PairSums(NamedTuple):
    """The sums of two task vectors a and b.

    changed_a, changed_b, both: numbers of elements that aren't zero in a, in b, and in both. conflicts: number of elements
    of `both` whose signs differ. different: number of elements with a != b. squares_a, squares_b: sum a^2, sum b^2.
    products: sum a b. sizes: sum |a b|. kept_a, kept_b, kept_both: as changed_a, changed_b, both, of the trimmed task
    vectors.
    """

    elements: int = 0
    changed_a: int = 0
    changed_b: int = 0
    both: int = 0
    conflicts: int = 0
    different: int = 0
    squares_a: float = 0.0
    squares_b: float = 0.0
    products: float = 0.0
    sizes: float = 0.0
    kept_a: int = 0
    kept_b: int = 0
    kept_both: int = 0

    @property
    def cosine(self) -> float | None:
        """The cosine similarity of a and b."""
        if not self.different and self.changed_a:
            return 1.0
        return _cosine(self.products, self.squares_a, self.squares_b)

    @property
    def overlap(self) -> float | None:
        """The number of elements that changed in both, divided by the number that changed in either."""
        return ratio(self.both, self.changed_a + self.changed_b - self.both)

    @property
    def trimmed_overlap(self) -> float | None:
        """The overlap of the trimmed task vectors."""
        return ratio(self.kept_both, self.kept_a + self.kept_b - self.kept_both)

    @property
    def sign_conflict(self) -> float | None:
        """The fraction of the elements that changed in both whose signs differ."""
        return ratio(self.conflicts, self.both)

    @property
    def weighted_sign_conflict(self) -> float | None:
        """The same with each element weighted by |a b|: (sum |a b| - sum a b) / (2 sum |a b|)."""
        share = ratio(self.sizes - self.products, 2 * self.sizes)
        return None if share is None else min(1.0, max(0.0, share))

    @property
    def distance(self) -> float | None:
        """||a - b||, the distance of the two models."""
        return root(max(0.0, self.squares_a + self.squares_b - 2 * self.products))


class KeptSums(NamedTuple):
    """The sums of a task vector x and the result s of a sparsifier.

    changed, absolute, squares: of x, as in ModelSums. kept, kept_absolute: number of elements of s that aren't zero, and
    sum |x| over them. agreed, agreed_absolute: the same over those of them that have the elected sign. scaled: sum |s|.
    error: sum (s - x)^2.
    """

    changed: int = 0
    absolute: float = 0.0
    squares: float = 0.0
    kept: int = 0
    kept_absolute: float = 0.0
    agreed: int = 0
    agreed_absolute: float = 0.0
    scaled: float = 0.0
    error: float = 0.0

    @property
    def distance(self) -> float | None:
        """||s - x|| / ||x||."""
        return ratio(root(self.error), root(self.squares))


def root(value: float) -> float | None:
    """Return the square root; None if the value isn't finite."""
    return math.sqrt(value) if math.isfinite(value) else None


def ratio(part: float | None, whole: float | None) -> float | None:
    """Return part / whole; None if either is None, whole is 0, or the quotient isn't finite."""
    if part is None or not whole or not math.isfinite(whole):
        return None
    value = part / whole
    return value if math.isfinite(value) else None


def _cosine(product: float, squares_a: float, squares_b: float) -> float | None:
    if not (squares_a > 0 and squares_b > 0) or not all(map(math.isfinite, (product, squares_a, squares_b))):
        return None
    return max(-1.0, min(1.0, product / math.sqrt(squares_a) / math.sqrt(squares_b)))


def json_of(sums: Any, *names: str) -> dict[str, Any]:
    """Return fields and properties by name, for JSON."""
    return {name: getattr(sums, name) for name in names}
