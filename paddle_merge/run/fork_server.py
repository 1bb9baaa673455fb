"""Start workers by forking one process, which has imported what all of them need.

Importing what computes (NumPy, LLVM's linker, the compiled loops) takes as long as a merge of a small model. So one process,
the fork server, imports it, and may begin before it is known what to merge; its forks, the workers, share its memory.

The fork server is started afresh, so workers inherit no state of the caller's script. When it forks, it has one thread and
no file open but the standard ones and its connection; a worker also has its own connection and the lock that it is to hold.
It imports no framework: a worker that computes with Paddle imports it itself.

Over its connection it first sends how its imports went: a number of bytes, and so many bytes of text if they failed. Then it
answers numbers: FORK, with a worker's connection and further files, by 0 or the errno of a fork that failed; the number of a
worker, from 0, by its exit status once it has ended. When the other end closes, it kills its workers and ends.
"""

from __future__ import annotations

import contextlib
import errno
import gc
import os
import signal
import socket
import struct
import subprocess
import sys
import traceback
from collections.abc import Iterator, Sequence
from multiprocessing.connection import Connection, Pipe
from typing import NoReturn

from ..errors import WorkError

FORK = -1
_NUMBER = struct.Struct("i")
_MOST_FILES = 8  # that a worker inherits
_BLAS_THREADS = "OPENBLAS_NUM_THREADS"
_ENDING_SECONDS = 5.0  # for the server to kill its workers and end; one that was stopped doesn't
_early = list["ForkServer"]()  # at most one, started before it is known whether it is needed


class ForkServer:
    """A process that forks workers. It and all its workers are in a session of their own: this process handles Ctrl-C.

    Raises OSError if it can't be started.
    """

    def __init__(self) -> None:
        self._socket, theirs = socket.socketpair()
        code = (
            "import signal, sys; signal.signal(signal.SIGINT, signal.SIG_DFL);"  # a signal sent to a worker ends it
            " signal.signal(signal.SIGCHLD, signal.SIG_DFL);"  # if it is ignored, nobody can ask how a worker ended
            f" sys.path[:] = {sys.path!r}; from paddle_merge.run.fork_server import main; main({theirs.fileno()})"
        )
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-c", code],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                start_new_session=True,
            )
        self._ready = False
        self._workers = list[Connection]()

    def fileno(self) -> int:
        """Return what becomes readable if the server ends, for multiprocessing.connection.wait."""
        return self._socket.fileno()

    def wait_until_ready(self) -> None:
        """Wait for its imports. Raises WorkError, saying why, if they fail or the server ends."""
        if self._ready:
            return
        if text := self._receive(self._number()):
            raise WorkError(f"can't start workers: {text.decode(errors='replace')}")
        self._ready = True

    def fork(self, inherited: Sequence[int]) -> Connection:
        """Start a worker (worker.main), which also holds the files `inherited`. Raises OSError; WorkError as `status`."""
        self.wait_until_ready()
        ours, theirs = Pipe()
        try:
            with theirs, self._talking():
                socket.send_fds(self._socket, [_NUMBER.pack(FORK)], [theirs.fileno(), *inherited])
                reason = self._number()
            if reason:
                raise OSError(reason, os.strerror(reason))
        except BaseException:
            ours.close()
            raise
        self._workers.append(ours)
        return ours

    def status(self, worker: Connection) -> int:
        """Wait for a worker to end; return its exit status as subprocess does. Raises WorkError if the server has ended."""
        with self._talking():
            self._socket.sendall(_NUMBER.pack(self._workers.index(worker)))
        return self._number()

    def ended(self) -> WorkError:
        """Return how the server ended, as the error that it is. Waits for that."""
        return WorkError(f"the process that starts workers {how_ended(self._process.wait())}")

    def close(self) -> None:
        """Kill the workers and the server, and wait until they have ended."""
        if not self._ends():
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        for worker in self._workers:
            worker.close()
        self._socket.close()

    def _ends(self) -> bool:
        """Have the server end in good order, which leaves no worker to whoever looks after orphans. Returns if it does."""
        try:
            self._socket.shutdown(socket.SHUT_WR)
            self._socket.settimeout(_ENDING_SECONDS)
            while self._ready and self._socket.recv(_NUMBER.size):
                pass
        except OSError:
            return False
        return self._ready

    def _number(self) -> int:
        return int(_NUMBER.unpack(self._receive(_NUMBER.size))[0])

    def _receive(self, size: int) -> bytes:
        """Return so many bytes that the server sends. Raises WorkError if it ends before."""
        with self._talking():
            received = self._socket.recv(size, socket.MSG_WAITALL) if size else b""
        if len(received) < size:
            raise self.ended()
        return received

    @contextlib.contextmanager
    def _talking(self) -> Iterator[None]:
        try:
            yield
        except (BrokenPipeError, ConnectionResetError):
            raise self.ended() from None


def how_ended(code: int) -> str:
    """Return how a process ended. code: its exit status, as subprocess has it."""
    if code >= 0:
        return f"ended unexpectedly with exit status {code}"
    memory = " (the machine may be out of memory: try a smaller --n_process)" if code == -signal.SIGKILL else ""
    return f"was killed by {signal.Signals(-code).name}{memory}"


@contextlib.contextmanager
def started_early() -> Iterator[None]:
    """Start a fork server, which imports while this process finds out what to merge, for `fork_server` to return."""
    with contextlib.suppress(OSError):  # then it is started when it is needed, and the error is told
        _early.append(ForkServer())
    try:
        yield
    finally:
        while _early:
            _early.pop().close()


@contextlib.contextmanager
def one_blas_thread() -> Iterator[None]:
    """Have NumPy, if it is imported within this context, start no threads of OpenBLAS: starting them takes 0.05 s."""
    given = os.environ.get(_BLAS_THREADS)
    os.environ[_BLAS_THREADS] = "1"
    try:
        yield
    finally:
        del os.environ[_BLAS_THREADS]
        if given is not None:
            os.environ[_BLAS_THREADS] = given


def has_loops() -> bool:
    """Return whether this process has the compiled loops, so that it merges a small model before a fork server is ready."""
    return "paddle_merge.backends.np_backend" in sys.modules


def is_waiting() -> bool:
    """Return whether a fork server was started early and is not in use."""
    return bool(_early)


def fork_server() -> ForkServer:
    """Return the fork server that was started early, or a new one. The caller closes it. Raises OSError."""
    with contextlib.suppress(IndexError):
        return _early.pop()
    return ForkServer()


# --- the server's side -----------------------------------------------------------------------------------------------


def main(connection: int) -> NoReturn:
    """Run as the fork server until the parent's end closes. connection: the file descriptor of this end."""
    control, workers = socket.socket(fileno=connection), list[int]()  # process ids; 0 once the end of it was told
    try:
        failed = _import()
        control.sendall(_NUMBER.pack(len(failed)) + failed)
        while not failed:
            content, files, _, _ = socket.recv_fds(control, _NUMBER.size, _MOST_FILES)
            if not content:
                break
            (number,) = _NUMBER.unpack(content)
            answer = _fork(control, files, workers) if number == FORK else _status(workers, number)
            control.sendall(_NUMBER.pack(answer))
    except OSError:
        pass  # the parent has ended
    left = [pid for pid in workers if pid]
    for pid in left:  # nobody would finish what they do
        os.kill(pid, signal.SIGKILL)
    for pid in left:
        os.waitpid(pid, 0)
    os._exit(0)


def _import() -> bytes:
    """Import what workers need, and run the loops that every merge runs, so that they are linked here.

    Returns a sentence on what went wrong, or nothing.
    """
    gc.disable()  # nothing of what is made here is garbage
    try:
        with one_blas_thread():  # no other thread may be there when a worker is forked
            import numpy as np

        from ..scipy_hiding import hide_scipy

        hide_scipy()
        from ..backends.np_backend import NumpyBackend
        from ..dtypes import BFLOAT16
        from . import worker_process  # noqa: F401 - for its forks to find it imported

        backend, raw = NumpyBackend("float32"), np.zeros(1024, BFLOAT16.raw)
        x, base, _ = backend.load([raw, raw], [BFLOAT16] * 2, based=True)
        backend.store(backend.add_scaled(base, x[0], 1.0), BFLOAT16)
    except BaseException as error:  # whatever it is, the merge says it in one sentence
        return f"{type(error).__name__}: {' '.join(str(error).split())}".encode()
    gc.freeze()  # a search for garbage would write to the pages that workers share
    gc.enable()
    return b""


def _fork(control: socket.socket, files: Sequence[int], workers: list[int]) -> int:
    """Fork a worker, which talks over the first of the files and holds the others. Returns 0, or an errno."""
    reason = 0 if files else errno.EMFILE  # no more could be opened here
    if not reason:
        try:
            pid = os.fork()
        except OSError as error:
            reason = error.errno or errno.EAGAIN
        else:
            if pid == 0:
                control.close()
                _work(files[0])
            workers.append(pid)
    for file in files:
        os.close(file)
    return reason


def _work(file: int) -> NoReturn:
    """Be a worker, and end without what Python does at the end, which is the server's to do."""
    status, connection = 1, Connection(file)
    try:
        from .worker_process import main

        main(connection)
        status = 0
    except BaseException as error:
        with contextlib.suppress(OSError):
            sentence = f"a worker failed ({type(error).__name__}: {' '.join(str(error).split())})"
            connection.send(("error", sentence, traceback.format_exc()))
    finally:
        with contextlib.suppress(OSError, ValueError):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(status)


def _status(workers: list[int], number: int) -> int:
    """Wait for a worker to end and return its exit status, as subprocess does."""
    pid, workers[number] = workers[number], 0
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
