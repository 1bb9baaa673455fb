"""Which merge method does best when? Trains small experts, merges them by every method, and tells what each merge can do.

    python tools/compare_methods.py --save numbers.json     # four settings, five seeds: about half an hour on two cores
    python tools/compare_methods.py --only places --seeds 1

In each setting a base network (an MLP of four residual blocks, 0.7 M parameters) learns one task on scikit-learn's
handwritten digits, with a few examples of three others, and three experts go on from it, each with one of these:

    runs         inverted digits for all of them, another third of the digits for each: runs of one fine-tuning
    places       digits elsewhere on the page, in another place for each: experts change partly different weights
    distortions  digits turned, inverted, or in noise, in the base's place: experts change the same weights
    classes      inverted digits, each expert some classes only: experts unlearn each other's

A method's number is the average accuracy on all tasks, the base's too, on test digits that nothing was chosen by: with its
defaults, and with the best of a few parameters, the same for all seeds, chosen on other digits.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import logging
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
import yaml

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import paddle
import paddle.nn.functional as F  # noqa: N812
from paddle import nn

from paddle_merge import MergeConfig, merge
from paddle_merge.commands.demo import data, network
from paddle_merge.methods.registry import find, names
from paddle_merge.methods.shared.method import REQUIRED

WIDTH, DEPTH = 256, 4
FEW = 35  # examples that the base sees of each expert's task
VALIDATION = 400  # digits


@dataclasses.dataclass(frozen=True)
class Task:
    """What is done to images (n, 8, 8), where they then stand, which classes there are; part: the third of the training
    digits that are trained on, 0, 1 or 2; all by default."""

    name: str
    change: Callable[[Any], Any] = lambda images: images
    place: str = "middle"
    classes: tuple[int, ...] = tuple(range(10))
    part: int | None = None

    def of(self, images: Any, labels: Any) -> tuple[Any, Any]:
        """(n, 576) pages and (n,) labels."""
        mine = np.isin(labels, self.classes)
        return data.write(self.change(images[mine]), self.place), labels[mine]


def noisy(images: Any) -> Any:
    noise = np.random.default_rng(len(images)).normal(0.0, 0.6, images.shape)
    return np.clip(images + noise, 0.0, 1.0).astype(np.float32)


def inverted(images: Any) -> Any:
    return 1.0 - images


SETTINGS = {
    "runs": [Task("upright"), *(Task(f"inverted, run {run + 1}", inverted, part=run) for run in range(3))],
    "places": [Task("middle"), *(Task(place, place=place) for place in ("top left", "top right", "bottom left"))],
    "distortions": [
        Task("upright"),
        Task("turned", lambda images: np.rot90(images, axes=(1, 2))),
        Task("inverted", inverted),
        Task("noisy", noisy),
    ],
    "classes": [
        Task("upright"),
        *(
            Task(f"inverted {low}-{high}", inverted, classes=(*range(low, high + 1),))
            for low, high in ((0, 2), (3, 5), (6, 9))
        ),
    ],
}

_SOME, _FACTORS = [0.2, 0.5, 0.8], [0.2, 0.3, 0.5, 0.7]
_VOTED = {"density": _SOME, "lambda": [0.3, 0.5, 1.0]}
_SUMMED = {"density": _SOME, "lambda": _FACTORS}
_OUTLIERS = {"density": [0.5, 0.8], "lambda": [0.3, 0.5, 0.7], "gamma": [0.01, 0.1]}
_FLAGS = {"reserve_p": _SOME, "scale": [1.0, 2.0]}
# method -> parameters to try. "base": with or without a base model, where a method takes both.
GRIDS: dict[str, Mapping[str, list[Any]]] = {
    "linear": {},
    "karcher": {},
    "multislerp": {"base": [False, True]},
    "model_stock": {"filter_wise": [False, True]},
    "task_arithmetic": {"lambda": _FACTORS},
    "ties": _VOTED,
    "dare_linear": _SUMMED,
    "dare_ties": _SUMMED,
    "della": _VOTED,
    "della_linear": _SUMMED,
    "breadcrumbs": _OUTLIERS,
    "breadcrumbs_ties": _OUTLIERS,
    "consensus_ta": {"lambda_mask": [0.2, 0.4, 0.6], "lambda": [0.3, 0.5, 1.0]},
    "lines": {"alpha": [0.2, 0.4], "beta": [0.2, 0.4]},
    "sce": {"select_topk": [0.1, 0.5, 1.0]},
    "ram": {"epsilon": [1e-5, 1e-3, 3e-3]},
    "ramplus_tl": {"epsilon": [1e-5, 1e-3, 3e-3], "r": [0.1, 0.5]},
    "tsv": {"lambda": [0.7, 1.0, 1.3]},
    "iso_c": {"lambda": [1.0, 2.0, 3.0, 4.0]},
    "paddlenlp:linear": {"scale": [1.0, 1.5, 2.0]},
    "paddlenlp:ties": {"reserve_p": _SOME, "rescale": [True, False]},
    "paddlenlp:dare_linear": _FLAGS,
    "paddlenlp:dare_ties": {"reserve_p": _SOME, "scale": [0.7, 1.0]},
    "paddlenlp:della_linear": _FLAGS,
    "paddlenlp:della": {"reserve_p": _SOME, "scale": [0.7, 1.0]},
}
# The same of two experts; of nearswap and arcee_fusion the base model is the first of them.
PAIRS: Mapping[str, Mapping[str, list[Any]]] = {
    "linear": {},
    "slerp": {"t": [0.3, 0.5, 0.7]},
    "nuslerp": {"base": [False, True], "nuslerp_flatten": [True, False]},
    "nearswap": {"t": [1e-4, 1e-3, 3e-3, 1e-2]},
    "arcee_fusion": {},
    "task_arithmetic": {"lambda": _FACTORS},
    "ties": _VOTED,
    "tsv": {"lambda": [0.7, 1.0, 1.3]},
    "paddlenlp:slerp": {"base": [False, True]},
    "passthrough": {"overlap": [0, 1]},  # how many layers of the middle both give
}
GRIDS |= {name: {} for name in names() if name not in GRIDS.keys() | PAIRS.keys()}  # with the method's example alone
# What stands for a default that would leave the method out.
START: Mapping[str, Any] = {"weight": 1.0, "density": 0.5, "alpha": 0.5}
DRAWN = ("dare", "della")  # how the names of methods that draw begin


class Linear(nn.Layer):
    """Its weight is [out, in], as torch has it, so that a row is an output's also for methods that work row by row."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight = self.create_parameter([outputs, inputs], default_initializer=nn.initializer.XavierUniform())
        self.bias = self.create_parameter([outputs], is_bias=True)

    def forward(self, x: Any) -> Any:
        return F.linear(x, self.weight.T, self.bias)


class Reader(nn.Layer):
    """Pages (n, 576) -> logits (n, 10)."""

    def __init__(self, depth: int = DEPTH) -> None:
        super().__init__()
        self.embed = Linear(data.PAGE**2, WIDTH)
        self.layers = nn.LayerList(
            nn.LayerDict({"norm": nn.LayerNorm(WIDTH), "up": Linear(WIDTH, WIDTH), "down": Linear(WIDTH, WIDTH)})
            for _ in range(depth)
        )
        self.head = Linear(WIDTH, 10)

    def forward(self, pages: Any) -> Any:
        x = self.embed(pages)  # (n, 256)
        for layer in self.layers:
            x = x + layer["down"](F.relu(layer["up"](layer["norm"](x))))
        return self.head(x)


def accuracies(model: Reader, tasks: list[Task], images: Any, labels: Any) -> list[float]:
    """Of each task."""
    with paddle.no_grad():
        pairs = [task.of(images, labels) for task in tasks]
        return [float((model(paddle.to_tensor(pages)).numpy().argmax(1) == its).mean()) for pages, its in pairs]


def trained(folder: Path, tasks: list[Task], seed: int) -> tuple[Reader, list[tuple[Any, Any]]]:
    """Leaves base, expert0, expert1 and expert2 in the folder. Returns a network to load them into, and the images and
    labels for choosing and for testing."""
    random = np.random.default_rng(seed)
    digits = data.load(random)
    held = digits.images[:VALIDATION], digits.labels[:VALIDATION]
    images, labels = digits.images[VALIDATION:], digits.labels[VALIDATION:]
    paddle.device.set_device("cpu")
    paddle.seed(seed)
    model = Reader()
    parts = [tasks[0].of(images, labels)]
    for task in tasks[1:]:
        some = random.choice(len(images), FEW, replace=False)
        parts.append(task.of(images[some], labels[some]))
    network.train(model, *(np.concatenate(each) for each in zip(*parts, strict=True)), 30, 1e-3, random)
    network.save(model, str(folder / "base"))
    for number, task in enumerate(tasks[1:]):
        mine = slice(task.part, None, 1 if task.part is None else 3)
        network.load(model, str(folder / "base"))
        network.train(model, *task.of(images[mine], labels[mine]), 10, 5e-4, random)
        network.save(model, str(folder / f"expert{number}"))
    return model, [held, (digits.test_images, digits.test_labels)]


def points(method: str, grid: Mapping[str, list[Any]]) -> Iterator[dict[str, Any]]:
    """Parameters to merge with, the defaults first."""
    known = find(method)
    assert known is not None
    own = {parameter.name for parameter in known.parameters}
    needed = {parameter.name for parameter in known.parameters if parameter.default is REQUIRED}
    start = {name: value for name, value in known.example.items() if name in needed}
    start |= {name: value for name, value in START.items() if name in own}
    yield start
    for values in itertools.product(*grid.values()) if grid else ():
        yield start | dict(zip(grid, values, strict=True))


def recipe(method: str, folder: Path, experts: int, parameters: Mapping[str, Any]) -> dict[str, Any]:
    """As YAML has it."""
    values = dict(parameters)
    models = [str(folder / f"expert{number}") for number in range(experts)]
    if method == "passthrough":  # the lower half of one, the upper half of the other, perhaps more
        middle, overlap = DEPTH // 2, values.get("overlap", 0)
        halves = (models[0], [0, middle + overlap]), (models[1], [middle - overlap, DEPTH])
        slices = [{"sources": [{"model": model, "layer_range": layers}]} for model, layers in halves]
        return {"slices": slices, "merge_method": method}
    known = find(method)
    assert known is not None
    base: dict[str, Any] = {}
    if values.pop("base", known.base == "required" or method.startswith("paddlenlp:")):
        base = {"base_model": str(folder / "base")}
    if known.base == "first" or method == "nearswap":
        base = {"base_model": models[0]}
    if method == "nearswap":
        models = models[1:]
    return {"models": [{"model": model} for model in models], "merge_method": method, **base, "parameters": values}


def made(asked: dict[str, Any], out: Path, seed: int) -> None:
    """Merges."""
    drawn = {"seed": seed} if asked["merge_method"].removeprefix("paddlenlp:").startswith(DRAWN) else {}
    text = yaml.safe_dump(asked, sort_keys=False)
    merge(MergeConfig(recipe_yaml=text, output_path=str(out), overwrite=True, **drawn), progress=False)


def best(tried: list[dict[str, Any]]) -> dict[str, Any]:
    """By the digits for choosing; of equals the first."""
    return max(tried, key=lambda one: np.mean(one["chosen by"]))


def table(tasks: list[Task], rows: Mapping[str, Any]) -> str:
    """rows: name -> (seeds, tasks) accuracies. In per cent; the average with its standard deviation over the seeds."""
    lines = ["| | " + " | ".join([*(task.name for task in tasks), "average"]) + " |"]
    lines.append("| --- |" + " ---: |" * (len(tasks) + 1))
    for name, scores in rows.items():
        each = 100 * np.array(scores)
        shown = " | ".join(f"{value:.1f}" for value in each.mean(0))
        lines.append(f"| {name} | {shown} | {each.mean():.1f} ± {each.mean(1).std():.1f} |")
    return "\n".join(lines)


def rows(methods: Mapping[str, list[dict[str, Any]]], grids: Mapping[str, Mapping[str, list[Any]]]) -> dict[str, Any]:
    """Of each method with its defaults, and with what was best, if that is something else."""
    found = {}
    for method, tried in methods.items():
        found[method] = tried[0]["test"]
        one = best(tried)
        if one["test"] != tried[0]["test"]:
            words = ", ".join(f"{name} {one['parameters'][name]}" for name in grids[method])
            found[f"{method}: {words}"] = one["test"]
    return found


def main(
    seeds: Annotated[int, typer.Option(min=1, help="How many trainings of each setting.")] = 5,
    only: Annotated[str, typer.Option(help=f"One setting: {', '.join(SETTINGS)}.")] = "",
    methods: Annotated[str, typer.Option(help="These, with commas between; all by default.")] = "",
    save: Annotated[Path | None, typer.Option(help="Write all numbers there, as JSON.")] = None,
) -> None:
    """Train experts, merge them by every method, print tables of what the merges can do."""
    logging.getLogger("paddle_merge").setLevel(logging.WARNING)
    began, told = time.perf_counter(), {}
    for setting in [only] if only else SETTINGS:
        tasks = SETTINGS[setting]
        single: dict[str, list[Any]] = {}
        merged: dict[int, dict[str, list[dict[str, Any]]]] = {
            experts: {
                method: [{"parameters": point, "chosen by": [], "test": []} for point in points(method, grid)]
                for method, grid in grids.items()
                if not methods or method in methods.split(",")
            }
            for experts, grids in ((3, GRIDS), (2, PAIRS))
        }
        for seed in range(seeds):
            with tempfile.TemporaryDirectory() as work:
                folder = Path(work)
                model, (held, test) = trained(folder, tasks, seed)
                for name, title in zip(("base", "expert0", "expert1", "expert2"), tasks, strict=True):
                    network.load(model, str(folder / name))
                    single.setdefault(f"{name.rstrip('012')}, {title.name}", []).append(accuracies(model, tasks, *test))
                for experts, asked in merged.items():
                    for method, one in ((method, one) for method, tried in asked.items() for one in tried):
                        made(recipe(method, folder, experts, one["parameters"]), folder / "merged", seed)
                        model = Reader(DEPTH + 2 * one["parameters"].get("overlap", 0))
                        network.load(model, str(folder / "merged"))
                        one["chosen by"].append(accuracies(model, tasks[: experts + 1], *held))
                        one["test"].append(accuracies(model, tasks[: experts + 1], *test))
            print(f"{setting}, seed {seed}: {time.perf_counter() - began:.0f} s", file=sys.stderr, flush=True)
        told[setting] = {"trained": single, **{f"{experts} experts": tried for experts, tried in merged.items()}}
        print(f"\n## {setting}\n\n{table(tasks, single)}")
        for experts, grids in ((3, GRIDS), (2, PAIRS)):
            print(f"\n### {experts} experts\n\n{table(tasks[: experts + 1], rows(merged[experts], grids))}", flush=True)
    if save:
        save.write_text(json.dumps(told))


if __name__ == "__main__":
    typer.run(main)
