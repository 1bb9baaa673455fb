"""Negation: a task vector that is subtracted removes the task, and little else."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from claims.claim import Claim, Finding, Numbers, Row, Run, curve, mean, merged
from claims.digits import experts
from claims.language import bits, coder
from safetensors.numpy import load_file, save_file

WEIGHTS = tuple(round(0.1 * number, 1) for number in range(-10, 11))  # of the task vector, from subtracted to added
SHOWN = WEIGHTS[::2]  # in the picture
KEPT = 0.95  # the control's accuracy on held-out digits, as a share of the base's, that the chosen weight must keep


def scaled(base: Path, expert: Path, weight: float, out: Path) -> Path:
    """Write the base plus `weight` times the task vector of an expert."""
    return merged(out, [expert], base, merge_method="linear", weight_list=[weight], normalize=False)


def random_like(base: Path, expert: Path, out: Path, seed: int) -> Path:
    """Write the base plus a random vector whose norm is, in each tensor, that of the expert's task vector."""
    generator, held = np.random.default_rng([seed, 3]), load_file(str(base / "model.safetensors"))
    tuned, moved = load_file(str(expert / "model.safetensors")), {}
    for name, value in held.items():
        noise = generator.standard_normal(value.shape).astype(np.float32)
        moved[name] = value + noise * (np.linalg.norm(tuned[name] - value) / np.linalg.norm(noise))
    out.mkdir(exist_ok=True)
    (out / "config.json").write_bytes((base / "config.json").read_bytes())
    save_file(moved, str(out / "model.safetensors"), metadata={"format": "pt"})
    return out


def largest(allowed: Callable[[float], bool]) -> float:
    """Return the largest weight, of those that are subtracted, up to which all are allowed; 0 if none is."""
    chosen = 0.0
    for weight in sorted(-one for one in WEIGHTS if one < 0):
        if not allowed(weight):
            break
        chosen = weight
    return chosen


def of_digits(run: Run) -> dict[str, float]:
    """Return accuracies in per cent, averaged over the experts: of the expert's task (target) and of upright digits."""
    mine = experts(run, "changed")
    out, found = mine.folder / "negated", {}

    def note(key: str, folder: Path, target: int) -> None:
        scores = mine.accuracies(folder)
        found.setdefault(f"{key} target", []).append(scores[target])
        found.setdefault(f"{key} control", []).append(scores[0])

    before = mine.accuracies(mine.base, "held")[0]
    for target, expert in enumerate(mine.all, 1):
        noise = random_like(mine.base, expert, mine.folder / "random", run.seed)
        weight = largest(lambda w, e=expert: mine.accuracies(scaled(mine.base, e, -w, out), "held")[0] >= KEPT * before)
        note("base", mine.base, target)
        note("expert", expert, target)
        note("negated", scaled(mine.base, expert, -weight, out), target)
        note("random", scaled(mine.base, noise, -weight, out), target)
        found.setdefault("weight", []).append(weight)
        for other in SHOWN:
            note(f"{other}", scaled(mine.base, expert, other, out), target)
    return {key: mean(values) for key, values in found.items()}


def of_language(run: Run) -> dict[str, float]:
    """Return bits per character of code (target) and prose (control)."""
    base, tuned = coder(run)
    out, found = run.folder / "negated", {}
    limit = bits(run, base, "prose") / KEPT

    def note(key: str, folder: Path) -> None:
        found[f"{key} code"], found[f"{key} prose"] = bits(run, folder, "code"), bits(run, folder, "prose")

    note("base", base)
    note("expert", tuned)
    for weight in SHOWN:
        note(f"{weight}", scaled(base, tuned, weight, out))
    # Chosen by prose that is measured too: what is measured freely is the target.
    found["lm weight"] = largest(lambda w: bits(run, scaled(base, tuned, -w, out), "prose") <= limit)
    note("negated", scaled(base, tuned, -found["lm weight"], out))
    return found


def measured(run: Run) -> dict[str, float]:
    """Return the numbers of both."""
    return of_digits(run) | of_language(run)


def findings(numbers: Numbers) -> list[Finding]:
    """Compare with the paper."""
    at = {key: mean(values) for key, values in numbers.items()}
    drop, cost = at["base target"] - at["negated target"], at["base control"] - at["negated control"]
    noise = at["base target"] - at["random target"]
    up, side = at["negated code"] / at["base code"] - 1, at["negated prose"] / at["base prose"] - 1
    return [
        Finding(
            "Negation removes the target and keeps the control.",
            f"digits: the target loses {drop:.1f} points (at least 20 are asked for), the control {cost:.1f} (at most 6)",
            drop >= 20 and cost <= 6,
        ),
        Finding(
            "A random vector of the same norm does not remove the target.",
            f"digits: the target loses {noise:.1f} points (at most 3)",
            noise <= 3,
        ),
        Finding(
            "The same holds for what a language model writes.",
            f"the loss on code grows by {up:.0%}, that on prose by {side:.0%} (at most a third of it)",
            up > 0.05 and side <= up / 3,
        ),
    ]


def draw(figure: Any, numbers: Numbers) -> None:
    """Draw accuracies and losses against the weight of the task vector."""
    left, right = figure.subplots(1, 2)
    curve(left, SHOWN, numbers, [f"{weight} target" for weight in SHOWN], "target: the expert's digits", "tab:red")
    curve(left, SHOWN, numbers, [f"{weight} control" for weight in SHOWN], "control: upright digits", "tab:blue")
    left.set(ylabel="accuracy, %", title="Networks that read digits", xlabel="weight of the task vector")
    curve(right, SHOWN, numbers, [f"{weight} code" for weight in SHOWN], "target: code", "tab:red")
    curve(right, SHOWN, numbers, [f"{weight} prose" for weight in SHOWN], "control: prose", "tab:blue")
    right.set(ylabel="bits per character", title="Language models", xlabel="weight of the task vector")
    for axes in (left, right):
        axes.axvline(0, color="grey", linewidth=0.8)
        axes.legend()


CLAIM = Claim(
    title="Negation",
    paper="Ilharco et al. 2023, Editing Models with Task Arithmetic (arXiv 2212.04089), table 1, CLIP ViT-L/14",
    says="Subtracting a task vector removes the task from the model, and hardly changes what else it can do.",
    did=(
        "A network reads upright digits; experts are fine-tuned on turned, inverted or mirrored ones. As in the paper, the"
        " largest weight (0.1 to 1) is subtracted that keeps 95% of the control's accuracy on held-out digits. A language"
        " model of prose is fine-tuned on code, which is then subtracted (the loss on prose may grow by a twentieth)."
    ),
    rows={
        "base target": Row("base, target, %", "64.8"),
        "base control": Row("base, control, %", "75.5"),
        "expert target": Row("fine-tuned, target, %", "94.0"),
        "expert control": Row("fine-tuned, control, %"),
        "random target": Row("random vector subtracted, target, %", "60.9"),
        "random control": Row("random vector subtracted, control, %", "72.9"),
        "negated target": Row("task vector subtracted, target, %", "19.0"),
        "negated control": Row("task vector subtracted, control, %", "72.9"),
        "weight": Row("weight that was subtracted", "", 2),
        "base code": Row("language model, code, bits", "", 3),
        "base prose": Row("language model, prose, bits", "", 3),
        "negated code": Row("task vector subtracted, code, bits", "", 3),
        "negated prose": Row("task vector subtracted, prose, bits", "", 3),
        "lm weight": Row("weight that was subtracted, language model", "", 2),
    },
    measured=measured,
    findings=findings,
    draw=draw,
)
