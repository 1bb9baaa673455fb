"""Test LoRA adapters of either library, folded into a base of any layout, or merged by any method."""

from __future__ import annotations

import json
import math
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from paddle_merge import CheckpointError, ConfigError, MergeConfig, merge
from paddle_merge.checkpoints.adapters import split_spec
from paddle_merge.checkpoints.files import Files
from paddle_merge.checkpoints.names import LAYOUTS
from paddle_merge.commands.main import main
from paddle_merge.conversion.lora import adapted
from paddle_merge.conversion.lora.entry import AdaptedEntry
from paddle_merge.plan import plan
from paddle_merge.plan.planner import make_plan
from paddle_merge.recipe.request import Request
from tests.checkpoints.formats.test_flex import cut, save
from tests.conversion.test_layout import CONFIG, HEADS, HIDDEN, INTER, KV, VOCAB, WIDTH, State, laid_out, llama, stored
from tests.support.checkpoints import from_bits, read, to_bits, write
from tests.support.sweeps import few

R = 3
LAYER = "model.layers.0."
TARGETS = {  # (in, out)
    f"{LAYER}self_attn.q_proj": (HIDDEN, HEADS * WIDTH),
    f"{LAYER}self_attn.k_proj": (HIDDEN, KV * WIDTH),
    f"{LAYER}mlp.down_proj": (INTER, HIDDEN),
    "lm_head": (HIDDEN, VOCAB),
}
TIED = CONFIG | {"tie_word_embeddings": True}
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


def test_attention_of_torch_itself(tmp_path: Path) -> None:
    """torch.nn.MultiheadAttention: PEFT 0.21.2 adds the product for out_proj twice, where it computes and where it folds."""
    its = {"attn.lora_A.weight": np.ones((R, 4)), "attn.lora_B.weight": np.ones((12, R))}
    its |= {
        "attn.base_layer.out_proj.lora_A.weight": np.ones((R, 4)),
        "attn.base_layer.out_proj.lora_B.weight": np.ones((4, R)),
    }
    assert refusal(tmp_path, peft(tmp_path / "ad", its)).count("it adapts torch's own MultiheadAttention") == 1


@pytest.mark.parametrize("output", [None, *LAYOUTS])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("kind", ["peft", "paddle", "paddlenlp"])
def test_any_adapter_onto_any_layout(tmp_path: Path, kind: str, layout: str, output: str | None) -> None:
    """q_proj is square, so only the layouts show that PEFT's and Paddle's factors are oriented differently."""
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
    """PaddleNLP saves them whole, [in, out], and lm_head as its model has it. All other Linear weights are transposed."""
    base, other, pairs = llama(0), llama(9), factors(1)
    del pairs["lm_head"]
    words = ("up_proj.weight", "o_proj.weight", "norm.weight", "lm_head.weight", "q_proj.bias")
    whole = {name: value for name, value in other.items() if name.endswith(words)}
    tensors = in_paddle(pairs, "llama") | laid_out(whole, "paddlenlp")
    path = stored(tmp_path / "base", base, layout, dtype="float64")
    got = fold(tmp_path, path, paddle(tmp_path / "ad", tensors, trainable_modules=[".*up_proj.*"], trainable_bias="all"))
    close(got, laid_out(folded(base | whole, pairs), layout))


def test_fan_in_fan_out(tmp_path: Path) -> None:
    """GPT-2's Conv1D is stored [in, out], square ones too; PEFT's factors aren't transposed for it."""
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
    """PaddleNLP stores the head of a tied model too: what changes the embedding changes it. An adapter may hold both."""
    base, new = llama(0, tied=True), llama(1)["model.embed_tokens.weight"]
    path = stored(tmp_path / "base", base, "hf", TIED, "float64")
    whole = {"model.embed_tokens.weight": new}
    both = {**whole, "lm_head.weight": new}
    other = in_paddle({LAYER + "mlp.down_proj": factors(1)[LAYER + "mlp.down_proj"]})
    adapters = [
        paddle(tmp_path / "one", whole | other, trainable_modules=[".*"]),
        paddle(tmp_path / "both", both | other, trainable_modules=[".*"]),
        peft(tmp_path / "peft", both, modules_to_save=["embed_tokens", "lm_head"]),
    ]
    for adapter in adapters:
        got = fold(tmp_path, path, adapter)
        assert got.keys() == base.keys()
        np.testing.assert_array_equal(got["model.embed_tokens.weight"], new)
        got = fold(tmp_path, path, adapter, output_layout="paddlenlp")
        np.testing.assert_array_equal(got["llama.embed_tokens.weight"], new)
        np.testing.assert_array_equal(got["lm_head.weight"], new)


def test_an_embedding_that_peft_trained_apart_from_its_head(tmp_path: Path) -> None:
    """PEFT leaves the head what it was while it trains, and PEFT's own folding then changes it or unties the two."""
    base, random = llama(0, tied=True), np.random.default_rng(3)
    a, b = random.standard_normal((R, VOCAB)), random.standard_normal((HIDDEN, R))
    old, new = base["model.embed_tokens.weight"], llama(1)["model.embed_tokens.weight"]
    embedding = {"model.embed_tokens.lora_embedding_A": a, "model.embed_tokens.lora_embedding_B": b}
    saved = {"model.embed_tokens.base_layer.weight": old, "lm_head.weight": old}  # with save_embedding_layers
    adapters = {
        "factors": embedding,
        "saved": embedding | saved,
        "whole": {"model.embed_tokens.weight": new},
        "two": {"model.embed_tokens.weight": new, "lm_head.weight": new + 1},
        "head": {"model.embed_tokens.weight": old, "lm_head.weight": new},
    }
    path = stored(tmp_path / "base", base, "hf", TIED, "float64")
    low_rank = old + 2.0 * (b @ a).T
    expected = {
        "factors": (low_rank, old), "saved": (low_rank, old), "whole": (new, old), "two": (new, new + 1), "head": (old, new)
    }  # fmt: skip
    for name, tensors in adapters.items():
        both = dict(zip(("model.embed_tokens.weight", "lm_head.weight"), expected[name], strict=True))
        close(fold(tmp_path, path, peft(tmp_path / name, tensors)), base | both)
        assert json.loads((tmp_path / "out" / "config.json").read_text())["tie_word_embeddings"] is False

    unchanged = in_peft({LAYER + "mlp.down_proj": factors(1)[LAYER + "mlp.down_proj"]}) | saved
    close(
        fold(tmp_path, path, peft(tmp_path / "unchanged", unchanged)),
        folded(base, {LAYER + "mlp.down_proj": factors(1)[LAYER + "mlp.down_proj"]}),
    )
    changed = base | {"model.embed_tokens.weight": old + 2.0 * (b @ a).T}
    untied = stored(tmp_path / "untied", base | {"lm_head.weight": old}, "hf", CONFIG, "float64")
    close(fold(tmp_path, untied, str(tmp_path / "factors")), changed | {"lm_head.weight": old})
    headless = stored(tmp_path / "headless", base, "hf", TIED | {"architectures": ["LlamaModel"]}, "float64")
    close(fold(tmp_path, headless, str(tmp_path / "factors")), changed)


@pytest.mark.parametrize("output", LAYOUTS)
def test_adapters_that_tie_lm_head_themselves(tmp_path: Path, output: str) -> None:
    """PEFT's ensure_weight_tying: lm_head's A and B are the embedding's B and A, transposed. They are folded once."""
    base, random = llama(0, tied=True), np.random.default_rng(3)
    a, b, whole = (random.standard_normal(shape) for shape in ((R, VOCAB), (HIDDEN, R), (VOCAB, HIDDEN)))
    words = "model.embed_tokens"
    alone = {f"{words}.lora_embedding_A": a, f"{words}.lora_embedding_B": b, f"{words}.base_layer.weight": whole}
    head = {"lm_head.lora_A.weight": b.T, "lm_head.lora_B.weight": a.T, "lm_head.base_layer.weight": whole}
    path = stored(tmp_path / "base", base, "hf", CONFIG | {"tie_word_embeddings": True}, "float64")
    expected = base | {f"{words}.weight": whole + 2.0 * (b @ a).T}
    if output != "hf":
        expected |= {"lm_head.weight": expected[f"{words}.weight"]}
    got = fold(tmp_path, path, peft(tmp_path / "tied", alone | head, ensure_weight_tying=True), output_layout=output)
    close({name.replace("llama.", "model."): value for name, value in got.items() if "layers" not in name},
          {name: value for name, value in expected.items() if "layers" not in name})  # fmt: skip
    with pytest.raises(CheckpointError, match="but not lm_head"):
        fold(tmp_path, path, peft(tmp_path / "alone", alone), output_layout=output, tie="keep")
    unlike = [{**head, "lm_head.lora_B.weight": 2 * a.T}, {**head, "lm_head.base_layer.weight": 2 * whole}]
    unlike.append({"lm_head.base_layer.weight": whole})
    for number, other in enumerate(unlike):
        with pytest.raises(CheckpointError, match="ties lm_head to the embedding"):
            fold(tmp_path, path, peft(tmp_path / str(number), alone | other), tie="keep")
    with pytest.raises(CheckpointError, match="ties lm_head to the embedding"):
        fold(tmp_path, path, peft(tmp_path / "scaled", alone | head, alpha_pattern={"lm_head": 3}), tie="keep")


@pytest.mark.parametrize("model_type", ["llama", "gpt2"])
@pytest.mark.parametrize("target", ["model.embed_tokens", "lm_head"])
def test_tensors_that_may_be_tied(tmp_path: Path, model_type: str, target: str) -> None:
    """config.json doesn't say, and lm_head holds what the embedding holds: changed apart, loaders would tie them again."""
    base = llama(0)
    base["lm_head.weight"] = base["model.embed_tokens.weight"]
    config = {name: value for name, value in CONFIG.items() if name != "tie_word_embeddings"}
    path = str(write(tmp_path / "base", base, "float64", config={**config, "model_type": model_type}, format="pt"))
    whole = {f"{target}.weight": np.ones((VOCAB, HIDDEN))}
    with pytest.raises(CheckpointError, match="may be tied, because both hold the same values; set"):
        fold(tmp_path, path, peft(tmp_path / "ad", whole))
    (tmp_path / "base" / "config.json").write_text(json.dumps(CONFIG))
    close(fold(tmp_path, path, str(tmp_path / "ad")), base | whole)


def test_tensors_that_share_their_bytes(tmp_path: Path) -> None:
    """As T5's in torch's files: one embedding under several names, of which PEFT adapts one."""
    words = np.ones((8, 4))
    (tmp_path / "base").mkdir()
    tensors = {"shared.weight": words, "encoder.embed_tokens.weight": words, "x.weight": np.ones((3, 4))}
    (tmp_path / "base" / "model_state.pdparams").write_bytes(pickle.dumps(tensors, protocol=4))
    adapter = peft(tmp_path / "ad", {"shared.lora_embedding_A": np.ones((R, 8)), "shared.lora_embedding_B": np.ones((4, R))})
    with pytest.raises(CheckpointError, match=r"'shared\.weight', to which 'encoder.embed_tokens.weight' may be tied"):
        fold(tmp_path, str(tmp_path / "base"), adapter)
    fold(tmp_path, str(tmp_path / "base"), peft(tmp_path / "x", {"x.weight": np.zeros((3, 4))}))


def test_a_tied_lm_head_that_is_the_adapters_embedding_is_used_with_it(tmp_path: Path) -> None:
    """PEFT replaces the embedding and leaves the head what it was, so that adapters bring both; extract-lora's do."""
    base, embedding = llama(0, tied=True), np.random.default_rng(3).standard_normal((VOCAB, HIDDEN))
    path = stored(tmp_path / "base", base, "hf", CONFIG | {"tie_word_embeddings": True}, "float64")
    tensors = {"model.embed_tokens.weight": embedding, "lm_head.weight": embedding}
    adapter = peft(tmp_path / "ad", tensors, modules_to_save=["embed_tokens", "lm_head"])
    close(fold(tmp_path, path, adapter), base | {"model.embed_tokens.weight": embedding})
    got = fold(tmp_path, path, adapter, output_layout="paddlenlp")
    assert (got["lm_head.weight"] == embedding).all()
    got = fold(tmp_path, path, peft(tmp_path / "other", tensors | {"lm_head.weight": embedding + 1}))
    assert (got["lm_head.weight"] == embedding + 1).all()


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


def test_a_second_adapter_that_replaces_what_the_first_changed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Right if it was trained on top of the first, and lost work if not: that can't be seen, so it is said."""
    base, pairs, whole = llama(0), factors(1), np.ones((HEADS * WIDTH, HIDDEN))
    path = stored(tmp_path / "base", base, "hf", dtype="float64")
    one, two = peft(tmp_path / "a", in_peft(pairs)), peft(tmp_path / "b", {f"{QUERY}.weight": whole})
    merge(MergeConfig(model_path_list=[f"{path}+{one}+{two}"], output_path=str(tmp_path / "out")))
    close(read(tmp_path / "out"), folded(base, pairs) | {f"{QUERY}.weight": whole})
    assert f"{two}: replaces 1 tensors that an adapter before it changed, 'base_model.model.{QUERY}.weight'" in caplog.text


def test_half_an_adapter(tmp_path: Path) -> None:
    base, pairs = llama(0), factors(1)
    path = stored(tmp_path / "base", base, "hf", dtype="float64")
    spec = f"{path}+{peft(tmp_path / 'a', in_peft(pairs))}"
    merge(MergeConfig(model_path_list=[spec], base_model_path=path, scale=0.5, output_path=str(tmp_path / "out")))
    close(read(tmp_path / "out"), folded(base, pairs, 1.0))


@pytest.mark.parametrize("dora", few([True, False]))
@pytest.mark.parametrize("method", few(["della", "linear", "dare_ties"]))
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


def test_one_cause_is_told_once(tmp_path: Path) -> None:
    """An adapter of another model: 12 modules that the base lacks, three of them by name; and one with another fault."""
    names = [f"model.layers.{layer}.mlp.{word}" for layer in range(4) for word in ("w1", "w2", "w3")]
    its = in_peft({name: (np.ones((HIDDEN, R)), np.ones((R, HIDDEN))) for name in names})
    its |= in_peft({QUERY: (np.ones((HIDDEN, 1)), np.ones((1, HEADS * WIDTH)))})
    one, other = refusal(tmp_path, peft(tmp_path / "ad", its)).splitlines()
    assert "'model.layers.0.mlp.w1' is for 'model.layers.0.mlp.w1.weight', which" in one
    assert one.endswith("likewise 'model.layers.0.mlp.w2', 'model.layers.0.mlp.w3' and 9 more")
    assert f"{QUERY!r} has rank 1, but the adapter's config says 3" in other


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
        f"{key!r} has no lora_B, so",
        "up_proj.token_adapter' is for",
        "is [5], but 'model.norm.weight', which it replaces, is [16]",
        "is for a weight of 16 inputs and 25 outputs, but 'model.layers.0.mlp.gate_proj.weight' is [24, 16]",
        "has neither lora_A nor lora_B",
        "is not a matrix of floats",
    ):
        assert words in said
    assert f"{query!r}" not in said


@pytest.mark.parametrize(
    ("kind", "config", "words"),
    [
        ("paddle", {"pissa": True}, "PiSSA changes the base"),
        ("paddle", {"use_mora": True}, "MoRA"),
        ("paddle", {"do_qat": True}, "quantised"),
        ("paddle", {"enable_lora_list": [True, False]}, "enable_lora_list"),
        ("paddle", {"scaling": 3.0}, "would be scaled by 2, but the adapter's config says scaling 3"),
        ("paddle", {"r": 4}, "has rank 3, but the adapter's config says 4"),
        ("paddle", {"r": 0}, "r 0 and lora_alpha 6"),
        ("paddle", {"lora_alpha": None}, "lora_alpha None"),
        ("peft", {"r": 4}, "has rank 3, but the adapter's config says 4"),
        (
            "peft",
            {"peft_type": "VERA"},
            "LORA and TRAINABLE_TOKENS are supported; PEFT's merge_and_unload folds it: give the",
        ),
        ("peft", {"peft_type": "PREFIX_TUNING"}, "supported; it changes what goes into layers, and no weights"),
        ("peft", {"peft_type": "NEW"}, "peft_type 'NEW', and only LORA and TRAINABLE_TOKENS are supported"),
        ("peft", {"peft_type": ["LORA"]}, "and only LORA and TRAINABLE_TOKENS are supported"),
        ("peft", {"init_lora_weights": "pissa_niter_4"}, "path_initial_model_for_weight_conversion"),
        ("peft", {"alora_invocation_tokens": [5]}, "aLoRA"),
        ("peft", {"rank_pattern": {"q_(": 4}}, "rank_pattern has 'q_('"),
        ("peft", {"use_dora": True}, "has no lora_magnitude_vector, but its config sets use_dora to True"),
        ("peft", {"lora_alpha": 0}, "changes nothing"),
        ("peft", {"lora_alpha": 1e300}, "lora_alpha 1e+300"),
        ("peft", {"lora_alpha": 10**400}, "lora_alpha a number of more than 40 digits"),
        ("peft", {"rank_pattern": ["q_proj"]}, "rank_pattern to ['q_proj'], which has a wrong type"),
        ("paddle", {"alpha_pattern": "q_proj"}, "alpha_pattern to 'q_proj', which has a wrong type"),
        ("peft", {"use_rslora": "false"}, "use_rslora to 'false', which has a wrong type"),
        ("paddle", {"rslora": 0}, "rslora to 0, which has a wrong type"),
        ("paddle", {"scaling": "3"}, "scaling to '3', which has a wrong type"),
        ("paddle", {"scaling": 10**400}, "config says scaling a number of more than 40 digits"),
        ("paddle", {"lora_use_mixer": True}, "has no lora_AB, but its config sets lora_use_mixer to True"),
        ("peft", {"lora_bias": True}, "has no lora_B.bias, but its config sets lora_bias to True"),
    ],
)
def test_adapters_that_cannot_be_folded(tmp_path: Path, kind: str, config: dict[str, Any], words: str) -> None:
    make, tensors = (peft, in_peft) if kind == "peft" else (paddle, in_paddle)
    assert words in refusal(tmp_path, make(tmp_path / "ad", tensors(factors(1)), **config))


EMBEDDING = {
    "model.embed_tokens.lora_embedding_A": np.ones((R, VOCAB)),
    "model.embed_tokens.lora_embedding_B": np.ones((HIDDEN, R)),
}
QUERY = f"{LAYER}self_attn.q_proj"


@pytest.mark.parametrize(
    ("tensors", "words"),
    [
        (
            EMBEDDING | {"model.embed_tokens.lora_embedding_B": np.ones((HIDDEN, 1))},
            "has factors of different ranks, 3 and 1",
        ),
        (EMBEDDING | {"model.embed_tokens.lora_B.bias": np.ones(HIDDEN)}, "has more tensors than those of one layer: 'base"),
        (EMBEDDING | {"model.embed_tokens.lora_magnitude_vector": np.ones(HIDDEN)}, "has a lora_magnitude_vector, but"),
        ({f"{QUERY}.lora_A.default.weight": np.ones((R, HIDDEN))}, "lora_A.default.weight' (its tensors"),
        ({f"{QUERY}.lora_B.bias": np.ones(HEADS * WIDTH)}, "has a lora_B.bias, but its config sets lora_bias to None"),
        (
            {f"{QUERY[6:]}.lora_{factor}.weight": np.ones(shape) for factor, shape in {"A": (R, 16), "B": (16, R)}.items()},
            f"and {QUERY!r} are both for '{QUERY}.weight'",
        ),
        (
            {"model.norm.weight": np.ones(HIDDEN), "model.norm.modules_to_save.weight": np.zeros(HIDDEN)},
            "are both for 'model.norm.weight'",
        ),
    ],
)
def test_no_tensor_takes_the_place_of_another(tmp_path: Path, tensors: State, words: str) -> None:
    """What one merge can't use all of; factors of different ranks would be read past their ends."""
    both = in_peft({QUERY: factors(1)[QUERY]}) | tensors
    assert words in refusal(tmp_path, peft(tmp_path / "ad", both))


def test_mixers_that_are_no_floats_or_not_spoken_of(tmp_path: Path) -> None:
    tensors = in_paddle({QUERY: factors(1)[QUERY]}) | {f"{QUERY}.lora_AB": np.ones((R, R), np.int64)}
    assert "lora_AB' is int64" in refusal(tmp_path, paddle(tmp_path / "ad", tensors, lora_use_mixer=True))
    tensors[f"{QUERY}.lora_AB"] = np.ones((R, R))
    assert "has a lora_AB, but its config sets lora_use_mixer to None" in refusal(tmp_path, paddle(tmp_path / "b", tensors))


@pytest.mark.parametrize("layout", ["hf", "paddlenlp"])
def test_whole_tensors_are_turned_only_where_layouts_differ(tmp_path: Path, layout: str) -> None:
    """In the same layout, a shape that only fits transposed is of another model; only Linear weights may be transposed."""
    base = llama(0) | {f"{LAYER}self_attn.bias_table.weight": np.ones((4, 4))}
    path = stored(tmp_path / "base", base, layout, dtype="float64")
    wrong = {f"{LAYER}mlp.up_proj.weight": np.ones((HIDDEN, INTER))}
    with pytest.raises(CheckpointError, match=r"which it replaces, is \["):
        fold(tmp_path, path, peft(tmp_path / "wrong", wrong))
    table = {f"{LAYER}self_attn.bias_table.weight": np.arange(16.0).reshape(4, 4)}
    adapter = peft(tmp_path / "table", table)
    if layout == "hf":
        close(fold(tmp_path, path, adapter), base | table)
    else:
        with pytest.raises(CheckpointError, match=r"is square, so the layout of .* is unknown; give a base in the"):
            fold(tmp_path, path, adapter)


def test_names_that_two_stacks_share(tmp_path: Path) -> None:
    """A name without prefix that the base has as it is, and one of PaddleNLP's that could be either."""
    base = {"model.layers.0.fc1.weight": np.zeros((8, 4)), "layers.0.fc1.weight": np.zeros((8, 4))}
    path = str(write(tmp_path / "base", base, "float32", format="pt", config={"model_type": "llama"}))
    pair = {"lora_A.weight": np.ones((R, 4)), "lora_B.weight": np.ones((8, R))}
    adapter = peft(tmp_path / "a", {f"layers.0.fc1.{name}": value for name, value in pair.items()})
    got = fold(tmp_path, path, adapter)
    assert (got["layers.0.fc1.weight"] == 2.0 * R).all()
    assert not got["model.layers.0.fc1.weight"].any()
    adapter = peft(tmp_path / "b", {f"llama.layers.0.fc1.{name}": value for name, value in pair.items()})
    with pytest.raises(CheckpointError, match=r"which .*base doesn't have"):
        fold(tmp_path, path, adapter)


def test_a_nan_spoils_all_of_its_row_of_a_dora(tmp_path: Path) -> None:
    w = np.ones((2, 3))
    w[0, 0] = np.nan
    path = str(write(tmp_path / "base", {"fc.weight": w}, "float32", format="pt"))
    tensors = {
        "fc.lora_A.weight": np.ones((R, 3)),
        "fc.lora_B.weight": np.ones((2, R)),
        "fc.lora_magnitude_vector": np.ones(2),
    }
    got = fold(tmp_path, path, peft(tmp_path / "ad", tensors, use_dora=True))["fc.weight"]
    assert np.isnan(got[0]).all()
    assert np.isfinite(got[1]).all()


def test_an_adapter_that_was_never_trained_changes_nothing(tmp_path: Path) -> None:
    pairs = {name: (a, np.zeros_like(b)) for name, (a, b) in factors(1).items()}
    assert "every lora_B is zero" in refusal(tmp_path, paddle(tmp_path / "ad", in_paddle(pairs)))
    trained = peft(tmp_path / "unscaled", in_peft(factors(1)), lora_alpha=0)
    assert "changes nothing: its config multiplies updates by 0" in refusal(tmp_path, trained)
    neither = peft(tmp_path / "neither", in_peft(pairs), lora_alpha=0)
    assert "every lora_B is zero" in refusal(tmp_path, neither)
    with pytest.raises(CheckpointError, match=r"empty: holds no tensors$"):
        fold(tmp_path, str(tmp_path / "base"), peft(tmp_path / "empty", {}))


def test_quantised_bases(tmp_path: Path) -> None:
    said = refusal(tmp_path, peft(tmp_path / "ad", in_peft(factors(1))), quantization_config={"quant_method": "bnb"})
    assert "quantization_config" in said


def test_a_square_matrix_whose_layout_cannot_be_told(tmp_path: Path) -> None:
    path = str(write(tmp_path / "base", {"x.weight": np.eye(4)}, "float32", format="np"))
    adapter = peft(tmp_path / "ad", {"x.lora_A.weight": np.ones((R, 4)), "x.lora_B.weight": np.ones((4, R))})
    with pytest.raises(CheckpointError, match=r"which is square; state its layout with --layout"):
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
    with pytest.raises(CheckpointError, match=r"is part of the fused 'model.layers.0.self_attn.qkv_proj.weight' in"):
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
        path: "is not a LoRA adapter: it has neither adapter_config.json nor lora_config.json",
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
        (
            {"model_path_list": ["a+b"], "merge_method": "dare_ties"},
            "is the only model, so its adapter is folded as it was trained",
        ),
        (
            {"model_path_list": ["a+b"], "weight_list": [0.5], "normalize": False},
            "is the only model, so its adapter is folded as it was",
        ),
    ],
)
def test_flags_that_contradict(fields: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        Request.of(MergeConfig(**fields)).checked_recipe()


def test_a_path_may_hold_a_plus(tmp_path: Path) -> None:
    for name in ("llama+code", "a"):
        (tmp_path / name).mkdir()
    assert split_spec(f"{tmp_path}/llama+code+{tmp_path}/a") == [f"{tmp_path}/llama+code", f"{tmp_path}/a"]
    assert split_spec("llama+code") == ["llama", "code"]
    assert split_spec(f"{tmp_path}/llama+code") == [f"{tmp_path}/llama+code"]


def test_a_folder_called_as_base_and_adapter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An earlier merge's, say: it was copied in silence, the adapter left out."""
    stored(tmp_path / "base", llama(0), "hf", dtype="float64")
    stored(tmp_path / "base+lora", llama(1), "hf", dtype="float64")
    peft(tmp_path / "lora", in_peft(factors(1)))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CheckpointError, match=r"base with the adapter lora; rename one of them, or write base/\+lora"):
        fold(tmp_path, "base", "lora")
    close(fold(tmp_path, "base/", "lora"), folded(llama(0), factors(1)))
    with pytest.raises(ConfigError, match="give at least two models"):
        Request.of(MergeConfig(model_path_list=["base+lora"])).checked_recipe()
    (tmp_path / "lora" / "adapter_config.json").unlink()  # no adapter any more, so there is one way to read it
    merge(MergeConfig(model_path_list=["base+lora", "base"], output_path="out", overwrite=True))


@pytest.mark.parametrize("spec", ["base+", "+base", "base++base"])
def test_a_plus_with_nothing_beside_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spec: str) -> None:
    stored(tmp_path / "base", llama(0), "hf")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CheckpointError, match=r"the path on one side of it is empty"):
        merge(MergeConfig(model_path_list=[spec, "base"]))


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

    run("--lora_model_path", "math+code", "--base_model_path", "base", "--output_path", "three")
    run("--lora_model_path", "math", "--base_model_path", "base", "--output_path", "one")
    assert "adapter  math: 4 updates of rank 3, scale 2" in capfd.readouterr().err
    models = ["--model_path_list", "base+math", "base+code", "--base_model_path", "base"]
    run(*models, "--merge_method", "ties", "--output_path", "two")
    assert "model    1        x base+math" in capfd.readouterr().err
    assert ", as changes to base, made with" in (tmp_path / "two" / "README.md").read_text()
    monkeypatch.chdir("/")
    for name in ("one", "two", "three"):
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


def test_nothing_reads_an_adapted_tensor_as_its_base(tmp_path: Path) -> None:
    """Whatever is asked to read one plainly fails; it would give the base's numbers."""
    path = stored(tmp_path / "base", llama(0), "hf", dtype="float64")
    spec = f"{path}+{peft(tmp_path / 'ad', in_peft(factors(1)))}"
    made = make_plan(Request.of(MergeConfig(model_path_list=[spec])).checked_recipe())
    entry = next(tensor.sources[0] for tensor in made.tensors if isinstance(tensor.sources[0], AdaptedEntry))
    with pytest.raises(ValueError, match=r"sources\.reader"):
        Files().read(entry, 0, np.empty(4))


def test_attention_of_a_mixture_that_paddleformers_turned(tmp_path: Path) -> None:
    """PaddleFormers 1.2 turns o_proj, experts' down_proj and the router to [out, in], and leaves fused weights [in, out]."""
    hidden, inner, experts, random = 8, 6, 3, np.random.default_rng(0)
    shapes = {
        "model.embed_tokens.weight": (20, hidden), "lm_head.weight": (20, hidden),
        f"{LAYER}self_attn.qkv_proj.weight": (hidden, 16), f"{LAYER}self_attn.o_proj.weight": (hidden, hidden),
        f"{LAYER}mlp.gate.weight": (experts, hidden), f"{LAYER}mlp.experts.0.up_gate_proj.weight": (hidden, 2 * inner),
        f"{LAYER}mlp.experts.0.down_proj.weight": (hidden, inner),
    }  # fmt: skip
    base = {name: random.standard_normal(shape) for name, shape in shapes.items()}
    config = {"model_type": "qwen3_moe", "hidden_size": hidden, "intermediate_size": 10, "moe_intermediate_size": inner,
              "num_experts": experts, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 2,
              "tie_word_embeddings": False}  # fmt: skip
    path = str(write(tmp_path / "base", base, "float64", format="pt", config=config))
    a, b = random.standard_normal((hidden, R)), random.standard_normal((R, hidden))
    word = f"{LAYER}self_attn.o_proj"
    got = fold(tmp_path, path, paddle(tmp_path / "lora", {f"{word}.lora_A": a, f"{word}.lora_B": b}))
    close(got, base | {f"{word}.weight": base[f"{word}.weight"] + 2.0 * (a @ b).T})


def test_an_adapter_of_paddle_that_holds_what_was_never_trained(tmp_path: Path) -> None:
    base = llama(0)
    path = stored(tmp_path / "base", base, "paddleformers", CONFIG, "float64")
    low = in_paddle({LAYER + "mlp.down_proj": factors(1)[LAYER + "mlp.down_proj"]})
    whole = {"model.norm.weight": base["model.norm.weight"] + 1}
    said = {"trainable_modules": None, "trainable_bias": None}
    with pytest.raises(CheckpointError, match="nothing but LoRA was trained, and yet it holds tensor"):
        fold(tmp_path, path, paddle(tmp_path / "garbage", low | whole, **said))
    fold(tmp_path, path, paddle(tmp_path / "trained", low | whole, **said | {"trainable_modules": [".*norm.*"]}))
