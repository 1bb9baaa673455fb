"""Test Paddle's distributed checkpoints: parts of tensors in the files of several ranks, placed by their metadata."""

from __future__ import annotations

import dataclasses
import itertools
import pickle
import subprocess
import sys
import types
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest

from paddle_merge import CheckpointError, MergeConfig, WorkError, merge
from paddle_merge.checkpoints.files import Files
from paddle_merge.checkpoints.open import open_checkpoint
from tests.support import checkpoints
from tests.support.checkpoints import damaged
from tests.support.sweeps import few

RANDOM = np.random.default_rng(8)
MODULE = "paddle.distributed.flex_checkpoint.dcp.metadata"


def _class(name: str, fields: list[str], frozen: bool = True) -> Any:
    made = dataclasses.make_dataclass(name, [(field, Any, None) for field in fields], frozen=frozen)
    made.__module__ = MODULE
    return made


Described = _class(
    "LocalTensorMetadata", ["global_offset", "local_shape", "dtype", "global_shape", "is_flattened", "flattened_range"]
)
Index = _class(
    "LocalTensorIndex", ["tensor_key", "global_offset", "is_flattened", "flattened_range", "replica_id", "local_shape"]
)
Metadata = _class("Metadata", ["state_dict_metadata", "storage_metadata", "flat_mapping"], frozen=False)


Box = tuple[tuple[int, ...], tuple[int, ...]]


def run(*models: Path, out: Path, **fields: Any) -> Path:
    """Merge; the output folder."""
    merge(MergeConfig(model_path_list=[str(path) for path in models], output_path=str(out), **fields))
    return out


def save(
    folder: Path,
    tensors: dict[str, np.ndarray],
    boxes: dict[str, list[Box]],
    uid: int = 0,
    flat: tuple[str, ...] = (),
    protocol: int = 4,
) -> Metadata:
    """Rank k holds the k-th box of every tensor; of those in `flat`, its elements cut in two, in different ranks' files."""
    folder.mkdir(parents=True, exist_ok=True)
    ranks: dict[int, dict[str, np.ndarray]] = {}
    described: dict[str, list[Any]] = {}
    stored: dict[Any, str] = {}
    for name, x in tensors.items():
        number = 0
        for at, shape in boxes[name]:
            box = x[tuple(slice(a, a + n) for a, n in zip(at, shape, strict=True))]
            cut = box.size // 3 + 1
            for span in [(0, cut), (cut, box.size)] if name in flat else [None]:
                ranks.setdefault(number, {})[name] = box if span is None else box.reshape(-1)[slice(*span)]
                described.setdefault(name, []).append(Described(at, shape, "float32", x.shape, span is not None, span))
                stored[Index(name, at, span is not None, span, None, shape)] = f"{number}_{uid}.distcp"
                number += 1
    for rank, arrays in ranks.items():
        (folder / f"{rank}_{uid}.distcp").write_bytes(pickle.dumps(arrays, protocol=protocol))
    metadata = Metadata(described, stored, {name: (name,) for name in tensors})
    write_metadata(folder, metadata, uid)
    return metadata


def write_metadata(folder: Path, metadata: Any, uid: int = 0) -> None:
    """pickle writes our classes as Paddle's, and needs to find them where Paddle's are."""
    module = types.ModuleType(MODULE)
    for kind in (Described, Index, Metadata):
        setattr(module, kind.__name__, kind)
    with mock.patch.dict(sys.modules, {MODULE: module, "paddle": types.ModuleType("paddle")}):
        (folder / f"{uid}.metadata").write_bytes(pickle.dumps(metadata, protocol=4))


def cut(shape: tuple[int, ...], *cuts: tuple[int, ...]) -> list[Box]:
    """All boxes of a tensor that is cut at these places of its dimensions."""
    edges = [list(zip((0, *places), (*places, size), strict=True)) for places, size in zip(cuts, shape, strict=True)]
    return [(tuple(low for low, _ in box), tuple(high - low for low, high in box)) for box in itertools.product(*edges)]


BOXES = {
    "rows": cut((30, 17), (11,), ()),
    "columns": cut((30, 17), (), (4, 9)),
    "both": cut((30, 17), (7,), (5,)),
    "whole": cut((30, 17), (), ()),
    "vector": cut((23,), (5, 6)),
    "conv": cut((3, 4, 5), (1,), (), (2,)),
    "scalar": [((), ())],
    "none": [((0, 0), (0, 4))],
}
SHAPES = {name: tuple(a + n for a, n in zip(*boxes[-1], strict=True)) for name, boxes in BOXES.items()}


def values() -> dict[str, np.ndarray]:
    return {name: RANDOM.normal(size=shape) for name, shape in SHAPES.items()}


@pytest.mark.parametrize("protocol", few([4, 2]))
@pytest.mark.parametrize("flat", few([("rows", "both", "conv", "vector", "whole"), ()]))
@pytest.mark.parametrize("dtype", few(["bfloat16", "float32"]))
def test_merges_as_safetensors_do(tmp_path: Path, dtype: str, flat: tuple[str, ...], protocol: int) -> None:
    models = [values(), values()]
    for name, tensors in zip("ab", models, strict=True):
        checkpoints.write(tmp_path / f"s{name}", tensors, dtype)
        bits = {key: checkpoints.to_bits(x, dtype) for key, x in tensors.items()}
        save(tmp_path / name / "model_state", bits, BOXES, flat=flat, protocol=protocol)
    if flat and protocol == 2:
        with pytest.raises(CheckpointError, match="save it again with pickle protocol 4"):
            run(tmp_path / "a", tmp_path / "b", out=tmp_path / "o")
        return
    for method in ("linear", "ties"):
        fields: dict[str, Any] = {"merge_method": method, "base_model_path": str(tmp_path / "sa")}
        expected = run(tmp_path / "sa", tmp_path / "sb", out=tmp_path / f"o{method}", **fields)
        for number, (a, b) in enumerate((("a", "b"), ("a/model_state", "sb"), ("sa", "b"))):
            found = run(tmp_path / a, tmp_path / b, out=tmp_path / f"o{method}{number}", n_process=1 + number % 2, **fields)
            assert checkpoints.dtypes(found) == checkpoints.dtypes(expected)
            for name, x in checkpoints.read(expected).items():
                assert np.array_equal(checkpoints.read(found)[name], x), name


def test_written_by_paddle(tmp_path: Path) -> None:
    code = f"""
import paddle
from paddle.distributed import save_state_dict
paddle.seed(4)
for name in "ab":
    state = {{"w": paddle.randn([40, 30]), "b": paddle.randn([7]).astype("bfloat16"), "i": paddle.arange(3)}}
    save_state_dict(state, {str(tmp_path)!r} + f"/{{name}}/model_state")
    paddle.save(state, {str(tmp_path)!r} + f"/{{name}}/plain.pdparams")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    found = run(tmp_path / "a", tmp_path / "b", out=tmp_path / "o")
    expected = run(tmp_path / "a/plain.pdparams", tmp_path / "b/plain.pdparams", out=tmp_path / "p")
    assert set(checkpoints.read(found)) == {"w", "b", "i"}
    for name, x in checkpoints.read(expected).items():
        assert np.array_equal(checkpoints.read(found)[name], x)


def test_the_highest_id_and_the_master_weights(tmp_path: Path) -> None:
    boxes = {"w": cut((4,), (2,))}
    for uid in (2, 10, 9):
        save(tmp_path / "a" / "model_state", {"w": np.full(4, uid, np.float32)}, boxes, uid)
    save(tmp_path / "a" / "master_weight", {"w": np.full(4, 7, np.float32)}, boxes)
    out = run(tmp_path / "a", tmp_path / "a", out=tmp_path / "o")
    assert checkpoints.read(out)["w"].tolist() == [10.0] * 4
    out = run(tmp_path / "a", tmp_path / "a", out=tmp_path / "m", merge_prefix="master_weights")
    assert checkpoints.read(out, "master_weights")["w"].tolist() == [7.0] * 4


def test_names_that_an_optimizer_gives(tmp_path: Path) -> None:
    """Paddle's optimizers call the master weight of w "w.w_0" (adamw.py, sharded_state_dict)."""
    weights = {"w.w_0": np.ones(4, np.float32), "b": np.ones(2, np.float32)}
    boxes = {name: cut(x.shape, ()) for name, x in weights.items()}
    save(tmp_path / "a" / "master_weight", weights, boxes)
    save(tmp_path / "a" / "model_state", weights, boxes)
    assert set(open_checkpoint(str(tmp_path / "a"), "master_weights").tensors) == {"w", "b"}
    assert set(open_checkpoint(str(tmp_path / "a" / "master_weight")).tensors) == {"w", "b"}
    assert set(open_checkpoint(str(tmp_path / "a")).tensors) == {"w.w_0", "b"}
    both = {"w.w_0": np.ones(4, np.float32), "w": np.ones(4, np.float32)}
    save(tmp_path / "ema_state", both, {name: cut((4,), ()) for name in both})
    assert set(open_checkpoint(str(tmp_path / "ema_state")).tensors) == set(both)


def test_replicas_and_older_metadata(tmp_path: Path) -> None:
    x = np.arange(8, dtype=np.float32)
    metadata = save(tmp_path, {"w": x}, {"w": cut((8,), (3,))})
    (tmp_path / "5_0.distcp").write_bytes((tmp_path / "0_0.distcp").read_bytes())
    first = next(iter(metadata.storage_metadata))
    metadata.storage_metadata[dataclasses.replace(first, replica_id=1)] = "5_0.distcp"
    write_metadata(tmp_path, metadata)
    assert checkpoints.read(run(tmp_path, tmp_path, out=tmp_path / "o"))["w"].tolist() == x.tolist()

    shards = [dataclasses.replace(shard, global_shape=None, dtype=None) for shard in metadata.state_dict_metadata["w"]]
    stored = {dataclasses.replace(index, local_shape=None): file for index, file in metadata.storage_metadata.items()}
    write_metadata(tmp_path, Metadata({"w": shards}, stored))
    assert checkpoints.read(run(tmp_path, tmp_path, out=tmp_path / "p"))["w"].tolist() == x.tolist()


def replace_first(metadata: Any, **changes: Any) -> None:
    index, file = next(iter(metadata.storage_metadata.items()))
    del metadata.storage_metadata[index]
    metadata.storage_metadata[dataclasses.replace(index, **changes)] = file


def describe(metadata: Any, **changes: Any) -> None:
    shards = metadata.state_dict_metadata["w"]
    shards[0] = dataclasses.replace(shards[0], **changes)


def place(metadata: Any, file: Any) -> None:
    metadata.storage_metadata[next(iter(metadata.storage_metadata))] = file


DAMAGE: dict[str, tuple[Any, str]] = {
    "a shard unplaced": (lambda m: m.storage_metadata.pop(next(iter(m.storage_metadata))), "a part is missing"),
    "nothing placed": (lambda m: m.storage_metadata.clear(), "locates no shard of w"),
    "a file that isn't there": (lambda m: place(m, "7_0.distcp"), "the files of all ranks are needed"),
    "a file elsewhere": (lambda m: place(m, "../0_0.distcp"), "outside its folder"),
    "another rank's file": (lambda m: place(m, "1_0.distcp"), "should be [3, 4] in 1_0.distcp, but is [2, 4]"),
    "no file": (lambda m: place(m, 3), "locates something that is not a tensor"),
    "a tensor that no file holds": (lambda m: replace_first(m, tensor_key="v"), "'v' that it doesn't describe"),
    "an undescribed place": (lambda m: replace_first(m, global_offset=(1, 0)), "that it doesn't describe"),
    "a negative place": (lambda m: replace_first(m, global_offset=(-1, 0)), "without a position"),
    "different shapes": (lambda m: describe(m, global_shape=(9, 9)), "different shapes"),
    "no metadata": (lambda m: setattr(m, "state_dict_metadata", None), "is not the metadata"),
    "another's metadata": (lambda m: setattr(m, "state_dict_metadata", {"w": [3]}), "something that is not a tensor"),
    "a flat shard": (lambda m: describe(m, is_flattened=True), "without a range"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_metadata_that_lies_is_refused(tmp_path: Path, name: str) -> None:
    damage, words = DAMAGE[name]
    metadata = save(tmp_path, {"w": np.ones((5, 4), np.float32)}, {"w": cut((5, 4), (3,), ())})
    damage(metadata)
    write_metadata(tmp_path, metadata)
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(str(tmp_path))
    assert words in caught.value.problems[0]
    assert str(tmp_path) in caught.value.problems[0]


def test_overlaps_extra_tensors_and_single_files(tmp_path: Path) -> None:
    x = {"w": np.ones((5, 4), np.float32)}
    save(tmp_path / "a", x, {"w": [((0, 0), (3, 4)), ((2, 0), (3, 4))]})
    with pytest.raises(CheckpointError, match="parts that overlap"):
        open_checkpoint(str(tmp_path / "a"))
    save(tmp_path / "b", x, {"w": [((0, 0), (5, 4))]})
    with pytest.raises(CheckpointError, match="give the folder"):
        open_checkpoint(str(tmp_path / "b" / "0_0.distcp"))
    (tmp_path / "b" / "0_0.distcp").write_bytes(pickle.dumps({**x, "v": np.ones(2)}, protocol=4))
    with pytest.raises(CheckpointError, match="'v' is not in the metadata"):
        open_checkpoint(str(tmp_path / "b"))
    (tmp_path / "b" / "0.metadata").unlink()
    with pytest.raises(CheckpointError, match="that describes its content"):
        open_checkpoint(str(tmp_path / "b"))


@pytest.mark.parametrize("trials", [100, pytest.param(2000, marks=pytest.mark.exhaustive)])
def test_flipped_bits_and_cut_files(tmp_path: Path, trials: int) -> None:
    save(tmp_path, values(), BOXES, flat=("rows",))
    files = sorted(tmp_path.iterdir())
    outcomes, nameless = {"read": 0, "refused": 0}, list[str]()
    for trial in range(trials):
        file = files[trial % len(files)] if trial % 3 else tmp_path / "0.metadata"
        good = file.read_bytes()
        file.write_bytes(damaged(good, RANDOM, cut=trial % 10 == 0))
        reader = Files()
        try:
            for entry in open_checkpoint(str(tmp_path)).tensors.values():
                if entry.nbytes:
                    reader.read(entry, 0, np.empty(entry.nbytes // entry.dtype.itemsize, entry.dtype.raw))
            outcomes["read"] += 1
        except (CheckpointError, WorkError) as error:
            nameless += [sentence for sentence in error.problems if str(tmp_path) not in sentence]
            outcomes["refused"] += 1
        reader.close()
        file.write_bytes(good)
    assert nameless == []
    assert min(outcomes.values()) > trials // 100
