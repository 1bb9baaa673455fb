"""The flags of `push`, with defaults, help texts and checks."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass

from ...errors import ConfigError
from ...parsing import shown
from ...recipe.fields import flag, to_types
from .. import common_flags
from ..flags import PROGRAM
from .hubs import HUBS

_WHERE, _WHAT = "Where to", "What"
_REPO = re.compile(r"\w[\w.-]*/\w[\w.-]*", re.ASCII)
_BRANCH = re.compile(r"\w[\w./-]*", re.ASCII)


@dataclass
class PushConfig:
    """The settings of an upload. folder: the checkpoint or adapter."""

    folder: str
    to: str | None = flag(_WHERE, "The hub.", choices=tuple(HUBS))
    repo: str | None = flag(_WHERE, "The repository: OWNER/NAME.")
    revision: str | None = flag(
        _WHERE,
        "The branch to commit to. Hugging Face creates one that doesn't exist; elsewhere it must be there.",
        shown="the main branch",
    )
    private: bool = flag(
        _WHERE, "Create a private repository, and push to no public one: the same as without --public.", False, shown=None
    )
    public: bool = flag(_WHERE, "Create a public repository, or push to one.", False, shown="private")
    exclude: list[str] | None = flag(
        _WHAT, "Leave out files and folders whose name or path matches one of these patterns: `--exclude '*.png' notes`."
    )
    message: str | None = flag(_WHAT, "The message of the commit.", shown="Upload NAME with paddle_merge")
    dry_run: bool = flag(common_flags.RUNNING, "Check the folder, show what would be uploaded, and stop.", False)

    def __post_init__(self) -> None:
        """Convert the fields to their types. Raises ConfigError."""
        to_types(self)
        self.folder = os.path.expanduser(self.folder)

    def check(self) -> None:
        """Raise ConfigError listing everything that is wrong, as far as no file has to be opened."""
        found = common_flags.problems(self)
        if not self.folder:
            found.append(f"give the folder: {PROGRAM} push FOLDER --to huggingface --repo OWNER/NAME")
        elif not os.path.isdir(self.folder):
            found.append(f"{self.folder}: {'is no folder' if os.path.exists(self.folder) else 'no such folder'}")
        if self.to is None:
            found.append(f"--to is missing: {', '.join(HUBS)}")
        if self.repo is None:
            found.append("--repo is missing: OWNER/NAME, the owner being your account or an organisation")
        elif not _REPO.fullmatch(self.repo):
            found.append(f"--repo {shown(self.repo)} must be OWNER/NAME, of letters, digits, _, - and .")
        if self.revision is not None and not _BRANCH.fullmatch(self.revision):
            found.append(f"--revision {shown(self.revision)} is no name of a branch")
        if self.private and self.public:
            found.append("--private and --public can't be used together")
        if found:
            raise ConfigError(found)
