"""Test when loops are compiled, that several processes compile each once, and that kept loops run without Numba."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from paddle_merge.backends.kernels import compiling, kept_code, native
from paddle_merge.backends.kernels.compiling import jit
from paddle_merge.errors import ConfigError

ADDS = "from .compiling import jit\n\n\n@jit\ndef inner(x):\n    return x + {}\n"
CALLS = "from .compiling import jit\nfrom .inner import inner\n\n\n@jit\ndef outer(x):\n    return inner(x)\n"
ASK = "import sys; from kernels.outer import outer; print(outer({}), 'compiled' if 'numba' in sys.modules else 'kept')"


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A package of loops of its own, so nothing of it is compiled."""
    package = tmp_path / "kernels"
    package.mkdir()
    (package / "__init__.py").touch()
    for module in (compiling, kept_code, native):
        found = Path(str(module.__file__))
        (package / found.name).write_bytes(found.read_bytes())
    (package / "inner.py").write_text(ADDS.format(1))
    (package / "outer.py").write_text(CALLS)
    return package


def asking(package: Path, argument: str = "1", before: str = "", **env: str) -> subprocess.Popen[str]:
    """A process that prints what outer(argument) is, and whether its code was there."""
    command = [sys.executable, "-c", before + ASK.format(argument)]
    env = {name: value for name, value in os.environ.items() if name != "NUMBA_CACHE_DIR"} | env
    return subprocess.Popen(command, cwd=package.parent, stdout=subprocess.PIPE, text=True, env=env)


def answer(package: Path, argument: str = "1", before: str = "", **env: str) -> str:
    with asking(package, argument, before, **env) as process:
        return process.communicate()[0]


def kept(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.code"))


def has_open(pid: int, file: int) -> bool:
    """Whether a process has opened the same file."""
    for path in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # closed by now
            if os.path.samestat(path.stat(), os.fstat(file)):
                return True
    return False


def locked(package: Path, loop: str) -> int:
    """Hold the lock that who compiles a loop takes; return its file."""
    (package / "__pycache__").mkdir(exist_ok=True)
    lock = os.open(package / "__pycache__" / f"{loop}.{loop}.lock", os.O_CREAT | os.O_RDWR)
    fcntl.flock(lock, fcntl.LOCK_EX)
    return lock


# --- what is kept ----------------------------------------------------------------------------------------------------


def test_a_kept_loop_runs_without_numba(package: Path) -> None:
    assert [answer(package), answer(package)] == ["2 compiled\n", "2 kept\n"]
    assert [answer(package, "1.5"), answer(package, "1.5")] == ["2.5 compiled\n", "2.5 kept\n"]
    assert len(kept(package / "__pycache__")) == 2


@pytest.mark.exhaustive
def test_processes_that_start_together_compile_a_loop_once(package: Path) -> None:
    """Also if they need it for different dtypes."""
    lock = locked(package, "outer")
    processes = [asking(package, argument) for argument in ("1", "1.5", "1.5")]
    for process in processes:  # all wait for the lock
        while not has_open(process.pid, lock):
            assert process.poll() is None
            time.sleep(0.01)
    os.close(lock)
    answers = sorted(process.communicate()[0] for process in processes)
    assert answers == ["2 compiled\n", "2.5 compiled\n", "2.5 kept\n"]


@pytest.mark.exhaustive
def test_a_process_that_never_ends_holds_others_up_once(package: Path) -> None:
    locks = [locked(package, "inner"), locked(package, "outer")]
    before = "import kernels.inner; from kernels import kept_code; kept_code._patience = 0.3; kernels.inner.inner(2.0); "
    assert answer(package, before=before + "assert kept_code._patience == 0; ") == "2 compiled\n"
    for lock in locks:
        os.close(lock)


@pytest.mark.exhaustive
def test_a_change_of_one_file_compiles_the_loops_that_call_it(package: Path) -> None:
    """Loops call loops of other files. The code of the older version is dropped."""
    assert [answer(package), answer(package)] == ["2 compiled\n", "2 kept\n"]
    before = kept(package / "__pycache__")
    (package / "inner.py").write_text(ADDS.format(10))
    assert [answer(package), answer(package)] == ["11 compiled\n", "11 kept\n"]
    os.utime(package / "inner.py")
    assert answer(package) == "11 kept\n"
    after = kept(package / "__pycache__")
    assert len(before) == len(after) == 1
    assert before != after


@pytest.mark.exhaustive
def test_a_process_that_is_killed_while_it_saves_leaves_no_wrong_code(package: Path) -> None:
    """Neither that of an older version of the loop nor half of it."""
    assert answer(package) == "2 compiled\n"
    (package / "inner.py").write_text(ADDS.format(10))
    half = "import os, pathlib, signal\ndef die(path, content):\n    open(path, 'wb').write(content[:99])\n"
    half += "    os.kill(os.getpid(), signal.SIGKILL)\npathlib.Path.write_bytes = die\n"
    whole = "import os, pathlib, signal\npathlib.Path.replace = lambda *_: os.kill(os.getpid(), signal.SIGKILL)\n"
    for before in (half, whole):
        assert answer(package, before=before) == ""
    assert [answer(package), answer(package)] == ["11 compiled\n", "11 kept\n"]
    assert len(kept(package / "__pycache__")) == 1


@pytest.mark.exhaustive
@pytest.mark.parametrize("damage", ["cut", "of another loop", "flipped", "a flipped name", "empty"])
def test_damaged_code_is_compiled_again(package: Path, damage: str) -> None:
    """Also where it would be called with arguments of other types."""
    assert answer(package) == "2 compiled\n"
    (path,) = kept(package / "__pycache__")
    content = bytearray(path.read_bytes())
    if damage == "of another loop":
        assert answer(package, "1.5") == "2.5 compiled\n"
        (other,) = set(kept(package / "__pycache__")) - {path}
        other.replace(path)
    else:
        content[content.index(b"_ZN") if damage == "a flipped name" else -100] ^= 1
        path.write_bytes({"cut": content[:-1000], "empty": b""}.get(damage, content))
    assert [answer(package), answer(package)] == ["2 compiled\n", "2 kept\n"]


@pytest.mark.exhaustive
def test_a_loop_that_cant_be_saved_is_run_all_the_same(package: Path) -> None:
    full = "import errno, pathlib\n"
    full += "def write(*_): raise OSError(errno.ENOSPC, 'no space')\npathlib.Path.write_bytes = write\n"
    assert answer(package, before=full) == "2 compiled\n"
    assert answer(package) == "2 compiled\n"
    assert answer(package) == "2 kept\n"


@pytest.mark.exhaustive
def test_another_processor_version_or_setting_has_code_of_its_own(package: Path) -> None:
    assert answer(package) == "2 compiled\n"
    other = "from llvmlite import binding; binding.FeatureMap.flatten = lambda *_: ''\n"
    older = "import llvmlite; llvmlite.__version__ = '0.1'\n"
    for before, env in ((other, {}), (older, {}), ("", {"NUMBA_OPT": "1"})):
        assert answer(package, before=before, **env) == "2 compiled\n"
        assert answer(package, before=before, **env) == "2 kept\n"
    assert answer(package) == "2 kept\n"
    assert len(kept(package / "__pycache__")) == 4


@pytest.mark.exhaustive
def test_where_code_is_kept(package: Path, tmp_path: Path) -> None:
    """Beside the source; else in the user's cache; or where the user says. Kept code is found where it can't be written."""
    chosen, users = tmp_path / "chosen", tmp_path / "users"
    closed = "import os\nmay = os.access\nos.access = lambda path, mode: 'kernels' not in str(path) and may(path, mode)\n"
    assert answer(package, NUMBA_CACHE_DIR=str(chosen)) == "2 compiled\n"
    assert answer(package, NUMBA_CACHE_DIR=str(chosen)) == "2 kept\n"
    assert len(kept(chosen)) == 1
    for said in ("2 compiled\n", "2 kept\n"):
        assert answer(package, before=closed, XDG_CACHE_HOME=str(users)) == said
    assert len(kept(users / "paddle_merge")) == 1
    homeless = closed + "os.path.expanduser = lambda path: path\n"
    assert answer(package, before=homeless, XDG_CACHE_HOME="") == "2 compiled\n"
    assert not (package.parent / "~").exists()
    nowhere = "import os\nos.access = lambda path, mode: False\n"
    assert answer(package, before=nowhere) == "2 compiled\n"
    assert answer(package) == "2 compiled\n"
    assert answer(package, before=nowhere) == "2 kept\n"


@pytest.mark.exhaustive
def test_where_the_source_cant_be_read_nothing_is_kept(package: Path, tmp_path: Path) -> None:
    """Loops in a zip file, whose changes nothing would notice."""
    shutil.make_archive(str(tmp_path / "zipped"), "zip", package.parent, "kernels")
    before = f"import sys; sys.path.insert(0, {str(tmp_path / 'zipped.zip')!r})\n"
    for _ in range(2):
        assert answer(package, before=before, NUMBA_CACHE_DIR=str(tmp_path / "kept")) == "2 compiled\n"
    assert not (tmp_path / "kept").exists()


# --- how it is run ---------------------------------------------------------------------------------------------------


@pytest.fixture
def unkept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Loops of this file are compiled anew: what is kept of loops outside their package doesn't notice that they change."""
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path))


@jit
def total(x, scale, skip):
    found, count = 0.0, 0
    for i in range(x.shape[0]):
        if not (skip and x[i] < 0):
            found += x[i] * scale
            count += 1
    return found, count, found > 0


ARRAYS = {
    "float32": np.array([1, -2, 4], np.float32),
    "float64": np.array([1, -2, 4], np.float64),
    "int16": np.array([1, -2, 4], np.int16),
    "strided": np.array([1, 0, -2, 0, 4], np.float32)[::2],
    "a column": np.array([[1, 0], [-2, 0], [4, 0]], np.float32)[:, 0],
    "backwards": np.array([4, -2, 1], np.float32)[::-1],
    "read-only": np.frombuffer(np.array([1, -2, 4], np.float32).tobytes(), np.float32),
    "unaligned": np.frombuffer(b"x" + np.array([1, -2, 4], np.float32).tobytes(), np.float32, offset=1),
    "of a class": np.array([1, -2, 4], np.float32).view(np.recarray),
}


@pytest.mark.usefixtures("unkept")
@pytest.mark.parametrize("kind", ARRAYS)
@pytest.mark.parametrize("scale", [2, 0.5, np.float32(0.5)], ids=["int", "float", "float32"])
def test_arguments_and_results(kind: str, scale: float) -> None:
    """1 - 2 + 4 = 3 times the scale; without the negative number 5 times."""
    x = ARRAYS[kind]
    assert total(x, scale, False) == (3 * float(scale), 3, True)
    assert total(x, scale, True) == (5 * float(scale), 2, True)
    assert total(x[:0], scale, True) == (0.0, 0, False)


@pytest.mark.usefixtures("unkept")
def test_arrays_of_another_byte_order_are_no_arrays_of_this_one() -> None:
    x = np.array([1, -2, 4], np.float32)
    assert total(x, 1, False) == (3.0, 3, True)
    with pytest.raises(Exception, match="Unsupported array dtype: >f4"):
        total(x.astype(">f4"), 1, False)


@pytest.mark.usefixtures("unkept")
def test_tuples_are_told_apart_by_what_they_hold() -> None:
    @jit
    def first(rows, out):
        for i in range(out.size):
            out[i] = rows[0][i] + rows[len(rows) - 1][i]

    out, small, large = np.zeros(2), np.array([1, 2], np.float32), np.array([0.1, 0.2])
    for rows in ((small, small), (large, large), (small, small, small)):
        first(rows, out)
        assert out.tolist() == (2 * rows[0]).tolist()


def made(step: int, inner: compiling.Loop) -> compiling.Loop:
    def loop(x):
        for i in range(x.size):
            x[i] = inner(x[i]) + step

    return jit(loop, f"adds_{step}")


@pytest.mark.usefixtures("unkept")
def test_loops_that_a_function_makes_are_told_apart_by_name() -> None:
    @jit
    def double(x):
        return x + x

    for step in (1, 10):
        for _ in range(2):  # compiled, and as it is kept
            x = np.array([1.0, 2.0])
            made(step, double)(x)
            assert x.tolist() == [2.0 + step, 4.0 + step]


@pytest.mark.usefixtures("unkept")
@pytest.mark.parametrize("alone_first", [True, False])
def test_a_loop_is_called_by_python_and_by_loops(alone_first: bool) -> None:
    """It is compiled for each, for other loops without what only Python calls."""

    @jit
    def halve(x):
        return x / 2

    adding = made(1, halve)
    for alone in (alone_first, not alone_first):
        if alone:
            assert halve(3.0) == 1.5
        else:
            x = np.array([1.0, 3.0])
            adding(x)
            assert x.tolist() == [1.5, 2.5]


def test_the_code_of_a_loop_has_its_name() -> None:
    """Numba counts the functions that a process compiles: without it, code of several processes would have the same name."""

    @jit
    def double(x):
        return x + x

    assert "adds_1" in made(1, double)._compiled((np.zeros(1),)).wrapper


SAME_NAMES = """
import sys
import numpy as np
from paddle_merge.backends.kernels.compiling import jit
def made(step):
    @jit
    def inner(x, y):  # which is too long to become part of what calls it
        for k in range(10):
            for i in range(x.size):
                if x[i] > 100:
                    y[i] += 1
                x[i] = (x[i] + step) / 2
                if x[i] == 3:
                    y[i] -= 10
            for i in range(1, x.size):
                x[i] = max(x[i - 1], x[i]) * 1.5
                while y[i] > 10:
                    y[i] /= 2
    def loop(x):
        y = x.copy()
        inner(x, y)
        inner(y, x)
        inner(x, y)
    return jit(loop, f"adds_{step}")
for step in map(int, sys.argv[1:]):
    x = np.array([1.0, 2.0])
    made(step)(x)
    print(x.tolist())
"""


@pytest.mark.exhaustive
def test_loops_of_several_processes_do_not_call_functions_of_each_other(tmp_path: Path) -> None:
    """Each numbers its functions from 1, so those of two loops have the same names."""

    def results(*steps: str) -> list[str]:
        command = [sys.executable, "-c", SAME_NAMES, *steps]
        done = subprocess.run(command, check=True, capture_output=True, text=True, env=env)
        return done.stdout.splitlines()

    env = os.environ | {"NUMBA_CACHE_DIR": str(tmp_path)}
    (one,), (ten,) = results("1"), results("10")
    assert one != ten
    assert [results("1", "10"), results("10", "1")] == [[one, ten], [ten, one]]


@pytest.mark.usefixtures("unkept")
@pytest.mark.parametrize(
    "argument",
    [1 << 63, -(1 << 63) - 1, [1.0], "1", np.timedelta64(1, "s"), np.zeros(1, [("a", "f4")]), (1.0, "1"), 1j],
    ids=str,
)
def test_what_words_for_types_do_not_tell_apart_is_refused(argument: object) -> None:
    """Code that is kept for one of them would be run with another."""

    @jit
    def nothing(x):
        return 0

    error = (OverflowError, "doesn't fit into 64 bits") if isinstance(argument, int) else (TypeError, "loops take arrays")
    with pytest.raises(error[0], match=error[1]):
        nothing(argument)
    assert nothing(-1) == nothing(None) == nothing(np.float32(1)) == nothing((1 << 63) - 1) == nothing((np.zeros(1), 1)) == 0


@pytest.mark.usefixtures("unkept")
def test_a_loop_that_returns_an_array_is_refused() -> None:
    @jit
    def copy(x):
        return x.copy()

    with pytest.raises(TypeError, match="write to an array that it is given"):
        copy(np.zeros(3))


def test_where_numba_may_not_compile_it_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    import numba

    monkeypatch.setattr(numba.config, "DISABLE_JIT", True)
    with pytest.raises(ConfigError, match=r"^NUMBA_DISABLE_JIT is set, so that Numba compiles nothing; unset it$"):
        jit(lambda number: number + 1, "one_more")(1)


@pytest.mark.parametrize("symbol", ["__svml_gone", "gone"])
def test_code_that_needs_what_is_not_there_is_not_linked(symbol: str) -> None:
    """LLVM would end the process. Numba calls Intel's library, __svml_, where it is installed."""
    assert native.callable_of(kept_code.Code("wrapper", "environment", [symbol], b"")) is None


WITHOUT = """
import logging, sys, threading
import numpy as np
from paddle_merge.backends.kernels import mergers, native
said = []
handler = logging.Handler()
handler.emit = lambda record: said.append(record.getMessage())
logging.getLogger("paddle_merge").addHandler(handler)
logging.getLogger("paddle_merge").setLevel(logging.DEBUG)
{before}
found = []
def run():
    x = np.array([[1, -2], [4, 8]], np.float32)
    mergers.linear(x, np.array([0.5, 0.25], np.float32))
    found.append(x[0].tolist())
threads = [threading.Thread(target=run) for _ in range(8)]
[thread.start() for thread in threads]
[thread.join() for thread in threads]
assert found == [[1.5, 1.0]] * 8, found
print("numba" in sys.modules, any("loops are run by Numba" in line for line in said))
import numba
assert numba.njit(lambda x: x + 1)(np.arange(3)).tolist() == [1, 2, 3]
run()
assert found[-1] == [1.5, 1.0]
"""


@pytest.mark.exhaustive
@pytest.mark.parametrize(
    ("before", "imported"),
    [
        ("", False),
        ("native._MODULES = ('_helperlib', '_dynfunc', 'core.runtime.gone')", True),
        ("native._Linker._lacks = lambda *_: True", True),
        ("import numba", True),
    ],
    ids=["linked", "no module", "no symbol", "beside Numba"],
)
def test_where_it_cant_be_linked_numba_runs_it(before: str, imported: bool) -> None:
    """In several threads that need a loop at once; Numba may be imported before, or later."""
    code = WITHOUT.format(before=before)
    subprocess.run([sys.executable, "-c", code], check=True)  # compiles, where it isn't kept
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout == f"{imported} {imported and before != 'import numba'}\n"
