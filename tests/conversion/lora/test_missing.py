"""Test the warning about what an adapter's config says it trained, and its file doesn't hold."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from paddle_merge.checkpoints.adapters import Adapter
from paddle_merge.checkpoints.open import open_checkpoint
from paddle_merge.checkpoints.tensors import TensorEntry
from paddle_merge.conversion.lora.missing import missing
from tests.conversion.lora.test_experts import TARGETS as EXPERTS
from tests.conversion.lora.test_experts import apart, base, stacks
from tests.conversion.lora.test_experts import factors as of_experts
from tests.conversion.lora.test_lora import LAYER, TARGETS, factors, fold, in_paddle, in_peft, paddle, peft
from tests.conversion.test_layout import HIDDEN, llama, stored

Q, K = f"{LAYER}self_attn.q_proj", f"{LAYER}self_attn.k_proj"
ONE = {name: pair for name, pair in factors(1).items() if name == Q}  # of layer 0 of 2
Q1 = Q.replace("layers.0", "layers.1")
SAID = "and it holds nothing for"


@pytest.mark.parametrize(
    ("kind", "config", "named"),
    [
        ("peft", {"target_modules": ["q_proj"]}, [Q1]),
        ("peft", {"target_modules": ["self_attn.q_proj", "k_proj", "w1", "gate"]}, [K, Q1, K.replace("0", "1")]),
        ("peft", {"target_modules": ["q_proj"], "layers_to_transform": [0]}, []),
        ("peft", {"target_modules": ["q_proj"], "layers_to_transform": 0}, []),
        ("peft", {"target_modules": ["q_proj"], "layers_to_transform": [[0]]}, []),
        ("peft", {"target_modules": [["q_proj"]]}, []),
        ("peft", {"target_modules": ["q_proj"], "exclude_modules": [Q1]}, []),
        ("peft", {"target_modules": ["q_proj"], "exclude_modules": "layers"}, []),  # an expression for names in memory
        ("peft", {"target_modules": [Q]}, []),
        ("peft", {"target_modules": "all-linear"}, []),
        ("peft", {}, []),
        ("paddle", {"target_modules": [".*q_proj.*"]}, [Q1]),
        ("paddle", {"target_modules": [".*layers.0.*q_proj"]}, []),
        ("paddle", {"target_modules": ["(.*)*q_proj", "("]}, []),
    ],
)
def test_modules(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, kind: str, config: dict[str, Any], named: list[str]
) -> None:
    make, tensors = (peft, in_peft) if kind == "peft" else (paddle, in_paddle)
    fold(tmp_path, stored(tmp_path / "base", llama(0), "hf", dtype="float64"), make(tmp_path / "ad", tensors(ONE), **config))
    assert (SAID in caplog.text) == bool(named)
    for name in named:
        assert f"'{name}.weight'" in caplog.text


def test_an_adapter_with_all_of_them(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = stored(tmp_path / "base", llama(0), "paddlenlp", dtype="float64")
    fold(tmp_path, path, peft(tmp_path / "ad", in_peft(factors(1)), target_modules=list(TARGETS)))
    assert SAID not in caplog.text


def test_modules_to_save(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """PEFT lists classifier and score for every classifier: what the base doesn't have either isn't missed."""
    new = {"model.norm.weight": np.ones(HIDDEN) * 2}
    listed = ["norm", "lm_head", "classifier", "score"]
    path = stored(tmp_path / "base", llama(0), "hf", dtype="float64")
    fold(tmp_path, path, peft(tmp_path / "ad", new, modules_to_save=listed))
    assert "its config lists 'lm_head' in modules_to_save, and it doesn't hold it" in caplog.text


@pytest.mark.parametrize("one", [True, False])
def test_experts(tmp_path: Path, caplog: pytest.LogCaptureFixture, one: bool) -> None:
    """Of 3 experts in a layer; and of a second layer, which the adapter has nothing for."""
    state = apart(stacks(0))
    if not one:
        state |= {name.replace("layers.0", "layers.1"): value for name, value in state.items()}
    adapter = peft(tmp_path / "ad", of_experts(1), r=2, lora_alpha=3, target_modules=[], target_parameters=EXPERTS)
    fold(tmp_path, base(tmp_path / "base", state), adapter)
    assert ("'model.layers.1.mlp.experts.0.gate_proj.weight'" in caplog.text) != one
    assert (f"and 6 more, {SAID} them" in caplog.text) != one


class Names(dict[str, TensorEntry]):
    """Tensors, which count how often all of their names are asked for."""

    asked = 0

    def keys(self) -> Any:
        self.asked += 1
        return super().keys()


@pytest.mark.parametrize("parameters", [[], EXPERTS])
def test_many_experts(tmp_path: Path, parameters: list[str]) -> None:
    """Each is looked at once: not all others for each of them."""
    state = {
        f"model.layers.0.mlp.experts.{n}.{word}_proj.weight": np.ones((1, 1)) for n in range(50) for word in ("gate", "up")
    }
    tensors = Names(open_checkpoint(base(tmp_path / "base", state)).tensors)
    config = {"target_modules": ["q_proj"], "target_parameters": parameters}
    sentences = missing(Adapter("ad", "peft", config, {}, "ad"), tensors, (), {})
    assert [sentence.count("and 97 more") for sentence in sentences] == ([1] if parameters else [])
    assert tensors.asked <= 2
