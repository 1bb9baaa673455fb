"""Run random recipes with this program and with mergekit, many per second, and count the outcomes.

compare_with_mergekit.py explains how results are compared.

    python tools/fuzz_recipes.py --mergekit PYTHON --count 2000            # Python of mergekit's environment
    python tools/fuzz_recipes.py --mergekit PYTHON --replay 17             # repeats one, and prints its recipe

The same number gives the same recipe. An outcome is "close" if results differ by up to --bound units in the last place, and
"but for few" if all but a thousandth of the elements do (rounding decides on which side of a threshold an element is). For
methods with random masks, "close" is up to 5 standard errors. Recipes that only one of the programs refuses are counted by
the error message. Where paddle_merge differs from mergekit on purpose (the weights and ties of sce, the signs of votes that
cancel, the tensors behind the layers), the code in MERGEKIT patches mergekit, so that these differences hide no others.
"""

from __future__ import annotations

import json
import logging
import os
import random
import re
import subprocess
import sys
import tempfile
from collections import defaultdict
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
import yaml

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from paddle_merge import MergeConfig, MergeError, merge
from tools.compare_with_mergekit import (
    HIDDEN,
    RANDOM,
    Tensors,
    apart,
    distances,
    llama,
    load,
    save,
    to_bfloat16,
    units,
    widened,
)

MERGEKIT = """
import functools, json, logging, os, shutil, sys, torch, yaml
answers, sys.stdout = sys.stdout, sys.stderr
logging.disable(logging.CRITICAL)
torch.set_num_threads(1)
torch.sort = functools.partial(torch.sort, stable=True)
torch.argsort = functools.partial(torch.argsort, stable=True)
import mergekit.merge_methods.generalized_task_arithmetic as arithmetic, mergekit.merge_methods.sce as sce
from mergekit.plan import MergePlanner
def weights(x):
    squares = x.square().reshape(x.shape[0], -1).mean(dim=1)
    return squares / squares.sum() if squares.sum() > 0 else torch.ones_like(squares) / len(squares)
def mask(x, density, dtype=None):
    y = x.double()
    variance = sum(((y[j] - y[k]) ** 2 for j in range(1, len(y)) for k in range(j)), torch.zeros_like(y[0]))
    count = int(torch.count_nonzero(variance) * density)
    least = variance.reshape(-1).sort(descending=True).values[count - 1] if count > 0 else torch.inf
    return (variance >= least).to(dtype)
def plan_tensor(self, weight, weights_in, models, *more, **named):
    missing = len(models) - len(weights_in)
    return planned(self, weight, [*weights_in, *weights_in[:1] * missing], models, *more, **named)
def agree(x, method="sum", mask_dtype=None):
    rounding = x.abs().sum(dim=0) * (len(x) + 1) * torch.finfo(torch.float32).eps
    return x.sign() == (x.sum(dim=0) >= -rounding).to(x.dtype) * 2 - 1
planned = MergePlanner.plan_tensor
arithmetic.get_mask = sce.sign_consensus_mask = agree
sce.sce_weight, sce.sce_mask, MergePlanner.plan_tensor = weights, mask, plan_tensor
from mergekit.config import MergeConfiguration
from mergekit.merge import run_merge
from mergekit.options import MergeOptions
options = MergeOptions(allow_crimes=True, quiet=True, copy_tokenizer=False, write_model_card=False, clone_tensors=True)
for line in sys.stdin:
    text, out = json.loads(line)
    shutil.rmtree(out, ignore_errors=True)
    try:
        run_merge(MergeConfiguration.model_validate(yaml.safe_load(text)), out, options=options)
        answer = ""
    except Exception as error:
        answer = f"{type(error).__name__}: {' '.join(str(error).split())}"
        answer = "" if answer.startswith("StrictDataclassClassValidation") else answer  # of config.json, written last
    print(json.dumps(answer), file=answers, flush=True)
"""
LAYERS = 4
# For each method: its parameters (* marks those given per model), whether it has a base, and how many other models it takes,
# at least and at most.
METHODS: dict[str, tuple[str, str, int, int]] = {
    "linear": ("weight* normalize", "maybe", 1, 3),
    "task_arithmetic": ("weight* normalize lambda", "yes", 1, 3),
    "slerp": ("t", "yes", 1, 1),
    "nuslerp": ("weight* nuslerp_flatten nuslerp_row_wise", "maybe", 2, 2),
    "multislerp": ("weight* normalize_weights eps", "maybe", 1, 3),
    "karcher": ("max_iter tol", "maybe", 1, 3),
    "ties": ("weight* density* normalize rescale lambda int8_mask", "yes", 1, 3),
    "dare_linear": ("weight* density* normalize rescale lambda int8_mask", "yes", 1, 3),
    "dare_ties": ("weight* density* normalize rescale lambda int8_mask", "yes", 1, 3),
    "della": ("weight* density* epsilon* normalize rescale lambda", "yes", 1, 3),
    "della_linear": ("weight* density* epsilon* normalize rescale lambda", "yes", 1, 3),
    "breadcrumbs": ("weight* density* gamma* normalize rescale lambda", "yes", 1, 3),
    "breadcrumbs_ties": ("weight* density* gamma* normalize rescale lambda", "yes", 1, 3),
    "sce": ("select_topk int8_mask", "yes", 1, 3),
    "model_stock": ("filter_wise", "yes", 2, 3),
    "ram": ("epsilon_ram", "yes", 1, 3),
    "ramplus_tl": ("epsilon_ram r alpha", "yes", 1, 3),
    "nearswap": ("t_near", "yes", 1, 1),
    "arcee_fusion": ("", "yes", 1, 1),
    "passthrough": ("scale*", "maybe", 1, 1),
}
REQUIRED = ("weight", "t", "t_near")
USUAL: dict[str, list[Any]] = {
    "weight": [1, 0.5, 0.3, 1.0, 2, 0, -0.4, 100.0, "5e-1"],
    "density": [1, 0.9, 0.5, 0.33, 0.05, 0.0],
    "lambda": [1, 0.5, 1.7, 0, -1],
    "t": [0, 0.25, 0.5, 0.9, 1],
    "t_near": [0.001, 1e-6, "1e-4", 0, 1],
    "epsilon": [0.01, 0.04, 0.1],
    "epsilon_ram": [1e-5, 1e-3, 0, "2e-3"],
    "gamma": [0.01, 0.1, 0, 0.4],
    "eps": [1e-8, 1e-3, 0],
    "max_iter": [10, 1, 0, "3"],
    "tol": [1e-5, 1e-9, 1e-2],
    "select_topk": [1, 0.5, 0.1, 0.0],
    "r": [0.1, 0, 1],
    "alpha": [0.2, 1, 0],
    "scale": [1, 0, 0.5, -1, 2.0],
}
BEYOND: dict[str, list[Any]] = {
    "weight": [1e6, -3, True, "x"],
    "density": [1.5, -0.1],
    "t": [1.5, -0.2],
    "t_near": [-1],
    "epsilon": [0.6, -0.01],
    "epsilon_ram": [-1],
    "gamma": [1, 1.5, -0.1],
    "eps": [-1],
    "max_iter": [2.5, -1],
    "tol": [-1],
    "select_topk": [1.5, -0.5],
}
FILTERS = ("self_attn", "mlp", "q_proj", "layers.1", "lm_head", "norm", "embed", "*", "nothing")
Recipe = dict[str, Any]


class Maker:
    """Makes one random recipe, which the number determines."""

    def __init__(self, number: int, models: Path):
        self._random = random.Random(number)
        self._models = models

    def _chance(self, share: float) -> bool:
        return self._random.random() < share

    def _scalar(self, name: str) -> Any:
        if self._chance(0.02) and name in BEYOND:
            return self._random.choice(BEYOND[name])
        return self._random.choice(USUAL.get(name, [True, False, "yes", "off", 1]))

    def _scalar_or_gradient(self, name: str) -> Any:
        if self._chance(0.3):
            return [self._scalar(name) for _ in range(self._random.choice((1, 2, 3, 5)))]
        return self._scalar(name)

    def _setting(self, name: str) -> Any:
        if self._chance(0.65):
            return self._scalar_or_gradient(name)
        filters = self._random.sample(FILTERS, self._random.choice((1, 2)))
        conditions = [{"filter": filter, "value": self._scalar_or_gradient(name)} for filter in filters]
        if self._chance(0.7):
            conditions.append({"value": self._scalar_or_gradient(name)})
        return conditions[0] if len(conditions) == 1 and self._chance(0.5) else conditions

    def _parameters(self, names: list[str], share: float) -> dict[str, Any]:
        chosen = [name for name in names if self._chance(share)]
        return {"parameters": {name.split("_")[0] if name.endswith(("_ram", "_near")) else name: self._setting(name)
                               for name in chosen}} if chosen else {}  # fmt: skip

    def recipe(self) -> Recipe:
        """Return the recipe, as YAML would be parsed."""
        method = self._random.choice(sorted(METHODS))
        words, base_policy, least, most = METHODS[method]
        names = [word.rstrip("*") for word in words.split()]
        own = [word.rstrip("*") for word in words.split() if word.endswith("*")]
        kind = self._random.choice(("models", "models", "slices", "modules"))
        family = self._random.choice(("llama", "llama", "qwen2", "tied"))
        base = str(self._models / f"{family}_base")
        has_base = base_policy == "yes" or self._chance(0.4)
        count = self._random.randint(least, most)

        def entries(layers: list[int] | None) -> list[Recipe]:
            chosen = self._random.sample("abc", count)
            found: list[Recipe] = [{"model": str(self._models / f"{family}_{one}")} for one in chosen]
            if has_base and self._chance(0.02):
                found.clear()
            if has_base and self._chance(0.5 if layers is None else 0.85):
                found.insert(self._random.randint(0, len(found)), {"model": base})
            if self._chance(0.01):
                found.append(dict(found[0]))
            for one in found:
                if layers is not None:
                    one["layer_range"] = list(layers)
                one |= self._parameters(own, 0.4)
            return found

        inner: Recipe = {}
        if kind == "slices" or (kind == "modules" and self._chance(0.5)):
            inner["slices"] = []
            for _ in range(self._random.randint(1, 3)):
                first = self._random.randrange(LAYERS)
                layers = [first, self._random.randint(first + 1, LAYERS)]
                inner["slices"].append({"sources": entries(layers), **self._parameters(names, 0.2)})
        else:
            inner["models"] = entries(None)
        recipe: Recipe = {"merge_method": method}
        if kind == "modules":
            recipe["modules"] = {"default": {**inner, **self._parameters(names, 0.2)}}
        else:
            recipe |= inner
        recipe |= {"base_model": base} if has_base else {}
        recipe |= self._parameters(names, 0.5)
        for name in set(REQUIRED) & set(names):  # nearly always set, because without them both programs refuse the recipe
            if self._chance(0.93):
                shared = recipe.setdefault("parameters", {})
                key = name.split("_")[0]
                if key not in shared or (isinstance(shared[key], list | dict) and self._chance(0.7)):
                    shared[key] = self._scalar_or_gradient(name)
        return recipe | {
            # mergekit computes arcee_fusion in float64; in float32, its divergences are mostly rounding errors.
            "dtype": "float64" if method == "arcee_fusion" else self._random.choice(("float32", "float64")),
            "out_dtype": "float32" if method.startswith(RANDOM) else "bfloat16",
        }


def make_models(folder: Path) -> None:
    """Write a base and three models near it, in bfloat16, as Llama, as Qwen2 with biases, and with tied embeddings."""
    base = {name: widened(to_bfloat16(x)).astype(np.float32) for name, x in llama(LAYERS, 0, None).items()}
    for seed, name in enumerate(("base", "a", "b", "c")):
        tensors = base if name == "base" else llama(LAYERS, seed, base)
        save(folder / f"llama_{name}", tensors, LAYERS)
        tied: Tensors = {key: x for key, x in tensors.items() if key != "lm_head.weight"}
        save(folder / f"tied_{name}", tied, LAYERS)
        drawn = np.random.default_rng(100)
        biases = {
            key.replace("weight", "bias"): (drawn.standard_normal(HIDDEN) * 0.05 + seed * 0.003).astype(np.float32)
            for key in tensors
            if re.search("[qkv]_proj", key)
        }
        save(folder / f"qwen2_{name}", {**tensors, **biases}, LAYERS)
        for family, changes in (
            ("tied", {"tie_word_embeddings": True}),
            ("qwen2", {"model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"]}),
        ):
            path = folder / f"{family}_{name}" / "config.json"
            path.write_text(json.dumps(json.loads(path.read_text()) | changes))


class Pair:
    """Runs recipes with both programs. mergekit: the Python of its environment. work: a folder. bound: as --bound."""

    def __init__(self, mergekit: str, work: Path, bound: float):
        self.work, self._bound = work, bound
        make_models(work / "models")
        environment = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONPATH": ""}
        self._theirs = subprocess.Popen(
            [mergekit, "-c", MERGEKIT],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environment,
        )  # fmt: skip

    def outcome(self, recipe: Recipe) -> tuple[str, str]:
        """Run a recipe with both programs. Return the kind of outcome, and its details."""
        text = yaml.safe_dump(recipe, sort_keys=False)
        assert self._theirs.stdin is not None
        assert self._theirs.stdout is not None
        self._theirs.stdin.write(json.dumps([text, str(self.work / "theirs")]) + "\n")
        self._theirs.stdin.flush()
        here = ""
        try:
            merge(MergeConfig(recipe_yaml=text, output_path=str(self.work / "ours"), overwrite=True), progress=False)
        except MergeError as error:
            here = str(error)
        there = json.loads(self._theirs.stdout.readline())
        if here or there:
            ending = "both refuse" if here and there else "refused here" if here else "refused there"
            return ending, " ".join((here if here else there).split())
        return self._compared(recipe)

    def _compared(self, recipe: Recipe) -> tuple[str, str]:
        ours, theirs = load(self.work / "ours"), load(self.work / "theirs")
        if ours.keys() != theirs.keys():
            return "differs", f"the tensors differ: {', '.join(sorted(ours.keys() ^ theirs.keys())[:3])}"
        configs = [self.work / who / "config.json" for who in ("ours", "theirs")]
        counts = [json.loads(path.read_text())["num_hidden_layers"] for path in configs if path.exists()]
        if counts[0] != counts[-1]:
            return "differs", f"config.json: {counts[0]} layers, mergekit's {counts[1]}"
        if not all(np.isfinite(x).all() for x in theirs.values()):
            return "NaN or Inf there", ""
        worst, name = max((units(ours[name], theirs[name]), name) for name in ours)
        if worst <= self._bound:
            return "equal" if worst <= 1 else "close", f"{worst:g} units in {name}"
        if recipe["merge_method"].startswith(RANDOM):
            base = load(Path(recipe["base_model"])) if "slices" not in json.dumps(recipe) else {}
            far = max((apart(ours[name], theirs[name], base.get(name, x * 0)), name) for name, x in ours.items())
            return "close" if far[0] < 5 else "differs", f"{far[0]:.1f} standard errors in {far[1]}"
        far_off = sum(np.count_nonzero(distances(x, theirs[name]) > self._bound) for name, x in ours.items())
        few = far_off / sum(x.size for x in ours.values())
        return "but for few" if few <= 1e-3 else "differs", f"{worst:g} units in {name}; {few:.2%} of all elements"


def main(
    mergekit: Annotated[str, typer.Option(help="Python of an environment that has mergekit.")],
    count: Annotated[int, typer.Option(help="Number of recipes.")] = 500,
    seed: Annotated[int, typer.Option(help="Number of the first recipe.")] = 0,
    bound: Annotated[float, typer.Option(help="Largest difference that counts as close, in units in the last place.")] = 4.0,
    replay: Annotated[list[int] | None, typer.Option(help="Number of a recipe to repeat; can be repeated.")] = None,
) -> None:
    """Run random recipes with both programs, and count the outcomes. The exit status is 1 if results differ."""
    logging.disable(logging.CRITICAL)  # the messages of paddle_merge
    endings: dict[tuple[str, str, str], list[int]] = defaultdict(list)
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as work:
        pair = Pair(mergekit, Path(work), bound)
        for number in replay or range(seed, seed + count):
            recipe = Maker(number, pair.work / "models").recipe()
            ending, more = pair.outcome(recipe)
            if replay:
                print(f"{yaml.safe_dump(recipe, sort_keys=False).replace(work, '')}\n{ending}: {more}")
            about = "" if ending in ("equal", "close") else re.sub(r"\S*/\S+|'[^']*'|[-\d.]+", "_", more)[:150]
            endings[ending, "" if ending in ("equal", "close", "both refuse") else recipe["merge_method"], about].append(
                number
            )
    for (ending, method, about), numbers in sorted(endings.items(), key=lambda item: (item[0][0], -len(item[1]))):
        print(f"{len(numbers):6} {ending:14} {method:16} {about}  ({', '.join(map(str, numbers[:3]))})")
    raise SystemExit(1 if any(ending == "differs" for ending, _, _ in endings) else 0)


if __name__ == "__main__":
    typer.run(main)
