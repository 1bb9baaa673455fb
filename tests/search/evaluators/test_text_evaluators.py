"""Test the evaluators perplexity and multiple_choice with a bigram model in place of a library: samples, settings, messages.

tests/loaders/test_language_models.py tests them with the libraries.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from paddle_merge import ConfigError
from paddle_merge.search.contract import Scores
from paddle_merge.search.evaluators import make
from paddle_merge.search.evaluators.libraries import models
from paddle_merge.search.job import Setup
from paddle_merge.search.sections import evaluation_spec
from paddle_merge.search.spec import Data, Evaluation, read_file
from tests.search.evaluators.test_likelihood import Bigrams


@pytest.fixture(autouse=True)
def _bigrams(monkeypatch: pytest.MonkeyPatch) -> None:
    """The library is installed, and opens every candidate as the bigram model."""
    monkeypatch.setattr(models, "opened", lambda *_: Bigrams())
    monkeypatch.setattr(models, "installed", lambda: ["paddlenlp", "transformers"])


def setup(folder: Path, kind: str, samples: list[Any], settings: Any = True) -> Setup:
    (folder / "data.jsonl").write_text("\n".join(map(json.dumps, samples)) + "\n")
    return Setup(Evaluation(kind, settings, at="eval.yaml:1:1"), Data(search="data.jsonl"), folder=str(folder))


def score(folder: Path, kind: str, samples: list[Any], settings: Any = True, places: list[int] | None = None) -> Scores:
    return make(setup(folder, kind, samples, settings))(None, "search", 0, places)  # type: ignore[arg-type]


def problems(folder: Path, kind: str, samples: list[Any], settings: Any = True) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        make(setup(folder, kind, samples, settings))
    return [problem.replace(f"{folder}/", "") for problem in caught.value.problems]


# --- scores -----------------------------------------------------------------------------------------------------------


def test_perplexity_of_texts_and_completions(tmp_path: Path) -> None:
    """^ab: 0.6 0.6; of "a" and then "b", only b counts."""
    found = score(tmp_path, "perplexity", [{"text": "ab"}, {"prompt": "a", "completion": "b"}])
    assert found.metrics["nll"] == pytest.approx(-math.log(0.6))
    assert found.metrics["perplexity"] == pytest.approx(1 / 0.6)
    assert found.cost == {"tokens": 3.0}


def test_only_chosen_samples_count(tmp_path: Path) -> None:
    samples = [{"text": "ab"}, {"text": "bb"}, {"text": "aa"}]
    assert score(tmp_path, "perplexity", samples, places=[1]).metrics["nll"] == pytest.approx(-math.log(0.2))
    assert make(setup(tmp_path, "perplexity", samples)).count("search") == 3


def test_choices_by_sum_and_by_length(tmp_path: Path) -> None:
    """After "a": " b" has 0.1 * 0.7, and " bab" that times 0.5 * 0.6, but over one and three characters it is likelier."""
    sample = {"prompt": "a", "choices": ["b", "bab"], "answer": 0}
    found = score(tmp_path, "multiple_choice", [sample], {"template": "{question}"})
    assert (found.samples["acc"], found.samples["acc_norm"]) == ([1.0], [0.0])
    assert math.log(0.1 * 0.7 * 0.5 * 0.6) / 3 > math.log(0.1 * 0.7)


@pytest.mark.parametrize("answer", [1, "1", "B", "bab"])
def test_answers_are_places_letters_or_choices(tmp_path: Path, answer: Any) -> None:
    """As above; the right choice is the second one."""
    found = score(tmp_path, "multiple_choice", [{"prompt": "a", "choices": ["b", "bab"], "answer": answer}])
    assert (found.metrics["acc"], found.metrics["acc_norm"]) == (0.0, 1.0)


def test_labels_as_in_arc(tmp_path: Path) -> None:
    """There an answer "1" is the first choice."""
    sample = {"question": "a", "choices": {"text": ["b", "bab"], "label": ["1", "2"]}, "answerKey": "1"}
    settings = {"answer": "answerKey", "template": "{question}"}
    assert score(tmp_path, "multiple_choice", [sample], settings).metrics["acc"] == 1.0


def test_keys_of_samples_have_other_names(tmp_path: Path) -> None:
    sample = {"ctx": "a", "endings": ["b", "bab"], "label": "0"}
    settings = {"question": "ctx", "choices": "endings", "answer": "label", "template": "{question}"}
    assert score(tmp_path, "multiple_choice", [sample], settings).metrics["acc"] == 1.0
    assert score(tmp_path, "perplexity", [{"body": "ab"}], {"text": "body"}).cost == {"tokens": 2.0}


# --- messages ---------------------------------------------------------------------------------------------------------


def test_everything_wrong_with_a_file_of_samples_is_told_at_once(tmp_path: Path) -> None:
    samples = [{"text": "ab"}, {"txt": "ab"}, {"text": 3}, {"txt": "b"}, {"txt": ""}, {"txt": "a"}, ["ab"]]
    assert problems(tmp_path, "perplexity", samples) == [
        "data.jsonl:2: has no 'text', but 'txt' (as in line 4, 5 and 1 more)",
        "data.jsonl:3: 'text' must be text",
        "data.jsonl:7: is no JSON object",
    ]


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"answer": 2}, "'answer' must be one of 0 to 1, A to B, or a choice"),
        ({"answer": "C"}, "'answer' must be one of 0 to 1, A to B, or a choice"),
        ({"answer": True}, "'answer' must be one of 0 to 1, A to B, or a choice"),
        ({"choices": ["a"]}, "'choices' must be a list of at least two texts"),
        ({"choices": ["a", ""]}, "'choices' must be a list of at least two texts"),
        ({"choices": {"text": ["a", "b"], "label": ["A"]}}, "'choices' must have as many labels as texts"),
    ],
    ids=str,
)
def test_wrong_questions_are_told_by_line(tmp_path: Path, change: dict[str, Any], told: str) -> None:
    right = {"question": "a", "choices": ["a", "b"], "answer": 0}
    assert problems(tmp_path, "multiple_choice", [right, right | change]) == [f"data.jsonl:2: {told}"]


def test_wrong_settings_are_told_by_line_and_column_all_at_once(tmp_path: Path) -> None:
    (tmp_path / "data.jsonl").write_text('{"txt": "a"}\n')
    text = """\
evaluate:
  perplexity: {batchsize: 4, library: torch}
  max_length: 1
data: {search: data.jsonl}
"""
    (tmp_path / "eval.yaml").write_text(text)
    file = read_file(str(tmp_path / "eval.yaml"))
    evaluation, _, data, _ = evaluation_spec(file)
    with pytest.raises(ConfigError) as caught:
        make(Setup(evaluation, data, folder=file.folder))
    known = "library, device, dtype, max_length, batch_size, text, prompt, completion"
    assert [problem.replace(f"{tmp_path}/", "") for problem in caught.value.problems] == [
        "eval.yaml:3:15: max_length must be at least 2, not 1",
        f"eval.yaml:2:27: unknown key 'batchsize'; did you mean 'batch_size'?; perplexity has {known}",
        "eval.yaml:2:39: library must be one of paddleformers, paddlenlp, transformers, not 'torch'",
        "data.jsonl:1: has no 'text', but 'txt'",
    ]


def test_other_messages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nothing = Setup(Evaluation("perplexity", True, at="eval.yaml:1:1"), Data(), folder=str(tmp_path))
    with pytest.raises(ConfigError, match=r"eval\.yaml:1:1: perplexity needs a file of samples"):
        make(nothing)
    assert problems(tmp_path, "perplexity", [{"text": "a"}], "data.jsonl") == [
        "eval.yaml:1:1: perplexity takes settings, such as {batch_size: 8}, or true; the samples are in the files that data"
        " names"
    ]
    assert problems(tmp_path, "multiple_choice", [], {"template": "Q:"}) == [
        "eval.yaml:1:1: template must contain {question}",
        "data.jsonl: has no samples",
    ]
    monkeypatch.setattr(models, "installed", lambda: [])
    assert problems(tmp_path, "perplexity", [{"text": "a"}], {"library": "paddlenlp"}) == [
        "eval.yaml:1:1: needs paddlenlp: pip install paddlenlp paddlepaddle"
    ]
    assert problems(tmp_path, "perplexity", [{"text": "a"}], True) == [
        "eval.yaml:1:1: needs paddleformers: pip install paddleformers paddlepaddle; paddlenlp or transformers will do too"
    ]
