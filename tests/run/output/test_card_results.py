"""Test results in model cards: the metadata that hubs read, in which nothing else changes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from paddle_merge.errors import OutputError
from paddle_merge.run.output.card_results import CardFile, CardResult


def result(kind: str = "command", split: str = "report", data: str = "r.jsonl", **metrics: float) -> CardResult:
    return CardResult(kind, data, split, "| table |", metrics)


def written(folder: Path, text: str | None, *results: CardResult) -> str:
    """Return a card after results were written into it, one after the other."""
    folder.mkdir(exist_ok=True)
    path = folder / "README.md"
    if text is not None:
        path.write_text(text)
    for one in results:
        CardFile.read(str(folder)).write(one)
    return path.read_text()


def index(card: str) -> Any:
    return yaml.safe_load(card.split("---\n")[1]).get("model-index")


def test_scores_are_an_entry_of_the_models_index(tmp_path: Path) -> None:
    card = written(tmp_path / "m", "---\nlicense: mit  # mine\npipeline_tag: fill-mask\n---\n# m\n", result(acc=0.71234567))
    assert card.startswith("---\nlicense: mit  # mine\npipeline_tag: fill-mask\nmodel-index:\n")
    assert index(card) == [
        {
            "name": "m",
            "results": [
                {
                    "task": {"type": "fill-mask"},
                    "dataset": {"name": "r.jsonl", "type": "command samples", "split": "report"},
                    "metrics": [{"type": "acc", "value": 0.712346, "name": "acc"}],
                }
            ],
        }
    ]


@pytest.mark.parametrize(
    ("kind", "task"),
    [
        ("perplexity", "text-generation"),
        ("multiple_choice", "multiple-choice"),
        ("lm_eval", "text-generation"),
        ("python", "other"),
    ],
)
def test_tasks_by_evaluator(tmp_path: Path, kind: str, task: str) -> None:
    (entry,) = index(written(tmp_path / "m", "# m\n", result(kind, data="", x=1.0)))[0]["results"]
    assert entry["task"] == {"type": task}
    assert entry["dataset"]["name"] == kind


def test_entries_are_replaced_with_their_tables_and_others_stay(tmp_path: Path) -> None:
    entry = "  - task: {type: x}\n    dataset: {name: d, type: d}\n    metrics: []\n"
    others = f"---\nmodel-index:\n- name: mine\n  results:\n{entry}---\n"
    once = written(tmp_path / "m", others, result(acc=0.5), result(split="search", acc=0.4), result("perplexity", nll=2.0))
    assert [one["dataset"]["type"] for one in index(once)[0]["results"]] == [
        *("d", "command samples", "command samples", "perplexity samples")
    ]
    assert index(once)[0]["name"] == "mine"
    again = written(tmp_path / "m", None, result(data="other.jsonl", acc=0.6))
    assert [one["dataset"]["name"] for one in index(again)[0]["results"]] == ["d", "r.jsonl", "r.jsonl", "other.jsonl"]
    assert again.count("| table |") == 3


def test_a_result_without_scores_removes_the_old_ones(tmp_path: Path) -> None:
    card = "---\nlicense: mit\n---\n# m\n"
    assert index(written(tmp_path / "m", card, result(acc=0.5), result())) is None
    assert written(tmp_path / "m", None).startswith(card)
    assert not written(tmp_path / "n", "# n\n", result()).startswith("---")


@pytest.mark.parametrize("metadata", ["model-index: [", "model-index: 3", "model-index: [{name: x}]", "model-index: [[]]"])
def test_a_damaged_index_is_one_sentence(tmp_path: Path, metadata: str) -> None:
    card = f"---\n{metadata}\n---\n# m\n"
    with pytest.raises(OutputError, match=r"README\.md: its model-index is .*; repair it, or delete it"):
        written(tmp_path / "m", card, result(acc=0.5))
    assert (tmp_path / "m" / "README.md").read_text() == card


@settings(deadline=None, max_examples=40)
@given(
    keys=st.lists(
        st.sampled_from(["license: mit", "tags:\n- a\n- b", "# words", "language: 'no'", "x: |\n  two\n  lines", ""])
    ),
    body=st.text(st.characters(codec="utf-8", exclude_characters="\r\x00"), max_size=30),
    end=st.sampled_from(["", "\n", "\n\nmore"]),
)
def test_everything_else_stays(tmp_path_factory: pytest.TempPathFactory, keys: list[str], body: str, end: str) -> None:
    front = "".join(f"{key}\n" for key in ["first: 1", *keys])
    text = f"---\n{front}---\n{body}{end}"
    card = written(tmp_path_factory.mktemp("m"), text, result(acc=0.5))
    assert card.startswith(f"---\n{front}model-index:\n")
    assert body.rstrip() in card
    assert index(card)[0]["results"][0]["metrics"][0]["value"] == 0.5
