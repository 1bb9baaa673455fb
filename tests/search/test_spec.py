"""Test what a search file's sections say, and how mistakes in them are reported: by line and column, all together."""

from __future__ import annotations

from pathlib import Path

import pytest

from paddle_merge import ConfigError
from paddle_merge.search.sections import evaluation_spec, search_spec
from paddle_merge.search.spec import Race, read_file

TEXT = """merge_method: linear
models: [{model: a}]
search:
  evaluate: {command: "score {model}", time_limit: 60, shots: 5}
  objectives: {accuracy: maximize, length: minimize}
  data: {search: a.jsonl, report: b.jsonl}
  optimizer: nsga2
  evaluations: 200
  race: {first: 20}
  seed: 3
  workers: 2
"""


def written(tmp_path: Path, text: str) -> str:
    (tmp_path / "x.yaml").write_text(text)
    return str(tmp_path / "x.yaml")


def test_everything(tmp_path: Path) -> None:
    spec = search_spec(read_file(written(tmp_path, TEXT)))
    assert (spec.evaluate.kind, spec.evaluate.what, spec.evaluate.settings) == ("command", "score {model}", {"shots": 5})
    assert spec.evaluate.time_limit == 60
    assert spec.objectives == {"accuracy": "maximize", "length": "minimize"}
    assert (spec.data.search, spec.data.report, spec.data.shared) == ("a.jsonl", "b.jsonl", False)
    assert (spec.optimizer, spec.evaluations, spec.race, spec.seed, spec.workers) == ("nsga2", 200, Race(20, 3), 3, 2)


def test_a_file_that_only_evaluates(tmp_path: Path) -> None:
    text = "evaluate: {python: 'm:f'}\ndata: {report: r.jsonl}\nseed: 7\n"
    evaluation, objectives, data, seed = evaluation_spec(read_file(written(tmp_path, text)))
    assert (evaluation.kind, objectives, data.search, data.report, seed) == ("python", {}, None, "r.jsonl", 7)


def test_the_evaluator_of_a_search(tmp_path: Path) -> None:
    evaluation, objectives, _, seed = evaluation_spec(read_file(written(tmp_path, TEXT)))
    assert (evaluation.kind, list(objectives), seed) == ("command", ["accuracy", "length"], 3)


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("nsga2", "nsga3", "7:14: unknown optimizer 'nsga3'; did you mean 'nsga2'?; there are cma, "),
        ("200", "0", "8:16: evaluations must be a whole number of at least 1, not 0"),
        ("200", "many", "8:16: evaluations must be a whole number of at least 1, not 'many'"),
        ("maximize", "max", "5:26: accuracy must be maximize or minimize, not 'max'"),
        ("first: 20", "eta: 3", "9:9: race needs first, the number of samples that all candidates are scored on"),
        ("command:", "comand:", "4:13: evaluate must have one of command, python, perplexity, multiple_choice, lm_eval"),
        ("command:", "python: m, command:", "4:13: evaluate must have one of command, python, "),
        ("  evaluate", "  evalute", "4:3: unknown key 'evalute'; did you mean 'evaluate'?"),
        ("  objectives: {accuracy: maximize, length: minimize}\n", "", "4:3: objectives, which metric to maximize or"),
        ("time_limit: 60", "time_limit: soon", "4:52: time_limit must be a number of at least 0.001, not 'soon'"),
        ("seed: 3", "frobnicate: 3", "10:3: 'frobnicate' has no effect in search, which has evaluate, "),
        ("seed: 3", "tensor_type: tf", "10:16: tensor_type must be np or pd, not 'tf'"),
        ("seed: 3", "device: gpu", "10:11: device 'gpu' needs tensor_type: pd; np computes on the CPU"),
        ("seed: 3", "tensor_type: pd\n  device: tpu", "11:11: device: 'tpu' must be one of cpu, gpu, "),
        ("search:\n", "evaluate: {python: 'm:f'}\nsearch:\n", "3:11: evaluate has no effect beside the section search"),
        ("search:\n", "sweep:\n", ": has no section 'search'; this one has 'sweep': python -m paddle_merge sweep takes it"),
    ],
)  # fmt: skip
def test_mistakes(tmp_path: Path, old: str, new: str, said: str) -> None:
    path = written(tmp_path, TEXT.replace(old, new, 1))
    with pytest.raises(ConfigError) as error:
        search_spec(read_file(path))
    where = path if said.startswith(":") else f"{path}:"
    assert any(problem.startswith(f"{where}{said}") for problem in error.value.problems), error.value.problems


def test_all_mistakes_at_once(tmp_path: Path) -> None:
    path = written(tmp_path, TEXT.replace("nsga2", "x").replace("200", "-1").replace("seed: 3", "seed: a"))
    with pytest.raises(ConfigError) as error:
        search_spec(read_file(path))
    assert len(error.value.problems) == 3
