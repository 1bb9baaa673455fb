"""Test families of models that Paddle's libraries store otherwise than Llama: which matrices turn, what is fused, what
PaddleFormers leaves as it is. tests/loaders/test_families.py shows the same with the libraries themselves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from paddle_merge import CheckpointError, MergeConfig, merge
from paddle_merge.checkpoints.open import open_checkpoint
from paddle_merge.conversion.detect import detect
from paddle_merge.conversion.fused import slices
from paddle_merge.conversion.orientation import is_transposed
from tests.conversion.lora.test_lora import paddle
from tests.conversion.test_fused import fused
from tests.conversion.test_layout import CONFIG, HIDDEN, INTER, VOCAB, State, laid_out, llama
from tests.methods.shared.test_angles import recipe
from tests.support.checkpoints import read, write

LAYER = "model.layers.0."


# By PaddleFormers 1.2.0's _gen_aoa_config of each family, and PaddleNLP 3.0.0b4's _get_name_mappings.
@pytest.mark.parametrize(
    ("name", "shape", "family", "transposed"),
    [
        (f"{LAYER}mlp.gate.weight", (32, 4), "ernie4_5_moe", True),
        (f"{LAYER}mlp.gate.weight", (4, 32), "glm4_moe", False),
        (f"{LAYER}mlp.gate.weight", (32, 4), "ernie4_5_moe_vl", False),
        (f"{LAYER}mlp.gate.weight_1", (32, 4), "ernie4_5_moe_vl", None),
        (f"{LAYER}mlp.router.weight", (4, 32), "gpt_oss", False),
        (f"{LAYER}feed_forward.router.weight", (32, 4), "jamba", True),
        (f"{LAYER}mlp.router.weight", (32, 4), "unheard_of", None),
        (f"{LAYER}mlp.shared_expert_gate.weight", (32, 1), "qwen2_moe", True),
        (f"{LAYER}mlp.moe_statics.e_score_correction_bias", (1, 4), "ernie4_5_moe", False),
        ("model.mtp_linear_proj.0.weight", (64, 32), "ernie4_5_moe", True),
        ("model.mtp_emb_norm.0.weight", (32,), "ernie4_5_moe", False),
        (f"{LAYER}mlp.experts.gate_up_proj", (4, 32, 96), "gpt_oss", False),
        (f"{LAYER}mlp.experts.down_proj", (4, 32, 96), "unheard_of", None),
        (f"{LAYER}mlp.experts.down_proj_bias", (4, 32), "gpt_oss", False),
        (f"{LAYER}self_attn.sinks", (4,), "gpt_oss", False),
        (f"{LAYER}self_attn.kv_a_proj_with_mqa.weight", (32, 12), "deepseek_v3", True),
        (f"{LAYER}block_sparse_moe.experts.3.w2.weight", (32, 12), "mixtral", True),
        (f"{LAYER}linear_attn.in_proj_qkvz.weight", (32, 96), "qwen3_next", True),
        (f"{LAYER}linear_attn.conv1d.weight", (64, 1, 4), "qwen3_next", False),
        ("visual.blocks.0.attn.qkv.weight", (24, 72), "qwen2_5_vl_text", True),
        ("visual.patch_embed.proj.weight", (24, 3, 2, 4, 4), "qwen2_5_vl_text", False),
        ("visual.merger.mlp.2.weight", (96, 32), "qwen2_5_vl_text", True),
        ("visual.pos_embed.weight", (16, 24), "qwen3_vl_text", False),
        ("visual.deepstack_merger_list.0.linear_fc1.weight", (96, 96), "qwen3_vl_text", True),
        ("visual.vision_model.embeddings.packing_position_embedding.weight", (32, 24), "paddleocr_vl", False),
        ("mlp_AR.linear_1.weight", (96, 96), "paddleocr_vl", True),
        ("model.embed_tokens.weight", (64, 32), "llama", False),
        (f"{LAYER}self_attn.strange.weight", (64, 32), "llama", None),
    ],
)
def test_which_tensors_turn(name: str, shape: tuple[int, ...], family: str, transposed: bool | None) -> None:
    assert is_transposed(name, shape, family) is transposed


def test_gate_and_up_are_halves_of_the_matrix_at_hand() -> None:
    config = {"model_type": "ernie4_5_moe", "intermediate_size": 6}
    assert slices("up_gate_proj", "paddleformers", config, outputs=4) == {"gate_proj": [(0, 2)], "up_proj": [(2, 4)]}
    assert slices("up_gate_proj", "paddleformers", config) == {"gate_proj": [(0, 6)], "up_proj": [(6, 12)]}


def test_queries_with_gates() -> None:
    """Qwen3-Next: each of two heads, two wide, has a query and a gate."""
    config = {
        "model_type": "qwen3_next",
        "hidden_size": 8,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 2,
    }
    assert slices("qkv_proj", "paddleformers", config) == {"q_proj": [(0, 8)], "k_proj": [(8, 10)], "v_proj": [(10, 12)]}


# --- mixtures of experts ---

MOE = CONFIG | {"model_type": "ernie4_5_moe", "moe_intermediate_size": 4, "moe_num_experts": 3}


def ernie(seed: int) -> State:
    """Two experts four wide and a shared one eight wide, where config.json's intermediate_size is 24."""
    model, generator = llama(seed), np.random.default_rng(seed + 50)
    shapes = {f"{LAYER}mlp.gate.weight": (3, HIDDEN), f"{LAYER}mlp.moe_statics.e_score_correction_bias": (1, 3)}
    for part, width in (("experts.0", 4), ("experts.1", 4), ("shared_experts", 8)):
        shapes |= {f"{LAYER}mlp.{part}.{word}_proj.weight": (width, HIDDEN) for word in ("gate", "up")}
        shapes[f"{LAYER}mlp.{part}.down_proj.weight"] = (HIDDEN, width)
    shapes["model.mtp_linear_proj.0.weight"] = (HIDDEN, 2 * HIDDEN)
    names = [name for name in model if name.endswith("q_proj.bias")]
    return {name: value for name, value in model.items() if name not in names} | {
        name: generator.integers(-8, 8, shape).astype(float) for name, shape in shapes.items()
    }


def in_paddleformers(hf: State) -> State:
    """As PaddleFormers has it in memory: by its _gen_aoa_config, `^T` on what is named here."""
    turned = {name for name in hf if ".gate.weight" in name or "mtp_linear_proj" in name}
    return {name: value.T if name in turned else value for name, value in fused(hf, "paddleformers").items()}


def saved(folder: Path, state: State, layout: str = "hf", config: dict[str, Any] = MOE) -> str:
    extra = {"source": "paddle"} if layout == "paddleformers" else {}
    return str(write(folder, state, "float32", format="pt" if layout == "hf" else "np", config={**config, **extra}))


def merged(folder: Path, *paths: str, **fields: Any) -> State:
    merge(MergeConfig(model_path_list=list(paths), output_path=str(folder), **fields), progress=False)
    return read(folder)


def refused(folder: Path, *paths: str, **fields: Any) -> list[str]:
    with pytest.raises(CheckpointError) as caught:
        merged(folder, *paths, **fields)
    assert not folder.exists()
    return caught.value.problems


def means(a: State, b: State) -> State:
    return {name: ((a[name] + b[name]) / 2).astype("f4") for name in a}


def assert_same(got: State, expected: State) -> None:
    assert got.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_array_equal(got[name], value, err_msg=name)


def test_ernie_from_layout_to_layout(tmp_path: Path) -> None:
    a, b = ernie(0), ernie(1)
    hf, inside = means(a, b), in_paddleformers(means(a, b))
    stored = [saved(tmp_path / "a", a), saved(tmp_path / "b", in_paddleformers(b), "paddleformers")]
    assert_same(merged(tmp_path / "first", *stored), hf)
    assert_same(merged(tmp_path / "second", *reversed(stored)), inside)
    assert_same(merged(tmp_path / "hf", *reversed(stored), output_layout="hf"), hf)
    assert_same(merged(tmp_path / "paddle", *stored, output_layout="paddleformers"), inside)


def test_a_fused_adapter_of_experts(tmp_path: Path) -> None:
    """PaddleFormers' recipe for LoRA adapts up_gate_proj of all experts; each is as wide as it is."""
    base, generator = ernie(0), np.random.default_rng(9)
    expected, factors = dict(base), dict[str, np.ndarray]()
    for part, width in (("experts.1", 4), ("shared_experts", 8)):
        a, b = generator.normal(size=(HIDDEN, 2)), generator.normal(size=(2, 2 * width))
        factors |= {f"{LAYER}mlp.{part}.up_gate_proj.lora_A": a, f"{LAYER}mlp.{part}.up_gate_proj.lora_B": b}
        for number, word in enumerate(("gate_proj", "up_proj")):
            half = b[:, number * width : (number + 1) * width]
            name = f"{LAYER}mlp.{part}.{word}.weight"
            expected[name] = base[name] + (3 * a @ half).T
    adapter = paddle(tmp_path / "lora", factors, r=2, target_modules=[".*up_gate_proj.*"])
    stored = saved(tmp_path / "base", base)
    config = MergeConfig(lora_model_path=adapter, base_model_path=stored, output_path=str(tmp_path / "out"))
    merge(config, progress=False)
    for name, value in read(tmp_path / "out").items():
        np.testing.assert_allclose(value, expected[name], atol=1e-5, err_msg=name)


def test_a_router_that_no_layout_turns_says_nothing_of_the_others(tmp_path: Path) -> None:
    """GLM-4-MoE's is [experts, hidden] in Paddle's layout too, as PaddleFormers saves it."""
    config = {**MOE, "model_type": "glm4_moe", "n_routed_experts": 3}
    a = {name: value for name, value in ernie(0).items() if "statics" not in name and "mtp" not in name}
    inside = fused(a, "paddleformers")
    path = saved(tmp_path / "paddle", inside, "paddleformers", config)
    assert detect(open_checkpoint(path), "model", {}).layout == "paddleformers"
    assert_same(merged(tmp_path / "hf", path, path, output_layout="hf"), a)
    path = saved(tmp_path / "a", a, "hf", config)
    assert_same(merged(tmp_path / "out", path, path, output_layout="paddleformers"), inside)


def test_what_may_turn_is_told_once(tmp_path: Path) -> None:
    """As of a state dict that holds the experts of 2 layers in stacks."""
    name = "model.layers.{}.mlp.experts.down_proj"
    path = saved(tmp_path / "a", plain(0) | {name.format(layer): np.ones((2, 3, 4)) for layer in (0, 1)}, config=QWEN)
    said = f"{path}: tensors {name.format(0)!r} and {name.format(1)!r} (the first is [2, 3, 4]): it isn't known whether they"
    (sentence,) = refused(tmp_path / "out", path, path, output_layout="paddlenlp")
    assert sentence == f"{said} have to be transposed from hf to paddlenlp"


def test_rows_of_a_router_that_no_layout_turns(tmp_path: Path) -> None:
    config, results = {**MOE, "model_type": "glm4_moe", "n_routed_experts": 3}, dict[str, State]()
    for layout in ("hf", "paddleformers"):
        states = [
            {name: x for name, x in ernie(seed).items() if "statics" not in name and "mtp" not in name} for seed in (0, 1)
        ]
        held = [fused(state, layout) if layout != "hf" else state for state in states]
        paths = [saved(tmp_path / f"{layout}{n}", state, layout, config) for n, state in enumerate(held)]
        text = recipe("nuslerp", paths, weights=(3, 1), nuslerp_flatten=False)
        merge(MergeConfig(recipe_yaml=text, output_path=str(tmp_path / layout)), progress=False)
        results[layout] = read(tmp_path / layout)
    name = f"{LAYER}mlp.gate.weight"
    np.testing.assert_array_equal(results["hf"][name], results["paddleformers"][name])


def test_rows_of_leftovers(tmp_path: Path) -> None:
    """A weight that is left fused, [in, out], has a row for each output nevertheless."""
    results = dict[str, State]()
    for kind in ("whole", "apart"):
        states = [left(plain(seed)) if kind == "whole" else plain(seed) for seed in (0, 1)]
        paths = [saved(tmp_path / f"{kind}{n}", state, config=QWEN) for n, state in enumerate(states)]
        text = recipe("nuslerp", paths, weights=(3, 1), nuslerp_flatten=False)
        merge(MergeConfig(recipe_yaml=text, output_path=str(tmp_path / kind)), progress=False)
        results[kind] = read(tmp_path / kind)
    expected = left(results["apart"])
    for name, value in results["whole"].items():
        np.testing.assert_allclose(value, expected[name], rtol=1e-5, atol=1e-6, err_msg=name)


@pytest.mark.parametrize("family", ["qwen3_5_text", "minimax_m2"])
def test_what_paddleformers_has_in_memory_otherwise_is_refused(tmp_path: Path, family: str) -> None:
    path = saved(tmp_path / "a", llama(0), config={**CONFIG, "model_type": family})
    said = refused(tmp_path / "out", path, path, output_layout="paddleformers")
    (sentence,) = said
    assert sentence.startswith(f"{path}: can't be written as PaddleFormers has a model of type {family!r} in memory")
    assert sentence.endswith(
        "leave out --output_layout paddleformers (for the Python API, save_to_hf=False): PaddleFormers"
        " loads Hugging Face's layout"
    )
    assert_same(merged(tmp_path / "hf", path, path), {name: value.astype("f4") for name, value in llama(0).items()})


# --- what PaddleFormers leaves as it is in memory ---


def left(hf: State, layers: tuple[int, ...] = (0, 1)) -> State:
    """As PaddleFormers' unified_checkpoint saves it: what is fused stays [in, out]; with one layer, as its default saves
    Gemma 3."""
    inside = fused(hf, "paddleformers")
    kept = tuple(f"model.layers.{layer}." for layer in layers)
    words = ("qkv_proj", "up_gate_proj")
    found = {name: value for name, value in inside.items() if name.startswith(kept) and name.split(".")[-2] in words}
    apart = ("q_proj", "k_proj", "v_proj", "gate_proj", "up_proj")
    rest = {name: value for name, value in hf.items() if not (name.startswith(kept) and name.split(".")[-2] in apart)}
    return {**rest, **found}


QWEN = {**CONFIG, "model_type": "qwen3"}


def plain(seed: int) -> State:
    return {name: value for name, value in llama(seed).items() if not name.endswith("bias")}


def test_leftovers_are_split_where_that_is_needed(tmp_path: Path) -> None:
    a, b = plain(0), plain(1)
    whole, apart = saved(tmp_path / "a", left(a), config=QWEN), saved(tmp_path / "b", b, config=QWEN)
    inside = saved(tmp_path / "p", fused(b, "paddleformers"), "paddleformers", config=QWEN)
    assert_same(merged(tmp_path / "1", whole, apart), means(a, b))
    assert_same(merged(tmp_path / "2", apart, whole), means(a, b))
    assert_same(merged(tmp_path / "3", whole, inside), means(a, b))
    assert_same(merged(tmp_path / "4", inside, whole), fused(means(a, b), "paddleformers"))
    assert_same(merged(tmp_path / "5", whole, whole, output_layout="hf"), means(a, a))
    assert_same(merged(tmp_path / "6", whole, whole, output_layout="paddleformers"), fused(means(a, a), "paddleformers"))
    assert_same(merged(tmp_path / "7", whole, whole), left(means(a, a)))
    some = saved(tmp_path / "c", left(a, layers=(1,)), config=QWEN)
    assert_same(merged(tmp_path / "8", some, whole), means(a, a))
    assert_same(merged(tmp_path / "9", some, some), left(means(a, a), layers=(1,)))


def test_a_tied_head_that_unified_checkpoints_transpose(tmp_path: Path) -> None:
    """Gemma 3's, by transpose_weight_keys."""
    config = {**CONFIG, "model_type": "gemma3_text", "tie_word_embeddings": True}
    a = {name: value for name, value in plain(0).items() if name != "lm_head.weight"}
    path = saved(tmp_path / "a", {**left(a), "lm_head.weight": a["model.embed_tokens.weight"].T}, config=config)
    assert_same(merged(tmp_path / "hf", path, path, output_layout="hf"), means(a, a))
    assert_same(merged(tmp_path / "same", path, path), left(means(a, a)))
    inside = {**fused(a, "paddleformers"), "lm_head.weight": a["model.embed_tokens.weight"]}
    assert_same(merged(tmp_path / "paddle", path, path, output_layout="paddleformers"), means(inside, inside))
    wrong = saved(tmp_path / "b", {**left(a), "lm_head.weight": np.ones((HIDDEN, VOCAB))}, config=config)
    assert "ties lm_head to the embedding, but their values differ" in refused(tmp_path / "no", wrong, wrong)[0]


def test_leftovers_that_are_none_are_refused(tmp_path: Path) -> None:
    """[out, in], which PaddleFormers never writes; and beside what they would be split into."""
    a = plain(0)
    name = f"{LAYER}mlp.up_gate_proj.weight"
    turned = saved(tmp_path / "a", {**left(a), name: left(a)[name].T}, config=QWEN)
    (said,) = refused(tmp_path / "out", turned, turned, output_layout="hf")
    assert said == f"{turned}: tensor {name!r} is [{2 * INTER}, {HIDDEN}], but config.json says {HIDDEN} along axis 0"
    both = saved(tmp_path / "b", {**left(a), f"{LAYER}mlp.up_proj.weight": np.ones((INTER, HIDDEN))}, config=QWEN)
    (said,) = refused(tmp_path / "out", both, both, output_layout="hf")
    assert said.endswith(f"would be converted to '{LAYER}mlp.up_proj.weight', which exists already")


# --- vision-language models ---

OCR = {**CONFIG, "model_type": "paddleocr_vl", "vision_config": {"hidden_size": 6, "intermediate_size": 10}}
VISION = {
    "visual.vision_model.encoder.layers.0.self_attn.q_proj.weight": (6, 6),
    "visual.vision_model.encoder.layers.0.self_attn.k_proj.weight": (6, 6),
    "visual.vision_model.encoder.layers.0.mlp.fc1.weight": (10, 6),
    "visual.vision_model.embeddings.position_embedding.weight": (4, 6),
    "visual.vision_model.embeddings.patch_embedding.weight": (6, 3, 2, 2),
    "mlp_AR.linear_1.weight": (24, 24),
    "mlp_AR.linear_2.weight": (HIDDEN, 24),
}


def ocr(seed: int) -> State:
    generator = np.random.default_rng(seed)
    return plain(seed) | {name: generator.integers(-8, 8, shape).astype(float) for name, shape in VISION.items()}


def test_the_language_model_tells_the_layout_of_paddleocr_vl(tmp_path: Path) -> None:
    """Whose vision tower has layers of its own, all of them square."""
    a, b = ocr(0), ocr(1)
    turned = [name for name in VISION if "fc1" in name or "linear" in name]  # laid_out turns those of attention

    def in_paddle(state: State) -> State:
        return {name: value.T if name in turned else value for name, value in laid_out(state, "paddleformers").items()}

    paths = [saved(tmp_path / "a", a, config=OCR), saved(tmp_path / "b", in_paddle(b), "paddleformers", config=OCR)]
    assert [detect(open_checkpoint(path), "model", {}).layout for path in paths] == ["hf", "paddleformers"]
    assert_same(merged(tmp_path / "hf", *paths), means(a, b))
    assert_same(merged(tmp_path / "paddle", *reversed(paths)), in_paddle(means(a, b)))


def test_biases_under_another_prefix(tmp_path: Path) -> None:
    """PaddleFormers 1.2 saves those of Qwen2.5-VL so, and can't load them then."""
    config = {**CONFIG, "model_type": "qwen2_5_vl_text"}
    a = plain(0)
    bias, other = f"{LAYER}self_attn.q_proj.bias", "model.language_model.layers.0.self_attn.q_proj.bias"
    own = saved(tmp_path / "own", {**a, other: np.ones(HIDDEN)}, config=config)
    hub = saved(tmp_path / "hub", {**a, bias: np.ones(HIDDEN)}, config=config)
    mended = {**means(a, a), bias: np.ones(HIDDEN)}
    assert_same(merged(tmp_path / "1", own, own), mended)
    assert_same(merged(tmp_path / "2", own, output_layout="hf", merge_method="passthrough"), mended)
    assert_same(merged(tmp_path / "3", own, hub), mended)
    kept = {**means(a, a), other: np.ones(HIDDEN)}
    assert_same(merged(tmp_path / "4", own, merge_method="passthrough"), kept)  # as when an adapter is folded in
    two = {**a, other: np.ones(HIDDEN), bias: np.zeros(HIDDEN)}  # two language models, for all that is known
    path = saved(tmp_path / "two", two, config=config)
    assert_same(merged(tmp_path / "5", path, path, output_layout="hf"), means(two, two))


def test_names_in_memory_become_those_of_files(tmp_path: Path) -> None:
    """PaddleFormers' Trainer saves Qwen2.5-VL's as they are in memory, and can't open them so in Hugging Face's layout;
    Qwen3-VL's are the same in files."""
    config = {**CONFIG, "model_type": "qwen2_5_vl_text"}
    a = plain(0)
    inside = {
        name if name == "lm_head.weight" else f"model.language_model.{name.removeprefix('model.')}": value
        for name, value in fused(a, "paddleformers").items()
    }
    inside["model.visual.merger.mlp.0.weight"] = np.arange(24.0).reshape(6, 4)
    path = saved(tmp_path / "a", inside, "paddleformers", config=config)
    expected = {**means(a, a), "visual.merger.mlp.0.weight": np.arange(24.0).reshape(6, 4).T}
    assert_same(merged(tmp_path / "hf", path, path, output_layout="hf"), expected)
    path = saved(tmp_path / "b", inside, "paddleformers", config={**CONFIG, "model_type": "qwen3_vl_text"})
    assert "model.visual.merger.mlp.0.weight" in merged(tmp_path / "3", path, path, output_layout="hf")


FLEET = {"model.embed_tokens.": "model.embedding.embed_tokens.", "lm_head.": "model.lm_head.", "q_norm": "q_layernorm"}


def in_fleet(state: State) -> State:
    """By PaddleFormers 1.2.0's _gen_aoa_config of Qwen3ForCausalLM, which is of paddlefleet."""
    found = fused(state, "paddleformers")
    for old, new in FLEET.items():
        found = {name.replace(old, new): value for name, value in found.items()}
    return found


def test_names_of_paddlefleet(tmp_path: Path) -> None:
    a, b = ({**plain(seed), f"{LAYER}self_attn.q_norm.weight": np.full(4, float(seed))} for seed in range(2))
    fleet = [
        saved(tmp_path / f"f{number}", in_fleet(one), "paddleformers", config=QWEN) for number, one in enumerate((a, b))
    ]
    hub = saved(tmp_path / "hf", b, config=QWEN)
    assert_same(merged(tmp_path / "1", *fleet), in_fleet(means(a, b)))
    assert_same(merged(tmp_path / "2", *fleet, output_layout="hf"), means(a, b))
    assert_same(merged(tmp_path / "3", fleet[0], hub), fused(means(a, b), "paddleformers"))
    assert_same(merged(tmp_path / "4", hub, fleet[0]), means(b, a))
    router = {**in_fleet(a), f"{LAYER}mlp.gate.weight": np.ones((3, HIDDEN))}
    path = saved(tmp_path / "moe", router, "paddleformers", config=QWEN)
    (said,) = refused(tmp_path / "5", path, output_layout="hf", merge_method="passthrough")
    assert said.startswith(f"{path}: stores tensor '{LAYER}mlp.gate.weight' as paddlefleet's classes have them")
