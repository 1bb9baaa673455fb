"""Test searches: what they find, that workers and kills change nothing, and what failures do."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from paddle_merge import CheckpointError, ConfigError, MergeConfig, OutputError, merge
from paddle_merge.search.asked import Asked
from paddle_merge.search.contract import Scores
from paddle_merge.search.evaluators.python import make
from paddle_merge.search.evolve import evolve
from paddle_merge.search.job import Setup
from paddle_merge.search.outcome import Outcome
from paddle_merge.search.spec import Data, Evaluation
from tests.support.checkpoints import read, write
from tests.support.command_lines import cli
from tests.support.searches import state, workshop
from tests.support.sweeps import few

ROOT = Path(__file__).parents[2]
SEARCH = """
evaluate: {python: "score:score"}
objectives: {loss: minimize}
evaluations: 60
seed: 1
"""


def lines(folder: Path, without: tuple[str, ...] = ("seconds",)) -> list[dict[str, Any]]:
    """The journal, in the order of phases and candidates."""
    found = [json.loads(line) for line in (folder / "journal.jsonl").read_text().splitlines()]
    header, *rest = [{name: value for name, value in line.items() if name not in without} for line in found]
    return [header, *sorted(rest, key=lambda line: json.dumps(line, sort_keys=True))]


def searched(path: Path, out: str, function: str = "score:score", **asked: Any) -> Outcome:
    """Search beside the file, with a function of a file there in this process, which takes no time to start."""
    judge = make(Setup(Evaluation("python", function), Data(), folder=str(path.parent)))
    return evolve(Asked(str(path), str(path.parent / out), evaluator=judge, **asked), progress=False)


@pytest.fixture(autouse=True)
def _importable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    for name in ("score", "odd"):
        monkeypatch.delitem(sys.modules, name, raising=False)


def test_it_finds_the_weights(tmp_path: Path) -> None:
    """Six weights, whose best values score.py has; the best recipe gives the same bytes without a search."""
    path = workshop(tmp_path, SEARCH.replace("60", "600"))
    outcome = searched(path, "out")
    np.testing.assert_allclose(outcome.best.values, [0.3, 0.8, 1.0, 0.9, 0.2, 0.1], atol=0.01)
    report = json.loads((tmp_path / "out/report.json").read_text())
    assert report["candidates"] == 594  # 66 generations of 9
    assert report["best"]["search"]["metrics"]["loss"] < 1e-4
    assert [one["title"] for one in report["baselines"]][:4] == [
        *(f"{tmp_path}/{name}" for name in ("math", "code", "base")),
        "the uniform merge",
    ]
    merge(MergeConfig(recipe_yaml=str(tmp_path / "out/best.yaml"), output_path=str(tmp_path / "again")), progress=False)
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("out", "again")]
    assert weights[0] == weights[1]


@pytest.mark.exhaustive
@pytest.mark.parametrize("workers", [2, 7])
def test_workers_change_nothing(tmp_path: Path, workers: int) -> None:
    path = workshop(tmp_path, SEARCH.replace("60", "27"))
    for number in (1, workers):
        evolve(Asked(str(path), str(tmp_path / f"out{number}"), workers=number), progress=False)
    one, several = (tmp_path / f"out{number}" for number in (1, workers))
    assert lines(one) == lines(several)
    assert (one / "best.yaml").read_text() == (several / "best.yaml").read_text()
    assert (one / "model.safetensors").read_bytes() == (several / "model.safetensors").read_bytes()


@pytest.mark.parametrize("count", [4, *few([1, 40, 56, 66], 0)])
def test_it_goes_on_wherever_it_was_stopped(tmp_path: Path, count: int) -> None:
    """With so many lines of the journal, and a piece of the next one."""
    path = workshop(tmp_path, SEARCH)
    searched(path, "whole")
    (tmp_path / "cut").mkdir()
    text = (tmp_path / "whole/journal.jsonl").read_bytes().splitlines(keepends=True)
    (tmp_path / "cut/journal.jsonl").write_bytes(b"".join(text[:count]) + text[count][:25])
    searched(path, "cut", resume=True)
    assert lines(tmp_path / "cut") == lines(tmp_path / "whole")
    assert (tmp_path / "cut/best.yaml").read_text() == (tmp_path / "whole/best.yaml").read_text()


def command(path: Path, out: Path, *more: str) -> list[str]:
    return [sys.executable, "-m", "paddle_merge", "evolve", str(path), "--output_path", str(out), "--quiet", *more]


@pytest.mark.exhaustive
@pytest.mark.parametrize(("seconds", "workers"), [(0.15, "2"), (0.4, "1"), (0.8, "2")])
def test_killed_it_goes_on(tmp_path: Path, seconds: float, workers: str) -> None:
    """A real process, with all that it has started, at some moment of the search."""
    path = workshop(tmp_path, SEARCH.replace("score:score", "score:slow"))
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    searched(path, "whole")
    with subprocess.Popen(command(path, tmp_path / "out", "--workers", workers), env=environment) as process:
        journal = tmp_path / "out/journal.jsonl"
        while process.poll() is None and not (journal.exists() and journal.read_bytes().count(b"\n") > 2):
            time.sleep(0.01)
        time.sleep(seconds)
        process.send_signal(signal.SIGKILL)
    done = journal.read_bytes().count(b"\n")
    subprocess.run(command(path, tmp_path / "out", "--workers", workers, "--resume"), check=True, env=environment)
    assert 2 < done < len(lines(tmp_path / "out"))
    assert lines(tmp_path / "out") == lines(tmp_path / "whole")
    assert (tmp_path / "out/best.yaml").read_text() == (tmp_path / "whole/best.yaml").read_text()


@pytest.mark.exhaustive
def test_failures_are_the_worst_scores(tmp_path: Path) -> None:
    """Exceptions, NaN, missing metrics, a crash of the process and a time limit; with the reason kept."""
    fails = """
import os, time
import score

def fails(candidate, split, seed, samples):
    number = int(candidate.title.split()[-1]) if candidate.title.startswith("candidate") else 99
    if number == 1:
        raise RuntimeError("no luck")
    if number == 2:
        return {"loss": float("nan")}
    if number == 3:
        return {"los": 1.0}
    if number == 4:
        os._exit(3)
    if number == 5:
        time.sleep(60)
    return score.score(candidate, split, seed, samples)
"""
    text = SEARCH.replace("score:score", "fails:fails").replace("60", "18").replace('fails"}', 'fails", time_limit: 2.5}')
    path = workshop(tmp_path, text, more={"fails.py": fails})
    outcome = evolve(Asked(str(path), str(tmp_path / "out")), progress=False)
    errors = [one.known.error for one in outcome.candidates]
    assert errors[1:6] == [
        "RuntimeError: no luck, at fails.py:8",
        "loss is nan",
        "the evaluator gave no 'loss', but los",
        "its process ended with exit status 3",
        "it took longer than time_limit, 2.5 s",
    ]
    assert not any(errors[6:])
    assert outcome.best.known.metrics["loss"] > 0
    assert json.loads((tmp_path / "out/report.json").read_text())["failed"] == 5


@pytest.mark.parametrize(("optimizer", "first"), few([("nsga2", 12), ("como", 13), ("optuna", 12)], 0, unpack=True))
def test_a_generation_that_fails_teaches_nothing(tmp_path: Path, optimizer: str, first: int) -> None:
    """Losses are above 30, so that a number that stands for a failure would be the best of all, and bred from for ever."""

    class Judge:
        metrics: tuple[str, ...] | None = ("loss", "other")
        scored = 0

        def count(self, split: str) -> None:
            return None

        def __call__(self, candidate: Any, split: str, seed: int, samples: Any) -> Scores:
            self.scored += 1
            if self.scored <= first:
                raise RuntimeError("no luck")
            held = candidate.state_dict()
            loss, other = (sum(float(((held[one] - of[one]) ** 2).sum()) for one in held) for of in (math, code))
            return Scores({"loss": 30 + loss, "other": 30 + other})

    two = SEARCH.replace("{loss: minimize}", "{loss: minimize, other: minimize}").replace("60", "480")
    path = workshop(tmp_path, f"{two}optimizer: {optimizer}\npopulation: 12\n")
    math, code = read(tmp_path / "math"), read(tmp_path / "code")
    outcome = evolve(Asked(str(path), str(tmp_path / "out"), evaluator=Judge()), progress=False)
    both = [sum(one.known.metrics.values()) for one in outcome.candidates if not one.known.error]
    assert sum(bool(one.known.error) for one in outcome.candidates) == first
    assert np.mean(both[-48:]) < 0.8 * np.mean(both[:48])


@pytest.mark.exhaustive
def test_a_crash_is_one_candidates_failure(tmp_path: Path) -> None:
    """Without a time limit and with one worker too; so is an exit that Python code asks for."""
    crash = """
import os, sys
import score

def crash(candidate, split, seed, samples):
    if candidate.title == "candidate 2":
        os._exit(3)
    if candidate.title == "candidate 3":
        sys.exit("no more")
    return score.score(candidate, split, seed, samples)
"""
    path = workshop(tmp_path, SEARCH.replace("score:score", "crash:crash").replace("60", "9"), more={"crash.py": crash})
    outcome = evolve(Asked(str(path), str(tmp_path / "out")), progress=False)
    errors = {number: one.known.error for number, one in enumerate(outcome.candidates) if one.known.error}
    assert errors == {2: "its process ended with exit status 3", 3: "SystemExit: no more, at crash.py:9"}


def test_halves_of_characters_are_escaped(tmp_path: Path) -> None:
    """Of names and reasons, which come from anywhere; the report is UTF-8."""
    odd = """
import score

def odd(candidate, split, seed, samples):
    if candidate.title.endswith("base"):
        raise ValueError("no file \\udcff")
    return {**score.score(candidate, split, seed, samples), "\\ud800": 1.0}
"""
    path = workshop(tmp_path, SEARCH.replace("score:score", "odd:odd").replace("60", "9"), more={"odd.py": odd})
    outcome = searched(path, "out", "odd:odd")
    assert outcome.baselines[2].known.error == r"ValueError: no file \udcff, at odd.py:6"
    assert set(outcome.best.known.metrics) == {"loss", "size", r"\ud800"}
    assert (tmp_path / "out/report.html").exists()


def test_if_the_finalists_fail_it_says_why(tmp_path: Path) -> None:
    """They are scored on all samples, on which this evaluator fails."""

    class Judge:
        metrics = ("loss",)

        def count(self, split: str) -> int:
            return 9

        def __call__(self, candidate: Any, split: str, seed: int, samples: Any) -> Scores:
            if samples is None:
                raise RuntimeError("too much")
            return Scores({"loss": float(abs(next(iter(candidate.state_dict().values()))).sum())})

    path = workshop(tmp_path, SEARCH.replace("60", "18") + "samples: 3\n")
    with pytest.raises(ConfigError, match=r"all 4 finalists failed: RuntimeError: too much; .*--overwrite begins"):
        evolve(Asked(str(path), str(tmp_path / "out"), evaluator=Judge()), progress=False)


def test_if_all_fail_it_says_why(tmp_path: Path) -> None:
    path = workshop(tmp_path, SEARCH.replace("loss", "accuracy"))
    with pytest.raises(ConfigError, match="all 54 candidates failed: the evaluator gave no 'accuracy', but loss, size"):
        searched(path, "out")
    assert not (tmp_path / "out/model.safetensors").exists()


@pytest.mark.exhaustive
def test_a_race(tmp_path: Path) -> None:
    """Of 9 tensors as samples, all candidates see 3, a third of them 9; the best are found all the same."""
    path = workshop(tmp_path, SEARCH.replace("60", "300") + "race: {first: 3, eta: 3}\n")
    outcome = searched(path, "out")
    rounds = [line for line in lines(tmp_path / "out")[1:] if line["phase"] == "search"]
    assert sum(line["round"] == 0 for line in rounds) == 297
    assert sum(line["round"] == 1 for line in rounds) == 33 * 3
    np.testing.assert_allclose(outcome.best.values, [0.3, 0.8, 1.0, 0.9, 0.2, 0.1], atol=0.05)


def test_two_splits(tmp_path: Path) -> None:
    """The report has the best and the baselines on the report split too."""
    both = {"search.jsonl": '{"a": 1}\n', "report.jsonl": '{"a": 2}\n'}
    data = "data: {search: search.jsonl, report: report.jsonl}\n"
    path = workshop(tmp_path, SEARCH + data, more=both)
    searched(path, "out")
    report = json.loads((tmp_path / "out/report.json").read_text())
    assert all(set(one["report"]) >= {"metrics"} for one in [report["best"], *report["baselines"]])
    card = (tmp_path / "out/README.md").read_text()
    (entry,) = yaml.safe_load(card.split("---\n")[1])["model-index"][0]["results"]
    assert entry["dataset"] == {"name": "report.jsonl", "type": "python-samples", "split": "report"}
    metrics = {one["name"]: one["value"] for one in entry["metrics"]}
    assert metrics["loss"] == pytest.approx(report["best"]["report"]["metrics"]["loss"], rel=1e-5)
    assert "python on the report split (report.jsonl), seed 1, by paddle_merge" in card
    assert "so it may do worse" not in card
    assert str(tmp_path) not in card


def test_shared_samples_are_refused(tmp_path: Path) -> None:
    """By content, however they are written."""
    both = {"search.jsonl": '{"a": 1, "b": 2}\n{"a": 3}\n', "report.jsonl": '{"b":2,"a":1}\n{"a": 4}\n'}
    data = "data: {search: search.jsonl, report: report.jsonl}\n"
    path = workshop(tmp_path, SEARCH + data, more=both)
    with pytest.raises(ConfigError, match=r"search\.jsonl and report\.jsonl share 1 samples"):
        searched(path, "out")
    assert not (tmp_path / "out").exists()
    path.write_text(path.read_text().replace("report.jsonl}", "report.jsonl, shared: true}"))
    searched(path, "out")


def test_missing_samples_are_refused_before_the_search(tmp_path: Path) -> None:
    """Those of the report split would be missed when all candidates are scored."""
    path = workshop(tmp_path, SEARCH + "data: {search: one.jsonl, report: two.jsonl}\n", more={"one.jsonl": "{}\n"})
    with pytest.raises(ConfigError, match=rf"^{path}:14:37: {tmp_path}/two.jsonl: no such file$"):
        evolve(Asked(str(path), str(tmp_path / "out")), progress=False)


@pytest.mark.exhaustive
def test_the_folder_of_another_search(tmp_path: Path) -> None:
    path = workshop(tmp_path, SEARCH.replace("60", "9"))
    searched(path, "out")
    with pytest.raises(OutputError, match="holds a search; --resume goes on with it, --overwrite begins again"):
        searched(path, "out")
    path.write_text(path.read_text().replace("seed: 1", "seed: 2"))
    with pytest.raises(ConfigError, match=r"is the journal of another search \(file, seed differ\)"):
        searched(path, "out", resume=True)
    searched(path, "out", overwrite=True)
    os.utime(tmp_path / "math/model.safetensors", (1, 1))
    with pytest.raises(ConfigError, match=rf"holds scores of other files \({tmp_path}/math/model.safetensors changed"):
        searched(path, "out", resume=True)
    journal = tmp_path / "out/journal.jsonl"
    first, *others = journal.read_text().splitlines(keepends=True)
    journal.write_text(re.sub(r', "files": {.*?}', "", first) + "".join(others))
    assert searched(path, "out", resume=True) is not None  # as the message says: the weights are the same
    journal.write_text(first)
    searched(path, "out", resume=True)  # without scores it is no search yet
    with pytest.raises(OutputError, match=r"--resume: .* holds no search"):
        searched(path, "none", resume=True)
    (tmp_path / "full").mkdir()
    shutil.copy(path, tmp_path / "full")
    with pytest.raises(OutputError, match=r"holds search\.yaml; give another folder"):
        searched(path, "full")


@pytest.mark.parametrize(
    ("out", "said"),
    [
        ("math", "is or holds one of the inputs"),
        ("search.yaml/out", "search.yaml is a file, so there can be no folder in it"),
        ("weights", "holds weights that loaders would mix with the merged ones: pytorch_model.bin"),
    ],
)
def test_a_folder_that_the_merge_cant_go_into_is_refused_before_the_search(
    tmp_path: Path, out: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = workshop(tmp_path, SEARCH)
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights/pytorch_model.bin").write_bytes(b"")
    monkeypatch.setattr(sys, "dont_write_bytecode", True)  # of the evaluator, which isn't the search's to write or not
    before = {one: one.is_file() and one.read_bytes() for one in tmp_path.rglob("*")}
    with pytest.raises(OutputError, match=re.escape(said)):
        evolve(Asked(str(path), str(tmp_path / out), overwrite=True), progress=False)
    assert before == {one: one.is_file() and one.read_bytes() for one in tmp_path.rglob("*")}


def test_models_that_cant_be_merged_are_refused_before_the_search(tmp_path: Path) -> None:
    path = workshop(tmp_path, SEARCH)
    write(tmp_path / "math", {name: value[:2] for name, value in state(1).items()}, "float32", format="pt")
    with pytest.raises(CheckpointError, match="have different shapes"):
        evolve(Asked(str(path), str(tmp_path / "out")), progress=False)
    assert not (tmp_path / "out").exists()


def test_overwrite_keeps_what_is_there_until_the_new_search_begins(tmp_path: Path) -> None:
    path = workshop(tmp_path, SEARCH.replace("60", "9"))
    searched(path, "out")
    held = {one.name: one.read_bytes() for one in (tmp_path / "out").iterdir()}
    path.write_text(path.read_text().replace("seed: 1", "seed: 2\n  optimizer: nonsense"))
    with pytest.raises(ConfigError, match="unknown optimizer"):
        searched(path, "out", overwrite=True)
    assert held == {one.name: one.read_bytes() for one in (tmp_path / "out").iterdir()}
    path.write_text(path.read_text().replace("  optimizer: nonsense", "").replace("loss", "nothing"))
    with pytest.raises(ConfigError, match="all 9 candidates failed"):
        searched(path, "out", overwrite=True)
    left = {one.name for one in (tmp_path / "out").iterdir()}
    assert not left & {"best.yaml", "report.json", "report.html", "score.png"}, "the result of the earlier search"


@pytest.mark.exhaustive
def test_killed_when_it_had_only_begun_it_leaves_no_other_result(tmp_path: Path) -> None:
    """--overwrite begins the journal, and then removes what the earlier search found; a kill may come between the two."""
    path = workshop(tmp_path, SEARCH.replace("60", "9"))
    searched(path, "out")
    journal = tmp_path / "out/journal.jsonl"
    first, *others = journal.read_text().splitlines(keepends=True)
    journal.write_text(re.sub(r', "files": {.*?}', "", first) + "".join(others))
    assert searched(path, "out", resume=True) is not None  # as the message says: the weights are the same
    journal.write_text(first)
    (tmp_path / "score.py").write_text("def score(candidate, split, seed, samples):\n    raise RuntimeError('no luck')\n")
    with pytest.raises(ConfigError, match="all 9 candidates failed"):
        evolve(Asked(str(path), str(tmp_path / "out"), resume=True), progress=False)
    assert not (tmp_path / "out/best.yaml").exists()


def test_two_searches_dont_write_into_one_folder(tmp_path: Path) -> None:
    path = workshop(tmp_path, SEARCH.replace("60", "9"))
    searched(path, "out")
    before = (tmp_path / "out/journal.jsonl").read_bytes()
    with open(tmp_path / "out/journal.jsonl", "ab") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        for how in ({"resume": True}, {"overwrite": True}):
            with pytest.raises(OutputError, match="another search is running there; give another --output_path"):
                searched(path, "out", **how)
    assert (tmp_path / "out/journal.jsonl").read_bytes() == before
    assert (tmp_path / "out/best.yaml").exists()


def test_a_file_system_without_locks_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def none(*_: Any) -> None:
        raise OSError(errno.EOPNOTSUPP, "no locks")

    monkeypatch.setattr(fcntl, "flock", none)
    searched(workshop(tmp_path, SEARCH.replace("60", "9")), "out")
    assert "this file system has no locks, so nothing stops a second run into the same folder" in caplog.text
    monkeypatch.setattr(fcntl, "flock", lambda *_: (_ for _ in ()).throw(OSError(errno.EIO, "broken")))
    with pytest.raises(OutputError, match=r"journal\.jsonl: can't be written \(broken\)"):
        searched(tmp_path / "search.yaml", "out", resume=True)


@pytest.mark.exhaustive
def test_another_rule_costs_no_evaluation_but_the_new_ones_report(tmp_path: Path) -> None:
    both = {"search.jsonl": '{"a": 1}\n', "report.jsonl": '{"a": 2}\n'}
    two = SEARCH.replace("{loss: minimize}", "{loss: minimize, size: minimize}").replace("60", "48")
    path = workshop(tmp_path, two + "data: {search: search.jsonl, report: report.jsonl}\n", more=both)
    first = searched(path, "out")
    before = lines(tmp_path / "out")
    again = searched(path, "out", resume=True, pick="minimize size")
    assert again.best.title != first.best.title
    after = lines(tmp_path / "out")
    assert [(line["split"], line["title"]) for line in after if line not in before] == [("report", again.best.title)]
    searched(path, "out", resume=True)
    assert lines(tmp_path / "out") == after


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ('"score:score"', '"score:score", shots: 5', "'shots' has no effect; a function, other than a class, takes no"),
        (
            'python: "score:score"',
            'command: "score {model}"',
            "the command scores both splits alike; put {data} where the file of samples belongs, or {split}",
        ),
        (
            'python: "score:score"',
            'command: "score {model} {split}", time_limits: 5',
            "'time_limits' has no effect; did you mean 'time_limit'?; a command takes no settings but time_limit",
        ),
    ],
)
def test_what_an_evaluator_ignores_is_refused(tmp_path: Path, old: str, new: str, said: str) -> None:
    both = {"search.jsonl": '{"a": 1}\n', "report.jsonl": '{"a": 2}\n'}
    path = workshop(tmp_path, SEARCH.replace(old, new) + "data: {search: search.jsonl, report: report.jsonl}\n", more=both)
    with pytest.raises(ConfigError) as error:
        evolve(Asked(str(path), str(tmp_path / "out")), progress=False)
    assert len(error.value.problems) == 1
    assert re.match(rf"{path}:\d+:\d+: ", error.value.problems[0])
    assert said in error.value.problems[0]
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("more", "said"),
    few(
        [
            ("race: {first: 3}\nsamples: 2", "race: {first: 3} has no effect, for a search uses 2 samples"),
            ("race: {first: 9}", "race: {first: 9} has no effect, for a search uses 9 samples"),
            ("samples: 10", "samples: 10 has no effect, for the search split has 9"),
        ],
        unpack=True,
    ),
)
def test_numbers_without_an_effect_are_told(tmp_path: Path, caplog: pytest.LogCaptureFixture, more: str, said: str) -> None:
    path = workshop(tmp_path, SEARCH.replace("60", "9") + f"{more}\n")
    searched(path, "out")
    assert [one.message for one in caplog.records if "effect" in one.message] == [said]


def test_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = workshop(tmp_path, SEARCH.replace("60", "9"))
    assert cli(*command(path, tmp_path / "out")[3:], "--json") == 0
    assert json.loads(capsys.readouterr().out) == json.loads((tmp_path / "out/report.json").read_text())
    assert set(read(tmp_path / "out")) == set(read(tmp_path / "base"))
    assert cli(*command(tmp_path / "none.yaml", tmp_path / "x")[3:]) == 1
    assert capsys.readouterr().err == f"error: {tmp_path}/none.yaml: can't be read (No such file or directory)\n"


def test_samples_is_how_many_of_the_split_are_used(tmp_path: Path) -> None:
    """Of nine, the same three for all candidates; finalists, baselines and the optimiser's mean are scored on all."""
    asked: dict[str, set[tuple[int, ...] | None]] = {}

    class Judge:
        metrics = ("loss",)

        def count(self, split: str) -> int:
            return 9

        def __call__(self, candidate: Any, split: str, seed: int, samples: Any) -> Scores:
            place = "candidate" if candidate.title.startswith("candidate") else "other"
            asked.setdefault(place, set()).add(tuple(samples) if samples is not None else None)
            return Scores({"loss": float(abs(next(iter(candidate.state_dict().values()))).sum())})

    path = workshop(tmp_path, SEARCH.replace("60", "18") + "samples: 3\n")
    evolve(Asked(str(path), str(tmp_path / "out"), evaluator=Judge()), progress=False)
    (few_samples,) = asked["candidate"] - {None}
    assert few_samples is not None
    assert len(few_samples) == 3
    assert None in asked["candidate"]  # the finalists
    assert asked["other"] == {None}
