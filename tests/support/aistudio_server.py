"""A server that speaks AI Studio's protocol, that of its pages and that of its git server, with the real aistudio-sdk."""

from __future__ import annotations

import base64
import hashlib
from typing import Any

from .hub_server import Answer, HubServer, Repository, Request

OWNER_AND_NAME = r"(?P<owner>[\w.-]+)/(?P<name>[\w.-]+)"
LARGE = (".safetensors", ".bin", ".pdparams")


class AIStudioServer(HubServer):
    """STUDIO_MODEL_API_URL_PREFIX and STUDIO_GIT_HOST are its address. owner: of the token, whose repositories are created.

    Large files are pointers of Git LFS in the repositories; large: their contents by path. loses: files whose contents don't
    arrive, although the server reports success.
    """

    owner = "me"

    def __init__(self) -> None:
        super().__init__()
        self.loses: set[str] = set()
        api = f"/api/v1/repos/{OWNER_AND_NAME}"
        self.route("POST", "/modelcenter/v2/models/sdk/add", self._create)
        self.route("GET", "/modelcenter/v2/models/getSuffixBlackList", lambda _: Answer(200, {"errorCode": 0, "result": []}))
        self.route("POST", "/modelcenter/v2/models/checkYaml", lambda _: Answer(200, {"errorCode": 0, "logId": "1"}))
        self.route("POST", f"{api}/preupload/(?P<branch>.+)", self._preupload)
        self.route("POST", rf"/{OWNER_AND_NAME}\.git/info/lfs/objects/batch", self._batch)
        self.route("GET", f"{api}/contents/(?P<file>.+)", self._file)
        self.route("POST", f"{api}/contents", self._commit)

    def _refused(self, request: Request, repo: str | None, branch: str | None = None) -> Answer | None:
        if not self.knows(request):
            return Answer(401, {"message": "user does not exist"})
        if repo is not None and repo not in self.repositories:
            return Answer(404, {"message": "no such repository"})
        if branch is not None and branch not in self.repositories[str(repo)].branches:
            return Answer(404, {"message": "no such branch"})
        return None if self.may_write else Answer(403, {"message": "user should have a permission to write to a branch"})

    def _create(self, request: Request) -> Answer:
        asked: dict[str, Any] = request.json
        name = f"{self.owner}/{asked['repoName']}"
        if not self.knows(request):
            return Answer(200, {"errorCode": 401, "errorMsg": "token invalid", "logId": "1"})
        if name in self.repositories:
            return Answer(200, {"errorCode": 5, "errorMsg": "repo already created", "logId": "1"})
        self.repositories[name] = Repository(asked["repoType"] == 0, {"master": {}})
        return Answer(200, {"errorCode": 0, "result": asked, "logId": "1"})

    def _preupload(self, request: Request, owner: str, name: str, branch: str) -> Answer:
        files = [{"path": file["path"], "lfs": file["path"].endswith(LARGE)} for file in request.json["files"]]
        return self._refused(request, f"{owner}/{name}", branch) or Answer(200, {"files": files})

    def _batch(self, request: Request, owner: str, name: str) -> Answer:
        return self._refused(request, f"{owner}/{name}") or Answer(200, {"objects": self.batch(request.json["objects"])})

    def _file(self, request: Request, owner: str, name: str, file: str) -> Answer:
        branch = request.query.get("ref", ["master"])[0]
        if refused := self._refused(request, f"{owner}/{name}", branch):
            return refused
        content = self.repositories[f"{owner}/{name}"].branches[branch].get(file)
        if content is None:
            return Answer(404, {"message": "object does not exist"})
        return Answer(200, {"path": file, "sha": hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()})

    def _commit(self, request: Request, owner: str, name: str) -> Answer:
        asked = request.json
        if refused := self._refused(request, f"{owner}/{name}", asked["branch"]):
            return refused
        found = self.repositories[f"{owner}/{name}"]
        found.messages.append(asked["message"])
        for file in asked["files"]:
            content = base64.b64decode(file["content"])
            if file["lfsPointer"]:
                assert content.split()[3].decode().removeprefix("sha256:") in self.stored
            if file["path"] not in self.loses:
                found.branches[asked["branch"]][file["path"]] = content
        return Answer(201, {"commit": {"sha": "1"}})
