"""Run scripts in the environments of the libraries, each library in one process that stays: importing one takes seconds.

An environment variable names the interpreter of each; tests/loaders/test_loaders.py says what they are for.
"""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import IO

LIBRARIES = ("transformers", "paddlenlp", "paddleformers")
VARIABLES = {library: f"PADDLE_MERGE_{library.upper()}_PYTHON" for library in LIBRARIES}
ABSENT = [variable for variable in VARIABLES.values() if not os.environ.get(variable)]
SCRIPTS = Path(__file__).parents[1] / "loaders" / "scripts"


class _Process:
    """A process that runs one script after another (scripts/serve.py). It ends with this one, whose pipe it reads."""

    def __init__(self, library: str):
        self._log: IO[str] = tempfile.TemporaryFile("w+")  # noqa: SIM115 - for as long as the process
        environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
        self._popen = subprocess.Popen(
            [os.environ[VARIABLES[library]], str(SCRIPTS / "serve.py")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            env=environment,
        )

    def begin(self, words: Sequence[str]) -> None:
        assert self._popen.stdin is not None
        self._popen.stdin.write("\t".join(words) + "\n")
        self._popen.stdin.flush()

    def end(self) -> bool:
        assert self._popen.stdout is not None
        return self._popen.stdout.readline() == "done\n"

    def close(self) -> None:
        assert self._popen.stdin is not None
        assert self._popen.stdout is not None
        self._popen.stdin.close()
        self._popen.wait()
        self._popen.stdout.close()
        self._log.close()

    def said(self) -> str:
        self._log.seek(0)
        return self._log.read()[-3000:]


_RUNNING: dict[str, _Process] = {}


def run(scripts: dict[str, Sequence[str]], fresh: bool = False) -> None:
    """Run a script in each library's environment, all at the same time.

    scripts: library -> the name of the script in tests/loaders/scripts, and its arguments. fresh: in new processes, where
    nothing may be left of earlier scripts (behind those of adapters, transformers opened a tied model untied). Fails with
    what was said if a script does.
    """
    for library, (name, *arguments) in scripts.items():
        if fresh and library in _RUNNING:
            _RUNNING.pop(library).close()
        if library not in _RUNNING:
            _RUNNING[library] = _Process(library)
        _RUNNING[library].begin([str(SCRIPTS / name), *arguments])
    failed = [library for library in scripts if not _RUNNING[library].end()]
    said = {library: _RUNNING.pop(library).said() for library in failed}  # a fresh one for the next script
    assert not said, "\n".join(f"{library}: {text}" for library, text in said.items())
