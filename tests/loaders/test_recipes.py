"""Test that models made by recipes load in the libraries and compute the same as the model worked out by hand: stacked
layers, blocks without effect, merged slices, parameters by layer.

test_loaders.py says what this needs.
"""

from __future__ import annotations

import copy
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from paddle_merge import MergeConfig, merge
from tests.loaders import test_loaders
from tests.loaders.test_loaders import HEADS, HIDDEN, INTER, KV, LOADS, VOCAB, State, computes, rounded, work
from tests.support.libraries import LIBRARIES

pytestmark = test_loaders.pytestmark

LAYERS = 4
WIDTH = HIDDEN // HEADS
# model_type -> what its config says beside the usual. Windows of 3 tokens matter: the scripts' text has 8.
KINDS: dict[str, dict[str, Any]] = {
    "llama": {},
    "qwen2": {"use_sliding_window": False, "sliding_window": 3, "max_window_layers": 2},
    "sliding": {"use_sliding_window": True, "sliding_window": 3, "max_window_layers": 2},
    "qwen3": {"head_dim": WIDTH, "use_sliding_window": True, "sliding_window": 3, "max_window_layers": 3},
    "gemma2": {"head_dim": WIDTH, "sliding_window": 3, "query_pre_attn_scalar": 4, "hidden_activation": "gelu_pytorch_tanh"},
    "smollm3": {"no_rope_layers": [1, 1, 0, 1], "pad_token_id": 0},
}
TYPES = {"sliding": "qwen2"}
SOURCES = {  # library -> what it writes, and reads again
    "transformers": ("transformers_safetensors", "hf"),
    "paddlenlp": ("paddlenlp_safetensors", "paddlenlp"),
    "paddleformers": ("paddleformers_paddle", "paddleformers"),
}


def config(kind: str, layers: int = LAYERS) -> dict[str, Any]:
    model_type = TYPES.get(kind, kind)
    head = {"tie_word_embeddings": kind == "gemma2"}
    return {**test_loaders.config(model_type, "untied"), **head, **KINDS[kind], "num_hidden_layers": layers}


def random_state(kind: str, seed: int) -> State:
    """In HF's layout, rounded to float32."""
    model_type = TYPES.get(kind, kind)
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (VOCAB, HIDDEN), "model.norm.weight": (HIDDEN,)}
    norms = ["input_layernorm", "post_attention_layernorm"]
    if model_type == "gemma2":
        norms += ["pre_feedforward_layernorm", "post_feedforward_layernorm"]
    else:
        shapes["lm_head.weight"] = (VOCAB, HIDDEN)
    for layer in range(LAYERS):
        at = f"model.layers.{layer}."
        for name, heads in {"q": HEADS, "k": KV, "v": KV}.items():
            shapes[f"{at}self_attn.{name}_proj.weight"] = (heads * WIDTH, HIDDEN)
            if model_type == "qwen2":
                shapes[f"{at}self_attn.{name}_proj.bias"] = (heads * WIDTH,)
        if model_type == "qwen3":
            shapes |= {f"{at}self_attn.{name}_norm.weight": (WIDTH,) for name in "qk"}
        shapes[f"{at}self_attn.o_proj.weight"] = (HIDDEN, HEADS * WIDTH)
        shapes |= {f"{at}mlp.{name}_proj.weight": (INTER, HIDDEN) for name in ("gate", "up")}
        shapes[f"{at}mlp.down_proj.weight"] = (HIDDEN, INTER)
        shapes |= {f"{at}{name}.weight": (HIDDEN,) for name in norms}
    random = np.random.default_rng([seed, *kind.encode()])
    drawn = {name: random.normal(float("norm" in name), 0.4, shape) for name, shape in shapes.items()}
    return rounded(drawn, "float32")


def stacked(parts: list[tuple[State, list[int]]]) -> State:
    """Layers of models, in order; embedding of the first, norm and head of the last."""
    first, last = parts[0][0], parts[-1][0]
    result = {name: value for name, value in last.items() if ".layers." not in name}
    result["model.embed_tokens.weight"] = first["model.embed_tokens.weight"]
    number = 0
    for state, layers in parts:
        for layer in layers:
            at = f"model.layers.{layer}."
            found = {name: value for name, value in state.items() if name.startswith(at)}
            result |= {f"model.layers.{number}.{name.removeprefix(at)}": value for name, value in found.items()}
            number += 1
    return result


def slices(*parts: tuple[str, int, int]) -> str:
    lines = [f"  - sources: [{{model: {model}, layer_range: [{first}, {stop}]}}]" for model, first, stop in parts]
    return "\n".join(["slices:", *lines, "merge_method: passthrough"])


@dataclass(frozen=True)
class Expected:
    """What a recipe should make. config: what differs from the models'."""

    recipe: str
    state: State
    config: dict[str, Any]


def upscaled(kind: str) -> Expected:
    """SOLAR's depth up-scaling: all but the last layer, then all but the first. A layer keeps its kind."""
    a = random_state(kind, 0)
    order = [0, 1, 2, 1, 2, 3]
    new: dict[str, Any] = {"num_hidden_layers": 6}
    full, sliding = "full_attention", "sliding_attention"
    new |= {
        "sliding": {"layer_types": [full, full, sliding, full, sliding, sliding]},
        "qwen3": {"layer_types": [full, full, full, full, full, sliding]},
        "gemma2": {"layer_types": [sliding, full, sliding, full, sliding, full]},
        "smollm3": {"no_rope_layers": [1, 1, 0, 1, 0, 1]},
    }.get(kind, {})
    return Expected(slices(("a", 0, 3), ("a", 1, 4)), stacked([(a, order)]), new)


def expanded(kind: str) -> Expected:
    """LLaMA-Pro: behind every second layer a copy of it that adds nothing, so the model is the same."""
    a = random_state(kind, 0)
    parts = []
    for first in (0, 2):
        parts.append(f"  - sources: [{{model: a, layer_range: [{first}, {first + 2}]}}]")
        scale = "[{filter: o_proj, value: 0.0}, {filter: down_proj, value: 0.0}, {value: 1.0}]"
        copied = f"model: a, layer_range: [{first + 1}, {first + 2}], parameters: {{scale: {scale}}}"
        parts.append(f"  - sources: [{{{copied}}}]")
    return Expected("\n".join(["slices:", *parts, "merge_method: passthrough"]), a, {})


def _slerp(a: np.ndarray, b: np.ndarray, t: float) -> np.ndarray:
    """Along the arc between directions; the models' norms differ, so mergekit's formula is used as it stands."""
    angle = np.arccos(np.sum(a * b) / np.linalg.norm(a) / np.linalg.norm(b))
    return (np.sin((1 - t) * angle) * a + np.sin(t * angle) * b) / np.sin(angle)


def sliced_slerp(kind: str) -> Expected:
    """The last layers of a with the first ones of b; t 0, 1/2, 1 over three layers, but for norms. Tensors in no layer have
    the gradient's first value, whose filter doesn't matter for them."""
    a, b = random_state(kind, 0), random_state(kind, 1)
    recipe = """
slices:
  - sources: [{model: a, layer_range: [1, 4]}, {model: b, layer_range: [0, 3]}]
merge_method: slerp
base_model: a
parameters: {t: [{filter: norm, value: 0.25}, {filter: layers, value: [0, 1]}, {value: 0.5}]}
"""
    over_a, over_b = stacked([(a, [1, 2, 3])]), stacked([(b, [0, 1, 2])])
    state = {}
    for name, value in over_a.items():
        t = 0.25 if "norm" in name else int(name.split(".")[2]) / 2 if ".layers." in name else 0.5
        state[name] = _slerp(value, over_b[name], t)
    full, sliding = "full_attention", "sliding_attention"
    types = {"sliding": {"layer_types": [full, sliding, sliding]}}.get(kind, {})
    return Expected(recipe, rounded(state, "float32"), {"num_hidden_layers": 3, **types})


def by_layer(kind: str) -> Expected:
    """b counts 0, 1/3, 2/3, 1 from the first layer to the last, twice that in MLPs, and 1/2 elsewhere."""
    a, b = random_state(kind, 0), random_state(kind, 1)
    weight = "[{filter: mlp, value: [0, 2]}, {filter: layers, value: [0, 1]}, {value: 0.5}]"
    recipe = f"""
models: [{{model: a, parameters: {{weight: 1}}}}, {{model: b, parameters: {{weight: {weight}}}}}]
merge_method: linear
"""
    state = {}
    for name, value in a.items():
        w = int(name.split(".")[2]) / 3 * (2 if ".mlp." in name else 1) if ".layers." in name else 0.5
        state[name] = (value + w * b[name]) / (1 + w)
    return Expected(recipe, rounded(state, "float32"), {})


def stacked_in_a_stage(kind: str) -> Expected:
    """The stack is a merge that a second one takes: the mean of two of them."""
    a, b = random_state(kind, 0), random_state(kind, 1)
    one = f"name: deep_a\n{slices(('a', 0, 3), ('a', 2, 4))}\n---\nname: deep_b\n{slices(('b', 0, 3), ('b', 2, 4))}\n---\n"
    recipe = f"{one}models: [{{model: deep_a}}, {{model: deep_b}}]\nmerge_method: linear\nparameters: {{weight: 1}}"
    order = [0, 1, 2, 2, 3]
    states = [stacked([(state, order)]) for state in (a, b)]
    state = {name: (states[0][name] + states[1][name]) / 2 for name in states[0]}
    full, sliding = "full_attention", "sliding_attention"
    types = {"sliding": {"layer_types": [full, full, sliding, sliding, sliding]}}.get(kind, {})
    return Expected(recipe, rounded(state, "float32"), {"num_hidden_layers": 5, **types})


# What lists would say if a layer's kind followed from its new number.
BY_NUMBER: dict[str, dict[str, Any]] = {
    "sliding": {"layer_types": None},
    "qwen3": {"layer_types": None},
    "smollm3": {"no_rope_layers": [1, 1, 0, 1, 1, 1]},
}
RECIPES = {"upscaled": upscaled, "expanded": expanded, "sliced_slerp": sliced_slerp, "by_layer": by_layer}
RECIPES["stacked_in_a_stage"] = stacked_in_a_stage
PADDLES = ("llama", "qwen2")
CASES = [
    (recipe, kind, library)
    for recipe in RECIPES
    for kind in KINDS
    for library in LIBRARIES
    if library == "transformers" or (kind in PADDLES and computes(library, kind))
    if recipe == "upscaled" or kind in (*PADDLES, "sliding")
]
Shown = tuple[Path, dict[str, tuple[dict[str, str], dict[str, np.ndarray]]]]


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> Shown:
    """Everything, once: the libraries save, we merge, the libraries load; the folder, and their answers and logits."""
    folder = tmp_path_factory.mktemp("recipes")

    def saved(state: State, name: str) -> str:
        path = folder / f"{name}.npz"
        np.savez(path, **{name: value.astype(np.float32) for name, value in state.items()})
        return str(path)

    jobs: dict[str, dict[str, list[Any]]] = {library: {"save": []} for library in LIBRARIES}
    for kind, library in sorted({(kind, library) for _, kind, library in CASES}):
        for seed, letter in enumerate("ab"):
            entry = {"state": saved(random_state(kind, seed), f"{kind}-{letter}"), "config": config(kind)}
            source = str(folder / f"{kind}-{library}-{letter}")
            jobs[library]["save"].append(
                {"folder": source, "dtype": "float32", "kind": SOURCES[library][0], **copy.deepcopy(entry)}
            )
    work(folder / "saving", jobs)

    jobs = {library: {"load": [], "reference": []} for library in LIBRARIES}
    for recipe, kind, library in CASES:
        expected = RECIPES[recipe](kind)
        name, layout = f"{recipe}-{kind}-{library}", SOURCES[library][1]
        text = expected.recipe
        for letter in "ab":
            text = text.replace(f"model: {letter}", f"model: {folder / f'{kind}-{library}-{letter}'}")
        merge(MergeConfig(recipe_yaml=text + "\n", output_path=str(folder / name)), progress=False)
        options = LOADS[layout][library]
        model_type = TYPES.get(kind, kind)
        loaded = {"name": name, "folder": str(folder / name), "model_type": model_type, "options": options}
        jobs[library]["load"].append(loaded)
        by_hand = {**config(kind), **expected.config}
        jobs[library]["reference"].append(
            {"name": f"by hand {name}", "state": saved(expected.state, name), "config": by_hand}
        )
        if recipe == "upscaled" and kind in BY_NUMBER:
            wrong = {"name": f"by number {kind}", "state": saved(expected.state, f"wrong {kind}")}
            jobs[library]["reference"].append({**wrong, "config": {**config(kind, 6), **BY_NUMBER[kind]}})
    return folder, work(folder / "loading", jobs)


@pytest.mark.parametrize(("recipe", "kind", "library"), CASES)
def test_what_recipes_make_computes_as_by_hand(shown: Shown, recipe: str, kind: str, library: str) -> None:
    folder, found = shown
    answers, logits = found[library]
    name = f"{recipe}-{kind}-{library}"
    assert answers[name].startswith("float32"), answers[name]
    bound = 0 if recipe == "expanded" else 2e-5  # what is added there is zero
    np.testing.assert_allclose(logits[name], logits[f"by hand {name}"], rtol=0, atol=bound)
    expected = RECIPES[recipe](kind)
    told = json.loads((folder / name / "config.json").read_text())
    depth = 6 if recipe == "expanded" else expected.config.get("num_hidden_layers", LAYERS)
    assert told["num_hidden_layers"] == depth
    assert all(told[key] == value for key, value in expected.config.items())


def test_kinds_of_layers_matter(shown: Shown) -> None:
    """Without which the test above would show little."""
    _, found = shown
    logits = found["transformers"][1]
    for kind in BY_NUMBER:
        assert np.abs(logits[f"by number {kind}"] - logits[f"upscaled-{kind}-transformers"]).max() > 0.01
    for recipe in ("sliced_slerp", "by_layer", "upscaled"):
        assert np.abs(logits[f"{recipe}-llama-transformers"] - logits["expanded-llama-transformers"]).max() > 0.1
