"""Test the account of a merge: every tensor of every input is used, or left out for a reason; and dry runs predict it."""

from __future__ import annotations

import dataclasses
import json
import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from paddle_merge import CheckpointError, MergeConfig, OutputError, merge
from paddle_merge.backends.budget import DEFAULT_BUDGET
from paddle_merge.plan import memory_estimate
from paddle_merge.plan.account import Account, account
from paddle_merge.plan.describe import _names
from paddle_merge.plan.plan import Plan
from paddle_merge.plan.planner import make_plan
from paddle_merge.recipe.request import Request
from paddle_merge.run import time_estimate
from paddle_merge.run.output import account_file
from tests.conversion import test_layout
from tests.conversion.lora import test_lora
from tests.support.checkpoints import write
from tests.support.specimens import KINDS


def accounted(**fields: Any) -> Account:
    return account(make_plan(Request.of(MergeConfig(**fields)).checked_recipe()))


def holds(found: Account, fields: Any) -> None:
    """Used and left out are all that the inputs' own headers name; and every tensor of the output has sources in each."""
    for one in found.inputs:
        assert len(one.fates) == len({fate.name for fate in one.fates}) > 0
        for fate in one.fates:
            assert bool(fate.into) != bool(fate.why), fate
    names = {made.name for made in found.made}
    assert {name for one in found.inputs for fate in one.fates for name in fate.into} == names
    assert all(all(made.sources) for made in found.made)
    assert len(found.made) == len(names)


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_input(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number, specimen in enumerate(KINDS[kind]()):
        folder = tmp_path / str(number)
        for path, content in specimen.files.items():
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).write_bytes(content)
        monkeypatch.chdir(folder)
        found = accounted(**{name: value for name, value in specimen.fields.items() if name != "copy_file_list"})
        holds(found, specimen.fields)
        assert not any(one.left_out for one in found.inputs)


def llama(folder: Path, layout: str, seed: int, tied: bool) -> str:
    state = test_layout.laid_out(test_layout.llama(seed, tied=tied), layout)
    config = {**test_layout.CONFIG, "tie_word_embeddings": tied}
    return str(write(folder, state, "bfloat16", format="pt" if layout == "hf" else "np", config=config))


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("one", ["hf", "paddleformers", "paddlenlp"])
@pytest.mark.parametrize("other", ["hf", "paddleformers", "paddlenlp"])
def test_every_layout(tmp_path: Path, one: str, other: str, tied: bool) -> None:
    models = [llama(tmp_path / "a", one, 1, tied), llama(tmp_path / "b", other, 2, tied)]
    found = accounted(model_path_list=models)
    holds(found, models)
    notes = {made.name: made.notes for made in found.made}
    transposed = any("transposed [16, 24] -> [24, 16] in" in note or "transposed [24, 16] -> [16, 24] in" in note
                 for note in next(value for name, value in notes.items() if "gate_proj" in name))  # fmt: skip
    assert transposed == ((one == "hf") != (other == "hf"))
    assert not any(one.left_out for one in found.inputs)
    tie = [note for note in notes.get("lm_head.weight", ()) if re.match(r"tied to \w+\.embed_tokens\.weight: ", note)]
    assert bool(tie) == (tied and "lm_head.weight" in notes)


def test_a_tied_head_that_is_stored_is_left_out(tmp_path: Path) -> None:
    state = test_layout.llama(1, tied=True)
    state["lm_head.weight"] = state["model.embed_tokens.weight"]
    config = {**test_layout.CONFIG, "tie_word_embeddings": True}
    for name in "ab":
        write(tmp_path / name, state, "bfloat16", format="pt", config=config)
    found = accounted(model_path_list=[str(tmp_path / "a"), str(tmp_path / "b")])
    holds(found, None)
    for one in found.inputs:
        assert [(fate.name, fate.why) for fate in one.left_out] == [
            ("lm_head.weight", "the same as the embedding's, to which lm_head is tied")
        ]


def test_what_is_lost_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A plan that reads but half of a tensor, or forgets one, doesn't get through."""
    for name in "ab":
        write(tmp_path / name, {"w": np.ones((4, 6)), "v": np.ones(3)})
    plan = make_plan(Request.of(MergeConfig(model_path_list=[str(tmp_path / "a"), str(tmp_path / "b")])).checked_recipe())
    with pytest.raises(CheckpointError, match=r"tensor 'v', 0 of 3 elements are read") as caught:
        account(dataclasses.replace(plan, tensors=tuple(one for one in plan.tensors if one.name != "v")))
    assert len(caught.value.problems) == 2
    from paddle_merge.checkpoints.views import select

    w = next(one for one in plan.tensors if one.name == "w")
    half = dataclasses.replace(w, sources=(select(w.sources[0], 1, [(0, 3)], "w"), w.sources[1]))
    with pytest.raises(CheckpointError, match=r"a: of tensor 'w', 12 of 24 elements are read"):
        account(dataclasses.replace(plan, tensors=tuple(half if one is w else one for one in plan.tensors)))


def test_integers_are_copied_and_adapters_named(tmp_path: Path) -> None:
    (a,) = [write(tmp_path / "a", {"w": np.ones((4, 6)), "steps": np.arange(3)})]
    b = write(tmp_path / "b", {"w": np.ones((4, 6)), "steps": np.arange(3)})
    made = {one.name: one for one in accounted(model_path_list=[str(a)], base_model_path=str(b)).made}
    assert made["steps"].how == f"copied from {b}/model.safetensors, equal in all inputs"
    assert made["w"].how == "linear of 1 model and the base"
    assert made["w"].sources == (("w",), ("w",))


def test_adapters_and_what_they_replace(tmp_path: Path) -> None:
    base = llama(tmp_path / "base", "hf", 1, tied=False)
    pairs = test_lora.factors(2)
    adapter = test_lora.paddle(tmp_path / "lora", {**test_lora.in_paddle(pairs), "model.norm.weight": np.ones(16)})
    found = accounted(lora_model_path=adapter, base_model_path=base)
    holds(found, None)
    checkpoint, lora = found.inputs
    assert lora.role == "adapter of model 1"
    assert (len(lora.fates), lora.left_out) == (2 * len(pairs) + 1, [])
    assert [(fate.name, fate.why) for fate in checkpoint.left_out] == [
        ("model.norm.weight", "an adapter replaces 'model.norm.weight'")
    ]
    made = {one.name: one for one in found.made}
    q_proj = made[f"{next(iter(pairs))}.weight"]
    assert (q_proj.how, q_proj.notes) == ("folded", ("plus an adapter's r=3, scale 2",))
    assert made["model.embed_tokens.weight"].how == "as it is"


# --- a dry run -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def pair(tmp_path: Path) -> dict[str, Any]:
    random = np.random.default_rng(0)
    for name in "ab":
        layers = {f"layers.{n}.w": random.standard_normal((40, 50)) for n in range(12)}
        write(tmp_path / name, {**layers, "norm": random.standard_normal(7)})
    return {"model_path_list": [str(tmp_path / "a"), str(tmp_path / "b")], "output_path": str(tmp_path / "deep" / "out")}


def test_a_dry_run_tells_everything_and_leaves_nothing(
    pair: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {path: path.stat().st_mtime_ns for path in [tmp_path, *tmp_path.rglob("*")]}
    merge(MergeConfig(**pair, dry_run=True))
    assert {path: path.stat().st_mtime_ns for path in [tmp_path, *tmp_path.rglob("*")]} == before
    text = capsys.readouterr().out
    assert f"from     {tmp_path / 'a'} (model 1): 13 tensors, all used\n" in text
    assert re.search(r"^  layers\.\{0\.\.11\}\.w +12 x \[40, 50\] float32: linear of 2 models$", text, re.M)
    assert re.search(r"^disk     [\d.]+ KB, of [\d.]+ [GT]B free$", text, re.M)
    assert re.search(r"^time     about [\d.]+ s \(starting [\d.]+ s, reading [\d.]+ s, computing", text, re.M)


def test_the_account_in_a_file(pair: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "account.json"
    for dry_run in (True, False, True):  # an account may be replaced
        merge(MergeConfig(**pair, dry_run=dry_run, overwrite=True, account=str(path)))
        content = json.loads(path.read_text())
        assert [(one["tensors"], one["used"], one["left_out"]) for one in content["inputs"]] == [(13, 13, 0)] * 2
        assert {row["name"] for row in content["tensors"]} == {"norm", *(f"layers.{n}.w" for n in range(12))}
        assert content["refused"] == []
        assert ("time" in content["predicted"]) == dry_run
    os.unlink(tmp_path / "deep" / "out" / "merge_config.json")
    write(tmp_path / "b", {"w": np.ones(3)})
    with pytest.raises(CheckpointError):
        merge(MergeConfig(**pair, dry_run=True, overwrite=True, account=str(path)))
    assert any("and 10 more are missing in" in sentence for sentence in json.loads(path.read_text())["refused"])


def test_a_file_whose_name_is_not_utf8_is_escaped(tmp_path: Path) -> None:
    account_file.write(str(tmp_path / "account.json"), {"output": "caf\udce9 \u6570"})
    assert json.loads((tmp_path / "account.json").read_text("utf-8")) == {"output": "caf\udce9 \u6570"}


@pytest.mark.parametrize("name", ["a/config.json", "deep/out/x.json", "nowhere/x.json", "x.txt", "other.json"])
def test_an_account_stands_in_no_other_files_place(pair: dict[str, Any], tmp_path: Path, name: str) -> None:
    (tmp_path / "other.json").write_text("{}")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    for fields in (pair, {**pair, "weight_list": [1.0]}):
        with pytest.raises((OutputError, ValueError), match=r"--account|--weight_list"):
            merge(MergeConfig(**fields, dry_run=True, account=str(tmp_path / name)))
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_names_that_differ_in_numbers() -> None:
    names = [f"l.{layer}.e.{expert}.w" for layer in (0, 1, 2, 5) for expert in range(3)]
    assert _names([*names, "l.norm"]) == [("l.{0..2,5}.e.{0..2}.w", 12), ("l.norm", 1)]


def test_a_forecast_survives_a_folder_that_cannot_be_written(pair: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("paddle_merge.run.disk_speed._SPARE", 1 << 62)
    found = time_estimate.forecast(make_plan(Request.of(MergeConfig(**pair)).checked_recipe()), pair["output_path"], 0.0)
    assert "writing isn't counted" in found.notes[0]
    assert found.seconds > 0


# --- the ceiling ---------------------------------------------------------------------------------------------------------


def plan_of(tmp_path: Path, method: str, n_process: int) -> Plan:
    """Of 20 models with tensors of 64 M elements, of which there is nothing but the headers and holes."""
    header = {f"w{n}": {"dtype": "BF16", "shape": [8192, 8192], "data_offsets": [n << 27, (n + 1) << 27]} for n in range(16)}
    text = json.dumps(header).encode()
    for name in [*map(str, range(20)), "base"]:
        (tmp_path / name).mkdir(exist_ok=True)
        with open(tmp_path / name / "model.safetensors", "wb") as file:
            file.write(len(text).to_bytes(8, "little") + text)
            file.truncate(8 + len(text) + (16 << 27))
    config = MergeConfig(
        merge_method=method,
        model_path_list=[str(tmp_path / str(n)) for n in range(20)],
        base_model_path=str(tmp_path / "base"),
    )
    return make_plan(Request.of(config).checked_recipe(), n_process)


def test_workers_and_what_they_keep_follow_from_the_ceiling(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory_estimate, "cores", lambda: 8)
    plan = plan_of(tmp_path, "ties", 8)
    before = 9
    for limit in (4_000_000_000, 2_000_000_000, 1_000_000_000, 600_000_000):
        held = memory_estimate.within(plan, limit)
        assert memory_estimate.memory(held) <= limit
        assert 1 <= held.n_process <= before
        before = held.n_process
    least = memory_estimate.memory(dataclasses.replace(plan, n_process=1)) - 1
    held = memory_estimate.within(plan, least)
    assert (held.n_process, held.engine.budget != DEFAULT_BUDGET) == (1, True)
    assert memory_estimate.memory(held) <= least
    with pytest.raises(ValueError, match=r"--max_memory 100 MB is too little: .* needs about \d+ MB"):
        memory_estimate.within(plan, 100_000_000)


@pytest.mark.parametrize("method", ["ties", "della", "slerp", "linear"])
def test_less_room_gives_the_same_bytes(tmp_path: Path, method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(1)
    base = random.standard_normal((500, 600))
    for name in ("a", "b", "base"):
        write(tmp_path / name, {"w": base + random.standard_normal((500, 600)) * (name != "base")}, "bfloat16")
    fields: dict[str, Any] = {"merge_method": method, "model_path_list": [str(tmp_path / "a"), str(tmp_path / "b")]}
    fields |= {"base_model_path": str(tmp_path / "base")}
    merge(MergeConfig(**fields, output_path=str(tmp_path / "roomy")))
    monkeypatch.setattr(memory_estimate, "BUDGETS", memory_estimate.BUDGETS[-1:])
    merge(MergeConfig(**fields, output_path=str(tmp_path / "tight"), max_memory="1GB"))
    one, other = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("roomy", "tight"))
    assert one == other
