"""Test `push` with the real huggingface_hub and a server on this machine. tests/loaders/test_hubs.py has the other hubs."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from paddle_merge import MergeConfig, merge
from paddle_merge.commands.main import main
from paddle_merge.run.output.card_results import CardFile, CardResult
from tests.support.checkpoints import write
from tests.support.hub_server import TOKEN
from tests.support.huggingface_server import HuggingFaceServer, environment, use

ROOT = Path(__file__).parents[3]
X = {name: np.arange(400.0) + place for place, name in enumerate("abcd")}  # 1600 bytes each, so that they are large files
CARD = b"---\nlicense: mit\n---\n# A model\n"
Pushed = Callable[..., tuple[int, str, str]]


@pytest.fixture
def server() -> Iterator[HuggingFaceServer]:
    with HuggingFaceServer() as made:
        yield made


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, server: HuggingFaceServer, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkpoint of four shards, with what training leaves beside it; this process is logged in."""
    use(monkeypatch, server.address, tmp_path / "home", token=TOKEN)
    monkeypatch.chdir(tmp_path)
    made = write(tmp_path / "model", X, shards=4, config={"model_type": "llama"})
    (made / "README.md").write_bytes(CARD)
    (made / "1_Pooling").mkdir()
    for name in ("1_Pooling/config.json", "a[1].txt", "optimizer.pdopt"):
        (made / name).write_bytes(b"{}")
    return made


def held(folder: Path) -> list[str]:
    """Return the names of all files in a folder."""
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


WEIGHTS = [f"model-0000{n}-of-00004.safetensors" for n in range(1, 5)]
FILES = ["1_Pooling/config.json", "README.md", "a[1].txt", "config.json", *WEIGHTS, "model.safetensors.index.json"]


@pytest.fixture
def push(capsys: pytest.CaptureFixture[str]) -> Pushed:
    """Run the command in this process; return the exit status and what it printed."""

    def run(*words: str) -> tuple[int, str, str]:
        try:
            main(["push", "model", "--to", "huggingface", "--repo", "me/x", *words])
            code = 0
        except SystemExit as end:
            code = int(end.code or 0)
        printed = capsys.readouterr()
        assert TOKEN not in printed.out + printed.err
        return code, printed.out, printed.err

    return run


def test_a_new_repository_is_private(server: HuggingFaceServer, push: Pushed, folder: Path) -> None:
    code, out, err = push()
    assert (code, err) == (0, "created the private repository me/x\n")
    size = sum((folder / name).stat().st_size for name in FILES) / 1000
    assert out.endswith(f"pushed 9 files, {size:.3g} KB, to {server.address}/me/x (private)\n")
    (create,) = server.asked("POST", "/api/repos/create")
    assert create.json.get("visibility", "private" if create.json.get("private") else None) == "private"
    made = server.repositories["me/x"]
    assert made.private
    assert sorted(made.branches["main"]) == [".gitattributes", *FILES]
    assert all(made.branches["main"][name] == (folder / name).read_bytes() for name in FILES)
    assert made.messages[0].startswith("Upload model with paddle_merge ")
    assert all(f"Bearer {TOKEN}" == request.headers["authorization"] for request in server.asked("POST", "^/api/models"))
    assert not any("authorization" in request.headers for request in server.asked("PUT", "/store"))


def test_nothing_is_sent_twice(server: HuggingFaceServer, push: Pushed, folder: Path) -> None:
    """A second push sends only what has changed since; one without changes makes no commit."""
    push()
    sent = server.sent()
    assert push()[0] == 0
    assert (server.sent(), len(server.repositories["me/x"].messages)) == (sent, 1)
    changed = folder / "model-00002-of-00004.safetensors"
    changed.write_bytes(changed.read_bytes()[:-4] + b"\0\0\0\0")
    assert push("--message", "the second")[0] == 0
    assert server.sent() == sent + changed.stat().st_size
    assert server.repositories["me/x"].branches["main"][changed.name] == changed.read_bytes()
    assert server.repositories["me/x"].messages[1:] == ["the second"]


def test_a_dry_run_asks_nobody(server: HuggingFaceServer, push: Pushed) -> None:
    code, out, _ = push("--dry_run")
    assert code == 0
    size = sum((Path("model") / name).stat().st_size for name in FILES)
    lines = [line.split() for line in out.splitlines()]
    assert [line[0] for line in lines[1 : 1 + len(FILES)]] == FILES
    assert lines[1 + len(FILES)][:2] == ["9", "files"]
    assert f"{size / 1000:.3g}" == lines[1 + len(FILES)][2]
    assert ["optimizer.pdopt", "state", "of", "training"] in lines
    assert out.endswith("to     Hugging Face: me/x, branch main; private if it is created\nlogin  a token was found\n")
    assert server.requests == []


def test_without_a_login(server: HuggingFaceServer, push: Pushed, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_TOKEN")
    code, out, err = push("--dry_run", "--revision", "v2", "--public")
    assert (code, err) == (0, "")
    assert out.endswith(
        "to     Hugging Face: me/x, branch v2; public if it is created\nlogin  none: run `hf auth login`, or set HF_TOKEN\n"
    )
    code, _, err = push()
    assert (code, err) == (1, "error: there is no token for Hugging Face: run `hf auth login`, or set HF_TOKEN\n")
    assert server.requests == []


def test_a_token_with_other_letters(server: HuggingFaceServer, push: Pushed, monkeypatch: pytest.MonkeyPatch) -> None:
    """It could not be sent."""
    monkeypatch.setenv("HF_TOKEN", "hf_\u4ee4\u724c")
    refused = "error: the token for Hugging Face has characters that no token has: run `hf auth login`, or set HF_TOKEN\n"
    assert push()[::2] == (1, refused)
    assert server.requests == []


def test_a_public_repository_needs_the_flag(server: HuggingFaceServer, push: Pushed) -> None:
    server.add("me/x", {}, private=False)
    refused = "error: me/x exists and is public; give --public to push there, make it private on its page, or name another"
    for words in ([], ["--private"]):
        code, _, err = push(*words)
        assert (code, err) == (1, f"{refused} --repo\n")
    assert set(server.repositories["me/x"].branches["main"]) == {".gitattributes"}
    assert server.sent() == 0
    code, out, err = push("--public")
    assert (code, err) == (0, "")
    assert out.endswith("/me/x (public)\n")


def test_a_private_repository_stays_private(server: HuggingFaceServer, push: Pushed) -> None:
    server.add("me/x", {}, private=True)
    code, out, err = push("--public")
    assert (code, err) == (0, "warning: me/x exists and stays private: change that on its page\n")
    assert out.endswith("/me/x (private)\n")
    assert server.repositories["me/x"].private
    code, _, err = push("--repo", "me/y", "--public")
    assert (code, err) == (0, "created the public repository me/y\n")
    assert not server.repositories["me/y"].private


def test_a_branch(server: HuggingFaceServer, push: Pushed) -> None:
    server.add("me/x", {"model.safetensors": b"older", "notes.txt": b"stay"}, private=True)
    for _ in range(2):
        code, _, err = push("--revision", "v2", "--exclude", "README.md")
        assert code == 0
    assert "warning: me/x holds other weights, too, which loaders may take instead (model.safetensors): remove" in err
    branches = server.repositories["me/x"].branches
    assert set(branches["main"]) == {".gitattributes", "model.safetensors", "notes.txt"}
    assert set(branches["v2"]) == {*branches["main"], *FILES} - {"README.md"}


def test_files_that_the_hub_ignores(server: HuggingFaceServer, push: Pushed) -> None:
    """huggingface_hub reports success."""
    server.add("me/x", {".gitignore": b"config.json\n"}, private=True)
    code, _, err = push()
    assert code == 1
    assert "after the upload config.json is not in the repository, as if its .gitignore named it" in err


def test_a_card_of_a_merge_is_taken(server: HuggingFaceServer, push: Pushed, folder: Path, tmp_path: Path) -> None:
    """Whatever licences and languages its inputs state, and with scores."""
    for name, licence in {"a": "My License", "b": "My License"}.items():
        write(tmp_path / name, X)
        (tmp_path / name / "README.md").write_text(f"---\nlicense: {licence}\nlanguage: [zh-CN, EN]\n---\n")
    merge(MergeConfig(["a", "b"], output_path="merged"), progress=False)
    CardFile("merged").write(CardResult("lm_eval", "x.jsonl", "report", "| t |", {"acc": 0.5}))
    (folder / "README.md").write_bytes(Path("merged/README.md").read_bytes())
    code, _, err = push()
    assert (code, err) == (0, "created the private repository me/x\n")
    card = server.repositories["me/x"].branches["main"]["README.md"].decode()
    assert "license: other\nlicense_name: my-license\nlanguage:\n- zh\n- en\n" in card


def test_why_the_hub_refuses_a_card(push: Pushed, folder: Path) -> None:
    (folder / "README.md").write_text("---\nlanguage: EN\n---\n")
    code, _, err = push()
    assert code == 1
    assert "Hugging Face doesn't take me/x (Invalid metadata in README.md. " in err
    assert '"language" must only contain lowercase characters: EN' in err


def no_rights(server: HuggingFaceServer) -> None:
    server.may_write = False


def no_rights_there(server: HuggingFaceServer) -> None:
    server.add("me/x", {}, private=True)
    server.may_write = False


def fails(status: int) -> Callable[[HuggingFaceServer], None]:
    return lambda server: setattr(server, "fails", status)


@pytest.mark.parametrize(
    ("happens", "begin", "end"),
    [
        (no_rights, "Hugging Face doesn't let this token write to me/x (", "or set HF_TOKEN"),
        (no_rights_there, "Hugging Face doesn't let this token write to me/x (You don't have the rights", "or set HF_TOKEN"),
        (fails(401), "Hugging Face doesn't accept the token (", "; run `hf auth login`, or set HF_TOKEN"),
        (fails(418), "Hugging Face doesn't take me/x (", "it doesn't send again files that it has stored"),
    ],
)
def test_what_a_server_refuses(
    server: HuggingFaceServer,
    push: Pushed,
    folder: Path,
    happens: Callable[[HuggingFaceServer], None],
    begin: str,
    end: str,
) -> None:
    """One sentence; the server sends the token back, which isn't printed, also with --verbose."""
    happens(server)
    before = held(folder)
    code, _, err = push("--verbose")
    assert code == 1
    assert err.startswith(f"error: {begin}")
    assert err.endswith(f"{end}\n")
    assert err.count("\n") == 1
    assert held(folder) == before


def test_a_wrong_token(server: HuggingFaceServer, push: Pushed, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "another")
    code, _, err = push()
    assert code == 1
    assert err.startswith("error: Hugging Face doesn't accept the token (")


def test_no_network(push: Pushed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for offline, reason in ((False, "[Errno 111] Connection refused"), (True, "offline mode is enabled")):
        use(monkeypatch, "http://127.0.0.1:9", tmp_path / "home", token=TOKEN, offline=offline)
        code, _, err = push()
        assert code == 1
        assert err.startswith("error: Hugging Face can't be reached (")
        assert reason in err
        assert "; check the network, then run the same command again" in err


def test_a_library_that_is_not_installed(push: Pushed, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    sentence = (
        "Hugging Face needs huggingface_hub, which can't be used (import of huggingface_hub halted; None in sys.modules):"
        ' python -m pip install -U "paddle_merge[hub]"\n'
    )
    code, _, err = push()
    assert (code, err) == (1, f"error: {sentence}")
    code, out, err = push("--dry_run")
    assert (code, err) == (0, f"warning: nothing could be uploaded: {sentence}")
    assert "9 files" in out


def test_wrong_flags(capsys: pytest.CaptureFixture[str]) -> None:
    """All together; nothing is read."""
    with pytest.raises(SystemExit):
        main(["push", "nowhere", "--repo", "x", "--to", "hf", "--revision", "a b", "--private", "--public"])
    err = capsys.readouterr().err
    assert err.splitlines() == [
        "error: --to 'hf' must be one of huggingface, aistudio, modelscope",
        "error: nowhere: no such folder",
        "error: --repo 'x' must be OWNER/NAME, of letters, digits, _, - and .",
        "error: --revision 'a b' is no name of a branch",
        "error: --private and --public can't be used together",
    ]


def test_what_does_not_stand_is_not_pushed(server: HuggingFaceServer, push: Pushed, folder: Path) -> None:
    (folder / "model-00003-of-00004.safetensors").unlink()
    code, _, err = push()
    assert code == 1
    assert "model-00003-of-00004.safetensors" in err
    assert server.requests == []


@pytest.mark.exhaustive
@pytest.mark.parametrize("how", ["SIGINT", "SIGKILL"])
def test_a_stopped_push_goes_on(server: HuggingFaceServer, folder: Path, tmp_path: Path, how: str) -> None:
    """Of four large files, two arrive before the push is stopped; the next one sends the two others only, and no token
    gets into any file."""
    server.stop_after = 2
    command = [sys.executable, "-m", "paddle_merge", "push", "model", "--to", "huggingface", "--repo", "me/x", "--verbose"]
    variables = {**os.environ, "PYTHONPATH": str(ROOT), **environment(server.address, tmp_path / "home", TOKEN)}
    began = subprocess.Popen(command, env=variables, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert server.stopped.wait(60)
    while len(server.stored) < 2:
        time.sleep(0.01)
    began.send_signal(getattr(signal, how))
    out, err = began.communicate(timeout=20)
    if how == "SIGINT":
        assert began.returncode == 130
        assert err.endswith("interrupted: run the same command again; files that it has stored aren't sent again\n")
    assert server.repositories["me/x"].messages == []
    server.go_on()
    done = set(server.stored)
    server.requests.clear()
    again = subprocess.run(command, env=variables, capture_output=True, text=True, timeout=60)
    assert again.returncode == 0, again.stderr
    assert len(done) == 2
    sizes = [len(server.stored[oid]) for oid in server.stored if oid not in done]
    assert (len(server.asked("PUT", "/store")), server.sent()) == (2, sum(sizes))
    assert set(server.repositories["me/x"].branches["main"]) == {".gitattributes", *FILES}
    assert TOKEN not in out + err + again.stdout + again.stderr
    written = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert not any(TOKEN.encode() in path.read_bytes() for path in written)
    assert held(folder) == [*FILES, "optimizer.pdopt"]
