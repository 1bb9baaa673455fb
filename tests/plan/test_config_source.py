"""Test where config.json and the tokenizer are taken from: the inputs, or --config_from."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from paddle_merge import CheckpointError, MergeConfig, OutputError, merge
from paddle_merge.commands.main import main
from tests.checkpoints.formats.test_flex import save
from tests.conversion.test_layout import CONFIG, assert_same, laid_out, llama, means
from tests.support.checkpoints import read, write

X = {"w": np.arange(6.0)}


def bare(folder: Path, tensors: dict[str, np.ndarray] = X, **fields: Any) -> Path:
    """A checkpoint without config.json."""
    write(folder, tensors, **fields)
    (folder / "config.json").unlink()
    return folder


def companions(folder: Path, **extra: Any) -> Path:
    """A folder of config and tokenizer, without weights."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({**CONFIG, "dtype": "bfloat16", **extra}))
    (folder / "tokenizer.json").write_text("{}")
    return folder


def run(*models: Path, **fields: Any) -> Path:
    out = models[0].parent / "out"
    merge(MergeConfig(model_path_list=[str(path) for path in models], output_path=str(out), **fields))
    return out


def flex(folder: Path, seed: int) -> tuple[Path, dict[str, np.ndarray]]:
    """A PaddleFormers Trainer's checkpoint-N: Paddle's layout, model_state/, no config.json. And it in HF's layout."""
    hf = llama(seed)
    tensors = {name: values.astype(np.float32) for name, values in laid_out(hf, "paddleformers").items()}
    save(folder / "model_state", tensors, {name: [((0,) * x.ndim, x.shape)] for name, x in tensors.items()})
    return folder, hf


def test_flex_checkpoints_with_config_from(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (a, one), (b, two) = flex(tmp_path / "checkpoint-1", 0), flex(tmp_path / "checkpoint-2", 1)
    given = companions(tmp_path / "given")
    caplog.set_level(logging.INFO)
    out = run(a, b, config_from=str(given), output_layout="hf", out_dtype="bfloat16")
    assert_same(read(out), means(one, two))
    assert json.loads((out / "config.json").read_text())["model_type"] == "llama"
    assert (out / "tokenizer.json").exists()
    assert f"config   config.json and the tokenizer are taken from {given}" in caplog.text
    assert not any(record.levelno >= logging.WARNING for record in caplog.records)
    assert json.loads((out / "merge_config.json").read_text())["config_from"] == str(given)


def test_flex_checkpoints_and_a_base_that_has_the_config(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The base's config.json shows the layout of all inputs, and nothing is logged about it."""
    (a, one), (b, two) = flex(tmp_path / "checkpoint-1", 0), flex(tmp_path / "checkpoint-2", 1)
    base = write(tmp_path / "base", llama(2), config=CONFIG, format="pt")
    caplog.set_level(logging.INFO)
    out = run(a, b, base_model_path=str(base), output_layout="hf", out_dtype="bfloat16")
    assert_same(read(out), means(one, two))
    assert json.loads((out / "config.json").read_text())["model_type"] == "llama"
    assert "config   " not in caplog.text


def test_without_it_the_first_input_that_has_one_gives_it(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    a, b, base = bare(tmp_path / "a"), write(tmp_path / "b", X, config={"name": "b"}), bare(tmp_path / "base")
    caplog.set_level(logging.INFO)
    out = run(a, b, base_model_path=str(base))
    assert json.loads((out / "config.json").read_text())["name"] == "b"
    assert f"config   {base} has no config.json, so it and the tokenizer are taken from {b}" in caplog.text
    caplog.clear()
    write(base, X, config={"name": "base"})
    out = run(a, b, base_model_path=str(base), overwrite=True)
    assert json.loads((out / "config.json").read_text())["name"] == "base"
    out = run(a, b, overwrite=True)
    assert json.loads((out / "config.json").read_text())["name"] == "b"
    assert f"config   {a} has no config.json, so it and the tokenizer are taken from {b}" in caplog.text


def test_given_wins_over_the_inputs_own(tmp_path: Path) -> None:
    a, given = write(tmp_path / "a", X, config={"name": "a"}), companions(tmp_path / "given", name="given")
    (given / "extra.py").write_text("pass")
    (a / "vocab.txt").write_text("a")
    out = run(a, a, config_from=str(given), copy_file_list=["extra.py"])
    assert json.loads((out / "config.json").read_text())["name"] == "given"
    assert (out / "extra.py").exists()
    assert not (out / "vocab.txt").exists()


def test_none_has_one(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    a = bare(tmp_path / "a")
    out = run(a, a)
    assert not (out / "config.json").exists()
    assert "no input has a config.json, so the output won't either" in caplog.text


def test_what_is_refused(tmp_path: Path) -> None:
    a = bare(tmp_path / "a", {"model.embed_tokens.weight": np.ones((5, 7))})
    odd, empty = tmp_path / "odd", tmp_path / "empty"
    companions(odd)
    empty.mkdir()
    for given, words in (
        (tmp_path / "none", "no such folder; give a folder that holds config.json"),
        (empty, "has no config.json; give a folder that holds config.json"),
        (odd / "config.json", "no such folder; give"),
        (odd, "is of another model: it doesn't mention 7, the width of tensor 'model.embed_tokens.weight'"),
    ):
        with pytest.raises(CheckpointError) as caught:
            run(a, a, config_from=str(given))
        (problem,) = caught.value.problems
        assert problem.startswith(f"--config_from {given}: ")
        assert words in problem
    assert not (tmp_path / "out").exists()


def test_a_config_of_another_vocabulary_or_that_ties_otherwise(tmp_path: Path) -> None:
    """If the weights contain lm_head, a config that ties it makes loaders replace it by the embedding."""
    base = write(tmp_path / "base", llama(0), config=CONFIG, format="pt")
    tied = write(tmp_path / "tied", llama(0, tied=True), config={**CONFIG, "tie_word_embeddings": True}, format="pt")
    for model, number, extra, words in (
        (base, 0, {"vocab_size": 41}, "it doesn't mention 40, the number of rows of tensor 'model.embed_tokens.weight'"),
        (base, 1, {"tie_word_embeddings": True}, f"it does tie lm_head to the embedding, which {base} does not"),
        (tied, 2, {}, f"it does not tie lm_head to the embedding, which {tied} does"),
    ):
        given = companions(tmp_path / f"given{number}", **extra)
        with pytest.raises(CheckpointError, match=words):
            run(model, model, config_from=str(given))
    run(tied, tied, config_from=str(companions(tmp_path / "fits", tie_word_embeddings=True)))


def test_said_together_with_what_else_is_wrong(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError) as caught:
        run(tmp_path / "gone", tmp_path / "lost", config_from=str(tmp_path / "none"))
    assert [problem.split(": ")[0] for problem in caught.value.problems] == [
        f"--config_from {tmp_path}/none",
        f"{tmp_path}/gone",
        f"{tmp_path}/lost",
    ]


def test_it_is_no_place_for_the_output(tmp_path: Path) -> None:
    a, given = bare(tmp_path / "a"), companions(tmp_path / "given")
    config = MergeConfig(model_path_list=[str(a), str(a)], config_from=str(given), output_path=str(given), overwrite=True)
    with pytest.raises(OutputError, match="is or holds one of the inputs"):
        merge(config)


def test_flag_and_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The record holds the whole path; ~ is the home folder."""
    a = bare(tmp_path / "a")
    companions(tmp_path / "given")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    for flags, out in (
        (["--model_path_list", str(a), str(a), "--config_from", "~/given"], "o1"),
        (["o1/merge_config.json"], "o2"),
    ):
        with pytest.raises(SystemExit) as exit:
            main([*flags, "--output_path", out])
        assert not exit.value.code
        assert json.loads((tmp_path / out / "merge_config.json").read_text())["config_from"] == str(tmp_path / "given")
        assert (tmp_path / out / "config.json").exists()


LLAMA3 = {"rope_type": "llama3", "factor": 8.0}


@pytest.mark.parametrize(
    ("one", "other", "words"),
    [
        ({}, {"rope_scaling": LLAMA3}, "rope_scaling {'factor': 8.0, 'rope_type': 'llama3'} (not unset)"),
        ({"rope_scaling": LLAMA3}, {"rope_scaling": {**LLAMA3, "factor": 4.0}}, "'factor': 4.0"),
        ({"rope_scaling": LLAMA3}, {"rope_parameters": {**LLAMA3, "rope_theta": 1.0}}, ""),
        ({"rope_scaling": {"type": "yarn", "factor": 2.0}}, {"rope_scaling": {"rope_type": "yarn", "factor": 2.0}}, ""),
        ({"rope_scaling": None}, {"rope_parameters": {"rope_type": "default", "rope_theta": 1.0}}, ""),
        ({"id2label": {"0": "no", "1": "yes"}}, {"id2label": {"0": "yes", "1": "no"}}, "id2label"),
        ({"max_position_embeddings": 8}, {"max_position_embeddings": 16}, "max_position_embeddings 16 (not 8)"),
        (
            {"hidden_size": 8, "num_attention_heads": 2},
            {"hidden_size": 8, "num_attention_heads": 2, "head_dim": 2},
            "head_dim 2 (not 4)",
        ),
    ],
)
def test_settings_that_differ(
    tmp_path: Path, one: dict[str, object], other: dict[str, object], words: str, caplog: pytest.LogCaptureFixture
) -> None:
    paths = [str(write(tmp_path / name, {"w": np.ones(3)}, config=said)) for name, said in (("a", one), ("b", other))]
    logging.getLogger("paddle_merge").propagate = True
    merge(MergeConfig(model_path_list=paths, output_path=str(tmp_path / "out")), progress=False)
    told = [message for message in caplog.messages if "was trained with" in message]
    assert len(told) == bool(words)
    assert words in "".join(told)


@pytest.mark.parametrize("content", ["[1, 2]", "null", '"x"'])
def test_a_config_that_is_no_object_is_refused(tmp_path: Path, content: str) -> None:
    """It would count as missing, and be copied beside the merged weights nevertheless."""
    paths = [str(write(tmp_path / name, {"w": np.ones(3)}, config={"model_type": "x"})) for name in "ab"]
    file = tmp_path / "a" / "config.json"
    file.write_text(content)
    with pytest.raises(CheckpointError) as caught:
        merge(MergeConfig(model_path_list=paths, output_path=str(tmp_path / "out")), progress=False)
    assert caught.value.problems == [
        f"{file}: holds no JSON object {{...}}, so it is no model's config.json; replace or remove it"
    ]


def test_an_adapter_beside_the_model_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    a, b = write(tmp_path / "a", X), write(tmp_path / "b", X)
    (a / "lora_config.json").write_text("{}")
    said = f"{a} holds a LoRA adapter beside the model, which is merged without it"
    run(a, b)
    assert said not in caplog.text
    write(a, {"w.lora_A": np.ones((2, 1))}, prefix="peft_model")
    run(a, b, overwrite=True)
    assert said in caplog.text


def test_factors_that_are_merged_each_for_itself_are_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    files = [str(write(tmp_path / name, {"w.lora_A": np.ones(2), "v.lora_B.weight": np.ones(2)})) for name in "ab"]
    merge(MergeConfig(model_path_list=files, output_path=str(tmp_path / "out")), progress=False)
    assert "tensors 'v.lora_B.weight' and 'w.lora_A' are LoRA factors, and each is merged for itself" in caplog.text
