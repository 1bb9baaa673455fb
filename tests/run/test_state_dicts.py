"""Test merges of state dicts: the same as merges of files, in NumPy and in Paddle."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from paddle_merge import CheckpointError, ConfigError, MergeConfig, WorkError, merge, merge_state_dicts
from paddle_merge.backends.engine import import_paddle
from paddle_merge.methods.paddlenlp import METHODS
from tests.support.checkpoints import from_bits, read, to_bits, write
from tests.support.sweeps import few

paddle = import_paddle()
SHAPES = {"w": (90, 800), "bias": (7,), "scalar": (), "none": (0, 3)}
State = dict[str, np.ndarray]


def states(dtype: str, count: int = 3) -> list[State]:
    """Stored elements (bfloat16 as bits), and a buffer of integers that all have in common."""
    generator = np.random.default_rng(0)
    base = {name: generator.standard_normal(shape) for name, shape in SHAPES.items()}
    result = []
    for number in range(count):
        values = {name: value + 0.1 * number * generator.standard_normal(value.shape) for name, value in base.items()}
        result.append({**{name: to_bits(value, dtype) for name, value in values.items()}, "ids": np.arange(5)})
    return result


def as_paddle(state: State) -> dict[str, Any]:
    return {name: paddle.to_tensor(values) for name, values in state.items()}


def on_disk(tmp_path: Path, state: State, dtype: str) -> str:
    values = {name: value if name == "ids" else from_bits(value, dtype) for name, value in state.items()}
    return str(write(tmp_path, values, dtype))


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32", "float64"])
@pytest.mark.parametrize("method", METHODS)
def test_the_same_as_from_files(tmp_path: Path, method: str, dtype: str) -> None:
    base, *models = states(dtype, 3)
    config = MergeConfig(
        merge_method=method,
        model_path_list=[on_disk(tmp_path / f"m{k}", model, dtype) for k, model in enumerate(models)],
        base_model_path=on_disk(tmp_path / "base", base, dtype),
        output_path=str(tmp_path / "out"),
    )
    merge(config)
    expected = read(tmp_path / "out")
    numpy = merge_state_dicts(models, MergeConfig(merge_method=method), base=base)
    tensors = merge_state_dicts(
        [as_paddle(model) for model in models], MergeConfig(merge_method=method, tensor_type="pd"), base=as_paddle(base)
    )
    assert list(numpy) == list(tensors) == list(models[0])
    for name, values in expected.items():
        assert numpy[name].dtype == models[0][name].dtype
        assert tensors[name].dtype == paddle.to_tensor(models[0][name]).dtype
        for got in (numpy[name], tensors[name].numpy()):
            assert got.shape == models[0][name].shape
            assert (got if name == "ids" else from_bits(got, dtype)).tolist() == values.tolist()


def test_inputs_are_left_as_they_are_and_outputs_share_no_memory() -> None:
    base, *models = states("float32")
    before = [{name: value.copy() for name, value in state.items()} for state in (base, *models)]
    result = merge_state_dicts(models, MergeConfig(merge_method="ties"), base=base)
    for state, copy in zip((base, *models), before, strict=True):
        for name in state:
            np.testing.assert_array_equal(state[name], copy[name])
            assert not np.shares_memory(state[name], result[name])
    tensors = [as_paddle(model) for model in models]
    merged = merge_state_dicts(tensors, MergeConfig(tensor_type="pd"))
    merged["ids"] += 1
    merged["w"] *= 0.0
    assert (tensors[0]["ids"].numpy() == np.arange(5)).all()
    assert (tensors[0]["w"].numpy() == models[0]["w"]).all()


def test_parameters_of_layers_and_back(tmp_path: Path) -> None:
    """What training leaves: tensors that want gradients."""
    layers = [paddle.nn.Linear(4, 3) for _ in range(2)]
    result = merge_state_dicts([layer.state_dict() for layer in layers], MergeConfig(tensor_type="pd"))
    assert all(tensor.stop_gradient for tensor in result.values())
    expected = (layers[0].weight.numpy().astype("f8") + layers[1].weight.numpy()) / 2
    layers[0].set_state_dict(result)
    assert (layers[0].weight.numpy() == expected.astype("f4")).all()


def test_out_dtype() -> None:
    _, *models = states("float32")
    config = MergeConfig(out_dtype="bfloat16")
    bits = merge_state_dicts(models, config)["w"]
    assert bits.dtype == np.uint16
    config.tensor_type = "pd"
    tensors = merge_state_dicts([as_paddle(model) for model in models], config)
    assert tensors["w"].dtype == tensors["none"].dtype == paddle.bfloat16
    assert (tensors["w"].numpy() == bits).all()
    assert tensors["ids"].dtype == paddle.int64


def test_arrays_of_many_kinds() -> None:
    """ml_dtypes.bfloat16, big-endian, strided and transposed arrays: as their values."""
    values = np.arange(12.0).reshape(3, 4)
    plain = merge_state_dicts([{"w": values}, {"w": values * 3}], MergeConfig())["w"]
    assert plain.tolist() == (values * 2).tolist()
    odd = [{"w": values.astype(">f8")}, {"w": (np.repeat(values, 2, 0) * 3)[::2].T.copy().T}]
    assert merge_state_dicts(odd, MergeConfig())["w"].tolist() == plain.tolist()
    short = [{"w": values.astype(ml_dtypes.bfloat16)}, {"w": (values * 3).astype(ml_dtypes.bfloat16)}]
    result = merge_state_dicts(short, MergeConfig())["w"]
    assert result.dtype == ml_dtypes.bfloat16
    assert result.astype(float).tolist() == plain.tolist()


def test_everything_wrong_is_said_together() -> None:
    a = {"w": np.zeros(3), "v": np.zeros(2), "ids": np.arange(2), "x": 1}
    with pytest.raises(CheckpointError) as caught:
        merge_state_dicts([a, {**a, "c": np.zeros(1, complex)}], MergeConfig())
    assert caught.value.problems == [
        "state_dicts[0]: tensor 'x' is a builtins.int, not a NumPy array",
        "state_dicts[1]: tensor 'x' is a builtins.int, not a NumPy array",
        "state_dicts[1]: tensor 'c' is complex128, which can't be merged",
    ]
    del a["x"]
    with pytest.raises(CheckpointError) as caught:
        merge_state_dicts(
            [a, {"w": np.zeros(4), "v": np.zeros(2, "f4"), "u": np.zeros(2), "ids": np.arange(2)}], MergeConfig()
        )
    assert caught.value.problems == [
        "tensor 'u' is missing in state_dicts[0] (it is in state_dicts[1])",
        "tensor 'w' has different shapes: [3] in state_dicts[0], [4] in state_dicts[1]",
        "tensor 'v' has different dtypes: float64 in state_dicts[0], float32 in state_dicts[1]; to merge them, give the"
        " dtype of the result with --out_dtype",
    ]
    with pytest.raises(CheckpointError, match="'ids' is int64, which can't be averaged, and differs in base"):
        merge_state_dicts([a, a], MergeConfig(), base={**a, "ids": np.arange(1, 3)})
    with pytest.raises(ConfigError, match="at least two state dicts"):
        merge_state_dicts(iter([a]), MergeConfig())  # type: ignore[arg-type]
    for odd in (None, [1], paddle.nn.Linear(2, 2)):
        with pytest.raises(CheckpointError, match="is no state dict"):
            merge_state_dicts([a, odd], MergeConfig())  # type: ignore[list-item]
    with pytest.raises(CheckpointError) as caught:
        merge_state_dicts([{1: np.ones(3)}, a], MergeConfig())  # type: ignore[dict-item]
    assert caught.value.problems == ["state_dicts[0]: the name 1 is not text"]
    sparse = paddle.sparse.sparse_coo_tensor([[0, 1]], [1.0, 2.0], [3])
    with pytest.raises(CheckpointError, match="is sparse or distributed"):
        merge_state_dicts([{"a": sparse}] * 2, MergeConfig(tensor_type="pd"))
    with pytest.raises(ConfigError, match="pass its state dict as base"):
        merge_state_dicts([a, a], MergeConfig(base_model_path="somewhere"))
    with pytest.raises(ConfigError, match="--weight_list has 1 numbers for 2 models"):
        merge_state_dicts([a, a], MergeConfig(weight_list=[1.0]))
    with pytest.raises(ConfigError, match="recipe_yaml names checkpoints, which are not read here"):
        merge_state_dicts([a, a], MergeConfig(recipe_yaml="merge_method: linear"))
    with pytest.raises(CheckpointError, match=r'is a numpy\.ndarray, not a Paddle tensor; leave out tensor_type="pd"'):
        merge_state_dicts([a, a], MergeConfig(tensor_type="pd"))
    for tensors in ({"w": paddle.zeros([2])}, paddle.nn.Linear(2, 2).state_dict()):
        with pytest.raises(CheckpointError, match=r'not a NumPy array; pass tensor_type="pd"'):
            merge_state_dicts([tensors] * 2, MergeConfig())
    foreign = type("Tensor", (), {"__module__": "torch"})()
    with pytest.raises(
        CheckpointError, match=r"is a torch\.Tensor, not a NumPy array; pass tensor\.detach\(\)\.cpu\(\)\.numpy\(\)"
    ):
        merge_state_dicts([{"w": foreign}] * 2, MergeConfig())


def test_nan_is_warned_of_or_refused(caplog: pytest.LogCaptureFixture) -> None:
    models = [{"w": np.array([1.0, np.nan])}, {"w": np.zeros(2)}]
    with caplog.at_level(logging.WARNING, "paddle_merge"):
        merge_state_dicts(models, MergeConfig())
    assert caplog.messages == ["tensor 'w' holds NaN or Inf in state_dicts[0]"]
    with pytest.raises(WorkError, match="holds NaN or Inf in state_dicts"):
        merge_state_dicts(models, MergeConfig(strict=True))


def test_vocabularies_need_tokenizers() -> None:
    rows = {"model.embed_tokens.weight": np.ones((4, 3), np.float32)}
    with pytest.raises(ConfigError, match="tokenizer_source can't align state dicts"):
        merge_state_dicts([rows, rows], MergeConfig(tokenizer_source="union"))


def test_static_mode_is_refused() -> None:
    """Looking at a tensor there can crash the process."""
    tensors = [{"w": paddle.ones([2])}] * 2
    paddle.enable_static()
    try:
        with pytest.raises(ConfigError, match="static mode"):
            merge_state_dicts(tensors, MergeConfig(tensor_type="pd"))
    finally:
        paddle.disable_static()


def test_empty_tensors_of_paddles_own_making() -> None:
    tensors = {"w": paddle.zeros([0, 3]), "ids": paddle.zeros([0], "int64")}
    result = merge_state_dicts([tensors] * 2, MergeConfig(tensor_type="pd"))
    assert [list(result[name].shape) for name in tensors] == [[0, 3], [0]]
    assert [result[name].dtype for name in tensors] == [paddle.float32, paddle.int64]


@pytest.mark.parametrize("shared", few([True, False]))
@pytest.mark.parametrize("kind", few(["pd", "np"]))
def test_copies_stay_copies(tmp_path: Path, kind: str, shared: bool) -> None:
    """One tensor under two names, as a tied layer's state dict has it, or an equal one; and what files give."""
    base, *models = states("bfloat16")
    for state in (base, *models):
        state["copy"] = state["w"] if shared else state["w"].copy()
        state["other"] = state["w"] ^ np.uint16(1)  # of the same shape, and not equal
    paths = [on_disk(tmp_path / f"m{k}", state, "bfloat16") for k, state in enumerate((base, *models))]
    fields: dict[str, Any] = {"merge_method": "dare_linear", "tensor_type": kind}
    merge(MergeConfig(model_path_list=paths[1:], base_model_path=paths[0], output_path=str(tmp_path / "out"), **fields))
    given = [base, *models]
    if kind == "pd":
        given = [as_paddle(state) for state in given]
        for state in given if shared else ():
            state["copy"] = state["w"]
    merged = merge_state_dicts(given[1:], MergeConfig(**fields), base=given[0])
    result = {name: np.asarray(value if kind == "np" else value.numpy()) for name, value in merged.items()}
    np.testing.assert_array_equal(result["copy"], result["w"])
    assert (result["other"] != result["w"] ^ np.uint16(1)).mean() > 0.1  # it has masks of its own
    for name, values in read(tmp_path / "out").items():
        np.testing.assert_array_equal(values, result[name] if name == "ids" else from_bits(result[name], "bfloat16"))


def test_tie_is_refused_for_state_dicts() -> None:
    base, *models = states("float32")
    with pytest.raises(ConfigError, match="tie 'untie': state dicts are merged as they are"):
        merge_state_dicts(models, MergeConfig(tie="untie"), base=base)


def test_missing_tensors_is_refused_for_state_dicts() -> None:
    with pytest.raises(ConfigError, match="missing_tensors 'union' is for checkpoints: state dicts must have the same"):
        merge_state_dicts([{"a": np.ones(2)}, {}], MergeConfig(missing_tensors="union"))
