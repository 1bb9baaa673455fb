"""Test the evaluator that runs a shell command."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from paddle_merge import ConfigError
from paddle_merge.search.contract import EvaluationError, Scores
from paddle_merge.search.evaluators.command import make
from paddle_merge.search.job import Result, Setup
from paddle_merge.search.spec import Data, Evaluation


class Stored:
    title = "m"
    config: Mapping[str, Any] = {}

    def __init__(self, path: str):
        self._path = path

    def folder(self) -> str:
        return self._path


def evaluated(tmp_path: Path, command: str, samples: tuple[int, ...] | None = None) -> Scores:
    setup = Setup(Evaluation("command", command, at="x.yaml:3:5"), Data("a b.jsonl"), folder=str(tmp_path))
    return make(setup)(Stored("/models/it's one"), "search", 7, samples)  # type: ignore[arg-type]


def test_words_in_what_is_filled_in_stay(tmp_path: Path) -> None:
    setup = Setup(Evaluation("command", "echo {model} > said; cat one.json"), Data(), folder=str(tmp_path))
    (tmp_path / "one.json").write_text('{"a": 1}')
    make(setup)(Stored("/models/{seed}"), "search", 7, None)  # type: ignore[arg-type]
    assert (tmp_path / "said").read_text() == "/models/{seed}\n"


@pytest.mark.parametrize(
    "word", ["{model}/x", "'{model}'/x", '"{model}/x"', '"$(echo {model})/x"', '"`echo "{model}"`/x"', "$(echo '{model}/x')"]
)
def test_quotes_around_a_word_do_no_harm(tmp_path: Path, word: str) -> None:
    evaluated(tmp_path, f"echo 'a\\'\"\\\"(\" > other; (echo {word} > said); echo '{{}}'")
    assert " ".join((tmp_path / "said").read_text().split()) == "/models/it's one/x"


@pytest.mark.parametrize("path", ["/models/one", "/models/$1 数学"])
def test_quotes_of_a_program_in_the_command_stay(tmp_path: Path, path: str) -> None:
    setup = Setup(
        Evaluation("command", """python3 -c "print('{\\"a\\": %d}' % len('{model}'))" """), Data(), folder=str(tmp_path)
    )
    assert make(setup)(Stored(path), "search", 7, None).metrics == {"a": len(path)}  # type: ignore[arg-type]


def test_it_gets_what_it_asks_for(tmp_path: Path) -> None:
    """Quoted, in the file's folder; the result file counts."""
    (tmp_path / "a b.jsonl").write_text("{}\n\n{}\n")
    script = (
        "import json, sys; model, split, data, seed, samples, result = sys.argv[1:]; "
        "json.dump({'metrics': {'a': float(seed)}, 'samples': {'a': list(map(int, open(samples)))}, 'cost': {'x': 2}}, "
        "open(result, 'w')); print(model, split, data, file=open('said', 'w'))"
    )
    (tmp_path / "score.py").write_text(script)
    command = "python3 score.py {model} {split} {data} {seed} {samples} {result}"
    scores = evaluated(tmp_path, command)
    assert scores == Scores({"a": 7.0}, {"a": [0, 1]}, cost={"x": 2})
    assert (tmp_path / "said").read_text() == f"/models/it's one search {tmp_path}/a b.jsonl\n"
    assert evaluated(tmp_path, command, (1,)).samples == {"a": [1]}


def test_the_last_line_counts_without_a_result_file(tmp_path: Path) -> None:
    line = json.dumps({"accuracy": 0.71, "name": "x"})
    scores = evaluated(tmp_path, f"echo {{model}}; echo '{line}'")
    found = Result.of(1, scores, 0.0, ["accuracy"])
    assert found.metrics == {"accuracy": 0.71}
    assert Result.of(1, scores, 0.0, ["name"]).error == "name is 'x', which is no number"


@pytest.mark.parametrize(
    ("command", "said"),
    [
        ("echo no luck >&2; exit 3; {model}", "the command ended with exit status 3: no luck"),
        (
            "printf 'a + b\\n~~^~~\\nKeyError: 1' >&2; exit 1; {model}",
            "the command ended with exit status 1: a + b KeyError: 1",
        ),
        ("exit 1; {model}", "the command ended with exit status 1: it printed nothing"),
        ("echo hello; : {model}", "the last line that the command printed is no JSON: 'hello'"),
        ("echo 3; : {model}", 'the last line that the command printed must be a JSON object, such as {"accuracy": 0.71}'),
        ("echo x > {result}; : {model}", "the result file is no JSON"),
    ],
)
def test_failures(tmp_path: Path, command: str, said: str) -> None:
    with pytest.raises(EvaluationError) as error:
        evaluated(tmp_path, command)
    assert str(error.value).startswith(said)


@pytest.mark.parametrize(
    ("command", "said"),
    [
        ("score {modle}", "x.yaml:3:5: unknown {modle} in the command; did you mean 'model'?; there are {model}, {split}"),
        ("score", "x.yaml:3:5: the command has no {model}, which stands for the folder of the candidate"),
    ],
)
def test_mistakes(tmp_path: Path, command: str, said: str) -> None:
    with pytest.raises(ConfigError) as error:
        evaluated(tmp_path, command)
    assert error.value.problems[0].startswith(said)
