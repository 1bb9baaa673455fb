"""Test models saved as one file per rank: joined where only one way is possible, refused with a reason elsewhere."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from paddle_merge import CheckpointError, MergeConfig, merge
from paddle_merge.checkpoints.adapters import open_adapter
from paddle_merge.checkpoints.files import Files
from paddle_merge.checkpoints.open import open_checkpoint
from tests.support import checkpoints

RANDOM = np.random.default_rng(9)
CONFIG = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "vocab_size": 100,
    "dtype": "float32",
    "architectures": ["Tiny"],
}
# Shape, and the axis that is split among tensor-parallel ranks; None: every rank has all of it.
WEIGHTS: dict[str, tuple[tuple[int, ...], int | None]] = {
    "llama.embed_tokens.weight": ((100, 64), 0),
    "llama.layers.0.self_attn.q_proj.weight": ((64, 64), 1),
    "llama.layers.0.self_attn.q_proj.bias": ((64,), 0),
    "llama.layers.0.self_attn.k_proj.weight": ((64, 16), 1),
    "llama.layers.0.self_attn.v_proj.weight": ((64, 16), 1),
    "llama.layers.0.self_attn.o_proj.weight": ((64, 64), 0),
    "llama.layers.0.self_attn.o_proj.bias": ((64,), None),
    "llama.layers.0.input_layernorm.weight": ((64,), None),
    "llama.layers.1.mlp.gate_proj.weight": ((64, 96), 1),
    "llama.layers.1.mlp.up_proj.weight": ((64, 96), 1),
    "llama.layers.1.mlp.down_proj.weight": ((96, 64), 0),
    "llama.norm.weight": ((64,), None),
    "lm_head.weight": ((64, 100), 1),
}


def write(folder: Path, tensors: dict[str, np.ndarray], split: int, stages: int, config: Any = CONFIG) -> Path:
    """One file per rank; the first half of the weights in the first stage."""
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    names = list(tensors)
    for stage in range(stages):
        for rank in range(split):
            content = {}
            for name in names[stage * len(names) // stages : (stage + 1) * len(names) // stages]:
                axis = WEIGHTS[name][1]
                content[name] = tensors[name] if axis is None else np.split(tensors[name], split, axis)[rank]
            ranks = "_".join([f"tp{rank:02d}"] * (split > 1) + [f"pp{stage:02d}"] * (stages > 1))
            (folder / f"model_state.{ranks}.pdparams").write_bytes(pickle.dumps(content, protocol=4))
    return folder


def values() -> dict[str, np.ndarray]:
    return {name: RANDOM.normal(size=shape).astype(np.float32) for name, (shape, _) in WEIGHTS.items()}


def run(*models: Path, out: Path, **fields: Any) -> Path:
    """Merge; the output folder."""
    merge(MergeConfig(model_path_list=[str(path) for path in models], output_path=str(out), **fields))
    return out


@pytest.mark.parametrize(("split", "stages"), [(2, 1), (1, 2), (2, 2), (2, 3)])
def test_joined(tmp_path: Path, split: int, stages: int) -> None:
    one, two = values(), values()
    a, b = write(tmp_path / "a", one, split, stages), write(tmp_path / "b", two, split, stages)
    plain = [checkpoints.write(tmp_path / f"s{k}", x, config=CONFIG) for k, x in enumerate((one, two))]
    expected = checkpoints.read(run(*plain, out=tmp_path / "o"))
    for number, models in enumerate(((a, b), (a, plain[1]))):
        found = checkpoints.read(run(*models, out=tmp_path / f"o{number}"))
        assert found.keys() == expected.keys()
        assert all(np.array_equal(found[name], x) for name, x in expected.items())


def as_safetensors(folder: Path, shards: int) -> Path:
    """The same ranks as PaddleNLP writes them with safe_serialization: a file each, or an index and shards each."""
    for file in sorted(folder.glob("model_state.*.pdparams")):
        rank = file.name.split(".")[1]
        checkpoints.write(folder / rank, pickle.loads(file.read_bytes()), shards=shards, prefix=f"model.{rank}")
        for made in (folder / rank).glob("model*"):
            name = made.name.replace(f"model.{rank}.safetensors.index", f"model.safetensors.index.{rank}")
            made.rename(folder / name)
        (folder / rank / "config.json").unlink()
        (folder / rank).rmdir()
        file.unlink()
    return folder


@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize(("split", "stages"), [(2, 1), (1, 2), (2, 2)])
def test_safetensors_of_ranks(tmp_path: Path, split: int, stages: int, shards: int) -> None:
    x = values()
    a = as_safetensors(write(tmp_path / "a", x, split, stages), shards)
    assert len(list(a.glob("*.safetensors"))) == split * stages * shards
    assert len(list(a.glob("*.json"))) == 1 + split * stages * (shards > 1)
    found = checkpoints.read(run(a, write(tmp_path / "b", x, split, stages), out=tmp_path / "out"))
    assert found.keys() == x.keys()
    assert all((found[name] == value).all() for name, value in x.items())


def test_some_ranks_in_shards(tmp_path: Path) -> None:
    """And an index of Paddle's own files."""
    x = values()
    a = write(tmp_path / "a", x, 2, 1)
    content = pickle.loads((a / "model_state.tp01.pdparams").read_bytes())
    weight_map = {}
    for number, names in enumerate((list(content)[:4], list(content)[4:]), 1):
        shard = f"model_state.tp01-{number:05d}-of-00002.pdparams"
        (a / shard).write_bytes(pickle.dumps({name: content[name] for name in names}, protocol=4))
        weight_map.update(dict.fromkeys(names, shard))
    index = a / "model_state.pdparams.index.tp01.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    assert "has both model_state.tp01.pdparams and model_state.pdparams.index.tp01.json" in sentence(a)
    (a / "model_state.tp01.pdparams").unlink()
    found = checkpoints.read(run(a, a, out=tmp_path / "out"))
    assert all((found[name] == value).all() for name, value in x.items())
    (a / "model_state.tp01-00002-of-00002.pdparams").unlink()
    assert "index.tp01.json: names shards that don't exist: model_state.tp01-00002-of-00002.pdparams" in sentence(a)
    index.unlink()
    (a / "model_state.pdparams.index.tp02.json").write_text("{}")
    assert "has files of 2 ranks, but none of tp01;" in sentence(a)


def test_a_whole_model_beats_ranks(tmp_path: Path) -> None:
    """As in PaddleNLP: the files of ranks may be an older save."""
    x, old = values(), values()
    a = as_safetensors(write(tmp_path / "a", old, 2, 1), 3)
    checkpoints.write(a, x, config=CONFIG)
    found = checkpoints.read(run(a, a, out=tmp_path / "out"))
    assert all((found[name] == value).all() for name, value in x.items())


def sentence(folder: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(str(folder))
    assert all(str(folder) in problem for problem in caught.value.problems)
    return "\n".join(caught.value.problems)


def edit(folder: Path, rank: str, change: Any) -> None:
    file = folder / f"model_state.{rank}.pdparams"
    content = pickle.loads(file.read_bytes())
    change(content)
    file.write_bytes(pickle.dumps(content, protocol=4))


def test_refused(tmp_path: Path) -> None:
    x = values()
    a = write(tmp_path / "rank", x, 2, 2)
    (a / "model_state.tp01_pp00.pdparams").unlink()
    assert "none of tp01_pp00; the files of all are needed" in sentence(a)

    a = write(tmp_path / "norm", x, 2, 1)
    edit(a, "tp01", lambda content: content.update({"llama.norm.weight": np.ones(64, np.float32)}))
    assert "'llama.norm.weight' should be the same in all tensor-parallel ranks" in sentence(a)

    a = write(tmp_path / "fused", x, 2, 1)
    for rank in ("tp00", "tp01"):
        edit(a, rank, lambda content: content.update({"llama.layers.0.mlp.gate_up_fused_proj.weight": np.ones((64, 96))}))
    assert "gate_up_fused_proj.weight' may or may not be split" in sentence(a)
    assert "merge_tensor_parallel=True" in sentence(a)

    a = write(tmp_path / "config", x, 2, 1, {})
    assert "config.json doesn't give its whole shape" in sentence(a)
    a = write(tmp_path / "sizes", x, 2, 1, {**CONFIG, "intermediate_size": 100})
    assert "can't be joined to [64, 100]" in sentence(a)

    a = write(tmp_path / "shape", x, 2, 1)
    edit(a, "tp01", lambda content: content.update({"lm_head.weight": np.ones((64, 49), np.float32)}))
    assert "differs in shape" in sentence(a)
    edit(a, "tp01", lambda content: content.pop("lm_head.weight"))
    assert "missing in some tensor-parallel ranks" in sentence(a)

    a = write(tmp_path / "tied", x, 1, 2)
    edit(a, "pp01", lambda content: content.update({"llama.embed_tokens.weight": np.ones((100, 64), np.float32)}))
    assert "should be the same in all pipeline stages that hold it, but differs" in sentence(a)
    edit(a, "pp01", lambda content: content.update({"llama.embed_tokens.weight": x["llama.embed_tokens.weight"]}))
    assert open_checkpoint(str(a)).tensors.keys() == WEIGHTS.keys()


def test_an_adapter_is_joined(tmp_path: Path) -> None:
    """A layer that is split by columns splits lora_B, and one that is split by rows lora_A, as PaddleNLP does."""
    shapes = {"self_attn.q_proj.lora_A": (64, 4), "self_attn.q_proj.lora_B": (4, 64)}
    shapes |= {"mlp.down_proj.lora_A": (96, 4), "mlp.down_proj.lora_B": (4, 64)}
    axes = {"self_attn.q_proj.lora_B": 1, "mlp.down_proj.lora_A": 0}
    whole = {name: RANDOM.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    (tmp_path / "lora_config.json").write_text("{}")
    for rank in range(2):
        held = {name: np.split(x, 2, axes[name])[rank] if name in axes else x for name, x in whole.items()}
        (tmp_path / f"lora_model_state.tp{rank:02d}.pdparams").write_bytes(pickle.dumps(held, protocol=4))
    entries = open_adapter(str(tmp_path)).tensors
    files = Files()
    for name, x in whole.items():
        found = np.empty(x.shape, np.float32)
        files.read(entries[name], 0, found.reshape(-1).view(np.uint8))
        assert np.array_equal(found, x)
    files.close()


def experts(folder: Path, ranks: int = 2, kind: str = "moe", count: int = 4) -> Path:
    """One file per expert-parallel rank: its experts, and all that isn't an expert."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({**CONFIG, "num_experts": count, "num_hidden_layers": 1}))
    for rank in range(ranks):
        content = {"m.embed_tokens.weight": np.ones((1 << 15, 2), np.float32), "m.norm.weight": np.ones(2, np.float32)}
        for number in range(rank * count // 2, (rank + 1) * count // 2):
            content[f"m.layers.0.mlp.experts.{number}.up_proj.weight"] = np.full((3, 2), number, np.float32)
        (folder / f"model_state.{kind}{rank:02d}.pdparams").write_bytes(pickle.dumps(content, protocol=4))
    return folder


@pytest.mark.parametrize("kind", ["moe", "tp00_moe_sharding"])
def test_experts_of_all_ranks(tmp_path: Path, kind: str) -> None:
    a = experts(tmp_path / "a", kind=kind)
    found = checkpoints.read(run(a, a, out=tmp_path / "out"))
    held = {name: float(tensor.max()) for name, tensor in found.items() if "experts" in name}
    assert held == {f"m.layers.0.mlp.experts.{number}.up_proj.weight": number for number in range(4)}
    assert found["m.embed_tokens.weight"].shape == (1 << 15, 2)


def test_experts_refused(tmp_path: Path) -> None:
    expert = "m.layers.0.mlp.experts.0.up_proj.weight"
    a = experts(tmp_path / "a")
    edit(a, "moe01", lambda content: content.update({expert: np.zeros((3, 2), np.float32)}))
    assert f"'{expert}' is in several expert-parallel ranks" in sentence(a)
    a = experts(tmp_path / "b")
    edit(a, "moe01", lambda content: content["m.embed_tokens.weight"].fill(2))
    assert "'m.embed_tokens.weight' should be the same in all expert-parallel ranks" in sentence(a)


def test_files_of_the_last_ranks_are_missing(tmp_path: Path) -> None:
    a = experts(tmp_path / "a", ranks=1)
    assert sentence(a) == f"{a}: config.json says 4 experts, and the files have 2; the files of all ranks are needed"
    a = write(tmp_path / "b", values(), 1, 2, {**CONFIG, "num_hidden_layers": 2})
    open_checkpoint(str(a))
    (a / "model_state.pp01.pdparams").unlink()
    assert sentence(a) == f"{a}: config.json says 2 layers, and the files have 1; the files of all ranks are needed"
    a = write(tmp_path / "c", values(), 2, 1)
    (a / "model_state.tp01.pdparams").unlink()
    assert sentence(a) == f"{a}: config.json says 100 tokens, and the files have 50; the files of all ranks are needed"


def test_names_of_ranks_that_are_not_one_training(tmp_path: Path) -> None:
    a = write(tmp_path / "a", values(), 2, 1)
    (a / "model_state.moe00.pdparams").write_bytes(b"")
    assert "has model_state.moe00.pdparams and model_state.tp00.pdparams, of different trainings" in sentence(a)
    (a / "model_state.moe00.pdparams").rename(a / "model_state.tp9999_pp9999_moe9999.pdparams")
    assert "but none of tp00_pp00_moe01, tp00_pp00_moe02, " in sentence(a)


def test_one_cause_is_told_once(tmp_path: Path) -> None:
    a = write(tmp_path / "a", values(), 2, 1, {})
    assert "tensor 'llama.embed_tokens.weight' (like 10 others) may or may not be split" in sentence(a)
    assert len(sentence(a).splitlines()) == 1


def test_the_file_of_one_rank_alone(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    a = write(tmp_path / "a", values(), 2, 1)
    said = "tp00.pdparams is what one rank of a parallel training saved of a model: give the folder,"
    run(a / "model_state.tp00.pdparams", a / "model_state.tp01.pdparams", out=tmp_path / "out")
    assert said in caplog.text
    with pytest.raises(CheckpointError, match=said) as caught:
        run(a / "model_state.tp00.pdparams", a, out=tmp_path / "more")
    assert "--" not in str(caught.value)


def test_two_ways_are_none(tmp_path: Path) -> None:
    """A piece of 64 x 64 is a part of both 64 x 128 and 128 x 64."""
    a = tmp_path / "a"
    write(a, {}, 2, 1, {**CONFIG, "vocab_size": 128})
    for rank in ("tp00", "tp01"):
        edit(a, rank, lambda content: content.update({"lm_head.weight": np.ones((64, 64), np.float32)}))
    assert "in exactly one way" in sentence(a)


@pytest.mark.parametrize("name", ["tensor_parallel_degree", "tensor_model_parallel_size"])
def test_the_output_is_whole_and_says_so(tmp_path: Path, name: str) -> None:
    """With PaddleNLP's degree (the first) or PaddleFormers' in config.json, either library splits what it loads: on one
    device that ends with "'NoneType' object has no attribute 'get_model_parallel_group'"."""
    config = {**CONFIG, name: 2, "text_config": {**CONFIG, name: 2}}
    model = write(tmp_path / "a", values(), 2, 1, config)
    run(model, model, out=tmp_path / "out")
    said = json.loads((tmp_path / "out" / "config.json").read_text())
    assert name not in said
    assert name not in said["text_config"]
    assert said["text_config"]["hidden_size"] == 64
