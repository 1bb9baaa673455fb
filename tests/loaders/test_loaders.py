"""Test that the output loads in the libraries: PaddleNLP, PaddleFormers and transformers write tiny Llama and Qwen2 models,
paddle_merge averages them, and the three load the result and compute the logits of the average worked out by hand.

The three can't share an environment, so each does its part in its own, by a script in scripts/. An environment variable
names its interpreter; .ci/run shows what to install there:

    PADDLE_MERGE_TRANSFORMERS_PYTHON=... PADDLE_MERGE_PADDLENLP_PYTHON=... PADDLE_MERGE_PADDLEFORMERS_PYTHON=... \
        python -m pytest tests/loaders/test_loaders.py

PaddleFormers computes Llama only here: its Qwen2 imports paddlefleet, which isn't on PyPI. That Qwen2 models are stored in
its layout is shown by reading the files.
"""

from __future__ import annotations

import itertools
import json
import os
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from paddle_merge import MergeConfig, merge
from paddle_merge.checkpoints.names import LAYOUTS
from tests.support import libraries
from tests.support.checkpoints import from_bits, read, to_bits
from tests.support.libraries import ABSENT, LIBRARIES, VARIABLES
from tests.support.sweeps import in_pairs

pytestmark = [
    pytest.mark.loaders,
    pytest.mark.skipif(bool(ABSENT), reason=f"no interpreter is named by {', '.join(ABSENT)}"),
]

HIDDEN, INTER, HEADS, KV, VOCAB, LAYERS = 16, 24, 4, 2, 40, 2
MODELS = tuple(itertools.product(("llama", "qwen2"), ("untied", "tied")))
DTYPES = ("float32", "bfloat16")
# What each library writes, and in which layout; `save` in its script says how.
KINDS = {
    "transformers_safetensors": "hf",
    "transformers_shards": "hf",
    "transformers_bin": "hf",
    "paddlenlp_safetensors": "paddlenlp",
    "paddlenlp_shards": "paddlenlp",
    "paddlenlp_pdparams": "paddlenlp",
    "paddleformers_hf": "hf",
    "paddleformers_unified": "hf",
    "paddleformers_paddle": "paddleformers",
    "paddleformers_pdparams": "paddleformers",
    "paddleformers_checkpoint": "paddleformers",
}
SOURCES = [
    *((kind, kind) for kind in KINDS),
    ("transformers_bin", "paddlenlp_pdparams"),
    ("paddlenlp_safetensors", "transformers_shards"),
    ("paddleformers_hf", "paddlenlp_shards"),
    ("transformers_safetensors", "paddleformers_checkpoint"),
    ("paddleformers_paddle", "transformers_bin"),
    ("transformers_bin", "paddlenlp_pdparams", "paddleformers_checkpoint", "transformers_shards"),
]
# Which libraries load a layout, and with which options of from_pretrained.
LOADS: dict[str, dict[str, dict[str, object]]] = {
    "hf": {"transformers": {}, "paddlenlp": {"convert_from_torch": True}, "paddleformers": {}},
    "paddlenlp": {"paddlenlp": {}},
    "paddleformers": {"paddleformers": {"load_checkpoint_format": "unified_checkpoint", "convert_from_hf": False}},
}
State = dict[str, np.ndarray]


@dataclass(frozen=True)
class Case:
    """One merge: of models of these kinds, in turn model a and model b."""

    model_type: str
    ties: str
    dtype: str
    kinds: tuple[str, ...]
    output_layout: str | None
    shards: str

    def __str__(self) -> str:
        return f"{self.model}-{'+'.join(self.kinds)}-{self.output_layout}-{self.shards}"

    @property
    def model(self) -> str:
        return f"{self.model_type}-{self.ties}-{self.dtype}"

    @property
    def layout(self) -> str:
        """That of the output: the one asked for, else the first model's."""
        return self.output_layout or KINDS[self.kinds[0]]

    @property
    def loads(self) -> dict[str, dict[str, object]]:
        """Library -> options."""
        loads = LOADS[self.layout].items()
        return {library: options for library, options in loads if computes(library, self.model_type)}


def computes(library: str, model_type: str) -> bool:
    """Whether the library has this model here."""
    return library != "paddleformers" or model_type == "llama"


ALL = [
    Case(model_type, ties, dtype, kinds, layout, shards)
    for model_type, ties in MODELS
    for dtype in DTYPES
    for kinds in SOURCES
    if all(computes(kind.partition("_")[0], model_type) for kind in kinds)
    for layout, shards in (*itertools.product(LAYOUTS, ("single", "sharded")), (None, "single"))
]
FROM_TRANSFORMERS, FROM_PADDLENLP = (
    Case("qwen2", "untied", "float32", (f"{library}_safetensors",) * 2, layout, "single")
    for library, layout in (("transformers", "hf"), ("paddlenlp", "paddlenlp"))
)
# In which any two of these meet: a model, its dtype, who wrote what is merged, and what it is merged into.
MEETING = [
    {"model": (case.model_type, case.ties), "dtype": case.dtype, "from": case.kinds, "to": (case.output_layout, case.shards)}
    for case in ALL
]
CASES = [ALL[index] for index in in_pairs(MEETING, [ALL.index(FROM_TRANSFORMERS), ALL.index(FROM_PADDLENLP)])]
TOKENIZERS: list[tuple[str, Case, dict[str, object]]] = [
    ("transformers", FROM_TRANSFORMERS, {}),
    ("paddlenlp", FROM_TRANSFORMERS, {"use_fast": True}),  # its other one can't read tokenizer.json
    ("paddleformers", FROM_TRANSFORMERS, {}),
    ("paddlenlp", FROM_PADDLENLP, {}),
    ("paddleformers", FROM_PADDLENLP, {}),
]


def config(model_type: str, ties: str) -> dict[str, object]:
    """None of the numbers is a library's default, so that one which doesn't arrive changes logits."""
    llama3 = {
        "rope_type": "llama3",
        "factor": 4.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 16,
    }
    return {
        **({"rope_scaling": llama3} if (model_type, ties) == ("llama", "tied") else {}),
        "model_type": model_type,
        "vocab_size": VOCAB,
        "hidden_size": HIDDEN,
        "intermediate_size": INTER,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV,
        "max_position_embeddings": 64,
        "rope_theta": 500.0,
        "rms_norm_eps": 1e-3,
        "tie_word_embeddings": ties == "tied",
    }


def random_state(model_type: str, ties: str, seed: int) -> State:
    """In HF's layout."""
    width = HIDDEN // HEADS
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (VOCAB, HIDDEN), "model.norm.weight": (HIDDEN,)}
    for layer in range(LAYERS):
        attention, mlp = f"model.layers.{layer}.self_attn", f"model.layers.{layer}.mlp"
        for name, rows in {"q_proj": HEADS * width, "k_proj": KV * width, "v_proj": KV * width}.items():
            shapes[f"{attention}.{name}.weight"] = (rows, HIDDEN)
            if model_type == "qwen2":
                shapes[f"{attention}.{name}.bias"] = (rows,)
        shapes[f"{attention}.o_proj.weight"] = (HIDDEN, HEADS * width)
        shapes[f"{mlp}.gate_proj.weight"] = shapes[f"{mlp}.up_proj.weight"] = (INTER, HIDDEN)
        shapes[f"{mlp}.down_proj.weight"] = (HIDDEN, INTER)
        for name in ("input_layernorm", "post_attention_layernorm"):
            shapes[f"model.layers.{layer}.{name}.weight"] = (HIDDEN,)
    if ties == "untied":
        shapes["lm_head.weight"] = (VOCAB, HIDDEN)
    generator = np.random.default_rng([seed, *model_type.encode(), *ties.encode()])
    return {name: generator.normal(float("norm" in name), 0.4, shape) for name, shape in shapes.items()}


def rounded(state: State, dtype: str) -> State:
    return {name: from_bits(to_bits(value, dtype), dtype) for name, value in state.items()}


def laid_out(state: State, layout: str, model_type: str, ties: str) -> State:
    """As it should be stored, by the table at the top of layout.py."""
    state = dict(state)
    if ties == "tied" and layout != "hf":
        state["lm_head.weight"] = state["model.embed_tokens.weight"]
    if layout == "paddleformers" and model_type != "llama":
        state = fused(state)
    result = {}
    for name, value in state.items():
        transposed = layout != "hf" and name.endswith("_proj.weight")
        transposed |= layout == "paddlenlp" and name == "lm_head.weight" and ties == "untied"
        new = f"{model_type}.{name.removeprefix('model.')}" if layout == "paddlenlp" and name.startswith("model.") else name
        result[new] = value.T if transposed else value
    return result


def fused(state: State) -> State:
    """As PaddleFormers has it, but for Llama: the queries, key and value of each key head in turn, and gate and up."""
    result = {}
    for name, value in state.items():
        *module, word, kind = name.split(".")
        of = {one: state[".".join([*module, one, kind])] for one in WORDS.get(word, ())}
        if word == "q_proj":
            heads = [one.reshape(KV, -1, *value.shape[1:]) for one in of.values()]
            result[".".join([*module, "qkv_proj", kind])] = np.concatenate(heads, axis=1).reshape(-1, *value.shape[1:])
        elif word == "gate_proj":
            result[".".join([*module, "up_gate_proj", kind])] = np.concatenate(list(of.values()))
        elif word not in ("k_proj", "v_proj", "up_proj"):
            result[name] = value
    return result


WORDS = {"q_proj": ("q_proj", "k_proj", "v_proj"), "gate_proj": ("gate_proj", "up_proj")}


def work(
    folder: Path, jobs: dict[str, dict[str, list[Any]]], scripts: str = "with"
) -> dict[str, tuple[dict[str, str], dict[str, np.ndarray]]]:
    """Let the libraries do their jobs, at the same time; library -> its answers and logits, by name.

    scripts: what the names of the scripts that do them begin with.
    """
    for library, job in jobs.items():
        (folder / library).mkdir(parents=True)
        (folder / library / "job.json").write_text(json.dumps(job))
    libraries.run({library: (f"{scripts}_{library}.py", str(folder / library / "job.json")) for library in jobs})
    results = {}
    for library in jobs:
        with np.load(folder / library / "logits.npz") as logits:
            results[library] = (json.loads((folder / library / "answers.json").read_text()), dict(logits))
    return results


@dataclass
class Shown:
    """folder: of the merges, by case. averages: model -> weights. references: library -> model -> logits; loaded: library ->
    case -> what loading it says and the logits."""

    folder: Path
    averages: dict[str, State]
    references: dict[str, dict[str, np.ndarray]]
    loaded: dict[str, tuple[dict[str, str], dict[str, np.ndarray]]]


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> Shown:
    """Everything, once: the libraries save, we merge, the libraries load."""
    folder = tmp_path_factory.mktemp("loaders")
    jobs: dict[str, dict[str, list[Any]]] = {library: {"save": [], "reference": [], "load": []} for library in LIBRARIES}
    averages: dict[str, State] = {}
    for (model_type, ties), dtype in itertools.product(MODELS, DTYPES):
        model = f"{model_type}-{ties}-{dtype}"
        states = {letter: rounded(random_state(model_type, ties, ord(letter)), dtype) for letter in "ab"}
        averages[model] = rounded({name: (states["a"][name] + states["b"][name]) / 2 for name in states["a"]}, dtype)
        for letter, state in {**states, "average": averages[model]}.items():
            path = folder / f"{model}-{letter}.npz"
            np.savez(path, **{name: value.astype(np.float32) for name, value in state.items()})
            same = {"state": str(path), "config": config(model_type, ties)}
            for library in LIBRARIES:
                if not computes(library, model_type):
                    continue
                jobs[library]["reference"].append({"name": f"{model}-{letter}", **same})
                for kind in KINDS if letter != "average" else ():
                    if kind.startswith(library):
                        source = str(folder / f"{model}-{kind}-{letter}")
                        jobs[library]["save"].append({"folder": source, "dtype": dtype, "kind": kind, **same})
    # By hand: "ab c" is "ab" and " c", which these merges make.
    words = ("a", "b", "c", "\u0120", "ab", "\u0120c", "<|endoftext|>")
    (folder / "vocab.json").write_text(json.dumps({word: number for number, word in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\na b\n\u0120 c\n")
    files = {"vocab": str(folder / "vocab.json"), "merges": str(folder / "merges.txt")}
    for library in ("transformers", "paddlenlp"):
        source = str(folder / f"qwen2-untied-float32-{library}_safetensors-a")
        jobs[library]["save_tokenizer"] = [{"folder": source, **files}]
    references = {library: logits for library, (_, logits) in work(folder / "saving", jobs).items()}

    jobs = {library: {"load": [], "tokenize": []} for library in LIBRARIES}
    for case in CASES:
        letters = itertools.cycle("ab")
        sources = [str(folder / f"{case.model}-{kind}-{letter}") for kind, letter in zip(case.kinds, letters, strict=False)]
        size = "8KB" if case.shards == "sharded" else "5GB"
        out = str(folder / str(case))
        merge(MergeConfig(model_path_list=sources, output_path=out, output_layout=case.output_layout, max_shard_size=size))
        for library, options in case.loads.items():
            entry = {"name": str(case), "folder": out, "model_type": case.model_type, "options": options}
            jobs[library]["load"].append(entry)
    for library, case, options in TOKENIZERS:
        jobs[library]["tokenize"].append({"name": f"tokenizer of {case}", "folder": str(folder / str(case)), **options})
    return Shown(folder, averages, references, work(folder / "loading", jobs))


@pytest.mark.parametrize("case", CASES, ids=str)
def test_merged_models_load(shown: Shown, case: Case) -> None:
    files = sorted(path.name for path in (shown.folder / str(case)).glob("*.safetensors"))
    assert len(files) == 1 if case.shards == "single" else len(files) > 1
    expected = laid_out(shown.averages[case.model], case.layout, case.model_type, case.ties)
    stored = read(shown.folder / str(case))
    assert stored.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_array_equal(stored[name], value, err_msg=name)
    for library in case.loads:
        answers, logits = shown.loaded[library]
        told = answers[str(case)].partition(", ")
        assert told[0] == case.dtype, library
        if library != "paddleformers" and not case.kinds[0].startswith("paddleformers"):  # its Llama has none to save
            assert told[2] == "num_beams 3", library
        np.testing.assert_allclose(
            logits[str(case)], shown.references[library][f"{case.model}-average"], rtol=0, atol=1e-4, err_msg=library
        )


@pytest.mark.parametrize(("library", "case", "options"), TOKENIZERS, ids=str)
def test_tokenizers_come_along(shown: Shown, library: str, case: Case, options: dict[str, object]) -> None:
    answers, _ = shown.loaded[library]
    assert answers[f"tokenizer of {case}"] == "[4, 5]"


def test_paddleformers_has_no_qwen2_to_try() -> None:
    """If this fails, PaddleFormers has a Qwen2 model, and `computes` can return True for it."""
    code = "from paddleformers.transformers import Qwen2ForCausalLM"
    done = subprocess.run([os.environ[VARIABLES["paddleformers"]], "-c", code], capture_output=True, text=True)
    assert "paddlefleet is required" in done.stderr


def test_libraries_agree_and_logits_tell_models_apart(shown: Shown) -> None:
    """Without which the test above would show little."""
    for model, logits in shown.references["transformers"].items():
        for library in LIBRARIES:
            if computes(library, model.partition("-")[0]):
                np.testing.assert_allclose(shown.references[library][model], logits, rtol=0, atol=1e-4)
    for model in shown.averages:
        a, b, average = (shown.references["transformers"][f"{model}-{letter}"] for letter in ("a", "b", "average"))
        assert min(np.abs(a - average).mean(), np.abs(b - average).mean()) > 0.1
