"""Test the free values of recipes: which genes they are, what values these can have, and which recipes they make."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from paddle_merge import ConfigError
from paddle_merge.recipe.recipe import Recipe
from paddle_merge.recipe.yaml_nodes import documents
from paddle_merge.recipe.yaml_read import parse
from paddle_merge.recipe.yaml_write import to_yaml
from paddle_merge.search.gene import Gene
from paddle_merge.search.space import RecipeSpace, without_sections

TEXT = """
merge_method: dare_ties
base_model: ./base
models:
  - model: ./math
    parameters: {weight: {search: [0, 1.5], by: layer}, density: {search: [0.1, 1.0], start: 0.5}}
  - model: ./code
    parameters:
      weight: {search: [0, 2], by: 2}
      density: [{filter: mlp, value: {choose: [0.2, 0.5, 1.0]}}, {value: 0.75}]
search: {evaluations: 5}
"""


def space(text: str, layers: int = 4) -> RecipeSpace:
    return RecipeSpace(without_sections(documents(text, "x.yaml")), "x.yaml", lambda _: layers)


def settings(recipe: Recipe, model: int, name: str) -> list[tuple[str | None, object]]:
    return [(one.filter, one.value) for one in recipe.slices[0].inputs[model].settings[name]]


def test_genes() -> None:
    """One for each layer, one for each of two groups, one for a single value; in the order of the text."""
    genes = space(TEXT).genes
    assert [gene.name for gene in genes] == [
        *(f"./math: weight, layer {layer}" for layer in range(4)),
        "./math: density",
        "./code: weight, group 0",
        "./code: weight, group 1",
        "./code: density [mlp]",
    ]
    assert [gene.start for gene in genes] == [0.75, 0.75, 0.75, 0.75, 0.5, 1.0, 1.0, 0.2]


def test_the_recipe_of_values() -> None:
    """Groups of 4 layers are the first two and the last two."""
    recipe = space(TEXT).recipe((0.0, 0.5, 1.0, 1.5, 0.3, 0.25, 2.0, 1.0))
    assert settings(recipe, 0, "weight") == [(None, (0.0, 0.5, 1.0, 1.5))]
    assert settings(recipe, 0, "density") == [(None, 0.3)]
    assert settings(recipe, 1, "weight") == [(None, (0.25, 0.25, 2.0, 2.0))]
    assert settings(recipe, 1, "density") == [("mlp", 1.0), (None, 0.75)]


def test_the_recipe_is_a_plain_one() -> None:
    """What is written of it is read as the same recipe."""
    recipe = space(TEXT).recipe((0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.2))
    assert parse(to_yaml(recipe), "best.yaml").recipe == recipe


def test_anything_can_be_free() -> None:
    """Methods, switches, layers and the parameters of an earlier document."""
    text = """
name: part
merge_method: slerp
base_model: ./a
models: [{model: ./a}, {model: ./b}]
parameters: {t: {search: [0, 1]}}
---
merge_method: {choose: [ties, dare_ties]}
base_model: ./base
models:
  - {model: part, parameters: {weight: 1, density: 0.5}}
parameters: {normalize: {choose: [true, false]}, lambda: {search: [1, 3], integer: true}}
"""
    one = space(text)
    assert [gene.name for gene in one.genes] == ["t", "merge_method", "normalize", "lambda"]
    recipe = one.recipe((0.25, "dare_ties", False, 3))
    assert recipe.method.name == "dare_ties"
    assert recipe.settings["normalize"][0].value is False
    assert recipe.settings["lambda"][0].value == 3.0
    assert recipe.stages[0].settings["t"][0].value == 0.25


def test_a_value_for_each_layer_of_a_slice() -> None:
    text = """
merge_method: linear
slices:
  - sources: [{model: ./a, layer_range: [0, 2], parameters: {weight: {search: [0, 1], by: layer}}}]
  - sources: [{model: ./a, layer_range: [1, 4], parameters: {weight: {search: [0, 1], by: layer}}}]
"""
    one = space(text, layers=100)
    assert len(one.genes) == 5
    recipe = one.recipe((0.1, 0.2, 0.3, 0.4, 0.5))
    assert [part.inputs[0].settings["weight"][0].value for part in recipe.slices] == [(0.1, 0.2), (0.3, 0.4, 0.5)]


def test_one_model_in_two_documents_has_two_names() -> None:
    """Reports, and titles of the points of a sweep, tell values apart by their names."""
    free = "models: [{model: ./a, parameters: {weight: {search: [0, 1]}}}, {model: ./b, parameters: {weight: 1}}]\n"
    text = f"name: first\nmerge_method: linear\n{free}---\nmerge_method: {{choose: [linear, slerp]}}\n{free}"
    found = RecipeSpace(documents(text, "x.yaml"), "x.yaml", lambda _: 4)
    assert [gene.name for gene in found.genes] == ["./a (3:44): weight", "merge_method", "./a (6:44): weight"]


def test_an_alias_is_the_same_gene() -> None:
    text = """
merge_method: linear
models:
  - {model: ./a, parameters: {weight: &w {search: [0, 1]}}}
  - {model: ./b, parameters: {weight: *w}}
"""
    one = space(text)
    assert len(one.genes) == 1
    assert [settings(one.recipe((0.3,)), model, "weight") for model in (0, 1)] == [[(None, 0.3)]] * 2


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("{search: [1, 0]}", "x.yaml:4:35: search: [1, 0]: low must be below high"),
        ("{search: [1]}", "x.yaml:4:35: search must be two numbers, [low, high]"),
        ("{search: [0, true]}", "x.yaml:4:35: search must be two numbers, [low, high]"),
        ("{search: [0, .inf]}", "x.yaml:4:35: search must be two numbers, [low, high]"),
        (f"{{search: [0, 1{'0' * 400}]}}", "x.yaml:4:35: search must be two numbers, [low, high]"),
        ("{search: 1}", "x.yaml:4:35: search must be a list"),
        ("{search: [0, 1], log: true}", "x.yaml:4:35: log needs a lower bound above 0, not 0"),
        ("{search: [0, 1.5], integer: true}", "x.yaml:4:35: integer needs whole numbers as bounds"),
        ("{search: [0, 1], log: 3}", "x.yaml:4:48: log must be true or false, not 3"),
        ("{search: [0, 1], start: 2}", "x.yaml:4:50: start must be within 0 and 1, not 2"),
        ("{search: [0, 1], by: 0}", "x.yaml:4:47: by must be layer, or a number of groups of layers, not 0"),
        ("{search: [0, 1], by: 5}", "x.yaml:4:26: by: 5 groups of 4 layers; give at most 4"),
        ("{search: [0, 1], strat: 1}", "x.yaml:4:43: unknown key 'strat'; did you mean 'start'?"),
        ("{choose: [1]}", "x.yaml:4:35: choose needs at least two values"),
        ("{choose: [1, 1]}", "x.yaml:4:35: choose has a value twice"),
        ("{choose: [1, 2], start: 3}", "x.yaml:4:50: start must be one of the choices, not 3"),
        ("{choose: [1, 2], log: true}", "x.yaml:4:48: log is for search: [low, high]"),
        ("{choose: [1, 2], search: [0, 1]}", "x.yaml:4:26: a free value has one of search and choose, not both"),
        ("0.5", "x.yaml: no value is free; write {search: [low, high]} or {choose: [...]} in place of a value"),
    ],
)
def test_mistakes(value: str, said: str) -> None:
    text = f"merge_method: linear\nmodels:\n  - model: ./a\n    parameters: {{weight: {value}}}\n"
    with pytest.raises(ConfigError) as error:
        space(text)
    assert any(problem.startswith(said) for problem in error.value.problems), error.value.problems


GENES = [
    Gene("a", "a", 0.0, 1.5),
    Gene("a", "a", -3.0, -1.0),
    Gene("a", "a", 1e-4, 10.0, log=True),
    Gene("a", "a", 2.0, 9.0, integer=True),
    Gene("a", "a", 1.0, 1000.0, integer=True, log=True),
    Gene("a", "a", choices=("x", True, 1, 0.5)),
]


@pytest.mark.parametrize("gene", GENES)
@given(unit=st.floats(-0.5, 1.5))
def test_values_are_within_the_bounds_and_found_again(gene: Gene, unit: float) -> None:
    value = gene.value(unit)
    assert gene.admits(value)
    again = gene.value(gene.unit(value))
    assert again == value or (not gene.choices and math.isclose(float(again), float(value), rel_tol=1e-5))


def test_every_whole_number_and_choice_has_an_equal_share() -> None:
    units = [(place + 0.5) / 800 for place in range(800)]
    whole = [GENES[3].value(unit) for unit in units]
    assert [whole.count(number) for number in range(2, 10)] == [100] * 8
    chosen = [str(GENES[5].value(unit)) for unit in units]
    assert [chosen.count(choice) for choice in ("x", "True", "1", "0.5")] == [200] * 4


def test_a_logarithm_varies_evenly() -> None:
    """Half-way between 0.0001 and 10 is the square root of their product, 0.0316228."""
    assert GENES[2].value(0.5) == 0.0316228
