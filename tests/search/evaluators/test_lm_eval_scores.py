"""Test what becomes of lm-eval's results; tests/loaders/test_lm_eval.py runs lm-eval itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from paddle_merge import ConfigError
from paddle_merge.search.contract import EvaluationError
from paddle_merge.search.evaluators import lm_eval, make
from paddle_merge.search.evaluators.libraries import models
from paddle_merge.search.job import Setup
from paddle_merge.search.spec import Data, Evaluation

RESULTS: dict[str, dict[str, Any]] = {
    "a": {"alias": "a", "acc,none": 0.5, "acc_stderr,none": "N/A", "f1,none": 0.7},
    "b": {"acc,none": 1.0, "exact_match,strict": 0.0},
}


def logged(kept: str, **values: list[Any]) -> list[dict[str, Any]]:
    """What lm-eval logs of samples with these values."""
    names = list(values)
    rows = zip(*values.values(), strict=True)
    return [{"doc_id": place, "filter": kept, **dict(zip(names, row, strict=True))} for place, row in enumerate(rows)]


LOGGED = {
    "a": logged("none", acc=[1.0, 0.0], f1=[(1, 0), (0, 1)]),
    "b": [*logged("none", acc=[1.0, 1.0, 1.0, 1.0]), *logged("strict", exact_match=[0, 0, 0, 0])],
}


def test_one_task() -> None:
    """f1 is not the mean of what is logged, so it has no values per sample."""
    found = lm_eval.scores(RESULTS, LOGGED, ["a"], several=False)
    assert found.metrics == {"acc": 0.5, "f1": 0.7}
    assert found.samples == {"acc": [1.0, 0.0]}
    assert found.cost == {"samples": 2.0}


def test_several_tasks_and_their_mean_over_samples() -> None:
    """acc is right in 1 of 2 and 4 of 4 samples, so in 5 of 6."""
    found = lm_eval.scores(RESULTS, LOGGED, ["a", "b"], several=True)
    by_task = {"a/acc": 0.5, "a/f1": 0.7, "b/acc": 1.0, "b/exact_match/strict": 0.0}
    assert found.metrics == {**by_task, "acc": 5 / 6, "exact_match/strict": 0.0}
    assert found.samples["acc"] == [1.0, 0.0, 1.0, 1.0, 1.0, 1.0]
    assert found.cost == {"samples": 6.0}


def test_a_metric_has_the_same_name_where_only_one_of_several_tasks_has_samples() -> None:
    found = lm_eval.scores(RESULTS, LOGGED, ["a"], several=True)
    assert (found.metrics["a/acc"], found.metrics["acc"]) == (0.5, 0.5)


def test_a_metric_that_is_no_mean_in_one_task_has_no_mean() -> None:
    results = {"a": {"acc,none": 0.5}, "b": {"acc,none": 0.9}}
    assert "acc" not in lm_eval.scores(results, LOGGED, ["a", "b"], several=True).metrics


def test_no_metric_is_an_error() -> None:
    with pytest.raises(EvaluationError, match="no metric"):
        lm_eval.scores({"a": {"alias": "a"}}, {}, ["a"], several=False)


def test_lm_eval_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(models, "installed", lambda: [])
    monkeypatch.setattr(lm_eval, "find_spec", lambda _: None)
    evaluation = Evaluation("lm_eval", {"tasks": ["a"], "num_fewshots": 1}, at="e.yaml:1:1")
    with pytest.raises(ConfigError) as caught:
        make(Setup(evaluation, Data(), folder=str(tmp_path)))
    assert [problem.partition("; ")[0] for problem in caught.value.problems] == [
        "e.yaml:1:1: unknown key 'num_fewshots'",
        "e.yaml:1:1: needs paddleformers: pip install paddleformers paddlepaddle",
        "e.yaml:1:1: needs lm-eval: pip install 'paddle_merge[lm_eval]'",
    ]
