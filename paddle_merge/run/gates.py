"""Compute the weights of a mixture's routers from the prompts of its experts.

An expert's row is the mean over its positive prompts, minus the mean over its negative ones, divided by its L2 norm. Of a
prompt counts, by gate_mode:

    hidden, hidden_last   the input of the layer at the prompt's last token, in the base model
    hidden_avg            the mean of the layer's inputs over all of the prompt's tokens
    cheap_embed           its tokens' embeddings, summed over all prompts, divided by the sum's norm; the same in all layers

So it is in mergekit-moe, but for hidden_avg: mergekit averages over padding, too. Here every prompt is computed alone, so
that there is none. Prompts begin with the tokenizer's bos_token, if it has one, and get no other special tokens.
"""

from __future__ import annotations

import base64
import dataclasses
import json
import logging
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import closing
from importlib.util import find_spec

import numpy as np

from ..checkpoints.files import Files
from ..checkpoints.json_files import read_json
from ..checkpoints.names import TOKEN_EMBEDDINGS, last_word, layer_of
from ..checkpoints.tensors import Checkpoint, TensorEntry
from ..conversion.mixture.entry import DrawnEntry
from ..dtypes import DType
from ..errors import CheckpointError, ConfigError, WorkError
from ..plan.plan import Plan
from ..recipe.mixture import RANDOM, Expert, Mixture
from .ranks import Ranks
from .sources import reader

log = logging.getLogger("paddle_merge")
DEGENERATE = 5.0  # condition number of a router above which a warning says so, as in mergekit
LEAST_NORM = 1e-8  # by which a row is divided at least, as in mergekit
_LIBRARIES = {"transformers": "torch", "paddleformers": "paddle", "paddlenlp": "paddle"}
_PROGRAM = "paddle_merge.search.hidden_states"  # a process of its own, so that its memory is free again when workers start


def check_gates(plan: Plan) -> None:
    """Check that a plan's routers can be computed. Raises CheckpointError, ConfigError."""
    mixture = _computed(plan)
    if mixture is None:
        return
    folder = plan.inputs[mixture.base].tokens_folder
    if not os.path.isfile(os.path.join(folder, "tokenizer.json")):
        raise CheckpointError(
            f"{folder}: has no tokenizer.json, with which the prompts of gate_mode {mixture.gate_mode} are read; put one"
            " there, or say gate_mode: random, for a router that is to be trained"
        )
    if mixture.gate_mode == "cheap_embed":
        _embedding(plan.inputs[mixture.base])
    elif not any(find_spec(library) and find_spec(needed) for library, needed in _LIBRARIES.items()):
        raise ConfigError(
            f"gate_mode {mixture.gate_mode} computes with the base model, for which a library is needed: pip install"
            f" transformers torch (or {', '.join(name for name in _LIBRARIES if name != 'transformers')}); gate_mode:"
            " cheap_embed needs none"
        )


def with_gates(plan: Plan, ranks: Ranks) -> Plan:
    """Return the plan with the values of the routers that are computed of prompts; rank 0 computes them for all.

    Raises WorkError if the base model can't be computed with; CheckpointError if its tokenizer can't be read.
    """
    mixture = _computed(plan)
    if mixture is None:
        return plan
    rows = compute_rows(plan, mixture) if ranks.number == 0 else np.zeros((0, 0, 0), np.float32)
    if ranks.count > 1:
        shape, text = ranks.gather([rows.shape, base64.b64encode(rows.tobytes()).decode()])[0]
        rows = np.frombuffer(base64.b64decode(text), np.float32).reshape(shape)
    experts = len(mixture.experts)
    if ranks.number == 0 and (alike := [number for number, layer in enumerate(rows) if _degenerate(layer[:experts])]):
        log.warning(
            "the routers of %s hardly tell the experts apart, so some will get few tokens: their prompts are too similar for"
            " the base model; choose prompts that differ more",
            "all layers" if len(alike) == len(rows) else f"layers {', '.join(map(str, alike))}",
        )
    values = [(layer[:experts].tobytes(), layer[experts:].tobytes()) for layer in rows]
    tensors = []
    for tensor in plan.tensors:
        entry = tensor.sources[0]
        if isinstance(entry, DrawnEntry) and entry.kind == "values":
            place = layer_of(tensor.name)
            assert place is not None
            routed, shared = values[place[1]]
            its = dataclasses.replace(entry, values=shared if entry.shared else routed)
            tensor = dataclasses.replace(tensor, sources=(its,))
        tensors.append(tensor)
    return dataclasses.replace(plan, tensors=tuple(tensors))


def gated_again(plan: Plan) -> tuple[Plan, list[str]]:
    """Return the plan with the values of its routers as far as they are the same on every machine; and the names of the
    others, which a library has computed. Raises as with_gates."""
    mixture = _computed(plan)
    if mixture is None or mixture.gate_mode == "cheap_embed":
        return with_gates(plan, Ranks(0, ["alone"])), []
    entries = [(tensor.name, tensor.sources[0]) for tensor in plan.tensors]
    return plan, [name for name, entry in entries if isinstance(entry, DrawnEntry) and entry.kind == "values"]


def compute_rows(plan: Plan, mixture: Mixture) -> np.ndarray:
    """Return the routers' weights, float32 [layers, experts, hidden]; the last row is the shared expert's, if there is one
    with prompts."""
    base = plan.inputs[mixture.base]
    experts = [one for one in mixture.gated if one.positive]
    groups = [prompts for one in experts for prompts in _prompts(one)]
    tokens = [encode(base.tokens_folder, prompts) for prompts in groups]
    layers = 1 + max(place[1] for one in plan.tensors if (place := layer_of(one.name)) is not None)
    if mixture.gate_mode == "cheap_embed":
        found = np.repeat(_embedded(base, tokens)[:, None], layers, axis=1)
    else:
        found = _hidden(plan.recipe.sources[mixture.base], tokens, mixture.gate_mode == "hidden_avg")
    if found.shape[1] != layers:
        raise WorkError(f"{base.path}: has {layers} layers, and the library that computes with it has {found.shape[1]}")
    rows, at = [], 0
    for one in experts:
        row = found[at] - found[at + 1] if one.negative else found[at]
        rows.append(_normalised(row))
        at += len(_prompts(one))
    return np.stack(rows, axis=1).astype(np.float32)


def encode(folder: str, prompts: Sequence[str]) -> list[list[int]]:
    """Return the tokens of prompts, each with the bos_token in front. Raises CheckpointError."""
    import tokenizers

    path = os.path.join(folder, "tokenizer.json")
    try:
        tokenizer = tokenizers.Tokenizer.from_file(path)
    except Exception as error:  # which tokenizers raises for whatever is wrong
        raise CheckpointError(f"{path}: can't be read ({' '.join(str(error).split())})") from None
    tokenizer.no_truncation()
    tokenizer.no_padding()
    start = _start(folder)
    found = [list(tokenizer.encode(start + prompt, add_special_tokens=False).ids) for prompt in prompts]
    if empty := [prompt for prompt, its in zip(prompts, found, strict=True) if not its]:
        raise CheckpointError(f"{path}: has no tokens for the prompt {empty[0]!r}")
    return found


def _computed(plan: Plan) -> Mixture | None:
    """Return the plan's mixture if its routers are computed of prompts."""
    mixture = plan.recipe.mixture
    return mixture if mixture is not None and mixture.gate_mode not in RANDOM else None


def _prompts(one: Expert) -> list[tuple[str, ...]]:
    return [one.positive, one.negative] if one.negative else [one.positive]


def _degenerate(rows: np.ndarray) -> bool:
    """Return whether the rows of a router are almost linearly dependent, by mergekit's measure."""
    return len(rows) > 1 and not np.linalg.cond(rows.astype(np.float64)) <= DEGENERATE


def _start(folder: str) -> str:
    """Return the text of the token that begins a sequence; "" if there is none."""
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        path = os.path.join(folder, name)
        said = read_json(path) if os.path.isfile(path) else None
        token = said.get("bos_token") if isinstance(said, dict) else None
        token = token.get("content") if isinstance(token, dict) else token
        if isinstance(token, str):
            return token
    return ""


def _normalised(rows: np.ndarray) -> np.ndarray:
    """Return vectors along the last axis, divided by their L2 norms."""
    return np.asarray(rows / np.maximum(np.linalg.norm(rows, axis=-1, keepdims=True), LEAST_NORM))


def _embedding(base: Checkpoint) -> TensorEntry:
    """Return the base's embedding. Raises CheckpointError if there isn't one."""
    found = [one for name, one in base.tensors.items() if last_word(name) in TOKEN_EMBEDDINGS and len(one.shape) == 2]
    if len(found) != 1:
        raise CheckpointError(f"{base.path}: has {len(found)} embeddings, and gate_mode cheap_embed needs one")
    return found[0]


def _embedded(base: Checkpoint, groups: Sequence[Sequence[Sequence[int]]]) -> np.ndarray:
    """Return the normalised sum of the embeddings of each group's tokens, float64 [groups, hidden].

    Raises CheckpointError if the tokenizer has tokens that the embedding has no row for; WorkError as reading does.
    """
    from ..backends.np_backend import widen  # planning does without

    entry = _embedding(base)
    count, hidden = entry.shape
    known: dict[int, np.ndarray] = {}
    with closing(Files()) as files:
        its = reader(entry, "float64", files)
        dtype: DType = its.dtype
        for token in sorted({token for prompts in groups for tokens in prompts for token in tokens}):
            if token >= count:
                raise CheckpointError(f"{base.path}: its tokenizer has a token {token}, and its embedding {count} rows")
            raw, known[token] = np.empty(hidden, dtype.raw), np.empty(hidden)
            its.read(token * hidden, raw)
            widen(raw, dtype, known[token])
    sums = [np.sum([known[token] for tokens in prompts for token in tokens], axis=0) for prompts in groups]
    return _normalised(np.stack(sums))


def _hidden(base: str, groups: Sequence[Sequence[Sequence[int]]], average: bool) -> np.ndarray:
    """Return the mean of each group's prompts in every layer of the base, float64 [groups, layers, hidden].

    average: whether of a prompt all tokens count, or only the last. Raises WorkError if no library can open the base.
    """
    with tempfile.TemporaryDirectory(prefix="paddle_merge-") as near:
        out = os.path.join(near, "states.npy")
        asked = json.dumps({"model": base, "groups": groups, "average": average, "out": out})
        done = subprocess.run([sys.executable, "-m", _PROGRAM], input=asked, capture_output=True, text=True, check=False)
        if done.returncode or not os.path.exists(out):
            lines = [line for line in done.stderr.splitlines() if line.strip()] or [f"it ended with {done.returncode}"]
            raise WorkError(f"{base}: its hidden states can't be computed ({lines[-1].strip()})")
        return np.asarray(np.load(out), np.float64)
