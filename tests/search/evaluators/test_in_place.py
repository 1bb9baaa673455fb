"""Test where tensors of a checkpoint lie in a model: found by values, and never assumed."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from paddle_merge.search.evaluators.libraries.in_place import Place, learn

TALL, SQUARE = np.arange(6.0).reshape(3, 2), np.arange(4.0).reshape(2, 2)


class Model:
    """Parameters as arrays."""

    def __init__(self, **parameters: np.ndarray):
        self.parameters = {name.replace("__", "."): value.copy() for name, value in parameters.items()}

    def slots(self) -> Mapping[str, np.ndarray]:
        return self.parameters

    def holds(self, slot: np.ndarray, values: np.ndarray) -> bool:
        return np.array_equal(slot, values)

    def put(self, slot: np.ndarray, values: np.ndarray) -> None:
        slot[:] = values


def test_tensors_are_found_straight_or_turned_behind_another_prefix() -> None:
    model = Model(llama__a__w=TALL.T, llama__b__w=SQUARE.T, head=np.ones(2))
    tensors = {"model.a.w": TALL, "model.b.w": SQUARE, "head": np.ones(2), "unused": np.zeros(1)}
    places = learn(model, tensors)
    assert places is not None
    assert places.places == {
        "model.a.w": Place("llama.a.w", True),
        "model.b.w": Place("llama.b.w", True),
        "head": Place("head", False),
    }
    assert places.put(model, {**tensors, "model.b.w": 2 * SQUARE})
    np.testing.assert_array_equal(model.parameters["llama.b.w"], [[0, 4], [2, 6]])
    np.testing.assert_array_equal(model.parameters["llama.a.w"], TALL.T)


def test_what_is_not_certain_is_not_learnt() -> None:
    symmetric = np.array([[1.0, 2.0], [2.0, 1.0]])
    assert learn(Model(w=symmetric), {"w": symmetric}) is None  # it could lie either way
    assert learn(Model(w=SQUARE), {"w": 2 * SQUARE}) is None  # other values
    assert learn(Model(w=SQUARE, v=SQUARE), {"w": SQUARE}) is None  # a parameter from elsewhere
    assert learn(Model(x__w=SQUARE), {"a.w": SQUARE, "b.w": SQUARE, "a.v.w": SQUARE}) is None
    assert learn(Model(), {"w": SQUARE}) is None  # a model that tells of none


def test_tensors_that_differ_in_names_or_shapes_change_nothing() -> None:
    model = Model(w=SQUARE)
    places = learn(model, {"w": SQUARE})
    assert places is not None
    assert not places.put(model, {"w": np.zeros((2, 3))})
    assert not places.put(model, {"w": np.zeros((2, 2)), "more": np.ones(1)})
    assert not places.put(model, {})
    np.testing.assert_array_equal(model.parameters["w"], SQUARE)
