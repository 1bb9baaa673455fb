"""Run recipes, unchanged, on small models, to check them before any large model is read.

    python tools/try_recipes.py configs/recipes

Every model that a recipe names is replaced by a small Llama with random weights in a temporary folder, with as many layers
as the recipe uses: ./base is the base model, and all others are fine-tuned from it. For recipes about experts or routers,
its neurons are shared out among experts; a file with statistics of experts is made up.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import tempfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
import yaml

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from paddle_merge import MergeConfig, MergeError, merge
from paddle_merge.checkpoints.expert_statistics import LISTS, ExpertStatistics, LayerStatistics
from tools.compare_with_mergekit import WIDE, WORDS, Tensors, llama, load, places, save, tells_words, with_words

EXPERTS = 4


def models(documents: Sequence[dict[str, Any]], folder: Path) -> None:
    """Write small models with the names of a recipe's models into the folder. documents: the documents of its YAML."""
    found: dict[str, int] = {}
    for document in documents:
        places(document, found)
    layers = max([4, *found.values(), *(1 + number for one in documents for number in one.get("drop_layers", ()))])
    keep = next((one["keep_experts"] for one in documents if "keep_experts" in one), None)
    base = llama(layers, 0, None)
    for name in found.keys() - {document.get("name") for document in documents}:
        tensors = base if name == "./base" else llama(layers, zlib.crc32(name.encode()), base)
        if any(map(tells_words, documents)):
            tensors = with_words(folder / name, tensors, name.strip("./"), name == "./base")
        if keep is not None or any({"expert_alignment", "router"} & document.keys() for document in documents):
            tensors = with_experts(tensors, EXPERTS if keep is None else WIDE)
        save(folder / name, tensors, layers)
        if keep is not None:
            config = json.loads((folder / name / "config.json").read_text())
            (folder / name / "config.json").write_text(json.dumps({**config, "num_experts": WIDE}))
        if prompts := [one for document in documents for one in prompts_of(document)]:
            write_words(folder / name, prompts)
    if keep is not None and "statistics" in keep:
        random = np.random.default_rng(0)
        lists = [random.uniform(1, 9, WIDE).tolist() for _ in LISTS]
        made = ExpertStatistics("", "", 1, {layer: LayerStatistics(*lists) for layer in range(layers)})
        (folder / keep["statistics"]).write_text(made.to_json())


def prompts_of(recipe: Any) -> list[str]:
    """Return the prompts of the experts of a mixture."""
    items = recipe.values() if isinstance(recipe, dict) else recipe if isinstance(recipe, list) else []
    own = recipe.get("positive_prompts", []) + recipe.get("negative_prompts", []) if isinstance(recipe, dict) else []
    return own + [prompt for item in items for prompt in prompts_of(item)]


def write_words(folder: Path, prompts: Sequence[str]) -> None:
    """Write a tokenizer that has a token for every word of the prompts."""
    words = dict.fromkeys(word for prompt in prompts for word in prompt.split())
    ids = {word: number for number, word in enumerate(["<unk>", *words])}
    assert len(ids) <= WORDS, "the embedding of small models has too few rows for these prompts"
    rest: dict[str, Any] = dict.fromkeys(("truncation", "padding", "normalizer", "post_processor", "decoder"))
    model = {"type": "WordLevel", "vocab": ids, "unk_token": "<unk>"}
    content = {"version": "1.0", "added_tokens": [], "pre_tokenizer": {"type": "WhitespaceSplit"}, "model": model, **rest}
    (folder / "tokenizer.json").write_text(json.dumps(content))


def with_experts(tensors: Tensors, count: int) -> Tensors:
    """Return the tensors of a Llama with the neurons of each layer shared out among experts, and a router."""
    found: Tensors = {}
    for name, values in tensors.items():
        at, mlp, word = name.partition(".mlp.")
        if not mlp:
            found[name] = values
            continue
        for expert, its in enumerate(np.split(values, count, axis=int(word.startswith("down")))):
            found[f"{at}.mlp.experts.{expert}.{word}"] = its
        if word.startswith("gate"):
            found[f"{at}.mlp.gate.weight"] = values[:count]
    return found


def tried(path: Path) -> Tensors:
    """Return the tensors that the recipe makes of small models, in float64. Raises MergeError."""
    text, here = path.read_text(), Path.cwd()
    with tempfile.TemporaryDirectory() as work:
        try:
            os.chdir(work)  # paths in a recipe are relative to the current folder
            models(list(yaml.safe_load_all(text)), Path(work))
            merge(MergeConfig(recipe_yaml=text, output_path="out", out_dtype="bfloat16"), progress=False)
            return load(Path("out"))
        finally:
            os.chdir(here)


def main(recipes: Annotated[list[Path], typer.Argument(help="Recipes, or folders of recipes (*.yaml).")]) -> None:
    """Run recipes on small models, and print the size of each result."""
    logging.getLogger("paddle_merge").setLevel(logging.WARNING)
    failed = False
    for path in [found for one in recipes for found in (sorted(one.rglob("*.yaml")) if one.is_dir() else [one])]:
        try:
            out = tried(path)
            layers = {name.split(".")[2] for name in out if ".layers." in name}
            print(f"{path}: {len(layers)} layers, {sum(x.size for x in out.values()):,} parameters", flush=True)
        except MergeError as error:
            failed = True
            print(f"{path}: {error}", flush=True)
    raise typer.Exit(failed)


if __name__ == "__main__":
    typer.run(main)
