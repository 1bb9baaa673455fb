"""Parse command lines as the program does, without running them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import typer

from paddle_merge import MergeConfig
from paddle_merge.commands import run_line
from paddle_merge.commands.flags import CommandLine, Given
from paddle_merge.commands.main import main
from paddle_merge.commands.merge import FIELDS
from tests.support.pages import ROOT


def cli(*argv: str) -> int:
    """Return the exit code of `python -m paddle_merge *argv`, run in this process."""
    with pytest.raises(SystemExit) as caught:
        main(argv)
    return int(caught.value.code or 0)


def parsed(entry: Any, argv: list[str], monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Return the flags of a command line by name, as `entry` reads them, without running the command."""
    found: list[dict[str, Any]] = []

    def note(line: CommandLine, given: Given, run: Any) -> None:
        if "help" not in given.switches:
            found.append({"first": given.words if line.many else given.first})
            found[0] |= {item.name: given.flags.get(item.name) for item in line.fields.values()}

    with monkeypatch.context() as patch:
        patch.setattr(run_line, "_do", note)
        patch.setattr(typer.core.TyperCommand, "invoke", lambda _, context: found.append(dict(context.params)))
        with pytest.raises(SystemExit) as exit:
            entry(argv)
    assert not exit.value.code, argv
    assert found or argv == ["--help"] or len(argv) == 1, argv  # the name of a command alone asks for its help
    return found[0] if found else {}


def check_fields(given: dict[str, Any]) -> None:
    """Assert that MergeConfig takes the flags of a merge, and the fields of the file before them, if it is one of ours."""
    for name, value in given.items():
        choices = FIELDS[name].metadata.get("choices") if name in FIELDS else None
        assert not value or not choices or set(value if isinstance(value, list) else [value]) <= set(choices), (name, value)
    if set(FIELDS) <= set(given):
        fields = {name: value for name, value in given.items() if name in FIELDS and value}
        file = given["first"]
        assert file is None or file.startswith("configs/") or Path(file).suffix in (".yaml", ".json")
        if file is not None and (ROOT / file).exists():
            fields = {**MergeConfig.from_file(str(ROOT / file)), **fields}
        assert MergeConfig.from_mapping(fields)


def check_tool(tool: Any, command: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Assert that a script in tools/ takes the flags of this command."""
    if hasattr(tool, "main"):
        parsed(lambda argv: in_app(tool.main)(argv), command[2:], monkeypatch)
    elif hasattr(tool, "merge_lora_params"):
        parsed(tool.merge_lora_params, command[2:], monkeypatch)
    else:
        assert {word[2:] for word in command if word.startswith("--")} <= set(FIELDS)


def in_app(function: Any) -> typer.Typer:
    """Return an app whose only command is this function."""
    app = typer.Typer()
    app.command()(function)
    return app
