"""Test the command evaluate: models side by side, failures, the card, and everything that is refused before the work."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from paddle_merge import ConfigError, MergeConfig, MergeError, OutputError, merge
from paddle_merge.commands.evaluate.card import cards
from paddle_merge.commands.evaluate.cli import main
from paddle_merge.commands.evaluate.show import as_json, lines, markdown
from paddle_merge.run.output.card_results import CardFile, CardResult
from paddle_merge.search.evaluate import Evaluated, Evaluation
from paddle_merge.search.job import Result
from paddle_merge.version import __version__
from tests.support.checkpoints import write

# Scores a model by its only tensor: two samples, whose mean is that tensor's sum. What fails is chosen by its value.
SCORE = """
import os, signal
from paddle_merge.search.contract import Scores

def score(candidate, split, seed, samples, data=None):
    value = float(candidate.state_dict()["w"].sum())
    if value == 13:
        raise ValueError("13 | is unlucky")
    if value == 14:
        os.kill(os.getpid(), signal.SIGKILL)
    values = [value - 1, value + 1]
    cost = {"seed": seed, "lines": 0 if data is None else len(open(data).readlines())}
    return Scores({"acc": value, "loss": float("nan") if value == 15 else -value}, {"acc": values}, cost=cost)
"""
EVAL = """\
evaluate: {python: "score_by_sum:score"}
objectives: {acc: maximize, loss: minimize}
data: {search: search.jsonl, report: report.jsonl}
seed: 3
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Models a, b (1 and 2), three that fail, merged (their mean), and the files of an evaluation."""
    monkeypatch.chdir(tmp_path)
    for name, value in {"a": 1, "b": 2, "raises": 13, "dies": 14, "nan": 15}.items():
        write(tmp_path / name, {"w": np.array([value, 0.0])})
    (tmp_path / "score_by_sum.py").write_text(SCORE)
    (tmp_path / "eval.yaml").write_text(EVAL)
    (tmp_path / "search.jsonl").write_text('{"x": 1}\n')
    (tmp_path / "report.jsonl").write_text('{"x": 2}\n{"x": 3}\n')
    return tmp_path


def run(*argv: str) -> int:
    """Return the exit status of the command."""
    with pytest.raises(SystemExit) as caught:
        main(list(argv))
    return int(caught.value.code or 0)


def problems(*argv: str) -> list[str]:
    with pytest.raises(MergeError) as caught:
        main(list(argv))
    return caught.value.problems


def plain(text: str) -> str:
    """Return text with S for the seconds, which come before two more columns, and single spaces."""
    return re.sub(r"\d+\.\d(?= \d+ \d+$)", "S", re.sub(r" +", " ", text), flags=re.M).replace(__version__, "V")


def test_json_is_ascii(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As of other commands: what an output can't encode is escaped in ways that JSON doesn't have."""
    (folder / "a").rename("é")
    run("é", "--with", "eval.yaml", "--json")
    printed = capsys.readouterr().out
    assert printed.isascii()
    assert [row["model"] for row in json.loads(printed)["models"]] == ["é"]


def test_models_stand_side_by_side_and_failures_keep_their_reasons(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The standard error of two values that are 2 apart is 1: their deviation is the root of 2, over the root of 2."""
    assert run("a", "raises", "dies", "b", "nan", "--with", "eval.yaml", "--json", "--workers", "2") == 1
    found = json.loads(capsys.readouterr().out)
    assert [row["model"] for row in found["models"]] == ["a", "raises", "dies", "b", "nan"]
    a, raises, dies, b, nan = found["models"]
    assert (a["metrics"], a["standard_errors"]) == ({"acc": 1.0, "loss": -1.0}, {"acc": 1.0})
    assert (b["metrics"], b["cost"]) == ({"acc": 2.0, "loss": -2.0}, {"seed": 3, "lines": 2})
    assert raises["error"] == "ValueError: 13 | is unlucky, at score_by_sum.py:8"
    assert dies["error"] == "its process was killed by SIGKILL (the machine may be out of memory)"
    assert nan["error"] == "loss is nan"
    assert (found["split"], found["data"], found["seed"]) == ("report", "report.jsonl", 3)


def test_a_recipe_the_search_split_another_seed_and_the_card(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    merge(MergeConfig(model_path_list=["a", "b"], output_path="merged"), progress=False)
    card = folder / "merged" / "README.md"
    before = card.read_text()
    (folder / "r.yaml").write_text(
        "merge_method: linear\nmodels: [{model: a, parameters: {weight: 3}}]\nparameters: {normalize: false}\n"
    )
    flags = ["--with", "eval.yaml", "--split", "search", "--seed", "7", "--card", "--markdown", "table.md"]
    assert run("merged", "r.yaml", *flags) == 0
    assert plain(capsys.readouterr().out).splitlines() == [
        "model acc \u2191 loss \u2193 seconds seed lines",
        "merged 1.5 \u00b1 1 -1.5 S 7 1",
        "r.yaml 3 \u00b1 1 -3 S 7 1",
        "",
        "python on the search split (search.jsonl, 1 sample), seed 7, by paddle_merge V",
    ]
    table = (folder / "table.md").read_text()
    index = """\
model-index:
- name: merged
  results:
  - task:
      type: other
    dataset:
      name: search.jsonl
      type: python-samples
      split: search
    metrics:
    - type: acc
      value: 1.5
      name: acc
    - type: loss
      value: -1.5
      name: loss
"""
    head, _, body = before.partition("\n---\n")
    assert card.read_text() == (
        f"{head}\n{index}---\n{body}\n<!-- paddle_merge evaluate python search search.jsonl -->\n## Evaluation\n\n{table}"
        "<!-- end of paddle_merge evaluate python search search.jsonl -->\n"
    )


@pytest.mark.exhaustive
def test_the_card_of_a_model_that_fails_stays(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Its earlier scores may be good. Nor do other cards tell reasons, which may hold paths."""
    for name, inputs in {"good": ["a", "b"], "bad": ["raises", "raises"]}.items():
        merge(MergeConfig(model_path_list=inputs, output_path=name), progress=False)
    before = (folder / "bad" / "README.md").read_text()
    assert run("good", "bad", "--with", "eval.yaml", "--card") == 1
    assert (folder / "bad" / "README.md").read_text() == before
    assert "bad/README.md is left as it is, since the model couldn't be scored" in capsys.readouterr().err
    card = (folder / "good" / "README.md").read_text()
    assert "| bad | failed | failed |" in card
    assert "unlucky" not in card


@pytest.mark.exhaustive
@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no device that is always full")
def test_a_table_that_cant_be_written_is_one_sentence(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "table.md").symlink_to("/dev/full")
    with pytest.raises(OutputError, match=r"--markdown table\.md: can't be written \(No space left on device\)"):
        run("a", "--with", "eval.yaml", "--markdown", "table.md")
    assert "acc" in capsys.readouterr().out, "the table is printed all the same"


def test_everything_wrong_is_told_before_the_work(folder: Path) -> None:
    (folder / "bad").mkdir()
    (folder / "bad" / "model.safetensors").write_bytes(b"broken")
    (folder / "search.jsonl").write_text('{"x":3}\n')
    (folder / "eval.yaml").write_text(
        "evaluate: {perplexity: {batch: 2}}\nobjectives: {perplexty: minimize, nll: minimize}\ndata: {search: search.jsonl,"
        " report: report.jsonl}\n"
    )
    told = problems("a", "bad", "nowhere", "--with", "eval.yaml", "--card")
    causes = ["share 1 samples", "unknown key 'batch'", "needs paddleformers", "has no 'text'", "bad", "nowhere", "--card"]
    for cause in causes:
        assert any(cause in problem for problem in told), (cause, told)
    assert told[0].startswith("eval.yaml:3:38: data")
    assert told[1].startswith("eval.yaml:1:32: unknown key 'batch'")
    assert not [path for path in folder.iterdir() if path.suffix == ".md"]


def test_an_objective_that_is_no_metric_is_told_by_line_and_column(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("paddle_merge.search.evaluators.libraries.models.installed", lambda: ["paddlenlp"])
    (folder / "eval.yaml").write_text(
        "evaluate:\n  perplexity: true\nobjectives:\n  perplexty: minimize\ndata: {report: t.jsonl}\n"
    )
    (folder / "t.jsonl").write_text('{"text": "a"}\n')
    assert problems("a", "--with", "eval.yaml") == [
        "eval.yaml:4:14: the evaluator gives no 'perplexty'; did you mean 'perplexity'?; it gives perplexity, nll"
    ]
    (folder / "search.yaml").write_text(
        "merge_method: linear\nmodels: [{model: a}]\nsearch:\n  evaluate: {perplexity: true}\n"
        "  objectives: {perplexty: minimize}\n  data: {search: t.jsonl}\n"
    )
    assert problems("a", "--with", "search.yaml")[0].startswith("search.yaml:5:27: the evaluator gives no 'perplexty'")


@pytest.mark.parametrize(
    ("argv", "told"),
    [
        ([], "give the file that says how models are scored: --with eval.yaml"),
        (["--with", "eval.yaml", "--split", "test"], "--split 'test' must be one of report, search"),
        (["--with", "eval.yaml", "--workers", "0"], "--workers 0 must be at least 1"),
        (["--with", "eval.yaml", "--json", "--markdown", "-"], "--markdown - and --json both print"),
        (["--with", "eval.yaml", "--markdown", "t.txt"], "--markdown t.txt must end in .md"),
        (["--with", "nowhere.yaml"], "nowhere.yaml: can't be read (No such file or directory)"),
    ],
)
def test_wrong_flags(folder: Path, argv: list[str], told: str) -> None:
    assert any(told in problem for problem in problems("a", *argv))


def test_a_split_without_data_is_refused(folder: Path) -> None:
    (folder / "eval.yaml").write_text(EVAL.replace("search: search.jsonl, ", ""))
    assert problems("a", "--with", "eval.yaml", "--split", "search") == [
        "eval.yaml:3:7: data names no search, which --split asks for; it names report"
    ]


def test_samples_that_are_not_there(folder: Path) -> None:
    """A word that is no path may be the name of something that the function knows."""
    (folder / "eval.yaml").write_text(EVAL.replace("report.jsonl", "reprot.jsonl"))
    (told,) = problems("a", "--with", "eval.yaml")
    assert told == f"eval.yaml:3:38: {folder}/reprot.jsonl: no such file"
    (folder / "eval.yaml").write_text(EVAL.replace("report.jsonl", "set_of_questions"))
    (told,) = problems("nowhere", "--with", "eval.yaml")
    assert told.startswith("nowhere: no such file or folder")


# --- the table and the card -------------------------------------------------------------------------------------------


def evaluation(*rows: Result, models: tuple[str, ...] = ("./x/a", "./y/b|c")) -> Evaluation:
    named = [Evaluated(model, row) for model, row in zip(models, rows, strict=True)]
    return Evaluation("perplexity", "report", "d/report.jsonl", 1200, 0, {"nll": "minimize"}, named)


ONE = Result(0, {"perplexity": 2.0, "nll": 0.6931471}, {"nll": [0.5, 0.8862942]}, 1.25, {"tokens": 1234.0})
TWO = Result(1, seconds=0.5, error="its process ended\nwith *exit status* 1")


def test_text_and_markdown() -> None:
    found = evaluation(ONE, TWO)
    assert lines(found) == [
        "model          nll \u2193  perplexity  seconds  tokens",
        "x/a    0.6931 \u00b1 0.19           2      1.2   1,234",
        "y/b|c         failed      failed      0.5       -",
        "",
        "./y/b|c failed: its process ended\\nwith *exit status* 1",
        f"perplexity on the report split (report.jsonl, 1,200 samples), seed 0, by paddle_merge {__version__}",
    ]
    assert markdown(found).splitlines() == [
        "| model | nll \u2193 | perplexity | seconds | tokens |",
        "| --- | ---: | ---: | ---: | ---: |",
        "| a | 0.6931 \u00b1 0.19 | 2 | 1.2 | 1,234 |",
        "| b\\|c | failed | failed | 0.5 | - |",
        "",
        "- b\\|c failed: its process ended\\\\nwith \\*exit status\\* 1",
        "",
        f"perplexity on the report split (report.jsonl, 1,200 samples), seed 0, by paddle_merge {__version__}.",
    ]


def test_models_of_the_same_name_are_called_by_their_paths() -> None:
    assert "| x/m |" in markdown(evaluation(ONE, ONE, models=("x/m", "y/m")))


def test_adapters_and_names_on_a_hub_are_called_so(tmp_path: Path) -> None:
    table = markdown(evaluation(ONE, ONE, models=(f"{tmp_path}/base+{tmp_path}/ad/lora", "org/name@v1")))
    assert "| base+lora |" in table
    assert "| org/name@v1 |" in table


def test_json_has_everything() -> None:
    assert as_json(evaluation(ONE, TWO)) == {
        "evaluator": "perplexity",
        "split": "report",
        "data": "d/report.jsonl",
        "samples": 1200,
        "seed": 0,
        "objectives": {"nll": "minimize"},
        "models": [
            {
                "model": "./x/a",
                "metrics": {"perplexity": 2.0, "nll": 0.6931471},
                "standard_errors": {"nll": pytest.approx(0.1931471)},
                "seconds": 1.25,
                "cost": {"tokens": 1234.0},
            },
            {"model": "./y/b|c", "error": "its process ended\nwith *exit status* 1", "seconds": 0.5},
        ],
    }


def result(kind: str, table: str, **metrics: float) -> CardResult:
    return CardResult(kind, "r.jsonl", "report", table, metrics)


def carded(folder: Path, text: str | None) -> Callable[[], CardFile]:
    """Return how the card of a merge with this README.md is opened."""
    folder.mkdir()
    (folder / "merge_config.json").write_text("{}")
    if text is not None:
        (folder / "README.md").write_bytes(text.encode())
    return lambda: cards([str(folder)])[0]


def test_tables_in_cards_are_replaced_and_nothing_else_changes(tmp_path: Path) -> None:
    opened = carded(tmp_path / "m", "# m\r\n\r\nWords.\r\n")
    path = tmp_path / "m" / "README.md"
    opened().write(result("command", "| one |"))
    once = path.read_bytes()
    assert once.startswith(
        b"# m\r\n\r\nWords.\n\n<!-- paddle_merge evaluate command report r.jsonl -->\n## Evaluation\n\n| one |\n"
    )
    opened().write(result("command", "| one |"))
    assert path.read_bytes() == once
    path.write_bytes(once + b"More words.\n")
    opened().write(result("perplexity", "| two |"))
    opened().write(result("command", "| three |"))
    text = path.read_text()
    assert text.count("## Evaluation") == 2
    assert "| one |" not in text
    assert text.index("Words.") < text.index("| three |") < text.index("More words.") < text.index("| two |")


def test_a_card_that_is_missing_is_made(tmp_path: Path) -> None:
    opened = carded(tmp_path / "m", None)
    opened().write(result("command", "| one |"))
    assert (tmp_path / "m" / "README.md").read_text().startswith("<!-- paddle_merge evaluate command report r.jsonl -->\n")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("<!-- paddle_merge evaluate x report -->\n| half |\n", "has no <!-- end of paddle_merge evaluate x report -->"),
        ("\udcff", "it is not UTF-8 text"),
        ("---\nmodel-index: [\n---\n", "its metadata is not valid YAML; repair it, or delete it"),
        ("---\npipeline_tag: [\n---\n", "its metadata is not valid YAML"),
        ("---\nmodel-index: {a: 1}\n---\n", "its model-index is no list of models with their results"),
    ],
)
def test_cards_that_cannot_be_changed(tmp_path: Path, text: Any, told: str) -> None:
    opened = carded(tmp_path / "m", "")
    (tmp_path / "m" / "README.md").write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(ConfigError, match=re.escape(told)):
        opened()
