"""Test model cards with the libraries that read them: huggingface_hub parses the metadata and the results, and the lines of
Python in a card load the model in the library that it names.

test_loaders.py says what this needs.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from paddle_merge import MergeConfig, merge
from paddle_merge.run.output.card_results import CardFile, CardResult
from tests.loaders.test_loaders import config, pytestmark, random_state  # noqa: F401 - pytest reads pytestmark
from tests.support import libraries
from tests.support.checkpoints import write

LAYOUTS = {"hf": "transformers", "paddlenlp": "paddlenlp", "paddleformers": "paddleformers"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two models with cards, and their merge in each layout."""
    folder = tmp_path_factory.mktemp("cards")
    settings = {**config("llama", "untied"), "architectures": ["LlamaForCausalLM"]}
    for seed, name in enumerate(("math", "code")):
        write(folder / name, random_state("llama", "untied", seed), format="pt", config=settings)
        (folder / name / "README.md").write_text(
            "---\nlicense: other\nlicense_name: qwen\nlicense_link: https://x.org/LICENSE\nlanguage: no\n"
            f"base_model: org/{name}\npipeline_tag: text-generation\n---\n# {name}\n"
        )
    models = [str(folder / "math"), str(folder / "code")]
    for layout in LAYOUTS:
        out = str(folder / layout)
        merge(MergeConfig(models, output_path=out, output_layout=layout, merge_method="slerp"), progress=False)
    return folder


def answer(folder: Path, job: str, layout: str, library: str) -> dict[str, Any]:
    """Return what a script makes of the card of a merge."""
    result = folder / f"{job}-{layout}.json"
    libraries.run({library: ("cards.py", job, str(folder / layout / "README.md"), str(result))})
    found: dict[str, Any] = json.loads(result.read_text())
    return found


def test_huggingface_hub_reads_the_metadata_and_the_results(folder: Path) -> None:
    for split, loss in (("search", 1.5), ("report", 1.25)):
        scores = {"nll": loss, "perplexity": 3.5}
        CardFile(str(folder / "hf")).write(CardResult("perplexity", f"{split}.jsonl", split, "| t |", scores))
    found = answer(folder, "read", "hf", "transformers")
    assert found["metadata"] == {
        "base_model": ["org/math", "org/code"],
        "base_model_relation": "merge",
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "license": "other",
        "license_name": "qwen",
        "license_link": "https://x.org/LICENSE",
        "language": ["no"],
        "tags": ["merge", "paddle_merge", "slerp"],
    }
    assert found["name"] == "hf"
    rows = [(one["dataset_name"], one["dataset_split"], one["metric_type"], one["metric_value"]) for one in found["results"]]
    assert rows == [
        ("search.jsonl", "search", "nll", 1.5),
        ("search.jsonl", "search", "perplexity", 3.5),
        ("report.jsonl", "report", "nll", 1.25),
        ("report.jsonl", "report", "perplexity", 3.5),
    ]
    assert {one["task_type"] for one in found["results"]} == {"text-generation"}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_lines_of_the_card_load_the_model(folder: Path, layout: str) -> None:
    assert f"library_name: {LAYOUTS[layout]}\n" in (folder / layout / "README.md").read_text()
    assert "LlamaForCausalLM" in answer(folder, "load", layout, LAYOUTS[layout])["class"]
