"""Run the jobs of the three libraries' scripts, in the library's environment, which has NumPy but not paddle_merge.

A job is a JSON file. It maps the name of a script's function to a list of keyword arguments, and the function is called with
each of them:

    save            writes a model with given weights as the library writes it
    save_tokenizer  writes a tokenizer as the library writes it
    reference       returns the logits of the library's model with given weights
    load            opens a folder; returns the logits, and a description of the model
    tokenize        returns token ids, by a folder's tokenizer
    chat            returns a conversation as text, by the chat template of a folder's tokenizer
    adapt           writes a random model, adapters of it, and the model with each of them folded in
    convolve        the same of a model of convolutions
    adapt_layers    the same of single layers
    combine         opens a model and adapters; writes adapters that the library makes of several
    fold            opens a model and an adapter; writes the model with the adapter folded in

Logits are written to logits.npz in the job's folder, other results to answers.json, under the argument `name`.
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
    """Return the weights in a file: float32, with Hugging Face's names, Linear weights [out, in]."""
    with np.load(path) as file:
        return dict(file)


def work(script: ModuleType) -> None:
    """Run the job whose path is the first command-line argument, with the functions of a script."""
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
    for entry in job.get("convolve", ()):
        script.convolve(**entry)
    for entry in job.get("adapt_layers", ()):
        script.adapt_layers(**entry)
    for entry in job.get("combine", ()):
        script.combine(**entry)
    for entry in job.get("fold", ()):
        script.fold(**entry)
    np.savez(os.path.join(folder, "logits.npz"), **logits)
    with open(os.path.join(folder, "answers.json"), "w") as file:
        json.dump(answers, file)


def paddle_state(state: dict[str, Any], prefix: str) -> dict[str, Any]:
    """Return weights in Paddle's layout: Linear weights [in, out]; names begin with `prefix` instead of "model."."""
    transposed = {}
    for name, value in state.items():
        new = prefix + name.removeprefix("model.") if name.startswith("model.") else name
        transposed[new] = np.ascontiguousarray(value.T) if name.endswith("_proj.weight") else value
    return transposed


def write_weights(folder: str, state: dict[str, Any]) -> None:
    """Write the weights of a Paddle model, without those of adapters, to model.safetensors in a new folder."""
    os.makedirs(folder)
    arrays = {name: np.ascontiguousarray(value.numpy()) for name, value in state.items() if "lora_" not in name}
    save_file(arrays, os.path.join(folder, "model.safetensors"))
