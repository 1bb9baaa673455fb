"""Test the dataclasses of which there are tens of thousands."""

from __future__ import annotations

import copy
import dataclasses
import pickle
from functools import cached_property

from paddle_merge.records import record


@record(frozen=True)
class Point:
    x: int
    y: int = 2
    hidden: int = dataclasses.field(default=0, compare=False, repr=False)

    @cached_property
    def sum(self) -> int:
        return self.x + self.y


@record(frozen=True)
class Named(Point):
    name: str = ""


def test_they_are_as_frozen_dataclasses() -> None:
    assert repr(Named(1, name="a")) == "Named(x=1, y=2, name='a')"
    assert Point(1) == Point(1, hidden=3) != Point(2)
    assert Named(1) != Point(1)
    assert {Point(1): "one"}[Point(1, hidden=3)] == "one"
    assert dataclasses.replace(Named(1, name="a"), x=5) == Named(5, name="a")


def test_copies_have_all_fields_and_nothing_else() -> None:
    point = Named(1, 5, 7, "a")
    assert point.sum == 6
    for other in (pickle.loads(pickle.dumps(point)), copy.copy(point), copy.deepcopy(point)):
        assert type(other) is Named
        assert vars(other) == {"x": 1, "y": 5, "hidden": 7, "name": "a"}


@record(frozen=True)
class Empty:
    pass


@record(frozen=True)
class Single:
    value: int

    def __repr__(self) -> str:
        return "its own"


@record(frozen=True, eq=False)
class Itself:
    value: int


def test_records_of_no_field_and_of_one() -> None:
    assert (Empty(), repr(Empty()), hash(Empty())) == (Empty(), "Empty()", hash(Empty()))
    assert Single(1) == pickle.loads(pickle.dumps(Single(1))) != Single(2)
    assert Single(1) != Empty()
    assert {Single(1), Single(1)} == {Single(1)}
    assert repr(Single(1)) == "its own"


def test_records_that_are_compared_by_identity() -> None:
    one = Itself(1)
    assert one == one != Itself(1)
    assert hash(one) == object.__hash__(one)
