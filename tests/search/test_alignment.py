"""The points between two models: which recipes they are, and what these merge to. Expected numbers are worked by hand."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import yaml

from paddle_merge.errors import MergeError
from paddle_merge.recipe.yaml_write import to_yaml
from paddle_merge.search.alignment import EPS, AlignmentSpace
from paddle_merge.search.merger import Merger
from paddle_merge.search.spaces import space_of
from tests.support.checkpoints import write

SECTION = """sweep:
  pre: {0}/pre
  aligned: {0}/aligned
  evaluate: {{command: "score {{model}}"}}
  objectives: {{reward: maximize, reading: maximize}}
"""
LAYERS = 6


def model(value: float, layers: int = LAYERS, **others: float) -> dict[str, np.ndarray]:
    tensors = {"model.embed_tokens.weight": np.full((4, 2), value)}
    tensors |= {f"model.layers.{layer}.mlp.up_proj.weight": np.full((2, 4), value) for layer in range(layers)}
    return tensors | {name: np.full(3, value) for name, value in others.items()}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two models: every element is 2 before alignment, and 4 after it, so toward_aligned a gives 2 + 2 a."""
    write(tmp_path / "pre", model(2.0), format="pt")
    write(tmp_path / "aligned", model(4.0), format="pt")
    return tmp_path


def space(folder: Path, more: str = "") -> AlignmentSpace:
    made = space_of(SECTION.format(folder) + more, "sweep.yaml", Merger())
    assert isinstance(made, AlignmentSpace)
    return made


def merged(made: AlignmentSpace, *values: object) -> dict[str, float]:
    """Return the first element of each tensor of a point."""
    tensors = Merger().merge(made.recipe(values))  # type: ignore[arg-type]
    return {name: float(tensor.values.flat[0]) for name, tensor in tensors.items()}


def by_layer(values: dict[str, float]) -> list[float]:
    return [values["model.embed_tokens.weight"], *(values[f"model.layers.{n}.mlp.up_proj.weight"] for n in range(LAYERS))]


def test_the_points_are_a_grid_for_each_method(folder: Path) -> None:
    assert space(folder).points() == [("linear", one / 10) for one in range(11)]
    both = space(folder, "  method: [slerp, lines]\n  toward_aligned: [0.5, 1, 0.5]\n")
    assert both.points() == [("slerp", 0.5), ("slerp", 1.0), ("lines", 0.5), ("lines", 1.0)]
    assert space(folder, "  method: expo\n").points() == [("expo", a) for a in (1.0, 1.1, 1.2, 1.3, 1.4, 1.5)]
    assert space(folder, "  toward_aligned: {search: [0, 1], step: 0.5}\n").points()[1] == ("linear", 0.5)
    assert space(folder, "  toward_aligned: 0.8\n").points() == [("linear", 0.8)]


def test_one_is_the_aligned_model(folder: Path) -> None:
    made = space(folder, "  method: [linear, slerp, expo]\n  toward_aligned: [1]\n")
    for method in ("linear", "slerp", "expo"):
        assert by_layer(merged(made, method, 1.0)) == [4.0] * 7
    assert by_layer(merged(made, "linear", 0.0)) == [2.0] * 7
    assert by_layer(merged(made, "slerp", 0.0)) == [2.0] * 7


def test_lines_keeps_the_last_layer_aligned(folder: Path) -> None:
    made = space(folder, "  method: lines\n")
    # a + (1 - a) l / 5 of the way: 0.5, 0.6, 0.7, 0.8, 0.9, 1; what is in no layer as the first
    assert by_layer(merged(made, "lines", 0.5)) == pytest.approx([3.0, 3.0, 3.2, 3.4, 3.6, 3.8, 4.0], rel=1e-6)


def test_beyond_one_is_expo(folder: Path) -> None:
    made = space(folder, "  method: [linear, expo]\n  toward_aligned: [1.5]\n")
    # aligned + 0.5 (aligned - pre) = 4 + 1
    assert by_layer(merged(made, "expo", 1.5)) == by_layer(merged(made, "linear", 1.5)) == [5.0] * 7


def test_hma_gives_each_group_of_layers_its_share(folder: Path) -> None:
    made = space(folder, "  method: hma\n")
    assert by_layer(merged(made, "hma", 0.5, 0.25, 0.5, 0.75)) == [3.0, 2.5, 2.5, 3.0, 3.0, 3.5, 3.5]  # mean: 0.5
    first = space(folder, "  method: hma\n  rest: first\n")
    assert by_layer(merged(first, "hma", 0.5, 0.25, 0.5, 0.75))[0] == 2.5
    last = space(folder, "  method: hma\n  rest: last\n")
    assert by_layer(merged(last, "hma", 0.5, 0.25, 0.5, 0.75))[0] == 3.5
    given = space(folder, "  method: hma\n  blocks: [[0, 0], [1, 3], [4, 5]]\n")
    assert by_layer(merged(given, "hma", 0.5, 0.25, 0.5, 0.75)) == [3.0, 2.5, 3.0, 3.0, 3.0, 3.5, 3.5]
    written = yaml.safe_load(to_yaml(made.recipe(("hma", 0.5, 0.25, 0.5, 0.75))))
    assert written["models"][0]["parameters"]["weight"] == [
        {"filter": r"re:^model\.layers\.\d+\.", "value": [0.25, 0.25, 0.5, 0.5, 0.75, 0.75]},
        {"value": 0.5},
    ]


def test_hma_with_a_second_stack_of_another_depth_moves_its_layers_by_their_place(tmp_path: Path) -> None:
    def two(value: float) -> dict[str, np.ndarray]:
        vision = {f"visual.blocks.{layer}.mlp.fc1.weight": np.full((2, 4), value) for layer in range(4)}
        return model(value) | vision

    write(tmp_path / "pre", two(2.0), format="pt")
    write(tmp_path / "aligned", two(4.0), format="pt")
    for more in ("", "  blocks: [[0, 1], [2, 3], [4, 5]]\n"):
        made = space(tmp_path, "  method: hma\n" + more)
        values = merged(made, "hma", 0.5, 0.25, 0.5, 0.75)
        assert by_layer(values) == [3.0, 2.5, 2.5, 3.0, 3.0, 3.5, 3.5]
        found = [values[f"visual.blocks.{layer}.mlp.fc1.weight"] for layer in range(4)]
        # a number of blocks divides 4 layers as 0 0 1 2; given ones take layer j of 4 as layer 5 j / 3: 0, 2, 3, 5
        assert found == ([2.5, 2.5, 3.0, 3.5] if not more else [2.5, 3.0, 3.0, 3.5])


def test_the_lattice_of_hma_holds_the_mean_and_is_what_the_authors_parameters_reach(folder: Path) -> None:
    made = space(folder, "  method: hma\n  toward_aligned: [0, 0.6, 1]\n")
    shares = [values[2:] for values in made.points() if values[1] == 0.6]
    # 6 parts for 3 groups: a_k is 0.3, 0.6, 0.9 or 1.2 with sum 1.8; none above 1
    want = {(0.3, 0.6, 0.9), (0.3, 0.9, 0.6), (0.6, 0.3, 0.9), (0.6, 0.9, 0.3), (0.9, 0.3, 0.6), (0.9, 0.6, 0.3), (0.6,) * 3}
    assert set(shares) == want
    assert len(shares) == len(want)
    assert [values for values in made.points() if values[1] != 0.6] == [
        ("hma", 0.0, 0.0, 0.0, 0.0),
        ("hma", 1.0, 1.0, 1.0, 1.0),
    ]
    for its in want:
        # a_k = a K (sigmoid(m_k) + eps) / sum for sigmoid(m_k) = c a_k - eps, with any c that leaves these within 0 and 1
        c = 1.15 / max(its)
        sigmoids = [c * share - EPS for share in its]
        assert all(0 < one < 1 for one in sigmoids)
        m = [math.log(one / (1 - one)) for one in sigmoids]
        parts = [1 / (1 + math.exp(-one)) + 0.2 for one in m]
        assert [0.6 * 3 * part / sum(parts) for part in parts] == pytest.approx(its)


def test_a_finer_lattice_leaves_out_what_the_authors_parameters_dont_reach(folder: Path) -> None:
    made = space(folder, "  method: hma\n  blocks: 2\n  lattice: 20\n  toward_aligned: [0.1]\n")
    # shares i and 20 - i of 0.2 / 20: the larger less than 6 times the smaller, so i from 3 to 17
    assert [values[2] for values in made.points()] == pytest.approx([number / 100 for number in range(3, 18)])


def test_a_head_that_only_the_aligned_model_has_is_kept(tmp_path: Path) -> None:
    write(tmp_path / "pre", model(2.0), format="pt")
    write(tmp_path / "aligned", model(4.0) | {"v_head.summary.weight": np.full((1, 2), 7.0)}, format="pt")
    assert merged(space(tmp_path), "linear", 0.5)["v_head.summary.weight"] == 7.0


def test_keys_beside_the_section_belong_to_every_recipe(folder: Path) -> None:
    made = space(folder, "out_dtype: bfloat16\n")
    assert yaml.safe_load(to_yaml(made.recipe(("linear", 0.5))))["out_dtype"] == "bfloat16"


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (
            "  method: linar\n",
            "6:11: unknown method 'linar'; did you mean 'linear'?; there are linear, slerp, hma, lines, expo",
        ),
        ("  toward_aligned: 1:0:0.1\n", "6:19: low must be below high, and 1 isn't below 0"),
        ("  toward_aligned: 0:1:0.3\n", "6:19: steps of 0.3 from 0 don't end at 1; steps of 0.25 do"),
        ("  toward_aligned: {search: [0, 1], step: 0.3}\n", "6:19: steps of 0.3 from 0 don't end at 1; steps of 0.25 do"),
        (
            "  toward_aligned: {search: [0, 1]}\n",
            "6:19: toward_aligned must be low:high:step, a list of numbers, or {search: [low, high], step: ...}",
        ),
        ("  toward_aligned: []\n", "6:19: toward_aligned is empty"),
        (
            "  toward_aligned: [0, x]\n",
            "6:23: toward_aligned must be low:high:step, or a list of numbers, and 'x' is no number",
        ),
        (
            "  toward_aligned: [0, 1.5]\n  method: slerp\n",
            "6:19: slerp takes toward_aligned from 0 to 1, not 1.5; linear and exp",
        ),
        ("  toward_aligned: [-0.5]\n", "6:19: linear takes toward_aligned from 0 to 10, not -0.5"),
        ("  blocks: 3\n", "6:11: blocks is for method hma"),
        ("  method: hma\n  blocks: 1\n", "7:11: blocks must be a whole number of at least 2, not 1"),
        ("  method: hma\n  blocks: 7\n", "7:11: 7 blocks of 6 layers; give at most 6"),
        (
            "  method: hma\n  blocks: [[0, 2], [4, 5]]\n",
            "7:20: blocks must follow one another: this one must begin at layer 3",
        ),
        ("  method: hma\n  blocks: [[0, 2], [3, 8]]\n", "7:11: the blocks end at layer 8, and the models' last one is 5"),
        ("  method: hma\n  blocks: [[0, 5]]\n", "7:11: hma needs at least two blocks"),
        ("  method: hma\n  blocks: [0, 5]\n", "7:12: a block must be its first and last layer, such as [0, 8]"),
        ("  method: hma\n  rest: middle\n", "7:9: rest must be one of first, last, mean, not 'middle'"),
        (
            "  method: hma\n  lattice: 7\n",
            "7:12: lattice must be a multiple of the number of blocks, 3, so that the mean is in it",
        ),
        ("  method: hma\n  blocks: 6\n  lattice: 60\n", "7:11: 6 blocks in a lattice of 60 parts are 5,006,386 points"),
        ("  reward: readin\n", "6:11: reward must be one of reward, reading, not 'readin'; did you mean 'reading'?"),
        (
            "  toward_align: 0:1:0.1\n",
            "6:3: unknown key 'toward_align'; did you mean 'toward_aligned'?; sweep has pre, aligned,",
        ),
        ("merge_method: ties\n", "6:1: 'merge_method' has no place beside a sweep between pre and aligned"),
        ("  pick: maximize readin\n", "6:9: the rule names 'readin', which is no objective; did you mean 'reading'?"),
    ],
)
def test_what_is_wrong_is_one_sentence_by_line_and_column(folder: Path, more: str, said: str) -> None:
    with pytest.raises(MergeError) as raised:
        space(folder, more).points()
    assert len(raised.value.problems) == 1
    assert raised.value.problems[0].startswith(f"sweep.yaml:{said}")


def test_both_models_are_needed(tmp_path: Path) -> None:
    text = SECTION.format(tmp_path).replace(f"  aligned: {tmp_path}/aligned\n", "")
    with pytest.raises(MergeError, match=r"sweep.yaml:2:3: aligned is missing: the model after it"):
        space_of(text, "sweep.yaml", Merger())
    text = SECTION.format(tmp_path).replace(", reading: maximize", "")
    with pytest.raises(MergeError, match=r"sweep.yaml:5:15: a sweep between two models needs a reward and at least one cap"):
        space_of(text, "sweep.yaml", Merger())


def test_models_without_layers_have_no_groups(tmp_path: Path) -> None:
    for name in ("pre", "aligned"):
        write(tmp_path / name, {"head.weight": np.ones((2, 2))}, format="pt")
    with pytest.raises(MergeError, match=r"sweep.yaml:6:11: hma needs layers, and .*pre has none; linear needs none"):
        space(tmp_path, "  method: hma\n")
