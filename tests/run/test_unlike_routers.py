"""Test the warning of experts that are merged by their index although their routers are those of other experts."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from paddle_merge import MergeConfig, merge
from tests.support.checkpoints import write
from tests.support.experts import EXPERTS, LAYERS, NEURONS, config, layer, shuffled, stored


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A base; a fine-tuned model (near); the base with each expert in the next place (moved); and another model (apart)."""
    monkeypatch.chdir(tmp_path)
    random = np.random.default_rng(0)
    base = [layer(random) for _ in range(LAYERS)]
    unmoved = np.tile(np.arange(NEURONS), (EXPERTS, 1))
    models = {
        "base": base,
        "near": [{name: x + 0.1 * random.normal(size=x.shape) for name, x in one.items()} for one in base],
        "moved": [shuffled(one, [1, 2, 3, 0], unmoved) for one in base],
        "apart": [layer(random) for _ in range(LAYERS)],
    }
    for name, layers in models.items():
        write(tmp_path / name, stored(layers, "deepseek_v3"), "bfloat16", format="pt", config=config("deepseek_v3"))
    return tmp_path


@pytest.mark.parametrize("merged", [False, True])
def test_slices(here: Path, merged: bool, caplog: pytest.LogCaptureFixture) -> None:
    """Of layers that are taken from one model or the other nothing is said; where slices merge two, what could be done."""
    base, apart = ({"model": name, "layer_range": [0, 1]} for name in ("base", "apart"))
    slices = [{"sources": [base, apart]}] if merged else [{"sources": [base]}, {"sources": [apart]}]
    recipe = {"merge_method": "linear", "parameters": {"weight": 1}, "slices": slices}
    merge(MergeConfig(recipe_yaml=json.dumps(recipe) + "\n", output_path="out"), progress=False)
    assert ("--expert_alignment match, without slices, finds which" in caplog.text) == merged
    assert ("doesn't seem to correspond" in caplog.text) == merged
    assert "expert k is merged with expert k" not in caplog.text


@pytest.mark.parametrize(
    ("models", "fields", "said"),
    [
        (["near"], {}, {}),
        (["near", "moved"], {}, {"moved": "in another order they do (1.00)"}),
        (["apart"], {}, {"apart": "the rows of their routers hardly resemble one another"}),
        (["base", "moved"], {"base_model_path": None}, {"moved": "in another order they do (1.00)"}),
        (["moved"], {"expert_alignment": "match"}, {}),
    ],
)
def test_who_is_warned_of(
    here: Path, models: list[str], fields: dict[str, str], said: dict[str, str], caplog: pytest.LogCaptureFixture
) -> None:
    given = {"model_path_list": models, "base_model_path": "base", "output_path": "out", "merge_method": "linear", **fields}
    merge(MergeConfig(**given), progress=False)  # type: ignore[arg-type]
    warned = [message for message in caplog.messages if "doesn't seem to correspond" in message]
    assert len(warned) == len(said)
    for message, (name, words) in zip(warned, said.items(), strict=True):
        assert message.startswith(f"{name}: expert k doesn't seem to correspond to expert k of base")
        assert words in message
