"""Test the tests: their places in the folders, and the choice of cases for the default run."""

from __future__ import annotations

import itertools
from pathlib import Path

from tests.support.sweeps import diagonal, in_pairs

TESTS = Path(__file__).parent
OURS = ("faults", "loaders", "support")  # what tests the whole program, and what the tests share


def test_folders_mirror_the_packages() -> None:
    package = TESTS.parent / "paddle_merge"
    folders = {path.parent.relative_to(TESTS) for path in TESTS.rglob("test_*.py")}
    unknown = [str(folder) for folder in folders if folder.parts[:1] not in {(name,) for name in OURS}]
    assert [name for name in unknown if not (package / name / "__init__.py").exists()] == []
    layers = {path.parent.name for path in package.glob("*/__init__.py")}
    assert layers - {folder.parts[0] for folder in folders if folder.parts} == set()


def test_every_file_is_one_of_tests_or_supports_them() -> None:
    others = {
        str(path.relative_to(TESTS))
        for path in TESTS.rglob("*.py")
        if not path.name.startswith("test_") and path.relative_to(TESTS).parts[0] != "support"
    }
    helpers = {name for name in others if name.startswith(("loaders/scripts/", "faults/injection/"))}
    assert {Path(name).name for name in others - helpers} == {"__init__.py", "conftest.py"}


def test_a_diagonal_has_every_value_of_every_parameter() -> None:
    cases = [
        dict(zip(("method", "dtype", "backend"), values, strict=True))
        for values in itertools.product(range(7), range(4), range(3))
    ]
    taken = [cases[index] for index in diagonal(cases)]
    assert len(taken) == 7
    for name, count in (("method", 7), ("dtype", 4), ("backend", 3)):
        assert {case[name] for case in taken} == set(range(count))
    assert len({(case["dtype"], case["backend"]) for case in taken}) > 4  # they meet each other in different ways


def test_of_one_list_of_cases_all_are_taken() -> None:
    assert diagonal([{"fields": number} for number in range(5)]) == [0, 1, 2, 3, 4]
    assert diagonal([]) == []


def test_in_pairs_any_two_values_meet() -> None:
    names = ("method", "dtype", "backend", "large")
    cases = [dict(zip(names, values, strict=True)) for values in itertools.product(range(7), range(5), range(3), range(2))]
    first = diagonal(cases)
    taken = in_pairs(cases, first)
    assert set(first) <= set(taken)
    assert 35 <= len(taken) < 45  # 7 * 5 of 210 at least
    for one, other in itertools.combinations(names, 2):
        assert {(cases[index][one], cases[index][other]) for index in taken} == {(case[one], case[other]) for case in cases}


def test_of_one_or_two_parameters_all_cases_are_pairs() -> None:
    assert in_pairs([{"method": method, "dtype": dtype} for method in range(3) for dtype in range(2)]) == list(range(6))
    assert in_pairs([{"fields": number} for number in range(5)], range(2)) == list(range(5))
    assert in_pairs([]) == []
