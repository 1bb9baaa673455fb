"""Test the evaluator that calls a Python function."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from paddle_merge import ConfigError
from paddle_merge.search.contract import EvaluationError, Scores
from paddle_merge.search.evaluators.python import Function, make
from paddle_merge.search.job import Setup
from paddle_merge.search.spec import Data, Evaluation


@pytest.fixture(autouse=True)
def _as_before(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield
    sys.modules.pop("scoring_here", None)


def made(folder: Path, text: str, what: str = "scoring_here:f", **settings: Any) -> Function:
    folder.mkdir(exist_ok=True)
    (folder / "scoring_here.py").write_text(text)
    return make(Setup(Evaluation("python", what, settings, at="x.yaml:3:5"), Data("a.jsonl"), folder=str(folder)))


def test_a_function_beside_the_file(tmp_path: Path) -> None:
    """It gets the path of the samples, if it takes it."""
    (tmp_path / "a.jsonl").write_text("{}\n{}\n")
    function = made(tmp_path, "def f(candidate, split, seed, samples, data): return {'seed': seed, 'data': len(data)}")
    assert function(None, "search", 7, None) == Scores({"seed": 7, "data": len(str(tmp_path / "a.jsonl"))})  # type: ignore[arg-type]
    assert function.count("search") == 2


def test_two_searches_with_modules_of_one_name(tmp_path: Path) -> None:
    """In one process, each calls its own."""
    text = "def f(candidate, split, seed, samples): return {{'which': {}}}"
    functions = [made(tmp_path / name, text.format(number)) for number, name in enumerate("ab")]
    assert [one(None, "search", 0, None).metrics["which"] for one in functions] == [0, 1]  # type: ignore[arg-type]


def test_a_class_is_made_once(tmp_path: Path) -> None:
    text = """
class Score:
    def __init__(self, shots=0):
        self.shots, self.calls = shots, 0
    def count(self, split):
        return 5
    def __call__(self, candidate, split, seed, samples):
        self.calls += 1
        return {"shots": self.shots, "calls": self.calls}
"""
    function = made(tmp_path, text, "scoring_here:Score", shots=3)
    function(None, "search", 0, None)  # type: ignore[arg-type]
    assert function(None, "search", 0, None).metrics == {"shots": 3, "calls": 2}  # type: ignore[arg-type]
    assert function.count("report") == 5


@pytest.mark.parametrize(
    ("what", "said"),
    [
        ("scoring_here", "python must be package.module:function, not 'scoring_here'"),
        ("nowhere_at_all:f", "'nowhere_at_all:f' can't be imported (ModuleNotFoundError: No module named 'nowhere_at_all')"),
        ("scoring_here:g", "'scoring_here:g' can't be imported (AttributeError: "),
        ("scoring_here:x", "'scoring_here:x' is no function"),
    ],
)
def test_mistakes(tmp_path: Path, what: str, said: str) -> None:
    with pytest.raises(ConfigError) as error:
        made(tmp_path, "x = 3", what)
    assert error.value.problems[0].startswith(f"x.yaml:3:5: {said}")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("def f(tensors): pass", r"f\(candidate, split, seed, samples\) \(too many positional arguments\)"),
        ("def f(candidate, split, seed, samples, data, more): pass", r".* \(missing a required argument: 'more'\)"),
        ("class f:\n    def __call__(self): pass", r".* \(too many positional arguments\)"),
        ("def f(candidate, split, seed, samples, data, /): pass", r"f\(.*, samples, data=data\) \('data' .*"),
    ],
)
def test_a_function_that_takes_something_else_is_refused_before_any_merging(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(ConfigError, match=rf"^x.yaml:3:5: 'scoring_here:f' is called as {said}$"):
        made(tmp_path, text)


def test_a_decorator_may_change_what_is_taken(tmp_path: Path) -> None:
    """What is called is the outer function; functools.wraps shows what the inner one takes, such as data."""
    text = """
import functools
def inner(folder): return {"inner": 1}
@functools.wraps(inner)
def f(candidate, split, seed, samples): return inner("folder")
def with_data(candidate, split, seed, samples, data): return {"data": len(data)}
@functools.wraps(with_data)
def through(*args, **others): return with_data(*args, **others)
"""
    assert made(tmp_path, text)(None, "search", 0, None).metrics == {"inner": 1}  # type: ignore[arg-type]
    through = made(tmp_path, text, "scoring_here:through")
    assert through(None, "search", 0, None).metrics == {"data": len(str(tmp_path / "a.jsonl"))}  # type: ignore[arg-type]


def test_a_function_without_a_signature(tmp_path: Path) -> None:
    """Some that are written in C have none; they are called as all are."""
    function = made(tmp_path, "f = max")
    with pytest.raises(TypeError, match="not supported between"):
        function(None, "search", 0, None)  # type: ignore[arg-type]


def test_a_module_that_exits_is_refused(tmp_path: Path) -> None:
    """A script without `if __name__ == "__main__"` would end the search with its own exit status."""
    with pytest.raises(
        ConfigError, match=r"x.yaml:3:5: 'scoring_here:f' can't be imported \(SystemExit: 0, at scoring_here\.py:3\)"
    ):
        made(tmp_path, "import sys\ndef f(): pass\nsys.exit(0)")


@pytest.mark.parametrize(("body", "said"), [("1 / 0", "ZeroDivisionError: division by zero"), ("'many'", "ValueError: ")])
def test_a_count_that_fails_is_refused(tmp_path: Path, body: str, said: str) -> None:
    function = made(tmp_path, f"def f(candidate, split, seed, samples): pass\nf.count = lambda split: {body}")
    with pytest.raises(ConfigError) as error:
        function.count("search")
    assert error.value.problems[0].startswith(f"x.yaml:3:5: count('search') of the function failed ({said}")


def test_what_it_returns_must_be_a_mapping(tmp_path: Path) -> None:
    function = made(tmp_path, "def f(candidate, split, seed, samples): return 3")
    with pytest.raises(EvaluationError, match="must return a mapping of metrics to values, not a int"):
        function(None, "search", 0, None)  # type: ignore[arg-type]
