"""Test merges of models with different vocabularies, aligned token by token: rows, tokenizers, configs."""

from __future__ import annotations

import functools
import json
import logging
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from paddle_merge import CheckpointError, ConfigError, MergeConfig, merge
from paddle_merge.checkpoints.files import Files
from paddle_merge.checkpoints.tensors import StoredEntry
from paddle_merge.commands.verify.verify import verify
from paddle_merge.conversion.vocabulary.aligned import AlignedReader
from paddle_merge.conversion.vocabulary.rows import Rows, keys
from paddle_merge.conversion.vocabulary.tokens import Vocabulary, read_vocabulary, same_files, union
from paddle_merge.dtypes import FLOATS
from paddle_merge.run.sources import reader
from tests.support.checkpoints import read, write
from tests.support.sweeps import few

WIDTH = 3
EMBED, HEAD = "model.embed_tokens.weight", "lm_head.weight"


def tokenizer(folder: Path, tokens: Sequence[str], added: Mapping[str, int] | None = None) -> None:
    """tokenizer.json of whole words, and special tokens beside them; its tokenizer_config.json."""
    content = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {"id": number, "content": token, "special": True, "normalized": False}
            | {"single_word": False, "lstrip": False, "rstrip": False}
            for token, number in (added or {}).items()
        ],
        "normalizer": None,
        "pre_tokenizer": {"type": "WhitespaceSplit"},
        "post_processor": None,
        "decoder": None,
        "model": {"type": "WordLevel", "vocab": {token: row for row, token in enumerate(tokens)}, "unk_token": tokens[0]},
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer.json").write_text(json.dumps(content))
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizerFast"}))


def rows_of(tokens: Sequence[str | None], scale: float) -> np.ndarray:
    """(rows, 3): of token "t5" the row is 5 * scale + 0, 1/4 and 1/2; of None, no token, -1."""
    first = [-1.0 if token is None else float(token[1:]) for token in tokens]
    return np.add.outer(np.array(first) * scale, np.arange(WIDTH) / 4)


def model(
    folder: Path,
    tokens: Sequence[str | None],
    scale: float = 1.0,
    tied: bool = False,
    with_tokenizer: bool = True,
    added: Mapping[str, int] | None = None,
    **config: Any,
) -> Path:
    """A checkpoint whose rows say which token they are; lm_head is 100 more."""
    rows = rows_of(tokens, scale)
    tensors = {
        EMBED: rows,
        "model.layers.0.mlp.up_proj.weight": np.full((5, WIDTH), float(scale)),
        "model.norm.weight": np.full(WIDTH, float(scale)),
    }
    if not tied:
        tensors[HEAD] = rows + 100
    known = {"vocab_size": len(rows), "hidden_size": WIDTH, "intermediate_size": 5, "tie_word_embeddings": tied}
    write(folder, tensors, "float32", format="pt", config={**known, **config})
    if with_tokenizer:
        words = [token for row, token in enumerate(tokens) if token is not None and row not in (added or {}).values()]
        tokenizer(folder, words, added)
    return folder


def made(text: str, out: str = "out", **fields: Any) -> dict[str, np.ndarray]:
    merge(MergeConfig(recipe_yaml=text + "\n", output_path=out, **fields), progress=False)
    return read(Path(out))


def tokens_of(folder: str | Path) -> dict[str, int]:
    return tokenizers.Tokenizer.from_file(str(Path(folder) / "tokenizer.json")).get_vocab(with_added_tokens=True)


def config_of(folder: str | Path, name: str = "config.json") -> dict[str, Any]:
    found: dict[str, Any] = json.loads((Path(folder) / name).read_text())
    return found


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """a: t0 t1 t2 t3. b: t0 t3 t1 t4. c: t0 t4 t5. Rows of b are 10, of c 100 times a's."""
    model(tmp_path / "a", ["t0", "t1", "t2", "t3"])
    model(tmp_path / "b", ["t0", "t3", "t1", "t4"], 10)
    model(tmp_path / "c", ["t0", "t4", "t5"], 100)
    monkeypatch.chdir(tmp_path)
    return tmp_path


AVERAGE = "models: [{model: a}, {model: b}]\nmerge_method: linear\nparameters: {weight: 1}\n"


# --- rows ----------------------------------------------------------------------------------------------------------------


def test_rows_are_matched_by_token(here: Path) -> None:
    """a's t3 is row 3, b's row 1: (3 + 30) / 2 = 16.5. t2 is a's alone, so both have a's; t4 isn't asked for."""
    out = made(AVERAGE + "tokenizer_source: base")
    assert out[EMBED][:, 0].tolist() == [0, 5.5, 2, 16.5]
    assert out[HEAD][:, 0].tolist() == [100, 105.5, 102, 116.5]
    assert out[EMBED][1].tolist() == [5.5, 5.75, 6]
    assert out["model.norm.weight"].tolist() == [5.5] * 3  # which has no rows of tokens
    assert tokens_of("out") == tokens_of("a")


def test_union_has_the_tokens_of_all(here: Path) -> None:
    """b and c have t4. The base doesn't, so the mean of their rows, 40 and 400, is used for a."""
    three = "models: [{model: a}, {model: b}, {model: c}]\nmerge_method: linear\nparameters: {weight: 1}\n"
    out = made(three + "tokenizer_source: union")
    assert tokens_of("out") == {"t0": 0, "t1": 1, "t2": 2, "t3": 3, "t4": 4, "t5": 5}
    wanted = [0, (1 + 10 + 5.5) / 3, 2, (3 + 30 + 16.5) / 3, (220 + 40 + 400) / 3, 500]
    np.testing.assert_allclose(out[EMBED][:, 0], wanted, rtol=1e-6)
    assert config_of("out")["vocab_size"] == 6
    assert out[HEAD].shape == (6, WIDTH)


def test_what_the_base_has_is_the_bases(here: Path) -> None:
    """t1: a and b have it, c doesn't. With base b, c's is b's 10, so its task vector is 0 there: 10 + (1 - 10) + 0."""
    text = "models: [{model: a}, {model: c}]\nbase_model: b\nmerge_method: task_arithmetic\nparameters: {weight: 1}\n"
    out = made(text + "tokenizer_source: union")
    assert tokens_of("out") == {"t0": 0, "t3": 1, "t1": 2, "t4": 3, "t2": 4, "t5": 5}
    # t4 is 40 of b, and 400 of c; a has b's. t2 is a's alone, so the base's and c's, too, are 2.
    assert out[EMBED][:, 0].tolist() == [0, 3, 1, 400, 2, 500]


def test_another_models_tokenizer(here: Path) -> None:
    out = made(AVERAGE + "tokenizer: {source: b}")
    assert out[EMBED][:, 0].tolist() == [0, 16.5, 5.5, 40]
    assert tokens_of("out") == tokens_of("b")


@pytest.mark.parametrize("source", ["./p", "p/", "{here}/p", "{here}/link", "model:p"])
def test_a_model_by_another_path(here: Path, source: str) -> None:
    """p is the model, with its padding: 6 rows, not 4. Row 4 and 5 are its alone. mergekit once had "model:" before it."""
    model(here / "p", ["t0", "t1", "t2", "t3", None, None])
    (here / "link").symlink_to(here / "p")
    text = "models: [{model: p}, {model: b}]\nmerge_method: linear\nparameters: {weight: 1}\n"
    out = made(text + f"tokenizer_source: {source.format(here=here)}")
    assert out[EMBED][:, 0].tolist() == [0, 5.5, 2, 16.5, -1, -1]


def test_a_tokenizer_that_no_model_has(here: Path) -> None:
    """No model has t9: its row is zeros, as in mergekit, and the plan says so."""
    tokenizer(here / "words", ["t0", "t9", "t3"])
    out = made(AVERAGE + "tokenizer_source: words", account="account.json")
    assert out[EMBED][:, 0].tolist() == [0, 0, 16.5]
    assert out[EMBED][1].tolist() == [0, 0, 0]
    assert json.loads(Path("account.json").read_text())["tokens"]["in_no_model"] == ["t9"]
    with pytest.raises(CheckpointError, match="tokenizer_source nowhere: is neither a model of the merge nor a folder"):
        made(AVERAGE + "tokenizer_source: nowhere", "again")


def test_by_flag(here: Path) -> None:
    merge(MergeConfig(model_path_list=["a", "b"], tokenizer_source="union", output_path="out"), progress=False)
    assert read(here / "out")[EMBED][:, 0].tolist() == [0, 5.5, 2, 16.5, 40]
    record = config_of("out", "merge_config.json")
    assert record["tokenizer_source"] == "union"
    merge(MergeConfig(model_path_list=["a", "b"], tokenizer_source="./b", output_path="as_b"), progress=False)
    assert tokens_of("as_b") == tokens_of("b")
    again = {**config_of("as_b", "merge_config.json"), "output_path": "again"}
    merge(MergeConfig.from_mapping(again), progress=False)
    assert (here / "again" / "model.safetensors").read_bytes() == (here / "as_b" / "model.safetensors").read_bytes()


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float64"])
def test_rows_alone_keep_their_bits(here: Path, dtype: str) -> None:
    """Passed through, rows are moved, and nothing else."""
    random = np.random.default_rng(0)
    rows = random.standard_normal((4, WIDTH))
    rows[0, 0] = -0.0
    write(here / "x", {EMBED: rows, HEAD: rows + 1}, dtype)
    tokenizer(here / "x", ["t0", "t1", "t2", "t3"])
    tokenizer(here / "turned", ["t3", "t2", "t1", "t0"])
    out = made("models: [{model: x}]\nmerge_method: passthrough\ntokenizer_source: turned")
    np.testing.assert_array_equal(out[EMBED], read(here / "x")[EMBED][::-1])
    assert np.signbit(out[EMBED][3, 0])


# --- padding -------------------------------------------------------------------------------------------------------------


def test_padding_is_kept(here: Path) -> None:
    """Rows 4 to 7 of p have no token. q has no row 6 and 7: there the base's, the first model's, stand in: -1."""
    model(here / "p", ["t0", "t1", "t2", "t3", None, None, None, None])
    model(here / "q", ["t0", "t3", "t1", "t2", None, None], 10)
    out = made("models: [{model: p}, {model: q}]\nmerge_method: linear\nparameters: {weight: 1}\ntokenizer_source: base")
    assert out[EMBED][:, 0].tolist() == [0, 5.5, 11, 16.5, -5.5, -5.5, -1, -1]
    assert config_of("out")["vocab_size"] == 8


def test_new_tokens_take_the_paddings_rows(here: Path) -> None:
    """t4 is q's, so row 4 is a token; rows 5 to 7 stay without one. q's row 5 has none, either."""
    model(here / "p", ["t0", "t1", "t2", "t3", None, None, None, None])
    model(here / "q", ["t0", "t3", "t1", "t2", "t4", None], 10)
    out = made("models: [{model: p}, {model: q}]\nmerge_method: linear\nparameters: {weight: 1}\ntokenizer_source: union")
    assert tokens_of("out")["t4"] == 4
    assert out[EMBED][:, 0].tolist() == [0, 5.5, 11, 16.5, 40, -5.5, -1, -1]


def test_more_tokens_than_padding(here: Path) -> None:
    """6 rows with 5 tokens, and 3 tokens more: 8 rows, a multiple of 2 as 6 is. Row 8 doesn't exist; 6 and 7 are tokens."""
    model(here / "p", ["t0", "t1", "t2", "t3", "t4", None])
    model(here / "q", ["t0", "t5", "t6"], 10)
    out = made("models: [{model: p}, {model: q}]\nmerge_method: linear\nparameters: {weight: 1}\ntokenizer_source: union")
    assert out[EMBED][:, 0].tolist() == [0, 1, 2, 3, 4, 50, 60, pytest.approx((0 + 1 + 2 + 3 + 4 + 50 + 60) / 7)]


def test_pad_to_multiple_of(here: Path) -> None:
    """mergekit's: 4 tokens in 6 rows, the last two the mean of the others."""
    out = made(AVERAGE + "tokenizer: {source: base, pad_to_multiple_of: 3}")
    mean = np.mean([0, 5.5, 2, 16.5])
    assert out[EMBED][:, 0].tolist() == [0, 5.5, 2, 16.5, pytest.approx(mean), pytest.approx(mean)]
    assert out[HEAD][4, 0] == pytest.approx(100 + mean)


# --- layouts, ties, adapters' kin ----------------------------------------------------------------------------------------


def test_tied_embeddings_stay_tied(here: Path) -> None:
    """Paddle's files hold lm_head beside the embedding: the same bytes, dropped at random alike."""
    for name, tokens, scale in (("x", ["t0", "t1", "t2"], 1), ("y", ["t2", "t0", "t3"], 10), ("z", ["t1", "t0"], 5)):
        model(here / name, tokens, scale, tied=True, model_type="llama", num_attention_heads=1)
    text = (
        "models: [{model: x}, {model: y}]\nbase_model: z\nmerge_method: dare_ties\nparameters: {weight: 1, density: 0.5}\n"
    )
    out = made(text + "tokenizer_source: union", output_layout="paddleformers", layout=["hf"] * 3)
    assert out[EMBED].shape == (4, WIDTH)
    np.testing.assert_array_equal(out[EMBED], out[HEAD])
    assert HEAD not in made(text + "tokenizer_source: union", "hf", layout=["hf"] * 3)


@pytest.mark.parametrize("source", ["", "tokenizer_source: union\n"])
@pytest.mark.parametrize("layout", ["paddlenlp", "paddleformers"])
def test_an_earlier_merge_stays_tied(here: Path, source: str, layout: str) -> None:
    """Its lm_head is the embedding, dropped at random alike, and so is what is made of it; written apart, the same bytes."""
    for name, scale in (("x", 1), ("y", 10), ("z", 5)):
        tokens = [f"t{number}" for number in range(12)]
        model(here / name, tokens, scale, tied=True, model_type="llama", num_attention_heads=1)
    how = f"base_model: z\nmerge_method: dare_linear\nparameters: {{weight: 1, density: 0.5}}\n{source}"
    first, second = f"models: [{{model: x}}, {{model: y}}]\n{how}", f"models: [{{model: m}}, {{model: x}}]\n{how}"
    out = made(f"name: m\n{first}---\n{second}", output_layout=layout, layout=["hf"] * 3)
    np.testing.assert_array_equal(out[HEAD], next(values for name, values in out.items() if "embed_tokens" in name))
    made(first, "m", output_layout=layout, layout=["hf"] * 3)
    apart = made(second, "apart", output_layout=layout, layout=[layout, "hf", "hf"])
    assert out.keys() == apart.keys()
    for name, values in apart.items():
        np.testing.assert_array_equal(out[name], values)


def test_a_head_of_columns(here: Path) -> None:
    """PaddleNLP's lm_head is [h, V]: its columns are tokens."""
    text = AVERAGE + "tokenizer: {source: union, pad_to_multiple_of: 4}"
    plain = made(text)
    for name in ("a", "b"):
        content = read(here / name)
        known = {**config_of(name), "model_type": "llama", "num_attention_heads": 1}
        transposed = {
            key.replace("model.", "llama.", 1): value.T if key == HEAD or "proj" in key else value
            for key, value in content.items()
        }
        write(here / name, transposed, config=known)
    out = made(text, "turned")
    np.testing.assert_array_equal(out[HEAD], plain[HEAD].T)
    np.testing.assert_array_equal(out["llama.embed_tokens.weight"], plain[EMBED])
    # And when they are read into the other layout.
    np.testing.assert_array_equal(made(text, "back", output_layout="hf")[HEAD], plain[HEAD])


def test_layers_with_rows_of_tokens(here: Path) -> None:
    """DeepSeek's layers that predict the token after next hold the embedding and a head once more."""
    inner = {"model.layers.1.embed_tokens.weight": EMBED, "model.layers.1.shared_head.head.weight": HEAD}
    for name in ("a", "b"):
        content = read(here / name)
        more = {new: content[old] for new, old in inner.items()}
        write(here / name, {**content, **more}, format="pt", config=config_of(name))
    out = made(AVERAGE + "tokenizer_source: base")
    for name, like in inner.items():
        np.testing.assert_array_equal(out[name], out[like])


@pytest.mark.parametrize("name", [HEAD, "model.embed_tokens_per_layer.weight"])
def test_rows_whose_tokens_are_not_known(here: Path, name: str) -> None:
    """6 rows beside an embedding of 4: if tokens move, it isn't known which of them those are."""
    for folder in ("a", "b"):
        content = read(here / folder)
        write(here / folder, {**content, name: np.ones((6, WIDTH))}, format="pt", config=config_of(folder))
    with pytest.raises(CheckpointError, match=r"a: tensor '.*' is \[6, 3\], and the embedding has 4 rows"):
        made(AVERAGE + "tokenizer_source: base")
    assert not (here / "out").exists()
    assert made("models: [{model: a}]\nmerge_method: passthrough\ntokenizer_source: base")[name].shape == (6, WIDTH)


@pytest.mark.parametrize(
    "name", ["transformer.wpe.weight", "embeddings.position_embeddings.weight", "model.visual.merger.mlp.weight"]
)
def test_as_long_as_the_vocabulary_by_accident(here: Path, name: str) -> None:
    """4 positions, or 4 inputs of a projector, are no tokens."""
    values = np.arange(16.0).reshape(4, 4)
    for folder in ("a", "b"):
        write(here / folder, {**read(here / folder), name: values}, format="pt", config=config_of(folder))
    np.testing.assert_array_equal(made(AVERAGE + "tokenizer_source: union")[name], values)


def test_a_bias_per_token(here: Path) -> None:
    for name in ("a", "b"):
        content = read(here / name)
        write(here / name, {**content, "lm_head.bias": content[EMBED][:, 0]}, format="pt", config=config_of(name))
    out = made(AVERAGE + "tokenizer_source: union")
    assert out["lm_head.bias"].tolist() == [0, 5.5, 2, 16.5, 40]


def test_an_earlier_merges_vocabulary(here: Path) -> None:
    """m has the tokens of a and b; then c's are added. Written apart, it is the same bytes."""
    first = AVERAGE + "tokenizer_source: union\n"
    second = "models: [{model: m}, {model: c}]\nmerge_method: linear\nparameters: {weight: 1}\ntokenizer_source: union\n"
    out = made(f"name: m\n{first}---\n{second}")
    made(first, "m")
    apart = made(second, "apart")
    assert tokens_of("out") == tokens_of("apart")
    assert out.keys() == apart.keys()
    for name, values in apart.items():
        np.testing.assert_array_equal(out[name], values)


@pytest.mark.parametrize("source", ["m", "base", "union"])
def test_an_earlier_merges_tokens_are_written(here: Path, source: str) -> None:
    """t4 is in none of the files that the tokenizer is copied from, and the last merge adds no token."""
    second = "models: [{model: m}, {model: a}]\nmerge_method: linear\nparameters: {weight: 1}\n"
    out = made(f"name: m\n{AVERAGE}tokenizer_source: union\n---\n{second}tokenizer_source: {source}")
    assert tokens_of("out") == {"t0": 0, "t1": 1, "t2": 2, "t3": 3, "t4": 4}
    assert out[EMBED].shape == (5, WIDTH)


@pytest.mark.parametrize("source", ["union", "b"])
def test_what_is_made_of_other_tokens_says_whose_they_are(here: Path, source: str) -> None:
    """m would be stored with a's tokenizer, whose tokens aren't m's. Where they are, there is no message."""
    model(here / "b", ["t0", "t3", "t1", "t2"] if source == "b" else ["t0", "t3", "t1", "t4"], 10)
    second = "models: [{model: m}]\nmerge_method: passthrough\n"
    with pytest.raises(CheckpointError, match=r"m .*: has other tokens than the tokenizer of a, so"):
        made(f"name: m\n{AVERAGE}tokenizer_source: {source}\n---\n{second}")
    out = made(f"name: m\n{AVERAGE}tokenizer_source: a\n---\n{second}")
    assert out[EMBED][1, 0] == 5.5


def test_slices_take_rows_of_their_own_models(here: Path) -> None:
    """The embedding is of the first slice's model, lm_head of the last one's; each in the union's order."""
    text = "slices: [{sources: [{model: a, layer_range: [0, 1]}]}, {sources: [{model: b, layer_range: [0, 1]}]}]\n"
    out = made(text + "merge_method: passthrough\ntokenizer_source: union")
    assert out[EMBED][:, 0].tolist() == [0, 1, 2, 3, 0]  # t4 is in none that it is made of
    assert out[HEAD][:, 0].tolist() == [100, 110, 0, 130, 140]


@pytest.mark.parametrize("source", ["", "tokenizer_source: union\n"])
def test_slices_of_tied_models_stay_tied(here: Path, source: str) -> None:
    """In Hugging Face's layout there is one tensor, the first slice's; Paddle's lm_head is no other."""
    for name, tokens, scale in (("a", ["t0", "t1", "t2", "t3"], 1), ("b", ["t0", "t3", "t1", "t4"], 10)):
        model(here / name, tokens, scale, tied=True, model_type="llama", num_attention_heads=1)
    text = "slices: [{sources: [{model: a, layer_range: [0, 1]}]}, {sources: [{model: b, layer_range: [0, 1]}]}]\n"
    text += f"merge_method: passthrough\n{source}"
    out = made(text, output_layout="paddleformers", layout=["hf"] * 2)
    np.testing.assert_array_equal(out[HEAD], out[EMBED])
    np.testing.assert_array_equal(out[EMBED], made(text, "hf", output_layout="hf", layout=["hf"] * 2)[EMBED])


def test_the_last_slice_gives_the_head_of_gpt_neox(here: Path) -> None:
    for name in ("a", "b"):
        content = read(here / name)
        content["embed_out.weight"] = content.pop(HEAD)
        write(here / name, content, format="pt", config=config_of(name))
    text = "slices: [{sources: [{model: a, layer_range: [0, 1]}]}, {sources: [{model: b, layer_range: [0, 1]}]}]\n"
    out = made(text + "merge_method: passthrough\n")
    assert out["embed_out.weight"][:, 0].tolist() == [100, 130, 110, 140]


@pytest.mark.parametrize("n_process", few([3, 1]))
@pytest.mark.parametrize("backend", few(["np", "pd"]))
def test_the_same_bytes_however_it_is_computed(here: Path, n_process: int, backend: str) -> None:
    random = np.random.default_rng(1)
    for name, size in (("x", 700), ("y", 900)):
        words = [f"t{number}" for number in random.permutation(1000)[:size]]
        model(here / name, words, float(random.standard_normal()))
    text = "models: [{model: y}]\nbase_model: x\nmerge_method: ties\nparameters: {weight: 1, density: 0.5}\n"
    text += "tokenizer: {source: union, pad_to_multiple_of: 64}"
    made(text, "one")
    made(text, "other", n_process=n_process, tensor_type=backend)
    one, other = (here / name / "model.safetensors" for name in ("one", "other"))
    assert one.read_bytes() == other.read_bytes()
    assert verify("other", None, 1, False, progress=False).off == []


def pairs_tokenizer(folder: Path, count: int, seed: int) -> None:
    """So many tokens of byte-pair encoding, at random, each with its merge, as large ones are."""
    random = np.random.default_rng(seed)
    words, merges = [chr(number) for number in range(33, 127)], []
    known = set(words)
    while len(words) < count:
        for one, other in random.integers(0, len(words), (1000, 2)).tolist():
            if (made_word := words[one] + words[other]) not in known and len(made_word) < 10 and len(words) < count:
                known.add(made_word)
                words.append(made_word)
                merges.append([words[one], words[other]])
    content = json.loads((folder / "tokenizer.json").read_text())
    content["model"] = {"type": "BPE", "vocab": {word: row for row, word in enumerate(words)}, "merges": merges}
    (folder / "tokenizer.json").write_text(json.dumps(content))
    rows = np.zeros((len(words), WIDTH))
    write(folder, {EMBED: rows, HEAD: rows}, format="pt", config={**config_of(folder), "vocab_size": len(words)})


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a process's peak so")
@pytest.mark.parametrize("source", few(["tokenizer_source: union", ""], 0))
def test_vocabularies_are_in_the_ceiling(here: Path, source: str) -> None:
    """Tokenizers are read to align tokens, or to warn of those that differ; the plan includes the memory for it."""
    for seed, name in enumerate("ab"):
        pairs_tokenizer(here / name, 60_000, seed)
    (here / "recipe.yaml").write_text(AVERAGE + source + "\n")
    code = "import pathlib, sys; from paddle_merge.commands.main import main\n"
    code += "try: main(sys.argv[1:])\nfinally: print(pathlib.Path('/proc/self/status').read_text())"
    command = [sys.executable, "-c", code, "recipe.yaml", "--output_path", "out"]
    done = subprocess.run([*command, "--account", "account.json"], capture_output=True, text=True, check=True)
    foretold = json.loads((here / "account.json").read_text())["predicted"]["memory"]
    (peak,) = [int(line.split()[1]) * 1024 for line in done.stdout.splitlines() if line.startswith("VmHWM")]
    assert 100_000_000 < peak <= foretold


# --- the tokenizer's files -----------------------------------------------------------------------------------------------


def test_added_tokens_are_added_everywhere(here: Path) -> None:
    """In tokenizer.json, tokenizer_config.json, and added_tokens.json where there is one; special ones stay special."""
    model(here / "chat", ["t0", "t1", "t2", "t3", "t7", "t8"], 10, added={"t7": 4, "t8": 5})
    (here / "a" / "added_tokens.json").write_text("{}")
    text = "models: [{model: a}, {model: chat}]\nmerge_method: linear\nparameters: {weight: 1}\ntokenizer_source: union"
    out = made(text)
    assert out[EMBED][:, 0].tolist() == [0, 5.5, 11, 16.5, 70, 80]
    opened = tokenizers.Tokenizer.from_file("out/tokenizer.json")
    assert opened.encode("t1 t8 t7").ids == [1, 5, 4]
    assert opened.get_added_tokens_decoder()[4].special
    assert config_of("out", "added_tokens.json") == {"t7": 4, "t8": 5}
    decoder = config_of("out", "tokenizer_config.json")["added_tokens_decoder"]
    assert {row: token["content"] for row, token in decoder.items()} == {"4": "t7", "5": "t8"}
    assert decoder["5"]["special"] is True


def test_ids_in_configs_follow_their_tokens(here: Path, caplog: pytest.LogCaptureFixture) -> None:
    """config.json is a's, the tokenizer b's: t3 is row 3 of a, and 1 of b; t2, b doesn't have; b's config names its own."""
    model(here / "a", ["t0", "t1", "t2", "t3"], eos_token_id=3, bos_token_id=2, pad_token_id=None)
    model(here / "b", ["t0", "t3", "t1", "t4"], 10, bos_token_id=3)
    (here / "a" / "generation_config.json").write_text('{"eos_token_id": [3, 1], "bad_words_ids": [[3], [2, 1], [1]]}')
    made(AVERAGE + "tokenizer_source: b")
    config = config_of("out")
    assert (config["eos_token_id"], config["bos_token_id"], config["pad_token_id"]) == (1, 3, None)
    assert config_of("out", "generation_config.json") == {"eos_token_id": [1, 2], "bad_words_ids": [[1], [2]]}
    assert "bos_token_id is 't2', which the output's tokenizer doesn't have; it becomes 3" in caplog.text


def test_ids_that_configs_hold_otherwise(here: Path) -> None:
    """b has t3 at 1. Row 4 has no token, before and after; a config that stands alone speaks of the base's tokens."""
    model(here / "a", ["t0", "t1", "t2", "t3", None], eos_token_id=[3, 4])
    (here / "a" / "generation_config.json").write_text('{"suppress_tokens": [3], "begin_suppress_tokens": [-1]}')
    made(AVERAGE + "tokenizer_source: b")
    assert config_of("out")["eos_token_id"] == [1, 4]
    assert config_of("out", "generation_config.json") == {"suppress_tokens": [1], "begin_suppress_tokens": [-1]}
    (here / "alone").mkdir()
    (here / "alone" / "config.json").write_text(json.dumps({**config_of("a"), "eos_token_id": 3}))
    made(AVERAGE + "tokenizer_source: b", "other", config_from="alone")
    assert config_of("other")["eos_token_id"] == 1


def test_nested_configs(here: Path) -> None:
    model(here / "a", ["t0", "t1", "t2", "t3"], text_config={"vocab_size": 4, "eos_token_id": 3})
    made(AVERAGE + "tokenizer_source: b")
    assert config_of("out")["text_config"] == {"vocab_size": 4, "eos_token_id": 1}
    made(AVERAGE + "tokenizer_source: union", "more")
    assert config_of("more")["text_config"]["vocab_size"] == 5


@pytest.mark.parametrize(
    ("known", "wanted"),
    [
        ({"llm_config": {"vocab_size": 4}}, {"llm_config": {"vocab_size": 5}}),  # InternVL
        ({"thinker_config": {"text_config": {"vocab_size": 4}}}, {"thinker_config": {"text_config": {"vocab_size": 5}}}),
        ({"padded_vocab_size": 4}, {"padded_vocab_size": 5}),  # ChatGLM
        ({}, {"vocab_size": 5}),
    ],
)
def test_the_size_where_configs_say_it(here: Path, known: dict[str, Any], wanted: dict[str, Any]) -> None:
    config = {"hidden_size": WIDTH, "tie_word_embeddings": False, **known}
    write(here / "a", read(here / "a"), format="pt", config=config)
    made(AVERAGE + "tokenizer_source: union")
    made_config = config_of("out")
    assert {name: value for name, value in made_config.items() if "vocab" in name or "_config" in name} == wanted


@pytest.mark.parametrize("kind", ["vocab.json", "vocab.txt"])
def test_slow_tokenizers(here: Path, kind: str) -> None:
    """GPT-2's and BERT's files, and Paddle's added_tokens.json beside them."""
    for name, words in (("a", ["t0", "t1", "t2"]), ("b", ["t0", "t3", "t1"])):
        for file in ("tokenizer.json", "tokenizer_config.json"):
            (here / name / file).unlink()
        text = json.dumps({word: row for row, word in enumerate(words)}) if kind == "vocab.json" else "\n".join(words) + "\n"
        (here / name / kind).write_text(text)
        (here / name / "added_tokens.json").write_text(json.dumps({"t3" if name == "a" else "t4": 3}))
    out = made(AVERAGE + "tokenizer_source: union")
    assert out[EMBED][:, 0].tolist() == [0, 5.5, 2, 16.5, 40]
    assert config_of("out", "added_tokens.json") == {"t3": 3, "t4": 4}
    assert (here / "out" / kind).read_bytes() == (here / "a" / kind).read_bytes()


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("tokenizer.model", {}),
        ("sentencepiece.bpe.model", {"tokenizer_config.json": {"tokenizer_class": "LlamaTokenizer"}}),  # as PaddleNLP has it
        ("sentencepiece.bpe.model", {"config.json": {"model_type": "llama"}}),
    ],
)
def test_sentencepiece(here: Path, name: str, said: dict[str, Any]) -> None:
    sentencepiece = pytest.importorskip("sentencepiece")
    (here / "a" / "tokenizer_config.json").unlink()
    for file, content in said.items():
        (here / "a" / file).write_text(json.dumps(content))
    lines = iter(["ab abc abcd b c d", "a b c d e f g"] * 20)
    with (here / "a" / name).open("wb") as model_file:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=lines, model_writer=model_file, vocab_size=16, minloglevel=2, hard_vocab_limit=False
        )
    (here / "a" / "tokenizer.json").unlink()
    found = read_vocabulary(str(here / "a"))
    assert found is not None
    assert list(found.ids)[:3] == ["<unk>", "<s>", "</s>"]
    assert list(found.ids.values()) == list(range(len(found.ids)))


@pytest.mark.parametrize("name", ["sentencepiece.bpe.model", "spiece.model"])
def test_files_whose_tokens_loaders_renumber(here: Path, name: str) -> None:
    """XLM-R has <pad> at 1, and every piece one further on; T5 ends in tokens that spiece.model doesn't have."""
    (here / "b" / "tokenizer.json").unlink()
    (here / "b" / name).write_bytes(b"")
    with pytest.raises(CheckpointError, match="use other ids than the file has"):
        made(AVERAGE + "tokenizer_source: union")


def test_union_keeps_the_bases_ids() -> None:
    base = Vocabulary("x", {"a": 0, "b": 1, "<s>": 5}, {"<s>": {"special": True}})
    other = Vocabulary("y", {"<s>": 0, "<e>": 1, "c": 2, "b": 3}, {"<e>": {"special": True}, "b": {"special": False}})
    both = union(base, [other])
    assert both.ids == {"a": 0, "b": 1, "<s>": 5, "c": 6, "<e>": 7}
    assert list(both.added) == ["b", "<s>", "c", "<e>"]
    assert both.added["<e>"] == {"special": True}


def test_tokens_behind_a_models_own_embedding_are_no_part_of_a_union(here: Path, caplog: pytest.LogCaptureFixture) -> None:
    """b's last token, t4, has no row there any more, as mergekit has it; a has never had it."""
    short = {name: values[:-1] if name in (EMBED, HEAD) else values for name, values in read(here / "b").items()}
    write(here / "b", short, format="pt", config=config_of("b"))
    logging.getLogger("paddle_merge").propagate = True
    out = made(AVERAGE + "tokenizer_source: union")
    assert "t4" not in tokens_of("out")
    assert len(out[EMBED]) == 4
    assert any("1 tokens, such as 't4' of b, have no row" in message for message in caplog.messages)


def test_copies_of_an_embedding_stay_copies(here: Path) -> None:
    """T5's, say: random masks are drawn once for all names, of rows that were matched, too."""
    for name in "abc":
        tensors = read(here / name)
        tensors["decoder.embed_tokens.weight"] = tensors[EMBED]
        write(here / name, tensors, format="pt", config=config_of(name))
    text = "models: [{model: a}, {model: b}]\nbase_model: c\nmerge_method: dare_linear\n"
    out = made(text + "parameters: {weight: 1, density: 0.5}\ntokenizer_source: union")
    np.testing.assert_array_equal(out["decoder.embed_tokens.weight"], out[EMBED])
    assert (out[HEAD] != out[EMBED] + 100).any()  # which is no copy, and has masks of its own


# --- what is said --------------------------------------------------------------------------------------------------------


def test_the_plan_says_what_becomes_of_tokens(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made_of = AVERAGE + "tokenizer_source: base\n"
    merge(MergeConfig(recipe_yaml=made_of, output_path="out", dry_run=True), progress=False)
    text = capsys.readouterr().out
    assert "tokens   a: 4 tokens in 4 rows" in text
    assert "a: 4 matched, 0 filled, 0 dropped" in text
    assert "b: 3 matched, 1 filled ('t2'), 1 dropped ('t4')" in text
    assert "aligned token by token in b" in text


def test_other_tokens_in_the_same_rows_are_noticed(here: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Without tokenizer_source their rows are averaged as they stand, which is likely not meant."""
    made(AVERAGE)
    assert (
        "3 tokens have other rows of the embedding in b than in a (row 1 is 't3' and 't1'): --tokenizer_source"
        in caplog.text
    )
    caplog.clear()
    made(
        f"name: m\n{AVERAGE}---\nmodels: [{{model: m}}, {{model: a}}]\nmerge_method: linear\nparameters: {{weight: 1}}",
        "in-2",
    )
    assert sum("3 tokens have other rows of the embedding in b than in a" in message for message in caplog.messages) == 1
    caplog.clear()
    model(here / "d", ["t0", "t1", "t2", "t3"], 7)
    made("models: [{model: a}, {model: d}]\nmerge_method: linear\nparameters: {weight: 1}", "same")
    assert "tokens have other rows" not in caplog.text


def test_rows_that_are_no_token_in_one_model_are_noticed(here: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A token that one model was given in the padding of its embedding, where the other has rows that were never trained."""
    model(here / "padded", ["t0", "t1", "t2", "t3", None, None])
    model(here / "chat", ["t0", "t1", "t2", "t3", "t4", None])
    recipe = "models: [{{model: {}}}, {{model: {}}}]\nmerge_method: linear\nparameters: {{weight: 1}}\n"
    said = (
        "row 4 of the embedding is 't4' in chat and no token in padded, and merged nevertheless: --tokenizer_source union"
        " takes it from models that have the token"
    )
    for number, paths in enumerate((("padded", "chat"), ("chat", "padded"))):
        caplog.clear()
        assert made(recipe.format(*paths), f"o{number}")[EMBED][4, 0] == 1.5  # of 4 and -1
        assert caplog.messages.count(said) == 1
    caplog.clear()
    assert made(recipe.format("padded", "chat") + "tokenizer_source: union", "u")[EMBED][4, 0] == 4
    assert "merged nevertheless" not in caplog.text


def test_rows_that_are_no_token_in_several_models_are_noticed_once(here: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Experts were often given the same tokens, and what lacks them is often their base alone."""
    for name in ("chat", "math", "code"):
        model(here / name, ["t0", "t1", "t2", "t3", "t4", "t5"])
    for name in ("old", "base"):
        model(here / name, ["t0", "t1", "t2", "t3", None, None])
    listed = "models: [{}]\nmerge_method: linear\nparameters: {{weight: 1}}\n"
    rest = "merged nevertheless: --tokenizer_source union takes them from models that have the tokens"
    for paths, having, lacking in (
        (("base", "chat", "math", "code"), "chat, math, code", "base"),
        (("chat", "old", "base", "math"), "chat", "old, base"),
    ):
        caplog.clear()
        made(listed.format(", ".join(f"{{model: {path}}}" for path in paths)), f"of-{paths[0]}")
        said = [message for message in caplog.messages if "of the embedding" in message]
        assert said == [f"2 rows of the embedding are tokens in {having} (row 4 is 't4') and none in {lacking}, and {rest}"]


def test_an_embedding_that_is_not_known_is_not_looked_for(here: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The same tokens in files that are written otherwise need no embedding to be the same."""
    for name in "ab":
        model(here / name, ["t0", "t1", "t2", "t3"])
        tensors = {f"{other}s": values for other, values in read(here / name).items()}
        config = config_of(name)
        write(here / name, {"table": tensors[f"{EMBED}s"]}, format="pt", config=config)
    content = config_of("a", "tokenizer.json")
    (here / "b" / "tokenizer.json").write_text(json.dumps(content, indent=2))
    made(AVERAGE)
    assert "it isn't known" not in caplog.text


def test_the_same_tokens_written_otherwise_are_the_same(here: Path) -> None:
    """transformers writes tokenizer.json anew whenever it saves a model, not always alike."""
    content = config_of("a", "tokenizer.json")
    (here / "b" / "tokenizer.json").write_text(json.dumps({**content, "truncation": {"max_length": 5}}, indent=2))
    assert same_files("a", "b")
    (here / "b" / "tokenizer_config.json").write_text(json.dumps({"added_tokens_decoder": {"4": {"content": "t9"}}}))
    assert not same_files("a", "b")  # loaders add it
    (here / "b" / "added_tokens.json").write_text('{"t9": 4}')
    (here / "a" / "added_tokens.json").write_text('{"t9": 4}')
    assert same_files("a", "b")  # said twice
    content["model"]["vocab"]["t9"] = 4
    (here / "b" / "tokenizer.json").write_text(json.dumps(content))
    assert not same_files("a", "b")
    (here / "b" / "tokenizer.json").write_text("[]")
    assert not same_files("a", "b")


def test_pieces_that_become_added_tokens_are_noticed(here: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Added tokens are found before the tokenizer's model sees the text: mergekit's union does the same, without a word."""
    made(AVERAGE + "tokenizer_source: union")
    assert "1 tokens of other models' own vocabularies, such as 't4', become added tokens" in caplog.text
    caplog.clear()
    model(here / "b", ["t0", "t3", "t1", "t4"], 10, added={"t4": 3})
    made(AVERAGE + "tokenizer_source: union", "again")
    assert "become added tokens" not in caplog.text


def test_other_numbers_of_rows_are_told_the_remedy(here: Path) -> None:
    with pytest.raises(CheckpointError, match=r"different shapes.*--tokenizer_source union"):
        made("models: [{model: a}, {model: c}]\nmerge_method: linear\nparameters: {weight: 1}")


def test_models_without_a_tokenizer(here: Path, caplog: pytest.LogCaptureFixture) -> None:
    """With as many rows, its tokens are taken to be the base's; else nothing can be known."""
    model(here / "bare", ["t0", "t1", "t2", "t3"], 10, with_tokenizer=False)
    out = made("models: [{model: a}, {model: bare}]\nmerge_method: linear\nparameters: {weight: 1}\ntokenizer_source: base")
    assert out[EMBED][:, 0].tolist() == [0, 5.5, 11, 16.5]
    assert "bare has no tokenizer: its tokens are taken to be those of a" in caplog.text
    model(here / "bare", ["t0", "t1", "t2"], 10, with_tokenizer=False)
    with pytest.raises(CheckpointError, match="bare: has no tokenizer that says which token"):
        made("models: [{model: a}, {model: bare}]\nmerge_method: linear\nparameters: {weight: 1}\ntokenizer_source: base")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("tokenizer_source: union\ntokenizer: {source: base}", "4:19: give one of tokenizer_source and tokenizer"),
        ("tokenizer: {sources: base}", "4:13: unknown key 'sources'; did you mean 'source'?"),
        ("tokenizer: {source: base, pad_to_multiple_of: many}", "pad_to_multiple_of must be a whole number"),
        ("tokenizer_source: [a]", "4:19: must be text"),
    ],
)
def test_mistakes(here: Path, text: str, said: str) -> None:
    with pytest.raises(ConfigError) as error:
        made(AVERAGE + text)
    assert said in str(error.value)


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("tokenizer.json", b"{}", "the tokenizers library can't read it"),
        ("tokenizer.json", b"\xff", "the tokenizers library can't read it"),
        ("added_tokens.json", b'{"t1": 3}', "gives the token 't1' the id 3"),
        ("added_tokens.json", b'{"new": 1}', "gives two tokens the same id"),
        ("added_tokens.json", b'{"new": 3000000000}', "gives 'new' the id 3000000000"),
        ("added_tokens.json", b"[]", "must be a JSON object with an id for each token"),
        ("tokenizer_config.json", b'{"added_tokens_decoder": {"x": 1}}', "must hold a token for each id"),
    ],
)
def test_damaged_tokenizers(here: Path, name: str, content: bytes, said: str) -> None:
    (here / "b" / name).write_bytes(content)
    with pytest.raises(CheckpointError, match=said):
        made(AVERAGE + "tokenizer_source: union")
    assert not (here / "out").exists()


def test_a_tokenizer_that_the_library_panics_at(here: Path) -> None:
    """Its panics are no Exception. Where tokens aren't aligned, the tokenizer isn't needed."""
    path = here / "b" / "tokenizer.json"
    path.write_text(
        json.dumps({**json.loads(path.read_text()), "normalizer": {"type": "Precompiled", "precompiled_charsmap": "AAAA"}})
    )
    with pytest.raises(CheckpointError, match=r"the tokenizers library can't read it \(Precompiled"):
        made(AVERAGE + "tokenizer_source: base")
    assert made(AVERAGE)[EMBED].shape == (4, WIDTH)


def test_unreadable_tokenizers_that_are_not_needed(
    here: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """They cause a warning. root may read any file, so comparing files is made to fail as it would for other users."""

    def refuse(*_: object, **__: object) -> bool:
        raise PermissionError(13, "Permission denied", "b/tokenizer.json")

    monkeypatch.setattr("filecmp.cmp", refuse)
    assert made(AVERAGE)[EMBED].shape == (4, WIDTH)
    said = "it isn't known whether the rows of the embedding are the same tokens in b as in a (b/tokenizer.json: Permission"
    assert said in caplog.text


# --- properties ----------------------------------------------------------------------------------------------------------

WORDS = st.lists(st.sampled_from([f"t{number}" for number in range(12)]), min_size=1, max_size=9, unique=True)


@given(
    inputs=st.lists(st.tuples(WORDS, st.integers(0, 3)), min_size=1, max_size=4),
    output=st.tuples(WORDS, st.integers(0, 3)),
    base=st.booleans(),
    axis=st.integers(0, 1),
    start=st.integers(0, 11),
)
def test_rows_by_the_rules_read_aloud(
    tmp_path_factory: pytest.TempPathFactory,
    inputs: list[tuple[list[str], int]],
    output: tuple[list[str], int],
    base: bool,
    axis: int,
    start: int,
) -> None:
    """An independent reading of the rules, row by row in float64, of the same random files."""
    folder = tmp_path_factory.getbasetemp()
    random = np.random.default_rng(0)
    known = [
        keys(Vocabulary("", {word: row for row, word in enumerate(words)}), len(words) + more) for words, more in inputs
    ]
    wanted = keys(Vocabulary("", {word: row for row, word in enumerate(output[0])}), len(output[0]) + output[1])
    values = [random.standard_normal((len(rows), 4)).astype(np.float32) for rows in known]
    entries = []
    for number, array in enumerate(values):
        stored = array if axis == 0 else array.T
        file = folder / f"values{number}"
        file.write_bytes(np.ascontiguousarray(stored).tobytes())
        entries.append(StoredEntry("x", FLOATS["float32"], stored.shape, str(file), 0))

    rows = Rows.of(known, wanted, 0 if base else None)
    for place, array in enumerate(values):
        has = [{key: row for row, key in enumerate(its)} for its in known]
        made = np.zeros((len(wanted), 4))
        mean = []
        for row, key in enumerate(wanted):
            holders = [number for number, its in enumerate(has) if key in its]
            if key in has[place]:
                made[row] = array[has[place][key]]
            elif base and 0 in holders:
                made[row] = values[0][has[0][key]]
            elif holders:
                made[row] = np.mean([values[number][has[number][key]] for number in holders], axis=0)
            elif isinstance(key, int):
                mean.append(row)
        if mean:
            made[mean] = made.sum(axis=0) / max(1, len(wanted) - len(mean))
        flat = (made if axis == 0 else made.T).reshape(-1)
        aligned = rows.aligned(place, axis, entries, range(len(entries)))
        if aligned is None:
            np.testing.assert_array_equal(array, made.astype(np.float32))
            continue
        files = Files()
        first = min(start, flat.size - 1)
        read_back = np.empty(flat.size - first, np.float32)
        AlignedReader(aligned, "float32", functools.partial(reader, files=files)).read(first, read_back)
        files.close()
        np.testing.assert_allclose(read_back, flat[first:], rtol=1e-6, atol=1e-6)


def test_in_a_file_of_flags(here: Path) -> None:
    """tokenizer_source is a flag, too: such a file is no recipe for that."""
    Path("merge.yaml").write_text(
        "model_path_list: [a, b]\nmerge_method: linear\ntokenizer_source: union\noutput_path: out\n"
    )
    merge(MergeConfig.from_mapping(MergeConfig.from_file("merge.yaml")), progress=False)
    assert read(here / "out")[EMBED][:, 0].tolist() == [0, 5.5, 2, 16.5, 40]


def test_integers_have_no_rows_that_could_be_aligned(here: Path) -> None:
    """They can't be averaged: that their shapes differ is said, as of any other tensor."""
    for name, count in (("a", 4), ("c", 3)):
        path = here / name / "model.safetensors"
        save_file({**load_file(path), "lm_head.counts": np.arange(count)}, path, metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"tensor 'lm_head\.counts' has different shapes"):
        made("models: [{model: a}, {model: c}]\nmerge_method: linear\nparameters: {weight: 0.5}\ntokenizer_source: union")
