"""Test averages of models with different vocabularies, and models with the tokenizer of another: transformers, PaddleNLP
and PaddleFormers open the result's tokenizer and give the token ids, and compute the logits, of what was worked out by hand.

test_loaders.py says what this needs.
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from paddle_merge import MergeConfig, merge
from tests.conversion.vocabulary.test_missing import expected as pursued
from tests.loaders.test_loaders import LOADS, State, config, laid_out, random_state, work
from tests.support.checkpoints import read
from tests.support.libraries import ABSENT

pytestmark = [
    pytest.mark.loaders,
    pytest.mark.skipif(bool(ABSENT), reason=f"no interpreter is named by {', '.join(ABSENT)}"),
]

# "ab c" is "ab" and " c". The one has two rows behind its words and the added token; the other more words, in another order.
FIRST = ["a", "b", "c", "\u0120", "ab", "\u0120c", "<|endoftext|>", *(f"w{number}" for number in range(30)), "<|user|>"]
OTHER = [*FIRST[:-1][::-1], "x1", "x2", "<|tool|>"]
UNION = [*FIRST, "x1", "x2", "<|tool|>"]
# 41 tokens don't fit in the 40 rows of the first, which is padded to a multiple of 8; so 48.
ROWS = {"first": 40, "other": len(OTHER), "union": 48}
TEXT = "ab c<|tool|><|user|>ab"
K = 3  # tokens that a token is made of


def state_of(seed: int, ties: str, rows: int) -> State:
    state = random_state("llama", ties, seed)
    random = np.random.default_rng(seed)
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        if name in state:
            state[name] = random.normal(0, 0.4, (rows, state[name].shape[1])).astype(np.float32)
    return {name: value.astype(np.float32) for name, value in state.items()}


def averaged(first: State, other: State, rows: int) -> State:
    """By hand: token by token, each with the other's row where it has none of its own; rows without a token likewise, by
    number; and where neither has one, the mean of all."""

    def table(state: State, name: str, words: list[str]) -> dict[Any, np.ndarray]:
        return {words[row] if row < len(words) else row: values for row, values in enumerate(state[name])}

    result = {}
    for name, values in first.items():
        if name not in ("model.embed_tokens.weight", "lm_head.weight"):
            result[name] = (values + other[name]) / 2
            continue
        one, two = table(first, name, FIRST), table(other, name, OTHER)
        made = np.zeros((rows, values.shape[1]), np.float32)
        missing = []
        for row in range(rows):
            key = UNION[row] if row < len(UNION) else row
            if key in one or key in two:
                made[row] = (one.get(key, two.get(key)) + two.get(key, one.get(key))) / 2
            else:
                missing.append(row)
        made[missing] = made.sum(axis=0) / (rows - len(missing))
        result[name] = made
    return result


def transplanted(first: State, other: State) -> State:
    """By hand: the rows of the first in the order of the other's tokens; those of x1, x2 and <|tool|> are made of others."""
    result = dict(first)
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        if name not in first:
            continue
        shared = [row for row, token in enumerate(OTHER) if token in FIRST]
        rows = first[name][[FIRST.index(OTHER[row]) for row in shared]].astype(np.float64)
        atoms, result[name] = other[name][shared].astype(np.float64), np.zeros((len(OTHER), rows.shape[1]), np.float32)
        result[name][shared] = rows
        for row in range(len(OTHER) - 3, len(OTHER)):
            result[name][row] = pursued(other[name][row].astype(np.float64), atoms, K) @ rows
    return result


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("tokens")
    (folder / "merges.txt").write_text("#version: 0.2\na b\n\u0120 c\n")
    jobs: dict[str, dict[str, list[Any]]] = {
        library: {"save": [], "save_tokenizer": [], "reference": []} for library in LOADS["hf"]
    }
    averages, given = {}, {}
    for ties in ("untied", "tied"):
        states = {"first": state_of(1, ties, ROWS["first"]), "other": state_of(2, ties, ROWS["other"])}
        averages[ties] = averaged(states["first"], states["other"], ROWS["union"])
        given[ties] = transplanted(states["first"], states["other"])
        for name, state in {**states, "union": averages[ties], "given": given[ties]}.items():
            path = folder / f"{ties}-{name}.npz"
            np.savez(path, **state)
            settings = {**config("llama", ties), "vocab_size": len(state["model.embed_tokens.weight"])}
            same = {"state": str(path), "config": settings}
            for library in jobs:
                jobs[library]["reference"].append({"name": f"{ties}-{name}", **same})
            for library in ("transformers", "paddlenlp") if name in states else ():
                kind = f"{library}_safetensors"
                source = str(folder / f"{kind}-{ties}-{name}")
                jobs[library]["save"].append({"folder": source, "dtype": "float32", "kind": kind, **same})
                words = FIRST if name == "first" else OTHER
                vocab = folder / f"{name}.json"
                vocab.write_text(json.dumps({word: row for row, word in enumerate(words[:-1])}))
                files = {"vocab": str(vocab), "merges": str(folder / "merges.txt")}
                jobs[library]["save_tokenizer"].append({"folder": source, "added": words[-1:], **files})
    references = {library: logits for library, (_, logits) in work(folder / "saving", jobs).items()}
    jobs = {library: {"load": [], "tokenize": []} for library in LOADS["hf"]}
    for library in ("transformers", "paddlenlp"):
        for ties in ("untied", "tied"):
            sources = [str(folder / f"{library}_safetensors-{ties}-{name}") for name in ("first", "other")]
            layout = "hf" if library == "transformers" else "paddlenlp"
            case = f"{library}-{ties}"
            out = str(folder / case)
            merge(MergeConfig(model_path_list=sources, tokenizer_source="union", output_path=out), progress=False)
            for loader, options in LOADS[layout].items():
                entry = {"name": case, "folder": out, "model_type": "llama", "options": options}
                jobs[loader]["load"].append(entry)
                fast = {"use_fast": True} if (library, loader) == ("transformers", "paddlenlp") else {}
                jobs[loader]["tokenize"].append({"name": f"tokens of {case}", "folder": out, "text": TEXT, **fast})
            case, other = f"given-{case}", str(folder / f"{library}_safetensors-{ties}-other")
            out = str(folder / case)
            recipe = f"models: [{{model: {sources[0]}}}]\nmerge_method: passthrough\n"
            recipe += f"tokenizer: {{source: {other}, missing: {{method: omp, k: {K}}}}}"
            merge(MergeConfig(recipe_yaml=recipe, output_path=out), progress=False)
            for loader, options in LOADS[layout].items():
                entry = {"name": case, "folder": out, "model_type": "llama", "options": options}
                jobs[loader]["load"].append(entry)
                fast = {"use_fast": True} if (library, loader) == ("transformers", "paddlenlp") else {}
                text = "ab c<|tool|>ab"
                jobs[loader]["tokenize"].append({"name": f"tokens of {case}", "folder": out, "text": text, **fast})
    return {
        "folder": folder,
        "averages": averages,
        "given": given,
        "references": references,
        "loaded": work(folder / "loading", jobs),
    }


@pytest.mark.parametrize("ties", ["untied", "tied"])
@pytest.mark.parametrize("library", ["transformers", "paddlenlp"])
@pytest.mark.parametrize("kind", ["union", "given"])
def test_aligned_models_load(shown: dict[str, Any], kind: str, library: str, ties: str) -> None:
    case, layout = f"{library}-{ties}", "hf" if library == "transformers" else "paddlenlp"
    case = case if kind == "union" else f"given-{case}"
    stored = read(shown["folder"] / case)
    expected = laid_out(shown["averages" if kind == "union" else "given"][ties], layout, "llama", ties)
    ids = [4, 5, UNION.index("<|tool|>"), UNION.index("<|user|>"), 4]
    ids = ids if kind == "union" else [OTHER.index(token) for token in ("ab", "\u0120c", "<|tool|>", "ab")]
    assert stored.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(stored[name], value, rtol=1e-6, atol=1e-6, err_msg=name)
    for loader in LOADS[layout]:
        answers, logits = shown["loaded"][loader]
        assert answers[f"tokens of {case}"] == str(ids), loader
        reference = shown["references"][loader][f"{ties}-{kind}"]
        np.testing.assert_allclose(logits[case], reference, rtol=0, atol=1e-4, err_msg=loader)
