"""Test when loops are compiled, and that several processes compile each once."""

from __future__ import annotations

import contextlib
import fcntl
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from paddle_merge.backends.kernels import compiling

ADDS = "from .compiling import jit\n\n\n@jit\ndef inner(x):\n    return x + {}\n"
CALLS = "from .compiling import jit\nfrom .inner import inner\n\n\n@jit\ndef outer(x):\n    return inner(x)\n"
ASK = "from kernels.outer import outer; print(outer({}), len(outer.stats.cache_hits))"


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A package of loops of its own, so nothing of it is compiled."""
    package = tmp_path / "kernels"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "compiling.py").write_bytes(Path(compiling.__file__).read_bytes())
    (package / "inner.py").write_text(ADDS.format(1))
    (package / "outer.py").write_text(CALLS)
    return package


def asking(package: Path, argument: str = "1", before: str = "") -> subprocess.Popen[str]:
    """A process that prints what outer(argument) is, and whether its code was there."""
    command = [sys.executable, "-c", before + ASK.format(argument)]
    env = {name: value for name, value in os.environ.items() if name != "NUMBA_CACHE_DIR"}
    return subprocess.Popen(command, cwd=package.parent, stdout=subprocess.PIPE, text=True, env=env)


def answer(package: Path) -> str:
    with asking(package) as process:
        return process.communicate()[0]


def has_open(pid: int, file: int) -> bool:
    """Whether a process has opened the same file."""
    for path in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # closed by now
            if os.path.samestat(path.stat(), os.fstat(file)):
                return True
    return False


@pytest.mark.exhaustive
def test_processes_that_start_together_compile_a_loop_once(package: Path) -> None:
    """Also if they need it for different dtypes: Numba's own cache can then give the code of one for the other."""
    (package / "__pycache__").mkdir()
    lock = os.open(package / "__pycache__" / "compiling.lock", os.O_CREAT | os.O_RDWR)
    fcntl.flock(lock, fcntl.LOCK_EX)
    processes = [asking(package, argument) for argument in ("1", "1.5", "1.5")]
    for process in processes:  # all wait for the lock
        while not has_open(process.pid, lock):
            assert process.poll() is None
            time.sleep(0.01)
    os.close(lock)
    answers = sorted(process.communicate()[0] for process in processes)
    assert answers == ["2 0\n", "2.5 0\n", "2.5 1\n"]


@pytest.mark.exhaustive
def test_a_process_that_never_ends_holds_others_up_once(package: Path) -> None:
    (package / "__pycache__").mkdir()
    lock = os.open(package / "__pycache__" / "compiling.lock", os.O_CREAT | os.O_RDWR)
    fcntl.flock(lock, fcntl.LOCK_EX)
    with asking(package, before="from kernels import compiling; compiling._LOCK._patience = 0.3; ") as process:
        assert process.communicate()[0] == "2 0\n"
    os.close(lock)


@pytest.mark.exhaustive
def test_a_change_of_one_file_compiles_the_loops_that_call_it(package: Path) -> None:
    """Loops call loops of other files; Numba alone looks at a loop's own file only."""
    assert [answer(package), answer(package)] == ["2 0\n", "2 1\n"]
    (package / "inner.py").write_text(ADDS.format(10))
    assert answer(package) == "11 0\n"


@pytest.mark.exhaustive
def test_a_process_that_is_killed_while_it_saves_leaves_no_older_code(package: Path) -> None:
    """Neither that of an older version of the loop nor that of another signature."""
    assert answer(package) == "2 0\n"
    (package / "inner.py").write_text(ADDS.format(10))
    kill = "import os, signal; from kernels import compiling as c; died = lambda *_: os.kill(os.getpid(), signal.SIGKILL); "
    for name in ("_save_data", "_save_index"):
        with asking(package, before=f"{kill}c._CacheFile.{name} = died; ") as process:
            assert process.communicate()[0] == ""
        assert answer(package) == "11 0\n"
        (package / "inner.py").write_text(ADDS.format(10))  # so that all is compiled again
    assert answer(package) == "11 0\n"
    assert len(list((package / "__pycache__").glob("*.nbc"))) == 2  # of each loop one


@pytest.mark.exhaustive
def test_a_loop_that_cant_be_saved_is_run_all_the_same(package: Path) -> None:
    full = "import errno; from kernels import compiling as c\n"
    full += "def save(*_): raise OSError(errno.ENOSPC, 'no space')\nc._CacheFile._save_data = save\n"
    with asking(package, before=full) as process:
        assert process.communicate()[0] == "2 0\n"
    assert answer(package) == "2 0\n"
