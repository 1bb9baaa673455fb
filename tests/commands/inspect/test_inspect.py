"""Test inspect: what it reports on checkpoints from their headers and config.json."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from paddle_merge import CheckpointError, ConfigError, InspectConfig, inspect
from paddle_merge.checkpoints.files import Files
from paddle_merge.checkpoints.names import LAYOUTS
from paddle_merge.commands.main import main
from tests.checkpoints.formats.test_flex import cut, save
from tests.checkpoints.formats.test_pdparams import dump, plain
from tests.conversion.lora.test_lora import TARGETS, factors, in_paddle, in_peft, paddle, peft
from tests.conversion.test_layout import CONFIG, VOCAB, laid_out, llama, stored
from tests.support.checkpoints import write

PARAMETERS = 5200  # of llama(): 2 layers of 4 x 16 x 16 or 8 x 16, 3 x 24 x 16, 2 x 16; 2 x 40 x 16; 16


def look(*paths: Any, **fields: Any) -> dict[str, Any]:
    return inspect(InspectConfig([str(path) for path in paths], **fields))


def one(path: Any, **fields: Any) -> dict[str, Any]:
    (said,) = look(path, **fields)["checkpoints"]
    assert isinstance(said, dict)
    return said


def test_by_hand(tmp_path: Path) -> None:
    config = {"model_type": "gpt", "num_attention_heads": 3, "rope_parameters": {"rope_theta": 5e5}}
    tensors = {
        "wte.weight": np.ones((5, 4)),
        "h.0.fc.weight": np.ones((4, 4)),
        "h.1.fc.weight": np.ones((4, 4)),
        "vision.blocks.0.fc.weight": np.ones((2, 2)),
        "steps": np.arange(3),
    }
    said = one(write(tmp_path / "m", tensors, "bfloat16", shards=2, config=config))
    assert said == {
        "path": str(tmp_path / "m"),
        "format": "safetensors",
        "metadata": {"format": "np"},
        "layout": None,
        "layout_evidence": "its tensors don't have the names of a language model's",
        "family": "gpt",
        "architectures": ["Tiny"],
        "settings": {"model_type": "gpt", "num_attention_heads": 3, "rope_theta": 5e5},
        "layers": {"h": 2, "vision.blocks": 1},
        "files": ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"],
        "tensors": 5,
        "parameters": 20 + 16 + 16 + 4 + 3,
        "bytes": 2 * 56 + 8 * 3,
        "dtypes": {
            "bfloat16": {"tensors": 4, "parameters": 56, "bytes": 112},
            "int64": {"tensors": 1, "parameters": 3, "bytes": 24},
        },
        "tied": {"config": None, "tied": True, "stored": ["wte.weight"], "same_values": None},
        "shared": [],
        "quantised": [],
        "read_as": None,
    }


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(tmp_path: Path, layout: str) -> None:
    said = one(stored(tmp_path / "m", llama(0), layout))
    assert (said["layout"], said["family"], said["parameters"], said["tensors"]) == (layout, "llama", PARAMETERS, 21)
    assert said["layers"] == {"llama.layers" if layout == "paddlenlp" else "model.layers": 2}
    assert said["tied"]["tied"] is False


def test_formats(tmp_path: Path) -> None:
    tensors = {name: value.astype(np.float32) for name, value in laid_out(llama(0), "paddleformers").items()}
    dump(tmp_path / "pd", plain(tensors))
    (tmp_path / "pd" / "config.json").write_text(json.dumps(CONFIG))
    said = one(tmp_path / "pd")
    assert (said["format"], said["layout"], said["files"]) == ("pdparams", "paddleformers", ["model_state.pdparams"])
    assert one(tmp_path / "pd" / "model_state.pdparams")["parameters"] == PARAMETERS
    save(tmp_path / "flex", tensors, {name: cut(value.shape, *[()] * value.ndim) for name, value in tensors.items()})
    assert (one(tmp_path / "flex")["format"], one(tmp_path / "flex")["parameters"]) == ("flex", PARAMETERS)


@pytest.mark.parametrize("same", [True, False])
@pytest.mark.parametrize("says", [True, False])
def test_tied_tensors(tmp_path: Path, says: bool, same: bool) -> None:
    """lm_head that is the embedding again is no parameter of its own, whatever config.json says."""
    tensors = llama(0)
    if same:
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"]
    said = one(stored(tmp_path / "m", tensors, "hf", {**CONFIG, "tie_word_embeddings": says}))
    names = ["model.embed_tokens.weight", "lm_head.weight"]
    assert said["tied"] == {"config": says, "tied": says, "stored": names, "same_values": same}
    assert said["parameters"] == PARAMETERS - (VOCAB * 16 if same else 0)


def test_only_headers_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []
    original = Files.read

    def note(self: Files, entry: Any, start: int, out: np.ndarray) -> None:
        read.append(entry.name)
        original(self, entry, start, out)

    monkeypatch.setattr(Files, "read", note)
    base = stored(tmp_path / "tied", llama(0, tied=True), "hf", {**CONFIG, "tie_word_embeddings": True})
    look(base, f"{base}+{peft(tmp_path / 'ad', in_peft(factors(1)))}", stored(tmp_path / "np", llama(0, tied=True), "hf"))
    assert read == []
    one(stored(tmp_path / "both", llama(0), "hf"))
    assert set(read) == {"model.embed_tokens.weight", "lm_head.weight"}


def test_quantised_models_are_told_not_refused(tmp_path: Path) -> None:
    tensors = {"l.weight": np.zeros(4, np.uint8), "l.weight_scale": np.ones(1)}
    said = one(write(tmp_path / "m", tensors, config={"quantization_config": {"bits": 8}}))
    assert said["quantised"] == [
        "its config.json has a quantization_config",
        "1 of its tensors hold scales or packed codes, 'l.weight_scale' for one",
    ]


@pytest.mark.parametrize("kind", ["peft", "paddle"])
def test_adapters(tmp_path: Path, kind: str) -> None:
    """r 3, alpha 6: scale 2; k_proj by its pattern 6 / rank, here 1."""
    pairs = factors(1)
    if kind == "peft":
        norm = {"model.norm.weight": np.ones(16)}
        patterns = {"alpha_pattern": {"k_proj": 3}, "base_model_name_or_path": "org/base"}
        path = peft(tmp_path / "ad", in_peft(pairs) | norm, **patterns)
    else:
        path = paddle(tmp_path / "ad", in_paddle(pairs) | {"model.norm.weight": np.ones(16)})
    said = one(path)
    assert (said["adapter"], said["ranks"], said["modules"]) == (kind, {"3": 4}, 4)
    assert said["scales"] == ({"1": 1, "2": 3} if kind == "peft" else {"2": 4})
    assert said["targets"] == {name.rpartition(".")[2]: 1 for name in TARGETS}
    assert said["whole_tensors"] == ["model.norm.weight"]
    assert said["parameters"] == 16 + sum(a.size + b.size for a, b in pairs.values())
    assert (said["layers"], said["problems"], said["dora"]) == ({"model.layers": 1}, [], False)
    assert said["base_model"] == ("org/base" if kind == "peft" else None)
    both = one(f"{stored(tmp_path / 'base', llama(0), 'hf')}+{path}")
    assert (both["layout"], both["adapters"]) == ("hf", [said])


def test_an_adapter_of_experts_and_of_single_tokens(tmp_path: Path) -> None:
    """3 experts; gate_up_proj of rank 4 and alpha 6, the others of rank 2 and alpha 3. As PEFT nests them."""
    its = {"model.embed_tokens.token_adapter.trainable_tokens_delta": np.ones((2, 4))}
    modules = {"experts.base_layer": (12, 4, 10), "experts": (6, 5, 4), "gate": (2, 4, 3)}
    for module, (rows, inputs, outputs) in modules.items():
        its[f"model.layers.0.mlp.{module}.lora_A.weight"] = np.ones((rows, inputs))
        its[f"model.layers.0.mlp.{module}.lora_B.weight"] = np.ones((outputs, rows))
    patterns = {"rank_pattern": {r".*\.gate_up_proj": 4}, "alpha_pattern": {r".*\.gate_up_proj": 6}}
    listed = {"target_parameters": ["gate_up_proj", "down_proj", "gate.weight"], "trainable_token_indices": [3, 7]}
    said = one(peft(tmp_path / "ad", its, r=2, lora_alpha=3, **listed, **patterns))
    assert (said["ranks"], said["scales"], said["problems"]) == ({"2": 2, "4": 1}, {"1.5": 3}, [])
    assert said["targets"] == {"gate_up_proj": 1, "down_proj": 1, "gate": 1}
    assert said["token_rows"] == {"model.embed_tokens": 2}


def test_adapters_that_cannot_be_folded_say_why(tmp_path: Path) -> None:
    said = one(peft(tmp_path / "ad", in_peft(factors(1)), r=4, use_qalora=True))
    assert "can't be folded: its config sets use_qalora, and QA-LoRA pools its inputs" in said["problems"][0]
    assert "'model.layers.0.self_attn.q_proj' has rank 3, but the adapter's config says 4" in said["problems"][1]


def test_what_differs(tmp_path: Path) -> None:
    a, b = llama(0), llama(1)
    b["extra"] = np.ones(2)
    b["model.norm.weight"] = np.ones(8)
    paths = stored(tmp_path / "a", a, "hf"), stored(tmp_path / "b", b, "hf", {**CONFIG, "rope_theta": 7}, dtype="float32")
    differs = look(*paths)["differs"]
    assert differs["facts"] == {"dtypes": ["bfloat16", "float32"], "rope_theta": [None, 7]}
    assert differs["tensors"]["extra"] == [None, "[2] float32"]
    assert differs["tensors"]["model.norm.weight"] == ["[16] bfloat16", "[8] float32"]
    assert len(differs["tensors"]) == 22
    assert look(paths[0], stored(tmp_path / "again", a, "hf"))["differs"] == {
        "of": ["A", "B"], "facts": {}, "tensors": {}, "notes": []
    }  # fmt: skip


@pytest.mark.parametrize("second", LAYOUTS[1:])
def test_what_differs_in_another_layout(tmp_path: Path, second: str) -> None:
    paths = stored(tmp_path / "a", llama(0), "hf"), stored(tmp_path / "b", llama(1), second)
    differs = look(*paths)["differs"]
    assert differs["facts"] == {"layout": ["hf", second]}
    assert differs["tensors"] == {}
    assert differs["notes"][0].endswith("read as hf")


def test_what_differs_where_a_layout_is_unknown(tmp_path: Path) -> None:
    differs = look(stored(tmp_path / "a", llama(0), "hf"), write(tmp_path / "b", {"w": np.ones(2)}))["differs"]
    assert differs["notes"] == ["names and shapes are compared as stored, because not all layouts are known"]
    assert differs["tensors"]["w"] == [None, "[2] float32"]


def test_what_differs_between_a_tied_and_an_untied_model(tmp_path: Path) -> None:
    tied = stored(tmp_path / "b", llama(0, tied=True), "paddlenlp", {**CONFIG, "tie_word_embeddings": True})
    differs = look(stored(tmp_path / "a", llama(0), "hf"), tied)["differs"]
    assert differs["tensors"] == {"lm_head.weight": [f"[{VOCAB}, 16] bfloat16", None]}
    assert differs["facts"]["tied"] == [False, True]


def run(capsys: pytest.CaptureFixture[str], *argv: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as caught:
        main(["inspect", *argv])
    out, err = capsys.readouterr()
    return int(caught.value.code or 0), out, err


def test_the_page_fits_and_groups_layers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a, b = llama(0), llama(0)
    for layer in range(2):
        del b[f"model.layers.{layer}.self_attn.q_proj.bias"]
    adapter = peft(tmp_path / "ad", in_peft(factors(1)))
    paths = stored(tmp_path / "a", a, "hf"), adapter, f"{stored(tmp_path / 'b', b, 'paddlenlp')}+{adapter}"
    code, out, err = run(capsys, *paths)
    lines = out.splitlines()
    assert (code, err) == (0, "")
    assert max(len(line) for line in lines if str(tmp_path) not in line) <= 100
    assert [line[0] for line in lines if str(tmp_path) in line and not line.startswith((" ", "note"))] == ["A", "B", "C"]
    assert sum(line.split() == ["rank", "3"] for line in lines) == 2
    assert [line.split() for line in lines[-2:]] == [
        ["model.layers.*.self_attn.q_proj.bias", "(2)", "A", "[16]", "bfloat16"],
        ["C", "missing"],
    ]
    code, out, err = run(capsys, "--json", *paths)
    assert (code, err) == (0, "")
    assert json.loads(out) == look(*paths)
    assert json.loads(out)["differs"]["of"] == ["A", "C"]


def test_nothing_differs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = stored(tmp_path / "a", llama(0), "hf")
    assert run(capsys, path, path)[1].splitlines()[-1].startswith("no differences in headers and config.json")


def test_problems_come_together(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ConfigError, match="give at least one checkpoint"):
        look(merge_prefix="model")
    (tmp_path / "cut").mkdir()
    (tmp_path / "cut" / "model.safetensors").write_bytes(b"\x10\0\0\0\0\0\0\0{}")
    good, none = write(tmp_path / "good", {"w": np.ones(1)}), tmp_path / "none"
    with pytest.raises(CheckpointError) as caught:
        look(none, tmp_path / "cut", good, f"{good}+{none}")
    assert [problem.partition(": ")[0] for problem in caught.value.problems] == [
        str(none), str(tmp_path / "cut" / "model.safetensors"), str(none)
    ]  # fmt: skip
    assert run(capsys, "--jsn", str(good))[2] == "error: unknown flag --jsn; did you mean 'json'?\n"
    assert run(capsys, str(good), "--merge_prefix", "modle")[0] == 1
    assert "Usage: python -m paddle_merge inspect" in run(capsys)[1]
