"""Compute the hidden states of prompts as paddle_merge does, with a library that is installed here.

Arguments: the library, and a JSON file with model, a folder; and groups, lists of prompts as tokens. It writes beside it
LIBRARY.npy: float64 [2, groups, layers, hidden], of the last tokens and of the means over all tokens.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))
from paddle_merge.search.evaluators.libraries.models import ModelSettings, opened
from paddle_merge.search.hidden_states import states_of

if __name__ == "__main__":
    _, library, job = sys.argv
    with open(job) as file:
        asked = json.load(file)
    model = opened(SimpleNamespace(folder=lambda: asked["model"]), library, ModelSettings())
    found = [states_of(model, asked["groups"], average) for average in (False, True)]
    np.save(os.path.join(os.path.dirname(job), f"{library}.npy"), np.stack(found))
