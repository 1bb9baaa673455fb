"""Write adapters of PEFT and Paddle for the tests of merge-lora, and compute by formulas what they add to a model."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from paddle_merge import MergeLoraConfig, merge_lora
from tests.conversion.lora.test_lora import paddle, peft
from tests.conversion.test_layout import State
from tests.support.checkpoints import read

Q, V, OUT = (f"model.layers.0.self_attn.{word}_proj" for word in "qvo")
EMBEDDING = "model.embed_tokens"


def lora(
    folder: Path,
    layers: dict[str, tuple[int, int, int]],
    seed: int,
    dtype: str = "float32",
    extra: State | None = None,
    **config: Any,
) -> str:
    """An adapter of PEFT. layers: module -> (outputs, inputs, rank)."""
    generator = np.random.default_rng(seed)
    tensors = dict(extra or {})
    for name, (outputs, inputs, rank) in layers.items():
        a, b = generator.normal(size=(rank, inputs)), generator.normal(size=(outputs, rank))
        if name == EMBEDDING:
            tensors |= {f"{name}.lora_embedding_A": a, f"{name}.lora_embedding_B": b}
        else:
            tensors |= {f"{name}.lora_A.weight": a, f"{name}.lora_B.weight": b}
    words = sorted({name.rpartition(".")[2] for name in layers})
    return peft(folder, tensors, dtype, **{"r": 2, "lora_alpha": 2, "target_modules": words, **config})


def changes(folder: str | Path, of: Callable[[Any], Any] = np.asarray) -> State:
    """What an adapter of PEFT adds to each weight, and what it holds whole, by FORMATS' formulas, in float64.

    of: what is taken of each tensor; np.abs: the result is the sum of the terms' sizes.
    """
    folder, found = Path(folder), State()
    config = json.loads((folder / "adapter_config.json").read_text())
    tensors = {name.removeprefix("base_model.model."): of(value) for name, value in read(folder, "adapter_model").items()}
    for name, a in tensors.items():
        module, _, word = name.removesuffix(".weight").rpartition(".")
        if word not in ("lora_A", "lora_embedding_A"):
            if not word.startswith("lora_") and ".lora_" not in name:
                found[name] = a
            continue
        r, alpha = config["r"], config["lora_alpha"]
        for pattern, value in config.get("rank_pattern", {}).items():
            r = value if re.match(rf"(.*\.)?({pattern})$", module) else r
        for pattern, value in config.get("alpha_pattern", {}).items():
            alpha = value if re.match(rf"(.*\.)?({pattern})$", module) else alpha
        scale = alpha / (r**0.5 if config.get("use_rslora") else r)
        b = tensors[name.replace("_A", "_B")]
        assert a.shape[0] == b.shape[1] == r
        product = (b.reshape(len(b), -1) @ a.reshape(len(a), -1)).reshape(len(b), *a.shape[1:])
        found[f"{module}.weight"] = scale * (product.T if "embedding" in word else product)
        if f"{module}.lora_B.bias" in tensors:
            found[f"{module}.bias"] = scale * tensors[f"{module}.lora_B.bias"]
    return found


def total(folders: list[str], weights: list[float]) -> State:
    """The exact weighted sum of the adapters' changes."""
    found = State()
    for folder, weight in zip(folders, weights, strict=True):
        for name, value in changes(folder).items():
            found[name] = found.get(name, 0.0) + weight * value
    return found


def assert_same(got: State, expected: State, tolerance: float = 1e-6) -> None:
    assert got.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(got[name], value, rtol=0, atol=tolerance * max(1.0, np.abs(value).max()), err_msg=name)


def merged(folder: Path, *adapters: str, **fields: Any) -> tuple[Path, dict[str, Any]]:
    out = folder / "out"
    return out, merge_lora(MergeLoraConfig(adapter_path_list=list(adapters), output_path=str(out), **fields))


def settings_of(folder: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / "adapter_config.json").read_text())
    return content


def of_paddle(folder: Path, prefix: str, rank: int, seed: int, **config: Any) -> tuple[str, State]:
    """An adapter of Paddle, and what it adds to each weight, as [outputs, inputs]."""
    generator, tensors, found = np.random.default_rng(seed), State(), State()
    config = {"r": rank, "lora_alpha": 3, "target_modules": [".*q_proj"], **config}
    scale = 3 / (rank**0.5 if config.get("rslora") else rank)
    for layer in range(2):
        name = f"{prefix}.layers.{layer}.self_attn.q_proj"
        a, b = (generator.normal(size=shape).astype(np.float32) for shape in ((16, rank), (rank, 16)))
        tensors |= {f"{name}.lora_A": a, f"{name}.lora_B": b}
        found[f"model.layers.{layer}.self_attn.q_proj.weight"] = scale * (a.astype(np.float64) @ b).T
    return paddle(folder, tensors, **config), found


def changes_of_paddle(folder: Path) -> State:
    config, tensors = json.loads((folder / "lora_config.json").read_text()), read(folder, "peft_model")
    assert config["scaling"] == pytest.approx(config["lora_alpha"] / config["r"])
    found = State()
    for name, a in tensors.items():
        if name.endswith(".lora_A"):
            assert a.shape[1] == config["r"]
            module = name.removesuffix(".lora_A")
            short = module.partition(".")[2]
            found[f"model.{short}.weight"] = config["scaling"] * (a @ tensors[f"{module}.lora_B"]).T
    return found
