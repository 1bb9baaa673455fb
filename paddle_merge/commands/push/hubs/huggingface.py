"""Push to Hugging Face with huggingface_hub.

upload_folder, which all of its versions have, is content-addressed: what is stored at the hub already isn't sent again, nor
what an interrupted run has sent: whole files, or with Xet, parts of them. upload_large_folder keeps a journal in the user's
folder for that, takes no commit message, and version 2 has dropped it.
"""

from __future__ import annotations

from collections.abc import Mapping

from .hub import RefusedError, State, Upload


class HuggingFace:
    """Hugging Face, or another server of its protocol, which HF_ENDPOINT names."""

    title = "Hugging Face"
    library = "huggingface_hub"
    extra = "hub"
    login = "run `hf auth login`, or set HF_TOKEN"
    branch = "main"
    resumes = "files that it has stored"

    def __init__(self) -> None:
        from huggingface_hub import HfApi

        self._api = HfApi(library_name="paddle_merge")

    def token(self) -> str | None:
        """Return the token of HF_TOKEN, or of the last login."""
        from huggingface_hub import get_token

        return get_token()

    def address(self, repo: str) -> str:
        """Return the address of a repository's page."""
        return f"{self._api.endpoint}/{repo}"

    def state(self, repo: str) -> State:
        """Ask whether a repository is there, and private. It answers 401, and not 404, if it doesn't know the token."""
        from huggingface_hub.errors import RepositoryNotFoundError

        try:
            info = self._api.model_info(repo)
        except RepositoryNotFoundError as error:
            if error.response is not None and error.response.status_code == 404:
                return State.ABSENT
            raise
        return State.PRIVATE if info.private else State.PUBLIC

    def create(self, upload: Upload, private: bool) -> None:
        """Create the repository."""
        self._api.create_repo(upload.repo, private=private, repo_type="model")

    def files(self, repo: str, branch: str | None) -> Mapping[str, int]:
        """Ask for the files of a branch."""
        from huggingface_hub.errors import RevisionNotFoundError

        try:
            info = self._api.model_info(repo, revision=branch, files_metadata=True)
        except RevisionNotFoundError:
            return {}
        return {file.rfilename: file.size or 0 for file in info.siblings or ()}

    def upload(self, upload: Upload) -> None:
        """Upload the files in one commit, or, with Xet, if there are very many, in several; create the branch if need be."""
        if upload.branch not in (None, self.branch):
            self._api.create_branch(upload.repo, branch=str(upload.branch), exist_ok=True)
        self._api.upload_folder(
            repo_id=upload.repo,
            folder_path=upload.folder,
            revision=upload.branch,
            commit_message=upload.message,
            allow_patterns=upload.patterns,
        )
        # The hub leaves out, silently, what the repository's .gitignore names.
        there = self.files(upload.repo, upload.branch)
        if absent := [name for name, nbytes in upload.files.items() if there.get(name) != nbytes]:
            raise RefusedError(
                f"after the upload {', '.join(absent)} is not in the repository, as if its .gitignore named it"
            )
