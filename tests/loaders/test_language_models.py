"""Test the evaluators perplexity and multiple_choice with the libraries: each scores tiny models, and scripts/score.py
computes the same numbers by one forward pass per text, with the library's own model and a tokenizer that `tokenizers` opens.

test_loaders.py says how the libraries are named.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from tests.loaders.test_loaders import pytestmark, random_state  # noqa: F401
from tests.support import libraries
from tests.support.checkpoints import write
from tests.support.libraries import LIBRARIES

TEXTS = [
    {"text": "the cat sat on the mat and the dog sat on the cat and the mat sat on the dog"},  # 20 tokens, by words
    {"text": "two and two"},
    {"prompt": "two and two is", "completion": " four"},
    {"text": "two<s> and two"},  # token 0, which PaddleFormers takes for padding if config.json doesn't name that
]
# place: of the answer, for the script.
QUESTIONS = [
    {"question": "two and two", "choices": ["four", "the cat and the dog", "mat"], "answer": 0, "place": 0},
    {"prompt": "the cat sat on the", "choices": ["mat", "dog and cat"], "answer": "B", "place": 1},
    {"prompt": "the dog", "choices": ["sat on the mat", "is four", "and"], "answer": "2", "place": 2},
    {"prompt": "the mat", "choices": ["sat", "is four", "two"], "answer": "sat", "place": 0},
]


def word_tokenizer() -> Tokenizer:
    """Of whole words, with the space before them, so that counts of tokens are easily seen."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    words = " ".join(value for one in TEXTS for value in one.values()) + "\nQuestion:Answer:"
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=["<s>", "</s>"], initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet())
    )
    made.train_from_iterator([words, words.replace("the", " the")] * 4, trainer)
    return made


def write_model(folder: Path) -> None:
    """Write state.npz, config.json and a tokenizer to a folder, and the model as transformers has it to its subfolder hf,
    and with a head that is tied to the embedding to hf-tied."""
    tokenizer = word_tokenizer()
    vocabulary = tokenizer.get_vocab_size()
    config: dict[str, Any] = {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "vocab_size": vocabulary,
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 64,
        "rope_theta": 500.0,
        "rms_norm_eps": 1e-3,
        "tie_word_embeddings": False,
        "bos_token_id": 0,
        "eos_token_id": 1,
    }
    generator = np.random.default_rng(7)
    state = {name: value.astype(np.float32) for name, value in random_state("llama", "untied", 7).items()}
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        state[name] = generator.normal(0, 0.4, (vocabulary, 16)).astype(np.float32)
    np.savez(folder / "state.npz", **state)
    write(folder / "hf", state, "float32", format="pt")
    tied = {name: value for name, value in state.items() if name != "lm_head.weight"}
    write(folder / "hf-tied", tied, "float32", format="pt")
    for path in (folder, folder / "hf", folder / "hf-tied"):
        (path / "config.json").write_text(json.dumps({**config, "tie_word_embeddings": path.name == "hf-tied"}))
        tokenizer.save(str(path / "tokenizer.json"))
        told = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>"}
        (path / "tokenizer_config.json").write_text(json.dumps(told))


@pytest.fixture(scope="module")
def scored(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """Library -> what its script wrote."""
    folder = tmp_path_factory.mktemp("score")
    write_model(folder)
    (folder / "texts.jsonl").write_text("\n".join(map(json.dumps, TEXTS)) + "\n")
    (folder / "questions.jsonl").write_text("\n".join(map(json.dumps, QUESTIONS)) + "\n")
    libraries.run({library: ("score.py", library, str(folder)) for library in LIBRARIES}, fresh=True)
    return {library: json.loads((folder / f"{library}.json").read_text()) for library in LIBRARIES}


@pytest.mark.parametrize("library", LIBRARIES)
def test_evaluators_give_what_forward_passes_give(scored: dict[str, dict[str, Any]], library: str) -> None:
    found = dict(scored[library])
    expected = found.pop("expected")
    nll = sum(expected["losses"]) / sum(expected["tokens"])
    kinds = [kind for kind in found if kind not in ("generated", "incomplete", "in place")]
    assert len(kinds) >= 3
    for kind in kinds:
        one = found[kind]
        assert one["metrics"]["nll"] == pytest.approx(nll, abs=1e-5), kind
        assert one["metrics"]["perplexity"] == pytest.approx(math.exp(nll), rel=1e-5), kind
        assert np.mean(one["samples"]["nll"]) == pytest.approx(nll, abs=1e-5), kind
        assert one["cost"] == {"tokens": sum(expected["tokens"])}, kind
        assert one["second"] == pytest.approx(expected["losses"][1] / expected["tokens"][1], abs=1e-5), kind
        assert (one["acc"], one["acc_norm"]) == (expected["acc"], expected["acc_norm"]), kind
    assert 0 < sum(expected["acc"]) < len(QUESTIONS)  # else the comparison would show little


@pytest.mark.parametrize("library", LIBRARIES)
def test_libraries_generate_the_likeliest_tokens(scored: dict[str, dict[str, Any]], library: str) -> None:
    assert scored[library]["generated"]["found"] == scored[library]["generated"]["expected"]


@pytest.mark.parametrize("source", ["hf", "hf-tied"])
@pytest.mark.parametrize("library", LIBRARIES)
def test_merges_are_put_into_the_open_model(scored: dict[str, dict[str, Any]], library: str, source: str) -> None:
    """The third and fourth are, with the same scores, to the bit; one of other tensors isn't."""
    found = scored[library]["in place"][source]
    np.testing.assert_allclose(found["alone"], scored["transformers"]["in place"][source]["alone"], rtol=0, atol=1e-5)
    assert found["opened"] == [1, 1, 0, 0]
    assert found["together"] == found["alone"]
    assert len(set(found["alone"])) == 4
    assert found["other"] == 1


@pytest.mark.parametrize("library", LIBRARIES)
def test_a_model_that_lacks_a_tensor_is_not_scored(scored: dict[str, dict[str, Any]], library: str) -> None:
    assert "layers.1.mlp.up_proj.weight" in scored[library]["incomplete"]


def test_libraries_agree(scored: dict[str, dict[str, Any]]) -> None:
    first, *others = (scored[library]["expected"] for library in LIBRARIES)
    for other in others:
        np.testing.assert_allclose(other["losses"], first["losses"], rtol=0, atol=1e-4)
