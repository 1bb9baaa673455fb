"""Test faults during merges, with real processes, signals and full disks: the output is complete, or there is none."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from paddle_merge import ConfigError, MergeConfig, OutputError, WorkError, merge
from tests.support import checkpoints
from tests.support.processes import memory_of, workers_of
from tests.support.sweeps import few

ROOT = Path(__file__).parents[2]
TENSORS, ELEMENTS = 24, 1 << 20
COPIES = 6  # the same model this many times: a merge of two seconds from one file


@pytest.fixture(scope="module")
def long(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """100 MB of float32."""
    generator = np.random.default_rng(3)
    tensors = {f"t{number}": generator.standard_normal(ELEMENTS, dtype=np.float32) for number in range(TENSORS)}
    return checkpoints.write(tmp_path_factory.mktemp("long") / "model", tensors)


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path]:
    """Two small models: 1, 2 and 3, 6."""
    folders = []
    for name, factor in (("a", 1.0), ("b", 3.0)):
        tensors = {"w": np.full((4, 8), factor), "v": np.full(16, 2 * factor)}
        folders.append(checkpoints.write(tmp_path / name, tensors))
    return folders[0], folders[1]


def run(*models: Path, out: Path, **fields: Any) -> Path:
    merge(MergeConfig(model_path_list=[str(path) for path in models], output_path=str(out), **fields))
    return out


@contextlib.contextmanager
def started(*argv: object, **options: Any) -> Iterator[subprocess.Popen[str]]:
    """`python -m paddle_merge *argv` in a session of its own; killed at the end, if it still runs."""
    process = subprocess.Popen(
        [sys.executable, "-m", "paddle_merge", *map(str, argv)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        **options,
    )
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def long_merge(long: Path, out: Path, workers: int, first: Path | None = None, copies: int = COPIES) -> list[object]:
    models = [first or long, *[long] * (copies - 1)]
    argv: list[object] = ["--merge_method", "della", "--model_path_list", *models, "--base_model_path", long]
    return [*argv, "--output_path", out, "--n_process", workers]


def wait_for(condition: Callable[[], bool], process: subprocess.Popen[str], seconds: float = 60) -> None:
    """Until the condition holds; fails if the process ends before."""
    limit = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, f"it ended before it could be disturbed: {process.communicate()}"
        assert time.monotonic() < limit
        time.sleep(0.002)


def written(out: Path) -> int:
    """Bytes of shards that are really on their way, whatever the files' nominal size."""
    total = 0
    for path in out.glob("*.partial"):
        with contextlib.suppress(FileNotFoundError):
            total += path.stat().st_blocks * 512
    return total


def disturbed(process: subprocess.Popen[str], out: Path) -> list[psutil.Process]:
    """Wait until the merge is well under way; its workers."""
    wait_for(lambda: written(out) > 6_000_000, process)
    return workers_of(process.pid)


def end(process: subprocess.Popen[str], seconds: float = 30) -> tuple[int, str]:
    """(exit code, what it said), which must not be a traceback."""
    _, said = process.communicate(timeout=seconds)
    assert "Traceback" not in said, said
    return process.returncode, said


def gone(workers: list[psutil.Process], seconds: float) -> bool:
    _, alive = psutil.wait_procs(workers, timeout=seconds)
    return not [worker for worker in alive if worker.status() != psutil.STATUS_ZOMBIE]


# --- killed and interrupted ------------------------------------------------------------------------------------------


def test_a_worker_that_is_killed_fails_the_merge(tmp_path: Path, long: Path) -> None:
    out = tmp_path / "not/there/yet"
    with started(*long_merge(long, out, 2)) as process:
        workers = disturbed(process, out)
        assert len(workers) == 2
        workers[0].kill()
        code, said = end(process)
        assert code == 1
        (sentence,) = [line for line in said.splitlines() if line.startswith("error: ")]
        assert re.fullmatch(
            r"error: a worker was killed by SIGKILL \(the machine may be out of memory: try a smaller --n_process\)"
            r" while merging tensor 't\d+'",
            sentence,
        )
        assert gone(workers, 5)
    assert not (tmp_path / "not").exists()


@pytest.mark.exhaustive
def test_if_what_forks_workers_is_killed_the_merge_fails(tmp_path: Path, long: Path) -> None:
    out = tmp_path / "out"
    with started(*long_merge(long, out, 2)) as process:
        workers = disturbed(process, out)
        (server,) = psutil.Process(process.pid).children()
        server.kill()
        code, said = end(process)
        assert code == 1
        (sentence,) = [line for line in said.splitlines() if line.startswith("error: ")]
        assert sentence.startswith("error: the process that starts workers was killed by SIGKILL (the machine may be out")
        assert gone(workers, 5)
    assert not out.exists()


@pytest.mark.parametrize("workers", few([2, 1]))
@pytest.mark.parametrize("number", few([signal.SIGINT, signal.SIGTERM]))
def test_an_interrupted_merge_leaves_nothing(tmp_path: Path, long: Path, number: signal.Signals, workers: int) -> None:
    out = tmp_path / "out"
    with started(*long_merge(long, out, workers)) as process:
        pool = disturbed(process, out)
        process.send_signal(number)
        code, said = end(process)
        assert code == 130
        assert said.splitlines()[-1] == "interrupted: no checkpoint or adapter was written"
        assert gone(pool, 5)
    assert list(tmp_path.iterdir()) == []


def processes_of(pid: int) -> list[psutil.Process]:
    return psutil.Process(pid).children()


@pytest.mark.parametrize(
    ("there", "count"),
    few([(workers_of, 2), (processes_of, 1)], unpack=True),
    ids=["with workers", "before"],
)
@pytest.mark.parametrize("seconds", few([0.05, 0.01, 0.1, 0.15]))
def test_control_c_in_a_terminal_reaches_everyone_and_leaves_nothing(
    tmp_path: Path, long: Path, seconds: float, there: Callable[[int], list[psutil.Process]], count: int
) -> None:
    """The whole process group gets SIGINT, while the workers are still starting: no traceback of theirs either."""
    out = tmp_path / "out"
    with started(*long_merge(long, out, 2)) as process:
        wait_for(lambda: len(there(process.pid)) == count, process)
        time.sleep(seconds)
        os.killpg(process.pid, signal.SIGINT)
        code, said = end(process)
    assert code == 130
    assert "error" not in said
    assert list(tmp_path.iterdir()) == []


def test_an_impatient_user_leaves_no_checkpoint(tmp_path: Path, long: Path) -> None:
    out = tmp_path / "out"
    with started(*long_merge(long, out, 2)) as process:
        disturbed(process, out)
        for _ in range(5):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGINT)
            time.sleep(0.003)
        process.communicate(timeout=30)
        assert process.returncode != 0
    assert [path for path in tmp_path.rglob("*") if path.is_file() and path.suffix != ".partial"] == []


@pytest.mark.parametrize("workers", few([2, 1]))
def test_when_the_parent_is_killed_nothing_looks_finished(tmp_path: Path, long: Path, workers: int) -> None:
    out = tmp_path / "out"
    with started(*long_merge(long, out, workers)) as process:
        pool = disturbed(process, out)
        process.kill()
        assert gone(pool, 5)
    assert {path.suffix for path in out.iterdir()} == {".partial"}
    run(long, long, out=out)  # what the dead merge left is no obstacle
    assert sorted(path.name for path in out.iterdir()) == [
        "README.md",
        "config.json",
        "merge_config.json",
        "merge_lock.json",
        "model.safetensors",
    ]


@pytest.mark.parametrize("workers", few([2, 1]))
def test_an_input_cut_off_while_merging(tmp_path: Path, long: Path, workers: int) -> None:
    victim = Path(shutil.copytree(long, tmp_path / "victim"))
    out = tmp_path / "out"
    with started(*long_merge(long, out, workers, first=victim)) as process:
        pool = disturbed(process, out)
        os.truncate(victim / "model.safetensors", 1 << 20)
        code, said = end(process)
        assert code == 1
        assert re.search(
            rf"^error: {re.escape(str(victim))}/model\.safetensors: ends before tensor 't\d+' does;", said, re.MULTILINE
        )
        assert gone(pool, 5)
    assert not out.exists()


@pytest.mark.exhaustive
def test_two_merges_into_one_folder_never_mix(tmp_path: Path, long: Path) -> None:
    """Merging copies of one model gives that model. The first may not finish with what the second has half written."""
    out = tmp_path / "out"
    with started(*long_merge(long, out, 1)) as first:
        disturbed(first, out)
        first.send_signal(signal.SIGSTOP)
        inodes = {path.stat().st_ino for path in out.glob("*.partial")}

        def second_is_busy() -> bool:
            partials = [path for path in out.glob("*.partial") if path.stat().st_ino not in inodes]
            return second.poll() is not None or any(path.stat().st_blocks * 512 > 2_000_000 for path in partials)

        with started(*long_merge(long, out, 1)) as second:
            limit = time.monotonic() + 60
            while not second_is_busy():
                assert time.monotonic() < limit
                time.sleep(0.002)
            if second.poll() is None:
                second.send_signal(signal.SIGSTOP)
            first.send_signal(signal.SIGCONT)
            first.communicate(timeout=60)
            if first.returncode == 0:
                merged, model = checkpoints.read(out), checkpoints.read(long)
                assert [name for name in model if not np.array_equal(merged[name], model[name])] == []
            else:
                assert not (out / "model.safetensors").exists()
            assert 0 in (first.returncode, second.poll()), "one of them must get through"


# --- full disk ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 2 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(folder)]
    if not shutil.which("mount") or subprocess.run(command, capture_output=True).returncode != 0:
        pytest.skip("mounting a small file system needs root")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.fixture
def four_megabytes(tmp_path: Path) -> Path:
    return checkpoints.write(tmp_path / "model", {f"t{number}": np.ones(1 << 18) for number in range(4)})


def lie_about_free_space(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(1 << 40, 0, 1 << 40))  # type: ignore[attr-defined]


def test_too_small_a_disk_is_found_before_the_merge(small_disk: Path, four_megabytes: Path) -> None:
    with pytest.raises(OutputError) as caught:
        run(four_megabytes, four_megabytes, out=small_disk / "deep/out")
    (sentence,) = caught.value.problems
    assert re.fullmatch(
        r"--output_path .*/deep/out: the merge needs [\d.]+ MB of disk, and [\d.]+ [KM]B are free there", sentence
    )
    assert list(small_disk.iterdir()) == []


def test_a_dry_run_on_too_small_a_disk_says_what_the_merge_would_do(
    small_disk: Path, four_megabytes: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Somebody who plans a merge may not have the disk yet; with other problems there is no plan, and all are listed."""
    with pytest.raises(OutputError, match=r"the merge needs [\d.]+ MB of disk"):
        run(four_megabytes, four_megabytes, out=small_disk / "out", dry_run=True)
    assert re.search(r"^disk     4\.\d MB, of [\d.]+ [KM]B free$", capsys.readouterr().out, re.MULTILINE)
    (small_disk / "out").touch()
    with pytest.raises(OutputError) as caught:
        run(four_megabytes, four_megabytes, out=small_disk / "out", dry_run=True)
    first, second = caught.value.problems
    assert first.endswith("out exists and is not a folder")
    assert "MB of disk, and" in second


@pytest.mark.parametrize("workers", [1, 2])
def test_a_disk_that_fills_up_while_merging(
    small_disk: Path, four_megabytes: Path, workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    lie_about_free_space(monkeypatch)
    with pytest.raises(WorkError) as caught:
        run(four_megabytes, four_megabytes, out=small_disk / "deep/out", n_process=workers)
    (sentence,) = caught.value.problems
    problem = r"tensor 't\d': can't write to model\.safetensors\.partial \(No space left on device\)"
    assert re.fullmatch(rf"{problem}: free some space on the disk of {small_disk}/deep/out, then merge again", sentence)
    assert list(small_disk.iterdir()) == []


def test_a_disk_that_fills_up_at_the_very_end(tmp_path: Path, small_disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The weights fit, the last file to copy doesn't."""
    lie_about_free_space(monkeypatch)
    model = checkpoints.write(tmp_path / "model", {"w": np.ones(1 << 18)})
    (model / "extra").mkdir()
    (model / "extra/big.txt").write_bytes(b"x" * 1_500_000)
    with pytest.raises(OutputError, match="No space left on device"):
        run(model, model, out=small_disk / "deep/out", copy_file_list=["extra/big.txt"])
    assert list(small_disk.rglob("*")) == []


def test_a_full_disk_during_an_overwrite_keeps_the_earlier_merge(
    tmp_path: Path, small_disk: Path, pair: tuple[Path, Path], four_megabytes: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lie_about_free_space(monkeypatch)
    out = run(*pair, out=small_disk / "out")
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    with pytest.raises(WorkError):
        run(four_megabytes, four_megabytes, out=out, overwrite=True)
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before


def test_a_limit_on_file_sizes(tmp_path: Path, four_megabytes: Path) -> None:
    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))

    command = [sys.executable, "-m", "paddle_merge", "--model_path_list", four_megabytes, four_megabytes]
    done = subprocess.run(
        [*command, "--output_path", tmp_path / "out", "-q"],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        preexec_fn=limit,
    )
    assert (done.returncode, done.stderr) == (1, f"error: {tmp_path}/out: can't be written to (File too large)\n")
    assert not (tmp_path / "out").exists()


def test_a_read_only_place_is_refused(small_disk: Path, pair: tuple[Path, Path]) -> None:
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    with pytest.raises(OutputError) as caught:
        run(*pair, out=small_disk / "out")
    assert f"--output_path {small_disk}/out: no permission to write in {small_disk}" in caught.value.problems


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere; test_a_read_only_place_is_refused covers it")
def test_an_unwritable_parent_is_refused(tmp_path: Path, pair: tuple[Path, Path]) -> None:
    parent = tmp_path / "locked"
    parent.mkdir(mode=0o555)
    with pytest.raises(OutputError, match="no permission to write in"):
        run(*pair, out=parent / "out")


@pytest.mark.parametrize("out", ["/proc/merged", "/dev/null", "/dev/null/merged"])
def test_places_where_nothing_can_be_made(pair: tuple[Path, Path], out: str) -> None:
    with pytest.raises(OutputError) as caught:
        run(*pair, out=Path(out))
    assert out in caught.value.problems[0]


# --- an output that is already there ---------------------------------------------------------------------------------


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_an_existing_output_is_replaced_only_when_asked(tmp_path: Path, pair: tuple[Path, Path]) -> None:
    out = run(*pair, out=tmp_path / "out")
    (out / "notes.txt").write_text("mine")
    before = (out / "model.safetensors").read_bytes()
    with pytest.raises(OutputError) as caught:
        run(*pair, out=out, weight_list=[3.0, 1.0])
    assert caught.value.problems == [
        f"--output_path {out} exists and is not empty; pass --overwrite to replace the weights and README.md in it"
    ]
    assert (out / "model.safetensors").read_bytes() == before
    run(*pair, out=out, weight_list=[3.0, 1.0], overwrite=True)
    assert checkpoints.read(out)["w"].tolist() == np.full((4, 8), 1.5).tolist()
    assert json.loads((out / "merge_config.json").read_text())["weight_list"] == [3.0, 1.0]
    assert (out / "notes.txt").read_text() == "mine"
    assert len(files(out)) == 6


def test_an_empty_folder_is_as_good_as_none(tmp_path: Path, pair: tuple[Path, Path]) -> None:
    out = tmp_path / "out"
    out.mkdir()
    run(*pair, out=out)
    assert checkpoints.read(out)["w"][0, 0] == 2.0


def test_overwriting_leaves_no_stale_shard(tmp_path: Path, pair: tuple[Path, Path]) -> None:
    """One file -> two -> one, and one -> 1 of 2; loaders read every file that looks like a shard."""
    sidecars = ["README.md", "config.json", "merge_config.json", "merge_lock.json"]
    two = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors", "model.safetensors.index.json"]
    out = run(*pair, out=tmp_path / "out")
    for size, weights in (("130", two), ("5GB", ["model.safetensors"]), ("130", two), ("130", two)):
        run(*pair, out=out, max_shard_size=size, overwrite=True)
        assert files(out) == sorted([*sidecars, *weights])
        assert checkpoints.read(out)["v"].tolist() == [4.0] * 16


@pytest.mark.parametrize("how", ["itself", "slash", "relative", "link", "its file", "base", "base's link", "around"])
def test_the_output_is_not_an_input(
    tmp_path: Path, pair: tuple[Path, Path], how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    a, b = pair
    base = checkpoints.write(tmp_path / "base", checkpoints.read(a))
    link = tmp_path / "link"
    link.symlink_to(base if how == "base's link" else a, target_is_directory=True)
    monkeypatch.chdir(a)
    models, out = {
        "itself": ([a, b], a),
        "slash": ([Path(f"{a}/"), b], Path(f"{a}//")),
        "relative": ([Path("."), b], a),
        "link": ([a, b], link),
        "its file": ([a / "model.safetensors", b], a),
        "base": ([a, b], base),
        "base's link": ([a, b], link),
        "around": ([a, b], b / ".." / "a"),
    }[how]
    before = (a / "model.safetensors").read_bytes(), (base / "model.safetensors").read_bytes()
    with pytest.raises(OutputError) as caught:
        run(*models, out=out, base_model_path=str(base), overwrite=True)
    assert [problem for problem in caught.value.problems if "is or holds one of the inputs" in problem]
    assert ((a / "model.safetensors").read_bytes(), (base / "model.safetensors").read_bytes()) == before
    assert not list(a.glob("*.partial"))


def test_the_output_does_not_replace_what_an_input_links_to(tmp_path: Path, pair: tuple[Path, Path]) -> None:
    """a/model.safetensors is a link into the output folder, as in a cache of blobs: replacing it would replace the input."""
    out = tmp_path / "out"
    out.mkdir()
    (pair[0] / "model.safetensors").rename(out / "model.safetensors")
    (pair[0] / "model.safetensors").symlink_to(out / "model.safetensors")
    before = (out / "model.safetensors").read_bytes()
    with pytest.raises(OutputError):
        run(*pair, out=out, overwrite=True)
    assert (out / "model.safetensors").read_bytes() == before


@pytest.mark.parametrize(
    "name",
    ["model_state.pdparams", "pytorch_model.bin", "master_weights.safetensors", "0_0.distcp", "model_of_mine.safetensors"],
)
@pytest.mark.parametrize("overwrite", [False, True])
def test_weights_of_someone_else_are_neither_mixed_nor_removed(
    tmp_path: Path, pair: tuple[Path, Path], name: str, overwrite: bool
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / name).write_text("precious")
    with pytest.raises(OutputError) as caught:
        run(*pair, out=out, overwrite=overwrite)
    assert [problem for problem in caught.value.problems if f"mix with the merged ones: {name}; move them" in problem]
    assert files(out) == [name]


def test_a_partial_file_that_is_not_ours_is_left_alone(tmp_path: Path, pair: tuple[Path, Path]) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "download.iso.partial").write_text("precious")
    with contextlib.suppress(OutputError):
        run(*pair, out=out)
    assert (out / "download.iso.partial").read_text() == "precious"


@pytest.mark.parametrize("fail_at", range(6))
@pytest.mark.parametrize("old", [False, True])
def test_a_rename_that_fails_leaves_no_half_checkpoint(
    tmp_path: Path, pair: tuple[Path, Path], fail_at: int, old: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two shards, index, config.json, README.md and merge_config.json are renamed one after the other; an earlier merge's
    files are set aside before, and come back."""
    out = tmp_path / "out"
    if old:
        run(*pair, out=out, weight_list=[3.0, 1.0])
    before = {path.name: path.read_bytes() for path in out.iterdir()} if old else {}
    calls = 0
    real = os.replace

    def replace(source: str, target: str) -> None:
        nonlocal calls
        calls += os.path.dirname(target) == str(out)  # Numba renames files of its cache
        if calls == fail_at + 1:
            raise OSError(5, "Input/output error")
        real(source, target)

    monkeypatch.setattr(os, "replace", replace)
    with pytest.raises(OutputError, match="Input/output error"):
        run(*pair, out=out, max_shard_size="130", overwrite=old)
    if old:
        assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    else:
        assert not out.exists()


def test_the_record_is_last_and_never_another_merges(tmp_path: Path, pair: tuple[Path, Path]) -> None:
    """A power cut just before the last rename of an overwrite: new weights must not be found with the old record."""
    out = run(*pair, out=tmp_path / "out", weight_list=[3.0, 1.0])
    code = """
import os, sys
from paddle_merge import MergeConfig, merge
real = os.replace
def replace(source, target):
    if target.endswith("merge_config.json"):
        os._exit(77)
    real(source, target)
os.replace = replace
merge(MergeConfig(model_path_list=sys.argv[1:3], output_path=sys.argv[3], overwrite=True))
"""
    command = [sys.executable, "-c", code, *map(str, pair), str(out)]
    assert subprocess.run(command, env={**os.environ, "PYTHONPATH": str(ROOT)}).returncode == 77
    assert checkpoints.read(out)["w"][0, 0] == 2.0
    assert not (out / "merge_config.json").exists()


# --- numbers that are none -------------------------------------------------------------------------------------------


def warnings_of(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]


@pytest.mark.parametrize(
    ("method", "dtype", "workers"),
    [
        *((method, dtype, 1) for method in ("linear", "slerp", "ties", "della") for dtype in ("bfloat16", "float32")),
        ("dare_ties", "float16", 1),
        ("linear", "float64", 1),
        ("linear", "bfloat16", 2),
        *few([("della", "float16", 3)], 0, unpack=True),
    ],
)
def test_nan_and_inf_are_reported_by_tensor_and_model(
    tmp_path: Path, method: str, dtype: str, workers: int, caplog: pytest.LogCaptureFixture
) -> None:
    generator = np.random.default_rng(5)
    tensors = {name: generator.normal(size=100_001) for name in ("fine", "nan", "inf", "both")}
    base = {name: values.copy() for name, values in tensors.items()}
    a = {name: values + 1 for name, values in tensors.items()}
    b = {name: values - 1 for name, values in tensors.items()}
    a["nan"][-1] = np.nan
    b["inf"][70_000] = -np.inf
    a["both"][0] = np.inf
    base["both"][1] = np.nan
    paths = [checkpoints.write(tmp_path / name, values, dtype) for name, values in (("a", a), ("b", b), ("base", base))]
    fields: dict[str, Any] = {"merge_method": method, "base_model_path": str(paths[2]), "n_process": workers}
    expected = sorted(
        [
            f"tensor 'nan' holds NaN or Inf in {paths[0]}",
            f"tensor 'inf' holds NaN or Inf in {paths[1]}",
            f"tensor 'both' holds NaN or Inf in {paths[0]}",
            f"tensor 'both' holds NaN or Inf in {paths[2]}",
        ]
    )
    out = run(*paths[:2], out=tmp_path / "out", **fields)
    assert warnings_of(caplog) == expected
    assert np.isfinite(checkpoints.read(out)["fine"]).all()
    with pytest.raises(WorkError) as caught:
        run(*paths[:2], out=tmp_path / "strict", strict=True, **fields)
    assert caught.value.problems == expected
    assert not (tmp_path / "strict").exists()


def test_an_overflow_of_float16_is_reported(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    tensors = {"large": np.array([60000.0, 1.0]), "small": np.array([6.0])}
    a = checkpoints.write(tmp_path / "a", tensors, "float16")
    fields: dict[str, Any] = {"weight_list": [1.0, 1.0], "normalize": False}
    out = run(a, a, out=tmp_path / "out", **fields)
    sentence = "tensor 'large' overflows float16: it holds Inf or NaN in the output"
    assert warnings_of(caplog)[-1] == sentence
    assert not [warning for warning in warnings_of(caplog) if "small" in warning]
    assert checkpoints.read(out)["large"].tolist() == [np.inf, 2.0]
    with pytest.raises(WorkError) as caught:
        run(a, a, out=tmp_path / "strict", strict=True, **fields)
    assert caught.value.problems == [sentence]
    assert not (tmp_path / "strict").exists()


def test_an_overflow_by_out_dtype_is_reported(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    a = checkpoints.write(tmp_path / "a", {"w": np.array([65519.0, -65520.0])}, "float32")
    run(a, a, out=tmp_path / "bf16", out_dtype="bfloat16")
    assert not [warning for warning in warnings_of(caplog) if "overflows" in warning]
    out = run(a, a, out=tmp_path / "fp16", out_dtype="float16")
    assert "tensor 'w' overflows float16: it holds Inf or NaN in the output" in warnings_of(caplog)
    assert checkpoints.read(out)["w"].tolist() == [65504.0, -np.inf]


@pytest.mark.parametrize("call", [1, 2, 3, 4])
def test_an_overwrite_that_fails_at_the_last_gives_the_old_merge_back(
    tmp_path: Path, pair: tuple[Path, Path], call: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = run(*pair, out=tmp_path / "out")
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    calls = 0
    replace = os.replace

    def interrupted(source: str, target: str) -> None:
        nonlocal calls
        if not target.endswith(".replaced") and not source.endswith(".replaced"):
            calls += 1
            if calls == call:
                raise KeyboardInterrupt
        replace(source, target)

    monkeypatch.setattr(os, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(*pair, out=out, overwrite=True, weight_list=[1.0, 3.0])
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before


def test_an_unforeseen_error_names_the_tensor(
    tmp_path: Path, pair: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise KeyError("surprise")

    monkeypatch.setattr("paddle_merge.run.pipeline.Pipeline.merged", fail)
    with pytest.raises(WorkError, match=r"^tensor '[vw]': KeyError: 'surprise'$"):
        run(*pair, out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


# --- memory ----------------------------------------------------------------------------------------------------------


def test_a_ceiling_on_memory_is_kept_by_fewer_workers(tmp_path: Path, long: Path) -> None:
    out, limit = tmp_path / "out", 900_000_000
    with started(*long_merge(long, out, 16, copies=3), "--max_memory", "900MB") as process:
        peak = 0
        while process.poll() is None:
            peak = max(peak, memory_of(process.pid))
            time.sleep(0.05)  # a look takes the time of another
        code, said = end(process)
    assert code == 0
    (workers,) = [int(found[1]) for found in re.finditer(r"workers  (\d+) of 16, for --max_memory", said)]
    assert 1 < workers < 16
    assert 100_000_000 < peak < limit


def test_too_low_a_ceiling_says_what_it_takes(pair: tuple[Path, Path], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"--max_memory 50 MB is too little: with one worker, .* \d\d\d MB$"):
        run(*pair, out=tmp_path / "out", max_memory="50MB")
    assert not (tmp_path / "out").exists()
    with pytest.raises(ConfigError, match=r"--max_memory 'much' must be a size"):
        run(*pair, out=tmp_path / "out", max_memory="much")
