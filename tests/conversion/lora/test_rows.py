"""Test adapters of PEFT that replace rows of single tokens: trainable_token_indices, and PEFT's type TRAINABLE_TOKENS."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from paddle_merge import MergeConfig, merge
from paddle_merge.checkpoints.names import LAYOUTS
from paddle_merge.conversion.lora import adapted
from tests.conversion.lora.test_lora import LAYER, TIED, R, close, fold, peft, refusal
from tests.conversion.test_layout import HIDDEN, VOCAB, State, laid_out, llama, stored
from tests.support.checkpoints import read

EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
Q = f"{LAYER}self_attn.q_proj"


def rows(seed: int, count: int = 2) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((count, HIDDEN))


def replaced(value: np.ndarray, numbers: list[int], new: np.ndarray) -> np.ndarray:
    value = value.copy()
    value[numbers] = new
    return value


def tied(seed: int) -> State:
    return {name: value for name, value in llama(seed).items() if name != HEAD}


def saved(**modules: np.ndarray) -> State:
    """As PEFT 0.21.2 saves rows beside LoRA."""
    words = {"embedding": "model.embed_tokens", "head": "lm_head"}
    return {f"{words[name]}.token_adapter.trainable_tokens_delta": value for name, value in modules.items()}


@pytest.mark.parametrize("step", [5, 1 << 16])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_rows_beside_lora(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, layout: str, step: int) -> None:
    """PaddleNLP stores lm_head [h, V]: a token's is a column. Of a token that is listed twice the last row counts."""
    monkeypatch.setattr(adapted, "STEP", step)
    base, one, other = llama(0), rows(1, 3), rows(2)
    a, b = np.ones((R, HIDDEN)), np.ones((base[f"{Q}.weight"].shape[0], R))
    its = saved(embedding=one, head=other) | {f"{Q}.lora_A.weight": a, f"{Q}.lora_B.weight": b}
    indices = {"embed_tokens": [7, 3, 7], "lm_head": [VOCAB - 1, 0]}
    adapter = peft(tmp_path / "ad", its, trainable_token_indices=indices)
    got = fold(tmp_path, stored(tmp_path / "base", base, layout, dtype="float64"), adapter)
    expected = base | {f"{Q}.weight": base[f"{Q}.weight"] + 2 * b @ a}
    expected[EMBEDDING] = replaced(base[EMBEDDING], [3, 7], one[1:])
    expected[HEAD] = replaced(base[HEAD], [VOCAB - 1, 0], other)
    close(got, laid_out(expected, layout))


def test_a_list_is_of_the_embedding(tmp_path: Path) -> None:
    base, one = llama(0), rows(1)
    path = stored(tmp_path / "base", base, "hf", dtype="float64")
    got = fold(tmp_path, path, peft(tmp_path / "ad", saved(embedding=one), trainable_token_indices=[3, 7]))
    close(got, base | {EMBEDDING: replaced(base[EMBEDDING], [3, 7], one)})
    its = {"model.embed_tokens.trainable_tokens_delta": one}
    adapter = peft(
        tmp_path / "alone", its, peft_type="TRAINABLE_TOKENS", token_indices=[3, 7], target_modules=["embed_tokens"]
    )
    close(fold(tmp_path, path, adapter), base | {EMBEDDING: replaced(base[EMBEDDING], [3, 7], one)})


@pytest.mark.parametrize("layout", [None, *LAYOUTS])
@pytest.mark.parametrize("twice", [True, False])
def test_the_head_of_a_tied_model_follows(tmp_path: Path, layout: str | None, twice: bool) -> None:
    """PEFT saves them once beside LoRA, and as TRAINABLE_TOKENS twice; the model stays tied."""
    base, one = tied(0), rows(1)
    both = {"embedding": one} | ({"head": one} if twice else {})
    path = stored(tmp_path / "base", base, "hf", dtype="float64", config=TIED)
    adapter = peft(tmp_path / "ad", saved(**both), trainable_token_indices={"embed_tokens": [3, 7], "lm_head": [3, 7]})
    got = fold(tmp_path, path, adapter, output_layout=layout)
    new = replaced(base[EMBEDDING], [3, 7], one)
    expected = laid_out(base | {EMBEDDING: new}, layout or "hf")
    close(got, expected | ({HEAD: new} if layout in ("paddlenlp", "paddleformers") else {}))
    assert json.loads((tmp_path / "out" / "config.json").read_text())["tie_word_embeddings"] is True


@pytest.mark.parametrize("layout", LAYOUTS)
def test_where_the_output_is_untied_the_head_follows_nevertheless(tmp_path: Path, layout: str) -> None:
    """A tied model with new rows, and with factors of lm_head on top of them, as PEFT computes; and one that isn't tied."""
    base, one = tied(0), rows(1)
    a, b = np.ones((R, HIDDEN)), np.random.default_rng(3).standard_normal((VOCAB, R))
    its = saved(embedding=one) | {"lm_head.lora_A.weight": a, "lm_head.lora_B.weight": b}
    path = stored(tmp_path / "base", base, layout, dtype="float64", config=TIED)
    got = fold(tmp_path, path, peft(tmp_path / "ad", its, trainable_token_indices=[3, 7]))
    new = replaced(base[EMBEDDING], [3, 7], one)
    close(got, laid_out(base | {EMBEDDING: new, HEAD: new + 2 * b @ a}, layout))
    untied = stored(tmp_path / "untied", llama(0), layout, dtype="float64")
    adapter = peft(tmp_path / "rows", saved(embedding=one), trainable_token_indices=[3, 7])
    merge(MergeConfig(model_path_list=[f"{path}+{adapter}", untied], output_path=str(tmp_path / "merged")))
    mean = {name: (value + (base | {EMBEDDING: new, HEAD: new})[name]) / 2 for name, value in llama(0).items()}
    close(read(tmp_path / "merged"), laid_out(mean, layout))


@pytest.mark.parametrize("whole", [True, False])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_what_peft_ties_itself_stays_equal_in_an_untied_output(tmp_path: Path, layout: str, whole: bool) -> None:
    """ensure_weight_tying, beside a model that isn't tied."""
    base, random = tied(0), np.random.default_rng(4)
    new = random.standard_normal(base[EMBEDDING].shape)
    a, b = random.standard_normal((R, VOCAB)), random.standard_normal((HIDDEN, R))
    its = {"model.embed_tokens.lora_embedding_A": a, "model.embed_tokens.lora_embedding_B": b}
    if whole:
        its = {EMBEDDING: new}
    else:
        new = base[EMBEDDING] + 2 * (b @ a).T
    path = stored(tmp_path / "base", base, layout, dtype="float64", config=TIED)
    untied = stored(tmp_path / "untied", llama(0), layout, dtype="float64")
    adapter = peft(tmp_path / "ad", its, ensure_weight_tying=True)
    merge(MergeConfig(model_path_list=[f"{path}+{adapter}", untied], output_path=str(tmp_path / "merged")))
    mean = {name: (value + (base | {EMBEDDING: new, HEAD: new})[name]) / 2 for name, value in llama(0).items()}
    close(read(tmp_path / "merged"), laid_out(mean, layout))


@pytest.mark.parametrize(
    ("its", "config", "words"),
    [
        (saved(embedding=rows(1)), {}, "doesn't say for which tokens: None"),
        (saved(embedding=rows(1)), {"trainable_token_indices": {"lm_head": [1, 2]}}, "doesn't say for which tokens"),
        (saved(embedding=rows(1)), {"trainable_token_indices": "3"}, "'3', which has a wrong type"),
        (saved(embedding=rows(1)), {"trainable_token_indices": [3, -7]}, "doesn't say for which tokens: [3, -7]"),
        (saved(embedding=rows(1)), {"trainable_token_indices": [3]}, "has 2 rows, but the adapter's config lists 1 tokens"),
        (saved(embedding=rows(1)[:, :-1]), {"trainable_token_indices": [3, 7]}, f"has rows of {HIDDEN - 1} elements"),
        (saved(embedding=rows(1)), {"trainable_token_indices": [3, VOCAB]}, f"is for token {VOCAB}, but"),
        (
            saved(embedding=rows(1)) | {"model.embed_tokens.lora_embedding_A": np.ones((R, VOCAB))},
            {"trainable_token_indices": [3, 7]},
            "has low-rank factors and rows of single tokens",
        ),
    ],
)
def test_rows_that_do_not_fit(tmp_path: Path, its: State, config: dict[str, Any], words: str) -> None:
    assert words in refusal(tmp_path, peft(tmp_path / "ad", its, **config))
