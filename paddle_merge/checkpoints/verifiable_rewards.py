"""Find out whether a model was trained by reinforcement learning with verifiable rewards (RLVR), from the files beside it.

What trainers leave: TRL, and those on top of it, put the algorithm among the card's tags, and write training_args.bin, whose
class is named after the algorithm; PaddleNLP's training_args.bin has the field rl_algorithm; ms-swift's args.json has
rlhf_type. Preference optimisation (DPO and its kin), and PPO, which usually follows a reward model, are not RLVR.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable

from ..errors import CheckpointError
from .json_files import parsed, read_small

ALGORITHMS = ("grpo", "dr-grpo", "gspo", "dapo", "vapo", "cispo", "rloo", "reinforce-plus-plus", "rlvr")
_SPELLINGS = {"reinforce++": "reinforce-plus-plus", "drgrpo": "dr-grpo"}
_DATASET = re.compile(r"(?<![a-z])rlvr(?![a-z])", re.IGNORECASE)
_MOST_BYTES = 1 << 20  # of a file of arguments; they have a few KB
# In a pickle, which is never loaded: the name of TRL's class, and the value behind PaddleNLP's field.
_CLASS = re.compile(rb"(GRPO|RLOO)Config\b")
_FIELD = re.compile(rb"rl_algorithm(?:q.|r.{4}|\x94)?(?:X.{4}|\x8c.)(grpo|rloo|reinforce_plus_plus)", re.DOTALL)


def rewards_evidence(folder: str, tags: Iterable[str], datasets: Iterable[str]) -> str:
    """Return what says that a model was trained by verifiable rewards, such as "its README.md has the tag grpo"; "" if
    nothing does.

    folder: of the model. tags, datasets: in the metadata of its card.
    """
    for tag in tags:
        if _algorithm(tag):
            return f"its README.md has the tag {tag}"
    for dataset in datasets:
        if _DATASET.search(dataset):
            return f"its README.md names the dataset {dataset}"
    found = _CLASS.search(arguments := _content(folder, "training_args.bin")) or _FIELD.search(arguments)
    if found:
        return f"its training_args.bin is that of {_algorithm(found[1].decode())}"
    if kind := _algorithm(_rlhf_type(folder)):
        return f"its args.json says rlhf_type {kind}"
    return ""


def _algorithm(word: str) -> str:
    """Return an algorithm's name as ALGORITHMS has it; "" if it is none of these."""
    name = word.strip().lower().replace("_", "-")
    name = _SPELLINGS.get(name, name)
    return name if name in ALGORITHMS else ""


def _content(folder: str, name: str) -> bytes:
    """Return the content of a small file; nothing if it isn't there, or can't be read."""
    try:
        return read_small(os.path.join(folder, name), _MOST_BYTES)
    except OSError:
        return b""


def _rlhf_type(folder: str) -> str:
    try:
        arguments = parsed("args.json", _content(folder, "args.json") or b"{}")
    except CheckpointError:
        return ""
    kind = arguments.get("rlhf_type") if isinstance(arguments, dict) else None
    return kind if isinstance(kind, str) else ""
