"""python -m paddle_merge inspect: what checkpoints are, from their headers."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ...checkpoints.names import letters
from ...errors import CheckpointError, ConfigError
from ...recipe import fields
from ...recipe.fields import _flag, to_types
from ..command import set_up_logging
from ..flags import build_app, normal_form
from ..tables import count, facts, size, table
from .checkpoint import look
from .headers import MISSING, differences, grouped

SHOWN = 30  # groups of tensors in the table of what differs

HELP = """Tell what checkpoints are: format, layout and how it is known, dtypes, parameters, layers, tied tensors, metadata,
signs of quantisation; of LoRA adapters rank, scale and targets. Only headers and config.json are read (and lm_head and the
embedding, if config.json ties them or not, and both are stored).

Takes whatever a merge takes: folders and files of any format, names on a hub, `base+adapter`, and adapters alone. Of
several, a table at the end tells what differs: names, shapes, dtypes, layout, and what config.json says of how weights are
used.
Tensors of different layouts are compared in the first one's, if they can be. Whether the numbers differ is for `python -m
paddle_merge diff`.
"""
EPILOG = """[bold]Examples[/bold] (after python -m paddle_merge):

inspect ./model

inspect ./base ./math ./code+./code_lora --json
"""


@dataclass
class InspectConfig:
    """Everything an inspection can be told."""

    paths: list[str]
    merge_prefix: str = _flag(
        "What to look at",
        "Which weights of a folder: model (model.safetensors) or master_weights.",
        "model",
        choices=("model", "master_weights"),
    )
    json: bool = _flag("Output", "Print the same as JSON.", False)

    def __post_init__(self) -> None:
        """Raises ConfigError."""
        to_types(self)


FIELDS = {item.name: item for item in dataclasses.fields(InspectConfig) if item.name != "paths"}


def main(argv: Sequence[str]) -> None:
    """python -m paddle_merge inspect *argv. Raises MergeError."""
    words = normal_form(argv, FIELDS, {}, "", many=True) or ["--help"]
    argument = "PATH...", "Folders, files, names on a hub, adapters, or base+adapter."
    build_app(FIELDS, _run, argument, HELP, EPILOG, many=True)(words, prog_name="python -m paddle_merge inspect")


def _run(paths: list[str] | None, verbose: bool, quiet: bool, flags: dict[str, Any]) -> None:
    set_up_logging(verbose, quiet)
    config = InspectConfig(paths or [], **{name: value for name, value in flags.items() if value is not None})
    found = inspect(config)
    print(json.dumps(found, indent=2) if config.json else "\n".join(_lines(found)))


def inspect(config: InspectConfig) -> dict[str, Any]:
    """What --json prints: a list of `checkpoints`, and of several what `differs`. Raises ConfigError, CheckpointError."""
    wrong = fields.of_fields(config)
    if not config.paths:
        wrong.append("give at least one checkpoint: python -m paddle_merge inspect PATH...")
    if wrong:
        raise ConfigError(wrong)
    looked, problems = [], []
    for path in config.paths:
        try:
            looked.append(look(path, config.merge_prefix))
        except CheckpointError as error:
            problems += error.problems
    if problems:
        raise CheckpointError(list(dict.fromkeys(problems)))
    result: dict[str, Any] = {"checkpoints": [one.said for one in looked]}
    pairs = [(one.checkpoint, one.said) for one in looked if one.checkpoint is not None]
    if len(pairs) > 1:
        held = [letter for letter, one in zip(letters(), looked, strict=False) if one.checkpoint is not None]
        result["differs"] = {
            "of": held,
            **differences([one for one, _ in pairs], [said for _, said in pairs], config.merge_prefix),
        }
    return result


# --- as text -----------------------------------------------------------------------------------------------------------


def _lines(found: Mapping[str, Any]) -> Iterator[str]:
    several = len(found["checkpoints"]) > 1
    for letter, said in zip(letters(), found["checkpoints"], strict=False):
        yield f"{letter}  {said['path']}" if several else str(said["path"])
        yield from facts(list(_adapter(said) if "adapter" in said else _checkpoint(said)), 2)
        for adapter in said.get("adapters", ()):
            yield f"  with {adapter['path']}"
            yield from facts(list(_adapter(adapter)), 4)
        yield ""
    if "differs" in found:
        yield from _differs(found["differs"])


def _checkpoint(said: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    files = said["files"]
    yield "format", f"{said['format']}, {files[0] if len(files) == 1 else f'{len(files)} files'}, {size(said['bytes'])}"
    yield "layout", f"{said['layout'] or 'unknown'}: {said['layout_evidence']}"
    if said["family"]:
        told = said["architectures"] or ()
        names = ", ".join(map(str, told if isinstance(told, list | tuple) else [told]))
        yield "family", f"{said['family']}{f' ({names})' if names else ''}"
    if said["quantised"]:
        yield "quantised", "; ".join(said["quantised"])
    yield from _numbers(said)
    tied = said["tied"]
    if tied["stored"]:
        source = "config.json says so" if tied["config"] is not None else "config.json doesn't say"
        values = {None: "", True: "; both are stored, equal", False: "; both are stored, and differ"}[tied["same_values"]]
        yield "tied", f"lm_head is {'' if tied['tied'] else 'not '}the embedding ({source}){values}"
    for names in said["shared"]:
        yield "shared", f"the same bytes: {', '.join(names)}"
    for name, value in said["settings"].items():
        if name != "model_type":
            yield name, str(value)
    for name, value in said["metadata"].items():
        yield "metadata", f"{name}: {value}"


def _numbers(said: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    yield "parameters", f"{count(said['parameters'])} in {count(said['tensors'])} tensors"
    for stack, layers in said["layers"].items():
        yield "layers", f"{layers} in {stack}"
    for name, held in said["dtypes"].items():
        held = f"{count(held['tensors'])} tensors, {count(held['parameters'])} elements, {size(held['bytes'])}"
        yield "dtype", f"{name}: {held}"


def _adapter(said: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    def several(counts: Mapping[str, int]) -> str:
        return ", ".join(counts) if len(counts) == 1 else ", ".join(f"{name} ({times})" for name, times in counts.items())

    yield "format", f"LoRA adapter ({said['adapter']}){', DoRA' if said['dora'] else ''}, {size(said['bytes'])}"
    yield "rank", several(said["ranks"]) or "none"
    yield "scale", several(said["scales"]) or "none"
    targets = ", ".join(f"{name} ({times})" for name, times in said["targets"].items())
    yield "targets", f"{said['modules']} modules: {targets}" if targets else "none"
    if said["whole_tensors"]:
        yield "whole", f"{len(said['whole_tensors'])} tensors replaced: {', '.join(said['whole_tensors'])}"
    if said["base_model"]:
        yield "base model", said["base_model"]
    yield from _numbers(said)
    for problem in said["problems"]:
        yield "problem", problem


def _differs(found: Mapping[str, Any]) -> Iterator[str]:
    letters, groups = found["of"], grouped(found["tensors"])
    if found["notes"]:
        yield from facts([("note", note) for note in found["notes"]], 0)
        yield ""
    rows = []
    things = [(name, values) for name, values in found["facts"].items()]
    things += [(f"{name} ({times})" if times > 1 else name, list(values)) for (name, values), times in groups.items()]
    for what, values in things[: len(found["facts"]) + SHOWN]:
        absent = MISSING if what not in found["facts"] else "not said"
        for value in dict.fromkeys(map(str, values)):
            where = " ".join(letter for letter, one in zip(letters, values, strict=True) if str(one) == value)
            rows.append((what, where, absent if value == "None" else value))
            what = ""
    if not rows:
        yield "nothing differs in headers and config.json; whether the numbers do, python -m paddle_merge diff tells"
        return
    yield from table(["what differs", "in", "is"], rows, 3)
    hidden = len(groups) - SHOWN
    if hidden > 0:
        yield f"and {hidden} more groups of tensors; --json lists all"
