"""Test `push` with the real libraries of all hubs, as PaddleFormers installs them, and servers on this machine.

What isn't covered: the upload of files of more than 5 GB to AI Studio, which goes in parts to a cloud's own storage (with
credentials that the server sends), and the adaptive batches of ModelScope's library for thousands of files.

test_loaders.py says what the variable PADDLE_MERGE_PADDLEFORMERS_PYTHON is for.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from tests.support.aistudio_server import AIStudioServer
from tests.support.checkpoints import write
from tests.support.hub_server import TOKEN, HubServer
from tests.support.huggingface_server import HuggingFaceServer, environment
from tests.support.libraries import VARIABLES
from tests.support.modelscope_server import ModelScopeServer

PYTHON = os.environ.get(VARIABLES["paddleformers"], "")
pytestmark = [
    pytest.mark.loaders,
    pytest.mark.skipif(not PYTHON, reason=f"{VARIABLES['paddleformers']} names no interpreter"),
]
ROOT = Path(__file__).parents[2]
SERVERS: dict[str, type[HubServer]] = {
    "huggingface": HuggingFaceServer,
    "aistudio": AIStudioServer,
    "modelscope": ModelScopeServer,
}
MAIN = {"huggingface": "main", "aistudio": "master", "modelscope": "master"}
X = {name: np.arange(400.0) + place for place, name in enumerate("abcd")}
WEIGHTS = [f"model-0000{n}-of-00004.safetensors" for n in range(1, 5)]
FILES = {"1_Pooling/config.json", "README.md", "a[1].txt", "config.json", *WEIGHTS, "model.safetensors.index.json"}
Pushed = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(params=SERVERS)
def hub(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def server(hub: str) -> Iterator[HubServer]:
    with SERVERS[hub]() as made:
        yield made


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = write(tmp_path / "model", X, shards=4, config={"model_type": "llama"})
    (made / "README.md").write_text("---\nlicense: mit\n---\n# A model\n")
    (made / "1_Pooling").mkdir()
    for name in ("1_Pooling/config.json", "a[1].txt"):
        (made / name).write_text("{}")
    return made


def held_by(folder: Path) -> set[str]:
    """Return the names of all files in a folder."""
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def variables(hub: str, server: HubServer, tmp_path: Path) -> dict[str, str]:
    """The environment of a user who is logged in by a variable, and whose home is empty."""
    mine = {
        "huggingface": environment(server.address, tmp_path / "home" / "hf", TOKEN),
        "aistudio": {
            "STUDIO_MODEL_API_URL_PREFIX": server.address,
            "STUDIO_GIT_HOST": server.address,
            "AISTUDIO_ACCESS_TOKEN": TOKEN,
        },
        "modelscope": {"MODELSCOPE_ENDPOINT": server.address, "MODELSCOPE_API_TOKEN": TOKEN},
    }
    (tmp_path / "home").mkdir()
    return {**os.environ, "PYTHONPATH": str(ROOT), "HOME": str(tmp_path / "home"), **mine[hub]}


@pytest.fixture
def push(hub: str, folder: Path, variables: dict[str, str]) -> Pushed:
    def run(*words: str) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(_command(hub, folder, *words), env=variables, capture_output=True, text=True, timeout=120)
        assert TOKEN not in done.stdout + done.stderr
        assert "Traceback" not in done.stderr
        return done

    return run


def _command(hub: str, folder: Path, *words: str) -> list[str]:
    return [PYTHON, "-m", "paddle_merge", "push", str(folder), "--to", hub, "--repo", "me/x", "--verbose", *words]


def contents(server: HubServer, branch: str) -> dict[str, bytes]:
    """Return the files of a branch; the large ones from the store, where the repository has pointers of Git LFS."""
    files = server.repositories["me/x"].branches[branch]
    prefix = b"version https://git-lfs"
    return {
        name: server.stored[content.split()[3].decode().removeprefix("sha256:")] if content.startswith(prefix) else content
        for name, content in files.items()
    }


def test_a_push_and_another(hub: str, server: HubServer, push: Pushed, folder: Path, tmp_path: Path) -> None:
    """Nothing is asked in a dry run. The repository is private, and large files are sent once; no token is in any file."""
    assert push("--dry_run").returncode == 0
    assert server.requests == []
    for _ in range(2):
        done = push()
        assert done.returncode == 0, done.stderr
    assert server.repositories["me/x"].private
    held = contents(server, MAIN[hub])
    assert {name: held[name] for name in FILES} == {name: (folder / name).read_bytes() for name in FILES}
    assert len(server.asked("PUT", "/store")) == 4
    assert held_by(folder) == FILES
    assert not any(TOKEN.encode() in path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())


@pytest.mark.parametrize("hub", ["aistudio", "modelscope"], indirect=True)
def test_the_licence_is_the_cards(server: HubServer, push: Pushed) -> None:
    """The libraries would say Apache-2.0."""
    push()
    created = [request.json for request in server.asked("POST", "/(models|add)$")]
    assert created[0].get("license", created[0].get("License")) == "mit"


def test_public(hub: str, server: HubServer, push: Pushed) -> None:
    """A repository that is public is only pushed to if that is asked for, where the library tells."""
    assert push("--public").returncode == 0
    assert not server.repositories["me/x"].private
    done = push()
    if hub == "aistudio":
        assert "me/x exists, and AI Studio's library doesn't tell whether it is public: see its page" in done.stderr
    else:
        assert done.returncode == 1
        assert "me/x exists and is public; give --public to push there" in done.stderr


def test_refusals(hub: str, server: HubServer, push: Pushed) -> None:
    push()
    server.may_write = False
    done = push("--message", "again")
    assert done.returncode == 1
    assert "doesn't let this token write to me/x (" in done.stderr
    server.may_write = True
    done = push("--revision", "none")
    if hub == "huggingface":
        assert done.returncode == 0
        assert contents(server, "none").keys() > FILES
    else:
        assert done.returncode == 1
        assert "has no me/x, or no such branch (" in done.stderr


@pytest.mark.parametrize("hub", ["aistudio"], indirect=True)
def test_a_file_that_gets_lost(server: HubServer, push: Pushed) -> None:
    """The library reports success."""
    assert isinstance(server, AIStudioServer)
    server.loses = {"config.json"}
    done = push()
    assert done.returncode == 1
    assert "after the upload config.json is not in the repository, or not as here" in done.stderr


def test_a_stopped_push_goes_on(hub: str, server: HubServer, push: Pushed, folder: Path, variables: dict[str, str]) -> None:
    """Of four large files two have arrived; the next push sends the others."""
    server.stop_after = 2
    with subprocess.Popen(_command(hub, folder), env=variables, stderr=subprocess.PIPE, stdout=subprocess.PIPE) as began:
        assert server.stopped.wait(60)
        while len(server.stored) < 2:
            time.sleep(0.01)
        began.send_signal(signal.SIGINT)
        _, err = began.communicate(timeout=20)
    assert began.returncode == 130
    assert err.decode().splitlines()[-1].startswith("interrupted: run the same command again; ")
    server.go_on()
    server.requests.clear()
    assert push().returncode == 0
    assert len(server.asked("PUT", "/store")) == 2
    assert contents(server, MAIN[hub]).keys() >= FILES
    assert held_by(folder) == FILES
