"""Test the 8-bit floats: reading of every code and rounding, on each backend, and whole merges, against ml_dtypes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from paddle_merge import CheckpointError, ConfigError, MergeConfig, merge, merge_state_dicts
from paddle_merge.backends.engine import import_paddle
from paddle_merge.backends.np_backend import NumpyBackend
from paddle_merge.dtypes import FLOATS
from paddle_merge.methods.paddlenlp import METHODS
from tests.support.checkpoints import FLOAT8, dtypes, from_bits, read, to_bits, write

paddle = import_paddle()
from paddle_merge.backends.pd_backend import PaddleBackend  # noqa: E402 - Paddle must have been imported as above
from paddle_merge.backends.pd_host import PaddleOnHost  # noqa: E402

CODES = np.arange(256, dtype=np.uint8)
BACKENDS = {"np": NumpyBackend, "pd": PaddleOnHost, "pd device": lambda compute: PaddleBackend(compute, "cpu", 0)}
each = pytest.mark.parametrize("backend", BACKENDS)
each_dtype = pytest.mark.parametrize("dtype", FLOAT8)


def store(backend: str, values: np.ndarray, dtype: str) -> tuple[np.ndarray, bool]:
    one = BACKENDS[backend](values.dtype.name)  # type: ignore[operator]
    given = values.copy() if backend == "np" else paddle.to_tensor(values)
    raw, bad = one.store(given, FLOATS[dtype])
    return np.array(raw), bool(bad)


def finite(dtype: str) -> np.ndarray:
    """All numbers of an 8-bit float, ascending, once each (zero, too)."""
    values = from_bits(CODES, dtype)
    return np.unique(values[np.isfinite(values)])


@each
@each_dtype
@pytest.mark.parametrize("compute", ["float32", "float64"])
def test_every_code_loads_and_comes_back(backend: str, dtype: str, compute: str) -> None:
    (values,), _, bad = BACKENDS[backend](compute).load([CODES], [FLOATS[dtype]], False)  # type: ignore[operator]
    assert [bool(one) for one in bad] == [True]
    values, expected = np.array(values), from_bits(CODES, dtype)
    assert values.dtype == compute
    np.testing.assert_array_equal(values, expected)
    nan = np.isnan(expected)
    assert (np.signbit(values) == np.signbit(expected))[~nan].all()
    raw, bad = store(backend, values, dtype)
    assert bad
    assert (raw == CODES)[~nan].all()
    assert np.isnan(from_bits(raw, dtype)[nan]).all()


@each
@each_dtype
def test_stores_float32_as_ml_dtypes_does(backend: str, dtype: str) -> None:
    """Every number, every middle between two, their neighbours in float32, and random bits: to the same code."""
    numbers = finite(dtype).astype(np.float32)
    middles = (numbers[1:] + numbers[:-1]) / 2
    points = np.concatenate([numbers, middles, [464, 480, 61440, 65536, 1e-38, np.inf, -np.inf]]).astype(np.float32)
    with np.errstate(over="ignore"):
        around = [points, np.nextafter(points, np.float32(np.inf)), np.nextafter(points, np.float32(-np.inf))]
    random = np.random.default_rng(0).integers(0, 2**32, 1 << 18, dtype=np.uint32).view(np.float32)
    values = np.concatenate([*around, random, np.random.default_rng(1).standard_normal(1 << 16).astype(np.float32)])
    values = values[~np.isnan(values)]
    raw, _ = store(backend, values, dtype)
    with np.errstate(all="ignore"):
        expected = values.astype(FLOAT8[dtype]).view(np.uint8)
    assert (raw == expected).all()


@each
@each_dtype
def test_float64_is_rounded_once(backend: str, dtype: str) -> None:
    """A hair's breadth off a middle it goes to the nearer number. (ml_dtypes goes through float32, to the middle itself.)"""
    numbers = finite(dtype)
    middles = (numbers[1:] + numbers[:-1]) / 2
    up, _ = store(backend, middles + 1e-12 * np.abs(middles), dtype)
    down, _ = store(backend, middles - 1e-12 * np.abs(middles), dtype)
    assert (from_bits(up, dtype) == numbers[1:]).all()
    assert (from_bits(down, dtype) == numbers[:-1]).all()
    even, _ = store(backend, middles, dtype)
    assert (even == to_bits(middles, dtype)).all()  # middles are float32 numbers
    assert (even % 2 == 0).all()


@each
@pytest.mark.parametrize(
    ("dtype", "value", "code"),
    [  # OCP 8-bit Floating Point Specification, table 1, and its rounding without saturation
        ("float8_e4m3fn", 448, 0b0_1111_110),
        ("float8_e4m3fn", 464, 0b0_1111_110),
        ("float8_e4m3fn", 464.5, 0b0_1111_111),
        ("float8_e4m3fn", -1e9, 0b1_1111_111),
        ("float8_e4m3fn", 2.0**-6, 0b0_0001_000),
        ("float8_e4m3fn", 2.0**-9, 0b0_0000_001),
        ("float8_e4m3fn", 2.0**-10, 0b0_0000_000),
        ("float8_e4m3fn", 3 * 2.0**-10, 0b0_0000_010),
        ("float8_e5m2", 57344, 0b0_11110_11),
        ("float8_e5m2", 61439, 0b0_11110_11),
        ("float8_e5m2", 61440, 0b0_11111_00),
        ("float8_e5m2", -np.inf, 0b1_11111_00),
        ("float8_e5m2", 2.0**-14, 0b0_00001_00),
        ("float8_e5m2", 2.0**-16, 0b0_00000_01),
        ("float8_e5m2", -(2.0**-17), 0b1_00000_00),
    ],
)
def test_numbers_of_the_specification(backend: str, dtype: str, value: float, code: int) -> None:
    for compute in ("float32", "float64"):
        raw, bad = store(backend, np.array([0, value], compute), dtype)
        assert raw.tolist() == [0, code]
        assert bad == (not np.isfinite(from_bits(raw, dtype)).all())


@each_dtype
def test_nan_and_inf_are_noticed(dtype: str) -> None:
    for code in range(256):
        raw = np.array([0] * 1500 + [code] + [0] * 500, np.uint8)
        bad = NumpyBackend("float32").load([raw], [FLOATS[dtype]], False)[2]
        assert bad == [not np.isfinite(from_bits(raw, dtype)).all()], code


SHAPES = {"w": (90, 800), "bias": (7,), "scalar": (), "none": (0, 3)}


def states(dtype: str, count: int) -> list[dict[str, np.ndarray]]:
    """Arrays of ml_dtypes."""
    generator = np.random.default_rng(0)
    base = {name: generator.standard_normal(shape) for name, shape in SHAPES.items()}
    return [
        {
            name: np.asarray(values + 0.2 * number * generator.standard_normal(values.shape), np.float32).astype(
                FLOAT8[dtype]
            )
            for name, values in base.items()
        }
        for number in range(count)
    ]


def as_paddle(state: dict[str, np.ndarray]) -> dict[str, Any]:
    return {name: paddle.to_tensor(x.view(np.uint8)).view(x.dtype.name) for name, x in state.items()}


@each_dtype
@pytest.mark.parametrize("method", METHODS)
def test_files_arrays_and_tensors_merge_to_the_same(tmp_path: Path, method: str, dtype: str) -> None:
    base, *models = states(dtype, 3)

    def on_disk(name: str, state: dict[str, np.ndarray]) -> str:
        return str(write(tmp_path / name, {key: x.astype(np.float64) for key, x in state.items()}, dtype))

    paths = [on_disk(f"m{number}", model) for number, model in enumerate(models)]
    config = MergeConfig(merge_method=method, model_path_list=paths, base_model_path=on_disk("base", base))
    config.output_path = str(tmp_path / "out")
    merge(config)
    expected = read(tmp_path / "out")
    assert set(dtypes(tmp_path / "out").values()) == {dtype}
    arrays = merge_state_dicts(models, MergeConfig(merge_method=method), base=base)
    tensors = merge_state_dicts(
        [as_paddle(model) for model in models], MergeConfig(merge_method=method, tensor_type="pd"), base=as_paddle(base)
    )
    for name, values in expected.items():
        assert arrays[name].dtype == FLOAT8[dtype]
        assert str(tensors[name].dtype) == f"paddle.{dtype}"
        assert arrays[name].shape == tuple(tensors[name].shape) == values.shape
        assert arrays[name].astype(float).tolist() == values.tolist()
        assert from_bits(tensors[name].view("uint8").numpy(), dtype).tolist() == values.tolist()


@each_dtype
def test_out_dtype(tmp_path: Path, dtype: str) -> None:
    """From float32, by way of float64: rounded once. Arrays hold bits, as NumPy alone has no such numbers."""
    values = [np.random.default_rng(seed).standard_normal((50, 60)).astype(np.float32) for seed in range(2)]
    paths = [str(write(tmp_path / name, {"w": x, "ids": np.arange(3)})) for name, x in zip("ab", values, strict=True)]
    merge(MergeConfig(model_path_list=paths, output_path=str(tmp_path / "out"), out_dtype=dtype))
    assert dtypes(tmp_path / "out") == {"w": dtype, "ids": "int64"}
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["dtype"] == "float32"  # what to compute in: transformers 5.23 can't load a model whose config says float8
    mean = (values[0].astype(np.float64) + values[1]) / 2
    numbers = finite(dtype)
    above = np.clip(np.searchsorted(numbers, mean), 1, len(numbers) - 1)
    nearest = np.where(mean - numbers[above - 1] < numbers[above] - mean, numbers[above - 1], numbers[above])
    assert (read(tmp_path / "out")["w"] == nearest).all()
    bits = merge_state_dicts([{"w": x} for x in values], MergeConfig(out_dtype=dtype))["w"]
    assert bits.dtype == np.uint8
    assert (from_bits(bits, dtype) == nearest).all()


def test_paddle_tensors_of_float8_need_a_paddle_that_has_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """2.6 has none."""
    states = [{"w": paddle.ones([2])}] * 2
    config = MergeConfig(tensor_type="pd", out_dtype="float8_e5m2")
    assert str(merge_state_dicts(states, config)["w"].dtype) == "paddle.float8_e5m2"
    monkeypatch.delattr(paddle, "float8_e5m2")
    with pytest.raises(ConfigError, match="out_dtype float8_e5m2: this version of Paddle has no such tensors"):
        merge_state_dicts(states, config)


@pytest.mark.usefixtures("each_backend")
@each_dtype
def test_overflow_is_reported(tmp_path: Path, dtype: str, caplog: pytest.LogCaptureFixture) -> None:
    values = {"w": np.array([1, 300.0] * 8), "large": np.array([1, 1e5] * 8)}
    path = str(write(tmp_path / "a", values, "bfloat16"))
    merge(MergeConfig(model_path_list=[path, path], output_path=str(tmp_path / "out"), out_dtype=dtype))
    assert f"tensor 'large' overflows {dtype}: it holds Inf or NaN in the output" in caplog.messages
    assert not any("'w'" in message for message in caplog.messages)


def test_float8_and_bfloat16_need_an_out_dtype(tmp_path: Path) -> None:
    a = write(tmp_path / "a", {"w": np.array([1.0, 2])}, "float8_e4m3fn")
    b = write(tmp_path / "b", {"w": np.array([2.0, 4])}, "bfloat16")
    config = MergeConfig(model_path_list=[str(a), str(b)], output_path=str(tmp_path / "out"))
    with pytest.raises(
        CheckpointError, match=r"'w' has different dtypes: float8_e4m3fn in .*the dtype of the result with --out_dtype"
    ):
        merge(config)
    config.out_dtype = "bfloat16"
    merge(config)
    assert read(tmp_path / "out")["w"].tolist() == [1.5, 3]


def test_paddle_pickles_hold_int8(tmp_path: Path) -> None:
    """What paddle.save makes of float8: never averaged."""
    paths = []
    for name in "ab":
        values = np.full(8, ord(name), np.uint8).view(ml_dtypes.float8_e4m3fn)
        (tmp_path / name).mkdir()
        paddle.save(as_paddle({"w": values}), str(tmp_path / name / "model_state.pdparams"))
        paths.append(str(tmp_path / name))
    with pytest.raises(CheckpointError, match="tensor 'w' is int8, which can't be averaged"):
        merge(MergeConfig(model_path_list=paths, output_path=str(tmp_path / "out")))
