"""Push to ModelScope with modelscope_hub, which comes with modelscope 1.40 and newer.

The library's own record of an interrupted upload is not used: it lies in the user's folder, and takes what was committed to
one branch as present in all. Without it, files that the hub has stored aren't sent again either.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from .hub import RefusedError, State, Upload


class ModelScope:
    """ModelScope, or another server of its protocol, which MODELSCOPE_ENDPOINT names."""

    title = "ModelScope"
    library = "modelscope_hub"
    extra = "modelscope"
    login = "run `ms login`, or set MODELSCOPE_API_TOKEN"
    branch = "master"
    resumes = "large files that it has stored"

    def __init__(self) -> None:
        from modelscope_hub import HubApi, get_default_config

        self._api: Any = HubApi()
        self._config: Any = get_default_config()

    def token(self) -> str | None:
        """Return the token of MODELSCOPE_API_TOKEN, or of the last login."""
        return self._config.token or None

    def address(self, repo: str) -> str:
        """Return the address of a repository's page."""
        return f"{self._config.endpoint}/models/{repo}"

    def state(self, repo: str) -> State:
        """Ask whether a repository is there, and private. Whatever isn't surely private counts as public."""
        from modelscope_hub import NotExistError, Visibility

        try:
            info = self._api.get_repo(repo, "model")
        except NotExistError:
            return State.ABSENT
        return State.PRIVATE if info.visibility == Visibility.PRIVATE else State.PUBLIC

    def create(self, upload: Upload, private: bool) -> None:
        """Create the repository. Its licence would be Apache-2.0 if none were given."""
        visibility = "private" if private else "public"
        self._api.create_repo(upload.repo, "model", visibility=visibility, license=upload.license or "Other")

    def files(self, repo: str, branch: str | None) -> Mapping[str, int]:
        """Ask for the files of a branch."""
        from modelscope_hub import NotExistError

        try:
            return {file.path: file.size for file in self._api.list_repo_files(repo, "model", revision=branch)}
        except NotExistError:
            return {}

    def upload(self, upload: Upload) -> None:
        """Upload the files, which the library commits in as many parts as it likes; it adds which one to the message."""
        from modelscope_hub import StorageError

        said: list[str] = []
        try:
            self._api.upload_folder(
                upload.repo,
                "model",
                upload.folder,
                commit_message=upload.message,
                revision=upload.branch,
                allow_patterns=upload.patterns,
                use_cache=False,
                progress_callback=lambda event: said.append(event.get("error") or ""),
            )
        except StorageError as error:  # which only says how many files failed
            if why := next(filter(None, said), None):
                status = re.search(r"\[([45]\d\d)\]", why)
                raise RefusedError(why, int(status[1]) if status else None) from None
            raise error
