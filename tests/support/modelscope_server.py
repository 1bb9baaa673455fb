"""A server that speaks ModelScope's protocol with the real modelscope_hub."""

from __future__ import annotations

import base64

from .hub_server import Answer, HubServer, Repository, Request

REPO = r"(?P<repo>[\w.-]+/[\w.-]+)"


class ModelScopeServer(HubServer):
    """MODELSCOPE_ENDPOINT is its address. The library decides which files are large: weights are."""

    def __init__(self) -> None:
        super().__init__()
        self.route("GET", f"(/openapi/v1|/api/v1)/models/{REPO}", self._info)
        self.route("POST", "/api/v1/models", self._create)
        self.route("GET", f"/api/v1/models/{REPO}/repo/files", self._files)
        self.route("POST", f"/api/v1/repos/models/{REPO}/info/lfs/objects/batch", self._batch)
        self.route("POST", f"/api/v1/repos/models/{REPO}/commit/(?P<branch>.+)", self._commit)

    def _refused(self, request: Request, repo: str | None, writes: bool) -> Answer | None:
        if not self.knows(request):
            return Answer(401, {"Code": 10010205001, "Message": "token invalid", "Success": False})
        if repo is not None and repo not in self.repositories:
            return Answer(404, {"Code": 10010205002, "Message": f"model {repo} doesn't exist", "Success": False})
        if writes and not self.may_write:
            return Answer(403, {"Code": 10010205003, "Message": "no permission", "Success": False})
        return None

    def _info(self, request: Request, repo: str) -> Answer:
        if refused := self._refused(request, repo, False):
            return refused
        private = self.repositories[repo].private
        if request.path.startswith("/openapi"):
            return Answer(200, {"success": True, "data": {"id": repo, "private": private}})
        return Answer(200, {"Code": 200, "Data": {"Visibility": 1 if private else 5}, "Success": True})

    def _create(self, request: Request) -> Answer:
        if refused := self._refused(request, None, True):
            return refused
        asked = request.json
        name = f"{asked['Path']}/{asked['Name']}"
        if name in self.repositories:
            return Answer(400, {"Code": 10010205004, "Message": "already exists", "Success": False})
        self.repositories[name] = Repository(asked["Visibility"] == 1, {"master": {".gitattributes": b""}})
        return Answer(200, {"Code": 200, "Data": {"Name": asked["Name"]}, "Success": True})

    def _files(self, request: Request, repo: str) -> Answer:
        if refused := self._refused(request, repo, False):
            return refused
        files = self.repositories[repo].branches.get(request.query["Revision"][0])
        if files is None:
            return Answer(404, {"Code": 10010205005, "Message": "no such revision", "Success": False})
        listed = [{"Path": name, "Type": "blob", "Size": len(content)} for name, content in files.items()]
        return Answer(200, {"Code": 200, "Data": {"Files": listed}, "Success": True})

    def _batch(self, request: Request, repo: str) -> Answer:
        return self._refused(request, repo, True) or Answer(
            200, {"Code": 200, "Data": {"objects": self.batch(request.json["objects"])}, "Success": True}
        )

    def _commit(self, request: Request, repo: str, branch: str) -> Answer:
        if refused := self._refused(request, repo, True):
            return refused
        found = self.repositories[repo]
        if branch not in found.branches:
            return Answer(404, {"Code": 10010205005, "Message": f"branch {branch} doesn't exist", "Success": False})
        found.messages.append(request.json["commit_message"])
        for action in request.json["actions"]:
            large = action["type"] == "lfs"
            content = self.stored[action["sha256"]] if large else base64.b64decode(action["content"])
            found.branches[branch][action["path"]] = content
        return Answer(200, {"Code": 200, "Data": {"CommitId": "1"}, "Success": True})
