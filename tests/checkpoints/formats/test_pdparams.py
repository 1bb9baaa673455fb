"""Test Paddle's .pdparams: each form that paddle.save writes is merged like the weights in safetensors; damage; memory."""

from __future__ import annotations

import json
import pickle
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from paddle_merge import CheckpointError, MergeConfig, WorkError, merge
from paddle_merge.backends.engine import import_paddle
from paddle_merge.checkpoints import files, gather
from paddle_merge.checkpoints.files import Files
from paddle_merge.checkpoints.open import open_checkpoint
from paddle_merge.checkpoints.parts import assemble, row_major
from paddle_merge.checkpoints.tensors import Part, StoredEntry
from paddle_merge.dtypes import BFLOAT16
from paddle_merge.errors import MalformedError
from tests.support import checkpoints
from tests.support.checkpoints import damaged
from tests.support.sweeps import few

RANDOM = np.random.default_rng(5)
MODEL = "model_state.pdparams"


def run(*models: Path, out: Path, **fields: Any) -> Path:
    """Merge; the output folder."""
    merge(MergeConfig(model_path_list=[str(path) for path in models], output_path=str(out), **fields))
    return out


def values() -> dict[str, np.ndarray]:
    """One model's weights."""
    return {
        "w": RANDOM.normal(size=(30, 17)),
        "b": RANDOM.normal(size=17),
        "conv": RANDOM.normal(size=(3, 4, 5, 2)),
        "scale": np.array(RANDOM.normal()),
        "none": np.ones((0, 3)),
        "steps": np.arange(4),
        "mask": np.array([[True], [False]]),
    }


def stored(tensors: dict[str, np.ndarray], dtype: str) -> dict[str, np.ndarray]:
    """As NumPy holds what Paddle stores: bfloat16 as uint16."""
    return {name: checkpoints.to_bits(x, dtype) if x.dtype.kind == "f" else x for name, x in tensors.items()}


def dump(folder: Path, content: Any, protocol: int = 4, name: str = MODEL) -> Path:
    """A folder with this file, as paddle.save writes what is no tensor."""
    folder.mkdir(exist_ok=True)
    (folder / name).write_bytes(pickle.dumps(content, protocol=protocol))
    return folder


def plain(tensors: dict[str, np.ndarray]) -> object:
    return {**tensors, "StructuredToParameterName@@": {name: f"linear_0.{name}" for name in tensors}}


def pairs(tensors: dict[str, np.ndarray]) -> object:
    return {name: (f"linear_0.{name}", x) for name, x in tensors.items()}


def fortran(tensors: dict[str, np.ndarray]) -> object:
    return {name: np.asfortranarray(x) if x.ndim > 1 else x for name, x in tensors.items()}


def sliced(tensors: dict[str, np.ndarray]) -> object:
    """As protocols 2 and 3 hold large arrays: paddle.save's unpack_big_param."""
    content: dict[str, Any] = {"UnpackBigParamInfor@@": {}}
    for name, x in tensors.items():
        cuts = np.array_split(x.reshape(-1), 3)
        if x.ndim < 2 or not x.size:
            content[name] = x
            continue
        keys = [f"{name}@@.{number}" for number in range(3)]
        content |= dict(zip(keys, cuts, strict=True))
        content["UnpackBigParamInfor@@"][name] = {"OriginShape": x.shape, "slices": keys}
    return content


FORMS: list[Callable[[dict[str, np.ndarray]], object]] = [plain, pairs, fortran, sliced]


@pytest.mark.parametrize("dtype", ["bfloat16", "float64"])
@pytest.mark.parametrize("protocol", few([4, 2, 3], 2))
@pytest.mark.parametrize("form", few(FORMS, 2), ids=lambda form: form.__name__)
def test_every_form_merges_as_safetensors_do(tmp_path: Path, form: Any, protocol: int, dtype: str) -> None:
    one, two = values(), values()
    expected = checkpoints.read(
        run(checkpoints.write(tmp_path / "a", one, dtype), checkpoints.write(tmp_path / "b", two, dtype), out=tmp_path / "o")
    )
    a = dump(tmp_path / "pa", form(stored(one, dtype)), protocol)
    for other in (dump(tmp_path / "pb", form(stored(two, dtype)), protocol), tmp_path / "b"):
        found = checkpoints.read(run(a, other, out=tmp_path / f"o-{other.name}", n_process=1 + (other.name == "b")))
        assert found.keys() == expected.keys()
        for name, x in expected.items():
            assert x.dtype == found[name].dtype
            assert np.array_equal(x, found[name]), name


@pytest.mark.parametrize("protocol", [2, 3, 4])
def test_written_by_paddle(tmp_path: Path, protocol: int) -> None:
    paddle = import_paddle()
    paddle.seed(3)
    state = {
        "w": paddle.randn([70, 50]),
        "h": paddle.randn([9]).astype("bfloat16"),
        "s": paddle.to_tensor(2.5),
        "i": paddle.arange(3),
    }
    for name, content in (("state", state), ("mixed", {**state, "n": np.float32(4)})):
        (tmp_path / name).mkdir()
        paddle.save(content, str(tmp_path / name / MODEL), protocol=protocol)
        found = checkpoints.read(run(tmp_path / name, tmp_path / name, out=tmp_path / f"o-{name}"))
        assert found.keys() == content.keys()
        for key, tensor in content.items():
            expected = tensor.astype("float64").numpy() if hasattr(tensor, "place") else np.float64(tensor)
            assert np.array_equal(found[key], expected), key


def test_safetensors_under_paddles_name(tmp_path: Path) -> None:
    """paddle.save(safetensors=True) writes them under any name."""
    a = checkpoints.write(tmp_path / "a", {"w": np.ones(3)})
    (a / "model.safetensors").rename(a / MODEL)
    b = dump(tmp_path / "b", {"w": np.full(3, 3, np.float32)})
    assert checkpoints.read(run(a, b, out=tmp_path / "o"))["w"].tolist() == [2.0] * 3


def test_sharded_and_master_weights_and_files(tmp_path: Path) -> None:
    names = ["model_state-00001-of-00002.pdparams", "model_state-00002-of-00002.pdparams"]
    for folder, value in (("a", 1), ("b", 2)):
        for name, key in zip(names, "wv", strict=True):
            dump(tmp_path / folder, {key: np.full(3, value, np.float32)}, name=name)
        dump(tmp_path / folder, {"w": np.full(3, value * 10, np.float32)}, name="master_weights.pdparams")
        index = {"metadata": {"total_size": 24}, "weight_map": dict(zip("wv", names, strict=True))}
        (tmp_path / folder / f"{MODEL}.index.json").write_text(json.dumps(index))
    out = run(tmp_path / "a", tmp_path / "b", out=tmp_path / "o")
    assert {name: x.tolist() for name, x in checkpoints.read(out).items()} == {"w": [1.5] * 3, "v": [1.5] * 3}
    out = run(tmp_path / "a", tmp_path / "b", out=tmp_path / "m", merge_prefix="master_weights")
    assert checkpoints.read(out, "master_weights")["w"].tolist() == [15.0] * 3
    out = run(tmp_path / "a" / names[0], tmp_path / "b" / names[0], out=tmp_path / "f")
    assert checkpoints.read(out)["w"].tolist() == [1.5] * 3

    index["weight_map"]["w"] = names[1]
    (tmp_path / "b" / f"{MODEL}.index.json").write_text(json.dumps(index))
    with pytest.raises(
        CheckpointError, match="tensor 'w' is in no file, but the index says that it is in model_state-00002"
    ):
        run(tmp_path / "a", tmp_path / "b", out=tmp_path / "x")


def test_safetensors_come_before_pdparams(tmp_path: Path) -> None:
    """Loaders leave a converted model_state.pdparams beside the safetensors it came from."""
    a = dump(checkpoints.write(tmp_path / "a", {"w": np.ones(2)}), {"w": np.full(2, 9, np.float32)})
    assert checkpoints.read(run(a, a, out=tmp_path / "o"))["w"].tolist() == [1.0, 1.0]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"model": {"w": np.ones(2)}, "opt": {}, "epoch": 3}, "save that one alone, for example with state = paddle.load("),
        ({"w": np.ones(2), "epoch": 3}, "holds 'epoch', which is not a tensor"),
        ({3: np.ones(2)}, "holds '3', which is not a valid name"),
        (np.ones(2), "its weights have no names"),
        ([np.ones(2)], "its weights have no names"),
        ({"w": np.ones(2, np.complex64)}, "tensor 'w' has dtype c8, which can't be merged"),
        ({"w": np.ones(2, ">f4")}, "can't be merged"),
        ({"w@@.0": np.ones(2), "UnpackBigParamInfor@@": {"w": {"OriginShape": [2], "slices": ["v"]}}}, "is damaged"),
        ({"w@@.0": np.ones(2), "UnpackBigParamInfor@@": {"w": {"OriginShape": [3], "slices": ["w@@.0"]}}}, "is missing"),
        ({"w@@.0": np.ones(2), "UnpackBigParamInfor@@": [3]}, "is damaged"),
        ({}, "holds no tensors"),
    ],
)
def test_what_else_is_refused(tmp_path: Path, content: Any, words: str) -> None:
    a = dump(tmp_path / "a", content)
    with pytest.raises(CheckpointError) as caught:
        run(a, a, out=tmp_path / "o")
    assert words in caught.value.problems[0]


def test_files_that_are_nothing(tmp_path: Path) -> None:
    for content in (b"", b"\0" * 100, b"garbage", b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.\x80\x02M\xe9\x03."):
        (tmp_path / MODEL).write_bytes(content)
        with pytest.raises(CheckpointError, match=MODEL):
            open_checkpoint(str(tmp_path))


# --- damage, and size -------------------------------------------------------------------------------------------------


def read_all(path: Path) -> dict[str, bytes]:
    reader, found = Files(), {}
    try:
        for name, entry in open_checkpoint(str(path)).tensors.items():
            raw = np.empty(entry.nbytes // entry.dtype.itemsize, entry.dtype.raw)
            if raw.size:
                reader.read(entry, 0, raw)
            found[name] = raw.tobytes()
    finally:
        reader.close()
    return found


@pytest.mark.parametrize("protocol", [2, 3, 4])
@pytest.mark.parametrize("trials", [400, pytest.param(3000, marks=pytest.mark.exhaustive)])
def test_flipped_bits_and_cut_files(tmp_path: Path, protocol: int, trials: int) -> None:
    """Thousands of damaged files: each is read as far as its bytes say, or refused in one sentence per problem."""
    tensors = stored({"w": RANDOM.normal(size=(3, 2)), "b": RANDOM.normal(size=3)}, "bfloat16")
    good = (dump(tmp_path, plain({**tensors, "f": np.asfortranarray(tensors["w"])}), protocol) / MODEL).read_bytes()
    file = tmp_path / "damaged.pdparams"
    outcomes, nameless = {"read": 0, "refused": 0}, list[str]()
    for trial in range(trials):
        file.write_bytes(damaged(good, RANDOM, cut=trial % 10 == 0))
        try:
            read_all(file)
            outcomes["read"] += 1
        except (CheckpointError, WorkError) as error:
            nameless += [sentence for sentence in error.problems if str(file) not in sentence]
            outcomes["refused"] += 1
    assert nameless == []
    assert min(outcomes.values()) > trials // 100


@pytest.mark.parametrize("protocol", [3, 4])
def test_headers_alone_are_read(tmp_path: Path, protocol: int) -> None:
    """Two payloads of 400 MB that aren't there (holes): opened in a few megabytes, without reading them."""
    few, size = 70_000, 100_000_000  # so few that it is as long a number, so many that they lie outside of frames
    small = pickle.dumps({"w": np.zeros(few, np.float32), "v": np.zeros(few, np.float32)}, protocol=protocol)
    wide = {3: b"B" + struct.pack("<I", 4 * size), 4: b"\x8e" + struct.pack("<Q", 4 * size)}[protocol]
    narrow = b"B" + struct.pack("<I", 4 * few)
    count, counts = (b"J" + struct.pack("<i", number) + b"\x85" for number in (few, size))
    pieces = small.replace(count, counts).split(narrow + bytes(4 * few))
    assert len(pieces) == 3
    with open(tmp_path / MODEL, "wb") as file:
        for number, piece in enumerate(pieces):
            file.write(piece)
            if number < 2:
                file.write(wide)
                file.seek(4 * size, 1)
    code = f"""
import resource
from paddle_merge.checkpoints.open import open_checkpoint
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for _ in range(20):
    checkpoint = open_checkpoint({str(tmp_path)!r})
assert [entry.nbytes for entry in checkpoint.tensors.values()] == [{4 * size}] * 2
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert int(done.stdout) < 20_000  # KiB


def test_protocol_2_is_read_without_being_held(tmp_path: Path) -> None:
    """Its payloads are text, where places can't be computed; an index of them is made, and pieces are decoded."""
    one, two = (RANDOM.integers(0, 2**15, (1500, 700)).astype(np.uint16) for _ in range(2))
    paths = [dump(tmp_path / name, {"w": x}, protocol=2) for name, x in (("a", one), ("b", two))]
    (entry,) = open_checkpoint(str(paths[0])).tensors.values()
    (part,) = entry.parts
    assert len(part.text) < 100
    direct = run(dump(tmp_path / "c", {"w": one}), dump(tmp_path / "d", {"w": two}), out=tmp_path / "o4")
    for method in ("linear", "della"):
        fields = {"merge_method": method, "base_model_path": str(paths[0])}
        direct = run(tmp_path / "c", tmp_path / "d", out=tmp_path / f"{method}4", **fields)
        for workers in (1, 2):
            out = run(*paths, out=tmp_path / f"{method}{workers}", n_process=workers, **fields)
            assert (out / "model.safetensors").read_bytes() == (direct / "model.safetensors").read_bytes()


def test_a_file_cut_while_merging_is_said(tmp_path: Path) -> None:
    for protocol in (2, 4):
        file = dump(tmp_path / "a", {"w": np.asfortranarray(np.ones((900, 70), np.float32))}, protocol) / MODEL
        (entry,) = open_checkpoint(str(file)).tensors.values()
        file.write_bytes(file.read_bytes()[:100_000])
        with pytest.raises(WorkError, match="ends before tensor 'w' does"):
            Files().read(entry, 0, np.empty(63000, np.float32))


# --- parts ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("gap", "chunk", "panel", "few"), [(1 << 12, 1 << 20, 16 << 20, 4096), (0, 16, 1 << 12, 64), (24, 64, 5000, 8)]
)
@pytest.mark.parametrize(
    ("shape", "cuts"),
    [
        ((), []),
        ((11,), [(3, 7)]),
        ((7, 5), [(2,), (1, 3)]),
        ((60, 90), [(), ()]),
        ((60, 90), [(), (30,)]),
        ((60, 90), [(17,), ()]),
        ((3, 4, 5, 6), [(1,), (), (2,), ()]),
        ((9, 1, 20, 3), [(), (), (5, 6), ()]),
    ],
)
def test_any_piece_of_any_parts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shape: Any, cuts: Any, gap: int, chunk: int, panel: int, few: int
) -> None:
    """A tensor cut into boxes, each stored with its dimensions in any order: every range of elements is what it is."""
    for module, name, value in (
        (gather, "GAP", gap),
        (gather, "CHUNK", chunk),
        (files, "FEW", few),
    ):
        monkeypatch.setattr(module, name, value)
    random = np.random.default_rng(1)
    tensor = random.integers(0, 65535, shape).astype("<u2")
    edges = [list(zip((0, *cut), (*cut, size), strict=True)) for cut, size in zip(cuts, shape, strict=True)]
    boxes: list[list[tuple[int, int]]] = [[]]
    for axis in edges:
        boxes = [[*box, edge] for box in boxes for edge in axis]
    for order in {tuple(random.permutation(len(shape)).tolist()) for _ in range(6)}:
        file, content, parts = tmp_path / f"{order}", bytearray(b"head"), []
        for box in boxes:
            piece = tensor[tuple(slice(*edge) for edge in box)]
            laid = np.array(piece.transpose(order), order="C")
            strides = [0] * len(shape)
            for axis, stride in zip(order, row_major(laid.shape), strict=True):
                strides[axis] = stride
            parts.append(Part(str(file), len(content), tuple(low for low, _ in box), piece.shape, tuple(strides)))
            content += laid.tobytes()
        file.write_bytes(content)
        entry = assemble("w", BFLOAT16, tensor.shape, parts[::-1])
        reader = Files(panel=panel)
        for _ in range(40):
            start, stop = sorted(random.integers(0, tensor.size + 1, 2))
            out = np.full(stop - start, 7, np.uint16)
            reader.read(entry, start, out)
            assert np.array_equal(out, tensor.reshape(-1)[start:stop])
        reader.close()


def test_parts_that_are_the_whole_in_order_are_plain() -> None:
    whole = Part("f", 40, (0, 0), (3, 4), (4, 1))
    assert assemble("w", BFLOAT16, (3, 4), [whole]) == StoredEntry("w", BFLOAT16, (3, 4), "f", 40)
    assert assemble("w", BFLOAT16, (3, 0), [Part("f", 40, (0, 0), (3, 0), (0, 1))]).parts == ()


@pytest.mark.parametrize(
    ("parts", "words"),
    [
        ([((0, 0), (3, 3))], "a part is missing"),
        ([((0, 0), (3, 3)), ((0, 2), (3, 2))], "overlap"),
        ([((0, 0), (3, 4)), ((0, 0), (3, 4))], "overlap"),
        ([((0, 1), (3, 4))], "has a part"),
        ([((0,), (11,))], "a part is missing"),
        ([((0,), (6,)), ((5,), (7,))], "overlap"),
        ([((0,), (8,)), ((2, 0), (1, 4))], "partly as boxes and partly as flattened ranges"),
    ],
)
def test_parts_that_are_not_the_whole(parts: Any, words: str) -> None:
    given = [Part("f", 0, at, shape, row_major(shape)) for at, shape in parts]
    with pytest.raises(MalformedError, match=words):
        assemble("w", BFLOAT16, (3, 4), given)


def test_a_transposed_matrix_in_few_reads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    matrix = RANDOM.integers(0, 65535, (3000, 4000)).astype(np.uint16)
    (tmp_path / "f").write_bytes(matrix.T.tobytes())
    entry = assemble("w", BFLOAT16, matrix.shape, [Part(str(tmp_path / "f"), 0, (0, 0), matrix.shape, (1, 3000))])
    calls = 0
    fill = Files._fill

    def count(self: Files, *arguments: Any) -> None:
        nonlocal calls
        calls += 1
        fill(self, *arguments)

    monkeypatch.setattr(Files, "_fill", count)
    reader, out = Files(), np.empty(1 << 16, np.uint16)
    for start in range(0, matrix.size, 1 << 16):
        piece = out[: min(1 << 16, matrix.size - start)]
        reader.read(entry, start, piece)
        assert np.array_equal(piece, matrix.reshape(-1)[start:][: 1 << 16])
    assert calls <= 2 * 4000
