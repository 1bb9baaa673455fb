"""Do what a command line says.

Typer, which takes longer to import than a small merge, prints the help pages only.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from ..version import __version__
from .command import set_up_logging
from .flags import CommandLine, Given

Run = Callable[[Any, dict[str, Any]], None]


def run_line(line: CommandLine, argv: Sequence[str], run: Run) -> None:
    """Parse argv and call `run`, or print the help page or the version; then exit: SystemExit is always raised, unless it is
    ConfigError, or an error of `run`.

    run: is called with the words given without a flag (a list if `line.many`, else the first one or None) and with the flags
    that were given, by the names of their fields.
    """
    given = line.parse(argv)
    if not argv and line.needs_words:
        given.switches.add("help")
    _do(line, given, run)
    raise SystemExit(0)


def _do(line: CommandLine, given: Given, run: Run) -> None:
    if "help" in given.switches:
        from .help_page import show  # imports Typer

        show(line)
    elif "version" in given.switches:
        print(f"paddle_merge {__version__}")
    else:
        set_up_logging("verbose" in given.switches, "quiet" in given.switches)
        run(given.words if line.many else given.first, given.flags)
