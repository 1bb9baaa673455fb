"""Test what is left out where only some models hold it, and no loader needs it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from paddle_merge import CheckpointError, MergeConfig, merge
from tests.support.checkpoints import read, write

BODY = {"model.layers.0.mlp.up_proj.weight": np.ones((6, 4)), "model.norm.weight": np.ones(4)}
BUFFERS = {
    "model.layers.0.self_attn.rotary_emb.inv_freq": np.ones(2),
    "bert.embeddings.position_ids": np.arange(8)[None],
    "transformer.h.0.attn.bias": np.ones((1, 1, 8, 8)),
    "gpt_neox.layers.0.attention.masked_bias": np.ones(()),
}


@pytest.mark.parametrize("name", BUFFERS)
@pytest.mark.parametrize("holder", [0, 1, 2])
def test_buffers_of_one_input(tmp_path: Path, name: str, holder: int) -> None:
    paths = [str(write(tmp_path / f"m{k}", BODY | ({name: BUFFERS[name]} if k == holder else {}))) for k in range(3)]
    out, account = tmp_path / "out", tmp_path / "account.json"
    config = MergeConfig(model_path_list=paths[:2], base_model_path=paths[2], output_path=str(out), account=str(account))
    merge(config, progress=False)
    assert read(out).keys() == BODY.keys()
    told = json.loads(account.read_text())
    left = {
        (number, each["name"]): each["left_out"]
        for number, one in enumerate(told["inputs"])
        for each in one["each"]
        if "left_out" in each
    }
    assert left == {(holder, name): "loaders compute them"}


def test_buffers_of_all_inputs_stay(tmp_path: Path) -> None:
    paths = [str(write(tmp_path / f"m{k}", BODY | BUFFERS)) for k in range(2)]
    merge(MergeConfig(model_path_list=paths, output_path=str(tmp_path / "out")), progress=False)
    assert read(tmp_path / "out").keys() == (BODY | BUFFERS).keys()


def test_a_trained_bias_is_no_buffer(tmp_path: Path) -> None:
    one = write(tmp_path / "a", BODY | {"transformer.h.0.attn.bias": np.ones(4)})
    with pytest.raises(CheckpointError, match="is missing in"):
        merge(MergeConfig(model_path_list=[str(one), str(write(tmp_path / "b", BODY))], output_path=str(tmp_path / "out")))


def test_layers_that_predict_further_tokens(tmp_path: Path) -> None:
    """DeepSeek-V3 counts them as layers behind the last; others call them mtp."""
    further = {"model.layers.1.eh_proj.weight": np.ones((4, 8)), "mtp.fc.weight": np.ones((4, 8))}
    config = {"num_hidden_layers": 1, "num_nextn_predict_layers": 1}
    paths = [str(write(tmp_path / f"m{k}", BODY, config=config)) for k in range(2)]
    base = str(write(tmp_path / "base", BODY | further, config=config))
    merge(MergeConfig(model_path_list=paths, base_model_path=base, output_path=str(tmp_path / "out")), progress=False)
    assert read(tmp_path / "out").keys() == BODY.keys()


def test_counters_that_differ(tmp_path: Path) -> None:
    """The last input's, which is the base's, if there is one."""
    name = "bn.num_batches_tracked"
    paths = [str(write(tmp_path / f"m{k}", BODY | {name: np.array(10 * k)})) for k in range(3)]
    config = MergeConfig(model_path_list=paths[:2], base_model_path=paths[2], output_path=str(tmp_path / "out"))
    merge(config, progress=False)
    assert read(tmp_path / "out")[name] == 20


def test_layers_of_a_vision_tower_that_is_deeper_than_the_text(tmp_path: Path) -> None:
    """A tower that is cut off is refused, and a recipe with modules takes all of it."""
    config = {"model_type": "llava", "num_hidden_layers": 1, "num_nextn_predict_layers": 9}
    text = {"language_model.model.layers.0.mlp.up_proj.weight": np.ones((6, 4))}
    tower = {f"vision_tower.encoder.layers.{number}.w.weight": np.ones((2, 2)) for number in range(4)}
    whole = str(write(tmp_path / "whole", text | tower, format="pt", config=config))
    less = {name: values for name, values in tower.items() if ".3." not in name}
    cut = str(write(tmp_path / "cut", text | less, format="pt", config=config))
    alone = str(write(tmp_path / "alone", text, format="pt", config=config))
    with pytest.raises(CheckpointError, match="is missing in"):
        merge(MergeConfig(model_path_list=[whole, cut], output_path=str(tmp_path / "no")))
    recipe = f"""
merge_method: linear
parameters: {{weight: 1}}
modules: {{text_decoder: {{models: [{{model: {alone}}}]}}, vision_tower: {{models: [{{model: {whole}}}]}}}}
"""
    merge(MergeConfig(recipe_yaml=recipe, output_path=str(tmp_path / "out")), progress=False)
    assert read(tmp_path / "out").keys() == text.keys() | tower.keys()
