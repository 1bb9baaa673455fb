"""Test merge-lora against the libraries: PEFT's add_weighted_adapter makes the same numbers; PEFT, PaddleNLP and
PaddleFormers load the merged adapters, and fold them to the base plus the weighted changes that they fold themselves.

test_loaders.py says what this needs.
"""

from __future__ import annotations

import itertools
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from paddle_merge import MergeLoraConfig, merge_lora
from paddle_merge.commands.merge_lora.peft_types import FACTORWISE, PRUNING
from tests.loaders.test_adapters import FORMAT, GPT2, MLP, RANK, SAVED, Model, _model, assert_close, own
from tests.loaders.test_loaders import State, config, work
from tests.support.checkpoints import read
from tests.support.libraries import ABSENT, LIBRARIES

pytestmark = [
    pytest.mark.loaders,
    pytest.mark.skipif(bool(ABSENT), reason=f"no interpreter is named by {', '.join(ABSENT)}"),
]

SAME = {"target_modules": ["q_proj", "v_proj", "down_proj"]}
PADDLE = {"target_modules": [".*q_proj.*", ".*v_proj.*", *MLP]}
MODELS = [
    _model(
        "transformers",
        "llama",
        config("llama", "untied"),
        {
            "a": SAME,
            "b": {**SAME, "lora_alpha": 3},
            "c": {**SAME, "use_rslora": True},
            "wide": {"target_modules": ["q_proj", "up_proj"], "r": 6, "rank_pattern": {"up_proj": 2}},
            "words": {"target_modules": ["q_proj", "embed_tokens"]},
            "tokens": {"target_modules": ["embed_tokens", "v_proj"], "lora_alpha": 5},
            "head": {"target_modules": ["q_proj"], "modules_to_save": ["lm_head", "norm"]},
        },
    ),
    _model(
        "transformers",
        "qwen2",
        config("qwen2", "untied"),
        {
            "bias": {"target_modules": ["q_proj", "k_proj"], "bias": "all"},
            "own": {"target_modules": ["q_proj", "o_proj"], "bias": "lora_only", "r": 3},
            "added": {"target_modules": ["q_proj", "k_proj"], "lora_bias": True},
            "plain": {"target_modules": ["k_proj"], "lora_alpha": 3},
        },
    ),
    _model(
        "transformers",
        "gpt2",
        GPT2,
        {
            "a": {"target_modules": ["c_attn", "c_fc"], "fan_in_fan_out": True},
            "b": {"target_modules": ["c_attn", "c_proj"], "fan_in_fan_out": True, "r": 3},
        },
    ),
    _model(
        "paddlenlp",
        "llama",
        config("llama", "untied"),
        {
            "a": PADDLE,
            "b": {**PADDLE, "r": 3, "rslora": True},
            "mixed": {**PADDLE, "lora_use_mixer": True},
            "head": {**PADDLE, "trainable_modules": [".*lm_head.*", ".*norm.*"]},
        },
    ),
    _model("paddleformers", "llama", config("llama", "untied"), {"a": PADDLE, "b": {**PADDLE, "r": 3, "rslora": True}}),
]
BY_NAME = {str(model): model for model in MODELS}

# --- the same numbers as PEFT -------------------------------------------------------------------------------------------

DENSITIES = dict.fromkeys(PRUNING, 0.6)
CASES: dict[str, dict[str, Any]] = {}
for _type in ("cat", "svd", "ties_svd", "magnitude_prune_svd", "linear", "ties", "magnitude_prune"):
    more = {"density": DENSITIES[_type]} if _type in DENSITIES else {}
    CASES[_type] = {"adapters": ["a", "b", "c"], "weights": [0.7, -0.4, 1.3], "combination_type": _type, **more}
    if "ties" in _type:
        CASES[f"{_type}_by_frequency"] = {**CASES[_type], "majority_sign_method": "frequency"}
CASES |= {
    "cat_of_other_layers": {"adapters": ["a", "wide"], "weights": [0.7, 2.0], "combination_type": "cat"},
    "svd_of_other_layers": {"adapters": ["a", "wide"], "weights": [0.7, 2.0], "combination_type": "svd", "svd_rank": 5},
    "cat_of_embeddings": {"adapters": ["words", "tokens"], "weights": [0.5, -1.0], "combination_type": "cat"},
    "svd_of_embeddings": {"adapters": ["words", "tokens"], "weights": [0.5, -1.0], "combination_type": "svd"},
    "ties_of_embeddings": {**CASES["ties"], "adapters": ["words", "tokens"], "weights": [0.5, 0.8]},
    "ties_svd_of_embeddings": {**CASES["ties_svd"], "adapters": ["words", "tokens"], "weights": [0.5, 0.8]},
}
OURS = {"weights": "weight_list", "density": "reserve_p", "svd_rank": "rank"}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for each model, in which its library wrote it and its adapters; in `combined`, what PEFT made of them."""
    folder = tmp_path_factory.mktemp("merged_adapters")
    jobs: dict[str, dict[str, list[Any]]] = {library: {"adapt": []} for library in LIBRARIES}
    for model in MODELS:
        entry = {"folder": str(folder / str(model)), "config": model.config, "adapters": model.adapters, **model.options}
        jobs[model.library]["adapt"].append(entry)
    llama = folder / "transformers-llama"
    used = sorted({name for case in CASES.values() for name in case["adapters"]})
    jobs["transformers"]["combine"] = [
        {
            "base": str(llama / "base"),
            "adapters": {name: str(llama / name) for name in used},
            "cases": CASES,
            "folder": str(folder / "combined"),
        }
    ]
    work(folder / "adapting", jobs, "lora")
    return folder


def pairs(folder: Path) -> dict[str, tuple[np.ndarray, np.ndarray, float]]:
    """A, B and the scale of each layer of an adapter of PEFT."""
    settings, tensors = json.loads((folder / "adapter_config.json").read_text()), read(folder, "adapter_model")
    found = {}
    for name, a in tensors.items():
        if "lora_A" in name or "lora_embedding_A" in name:
            module = name.removeprefix("base_model.model.").partition(".lora_")[0]
            r, alpha = (settings[key] for key in ("r", "lora_alpha"))
            r, alpha = (settings[key].get(module, value) for key, value in (("rank_pattern", r), ("alpha_pattern", alpha)))
            found[module] = a, tensors[name.replace("_A", "_B")], alpha / r
    return found


@pytest.mark.parametrize("case", CASES)
def test_the_same_numbers_as_peft(made: Path, tmp_path: Path, case: str) -> None:
    """Factor-wise types to the bit; others to rounding in float32: PEFT decomposes and multiplies in it."""
    arguments = CASES[case]
    adapters = [str(made / "transformers-llama" / name) for name in arguments["adapters"]]
    fields = {OURS.get(name, name): value for name, value in arguments.items() if name != "adapters"}
    merge_lora(MergeLoraConfig(adapter_path_list=adapters, output_path=str(tmp_path / "out"), **fields))
    got, expected = pairs(tmp_path / "out"), pairs(made / "combined" / case)
    assert got.keys() == expected.keys()
    for module, (a, b, scale) in expected.items():
        ours_a, ours_b, ours_scale = got[module]
        kind = arguments["combination_type"]
        if kind in FACTORWISE:
            assert scale == ours_scale == 1.0
            np.testing.assert_array_equal(ours_a, a, err_msg=module)
            np.testing.assert_array_equal(ours_b, b, err_msg=module)
            continue
        product = scale * b @ a
        np.testing.assert_allclose(ours_scale * ours_b @ ours_a, product, atol=1e-5 * np.abs(product).max(), err_msg=module)
        if kind.endswith("svd"):  # each component but for its sign; PEFT fills up with others of a singular value of 0
            size = np.linalg.norm(ours_b, axis=0)
            for n in np.flatnonzero(size > 1e-4 * size[0]):
                sign = np.sign(ours_a[n] @ a[n])
                np.testing.assert_allclose(sign * ours_a[n], a[n], atol=2e-4, err_msg=module)
                np.testing.assert_allclose(sign * ours_b[:, n], b[:, n], atol=2e-4 * size[0], err_msg=module)


# --- loaded by the libraries --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Merge:
    """A merge of adapters of models, "MODEL/ADAPTER" each, that `library` loads onto the model as it is in `base`."""

    adapters: tuple[str, ...]
    weights: tuple[float, ...]
    library: str
    base: str = "base"
    fields: dict[str, Any] = field(default_factory=dict, hash=False)

    def __str__(self) -> str:
        return f"{'+'.join(self.adapters)}-for-{self.library}-{self.base}-{'-'.join(self.fields)}".replace("/", ":")

    @property
    def model(self) -> Model:
        return BY_NAME[self.adapters[0].partition("/")[0]]

    @property
    def options(self) -> dict[str, object]:
        """Of from_pretrained."""
        if self.library == "paddlenlp" and self.model.library != "paddlenlp":
            return {"convert_from_torch": True}
        return SAVED[self.base] if self.library == "paddleformers" else {}


PEFT, NLP, FORMERS = "transformers-llama", "paddlenlp-llama", "paddleformers-llama"
LOW = {"rank": 2 * RANK + 3}
MERGES = [
    Merge((f"{PEFT}/a", f"{PEFT}/b", f"{PEFT}/wide"), (1.0, -0.5, 0.3), "transformers"),
    Merge((f"{PEFT}/a", f"{PEFT}/wide"), (1.0, 0.3), "transformers", fields=LOW),
    Merge((f"{PEFT}/a", f"{PEFT}/c"), (1.0, 1.0), "transformers", fields={"energy": 1.0}),
    Merge((f"{PEFT}/words", f"{PEFT}/tokens"), (0.5, 2.0), "transformers"),
    Merge((f"{PEFT}/head", f"{PEFT}/a"), (1.0, 0.4), "transformers"),
    Merge((f"{PEFT}/head", f"{PEFT}/a"), (0.6, 0.4), "transformers", fields={"base_model_path": "base"}),
    Merge(("transformers-qwen2/added", "transformers-qwen2/plain"), (0.6, 0.4), "transformers"),
    Merge(
        ("transformers-qwen2/bias", "transformers-qwen2/own"), (0.6, 0.4), "transformers", fields={"base_model_path": "base"}
    ),
    Merge(("transformers-gpt2/a", "transformers-gpt2/b"), (0.6, -0.4), "transformers"),
    Merge(("transformers-gpt2/a", "transformers-gpt2/b"), (0.6, -0.4), "transformers", fields=LOW),
    Merge((f"{NLP}/a", f"{NLP}/b", f"{NLP}/mixed"), (1.0, -0.5, 0.3), "paddlenlp"),
    Merge((f"{NLP}/head", f"{NLP}/b"), (1.0, -0.5), "paddlenlp", fields=LOW),
    Merge((f"{FORMERS}/a", f"{FORMERS}/b"), (1.0, -0.5), "paddleformers", "base-paddle"),
    *(
        Merge((f"{model}/a", f"{model}/b"), (0.5, 2.0), library, base, {"base_model_path": "base"})
        for (model, base), library in itertools.product(((PEFT, "base"), (NLP, "base")), LIBRARIES)
        if (model, library) in ((PEFT, "paddlenlp"), (PEFT, "paddleformers"), (NLP, "paddlenlp"))
    ),
]


@pytest.fixture(scope="module")
def folded(made: Path) -> Path:
    """A folder for each merge: in `adapter` it, and in `folded` what its library makes of it and the base."""
    jobs: dict[str, dict[str, list[Any]]] = {library: {"fold": []} for library in LIBRARIES}
    for case in MERGES:
        base, out = made / str(case.model) / case.base, made / str(case)
        fields = {name: str(base) if name == "base_model_path" else value for name, value in case.fields.items()}
        merge_lora(
            MergeLoraConfig(
                adapter_path_list=[str(made / name) for name in case.adapters],
                weight_list=[*case.weights],
                output_path=str(out / "adapter"),
                format=FORMAT[case.library],
                **fields,
            )
        )
        paths = {"base": str(base), "adapter": str(out / "adapter"), "folder": str(out / "folded")}
        jobs[case.library]["fold"].append({**paths, "options": case.options})
    work(made / "folding", jobs, "lora")
    return made


@pytest.mark.parametrize("case", MERGES, ids=str)
def test_libraries_fold_the_sum_of_the_changes(folded: Path, case: Merge) -> None:
    """base + w (folded - base), of each adapter as its own library folded it."""
    base = case.model.in_hf(read(folded / str(case.model) / own(case.model.library)))
    expected: State = dict(base)
    for name, weight in zip(case.adapters, case.weights, strict=True):
        model = BY_NAME[name.partition("/")[0]]
        its = model.in_hf(read(folded / f"{name}-folded"))
        for key, value in its.items():
            expected[key] = expected.get(key, 0.0) + weight * (value - base[key])
    reader = Model(case.library, case.model.name, case.model.config, {}, {})
    assert_close(reader.in_hf(read(folded / str(case) / "folded")), expected, 1e-5)
