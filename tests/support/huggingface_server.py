"""A server that speaks Hugging Face's protocol (without Xet) with the real huggingface_hub."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from paddle_merge.checkpoints.hub_licenses import LICENSES

from .hub_server import Answer, HubServer, Repository, Request

REPO = r"(?P<repo>[\w.-]+/[\w.-]+)"
LARGE = 1000  # bytes from which on a file is stored as a large one


class HuggingFaceServer(HubServer):
    """HF_ENDPOINT is its address. requests shows which files were asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.route("POST", "/api/repos/create", self._create)
        self.route("POST", "/api/validate-yaml", self._validate)
        self.route("GET", f"/api/models/{REPO}(/revision/(?P<revision>[^/]+))?", self._info)
        self.route("POST", f"/api/models/{REPO}/branch/(?P<branch>[^/]+)", self._branch)
        self.route("POST", f"/api/models/{REPO}/preupload/(?P<branch>[^/]+)", self._preupload)
        self.route("POST", rf"/{REPO}\.git/info/lfs/objects/batch", self._batch)
        self.route("POST", f"/api/models/{REPO}/commit/(?P<branch>[^/]+)", self._commit)
        for method in ("HEAD", "GET"):
            self.route(method, f"/{REPO}/resolve/(?P<revision>[^/]+)/(?P<file>.+)", self._resolve)

    def add(self, repo: str, files: dict[str, bytes], private: bool = False, branch: str = "main") -> None:
        """Put files into a repository, which is created if need be."""
        found = self.repositories.setdefault(repo, Repository(private, {"main": {".gitattributes": b""}}))
        found.branches.setdefault(branch, {}).update(files)

    def _validate(self, request: Request) -> Answer:
        """Answer which rules the metadata of a card breaks: those of the hub that concern what paddle_merge writes."""
        front = re.match(r"\s*---\r?\n([\S\s]*?)\r?\n---[ \t]*(?:\r?\n|$)", request.json["content"])
        found = yaml.safe_load(front[1]) if front else {}
        said = []
        for name in found.get("license", []) if isinstance(found.get("license"), list) else [found.get("license", "mit")]:
            if name not in LICENSES:
                said.append(f'"license" must be one of [{", ".join(sorted(LICENSES))}]')
        languages = found.get("language", [])
        for language in languages if isinstance(languages, list) else [languages]:
            if not re.fullmatch("[a-z]{2,3}|code|multilingual", str(language)):
                said.append(f'"language" must only contain lowercase characters: {language}')
        for model in found.get("model-index", []):
            for result in model["results"]:
                if not re.fullmatch(r"(?:[\w-]+/)?[\w.-]+", kind := result["dataset"]["type"]):
                    said.append(f'"model-index[0].results[0].dataset.type" with value "{kind}" fails to match the pattern')
        return Answer(400 if said else 200, {"errors": [{"message": one} for one in said], "warnings": []})

    def sha(self, files: dict[str, bytes]) -> str:
        """Return the name of a commit with these files."""
        return hashlib.sha1(repr(sorted(files.items())).encode()).hexdigest()

    def files_asked(self) -> list[str]:
        """Return the files that were downloaded, or looked for."""
        return sorted({request.path.split("/resolve/")[1].partition("/")[2] for request in self.asked("HEAD", "/resolve/")})

    def _refused(self, request: Request, repo: str, writes: bool) -> Answer | None:
        found = self.repositories.get(repo)
        if "authorization" in request.headers and not self.knows(request):
            return Answer(401, {"error": "Invalid credentials"}, {"X-Error-Message": "Invalid credentials in Authorization"})
        if found is None or (found.private and not self.knows(request)):
            unknown = 404 if self.knows(request) else 401
            return Answer(unknown, {"error": "Repository not found"}, {"X-Error-Code": "RepoNotFound"})
        if writes and not self.may_write:
            return Answer(403, {"error": "You don't have the rights"}, {"X-Error-Message": "You don't have the rights"})
        return None

    def _create(self, request: Request) -> Answer:
        asked = request.json
        name = f"{asked['organization']}/{asked['name']}"
        if not self.knows(request):
            return Answer(401, {"error": "Invalid username or password."})
        if not self.may_write:
            return Answer(403, {"error": "You don't have the rights to create a model under this namespace"})
        private = asked["visibility"] == "private" if "visibility" in asked else asked.get("private", False)
        self.add(name, {}, private)
        return Answer(200, {"url": f"{self.address}/{name}", "name": name, "id": "1"})

    def _at(self, repo: str, revision: str) -> dict[str, bytes] | None:
        """Return the files of a branch or commit."""
        branches = self.repositories[repo].branches
        return branches.get(revision) or next((one for one in branches.values() if self.sha(one) == revision), None)

    def _info(self, request: Request, repo: str, revision: str = "main") -> Answer:
        if refused := self._refused(request, repo, False):
            return refused
        files = self._at(repo, revision)
        if files is None:
            return Answer(404, {"error": "Invalid rev"}, {"X-Error-Code": "RevisionNotFound"})
        siblings: list[dict[str, Any]] = [{"rfilename": name} for name in files]
        if request.query.get("blobs"):
            siblings = [{"rfilename": name, "size": len(content), "blobId": "0"} for name, content in files.items()]
        private = self.repositories[repo].private
        return Answer(200, {"_id": "1", "id": repo, "private": private, "sha": self.sha(files), "siblings": siblings})

    def _branch(self, request: Request, repo: str, branch: str) -> Answer:
        if refused := self._refused(request, repo, True):
            return refused
        branches = self.repositories[repo].branches
        if branch in branches:
            return Answer(409, {"error": "Reference already exists"})
        branches[branch] = dict(branches["main"])
        return Answer(200, {})

    def _preupload(self, request: Request, repo: str, branch: str) -> Answer:
        if refused := self._refused(request, repo, True):
            return refused
        there = self._at(repo, branch) or {}
        ignored = there.get(".gitignore", b"").decode().split()
        files = [
            {
                "path": file["path"],
                "uploadMode": "lfs" if file["size"] >= LARGE else "regular",
                "shouldIgnore": file["path"] in ignored,
                "oid": self._oid(there[file["path"]]) if file["path"] in there else None,
            }
            for file in request.json["files"]
        ]
        return Answer(200, {"files": files})

    def _oid(self, content: bytes) -> str:
        """Return the name of a file's content: that of Git LFS, or of git."""
        if len(content) >= LARGE:
            return hashlib.sha256(content).hexdigest()
        return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()

    def _batch(self, request: Request, repo: str) -> Answer:
        return self._refused(request, repo, True) or Answer(
            200, {"transfer": "basic", "objects": self.batch(request.json["objects"])}
        )

    def _commit(self, request: Request, repo: str, branch: str) -> Answer:
        if refused := self._refused(request, repo, True):
            return refused
        files = self.repositories[repo].branches[branch]
        for line in map(json.loads, request.body.splitlines()):
            value = line["value"]
            if line["key"] == "header":
                self.repositories[repo].messages.append(value["summary"])
            elif line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.stored[value["oid"]]
        sha = self.sha(files)
        return Answer(
            200, {"success": True, "commitOid": sha, "commitUrl": f"{self.address}/{repo}/commit/{sha}", "hookOutput": ""}
        )

    def _resolve(self, request: Request, repo: str, revision: str, file: str) -> Answer:
        if refused := self._refused(request, repo, False):
            return refused
        files = self._at(repo, revision)
        if files is None:
            return Answer(404, {"error": "Invalid rev"}, {"X-Error-Code": "RevisionNotFound"})
        commit = {"X-Repo-Commit": self.sha(files)}
        if file not in files:
            return Answer(404, {"error": "Entry not found"}, {"X-Error-Code": "EntryNotFound", **commit})
        return Answer(200, files[file], {"ETag": f'"{hashlib.sha1(files[file]).hexdigest()}"', **commit})


def use(monkeypatch: pytest.MonkeyPatch, address: str, home: Path, token: str | None = None, offline: bool = False) -> None:
    """Make huggingface_hub, in this process, use the server, a cache and a login of its own. It has read the environment
    when it was imported, so that environment() would come too late."""
    from huggingface_hub import constants

    for name, value in {
        "ENDPOINT": address,
        "HUGGINGFACE_CO_URL_TEMPLATE": address + "/{repo_id}/resolve/{revision}/{filename}",
        "HF_HOME": str(home),
        "HF_HUB_CACHE": str(home / "hub"),
        "HF_TOKEN_PATH": str(home / "token"),
        "HF_HUB_DISABLE_XET": True,
        "HF_HUB_OFFLINE": offline,
    }.items():
        monkeypatch.setattr(constants, name, value, raising=False)  # older versions have no Xet
    for variable in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.delenv(variable, raising=False)
    if token is not None:
        monkeypatch.setenv("HF_TOKEN", token)


def environment(address: str, home: Path, token: str | None = None) -> dict[str, str]:
    """Return the variables with which another process uses the server."""
    given = {"HF_TOKEN": token} if token is not None else {}
    return {"HF_ENDPOINT": address, "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1", "HF_HUB_OFFLINE": "0", **given}
