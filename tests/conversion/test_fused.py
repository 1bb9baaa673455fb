"""Test fused weights: split and joined as views, and interleaved as in PaddleNLP, PaddleFormers and Phi-3."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paddle_merge import CheckpointError, MergeConfig, merge
from paddle_merge.checkpoints.files import Files
from paddle_merge.checkpoints.open import open_checkpoint
from paddle_merge.checkpoints.tensors import TensorEntry
from paddle_merge.checkpoints.views import join, select, transpose
from paddle_merge.conversion.fused import slices
from paddle_merge.errors import MalformedError
from tests.checkpoints.formats.test_flex import cut, save
from tests.conversion.test_layout import CONFIG, HEADS, KV, State, assert_same, laid_out, llama, means, stored
from tests.support.checkpoints import from_bits, read, to_bits, write
from tests.support.sweeps import few

HIDDEN, WIDTH = CONFIG["hidden_size"], 4


def values_of(entry: TensorEntry, start: int = 0, stop: int | None = None) -> np.ndarray:
    size = int(np.prod(entry.shape))
    out = np.empty((size if stop is None else stop) - start, entry.dtype.raw)
    files = Files()
    files.read(entry, start, out)
    files.close()
    return out if start or stop is not None else out.reshape(entry.shape)


def held(folder: Path, values: np.ndarray) -> TensorEntry:
    return open_checkpoint(str(write(folder, {"w": values}, "float32"))).tensors["w"]


# --- the parts of an index ---


def test_slices_as_paddlenlp_documents_them() -> None:
    """[q1 q2 k1 v1 q3 q4 k2 v2], heads two wide: the example in paddlenlp/transformers/conversion_utils.py."""
    config = {"model_type": "llama", "hidden_size": 8, "num_attention_heads": 4, "num_key_value_heads": 2}
    expected = {"q_proj": [(0, 4), (8, 12)], "k_proj": [(4, 6), (12, 14)], "v_proj": [(6, 8), (14, 16)]}
    assert slices("qkv_proj", "paddlenlp", config) == slices("qkv_proj", "paddleformers", config) == expected
    assert slices("qkv_proj", "hf", config) is None
    assert slices("qkv_proj", None, config) is None
    phi = {**config, "model_type": "phi3"}
    assert slices("qkv_proj", "hf", phi) == {"q_proj": [(0, 8)], "k_proj": [(8, 12)], "v_proj": [(12, 16)]}
    assert slices("qkv_proj", "paddleformers", phi) == slices("qkv_proj", "hf", phi)


def test_slices_of_feed_forward_layers() -> None:
    config = {"model_type": "qwen2", "intermediate_size": 6}
    expected = {"gate_proj": [(0, 6)], "up_proj": [(6, 12)]}
    assert slices("gate_up_fused_proj", "paddlenlp", config) == expected
    assert slices("up_gate_proj", "paddleformers", config) == expected
    assert slices("gate_up_proj", "hf", {**config, "model_type": "glm4"}) == expected
    for word, layout in (("gate_up_fused_proj", "hf"), ("up_gate_proj", "hf"), ("gate_up_proj", "hf"), ("down_proj", "hf")):
        assert slices(word, layout, config) is None
    assert slices("up_gate_proj", "paddleformers", {"model_type": "qwen2"}) is None


@pytest.mark.parametrize("odd", [{"num_key_value_heads": 3}, {"num_attention_heads": "4"}, {"model_type": "chatglm"}])
def test_slices_that_are_not_certain(odd: dict[str, Any]) -> None:
    assert slices("qkv_proj", "paddlenlp", {**CONFIG, **odd}) is None


# --- views ---


@st.composite
def cuts(draw: st.DrawFn) -> tuple[tuple[int, ...], int, list[int], bool]:
    """Draw a shape, one of its axes, places to cut along it, and whether the tensor is stored transposed."""
    shape = tuple(draw(st.lists(st.integers(1, 9), min_size=1, max_size=3)))
    axis = draw(st.integers(0, len(shape) - 1))
    places = draw(st.lists(st.integers(0, shape[axis]), max_size=5))
    return shape, axis, sorted({0, shape[axis], *places}), draw(st.booleans()) and len(shape) == 2


@given(cuts(), st.data())
@settings(max_examples=150, deadline=None)
def test_select_is_numpys(tmp_path_factory: pytest.TempPathFactory, cut: Any, data: st.DataObject) -> None:
    shape, axis, places, transposed = cut
    values = np.arange(np.prod(shape), dtype="f4").reshape(shape)
    entry = held(tmp_path_factory.mktemp("s"), values.T.copy() if transposed else values)
    entry = transpose(entry, "w") if transposed else entry
    ranges = data.draw(st.permutations(list(pairwise(places))))
    chosen = select(entry, axis, ranges, "v")
    expected = np.concatenate([values.take(range(*one), axis) for one in ranges], axis)
    assert chosen.name == "v"
    assert chosen.nbytes == expected.nbytes
    assert (values_of(chosen) == expected).all()
    start = data.draw(st.integers(0, expected.size - 1))
    assert (values_of(chosen, start, expected.size) == expected.reshape(-1)[start:]).all()


@given(cuts(), st.integers(1, 3))
@settings(max_examples=150, deadline=None)
def test_apart_and_together_is_nothing(tmp_path_factory: pytest.TempPathFactory, cut: Any, words: int) -> None:
    shape, axis, places, transposed = cut
    values = np.arange(np.prod(shape), dtype="f4").reshape(shape)
    entry = held(tmp_path_factory.mktemp("j"), values.T.copy() if transposed else values)
    entry = transpose(entry, "w") if transposed else entry
    ranges: dict[str, list[tuple[int, int]]] = {}
    for number, one in enumerate(pairwise(places)):
        ranges.setdefault(f"w{number % words}", []).append(one)
    pieces = {word: select(entry, axis, one, word) for word, one in ranges.items()}
    whole = join(pieces, axis, ranges, "w")
    assert whole.shape == shape
    assert (values_of(whole) == values).all()
    for word, one in ranges.items():  # and again
        assert (values_of(select(whole, axis, one, word)) == values_of(pieces[word])).all()


def test_what_does_not_fit(tmp_path: Path) -> None:
    entry = held(tmp_path, np.zeros((4, 6)))
    with pytest.raises(MalformedError, match=r"\[4, 6\], so it has no 5..7 along axis 1"):
        select(entry, 1, [(5, 7)], "v")
    halves = {"a": select(entry, 1, [(0, 3)], "a"), "b": select(entry, 1, [(3, 6)], "b")}
    with pytest.raises(MalformedError, match=r"'a' is \[4, 3\], but config\.json says 4 along axis 1"):
        join(halves, 1, {"a": [(0, 4)], "b": [(4, 7)]}, "w")
    with pytest.raises(MalformedError, match="overlap"):
        join(halves, 1, {"a": [(0, 3)], "b": [(2, 5)]}, "w")
    with pytest.raises(MalformedError, match="'b' differs in shape or dtype from 'a'"):
        join({**halves, "b": select(entry, 0, [(0, 2)], "b")}, 1, {"a": [(0, 3)], "b": [(3, 9)]}, "w")


# --- merges ---


def fused(hf: State, layout: str, qkv: bool = True, ffn: bool = True, kv: int = KV) -> State:
    """The model as PaddleNLP and PaddleFormers fuse it, by their forward passes: [.., kv heads, queries + 2, width]."""
    result = laid_out(hf, layout)
    word = {"paddlenlp": "gate_up_fused_proj", "paddleformers": "up_gate_proj"}[layout]
    for name in list(result):
        module, kind = name.rsplit(".", 2)[0], name.rsplit(".", 1)[1]
        if qkv and ".q_proj." in name:
            parts = [result.pop(f"{module}.{piece}_proj.{kind}") for piece in "qkv"]
            rows = parts[0].shape[:-1]
            grouped = [part.reshape(*rows, kv, -1, WIDTH) for part in parts]
            result[f"{module}.qkv_proj.{kind}"] = np.concatenate(grouped, -2).reshape(*rows, -1)
        if ffn and ".gate_proj." in name:
            parts = [result.pop(f"{module}.{piece}_proj.{kind}") for piece in ("gate", "up")]
            result[f"{module}.{word}.{kind}"] = np.concatenate(parts, -1)
    return result


def biased(seed: int, kv: int = KV) -> State:
    """A Qwen2: all three of attention's first layers have a bias."""
    model, generator = llama(seed, kv=kv), np.random.default_rng(seed + 100)
    for layer in range(2):
        for word, size in (("k_proj", kv * WIDTH), ("v_proj", kv * WIDTH)):
            value = from_bits(to_bits(generator.standard_normal(size), "bfloat16"), "bfloat16")
            model[f"model.layers.{layer}.self_attn.{word}.bias"] = value
    return model


QWEN: dict[str, Any] = {**CONFIG, "model_type": "qwen2"}


def kept_as(folder: Path, state: State, **config: Any) -> str:
    return str(write(folder, state, "bfloat16", config={**QWEN, **config}))


def named(state: State) -> State:
    """laid_out names PaddleNLP's tensors after Llama."""
    return {name.replace("llama.", "qwen2."): value for name, value in state.items()}


@pytest.mark.parametrize("n_process", few([1, 2]))
@pytest.mark.parametrize("kv", [1, KV, HEADS])
@pytest.mark.parametrize("layout", ["paddlenlp", "paddleformers"])
def test_fused_becomes_hugging_faces(tmp_path: Path, layout: str, kv: int, n_process: int) -> None:
    a, b = biased(0, kv), biased(1, kv)
    config = {"num_key_value_heads": kv, "fuse_attention_qkv": True, "fuse_attention_ffn": True}
    paths = [kept_as(tmp_path / name, named(fused(state, layout, kv=kv)), **config) for name, state in (("a", a), ("b", b))]
    merge(MergeConfig(model_path_list=paths, output_path=str(tmp_path / "out"), output_layout="hf", n_process=n_process))
    assert_same(read(tmp_path / "out"), means(a, b))
    said = json.loads((tmp_path / "out" / "config.json").read_text())
    assert said["fuse_attention_qkv"] is said["fuse_attention_ffn"] is False


@pytest.mark.parametrize("first", ["fused", "apart", "half"])
@pytest.mark.parametrize("second", ["fused", "apart", "half", "hf", "paddleformers fused"])
def test_as_the_first_has_it(tmp_path: Path, first: str, second: str) -> None:
    def in_form(state: State, form: str) -> State:
        if form == "hf":
            return state
        if form.startswith("paddleformers"):
            return fused(state, "paddleformers")
        return named(fused(state, "paddlenlp", qkv=form == "fused", ffn=form != "apart"))

    a, b = biased(0), biased(1)
    paths = [kept_as(tmp_path / "a", in_form(a, first)), kept_as(tmp_path / "b", in_form(b, second))]
    merge(MergeConfig(model_path_list=paths, output_path=str(tmp_path / "out")))
    assert_same(read(tmp_path / "out"), in_form(means(a, b), first))


def test_config_says_what_is_fused(tmp_path: Path) -> None:
    """The base's config.json goes with weights that are fused as the first model's."""
    a, base = biased(0), biased(1)
    paths = [
        kept_as(tmp_path / "a", named(fused(a, "paddlenlp"))),
        kept_as(tmp_path / "b", named(laid_out(base, "paddlenlp"))),
    ]
    config = MergeConfig(model_path_list=[paths[0]] * 2, base_model_path=paths[1], output_path=str(tmp_path / "out"))
    merge(config)
    assert_same(read(tmp_path / "out"), named(fused(a, "paddlenlp")))
    said = json.loads((tmp_path / "out" / "config.json").read_text())
    assert said["fuse_attention_qkv"] is said["fuse_attention_ffn"] is True


@pytest.mark.parametrize("method", few(["della", "ties", "slerp"]))
def test_views_change_nothing_but_the_order(tmp_path: Path, method: str) -> None:
    base, *models = [biased(seed) for seed in range(3)]
    for folder, form in (("same", laid_out), ("mixed", fused)):
        paths = [
            kept_as(tmp_path / folder / str(k), named((laid_out if k == 0 else form)(model, "paddlenlp")))
            for k, model in enumerate([*models, base])
        ]
        config = MergeConfig(merge_method=method, model_path_list=paths[:2], output_path=str(tmp_path / f"{folder}-out"))
        config.base_model_path, config.n_process = paths[2], 1 if folder == "same" else 2
        merge(config)
    assert_same(read(tmp_path / "mixed-out"), read(tmp_path / "same-out"))


def phi(seed: int) -> State:
    """A tiny Phi-3 in Hugging Face's layout."""
    model = {name: value for name, value in llama(seed).items() if not name.endswith("bias")}
    for layer in range(2):
        attention, mlp = f"model.layers.{layer}.self_attn", f"model.layers.{layer}.mlp"
        rows = [model.pop(f"{attention}.{word}_proj.weight") for word in "qkv"]
        model[f"{attention}.qkv_proj.weight"] = np.concatenate(rows)
        rows = [model.pop(f"{mlp}.{word}_proj.weight") for word in ("gate", "up")]
        model[f"{mlp}.gate_up_proj.weight"] = np.concatenate(rows)
    return model


def test_phi3_stays_fused_and_turns(tmp_path: Path) -> None:
    a, b = phi(0), phi(1)
    config = {**CONFIG, "model_type": "phi3"}
    paths = [stored(tmp_path / "a", a, "paddleformers", config), stored(tmp_path / "b", b, "hf", config)]
    merge(MergeConfig(model_path_list=paths, output_path=str(tmp_path / "out"), output_layout="hf"))
    assert_same(read(tmp_path / "out"), means(a, b))
    merge(MergeConfig(model_path_list=paths, output_path=str(tmp_path / "back")))
    assert_same(read(tmp_path / "back"), laid_out(means(a, b), "paddleformers"))


def test_ranks_of_a_distributed_checkpoint(tmp_path: Path) -> None:
    """Each tensor-parallel rank has its own [gate | up], and whole groups of qkv_proj."""
    whole = {name: value.astype("f4") for name, value in fused(biased(0), "paddleformers").items()}
    ranked, boxes = {}, {}
    for name, value in whole.items():
        word, axis = name.split(".")[-2], value.ndim - 1
        if word in ("up_gate_proj", "qkv_proj"):
            half = value.shape[axis] // 2
            boxes[name] = cut(value.shape, *([()] * axis), (half,))
            pieces = value.reshape(*value.shape[:-1], 2, 2, -1) if word == "up_gate_proj" else None  # [gate/up, rank, ..]
            ranked[name] = value if pieces is None else pieces.swapaxes(-3, -2).reshape(value.shape)
        else:
            boxes[name], ranked[name] = cut(value.shape, *([()] * value.ndim)), value
    assert any((ranked[name] != value).any() for name, value in whole.items())
    save(tmp_path / "flex", ranked, boxes)
    (tmp_path / "flex" / "config.json").write_text(json.dumps(QWEN))
    path = str(tmp_path / "flex")
    merge(MergeConfig(model_path_list=[path, path], output_path=str(tmp_path / "out")))
    assert_same(read(tmp_path / "out"), {name: value.astype("f8") for name, value in whole.items()})
    merge(MergeConfig(model_path_list=[path, path], output_path=str(tmp_path / "hf"), output_layout="hf"))
    assert_same(read(tmp_path / "hf"), biased(0))

    name = "model.layers.0.mlp.up_gate_proj.weight"
    save(tmp_path / "odd", ranked, {**boxes, name: cut(whole[name].shape, (), (10,))})
    said = refused(str(tmp_path / "odd"), path, out=tmp_path / "no")
    assert "the ranks' shards of it differ in size" in said[0]
    phis = {
        "model.layers.0.self_attn.qkv_proj.weight": np.zeros((4, 8)),
        "model.layers.0.mlp.gate_up_proj.weight": np.zeros((4, 8)),
    }
    save(tmp_path / "phi", phis, {name: cut((4, 8), (), (4,)) for name in phis})
    said = refused(str(tmp_path / "phi"), str(tmp_path / "phi"), out=tmp_path / "no")
    assert "qkv_proj.weight' is fused in each tensor-parallel rank separately" in said[0]


def refused(*paths: str, out: Path, **fields: Any) -> list[str]:
    with pytest.raises(CheckpointError) as caught:
        merge(MergeConfig(model_path_list=list(paths), output_path=str(out), **fields))
    assert not out.exists()
    return caught.value.problems


def test_what_is_not_certain_is_refused(tmp_path: Path) -> None:
    a = biased(0)
    split, whole = laid_out(a, "paddleformers"), fused(a, "paddleformers", ffn=False)
    name = "model.layers.0.self_attn.qkv_proj.weight"
    out = tmp_path / "out"
    unknown = [
        str(write(tmp_path / folder, state, "bfloat16", config={**CONFIG, "model_type": "strange"}))
        for folder, state in (("s", split), ("w", whole))
    ]
    said = refused(*unknown, out=out)
    assert f"tensor {name!r} can't be converted between qkv_proj and q_proj, k_proj, v_proj: how a model of type" in said[0]
    assert "'strange' in layout paddleformers fuses them isn't known" in said[0]
    assert len(said) == 4
    assert "can't be converted between qkv_proj" in refused(unknown[1], unknown[1], out=out, output_layout="hf")[0]
    phi_state = {**CONFIG, "model_type": "phi3"}
    path = stored(tmp_path / "phi", phi(0), "hf", phi_state)
    said = refused(path, path, out=out, output_layout="paddlenlp")
    assert "is fused, and it isn't known how a model of type 'phi3' fuses it in paddlenlp" in said[0]


def test_sizes_must_match(tmp_path: Path) -> None:
    """One key too few; a piece that is missing; both forms at once; a tensor of three dimensions."""
    a = biased(0)
    name, out = "model.layers.0.self_attn.qkv_proj.weight", tmp_path / "out"
    split, whole = kept_as(tmp_path / "split", laid_out(a, "paddleformers")), fused(a, "paddleformers", ffn=False)
    path = kept_as(tmp_path / "narrow", {**whole, name: whole[name][:, :-WIDTH]})
    assert refused(split, path, out=out) == [f"{path}: tensor {name!r} is [16, 28], but config.json says 32 along axis 1"]
    path = kept_as(tmp_path / "deep", {**whole, name: whole[name][None]})
    assert "is not the weight or bias of one Linear layer" in refused(split, path, out=out)[0]
    good = kept_as(tmp_path / "good", whole)
    partial = laid_out(a, "paddleformers")
    del partial["model.layers.0.self_attn.k_proj.bias"]
    path = kept_as(tmp_path / "partial", partial)
    assert "not all of q_proj, k_proj, v_proj exist" in refused(good, path, out=out)[0]
    path = kept_as(tmp_path / "both", {**whole, name.replace("qkv", "q"): np.zeros((HIDDEN, HIDDEN))})
    assert f"would be converted to {name.replace('qkv', 'q')!r}, which exists already" in refused(split, path, out=out)[0]


def test_feed_forward_of_another_width(tmp_path: Path) -> None:
    """An expert's layers are narrower than config.json's intermediate_size."""
    a = fused(biased(0), "paddleformers", qkv=False)
    name = "model.layers.0.mlp.experts.0.up_gate_proj.weight"
    expert = np.arange(HIDDEN * 8.0).reshape(HIDDEN, 8)
    path = kept_as(tmp_path / "a", {**a, name: expert})
    merge(MergeConfig(model_path_list=[path, path], output_path=str(tmp_path / "out"), output_layout="hf"))
    gate = read(tmp_path / "out")[name.replace("up_gate_proj", "gate_proj")]
    np.testing.assert_array_equal(gate, expert[:, :4].T)


def test_output_for_paddleformers_has_what_it_always_fuses(tmp_path: Path) -> None:
    """[query, query, key, value] of each key head, and [gate | up], both [in, out]; experts have widths of their own."""
    qwen = CONFIG | {"model_type": "qwen3"}
    model = {name: values for name, values in llama(0).items() if not name.endswith("q_proj.bias")}
    layer = "model.layers.0."
    for word, seed in (("gate_proj", 1), ("up_proj", 2)):
        model[f"{layer}mlp.experts.0.{word}.weight"] = np.random.default_rng(seed).integers(-8, 8, (4, HIDDEN)).astype(float)
    paths = [str(write(tmp_path / name, model, "float32", format="pt", config=qwen)) for name in "ab"]
    config = MergeConfig(model_path_list=paths, output_path=str(tmp_path / "out"), output_layout="paddleformers")
    merge(config, progress=False)
    result = read(tmp_path / "out")
    assert not [name for name in result if "q_proj" in name or ".gate_proj" in name or ".up_proj" in name]
    q, k, v = (model[f"{layer}self_attn.{one}_proj.weight"] for one in "qkv")
    size, each = len(k) // KV, len(q) // KV
    rows = [
        part for head in range(KV) for part in (q[head * each :][:each], k[head * size :][:size], v[head * size :][:size])
    ]
    np.testing.assert_array_equal(result[f"{layer}self_attn.qkv_proj.weight"], np.concatenate(rows).T)
    for place in ("mlp.", "mlp.experts.0."):
        halves = [model[f"{layer}{place}{word}.weight"] for word in ("gate_proj", "up_proj")]
        np.testing.assert_array_equal(result[f"{layer}{place}up_gate_proj.weight"], np.concatenate(halves).T)


def test_llama_stays_apart_for_paddleformers(tmp_path: Path) -> None:
    paths = [str(write(tmp_path / name, llama(0), "float32", format="pt", config=CONFIG)) for name in "ab"]
    config = MergeConfig(model_path_list=paths, output_path=str(tmp_path / "out"), output_layout="paddleformers")
    merge(config, progress=False)
    assert "model.layers.0.self_attn.q_proj.weight" in read(tmp_path / "out")
