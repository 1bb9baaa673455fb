"""Test weights on a simplex: the lattice, how files ask for it, and whole sweeps and searches of such files."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from paddle_merge import MergeConfig, merge
from paddle_merge.errors import ConfigError
from paddle_merge.recipe.yaml_nodes import documents
from paddle_merge.search.asked import Asked
from paddle_merge.search.contract import Candidate, Scores
from paddle_merge.search.evolve import evolve
from paddle_merge.search.grid import grid
from paddle_merge.search.ranges import MOST_POINTS
from paddle_merge.search.simplex import lattice, size
from paddle_merge.search.space import RecipeSpace
from paddle_merge.search.sweep import sweep
from tests.support.checkpoints import read, write


def space(text: str) -> RecipeSpace:
    return RecipeSpace(documents(text, "s.yaml"), "s.yaml", lambda recipe: 4)


def soup(*weights: str, method: str = "rewarded_soup", more: str = "") -> str:
    models = "".join(
        f"  - {{model: ./{n}, parameters: {{weight: {one}}}}}\n" for n, one in zip("abcdefgh", weights, strict=False)
    )
    return f"merge_method: {method}\nmodels:\n{models}{more}"


@given(st.integers(1, 9), st.integers(1, 4))
def test_the_lattice_is_all_of_the_simplex(parts: int, count: int) -> None:
    """Every point once, in ascending order, with multiples of 1/parts that add up to 1."""
    points = list(lattice(parts, count))
    assert len(points) == len(set(points)) == size(parts, count)
    assert points == sorted(points)
    for point in points:
        assert len(point) == count
        assert sum(point) == pytest.approx(1)
        assert min(point) >= 0
        np.testing.assert_allclose(np.array(point) * parts, np.rint(np.array(point) * parts), atol=1e-8)


def test_points_of_three_weights_in_halves() -> None:
    made = space(soup("{simplex: 2}", "{simplex: 2}", "{simplex: 2}"))
    assert grid(made) == [(0, 0, 1), (0, 0.5, 0.5), (0, 1, 0), (0.5, 0, 0.5), (0.5, 0.5, 0), (1, 0, 0)]
    assert [gene.name for gene in made.genes] == ["./a: weight", "./b: weight", "./c: weight"]
    recipe = made.recipe((0.5, 0.5, 0.0))
    assert [model.settings["weight"][0].value for model in recipe.slices[0].inputs] == [0.5, 0.5, 0.0]


def test_it_combines_with_other_free_values() -> None:
    """Also where those stand between its weights: each value is at its gene's place."""
    made = space(
        soup(
            "{simplex: 1}", "0:1:1", "{simplex: 1}", method="linear", more="parameters: {normalize: {choose: [true, false]}}"
        )
    )
    first = [(0, other, 1) for other in (0, 1)]
    last = [(1, other, 0) for other in (0, 1)]
    assert grid(made) == [(*point, choice) for point in first + last for choice in (True, False)]


def test_each_filter_has_a_simplex_of_its_own() -> None:
    weight = "[{filter: mlp, value: {simplex: 1}}, {value: {simplex: 2}}]"
    made = space(soup(weight, weight))
    mlp, rest = [(0, 1), (1, 0)], [(0, 1), (0.5, 0.5), (1, 0)]
    assert grid(made) == [(a, c, b, d) for a, b in mlp for c, d in rest]


def test_each_list_of_models_has_a_simplex_of_its_own() -> None:
    """Of slices and of stages."""
    first = soup("{simplex: 1}", "{simplex: 1}")
    made = space(f"name: first\n{first}---\n{first.replace('./a', 'first')}")
    assert len(grid(made)) == 4
    sources = "".join(
        f"  - sources:\n      - {{model: ./a, layer_range: {layers}, parameters: {{weight: {{simplex: 1}}}}}}\n"
        f"      - {{model: ./b, layer_range: {layers}, parameters: {{weight: {{simplex: 1}}}}}}\n"
        for layers in ("[0, 2]", "[2, 4]")
    )
    assert grid(space(f"merge_method: rewarded_soup\nslices:\n{sources}")) == [
        (0, 1, 0, 1),
        (0, 1, 1, 0),
        (1, 0, 0, 1),
        (1, 0, 1, 0),
    ]


def test_an_alias_of_all_weights_is_the_same_simplex() -> None:
    """Of the weights one by one, and of the list; one that takes only some of them is refused."""

    def slices(second: str) -> str:
        first = sources("&a {simplex: 1}", "&b {simplex: 1}")
        return f"merge_method: rewarded_soup\nslices:\n  - sources: &all\n{first}{second}"

    def sources(*weights: str) -> str:
        return "".join(
            f"      - {{model: ./{name}, layer_range: [0, 2], parameters: {{weight: {weight}}}}}\n"
            for name, weight in zip("ab", weights, strict=True)
        )

    for second in (f"  - sources:\n{sources('*a', '*b')}", "  - sources: *all\n"):
        assert grid(space(slices(second))) == [(0, 1), (1, 0)]
    with pytest.raises(ConfigError, match="takes some of another's"):
        space(slices(f"  - sources:\n{sources('*a', '0.5')}"))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (soup("{simplex: 4}", "0.5"), "s.yaml:3:39: one weight alone is no simplex; write {simplex: ...} for each model's"),
        (soup("{simplex: 4}", "{simplex: 5}"), "s.yaml:3:39: the simplex has different parts at s.yaml:4:39; give all"),
        (
            soup("{simplex: 0}", "{simplex: 0}"),
            "s.yaml:3:39: simplex must be into how many parts 1 is divided, a whole number",
        ),
        (soup("{simplex: 0.1}", "{simplex: 0.1}"), "s.yaml:3:39: simplex must be into how many parts 1 is divided, a whole"),
        (soup("{simplex: x}", "{simplex: x}"), "a whole number from 1 to"),
        (soup("{simplex: 4, by: layer}", "{simplex: 4}"), "'by' has no effect in a weight on a simplex, which has simplex"),
        (
            soup("1", "1", more="parameters: {t: {simplex: 4}}"),
            "s.yaml:5:17: simplex is for the weight of each model of a list",
        ),
        (soup("&w {simplex: 4}", "*w"), "s.yaml:3:39: one weight alone is no simplex"),
        (soup("&w {simplex: 4}", "{simplex: 4}", "*w"), "s.yaml:3:39: an alias repeats one weight of this simplex"),
        (soup("{simplex: 99999}", "{simplex: 99999}"), f"a whole number from 1 to {MOST_POINTS - 1}, not 99999"),
    ],
)
def test_mistakes_are_named_by_line_and_column(text: str, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        space(text)
    assert said in str(caught.value)


def test_a_lattice_that_nobody_can_score_is_refused() -> None:
    """15 parts of 8 weights: 22 over 7."""
    with pytest.raises(
        ConfigError, match=r"the grid has 170544 = 1.71e\+05 points, and more than 10,000 are a search; give the"
    ):
        grid(space(soup(*["{simplex: 15}"] * 8)))


class Evaluator:
    """Two rewards, each the square root of how much its model counts: their front is the whole simplex."""

    metrics = None

    def count(self, split: str) -> int | None:
        return None

    def __call__(self, candidate: Candidate, split: str, seed: int, samples: Sequence[int] | None) -> Scores:
        helpful, harmless = candidate.state_dict()["w"][:2].astype(float)
        return Scores({"helpful": math.sqrt(max(0.0, helpful)), "harmless": math.sqrt(max(0.0, harmless))})


def written(folder: Path, section: str) -> Path:
    for number, name in enumerate("ab"):
        write(folder / name, {"w": np.eye(3)[number]})
    text = soup("{simplex: 4}", "{simplex: 4}").replace("./", f"{folder}/")
    (folder / "s.yaml").write_text(
        f'{text}{section}:\n  evaluate: {{command: "score {{model}}"}}\n'
        "  objectives: {helpful: maximize, harmless: maximize}\n"
    )
    return folder / "s.yaml"


def test_a_sweep_over_the_simplex(tmp_path: Path) -> None:
    file = written(tmp_path, "sweep")
    outcome = sweep(Asked(str(file), str(tmp_path / "out"), evaluator=Evaluator()), progress=False)
    assert [one.values for one in outcome.points] == [(n / 4, 1 - n / 4) for n in range(5)]
    assert sorted(one.values for one in outcome.front) == [one.values for one in outcome.points]
    assert outcome.picked is not None
    assert outcome.picked.values == (0.5, 0.5)
    assert outcome.picked.title == "weights 0.5 0.5"
    assert read(tmp_path / "out")["w"].tolist() == [0.5, 0.5, 0.0]
    merge(MergeConfig(recipe_yaml=str(tmp_path / "out/best.yaml"), output_path=str(tmp_path / "again")), progress=False)
    assert (tmp_path / "again/model.safetensors").read_bytes() == (tmp_path / "out/model.safetensors").read_bytes()


def test_a_search_refuses_it_and_says_what_to_write(tmp_path: Path) -> None:
    file = written(tmp_path, "search")
    with pytest.raises(
        ConfigError, match=r"s.yaml:3:3 \(weight\): \{simplex: ...\} is for a sweep; a search takes"
    ) as caught:
        evolve(Asked(str(file), str(tmp_path / "out"), evaluator=Evaluator()), progress=False)
    assert len(caught.value.problems) == 1
    assert not (tmp_path / "out").exists()
