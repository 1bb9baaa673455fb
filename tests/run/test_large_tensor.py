"""Test tensors that several threads of a worker merge: which these are, and that the bytes are those of one thread."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from paddle_merge import MergeConfig, WorkError, merge
from paddle_merge.backends.engine import NUMPY, Engine
from paddle_merge.checkpoints.fingerprint import BLOCK
from paddle_merge.plan import memory_estimate
from paddle_merge.plan import plan as plans
from paddle_merge.plan.plan import MOST_THREADS, Plan
from paddle_merge.plan.planner import make_plan
from paddle_merge.plan.tensor_plan import Piece, TensorPlan
from paddle_merge.recipe.request import Request
from paddle_merge.run import large_tensor
from paddle_merge.run.job import Job, Report
from paddle_merge.run.large_tensor import merge_in_threads, threads_of
from paddle_merge.run.output.journal import remaining
from paddle_merge.run.pipeline import Measured
from paddle_merge.run.worker import Worker
from tests.methods.test_laws import LAWS, Sources, count, few_methods
from tests.support.checkpoints import read, write
from tests.support.sweeps import few

SHAPE = (520, 401)  # 3.2 blocks
HELD = ("finite", "nan in one", "nan in all", "nan in the base", "nan in the base and one")


@pytest.fixture(autouse=True)
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(large_tensor, "STEP", BLOCK)
    monkeypatch.setattr(plans, "PIECE_BYTES", 2 * BLOCK)


@pytest.fixture(scope="module", params=few(["bfloat16", "float32", "float64"]))
def sources(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Sources]:
    """A base and three models of one tensor, by what they hold."""
    found = {}
    for held in HELD:
        rng = np.random.default_rng(0)
        base = rng.standard_normal(SHAPE)
        tensors = [base, *(base + 0.1 * rng.standard_normal(SHAPE) for _ in range(3))]
        for place, values in enumerate(tensors):
            if place in {"finite": (), "nan in one": (2,), "nan in all": (0, 1, 2, 3), "nan in the base": (0,)}.get(
                held, (0, 2)
            ):
                values[300, 7] = np.nan
        folder = tmp_path_factory.mktemp(held.replace(" ", "_"))
        found[held] = Sources(folder, request.param).put(*({"w": values} for values in tensors))
    return found


def plan_of(config: MergeConfig, workers: int = 2, engine: Engine = NUMPY) -> Plan:
    return make_plan(Request.of(config).checked_recipe(), workers, engine=engine)


def compared(plan: Plan, threads: int) -> tuple[Report, Report]:
    """Return the reports of one thread and of several on the same tensor, whose fingerprints tell all bytes."""
    (tensor,) = plan.tensors
    job, piece = Job(None, dataclasses.replace(NUMPY, workers=threads)), Piece(0, 0, tensor.size)
    worker = Worker(job, lambda _: None)
    try:
        alone = worker.merge(tensor, piece)
    finally:
        worker.close()
    return alone, merge_in_threads(threads, job, tensor, piece, lambda _: None)


@few_methods
@pytest.mark.parametrize("held", HELD)
def test_threads_write_what_one_thread_writes(sources: dict[str, Sources], method: str, held: str) -> None:
    config = sources[held].config(method, LAWS[method].given, list(range(count(method))), "out")
    alone, together = compared(plan_of(config), 3)
    assert alone == together


@pytest.mark.parametrize("held", HELD)
@pytest.mark.parametrize("method", ["ties", "della", "dare_linear"])
def test_weights_without_a_base_too(sources: dict[str, Sources], method: str, held: str) -> None:
    """A model is then measured alone, and all that isn't finite in it would count as common to all inputs."""
    models = [f"{sources[held].folder}/m{number}" for number in range(3)]
    alone, together = compared(plan_of(MergeConfig(model_path_list=models, merge_method=method, output_path="out")), 3)
    assert alone == together


def test_parts_are_written_to_their_places(sources: dict[str, Sources], tmp_path: Path) -> None:
    config = sources["finite"].config("paddlenlp:ties", "{weight: 1.0}", [0, 1, 2], "out")
    plan = plan_of(config)
    (tensor,), (shard,), written = plan.tensors, plan.shards, []
    for threads in (1, 3):
        path = tmp_path / str(threads)
        path.write_bytes(bytes(shard.nbytes))
        job = Job((str(path),), dataclasses.replace(NUMPY, workers=3))
        merge_in_threads(threads, job, tensor, Piece(0, 0, tensor.size), lambda _: None)
        written.append(path.read_bytes())
    merge(config)
    (file,) = Path(config.output_path).glob("*.safetensors")
    assert written[0] == written[1]
    assert written[0][tensor.offset :] == file.read_bytes()[tensor.offset :]


@pytest.mark.parametrize("densities", ["[0.5, 0.5, 1.0]", "[0.5, 0.0, 1.0]", "[1.0, 1.0, 1.0]"])
def test_models_of_which_all_is_kept_are_measured_once(
    sources: dict[str, Sources], densities: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    base, *models = (f"{sources['finite'].folder}/{name}" for name in ("base", "m0", "m1", "m2"))
    listed = "".join(
        f"  - model: {model}\n    parameters: {{density: {density}, weight: 1.0}}\n"
        for model, density in zip(models, json.loads(densities), strict=True)
    )
    recipe = f"merge_method: ties\nbase_model: {base}\nmodels:\n{listed}"
    known = list[bool]()
    usual = Worker.measure

    def measure(self: Worker, tensor: TensorPlan, states: Sequence[Any] | None = None) -> Measured:
        known.append(states is not None)
        return usual(self, tensor, states)

    monkeypatch.setattr(Worker, "measure", measure)
    alone, together = compared(plan_of(MergeConfig(recipe_yaml=recipe, output_path="out")), 3)
    assert alone == together
    # Where nothing is measured it is one pass in any case, and sums of float64 are put right for all models together.
    assert known == [densities != "[1.0, 1.0, 1.0]" and sources["finite"].dtype != "float64"]


def test_overflow_is_told_as_one_thread_tells_it(tmp_path: Path) -> None:
    """A part that overflows doesn't count if another holds NaN or Inf, as in one piece."""
    base, models = np.zeros(3 * BLOCK), [np.full(3 * BLOCK, 1e38), np.full(3 * BLOCK, 3e38)]
    for infinite in (False, True):
        models[0][0] = np.inf if infinite else 1e38
        its = Sources(tmp_path / str(infinite), "float32").put({"w": base}, *({"w": one} for one in models))
        recipe = "{weight: 2.0, lambda: 1.0, normalize: false, density: 0.5}"
        alone, together = compared(plan_of(its.config("ties", recipe, [0, 1], "out")), 3)
        assert alone == together
        assert (alone.overflowed, bool(alone.not_finite)) == (not infinite, infinite)


@pytest.mark.parametrize("held", ["finite", "nan in one"])
@pytest.mark.parametrize(
    ("method", "models"), [("paddlenlp:ties", 3), ("paddlenlp:della", 2), ("paddlenlp:slerp", 2), ("multislerp", 3)]
)
def test_progress_counts_each_byte_once(sources: dict[str, Sources], method: str, models: int, held: str) -> None:
    """Bytes that are read while the tensor is measured count then: the bar of a merge doesn't stand still."""
    plan = plan_of(
        sources[held].config(method, "{}" if method == "paddlenlp:slerp" else "{weight: 1.0}", list(range(models)), "out")
    )
    heard = list[int]()
    (tensor,) = plan.tensors
    merge_in_threads(3, Job(None, dataclasses.replace(NUMPY, workers=3)), tensor, Piece(0, 0, tensor.size), heard.append)
    assert sum(heard) == pytest.approx(tensor.traffic, abs=2)
    assert min(heard) >= 0
    assert sum(count > 0 for count in heard) > 4


def test_a_thread_that_fails_ends_all(sources: dict[str, Sources], tmp_path: Path) -> None:
    its = Sources(tmp_path, "bfloat16").put(*({"w": np.ones(SHAPE)} for _ in range(4)))
    plan = plan_of(its.config("paddlenlp:ties", "{weight: 1.0}", [0, 1, 2], "out"))
    (file,) = (tmp_path / "m1").glob("*.safetensors")
    os.truncate(file, file.stat().st_size - 5)
    (tensor,) = plan.tensors
    with pytest.raises(WorkError, match=rf"{file}: ends before tensor 'w' does; was it changed while merging\?"):
        merge_in_threads(
            3, Job(None, dataclasses.replace(NUMPY, workers=3)), tensor, Piece(0, 0, tensor.size), lambda _: None
        )


# --- which tensors these are ---------------------------------------------------------------------------------------------


def sparse(folder: Path, sizes: dict[str, int]) -> list[str]:
    """Write a base and two models of float32 zeros, as files that take no room: gigabytes of them."""
    header, end = {}, 0
    for tensor, size in sizes.items():
        header[tensor] = {"dtype": "F32", "shape": [size], "data_offsets": [end, end + 4 * size]}
        end += 4 * size
    text = json.dumps(header).encode()
    paths = []
    for name in ("base", "m0", "m1"):
        (folder / name).mkdir()
        with (folder / name / "model.safetensors").open("wb") as file:
            file.write(len(text).to_bytes(8, "little") + text)
            file.truncate(8 + len(text) + end)
        paths.append(str(folder / name))
    return paths


def config(paths: list[str], method: str = "ties", **fields: object) -> MergeConfig:
    base, *models = paths
    return MergeConfig(model_path_list=models, base_model_path=base, merge_method=method, output_path="out", **fields)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("large", "workers", "threads"),
    [
        (9, 1, 1),  # nobody else has anything to do
        (9, 2, 2),
        (10, 2, 1),  # half of everything: one is busy with it, and the other with the rest
        (20, 4, 3),  # 20 of 30, with shares of 7.5
        (999, 32, MOST_THREADS),
    ],
)
def test_threads_are_those_that_would_be_idle(tmp_path: Path, large: int, workers: int, threads: int) -> None:
    others = {9: 1, 10: 10, 20: 10, 999: 1}[large]
    sizes = {"large": large * BLOCK, **{f"small {k}": BLOCK for k in range(others)}}
    plan = plan_of(config(sparse(tmp_path, sizes)), workers)
    assert {piece.threads for piece in plan.pieces if plan.tensors[piece.tensor].name != "large"} == {1}
    (piece,) = (piece for piece in plan.pieces if plan.tensors[piece.tensor].name == "large")
    assert piece.threads == threads
    assert remaining(plan, []) == plan.pieces  # a merge that isn't resumed has all of them to do
    assert threads_of(piece, dataclasses.replace(NUMPY, workers=workers)) == threads
    assert threads_of(piece, dataclasses.replace(NUMPY, workers=1)) == 1
    assert threads_of(piece, Engine("pd", "cpu", workers=workers)) == 1
    assert (memory_estimate._Worker(plan)._further(NUMPY.budget, workers) > 0) == (threads > 1)


def test_what_is_cut_into_pieces_needs_no_threads(tmp_path: Path) -> None:
    plan = plan_of(config(sparse(tmp_path, {"large": 9 * BLOCK, "small": BLOCK}), "linear"))
    assert len(plan.pieces) > 9
    assert {piece.threads for piece in plan.pieces} == {1}


def finished(plan: Plan, cores: int, serial: float) -> float:
    """Return when the last of as many workers as cores ends, as a multiple of the least possible.

    Pieces are handed out in order, each to the first worker that is free; all threads share the cores evenly. serial: the
    share of a tensor's work that its threads can't divide.
    """
    waiting, now = list(plan.pieces), 0.0
    busy = list[tuple[Piece, float]]()  # with the work that is left
    while waiting or busy:
        while waiting and len(busy) < cores:
            piece = waiting.pop(0)
            busy.append((piece, plan.traffic(piece)))
        share = min(1.0, cores / sum(piece.threads for piece, _ in busy))
        rates = [share / (serial + (1 - serial) / piece.threads) for piece, _ in busy]
        step = min(left / rate for (_, left), rate in zip(busy, rates, strict=True))
        now += step
        busy = [(piece, left - step * rate) for (piece, left), rate in zip(busy, rates, strict=True)]
        busy = [(piece, left) for piece, left in busy if left > 1e-6]
    return now * cores / sum(map(plan.traffic, plan.pieces))


def test_thirty_two_workers_end_together(tmp_path: Path) -> None:
    """Of a model with a large vocabulary, each of two embeddings is four times a worker's share of everything."""
    sizes = {"embed_tokens": 400, "lm_head": 400, **{f"layer {k}": 30 for k in range(80)}}
    plan = plan_of(config(sparse(tmp_path, {name: size * BLOCK // 64 for name, size in sizes.items()})), 32)
    assert [piece.threads for piece in plan.pieces[:2]] == [4, 4]
    alone = dataclasses.replace(plan, pieces=tuple(piece._replace(threads=1) for piece in plan.pieces))
    assert finished(alone, 32, 0.1) == pytest.approx(4.0)
    assert finished(plan, 32, 0.1) < 1.5


def test_a_whole_merge_writes_the_same_with_threads(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for name in ("base", "m0", "m1"):
        write(tmp_path / name, {"large": rng.standard_normal(9 * BLOCK), "small": rng.standard_normal(BLOCK)}, "bfloat16")
    paths = [str(tmp_path / name) for name in ("base", "m0", "m1")]
    assert plan_of(config(paths, "della")).pieces[0].threads == 2
    outputs = []
    for workers in (1, 2):
        out = tmp_path / f"out{workers}"
        merge(dataclasses.replace(config(paths, "della"), output_path=str(out), n_process=workers))
        outputs.append((read(out), json.loads((out / "merge_lock.json").read_text())["tensors"]))
    assert all(np.array_equal(outputs[0][0][name], outputs[1][0][name]) for name in ("large", "small"))
    assert outputs[0][1] == outputs[1][1]
