"""Test that a merge can store weights as FP8 codes with scales, in the form of DeepSeek-V3 and Qwen3-FP8.

The oracle averages in float32 and rounds block by block with ml_dtypes; files are read by the safetensors library.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import safetensors

from paddle_merge import CheckpointError, ConfigError, MergeConfig, merge, merge_state_dicts
from paddle_merge.commands.verify.verify import verify
from paddle_merge.plan import plan as planning
from paddle_merge.plan.account import account
from paddle_merge.plan.memory_estimate import memory
from paddle_merge.plan.plan import Plan
from paddle_merge.plan.planner import make_plan
from paddle_merge.recipe.request import Request
from paddle_merge.run.job import Job, Report
from paddle_merge.run.large_tensor import merge_in_threads
from paddle_merge.run.output import journal
from paddle_merge.run.worker import Worker
from tests.support.quantised import FP8, expanded, write_typed

BF16, F32, E4M3 = ml_dtypes.bfloat16, np.float32, ml_dtypes.float8_e4m3fn
RAW = {"F8_E4M3": E4M3, "BF16": BF16, "F32": F32, "F16": np.float16}
LAYER = "model.layers.0"
CODED = {
    f"{LAYER}.self_attn.q_proj.weight": (256, 256),
    f"{LAYER}.self_attn.k_proj.weight": (64, 256),
    f"{LAYER}.self_attn.kv_a_proj_with_mqa.weight": (320, 256),  # 2 blocks and a half
    f"{LAYER}.mlp.experts.0.up_proj.weight": (128, 320),
    f"{LAYER}.mlp.experts.gate_up_proj": (3, 256, 128),
    f"{LAYER}.mlp.down_proj.weight": (1280, 512),
}
MISREAD = f"{LAYER}.self_attn.o_proj.weight"  # transformers would cut 192 columns into blocks of 96
PLAIN = {
    "model.embed_tokens.weight": (300, 256),
    MISREAD: (256, 192),
    f"{LAYER}.mlp.gate.weight": (8, 256),
    f"{LAYER}.input_layernorm.weight": (256,),
    "visual.blocks.0.attn.proj.weight": (128, 128),
    "lm_head.weight": (300, 256),
}
BIAS = f"{LAYER}.mlp.gate.e_score_correction_bias"  # float32 in DeepSeek-V3
QUANTIZATION = {
    "activation_scheme": "dynamic",
    "fmt": "e4m3",
    "modules_to_not_convert": ["lm_head", f"{LAYER}.self_attn.o_proj", f"{LAYER}.mlp.gate", "visual.blocks.0.attn.proj"],
    "quant_method": "fp8",
    "weight_block_size": [128, 128],
}
Tensors = dict[str, np.ndarray]


def model(folder: Path, seed: int) -> tuple[Path, Tensors]:
    random = np.random.default_rng(seed)
    held = {name: (0.02 * random.standard_normal(shape)).astype(BF16) for name, shape in {**PLAIN, **CODED}.items()}
    held[BIAS] = random.standard_normal(8).astype(F32)
    held[f"{LAYER}.self_attn.k_proj.weight"][:, :128] = 0
    return write_typed(folder / f"m{seed}", held, {"model_type": "qwen3"}), held


def stored(folder: Path) -> Tensors:
    """Return the tensors of all files, in the types that they are stored in."""
    found = {}
    for file in sorted(folder.glob("*.safetensors")):
        for name, info in safetensors.deserialize(file.read_bytes()):
            found[name] = np.frombuffer(info["data"], RAW[info["dtype"]]).reshape(info["shape"])
    return found


def encoded(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Round a matrix (float32) to codes, with the scales of blocks of 128 x 128."""
    codes, scales = np.empty(values.shape, E4M3), np.empty([-(-side // 128) for side in values.shape], F32)
    for row, column in np.ndindex(scales.shape):
        box = values[row * 128 : (row + 1) * 128, column * 128 : (column + 1) * 128]
        largest = np.abs(box).max()
        scales[row, column] = largest / F32(448) if largest else 1
        factor = F32(448) * (F32(1) / largest) if largest else F32(1)
        codes[row * 128 : (row + 1) * 128, column * 128 : (column + 1) * 128] = (box * factor).astype(E4M3)
    return codes, scales


def config(out: Path, *models: Path, **options: Any) -> MergeConfig:
    paths = [str(one) for one in models]
    return MergeConfig(model_path_list=paths, output_path=str(out), **{"out_dtype": "fp8_block", **options})


def plan_of(asked: MergeConfig, n_process: int = 1) -> Plan:
    request = Request.of(asked)
    return make_plan(request.checked_recipe(), n_process, request.shard_bytes, request.engine)


def test_the_average_of_two_models(tmp_path: Path) -> None:
    (a, one), (b, two) = model(tmp_path, 0), model(tmp_path, 1)
    merge(config(tmp_path / "out", a, b, max_shard_size="300KB"), progress=False)
    found = stored(tmp_path / "out")
    for name in {**PLAIN, **CODED, BIAS: ()}:
        mean = F32(0.5) * one[name].astype(F32) + F32(0.5) * two[name].astype(F32)
        scales = name + "_scale_inv"
        if name not in CODED:
            np.testing.assert_array_equal(found[name], mean.astype(one[name].dtype))
            assert scales not in found
        elif mean.ndim == 2:
            codes, wanted = encoded(mean)
            np.testing.assert_array_equal(found[name].view(np.uint8), codes.view(np.uint8))
            np.testing.assert_array_equal(found[scales], wanted)
        else:
            for matrix, (codes, wanted) in enumerate(map(encoded, mean)):
                np.testing.assert_array_equal(found[name][matrix].view(np.uint8), codes.view(np.uint8))
                np.testing.assert_array_equal(found[scales][matrix], wanted)
    said = json.loads((tmp_path / "out" / "config.json").read_text())
    assert said["quantization_config"] == QUANTIZATION
    assert said["torch_dtype"] == "bfloat16"
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    assert index["weight_map"].keys() == found.keys()
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in found.values())
    assert all(index["weight_map"][name] == index["weight_map"][name + "_scale_inv"] for name in CODED)


def test_wider_models_become_bfloat16_too(tmp_path: Path) -> None:
    held = {f"{LAYER}.mlp.up_proj.weight": np.ones((128, 128), F32), f"{LAYER}.norm.weight": np.ones(128, F32)}
    a = write_typed(tmp_path / "a", held, {"torch_dtype": "float32"})
    merge(config(tmp_path / "out", a, a), progress=False)
    assert stored(tmp_path / "out")[f"{LAYER}.norm.weight"].dtype == BF16
    assert json.loads((tmp_path / "out" / "config.json").read_text())["dtype"] == "bfloat16"


@pytest.mark.parametrize("out_dtype", ["fp8_block", "bfloat16"])
def test_score_corrections_stay_float32(tmp_path: Path, out_dtype: str) -> None:
    """Of DeepSeek-V3, a vector, and of ERNIE-4.5, a matrix: 7.01 and 7.02 are the same number of bfloat16."""
    ernies = f"{LAYER}.mlp.moe_statics.e_score_correction_bias"
    values = np.array([[7.01, 7.02]], F32)
    held = {f"{LAYER}.mlp.up_proj.weight": np.ones((128, 128), BF16), BIAS: values[0], ernies: values}
    a = write_typed(tmp_path / "a", held, {})
    asked = config(tmp_path / "out", a, a, out_dtype=out_dtype)
    merge(asked, progress=False)
    found = stored(tmp_path / "out")
    for name in (BIAS, ernies):
        np.testing.assert_array_equal(found[name], held[name], strict=True)
    assert json.loads((tmp_path / "out" / "config.json").read_text())["torch_dtype"] == "bfloat16"
    plan = plan_of(asked)
    if out_dtype == "bfloat16":
        (said,) = plan.storage.described(plan.tensors)
        assert said.startswith(f"tensors '{BIAS}' and '{ernies}': float32, as loaders keep it")


def test_same_bytes_however_it_is_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In pieces, in threads, and in one go, with the same fingerprints; and `verify` finds what was changed."""
    a, b = model(tmp_path, 0)[0], model(tmp_path, 1)[0]
    merge(config(tmp_path / "whole", a, b), progress=False)
    monkeypatch.setattr(planning, "PIECE_BYTES", 1)
    asked = config(tmp_path / "cut", a, b, merge_method="linear")
    plan = plan_of(asked, n_process=2)
    assert len(plan.pieces) > len(plan.tensors)  # of down_proj: 1280 * 512 elements in units of 65536
    path = tmp_path / "parts"
    path.write_bytes(b"\0" * plan.shards[0].nbytes)
    worker, reports = Worker(Job((str(path),), plan.engine), lambda _: None), []
    for piece in plan.pieces[::-1]:
        reports.append(worker.merge(plan.tensors[piece.tensor], piece))
    worker.close()
    whole = (tmp_path / "whole" / "model.safetensors").read_bytes()
    begin = min(tensor.offset for tensor in plan.tensors)
    begin = min([begin, *(tensor.scales.offset for tensor in plan.tensors if tensor.scales)])
    assert path.read_bytes()[begin:] == whole[begin:]
    assert journal.whole(reports, plan, [str(path)]) == reports
    down = next(n for n, tensor in enumerate(plan.tensors) if tensor.name.endswith("down_proj.weight"))
    monkeypatch.setattr("paddle_merge.run.large_tensor.STEP", 1)
    large = planning.Piece(down, 0, plan.tensors[down].size)
    report = merge_in_threads(2, Job((str(path),), plan.engine), plan.tensors[down], large, lambda _: None)
    assert path.read_bytes()[begin:] == whole[begin:]
    assert journal.whole([report], plan, [str(path)]) == [report]

    assert verify(str(tmp_path / "whole"), None, 1, False).off == []
    at = plan.tensors[down].scales
    assert at is not None
    damaged = bytearray(whole)
    damaged[at.offset + 5] ^= 1
    path.write_bytes(damaged)
    assert journal.whole([*reports, report], plan, [str(path)]) == [one for one in reports if not covers(one, plan, down)]
    (tmp_path / "whole" / "model.safetensors").write_bytes(damaged)
    (sentence,) = verify(str(tmp_path / "whole"), 0, 1, False).off
    assert sentence.startswith(f"tensor '{at.name}' in ")


def covers(report: Report, plan: Plan, number: int) -> bool:
    """Whether it is of the first band of a tensor, whose scales the test damages."""
    return report.tensor == plan.tensors[number].name and report.start == 0


def test_codes_stay_codes(tmp_path: Path) -> None:
    """A model of codes, merged with itself, gives the same codes and scales, as its config.json says; or plain numbers."""
    random = np.random.default_rng(0)
    codes = random.integers(0, 127, (64, 48)).astype(np.uint8)
    codes[::8, ::16] = 0x7E  # the largest, in every block
    scales = random.uniform(1e-4, 1e-2, (8, 3)).astype(F32)
    name = f"{LAYER}.mlp.up_proj.weight"
    held = {name: codes.view(E4M3), f"{name}_scale_inv": scales, "lm_head.weight": np.ones((5, 48), BF16)}
    said = {**FP8, "weight_block_size": [8, 16], "modules_to_not_convert": ["lm_head", "model.visual"]}
    a = write_typed(tmp_path / "a", held, {"quantization_config": said})
    plan = plan_of(config(tmp_path / "out", a, a, out_dtype=None))
    assert list(plan.storage.described(plan.tensors)) == [
        f"as {a}; --out_dtype bfloat16 stores plain numbers instead",
        "fp8_block: 1 weights of Linear layers (3.07 K parameters, 93%) become 8-bit codes, with a float32 scale for each"
        " block of 8 x 16",
    ]
    assert account(plan).made[1].notes[-1] == "with a scale for each block of 8 x 16 (weight_scale_inv)"
    merge(config(tmp_path / "out", a, a, out_dtype=None), progress=False)
    found = stored(tmp_path / "out")
    np.testing.assert_array_equal(found[name].view(np.uint8), codes)
    np.testing.assert_array_equal(found[f"{name}_scale_inv"], scales)
    assert json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"] == said

    merge(config(tmp_path / "plain", a, a, out_dtype="bfloat16"), progress=False)
    found = stored(tmp_path / "plain")
    numbers = codes.view(E4M3).astype(F32) * expanded(scales, (8, 16), codes.shape).astype(F32)
    np.testing.assert_array_equal(found[name], numbers.astype(BF16))
    assert "quantization_config" not in json.loads((tmp_path / "plain" / "config.json").read_text())


def test_scales_that_are_powers_of_two_stay_so(tmp_path: Path) -> None:
    """As DeepSeek-V3.1 has them, in float32: loaders that read scale_fmt take them for exponents."""
    random = np.random.default_rng(0)
    codes = random.integers(0, 0x7A, (32, 32)).astype(np.uint8)
    codes[::16, ::16] = 0x79  # 288: the scale is rounded up
    scales = (2.0 ** random.integers(-9, 0, (2, 2))).astype(F32)
    name = f"{LAYER}.mlp.up_proj.weight"
    said = {**FP8, "weight_block_size": [16, 16], "scale_fmt": "ue8m0"}
    held = {name: codes.view(E4M3), f"{name}_scale_inv": scales}
    a = write_typed(tmp_path / "a", held, {"quantization_config": said})
    b = write_typed(tmp_path / "b", {**held, f"{name}_scale_inv": np.full((2, 2), 2, F32)}, {"quantization_config": said})
    merge(config(tmp_path / "same", a, a, out_dtype=None), progress=False)
    found = stored(tmp_path / "same")
    np.testing.assert_array_equal(found[name].view(np.uint8), codes)
    np.testing.assert_array_equal(found[f"{name}_scale_inv"], scales)
    merge(config(tmp_path / "out", a, b, out_dtype=None), progress=False)
    assert (np.frexp(stored(tmp_path / "out")[f"{name}_scale_inv"])[0] == 0.5).all()
    assert json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"] == said


def test_layers_in_another_order(tmp_path: Path) -> None:
    """The list of modules that hold plain numbers is that of the new layers."""
    held: Tensors = {"lm_head.weight": np.ones((5, 8), BF16)}
    for layer, codes in enumerate((True, False)):
        name = f"model.layers.{layer}.mlp.up_proj.weight"
        held |= {
            name: np.ones((8, 8), E4M3 if codes else BF16),
            f"model.layers.{layer}.mlp.gate.weight": np.ones((2, 8), BF16),
        }
        held |= {f"{name}_scale_inv": np.ones((1, 1), F32)} if codes else {}
    plain = ["model.layers.0.mlp.gate", "model.layers.1.mlp.gate", "model.layers.1.mlp.up_proj"]
    said = {**FP8, "weight_block_size": [8, 8], "modules_to_not_convert": ["model.visual", *plain]}
    a = write_typed(tmp_path / "a", held, {"quantization_config": said})
    slices = "".join(f"- sources: [{{model: {a}, layer_range: [{n}, {n + 1}]}}]\n" for n in (1, 0, 0))
    recipe = f"merge_method: passthrough\nslices:\n{slices}"
    plan = plan_of(MergeConfig(recipe_yaml=recipe, output_path=str(tmp_path / "out")))
    up = ["model.layers.0.mlp.up_proj", *(f"model.layers.{layer}.mlp.gate" for layer in range(3))]
    found = plan.storage.config(plan.tensors)
    assert found is not None
    assert sorted(found["modules_to_not_convert"]) == sorted(["model.visual", "lm_head", *up])
    assert {**found, "modules_to_not_convert": 0} == {**said, "modules_to_not_convert": 0}


@pytest.mark.parametrize(
    "smaller", ["drop_layers: [0]", "keep_experts: {count: 1, by: router_norm, merge: true}", "base_model: first"]
)
def test_other_layers_and_experts(tmp_path: Path, smaller: str) -> None:
    """What is made of codes becomes codes again, and the list is that of the modules that hold plain numbers."""
    held: Tensors = {"lm_head.weight": np.ones((5, 8), BF16)}
    for layer, word in enumerate(("up", "down")):
        at = f"model.layers.{layer}.mlp"
        held |= {f"{at}.gate.weight": np.ones((2, 8), BF16), f"{at}.{word}_proj.weight": np.ones((8, 8), BF16)}
        for expert, part in np.ndindex(2, 3):
            name = f"{at}.experts.{expert}.{('gate', 'up', 'down')[part]}_proj.weight"
            held |= {name: np.full((8, 8), expert, E4M3), f"{name}_scale_inv": np.ones((1, 1), F32)}
    plain = [name.removesuffix(".weight") for name in held if held[name].dtype == BF16]
    said = {**FP8, "weight_block_size": [8, 8], "modules_to_not_convert": plain}
    a = write_typed(tmp_path / "a", held, {"quantization_config": said, "model_type": "qwen3_moe", "num_experts": 2})
    two = f"{{model: {a}, parameters: {{weight: 0.5}}}}"
    recipe = f"merge_method: linear\nmodels: [{two}, {two}]\n"
    if smaller.startswith("base_model"):
        recipe = f"name: first\n{recipe}---\nmerge_method: task_arithmetic\nmodels: [{two}]\n"
    merge(MergeConfig(recipe_yaml=recipe + smaller, output_path=str(tmp_path / "out")), progress=False)
    found = stored(tmp_path / "out")
    layers, experts = (1, 2) if "drop" in smaller else (2, 1) if "keep" in smaller else (2, 2)
    assert sum(tensor.dtype == E4M3 for tensor in found.values()) == 3 * layers * experts
    listed = json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"]["modules_to_not_convert"]
    assert sorted(listed) == sorted(name.removesuffix(".weight") for name in found if found[name].dtype == BF16)


def test_rows_with_a_scale_each(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the form of llm-compressor's FP8_DYNAMIC, and from it again. The oracle divides by bfloat16's scales."""
    monkeypatch.setattr(planning, "PIECE_BYTES", 1)
    a, held = model(tmp_path, 0)
    merge(config(tmp_path / "out", a, a, out_dtype="fp8_channel", n_process=1), progress=False)
    found = stored(tmp_path / "out")
    for name in (*CODED, MISREAD):
        if len(held[name].shape) > 2:
            assert found[name].dtype == BF16
            continue
        values = held[name].astype(F32)
        largest = np.abs(values).max(1, keepdims=True)
        scales = (largest / F32(448)).astype(BF16)
        np.testing.assert_array_equal(found[f"{name}_scale"], scales)
        codes = (values * (F32(1) / scales.astype(F32))).astype(E4M3)
        np.testing.assert_array_equal(found[name].view(np.uint8), codes.view(np.uint8))
    said = json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"]
    assert said["ignore"] == ["lm_head", f"{LAYER}.mlp.gate", "visual.blocks.0.attn.proj", f"{LAYER}.mlp.experts"]
    assert said["config_groups"]["group_0"]["weights"]["strategy"] == "channel"
    assert verify(str(tmp_path / "out"), None, 1, False).off == []
    monkeypatch.undo()
    merge(config(tmp_path / "again", tmp_path / "out", tmp_path / "out", out_dtype=None), progress=False)
    for name, tensor in stored(tmp_path / "again").items():
        np.testing.assert_array_equal(tensor.view(np.uint8), found[name].view(np.uint8), err_msg=name)
    assert json.loads((tmp_path / "again" / "config.json").read_text())["quantization_config"] == said


def test_nan_is_reported(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    values = np.ones((128, 128), BF16)
    values[3, 4] = np.nan
    name = f"{LAYER}.mlp.up_proj.weight"
    a = write_typed(tmp_path / "a", {name: values}, {})
    b = write_typed(tmp_path / "b", {name: np.ones((128, 128), BF16)}, {})
    merge(config(tmp_path / "out", a, b), progress=False)
    assert f"tensor '{name}' holds NaN or Inf in {a}" in caplog.text
    found = stored(tmp_path / "out")
    assert np.argwhere(np.isnan(found[name].astype(F32))).tolist() == [[3, 4]]
    assert found[f"{name}_scale_inv"].tolist() == [[F32(1) / F32(448)]]


def test_what_is_said(tmp_path: Path) -> None:
    a, held = model(tmp_path, 0)
    plan = plan_of(config(tmp_path / "out", a, a))
    left, odd = (sentence for sentence in plan.warnings if "a side is no multiple of 128" in sentence)
    assert left == (
        f"tensor '{MISREAD}': not stored as fp8_block, because transformers would read it with the wrong scales: a side is"
        " no multiple of 128"
    )
    assert odd.startswith(
        f"tensors '{LAYER}.self_attn.kv_a_proj_with_mqa.weight' and '{LAYER}.mlp.experts.0.up_proj.weight': a"
    )
    wide = write_typed(tmp_path / "wide", {f"{LAYER}.mlp.up_proj.weight": np.ones((128, 40000), BF16)}, {})
    more = memory(plan_of(config(tmp_path / "out", wide, wide))) - memory(
        plan_of(config(tmp_path / "o", wide, wide, out_dtype=None))
    )
    assert 5 * 128 * 40000 < more < 6 * 128 * 40000  # a band of float32 numbers, and of codes

    tiny = write_typed(
        tmp_path / "tiny", {f"{LAYER}.mlp.up_proj.weight": np.ones((128, 256), BF16)}, {"model_type": "llama"}
    )
    paddles = {"output_layout": "paddleformers", "layout": ["hf", "hf"]}
    with pytest.raises(CheckpointError, match=r"a \.pdparams file can't hold 8-bit floats"):
        plan_of(config(tmp_path / "out", tiny, tiny, save_format="pdparams", **paddles))
    with pytest.raises(CheckpointError, match="in paddleformers's layout: pass --output_layout hf too"):
        plan_of(config(tmp_path / "out", tiny, tiny, **paddles))
    norm = write_typed(tmp_path / "norm", {f"{LAYER}.norm.weight": np.ones(4, BF16)}, {})
    with pytest.raises(
        CheckpointError, match="out_dtype fp8_block: the output has no weight of a Linear layer that can be stor"
    ):
        plan_of(config(tmp_path / "out", norm, norm))
    with pytest.raises(ConfigError, match=r"--out_dtype 'fp8' must be one of .*fp8_block"):
        Request.of(config(tmp_path / "out", a, a, out_dtype="fp8")).checked_recipe()
    with pytest.raises(ConfigError, match="out_dtype fp8_block is for files; in memory give another, such as bfloat16"):
        merge_state_dicts([held, held], MergeConfig(out_dtype="fp8_block"))


def test_recipes(tmp_path: Path) -> None:
    """A recipe may ask for it as out_dtype or dtype, for its output only."""
    a = model(tmp_path, 0)[0]
    recipe = f"merge_method: linear\ndtype: fp8_block\nmodels: [{{model: {a}, parameters: {{weight: 1}}}}]\n"
    asked = MergeConfig(recipe_yaml=recipe, output_path=str(tmp_path / "out"))
    assert plan_of(asked).storage.form is not None
    assert "out_dtype: fp8_block" in Request.of(asked).record["recipe_yaml"]
    asked.recipe_yaml = f"name: first\n{recipe}---\n{recipe.replace(str(a), 'first')}"
    with pytest.raises(ConfigError, match="out_dtype fp8_block is only for the last merge of a recipe"):
        Request.of(asked).checked_recipe()
