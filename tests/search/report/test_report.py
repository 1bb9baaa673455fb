"""Test what people see of a search: the page, the pictures, the table, and the sentences."""

from __future__ import annotations

import json
import re
import struct
import sys
import zlib
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from paddle_merge.commands.evolve.show import lines
from paddle_merge.search.asked import Asked
from paddle_merge.search.contract import Candidate, Scores
from paddle_merge.search.evolve import evolve
from paddle_merge.search.gene import Gene
from paddle_merge.search.job import Result
from paddle_merge.search.outcome import Outcome, Scored
from paddle_merge.search.report import summary
from paddle_merge.search.report.history import Heat, heats, history
from paddle_merge.search.report.page import page
from tests.search.test_paths import TWO as TWO_PARTS
from tests.search.test_paths import Distance, here, target  # noqa: F401 - here is a fixture
from tests.support.html_pages import Reader
from tests.support.searches import RECIPE, state, workshop

TWO = """
evaluate: {python: "unused:unused"}
objectives: {reward: maximize, tax: minimize}
data: {search: one.jsonl, report: two.jsonl}
optimizer: random
evaluations: 30
seed: 2
"""
ONE = TWO.replace(", tax: minimize", "").replace("random", "cma")


class Judge:
    """Scores by distances from two models, with a value per tensor; of every seventh candidate it fails."""

    metrics: tuple[str, ...] = ("reward", "tax")

    def __init__(self, fails: bool = False):
        self._fails = fails
        self._wanted = [state(1), state(2)]

    def count(self, split: str) -> int:
        return 9

    def __call__(self, candidate: Candidate, split: str, seed: int, samples: Sequence[int] | None) -> Scores:
        if self._fails and candidate.title.startswith("candidate") and int(candidate.title.split()[1]) % 7 == 3:
            raise RuntimeError("<no> luck")
        held = candidate.state_dict()
        names = sorted(held) if samples is None else [sorted(held)[place] for place in samples]
        far = [[float(np.abs(held[name] - wanted[name]).mean()) for name in names] for wanted in self._wanted]
        per = {"reward": [1 - one for one in far[0]], "tax": far[1]}
        return Scores({name: float(np.mean(its)) for name, its in per.items()}, per, cost={"tokens": 3000})


def checked(path: Path) -> str:
    """The text of a page that needs nothing but itself."""
    text = path.read_text()
    reader = Reader()
    reader.feed(text)
    reader.close()
    assert reader.open == []
    assert reader.addresses == []
    assert not reader.tags & {"script", "link", "img", "iframe", "object", "base"}
    for word in ("http", "url(", "@import"):
        assert word not in text
    assert not re.search(r"\b(nan|inf|None)\b", text)
    return reader.text


def colours(path: Path) -> int:
    """How many different rows of pixels a PNG has, by its own format: 8 bits, not interlaced."""
    data, place, pixels = path.read_bytes(), 8, b""
    assert data.startswith(b"\x89PNG\r\n\x1a\n")
    while place < len(data):
        (length,) = struct.unpack(">I", data[place : place + 4])
        kind = data[place + 4 : place + 8]
        body = data[place + 8 : place + 8 + length]
        assert zlib.crc32(kind + body) == struct.unpack(">I", data[place + 8 + length : place + 12 + length])[0]
        if kind == b"IHDR":
            width, height = struct.unpack(">II", body[:8])
            assert width > 300
            assert height > 200
        pixels += body if kind == b"IDAT" else b""
        place += 12 + length
    raw = zlib.decompress(pixels)
    stride = len(raw) // height
    return len({raw[row * stride : (row + 1) * stride] for row in range(height)})


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Outcome]:
    """A search with two objectives and failures."""
    folder = tmp_path_factory.mktemp("two")
    path = workshop(folder, TWO)
    return folder / "out", evolve(Asked(str(path), str(folder / "out"), evaluator=Judge(fails=True)), progress=False)


def test_the_page_of_two_objectives(two: tuple[Path, Outcome]) -> None:
    folder, outcome = two
    text = checked(folder / "report.html")
    for one in (outcome.best, *outcome.baselines):
        for result in (one.known, outcome.reported[one.title]):
            assert all(summary.cell(result, name) in text for name in ("reward", "tax"))
    report = json.loads((folder / "report.json").read_text())
    tuned = report["baselines"][-1]["report"]
    value, error = tuned["metrics"]["reward"], tuned["standard_errors"]["reward"]
    assert f"{value:.3f} ± {error:.3f}" in text
    for words in (
        "30 candidates by random in",
        "4 of which failed",
        "RuntimeError: <no> luck4candidate 3",
        "reward over the candidates",
        "tax over the candidates",
        "tax and reward",
        "weight by model and layer: 0 to 1.5",
        "3000",
        "4 failed and are left out.",
    ):
        assert words in text
    assert (folder / "best.yaml").read_text() in text
    assert all(one.title in text for one in outcome.front)
    assert f"{outcome.best.title} (the result)" in text


def test_the_pictures_open_and_are_not_empty(two: tuple[Path, Outcome]) -> None:
    folder, _ = two
    for name in ("score.png", "front.png", "recipe.png"):
        assert colours(folder / name) > 20


@pytest.mark.exhaustive
def test_one_objective_by_a_race_has_no_front(tmp_path: Path) -> None:
    """And of the two-objective search that was in the folder before, no picture remains."""
    path = workshop(tmp_path, ONE + "race: {first: 3}\n")
    out = tmp_path / "out"
    out.mkdir()
    (out / "front.png").write_bytes(b"old")
    (out / "journal.jsonl").write_text("")
    outcome = evolve(Asked(str(path), str(out), overwrite=True, evaluator=Judge()), progress=False)
    text = checked(out / "report.html")
    assert "Of a race, the best are those that were scored on all samples." in text
    assert "scored on fewer samples" in text
    assert "Failed candidates" not in text
    assert not (out / "front.png").exists()
    its = history(outcome, "reward")
    assert len(its.full) + len(its.partial) == 27
    assert len(its.full) == 9  # of 9 candidates, 3 are scored on all samples, not only on 3
    assert max(one.y for one in its.full) == its.best[-1].y
    assert len(its.means) == 3


@pytest.mark.exhaustive
def test_without_matplotlib_there_is_the_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    path = workshop(tmp_path, ONE.replace("30", "9"))
    evolve(Asked(str(path), str(tmp_path / "out"), evaluator=Judge()), progress=False)
    assert checked(tmp_path / "out/report.html")
    assert not list((tmp_path / "out").glob("*.png*"))
    assert 'python -m pip install "paddle_merge[search]"' in caplog.text


def test_the_table_and_what_comes_next(two: tuple[Path, Outcome]) -> None:
    folder, outcome = two
    said = lines(outcome, str(folder))
    text = "\n".join(said)
    assert said[0].split() == ["reward", "tax", "seconds", "tokens"]
    assert said[1] == "On the search split:"
    assert said[8] == "On the report split:"
    assert [line.split()[0].rpartition("/")[2] for line in said[2:5]] == ["math", "code", "base"]
    assert [line.split()[:3] for line in said[14:15]] == [["the", "result", "(candidate"]]
    assert all("±" in line for line in (*said[2:8], *said[9:15]))
    assert "4 failed with: RuntimeError: <no> luck" in text
    assert said[-1] == f"    python -m paddle_merge merge {folder}/best.yaml --output_path ./again"
    assert max(map(len, said[:15])) <= 100


def scored(title: str, values: Sequence[float], path: str = "") -> Scored:
    result = Result(0, {"reward": float(np.mean(values))}, {"reward": list(values)})
    return Scored(title, result, values=() if path else (0.5,), path=path)


def outcome_of(best: Scored, baselines: Sequence[Scored], reported: dict[str, Result], direction: str = "maximize") -> Any:
    return SimpleNamespace(
        spec=SimpleNamespace(objectives={"reward": direction}), best=best, baselines=baselines, reported=reported
    )


def test_whether_a_difference_may_be_chance() -> None:
    """Differences per sample 1, 1, 0, 0: mean 0.5, standard deviation 0.577, standard error of the mean 0.289."""
    best, other = scored("candidate 1", [1, 2, 3, 4]), scored("the uniform merge", [0, 1, 3, 4])
    (sentence, fair) = summary.compared(outcome_of(best, [other], {}))
    assert sentence == (
        "On the search split the result's reward is 0.5 better than that of the uniform merge (standard error of the"
        " difference: 0.29), which may be chance."
    )
    assert "chosen by" in fair
    reported = {"candidate 1": Result(0, {"reward": 3.0}), "the uniform merge": Result(0, {"reward": 4.0})}
    assert summary.compared(outcome_of(best, [other], reported)) == [
        "On the report split the result's reward is 1 worse than that of the uniform merge."
    ]
    assert "1 better" in summary.compared(outcome_of(best, [other], reported, "minimize"))[0]
    failed = {**reported, "candidate 1": Result(0, error="no luck")}
    assert summary.compared(outcome_of(best, [other], failed)) == []
    assert summary.compared(outcome_of(best, [scored("./a", [1], path="./a")], reported)) == []


def test_cells() -> None:
    assert summary.cell(Result(0, {"loss": 0.12346}), "loss") == "0.1235"
    assert summary.cell(Result(0, {"loss": 2.0}, {"loss": [1.0, 3.0]}), "loss") == "2.0 ± 1.0"
    assert summary.cell(Result(0, {"loss": 0.5}, {"loss": [0.0, 1.0] * 500}), "loss") == "0.500 ± 0.016"
    assert summary.cell(Result(0, {"loss": 1.0}, {"loss": [1.0, 1.0]}), "loss") == "1"
    assert summary.cell(Result(0, {"loss": 2e9}, {"loss": [1e9, 3e9]}), "loss") == "2e+09 ± 1e+09"
    assert summary.cell(Result(0, error="no luck"), "loss") == "failed"
    assert summary.cell(Result(0, {"other": 1.0}), "loss") == "-"
    assert summary.cell(None, "loss") == "-"


def test_the_best_recipe_by_model_and_layer() -> None:
    def layered(group: str, count: int, word: str = "layer", **more: Any) -> list[Gene]:
        return [Gene(f"{group}, {word} {number}", group, layer=number, **more) for number in range(count)]

    genes = [
        *layered("./a: weight", 3, high=1.5),
        *layered("./b: weight", 3, low=-1.0),
        *layered("./b: density", 2, "group", choices=(0.2, 0.5)),
        Gene("lambda", "lambda", 0.5, 2.0, log=True),
        Gene("merge_method", "merge_method", choices=("ties", "linear")),
        *layered("./a: rescale", 2, choices=(True, False)),
        Gene("merge_type", "merge_type", choices=("mean", "sum")),
    ]
    found, others = heats(genes, [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.2, 0.5, 1.25, "ties", True, False, "mean"])
    assert found == [
        Heat("weight", ["./a", "./b"], [[0.1, 0.2, 0.3], [0.4, 0.5, 0.6]], -1.0, 1.5),
        Heat("density", ["./b"], [[0.2, 0.5]], 0.2, 0.5, by="group of layers"),
        Heat("rescale", ["./a"], [[1.0, 0.0]], 0.0, 1.0, "{:.0f}"),
    ]
    assert others == [
        ("lambda", "0.5 to 2, log", "1.25"),
        ("merge_method", "ties, linear", "ties"),
        ("merge_type", "mean, sum", "mean"),
    ]


def test_a_recipe_without_layers_and_names_with_tags(tmp_path: Path) -> None:
    recipe = RECIPE.replace(", by: layer", "").replace("task_arithmetic", "{{choose: [task_arithmetic, ties]}}")
    path = workshop(tmp_path, ONE.replace("cma", "random").replace("30", "10").replace("reward", '"a<b>$x"'), recipe=recipe)

    class Odd(Judge):
        metrics = ("a<b>$x",)

        def __call__(self, *asked: Any) -> Scores:
            found = super().__call__(*asked)
            return Scores({"a<b>$x": found.metrics["reward"]})

    outcome = evolve(Asked(str(path), str(tmp_path / "out"), evaluator=Odd()), progress=False)
    text = checked(tmp_path / "out/report.html")
    assert "a<b>$x over the candidates" in text
    assert "task_arithmetic, ties" in text
    assert "±" not in text
    assert colours(tmp_path / "out/score.png") > 20
    assert not (tmp_path / "out/recipe.png").exists()
    assert page(outcome, "x", "y").count("<svg") == 1


def test_a_path_by_model_and_layer() -> None:
    """Of models of two and three layers; a scale counts where its layer is taken."""
    taken = [
        Gene(f"{group}: layer {layer}", group, choices=(True, False), layer=layer)
        for group, depth in (("./a, turn 0", 2), ("./b, turn 0", 3))
        for layer in range(depth)
    ]
    scales = [
        Gene(f"./b, turn 0: scale before layer {layer}", "./b, turn 0: scale", 0.5, 2.0, layer=layer, needs=2 + layer)
        for layer in range(3)
    ]
    found, others = heats([*taken, *scales], (True, False, True, False, True, 0.75, 1.5, 2.0))
    assert found == [
        Heat("layers taken", ["./a, turn 0", "./b, turn 0"], [[1, 0, None], [1, 0, 1]], 0, 1, "{:.0f}"),
        Heat("scale", ["./b, turn 0"], [[0.75, None, 2.0]], 0.5, 2.0),
    ]
    assert others == []


@pytest.mark.exhaustive
def test_the_page_of_a_search_in_two_parts(here: Path) -> None:  # noqa: F811
    (here / "search.yaml").write_text(TWO_PARTS.replace("evaluations: 24", "evaluations: 8").replace("72", "24"))
    a = target(here, [("a", 0, 1.0), ("a", 2, 1.0)])
    outcome = evolve(Asked("search.yaml", "best", evaluator=Distance(a)), progress=False)  # type: ignore[arg-type]
    text = checked(here / "best/report.html")
    for words in (
        "8 candidates by cma in",
        "s, then 24 candidates by cat_cma in",
        "loss over the candidates, everything but paths",
        "loss over the candidates, paths",
        "./a: weight0 to 1",
        "layers taken by model and layer: 0 to 1",
        "scale by model and layer: 0.5 to 2",
    ):
        assert words in text
    assert colours(here / "best/score.png") > 20
    assert colours(here / "best/recipe.png") > 20
    assert any("8 candidates by cma" in line for line in lines(outcome, "best"))
