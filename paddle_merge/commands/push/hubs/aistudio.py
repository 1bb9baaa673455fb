"""Push to AI Studio with aistudio-sdk.

Its functions report failures as text that they print, or as dictionaries that they return; upload_folder even returns
normally if no file arrived. So each file is looked up afterwards, by the name that git gives its content.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
from typing import Any

from .hub import RefusedError, State, Upload, git_names

_POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {size}"
_EXISTS = 10003  # the library's code for a repository that is there already


class AIStudio:
    """AI Studio, or other servers of its protocol, which STUDIO_MODEL_API_URL_PREFIX and STUDIO_GIT_HOST name."""

    title = "AI Studio"
    library = "aistudio_sdk"
    extra = "aistudio"
    login = "set AISTUDIO_ACCESS_TOKEN, or run `aistudio login`"
    branch = "master"
    resumes = "large files that it has stored"

    def __init__(self) -> None:
        from aistudio_sdk import config, hub
        from aistudio_sdk.requests.hub import request_aistudio_git_file_info

        if not hasattr(hub, "upload_folder"):
            raise ImportError("aistudio-sdk is older than 0.3, and uploads single files only")
        self._hub: Any = hub.Hub()  # puts the token of the last login into the environment
        self._look_up: Any = request_aistudio_git_file_info
        self._pages = os.environ.get("STUDIO_MODEL_API_URL_PREFIX", config.STUDIO_MODEL_API_URL_PREFIX_DEFAULT)
        self._git = os.environ.get("STUDIO_GIT_HOST", config.STUDIO_GIT_HOST_DEFAULT)

    def token(self) -> str | None:
        """Return the token of AISTUDIO_ACCESS_TOKEN, or of the last login."""
        return os.environ.get("AISTUDIO_ACCESS_TOKEN") or None

    def address(self, repo: str) -> str:
        """Return the address of the repository, with which git clones it."""
        return f"{self._git}/{repo}"

    def state(self, repo: str) -> State:
        """Return UNKNOWN: the library only finds out that a repository is there when it is to create it."""
        return State.UNKNOWN

    def create(self, upload: Upload, private: bool) -> None:
        """Create the repository, unless it is there already. Its licence would be Apache 2.0 if none were given.

        The library takes the token's owner as that of the repository; if the repository of this name belongs to another
        one, the upload fails.
        """
        name = upload.repo.partition("/")[2]
        license = upload.license or "other"
        try:
            said = self._hub.create_repo(repo_id=upload.repo, model_name=name, private=private, license=license)
        except (KeyError, TypeError):
            raise RefusedError("the library doesn't understand the server's answer") from None
        if said.get("error_code") == _EXISTS:
            raise FileExistsError(upload.repo)
        if "error_code" in said:
            raise RefusedError(str(said.get("error_msg")), said.get("biz_code"))
        if said.get("private") is not private:
            raise RefusedError(f"it made the repository {'private' if said.get('private') else 'public'} all the same")

    def files(self, repo: str, branch: str | None) -> None:
        """Return None: the library has no list of files."""

    def upload(self, upload: Upload) -> None:
        """Upload the files, then look up each of them."""
        branch = upload.branch or self.branch
        printed = io.StringIO()
        try:
            with contextlib.redirect_stdout(printed):
                self._hub.upload_folder(
                    upload.repo,
                    upload.folder,
                    commit_message=upload.message,
                    allow_patterns=upload.patterns,
                    revision=branch,
                )
        except ValueError as error:  # which doesn't say why
            found = self._find(upload, next(iter(upload.files)), branch)
            raise RefusedError(str(found.get("error_msg") or error), found.get("biz_code")) from None
        finally:
            print(printed.getvalue())
        absent = []
        for file, nbytes in upload.files.items():
            names = git_names(os.path.join(upload.folder, file), nbytes, _POINTER)
            if self._find(upload, file, branch).get("sha") not in names:
                absent.append(file)
        if absent:
            status = re.search(r"Commit part \d+ failed: (\d+)", printed.getvalue())
            raise RefusedError(
                f"after the upload {', '.join(absent)} is not in the repository, or not as here; --verbose shows what the"
                " library says",
                int(status[1]) if status else None,
            )

    def _find(self, upload: Upload, file: str, branch: str) -> Any:
        """Return what the hub says of a file: its name in git, "sha", or an error."""
        owner, _, name = upload.repo.partition("/")
        return self._look_up(self._git, owner, name, file, branch, self.token() or "")
