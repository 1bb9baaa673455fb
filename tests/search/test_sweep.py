"""Whole sweeps over small models: what is scored, picked and written, and what a stopped one does.

Every element of pre is 0 and of aligned is 1, so the first element of a merge is toward_aligned, a. Scores are made of it:
reward 10 (2 a - a^2), reading 50 - 20 a^2; so the reward that is kept is 2 a - a^2, and what is bought back is 1 - a^2.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from paddle_merge.errors import ConfigError, MergeError
from paddle_merge.recipe.config import MergeConfig
from paddle_merge.run.merge import merge
from paddle_merge.search.asked import Asked
from paddle_merge.search.contract import Candidate, Scores
from paddle_merge.search.sweep import sweep
from paddle_merge.search.sweep_output import SweepOutcome, sweep_report
from tests.support.checkpoints import read, write
from tests.support.names import not_utf8

RULE = "maximize reading subject to reward >= 0.9 of aligned"


class Evaluator:
    """Scores a merge by its first element, and counts what it scored. broken: the value at which it fails."""

    metrics = None

    def __init__(self, broken: float | None = None):
        self.scored: list[tuple[str, str]] = []
        self._broken = broken

    def count(self, split: str) -> int | None:
        return None

    def __call__(self, candidate: Candidate, split: str, seed: int, samples: Sequence[int] | None) -> Scores:
        a = round(float(candidate.state_dict()["layers.0.w.weight"][0, 0]), 6)
        self.scored.append((candidate.title, split))
        if a == self._broken:
            raise ValueError("it has no answer")
        return Scores({"reward": 10 * (2 * a - a * a), "reading": 50 - 20 * a * a + (split == "report")})


def model(folder: Path, value: float, shape: tuple[int, int] = (2, 3)) -> None:
    tensors = {f"layers.{layer}.w.weight": np.full(shape, value) for layer in range(3)}
    write(folder, tensors | {"embed.weight": np.full((4, 2), value)}, format="pt")


def section(folder: Path, more: str = "") -> Path:
    model(folder / "pre", 0.0)
    model(folder / "aligned", 1.0)
    file = folder / "sweep.yaml"
    file.write_text(
        f"sweep:\n  pre: {folder}/pre\n  aligned: {folder}/aligned\n"
        '  evaluate: {command: "score {model}"}\n  objectives: {reward: maximize, reading: maximize}\n' + more
    )
    return file


def run(file: Path, evaluator: Evaluator | None, out: str = "out", **asked: Any) -> SweepOutcome:
    output = str(file.parent / out)
    return sweep(Asked(str(file), output, evaluator=evaluator, **asked), progress=False)


def comparable(outcome: SweepOutcome) -> dict[str, Any]:
    """Return the report without what differs between two equal sweeps: seconds."""

    def without(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: without(one) for key, one in value.items() if key != "seconds"}
        return [without(one) for one in value] if isinstance(value, list) else value

    return without(sweep_report(outcome))


def test_the_point_that_a_rule_picks_is_written_and_can_be_merged_again(tmp_path: Path) -> None:
    file = section(tmp_path, f"  pick: {RULE}\n")
    outcome = run(file, Evaluator())
    # 2 a - a^2 is 0.91 at 0.7, and 0.84 at 0.6
    assert outcome.picked is not None
    assert outcome.picked.title == "linear 0.7"
    report = json.loads((tmp_path / "out/report.json").read_text())
    assert [one["title"] for one in report["points"]] == [f"linear {a / 10:g}" for a in range(11)]
    half = report["points"][5]
    assert half["values"] == {"method": "linear", "toward_aligned": 0.5}
    assert half["search"]["metrics"] == {"reward": 7.5, "reading": 45.0}
    assert (half["kept"], half["bought_back"]) == (0.75, {"reading": 0.75})
    assert report["front"] == [f"linear {a / 10:g}" for a in range(10, -1, -1)]
    assert report["best"]["title"] == "linear 0.7"
    assert report["pick"] == RULE
    assert report["sides"] == (
        f"toward_aligned: 0 is {tmp_path}/pre, the model before alignment, and 1 is {tmp_path}/aligned, the aligned model"
    )
    # the staircase below (2 a - a^2, 1 - a^2): the sum over a of the step in kept, (2 a - a^2)' s difference, times 1 - a^2
    kept = [2 * a / 10 - a * a / 100 for a in range(11)]
    want = sum((kept[a] - kept[a - 1]) * (1 - a * a / 100) for a in range(1, 11))
    assert report["hypervolume"]["linear"] == pytest.approx(want)
    assert (tmp_path / "out/sweep.png").read_bytes().startswith(b"\x89PNG")
    assert np.allclose(read(tmp_path / "out")["embed.weight"], 0.7)
    card = (tmp_path / "out/README.md").read_text()
    assert "| pre | 0 | 50 |\n| aligned | 10 | 30 |\n| the result (linear 0.7) | 9.1 | 40.2 |\n" in card
    assert "The result was chosen by its scores on these samples" in card
    assert str(tmp_path) not in card
    (entry,) = yaml.safe_load(card.split("---\n")[1])["model-index"][0]["results"]
    assert entry["dataset"] == {"name": "command", "type": "command-samples", "split": "search"}
    assert [(one["type"], one["value"]) for one in entry["metrics"]] == [("reading", 40.2), ("reward", 9.1)]
    merge(MergeConfig(recipe_yaml=str(tmp_path / "out/best.yaml"), output_path=str(tmp_path / "again")), progress=False)
    assert (tmp_path / "again/model.safetensors").read_bytes() == (tmp_path / "out/model.safetensors").read_bytes()


def test_without_a_rule_the_point_nearest_to_both_best_values_is_picked(tmp_path: Path) -> None:
    # ((1 - a)^2)^2 + (a^2)^2 is least at 0.5
    outcome = run(section(tmp_path), Evaluator())
    assert outcome.picked is not None
    assert outcome.picked.title == "linear 0.5"


def test_folders_that_are_called_like_the_other_side(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    file = section(tmp_path, "  toward_aligned: [0.5]\n")
    (tmp_path / "pre").rename("other")
    (tmp_path / "aligned").rename("pre")
    (tmp_path / "other").rename("aligned")
    file.write_text(file.read_text().replace(f"{tmp_path}/pre", "aligned", 1).replace(f"{tmp_path}/aligned", "pre"))
    outcome = run(file, Evaluator())
    assert [(one.title, one.path, one.known.metrics["reward"]) for one in outcome.inputs] == [
        ("pre", "aligned", 0.0),
        ("aligned", "pre", 10.0),
    ]
    assert outcome.tax is not None
    assert outcome.tax.kept(outcome.points[0].known.metrics) == 0.75


def test_a_sweep_that_was_stopped_goes_on_to_the_same_result(tmp_path: Path) -> None:
    file = section(tmp_path, f"  method: [linear, hma]\n  toward_aligned: [0.4, 0.8]\n  pick: {RULE}\n")
    whole = comparable(run(file, Evaluator()))
    journal = (tmp_path / "out/journal.jsonl").read_bytes().splitlines(keepends=True)
    for kept in (2, 6):
        (tmp_path / f"cut{kept}").mkdir()
        (tmp_path / f"cut{kept}/journal.jsonl").write_bytes(b"".join(journal[:kept]) + journal[kept][:20])
        evaluator = Evaluator()
        assert comparable(run(file, evaluator, f"cut{kept}", resume=True)) == whole
        assert len(evaluator.scored) == len(journal) - kept
        assert (tmp_path / f"cut{kept}/best.yaml").read_bytes() == (tmp_path / "out/best.yaml").read_bytes()
    evaluator = Evaluator()
    assert comparable(run(file, evaluator, resume=True)) == whole
    assert evaluator.scored == []


def test_another_rule_picks_from_the_scores_that_there_are(tmp_path: Path) -> None:
    file = section(tmp_path, f"  pick: {RULE}\n")
    run(file, Evaluator())
    evaluator = Evaluator()
    outcome = run(file, evaluator, resume=True, pick="maximize reward subject to reading >= 49.3")
    assert outcome.picked is not None
    assert outcome.picked.title == "linear 0.1"  # 50 - 20 a^2 is 49.8 there, and 49.2 at 0.2
    assert evaluator.scored == []
    assert np.allclose(read(tmp_path / "out")["embed.weight"], 0.1)


def test_a_rule_that_nothing_meets_leaves_the_table_and_no_model(tmp_path: Path) -> None:
    file = section(tmp_path, "  pick: maximize reading subject to reward >= 1.2 of aligned\n")
    with pytest.raises(ConfigError) as raised:
        run(file, Evaluator())
    assert raised.value.problems == [
        f"{file}:6:9: no candidate has reward >= 1.2 of aligned (12); the nearest, linear 1, misses reward by 2; give"
        " another rule with --resume --pick"
    ]
    assert sorted(os.listdir(tmp_path / "out")) == ["journal.jsonl", "report.json", "sweep.png"]
    assert json.loads((tmp_path / "out/report.json").read_text())["best"] is None
    outcome = run(file, Evaluator(), resume=True, pick=f"maximize reading subject to reward >= 1 of {tmp_path}/aligned")
    assert outcome.picked is not None
    assert outcome.picked.title == "linear 1"
    with pytest.raises(ConfigError, match="no candidate has reward >= 11"):
        run(file, Evaluator(), resume=True, pick="maximize reading subject to reward >= 11")
    assert (
        json.loads((tmp_path / "out/report.json").read_text())["best"]["title"] == "linear 1"
    )  # as the model that lies there


def test_a_point_that_fails_is_no_end(tmp_path: Path) -> None:
    outcome = run(section(tmp_path, f"  pick: {RULE}\n"), Evaluator(broken=0.7))
    assert outcome.picked is not None
    assert outcome.picked.title == "linear 0.8"
    assert sweep_report(outcome)["points"][7]["search"]["error"] == "ValueError: it has no answer"
    assert sweep_report(outcome)["failed"] == 1


@pytest.mark.exhaustive
def test_a_crash_is_one_points_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "judge.py").write_text(
        "import os\n\ndef score(candidate, split, seed, samples):\n"
        "    a = float(candidate.state_dict()['embed.weight'][0, 0])\n"
        "    if abs(a - 0.5) < 1e-6:\n        os._exit(3)\n"
        "    return {'reward': a, 'reading': 1 - a}\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    file = section(tmp_path, "  toward_aligned: [0.25, 0.5]\n")
    file.write_text(file.read_text().replace('command: "score {model}"', "python: judge:score"))
    outcome = run(file, None)
    assert [one.known.error for one in outcome.points] == ["", "its process ended with exit status 3"]


def test_objectives_that_an_evaluator_lacks_are_refused_by_line_and_column(tmp_path: Path) -> None:
    file = section(tmp_path)
    evaluator = Evaluator()
    evaluator.metrics = ("nll",)  # type: ignore[assignment]
    with pytest.raises(ConfigError, match=rf"{file}:5:24: the evaluator gives no 'reward'; it gives nll"):
        run(file, evaluator)
    assert evaluator.scored == []


def test_the_report_split_is_scored_for_the_models_the_front_and_the_pick(tmp_path: Path) -> None:
    (tmp_path / "s.jsonl").write_text('{"a": 1}\n')
    (tmp_path / "r.jsonl").write_text('{"a": 2}\n')
    file = section(
        tmp_path, "  toward_aligned: [0.5]\n  method: [linear, lines]\n  data: {search: s.jsonl, report: r.jsonl}\n"
    )
    evaluator = Evaluator()
    outcome = run(file, evaluator)
    assert [title for title, split in evaluator.scored if split == "report"] == [
        f"{tmp_path}/pre", f"{tmp_path}/aligned", "linear 0.5"
    ]  # fmt: skip
    # lines 0.5 has 0.5 in the first layer too, so it is equal, and the first of equal ones is the front
    entry = sweep_report(outcome)["points"][0]
    assert entry["report"]["metrics"] == {"reward": 7.5, "reading": 46.0}
    assert sweep_report(outcome)["report_hypervolume"] == pytest.approx(0.75 * 0.75)


def test_every_combination_of_a_recipes_free_values_is_scored(tmp_path: Path) -> None:
    section(tmp_path)
    file = tmp_path / "grid.yaml"
    file.write_text(
        f"merge_method: task_arithmetic\nbase_model: {tmp_path}/pre\nmodels:\n- model: {tmp_path}/aligned\n"
        "  parameters: {weight: 0:1:0.5}\nparameters: {lambda: {choose: [0.5, 1.0]}}\n"
        'sweep:\n  evaluate: {command: "score {model}"}\n  objectives: {reading: maximize}\n'
        f"  pick: maximize reading subject to reading <= 0.95 of {tmp_path}/pre\n"
    )
    outcome = run(file, Evaluator())
    report = sweep_report(outcome)
    # a = weight x lambda: 0, 0, 0.25, 0.5, 0.5, 1
    assert [one["search"]["metrics"]["reading"] for one in report["points"]] == [50.0, 50.0, 48.75, 45.0, 45.0, 30.0]
    assert report["points"][3]["values"] == {f"{tmp_path}/aligned: weight": 0.5, "lambda": 1.0}
    assert report["best"]["values"] == {f"{tmp_path}/aligned: weight": 0.5, "lambda": 1.0}
    assert "hypervolume" not in report
    assert {one["title"] for one in report["inputs"]} == {f"{tmp_path}/pre", f"{tmp_path}/aligned"}
    assert np.allclose(read(tmp_path / "out")["embed.weight"], 0.5)
    assert (tmp_path / "out/sweep.png").exists()


@pytest.mark.parametrize("objectives", ["reading: maximize", "reading: maximize, reward: maximize"])
@pytest.mark.parametrize("name", ["$x^$", None])
def test_any_name_of_a_model_can_be_drawn_and_reported(tmp_path: Path, name: str | None, objectives: str) -> None:
    """Between dollar signs, matplotlib reads a formula, and it has no signs for bytes that aren't UTF-8."""
    name = name or not_utf8(tmp_path)
    model(tmp_path / name, 1.0)
    model(tmp_path / "pre", 0.0)
    file = tmp_path / "grid.yaml"
    content = {
        "merge_method": "task_arithmetic",
        "base_model": f"{tmp_path}/pre",
        "models": [{"model": f"{tmp_path}/{name}", "parameters": {"weight": "0:1:0.5"}}],
        "sweep": {"evaluate": {"command": "score {model}"}, "objectives": yaml.safe_load(f"{{{objectives}}}")},
    }
    file.write_text(yaml.safe_dump(content))
    run(file, Evaluator())
    assert (tmp_path / "out/sweep.png").stat().st_size > 1000
    inputs = json.loads((tmp_path / "out/report.json").read_text())["inputs"]
    assert {one["title"] for one in inputs} == {f"{tmp_path}/pre", f"{tmp_path}/{name}"}


def test_models_can_be_choices_and_each_is_scored_as_it_is(tmp_path: Path) -> None:
    section(tmp_path)
    model(tmp_path / "half", 0.5)
    file = tmp_path / "grid.yaml"
    file.write_text(
        f"merge_method: task_arithmetic\nbase_model: {tmp_path}/pre\n"
        f"models:\n- model: {{choose: [{tmp_path}/aligned, {tmp_path}/half]}}\n"
        "  parameters: {weight: {choose: [0.5, 1.0]}}\n"
        'sweep:\n  evaluate: {command: "score {model}"}\n  objectives: {reward: maximize}\n'
        f"  pick: maximize reward subject to reward <= 1 of {tmp_path}/half\n"
    )
    report = sweep_report(run(file, Evaluator()))
    # a: 0.5, 1, 0.25, 0.5; the first of equal ones is picked
    assert [one["search"]["metrics"]["reward"] for one in report["points"]] == [7.5, 10.0, 4.375, 7.5]
    assert report["best"]["title"] == report["points"][0]["title"]
    assert {one["title"] for one in report["inputs"]} == {f"{tmp_path}/{name}" for name in ("pre", "aligned", "half")}


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (
            "  pick: maximize reading subject to reward >= 1 of ./other\n",
            "6:9: unknown './other' behind of; there are best, pr",
        ),
        ("  data: {search: a.jsonl, report: a.jsonl}\n", "data: search and report are the same"),
        ("  toward_aligned: 1:0:0.1\n", "6:19: low must be below high"),
    ],
)
def test_bad_input_is_refused_before_anything_is_scored(tmp_path: Path, more: str, said: str) -> None:
    evaluator = Evaluator()
    with pytest.raises(MergeError) as raised:
        run(section(tmp_path, more), evaluator)
    assert len(raised.value.problems) == 1
    assert said in raised.value.problems[0]
    assert evaluator.scored == []
    assert not (tmp_path / "out").exists()


def test_models_of_different_shapes_are_refused_by_line_and_column(tmp_path: Path) -> None:
    file = section(tmp_path)
    model(tmp_path / "aligned", 1.0, shape=(2, 4))
    evaluator = Evaluator()
    with pytest.raises(MergeError) as raised:
        run(file, evaluator)
    assert len(raised.value.problems) == 1
    assert raised.value.problems[0].startswith(f"{file}:2:8: ")
    assert "layers.0.w.weight" in raised.value.problems[0]
    assert "have different shapes: [2, 4]" in raised.value.problems[0]
    assert evaluator.scored == []


def test_a_parameter_that_a_point_cant_have_is_refused_before_anything_is_scored(tmp_path: Path) -> None:
    section(tmp_path)
    file = tmp_path / "grid.yaml"
    file.write_text(
        f"merge_method: della\nbase_model: {tmp_path}/pre\nmodels:\n- model: {tmp_path}/aligned\n"
        "  parameters: {weight: 1, density: 0.5, epsilon: {choose: [0.1, 0.6]}}\n"
        'sweep:\n  evaluate: {command: "score {model}"}\n  objectives: {reading: maximize}\n'
    )
    evaluator = Evaluator()
    with pytest.raises(MergeError, match="epsilon"):
        run(file, evaluator)
    assert evaluator.scored == []


def test_a_metric_that_the_evaluator_doesnt_give_is_refused_before_any_merging(tmp_path: Path) -> None:
    file = section(tmp_path)
    file.write_text(file.read_text().replace("reading: maximize", "readin: maximize"))
    evaluator = Evaluator()
    with pytest.raises(ConfigError) as raised:
        run(file, evaluator)
    assert raised.value.problems == [
        f"{file}:5:15: {tmp_path}/pre, {tmp_path}/aligned can't be scored: the evaluator gave no 'readin', but reward,"
        " reading; once that is mended, --overwrite begins again, for --resume scores nothing twice"
    ]
    assert [title for title, _ in evaluator.scored] == [f"{tmp_path}/pre", f"{tmp_path}/aligned"]


def test_remedies_are_keys_of_the_file(tmp_path: Path) -> None:
    """A sweep has no flags for what a recipe says. Paths stay as they are."""
    tmp_path = tmp_path / "models--org--router-7b"
    tmp_path.mkdir()
    file = section(tmp_path)
    write(tmp_path / "aligned", {"embed_tokens.weight": np.ones((4, 2))}, "bfloat16")
    write(tmp_path / "pre", {"embed_tokens.weight": np.ones((5, 2)), "more": np.ones(2)})
    with pytest.raises(MergeError) as raised:
        run(file, Evaluator())
    missing, shapes, dtypes = (problem.partition(": ")[2] for problem in raised.value.problems)
    assert missing == f"tensor 'more' is missing in {tmp_path}/aligned (it is in {tmp_path}/pre)"
    assert shapes.endswith("; tokenizer_source: union (or base) aligns different vocabularies")
    assert dtypes.endswith("; to merge them, give the dtype of the result with the key out_dtype")


def test_the_journal_of_another_sweep_is_refused(tmp_path: Path) -> None:
    file = section(tmp_path)
    run(file, Evaluator())
    file.write_text(file.read_text() + "  toward_aligned: [0.5]\n")
    with pytest.raises(ConfigError, match=r"is the journal of another search \(file differ\)"):
        run(file, Evaluator(), resume=True)
    assert run(file, Evaluator(), overwrite=True).picked is not None
