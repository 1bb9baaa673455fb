"""Test the tests: their places in the folders, and the choice of cases for the default run."""

from __future__ import annotations

import itertools
from pathlib import Path

from tests.support.sweeps import diagonal

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
