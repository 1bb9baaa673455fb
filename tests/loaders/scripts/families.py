"""Write tiny models of a library's families, adapters, and the models that these make; and say whether the library has the
right weights when it opens a folder. See job.py."""

from __future__ import annotations

import os
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import paddle
from safetensors.numpy import load_file, save_file

EXACT, ROUNDED = 2e-5, 1e-2  # ROUNDED: of routers, which the libraries store in bfloat16 whatever the others are in


def text(**more: object) -> dict[str, object]:
    """Return the settings of a language model: o_proj is square, and no other two sizes of matrices are equal."""
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4, "num_key_value_heads": 2}
    return {
        "vocab_size": 64,
        "num_hidden_layers": 2,
        "max_position_embeddings": 64,
        "tie_word_embeddings": False,
        **sizes,
        **more,
    }


def vision(**more: object) -> dict[str, object]:
    """Return the settings of a Qwen's vision tower."""
    sizes = {"depth": 2, "hidden_size": 24, "num_heads": 3, "intermediate_size": 40, "out_hidden_size": 32}
    return {"patch_size": 4, **sizes, **more}


def filled(model, seed: int):
    """Give all weights random values; those that are tied stay equal."""
    generator = np.random.default_rng(seed)
    held = model.state_dict()
    for parameter in held.values():
        if parameter.dtype == paddle.float32:
            parameter.set_value(paddle.to_tensor(generator.normal(0, 0.4, parameter.shape).astype("float32")))
    if model.config.tie_word_embeddings and "lm_head.weight" in held:
        held["lm_head.weight"].set_value(next(value for name, value in held.items() if "embed_tokens" in name))
    return model


def arrays(model) -> dict[str, np.ndarray]:
    return {name: np.ascontiguousarray(value.numpy()) for name, value in model.state_dict().items() if "lora_" not in name}


@dataclass(frozen=True)
class Library:
    """What families_paddleformers.py and families_paddlenlp.py say of their library.

    build: family -> a model. opened: folder, family, layout -> the model. saves: kind -> options of save_pretrained. lora:
    the library's LoRAConfig and LoRAModel. targets: model -> the modules that the library's recipe for LoRA adapts.
    saves_adapters: family -> options of save_pretrained. checkpoint: writes a model into a folder as the library's Trainer
    does, if that is otherwise.
    """

    build: Callable[[str], Any]
    opened: Callable[[str, str, str], Any]
    saves: Mapping[str, Mapping[str, object]]
    lora: tuple[Any, Any]
    targets: Callable[[Any], list[str]]
    saves_adapters: Callable[[str], Mapping[str, object]] = lambda family: {}
    checkpoint: Callable[[Any, str], None] | None = None

    def make(self, folder: str, family: str) -> None:
        """Write into `folder`: models a and b in each way in which the library saves them (KIND-a), adapter, and weights as
        they are in memory: a's, b's, and a's with the adapter folded in (a.safetensors, folded.safetensors)."""
        os.makedirs(folder)
        for seed, letter in enumerate("ab"):
            model = filled(self.build(family), seed)
            save_file(arrays(model), f"{folder}/{letter}.safetensors")
            for kind, options in self.saves.items():
                model.save_pretrained(f"{folder}/{kind}-{letter}", **options)
            if self.checkpoint is not None:
                self.checkpoint(model, f"{folder}/checkpoint-{letter}")
        model = filled(self.build(family), 0)
        configured, adapts = self.lora
        adapted = adapts(model, configured(target_modules=self.targets(model), r=4, lora_alpha=8, dtype="float32"))
        paddle.seed(0)
        for name, parameter in adapted.named_parameters():
            if "lora_" in name:
                parameter.set_value(0.1 * paddle.randn(parameter.shape))
        adapted.save_pretrained(f"{folder}/adapter", **self.saves_adapters(family))
        adapted.eval()
        adapted.merge()
        save_file(arrays(adapted.model), f"{folder}/folded.safetensors")

    def load(self, folder: str, family: str, layout: str, expected: list[str]) -> tuple[np.ndarray, str]:
        """Return no logits, and "" if the library has the average of the expected weights when it has opened a folder; else
        what is wrong. It opens it in a process of its own: after an error PaddleFormers refuses whatever it opens next."""
        reading, writing = os.pipe()
        child = os.fork()
        if not child:
            try:
                said = compare(arrays(self.opened(folder, family, layout)), [load_file(path) for path in expected])
            except Exception:
                said = traceback.format_exc()[-300:]
            os.write(writing, said.encode())
            os._exit(0)
        os.close(writing)
        with open(reading) as answer:
            said = answer.read()
        _, status = os.waitpid(child, 0)
        return np.zeros(0), said if status == 0 else f"ended with status {status}"


def compare(got: dict[str, np.ndarray], models: list[dict[str, np.ndarray]]) -> str:
    if got.keys() != models[0].keys():
        return f"has {sorted(got.keys() - models[0].keys())}, lacks {sorted(models[0].keys() - got.keys())}"
    wrong = []
    for name, value in got.items():
        expected = sum(model[name] for model in models) / len(models)
        tolerance = ROUNDED if name.endswith(("gate.weight", "router.weight")) else EXACT
        if value.shape != expected.shape or not np.allclose(value, expected, rtol=tolerance, atol=tolerance):
            wrong.append(name)
    return f"{len(wrong)} of {len(got)} weights differ: {', '.join(wrong[:3])}" if wrong else ""
