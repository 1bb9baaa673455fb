"""ExPO: going on in the direction from a supervised model to one that was aligned a little aligns it further."""

from __future__ import annotations

import functools
import re
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import paddle
import paddle.nn.functional as F  # noqa: N812
import tiny_llama
from claims.claim import Claim, Finding, Numbers, Row, Run, curve, mean, merged
from claims.language import CHARACTERS, bits, decoded, logits, pretrained, texts
from tiny_llama import Weights

PROMPT, ANSWER = 32, 48  # characters
SHARE = 0.2  # of the preferences, that the model which is extrapolated has seen
PAIRS = 16  # preferences of a step
BETA, RATE = 0.1, 3e-4  # of DPO
ALPHAS = (0.0, 0.3, 0.5, 1.0, 2.0, 4.0)  # for the model that was partly aligned
FURTHER = ALPHAS[:4]  # for the one that was fully aligned


@functools.cache
def long_words() -> frozenset[str]:
    """Return the words of seven or more letters that stand three times or more in the prose for training."""
    counts = Counter(re.findall(r"[a-z]{7,}", decoded(texts()["prose"][0])))
    return frozenset(word for word, count in counts.items() if count >= 3)


def reward(answer: str) -> float:
    """Return the share of an answer's characters, in per cent, that belong to different long words that exist.

    The answer begins with a word; its last one, which may be cut off, doesn't count.
    """
    whole = re.split(r"(?<![a-z])(?=[a-z]*$)", answer)[0]
    return 100 * sum(map(len, long_words() & set(re.findall(r"[a-z]+", whole)))) / ANSWER


def prompts(split: int, count: int, generator: np.random.Generator) -> Any:
    """Return prompts [count, PROMPT] of prose, for training (0) or held out (1), that end with a space."""
    text = texts()["prose"][split]
    ends = 1 + np.flatnonzero((text[1:] == 1) & (text[:-1] != 1))  # a space, with none before it
    ends = generator.choice(ends[ends >= PROMPT], count)
    return text[ends[:, None] + np.arange(1 - PROMPT, 1)]


def answers(weights: Weights, asked: Any, generator: np.random.Generator) -> Any:
    """Return answers [n, ANSWER] to prompts [n, PROMPT], drawn from the model."""
    noise = generator.gumbel(size=(len(asked), ANSWER, CHARACTERS))
    cache: list[tuple[Any, Any]] = []
    found, tokens = [], asked
    with paddle.no_grad():
        for place in range(ANSWER):
            given = logits(weights, paddle.to_tensor(tokens), cache)[:, -1].numpy()
            tokens = (given + noise[:, place]).argmax(1)[:, None]
            found.append(tokens)
    return np.concatenate(found, 1)


def score(folder: Path, run: Run) -> float:
    """Return the mean reward of a checkpoint's answers to held-out prompts, the same and with the same noise for all."""
    generator = np.random.default_rng([run.seed, 4])
    asked = prompts(1, run.effort.texts, generator)
    return mean([reward(decoded(one)) for one in answers(tiny_llama.load(folder), asked, generator)])


def preferences(weights: Weights, run: Run) -> Any:
    """Return pairs [n, 2, PROMPT + ANSWER]: of four answers to a prompt, those with the most and the least reward."""
    generator = np.random.default_rng([run.seed, 5])
    asked = prompts(0, run.effort.pairs, generator)
    drawn = np.stack([answers(weights, asked, generator) for _ in range(4)], 1)  # [n, 4, ANSWER]
    rewards = np.array([[reward(decoded(one)) for one in four] for four in drawn])
    chosen = np.stack([rewards.argmax(1), rewards.argmin(1)], 1)
    both = np.take_along_axis(drawn, chosen[:, :, None], 1)
    return np.concatenate([np.repeat(asked[:, None], 2, 1), both], 2)


def likelihoods(weights: Weights, sequences: Any) -> Any:
    """Return the log-likelihoods [n] of the answers in sequences [n, PROMPT + ANSWER]."""
    tokens = paddle.to_tensor(sequences)
    given = logits(weights, tokens[:, :-1])[:, PROMPT - 1 :]
    each = F.cross_entropy(given.reshape([-1, CHARACTERS]), tokens[:, PROMPT:].reshape([-1]), reduction="none")
    return -each.reshape([-1, ANSWER]).sum(1)


@functools.cache
def aligned(run: Run) -> tuple[Path, Path, Path]:
    """Train by DPO (Rafailov et al. 2023); return the supervised model, and it after a part of the steps and after all."""
    supervised = pretrained(run)[1]
    weights = tiny_llama.load(supervised)
    pairs = preferences(weights, run)
    steps = len(pairs) // PAIRS
    optimizer = paddle.optimizer.AdamW(RATE, parameters=list(weights.values()), weight_decay=0.0)
    reference = tiny_llama.load(supervised)
    folders = run.folder / "aligned-partly", run.folder / "aligned"
    for step in range(steps):
        its = pairs[step * PAIRS : (step + 1) * PAIRS].transpose(1, 0, 2).reshape(2 * PAIRS, -1)  # the better ones first
        with paddle.no_grad():
            before = likelihoods(reference, its)
        margins = BETA * (likelihoods(weights, its) - before)
        (-F.log_sigmoid(margins[:PAIRS] - margins[PAIRS:]).mean()).backward()
        optimizer.step()
        optimizer.clear_grad()
        if step + 1 == max(1, round(SHARE * steps)):
            tiny_llama.save(weights, folders[0], 2)
    tiny_llama.save(weights, folders[1], 2)
    return supervised, *folders


def extrapolated(supervised: Path, model: Path, alpha: float, out: Path) -> Path:
    """Write the aligned model plus alpha times its difference to the supervised one."""
    return merged(out, [model], supervised, merge_method="linear", weight_list=[1 + alpha], normalize=False)


def measured(run: Run) -> dict[str, float]:
    """Return rewards in per cent, and bits per character on held-out prose."""
    supervised, partly, fully = aligned(run)
    found = {}

    def note(key: str, folder: Path) -> None:
        found[key], found[f"{key} bits"] = score(folder, run), bits(run, folder, "prose")

    note("supervised", supervised)
    for name, model in (("partly", partly), ("fully", fully)):
        for alpha in ALPHAS if name == "partly" else FURTHER:
            note(f"{name} {alpha}", extrapolated(supervised, model, alpha, run.folder / "extrapolated"))
    return found


def findings(numbers: Numbers) -> list[Finding]:
    """Compare with the paper."""
    at = {key: mean(values) for key, values in numbers.items()}
    gains = [far - near for far, near in zip(numbers["fully 0.5"], numbers["fully 0.0"], strict=True)]
    partly = at["partly 0.5"] - at["partly 0.0"]
    best = max(ALPHAS, key=lambda alpha: at[f"partly {alpha}"])
    ahead = at[f"partly {best}"] - at["fully 0.0"]
    return [
        Finding(
            "Going beyond an aligned model raises its reward.",
            f"with alpha 0.5, by {mean(gains):.1f} points, {min(gains):.1f} on the worst seed (at least 1)",
            min(gains) >= 1,
        ),
        Finding(
            "It raises that of a model that was aligned for a fifth of the steps.",
            f"with alpha 0.5, by {partly:.1f} points (at least 0.5)",
            partly >= 0.5,
        ),
        Finding(
            "Such a model surpasses the one of all steps.",
            f"with the best alpha, {best:g}, it has {ahead:+.1f} points of reward against it (at least 0)",
            ahead >= 0,
        ),
    ]


def draw(figure: Any, numbers: Numbers) -> None:
    """Draw rewards and losses against alpha."""
    left, right = figure.subplots(1, 2)
    for axes, last in ((left, ""), (right, " bits")):
        for name, alphas, colour in (("partly", ALPHAS, "tab:blue"), ("fully", FURTHER, "tab:green")):
            keys = [f"{name} {alpha}{last}" for alpha in alphas]
            curve(axes, alphas, numbers, keys, f"{name} aligned, extrapolated", colour)
        axes.axhline(mean(numbers[f"fully 0.0{last}"]), color="black", linewidth=0.8, label="fully aligned")
        axes.axhline(mean(numbers[f"supervised{last}"]), color="grey", linestyle=":", label="supervised")
        axes.set(xlabel="alpha")
    left.set(ylabel="reward, %", title="What is aligned for")
    right.set(ylabel="bits per character of held-out prose", title="What it costs")
    left.legend(loc="upper right")


SHOWN = (0.3, 0.5, 1.0, 2.0, 4.0)
CLAIM = Claim(
    title="ExPO",
    paper="Zheng et al. 2025, Model Extrapolation Expedites Alignment (arXiv 2404.16792)",
    says=(
        "Going beyond an aligned model, away from the supervised one, aligns it further: a model that DPO trained for 20% of"
        " the steps becomes better than the one of all steps; published models become better too (alpha 0.1 to 0.5)."
    ),
    did=(
        "A language model of prose is aligned by DPO: of four of its answers to a prompt, it shall prefer the one with the"
        " most reward to the one with the least. The reward of an answer is the share of its characters that belong to"
        " different words of seven or more letters that exist."
    ),
    rows={
        "supervised": Row("supervised, reward, %"),
        "partly 0.0": Row("a fifth of the steps, reward, %", "worse"),
        **{f"partly {alpha}": Row(f"the same with alpha {alpha:g}, reward, %", "") for alpha in SHOWN},
        "fully 0.0": Row("all steps, reward, %", "between"),
        **{f"fully {alpha}": Row(f"the same with alpha {alpha:g}, reward, %", "better") for alpha in FURTHER[1:]},
        "supervised bits": Row("supervised, prose, bits", "", 3),
        "partly 0.0 bits": Row("a fifth of the steps, prose, bits", "", 3),
        **{f"partly {alpha} bits": Row(f"the same with alpha {alpha:g}, prose, bits", "", 3) for alpha in SHOWN},
        "fully 0.0 bits": Row("all steps, prose, bits", "", 3),
        **{f"fully {alpha} bits": Row(f"the same with alpha {alpha:g}, prose, bits", "", 3) for alpha in FURTHER[1:]},
    },
    measured=measured,
    findings=findings,
    draw=draw,
)
