"""Test the evaluator lm_eval with lm-eval itself, on tasks in a local folder: our model class, with PaddleNLP and with
transformers, gives what lm-eval's class for transformers gives.

It runs where PADDLE_MERGE_TRANSFORMERS_PYTHON and PADDLE_MERGE_PADDLENLP_PYTHON have lm-eval too; test_loaders.py says more
of these variables.
"""

from __future__ import annotations

import json
import os
import subprocess
from typing import Any

import pytest

from tests.loaders.test_language_models import write_model
from tests.support.libraries import SCRIPTS, VARIABLES

LIBRARIES = ("transformers", "paddlenlp")


def has_lm_eval(library: str) -> bool:
    python = os.environ.get(VARIABLES[library])
    code = "import sys, importlib.util; sys.exit(importlib.util.find_spec('lm_eval') is None)"
    return bool(python) and subprocess.run([str(python), "-c", code]).returncode == 0


WITHOUT = [library for library in LIBRARIES if not has_lm_eval(library)]
pytestmark = [
    pytest.mark.loaders,
    pytest.mark.skipif(bool(WITHOUT), reason=f"no interpreter with lm-eval is named for {' and '.join(WITHOUT)}"),
]
QUESTIONS = [
    {"q": "two and two", "c": ["four", "mat"], "a": 0},
    {"q": "the cat sat on the", "c": ["mat", "dog and cat", "two"], "a": 1},
    {"q": "the dog", "c": ["sat on the mat", "is four"], "a": 1},
]
TEXTS = [{"text": "the cat sat"}, {"text": "the cat sat on the mat and the dog sat on the cat and the mat sat on the dog"}]
TASK = """\
task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{validation: {data}}}}}
validation_split: validation
metadata: {{version: 1}}
"""
CHOICE = """\
output_type: multiple_choice
doc_to_text: "{{q}}"
doc_to_choice: "{{c}}"
doc_to_target: a
metric_list:
  - {metric: acc, aggregation: mean, higher_is_better: true}
  - {metric: acc_norm, aggregation: mean, higher_is_better: true}
"""
TEXT = """\
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{text}}"
metric_list: [{metric: word_perplexity}]
"""
GENERATED = """\
output_type: generate_until
doc_to_text: "{{q}}"
doc_to_target: "{{c[0]}}"
generation_kwargs: {until: ["xx"], max_gen_toks: 5, SAMPLED}
metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]
"""


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """Library -> what the script wrote."""
    folder = tmp_path_factory.mktemp("lm_eval")
    write_model(folder)
    (folder / "qa.jsonl").write_text("\n".join(map(json.dumps, QUESTIONS)) + "\n")
    (folder / "text.jsonl").write_text("\n".join(map(json.dumps, TEXTS)) + "\n")
    (folder / "copy.jsonl").write_text("\n".join(map(json.dumps, QUESTIONS[:2])) + "\n")
    (folder / "tasks").mkdir()
    for name, data, rest in (
        ("my_qa", "qa", CHOICE),
        ("my_copy", "copy", CHOICE),
        ("my_text", "text", TEXT),
        ("my_gen", "qa", GENERATED.replace("SAMPLED", "do_sample: false")),
        ("my_sampled", "qa", GENERATED.replace("SAMPLED", "do_sample: true, temperature: 0.5")),
    ):
        (folder / "tasks" / f"{name}.yaml").write_text(TASK.format(name=name, data=folder / f"{data}.jsonl") + rest)
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    environment["HF_HOME"] = str(folder / "cache")
    found = {}
    for library in LIBRARIES:
        command = [os.environ[VARIABLES[library]], str(SCRIPTS / "run_lm_eval.py"), str(folder)]
        done = subprocess.run(command, capture_output=True, text=True, env=environment)
        assert done.returncode == 0, done.stderr[-3000:]
        found[library] = json.loads((folder / "lm_eval.json").read_text())
        assert found[library]["library"] == library
    return found


@pytest.fixture(scope="module")
def found(results: dict[str, dict[str, Any]]) -> dict[str, Any]:
    return results["transformers"]


@pytest.mark.parametrize("library", LIBRARIES)
def test_our_class_gives_what_theirs_gives(results: dict[str, dict[str, Any]], library: str) -> None:
    for part in ("all", "again", "chosen", "shots"):
        ours, theirs = results[library]["ours"][part], results["transformers"]["theirs"][part]
        assert ours["metrics"] == pytest.approx(theirs["metrics"], rel=1e-5), part
        assert (ours["samples"], ours["cost"]) == (theirs["samples"], theirs["cost"]), part


def test_every_sample_and_the_mean_over_tasks(found: dict[str, Any]) -> None:
    every = found["theirs"]["all"]
    assert found["theirs"]["count"] == len(QUESTIONS) * 2 + len(TEXTS)
    assert every["cost"] == {"samples": 8.0}
    assert every["metrics"]["acc"] == every["metrics"]["my_qa/acc"] == sum(every["samples"]["my_qa/acc"]) / 3
    assert 0 < every["metrics"]["acc"] < 1  # else the comparison would show little
    assert every["metrics"]["my_text/word_perplexity"] > 1
    assert "my_text/word_perplexity" not in every["samples"]


def test_a_second_evaluation_gives_the_same(found: dict[str, Any]) -> None:
    assert found["theirs"]["again"] == found["theirs"]["all"]
    assert found["ours"]["again"] == found["ours"]["all"]


def test_only_chosen_samples_are_scored(found: dict[str, Any]) -> None:
    """1 is the second question, and 5 the first one that is answered in words: three questions and two texts come before."""
    every, chosen = found["theirs"]["all"], found["theirs"]["chosen"]
    assert chosen["samples"]["my_qa/acc"] == every["samples"]["my_qa/acc"][1:2]
    assert len(chosen["samples"]["my_gen/exact_match"]) == 1
    assert "my_text/word_perplexity" not in chosen["metrics"]
    assert chosen["cost"] == {"samples": 2.0}


def test_the_class_is_registered(found: dict[str, Any]) -> None:
    shown = found["theirs"]["all"]["metrics"]
    assert found["by name"] == {"acc,none": shown["my_qa/acc"], "acc_norm,none": shown["my_qa/acc_norm"]}


def test_answers_that_a_task_samples(found: dict[str, Any]) -> None:
    first, second = found["theirs"]["sampled"]
    assert first == second
    assert "do_sample" in found["ours"]["sampled"]


def test_messages(found: dict[str, Any]) -> None:
    told = found["problems"]
    assert told["unknown"] == ["e.yaml:1:2: lm-eval has no task 'my_copi'; did you mean 'my_copy'?"]
    assert told["folder"][0].endswith("nowhere: no such folder")
    assert told["none"] == ["e.yaml:1:2: lm_eval needs the name of a task: lm_eval: [my_task]"]
    assert "my_gen is in search and report" in told["same"][0]
    assert "the tasks of search and report share 2 samples" in told["content"][0]
    assert told["allowed"] == found["cautions"] == []
    assert "my_qa is a public benchmark" in found["caution"][0]
