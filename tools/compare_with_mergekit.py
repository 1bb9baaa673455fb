"""Run recipes with this program and with mergekit on the same small models, and report the largest difference.

    python tools/compare_with_mergekit.py configs/recipes --mergekit PYTHON    # Python of mergekit's environment

Every model that a recipe names is replaced by a small Llama with random weights (bfloat16; a base, and fine-tuned models
near it) with as many layers as the recipe uses. mergekit computes in float32, with stable sorts, and both programs store
bfloat16. For methods without random masks, the largest difference is reported in units in the last place. For the others,
three statistics are compared: the share of elements that differ from the base, and the mean and the variance of the
differences. The largest distance is reported in standard errors; up to about 3 is expected by chance.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
import zlib
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
import yaml
from safetensors import deserialize

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from paddle_merge import MergeConfig, MergeError, merge
from paddle_merge.checkpoints.formats.header import Held
from paddle_merge.checkpoints.formats.safetensors import header
from paddle_merge.dtypes import BFLOAT16

HIDDEN, WIDE, HEADS, WORDS = 64, 160, 4, 128
RANDOM = ("dare", "della")  # prefixes of the methods with random masks
EMBEDDINGS = ("model.embed_tokens", "lm_head")
Tensors = dict[str, np.ndarray]
# torch's default sort puts equal elements in an arbitrary order; a stable sort keeps their order, as paddle_merge does.
MERGEKIT = """
import functools, torch
torch.sort = functools.partial(torch.sort, stable=True)
torch.argsort = functools.partial(torch.argsort, stable=True)
from mergekit.scripts.run_yaml import main
main()
"""


def llama(layers: int, seed: int, base: Tensors | None) -> Tensors:
    """Return random float32 weights of a Llama: of a base model, or, if a base is given, of one close to it."""
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (WORDS, HIDDEN)}
    for number in range(layers):
        at = f"model.layers.{number}"
        shapes |= {f"{at}.self_attn.{name}_proj.weight": (HIDDEN, HIDDEN) for name in "qkvo"}
        shapes |= {f"{at}.mlp.{name}_proj.weight": (WIDE, HIDDEN) for name in ("gate", "up")}
        shapes |= {f"{at}.mlp.down_proj.weight": (HIDDEN, WIDE)}
        shapes |= {f"{at}.{name}_layernorm.weight": (HIDDEN,) for name in ("input", "post_attention")}
    shapes |= {"model.norm.weight": (HIDDEN,), "lm_head.weight": (WORDS, HIDDEN)}
    random = np.random.default_rng(seed)
    drawn = {name: random.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    return {name: 0.05 * x if base is None else base[name] + 0.002 * x for name, x in drawn.items()}


def with_words(folder: Path, tensors: Tensors, name: str, is_base: bool) -> Tensors:
    """Write a tokenizer into the folder, and return the tensors with the embeddings' rows in the tokenizer's order.

    A model that isn't the base has the base's tokens in another order, and three added tokens.
    """
    random = np.random.default_rng(zlib.crc32(name.encode()))
    order = np.arange(WORDS) if is_base else random.permutation(WORDS)
    own = [] if is_base else [f"{name}{number}" for number in range(3)]
    ids = {f"w{number}": row for row, number in enumerate(order)}
    kind = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False) | {"special": True}
    added = [{"id": WORDS + number, "content": word, **kind} for number, word in enumerate(own)]
    rest: dict[str, Any] = dict.fromkeys(("truncation", "padding", "normalizer", "post_processor", "decoder"))
    model = {"type": "WordLevel", "vocab": ids, "unk_token": "w0"}
    split = {"type": "WhitespaceSplit"}
    content = {"version": "1.0", "added_tokens": added, "pre_tokenizer": split, "model": model, **rest}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer.json").write_text(json.dumps(content))
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizerFast"}))
    return {
        key: np.concatenate([x[order], 0.05 * random.standard_normal((len(own), HIDDEN)).astype(x.dtype)])
        if key.startswith(EMBEDDINGS)
        else x
        for key, x in tensors.items()
    }


def by_word(folder: Path, tensors: Tensors) -> dict[str, Tensors]:
    """Return, for each tensor with a row per token, its rows by token; they are empty if the folder has no tokenizer."""
    path = folder / "tokenizer.json"
    ids = json.loads(path.read_text())["model"]["vocab"] if path.exists() else {}
    ids |= {one["content"]: one["id"] for one in json.loads(path.read_text())["added_tokens"]} if ids else {}
    embeddings = {name: x for name, x in tensors.items() if name.startswith(EMBEDDINGS)}
    return {name: {word: x[row] for word, row in ids.items()} for name, x in embeddings.items()}


def to_bfloat16(x: np.ndarray) -> np.ndarray:
    """Return the values as bfloat16's bits (uint16), rounded to nearest even."""
    bits = x.astype(np.float32).view(np.uint32).astype(np.uint64)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


def save(folder: Path, tensors: Tensors, layers: int) -> None:
    """Write a checkpoint of a Llama with these tensors, in bfloat16, and its config.json."""
    folder.mkdir(parents=True, exist_ok=True)
    head = header([Held(name, BFLOAT16, x.shape, 2 * x.size) for name, x in tensors.items()], "pt").pieces[0][1]
    (folder / "model.safetensors").write_bytes(head + b"".join(to_bfloat16(x).tobytes() for x in tensors.values()))
    sizes = {"hidden_size": HIDDEN, "intermediate_size": WIDE, "num_hidden_layers": layers}
    sizes["vocab_size"] = len(tensors["model.embed_tokens.weight"])
    heads = {"num_attention_heads": HEADS, "num_key_value_heads": HEADS, "tie_word_embeddings": False}
    kind = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "torch_dtype": "bfloat16"}
    (folder / "config.json").write_text(json.dumps({**kind, **sizes, **heads}))


def load(folder: Path) -> Tensors:
    """Return the tensors of a checkpoint in bfloat16 or float32, as float64."""
    tensors = {}
    for path in sorted(folder.glob("*.safetensors")):
        for name, held in deserialize(path.read_bytes()):
            narrow = held["dtype"] == "BF16"
            values = widened(np.frombuffer(held["data"], np.uint16)) if narrow else np.frombuffer(held["data"], np.float32)
            tensors[name] = values.astype(np.float64).reshape(held["shape"])
    return tensors


def widened(bits: np.ndarray) -> np.ndarray:
    """Return the values of bfloat16's bits (uint16), as float64."""
    return (bits.astype(np.uint32) << 16).view(np.float32).astype(np.float64)


def places(recipe: Any, found: dict[str, int]) -> None:
    """Add to `found` the models that a recipe, or part of one, names, with the number of layers each must have (0: any)."""
    for item in recipe if isinstance(recipe, list) else []:
        places(item, found)
    if isinstance(recipe, dict):
        end = recipe.get("layer_range", [0, 0])[1]
        for key in ("model", "base_model", "source_model"):
            if key in recipe:
                found[recipe[key]] = max(found.get(recipe[key], 0), end if key == "model" else 0)
        for value in recipe.values():
            places(value, found)


def tells_words(recipe: dict[str, Any]) -> bool:
    """Return whether a recipe merges tokenizers, so that the vocabularies of its models may differ."""
    return bool({"tokenizer", "tokenizer_source"} & recipe.keys())


def prepared(recipe: dict[str, Any], work: Path) -> str:
    """Make the models of a recipe in the folder `work`, and return the recipe's YAML with their paths as names."""
    found: dict[str, int] = {}
    places(recipe, found)
    layers = max([4, *found.values()])
    base = {name: widened(to_bfloat16(x)).astype(np.float32) for name, x in llama(layers, 0, None).items()}
    text = yaml.safe_dump(recipe, sort_keys=False)
    for name in sorted(found, key=len, reverse=True):
        folder = work / "models" / re.sub(r"\W+", "_", name)
        if not folder.exists():
            is_base = name == recipe.get("base_model") and recipe["merge_method"] not in ("slerp", "linear")
            tensors = base if is_base else llama(layers, zlib.crc32(name.encode()), base)
            if tells_words(recipe):
                tensors = with_words(folder, tensors, name.strip("./"), is_base)
            save(folder, tensors, layers)
        text = re.sub(rf"((?:model|source): ){re.escape(name)}(?=\s|$)", rf"\g<1>{folder}", text)
    return text


def distances(ours: np.ndarray, theirs: np.ndarray) -> np.ndarray:
    """Return the distance of each element, in bfloat16's units in the last place of the larger of the two numbers.

    Numbers below 1/256 of the tensor's root mean square are measured in the units of that value, because they may be the
    rounding errors of terms that cancel.
    """
    floor = np.sqrt((theirs**2).mean()) / 256 if theirs.size else 0.0
    larger = np.maximum(np.maximum(abs(ours), abs(theirs)), max(floor, 1e-30))
    return np.asarray(abs(ours - theirs) / 2.0 ** (np.floor(np.log2(larger)) - 7))


def units(ours: np.ndarray, theirs: np.ndarray) -> float:
    """Return the largest of the distances."""
    return float(distances(ours, theirs).max(initial=0.0))


def apart(ours: np.ndarray, theirs: np.ndarray, base: np.ndarray) -> float:
    """Compare the differences from the base: return the largest distance of share, mean and variance, in standard errors."""
    a, b = ((x - base).ravel() for x in (ours, theirs))
    found = [0.0]
    for one, two in ((a != 0, b != 0), (a, b), (a**2, b**2)):
        error = np.sqrt((one.var() + two.var()) / len(a))
        found.append(float(abs(one.mean() - two.mean()) / error) if error else 0.0)
    return max(found)


def compare(path: Path, work: Path, mergekit: str) -> str:
    """Return a line that says how the results of a recipe differ. mergekit: the Python of its environment."""
    recipe, *more = yaml.safe_load_all(path.read_text())
    if more:
        return "not compared: mergekit needs another command for recipes with several stages"
    if "re:" in path.read_text():
        return "not compared: mergekit has no regular expressions"
    recipe |= {"dtype": "float32", "out_dtype": "bfloat16"}
    text = prepared(recipe, work)
    (work / "recipe.yaml").write_text(text)
    try:
        merge(MergeConfig(recipe_yaml=text, output_path=str(work / "ours")), progress=False)
    except MergeError as error:
        return f"paddle_merge refuses it: {error}"
    command = [mergekit, "-c", MERGEKIT, str(work / "recipe.yaml"), str(work / "theirs"), "--allow-crimes"]
    offline = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONPATH": ""}
    done = subprocess.run(command, capture_output=True, text=True, env=offline)
    if done.returncode:
        return f"mergekit refuses it: {done.stderr.strip().splitlines()[-1]}"
    ours, theirs = load(work / "ours"), load(work / "theirs")
    if ours.keys() != theirs.keys():
        return f"the tensors differ: {', '.join(sorted(ours.keys() ^ theirs.keys())[:3])}"
    if tells_words(recipe):
        words, others = by_word(work / "ours", ours), by_word(work / "theirs", theirs)
        for name, rows in words.items():
            if rows.keys() != others[name].keys():
                return f"the tokens differ: {', '.join(sorted(rows.keys() ^ others[name].keys())[:3])}"
            ours[name], theirs[name] = (np.stack([its[name][word] for word in rows]) for its in (words, others))
    if recipe["merge_method"].startswith(RANDOM):
        base = load(work / "models" / re.sub(r"\W+", "_", recipe["base_model"]))
        alike = [name for name in ours if ours[name].shape == base[name].shape]
        worst = max((apart(ours[name], theirs[name], base[name]), name) for name in alike)
        return f"{worst[0]:.1f} standard errors ({worst[1]})"
    worst_units = max((units(ours[name], theirs[name]), name) for name in ours)
    differing = sum(int((ours[name] != theirs[name]).sum()) for name in ours) / sum(x.size for x in ours.values())
    return f"{worst_units[0]:g} units in the last place ({differing:.2%} of elements differ; worst {worst_units[1]})"


def main(
    recipes: Annotated[Path, typer.Argument(help="A recipe, or a folder of recipes (*.yaml).")],
    mergekit: Annotated[str, typer.Option(help="Python of an environment that has mergekit.")],
) -> None:
    """Run recipes with paddle_merge and with mergekit, and report how the results differ."""
    paths = sorted(recipes.rglob("*.yaml")) if recipes.is_dir() else [recipes]
    for path in paths:
        with tempfile.TemporaryDirectory() as work:
            print(f"{path.stem:32} {compare(path, Path(work), mergekit)}", flush=True)


if __name__ == "__main__":
    typer.run(main)
