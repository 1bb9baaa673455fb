"""Upload a folder: check it, show it, create the repository if need be, upload, and say where it is."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import signal
import sys
from collections.abc import Iterator
from importlib import import_module
from typing import Any

from ...checkpoints.formats.folder import ENDINGS
from ...errors import HubError
from ...parsing import one_line, size_text, without_secrets
from ...scipy_hiding import show_scipy
from ...version import __version__
from ..tables import count, facts, table
from .checks import check
from .config import PushConfig
from .failures import explain
from .hubs import HUBS
from .hubs.hub import Hub, State, Upload
from .tree import Tree, list_tree

log = logging.getLogger("paddle_merge")


def push(config: PushConfig) -> None:
    """Upload config.folder, or with --dry_run show what would be uploaded. Raises CheckpointError, ConfigError, HubError."""
    assert config.to is not None
    assert config.repo is not None
    tree = list_tree(config.folder, config.exclude or ())
    check(tree, config.public)
    print("\n".join(_shown(tree)))
    try:
        hub, token = _open(config.to)
    except HubError as error:
        if not config.dry_run:
            raise
        log.warning("nothing could be uploaded: %s", error)
        return
    print("\n".join(facts(_where(config, hub, token), 0)), flush=True)
    if config.dry_run:
        return
    if token is None:
        raise HubError(f"there is no token for {hub.title}: {hub.login}")
    if not (token.isascii() and token.isprintable()):
        raise HubError(f"the token for {hub.title} has characters that no token has: {hub.login}")
    message = config.message or f"Upload {os.path.basename(os.path.abspath(config.folder))} with paddle_merge {__version__}"
    upload = Upload(config.folder, tree.files, config.repo, config.revision, message)
    with _stoppable(hub), _as_sentences(hub, upload.repo, token):
        state = _prepare(hub, upload, config.public)
        with _library(hub, token):
            hub.upload(upload)
    who = "" if state is State.UNKNOWN else f" ({state.value})"
    place = without_secrets(hub.address(upload.repo), token)
    print(f"pushed {count(len(tree.files), 'file')}, {size_text(tree.nbytes)}, to {place}{who}")


def _open(name: str) -> tuple[Hub, str | None]:
    """Return a hub, with its library imported, and its token. Raises HubError if the library can't be imported."""
    show_scipy()  # which a command may hide
    kind = getattr(import_module(f".hubs.{name}", __package__), HUBS[name])
    try:
        with _muted():
            hub: Hub = kind()
            return hub, hub.token()
    except Exception as error:  # a broken installation raises anything
        raise HubError(
            f"{kind.title} needs {kind.library}, which can't be used ({one_line(str(error))}): python -m pip install -U"
            f' "paddle_merge[{kind.extra}]"'
        ) from None


def _prepare(hub: Hub, upload: Upload, public: bool) -> State:
    """Create the repository if it isn't there, and return who may read it. Raises HubError if the public may, unasked."""
    created = False
    with _muted():
        state = hub.state(upload.repo)
        if state in (State.ABSENT, State.UNKNOWN):
            with contextlib.suppress(FileExistsError):  # only where the state is unknown
                hub.create(upload, private=not public)
                state, created = State.PUBLIC if public else State.PRIVATE, True
    if created:
        log.info("created the %s repository %s", state.value, upload.repo)
        return state
    if state is State.UNKNOWN:
        log.warning("%s exists, and %s's library doesn't tell whether it is public: see its page", upload.repo, hub.title)
    if state is State.PUBLIC and not public:
        raise HubError(
            f"{upload.repo} exists and is public; give --public to push there, make it private on its page, or name another"
            " --repo"
        )
    if state is State.PRIVATE and public:
        log.warning("%s exists and stays private: change that on its page", upload.repo)
    with _muted():
        there = hub.files(upload.repo, upload.branch)
    weights = [name for name in sorted(there or ()) if name.endswith((*ENDINGS, ".index.json"))]
    if older := [name for name in weights if name not in upload.files]:
        log.warning(
            "%s holds other weights, too, which loaders may take instead (%s): remove them on its page, or push to another"
            " --repo or --revision",
            upload.repo,
            ", ".join(older[:5]) + (" ..." if len(older) > 5 else ""),
        )
    return state


def _shown(tree: Tree) -> list[str]:
    """Return the lines about files that are uploaded, and those that are left out."""
    rows = [[one_line(name), size_text(nbytes)] for name, nbytes in tree.files.items()]
    total = [count(len(tree.files), "file"), size_text(tree.nbytes)]
    lines = table(["uploaded", "size"], [*rows, total])
    if tree.left_out:
        lines += ["", *table(["left out", "because"], [[name, why] for name, why in tree.left_out.items()], left=2)]
    return [*lines, ""]


def _where(config: PushConfig, hub: Hub, token: str | None) -> list[tuple[str, str]]:
    created = "public" if config.public else "private"
    branch = config.revision or hub.branch
    return [
        ("to", f"{hub.title}: {config.repo}, branch {branch}; {created} if it is created"),
        ("login", "a token was found" if token else f"none: {hub.login}"),
    ]


@contextlib.contextmanager
def _as_sentences(hub: Hub, repo: str, token: str | None) -> Iterator[None]:
    """Raise what the hub's library raises as a HubError of one sentence, without the token."""
    try:
        yield
    except (HubError, MemoryError):
        raise
    except Exception as error:  # of several HTTP libraries, and the hub's own
        raise HubError(explain(error, hub, repo, token)) from None


@contextlib.contextmanager
def _muted() -> Iterator[io.StringIO]:
    """Keep what a library prints and logs meanwhile from the terminal; the buffer has what it printed."""
    import warnings

    printed, disabled = io.StringIO(), logging.root.manager.disable
    logging.disable(max(disabled, logging.CRITICAL))
    try:
        with contextlib.redirect_stdout(printed), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield printed
    finally:
        logging.disable(disabled)


@contextlib.contextmanager
def _library(hub: Hub, token: str | None) -> Iterator[None]:
    """Log as debug messages what the library prints during an upload; drop what it writes to standard error, unless that is
    a terminal: progress bars."""
    with contextlib.ExitStack() as around:
        printed = around.enter_context(_muted())
        if not (sys.stderr.isatty() and log.isEnabledFor(logging.INFO)):
            around.enter_context(contextlib.redirect_stderr(io.StringIO()))
        try:
            yield
        finally:
            around.close()
            for line in printed.getvalue().splitlines():
                log.debug("%s: %s", hub.library, without_secrets(one_line(line), token))


@contextlib.contextmanager
def _stoppable(hub: Hub) -> Iterator[None]:
    """End the process at once on an interrupt: the libraries' threads would first finish the files that they are sending,
    and nothing of ours has to be undone."""

    def stop(*_: Any) -> None:
        os.write(2, f"interrupted: run the same command again; {hub.resumes} aren't sent again\n".encode())
        os._exit(130)

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
