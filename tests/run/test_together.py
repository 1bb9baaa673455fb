"""Test that small tensors that are merged together come out as each does by itself."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from paddle_merge import MergeConfig, WorkError
from paddle_merge.backends.budget import DEFAULT_BUDGET
from paddle_merge.checkpoints.fingerprint import BLOCK
from paddle_merge.checkpoints.tensors import StoredEntry, stored
from paddle_merge.dtypes import BFLOAT16, FLOAT32
from paddle_merge.methods.linear import Linear
from paddle_merge.methods.shared.method import ResolvedMethod
from paddle_merge.plan.plan import Plan
from paddle_merge.plan.planner import make_plan
from paddle_merge.plan.tensor_plan import Piece, TensorPlan
from paddle_merge.recipe.request import Request
from paddle_merge.run.job import Job, Report
from paddle_merge.run.output.disk import ShardFiles
from paddle_merge.run.together import JoinedSource, groups
from paddle_merge.run.worker import Worker
from tests.support.adapters import lora
from tests.support.checkpoints import write

MOST = DEFAULT_BUDGET.together
SPECIAL = (np.nan, np.inf, -np.inf, 3e38, -3e38, 1e-45, -0.0)
MIX = ResolvedMethod(None, Linear((1.0,)))
LAYERS = {f"model.layers.{number}.mlp.{word}_proj": (7, 5, 2) for number in range(9) for word in ("up", "gate")}
LAYERS |= {f"model.layers.{number}.mlp.down_proj": (5, 7, 2) for number in range(9)}
LAYERS["model.layers.9.mlp.down_proj"] = (300, 280, 2)  # of more than a block


def model(folder: Path, seed: int, dtype: str, special: float) -> str:
    """A model of matrices, vectors, a scalar and an empty tensor; a share of the tensors holds a special value."""
    random = np.random.default_rng(seed)
    shapes = {f"{name}.weight": shape[:2] for name, shape in LAYERS.items()}
    shapes |= {f"model.layers.{number}.norm.weight": (number * number * 37,) for number in range(9)}
    shapes |= {"model.scale": (), "model.empty": (0, 3), "model.wide.weight": (200, 200)}
    tensors = {name: np.asarray(random.standard_normal(shape)) for name, shape in shapes.items()}
    for values in tensors.values():
        if values.size and random.random() < special:
            values.reshape(-1)[random.integers(values.size)] = random.choice(SPECIAL)
    tensors["model.count"] = np.arange(3)
    with np.errstate(over="ignore"):
        return str(write(folder, tensors, dtype))


def plan_of(config: MergeConfig) -> Plan:
    return make_plan(Request.of(config).checked_recipe())


def each_way(plan: Plan, folder: Path) -> list[tuple[list[Report], bytes, int]]:
    """Return the reports, the file and the bytes of progress of a merge block by block, and of one of all together."""
    found, pieces = [], list[tuple[TensorPlan, Piece]]()
    for number, _, size, _ in plan.pieces:
        step = size if plan.tensors[number].resolved.measures else BLOCK
        cuts = [(start, min(start + step, size)) for start in range(0, size, step)]
        pieces += [(plan.tensors[number], Piece(number, *ends)) for ends in cuts]
    assert max(map(len, groups(pieces, MOST))) > 10
    for all_together in (False, True):
        path, progress = folder / f"merged{all_together}", list[int]()
        path.write_bytes(b"\0" * plan.shards[0].nbytes)
        worker = Worker(Job((str(path),)), progress.append)
        reports = list(worker.merge_all(pieces)) if all_together else [worker.merge(*one) for one in pieces]
        worker.close()
        found.append((reports, path.read_bytes(), sum(progress)))
    return found


@pytest.mark.parametrize("special", [0.0, 0.1, 1.0])
@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32", "float64"])
@pytest.mark.parametrize(
    ("method", "given", "count"),
    [("linear", "", 2), ("nearswap", "t=0.1", 1), ("consensus_ta", "", 2), ("ram", "", 2), ("task_arithmetic", "", 2)],
)
def test_same_as_each_by_itself(tmp_path: Path, method: str, given: str, count: int, dtype: str, special: float) -> None:
    base, *paths = [model(tmp_path / word, seed, dtype, special) for seed, word in enumerate("abc")]
    config = MergeConfig(
        model_path_list=paths[:count],
        base_model_path=base,
        merge_method=method,
        method_parameters=[given] if given else None,
        output_path="out",
    )
    alone, joined = each_way(plan_of(config), tmp_path)
    assert joined[:2] == alone[:2]


@pytest.mark.parametrize("special", [0.0, 0.1, 1.0])
@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
@pytest.mark.parametrize(
    ("method", "given", "own"),
    [
        ("paddlenlp:ties", "reserve_p: 0.4", ("",) * 3),
        ("paddlenlp:ties", "ties_zero_sign: drop, ties_elect_type: count, rescale: false", ("",) * 3),
        ("paddlenlp:dare_linear", "reserve_p: 0.4", ("",) * 3),
        ("paddlenlp:della", "reserve_p: 0.4", ("",) * 3),
        ("ties", "weight: 1.0", ("density: 0.3", "density: 1.0", "density: 0.0")),
        ("dare_ties", "weight: 1.0", ("density: 0.3", "density: 1.0", "density: 0.0")),
        ("della", "weight: 1.0", ("density: 0.3, epsilon: 0.2", "density: 1.0", "density: 0.6, epsilon: 0.1")),
        ("breadcrumbs_ties", "weight: 1.0", ("density: 0.3, gamma: 0.1", "density: 0.6", "density: 0.9, gamma: 0.05")),
    ],
)
def test_sparsified_same_as_each_by_itself(
    tmp_path: Path, method: str, given: str, own: tuple[str, ...], dtype: str, special: float
) -> None:
    base, *paths = [model(tmp_path / f"{seed}", seed, dtype, special) for seed in range(4)]
    listed = [f"  - model: {path}\n    parameters: {{{its}}}\n" for path, its in zip(paths, own, strict=True)]
    text = f"merge_method: {method}\nbase_model: {base}\nmodels:\n{''.join(listed)}parameters: {{{given}}}\n"
    alone, joined = each_way(plan_of(MergeConfig(recipe_yaml=text, output_path="out")), tmp_path)
    assert joined[:2] == alone[:2]


@pytest.mark.parametrize("method", ["ties", "dare_ties", "della"])
def test_masks_of_tied_tensors(tmp_path: Path, method: str) -> None:
    """A tensor that has the same bytes as another in every input gets that one's masks, and so stays the same."""
    paths = []
    for seed in range(3):
        values = np.random.default_rng(seed).standard_normal((5, 40, 5))
        tensors = {f"model.layers.{number}.weight": one for number, one in enumerate(values)}
        tensors |= {"model.embed_tokens.weight": values[0].T.copy(), "lm_head.weight": values[0].T.copy()}
        paths.append(str(write(tmp_path / f"{seed}", tensors, "float32")))
    config = MergeConfig(merge_method=method, model_path_list=paths[1:], base_model_path=paths[0], reserve_p=0.5)
    plan = plan_of(config)
    worker = Worker(Job(None), lambda _: None)
    reports = {one.tensor: one for one in worker.merge_all((plan.tensors[piece.tensor], piece) for piece in plan.pieces)}
    worker.close()
    assert reports["lm_head.weight"].written == reports["model.embed_tokens.weight"].written
    assert len({report.written for report in reports.values()}) == len(reports) - 1


@pytest.mark.parametrize("special", [0.0, 0.1])
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("method", ["linear", "ties", "della"])
def test_same_with_adapters(tmp_path: Path, dtype: str, special: float, count: int, method: str) -> None:
    """With one adapter most are read together; with two each is read by itself, and merged with others."""
    base = model(tmp_path / "base", 0, dtype, special)
    adapters = [lora(tmp_path / f"lora{seed}", LAYERS, seed) for seed in range(count)]
    paths, own = ["+".join([base, *adapters])], base if method != "linear" else None
    config = MergeConfig(model_path_list=paths, base_model_path=own, merge_method=method, reserve_p=0.5, output_path="out")
    alone, joined = each_way(plan_of(config), tmp_path)
    assert joined[:2] == alone[:2]


@pytest.mark.parametrize("method", ["linear", "ties", "dare_ties", "della"])
@pytest.mark.parametrize("adapters", [0, 1, 2])
def test_tensors_without_nan_are_merged_but_once(
    tmp_path: Path, adapters: int, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What goes wrong while tensors are merged together isn't hidden by merging each by itself."""
    words = [str(lora(tmp_path / f"lora{seed}", LAYERS, seed)) for seed in range(adapters)]
    paths = ["+".join([model(tmp_path / "a", 0, "bfloat16", 0.0), *words]), model(tmp_path / "b", 1, "bfloat16", 0.0)]
    base = model(tmp_path / "base", 2, "bfloat16", 0.0) if method != "linear" else None
    plan = plan_of(MergeConfig(model_path_list=paths, base_model_path=base, merge_method=method, output_path="out"))
    pieces = [(plan.tensors[piece.tensor], piece) for piece in plan.pieces]
    by_itself, merge = list[str](), Worker.merge

    def noted(worker: Worker, tensor: TensorPlan, piece: Piece) -> Report:
        by_itself.append(tensor.name)
        return merge(worker, tensor, piece)

    monkeypatch.setattr(Worker, "merge", noted)
    worker = Worker(Job(None), lambda _: None)
    reports = list(worker.merge_all(pieces))
    worker.close()
    assert [report.tensor for report in reports] == [tensor.name for tensor, _ in pieces]
    assert by_itself == [tensor.name for (tensor, _), *more in groups(pieces, MOST) if not more]
    assert len(by_itself) < len(pieces) // 2


@pytest.mark.parametrize(("error", "told"), [(ZeroDivisionError("no"), True), (MemoryError(), False)])
def test_a_group_that_fails_is_told_of(
    tmp_path: Path, error: Exception, told: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Each tensor is then merged by itself, and comes out the same; one takes less memory than a group."""
    plan = plan_of(MergeConfig(model_path_list=[model(tmp_path / "a", 0, "float32", 0.0)] * 2, merge_method="linear"))
    pieces = [(plan.tensors[piece.tensor], piece) for piece in plan.pieces * 2]
    several = [group for group in groups(pieces, MOST) if len(group) > 1]
    assert len(several) > 1

    def read(*_: object) -> None:
        raise error

    monkeypatch.setattr(JoinedSource, "read", read)
    worker = Worker(Job(None), lambda _: None)
    caplog.clear()
    reports = list(worker.merge_all(pieces))
    assert reports == [worker.merge(*one) for one in pieces]
    worker.close()
    names = f"{several[0][0][0].name!r} to {several[0][-1][0].name!r}"
    said = f"small tensors are merged one by one, since those from {names} failed together: ZeroDivisionError: no"
    assert caplog.messages == ([said] if told else [])


def test_nothing_is_counted_twice(tmp_path: Path) -> None:
    """Bytes of progress are those of all inputs and outputs, also of tensors that are merged again by themselves."""
    paths = [model(tmp_path / word, seed, "float32", 0.1) for seed, word in enumerate("ab")]
    plan = plan_of(MergeConfig(model_path_list=paths, merge_method="linear", output_path="out"))
    alone, joined = each_way(plan, tmp_path)
    assert joined[2] == alone[2] == sum(tensor.traffic for tensor in plan.tensors)


def test_error_names_the_tensor(tmp_path: Path) -> None:
    paths = [model(tmp_path / word, seed, "float32", 0.0) for seed, word in enumerate("ab")]
    plan = plan_of(MergeConfig(model_path_list=paths, merge_method="linear", output_path="out"))
    cut = plan.tensors[20].sources[1]
    assert isinstance(cut, StoredEntry)
    with open(cut.file, "r+b") as file:
        file.truncate(cut.offset + cut.nbytes - 1)
    worker = Worker(Job(None), lambda _: None)
    before = [tensor for tensor in plan.tensors if stored(tensor.sources[1]).offset <= cut.offset]
    with pytest.raises(WorkError, match=f"ends before tensor '{cut.name}' does"):
        list(worker.merge_all((tensor, Piece(0, 0, tensor.size)) for tensor in before))
    worker.close()


@pytest.mark.parametrize(
    ("error", "words"),
    [(MemoryError(), "out of memory"), (ValueError("no"), "ValueError: no"), (OSError(28, "no"), "no")],
)
def test_error_while_writing_names_the_tensor(
    tmp_path: Path, error: Exception, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = plan_of(MergeConfig(model_path_list=[model(tmp_path / "a", 0, "float32", 0.0)] * 2, merge_method="linear"))
    pieces = [(plan.tensors[piece.tensor], piece) for piece in plan.pieces]
    group = max(groups(pieces, MOST), key=len)
    written = list[int]()

    def write(files: ShardFiles, path: str, offset: int, raw: np.ndarray) -> None:
        written.append(offset)
        if len(written) == 5:
            raise error

    monkeypatch.setattr(ShardFiles, "write", write)
    worker = Worker(Job(("nowhere",)), lambda _: None)
    with pytest.raises(WorkError, match=f"tensor '{group[4][0].name}': .*{words}"):
        list(worker.merge_all(group))
    worker.close()


def tensors(*sizes: int) -> Iterator[tuple[TensorPlan, Piece]]:
    for number, size in enumerate(sizes):
        entry = StoredEntry(f"t{number}", FLOAT32, (size,), "file", 0)
        yield TensorPlan(entry.name, (size,), (entry,), None, (0,), FLOAT32, MIX, (1.0,), 0, ""), Piece(number, 0, size)


def names(pieces: Iterator[tuple[TensorPlan, Piece]], most: int) -> list[str]:
    return [" ".join(tensor.name for tensor, _ in group) for group in groups(pieces, most)]


def test_groups_have_at_most_so_many_elements() -> None:
    assert names(tensors(90, 40, 30, 30, 1, 100, 60, 41), 100) == ["t0", "t1 t2 t3", "t4", "t5", "t6", "t7"]
    assert names(tensors(50, 50, 1), 100) == ["t0 t1", "t2"]
    assert names(tensors(), 100) == []


def test_factors_count_as_elements_of_a_group(tmp_path: Path) -> None:
    """Of a matrix of one row an adapter's factors have far more elements, and all of a group are in memory at once."""
    layers = {f"model.layers.{number}.gate": (1, 40, 2) for number in range(4)}
    base = write(tmp_path / "base", {f"{name}.weight": np.ones(shape[:2]) for name, shape in layers.items()})
    adapter = lora(tmp_path / "lora", layers, 0)
    plan = plan_of(MergeConfig(model_path_list=[f"{base}+{adapter}"], merge_method="linear", output_path="out"))
    pieces = [(tensor, Piece(0, 0, tensor.size)) for tensor in plan.tensors]
    assert [len(group) for group in groups(pieces, 2 * (40 + 2 * 41))] == [2, 2]
    assert [len(group) for group in groups(pieces, 2 * (40 + 2 * 41) - 1)] == [1, 1, 1, 1]


def test_groups_are_of_one_kind() -> None:
    found = list(tensors(1, 1, 1, 1, 1))
    found[1] = (found[1][0].__class__(**{**vars(found[1][0]), "dtype": BFLOAT16}), found[1][1])
    integers = StoredEntry("t3", FLOAT32, (1,), "file", 0)
    found[3] = (found[3][0].__class__(**{**vars(found[3][0]), "numbers": (1,), "sources": (integers,)}), found[3][1])
    assert names(iter(found), 100) == ["t0", "t1", "t2", "t3", "t4"]
