"""Train small experts, merge them with every method, and report the accuracy of each merge.

    python tools/compare_methods.py --save numbers.json     # four settings, five seeds: half an hour on two cores
    python tools/compare_methods.py --only places --seeds 1

In each setting a base network (an MLP of four residual blocks, 0.7 M parameters) is trained on one task with scikit-learn's
handwritten digits, and on a few examples of three other tasks. Three experts are fine-tuned from it, each on one of these:

    runs         inverted digits for all experts, a different third of the digits for each: runs of one fine-tuning
    places       digits at another place of the image for each expert: experts change partly different weights
    distortions  digits rotated, inverted, or with noise, at the base's place: experts change the same weights
    classes      inverted digits, some classes only for each expert: experts unlearn the other experts' classes

The score of a method is the mean accuracy on all tasks, the base's included, on test digits: with the default parameters,
and with the best of a few parameters, which are the same for all seeds and were chosen on other digits.
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
from paddle_merge.methods.registry import NAMED, find, names
from paddle_merge.methods.shared.method import REQUIRED

WIDTH, DEPTH = 256, 4
FEW = 35  # number of examples of each expert's task that the base is trained on
VALIDATION = 400  # number of digits to choose parameters by


@dataclasses.dataclass(frozen=True)
class Task:
    """A task: digits changed, placed on a larger image, and restricted to some classes.

    change: maps images (n, 8, 8) to images of that shape. place: where in the larger image they are drawn. part: which third
    of the training digits, 0, 1 or 2, is trained on; None: all of them.
    """

    name: str
    change: Callable[[Any], Any] = lambda images: images
    place: str = "middle"
    classes: tuple[int, ...] = tuple(range(10))
    part: int | None = None

    def of(self, images: Any, labels: Any) -> tuple[Any, Any]:
        """Return the task's images, (n, 576), and labels, (n,), made of digits, (n, 8, 8), and their labels."""
        mine = np.isin(labels, self.classes)
        return data.write(self.change(images[mine]), self.place), labels[mine]


def noisy(images: Any) -> Any:
    """Return the images with Gaussian noise of standard deviation 0.6, clipped to [0, 1]."""
    noise = np.random.default_rng(len(images)).normal(0.0, 0.6, images.shape)
    return np.clip(images + noise, 0.0, 1.0).astype(np.float32)


def inverted(images: Any) -> Any:
    """Return the images with black and white exchanged."""
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
# method -> values of its parameters to try. "base": whether a base model is given, where the method allows both.
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
    "warp": {"eta": [0.3, 0.5, 0.7, 1.0]},
    "paddlenlp:linear": {"scale": [1.0, 1.5, 2.0]},
    "paddlenlp:ties": {"reserve_p": _SOME, "rescale": [True, False]},
    "paddlenlp:dare_linear": _FLAGS,
    "paddlenlp:dare_ties": {"reserve_p": _SOME, "scale": [0.7, 1.0]},
    "paddlenlp:della_linear": _FLAGS,
    "paddlenlp:della": {"reserve_p": _SOME, "scale": [0.7, 1.0]},
}
# The same for merges of two experts; the base model of nearswap and arcee_fusion is the first expert.
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
    "passthrough": {"overlap": [0, 1]},  # how many layers in the middle both models contribute
}
ROLES = {name for name, method in NAMED.items() if method.roles}  # their models differ in ways in which experts don't
GRIDS |= {name: {} for name in names() if name not in GRIDS.keys() | PAIRS.keys() | ROLES}  # defaults only
# What is tried first for parameters whose default would make the method do nothing.
START: Mapping[str, Any] = {"weight": 1.0, "density": 0.5, "alpha": 0.5}
DRAWN = ("dare", "della")  # prefixes of the methods with random masks


class Linear(nn.Layer):
    """A Linear layer whose weight is [out, in], as in torch: methods that work by row need a row per output."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight = self.create_parameter([outputs, inputs], default_initializer=nn.initializer.XavierUniform())
        self.bias = self.create_parameter([outputs], is_bias=True)

    def forward(self, x: Any) -> Any:
        return F.linear(x, self.weight.T, self.bias)


class Reader(nn.Layer):
    """A network that maps images (n, 576) to logits (n, 10)."""

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
    """Return the accuracy on each task, from 0 to 1."""
    with paddle.no_grad():
        pairs = [task.of(images, labels) for task in tasks]
        return [float((model(paddle.to_tensor(pages)).numpy().argmax(1) == its).mean()) for pages, its in pairs]


def trained(
    folder: Path, tasks: list[Task], seed: int, epochs: tuple[int, int] = (30, 10)
) -> tuple[Reader, list[tuple[Any, Any]]]:
    """Train a base and an expert for each task after the first, and save them in the folder as base, expert0, expert1 ...

    epochs: of the base, and of each expert. Returns a network that their weights can be loaded into, and the images and
    labels for choosing parameters and for testing.
    """
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
    network.train(model, *(np.concatenate(each) for each in zip(*parts, strict=True)), epochs[0], 1e-3, random)
    network.save(model, str(folder / "base"))
    for number, task in enumerate(tasks[1:]):
        mine = slice(task.part, None, 1 if task.part is None else 3)
        network.load(model, str(folder / "base"))
        network.train(model, *task.of(images[mine], labels[mine]), epochs[1], 5e-4, random)
        network.save(model, str(folder / f"expert{number}"))
    return model, [held, (digits.test_images, digits.test_labels)]


def points(method: str, grid: Mapping[str, list[Any]]) -> Iterator[dict[str, Any]]:
    """Yield the sets of parameters to try, the defaults first."""
    known = find(method)
    assert known is not None
    own = {parameter.name for parameter in known.parameters if parameter.default is not None}
    needed = {parameter.name for parameter in known.parameters if parameter.default is REQUIRED}
    start = {name: value for name, value in known.example.items() if name in needed}
    start |= {name: value for name, value in START.items() if name in own}
    yield start
    for values in itertools.product(*grid.values()) if grid else ():
        yield start | dict(zip(grid, values, strict=True))


def recipe(method: str, folder: Path, experts: int, parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Return the recipe of a merge of the first `experts` experts in the folder, as YAML would be parsed."""
    values = dict(parameters)
    models = [str(folder / f"expert{number}") for number in range(experts)]
    if method == "passthrough":  # the lower half of one, the upper half of the other, plus the overlap
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
    """Merge into the folder `out` what the recipe asks for."""
    drawn = {"seed": seed} if asked["merge_method"].removeprefix("paddlenlp:").startswith(DRAWN) else {}
    text = yaml.safe_dump(asked, sort_keys=False)
    merge(MergeConfig(recipe_yaml=text, output_path=str(out), overwrite=True, **drawn), progress=False)


def best(tried: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the entry with the best mean accuracy on the digits for choosing; if several are equal, the first."""
    return max(tried, key=lambda one: np.mean(one["chosen by"]))


def table(tasks: list[Task], rows: Mapping[str, Any]) -> str:
    """Return a table in Markdown: accuracies in per cent, and their average with its standard deviation over the seeds.

    rows: name -> accuracies, (seeds, tasks), from 0 to 1.
    """
    lines = ["| | " + " | ".join([*(task.name for task in tasks), "average"]) + " |"]
    lines.append("| --- |" + " ---: |" * (len(tasks) + 1))
    for name, scores in rows.items():
        each = 100 * np.array(scores)
        shown = " | ".join(f"{value:.1f}" for value in each.mean(0))
        lines.append(f"| {name} | {shown} | {each.mean():.1f} ± {each.mean(1).std():.1f} |")
    return "\n".join(lines)


def rows(methods: Mapping[str, list[dict[str, Any]]], grids: Mapping[str, Mapping[str, list[Any]]]) -> dict[str, Any]:
    """Return the test accuracies of each method with its defaults, and with the best parameters where these differ."""
    found = {}
    for method, tried in methods.items():
        found[method] = tried[0]["test"]
        one = best(tried)
        if one["test"] != tried[0]["test"]:
            words = ", ".join(f"{name} {one['parameters'][name]}" for name in grids[method])
            found[f"{method}: {words}"] = one["test"]
    return found


def main(
    seeds: Annotated[int, typer.Option(min=1, help="Number of trainings of each setting, each with its own seed.")] = 5,
    only: Annotated[str, typer.Option(help=f"Run one setting only: {', '.join(SETTINGS)}.")] = "",
    methods: Annotated[str, typer.Option(help="Methods to compare, separated by commas. Default: all.")] = "",
    save: Annotated[Path | None, typer.Option(help="JSON file to write all accuracies to.")] = None,
) -> None:
    """Train experts, merge them with every method, and print tables of the accuracies."""
    logging.getLogger("paddle_merge").setLevel(logging.WARNING)
    began, numbers = time.perf_counter(), {}
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
        numbers[setting] = {"trained": single, **{f"{experts} experts": tried for experts, tried in merged.items()}}
        print(f"\n## {setting}\n\n{table(tasks, single)}")
        for experts, grids in ((3, GRIDS), (2, PAIRS)):
            print(f"\n### {experts} experts\n\n{table(tasks[: experts + 1], rows(merged[experts], grids))}", flush=True)
    if save:
        save.write_text(json.dumps(numbers))


if __name__ == "__main__":
    typer.run(main)
