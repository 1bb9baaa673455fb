"""Test log-likelihoods in batches with a bigram model, whose probabilities are a table that is written out here."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import numpy as np
import pytest

from paddle_merge.search.contract import EvaluationError
from paddle_merge.search.evaluators.libraries.likelihood import Text, likelihoods, pair
from paddle_merge.search.evaluators.perplexity import scores

LETTERS = "^ab "  # tokens 0, 1, 2, 3; ^ begins a text
# Row: a token; column: how likely each token is to follow.
TABLE = np.array([[0.1, 0.6, 0.2, 0.1], [0.1, 0.2, 0.6, 0.1], [0.1, 0.5, 0.2, 0.2], [0.1, 0.2, 0.7, 0.0]])


class Bigrams:
    """A language model for tests. given: the shapes of the batches that it was given, and the tokens in each row."""

    def __init__(self, length: int = 100, prefix: int | None = 0):
        self.length, self.prefix = length, prefix
        self.given: list[list[list[int]]] = []

    def encode(self, text: str, special: bool = True) -> list[int]:
        return [0] * (special and not text.startswith("^")) + [LETTERS.index(letter) for letter in text]

    def decode(self, tokens: Sequence[int]) -> str:
        return "".join(LETTERS[token] for token in tokens).replace("^", "")

    def score(self, tokens: np.ndarray, targets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        assert tokens.shape == targets.shape
        self.given.append(tokens.tolist())
        with np.errstate(divide="ignore"):
            table = np.log(TABLE)
        asked = targets >= 0
        values = np.where(asked, table[tokens, np.maximum(targets, 0)], 0.0)
        return values, asked & (table[tokens].argmax(-1) == targets)

    def generate(self, tokens: Sequence[int], most: int) -> list[int]:
        ids = list(tokens)
        for _ in range(most):
            ids.append(int(TABLE[ids[-1]].argmax()))
        return ids[len(tokens) :]


def test_by_hand() -> None:
    """^abb: a follows ^ with 0.6, b follows a with 0.6, b follows b with 0.2, while a is likelier there."""
    model = Bigrams()
    one, two = likelihoods(model, [Text(model.encode("abb")), Text(model.encode("ab"))], batch=8)
    assert one.total == pytest.approx(math.log(0.6 * 0.6 * 0.2))
    assert (one.tokens, one.greedy) == (3, False)
    assert two.total == pytest.approx(math.log(0.36))
    assert (two.tokens, two.greedy) == (2, True)
    assert model.given == [[[0, 1, 2], [0, 1, 0]]]  # the last token isn't given, and what is filled up comes last


@pytest.mark.parametrize("batch", [1, 2, 3, 7])
def test_batches_make_no_difference(batch: int) -> None:
    model = Bigrams(length=3)
    texts = [Text(model.encode(text), start) for text, start in (("abab", 1), ("a", 1), ("bbaab", 3), ("", 1), ("ba", 2))]
    expected = [likelihoods(Bigrams(length=3), [text], 1)[0] for text in texts]
    assert likelihoods(model, texts, batch) == expected
    assert expected[3].tokens == 0


def test_a_long_text_is_computed_in_parts_that_predict_every_token_once() -> None:
    """Twelve tokens, five at a time: 1 to 5 are predicted from 0 on, 6 to 10 from 5 on, and 11 from 6 on."""
    model = Bigrams(length=5)
    tokens = [0, 1, 2, 1, 1, 2, 2, 1, 2, 1, 2, 3]
    found = likelihoods(model, [Text(tokens)], batch=1)[0]
    assert model.given == [[tokens[0:5]], [tokens[5:10]], [tokens[6:11]]]
    assert found.tokens == 11
    assert found.total == pytest.approx(sum(math.log(TABLE[a, b]) for a, b in itertools.pairwise(tokens)))


def test_the_beginning_of_a_long_context_is_left_out() -> None:
    """Of what stands before the last two tokens, as much is given as fits."""
    model = Bigrams(length=5)
    tokens = [0, 1, 2, 1, 1, 2, 2, 1, 2, 1]
    found = likelihoods(model, [Text(tokens, 8)], batch=1)[0]
    assert model.given == [[tokens[4:9]]]
    assert (found.tokens, found.total) == (2, pytest.approx(math.log(0.6 * 0.5)))


def test_a_continuation_longer_than_the_model_takes_is_computed_in_parts() -> None:
    model = Bigrams(length=3)
    tokens = [0, 1, 2, 1, 1, 2, 2, 1]
    found = likelihoods(model, [Text(tokens, 3)], batch=1)[0]
    assert model.given == [[tokens[2:5]], [tokens[4:7]]]
    assert found.tokens == 5


def test_white_space_before_a_continuation_belongs_to_it() -> None:
    model = Bigrams()
    assert pair(model, "a ", "b") == pair(model, "a", " b") == Text([0, 1, 3, 2], 2)


def test_an_empty_context_is_the_prefix_token() -> None:
    assert pair(Bigrams(prefix=0), "", "ab") == Text([0, 1, 2], 1)
    assert pair(Bigrams(prefix=None), "", "ab") == Text([0, 1, 2], 1)  # the one that the tokenizer adds by itself


def test_at_least_one_token_is_predicted() -> None:
    """A tokenizer may make one token of the end of the context and the whole continuation."""

    class Joins(Bigrams):
        def encode(self, text: str, special: bool = True) -> list[int]:
            return super().encode(text.replace("ab", "b"), special)

    assert pair(Joins(), "a", "b") == Text([0, 2], 1)


def test_nan_is_an_error_and_no_score() -> None:
    class Broken(Bigrams):
        def score(self, tokens: np.ndarray, targets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            return np.full(targets.shape, np.nan), targets >= 0

    with pytest.raises(EvaluationError, match="NaN"):
        likelihoods(Broken(), [Text([0, 1])], 1)


def test_perplexity_by_hand() -> None:
    """Texts of 3 and 1 tokens that lose 4 and 2 nats: 6 / 4 = 1.5 per token. They are apart from that by (4 - 4.5) / 2 and
    (2 - 1.5) / 2, so the values are 1.25 and 1.75, whose mean is 1.5 and whose standard error is 0.25."""
    model = Bigrams()
    one, two = likelihoods(model, [Text([0, 1, 2, 1]), Text([0, 1])], 1)
    one.total, two.total = -4.0, -2.0
    found = scores([one, two])
    assert found.metrics == {"perplexity": pytest.approx(math.exp(1.5)), "nll": 1.5}
    assert found.samples["nll"] == [1.25, 1.75]
    assert found.error("nll") == pytest.approx(0.25)
    assert found.error("perplexity") == pytest.approx(0.25 * math.exp(1.5))
    assert found.cost == {"tokens": 4.0}


def test_texts_without_a_token_to_predict_are_an_error() -> None:
    with pytest.raises(EvaluationError, match="at least two tokens"):
        scores(likelihoods(Bigrams(), [Text([0])], 1))
