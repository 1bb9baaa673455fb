"""Run the command that the first word of the command line names, or list the commands."""

from __future__ import annotations

import contextlib
import difflib
import gc
import os
import re
import sys
from collections.abc import Sequence
from importlib import import_module

from ..errors import ConfigError
from ..run.fork_server import has_loops, one_blas_thread, started_early
from ..run.output.signals import uninterrupted
from .command import command, without_scipy

# Command -> the module of this package whose `main` takes the rest of the command line, and what the command does.
COMMANDS = {
    "merge": ("merge", "Merge models into one checkpoint. The word merge may be left out."),
    "inspect": ("inspect.cli", "Describe checkpoints and LoRA adapters, and how they differ, from their headers."),
    "diff": ("diff.cli", "Compare the values of two checkpoints."),
    "analyze": ("analyze.cli", "Measure what fine-tuning changed in each model, before a merge."),
    "verify": ("verify.cli", "Check that a merged checkpoint is what the merge wrote."),
    "extract-lora": ("extract_lora.cli", "Make a LoRA adapter from a fine-tuned model and its base."),
    "merge-lora": ("merge_lora.cli", "Merge LoRA adapters into one LoRA adapter."),
    "evaluate": ("evaluate.cli", "Score models side by side, with standard errors and costs."),
    "evolve": ("evolve.cli", "Search for the best recipe by scoring merges."),
    "sweep": ("sweep.cli", "Score all merges of a grid, or between two models."),
    "soup": ("soup.cli", "Average the checkpoints of a training run."),
    "transplant": ("transplant.cli", "Give a model the tokenizer of another."),
    "layer-shuffle": ("layer_shuffle.cli", "Take each layer from one of several models at random."),
    "expert-stats": ("expert_stats.cli", "Measure how much each expert of a mixture is used."),
    "push": ("push.cli", "Upload a checkpoint or adapter to Hugging Face, AI Studio or ModelScope."),
    "demo": ("demo.cli", "Train small networks, merge them by every method, and show the results."),
}
OURS = (
    "merge",
    "diff",
    "analyze",
    "verify",
    "extract-lora",
    "merge-lora",
    "transplant",
    "layer-shuffle",
    "push",
)  # commands that run nothing of the user's in their process
YOUNG = 200_000  # objects that other commands make before Python looks for cycles among them, at most
QUICK = re.compile("(-h|--(help|version|dry[-_]run|print[-_]recipe))(=|$)")  # flags of merge with which it merges nothing
# The flags of a merge that --help lists before the commands.
FREQUENT = (
    "model_path_list",
    "base_model_path",
    "merge_method",
    "weight_list",
    "output_path",
    "n_process",
    "dry_run",
)
HELP = """Merge model checkpoints of any size into one, and examine them before and after.

`python -m paddle_merge COMMAND --help` describes a command and all its flags.
"""
EXAMPLES = (
    "demo",
    "merge --model_path_list ./math ./code --base_model_path ./base --merge_method ties --output_path ./merged",
    "merge recipe.yaml --output_path ./merged",
    "diff ./base ./merged",
)


def main(argv: Sequence[str] | None = None) -> None:
    """Run `python -m paddle_merge` and `paddle-merge`; argv is sys.argv[1:] by default.

    Exits with status 0; 1 if the command is refused or fails; 130 if interrupted.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    with command():
        if not argv or argv in (["--help"], ["-h"]):
            with one_blas_thread():
                _list_commands(["--help"], with_flags=bool(argv))
        name, rest = _choose(argv)
        with contextlib.ExitStack() as around:
            if name in OURS:
                around.enter_context(without_scipy())
            else:  # models that aren't needed any more may be in cycles
                young, *others = gc.get_threshold()
                gc.set_threshold(min(young, YOUNG), *others)
            if name == "merge" and not any(QUICK.match(word) for word in rest) and not has_loops():
                around.enter_context(started_early())
            threads = one_blas_thread() if name == "merge" else contextlib.nullcontext()  # its workers compute
            with threads, uninterrupted():  # NumPy's import makes an error of an interrupt, and Python's may lose it
                module = import_module(f".{COMMANDS[name][0]}", __package__)
            module.main(rest)


def _choose(argv: Sequence[str]) -> tuple[str, list[str]]:
    """Return the command that argv names and the rest of argv; without a command's name it is merge, with all of argv.

    Raises ConfigError if the first word is neither a command, nor a flag, nor the path of a config file.
    """
    word = argv[0]
    if word.replace("_", "-") in COMMANDS:
        return word.replace("_", "-"), list(argv[1:])
    looks_like_a_path = os.path.lexists(word) or os.path.basename(word) != word or "." in word
    if not word.startswith("-") and not looks_like_a_path:
        raise ConfigError(f"{word!r} is neither a command nor a file{_meant(word)} The commands are {', '.join(COMMANDS)}")
    return "merge", list(argv)


def _meant(word: str) -> str:
    """Return the question that follows an unknown command: which command was meant."""
    written = word.lower().replace("_", "-")
    begin_so = [name for name in COMMANDS if written and name.startswith(written)]
    found = begin_so[:1] or difflib.get_close_matches(written, COMMANDS, n=1)
    return f"; did you mean {found[0]!r}?" if found else "."


def _list_commands(argv: Sequence[str], with_flags: bool) -> None:
    """Print the page that lists the commands, with the most frequent flags of a merge if with_flags. Exits."""
    from .flags import PROGRAM
    from .help_page import HELP_FLAGS, escape, new_app, option, switch, unwrapped, with_parameters  # imports Typer

    parameters = [switch("version", "Print the version and exit.", None)]
    if with_flags:
        from .merge import FIELDS

        title = f"Frequent flags of merge (all: {PROGRAM} merge --help)"
        parameters += [option(FIELDS[name], title) for name in FREQUENT]
    epilog = "\n\n".join(["[bold]Examples[/bold]", *(escape(f"{PROGRAM} {words}") for words in EXAMPLES)])
    app = new_app()
    app.callback(help=unwrapped(HELP), epilog=epilog, context_settings=HELP_FLAGS)(
        with_parameters(lambda **_: None, parameters)
    )
    for name, (_, what) in COMMANDS.items():
        app.command(name, help=escape(what))(lambda: None)
    app(list(argv), prog_name=PROGRAM)
