"""LoRA adapters of either library, folded into a base of any layout, or merged by any method."""

from __future__ import annotations

import json
import math
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from paddle_merge import CheckpointError, ConfigError, MergeConfig, adapted, merge, plan
from paddle_merge.cli import main
from paddle_merge.detect import LAYOUTS
from paddle_merge.readers.adapters import split

from .checkpoints import from_bits, read, to_bits, write
from .test_flex import cut, save
from .test_layout import CONFIG, HEADS, HIDDEN, INTER, KV, VOCAB, WIDTH, State, laid_out, llama, stored

R = 3
LAYER = "model.layers.0."
TARGETS = {  # (in, out)
    f"{LAYER}self_attn.q_proj": (HIDDEN, HEADS * WIDTH),
    f"{LAYER}self_attn.k_proj": (HIDDEN, KV * WIDTH),
    f"{LAYER}mlp.down_proj": (INTER, HIDDEN),
    "lm_head": (HIDDEN, VOCAB),
}
Factors = dict[str, tuple[np.ndarray, np.ndarray]]  # module -> A [in, r], B [r, out]


def factors(seed: int, rank: int = R) -> Factors:
    random = np.random.default_rng(seed)
    return {
        name: (random.standard_normal((inputs, rank)), random.standard_normal((rank, outputs)))
        for name, (inputs, outputs) in TARGETS.items()
    }


def peft(folder: Path, tensors: State, dtype: str = "float64", **config: Any) -> str:
    """An adapter as PEFT saves it: the given tensors under its names."""
    named = {f"base_model.model.{name}": value for name, value in tensors.items()}
    write(folder, named, dtype, prefix="adapter_model", format="pt")
    (folder / "config.json").unlink()
    content = {"peft_type": "LORA", "r": R, "lora_alpha": 6, **config}
    (folder / "adapter_config.json").write_text(json.dumps(content))
    return str(folder)


def paddle(folder: Path, tensors: State, **config: Any) -> str:
    """An adapter as PaddleNLP saves it: a pickle of NumPy arrays."""
    folder.mkdir(parents=True)
    (folder / "lora_model_state.pdparams").write_bytes(pickle.dumps(dict(tensors), protocol=4))
    (folder / "lora_config.json").write_text(json.dumps({"r": R, "lora_alpha": 6, **config}))
    return str(folder)


def in_peft(pairs: Factors) -> State:
    named = {f"{name}.lora_A.weight": a.T.copy() for name, (a, _) in pairs.items()}
    return named | {f"{name}.lora_B.weight": b.T.copy() for name, (_, b) in pairs.items()}


def in_paddle(pairs: Factors, family: str = "model") -> State:
    named = {f"{name}.lora_A": a for name, (a, _) in pairs.items()} | {f"{name}.lora_B": b for name, (_, b) in pairs.items()}
    return {name.replace("model.", f"{family}.", 1): value for name, value in named.items()}


def folded(base: State, pairs: Factors, scale: float = 2.0) -> State:
    """In HF's layout, by eq. 3 of the paper."""
    return base | {f"{name}.weight": base[f"{name}.weight"] + scale * (a @ b).T for name, (a, b) in pairs.items()}


def close(got: State, expected: State, tolerance: float = 1e-12) -> None:
    assert got.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(got[name], value, rtol=tolerance, atol=tolerance, err_msg=name)


def fold(tmp_path: Path, base: str, adapter: str, **fields: Any) -> State:
    out = tmp_path / "out"
    merge(MergeConfig(lora_model_path=adapter, base_model_path=base, output_path=str(out), overwrite=True, **fields))
    return read(out)


def test_by_hand(tmp_path: Path) -> None:
    """W [out 2, in 3] + (alpha 4 / r 2) * B [2, 2] @ A [2, 3], multiplied out by hand."""
    w = np.array([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]])
    a = np.array([[1.0, 0.0, 2.0], [0.0, 1.0, -1.0]])
    b = np.array([[1.0, 2.0], [0.5, 0.0]])
    base = str(write(tmp_path / "base", {"fc.weight": w, "fc.bias": np.ones(2)}, "float32"))
    adapter = peft(tmp_path / "ad", {"fc.lora_A.weight": a, "fc.lora_B.weight": b}, r=2, lora_alpha=4)
    got = fold(tmp_path, base, adapter)
    # B A = [[1, 2, 0], [0.5, 0, 1]]
    assert got["fc.weight"].tolist() == [[3.0, 6.0, 3.0], [5.0, 5.0, 8.0]]
    assert got["fc.bias"].tolist() == [1.0, 1.0]


@pytest.mark.parametrize("output", [None, *LAYOUTS])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("kind", ["peft", "paddle", "paddlenlp"])
def test_any_adapter_onto_any_layout(tmp_path: Path, kind: str, layout: str, output: str | None) -> None:
    """q_proj is square: nothing but the layouts tells that PEFT's and Paddle's factors turn differently."""
    base, pairs = llama(0), factors(1)
    path = stored(tmp_path / "base", base, layout, dtype="float64")
    if kind == "peft":
        adapter = peft(tmp_path / "ad", in_peft(pairs))
    else:
        adapter = paddle(tmp_path / "ad", in_paddle(pairs, "llama" if kind == "paddlenlp" else "model"), scaling=2.0)
    got = fold(tmp_path, path, adapter, output_layout=output)
    close(got, laid_out(folded(base, pairs), output or layout))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_scales(tmp_path: Path, layout: str) -> None:
    """PEFT's patterns are regular expressions for the end of a module's name; r is the rank of the factors."""
    base, pairs, wide = llama(0), factors(1), factors(2, rank=5)
    path = stored(tmp_path / "base", base, layout, dtype="float64")
    q, k, down, head = TARGETS
    chosen = {q: wide[q], k: pairs[k], down: pairs[down], head: pairs[head]}
    patterns = {"rank_pattern": {"q_proj": 5}, "alpha_pattern": {r"layers\.\d+\.mlp\.down_proj": 9, "k_proj": 0.75}}
    got = fold(tmp_path, path, peft(tmp_path / "ad", in_peft(chosen), **patterns))
    expected = base
    for name, scale in {q: 6 / 5, k: 0.75 / 3, down: 9 / 3, head: 2.0}.items():
        expected = folded(expected, {name: chosen[name]}, scale)
    close(got, laid_out(expected, layout))


@pytest.mark.parametrize("kind", ["peft", "paddle"])
def test_rslora(tmp_path: Path, kind: str) -> None:
    base, pairs = llama(0), factors(1)
    path = stored(tmp_path / "base", base, "hf", dtype="float64")
    if kind == "peft":
        adapter = peft(tmp_path / "ad", in_peft(pairs), use_rslora=True)
    else:
        adapter = paddle(tmp_path / "ad", in_paddle(pairs), rslora=True, scaling=6 / math.sqrt(3))
    close(fold(tmp_path, path, adapter), folded(base, pairs, 6 / math.sqrt(3)))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_mixer(tmp_path: Path, layout: str) -> None:
    """PaddleNLP's lora_use_mixer: A @ AB @ B."""
    base, pairs = llama(0), factors(1)
    mixers = {name: np.random.default_rng(7).standard_normal((R, R)) for name in pairs}
    tensors = in_paddle(pairs) | {f"{name}.lora_AB": mixer for name, mixer in mixers.items()}
    path = stored(tmp_path / "base", base, layout, dtype="float64")
    got = fold(tmp_path, path, paddle(tmp_path / "ad", tensors, lora_use_mixer=True))
    close(got, laid_out(folded(base, {name: (a @ mixers[name], b) for name, (a, b) in pairs.items()}), layout))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_lora_ga_is_saved_twice_as_wide(tmp_path: Path, layout: str) -> None:
    base, pairs = llama(0), factors(1, rank=2 * R)
    path = stored(tmp_path / "base", base, layout, dtype="float64")
    got = fold(tmp_path, path, paddle(tmp_path / "ad", in_paddle(pairs), loraga=True))
    close(got, laid_out(folded(base, pairs), layout))


@pytest.mark.usefixtures("each_backend")
@pytest.mark.parametrize("layout", ["hf", "paddlenlp"])
def test_dora(tmp_path: Path, layout: str) -> None:
    """V = W + s B A; every output's row of V at the trained length. An output of zeros stays zero."""
    base, pairs = llama(0), factors(1)
    random, tensors, expected = np.random.default_rng(5), in_peft(pairs), folded(base, pairs)
    for name in pairs:
        v = expected[f"{name}.weight"]
        lengths = random.uniform(0.5, 2.0, len(v))
        tensors[f"{name}.lora_magnitude_vector"] = lengths
        expected[f"{name}.weight"] = v * (lengths / np.linalg.norm(v, axis=1))[:, None]
    path = stored(tmp_path / "base", base, layout, dtype="float64")
    got = fold(tmp_path, path, peft(tmp_path / "ad", tensors, use_dora=True))
    close(got, laid_out(expected, layout))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_embedding_biases_and_whole_tensors(tmp_path: Path, layout: str) -> None:
    """PEFT's embeddings, lora_bias, modules_to_save (kept in float32 over a bfloat16 base), base layers it saves."""
    base, random = llama(0), np.random.default_rng(3)
    a, b = random.standard_normal((R, VOCAB)), random.standard_normal((HIDDEN, R))
    query = f"{LAYER}self_attn.q_proj"
    pair, bias = factors(1)[query], random.standard_normal(HEADS * WIDTH)
    norm, up = (
        random.standard_normal(HIDDEN),
        from_bits(to_bits(random.standard_normal((INTER, HIDDEN)), "float32"), "float32"),
    )
    embedding = random.standard_normal((VOCAB, HIDDEN))
    tensors = in_peft({query: pair}) | {
        "model.embed_tokens.lora_embedding_A": a,
        "model.embed_tokens.lora_embedding_B": b,
        "model.embed_tokens.base_layer.weight": embedding,
        f"{query}.lora_B.bias": bias,
        "model.norm.weight": norm,
        f"{LAYER}mlp.up_proj.weight": up,
    }
    path = stored(tmp_path / "base", base, layout)
    adapter = peft(tmp_path / "ad", tensors, "float32", lora_bias=True, modules_to_save=["norm", "up_proj"])
    expected = folded(base, {query: pair}) | {
        "model.embed_tokens.weight": embedding + 2.0 * (b @ a).T,
        f"{query}.bias": base[f"{query}.bias"] + 2.0 * bias,
        "model.norm.weight": norm,
        f"{LAYER}mlp.up_proj.weight": up,
    }
    got = fold(tmp_path, path, adapter)
    close(got, laid_out(expected, layout), 2.0**-8)  # one rounding to bfloat16
    exact = {name: from_bits(to_bits(value, "bfloat16"), "bfloat16") for name, value in laid_out(expected, layout).items()}
    unchanged = [name for name in got if (got[name] == exact[name]).all()]
    assert len(unchanged) >= len(got) - 3  # all but what float32 sums


@pytest.mark.parametrize("layout", LAYOUTS)
def test_trainable_modules(tmp_path: Path, layout: str) -> None:
    """PaddleNLP saves them whole, [in, out]; lm_head as its model has it. All others' Linear weights are turned."""
    base, other, pairs = llama(0), llama(9), factors(1)
    del pairs["lm_head"]
    words = ("up_proj.weight", "o_proj.weight", "norm.weight", "lm_head.weight", "q_proj.bias")
    whole = {name: value for name, value in other.items() if name.endswith(words)}
    tensors = in_paddle(pairs, "llama") | laid_out(whole, "paddlenlp")
    path = stored(tmp_path / "base", base, layout, dtype="float64")
    got = fold(tmp_path, path, paddle(tmp_path / "ad", tensors, trainable_modules=[".*up_proj.*"], trainable_bias="all"))
    close(got, laid_out(folded(base | whole, pairs), layout))


def test_fan_in_fan_out(tmp_path: Path) -> None:
    """GPT-2's Conv1D is stored [in, out], square ones too; PEFT's factors aren't turned for it."""
    random = np.random.default_rng(0)
    shapes = {"c_attn": (8, 24), "c_proj": (8, 8)}
    base = {f"transformer.h.0.attn.{name}.weight": random.standard_normal(shape) for name, shape in shapes.items()}
    pairs = {f"transformer.h.0.attn.{name}": (random.standard_normal((i, R)), random.standard_normal((R, o)))
             for name, (i, o) in shapes.items()}  # fmt: skip
    path = str(write(tmp_path / "base", base, "float64", format="pt"))
    got = fold(tmp_path, path, peft(tmp_path / "ad", in_peft(pairs), fan_in_fan_out=True))
    close(got, {f"{name}.weight": base[f"{name}.weight"] + 2.0 * a @ b for name, (a, b) in pairs.items()})


@pytest.mark.parametrize("layout", LAYOUTS)
def test_fused_adapters_onto_split_weights(tmp_path: Path, layout: str) -> None:
    """Paddle's qkv_proj goes by key groups: [q q k v] [q q k v] of heads; gate_up_fused_proj is [gate | up]."""
    base, random = llama(0), np.random.default_rng(4)
    width = (HEADS + 2 * KV) * WIDTH
    a, b = random.standard_normal((HIDDEN, R)), random.standard_normal((R, width))
    c, d = random.standard_normal((HIDDEN, R)), random.standard_normal((R, 2 * INTER))
    tensors = {
        "llama.layers.1.self_attn.qkv_proj.lora_A": a,
        "llama.layers.1.self_attn.qkv_proj.lora_B": b,
        "llama.layers.1.mlp.gate_up_fused_proj.lora_A": c,
        "llama.layers.1.mlp.gate_up_fused_proj.lora_B": d,
    }
    groups = b.reshape(R, KV, HEADS // KV + 2, WIDTH)
    q, k, v = groups[:, :, :-2].reshape(R, -1), groups[:, :, -2].reshape(R, -1), groups[:, :, -1].reshape(R, -1)
    one = "model.layers.1."
    pairs = {f"{one}self_attn.{name}": (a, part) for name, part in {"q_proj": q, "k_proj": k, "v_proj": v}.items()}
    pairs |= {f"{one}mlp.gate_proj": (c, d[:, :INTER]), f"{one}mlp.up_proj": (c, d[:, INTER:])}
    path = stored(tmp_path / "base", base, layout, dtype="float64")
    close(fold(tmp_path, path, paddle(tmp_path / "ad", tensors)), laid_out(folded(base, pairs), layout))


def test_tied_embeddings_stay_tied(tmp_path: Path) -> None:
    """PaddleNLP stores the head of a tied model too: what changes the embedding changes it."""
    base, random = llama(0, tied=True), np.random.default_rng(3)
    a, b = random.standard_normal((R, VOCAB)), random.standard_normal((HIDDEN, R))
    tensors = {"model.embed_tokens.lora_embedding_A": a, "model.embed_tokens.lora_embedding_B": b}
    tied = CONFIG | {"tie_word_embeddings": True}
    path = stored(tmp_path / "base", base, "hf", tied, "float64")
    adapter = peft(tmp_path / "ad", tensors)
    expected = base | {"model.embed_tokens.weight": base["model.embed_tokens.weight"] + 2.0 * (b @ a).T}
    close(fold(tmp_path, path, adapter), expected)
    got = fold(tmp_path, path, adapter, output_layout="paddlenlp")
    assert (got["lm_head.weight"] == got["llama.embed_tokens.weight"]).all()
    with pytest.raises(CheckpointError, match="ties lm_head to the embedding"):
        fold(tmp_path, path, peft(tmp_path / "head", in_peft({"lm_head": factors(1)["lm_head"]})))


def test_a_tied_lm_head_that_is_the_adapters_embedding_is_used_with_it(tmp_path: Path) -> None:
    """PEFT replaces the embedding and leaves the head what it was, so that adapters bring both; extract-lora's do."""
    base, embedding = llama(0, tied=True), np.random.default_rng(3).standard_normal((VOCAB, HIDDEN))
    path = stored(tmp_path / "base", base, "hf", CONFIG | {"tie_word_embeddings": True}, "float64")
    tensors = {"model.embed_tokens.weight": embedding, "lm_head.weight": embedding}
    adapter = peft(tmp_path / "ad", tensors, modules_to_save=["embed_tokens", "lm_head"])
    close(fold(tmp_path, path, adapter), base | {"model.embed_tokens.weight": embedding})
    got = fold(tmp_path, path, adapter, output_layout="paddlenlp")
    assert (got["lm_head.weight"] == embedding).all()
    with pytest.raises(CheckpointError, match="ties lm_head to the embedding"):
        fold(tmp_path, path, peft(tmp_path / "other", tensors | {"lm_head.weight": embedding + 1}))


@pytest.mark.parametrize("kind", ["paddle", "peft"])
def test_whole_fused_tensors_onto_split_ones(tmp_path: Path, kind: str) -> None:
    """Biases that were trained, or whole modules; gate_up_proj is [gate | up] along the outputs, [out, in] in PEFT."""
    config = CONFIG | {"model_type": "phi3"} if kind == "peft" else CONFIG
    base, word = llama(0), "gate_up_proj" if kind == "peft" else "gate_up_fused_proj"
    biases = {f"{LAYER}mlp.{name}.bias": np.zeros(INTER) for name in ("gate_proj", "up_proj")}
    path = stored(tmp_path / "base", base | biases, "hf", config, "float64")
    weight, bias = np.random.default_rng(3).standard_normal((2 * INTER, HIDDEN)), np.arange(2.0 * INTER)
    tensors = {f"{LAYER}mlp.{word}.weight": weight if kind == "peft" else weight.T.copy(), f"{LAYER}mlp.{word}.bias": bias}
    adapter = peft(tmp_path / "ad", tensors) if kind == "peft" else paddle(tmp_path / "ad", tensors)
    expected = base | {
        f"{LAYER}mlp.{name}.{what}": value[half]
        for name, half in (("gate_proj", slice(INTER)), ("up_proj", slice(INTER, None)))
        for what, value in (("weight", weight), ("bias", bias))
    }
    close(fold(tmp_path, path, adapter), expected)


# --- merging adapters --------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("each_backend")
@pytest.mark.parametrize("method", ["linear", "ties", "dare_ties", "della", "slerp"])
def test_adapters_merge_as_the_models_they_make(tmp_path: Path, method: str) -> None:
    base, one, two = llama(0), factors(1), factors(2)
    path = stored(tmp_path / "base", base, "paddlenlp", dtype="float64")
    specs = [f"{path}+{peft(tmp_path / 'a', in_peft(one))}", f"{path}+{paddle(tmp_path / 'b', in_paddle(two))}"]
    models = [
        stored(tmp_path / str(k), folded(base, pairs), "paddlenlp", dtype="float64") for k, pairs in enumerate((one, two))
    ]
    fields: dict[str, Any] = {"merge_method": method, "base_model_path": path}
    merge(MergeConfig(model_path_list=specs, output_path=str(tmp_path / "out"), **fields))
    merge(MergeConfig(model_path_list=models, output_path=str(tmp_path / "whole"), **fields))
    close(read(tmp_path / "out"), read(tmp_path / "whole"), 1e-9)


def test_several_adapters_on_one_base_add_up(tmp_path: Path) -> None:
    base, one, two = llama(0), factors(1), factors(2)
    path = stored(tmp_path / "base", base, "hf", dtype="float64")
    spec = f"{path}+{peft(tmp_path / 'a', in_peft(one))}+{paddle(tmp_path / 'b', in_paddle(two))}"
    merge(MergeConfig(model_path_list=[spec], output_path=str(tmp_path / "out")))
    close(read(tmp_path / "out"), folded(folded(base, one), two))


def test_half_an_adapter(tmp_path: Path) -> None:
    base, pairs = llama(0), factors(1)
    path = stored(tmp_path / "base", base, "hf", dtype="float64")
    spec = f"{path}+{peft(tmp_path / 'a', in_peft(pairs))}"
    merge(MergeConfig(model_path_list=[spec], base_model_path=path, scale=0.5, output_path=str(tmp_path / "out")))
    close(read(tmp_path / "out"), folded(base, pairs, 1.0))


@pytest.mark.parametrize("dora", [False, True])
@pytest.mark.parametrize("method", ["linear", "dare_ties", "della"])
def test_the_same_bytes_however_it_is_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str, dora: bool) -> None:
    random = np.random.default_rng(0)
    base = {"x.q_proj.weight": random.standard_normal((300, 700)), "x.bias": np.ones(5)}
    path = str(write(tmp_path / "base", base, "bfloat16", format="pt", config={"tie_word_embeddings": False}))
    specs = []
    for name in "ab":
        tensors = {
            "x.q_proj.lora_A.weight": random.standard_normal((R, 700)),
            "x.q_proj.lora_B.weight": random.standard_normal((300, R)),
        }
        if dora:
            tensors["x.q_proj.lora_magnitude_vector"] = random.uniform(20, 30, 300)
        specs.append(f"{path}+{peft(tmp_path / name, tensors, 'bfloat16', use_dora=dora)}")
    outputs = set()
    for n_process, piece, step in ((1, 64 << 20, 21_845), (3, 20_000, 1 << 16)):
        monkeypatch.setattr(plan, "PIECE_BYTES", piece)
        monkeypatch.setattr(adapted, "STEP", step)  # of this process, which does the work if it is alone
        out = tmp_path / str(n_process)
        fields: dict[str, Any] = {"merge_method": method, "model_path_list": specs, "base_model_path": path}
        merge(MergeConfig(output_path=str(out), n_process=n_process, **fields))
        outputs.add((out / "model.safetensors").read_bytes())
    assert len(outputs) == 1


# --- what is refused, and how it is said -------------------------------------------------------------------------------


def refusal(tmp_path: Path, adapter: str, layout: str = "hf", base: State | None = None, **config: Any) -> str:
    path = stored(tmp_path / "base", llama(0) if base is None else base, layout, CONFIG | config, "float32")
    with pytest.raises(CheckpointError) as caught:
        fold(tmp_path, path, adapter)
    assert not (tmp_path / "out").exists()
    return "\n".join(caught.value.problems)


def test_every_tensor_is_accounted_for(tmp_path: Path) -> None:
    """All that don't fit are named, together."""
    query, key = f"{LAYER}self_attn.q_proj", f"{LAYER}self_attn.k_proj"
    pairs = factors(1)
    tensors = in_peft({query: pairs[query]}) | {
        "model.layers.7.self_attn.q_proj.lora_A.weight": pairs[query][0].T,
        "model.layers.7.self_attn.q_proj.lora_B.weight": pairs[query][1].T,
        f"{key}.lora_A.weight": pairs[key][0].T,
        f"{LAYER}mlp.up_proj.token_adapter": np.ones(3),
        "model.norm.weight": np.ones(5),
        f"{LAYER}mlp.gate_proj.lora_A.weight": np.ones((R, HIDDEN)),
        f"{LAYER}mlp.gate_proj.lora_B.weight": np.ones((INTER + 1, R)),
        f"{LAYER}mlp.down_proj.lora_magnitude_vector": np.ones(HIDDEN),
        f"{LAYER}input_layernorm.lora_A.weight": np.ones(R),
        f"{LAYER}input_layernorm.lora_B.weight": np.ones(R),
    }
    said = refusal(tmp_path, peft(tmp_path / "ad", tensors))
    for words in (
        "(its tensors: 'base_model.model.model.layers.7.self_attn.q_proj.lora_A.weight'",
        f"{key!r} has no lora_B beside it",
        "up_proj.token_adapter' is for",
        "is [5], but 'model.norm.weight', which it should replace, is [16]",
        "is for a weight of 16 inputs and 25 outputs, but 'model.layers.0.mlp.gate_proj.weight' is [24, 16]",
        "comes without lora_A and lora_B",
        "is no matrix of floats",
    ):
        assert words in said
    assert f"{query!r}" not in said


@pytest.mark.parametrize(
    ("kind", "config", "words"),
    [
        ("paddle", {"pissa": True}, "PiSSA's base is no longer"),
        ("paddle", {"use_mora": True}, "MoRA"),
        ("paddle", {"do_qat": True}, "quantised"),
        ("paddle", {"enable_lora_list": [True, False]}, "enable_lora_list"),
        ("paddle", {"scaling": 3.0}, "would be scaled by 2, but the adapter's config says scaling 3"),
        ("paddle", {"r": 4}, "has rank 3, but the adapter's config says 4"),
        ("paddle", {"r": 0}, "r 0 and lora_alpha 6"),
        ("paddle", {"lora_alpha": None}, "lora_alpha None"),
        ("peft", {"r": 4}, "has rank 3, but the adapter's config says 4"),
        ("peft", {"peft_type": "VERA"}, "peft_type 'VERA', and only LORA"),
        ("peft", {"init_lora_weights": "pissa_niter_4"}, "path_initial_model_for_weight_conversion"),
        ("peft", {"alora_invocation_tokens": [5]}, "aLoRA"),
        ("peft", {"rank_pattern": {"q_(": 4}}, "rank_pattern has 'q_('"),
        ("peft", {"use_dora": True}, "lora_magnitude_vector that DoRA needs"),
        ("peft", {"lora_alpha": 0}, "changes nothing"),
    ],
)
def test_adapters_that_cannot_be_folded(tmp_path: Path, kind: str, config: dict[str, Any], words: str) -> None:
    make, tensors = (peft, in_peft) if kind == "peft" else (paddle, in_paddle)
    assert words in refusal(tmp_path, make(tmp_path / "ad", tensors(factors(1)), **config))


def test_an_adapter_that_was_never_trained_changes_nothing(tmp_path: Path) -> None:
    pairs = {name: (a, np.zeros_like(b)) for name, (a, b) in factors(1).items()}
    assert "every lora_B is zero" in refusal(tmp_path, paddle(tmp_path / "ad", in_paddle(pairs)))


def test_quantised_bases(tmp_path: Path) -> None:
    said = refusal(tmp_path, peft(tmp_path / "ad", in_peft(factors(1))), quantization_config={"quant_method": "bnb"})
    assert "quantization_config" in said


def test_a_square_matrix_whose_layout_cannot_be_told(tmp_path: Path) -> None:
    path = str(write(tmp_path / "base", {"x.weight": np.eye(4)}, "float32", format="np"))
    adapter = peft(tmp_path / "ad", {"x.lora_A.weight": np.ones((R, 4)), "x.lora_B.weight": np.ones((4, R))})
    with pytest.raises(CheckpointError, match=r"which is square; say its layout with --layout"):
        fold(tmp_path, path, adapter)
    assert (fold(tmp_path, path, adapter, layout=["hf"])["x.weight"] == np.eye(4) + 2.0 * R).all()


def test_split_adapters_onto_fused_weights(tmp_path: Path) -> None:
    base = {
        f"{LAYER}self_attn.qkv_proj.weight": np.ones((HIDDEN, (HEADS + 2 * KV) * WIDTH)),
        "model.norm.weight": np.ones(3),
    }
    query = f"{LAYER}self_attn.q_proj"
    path = str(write(tmp_path / "base", base, "float32", config={**CONFIG, "source": "paddle"}))
    adapter = paddle(tmp_path / "ad", in_paddle({query: factors(1)[query]}))
    with pytest.raises(CheckpointError, match=r"has fused in 'model.layers.0.self_attn.qkv_proj.weight'; fold it"):
        fold(tmp_path, path, adapter)
    fold(tmp_path, path, adapter, output_layout="hf")


def test_folders_that_hold_no_adapter(tmp_path: Path) -> None:
    path = stored(tmp_path / "base", llama(0), "hf")
    (tmp_path / "vera").mkdir()
    (tmp_path / "vera" / "vera_config.json").write_text("{}")
    (tmp_path / "list").mkdir()
    (tmp_path / "list" / "lora_config.json").write_text("[]")
    adapter = peft(tmp_path / "ad", in_peft(factors(1)))
    for name, words in {
        str(tmp_path / "nowhere"): "no such folder",
        path: "is no LoRA adapter: it has neither adapter_config.json nor lora_config.json",
        str(tmp_path / "vera"): "it holds vera_config.json, and only LoRA",
        str(tmp_path / "list"): "is not a JSON object",
    }.items():
        with pytest.raises(CheckpointError, match=words):
            fold(tmp_path, path, name)
    with pytest.raises(CheckpointError, match=rf"is a LoRA adapter; write BASE\+{adapter}"):
        merge(MergeConfig(model_path_list=[path, adapter], output_path=str(tmp_path / "out")))


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"lora_model_path": "a"}, "--lora_model_path needs --base_model_path"),
        ({"lora_model_path": "a", "base_model_path": "b", "model_path_list": ["c", "d"]}, "folds one adapter into its base"),
        ({"lora_model_path": "a", "base_model_path": "b", "scale": 0.5}, "folds the adapter as it was trained"),
        ({"lora_model_path": "a", "base_model_path": "b", "merge_method": "ties"}, "folds the adapter as it was trained"),
        ({"model_path_list": ["a"]}, "give at least two models"),
    ],
)
def test_flags_that_contradict(fields: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        MergeConfig(**fields).recipe()


def test_a_path_may_hold_a_plus(tmp_path: Path) -> None:
    for name in ("llama+code", "a"):
        (tmp_path / name).mkdir()
    assert split(f"{tmp_path}/llama+code+{tmp_path}/a") == [f"{tmp_path}/llama+code", f"{tmp_path}/a"]
    assert split("llama+code") == ["llama", "code"]
    assert split(f"{tmp_path}/llama+code") == [f"{tmp_path}/llama+code"]


def test_from_the_command_line_and_again_from_its_record(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    stored(tmp_path / "base", llama(0), "paddlenlp")
    peft(tmp_path / "math", in_peft(factors(1)))
    paddle(tmp_path / "code", in_paddle(factors(2), "llama"))
    monkeypatch.chdir(tmp_path)

    def run(*argv: str) -> None:
        with pytest.raises(SystemExit) as left:
            main(argv)
        assert left.value.code == 0

    run("--lora_model_path", "math", "--base_model_path", "base", "--output_path", "one")
    assert "adapter  math: 4 updates of rank 3, scale 2" in capfd.readouterr().err
    models = ["--model_path_list", "base+math", "base+code", "--base_model_path", "base"]
    run(*models, "--merge_method", "ties", "--output_path", "two")
    assert "model    1        x base+math" in capfd.readouterr().err
    assert "`ties` on task vectors" in (tmp_path / "two" / "README.md").read_text()
    monkeypatch.chdir("/")
    for name in ("one", "two"):
        run(str(tmp_path / name / "merge_config.json"), "--output_path", str(tmp_path / "again"), "--overwrite")
        assert (tmp_path / name / "model.safetensors").read_bytes() == (
            tmp_path / "again" / "model.safetensors"
        ).read_bytes()


def test_a_distributed_checkpoint_of_base_and_adapter(tmp_path: Path) -> None:
    """As PaddleFormers' Trainer saves LoRA training: the base's weights beside the factors, and no config of the adapter."""
    base, pairs = llama(0), factors(1)
    path = stored(tmp_path / "base", base, "hf", dtype="float64")
    changed = base | {"model.norm.weight": base["model.norm.weight"] + 1}
    tensors = laid_out(changed, "paddleformers") | in_paddle(pairs)
    halves = {name: cut(x.shape, (x.shape[0] // 2,), *[()] * (x.ndim - 1)) for name, x in tensors.items()}
    save(tmp_path / "ad" / "model_state", tensors, halves)
    with pytest.raises(CheckpointError, match=r"has neither adapter_config.json nor lora_config.json"):
        fold(tmp_path, path, str(tmp_path / "ad"))
    (tmp_path / "ad" / "lora_config.json").write_text(json.dumps({"r": R, "lora_alpha": 6}))
    close(fold(tmp_path, path, str(tmp_path / "ad")), folded(changed, pairs))
