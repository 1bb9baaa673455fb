"""What the three libraries' scripts share: they run under the library's own interpreter, with NumPy and nothing of ours.

A job is a JSON file: the name of a script's function -> a list of keyword arguments, for each of which it is called:

    save            writes a model with given weights as the library writes it
    save_tokenizer  and a tokenizer
    reference       sets weights into the library's own model: logits
    load            opens a folder: logits, and what it says of itself
    tokenize        opens a folder's tokenizer: token ids
    chat            opens a folder's tokenizer: a conversation by its chat template
    adapt           writes a random model, adapters on it, and what the library makes of the two
    fold            opens a model and an adapter; writes what the library makes of the two

Arrays go to logits.npz beside the job, sentences to answers.json, by the argument `name`.
"""

from __future__ import annotations

import gc
import json
import os
import shutil
import sys
import tempfile
import traceback
from types import ModuleType
from typing import Any

import numpy as np
from safetensors.numpy import save_file

TOKENS = np.array([[1, 5, 9, 2, 33, 17, 4, 8]])
TEXT = "ab c"
CHAT = [
    {"role": "system", "content": "b"},
    {"role": "user", "content": "ab c"},
    {"role": "assistant", "content": "a"},
    {"role": "user", "content": "c"},
]


def read_state(path: str) -> dict[str, np.ndarray]:
    """Weights under Hugging Face's names, [out, in], float32."""
    with np.load(path) as file:
        return dict(file)


def work(script: ModuleType) -> None:
    """Do the job whose path is the first argument."""
    gc.freeze()  # some loaders collect garbage each time, which takes longer than the rest
    folder = os.path.dirname(sys.argv[1])
    with open(sys.argv[1]) as file:
        job = json.load(file)
    logits: dict[str, np.ndarray] = {}
    answers: dict[str, str] = {}
    for entry in job.get("save", ()):
        script.save(**entry)
    for entry in job.get("save_tokenizer", ()):
        script.save_tokenizer(**entry)
    for entry in job.get("reference", ()):
        name = entry.pop("name")
        logits[name] = script.reference(**entry)
    for entry in job.get("load", ()):
        name, opened = entry.pop("name"), entry.pop("folder")
        with tempfile.TemporaryDirectory() as own:  # loaders leave files in the folders that they open
            copy = shutil.copytree(opened, os.path.join(own, "model"))
            try:
                logits[name], answers[name] = script.load(folder=copy, **entry)
            except Exception:
                answers[name] = traceback.format_exc()
    for entry in job.get("tokenize", ()):
        name = entry.pop("name")
        text = entry.pop("text", TEXT)
        answers[name] = str(script.tokenize(**entry)(text)["input_ids"])
    for entry in job.get("chat", ()):
        name, tokenizer = entry.pop("name"), script.tokenize(**entry)
        answers[name] = tokenizer.apply_chat_template(CHAT, tokenize=False, add_generation_prompt=True)
    for entry in job.get("adapt", ()):
        script.adapt(**entry)
    for entry in job.get("fold", ()):
        script.fold(**entry)
    np.savez(os.path.join(folder, "logits.npz"), **logits)
    with open(os.path.join(folder, "answers.json"), "w") as file:
        json.dump(answers, file)


def paddle_state(state: dict[str, Any], prefix: str) -> dict[str, Any]:
    """In Paddle's orientation: Linear weights [in, out]; names begin with `prefix` instead of "model."."""
    transposed = {}
    for name, value in state.items():
        new = prefix + name.removeprefix("model.") if name.startswith("model.") else name
        transposed[new] = np.ascontiguousarray(value.T) if name.endswith("_proj.weight") else value
    return transposed


def write_weights(folder: str, state: dict[str, Any]) -> None:
    """What a Paddle model computes with, under its own names, without its adapter."""
    os.makedirs(folder)
    arrays = {name: np.ascontiguousarray(value.numpy()) for name, value in state.items() if "lora_" not in name}
    save_file(arrays, os.path.join(folder, "model.safetensors"))
