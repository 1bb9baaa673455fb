"""Test adapters of the libraries: PEFT, PaddleNLP and PaddleFormers write and fold them, and we fold them to the same
weights; they load what extract-lora writes, and fold it to the fine-tuned model.

test_loaders.py says what this needs.
"""

from __future__ import annotations

import dataclasses
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from paddle_merge import CheckpointError, ExtractConfig, MergeConfig, extract_lora, merge
from paddle_merge.checkpoints.names import LAYOUTS
from tests.loaders.test_loaders import HEADS, HIDDEN, KV, LAYERS, VOCAB, State, config, laid_out, work
from tests.support.checkpoints import read
from tests.support.libraries import ABSENT, LIBRARIES

pytestmark = [
    pytest.mark.loaders,
    pytest.mark.skipif(bool(ABSENT), reason=f"no interpreter is named by {', '.join(ABSENT)}"),
]

LAYOUT = {"transformers": "hf", "paddlenlp": "paddlenlp", "paddleformers": "paddleformers"}
FORMAT = {"transformers": "peft", "paddlenlp": "paddlenlp", "paddleformers": "paddleformers"}
RANK = 4
GPT2 = {"model_type": "gpt2", "vocab_size": VOCAB, "n_embd": HIDDEN, "n_layer": LAYERS, "n_head": HEADS, "n_positions": 64}


@dataclass(frozen=True)
class Model:
    """A base model. adapters: name -> the library's settings. options: further arguments of `adapt`."""

    library: str
    name: str
    config: dict[str, object]
    adapters: dict[str, dict[str, object]]
    options: dict[str, object]

    def __str__(self) -> str:
        return f"{self.library}-{self.name}"

    @property
    def ties(self) -> str:
        return "tied" if self.config.get("tie_word_embeddings") else "untied"

    def in_hf(self, state: State) -> State:
        """As Hugging Face would store the weights that the library has."""
        layout, family = LAYOUT[self.library], str(self.config["model_type"])
        result = {}
        for name, value in state.items():
            transposed = layout != "hf" and name.endswith("_proj.weight")
            transposed |= layout == "paddlenlp" and name == "lm_head.weight" and self.ties == "untied"
            first, _, rest = name.partition(".")
            result[f"model.{rest}" if first == family and layout == "paddlenlp" else name] = value.T if transposed else value
        if self.ties == "tied" and "lm_head.weight" in result:
            np.testing.assert_array_equal(result.pop("lm_head.weight"), result["model.embed_tokens.weight"])
        return result

    def laid_out(self, state: State, layout: str) -> State:
        """The library's weights as we should store them."""
        return laid_out(self.in_hf(state), layout, str(self.config["model_type"]), self.ties)


def _model(library: str, name: str, settings: dict[str, object], adapters: dict[str, Any], **options: object) -> Model:
    """Every adapter has this rank and alpha where it doesn't say others."""
    same = {"r": RANK, "lora_alpha": 2 * RANK}
    return Model(library, name, settings, {key: {**same, **value} for key, value in adapters.items()}, options)


MLP = [".*down_proj.*", ".*o_proj.*"]
PADDLE = {"target_modules": [".*q_proj.*", ".*v_proj.*", *MLP]}
PATTERNS = {
    "rank_pattern": {"q_proj": 2, "layers.1.mlp.up_proj": 7},
    "alpha_pattern": {"layers.0.self_attn.v_proj": 3, "down_proj": 5},
}
MODELS = [
    _model(
        "transformers",
        "llama",
        config("llama", "untied"),
        {
            "plain": {"target_modules": ["q_proj", "v_proj", "down_proj", "o_proj"]},
            "patterns": {"target_modules": "all-linear", **PATTERNS},
            "rslora": {"target_modules": ["gate_proj", "k_proj"], "use_rslora": True},
            "dora": {"target_modules": "all-linear", "use_dora": True},
            "embeddings": {"target_modules": ["embed_tokens", "q_proj", "lm_head"]},
            "dora_embeddings": {"target_modules": ["embed_tokens", "q_proj"], "use_dora": True},
            "modules": {"target_modules": ["q_proj"], "modules_to_save": ["lm_head", "embed_tokens", "norm"]},
        },
    ),
    _model(
        "transformers",
        "qwen2",
        config("qwen2", "untied"),
        {
            "bias": {"target_modules": ["q_proj", "k_proj"], "bias": "all"},
            "own_bias": {"target_modules": ["q_proj", "o_proj"], "bias": "lora_only"},
            "lora_bias": {"target_modules": ["q_proj", "k_proj"], "lora_bias": True},
        },
    ),
    _model(
        "transformers",
        "qwen2_tied",
        config("qwen2", "tied"),
        {
            "plain": {"target_modules": ["q_proj", "up_proj"]},
            "modules": {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"], "ensure_weight_tying": True},
            "embeddings": {"target_modules": ["embed_tokens", "up_proj"]},
            "untied": {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"]},
        },
    ),
    _model(
        "transformers",
        "gpt2",
        GPT2,
        {
            "plain": {"target_modules": ["c_attn", "c_proj", "c_fc"], "fan_in_fan_out": True},
            "dora": {"target_modules": ["c_attn", "c_fc"], "fan_in_fan_out": True, "use_dora": True},
        },
    ),
    _model(
        "paddlenlp",
        "llama",
        config("llama", "untied"),
        {
            "plain": PADDLE,
            "mixer": {**PADDLE, "lora_use_mixer": True},
            "pissa": {**PADDLE, "pissa": True},
            "mora": {**PADDLE, "use_mora": True},
        },
    ),
    _model(
        "paddlenlp",
        "qwen2",
        config("qwen2", "untied"),
        {
            "rslora": {**PADDLE, "rslora": True},
            "bias": {**PADDLE, "trainable_bias": "lora"},
            "modules": {**PADDLE, "trainable_modules": [".*up_proj.*", ".*lm_head.*", ".*norm.*"], "trainable_bias": "all"},
        },
    ),
    _model(
        "paddlenlp",
        "qwen2_tied",
        config("qwen2", "tied"),
        {"plain": PADDLE, "modules": {**PADDLE, "trainable_modules": [".*embed_tokens.*"]}},
    ),
    _model(
        "paddlenlp",
        "fused",
        config("llama", "untied"),
        {"plain": {"target_modules": [".*qkv_proj.*", ".*gate_up_fused_proj.*", *MLP]}},
        fuse=True,
    ),
    _model(
        "paddleformers",
        "llama",
        config("llama", "untied"),
        {"plain": PADDLE, "rslora": {**PADDLE, "rslora": True}},
    ),
]
REFUSED = {  # what neither a folded model nor the library's own folding computes as the library trained it
    ("paddlenlp-llama", "pissa"): "PiSSA",
    ("paddlenlp-llama", "mora"): "MoRA",
}
# trained without lm_head on a tied model: PEFT folds them into a tied model, which computes something else
APART = [("transformers-qwen2_tied", "embeddings"), ("transformers-qwen2_tied", "untied")]
CASES = [
    (model, adapter) for model in MODELS for adapter in model.adapters if (str(model), adapter) not in [*REFUSED, *APART]
]
# How PaddleFormers saves a base -> the options with which it opens it.
SAVED: dict[str, dict[str, object]] = {
    "base": {},
    "base-hf": {},
    "base-paddle": {"load_checkpoint_format": "unified_checkpoint", "convert_from_hf": False},
}


@dataclass(frozen=True)
class Extraction:
    """Of a model's change, all its weights' ("tuned") or what its adapter "plain" did ("low_rank"), as an adapter that
    `library` loads onto the model as it is saved in `base`."""

    model: Model
    base: str
    change: str
    library: str

    def __str__(self) -> str:
        return f"{self.model}-{self.base}-{self.change}-for-{self.library}"

    @property
    def options(self) -> dict[str, object]:
        """Of from_pretrained."""
        if self.library == "paddlenlp" and self.model.library != "paddlenlp":
            return {"convert_from_torch": True}
        return SAVED[self.base] if self.library == "paddleformers" else {}


EXTRACTIONS = [
    Extraction(model, base, change, library)
    for model in MODELS
    for base in (SAVED if model.library == "paddleformers" else ("base",))
    for library in (LIBRARIES if str(model) == "transformers-llama" else (model.library,))
    for change in ("tuned", "low_rank")
    if model.name not in ("gpt2", "fused") and (change == "tuned" or "plain" in model.adapters)
]


def named(values: Any) -> str:
    return str(values)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for each model, in which its library wrote it and all that is trained on it."""
    folder = tmp_path_factory.mktemp("adapters")
    jobs: dict[str, dict[str, list[Any]]] = {library: {"adapt": []} for library in LIBRARIES}
    for model in MODELS:
        entry = {"folder": str(folder / str(model)), "config": model.config, "adapters": model.adapters, **model.options}
        jobs[model.library]["adapt"].append(entry)
    work(folder / "adapting", jobs, "lora")
    return folder


def fold(base: Path, adapter: Path, out: Path, **fields: Any) -> State:
    merge(MergeConfig(lora_model_path=str(adapter), base_model_path=str(base), output_path=str(out), **fields))
    return read(out)


def own(library: str) -> str:
    """The base as the library computes with it."""
    return "base-paddle" if library == "paddleformers" else "base"


def with_weights(weights: Path, model: Path, folder: Path) -> Path:
    """A model like `model`, of the weights in another folder."""
    shutil.copytree(model, folder, ignore=shutil.ignore_patterns("*.safetensors*"))
    shutil.copy(weights / "model.safetensors", folder)
    return folder


def assert_close(got: State, expected: State, tolerance: float = 1e-6) -> None:
    """The same names; values within a few roundings of float32, which weights of about 1 are stored in."""
    assert got.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(got[name], value, rtol=0, atol=tolerance, err_msg=name)


def changed(state: State, base: State) -> set[str]:
    return {name for name, value in state.items() if name not in base or not np.array_equal(value, base[name])}


@pytest.mark.parametrize(("model", "adapter"), CASES, ids=named)
def test_folded_as_the_library_folds(made: Path, tmp_path: Path, model: Model, adapter: str) -> None:
    folder = made / str(model)
    base, adapters = folder / own(model.library), [folder / adapter]
    if model.library == "paddleformers":
        adapters.append(folder / f"{adapter}-pdparams")
    expected, before = read(folder / f"{adapter}-folded"), read(base)
    for number, path in enumerate(adapters):
        got = fold(base, path, tmp_path / str(number))
        assert_close(got, expected)
        assert changed(got, before) == changed(expected, before)
        assert changed(got, before)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("base", [*SAVED, *LIBRARIES[:2]])
def test_into_any_layout(made: Path, tmp_path: Path, base: str, layout: str) -> None:
    """From the three kinds of bases that PaddleFormers saves, PaddleNLP's and transformers'."""
    library, saved = (base, "base") if base in LIBRARIES else ("paddleformers", base)
    model = next(model for model in MODELS if (model.library, model.name) == (library, "llama"))
    folder = made / str(model)
    got = fold(folder / saved, folder / "plain", tmp_path / "out", output_layout=layout)
    assert_close(got, model.laid_out(read(folder / "plain-folded"), layout))


@pytest.mark.parametrize(("model", "adapter"), REFUSED)
def test_refused(made: Path, tmp_path: Path, model: str, adapter: str) -> None:
    with pytest.raises(CheckpointError, match=REFUSED[model, adapter]):
        fold(made / model / "base", made / model / adapter, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("model", "adapter"), APART)
def test_trained_apart_from_the_tied_head(made: Path, tmp_path: Path, model: str, adapter: str) -> None:
    """The folded model has a head of its own, the base's, and computes what the model with the adapter does."""
    base, out = made / model / "base", tmp_path / "out"
    got = fold(base, made / model / adapter, out)
    np.testing.assert_array_equal(got["lm_head.weight"], read(base)["model.embed_tokens.weight"])
    loads = [{"name": "out", "folder": str(out), "model_type": "qwen2", "options": {}}]
    answers, logits = work(tmp_path / "loading", {"transformers": {"load": loads}})["transformers"]
    assert answers["out"].startswith("float32")
    np.testing.assert_allclose(logits["out"], np.load(made / model / f"{adapter}-logits.npy"), rtol=0, atol=1e-4)


@pytest.mark.parametrize("library", LIBRARIES)
def test_methods_merge_adapters_as_the_models_they_make(made: Path, tmp_path: Path, library: str) -> None:
    folder = made / f"{library}-llama"
    a, b = "plain", {"transformers": "patterns", "paddlenlp": "mixer", "paddleformers": "rslora"}[library]
    base = folder / own(library)
    shared: dict[str, Any] = {"base_model_path": str(base), "merge_method": "ties", "reserve_p": 0.5}
    adapted = [f"{base}+{folder / name}" for name in (a, b)]
    merge(MergeConfig(model_path_list=adapted, output_path=str(tmp_path / "adapted"), **shared))
    folded = [str(with_weights(folder / f"{name}-folded", base, tmp_path / name)) for name in (a, b)]
    merge(MergeConfig(model_path_list=folded, output_path=str(tmp_path / "folded"), **shared))
    assert_close(read(tmp_path / "adapted"), read(tmp_path / "folded"), 1e-5)


# --- one fused adapter, the base apart ---------------------------------------------------------------------------------


def apart(fused: State) -> State:
    """PaddleNLP's own: query heads, a key and a value, group by group; gate, then up. All along the outputs."""
    width, result = HIDDEN // HEADS, {}
    for name, value in fused.items():
        if "qkv_proj" in name:
            groups = value.reshape(HIDDEN, KV, HEADS // KV + 2, width)
            pieces = {"q": groups[:, :, :-2], "k": groups[:, :, -2], "v": groups[:, :, -1]}
            for piece, part in pieces.items():
                result[name.replace("qkv_proj", f"{piece}_proj")] = part.reshape(HIDDEN, -1)
        elif "gate_up_fused_proj" in name:
            gate, up = np.split(value, 2, axis=1)
            result[name.replace("gate_up_fused_proj", "gate_proj")] = gate
            result[name.replace("gate_up_fused_proj", "up_proj")] = up
        else:
            result[name] = value
    return result


def test_a_fused_adapter_onto_split_weights(made: Path, tmp_path: Path) -> None:
    """By numbers, and by PaddleNLP, which computes the same with the fused model and with ours."""
    (model,) = (model for model in MODELS if model.name == "fused")
    folder = made / str(model)
    fused = read(folder / "plain-folded")
    twice = [str(folder / "base")] * 2
    merge(MergeConfig(model_path_list=twice, output_layout="hf", output_path=str(tmp_path / "split")))
    outputs = {
        "on fused": fold(folder / "base", folder / "plain", tmp_path / "on fused", output_layout="hf"),
        "on split": fold(tmp_path / "split", folder / "plain", tmp_path / "on split"),
    }
    for got in outputs.values():
        assert_close(got, model.in_hf(apart(fused)))
    with_weights(folder / "plain-folded", folder / "base", tmp_path / "fused")
    loads: list[dict[str, Any]] = [{"name": "fused", "folder": str(tmp_path / "fused"), "fuse": True, "options": {}}]
    for name in outputs:
        options = {"convert_from_torch": True}
        loads.append({"name": name, "folder": str(tmp_path / name), "fuse": False, "options": options})
    answers, logits = work(tmp_path / "loading", {"paddlenlp": {"load": loads}}, "lora")["paddlenlp"]
    assert set(answers.values()) == {""}, answers
    for name in outputs:
        np.testing.assert_allclose(logits[name], logits["fused"], rtol=0, atol=1e-4, err_msg=name)


# --- extracted adapters ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def extracted(made: Path) -> Path:
    """A folder for each extraction: in `adapter` it, and in `folded` what its library makes of it and the base."""
    jobs: dict[str, dict[str, list[Any]]] = {library: {"fold": []} for library in LIBRARIES}
    for case in EXTRACTIONS:
        folder, out = made / str(case.model), made / str(case)
        finetuned, rank = folder / "tuned", 1000
        if case.change == "low_rank":
            rank, like = RANK, folder / own(case.model.library)
            finetuned = with_weights(folder / "plain-folded", like, out / "finetuned")
        fields = {"rank": rank, "format": FORMAT[case.library], "output_path": str(out / "adapter")}
        extract_lora(ExtractConfig(finetuned_path=str(finetuned), base_model_path=str(folder / case.base), **fields))
        paths = {"base": str(folder / case.base), "adapter": str(out / "adapter"), "folder": str(out / "folded")}
        jobs[case.library]["fold"].append({**paths, "options": case.options})
    work(made / "folding", jobs, "lora")
    return made


@pytest.mark.parametrize("case", EXTRACTIONS, ids=str)
def test_extracted_adapters_fold_back(extracted: Path, tmp_path: Path, case: Extraction) -> None:
    """In the library, and here."""
    folder, out = extracted / str(case.model), extracted / str(case)
    tuned = read(folder / ("tuned" if case.change == "tuned" else "plain-folded"))
    in_hf = case.model.library == "paddleformers" and case.change == "tuned"  # so it saves by default
    expected = tuned if in_hf else case.model.in_hf(tuned)
    reader = dataclasses.replace(case.model, library=case.library)
    assert_close(reader.in_hf(read(out / "folded")), expected, 1e-5)
    assert_close(fold(folder / case.base, out / "adapter", tmp_path / "out", output_layout="hf"), expected, 1e-5)
