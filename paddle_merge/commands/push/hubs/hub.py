"""What `push` needs of a hub's library."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from enum import Enum
from glob import escape
from typing import Protocol

from ....checkpoints.front_matter import read_card, read_keys
from ....plan.file_names import CARD
from ....records import record


class State(Enum):
    """What a hub says of a repository. UNKNOWN: it exists, and the library doesn't tell who may read it."""

    ABSENT = "absent"
    PRIVATE = "private"
    PUBLIC = "public"
    UNKNOWN = "unknown"


class RefusedError(Exception):
    """Report what a library says in another way than by an exception with its cause.

    status_code: the HTTP status of the server's answer; None if it isn't known.
    """

    def __init__(self, message: str, status_code: int | None = None):
        super().__init__(message)
        self.status_code = status_code


@record(frozen=True)
class Upload:
    """What is uploaded, and where to.

    folder: the local folder. files: paths in it, which are those in the repository, too -> bytes. repo: "owner/name".
    branch: None for the repository's main one. message: of the commit.
    """

    folder: str
    files: Mapping[str, int]
    repo: str
    branch: str | None
    message: str

    @property
    def patterns(self) -> list[str]:
        """The files as patterns, each of which matches that file only."""
        return [escape(file) for file in self.files]

    @property
    def license(self) -> str | None:
        """The licence that the model card states in its metadata, in the hub's words; None if it states none or several."""
        try:
            stated = read_keys(read_card(os.path.join(self.folder, CARD)), ("license",)).get("license")
        except (OSError, ValueError):
            return None
        return stated if isinstance(stated, str) and stated not in ("", "null", "~") else None


class Hub(Protocol):
    """A hub, as its library talks to it. Making one imports the library, which raises ImportError if it isn't installed.

    Methods raise whatever the library does; failures.explain makes a sentence of that. Tokens are the library's: from its
    login or its environment variable.
    """

    title: str  # for messages
    library: str  # the package that is imported
    extra: str  # the extra of setup.py that installs it
    login: str  # how to log in
    branch: str  # the main branch of a new repository
    resumes: str  # what a second run doesn't send again

    def token(self) -> str | None:
        """Return the token that the library will use: to tell whether there is one, and to keep it out of messages."""

    def address(self, repo: str) -> str:
        """Return the address of a repository's page."""

    def state(self, repo: str) -> State:
        """Ask the hub about a repository."""

    def create(self, upload: Upload, private: bool) -> None:
        """Create the repository."""

    def files(self, repo: str, branch: str | None) -> Mapping[str, int] | None:
        """Ask which files a branch of a repository has, and their bytes; none if there is no such branch. None if the
        library doesn't tell."""

    def upload(self, upload: Upload) -> None:
        """Upload the files into an existing repository, and commit them; show progress bars on standard error.

        When it returns, all files are in the repository.
        """


def git_names(path: str, nbytes: int, pointer: str) -> set[str]:
    """Return the names (SHA-1) that git gives a file's content and its LFS pointer.

    pointer: the pointer's text, with {sha256} and {size}.
    """
    sha256, blob = hashlib.sha256(), hashlib.sha1(b"blob %d\0" % nbytes)
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            sha256.update(block)
            blob.update(block)
    text = pointer.format(sha256=sha256.hexdigest(), size=nbytes).encode()
    return {blob.hexdigest(), hashlib.sha1(b"blob %d\0" % len(text) + text).hexdigest()}
