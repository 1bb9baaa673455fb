"""Test merges of models of which some store a tensor under several names, and some under one of these only."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from paddle_merge import CheckpointError, MergeConfig, merge
from tests.support.checkpoints import read, write
from tests.support.sweeps import few

SHARED, ENCODER, DECODER, HEAD = COPIES = (
    "shared.weight",
    "encoder.embed_tokens.weight",
    "decoder.embed_tokens.weight",
    "lm_head.weight",
)
QUERY = "encoder.block.0.layer.0.SelfAttention.q.weight"
ONE = np.array([[1.0, 2], [3, 4], [5, 6]])  # rows of 3 tokens
TWO = ONE * 10


def model(folder: Path, embedding: np.ndarray, names: tuple[str, ...], tied: bool | None = True, **more: np.ndarray) -> str:
    """A T5 that holds its embedding under these names, and other tensors in `more`, whose names have "__" for "."."""
    tensors = {QUERY: embedding[:2], **dict.fromkeys(names, embedding)}
    tensors |= {name.replace("__", "."): value for name, value in more.items()}
    config = {"model_type": "t5", "architectures": ["T5ForConditionalGeneration"]}
    return str(
        write(folder, tensors, "float64", config={**config, **({} if tied is None else {"tie_word_embeddings": tied})})
    )


def merged(folder: Path, paths: list[str], **fields: Any) -> dict[str, np.ndarray]:
    merge(MergeConfig(model_path_list=paths, output_path=str(folder / "out"), **fields), progress=False)
    return read(folder / "out")


@pytest.mark.parametrize("first", ["few", "all"])
@pytest.mark.parametrize("tied", [True, None])
def test_absent_copies_are_written_under_every_name(
    tmp_path: Path, first: str, tied: bool | None, caplog: pytest.LogCaptureFixture
) -> None:
    """(1 + 10) / 2 = 5.5, and so on."""
    caplog.set_level("INFO", "paddle_merge")
    paths = [model(tmp_path / "few", ONE, (SHARED,), tied), model(tmp_path / "all", TWO, COPIES, tied)]
    result = merged(tmp_path, paths if first == "few" else paths[::-1])
    assert result.keys() == {QUERY, *COPIES}
    for name in COPIES:
        assert result[name].tolist() == [[5.5, 11], [16.5, 22], [27.5, 33]], name
    said = (
        f"{paths[0]}: tensors '{ENCODER}', '{DECODER}' and '{HEAD}' are not stored, and taken to be '{SHARED}', with which"
    )
    assert said in caplog.text


@pytest.mark.parametrize("method", few(["dare_ties", "della", "dare_linear"], 2))
def test_absent_copies_get_the_masks_of_their_originals(tmp_path: Path, method: str) -> None:
    """One of three inputs stores all names; the others each another one."""
    random = np.random.default_rng(3)
    a, b, c = (random.standard_normal((300, 8)) for _ in range(3))
    paths = [
        model(tmp_path / "a", a, (SHARED,)),
        model(tmp_path / "b", b, (ENCODER, SHARED)),
        model(tmp_path / "c", c, COPIES),
    ]
    result = merged(tmp_path, paths[:2], base_model_path=paths[2], merge_method=method)
    for name in COPIES[1:]:
        np.testing.assert_array_equal(result[name], result[SHARED])
    assert (result[SHARED] != c).any()


def test_heads_that_are_tied_to_the_embedding_and_their_biases(tmp_path: Path) -> None:
    """BERT's: torch's files hold the head's matrix and bias twice, newer ones once."""
    word, head = "bert.embeddings.word_embeddings.weight", "cls.predictions.decoder.weight"
    bias, copy = "cls.predictions.bias", "cls.predictions.decoder.bias"
    paths = []
    for folder, scale, names in (("a", 1, (word, bias)), ("b", 10, (word, bias, head, copy))):
        values = {word: ONE * scale, head: ONE * scale, bias: ONE[:, 0] * scale, copy: ONE[:, 0] * scale}
        config = {"model_type": "bert", "architectures": ["BertForMaskedLM"], "tie_word_embeddings": True}
        paths.append(str(write(tmp_path / folder, {name: values[name] for name in names}, "float64", config=config)))
    result = merged(tmp_path, paths)
    assert result[head].tolist() == result[word].tolist() == [[5.5, 11], [16.5, 22], [27.5, 33]]
    assert result[copy].tolist() == result[bias].tolist() == [5.5, 16.5, 27.5]


def test_a_head_of_its_own_stays_apart(tmp_path: Path) -> None:
    """flan-t5: tie_word_embeddings is false, which concerns lm_head; encoder and decoder share their embedding anyway."""
    paths = [
        model(tmp_path / "few", ONE, (SHARED,), False, lm_head__weight=ONE + 1),
        model(tmp_path / "all", TWO, COPIES[:3], False, lm_head__weight=TWO + 2),
    ]
    result = merged(tmp_path, paths)
    for name in COPIES[:3]:
        assert result[name].tolist() == [[5.5, 11], [16.5, 22], [27.5, 33]], name
    assert result[HEAD].tolist() == [[7, 12.5], [18, 23.5], [29, 34.5]]


def expect_missing(tmp_path: Path, paths: list[str], name: str) -> None:
    with pytest.raises(CheckpointError, match=rf"'{name}'.* missing in {paths[0]}"):
        merged(tmp_path, paths)


def test_what_differs_in_the_other_input_is_no_copy(tmp_path: Path) -> None:
    other = TWO.copy()
    other[2, 1] += 1
    paths = [
        model(tmp_path / "few", ONE, (SHARED,)),
        model(tmp_path / "all", TWO, (SHARED,), decoder__embed_tokens__weight=other),
    ]
    expect_missing(tmp_path, paths, DECODER)


def test_a_third_input_in_which_they_differ_decides(tmp_path: Path) -> None:
    paths = [
        model(tmp_path / "few", ONE, (SHARED,)),
        model(tmp_path / "all", TWO, (SHARED, DECODER)),
        model(tmp_path / "apart", TWO, (SHARED,), decoder__embed_tokens__weight=ONE),
    ]
    expect_missing(tmp_path, paths, DECODER)


def test_a_config_that_unties_is_believed(tmp_path: Path) -> None:
    """wte and a projection named otherwise than lm_head: nothing says that a loader would tie them."""
    paths = []
    for folder, values, names in (("few", ONE, ("wte.weight",)), ("all", TWO, ("wte.weight", "proj_out.weight"))):
        config = {"model_type": "x", "tie_word_embeddings": False}
        paths.append(str(write(tmp_path / folder, dict.fromkeys(names, values), "float64", config=config)))
    expect_missing(tmp_path, paths, "proj_out.weight")


def test_tensors_of_a_single_value_prove_nothing(tmp_path: Path) -> None:
    """A bias of zeros equals any other; here the first model's is not zeros."""
    bias, new = np.zeros(3), np.array([1.0, 2, 3])
    paths = [
        model(tmp_path / "few", ONE, (SHARED,), one__bias=new),
        model(tmp_path / "all", TWO, (SHARED,), one__bias=bias, two__bias=bias),
    ]
    expect_missing(tmp_path, paths, "two.bias")


def test_several_originals_that_differ_are_none(tmp_path: Path) -> None:
    """In the second model all are equal, so either of the first's could be meant."""
    config = {"model_type": "x", "tie_word_embeddings": True}
    one = {"a.wte.weight": ONE, "b.wte.weight": TWO}
    two = {**dict.fromkeys(one, TWO), "c.wte.weight": TWO}
    paths = [
        str(write(tmp_path / "few", one, "float64", config=config)),
        str(write(tmp_path / "all", two, "float64", config=config)),
    ]
    expect_missing(tmp_path, paths, "c.wte.weight")


def test_layers_and_other_rows_are_never_copies(tmp_path: Path) -> None:
    same = np.arange(6.0).reshape(3, 2)
    name = "encoder.block.0.extra.weight"
    paths = [
        model(tmp_path / "few", ONE, (SHARED,)),
        str(write(tmp_path / "all", {QUERY: TWO[:2], SHARED: same, name: same}, "float64", config={"model_type": "t5"})),
    ]
    expect_missing(tmp_path, paths, name)


def test_other_vocabularies(tmp_path: Path) -> None:
    """Copies are added before rows are aligned; that they can't be here is said of all names."""
    paths = [model(tmp_path / "few", np.vstack([ONE, ONE]), (SHARED,)), model(tmp_path / "all", TWO, COPIES)]
    with pytest.raises(CheckpointError, match="have different shapes") as caught:
        merged(tmp_path, paths)
    assert "missing" not in str(caught.value)
