"""Test that an interrupted merge continues from its complete pieces, and ends with the bytes of an uninterrupted one."""

from __future__ import annotations

import contextlib
import functools
import json
import os
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
from hypothesis import given
from hypothesis import strategies as st

from paddle_merge import MergeConfig, OutputError, merge
from paddle_merge.plan import file_names
from paddle_merge.plan.planner import make_plan
from paddle_merge.plan.tensor_plan import Piece
from paddle_merge.recipe.request import Request
from paddle_merge.run import worker
from paddle_merge.run.job import Report
from paddle_merge.run.output import journal
from paddle_merge.run.worker import Worker
from tests.run.test_ranks import free_ports
from tests.support import checkpoints
from tests.support.sweeps import few

ROOT = Path(__file__).parents[3]
Whole = Callable[[str], dict[str, bytes]]  # method -> file -> content
# Every piece is noted at once; pieces are small, and cut anywhere. A merge that a test disturbs waits after each piece: else
# it may be complete before a test on a busy machine gets to disturb it.
EAGER = """
import sys, time
from paddle_merge.plan import plan
from paddle_merge.run.output import journal
journal.SECONDS, plan.PIECE_BYTES = 0.0, 1 << 20
add = journal.Journal.add
def slow(*given):
    add(*given)
    time.sleep(SECONDS)
journal.Journal.add = slow
from paddle_merge.commands.main import main
main(sys.argv[1:])
"""


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """A base and two models of 20 MB, in two files each."""
    paths = []
    for name in ("base", "a", "b"):
        generator = np.random.default_rng(len(paths))
        tensors: dict[str, np.ndarray] = {f"t{k}": generator.standard_normal((700, 1000)) for k in range(14)}
        tensors["ids"] = np.arange(5000)
        folder = tmp_path_factory.mktemp("models") / name
        paths.append(str(checkpoints.write(folder, tensors, "bfloat16", shards=2)))
    return paths


def config(models: list[str], out: Path, method: str, **fields: Any) -> MergeConfig:
    """What the flags below give."""
    return MergeConfig(
        merge_method=method,
        model_path_list=models[1:],
        base_model_path=models[0],
        output_path=str(out),
        max_shard_size="15MB",
        **fields,
    )


def flags(models: list[str], out: Path, method: str, *more: str) -> list[str]:
    argv = [
        "--merge_method",
        method,
        "--model_path_list",
        *models[1:],
        "--base_model_path",
        models[0],
        "--output_path",
        str(out),
    ]
    return [*argv, "--max_shard_size", "15MB", *more]


@contextlib.contextmanager
def eager(*argv: str, seconds: float = 0) -> Iterator[subprocess.Popen[str]]:
    """A merge that waits so long after each of its pieces; killed at the end."""
    process = subprocess.Popen(
        [sys.executable, "-c", EAGER.replace("SECONDS)", f"{seconds})"), *argv],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        start_new_session=True,
    )
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def run(*argv: str) -> str:
    with eager(*argv) as process:
        _, said = process.communicate(timeout=120)
        assert process.returncode == 0, said
        return said


def noted(out: Path) -> int:
    """Pieces in the journal."""
    stopped = journal.read(str(out))
    return len(stopped.reports) if stopped else 0


def wait_for_pieces(process: subprocess.Popen[str], out: Path, count: int) -> None:
    limit = time.monotonic() + 60
    while process.poll() is None and noted(out) < count:
        assert time.monotonic() < limit
        time.sleep(0.001)


def weights(out: Path) -> dict[str, bytes]:
    """And what the record says of them."""
    said = json.loads((out / "merge_lock.json").read_text())["tensors"] if (out / "merge_lock.json").exists() else {}
    files = {path.name: path.read_bytes() for path in out.iterdir() if "safetensors" in path.name}
    return {**files, "record": json.dumps(said).encode()}


@pytest.fixture(scope="module")
def whole(models: list[str], tmp_path_factory: pytest.TempPathFactory) -> Whole:
    """The output of a merge that nothing stopped, made when it is first asked for."""

    @functools.cache
    def made(method: str) -> dict[str, bytes]:
        out = tmp_path_factory.mktemp("whole") / method
        merge(config(models, out, method))
        return weights(out)

    return made


def only_leftovers(out: Path) -> bool:
    """Whether nothing in the folder is taken for a checkpoint."""
    return all(path.name.endswith(".partial") for path in out.iterdir())


@pytest.mark.parametrize("seed", few(range(6), 0))
def test_killed_anywhere_it_goes_on(tmp_path: Path, models: list[str], whole: Whole, seed: int) -> None:
    """The parent or a worker, once or again and again, with any number of workers each time."""
    random, out = np.random.default_rng(seed), tmp_path / "out"
    method = ("linear", "della")[seed % 2]
    for attempt in range(random.integers(1, 4)):
        argv = flags(models, out, method, "--n_process", str(random.integers(1, 4)), "--resume")
        with eager(*argv, seconds=0.05) as process:
            wait_for_pieces(process, out, noted(out) + int(random.integers(1, 12)))
            with contextlib.suppress(psutil.NoSuchProcess):
                family = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
                family[random.integers(len(family))].kill()
            process.communicate(timeout=60)
        if (out / "merge_config.json").exists():  # killed when the merge was complete, before it removed what else it wrote
            assert {path.name for path in out.glob("*.partial")} <= {file_names.NAMES, file_names.journal_name(0)}
            break
        assert only_leftovers(out), attempt
    else:
        before = noted(out)
        assert before > 0
        said = run(*flags(models, out, method, "--n_process", str(random.integers(1, 4)), "--resume"))
        assert "of the output is already complete" in said
        assert not list(out.glob("*.partial"))
    assert weights(out) == whole(method)


@pytest.mark.parametrize("number", few([signal.SIGTERM, signal.SIGINT]))
def test_a_merge_that_is_asked_to_stop_says_how_to_go_on(
    tmp_path: Path, models: list[str], whole: Whole, number: signal.Signals
) -> None:
    out = tmp_path / "out"
    with eager(*flags(models, out, "della", "--n_process", "2"), seconds=0.3) as process:
        wait_for_pieces(process, out, 3)
        process.send_signal(number)
        _, said = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "run the same command with --resume to continue" in said
    assert only_leftovers(out)
    assert noted(out) >= 3
    with pytest.raises(OutputError, match="holds an unfinished merge; --resume continues it, --overwrite starts again"):
        merge(config(models, out, "della"))
    merge(config(models, out, "della", resume=True))
    assert weights(out) == whole("della")


def in_ranks(count: int, argv: list[str], kill_after: int | None, out: Path) -> list[int]:
    """Exit codes of so many ranks that merge together; one of them is killed once so many pieces are noted."""
    ends = [f"127.0.0.1:{port}" for port in free_ports(count)]
    shared = {**os.environ, "PYTHONPATH": str(ROOT), "PADDLE_TRAINERS_NUM": str(count)}
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", EAGER.replace("SECONDS)", f"{0.05 if kill_after else 0})"), *argv],
            env=shared
            | {"PADDLE_TRAINER_ID": str(k), "PADDLE_CURRENT_ENDPOINT": ends[k], "PADDLE_TRAINER_ENDPOINTS": ",".join(ends)},
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        for k in range(count)
    ]
    if kill_after is not None:
        limit = time.monotonic() + 60
        while noted(out) < kill_after and any(rank.poll() is None for rank in ranks) and time.monotonic() < limit:
            time.sleep(0.001)
        ranks[kill_after % count].kill()
    return [rank.wait(timeout=120) for rank in ranks]


@pytest.mark.exhaustive
@pytest.mark.parametrize("victim", few(range(3)))
def test_several_ranks_go_on_with_what_all_of_them_did(tmp_path: Path, models: list[str], whole: Whole, victim: int) -> None:
    """Whoever is killed, and whatever the number of ranks that go on."""
    out = tmp_path / "out"
    argv = flags(models, out, "linear", "--resume")
    for attempt in range(5):
        codes = in_ranks(3, argv, 3 * (attempt + 1) + victim, out)
        if any(codes):
            break
        shutil.rmtree(out)  # they were faster
    assert any(codes)
    assert not (out / "merge_config.json").exists()
    assert only_leftovers(out)
    assert in_ranks(victim + 1, argv, None, out) == [0] * (victim + 1)
    assert weights(out) == whole("linear")
    assert not list(out.glob("*.partial"))


def stopped(out: Path, models: list[str], monkeypatch: pytest.MonkeyPatch, pieces: int = 5, **fields: Any) -> MergeConfig:
    """A merge into `out` that fails after so many pieces; its config."""
    monkeypatch.setattr(journal, "SECONDS", 0.0)
    config = MergeConfig(
        merge_method="linear", model_path_list=models[1:], base_model_path=models[0], output_path=str(out), **fields
    )
    right, done = Worker.merge, 0

    def merge_few(self: Worker, *args: Any) -> Report:
        nonlocal done
        done += 1
        if done > pieces:
            raise OutputError("the disk is gone")
        return right(self, *args)

    with monkeypatch.context() as patch:
        patch.setattr(Worker, "merge", merge_few)
        with pytest.raises(OutputError, match="the disk is gone"):
            merge(config)
    config.resume = True
    return config


def test_only_what_is_missing_is_merged_again(tmp_path: Path, models: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    config = stopped(tmp_path / "out", models, monkeypatch, pieces=5)
    assert noted(tmp_path / "out") == 5
    merged = []
    right = Worker.merge
    monkeypatch.setattr(
        Worker, "merge", lambda self, tensor, piece: [merged.append(tensor.name), right(self, tensor, piece)][1]
    )
    merge(config)
    assert len(merged) == 10  # of 15
    assert not list((tmp_path / "out").glob("*.partial"))


def test_bytes_that_changed_on_the_disk_are_merged_again(
    tmp_path: Path, models: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    config = stopped(out, models, monkeypatch)
    (shard,) = out.glob("model*.partial")
    found = journal.read(str(out))
    assert found is not None
    made = make_plan(Request.of(MergeConfig(**{**vars(config)})).checked_recipe())
    first = next(tensor for tensor in made.tensors if tensor.name == found.reports[0].tensor)
    with shard.open("r+b") as file:
        file.seek(first.offset)
        byte = file.read(1)
        file.seek(first.offset)
        file.write(bytes([byte[0] ^ 1]))
    merge(config)
    merge(MergeConfig(**{**vars(config), "output_path": str(tmp_path / "again"), "resume": False}))
    assert weights(out) == weights(tmp_path / "again")


def test_a_journal_that_was_cut_off_is_believed_as_far_as_it_goes(
    tmp_path: Path, models: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    config = stopped(out, models, monkeypatch)
    file = out / file_names.journal_name(0)
    for size in range(file.stat().st_size, 0, -97):
        os.truncate(file, size)
        assert noted(out) <= 5
    assert noted(out) == 0
    merge(config)  # from the beginning
    assert (out / "merge_config.json").exists()


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"scale": 0.5}, "--scale was 1.0 and is 0.5"),
        ({"merge_method": "ties"}, "--merge_method was 'linear' and is 'ties'"),
        ({"max_shard_size": "10MB"}, "--max_shard_size was '5GB' and is '10MB'"),
        ({"n_process": 3}, ""),
    ],
)
def test_a_changed_merge_does_not_go_on(
    tmp_path: Path, models: list[str], monkeypatch: pytest.MonkeyPatch, fields: dict[str, Any], words: str
) -> None:
    config = stopped(tmp_path / "out", models, monkeypatch)
    for name, value in fields.items():
        setattr(config, name, value)
    if not words:
        merge(config)
        return
    with pytest.raises(OutputError, match="--resume can't continue") as caught:
        merge(config)
    assert words in str(caught.value)
    config.overwrite, config.resume = True, False
    merge(config)
    assert not list((tmp_path / "out").glob("*.partial"))


def test_changed_inputs_do_not_go_on(tmp_path: Path, models: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    copies = [shutil.copytree(path, tmp_path / str(number)) for number, path in enumerate(models)]
    config = stopped(tmp_path / "out", [str(path) for path in copies], monkeypatch)
    file = copies[1] / "model-00001-of-00002.safetensors"
    os.utime(file, ns=(0, 0))
    with pytest.raises(OutputError, match=rf"{file} has changed since"):
        merge(config)


def test_a_merge_that_another_build_began_does_not_go_on(
    tmp_path: Path, models: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The digest of the plan isn't the same, but nothing that a user gives has changed."""
    config = stopped(tmp_path / "out", models, monkeypatch)
    file = tmp_path / "out" / file_names.journal_name(0)
    header, *lines = file.read_text().splitlines()
    file.write_text("\n".join([json.dumps({**json.loads(header), "plan": "0" * 64}), *lines]) + "\n")
    with pytest.raises(OutputError, match=r"other headers now, or another build of paddle_merge .* began it; --overwrite"):
        merge(config)


def test_resume_without_anything_to_go_on_from_begins(tmp_path: Path, models: list[str]) -> None:
    out = tmp_path / "out"
    merge(MergeConfig(model_path_list=models, output_path=str(out), resume=True))
    assert json.loads((out / "merge_config.json").read_text()).get("resume") is None
    finished = r"holds a finished merge, so there is nothing to resume \(`verify` checks it\); pass --overwrite to replace"
    with pytest.raises(OutputError, match=finished):
        merge(MergeConfig(model_path_list=models, output_path=str(out), resume=True))
    with pytest.raises(OutputError, match="exists and is not empty; pass --overwrite"):
        merge(MergeConfig(model_path_list=models, output_path=str(out)))


def test_an_overwrite_that_is_stopped_keeps_the_earlier_merge_and_goes_on(
    tmp_path: Path, models: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    merge(MergeConfig(model_path_list=models, output_path=str(out)))
    before = weights(out)
    config = stopped(out, models, monkeypatch, overwrite=True)
    assert {name: content for name, content in weights(out).items() if not name.endswith(".partial")} == before
    with pytest.raises(OutputError, match="beside the interrupted one that was to replace it; pass --overwrite"):
        merge(MergeConfig(**{**vars(config), "overwrite": False, "resume": True}))
    merge(config)
    assert weights(out) != before
    assert not list(out.glob("*.partial"))


@pytest.mark.exhaustive
def test_who_is_refused_by_the_lock_leaves_the_journal_alone(tmp_path: Path, models: list[str]) -> None:
    out = tmp_path / "out"
    argv = flags(models, out, "della", "--n_process", "2")
    with eager(*argv, seconds=0.05) as process:
        wait_for_pieces(process, out, 2)
        os.killpg(process.pid, signal.SIGSTOP)
        before = {path.name: path.read_bytes() for path in out.glob("merge_journal*")}
        with eager(*argv, "--overwrite") as second:
            _, said = second.communicate(timeout=60)
        assert second.returncode == 1
        assert "another merge is being written there" in said
        assert "is kept" not in said
        assert {path.name: path.read_bytes() for path in out.glob("merge_journal*")} == before
        os.killpg(process.pid, signal.SIGCONT)
        for child in psutil.Process(process.pid).children(recursive=True):
            child.resume()
        _, said = process.communicate(timeout=60)
    assert process.returncode == 0, said


def test_a_short_merge_that_fails_leaves_nothing(tmp_path: Path, models: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> Report:
        raise OutputError("the disk is gone")

    monkeypatch.setattr(worker.Worker, "_copy", fail)
    with pytest.raises(OutputError):
        merge(MergeConfig(model_path_list=models, output_path=str(tmp_path / "out")))
    assert not (tmp_path / "out").exists()


SPANS = st.lists(st.tuples(st.integers(0, 50), st.integers(0, 50)), max_size=6)


@given(done=SPANS, cuts=st.lists(st.integers(1, 49), max_size=4))
def test_what_remains(done: list[tuple[int, int]], cuts: list[int]) -> None:
    """Every element is done or in one of the pieces that remain, and in one only."""

    class Two:
        name, size = "t", 50

    class Made:
        tensors = (Two(),)
        pieces = tuple(Piece(0, a, b) for a, b in zip([0, *sorted(set(cuts))], [*sorted(set(cuts)), 50], strict=True))

    reports = [Report("t", start=a, stop=b) for a, b in done if a < b] + [Report("other", start=0, stop=50)]
    left = journal.remaining(Made(), reports)  # type: ignore[arg-type]
    counted = np.zeros(50, int)
    for piece in left:
        assert piece.start < piece.stop
        counted[piece.start : piece.stop] += 1
    covered = np.zeros(50, bool)
    for report in reports[:-1]:
        covered[report.start : report.stop] = True
    assert (counted == ~covered).all()
