"""The points of a grid: ranges, steps and choices in a recipe, and what is said about those that don't fit."""

from __future__ import annotations

import pytest

from paddle_merge.errors import ConfigError
from paddle_merge.recipe.recipe import Recipe
from paddle_merge.recipe.yaml_nodes import documents
from paddle_merge.recipe.yaml_write import to_yaml
from paddle_merge.search.grid import grid
from paddle_merge.search.optimizers.grid import points
from paddle_merge.search.ranges import spaced
from paddle_merge.search.space import RecipeSpace

FILE = """merge_method: task_arithmetic
base_model: ./base
models:
- model: ./a
  parameters: {{weight: {0}}}
- model: ./b
  parameters: {{weight: {1}}}
parameters: {{lambda: 1}}
"""


def space(first: str, second: str = "1.0", layers: int = 4) -> RecipeSpace:
    def count(_: Recipe) -> int:
        return layers

    return RecipeSpace(documents(FILE.format(first, second), "sweep.yaml"), "sweep.yaml", count)


TENTHS = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)


@pytest.mark.parametrize(
    ("written", "values"),
    [
        ("0:1:0.1", TENTHS),  # which YAML reads as 60.1
        ("{search: 0:1:0.1}", TENTHS),
        ("{search: [0, 1], step: 0.1}", TENTHS),
        ("{search: [0, 1], step: 0.3333}", (0.0, 0.3333333333, 0.6666666667, 1.0)),  # a third, as people write it
        ("-1:1:1", (-1.0, 0.0, 1.0)),
        ("1:2:1e-0", (1.0, 2.0)),
        ("{search: [0, 3], integer: true}", (0, 1, 2, 3)),
        ("{search: [0, 4], integer: true, step: 2}", (0, 2, 4)),
        ("{choose: [0.2, 1.0]}", (0.2, 1.0)),
    ],
)
def test_values_of_one(written: str, values: tuple[float, ...]) -> None:
    found = [point[0] for point in grid(space(written))]
    assert found == list(values)
    assert [type(one) for one in found] == [type(one) for one in values]


def test_every_combination_is_a_point_and_an_ordinary_recipe() -> None:
    made = space("0:1:0.5", "{choose: [1, 2]}")
    assert grid(made) == [(0.0, 1), (0.0, 2), (0.5, 1), (0.5, 2), (1.0, 1), (1.0, 2)]
    assert made.places == ("sweep.yaml:5:24", "sweep.yaml:7:24")
    text = to_yaml(made.recipe((0.5, 2)))
    assert "weight: 0.5" in text
    assert "weight: 2" in text
    assert "0:1" not in text


def test_a_value_for_each_group_of_layers() -> None:
    made = space("{search: 0:1:1, by: 2}")
    assert grid(made) == [(0.0, 0.0), (0.0, 1.0), (1.0, 0.0), (1.0, 1.0)]
    assert "weight: [0.0, 0.0, 1.0, 1.0]" in to_yaml(made.recipe((0.0, 1.0)))


def test_a_search_takes_only_values_with_the_step() -> None:
    (gene,) = space("{search: [0, 1], step: 0.25}").genes
    assert [gene.value(unit / 10) for unit in range(11)] == [0, 0, 0.25, 0.25, 0.5, 0.5, 0.75, 0.75, 1, 1, 1]
    assert [gene.value(gene.unit(one)) for one in gene.points] == [0, 0.25, 0.5, 0.75, 1]
    assert gene.admits(0.75)
    assert not gene.admits(0.7)


@pytest.mark.parametrize(
    ("written", "said"),
    [
        ("1:0:0.1", "search: [1, 0]: low must be below high"),
        ("{search: [1, 0], step: 0.1}", "search: [1, 0]: low must be below high"),
        ("0:1:0.3", "steps of 0.3 from 0 don't end at 1; steps of 0.25 do"),
        ("{search: [0, 1], step: 0.3}", "steps of 0.3 from 0 don't end at 1; steps of 0.25 do"),
        ("{search: [0, 1], step: 2}", "steps of 2 from 0 don't end at 1; steps of 1 do"),
        ("0:1:0", "the step must be above 0, not 0"),
        ("{search: [0, 1], step: -0.1}", "the step must be above 0, not -0.1"),
        ("0:1:1e-9", "the step 1e-09 makes more than 10,000 points of 0 to 1"),
        ("{search: [0, 1], step: fine}", "step must be a number, not 'fine'"),
        ("{search: [0, 1], step: true}", "step must be a number, not True"),
        ("{search: 0:1:0.1, step: 0.1}", "the range has a step already"),
        ("{search: [1, 2], step: 0.5, log: true}", "step 0.5 and log exclude each other"),
        ("{search: [1, 2], step: 0.5, integer: true}", "step 0.5 and integer exclude each other"),
        ("{choose: [1, 2], step: 0.5}", "step is for search: [low, high]"),
        ("{search: [0, 1], step: 0.5, start: 0.2}", "start must be within 0 and 1 in steps of 0.5, not 0.2"),
    ],
)
def test_what_doesnt_fit_is_refused_by_line_and_column(written: str, said: str) -> None:
    with pytest.raises(ConfigError) as raised:
        space(written)
    assert len(raised.value.problems) == 1
    assert raised.value.problems[0].startswith("sweep.yaml:5:")
    assert raised.value.problems[0].endswith(said)


def test_a_remedy_that_is_named_fits() -> None:
    for low, high, step in ((0, 1, 0.3), (0, 1, 0.7), (0.1, 0.9, 0.35), (-2, 5, 1.1)):
        with pytest.raises(ValueError, match="steps of") as raised:
            spaced(low, high, step)
        fitting = float(str(raised.value).split("; steps of ")[1].removesuffix(" do"))
        assert fitting <= step
        assert spaced(low, high, fitting)[-1] == high


def test_numbers_without_values_are_refused_all_together() -> None:
    with pytest.raises(ConfigError) as raised:
        grid(space("{search: [0, 1], by: 2}", "{search: [0, 2]}"))
    assert raised.value.problems == [
        "sweep.yaml:5:24: a sweep needs the values: {search: [0, 1], step: ...}, low:high:step or {choose: [...]}",
        "sweep.yaml:7:24: a sweep needs the values: {search: [0, 2], step: ...}, low:high:step or {choose: [...]}",
    ]


def test_a_grid_that_nobody_can_score_is_refused() -> None:
    with pytest.raises(ConfigError) as raised:
        grid(space("{search: 0:1:0.1, by: layer}", "{choose: [1, 2]}"))
    assert raised.value.problems == [
        "sweep.yaml:5:24: the grid has 11 x 11 x 11 x 11 x 2 = 2.93e+04 points, and more than 10,000 are a search;"
        " python -m paddle_merge evolve takes it, with a section search"
    ]


def test_whole_numbers_of_a_wide_range_are_too_many() -> None:
    whole = space("{search: [0, 20000], integer: true}")
    with pytest.raises(ConfigError, match=r"sweep.yaml:5:24: the grid has 20001 = 2e\+04 points, and more than 10,000"):
        grid(whole)
    assert len(points(whole.genes, 30000)) == 20001
    with pytest.raises(ConfigError, match="the choices, integers and steps alone make 20,001 candidates"):
        points(whole.genes, 100)
