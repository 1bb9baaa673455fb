"""What the three libraries' scripts share: they run under the library's own interpreter, with NumPy and nothing of ours.

A job is a JSON file: {"save": [...], "reference": [...], "load": [...]}, lists of keyword arguments of the script's functions
of these names. `save` writes a model as the library writes it. `reference` sets weights into the library's own model, `load`
opens a folder; both return logits. Answers go to answers.json (a sentence about each load) and logits.npz, by name.
"""

from __future__ import annotations

import gc
import json
import os
import shutil
import sys
import tempfile
import traceback
from collections.abc import Callable
from typing import Any

import numpy as np

TOKENS = np.array([[1, 5, 9, 2, 33, 17, 4, 8]])


def read_state(path: str) -> dict[str, np.ndarray]:
    """Weights under Hugging Face's names, [out, in], float32."""
    with np.load(path) as file:
        return dict(file)


def work(save: Callable[..., None], reference: Callable[..., np.ndarray], load: Callable[..., tuple[np.ndarray, str]]) -> None:
    """Do the job whose path is the first argument; answers go beside it."""
    folder = os.path.dirname(sys.argv[1])
    with open(sys.argv[1]) as file:
        job = json.load(file)
    logits: dict[str, np.ndarray] = {}
    answers: dict[str, str] = {}
    for entry in job.get("save", ()):
        save(**entry)
    for entry in job.get("reference", ()):
        name = entry.pop("name")
        logits[name] = reference(**entry)
    gc.freeze()  # some loaders collect garbage each time, which takes longer than the rest
    for entry in job.get("load", ()):
        name, opened = entry.pop("name"), entry.pop("folder")
        with tempfile.TemporaryDirectory() as own:  # loaders leave files in the folders that they open
            copy = shutil.copytree(opened, os.path.join(own, "model"))
            try:
                logits[name], answers[name] = load(folder=copy, **entry)
            except Exception:
                answers[name] = traceback.format_exc()
    np.savez(os.path.join(folder, "logits.npz"), **logits)
    with open(os.path.join(folder, "answers.json"), "w") as file:
        json.dump(answers, file)


def paddle_state(state: dict[str, Any], prefix: str) -> dict[str, Any]:
    """In Paddle's orientation: Linear weights [in, out]; names begin with `prefix` instead of "model."."""
    turned = {}
    for name, value in state.items():
        new = prefix + name.removeprefix("model.") if name.startswith("model.") else name
        turned[new] = np.ascontiguousarray(value.T) if name.endswith("_proj.weight") else value
    return turned
