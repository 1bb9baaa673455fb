"""What stands beside the weights: config and tokenizer (from the base model, else the first model), the merge's record,
and a model card."""

from __future__ import annotations

import fnmatch
import json
import os
from collections.abc import Sequence
from typing import Any

from . import __version__
from .config import MergeConfig
from .errors import CheckpointError
from .plan import Plan
from .readers import read_json

# Never the weights, indexes, optimizer states or the litter that loaders and trainers leave.
COPIED = (
    "config.json",
    "generation_config.json",
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab*",
    "merges.txt",
    "*.model",
    "chat_template*",
    "preprocessor_config.json",
    "processor_config.json",
)
CARD = "README.md"


def sidecar_names(plan: Plan, extra: Sequence[str] | None) -> list[str]:
    """The files to copy from plan.donor. extra: copy_file_list. Raises CheckpointError for those that aren't there."""
    folder = plan.donor.folder
    names = [
        name
        for name in sorted(os.listdir(folder))
        if any(fnmatch.fnmatch(name, pattern) for pattern in COPIED) and os.path.isfile(os.path.join(folder, name))
    ]
    problems = []
    for name in extra or ():
        if os.path.isabs(name) or ".." in name.split("/"):
            problems.append(f"--copy_file_list {name}: must be inside {folder}")
        elif not os.path.isfile(os.path.join(folder, name)):
            problems.append(f"--copy_file_list {name}: no such file in {folder}")
    if problems:
        raise CheckpointError(problems)
    return [*names, *(name for name in extra or () if name not in names)]


def read_sidecars(plan: Plan, names: Sequence[str], config: MergeConfig) -> dict[str, bytes]:
    """The contents to write: copies (config.json with the new dtype, if there is one) and the model card."""
    contents: dict[str, bytes] = {CARD: model_card(plan, config).encode()}
    for name in names:
        path = os.path.join(plan.donor.folder, name)
        try:
            with open(path, "rb") as file:
                contents[name] = file.read()
        except OSError as error:
            raise CheckpointError(f"{path}: can't be read ({error.strerror})") from None
        if name == "config.json" and plan.recipe.out_dtype is not None:
            model = read_json(path)
            if isinstance(model, dict):
                model["dtype"] = model["torch_dtype"] = plan.recipe.out_dtype.name
                contents[name] = _json(model)
    return contents


def record(config: MergeConfig) -> bytes:
    """merge_config.json: `python -m paddle_merge merge_config.json --output_path elsewhere` repeats the merge."""
    return _json({"paddle_merge_version": __version__, **config.to_record()})


def model_card(plan: Plan, config: MergeConfig) -> str:
    """A short README.md: what was merged, how, with which weights."""
    recipe = plan.recipe
    names = [os.path.basename(os.path.abspath(path)) for path in recipe.sources]
    weights = recipe.merger.effective_weights(len(recipe.models))
    rows = [f"| {name} | {weight:.6g} |" for name, weight in zip(names, weights, strict=False)]
    against = f" on task vectors against the base model `{names[-1]}`" if recipe.base else ""
    shown = {
        name: value
        for name, value in config.to_record().items()
        if name not in ("model_path_list", "base_model_path", "output_path") and value != getattr(MergeConfig(), name)
    }
    return "\n".join(
        [
            "---",
            "library_name: paddlenlp",
            "tags:",
            "- merge",
            "- paddle_merge",
            "---",
            "",
            f"# {os.path.basename(os.path.abspath(config.output))}",
            "",
            f"Merged with paddle_merge {__version__} by `{recipe.method}`{against}.",
            "",
            "| model | weight |",
            "| --- | --- |",
            *rows,
            "",
            "Parameters that differ from the defaults:",
            "",
            "```json",
            json.dumps(shown, indent=2),
            "```",
            "",
            "The whole record is in `merge_config.json`; `python -m paddle_merge merge_config.json --output_path again`",
            "repeats the merge, byte for byte.",
            "",
        ]
    )


def _json(content: Any) -> bytes:
    return (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode()
