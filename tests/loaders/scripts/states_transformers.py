"""Compute hidden states of padded prompts with transformers: the reference for routers of mixtures of experts.

Arguments: a JSON file with model, a folder; prompts, lists of tokens; side, on which they are padded. It writes beside it
states.npy: float32 [prompts, layers, 2, hidden], the input of every layer at the last token, and its mean over all tokens.
"""

from __future__ import annotations

import json
import os
import sys

import numpy as np
import torch
from transformers import AutoModelForCausalLM
from transformers.utils import logging

PADDING = 7  # any token: what it is must not count

if __name__ == "__main__":
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    with open(sys.argv[1]) as file:
        asked = json.load(file)
    longest = max(map(len, asked["prompts"]))
    empty = [[PADDING] * (longest - len(tokens)) for tokens in asked["prompts"]]
    blank = [[0] * len(padding) for padding in empty]
    left = asked["side"] == "left"
    joined = zip(asked["prompts"], empty, blank, strict=True)
    rows = [(p + t, b + [1] * len(t)) if left else (t + p, [1] * len(t) + b) for t, p, b in joined]
    tokens, mask = (torch.tensor([row[place] for row in rows]) for place in (0, 1))
    model = AutoModelForCausalLM.from_pretrained(asked["model"], dtype=torch.float32).eval()
    places = (mask.cumsum(1) - 1).clamp(min=0)
    with torch.no_grad():
        found = model(input_ids=tokens, attention_mask=mask, position_ids=places, output_hidden_states=True).hidden_states
    states = torch.stack(found[:-1], dim=1)  # [prompts, layers, length, hidden]
    answers = []
    for state, its in zip(states, mask.bool(), strict=True):
        kept = state[:, its]
        answers.append(torch.stack([kept[:, -1], kept.mean(1)], dim=1))
    np.save(os.path.join(os.path.dirname(sys.argv[1]), "states.npy"), torch.stack(answers).numpy())
