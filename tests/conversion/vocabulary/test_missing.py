"""Test rows of tokens that no model has: made of other tokens' by orthogonal matching pursuit, of pieces, or the mean.

mergekit 0.1.5 (mergekit-tokensurgeon) was compared by hand on two Qwen2 models with byte-level tokenizers of 1,000 and 1,200
tokens: all rows by omp agree to 1e-6 of the largest, all but five by subword (mean, sum, last), of which it splits the text
otherwise. Its weighted_mean gives the weights in reverse.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from paddle_merge import CheckpointError, ConfigError, WorkError
from paddle_merge.commands.verify.verify import verify
from paddle_merge.conversion.vocabulary import completed
from paddle_merge.conversion.vocabulary.pursuit import pursue
from paddle_merge.conversion.vocabulary.texts import in_words_of, spelling, text_of
from paddle_merge.conversion.vocabulary.tokens import Vocabulary
from paddle_merge.recipe.yaml_read import parse
from paddle_merge.recipe.yaml_write import to_yaml
from tests.conversion.vocabulary.test_vocabulary import EMBED, HEAD, config_of, made, tokens_of
from tests.support.checkpoints import read, write
from tests.support.command_lines import cli


def tokenizer(folder: Path, tokens: Sequence[str], merges: Sequence[str] = (), **roles: str) -> None:
    """Write a byte-level tokenizer: tokens in the order of their ids, and merges of pairs ("a b" makes ab).

    roles: of special tokens, such as eos_token="</s>".
    """
    special = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False) | {"special": True}
    added = [{"id": tokens.index(token), "content": token, **special} for token in roles.values()]
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    vocab = {token: number for number, token in enumerate(tokens)}
    rest: dict[str, Any] = dict.fromkeys(("truncation", "padding", "normalizer", "post_processor"))
    content = {"version": "1.0", "added_tokens": added, "pre_tokenizer": level, "decoder": level, **rest}
    content["model"] = {"type": "BPE", "vocab": vocab, "merges": list(merges)}
    (folder / "tokenizer.json").write_text(json.dumps(content))
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizerFast", **roles}))


def model(
    folder: Path, rows: Sequence[Sequence[float]], head: Sequence[Sequence[float]] | None, dtype: str, **config: Any
) -> None:
    embed, tied = np.array(rows, float), head is None
    tensors = {EMBED: embed, "model.norm.weight": np.ones(embed.shape[1])}
    tensors |= {} if head is None else {HEAD: np.array(head, float)}
    known = {"vocab_size": len(embed), "hidden_size": embed.shape[1], "tie_word_embeddings": tied, "model_type": "llama"}
    write(folder, tensors, dtype, format="pt", config={**known, **config})


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The model: a b c ab </s>. The donor: <eos> cab b a c ba. Both have a, b, c and an eos_token, only the donor cab, ba.

    In the donor's embedding a, b, c and <eos> are orthogonal, with the lengths 2, 1, 1 and 1; cab is 2a - b/2, ba is
    b + c/4. In its lm_head cab is c, and ba 3a.
    """
    model(
        tmp_path / "model",
        [[1, 0, 10], [2, 1, 20], [4, 2, 30], [8, 8, 8], [16, 3, 50]],
        [[1, 1, 1], [2, 2, 4], [3, 3, 9], [4, 4, 16], [5, 5, 25]],
        "float32",
        eos_token_id=4,
        bos_token_id=4,
    )
    tokenizer(tmp_path / "model", ["a", "b", "c", "ab", "</s>"], ["a b"], eos_token="</s>")
    a, b, c, eos = np.diag([2.0, 1, 1, 1])
    model(tmp_path / "donor", [eos, 2 * a - b / 2, b, a, c, b + c / 4], [eos, c, b, a, c, 3 * a], "float32", eos_token_id=0)
    tokenizer(tmp_path / "donor", ["<eos>", "cab", "b", "a", "c", "ba"], ["b a"], eos_token="<eos>")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def recipe(missing: str, more: str = "") -> str:
    return f"models: [{{model: model}}]\nmerge_method: passthrough\ntokenizer: {{source: donor, missing: {missing}{more}}}"


A, B, C, EOS = ([1, 0, 10], [2, 1, 20], [4, 2, 30], [16, 3, 50])  # the model's rows


def test_omp_by_hand(here: Path) -> None:
    """cab is 2a - b/2: 2 * [1 0 10] - [2 1 20] / 2. ba is b + c/4. lm_head has coefficients of its own: cab c, ba 3a."""
    out = made(recipe("omp"), account="account.json")
    assert tokens_of("out") == {"<eos>": 0, "cab": 1, "b": 2, "a": 3, "c": 4, "ba": 5}
    np.testing.assert_allclose(out[EMBED], [EOS, [1, -0.5, 10], B, A, C, [3, 1.5, 27.5]], rtol=1e-6)
    np.testing.assert_allclose(out[HEAD], [[5, 5, 25], [3, 3, 9], [2, 2, 4], [1, 1, 1], [3, 3, 9], [3, 3, 3]], rtol=1e-6)
    config = config_of("out")  # both ids are those of </s>, whose role <eos> has
    assert (config["vocab_size"], config["eos_token_id"], config["bos_token_id"]) == (6, 0, 0)
    rows = {one["name"]: one["notes"] for one in json.loads(Path("account.json").read_text())["tensors"]}
    assert rows[EMBED] == ["aligned token by token", "2 rows made of others"]
    assert verify("out", None, 1, False, progress=False).off == []


def test_too_many_atoms_are_warned_of(here: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The donor's rows have 4 elements, so 2 tokens are few enough, and 3 too many; unless no row is made."""
    model(here / "few", [[1, 0, 1], [0, 1, 1], [1, 1, 1]], None, "float32", eos_token_id=2)
    tokenizer(here / "few", ["b", "a", "</s>"], eos_token="</s>")
    with caplog.at_level("WARNING", "paddle_merge"):
        made(recipe("{method: omp, k: 9}").replace("source: donor", "source: few"), "fewer")
        made(recipe("{method: omp, k: 2}"))
        assert not caplog.messages
        made(recipe("{method: omp, k: 3}"), "again")
    assert any("k should be at most 2" in message for message in caplog.messages)


def test_one_atom_is_the_closest(here: Path) -> None:
    """With k 1, cab is 2a alone, of which the inner product, 2 * 2 * 2, is larger than b's; ba is b."""
    out = made(recipe("{method: omp, k: 1}"))
    np.testing.assert_allclose(out[EMBED][[1, 5]], [[2, 0, 20], B], rtol=1e-6)


def test_a_tied_head_stays_tied(here: Path) -> None:
    """Paddle stores a tied lm_head, too. The donor's own lm_head has no part in it."""
    rows = [A, B, C, [8, 8, 8], EOS]
    write(here / "model", {EMBED: np.array(rows, float)}, "float32", config={"tie_word_embeddings": True, "vocab_size": 5})
    out = made(recipe("omp"))
    assert list(out) == [EMBED]
    np.testing.assert_allclose(out[EMBED], [EOS, [1, -0.5, 10], B, A, C, [3, 1.5, 27.5]], rtol=1e-6)


def test_heads_with_a_column_for_each_token(here: Path) -> None:
    """PaddleNLP's lm_head is [hidden, tokens]: the same columns as the rows before."""
    rows = made(recipe("omp"))[HEAD]
    out = made(recipe("omp"), "nlp", output_layout="paddlenlp", layout=["hf"])
    np.testing.assert_array_equal(out[HEAD], rows.T)


@pytest.mark.parametrize(
    ("pieces", "cab", "head"),
    [  # cab is split into c, ab (of the model's merges): rows [4 2 30] and [8 8 8], of lm_head [3 3 9] and [4 4 16]
        ("mean", [6, 5, 19], [3.5, 3.5, 12.5]),
        ("sum", [12, 10, 38], [7, 7, 25]),
        ("weighted_mean", [20 / 3, 6, 46 / 3], [10 / 3, 10 / 3, 34 / 3]),
        ("last", [8, 8, 8], [3, 3, 9]),
    ],
)
def test_subwords_by_hand(here: Path, pieces: str, cab: list[float], head: list[float]) -> None:
    out = made(recipe(f"{{method: subword, pieces: {pieces}}}"))
    np.testing.assert_allclose(out[EMBED][1], cab, rtol=1e-6)
    np.testing.assert_allclose(out[HEAD][1], head, rtol=1e-6)


def test_padding_and_truncation_of_the_tokenizer_do_not_count(here: Path) -> None:
    """Files often keep the settings of the training's batches."""
    wanted = made(recipe("subword"))[EMBED]
    path = here / "model" / "tokenizer.json"
    padding = {"strategy": {"Fixed": 9}, "direction": "Right", "pad_to_multiple_of": None}
    padding |= {"pad_id": 0, "pad_type_id": 0, "pad_token": "a"}
    truncation = {"direction": "Right", "max_length": 1, "strategy": "LongestFirst", "stride": 0}
    path.write_text(json.dumps({**json.loads(path.read_text()), "padding": padding, "truncation": truncation}))
    np.testing.assert_array_equal(made(recipe("subword"), "again")[EMBED], wanted)


def test_mean_zeros_and_padding(here: Path) -> None:
    kept = np.mean([EOS, B, A, C], axis=0)
    np.testing.assert_allclose(made(recipe("mean"))[EMBED][[1, 5]], [kept, kept], rtol=1e-6)
    np.testing.assert_array_equal(made(recipe("zeros"), "z")[EMBED][[1, 5]], np.zeros((2, 3)))
    assert made(recipe("omp", ", pad_to_multiple_of: 8"), "p")[EMBED].shape == (8, 3)


def test_every_model_makes_its_own_rows(here: Path) -> None:
    """Of two models, one has ba: the other gets its row, and only cab is made, in each of its own rows."""
    model(here / "other", [[0, 0, 1], [0, 1, 0], [7, 7, 7]], [[1, 0, 0], [0, 1, 0], [9, 9, 9]], "float32")
    tokenizer(here / "other", ["a", "b", "ba"], ["b a"])
    text = recipe("omp").replace("{model: model}", "{model: model}, {model: other}").replace("passthrough", "linear")
    out = made(text + "\nparameters: {weight: 1}")
    np.testing.assert_allclose(out[EMBED][1], np.mean([[1, -0.5, 10], [0, -0.5, 2]], axis=0), rtol=1e-6)
    np.testing.assert_allclose(out[EMBED][5], [7, 7, 7], rtol=1e-6)


def test_the_recipe_is_kept(here: Path) -> None:
    parsed = parse(recipe("{method: subword, pieces: last}"), "here").recipe
    assert parse(to_yaml(parsed), "there").recipe == parsed
    with pytest.raises(ConfigError) as refused:
        parse(recipe("{method: opm, k: 0, pieces: first}"), "here")
    assert [line.partition(": ")[2] for line in refused.value.problems] == [
        "method 'opm' must be one of omp, subword, mean, zeros",
        "pieces 'first' must be one of mean, sum, weighted_mean, last",
        "k must be a whole number from 1 to 1024",
    ]


def test_what_cannot_be_made(here: Path) -> None:
    tokenizer(here / "model", ["x", "y", "z", "xy", "</s>"])
    (here / "donor" / "tokenizer_config.json").write_text("{}")
    with pytest.raises(CheckpointError, match="donor: has no token that the models have, so no rows can be made of others"):
        made(recipe("omp"))
    (here / "words").mkdir()
    tokenizer(here / "words", ["a"])
    with pytest.raises(CheckpointError, match="words"):
        made(recipe("omp").replace("donor", "words"))


def test_nan_is_refused(here: Path) -> None:
    model(here / "donor", [[1, 0], [1, 1], [float("nan"), 0], [0, 1], [1, 2], [2, 1]], None, "float32")
    with pytest.raises(
        WorkError, match=r"donor/model.safetensors: tensor .*, to which tokens are compared, holds NaN or Inf"
    ):
        made(recipe("omp"))
    assert not (here / "out" / "model.safetensors").exists()


# --- the pursuit ---------------------------------------------------------------------------------------------------------


def expected(target: np.ndarray, atoms: np.ndarray, k: int) -> np.ndarray:
    """The sparse combination of the textbook, with least squares anew at each step, (count of atoms,)."""
    chosen, scales = list[int](), np.zeros(len(atoms))
    for _ in range(k):
        products = np.abs(atoms @ (target - scales @ atoms))
        products[chosen] = -1
        chosen.append(int(products.argmax()))
        scales = np.zeros(len(atoms))
        scales[chosen] = np.linalg.lstsq(atoms[chosen].T, target, rcond=None)[0]
    return scales


@pytest.mark.parametrize(("width", "count", "k", "step"), [(5, 9, 3, 2), (16, 200, 9, 7), (12, 40, 12, 40)])
def test_pursuit_is_the_textbooks(width: int, count: int, k: int, step: int) -> None:
    random = np.random.default_rng(width)
    atoms, targets = random.standard_normal((count, width)), random.standard_normal((6, width))

    def blocks() -> Iterator[tuple[int, np.ndarray]]:
        yield from ((first, atoms[first : first + step]) for first in range(0, count, step))

    chosen, scales = pursue(targets, blocks, k)
    for target, its, its_scales in zip(targets, chosen, scales, strict=True):
        dense = np.zeros(count)
        np.add.at(dense, its, its_scales)
        np.testing.assert_allclose(dense, expected(target, atoms, k), atol=1e-9)


def test_atoms_that_are_read_again(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Atoms that are too many to be kept are read for each step, one row at a time here: the same bytes."""
    made(recipe("omp"))
    monkeypatch.setattr(completed, "CACHE", 0)
    monkeypatch.setattr(completed, "READ", 1)
    counts = list[int]()
    monkeypatch.setattr(
        completed, "pursue", lambda targets, blocks, k: (counts.append(len(list(blocks()))), pursue(targets, blocks, k))[1]
    )
    made(recipe("omp"), "again")
    assert counts == [4, 4]  # the embedding's atoms and lm_head's: those of <eos>, b, a and c
    assert (here / "again" / "model.safetensors").read_bytes() == (here / "out" / "model.safetensors").read_bytes()


def test_a_donor_of_paddlenlp(here: Path) -> None:
    """Its lm_head is [hidden, tokens]."""
    wanted = made(recipe("omp"))[HEAD]
    tensors = read(here / "donor")
    write(here / "donor", {**tensors, HEAD: np.ascontiguousarray(tensors[HEAD].T)}, "float32", config=config_of("donor"))
    np.testing.assert_array_equal(made(recipe("omp"), "again")[HEAD], wanted)


def test_pursuit_ends_early() -> None:
    """Equal atoms, a target of one atom, and one of zeros: what adds nothing has no share."""
    atoms = np.array([[1.0, 0, 0], [1, 0, 0], [0, 2, 0]])
    chosen, scales = pursue(np.array([[0, 4.0, 0], [0, 0, 0], [3, 1, 0]]), lambda: iter([(0, atoms)]), 3)
    dense = np.zeros((3, 3))
    for row, its, its_scales in zip(dense, chosen, scales, strict=True):
        np.add.at(row, its, its_scales)
    np.testing.assert_allclose(dense, [[0, 0, 2], [0, 0, 0], [3, 0, 0.5]], atol=1e-12)


# --- texts ---------------------------------------------------------------------------------------------------------------


def test_texts_of_tokens() -> None:
    """By what the libraries decode them to."""
    assert [text_of(token, "bytes") for token in ("Ġthe", "Ċ", "Ã©", "</s>")] == [b" the", b"\n", "é".encode(), b"</s>"]
    assert [text_of(token, "spaces") for token in ("▁the", "<0x0A>", "é")] == [b" the", b"\n", "é".encode()]
    assert [text_of(token, "words") for token in ("the", "##ing")] == [b" the", b"ing"]


def test_tokenizers_that_spell_differently(tmp_path: Path) -> None:
    """▁the is Ġthe, <0x0A> is Ċ; e, not the byte <0x65>, is e; special tokens are matched by name, then by role."""
    (tmp_path / "bytes").mkdir()
    tokenizer(tmp_path / "bytes", ["Ġthe", "Ċ", "e", "q", "<end>", "<pad>"], eos_token="<end>", pad_token="<pad>")
    pieces = ["<0x0A>", "<0x65>", "e", "▁the", "</s>", "<pad>", "q▁"]
    (tmp_path / "pieces").mkdir()
    meta = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": True}
    content = {"pre_tokenizer": meta, "decoder": meta, "model": {"type": "BPE"}}
    (tmp_path / "pieces" / "tokenizer.json").write_text(json.dumps(content))
    (tmp_path / "pieces" / "special_tokens_map.json").write_text(json.dumps({"eos_token": {"content": "</s>"}}))
    assert [spelling(str(tmp_path / name)) for name in ("bytes", "pieces")] == ["bytes", "spaces"]

    def special(tokens: Sequence[str]) -> dict[str, dict[str, bool]]:
        return {token: {"special": True} for token in tokens}

    own = Vocabulary(str(tmp_path / "pieces"), {token: row for row, token in enumerate(pieces)}, special(["</s>", "<pad>"]))
    theirs = ["Ġthe", "Ċ", "e", "q", "<end>", "<pad>"]
    other = Vocabulary(
        str(tmp_path / "bytes"), {token: row for row, token in enumerate(theirs)}, special(["<end>", "<pad>"])
    )
    found = in_words_of(own, other).ids
    assert {token: found[token] for token in theirs if token in found} == {"Ġthe": 3, "Ċ": 0, "e": 2, "<end>": 4, "<pad>": 5}
    assert len(found) == len(pieces)


# --- the command ---------------------------------------------------------------------------------------------------------


def test_the_command(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It runs, and its record repeats it; its numbers are those of the recipe, for any number of workers and shards."""
    assert cli("transplant", "model", "donor", "--k", "3", "--output_path", "out") == 0
    wanted = (here / "out" / "model.safetensors").read_bytes()
    assert cli("merge", "out/merge_config.json", "--output_path", "again", "--n_process", "2") == 0
    assert (here / "again" / "model.safetensors").read_bytes() == wanted
    made(recipe("{method: omp, k: 3}"), "recipe")
    assert (here / "recipe" / "model.safetensors").read_bytes() == wanted
    capsys.readouterr()
    assert cli("transplant", "model", "donor", "--dry_run", "--output_path", "dry") == 0
    assert "2 made of at most 64 tokens each, as in" in capsys.readouterr().out
    assert not (here / "dry").exists()
    assert cli("transplant", "model", "donor", "--method", "mean", "--print_recipe") == 0
    assert "method: mean" in capsys.readouterr().out


def test_the_commands_mistakes(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli("transplant", "model", "--method", "mean", "--k", "2000", "--subword_method", "sum") == 1
    assert capsys.readouterr().err.splitlines() == [
        "error: give the model, and then the model whose tokenizer it gets: python -m paddle_merge transplant ./model"
        " ./donor --output_path ./out",
        "error: --k 2000 must be at most 1024",
        "error: --k has no effect with --method mean; it is of omp",
        "error: --subword_method has no effect with --method mean; it is of subword",
    ]
