"""Write scores into `model-index`, the part of a card's metadata from which hubs read them.

Only the lines of the entry change. What others wrote would not survive being parsed and written again: their comments, and
values such as `no` or `0123`, which YAML reads as false and 83. Metadata that can't be changed in this way is refused.
"""

from __future__ import annotations

import re
from typing import Any

from ...checkpoints.front_matter import MOST_YAML, span

INDEX = "model-index"
_KEYS = ("type", "split", "name")  # of an entry's dataset: two entries that agree in them are the same one
_OPEN = re.compile(r"\s*---[ \t]*(?:[\r\n]|$)")


def with_entry(card: str, entry: dict[str, Any], model: str) -> str:
    """Return a card with an entry among the results of its first model, in place of the one of the same dataset.

    entry: as `model-index` has them. model: the name of the model, if the card has no results yet. Raises ValueError, whose
    message says in a line why that can't be done.
    """
    import yaml

    where = span(card)
    if where is None:
        if _OPEN.match(card):
            raise ValueError("its metadata is empty, or doesn't end with a line of three dashes")
        return f"---\n{_dump({INDEX: [{'name': model, 'results': [entry]}]})}---\n\n{card}"
    before = card[slice(*where)] + "\n"
    if len(before) > MOST_YAML:
        raise ValueError(f"its metadata is longer than {MOST_YAML // 1024} KiB")
    ending = "\r\n" if "\r\n" in before else "\n"
    try:
        after = _changed(before, entry, model).replace("\r\n", "\n").replace("\n", ending)
        expected = _expected(before, entry, model)
    except (yaml.YAMLError, RecursionError):
        raise ValueError("its metadata is not valid YAML") from None
    try:
        found = yaml.load(after, yaml.BaseLoader)
    except yaml.YAMLError:
        found = None
    made = card[: where[0]] + after[: -len(ending)] + card[where[1] :]
    if found is None or found != expected or span(made) != (where[0], where[0] + len(after) - len(ending)):
        raise ValueError("its metadata isn't plain YAML, with a key a line from the first column on")
    return made


def _changed(metadata: str, entry: dict[str, Any], model: str) -> str:
    """Return the lines of metadata with those of the entry. What they mean has to be checked."""
    import yaml

    lines = metadata.splitlines(keepends=True)
    top = yaml.compose(metadata, yaml.BaseLoader)
    results = _results(top)
    if results is None:
        return metadata + _dump({INDEX: [{"name": model, "results": [entry]}]})
    starts = [one.start_mark.line for one in results.value]
    ends = [_end(lines, line) for line in (*starts[1:], results.end_mark.line)]
    lead = lines[starts[0]].partition("-")[0]
    made = [f"{lead}{line}" for line in _dump([entry]).splitlines(keepends=True)]
    same = [place for place, one in enumerate(_plain(results)) if _is_same(one, entry)]
    first = starts[same[0]] if same else ends[-1]
    gone = {line for place in same for line in range(starts[place], ends[place])}
    kept = [(number, line) for number, line in enumerate(lines) if number not in gone]
    return "".join(
        [*(line for number, line in kept if number < first), *made, *(line for number, line in kept if number >= first)]
    )


def _results(top: Any) -> Any:
    """Return the node of the first model's results; None if there is no model-index. Raises ValueError if it has none."""
    import yaml

    index = _value(top, INDEX)
    if index is None:
        return None
    models = index.value if isinstance(index, yaml.SequenceNode) else []
    found = [_value(one, "results") for one in models]
    if not found or not all(isinstance(one, yaml.SequenceNode) for one in found):
        raise ValueError(f"its {INDEX} is no list of models with their results")
    if index.flow_style or models[0].flow_style or found[0].flow_style:
        raise ValueError(f"its {INDEX} is written within brackets: write it with an entry a line")
    return found[0]


def _value(node: Any, key: str) -> Any:
    """Return the node that a mapping has for a key; None if it has none, or if the node is no mapping."""
    import yaml

    pairs = node.value if isinstance(node, yaml.MappingNode) else []
    return next((value for name, value in pairs if name.value == key), None)


def _plain(node: Any) -> Any:
    """Return what a node means: text, lists and dicts."""
    import yaml

    return yaml.load(yaml.serialize(node), yaml.BaseLoader)


def _expected(metadata: str, entry: dict[str, Any], model: str) -> Any:
    """Return what the metadata has to mean with the entry."""
    import yaml

    content = yaml.load(metadata, yaml.BaseLoader) or {}
    entry = yaml.load(_dump(entry), yaml.BaseLoader)
    if not isinstance(content, dict):
        return None
    if INDEX not in content:
        return content | {INDEX: [{"name": model, "results": [entry]}]}
    first, *others = content[INDEX]
    same = [place for place, one in enumerate(first["results"]) if _is_same(one, entry)]
    place = same[0] if same else len(first["results"])
    kept = [
        [one for one in part if not _is_same(one, entry)] for part in (first["results"][:place], first["results"][place:])
    ]
    return content | {INDEX: [first | {"results": [*kept[0], entry, *kept[1]]}, *others]}


def _is_same(result: Any, entry: dict[str, Any]) -> bool:
    found = result.get("dataset") if isinstance(result, dict) else None
    return isinstance(found, dict) and all(found.get(key) == entry["dataset"][key] for key in _KEYS)


def _end(lines: list[str], line: int) -> int:
    """Return the line at which an entry ends that ends before this one, without comments and blank lines."""
    while not lines[line - 1].strip() or lines[line - 1].lstrip().startswith("#"):
        line -= 1
    return line


def _dump(content: Any) -> str:
    import yaml

    return yaml.safe_dump(content, sort_keys=False, allow_unicode=True, width=1000)
