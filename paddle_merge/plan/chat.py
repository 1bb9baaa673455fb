"""Chat templates: Jinja that makes of a conversation the text that a model reads. Ours lie in templates/, by name; models
have their own; and the output's is written wherever a library looks for it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from typing import Any

from ..checkpoints.json_files import parse_json, read_json, read_small
from ..errors import CheckpointError
from ..recipe.chat_template import AUTO, TEMPLATES, names, syntax_error
from ..records import record

FILE = "chat_template.jinja"
CONFIG = "tokenizer_config.json"
OLDER = "chat_template.json"  # of transformers' processors; PaddleNLP's is another, of the same name


@record(frozen=True)
class ChatTemplate:
    """A chat template. text: in Jinja. origin: what people are told that it comes from."""

    text: str
    origin: str


def choose(
    value: str | None, folders: Sequence[tuple[str, str]], config_source: str
) -> tuple[ChatTemplate | None, list[str]]:
    """Return the output's template, None if none is asked for or found; and sentences on what is likely not meant.

    folders: of each input, what to call it and where its tokenizer is. config_source: where the output's tokenizer comes
    from. Raises CheckpointError if a file of them can't be read.
    """
    if value is None:
        return None, []
    if value == AUTO:
        template, worries = _most_common(folders)
    elif value in names():
        template = ChatTemplate(
            (TEMPLATES / f"{value}.jinja").read_text("utf-8").removesuffix("\n"), f"{value}, of paddle_merge"
        )
        worries = []
    else:
        template, worries = ChatTemplate(value.removesuffix("\n"), "as it was given"), []
    if template is not None and not os.path.isfile(os.path.join(config_source, CONFIG)):
        worries.append(
            f"{config_source} has no {CONFIG}, so the chat template is only written to {FILE}, which older libraries don't"
            " read; --config_from says where the tokenizer is"
        )
    return template, worries


def _most_common(folders: Sequence[tuple[str, str]]) -> tuple[ChatTemplate | None, list[str]]:
    """Return the template that most inputs have, of several the first; white space around it doesn't count."""
    found: dict[str, list[tuple[str, str]]] = {}
    worries = []
    for title, folder in folders:
        text, path = of_folder(folder)
        wrong = syntax_error(text) if text else None
        if wrong:
            worries.append(f"--chat_template {AUTO}: {path}: its chat template {wrong}; it isn't counted")
        elif text:
            found.setdefault(text.strip(), []).append((title, text))
    if not found:
        worries.append(f"--chat_template {AUTO}: no input has a chat template, so nothing is changed")
        return None, worries
    group = max(found.values(), key=len)
    which = "that of " + ", ".join(dict.fromkeys(title for title, _ in group))
    return ChatTemplate(group[0][1], f"{which} ({len(group)} of {len(folders)} inputs)"), worries


def of_folder(folder: str) -> tuple[str, str]:
    """Return the template of a model's tokenizer, and its file; "" if it has none. Raises CheckpointError."""
    path = os.path.join(folder, FILE)
    if os.path.isfile(path):
        try:
            return read_small(path).decode("utf-8"), path
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
            raise CheckpointError(f"{path}: can't be read ({reason})") from None
    for name in (CONFIG, OLDER):
        path = os.path.join(folder, name)
        content = read_json(path) if os.path.isfile(path) else None
        text = _default(content.get("chat_template")) if isinstance(content, dict) else ""
        if text:
            return text, path
    return "", ""


def _default(value: Any) -> str:
    """Return a template; of several with names the one called "default"."""
    if isinstance(value, list):
        named = {str(one.get("name")): one.get("template") for one in value if isinstance(one, dict)}
        value = named.get("default")
    return value if isinstance(value, str) else ""


def placed(template: ChatTemplate, contents: Mapping[str, bytes]) -> dict[str, bytes]:
    """Return the files beside the weights, by name, with the template wherever a library looks for it, and no other
    template.

    PaddleNLP reads tokenizer_config.json, but lets a chat_template.json of its own kind win, and fails at transformers'; so
    that goes. Raises CheckpointError if tokenizer_config.json isn't an object in JSON.
    """
    found = {name: content for name, content in contents.items() if name != OLDER}
    for name in (CONFIG, "processor_config.json"):
        if name not in found:
            continue
        try:
            content = parse_json(found[name])
            if not isinstance(content, dict):
                raise ValueError("it is no object")
        except (ValueError, RecursionError) as error:
            raise CheckpointError(f"{name}, beside the weights, can't take the chat template ({error})") from None
        if name == CONFIG or "chat_template" in content:
            content["chat_template"] = template.text
            found[name] = (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode()
    return {**found, FILE: template.text.encode()}
