"""Start workers by forking one process, which has imported what all of them need.

Importing Numba takes longer than a merge of a small model, and its code more memory than the merge. So one process, the
fork server, imports it, and may begin before it is known what to merge; its forks, the workers, share its memory.

The fork server is started afresh, so workers inherit no state of the caller's script. When it forks, it has one thread and
no file open but the standard ones and its connection; a worker also has its own connection and the lock that it is to hold.
It imports no framework: a worker that computes with Paddle imports it itself.
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

_NUMBER = struct.Struct("i")  # a message: to the server FORK, or the number of a worker that ended; from it an exit status
FORK = -1
NOT_FORKED = 1 << 16  # added to the errno of a fork that failed, where the exit status of a worker is asked for
MOST_FILES = 8  # that a worker inherits
_waiting: ForkServer | None = None  # started before it is known whether it is needed


class ForkServer:
    """A process that forks workers. It and all its workers are in a session of their own: this process handles Ctrl-C.

    Raises OSError if it can't be started.
    """

    def __init__(self) -> None:
        self._socket, theirs = socket.socketpair()
        code = (
            "import signal, sys; signal.signal(signal.SIGINT, signal.SIG_DFL);"  # a signal sent to a worker ends it
            f" sys.path[:] = {sys.path!r}; from paddle_merge.run.fork_server import main; main({theirs.fileno()})"
        )
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-c", code],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                start_new_session=True,
            )
        self._workers = list[Connection]()

    def fileno(self) -> int:
        """Return what becomes readable if the server ends, for multiprocessing.connection.wait."""
        return self._socket.fileno()

    def fork(self, inherited: Sequence[int]) -> Connection:
        """Start a worker (worker.main), which also holds the files `inherited`. Raises OSError."""
        ours, theirs = Pipe()
        with theirs:
            socket.send_fds(self._socket, [_NUMBER.pack(FORK)], [theirs.fileno(), *inherited])
        self._workers.append(ours)
        return ours

    def status(self, worker: Connection | None = None) -> int:
        """Wait for a worker, or the server, to end; return its exit status as subprocess does, or NOT_FORKED + an errno."""
        answer = b""
        if worker is not None:
            with contextlib.suppress(OSError):  # the server has ended
                self._socket.sendall(_NUMBER.pack(self._workers.index(worker)))
                answer = self._socket.recv(_NUMBER.size, socket.MSG_WAITALL)
        return int(_NUMBER.unpack(answer)[0]) if answer else self._process.wait()

    def close(self) -> None:
        """Kill the server and its workers, and wait until they have ended."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        for worker in self._workers:
            with contextlib.suppress(EOFError, OSError):
                while True:  # its end of the connection closes when the worker has ended
                    worker.recv_bytes()
            worker.close()
        self._socket.close()


@contextlib.contextmanager
def started_early() -> Iterator[None]:
    """Start a fork server, which imports Numba while this process finds out what to merge, for `fork_server` to return."""
    global _waiting
    with contextlib.suppress(OSError):  # then it is started when it is needed, and the error is told
        _waiting = ForkServer()
    try:
        yield
    finally:
        if _waiting is not None:
            _waiting.close()
            _waiting = None


def is_waiting() -> bool:
    """Return whether a fork server was started early and is not in use."""
    return _waiting is not None


def fork_server() -> ForkServer:
    """Return the fork server that was started early, or a new one. The caller closes it. Raises OSError."""
    global _waiting
    server, _waiting = _waiting or ForkServer(), None
    return server


# --- the server's side -----------------------------------------------------------------------------------------------


def main(connection: int) -> NoReturn:
    """Run as the fork server until the parent's end closes. connection: the file descriptor of this end."""
    control = socket.socket(fileno=connection)
    _import()
    workers = list[int]()  # process ids; below 0: minus the errno of a fork that failed
    while message := socket.recv_fds(control, _NUMBER.size, MOST_FILES):
        content, files, _, _ = message
        if not content:
            break
        (number,) = _NUMBER.unpack(content)
        if number == FORK:
            workers.append(_fork(control, files))
        else:
            control.sendall(_NUMBER.pack(_status(workers[number])))
    os.killpg(0, signal.SIGKILL)  # nobody would finish what the workers do
    os._exit(1)


def _import() -> None:
    """Import what workers need, and have Numba load its own parts, which it does when the first loop is called."""
    gc.disable()  # nothing of what is made here is garbage
    threads = os.environ.get("OPENBLAS_NUM_THREADS")
    os.environ["OPENBLAS_NUM_THREADS"] = "1"  # read when NumPy is imported: no thread may be there when a worker is forked
    from ..scipy_hiding import hide_scipy

    hide_scipy()
    import numpy as np

    from ..backends.np_backend import NumpyBackend
    from ..dtypes import BFLOAT16
    from . import worker  # noqa: F401

    backend, raw = NumpyBackend("float32"), np.zeros(1024, BFLOAT16.raw)
    x, base, _ = backend.load([raw, raw], [BFLOAT16] * 2, based=True)
    backend.store(backend.add_scaled(base, x[0], 1.0), BFLOAT16)

    del os.environ["OPENBLAS_NUM_THREADS"]
    if threads is not None:
        os.environ["OPENBLAS_NUM_THREADS"] = threads
    gc.freeze()  # a search for garbage would write to the pages that workers share
    gc.enable()


def _fork(control: socket.socket, files: Sequence[int]) -> int:
    """Fork a worker, which talks over the first of the files and holds the others; return its process id, or -errno."""
    try:
        pid = os.fork()
    except OSError as error:
        pid = -(error.errno or errno.EAGAIN)
    if pid == 0:
        control.close()
        _work(files[0])
    for file in files:
        os.close(file)
    return pid


def _work(connection: int) -> NoReturn:
    """Be a worker, and end without what Python does at the end, which is the server's to do."""
    status = 1
    try:
        from .worker import main

        main(connection)
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        with contextlib.suppress(OSError, ValueError):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(status)


def _status(pid: int) -> int:
    """Wait for a worker to end and return its exit status, as subprocess does; NOT_FORKED + errno if it never was."""
    return NOT_FORKED - pid if pid < 0 else os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
