"""Say in a model card which library loads the merged model, and how."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from ...checkpoints.formats.folder import DIFFUSERS
from ...plan.plan import Plan

# The ends of class names that a class of each library's AutoModel... opens.
_AUTO = {
    "transformers": ("CausalLM", "MaskedLM", "SequenceClassification", "TokenClassification", "QuestionAnswering"),
    "paddlenlp": ("CausalLM", "MaskedLM", "SequenceClassification", "TokenClassification", "QuestionAnswering"),
    "paddleformers": ("CausalLM",),
}
_FROM = {
    "transformers": "transformers",
    "paddlenlp": "paddlenlp.transformers",
    "paddleformers": "paddleformers.transformers",
}
# PaddleFormers takes folders for Hugging Face's, unless it is told.
_OPTIONS = {
    "transformers": ', dtype="auto"',
    "paddlenlp": "",
    "paddleformers": ', load_checkpoint_format="unified_checkpoint", convert_from_hf=False',
}


def library(plan: Plan, sidecars: Mapping[str, bytes]) -> str:
    """Return the name by which hubs know the library that loads the model; "" if it isn't known."""
    if plan.prefix == DIFFUSERS:
        return "diffusers"
    if plan.layout in ("paddlenlp", "paddleformers"):
        return plan.layout
    if "modules.json" in sidecars and "config_sentence_transformers.json" in sidecars:
        return "sentence-transformers"
    torch = plan.layout == "hf" or {one.format for one in plan.inputs} == {"pt"}
    return "transformers" if torch and "model_type" in _config(sidecars) else ""


def loading(plan: Plan, sidecars: Mapping[str, bytes], folder: str) -> list[str]:
    """Return the lines of Python that load the model from a folder; none if it isn't known which do."""
    if plan.prefix not in ("model", DIFFUSERS):
        return []  # loaders look for weights under other names
    name = library(plan, sidecars)
    if name == "sentence-transformers":
        return ["from sentence_transformers import SentenceTransformer", "", f"model = SentenceTransformer({folder!r})"]
    config = _config(sidecars)
    classes = config.get("architectures")
    if name not in _FROM or not isinstance(classes, list) or not classes or not str(classes[0]).isidentifier():
        return []
    kind, options = str(classes[0]), _OPTIONS[name]
    if (end := kind.rpartition("For")[2]) in _AUTO[name]:
        kind = f"AutoModelFor{end}"
    elif kind.endswith("LMHeadModel"):
        kind = "AutoModelForCausalLM"
    elif config.get("auto_map"):
        kind = "AutoModel"
    options += ", trust_remote_code=True" if config.get("auto_map") else ""
    tokens = "tokenizer_config.json" in sidecars
    lines = [f"from {_FROM[name]} import {', '.join(sorted({kind, *(['AutoTokenizer'] if tokens else [])}))}", ""]
    lines += [f"model = {kind}.from_pretrained({folder!r}{options})"]
    return lines + ([f"tokenizer = AutoTokenizer.from_pretrained({folder!r})"] if tokens else [])


def _config(sidecars: Mapping[str, bytes]) -> dict[str, Any]:
    """Return the output's config.json; empty if there is none."""
    found = json.loads(sidecars.get("config.json", b"{}"))
    return found if isinstance(found, dict) else {}
