"""Test what a plan says of its inputs' origins: names for publication, licences, and warnings before the merge."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from paddle_merge import MergeConfig, merge
from paddle_merge.checkpoints.origins import License, Origin
from paddle_merge.plan.provenance import Provenance
from paddle_merge.recipe.request import Request
from paddle_merge.run.merge import prepare
from tests.support.checkpoints import write

MIT, LLAMA = License(("mit",)), License(("llama3",))
GRPO = "tags: [trl, grpo]"


def model(folder: Path, metadata: str | None = None) -> str:
    write(folder, {"w": np.arange(6.0).reshape(2, 3) + len(folder.name)})
    if metadata is not None:
        (folder / "README.md").write_text(f"---\n{metadata}\n---\n")
    return str(folder)


def warnings(*models: str, **fields: Any) -> list[str]:
    """Return the plan's warnings about licences, rewards and cards."""
    plan, _, _ = prepare(Request.of(MergeConfig(model_path_list=list(models), output_path=f"{models[0]}-out", **fields)))
    return [one for one in plan.warnings if "licenses" in one or "rewards" in one or "README.md" in one]


# --- names and facts ---------------------------------------------------------------------------------------------------


def test_models_are_called_by_their_names_or_the_ends_of_their_paths() -> None:
    known = Provenance(
        (
            (Origin("org/name@v1", "org/name", "v1"), Origin("/secret/user/math")),
            (Origin("/cache/snapshots/abc", "org/other", "abc"),),
            (Origin("/secret/run1/checkpoint-5"),),
            (Origin("/secret/run2/checkpoint-5"),),
        )
    )
    assert known.titles == ["org/name@v1+math", "org/other@abc", "run1/checkpoint-5", "run2/checkpoint-5"]
    assert known.public("/cache/snapshots/abc") == "org/other@abc"
    assert known.public("org/name@v1+/secret/user/math") == "org/name@v1+./math"
    assert known.public("/secret/a/tokenizer") == "./tokenizer"
    assert known.base_models == ["org/name", "org/other"]


def test_no_two_folders_are_called_alike(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor is one called in two ways, however its path is written."""
    monkeypatch.chdir(tmp_path)
    inputs = ((Origin("a/math/"),), (Origin(f"{tmp_path}/a/math"),), (Origin("code"),))
    known = Provenance(inputs, (f"{tmp_path}/b/math/",))
    assert known.titles == ["a/math", "a/math", "code"]
    assert known.public(f"{tmp_path}/b/math") == "./b/math"
    assert known.public("a/../a/math") == "./a/math"
    assert known.public("org/tokens") == "org/tokens"


def test_a_license_is_given_only_if_all_state_it() -> None:
    def of(*stated: License | None) -> Provenance:
        return Provenance(tuple((Origin(f"./m{place}", license=one),) for place, one in enumerate(stated)))

    assert of(MIT, MIT).license == MIT
    assert of(MIT, MIT).note == "license mit"
    assert of(MIT, None).license is None
    assert of(MIT, None).note == "no license, because not all inputs state one: mit (./m0); none stated (./m1)"
    assert of(MIT, LLAMA).license is None
    assert of(MIT, LLAMA).note == "", "a warning says more"
    assert (of(None, None).license, of(None, None).note) == (None, "")
    other, link = License(("other",)), License(("other",), link="https://x.org/LICENSE")
    assert of(other).license == other
    assert of(other, other).license is None, "they may be different ones"
    assert of(link, link).license == link
    assert "licenses of the inputs differ: other, without a name (./m0, ./m1);" in of(other, other).warnings([])[0]


def test_languages_are_all_that_the_inputs_have_and_a_task_is_common() -> None:
    inputs = ((Origin("a", languages=("en", "no"), task="text-generation"),), (Origin("b", languages=("zh", "en")),))
    assert Provenance(inputs).languages == ["en", "no", "zh"]
    assert Provenance(inputs).task == "text-generation"
    assert Provenance((*inputs, (Origin("c", task="fill-mask"),))).task == ""


# --- warnings ----------------------------------------------------------------------------------------------------------


def test_different_licenses_are_told_before_the_merge(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    a, b, c = model(tmp_path / "a", "license: mit"), model(tmp_path / "b", "license: llama3"), model(tmp_path / "c")
    told = (
        f"the licenses of the inputs differ: mit ({a}); llama3 ({b}); none stated ({c}); the model card names none in its"
        " metadata: check under which one the merge may be published"
    )
    assert warnings(a, b, c) == [told]
    assert warnings(a, c) == []
    with caplog.at_level(logging.WARNING, "paddle_merge"):
        merge(MergeConfig(model_path_list=[a, b, c], output_path=str(tmp_path / "o"), dry_run=True))
    assert told in caplog.text
    assert not (tmp_path / "o").exists()


def test_the_plan_says_which_license_the_card_gives(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    models = [model(tmp_path / name, "license: mit") for name in "ab"]
    merge(MergeConfig(model_path_list=models, output_path=str(tmp_path / "o"), dry_run=True))
    assert "\ncard     license mit\n" in capsys.readouterr().out


def test_a_card_that_cannot_be_read_stops_no_merge(tmp_path: Path) -> None:
    a, b = model(tmp_path / "a", "license: [mit"), model(tmp_path / "b")
    (told,) = warnings(a, b)
    assert told.startswith(f"{a}/README.md: its metadata is not valid YAML: ")
    assert told.endswith("; the merge's card is made without it")


SIGNS = ["ties", "dare_ties", "della", "breadcrumbs_ties"]


@pytest.mark.parametrize("method", SIGNS)
def test_verifiable_rewards_and_elected_signs(tmp_path: Path, method: str) -> None:
    a, b, base = model(tmp_path / "a", GRPO), model(tmp_path / "b", "tags: [sft]"), model(tmp_path / "base", GRPO)
    (told,) = warnings(a, b, merge_method=method, base_model_path=base)
    assert told == (
        f"models trained by reinforcement learning with verifiable rewards: {a} (its README.md has the tag grpo); their"
        " changes are sparse and nearly orthogonal, and electing signs loses much of what they do (arXiv 2606.18521):"
        " consider --merge_method ram"
    )


@pytest.mark.parametrize(
    ("names", "fields"),
    [
        ("ab", {"merge_method": "ram", "base_model_path": "base"}),
        ("ab", {"merge_method": "dare_linear", "base_model_path": "base"}),
        ("ab", {}),
        ("c", {"merge_method": "ties", "base_model_path": "base"}),
        ("a", {"merge_method": "ties", "base_model_path": "base"}),  # nothing is elected
        ("cd", {"merge_method": "ties", "base_model_path": "base"}),
    ],
)
def test_no_false_alarms(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, names: str, fields: dict[str, Any]) -> None:
    monkeypatch.chdir(tmp_path)
    for name in "abcd":
        model(tmp_path / name, GRPO if name in "ab" else "tags: [trl, dpo]")
    model(tmp_path / "base", GRPO)
    assert warnings(*names, **fields) == []


def test_signs_that_an_earlier_stage_elects_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("a", "b", "c", "base"):
        model(tmp_path / name, GRPO if name in "ab" else None)
    recipe = """\
name: first
merge_method: {first}
base_model: base
models: [{{model: a, parameters: {{weight: 1}}}}, {{model: b, parameters: {{weight: 1}}}}]
---
merge_method: linear
models: [{{model: first, parameters: {{weight: 1}}}}, {{model: c, parameters: {{weight: 1}}}}]
"""
    found = {}
    for method in ("ties", "task_arithmetic"):
        plan, _, _ = prepare(Request.of(MergeConfig(recipe_yaml=recipe.format(first=method), output_path="o")))
        found[method] = [one for one in plan.warnings if "rewards" in one]
    assert found["task_arithmetic"] == []
    assert len(found["ties"]) == 1
    assert "a (its README.md has the tag grpo), b (its README.md has the tag grpo)" in found["ties"][0]
