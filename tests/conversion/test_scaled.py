"""Test that quantised checkpoints are merged as the numbers that their codes stand for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from paddle_merge import CheckpointError, MergeConfig, merge
from paddle_merge.commands.diff.diff import compare, open_models
from paddle_merge.plan.account import account
from paddle_merge.plan.planner import make_plan
from paddle_merge.recipe.request import Request
from tests.conversion.lora.test_lora import peft
from tests.support.checkpoints import read
from tests.support.quantised import FP8, blocks, expanded, numbers, random_codes, write_typed

E4M3 = ml_dtypes.float8_e4m3fn
BF16 = ml_dtypes.bfloat16
LLAMA = {
    "model_type": "llama",
    "hidden_size": 12,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 20,
}
ATTENTION, MLP = "model.layers.0.self_attn", "model.layers.0.mlp"
SHAPES = {
    f"{ATTENTION}.q_proj": (12, 12),
    f"{ATTENTION}.k_proj": (6, 12),
    f"{ATTENTION}.v_proj": (6, 12),
    f"{MLP}.gate_proj": (20, 12),
    f"{MLP}.up_proj": (20, 12),
    f"{MLP}.down_proj": (12, 20),
}


def run(out: Path, *models: Path | str, **options: Any) -> dict[str, np.ndarray]:
    merge(MergeConfig(model_path_list=[str(model) for model in models], output_path=str(out), **options))
    return read(out)


def llama(folder: Path, seed: int, block: tuple[int, int] = (8, 5)) -> tuple[Path, Path]:
    """Write a model with FP8 blocks, and the same as float32 numbers. Neighbouring ones of a seed are close."""
    rng = np.random.default_rng(seed)
    held: dict[str, np.ndarray] = {"model.embed_tokens.weight": np.ones((7, 12), BF16)}
    plain = {"model.embed_tokens.weight": np.ones((7, 12), np.float32)}
    for name, shape in SHAPES.items():
        codes = random_codes(shape, rng)
        scales = (0.01 + rng.random([-(-size // each) for size, each in zip(shape, block, strict=True)])).astype(np.float32)
        held |= {f"{name}.weight": codes, f"{name}.weight_scale_inv": scales}
        plain[f"{name}.weight"] = numbers(codes, scales, block)
    quantised = write_typed(folder / f"q{seed}", held, {**LLAMA, **blocks(block)})
    return quantised, write_typed(folder / f"p{seed}", plain, LLAMA)


def test_a_hand_sized_merge(tmp_path: Path) -> None:
    """The average of 3 x 5 codes with 2 x 2 blocks and of plain bfloat16 numbers."""
    codes = np.array([[1, 2, 3, 4, 5], [6, 7, 8, 9, 10], [11, 12, 13, 14, 15]]).astype(E4M3)
    scales = np.array([[1, 10, 100], [0.5, 2, 4]], np.float32)
    tensors = {"l.weight": codes, "l.weight_scale_inv": scales, "l.input_scale": np.ones(1, np.float32)}
    a = write_typed(tmp_path / "a", {**tensors, "n.weight": np.ones(2, BF16)}, blocks((2, 2)))
    b = write_typed(tmp_path / "b", {"l.weight": np.full((3, 5), 2, BF16), "n.weight": np.zeros(2, BF16)}, {})
    out = run(tmp_path / "out", a, b, out_dtype="bfloat16")
    assert out["l.weight"].tolist() == [[1.5, 2, 16, 21, 251], [4, 4.5, 41, 46, 500], [3.75, 4, 14, 15, 31]]  # 500: of 501
    assert out["n.weight"].tolist() == [0.5, 0.5]
    assert set(out) == {"l.weight", "n.weight"}
    assert json.loads((tmp_path / "out" / "config.json").read_text()) == {
        "architectures": ["Tiny"],
        "dtype": "bfloat16",
        "torch_dtype": "bfloat16",
    }


@pytest.mark.parametrize("method", ["ties", "slerp", "dare_linear"])
def test_merges_of_codes_are_merges_of_their_numbers(tmp_path: Path, method: str) -> None:
    pairs = [llama(tmp_path, seed) for seed in range(3)]
    options: dict[str, Any] = {"merge_method": method, "out_dtype": "float32"}
    if method == "slerp":
        pairs = pairs[:2]
    outs = []
    for kind in (0, 1):
        *models, base = [pair[kind] for pair in pairs] if method != "slerp" else [*(pair[kind] for pair in pairs), None]
        more = {"base_model_path": str(base)} if base is not None else {}
        run(tmp_path / f"out{kind}", *models, **options, **more)
        outs.append((tmp_path / f"out{kind}" / "model.safetensors").read_bytes())
    assert outs[0] == outs[1]


def test_fused_and_transposed_views(tmp_path: Path) -> None:
    """Blocks of 8 rows end within query, key and gate, which are fused with others, and transposed, for PaddleNLP."""
    (a, plain), (b, other) = llama(tmp_path, 0), llama(tmp_path, 1)
    for options in ({"output_layout": "paddlenlp"}, {"output_layout": "paddleformers"}):
        found = run(tmp_path / "a", a, b, out_dtype="float32", overwrite=True, **options)
        expected = run(tmp_path / "b", plain, other, out_dtype="float32", overwrite=True, **options)
        assert found.keys() == expected.keys()
        assert all((found[name] == expected[name]).all() for name in expected)


def test_fused_weights_are_split_within_blocks(tmp_path: Path) -> None:
    """A fused matrix of 24 rows has blocks of 8, and query ends at row 12, key at 18: a scale belongs to two of them."""
    rng, name = np.random.default_rng(0), f"{ATTENTION}.qkv_proj"
    codes, scales = random_codes((24, 12), rng), rng.random((3, 3)).astype(np.float32)
    config = {**LLAMA, "model_type": "phi3"}
    fused = write_typed(
        tmp_path / "f", {f"{name}.weight": codes, f"{name}.weight_scale_inv": scales}, {**config, **blocks((8, 5))}
    )
    x = numbers(codes, scales, (8, 5))
    apart = {"q_proj": x[:12], "k_proj": x[12:18], "v_proj": x[18:]}
    split = write_typed(
        tmp_path / "s", {f"{ATTENTION}.{word}.weight": part.astype(BF16) for word, part in apart.items()}, config
    )
    out = run(tmp_path / "out", split, fused, weight_list=[0.0, 1.0], normalize=False, out_dtype="float32")
    for word, part in apart.items():
        assert (out[f"{ATTENTION}.{word}.weight"] == part).all(), word


FORMATS: dict[str, tuple[dict[str, Any], Any, np.ndarray, tuple[int, int]]] = {
    "vLLM, per tensor": (FP8, E4M3, np.array(0.5, np.float32), (6, 4)),
    "FBGEMM, per row": ({"quant_method": "fbgemm_fp8"}, E4M3, np.linspace(1, 2, 6, dtype=np.float32).reshape(6, 1), (1, 4)),
    "ModelOpt": ({"quant_method": "modelopt", "quant_algo": "FP8"}, E4M3, np.array([3], np.float32), (6, 4)),
    "a row each, as a vector": ({"quant_method": "fbgemm_fp8"}, E4M3, np.linspace(1, 2, 6, dtype=np.float32), (1, 4)),
    "E5M2": (FP8, ml_dtypes.float8_e5m2, np.array([0.25], np.float32), (6, 4)),
    "exponents": (
        {**FP8, "weight_block_size": [4, 2], "scale_fmt": "ue8m0"},
        E4M3,
        np.array([[126, 127], [0, 130]], np.uint8),
        (4, 2),
    ),
}


@pytest.mark.parametrize("format", FORMATS)
def test_formats(tmp_path: Path, format: str) -> None:
    said, dtype, scales, block = FORMATS[format]
    codes = np.random.default_rng(0).normal(size=(6, 4)).astype(dtype)
    name = "l.weight_scale_inv" if said["quant_method"] == "fp8" else "l.weight_scale"
    a = write_typed(tmp_path / "a", {"l.weight": codes, name: scales}, {"quantization_config": said})
    meant = np.ldexp(1.0, scales.astype(int) - 127) if scales.dtype == np.uint8 else scales.astype(np.float64)
    meant = np.broadcast_to(meant.reshape(-1, 1) if meant.ndim < 2 else meant, (-(-6 // block[0]), -(-4 // block[1])))
    exact = codes.astype(np.float64) * expanded(meant, block, (6, 4))
    found = run(tmp_path / "out", a, a, out_dtype="float32")["l.weight"]
    assert (found == exact.astype(np.float32)).all()


def compressed(strategy: str, type: str = "float", **more: Any) -> dict[str, Any]:
    weights = {"num_bits": 8, "type": type, "strategy": strategy, "symmetric": True, **more}
    group = {"targets": ["Linear"], "weights": weights, "input_activations": None}
    return {"quant_method": "compressed-tensors", "format": f"{type}-quantized", "config_groups": {"group_0": group}}


@pytest.mark.parametrize(
    ("said", "scales", "block"),
    [
        (compressed("tensor", "int"), np.full((1,), 0.5), (6, 4)),
        (compressed("channel", "int"), np.linspace(0.5, 3, 6).reshape(6, 1), (1, 4)),
        (compressed("group", "int", group_size=2), np.linspace(0.5, 6, 12).reshape(6, 2), (1, 2)),
        (compressed("block", "int", block_structure=[4, 3]), np.linspace(0.5, 2, 4).reshape(2, 2), (4, 3)),
    ],
)
@pytest.mark.parametrize("zeros", [False, True])
def test_integers_of_compressed_tensors(
    tmp_path: Path, said: dict[str, Any], scales: np.ndarray, block: tuple[int, int], zeros: bool
) -> None:
    rng = np.random.default_rng(0)
    codes = rng.integers(-128, 128, (6, 4)).astype(np.int8)
    zero = rng.integers(-128, 128, scales.shape).astype(np.int8) * zeros
    tensors = {"l.weight": codes, "l.weight_scale": scales.astype(BF16)}
    tensors |= {"l.weight_zero_point": zero} if zeros else {}
    a = write_typed(tmp_path / "a", tensors, {"quantization_config": said})
    grid = (-(-6 // block[0]), -(-4 // block[1]))
    held = expanded(scales.astype(BF16).astype(np.float64).reshape(grid), block, (6, 4))
    exact = (codes.astype(np.float64) - expanded(zero.astype(np.float64).reshape(grid), block, (6, 4))) * held
    assert (run(tmp_path / "out", a, a, out_dtype="float32")["l.weight"] == exact).all()


def packed(codes: np.ndarray, bits: int) -> np.ndarray:
    """Pack integers (rows, columns) that count from 0 into words, along the columns."""
    each = 32 // bits
    padded = np.pad(codes.astype(np.uint64), ((0, 0), (0, -codes.shape[1] % each))).reshape(len(codes), -1, each)
    return (padded << np.arange(0, 32, bits, dtype=np.uint64)).sum(2).astype(np.uint32).view(np.int32)


def test_hand_sized_words(tmp_path: Path) -> None:
    """0x76543210 holds the codes 0 to 7, which stand for -8 to -1 times the scale, and 0xFEDCBA98 the codes 8 to 15."""
    words = np.array([[0x76543210, 0xFEDCBA98]], np.uint32).view(np.int32)
    tensors = {"l.weight_packed": words, "l.weight_scale": np.array([[0.5, 2, 1, 4]], BF16)}
    tensors["l.weight_shape"] = np.array([1, 16])
    said = compressed("group", "int", group_size=4, num_bits=4) | {"format": "pack-quantized"}
    a = write_typed(tmp_path / "a", tensors, {"quantization_config": said})
    out = run(tmp_path / "out", a, a)
    assert out["l.weight"].tolist() == [[-4, -3.5, -3, -2.5, -8, -6, -4, -2, 0, 1, 2, 3, 16, 20, 24, 28]]
    assert set(out) == {"l.weight"}
    account(make_plan(Request.of(MergeConfig(model_path_list=[str(a), str(a)], output_path="out")).checked_recipe()))


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("zeros", ["none", "packed", "bytes"])
@pytest.mark.parametrize("layout", [None, "paddlenlp"])
def test_packed_integers_of_compressed_tensors(tmp_path: Path, bits: int, zeros: str, layout: str | None) -> None:
    """Also transposed, and where the zero points of 12 rows end within a word."""
    rng, name, groups = np.random.default_rng(0), f"{ATTENTION}.q_proj.weight", 2
    codes, scales = rng.integers(0, 1 << bits, (12, 16)), rng.random((12, groups)).astype(np.float32)
    zero = rng.integers(0, 1 << bits, (12, groups)) if zeros == "packed" else np.full((12, groups), 1 << bits >> 1)
    tensors = {f"{name}_packed": packed(codes, bits), f"{name}_scale": scales, f"{name}_shape": np.array([12, 16])}
    if zeros == "packed":
        tensors[f"{name}_zero_point"] = np.ascontiguousarray(packed(zero.T, bits).T)
    elif zeros == "bytes":  # as versions before 0.9 do
        below = rng.integers(-8, 8, (12, groups))
        tensors[f"{name}_zero_point"], zero = below.astype(np.int8), zero + below
    said = compressed("group", "int", group_size=8, num_bits=bits) | {"format": "pack-quantized"}
    config = {**LLAMA, "hidden_size": 16, "num_attention_heads": 3, "head_dim": 4, "quantization_config": said}
    a = write_typed(tmp_path / "a", tensors, config)
    shifted = (codes - expanded(zero, (1, 8), (12, 16))).astype(np.float32)
    expected = shifted * expanded(scales, (1, 8), (12, 16)).astype(np.float32)
    options = {"output_layout": layout} if layout else {}
    (found,) = run(tmp_path / "out", a, a, out_dtype="float32", **options).values()
    assert (found == (expected.T if layout else expected)).all()


def test_stacks_of_experts(tmp_path: Path) -> None:
    """A stack of matrices with blocks, and one with a scale for each matrix."""
    rng = np.random.default_rng(0)
    codes, scales = random_codes((3, 6, 4), rng), rng.random((3, 2, 2)).astype(np.float32)
    apart, each = random_codes((3, 6, 4), rng), rng.random(3).astype(np.float32)
    tensors = {"e.gate": codes, "e.gate_scale_inv": scales, "e.up": apart, "e.up_scale_inv": each}
    a = write_typed(tmp_path / "a", tensors, blocks((4, 2)))
    out = run(tmp_path / "out", a, a, out_dtype="float32")
    assert (out["e.gate"] == numbers(codes, scales, (1, 4, 2))).all()
    assert (out["e.up"] == numbers(apart, each.reshape(3, 1, 1), (1, 6, 4))).all()


def test_adapters_on_a_quantised_base(tmp_path: Path) -> None:
    quantised, plain = llama(tmp_path, 0)
    factors = {f"{ATTENTION}.q_proj.lora_A.weight": np.ones((2, 12)), f"{ATTENTION}.q_proj.lora_B.weight": np.ones((12, 2))}
    adapter = peft(tmp_path / "adapter", factors, r=2, lora_alpha=3, target_modules=["q_proj"])
    found = run(tmp_path / "a", f"{quantised}+{adapter}", quantised, out_dtype="float32")
    expected = run(tmp_path / "b", f"{plain}+{adapter}", plain, out_dtype="float32")
    assert all((found[name] == expected[name]).all() for name in expected)
    name = f"{ATTENTION}.q_proj.weight"
    assert (found[name] == (read(plain)[name] + 1.5).astype(np.float32)).all()  # half of 1.5 * (1 + 1)


def test_what_is_said(tmp_path: Path) -> None:
    codes, scales = random_codes((3, 5), np.random.default_rng(0)), np.ones((2, 3), np.float32)
    extra = {"l.k_scale": np.ones(1, np.float32), "l.activation_scale": np.ones(1, np.float32)}
    a = write_typed(tmp_path / "a", {"l.weight": codes, "l.weight_scale_inv": scales, **extra}, blocks((2, 2)))
    config = MergeConfig(model_path_list=[str(a), str(a)], output_path=str(tmp_path / "out"), out_dtype="bfloat16")
    plan = make_plan(Request.of(config).checked_recipe())
    note = (
        f"{a}: is quantised, and read as bfloat16: 1 tensor of float8_e4m3fn with a scale per 2 x 2 block; 2 scales of"
        " activations or of cached keys and values are left out"
    )
    assert plan.layout_notes[0] == note
    assert plan.bytes_in == 2 * (15 + 4 * 6)  # not those of bfloat16
    found = account(plan)
    (made,) = found.made
    assert (made.dtypes, made.notes) == (("bfloat16", "bfloat16"), ("read as bfloat16 from float8_e4m3fn with scales",))
    assert made.sources[0] == ("l.weight", "l.weight_scale_inv")
    fates = {one.name: (one.into, one.why) for one in found.inputs[0].fates}
    assert fates["l.weight_scale_inv"] == (("l.weight",), "")
    assert fates["l.k_scale"][1].startswith("a scale of activations or of cached keys and values")
    assert [one.name for one in found.inputs[0].left_out] == ["l.k_scale", "l.activation_scale"]


def test_diff_compares_numbers(tmp_path: Path) -> None:
    quantised, plain = llama(tmp_path, 0)
    models = open_models((str(quantised), str(plain)), (None, None), "model")
    report = compare(models, 1, False)
    assert report["same"]
    assert any("is quantised, and read as bfloat16" in note for note in report["notes"])


def test_diff_sees_what_bfloat16_would_not(tmp_path: Path) -> None:
    """One scale of four is 1 + 2^-12, of which bfloat16 has nothing; its block is 2 x 2 of 4 x 4 elements."""
    codes, scales = np.ones((4, 4), E4M3), np.ones((2, 2), np.float32)
    folders = []
    for name, scale in (("a", 1), ("b", 1 + 2**-12)):
        scales[1, 0] = scale
        tensors = {"l.weight": codes, "l.weight_scale_inv": scales}
        folders.append(str(write_typed(tmp_path / name, tensors, blocks((2, 2)))))
    report = compare(open_models((folders[0], folders[1]), (None, None), "model"), 1, False)
    assert (report["same"], report["total"]["changed"], report["total"]["max"]) == (False, 4, 2**-12)


def weight(codes: np.ndarray, scales: np.ndarray | None = None, name: str = "l.weight_scale") -> dict[str, np.ndarray]:
    return {"l.weight": codes, **({} if scales is None else {name: scales})}


ONES, INTS = np.ones((6, 4), E4M3), np.ones((6, 4), np.int8)
CHANNELS = np.ones((6, 1), np.float32)
PACKED = {"l.weight_packed": np.ones((6, 1), np.int32), "l.weight_scale": CHANNELS}


@pytest.mark.parametrize(
    ("tensors", "said", "words"),
    [
        (weight(ONES), FP8, "tensor 'l.weight' has no scales"),
        (weight(INTS, CHANNELS), {"quant_method": "fbgemm_fp8"}, "tensor 'l.weight' is int8, and fbgemm_fp8 has no such"),
        (weight(ONES, np.ones((6, 1), np.int64)), FP8, "tensor 'l.weight' has scales of int64"),
        (
            weight(ONES, np.ones((1, 6), np.float32)),
            FP8,
            "is [6, 4] and has scales [1, 6], which don't fit (config.json says nothing of blocks",
        ),
        (
            weight(ONES, np.ones((3, 2), np.float32)),
            {**FP8, "weight_block_size": [4, 2]},
            "has scales [3, 2], which don't fit (config.json says blocks of 4 x 2)",
        ),
        (weight(ONES, CHANNELS), {"quant_method": "modelopt", "quant_algo": "NVFP4"}, "the quant_algo NVFP4 of ModelOpt"),
        (weight(ONES, CHANNELS), {"quant_method": "gptq"}, "the quantization_config of gptq can't be read"),
        (weight(ONES, CHANNELS), {**FP8, "expert_dtype": "fp4"}, "its experts are fp4"),
        (PACKED, compressed("channel", "int") | {"format": "pack-quantized"}, "has no weight_shape"),
        (
            PACKED | {"l.weight_shape": np.array([6, 7])},
            compressed("channel", "int") | {"format": "pack-quantized"},
            "holds [6, 7] numbers in [6, 1] words, and only 4 and 8 bits",
        ),
        (PACKED, compressed("channel") | {"format": "nvfp4-pack-quantized"}, "the format nvfp4-pack-quantized of"),
        (weight(INTS, CHANNELS) | {"l.weight_g_idx": np.ones(4, np.int32)}, compressed("channel", "int"), "(g_idx)"),
        (weight(INTS, CHANNELS), compressed("channel", "int", actorder="group"), "in another order (actorder)"),
        (weight(INTS, CHANNELS), compressed("channel", "int") | {"transform_config": {"x": 1}}, "the weights were rotated"),
        (
            {"l.quant_weight": INTS, "l.quant_scale": CHANNELS},
            {"weight_quantize_algo": "weight_only_int8"},
            "as the GPU that it was called for needs them",
        ),
        (weight(ONES, CHANNELS) | {"l.pre_quant_scale": CHANNELS}, FP8, "it isn't known what"),
    ],
)
def test_what_is_refused(tmp_path: Path, tensors: dict[str, np.ndarray], said: dict[str, Any], words: str) -> None:
    a = write_typed(tmp_path / "a", tensors, {"quantization_config": said})
    with pytest.raises(CheckpointError) as caught:
        run(tmp_path / "out", a, a)
    (problem,) = caught.value.problems
    assert problem.startswith(f"{a}: is quantised (its config.json has a quantization_config")
    assert words in problem
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "said",
    [
        "fp8",
        {**FP8, "weight_block_size": [128]},
        {**FP8, "weight_block_size": [0, 128]},
        {**FP8, "weight_block_size": "ab"},
        {**FP8, "weight_block_size": 128},
        {**FP8, "modules_to_not_convert": 7},
        {"quant_method": "compressed-tensors", "config_groups": ["group_0"]},
        compressed("block", block_structure=[4]),
        compressed("group", group_size="all"),
    ],
)
def test_a_config_that_is_malformed(tmp_path: Path, said: Any) -> None:
    a = write_typed(tmp_path / "a", weight(ONES, CHANNELS), {"quantization_config": said})
    with pytest.raises(CheckpointError, match="its quantization_config isn't as any library writes it"):
        run(tmp_path / "out", a, a)


def test_a_config_that_is_left_over(tmp_path: Path) -> None:
    """As DeepSeek's conversion to bfloat16 leaves it; and one that --config_from names."""
    a = write_typed(tmp_path / "a", {"l.weight": np.ones((2, 3), BF16)}, blocks((2, 2)))
    b = write_typed(tmp_path / "b", {"l.weight": np.ones((2, 3), BF16)}, {})
    for models, options in (((a, a), {}), ((b, b), {"config_from": str(a)})):
        assert (run(tmp_path / "out", *models, overwrite=True, **options)["l.weight"] == 1).all()
        assert "quantization_config" not in json.loads((tmp_path / "out" / "config.json").read_text())
