"""Test the list of commands, the choice of a command, and the help page of each."""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import typer.rich_utils
import yaml
from rich.text import Text

from paddle_merge.commands import main
from paddle_merge.commands.command import command
from paddle_merge.commands.flags import CommandLine
from paddle_merge.commands.help_page import escape
from paddle_merge.commands.main import COMMANDS, FREQUENT
from paddle_merge.commands.run_line import run_line
from tests.support import checkpoints
from tests.support.command_lines import cli
from tests.support.sweeps import few

ROOT = Path(__file__).parents[2]
LINES: dict[str, CommandLine] = {
    name: import_module(f"paddle_merge.commands.{module}").LINE for name, (module, _) in COMMANDS.items()
}


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with models a and b (holding 1 and 2) and a recipe that merges them into `out`."""
    for name, value in (("a", 1.0), ("b", 2.0)):
        checkpoints.write(tmp_path / name, {"w": np.full((3, 5), value)})
    recipe = {"merge_method": "linear", "models": [{"model": name, "parameters": {"weight": 1}} for name in "ab"]}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def page(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *argv: str, columns: int = 100) -> str:
    """Return what a command prints in a terminal of this width, without boxes and line breaks."""
    monkeypatch.setattr(typer.rich_utils, "MAX_WIDTH", columns)  # set from the environment when it is imported
    assert cli(*argv) == 0
    return " ".join(re.sub("[│╭╮╰╯─]", " ", capsys.readouterr().out).split())


# --- the list of commands -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("argv", [[], ["--help"], ["-h"]])
@pytest.mark.parametrize("columns", [60, 80, 200])
def test_all_commands_are_listed_with_a_sentence_each(
    argv: list[str], columns: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    text = page(capsys, monkeypatch, *argv, columns=columns)
    listed = text.partition(" Commands ")[2]
    places = [listed.index(f"{name} {what}") for name, (_, what) in COMMANDS.items()]
    assert places == sorted(places)
    assert list(COMMANDS) == [
        *("merge", "inspect", "diff", "analyze", "verify", "extract-lora", "merge-lora", "evaluate", "evolve", "sweep"),
        *("soup", "transplant", "layer-shuffle", "expert-stats", "push", "demo"),
    ]
    assert [name for name in FREQUENT if f"--{name} " in text.partition(" Commands ")[0]] == (list(FREQUENT) if argv else [])


def test_the_list_fits_on_a_screen(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(typer.rich_utils, "MAX_WIDTH", 80)
    assert cli() == 0
    assert len(capsys.readouterr().out.splitlines()) < 52


@pytest.mark.parametrize("name", COMMANDS)
@pytest.mark.parametrize("flag", ["--help", "-h"])
def test_every_command_has_its_help(
    name: str, flag: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    text = page(capsys, monkeypatch, name, flag)
    assert text.startswith(f"Usage: python -m paddle_merge {name} ")
    assert " ".join(LINES[name].help.split()) in text
    assert [field for field in LINES[name].fields if f"--{field} " not in text] == []
    assert all(f"python -m paddle_merge {name} {words}".rstrip() in text for _, words in LINES[name].examples)
    assert page(capsys, monkeypatch, name.replace("-", "_"), flag) == text


@pytest.mark.parametrize("name", [name for name in COMMANDS if name != "demo"])
def test_a_command_alone_prints_its_help(
    name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert page(capsys, monkeypatch, name) == page(capsys, monkeypatch, name, "--help")


def test_a_terminal_of_unknown_width_has_help_pages(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    assert cli("diff", "--help") == 0
    expected = capsys.readouterr().out
    monkeypatch.setenv("COLUMNS", "0")
    assert cli("diff", "--help") == 0
    assert capsys.readouterr().out == expected


@pytest.mark.parametrize("argv", [["--version"], *([name, "--version"] for name in COMMANDS)])
def test_every_command_has_the_version(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli(*argv) == 0
    assert re.fullmatch(r"paddle_merge \d+\.\d+\.\d+\n", capsys.readouterr().out)


@pytest.mark.parametrize("argv", few([[], ["merge", "--help"], ["--help"], ["diff", "--help"], ["demo", "--help"]], 2))
def test_no_help_page_imports_what_is_slow(argv: list[str]) -> None:
    code = f"""
import sys
from paddle_merge.commands.main import main
try:
    main({argv})
except SystemExit as end:
    assert not end.code
heavy = {{"numba", "llvmlite", "paddle", "scipy", "sklearn", "matplotlib", "yaml"}}
print("HEAVY", sorted(heavy & {{name.partition(".")[0] for name in sys.modules}}), "numpy" in sys.modules)
"""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, timeout=120)
    assert done.stdout.splitlines()[-1] == f"HEAVY [] {bool(argv)}"  # the bare command doesn't even need NumPy


# --- text in brackets ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("columns", [80, 250])
@pytest.mark.parametrize("name", COMMANDS)
def test_text_in_brackets_is_shown(
    name: str, columns: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rich takes [out, in] for a style, unless it is escaped."""
    text = page(capsys, monkeypatch, name, "--help", columns=columns)
    line = LINES[name]
    for field in line.fields.values():
        assert field.metadata["help"] in text, field.name
        if (shown := field.metadata.get("shown")) is not None:
            assert f"[default: {shown}]" in text
    assert all(what in text for what, _ in line.examples)
    assert line.argument is None or line.argument[1] in text


def test_the_layouts_of_a_linear_layer_are_shown(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    text = page(capsys, monkeypatch, "merge", "--help")
    assert "[out, in]" in text
    assert "[in, out]" in text


@pytest.mark.parametrize(
    "text", ["[out, in]", "a [b] [/b] \\[c] [1] []", "C:\\", "[link=x]y[/link]", "[[a]]", "[/]", "[#x]"]
)
def test_escaped_text_is_itself(text: str) -> None:
    assert Text.from_markup(escape(text)).plain == text


# --- which command ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("word", [["merge"], []])
@pytest.mark.parametrize(
    "argv",
    [
        ["--model_path_list", "a", "b", "--output_path", "out"],
        ["recipe.yaml", "--output_path", "out"],
        ["recipe.yaml", "--n_process", "2", "--output_path=out"],
        ["./recipe.yaml", "--output_path", "out"],
    ],
    ids=["flags", "recipe", "two-workers", "path"],
)
def test_the_word_merge_may_be_left_out(here: Path, word: list[str], argv: list[str]) -> None:
    assert cli(*word, *argv, "-q") == 0
    assert checkpoints.read(here / "out")["w"].tolist() == [[1.5] * 5] * 3


@pytest.mark.parametrize("name", ["merge", "diff", "extract_lora"])
def test_a_file_that_is_called_like_a_command_is_given_as_a_path(here: Path, name: str) -> None:
    """The name alone is the command, as in other programs."""
    (here / "recipe.yaml").rename(name)
    (here / name).write_text('{"model_path_list": ["a", "b"]}')
    assert cli(f"./{name}", "--output_path", "out", "-q") == 0
    assert cli("merge", name, "--output_path", "again", "-q") == 0
    assert checkpoints.read(here / "out")["w"].tolist() == checkpoints.read(here / "again")["w"].tolist()


def test_models_that_are_called_like_commands_are_models(here: Path) -> None:
    (here / "a").rename("diff")
    (here / "b").rename("merge")
    assert cli("--model_path_list", "diff", "merge", "--output_path", "out", "-q") == 0
    assert cli("merge", "--model_path_list", "diff", "merge", "--output_path", "again", "-q") == 0
    assert checkpoints.read(here / "out")["w"].tolist() == checkpoints.read(here / "again")["w"].tolist() == [[1.5] * 5] * 3


def test_a_file_without_a_suffix_is_a_config_file(here: Path) -> None:
    (here / "plan").write_text('{"model_path_list": ["a", "b"], "output_path": "out"}')
    assert cli("plan", "-q") == 0
    assert (here / "out/model.safetensors").exists()


@pytest.mark.parametrize(
    ("word", "meant"),
    [
        ("anlyze", "analyze"),
        ("analyse", "analyze"),
        ("dif", "diff"),
        ("Merge", "merge"),
        ("extract", "extract-lora"),
        ("extractlora", "extract-lora"),
        ("Extract_Lora", "extract-lora"),
        ("insp", "inspect"),
        ("verfy", "verify"),
    ],
)
def test_a_misspelt_command_gets_a_suggestion(here: Path, word: str, meant: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli(word, "a", "b") == 1
    sentence = f"error: {word!r} is neither a command nor a file; did you mean {meant!r}? The commands are "
    assert capsys.readouterr().err == f"{sentence}{', '.join(COMMANDS)}\n"


@pytest.mark.parametrize("word", ["help", "x", "", "学习"])
def test_an_unknown_command_gets_the_list(here: Path, word: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli(word) == 1
    sentence = f"error: {word!r} is neither a command nor a file. The commands are {', '.join(COMMANDS)}\n"
    assert capsys.readouterr().err == sentence


def test_the_demo_takes_flags_only(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli("demo", "[out, in]") == 1
    assert cli("demo", "--seed", "-1") == 1
    expected = "error: unexpected '[out, in]'; demo takes flags only\nerror: --seed -1 must be at least 0\n"
    assert capsys.readouterr().err == expected


@pytest.mark.parametrize("words", ["-x a b", "a b --json -x", "a b --top 3 -x", "a --json b -x", "--json=-x a b"])
def test_a_word_that_begins_like_a_flag_is_no_path(words: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Neither before flags nor behind them."""
    assert cli("diff", *words.split()) == 1
    assert capsys.readouterr().err.startswith("error: unexpected '-x'")
    assert cli("merge", "--dry_run", "-x", "a") == 1
    assert capsys.readouterr().err == "error: unexpected '-x'\n"


@pytest.mark.parametrize("word", ["recipes.yaml", "nowhere/recipe", "../recipe", "/recipe"])
def test_a_missing_file_is_called_a_missing_file(here: Path, word: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli(word) == 1
    assert "No such file or directory" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["merge", "diff", "analyze"])
def test_an_interrupt_is_not_swallowed(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    def run(*_: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_line(LINES[name], ["a", "b"] if name != "merge" else ["--model_path_list", "a"], run)
    with pytest.raises(SystemExit) as exit, command():
        run_line(LINES[name], ["a", "b"] if name != "merge" else ["--model_path_list", "a"], run)
    assert exit.value.code == 130
    assert capsys.readouterr().err == "interrupted: no checkpoint or adapter was written\n"


@pytest.mark.parametrize(
    ("words", "imported", "count"),
    [
        ("--model_path_list a b --output_path out", False, 1),
        ("--model_path_list a b --output_path out", True, 0),
        ("recipe.yaml --output_path out", False, 1),
        ("merge -h", False, 0),
        ("merge --help", False, 0),
        ("merge --version", False, 0),
        ("recipe.yaml --output_path out --dry-run=True", False, 0),
        ("recipe.yaml --print_recipe", False, 0),
        ("inspect a", False, 0),
    ],
)
def test_what_starts_workers_early(
    here: Path, monkeypatch: pytest.MonkeyPatch, words: str, imported: bool, count: int
) -> None:
    """imported: whether this process has imported Numba, and so needs nobody who has."""
    started = []

    @contextlib.contextmanager
    def early() -> Iterator[None]:
        started.append(1)
        yield

    monkeypatch.setattr(main, "started_early", early)
    monkeypatch.setattr(main, "has_loops", lambda: imported)
    with pytest.raises(SystemExit) as exit:
        main.main(words.split())
    assert not exit.value.code
    assert len(started) == count
