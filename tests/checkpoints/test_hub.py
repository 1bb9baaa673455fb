"""Test names of models on a hub, with fakes of the download functions of PaddleNLP 3.0.0b4 and PaddleFormers 1.2.0: their
parameters, their return values and exceptions, and their effect on the environment."""

from __future__ import annotations

import json
import logging
import os
import shutil
import subprocess
import sys
import types
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from paddle_merge import CheckpointError, ConfigError, MergeConfig, merge
from paddle_merge.checkpoints import hub, hub_libraries
from paddle_merge.checkpoints.adapters import open_adapter
from paddle_merge.checkpoints.open import open_checkpoint
from paddle_merge.commands.main import main
from tests.support.checkpoints import read, write

ROOT = Path(__file__).parents[2]
X = {"w": np.arange(12.0).reshape(3, 4), "v": np.arange(5.0)}


class ConnectError(Exception):
    """As httpx's, which derives from no built-in one."""


class Hub:
    """online: what a hub holds, one folder per model; None without a network. cache: of the library."""

    def __init__(self, online: Path | None, cache: Path):
        self.online, self.cache = online, cache
        self.asked: list[str] = []

    def find(self, name: str, file: str, fail: Callable[[], Exception]) -> str | None:
        """The file in the cache, downloaded if need be; None if the hub doesn't hold it."""
        self.asked.append(file)
        kept = self.cache / name / file
        if kept.exists():
            return str(kept)
        if self.online is None:
            raise fail()
        if not (self.online / name / file).exists():
            return None
        kept.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(self.online / name / file, kept)
        return str(kept)


def install(monkeypatch: pytest.MonkeyPatch, library: str, resolve: Callable[..., Any]) -> None:
    names = [library, f"{library}.utils", f"{library}.utils.download"]
    modules = [types.ModuleType(name) for name in names]
    modules[2].resolve_file_path = resolve  # type: ignore[attr-defined]
    for name, module in zip(names, modules, strict=True):
        monkeypatch.setitem(sys.modules, name, module)


def paddlenlp(monkeypatch: pytest.MonkeyPatch, made: Hub) -> None:
    def resolve_file_path(
        repo_id: Any = None,
        filenames: Any = None,
        subfolder: Any = None,
        repo_type: Any = None,
        revision: Any = None,
        library_name: Any = "PaddleNLP",
        library_version: Any = "3.3.1",
        cache_dir: Any = None,
        local_dir: Any = None,
        local_dir_use_symlinks: Any = "auto",
        user_agent: Any = None,
        force_download: bool = False,
        proxies: Any = None,
        etag_timeout: float = 10,
        resume_download: bool = False,
        token: Any = None,
        local_files_only: bool = False,
        endpoint: Any = None,
        url: Any = None,
        from_aistudio: bool = False,
        from_hf_hub: bool = False,
        from_bos: bool = True,
    ) -> Any:
        return made.find(repo_id, filenames, lambda: OSError(f"Can't load the model for '{repo_id}'.\n  If you were trying"))

    install(monkeypatch, "paddlenlp", resolve_file_path)


def paddleformers(monkeypatch: pytest.MonkeyPatch, made: Hub) -> None:
    def resolve_file_path(
        repo_id: Any = None,
        filenames: Any = None,
        subfolder: Any = None,
        repo_type: Any = None,
        revision: Any = None,
        library_version: Any = "3.3.1",
        cache_dir: Any = None,
        local_dir: Any = None,
        local_dir_use_symlinks: Any = "auto",
        user_agent: Any = None,
        force_download: bool = False,
        proxies: Any = None,
        etag_timeout: float = 10,
        resume_download: bool = False,
        token: Any = None,
        local_files_only: bool = False,
        endpoint: Any = None,
        download_hub: Any = None,
        force_return: bool = False,
    ) -> Any:
        logging.getLogger("PaddleFormers").warning("The repo id check failed")  # for every file
        warnings.warn("deprecated", stacklevel=1)
        kept = made.cache / repo_id / filenames
        if kept.parent.exists() and made.online is None:  # as $PF_HOME/<name>
            made.asked.append(filenames)
            if not kept.exists() and not force_return:
                raise FileNotFoundError(f"please make sure one of the {[filenames]} under the dir {kept.parent}")
            return str(kept) if kept.exists() else None
        os.environ["https_proxy"] = os.environ.get("HTTPS_PROXY", "")
        os.environ["http_proxy"] = os.environ.get("HTTP_PROXY", "")
        return made.find(repo_id, filenames, lambda: ConnectError("[Errno -2] Name or service not known"))

    install(monkeypatch, "paddleformers", resolve_file_path)


STANDINS = {"paddlenlp": paddlenlp, "paddleformers": paddleformers}
each = pytest.mark.parametrize("library", STANDINS)


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A working folder without the models; and no library, whatever is installed."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setattr(hub.importlib.util, "find_spec", lambda name: None)
    monkeypatch.delitem(sys.modules, "huggingface_hub", raising=False)


def model(folder: Path, factor: float = 1.0, **fields: Any) -> Path:
    write(folder, {name: x * factor for name, x in X.items()}, config={"name": folder.name}, **fields)
    for name in ("tokenizer.json", "tokenizer_config.json", "vocab.txt"):
        (folder / name).write_text("{}")
    return folder


@each
@pytest.mark.parametrize("shards", [1, 2])
def test_downloaded_and_merged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, library: str, shards: int) -> None:
    """Everything needed and nothing else; the record holds the names."""
    online = tmp_path / "online"
    for name, factor in (("org/one", 1.0), ("two", 3.0)):
        (model(online / name, factor, shards=shards) / "optimizer.safetensors").write_text("large")
    made = Hub(online, tmp_path / "cache")
    STANDINS[library](monkeypatch, made)
    local = model(tmp_path / "local", 5.0)
    merge(MergeConfig(model_path_list=["org/one", "two", str(local)], base_model_path="org/one", output_path="out"))
    assert read(Path("out"))["v"].tolist() == (X["v"] * 3).tolist()
    assert json.loads(Path("out/config.json").read_text())["name"] == "one"
    assert Path("out/tokenizer.json").exists()
    assert Path("out/vocab.txt").exists()
    assert not (tmp_path / "cache" / "two" / "optimizer.safetensors").exists()
    record = json.loads(Path("out/merge_config.json").read_text())
    assert record["model_path_list"] == ["org/one", "two", str(local)]
    assert record["base_model_path"] == "org/one"
    made.online = None  # and again, without a network
    with pytest.raises(SystemExit) as exit:
        main(["out/merge_config.json", "--output_path", "again"])
    assert not exit.value.code
    assert Path("again/model.safetensors").read_bytes() == Path("out/model.safetensors").read_bytes()


@each
def test_a_model_in_the_cache_needs_no_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, library: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Paddle's files and a config: other names were asked for first, and the tokenizer isn't there."""
    import pickle

    folder = tmp_path / "cache" / "org" / "one"
    folder.mkdir(parents=True)
    (folder / "model_state.pdparams").write_bytes(pickle.dumps(X, protocol=4))
    (folder / "config.json").write_text("{}")
    STANDINS[library](monkeypatch, Hub(None, tmp_path / "cache"))
    checkpoint = open_checkpoint("org/one")
    assert checkpoint.path == "org/one"
    assert checkpoint.folder == str(folder)
    assert checkpoint.kind == "pdparams"
    told = f"org/one: only the config and tokenizer files that are in {folder} already are used (generation_config.json:"
    assert [told in message for message in caplog.messages] == [True] * (library == "paddlenlp")
    logging.getLogger("PaddleFormers").warning("heard again")
    assert caplog.messages[-1] == "heard again"


@each
def test_no_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, library: str) -> None:
    """One sentence: the model, the library, its reason in one line, the remedy."""
    STANDINS[library](monkeypatch, Hub(None, tmp_path / "cache"))
    config = MergeConfig(model_path_list=["org/one", str(model(tmp_path / "local"))], output_path="out")
    with pytest.raises(CheckpointError) as caught:
        merge(config)
    (problem,) = caught.value.problems
    reason = {
        "paddlenlp": "OSError: Can't load the model for 'org/one'. If you were trying",
        "paddleformers": "ConnectError: [Errno -2] Name or service not known",
    }[library]
    assert problem == (
        f"org/one: no such file or folder, and {library} can't fetch a model with this name (model.safetensors.index.json:"
        f" {reason}); check the name and the network, or give the path of a local copy"
    )
    with pytest.raises(CheckpointError, match=f"{library} can't fetch an adapter with this name"):
        open_adapter("org/one")


@each
def test_no_such_model_and_no_such_shard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, library: str) -> None:
    made = Hub(tmp_path / "online", tmp_path / "cache")
    STANDINS[library](monkeypatch, made)
    with pytest.raises(CheckpointError, match=r"it finds none of model.safetensors, model_state.pdparams"):
        open_checkpoint("org/one")
    (model(tmp_path / "online" / "org" / "one", shards=2) / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"doesn't have model-00002-of-00002.safetensors, which its index names"):
        open_checkpoint("org/one")


def test_none_is_installed() -> None:
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint("org/one")
    assert caught.value.problems == [
        "org/one: no such file or folder; if it is the name of a model on a hub, install one of"
        " paddlenlp, paddleformers, huggingface_hub, which download it, or give the path of a local copy"
    ]


def test_the_second_library_helps_where_the_first_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model(tmp_path / "online" / "one")
    paddlenlp(monkeypatch, Hub(None, tmp_path / "cache1"))
    paddleformers(monkeypatch, Hub(tmp_path / "online", tmp_path / "cache2"))
    assert open_checkpoint("one").folder == str(tmp_path / "cache2" / "one")


def test_a_library_that_does_not_import(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "paddlenlp", types.ModuleType("paddlenlp"))  # and no paddlenlp.utils.download
    with pytest.raises(CheckpointError, match=r"paddlenlp can't fetch .* \(it can't be imported: ModuleNotFoundError"):
        open_checkpoint("one")


@pytest.mark.parametrize(
    ("before", "seen"),
    [
        ({}, ""),
        ({"https_proxy": "http://low"}, "http://low"),
        ({"https_proxy": "http://low", "HTTPS_PROXY": "http://high"}, "http://high"),
    ],
)
def test_proxies_stay_as_they_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, before: dict[str, str], seen: str
) -> None:
    """PaddleFormers overwrites them, even with nothing; meanwhile it gets to see the user's."""
    for variable in hub_libraries.PROXIES:
        monkeypatch.delenv(variable, raising=False)
    for variable, value in before.items():
        monkeypatch.setenv(variable, value)
    made, met = Hub(None, tmp_path / "cache"), []
    find = made.find

    def spy(*args: Any) -> Any:
        met.append(os.environ["https_proxy"])
        return find(*args)

    monkeypatch.setattr(made, "find", spy)
    paddleformers(monkeypatch, made)
    with pytest.raises(CheckpointError):
        open_checkpoint("one")
    assert set(met) == {seen}
    assert {name: os.environ[name] for name in hub_libraries.PROXIES if name in os.environ} == before


def test_what_is_no_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is downloaded for paths; what is here is what is meant."""
    made = Hub(tmp_path / "online", tmp_path / "cache")
    paddlenlp(monkeypatch, made)
    for path in (
        "./one",
        "/org/one",
        "../one",
        "a/b/c",
        "one/",
        "-x",
        "org/.hidden",
        "model.safetensors",
        "o ne",
        "",
        "a\nb",
    ):
        with pytest.raises(CheckpointError, match=r"no such file or folder$"):
            open_checkpoint(path)
    model(Path("one"))
    assert open_checkpoint("one").folder == "one"
    Path("gone").symlink_to("nowhere")
    with pytest.raises(CheckpointError, match=r"no such file or folder$"):
        open_checkpoint("gone")
    assert made.asked == []


def test_nothing_is_downloaded_for_wrong_flags(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = Hub(tmp_path / "online", tmp_path / "cache")
    paddlenlp(monkeypatch, made)
    with pytest.raises(ConfigError) as caught:
        merge(MergeConfig(model_path_list=["org/one", "./none"], scale=2.0, output_path="out"))
    assert [problem.partition(" ")[0] for problem in caught.value.problems] == ["--scale", "./none:"]
    assert made.asked == []


def test_a_revision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """org/x@v1 is the revision v1 of org/x. PaddleNLP's download function takes one, and fetches the newest files."""
    asked = set()

    def resolve_file_path(repo_id: str, filenames: str, revision: str | None = None, **_: Any) -> str | None:
        asked.add((repo_id, revision))
        path = tmp_path / "x" / filenames
        return str(path) if path.exists() else None

    write(tmp_path / "x", X)
    paddlenlp(monkeypatch, made := Hub(tmp_path, tmp_path / "cache"))
    monkeypatch.setattr(hub, "LIBRARIES", ("paddlenlp",))
    with pytest.raises(CheckpointError, match=r"paddlenlp can't fetch a model with this name \(it can't fetch a revision\)"):
        open_checkpoint("x@v1")
    install(monkeypatch, "paddleformers", resolve_file_path)
    monkeypatch.setattr(hub, "LIBRARIES", ("paddlenlp", "paddleformers"))
    assert open_checkpoint("org/x@v1").tensors.keys() == X.keys()
    assert asked == {("org/x", "v1")}
    assert made.asked == []
    assert not hub.is_name("org/x@")
    assert not hub.is_name("a.safetensors@v1")


def test_a_library_that_needs_scipy_is_imported_by_a_command(tmp_path: Path) -> None:
    """Commands hide SciPy from Numba, which imports it for nothing."""
    write(tmp_path / "x", X)
    (tmp_path / "paddlenlp/utils").mkdir(parents=True)
    (tmp_path / "scipy.py").write_text("__version__ = '1.0'\n")
    (tmp_path / "paddlenlp/__init__.py").write_text("import scipy\n")
    (tmp_path / "paddlenlp/utils/__init__.py").write_text("")
    (tmp_path / "paddlenlp/utils/download.py").write_text(
        "import os\n\ndef resolve_file_path(repo_id, filenames, **_):\n"
        f"    path = os.path.join({str(tmp_path / 'x')!r}, filenames)\n    return path if os.path.exists(path) else None\n"
    )
    command = [sys.executable, "-m", "paddle_merge", "merge", "--model_path_list", "org/x", "org/x", "--output_path", "out"]
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert read(tmp_path / "out").keys() == X.keys()


@each
def test_code_and_processors_come_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, library: str) -> None:
    online = tmp_path / "online" / "org" / "x"
    write(online, X, config={"auto_map": {"AutoModel": "modeling_x.X", "AutoConfig": "owner/y--configuration_y.Y"}})
    for name in ("modeling_x.py", "train.py", "video_preprocessor_config.json", "modules.json", "1_Pooling/config.json"):
        (online / name).parent.mkdir(exist_ok=True)
        (online / name).write_text('[{"path": ""}, {"path": "1_Pooling"}]' if name == "modules.json" else "{}")
    STANDINS[library](monkeypatch, Hub(tmp_path / "online", tmp_path / "cache"))
    merge(MergeConfig(model_path_list=["org/x", "org/x"], output_path="out"))
    assert {path.name for path in Path("out").iterdir()} >= {"modeling_x.py", "video_preprocessor_config.json", "1_Pooling"}
    assert not (tmp_path / "cache" / "org" / "x" / "train.py").exists()


@each
def test_an_adapter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, library: str) -> None:
    """Its weights are found by their own names, and its config comes with them."""
    online = write(tmp_path / "online" / "org" / "lora", {"base_model.model.w.lora_A.weight": np.ones((1, 4))})
    (online / "model.safetensors").rename(online / "adapter_model.safetensors")
    (online / "adapter_config.json").write_text('{"r": 1}')
    made = Hub(tmp_path / "online", tmp_path / "cache")
    STANDINS[library](monkeypatch, made)
    found = open_adapter("org/lora")
    assert (found.path, found.folder, found.config) == ("org/lora", str(tmp_path / "cache" / "org" / "lora"), {"r": 1})
    assert "model.safetensors" not in made.asked


@each
def test_the_card_of_a_merge_names_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, library: str) -> None:
    for name in ("org/one", "org/two"):
        write(tmp_path / "online" / name, X)
        (tmp_path / "online" / name / "README.md").write_text("---\nlicense: mit\nbase_model: org/older\n---\n")
    STANDINS[library](monkeypatch, Hub(tmp_path / "online", tmp_path / "cache"))
    merge(MergeConfig(model_path_list=["org/one", "org/two"], output_path="out"))
    card = Path("out/README.md").read_text()
    # What doesn't come from Hugging Face is no link to it; what the cards declare is.
    assert card.startswith(
        "---\nbase_model:\n- org/older\nbase_model_relation: merge\nlicense: mit\ntags:\n- merge\n- paddle_merge\n"
    )
    assert "- model: org/one\n" in card
    assert "| org/two | 0.5 |" in card
