"""Test that points between two models load in the libraries and compute the same as the model worked out by hand: shares by
groups of layers, on models in each library's own names and layout.

test_loaders.py says what this needs.
"""

from __future__ import annotations

import numpy as np
import pytest

from paddle_merge import MergeConfig, merge
from paddle_merge.recipe.yaml_write import to_yaml
from paddle_merge.search.alignment import AlignmentSpace
from paddle_merge.search.merger import Merger
from paddle_merge.search.spaces import space_of
from tests.loaders import test_loaders
from tests.loaders.test_loaders import LOADS, State, rounded, work
from tests.loaders.test_recipes import SOURCES, config, random_state
from tests.support.libraries import LIBRARIES

pytestmark = test_loaders.pytestmark

SECTION = """sweep:
  pre: {0}
  aligned: {1}
  method: [linear, lines, hma]
  blocks: [[0, 0], [1, 3]]
  rest: last
  evaluate: {{command: "score {{model}}"}}
  objectives: {{reward: maximize, reading: maximize}}
"""
# A point -> the share of the second model in each of the 4 layers, and in what is in no layer.
POINTS = {
    ("linear", 0.3): ([0.3, 0.3, 0.3, 0.3], 0.3),
    ("lines", 0.4): ([0.4, 0.6, 0.8, 1.0], 0.4),
    ("hma", 0.5, 0.25, 0.75): ([0.25, 0.75, 0.75, 0.75], 0.75),
}
Answers = dict[str, tuple[dict[str, str], dict[str, np.ndarray]]]


def by_hand(layers: list[float], rest: float) -> State:
    a, b = random_state("llama", 0), random_state("llama", 1)
    shares = {name: layers[int(name.split(".")[2])] if ".layers." in name else rest for name in a}
    return rounded({name: value + shares[name] * (b[name] - value) for name, value in a.items()}, "float32")


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Answers:
    """The libraries save two models, we merge the points, and the libraries load these: their answers and logits."""
    folder = tmp_path_factory.mktemp("sweeps")

    def entry(name: str, state: State) -> dict[str, object]:
        path = folder / f"{name}.npz"
        np.savez(path, **{key: value.astype(np.float32) for key, value in state.items()})
        return {"state": str(path), "config": config("llama")}

    saving: dict[str, dict[str, list[object]]] = {}
    for library in LIBRARIES:
        models = {letter: random_state("llama", seed) for seed, letter in enumerate("ab")}
        saving[library] = {
            "save": [
                {"folder": str(folder / library / letter), "dtype": "float32", "kind": SOURCES[library][0]}
                | entry(f"{library}-{letter}", state)
                for letter, state in models.items()
            ]
        }
    work(folder / "saving", saving)
    loading: dict[str, dict[str, list[object]]] = {}
    for library in LIBRARIES:
        text = SECTION.format(folder / library / "a", folder / library / "b")
        space = space_of(text, "sweep.yaml", Merger())
        assert isinstance(space, AlignmentSpace)
        loading[library] = {"load": [], "reference": []}
        for values, (layers, rest) in POINTS.items():
            out, name = folder / library / str(values[0]), f"{library}-{values[0]}"
            merge(MergeConfig(recipe_yaml=to_yaml(space.recipe(values)), output_path=str(out)), progress=False)
            options = LOADS[SOURCES[library][1]][library]
            loading[library]["load"].append({"name": name, "folder": str(out), "model_type": "llama", "options": options})
            loading[library]["reference"].append({"name": f"by hand {name}", **entry(name, by_hand(layers, rest))})
    answers: Answers = work(folder / "loading", loading)
    return answers


@pytest.mark.parametrize("values", POINTS, ids=lambda values: values[0])
@pytest.mark.parametrize("library", LIBRARIES)
def test_a_point_computes_as_by_hand(found: Answers, library: str, values: tuple[str, float]) -> None:
    answers, logits = found[library]
    name = f"{library}-{values[0]}"
    assert answers[name].startswith("float32"), answers[name]
    np.testing.assert_allclose(logits[name], logits[f"by hand {name}"], rtol=0, atol=2e-5)


def test_points_differ(found: Answers) -> None:
    """Without which the test above would show little."""
    logits = found["transformers"][1]
    for one in ("lines", "hma"):
        assert np.abs(logits[f"transformers-{one}"] - logits["transformers-linear"]).max() > 0.1
