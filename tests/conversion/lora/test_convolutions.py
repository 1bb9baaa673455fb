"""Test adapters of convolutions, as PEFT has them: A is a convolution of the layer's kernel, and B one of kernel 1."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from paddle_merge import CheckpointError
from paddle_merge.conversion.lora import adapted
from tests.conversion.lora.test_lora import close, fold, paddle, peft
from tests.support.checkpoints import write

OUT, IN, R = 5, 3, 2
NAME = "vit.patch_embeddings.projection"


def made(tmp_path: Path, kernel: tuple[int, ...], **config: Any) -> tuple[str, dict[str, np.ndarray], dict[str, np.ndarray]]:
    random = np.random.default_rng(0)
    base = {f"{NAME}.weight": random.standard_normal((OUT, IN, *kernel)), f"{NAME}.bias": random.standard_normal(OUT)}
    its = {f"{NAME}.lora_A.weight": random.standard_normal((R, IN, *kernel))}
    its[f"{NAME}.lora_B.weight"] = random.standard_normal((OUT, R, *(1 for _ in kernel)))
    path = write(tmp_path / "base", base, "float64", format="pt", config={"model_type": "vit", "architectures": ["X"]})
    return str(path), base, its


def changed(base: dict[str, np.ndarray], its: dict[str, np.ndarray], scale: float) -> np.ndarray:
    """W[o, i, ...] + s sum over r of B[o, r] A[r, i, ...]."""
    a, b = its[f"{NAME}.lora_A.weight"], its[f"{NAME}.lora_B.weight"]
    return base[f"{NAME}.weight"] + scale * np.tensordot(b.reshape(OUT, R), a, 1)


@pytest.mark.parametrize("step", [7, 1 << 16])
@pytest.mark.parametrize("kernel", [(4,), (1,), (2, 4), (1, 1), (2, 3, 2)])
def test_kernels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kernel: tuple[int, ...], step: int) -> None:
    monkeypatch.setattr(adapted, "STEP", step)
    path, base, its = made(tmp_path, kernel)
    bias = np.arange(float(OUT))
    adapter = peft(tmp_path / "ad", its | {f"{NAME}.lora_B.bias": bias}, r=R, lora_alpha=3, lora_bias=True)
    got = fold(tmp_path, path, adapter)
    close(got, base | {f"{NAME}.weight": changed(base, its, 1.5), f"{NAME}.bias": base[f"{NAME}.bias"] + 1.5 * bias})


@pytest.mark.parametrize("kernel", [(4,), (2, 4), (2, 3, 2)])
def test_dora(tmp_path: Path, kernel: tuple[int, ...]) -> None:
    """PEFT takes the norm over all axes but the outputs', and stores the lengths [1, out, 1 ...]."""
    path, base, its = made(tmp_path, kernel)
    lengths = np.arange(1.0, OUT + 1)
    magnitude = {f"{NAME}.lora_magnitude_vector": lengths.reshape(1, OUT, *(1 for _ in kernel))}
    got = fold(tmp_path, path, peft(tmp_path / "ad", its | magnitude, r=R, lora_alpha=3, use_dora=True))
    whole = changed(base, its, 1.5).reshape(OUT, -1)
    expected = whole * (lengths / np.array([math.sqrt(row @ row) for row in whole]))[:, None]
    close(got, base | {f"{NAME}.weight": expected.reshape(OUT, IN, *kernel)})


def test_what_does_not_fit(tmp_path: Path) -> None:
    """With groups, W is [out, in / groups, ...], A [r, in, ...] and B [out, r / groups, 1 ...]; PEFT can't merge it."""
    random = np.random.default_rng(0)
    cases = {
        "groups": ((6, 4, 3, 3), (2, 4, 3, 3), (6, 1, 1, 1), "it is for a convolution with groups"),
        "depthwise": ((6, 1, 3), (6, 6, 3), (6, 1, 1), "it is for a convolution with groups"),
        "kernel": ((6, 4, 3, 3), (2, 4, 2, 2), (6, 2, 1, 1), "is for a weight [6, 4, 2, 2], but"),
        "empty": ((6, 4, 3, 3), (0, 4, 3, 3), (6, 0, 1, 1), "is empty, as DeepSpeed's ZeRO-3 saves it"),
        "wide B": ((6, 4, 3, 3), (2, 4, 3, 3), (6, 2, 3, 3), "which don't fit"),
    }
    for name, (weight, a, b, words) in cases.items():
        folder = tmp_path / name
        path = str(write(folder / "base", {f"{NAME}.weight": random.standard_normal(weight)}, "float64", format="pt"))
        its = {f"{NAME}.lora_A.weight": random.standard_normal(a), f"{NAME}.lora_B.weight": random.standard_normal(b)}
        with pytest.raises(CheckpointError) as error:
            fold(folder, path, peft(folder / "ad", its, r=max(1, a[0])))
        assert words in str(error.value)


@pytest.mark.parametrize("rslora", [False, True])
def test_paddles_convolutions(tmp_path: Path, rslora: bool) -> None:
    """PaddleNLP's LoRAConv2D has the same shapes, and scales by alpha / r whatever rslora says."""
    path, base, its = made(tmp_path, (2, 4))
    named = {name.removesuffix(".weight"): value for name, value in its.items()}
    got = fold(tmp_path, path, paddle(tmp_path / "ad", named, r=R, lora_alpha=3, rslora=rslora))
    close(got, base | {f"{NAME}.weight": changed(base, its, 1.5)})
