"""Test which tensors are taken for those of experts and routers, and what is said of others."""

from __future__ import annotations

import re
from collections.abc import Mapping

import numpy as np
import pytest

from paddle_merge.checkpoints.tensors import StoredEntry
from paddle_merge.conversion.moe.layers import ExpertTensor, MoeLayer, moe_layers
from paddle_merge.dtypes import FLOAT32
from paddle_merge.errors import MalformedError
from tests.support.experts import EXPERTS, FAMILIES, HIDDEN, NEURONS, STACKED, config, layer, stored

L = "model.layers.0.mlp"


def layers(shapes: Mapping[str, tuple[int, ...]], layout: str | None = "hf", **settings: object) -> dict[str, MoeLayer]:
    tensors = {name: StoredEntry(name, FLOAT32, shape, "file", 0) for name, shape in shapes.items()}
    return moe_layers(tensors, settings, layout)


def apart(count: int = 3, up: tuple[int, int] = (2, 4), down: tuple[int, int] = (4, 2)) -> dict[str, tuple[int, ...]]:
    words = {"gate_proj": up, "up_proj": up, "down_proj": down}
    return {f"{L}.experts.{e}.{word}.weight": shape for e in range(count) for word, shape in words.items()}


@pytest.mark.parametrize("family", FAMILIES)
def test_families(family: str) -> None:
    state = stored([layer(np.random.default_rng(0))], family)
    found = layers({name: values.shape for name, values in state.items()}, **config(family))
    prefix, *beside = FAMILIES[family]
    one = found[f"model.layers.0.{prefix}"]
    assert list(found) == [one.prefix]
    assert (one.count, one.neurons, one.groups) == (EXPERTS, NEURONS, 1)
    expected = {f"{one.prefix}.{name}": 0 for name in beside if name}
    if family == "ernie4_5_moe":
        expected[f"{one.prefix}.moe_statics.e_score_correction_bias"] = 1  # [1, E]
    assert dict(one.router) == expected
    assert all(tensor.stacked == (family in STACKED) for tensor in one.experts)


def test_axes_of_gpt_oss() -> None:
    shapes = {"gate_up_proj": (3, 4, 4), "gate_up_proj_bias": (3, 4), "down_proj": (3, 2, 4), "down_proj_bias": (3, 4)}
    model = {f"{L}.experts.{word}": shape for word, shape in shapes.items()} | {f"{L}.router.weight": (3, 4)}
    one = layers(model, model_type="gpt_oss")[L]  # 4 = 2 * 2 neurons is as the hidden size; down_proj says which is which
    assert one.experts == (
        ExpertTensor("down_proj", (f"{L}.experts.down_proj",), 0),
        ExpertTensor("down_proj", (f"{L}.experts.down_proj_bias",), None),
        ExpertTensor("gate_up_proj", (f"{L}.experts.gate_up_proj",), 1, "interleaved"),
        ExpertTensor("gate_up_proj", (f"{L}.experts.gate_up_proj_bias",), 0, "interleaved"),
    )


def test_paddles_matrices_are_transposed() -> None:
    fused = {
        f"{L}.experts.{e}.{w}.weight": s for e in range(3) for w, s in (("up_gate_proj", (4, 4)), ("down_proj", (2, 4)))
    }
    one = layers(fused | {f"{L}.gate.weight": (4, 3)}, "paddleformers")[L]
    assert [(tensor.word, tensor.neurons, tensor.pairs) for tensor in one.experts] == [
        ("down_proj", 0, ""),
        ("up_gate_proj", 1, "halves"),
    ]
    assert one.router == ((f"{L}.gate.weight", 1),)


@pytest.mark.parametrize(("layout", "axis"), [("hf", 0), ("paddlenlp", 1)])
def test_square_matrices_are_as_the_layout_says(layout: str, axis: int) -> None:
    """As many neurons and experts as hidden units."""
    one = layers(apart(3, (3, 3), (3, 3)) | {f"{L}.gate.weight": (3, 3)}, layout)[L]
    assert [tensor.neurons for tensor in one.experts] == [1 - axis, axis, axis]
    assert one.router == ((f"{L}.gate.weight", axis),)


@pytest.mark.parametrize(
    ("settings", "groups"),
    [
        ({"n_group": 3}, 3),
        ({"n_group": 3, "topk_group": 3}, 1),  # all groups are taken
        ({"n_group": 3, "topk_method": "greedy"}, 1),
        ({"text_config": {"n_group": 2}}, 2),
    ],
)
def test_groups(settings: dict[str, object], groups: int) -> None:
    assert layers(apart(6) | {f"{L}.gate.weight": (6, 4)}, **settings)[L].groups == groups


ROUTER = {f"{L}.gate.weight": (3, 4)}


@pytest.mark.parametrize(
    ("model", "settings", "said"),
    [
        (apart(), {}, "no tensor beside them has a row for each of the 3"),
        (apart() | {f"{L}.gate.weight": (5, 4)}, {}, "no tensor beside them has a row for each of the 3"),
        (apart() | ROUTER | {f"{L}.hash.table": (7, 2)}, {}, "isn't known what 'model.layers.0.mlp.hash.table', [7, 2], is"),
        (apart() | ROUTER | {f"{L}.experts.0.scale": (1,)}, {}, "not all of the 3 have the same tensors"),
        (apart() | ROUTER, {"n_group": 2}, "n_group 2, of which 3 experts are no multiple"),
        (apart(3, (2, 4), (4, 3)) | ROUTER, {}, "don't fit together"),
        ({f"{L}.experts.mlp.w1": (6, 4)} | ROUTER, {}, "aren't understood"),
        (
            {"model.layers.0.self_attention.experts.input_linear.weight": (3, 4, 4)},
            {},
            "experts of attention, whose neurons can't change places",
        ),
    ],
)
def test_what_is_not_understood(model: dict[str, tuple[int, ...]], settings: dict[str, object], said: str) -> None:
    with pytest.raises(MalformedError, match=re.escape(said)):
        layers(model, **settings)


def test_square_stacks_of_unknown_orientation() -> None:
    model = {f"{L}.experts.{word}": (3, 4, 4) for word in ("up_proj", "down_proj")} | ROUTER
    with pytest.raises(MalformedError, match=r"may be either \[out, in\] or \[in, out\]"):
        layers(model)


def test_a_dense_model_has_none() -> None:
    assert layers({f"{L}.gate_proj.weight": (2, 4), f"{L}.shared_experts.up_proj.weight": (2, 4)}) == {}
    assert HIDDEN != NEURONS  # else the families above would not show which axis is which
