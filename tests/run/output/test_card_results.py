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
        CardFile(str(folder)).write(one)
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
                    "dataset": {"name": "r.jsonl", "type": "command-samples", "split": "report"},
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
        *("d", "command-samples", "command-samples", "perplexity-samples")
    ]
    assert index(once)[0]["name"] == "mine"
    again = written(tmp_path / "m", None, result(acc=0.6))
    assert [one["metrics"][0]["value"] for one in index(again)[0]["results"][1:]] == [0.6, 0.4, 2.0]
    assert again.count("| table |") == 3
    other = written(tmp_path / "m", None, result(data="other -->.jsonl", acc=0.7))
    assert [one["dataset"]["name"] for one in index(other)[0]["results"]] == ["d", *["r.jsonl"] * 3, "other -->.jsonl"]
    assert other.count("| table |") == 4
    assert "<!-- paddle_merge evaluate command report other___.jsonl -->\n" in other


def test_without_scores_only_the_table_is_written(tmp_path: Path) -> None:
    card = "---\nlicense: mit\n---\n# m\n"
    assert index(written(tmp_path / "m", card, result(acc=0.5), result()))[0]["results"][0]["metrics"][0]["value"] == 0.5
    assert not written(tmp_path / "n", "# n\n", result()).startswith("---")


FOREIGN = """\
license: mit
model-index:
# mine
- name: m
  results:
  - task: {type: x}  # why
    dataset: {name: d, type: org/d, config: no, revision: 0123}
    metrics: [{type: acc, value: 0.50}]
  # between
# of the tags
tags:
- a
"""


@pytest.mark.parametrize("ending", ["\n", "\r\n"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_lines_of_others_stay_as_they_are(tmp_path: Path, ending: str, mark: str) -> None:
    """The entry comes after theirs, before the comments that follow; replacing it leaves theirs alone, too."""
    text = f"{mark}---\n{FOREIGN}---\nWords\n".replace("\n", ending)
    path = tmp_path / "README.md"
    path.write_bytes(text.encode())
    for value in (0.25, 0.75):
        CardFile(str(tmp_path)).write(result(acc=value))
        entry = f"""\
  - task:
      type: other
    dataset:
      name: r.jsonl
      type: command-samples
      split: report
    metrics:
    - type: acc
      value: {value}
      name: acc
"""
        changed = f"{mark}---\n{FOREIGN}---\nWords\n".replace("  # between\n", f"{entry}  # between\n").replace("\n", ending)
        assert path.read_bytes().decode().startswith(changed.rstrip())


@pytest.mark.parametrize(
    ("front", "told"),
    [
        ("---\nmodel-index: [\n---\n", "its metadata is not valid YAML; repair"),
        ("---\nmodel-index: 3\n---\n", "its model-index is no list of models with their results"),
        ("---\nmodel-index: [{name: x}]\n---\n", "its model-index is no list of models with their results"),
        ("---\nmodel-index: [[]]\n---\n", "its model-index is no list of models with their results"),
        ("---\nmodel-index: [{name: x, results: []}]\n---\n", "its model-index is written within brackets"),
        ("---\nmodel-index:\n- name: x\n  results: []\n---\n", "its model-index is written within brackets"),
        ("---\n  license: mit\n  tags: [a]\n---\n", "its metadata isn't plain YAML"),
        ("---\n{license: mit}\n---\n", "its metadata isn't plain YAML"),
        ("---\n- license\n---\n", "its metadata isn't plain YAML"),
        ("---\nlicense: mit\n...\n# m\n", "its metadata is empty, or doesn't end with a line of three dashes"),
        ("---\nlicense: mit\n...\n# m\n\n---\n", "its metadata is"),
        ("---\nlicense: mit\n...\n---\n", "its metadata is"),
        ("---\nlicense: mit\n", "its metadata is empty, or doesn't end with a line of three dashes"),
    ],
)
def test_metadata_that_cannot_be_changed_is_refused(tmp_path: Path, front: str, told: str) -> None:
    card = f"{front}# m\n"
    (tmp_path / "README.md").write_text(card)
    (problem,) = CardFile(str(tmp_path)).problems()
    assert problem.startswith(f"{tmp_path}/README.md: {told}")
    assert problem.endswith("; repair it, or delete it")
    with pytest.raises(OutputError, match="; repair it, or delete it"):
        CardFile(str(tmp_path)).write(result(acc=0.5))
    assert (tmp_path / "README.md").read_text() == card


BEGIN, END = result().marks


@pytest.mark.parametrize(
    "words",
    [
        f"Between `{BEGIN}` and `{END}` is the table.",
        f" {BEGIN}\nwords",
        f"```\n{BEGIN} x\n```",
        f"{BEGIN} words {BEGIN}",
    ],
)
def test_only_whole_lines_are_marks(tmp_path: Path, words: str) -> None:
    card = written(tmp_path / "m", f"# m\n{words}\nMore.\n", result(acc=0.5), result(acc=0.6))
    assert f"\n# m\n{words}\nMore.\n\n{BEGIN}\n## Evaluation\n" in card
    assert card.count("| table |") == 1


def test_a_mark_without_its_end(tmp_path: Path) -> None:
    """It would be unclear what belongs to the table."""
    whole = f"{BEGIN}\n| old |\n{END}\n"
    for text in (f"{BEGIN}\n| old |\nWords\n", f"{BEGIN}\nWords\n{whole}", f"{BEGIN}\nWords\n{END} x\n"):
        (tmp_path / "README.md").write_text(text)
        assert CardFile(str(tmp_path)).problems() == [
            f"{tmp_path}/README.md: the line {BEGIN} has no {END} below it: add that line, or delete the former; repair it,"
            " or delete it"
        ]


def test_edits_links_and_other_files_stay(tmp_path: Path) -> None:
    """What was written into the card meanwhile; a link in its place; a file of the name that a partial card had."""
    kept = tmp_path / "cards" / "m.md"
    kept.parent.mkdir()
    kept.write_text("# m\n")
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "README.md").symlink_to(kept)
    card = CardFile(str(tmp_path / "m"))
    assert card.problems() == []
    kept.write_text("# m\nEdited.\n")
    card.write(result(acc=0.5))
    assert "Edited." in kept.read_text()
    assert (tmp_path / "m" / "README.md").is_symlink()
    assert [one.name for one in kept.parent.iterdir()] == ["m.md"]


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
