"""Print an inspection as text."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from ...checkpoints.names import letters
from ...parsing import size_text
from ..tables import count, facts, table
from .headers import MISSING, grouped

SHOWN = 30  # groups of tensors in the table of differences


def lines(found: Mapping[str, Any]) -> Iterator[str]:
    """Yield the lines of a report. found: as returned by cli.inspect."""
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
    yield "format", f"{said['format']}, {files[0] if len(files) == 1 else f'{len(files)} files'}, {size_text(said['bytes'])}"
    yield "layout", f"{said['layout'] or 'unknown'}: {said['layout_evidence']}"
    if said["family"]:
        architectures = said["architectures"] or ()
        names = ", ".join(map(str, architectures if isinstance(architectures, list | tuple) else [architectures]))
        yield "family", f"{said['family']}{f' ({names})' if names else ''}"
    if said["quantised"]:
        yield "quantised", "; ".join(said["quantised"])
    if said["read_as"]:
        yield "read as", said["read_as"].removeprefix(f"{said['path']}: ")
    yield from _numbers(said)
    tied = said["tied"]
    if tied["stored"]:
        source = "stated in config.json" if tied["config"] is not None else "config.json doesn't state it"
        values = {None: "", True: "; both are stored and equal", False: "; both are stored and differ"}[tied["same_values"]]
        yield "tied", f"lm_head is {'' if tied['tied'] else 'not '}tied to the embedding ({source}){values}"
    for names in said["shared"]:
        yield "shared", f"stored in the same bytes: {', '.join(names)}"
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
        held = f"{count(held['tensors'])} tensors, {count(held['parameters'])} elements, {size_text(held['bytes'])}"
        yield "dtype", f"{name}: {held}"


def _adapter(said: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    def several(counts: Mapping[str, int]) -> str:
        return ", ".join(counts) if len(counts) == 1 else ", ".join(f"{name} ({times})" for name, times in counts.items())

    yield "format", f"LoRA adapter ({said['adapter']}){', DoRA' if said['dora'] else ''}, {size_text(said['bytes'])}"
    yield "rank", several(said["ranks"]) or "none"
    yield "scale", several(said["scales"]) or "none"
    targets = ", ".join(f"{name} ({times})" for name, times in said["targets"].items())
    yield "targets", f"{said['modules']} modules: {targets}" if targets else "none"
    if said["token_rows"]:
        yield "token rows", ", ".join(f"{count} of {name}" for name, count in said["token_rows"].items())
    if said["whole_tensors"]:
        yield "whole tensors", f"{len(said['whole_tensors'])}: {', '.join(said['whole_tensors'])}"
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
        absent = MISSING if what not in found["facts"] else "not given"
        for value in dict.fromkeys(map(str, values)):
            where = " ".join(letter for letter, one in zip(letters, values, strict=True) if str(one) == value)
            rows.append((what, where, absent if value == "None" else value))
            what = ""
    if not rows:
        yield "no differences in headers and config.json; python -m paddle_merge diff compares the values"
        return
    yield from table(["property", "in", "value"], rows, 3)
    hidden = len(groups) - SHOWN
    if hidden > 0:
        yield f"and {hidden} more groups of tensors; --json lists all of them"
