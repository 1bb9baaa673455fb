"""Test Hugging Face's and Paddle's layouts: how they are detected, viewed in one layout, and stored in any."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from paddle_merge import CheckpointError, ConfigError, MergeConfig, merge
from paddle_merge.checkpoints.names import LAYOUTS
from paddle_merge.checkpoints.open import open_checkpoint
from paddle_merge.checkpoints.views import transpose
from paddle_merge.conversion.detect import detect
from paddle_merge.recipe.request import Request
from tests.support.checkpoints import from_bits, read, to_bits, write
from tests.support.sweeps import few

HIDDEN, HEADS, KV, WIDTH, INTER, VOCAB = 16, 4, 2, 4, 24, 40
CONFIG: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": HIDDEN,
    "num_attention_heads": HEADS,
    "num_key_value_heads": KV,
    "intermediate_size": INTER,
    "vocab_size": VOCAB,
    "tie_word_embeddings": False,
}
State = dict[str, np.ndarray]


def llama(seed: int, inter: int = INTER, kv: int = KV, tied: bool = False) -> State:
    """A tiny model in HF's layout, in values that bfloat16 holds."""
    generator = np.random.default_rng(seed)
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (VOCAB, HIDDEN)}
    for layer in range(2):
        shapes |= {
            f"model.layers.{layer}.{name}.weight": shape
            for name, shape in {
                "self_attn.q_proj": (HEADS * WIDTH, HIDDEN),
                "self_attn.k_proj": (kv * WIDTH, HIDDEN),
                "self_attn.v_proj": (kv * WIDTH, HIDDEN),
                "self_attn.o_proj": (HIDDEN, HEADS * WIDTH),
                "mlp.gate_proj": (inter, HIDDEN),
                "mlp.up_proj": (inter, HIDDEN),
                "mlp.down_proj": (HIDDEN, inter),
                "input_layernorm": (HIDDEN,),
            }.items()
        }
        shapes[f"model.layers.{layer}.self_attn.q_proj.bias"] = (HEADS * WIDTH,)
    shapes["model.norm.weight"] = (HIDDEN,)
    if not tied:
        shapes["lm_head.weight"] = (VOCAB, HIDDEN)
    values = {name: generator.standard_normal(shape) for name, shape in shapes.items()}
    return {name: from_bits(to_bits(value, "bfloat16"), "bfloat16") for name, value in values.items()}


def laid_out(hf: State, layout: str) -> State:
    """The same model in another layout, by the table at the top of layout.py."""
    if layout == "hf":
        return hf
    result = {}
    for name, value in hf.items():
        turn = value.ndim == 2 and name.endswith("_proj.weight")
        turn |= name == "lm_head.weight" and layout == "paddlenlp"
        result[name.replace("model.", "llama.") if layout == "paddlenlp" else name] = value.T.copy() if turn else value
    return result


def stored(folder: Path, hf: State, layout: str, config: dict[str, Any] = CONFIG, dtype: str = "bfloat16") -> str:
    extra = {"source": "paddle"} if layout == "paddleformers" else {}
    format = {"hf": "pt", "paddlenlp": "np", "paddleformers": "np"}[layout]
    return str(write(folder, laid_out(hf, layout), dtype, config={**config, **extra}, format=format))


def means(*models: State) -> State:
    return {
        name: from_bits(to_bits(sum(model[name] for model in models) / len(models), "bfloat16"), "bfloat16")  # type: ignore[arg-type]
        for name in models[0]
    }


def assert_same(got: State, expected: State) -> None:
    assert got.keys() == expected.keys()
    for name, value in expected.items():
        assert got[name].shape == value.shape, name
        assert (got[name] == value).all(), name


@pytest.mark.parametrize("second", LAYOUTS)
@pytest.mark.parametrize("first", LAYOUTS)
def test_any_two_layouts_merge_into_the_first(tmp_path: Path, first: str, second: str) -> None:
    a, b = llama(0), llama(1)
    paths = [stored(tmp_path / "a", a, first), stored(tmp_path / "b", b, second)]
    merge(MergeConfig(model_path_list=paths, output_path=str(tmp_path / "out")))
    assert_same(read(tmp_path / "out"), laid_out(means(a, b), first))


@pytest.mark.parametrize("n_process", few([1, 2]))
@pytest.mark.parametrize("output", LAYOUTS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_output_layout(tmp_path: Path, layout: str, output: str, n_process: int) -> None:
    """With what loaders look at: metadata format, and config.json's dtype under both names."""
    a, b = llama(0), llama(1)
    paths = [stored(tmp_path / "a", a, layout), stored(tmp_path / "b", b, layout)]
    out = tmp_path / "out"
    merge(MergeConfig(model_path_list=paths, output_path=str(out), output_layout=output, n_process=n_process))
    assert_same(read(out), laid_out(means(a, b), output))
    assert open_checkpoint(str(out)).format == ("pt" if output == "hf" else "np")
    config = json.loads((out / "config.json").read_text())
    assert config["dtype"] == config["torch_dtype"] == "bfloat16"
    assert config.get("source") == ("paddle" if output == "paddleformers" else None)
    assert detect(open_checkpoint(str(out)), "model", {}).layout == output


@pytest.mark.parametrize(("convert", "save", "expected"), [(True, False, "paddleformers"), (False, True, "hf")])
def test_paddleformers_flags(tmp_path: Path, convert: bool, save: bool, expected: str) -> None:
    a = llama(0)
    layout = "hf" if convert else "paddleformers"
    paths = [stored(tmp_path / name, a, layout) for name in "ab"]
    config = MergeConfig(model_path_list=paths, output_path=str(tmp_path / "out"))
    config.convert_from_hf, config.save_to_hf = convert, save
    merge(config)
    assert_same(read(tmp_path / "out"), laid_out(a, expected))


@pytest.mark.parametrize("method", few(["della", "ties", "slerp", "dare_ties"]))
def test_turning_changes_nothing_but_the_order(tmp_path: Path, method: str) -> None:
    """A model in Paddle's layout merges with those in HF's as if it had been converted first; in several processes too."""
    base, *models = [llama(seed) for seed in range(3)]
    for folder, layouts in (("same", ["hf"] * 3), ("mixed", ["hf", "paddlenlp", "paddleformers"])):
        paths = [
            stored(tmp_path / folder / str(k), model, layout)
            for k, (model, layout) in enumerate(zip([*models, base], layouts, strict=True))
        ]
        config = MergeConfig(
            merge_method=method,
            model_path_list=paths[:2],
            base_model_path=paths[2],
            output_path=str(tmp_path / f"{folder}-out"),
        )
        config.n_process = 1 if folder == "same" else 3
        merge(config)
    assert_same(read(tmp_path / "mixed-out"), read(tmp_path / "same-out"))


def test_tied_embeddings(tmp_path: Path) -> None:
    """HF leaves lm_head out, Paddle's libraries store it; a conversion to HF drops it."""
    tied = {**CONFIG, "tie_word_embeddings": True}
    a, b = llama(0, tied=True), llama(1, tied=True)
    paddle = {**laid_out(b, "paddlenlp"), "lm_head.weight": b["model.embed_tokens.weight"]}
    paths = [stored(tmp_path / "a", a, "hf", tied), str(write(tmp_path / "b", paddle, "bfloat16", config=tied))]
    merge(MergeConfig(model_path_list=paths, output_path=str(tmp_path / "out")))
    assert_same(read(tmp_path / "out"), means(a, b))
    c = llama(2)
    untied = stored(tmp_path / "c", c, "paddlenlp")
    merge(MergeConfig(model_path_list=[paths[0], untied], output_path=str(tmp_path / "apart")))
    assert_same(read(tmp_path / "apart"), means({**a, "lm_head.weight": a["model.embed_tokens.weight"]}, c))


def test_square_weights_say_nothing(tmp_path: Path) -> None:
    """Nor does metadata "np": the user must."""
    square = {**CONFIG, "intermediate_size": HIDDEN, "num_key_value_heads": HEADS}
    a, b = llama(0, HIDDEN, HEADS), llama(1, HIDDEN, HEADS)
    first = stored(tmp_path / "a", a, "hf", square)
    second = str(write(tmp_path / "b", laid_out(b, "paddleformers"), "bfloat16", config=square, format="np"))
    config = MergeConfig(model_path_list=[first, second], output_path=str(tmp_path / "out"))
    with pytest.raises(CheckpointError, match=r"its layout is unknown .* state it with --layout"):
        merge(config)
    config.layout = ["hf", "paddleformers"]
    merge(config)
    assert_same(read(tmp_path / "out"), means(a, b))


def test_evidence_that_contradicts_itself(tmp_path: Path) -> None:
    a, b = llama(0), laid_out(llama(1), "paddleformers")
    name = "model.layers.1.mlp.up_proj.weight"
    paths = [stored(tmp_path / "a", a, "hf"), str(write(tmp_path / "b", {**b, name: b[name].T.copy()}, config=CONFIG))]
    with pytest.raises(
        CheckpointError, match=r"its layout is unknown \(by the shape of .*; the shape of .* contradicts that"
    ):
        merge(MergeConfig(model_path_list=paths, output_path=str(tmp_path / "out")))


def test_what_is_not_known_is_not_turned(tmp_path: Path) -> None:
    a, b = llama(0), llama(1)
    a["model.layers.0.odd.weight"] = b["model.layers.0.odd.weight"] = np.zeros((3, 5))
    paths = [stored(tmp_path / "a", a, "hf"), stored(tmp_path / "b", b, "paddleformers")]
    config = MergeConfig(model_path_list=paths, output_path=str(tmp_path / "out"))
    with pytest.raises(CheckpointError, match=r"'model.layers.0.odd.weight' .* it isn't known whether it has to be t"):
        merge(config)
    config.model_path_list = [paths[0], paths[0]]
    merge(config)  # nothing has to be turned


def test_strict_layout(tmp_path: Path) -> None:
    paths = [stored(tmp_path / "a", llama(0), "hf"), stored(tmp_path / "b", llama(1), "paddlenlp")]
    config = MergeConfig(model_path_list=paths, output_path=str(tmp_path / "out"), strict_layout=True)
    with pytest.raises(CheckpointError, match=r"--strict_layout: the inputs' layouts differ: .*a: hf .*b: paddlenlp"):
        merge(config)


def test_a_missing_config_is_borrowed(tmp_path: Path) -> None:
    """Shapes are evidence with another input's config.json, which is of the same architecture."""
    a, b = llama(0), llama(1)
    paths = [stored(tmp_path / "a", a, "paddleformers"), stored(tmp_path / "b", b, "paddleformers")]
    (tmp_path / "b" / "config.json").unlink()
    merge(MergeConfig(model_path_list=paths, output_path=str(tmp_path / "out")))
    assert_same(read(tmp_path / "out"), laid_out(means(a, b), "paddleformers"))


def test_words_that_are_no_layout() -> None:
    with pytest.raises(ConfigError) as caught:
        Request.of(MergeConfig(model_path_list=["a", "b"], layout=["hf"], output_layout="pf")).checked_recipe()
    assert caught.value.problems == [
        "--output_layout 'pf' must be one of hf, paddlenlp, paddleformers",
        "--layout has 1 words for 2 models (the base last)",
    ]


def test_a_word_for_each_model_where_one_is_given_twice(tmp_path: Path) -> None:
    """A recipe has it once; and what a merge records repeats it."""
    a, b = (stored(tmp_path / name, llama(seed), "hf") for seed, name in enumerate("ab"))
    fields = {"merge_method": "task_arithmetic", "base_model_path": a, "weight_list": [1.0, 0.5, 0.25]}
    out, again = tmp_path / "out", tmp_path / "again"
    merge(MergeConfig(model_path_list=[b, a, b], layout=["hf"] * 4, output_path=str(out), **fields))
    merge(MergeConfig(model_path_list=[b, a, b], output_path=str(again), **fields))
    assert (out / "model.safetensors").read_bytes() == (again / "model.safetensors").read_bytes()
    recorded = MergeConfig.from_mapping(MergeConfig.from_file(str(out / "merge_config.json")))
    assert recorded.layout == ["hf"] * 2
    recorded.output_path, recorded.overwrite = str(again), True
    merge(recorded)
    assert (out / "model.safetensors").read_bytes() == (again / "model.safetensors").read_bytes()


def test_a_model_has_but_one_layout() -> None:
    with pytest.raises(ConfigError) as caught:
        Request.of(MergeConfig(model_path_list=["a", "b", "a"], layout=["hf", "hf", "paddlenlp"])).checked_recipe()
    assert caught.value.problems == ["--layout says hf and paddlenlp of a"]


def test_a_large_matrix_on_its_side(tmp_path: Path) -> None:
    """Read in blocks that begin anywhere, each in few reads."""
    from paddle_merge.checkpoints.files import Files

    values = np.arange(700 * 1300.0).reshape(700, 1300)
    entry = open_checkpoint(str(write(tmp_path / "a", {"w": values}, "float32"))).tensors["w"]
    transposed = transpose(entry, "v")
    assert transposed.shape == (1300, 700)
    expected = values.T.reshape(-1)
    files = Files()
    for start, count in ((0, 910_000), (1, 65_536), (699, 3), (123_456, 70_000), (909_999, 1)):
        out = np.empty(count, "<f4")
        files.read(transposed, start, out)
        assert (out == expected[start : start + count]).all()
    files.close()


def refused(*paths: str, out: Path, **fields: Any) -> str:
    with pytest.raises(CheckpointError) as caught:
        merge(MergeConfig(model_path_list=list(paths), output_path=str(out), **fields))
    return str(caught.value)


def test_shapes_outweigh_names_kinds_and_the_user(tmp_path: Path) -> None:
    """PaddleNLP's names, or --layout, on weights that lie as Hugging Face's."""
    renamed = {name.replace("model.", "llama."): value for name, value in llama(0).items()}
    path = str(write(tmp_path / "a", renamed, "bfloat16", config=CONFIG))
    assert "; the shape of" in refused(path, path, out=tmp_path / "o", output_layout="hf")
    hf = stored(tmp_path / "b", llama(0), "hf")
    said = refused(hf, hf, out=tmp_path / "o", layout=["paddleformers", "paddleformers"], output_layout="hf")
    assert "--layout says paddleformers; the shape of" in said


def test_paddles_mark_on_torchs_file_is_no_evidence(tmp_path: Path) -> None:
    square = {**CONFIG, "intermediate_size": HIDDEN, "num_key_value_heads": HEADS}
    model = llama(0, HIDDEN, HEADS)
    path = str(write(tmp_path / "a", model, "bfloat16", config={**square, "source": "paddle"}, format="pt"))
    assert "but the file is torch's" in refused(path, path, out=tmp_path / "o", output_layout="hf")


def test_sizes_of_a_nested_config(tmp_path: Path) -> None:
    nested = {"model_type": "llava", "architectures": ["L"], "text_config": {**CONFIG, "num_key_value_heads": KV}}
    path = str(write(tmp_path / "a", laid_out(llama(0), "paddleformers"), "bfloat16", config=nested, format="pt"))
    merge(MergeConfig(model_path_list=[path, path], output_path=str(tmp_path / "o"), output_layout="hf"))
    assert_same(read(tmp_path / "o"), llama(0))


def test_lm_head_goes_by_its_shape_and_its_values(tmp_path: Path) -> None:
    tied = {**CONFIG, "tie_word_embeddings": True}
    a = llama(0)
    transposed = stored(tmp_path / "turned", a, "paddlenlp", tied)  # [h, V], as only untied models have it
    assert "'lm_head.weight' is not stored as paddlenlp does" in refused(
        transposed, transposed, out=tmp_path / "o", output_layout="hf"
    )
    other = stored(tmp_path / "other", a, "paddleformers", tied)  # tied, says config.json
    assert "their values differ" in refused(other, other, out=tmp_path / "o", output_layout="hf")
    gemma = {key: value for key, value in {**CONFIG, "model_type": "gemma"}.items() if key != "tie_word_embeddings"}
    same = {**laid_out(a, "paddleformers"), "lm_head.weight": a["model.embed_tokens.weight"]}
    path = str(write(tmp_path / "gemma", same, "bfloat16", config=gemma))
    merge(MergeConfig(model_path_list=[path, path], output_path=str(tmp_path / "out"), output_layout="hf"))
    assert "lm_head.weight" not in read(tmp_path / "out")


def test_a_tied_models_lm_head_comes_back_for_paddle(tmp_path: Path) -> None:
    tied = {**CONFIG, "tie_word_embeddings": True}
    a = llama(0, tied=True)
    path = stored(tmp_path / "a", a, "hf", tied)
    merge(MergeConfig(model_path_list=[path, path], output_path=str(tmp_path / "o"), output_layout="paddlenlp"))
    expected = {**laid_out(a, "paddlenlp"), "lm_head.weight": a["model.embed_tokens.weight"]}
    assert_same(read(tmp_path / "o"), expected)


def test_a_tied_lm_head_may_be_stored_or_not(tmp_path: Path) -> None:
    """PaddleFormers and torch.save store it in Hugging Face's layout too, transformers' safetensors leave it out."""
    tied = {**CONFIG, "tie_word_embeddings": True}
    a, b = llama(0, tied=True), llama(1, tied=True)
    with_head = {**b, "lm_head.weight": b["model.embed_tokens.weight"]}
    paths = [stored(tmp_path / "a", a, "hf", tied), stored(tmp_path / "b", with_head, "hf", tied)]
    for number, order in enumerate((paths, paths[::-1], [paths[1], paths[1]])):
        merge(MergeConfig(model_path_list=order, output_path=str(tmp_path / f"o{number}")))
        assert_same(read(tmp_path / f"o{number}"), means(b, b) if number == 2 else means(a, b))


@pytest.mark.parametrize("method", ["dare_ties", "della", "ties", "slerp"])
@pytest.mark.parametrize("layout", ["paddlenlp", "paddleformers"])
@pytest.mark.parametrize("source", LAYOUTS)
def test_a_tied_lm_head_stays_the_embedding(tmp_path: Path, source: str, layout: str, method: str) -> None:
    """Random masks go by the tensor's name; those of the two must still be the same."""
    tied = {**CONFIG, "tie_word_embeddings": True}
    paths = []
    for number in range(3):
        model = llama(number, tied=True)
        if source != "hf":  # a copy of its own in the file
            model["lm_head.weight"] = model["model.embed_tokens.weight"]
            model = {
                **laid_out({**model, "lm_head.weight": np.zeros((1, 1))}, source),
                "lm_head.weight": model["lm_head.weight"],
            }
        extra = {"source": "paddle"} if source == "paddleformers" else {}
        paths.append(str(write(tmp_path / str(number), model, "bfloat16", config={**tied, **extra}, format=None)))
    merge(
        MergeConfig(
            model_path_list=paths[:2],
            base_model_path=None if method == "slerp" else paths[2],
            output_path=str(tmp_path / "o"),
            output_layout=layout,
            merge_method=method,
        )
    )
    out = read(tmp_path / "o")
    embedding = out["llama.embed_tokens.weight" if layout == "paddlenlp" else "model.embed_tokens.weight"]
    assert out["lm_head.weight"].shape == (VOCAB, HIDDEN)
    assert (out["lm_head.weight"] == embedding).all()


@pytest.mark.parametrize("names", ["model", "transformer"])
def test_a_tied_lm_head_stays_the_embedding_in_no_known_layout(tmp_path: Path, names: str) -> None:
    """Masks are drawn by name; a loader ties the two, so that lm_head would undo the embedding, or the other way round."""
    paths = []
    for number in range(3):
        embedding = np.random.default_rng(number).normal(size=(VOCAB, HIDDEN))
        square = np.random.default_rng(9).normal(size=(HIDDEN, HIDDEN))
        model = {f"{names}.wte.weight": embedding, f"{names}.layers.0.q_proj.weight": square, "lm_head.weight": embedding}
        config = {"tie_word_embeddings": True}
        paths.append(str(write(tmp_path / str(number), model, "float32", config=config, format=None)))
    recipe = {"model_path_list": paths[:2], "base_model_path": paths[2], "merge_method": "dare_ties"}
    merge(MergeConfig(**recipe, output_path=str(tmp_path / "o")))
    out = read(tmp_path / "o")
    assert (out["lm_head.weight"] == out[f"{names}.wte.weight"]).all()
    assert (out["lm_head.weight"] != 0).any()


def test_a_known_layout_says_so_whatever_the_inputs_said(tmp_path: Path) -> None:
    """PaddleFormers writes no metadata format, which transformers 4 doesn't load; a config may come from elsewhere."""
    for layout, source, format in (("hf", "paddle", "pt"), ("paddleformers", None, "np")):
        config = {**CONFIG, **({"source": source} if source else {})}
        path = str(write(tmp_path / layout, laid_out(llama(0), layout), "bfloat16", config=config, format=None))
        out = tmp_path / f"{layout}-out"
        merge(MergeConfig(model_path_list=[path, path], output_path=str(out)))
        assert open_checkpoint(str(out)).format == format
        assert json.loads((out / "config.json").read_text()).get("source") == ("paddle" if layout != "hf" else None)


def test_tied_and_untied_of_one_layout(tmp_path: Path) -> None:
    a = stored(tmp_path / "a", llama(0), "hf", {**CONFIG, "tie_word_embeddings": True})
    b = stored(tmp_path / "b", llama(1), "hf")
    assert "config.json ties lm_head to the embedding, but their values differ" in refused(a, b, out=tmp_path / "o")


def test_fused_weights_and_names_that_collide(tmp_path: Path) -> None:
    model = laid_out(llama(0), "paddlenlp")
    for extra, words in (
        (
            {"llama.layers.0.self_attn.qkv_proj.weight": np.zeros((16, 32))},
            "would be converted to 'llama.layers.0.self_attn.q_proj.weight', which exists already",
        ),
        ({"model.norm.weight": np.zeros(HIDDEN)}, "would both have the name 'model.norm.weight' in hf"),
    ):
        path = str(write(tmp_path / words[-9:], {**model, **extra}, "bfloat16", config=CONFIG))
        assert words in refused(path, path, out=tmp_path / "o", output_layout="hf")


def test_odd_configs(tmp_path: Path) -> None:
    """Numbers that are lists, flags that are words."""
    config = {**CONFIG, "num_key_value_heads": [2, 2], "tie_word_embeddings": "false"}
    path = stored(tmp_path / "a", llama(0), "hf", config)
    merge(MergeConfig(model_path_list=[path, path], output_path=str(tmp_path / "o"), output_layout="hf"))
    assert_same(read(tmp_path / "o"), llama(0))


def test_undecidable_but_of_the_same_shapes(tmp_path: Path) -> None:
    """Nothing needs to be transposed, whatever the layout is."""
    paths = [str(write(tmp_path / name, llama(0), "bfloat16", format=name, config={})) for name in ("pt", "np")]
    for path in paths:
        (Path(path) / "config.json").unlink()
    merge(MergeConfig(model_path_list=paths, output_path=str(tmp_path / "o")))
    assert_same(read(tmp_path / "o"), llama(0))


def test_paddles_and_torchs_files_of_unknown_models(tmp_path: Path) -> None:
    """Square matrices may have either orientation."""
    import pickle

    values = {"blocks.0.proj.weight": np.arange(64, dtype="f4").reshape(8, 8)}
    torch = str(write(tmp_path / "a", values, "float32", format="pt"))
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "model_state.pdparams").write_bytes(pickle.dumps(values, protocol=4))
    said = refused(torch, str(tmp_path / "b"), out=tmp_path / "o")
    assert "one may store 'blocks.0.proj.weight' transposed; the layout is unknown: state it with --layout" in said
    config = MergeConfig(model_path_list=[torch, str(tmp_path / "b")], output_path=str(tmp_path / "o"))
    config.layout = ["hf", "hf"]
    merge(config)


def test_row_shards_on_their_side(tmp_path: Path) -> None:
    """A matrix in runs of rows, as tensor-parallel and distributed checkpoints have it."""
    from paddle_merge.checkpoints.files import Files
    from paddle_merge.checkpoints.parts import assemble
    from paddle_merge.checkpoints.tensors import Part
    from paddle_merge.dtypes import FLOAT32

    values = np.arange(60, dtype="<f4").reshape(10, 6)
    parts = []
    for number, rows in enumerate((values[:4], values[4:])):
        file = tmp_path / f"{number}"
        file.write_bytes(b"head" + rows.tobytes())
        parts.append(Part(str(file), 4, (4 * number, 0), rows.shape, (6, 1)))
    transposed = transpose(assemble("w", FLOAT32, (10, 6), parts), "w")
    out = np.empty(60, "<f4")
    files = Files()
    files.read(transposed, 0, out)
    files.close()
    assert (out.reshape(6, 10) == values.T).all()
