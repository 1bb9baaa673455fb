"""Test adapters of models that got more tokens in training: PEFT saves the embedding and lm_head whole."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from paddle_merge import CheckpointError, MergeConfig, merge
from paddle_merge.checkpoints.names import LAYOUTS
from tests.conversion.lora.test_lora import LAYER, TIED, R, close, fold, peft
from tests.conversion.test_layout import CONFIG, HIDDEN, VOCAB, State, laid_out, llama, stored
from tests.conversion.vocabulary.test_vocabulary import tokenizer
from tests.support.checkpoints import read

EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
Q = f"{LAYER}self_attn.q_proj"
WORDS = [f"t{row}" for row in range(VOCAB)]


def grown(value: np.ndarray, rows: int, seed: int) -> np.ndarray:
    """With other values, and so many rows."""
    return np.random.default_rng(seed).standard_normal((rows, value.shape[1]))


def model(tmp_path: Path, state: State, layout: str = "hf", config: dict[str, Any] = CONFIG, name: str = "base") -> str:
    path = stored(tmp_path / name, state, layout, dtype="float64", config={"vocab_size": VOCAB, **config})
    tokenizer(tmp_path / name, WORDS)
    return path


def adapter(folder: Path, its: State, added: list[str], **config: Any) -> str:
    path = peft(folder, its, **config)
    tokenizer(folder, WORDS, {word: VOCAB + place for place, word in enumerate(added)})
    return path


def config_of(folder: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / "config.json").read_text())
    return content


def added_in(folder: Path) -> list[str]:
    return [one["content"] for one in json.loads((folder / "tokenizer.json").read_text())["added_tokens"]]


@pytest.mark.parametrize("rows", [VOCAB + 2, VOCAB + 24, VOCAB - 1])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_output_has_the_adapters_rows_and_tokens(tmp_path: Path, layout: str, rows: int) -> None:
    """Also fewer rows, as of a model whose padding was cut off."""
    base = llama(0)
    new = {EMBEDDING: grown(base[EMBEDDING], rows, 1), HEAD: grown(base[HEAD], rows, 2)}
    a, b = np.ones((R, HIDDEN)), np.ones((base[f"{Q}.weight"].shape[0], R))
    its = new | {f"{Q}.lora_A.weight": a, f"{Q}.lora_B.weight": b}
    path = adapter(tmp_path / "ad", its, ["<x>", "<y>"], modules_to_save=["embed_tokens", "lm_head"])
    got = fold(tmp_path, model(tmp_path, base, layout), path)
    close(got, laid_out(base | new | {f"{Q}.weight": base[f"{Q}.weight"] + 2 * b @ a}, layout))
    assert config_of(tmp_path / "out")["vocab_size"] == rows
    assert added_in(tmp_path / "out") == ["<x>", "<y>"]


def test_as_many_rows_as_the_model_is_wide(tmp_path: Path) -> None:
    """[16, 16] is then PEFT's lm_head of 16 tokens; the base's, of 40, shows how it is stored."""
    base = llama(0)
    new = {EMBEDDING: grown(base[EMBEDDING], HIDDEN, 1), HEAD: grown(base[HEAD], HIDDEN, 2)}
    path = model(tmp_path, base, "paddlenlp")
    close(fold(tmp_path, path, peft(tmp_path / "ad", new)), laid_out(base | new, "paddlenlp"))


def test_low_rank_factors_and_single_rows_of_more_rows(tmp_path: Path) -> None:
    """PEFT saves X.base_layer.weight, and under token_adapter; and of modules_to_save two copies and the base's."""
    base, random = llama(0), np.random.default_rng(3)
    rows = VOCAB + 2
    embedding, head = grown(base[EMBEDDING], rows, 1), grown(base[HEAD], rows, 2)
    a, b = random.standard_normal((R, HIDDEN)), random.standard_normal((rows, R))
    new = random.standard_normal((2, HIDDEN))
    its = {
        "model.embed_tokens.token_adapter.base_layer.weight": embedding,
        "model.embed_tokens.token_adapter.trainable_tokens_delta": new,
        "lm_head.base_layer.weight": head,
        "lm_head.lora_A.weight": a,
        "lm_head.lora_B.weight": b,
        "model.norm.weight": base["model.norm.weight"] + 1,
        "model.norm.modules_to_save.weight": base["model.norm.weight"] + 1,
        "model.norm.original_module.weight": base["model.norm.weight"],
    }
    path = adapter(tmp_path / "ad", its, ["<x>", "<y>"], trainable_token_indices=[VOCAB + 1, 3], modules_to_save=["norm"])
    account = tmp_path / "account.json"
    got = fold(tmp_path, model(tmp_path, base), path, account=str(account))
    embedding[[VOCAB + 1, 3]] = new
    norm = {"model.norm.weight": base["model.norm.weight"] + 1}
    close(got, base | {EMBEDDING: embedding, HEAD: head + 2 * b @ a} | norm)
    assert "the same as the adapter's 'model.norm.weight'" in account.read_text()
    assert "PEFT's copy of what it was before training" in account.read_text()


@pytest.mark.parametrize("which", ["both", "factors", "head's factors"])
def test_tied_models(tmp_path: Path, which: str) -> None:
    """What PEFT saves as the base's weight is that of both; factors are of one, and untie the model."""
    base, random = {name: value for name, value in llama(0).items() if name != HEAD}, np.random.default_rng(3)
    rows = VOCAB + 2
    new = grown(base[EMBEDDING], rows, 1)
    a, b = random.standard_normal((R, HIDDEN)), random.standard_normal((rows, R))
    its = {
        "both": {EMBEDDING: new, HEAD: new},
        "factors": {
            "model.embed_tokens.base_layer.weight": new,
            "model.embed_tokens.lora_embedding_A": b.T.copy(),
            "model.embed_tokens.lora_embedding_B": a.T.copy(),
        },
        "head's factors": {"lm_head.base_layer.weight": new, "lm_head.lora_A.weight": a, "lm_head.lora_B.weight": b},
    }[which]
    got = fold(tmp_path, model(tmp_path, base, config=TIED), adapter(tmp_path / "ad", its, ["<x>", "<y>"]))
    changed = new + 2 * b @ a
    pair = {"both": (new, None), "factors": (changed, new), "head's factors": (new, changed)}[which]
    expected = base | {EMBEDDING: pair[0]} | ({} if pair[1] is None else {HEAD: pair[1]})
    close(got, expected)
    says = config_of(tmp_path / "out")
    assert (says["vocab_size"], says["tie_word_embeddings"]) == (rows, which == "both")


def test_a_nested_vocab_size(tmp_path: Path) -> None:
    base = llama(0)
    new = {EMBEDDING: grown(base[EMBEDDING], VOCAB + 2, 1), HEAD: grown(base[HEAD], VOCAB + 2, 2)}
    config = {name: value for name, value in CONFIG.items() if name != "vocab_size"}
    path = stored(tmp_path / "base", base, "hf", dtype="float64", config=config | {"text_config": {"vocab_size": VOCAB}})
    fold(tmp_path, path, peft(tmp_path / "ad", new))
    assert config_of(tmp_path / "out")["text_config"]["vocab_size"] == VOCAB + 2
    assert "vocab_size" not in config_of(tmp_path / "out")


def test_tokens_in_rows_that_had_none(tmp_path: Path) -> None:
    """Qwen's embeddings are padded: training adds tokens, and no rows. The output has the adapter's tokenizer."""
    base = llama(0)
    path = stored(tmp_path / "base", base, "hf", dtype="float64")
    tokenizer(tmp_path / "base", WORDS[:-5])
    its = {"model.norm.weight": base["model.norm.weight"] + 1}
    one = peft(tmp_path / "ad", its)
    tokenizer(tmp_path / "ad", WORDS[:-5], {"<x>": VOCAB - 5})
    fold(tmp_path, path, one)
    assert added_in(tmp_path / "out") == ["<x>"]
    other = peft(tmp_path / "fewer", its)  # has the base's, but for some tokens
    tokenizer(tmp_path / "fewer", WORDS[:-9])
    fold(tmp_path, path, other)
    assert (tmp_path / "out" / "tokenizer.json").read_bytes() == (tmp_path / "base" / "tokenizer.json").read_bytes()


def test_what_is_likely_not_meant(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    base = llama(0)
    path = model(tmp_path, base)
    new = {EMBEDDING: grown(base[EMBEDDING], VOCAB + 2, 1), HEAD: grown(base[HEAD], VOCAB + 2, 2)}
    fold(tmp_path, path, peft(tmp_path / "ad", new))
    assert f"changes the number of tokens to {VOCAB + 2}, but has no tokenizer; put it beside the adapter" in caplog.text
    caplog.clear()
    norm = {"model.norm.weight": base["model.norm.weight"] + 1}
    fold(tmp_path, path, adapter(tmp_path / "lost", norm, ["<x>", "<y>"]))
    assert (
        f"such as '<x>' (2 in all), are behind the {VOCAB} rows of the embedding: it was trained on a model" in caplog.text
    )
    assert added_in(tmp_path / "out") == []


@pytest.mark.parametrize("damaged", ["base", "ad"])
def test_a_tokenizer_that_cannot_be_read(tmp_path: Path, caplog: pytest.LogCaptureFixture, damaged: str) -> None:
    """The weights fold nevertheless, and the base's files are copied as they are."""
    base = llama(0)
    path = model(tmp_path, base)
    one = adapter(tmp_path / "ad", {"model.norm.weight": base["model.norm.weight"] + 1}, ["<x>"])
    (tmp_path / damaged / "tokenizer.json").write_text("{")
    fold(tmp_path, path, one)
    assert f"base: its tokenizer is taken, and may not be that of {one} (" in caplog.text
    assert (tmp_path / "out" / "tokenizer.json").read_bytes() == (tmp_path / "base" / "tokenizer.json").read_bytes()


@pytest.mark.parametrize(
    ("its", "words"),
    [
        ({EMBEDDING: (VOCAB + 2, HIDDEN)}, f"'{EMBEDDING}' {VOCAB + 2}, '{HEAD}' {VOCAB}): it was trained on a model with"),
        ({HEAD: (VOCAB + 2, HIDDEN)}, f"'{HEAD}' {VOCAB + 2}, '{EMBEDDING}' {VOCAB}): it was trained on a model with"),
        ({HEAD: (VOCAB + 2, HIDDEN), EMBEDDING: (VOCAB + 3, HIDDEN)}, "give that model as the base"),
        (
            {HEAD: (VOCAB, HIDDEN + 1)},
            f"is [{VOCAB}, {HIDDEN + 1}], but '{HEAD}', which it replaces, is [{VOCAB}, {HIDDEN}]",
        ),
        ({f"{Q}.weight": (HIDDEN + 1, HIDDEN)}, f"is [{HIDDEN + 1}, {HIDDEN}], but '{Q}.weight', which it replaces"),
    ],
)
def test_rows_that_do_not_fit(tmp_path: Path, its: dict[str, tuple[int, int]], words: str) -> None:
    tensors = {name: np.ones(shape) for name, shape in its.items()}
    with pytest.raises(CheckpointError) as error:
        fold(tmp_path, model(tmp_path, llama(0)), peft(tmp_path / "ad", tensors))
    assert words in str(error.value)


def test_merged_with_other_models(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Row by row with a model that has the same tokens; token by token, if asked, with others."""
    base = llama(0)
    path = model(tmp_path, base)
    new = [{EMBEDDING: grown(base[EMBEDDING], VOCAB + 1, seed), HEAD: grown(base[HEAD], VOCAB + 1, seed)} for seed in (1, 2)]
    one = f"{path}+{adapter(tmp_path / 'one', new[0], ['<x>'])}"
    same = f"{path}+{adapter(tmp_path / 'same', new[1], ['<x>'])}"
    other = f"{path}+{adapter(tmp_path / 'other', new[1], ['<y>'])}"

    def made(*models: str, **fields: Any) -> State:
        out = tmp_path / "merged"
        merge(MergeConfig(model_path_list=list(models), output_path=str(out), overwrite=True, **fields))
        return read(out)

    with pytest.raises(CheckpointError, match="--tokenizer_source union"):
        made(one, path)
    mean = (new[0][EMBEDDING] + new[1][EMBEDDING]) / 2
    np.testing.assert_allclose(made(one, same)[EMBEDDING], mean, atol=1e-12)
    assert (config_of(tmp_path / "merged")["vocab_size"], added_in(tmp_path / "merged")) == (VOCAB + 1, ["<x>"])
    assert "other rows of the embedding" not in caplog.text
    made(one, other)
    assert f"(row {VOCAB} is '<y>' and '<x>')" in caplog.text
    got = made(one, other, path, tokenizer_source="union")[EMBEDDING]
    assert (config_of(tmp_path / "merged")["vocab_size"], added_in(tmp_path / "merged")) == (VOCAB + 2, ["<x>", "<y>"])
    np.testing.assert_allclose(got[0], (new[0][EMBEDDING][0] + new[1][EMBEDDING][0] + base[EMBEDDING][0]) / 3, atol=1e-12)
    np.testing.assert_allclose(got[VOCAB:], [new[0][EMBEDDING][VOCAB], new[1][EMBEDDING][VOCAB]], atol=1e-12)
