"""Select what computes: NumPy on the CPU, or Paddle on a device. Paddle is imported only if it is to compute, or to look for
a device that the command names."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import warnings
from typing import Any

from ..parsing import nearest
from ..records import record
from .backend import Backend
from .budget import DEFAULT_BUDGET, MemoryBudget
from .machine import cores

GIB = 1 << 30
LEAST = 1 / 16  # GiB: below this, tables and a few blocks don't fit
SHARE = 0.7  # of a GPU's memory that blocks may take; the rest is for CUDA itself and for what others do there
DEVICES = ("cpu", "gpu", "low_gpu_mem", "xpu", "npu")


@record(frozen=True)
class Engine:
    """What one process computes with.

    tensor_type, device: as in MergeConfig. memory: bytes of each device's memory that low_gpu_mem may take.
    worker, workers: the number of this process, from 0, and how many there are at most on this machine (in this rank, if
    there are several). budget: how much of the host's memory each may take.
    """

    tensor_type: str = "np"
    device: str = "cpu"
    memory: int = GIB // 2
    worker: int = 0
    workers: int = 1
    budget: MemoryBudget = DEFAULT_BUDGET

    @property
    def on_cpu(self) -> bool:
        """Whether no device but the CPU is used."""
        return self.tensor_type == "np" or self.device == "cpu"

    @property
    def budgeted(self) -> bool:
        """Whether `memory` is the limit; on a "gpu" it is what the GPU has."""
        return not self.on_cpu and self.device.partition(":")[0] != "gpu"

    def backend(self, compute: str) -> Backend:
        """Return the backend for a compute dtype, "float32" or "float64". Imports Paddle if it computes."""
        if self.tensor_type == "np":
            from .np_backend import NumpyBackend

            return NumpyBackend(compute, self.budget)
        import_paddle()
        if self.on_cpu:
            from .pd_host import PaddleOnHost

            return PaddleOnHost(compute, self.budget)
        from .pd_backend import PaddleBackend

        name, budget = self._device_and_budget()
        return PaddleBackend(compute, name, budget, self.budget)

    def sharing(self, visible: list[str]) -> int:
        """Return how many workers share a device. visible: the numbers of all devices."""
        return self.workers if ":" in self.device else -(-self.workers // len(visible))

    def settle(self) -> None:
        """Make this engine's device the one that Paddle computes on in this process from now on."""
        if self.tensor_type == "pd":
            import_paddle().device.set_device("cpu" if self.on_cpu else self._device_and_budget()[0])

    def _device_and_budget(self) -> tuple[str, int]:
        """Return the device that this worker computes on, "gpu:1", and the bytes of its memory that it may take."""
        kind, _, number = self.device.partition(":")
        visible = visible_devices(kind)
        mine = number or visible[self.worker % len(visible)]
        sharing = self.sharing(visible)
        memory = self.memory
        if not self.budgeted:
            import paddle

            memory = int(paddle.device.cuda.get_device_properties(int(mine)).total_memory * SHARE)
        return f"{'gpu' if kind == 'low_gpu_mem' else kind}:{mine}", memory // sharing


NUMPY = Engine()


def import_paddle() -> Any:
    """Import Paddle without its warnings at import (a missing ccache)."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import paddle
    return paddle


def visible_devices(kind: str) -> list[str]:
    """Return the numbers of the devices of this kind that Paddle sees, or that `paddle.distributed.launch` gave this
    process."""
    paddle = import_paddle()
    name = "gpu" if kind == "low_gpu_mem" else kind
    if name == "gpu":
        count = paddle.device.cuda.device_count() if paddle.is_compiled_with_cuda() else 0
    elif name == "xpu" and paddle.is_compiled_with_xpu():
        count = paddle.device.xpu.device_count()
    else:
        count = sum(device.partition(":")[0] == name for device in paddle.device.get_available_custom_device() or ())
    there = [str(number) for number in range(count)]
    given = os.environ.get(f"FLAGS_selected_{name}s", "").split(",")
    return [number for number in given if number in there] or there


def most_workers(device: str) -> int:
    """Return how many workers can compute at the same time: one on each core, or one on each device."""
    if device == "cpu":
        return cores()
    if device in DEVICES:  # without a number
        with contextlib.suppress(Exception):  # `problems` tells of a Paddle that can't be imported
            return max(1, len(visible_devices(device)))
    return 1


def unknown(device: str) -> list[str]:
    """Return a sentence if there are no such devices."""
    kind, colon, number = device.partition(":")
    if kind in DEVICES and (not colon or (number.isascii() and number.isdecimal() and kind != "cpu")):
        return []
    return [f"--device {device!r} must be one of {', '.join(DEVICES)}, or a numbered one: gpu:1{nearest(kind, DEVICES)}"]


def problems(engine: Engine) -> list[str]:
    """Return why this can't compute here, one sentence each, with what to install or to choose instead."""
    device = engine.device
    if wrong := unknown(device):
        return wrong
    if engine.tensor_type == "np":
        return []
    if importlib.util.find_spec("paddle") is None:
        return ["--tensor_type pd needs PaddlePaddle, which is not installed: python -m pip install paddlepaddle"]
    if device == "cpu":
        return []
    kind, _, number = device.partition(":")
    try:
        paddle = import_paddle()
    except Exception as error:  # a Paddle whose CUDA libraries are missing, for one
        return [f"--device {device}: Paddle can't be imported ({type(error).__name__}: {error})"]
    visible = visible_devices(kind)
    if not visible:
        installed = f"--device {device}: this PaddlePaddle {paddle.__version__}"
        if kind not in ("gpu", "low_gpu_mem"):
            return [f"{installed} sees no {kind}; install its build for {kind}, or pass --device cpu"]
        if not paddle.is_compiled_with_cuda():
            return [f"{installed} is built without CUDA; install paddlepaddle-gpu in its place, or pass --device cpu"]
        return [f"{installed} sees no GPU; check the driver and CUDA_VISIBLE_DEVICES, or pass --device cpu"]
    if number and number not in visible:
        return [f"--device {device}: there is no such device; Paddle sees {', '.join(f'{kind}:{one}' for one in visible)}"]
    share = engine.memory / GIB / engine.sharing(visible)
    if engine.budgeted and share < LEAST:
        workers = engine.sharing(visible)
        return [
            f"--max_tensor_mem {engine.memory / GIB:g} leaves {share:.3g} GiB to each of {workers} workers on a device, and"
            f" they need {LEAST:g}; pass a smaller --n_process or more memory"
        ]
    return []
