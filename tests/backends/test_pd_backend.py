"""Test Paddle as the backend: the same bits as NumPy, in any blocks, within its budget; and the error if it's missing."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from paddle_merge import ConfigError, MergeConfig, merge
from paddle_merge.backends import engine
from paddle_merge.backends.budget import MemoryBudget
from paddle_merge.backends.engine import Engine, import_paddle
from paddle_merge.backends.masks import hash_block
from paddle_merge.backends.np_backend import NumpyBackend
from paddle_merge.dtypes import BFLOAT16, FLOAT16, FLOAT32, FLOATS
from paddle_merge.methods.paddlenlp import MERGE_TYPES, SPARSIFIERS
from paddle_merge.methods.shared.selection import select_quantile
from paddle_merge.recipe.request import Request
from tests.backends.kernels.test_bits import interesting
from tests.methods.shared.test_selection import InMemory
from tests.support.checkpoints import from_bits, read, to_bits, write
from tests.support.sweeps import few

paddle = import_paddle()

from paddle_merge.backends import pd_words  # noqa: E402 - it imports Paddle
from paddle_merge.backends.pd_backend import PaddleBackend, _hashes, block_bytes  # noqa: E402
from paddle_merge.backends.pd_host import PaddleOnHost  # noqa: E402
from paddle_merge.parsing import parse_size  # noqa: E402

BUDGET = 64 << 20
GPU = paddle.is_compiled_with_cuda() and paddle.device.cuda.device_count() > 0
needs_gpu = [pytest.mark.gpu, pytest.mark.skipif(not GPU, reason="this Paddle sees no GPU")]


def device(compute: str) -> PaddleBackend:
    """What runs on a GPU, on the CPU."""
    return PaddleBackend(compute, "cpu", BUDGET)


# --- words ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", [(0, 0), (1, 0xFFFFFFFF), (0xFFFFFFF0, 0x80000000), (0x12345678, 0x9ABCDEF0)])
def test_hashes_are_the_masks(key: tuple[int, int]) -> None:
    """With their top bit flipped, so that they compare as signed numbers."""
    got = _hashes(key, 5000).numpy().view(np.uint32) ^ np.uint32(0x80000000)
    assert (got == hash_block(key, 0, 5000)).all()


@pytest.mark.parametrize("bits", [1, 13, 16, 30])
@pytest.mark.parametrize("new", [True, False])
def test_right_shift_moves_zeros_in(bits: int, new: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also without the function that Paddle 2.6 lacks."""
    if not new:
        monkeypatch.delattr(paddle, "bitwise_right_shift", raising=False)
    values = np.array([0, 1, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 0x9ABCDEF0], np.uint32)
    got = pd_words.right_shift(paddle.to_tensor(values.view(np.int32)), bits).numpy().view(np.uint32)
    assert (got == values >> np.uint32(bits)).all()


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_division_is_rounded_right(dtype: str) -> None:
    """Paddle's own is off by one ulp for some of these."""
    generator = np.random.default_rng(0)
    x, y = generator.standard_normal((2, 100_003)).astype(dtype)
    assert (pd_words.divide(paddle.to_tensor(x), paddle.to_tensor(y)).numpy() == x / y).all()


def test_maximum_knows_its_limits() -> None:
    with pytest.raises(NotImplementedError, match="other than 0"):
        pd_words.maximum(paddle.zeros([1]), 1.0)


@pytest.mark.parametrize("compute", ["float32", "float64"])
@pytest.mark.parametrize("dtype", [BFLOAT16, FLOAT16, FLOAT32], ids=lambda dtype: dtype.name)
@pytest.mark.parametrize("make", [device, PaddleOnHost])
def test_store_rounds_as_np_does(compute: str, dtype: Any, make: Callable[[str], Any]) -> None:
    values = interesting(np.dtype(compute).type)
    expected, _ = NumpyBackend(compute).store(values.copy(), dtype)
    backend = make(compute)
    got = backend.fetch(backend.store(paddle.to_tensor(values), dtype)[0])()
    zeros = got & 0x7FFF | expected & 0x7FFF if dtype.itemsize == 2 else got  # +0 and -0 are the same
    assert ((got == expected) | (zeros == 0)).all()


@pytest.mark.parametrize("dtype", [BFLOAT16, FLOAT16], ids=lambda dtype: dtype.name)
@pytest.mark.parametrize("make", [device, PaddleOnHost])
def test_load_and_nan(dtype: Any, make: Callable[[str], Any]) -> None:
    raw = np.arange(65536, dtype=np.uint16)
    backend = make("float32")
    (row,), _, (bad,) = backend.load([raw], [dtype], False)
    with np.errstate(invalid="ignore"):
        expected = from_bits(raw if dtype == BFLOAT16 else raw.view(np.float16), dtype.name)
    np.testing.assert_array_equal(row.numpy(), expected)
    assert bool(bad)
    stored, bad = backend.store(row, dtype)
    nan = np.isnan(expected)
    got = from_bits(backend.fetch(stored)().view("<u2" if dtype == BFLOAT16 else "<f2"), dtype.name)
    assert np.isnan(got[nan]).all()
    np.testing.assert_array_equal(got[~nan], expected[~nan])
    assert bool(bad)
    for value, is_bad in ((1.0, False), (np.inf, True), (np.nan, True)):
        raw = to_bits(np.array([0.0, value]), dtype.name).view("<u2")
        assert [bool(one) for one in backend.load([raw, raw[:1].repeat(2)], [dtype, dtype], True)[2]] == [is_bad, False]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("capacity", few([64, 7, 1 << 22]))
@pytest.mark.parametrize("q", few([0.3, 0.0, 0.999, 1.0], 2))
def test_quantiles_are_nps(dtype: str, capacity: int, q: float) -> None:
    """Also those of numbers so small that Paddle's == takes them all for equal, of ties, and with NaN and Inf."""
    generator = np.random.default_rng(0)
    ordinary = generator.standard_normal((2, 20_000))
    ordinary[0, ::3] = np.round(ordinary[0, ::3], 1)
    ordinary[1, 5], ordinary[1, 7] = np.nan, -np.inf
    for rows in (ordinary.astype(dtype), (1e-9 * ordinary[:, :3000]).astype(dtype)):
        narrow = dtype == "float32"
        expected = select_quantile(InMemory(rows, narrow), NumpyBackend(dtype), q, capacity)  # type: ignore[arg-type]

        class Rows(InMemory):
            def deltas(self) -> Any:
                for start, x in super().deltas():
                    yield start, [paddle.to_tensor(row) for row in x]

        got = select_quantile(Rows(rows, narrow), device(dtype), q, capacity)  # type: ignore[arg-type]
        assert [repr(cut) for cut in got] == [repr(cut) for cut in expected]


def test_the_caller_gets_paddle_back_as_it_was() -> None:
    parameter = paddle.ones([3])
    parameter.stop_gradient = False
    backend = device("float32")
    with backend.at_work():
        assert (parameter * 2.0).stop_gradient
    assert not (parameter * 2.0).stop_gradient
    with pytest.raises(ZeroDivisionError), backend.at_work():
        raise ZeroDivisionError
    assert not (parameter * 2.0).stop_gradient
    assert paddle.device.get_device() == "cpu"


# --- merges -----------------------------------------------------------------------------------------------------------


def models(tmp_path: Path, dtype: str, count: int, size: int = 40_003) -> tuple[str, list[str]]:
    generator = np.random.default_rng(0)

    def stored(values: np.ndarray) -> np.ndarray:
        return from_bits(to_bits(values, dtype), dtype)

    base = {"w": stored(generator.standard_normal(size)), "b": stored(generator.standard_normal((3, 5)))}
    paths = [str(write(tmp_path / "base", base, dtype))]
    for number in range(count):
        model = {name: stored(values + 0.1 * generator.standard_normal(values.shape)) for name, values in base.items()}
        paths.append(str(write(tmp_path / f"m{number}", model, dtype)))
    return paths[0], paths[1:]


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32", "float64", "float8_e4m3fn"])
@pytest.mark.parametrize("merge_type", MERGE_TYPES)
@pytest.mark.parametrize("sparsify", ["none", *SPARSIFIERS])
def test_pd_gives_nps_bytes(
    tmp_path: Path, sparsify: str, merge_type: str, dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On the CPU, and as on a device in blocks of three sizes."""
    base, paths = models(tmp_path, dtype, 2 if merge_type == "slerp" else 3)
    fields: dict[str, Any] = {"sparsify_type": sparsify, "merge_type": merge_type, "base_model_path": base, "seed": 5}
    if merge_type == "ties":
        fields |= {"ties_zero_sign": "majority", "weight_list": [1.0, 0.3, 2.0]}

    def run(name: str) -> bytes:
        merge(MergeConfig(model_path_list=paths, output_path=str(tmp_path / name), **fields))
        return (tmp_path / name / "model.safetensors").read_bytes()

    expected = run("np")
    monkeypatch.setattr(Engine, "backend", lambda _, compute: PaddleOnHost(compute))
    assert run("host") == expected
    monkeypatch.setattr(Engine, "backend", lambda _, compute: device(compute))
    for block in (1 << 10, 1 << 14, 1 << 20):
        monkeypatch.setattr(PaddleBackend, "block", lambda _self, _models, block=block: block)
        assert run(f"block {block}") == expected


@pytest.mark.exhaustive
@pytest.mark.parametrize("workers", [2, 1, 3])
def test_command_line(tmp_path: Path, workers: int) -> None:
    """Real workers: the bytes of np, for any number; and the command itself never imports Paddle."""
    base, paths = models(tmp_path, "bfloat16", 3)
    code = "import sys; from paddle_merge.commands.main import main\n"
    code += "try: main(sys.argv[1:])\nfinally: print('paddle' in sys.modules)"
    outputs = {}
    for name, flags in {"np": ["np"], "pd": ["pd", "--n_process", str(workers)]}.items():
        command = [sys.executable, "-c", code, "--merge_method", "dare_ties", "--model_path_list", *paths]
        command += ["--base_model_path", base, "--output_path", str(tmp_path / name), "--tensor_type", *flags]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert done.stdout == "False\n"
        assert "Warning" not in done.stderr
        outputs[name] = (tmp_path / name / "model.safetensors").read_bytes()
    assert outputs["np"] == outputs["pd"]


@pytest.mark.parametrize("error", few(["RuntimeError('no\\nluck')", "OSError('libcuda.so')"]))
def test_a_paddle_that_does_not_start(tmp_path: Path, error: str) -> None:
    """One sentence, from the worker that met it."""
    _, paths = models(tmp_path, "bfloat16", 2)
    (tmp_path / "broken" / "paddle").mkdir(parents=True)
    (tmp_path / "broken" / "paddle" / "__init__.py").write_text(f"raise {error}")
    path = os.pathsep.join([str(tmp_path / "broken"), str(Path(__file__).parents[2])])
    command = [sys.executable, "-m", "paddle_merge", "--model_path_list", *paths, "--output_path", str(tmp_path / "out")]
    done = subprocess.run(
        [*command, "--tensor_type", "pd", "--quiet"], capture_output=True, text=True, env={**os.environ, "PYTHONPATH": path}
    )
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: --tensor_type pd --device cpu: can't be used here (")
    assert not (tmp_path / "out").exists()


def test_nan_and_overflow_are_noticed(
    tmp_path: Path, each_backend: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = np.zeros(40_000)
    bad, large = values.copy(), np.full(40_000, 60000.0)
    bad[33_333] = np.nan
    paths = [str(write(tmp_path / "a", {"w": values, "v": large}, "float16"))]
    paths.append(str(write(tmp_path / "b", {"w": bad, "v": large}, "float16")))
    with caplog.at_level(logging.WARNING, "paddle_merge"):
        merge(MergeConfig(model_path_list=paths, output_path=str(tmp_path / "out"), weight_list=[1.0, 1.0], normalize=False))
    assert [record.getMessage() for record in caplog.records] == [
        f"tensor 'w' holds NaN or Inf in {paths[1]}",
        "tensor 'v' overflows float16: it holds Inf or NaN in the output",
    ]
    result = read(tmp_path / "out")
    assert np.isnan(result["w"][33_333])
    assert np.isfinite(np.delete(result["w"], 33_333)).all()
    assert np.isinf(result["v"]).all()


# --- memory -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("compute", ["float32", "float64"])
@pytest.mark.parametrize("count", [2, 3, 8])
def test_blocks_fill_the_budget_and_no_more(compute: str, count: int) -> None:
    for budget in (1 << 26, 1 << 29, 3 << 30, 80 << 30):
        block = PaddleBackend(compute, "cpu", budget).block(count)
        assert block & (block - 1) == 0
        rows = block_bytes(np.dtype(compute).itemsize, count)
        assert block == 1024 or block * rows <= budget
        if budget >= 1 << 29:
            assert block == MemoryBudget.device_block or block * rows * 4 > budget


@pytest.mark.skipif(
    not hasattr(paddle.base.core, "host_memory_stat_reset_peak_value"), reason="Paddle 2.6 can't reset what it counts"
)
@pytest.mark.parametrize("merge_type", few(sorted(MERGE_TYPES, reverse=True)))
@pytest.mark.parametrize("sparsify", few([*SPARSIFIERS, "none"]))
@pytest.mark.parametrize("dtype", few(["bfloat16", "float32"]))
def test_what_paddle_allocates_stays_within_the_budget(
    tmp_path: Path, sparsify: str, merge_type: str, dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Paddle counts on the CPU too what it allocates for tensors; the tensor is several times the budget."""
    core = paddle.base.core
    count = 2 if merge_type == "slerp" else 3
    base, paths = models(tmp_path, dtype, count, 1 << 21)
    budget = 112 << 20 if dtype == "float32" else 80 << 20
    monkeypatch.setattr(Engine, "backend", lambda _, compute: PaddleBackend(compute, "cpu", budget))
    block = PaddleBackend("float32" if dtype == "bfloat16" else "float64", "cpu", budget).block(count)
    assert block * 4 <= 1 << 21
    before = core.host_memory_stat_current_value("Allocated", 0)
    core.host_memory_stat_reset_peak_value("Allocated", 0)
    fields: dict[str, Any] = {"ties_zero_sign": "majority"} if merge_type == "ties" else {}
    fields |= {"sparsify_type": sparsify, "merge_type": merge_type, "base_model_path": base}
    merge(MergeConfig(model_path_list=paths, output_path=str(tmp_path / "out"), **fields))
    assert core.host_memory_stat_peak_value("Allocated", 0) - before <= budget


# --- what isn't there -------------------------------------------------------------------------------------------------


def refusal(**fields: Any) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        Request.of(MergeConfig(model_path_list=["a", "b"], **fields)).checked_recipe()
    return caught.value.problems


@pytest.mark.skipif(paddle.is_compiled_with_cuda(), reason="this Paddle is built with CUDA")
@pytest.mark.parametrize("name", ["gpu", "gpu:1", "low_gpu_mem"])
def test_a_paddle_without_cuda(name: str) -> None:
    (problem,) = refusal(tensor_type="pd", device=name)
    assert problem.startswith(f"--device {name}: this PaddlePaddle {paddle.__version__} is built without CUDA; install")


@pytest.mark.parametrize("name", ["npu", "xpu:0"])
def test_other_devices_that_are_not_there(name: str) -> None:
    (problem,) = refusal(tensor_type="pd", device=name)
    assert f"sees no {name[:3]}; install its build" in problem


def test_no_gpu_and_no_such_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """As a machine with a CUDA build sees it."""
    monkeypatch.setattr(paddle, "is_compiled_with_cuda", lambda: True)
    monkeypatch.setattr(paddle.device.cuda, "device_count", lambda: 0)
    (problem,) = refusal(tensor_type="pd", device="gpu")
    assert "sees no GPU" in problem
    monkeypatch.setattr(paddle.device.cuda, "device_count", lambda: 2)
    (problem,) = refusal(tensor_type="pd", device="gpu:2")
    assert problem == "--device gpu:2: there is no such device; Paddle sees gpu:0, gpu:1"
    Request.of(MergeConfig(model_path_list=["a", "b"], tensor_type="pd", device="low_gpu_mem:1")).checked_recipe()


def test_no_paddle(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine.importlib.util, "find_spec", lambda _: None)
    (problem,) = refusal(tensor_type="pd")
    assert problem.endswith("python -m pip install paddlepaddle")


@pytest.mark.parametrize("name", ["cuda", "gpu:", "gpu:x", "gpu:-1", "cpu:0", "", "GPU", "gpu:1:2"])
def test_names_that_are_no_device(name: str) -> None:
    for tensor_type in ("np", "pd"):
        (problem,) = refusal(tensor_type=tensor_type, device=name)
        assert problem.startswith(f"--device {name!r} must be one of cpu, gpu, low_gpu_mem, xpu, npu")


def test_too_small_a_budget() -> None:
    (problem,) = refusal(tensor_type="pd", max_tensor_mem=0.01)
    assert problem == "--max_tensor_mem 0.01 (GiB) must be at least 0.0625"


def test_np_computes_on_the_cpu_whatever_the_device(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    base, paths = models(tmp_path, "bfloat16", 2)
    with caplog.at_level(logging.WARNING, "paddle_merge"):
        merge(MergeConfig(model_path_list=paths, base_model_path=base, output_path=str(tmp_path / "out"), device="gpu"))
    assert "--device gpu has no effect: np computes on the CPU" in caplog.text


def test_workers_are_spread_over_the_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """And share what each has."""
    monkeypatch.setattr(engine, "visible_devices", lambda _: ["0", "1", "2"])
    low = [Engine("pd", "low_gpu_mem", 1200, worker, 4)._device_and_budget() for worker in range(4)]
    assert low == [("gpu:0", 600), ("gpu:1", 600), ("gpu:2", 600), ("gpu:0", 600)]
    assert Engine("pd", "low_gpu_mem:1", 1200, 2, 3)._device_and_budget() == ("gpu:1", 400)
    assert Engine("pd", "npu", 1200, 2, 3)._device_and_budget() == ("npu:2", 1200)


def test_the_launcher_says_which_gpus_are_this_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(paddle, "is_compiled_with_cuda", lambda: True)
    monkeypatch.setattr(paddle.device.cuda, "device_count", lambda: 8)
    monkeypatch.setenv("FLAGS_selected_gpus", "3,5")
    assert engine.visible_devices("gpu") == engine.visible_devices("low_gpu_mem") == ["3", "5"]
    monkeypatch.setattr(paddle.device.cuda, "device_count", lambda: 0)
    assert engine.visible_devices("gpu") == []


def test_too_many_workers_for_the_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "visible_devices", lambda _: ["0", "1"])
    config = MergeConfig(model_path_list=["a", "b"], tensor_type="pd", device="low_gpu_mem", n_process=16)
    assert Request.of(config).problems == ()
    (problem,) = refusal(tensor_type="pd", device="low_gpu_mem", n_process=17)
    assert problem.startswith(
        "--max_tensor_mem 0.5 leaves 0.0556 GiB to each of 9 workers on a device, and they need 0.0625"
    )


# --- on a GPU ---------------------------------------------------------------------------------------------------------


class TestOnGpu:
    pytestmark = needs_gpu

    @pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32", "float64", "float8_e4m3fn"])
    @pytest.mark.parametrize("merge_type", MERGE_TYPES)
    @pytest.mark.parametrize("sparsify", ["none", *SPARSIFIERS])
    def test_within_an_ulp_of_np(
        self, tmp_path: Path, sparsify: str, merge_type: str, dtype: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        base, paths = models(tmp_path, dtype, 2 if merge_type == "slerp" else 3, 300_001)
        results = []
        for tensor_type, name in (("np", "cpu"), ("pd", "gpu"), ("pd", "low_gpu_mem")):
            out = tmp_path / name
            config = MergeConfig(
                model_path_list=paths, base_model_path=base, output_path=str(out), max_tensor_mem=1 / 16,
                sparsify_type=sparsify, merge_type=merge_type, tensor_type=tensor_type, device=name,
            )  # fmt: skip
            merge(config)
            results.append(read(out))
        for name, values in results[0].items():
            bits = {"bfloat16": 7, "float16": 10, "float32": 23, "float64": 52, "float8_e4m3fn": 3}[dtype]
            smallest = -6 if dtype == "float8_e4m3fn" else -1022
            ulp = np.ldexp(1.0, np.maximum(np.frexp(np.abs(values))[1] - 1, smallest) - bits)
            assert (np.abs(results[1][name] - values) <= ulp).all()
            assert (results[1][name] == results[2][name]).all()

    @pytest.mark.parametrize("dtype", ["float8_e4m3fn", "float8_e5m2"])
    def test_every_float8(self, dtype: str) -> None:
        """Reading every code, and storing it and values around it, gives the same as on the CPU."""
        codes, there = np.arange(256, dtype=np.uint8), PaddleBackend("float32", "gpu:0", 1 << 30)
        (expected,), _, _ = NumpyBackend("float32").load([codes], [FLOATS[dtype]], False)
        numbers = np.unique(expected[np.isfinite(expected)])
        points = np.concatenate([numbers, (numbers[1:] + numbers[:-1]) / 2, np.float32([1e-40, 464, 465, 61440, 1e30])])
        values = np.concatenate([points, np.nextafter(points, np.float32(1e38)), np.nextafter(points, np.float32(-1e38))])
        with there.at_work():
            (got,), _, _ = there.load([codes], [FLOATS[dtype]], False)
            stored, bad = there.store(there.constant(values), FLOATS[dtype])
            raw = there.fetch(stored)()
        np.testing.assert_array_equal(got.numpy(), expected)
        assert bool(bad)
        assert (raw == NumpyBackend("float32").store(values, FLOATS[dtype])[0]).all()

    def test_hashes(self) -> None:
        backend = PaddleBackend("float32", "gpu:0", 1 << 30)
        with backend.at_work():
            got = _hashes((0xFFFFFFF0, 0x80000000), 1 << 20).numpy().view(np.uint32) ^ np.uint32(0x80000000)
        assert (got == hash_block((0xFFFFFFF0, 0x80000000), 0, 1 << 20)).all()

    def test_peak_stays_within_the_budget(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        base, paths = models(tmp_path, "bfloat16", 3, 20_000_000)
        fields: dict[str, Any] = {"tensor_type": "pd", "device": "low_gpu_mem", "max_tensor_mem": 0.25}
        with caplog.at_level(logging.INFO, "paddle_merge"):
            merge(
                MergeConfig(
                    model_path_list=paths,
                    base_model_path=base,
                    output_path=str(tmp_path / "o"),
                    merge_method="ties",
                    **fields,
                )
            )
        (line,) = [record.getMessage() for record in caplog.records if "device memory" in record.getMessage()]
        assert 0 < parse_size("".join(line.split()[4:6])) <= 0.25 * 2**30
