"""Score tiny models with the evaluators of paddle_merge, and compute the same numbers by one forward pass per text.

    python score.py LIBRARY FOLDER

FOLDER holds state.npz, config.json, tokenizer.json, texts.jsonl, questions.jsonl. Writes FOLDER/LIBRARY.json: for each kind
of checkpoint that the library writes, what the evaluators give; and what they should give, under "expected".
"""

from __future__ import annotations

import importlib
import json
import os
import shutil
import sys
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

sys.path.insert(0, str(Path(__file__).parents[3]))

from paddle_merge.search.contract import EvaluationError, Scores
from paddle_merge.search.evaluators import make
from paddle_merge.search.evaluators.libraries.models import ModelSettings, opened
from paddle_merge.search.job import Setup
from paddle_merge.search.spec import Data, Evaluation

KINDS = {
    "transformers": ("transformers_safetensors", "transformers_bin"),
    "paddlenlp": ("paddlenlp_safetensors", "paddlenlp_pdparams"),
    "paddleformers": ("paddleformers_hf", "paddleformers_paddle", "paddleformers_pdparams"),
}
LENGTH = 8  # tokens, so that the first text takes several parts


class Stored:
    """A candidate on disk."""

    config: dict[str, object] = {}  # noqa: RUF012

    def __init__(self, folder: Path):
        self.title = self._folder = str(folder)

    def folder(self) -> str:
        return self._folder


def main(library: str, folder: Path) -> None:
    script = importlib.import_module(f"with_{library}")
    config = {**json.loads((folder / "config.json").read_text()), "pad_token_id": None}  # PaddleFormers' default is 0
    state = str(folder / "state.npz")
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    model = script.build(state, config, "float32")
    model.eval()

    def log_probabilities(ids: list[int]) -> np.ndarray:
        """Of each token at each place, float64 [length, vocabulary]."""
        script.TOKENS = np.array([ids])
        logits = script.answer(model)[0].astype(np.float64)
        top = logits.max(-1, keepdims=True)
        return logits - top - np.log(np.exp(logits - top).sum(-1, keepdims=True))

    def encode(text: str) -> list[int]:
        return list(tokenizer.encode(text).ids)

    def summed(ids: list[int], start: int, begin: int = 0) -> float:
        """The log-probability of the tokens from `start` on, given those from `begin` on."""
        rows = log_probabilities(ids[begin:])
        return float(sum(rows[place - begin - 1, ids[place]] for place in range(start, len(ids))))

    found: dict[str, object] = {"expected": expected(folder, encode, summed)}
    for kind in (*KINDS[library], "hf"):
        path = folder / f"{library}-{kind}"
        if kind == "hf":
            shutil.copytree(folder / "hf", path)
        else:
            script.save(str(path), state, config, "float32", kind)
            shutil.copy(folder / "tokenizer.json", path)
            shutil.copy(folder / "tokenizer_config.json", path)
        before = sorted(os.listdir(path))
        found[kind] = evaluated(library, folder, Stored(path))
        assert sorted(os.listdir(path)) == before, "the library left files beside the model's"
    found["generated"] = generated(library, Stored(folder / f"{library}-hf"), encode, log_probabilities)
    found["incomplete"] = incomplete(library, folder)
    found["in place"] = {source: in_place(library, folder, source) for source in ("hf", "hf-tied")}
    (folder / f"{library}.json").write_text(json.dumps(found))


def expected(folder: Path, encode, summed) -> dict[str, object]:
    """Numbers from one forward pass per text, or per part that is written out here."""
    texts = [json.loads(line) for line in (folder / "texts.jsonl").read_text().splitlines()]
    long = encode(texts[0]["text"])
    assert len(long) == 20, len(long)
    losses, tokens = [], []
    # Parts of eight tokens: 1 to 8 are predicted from 0 on, 9 to 16 from 8 on, and 17 to 19 from 11 on.
    parts = [summed(long[:9], 1), summed(long[:17], 9, 8), summed(long, 17, 11)]
    losses.append(-sum(parts))
    tokens.append(19)
    short = encode(texts[1]["text"])
    losses.append(-summed(short, 1))
    tokens.append(len(short) - 1)
    prompt, both = encode(texts[2]["prompt"]), encode(texts[2]["prompt"] + texts[2]["completion"])
    losses.append(-summed(both, len(prompt)))
    tokens.append(len(both) - len(prompt))
    with_zero = encode(texts[3]["text"])
    assert 0 in with_zero
    losses.append(-summed(with_zero, 1))
    tokens.append(len(with_zero) - 1)
    questions = [json.loads(line) for line in (folder / "questions.jsonl").read_text().splitlines()]
    acc, acc_norm = [], []
    for one in questions:
        context = f"Question: {one['question']}\nAnswer:" if "question" in one else one["prompt"]
        start = len(encode(context))
        sums = [summed(encode(f"{context} {choice}"), start) for choice in one["choices"]]
        norms = [total / len(choice) for total, choice in zip(sums, one["choices"], strict=True)]
        acc.append(float(int(np.argmax(sums)) == one["place"]))
        acc_norm.append(float(int(np.argmax(norms)) == one["place"]))
    return {"losses": losses, "tokens": tokens, "acc": acc, "acc_norm": acc_norm}


def evaluated(library: str, folder: Path, candidate: Stored) -> dict[str, object]:
    def scores(kind: str, file: str, samples: list[int] | None = None, **settings: object) -> Scores:
        evaluation = Evaluation(kind, {"library": library, **settings})
        return make(Setup(evaluation, Data(search=file), folder=str(folder)))(candidate, "search", 0, samples)

    texts = scores("perplexity", "texts.jsonl", max_length=LENGTH, batch_size=2)
    alone = scores("perplexity", "texts.jsonl", [1], max_length=LENGTH)
    choices = scores("multiple_choice", "questions.jsonl", batch_size=3)
    return {
        "metrics": dict(texts.metrics),
        "samples": {name: list(values) for name, values in texts.samples.items()},
        "cost": dict(texts.cost),
        "second": alone.metrics["nll"],
        "acc": list(choices.samples["acc"]),
        "acc_norm": list(choices.samples["acc_norm"]),
    }


def generated(library: str, candidate: Stored, encode, log_probabilities) -> dict[str, list[int]]:
    """Three tokens that follow, by the library and by taking the likeliest token each time."""
    ids = encode("the cat")
    found = opened(candidate, library, ModelSettings()).generate(ids, 3)
    by_hand = list(ids)
    for _ in range(3):
        by_hand.append(int(log_probabilities(by_hand)[-1].argmax()))
    return {"found": found, "expected": by_hand[len(ids) :]}


def incomplete(library: str, folder: Path) -> str:
    """What is said of a model that lacks a tensor."""
    from safetensors.numpy import load_file, save_file

    path = folder / f"{library}-incomplete"
    shutil.copytree(folder / "hf", path)
    tensors = load_file(path / "model.safetensors")
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})
    try:
        evaluated(library, folder, Stored(path))
    except EvaluationError as error:
        return str(error)
    return ""


class Merged(Stored):
    """A merge in memory, which is written if its folder is asked for. opened: how often it was."""

    kind = "one"

    def __init__(self, library: str, folder: Path, source: str, number: int):
        from safetensors.numpy import load_file

        super().__init__(folder / f"merged-{library}-{source}-{number}")  # processes of all libraries run at the same time
        tensors = load_file(folder / source / "model.safetensors")
        generator = np.random.default_rng(number)
        self._tensors = {name: value + generator.normal(0, 0.1, value.shape) for name, value in sorted(tensors.items())}
        self._tensors = {name: value.astype(np.float32) for name, value in self._tensors.items()}
        self._source, self.opened = folder / source, 0

    def arrays(self) -> dict[str, np.ndarray]:
        return self._tensors

    def folder(self) -> str:
        from safetensors.numpy import save_file

        self.opened += 1
        shutil.copytree(self._source, self._folder, dirs_exist_ok=True)
        save_file(self._tensors, os.path.join(self._folder, "model.safetensors"), metadata={"format": "pt"})
        return self._folder


def in_place(library: str, folder: Path, source: str) -> dict[str, object]:
    """Scores of four merges by one evaluator, and by one evaluator each; and whether the first one opened their folders."""

    def evaluator():
        evaluation = Evaluation("perplexity", {"library": library})
        return make(Setup(evaluation, Data(search="texts.jsonl"), folder=str(folder)))

    def nll(of, candidate: Merged) -> float:
        return of(candidate, "search", 0, None).metrics["nll"]

    merges, one = [Merged(library, folder, source, number) for number in range(4)], evaluator()
    together = [nll(one, candidate) for candidate in merges]
    opened = [candidate.opened for candidate in merges]
    other = Merged(library, folder, source, 4)
    other.arrays()["model.layers.2.extra.weight"] = np.ones(3, np.float32)
    nll(one, other)
    alone = [nll(evaluator(), candidate) for candidate in merges]
    return {"together": together, "alone": alone, "opened": opened, "other": other.opened}


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
