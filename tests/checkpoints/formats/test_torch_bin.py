"""Test torch's pytorch_model.bin: views of storages in a zip, written here byte by byte as torch does."""

from __future__ import annotations

import json
import struct
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from paddle_merge import CheckpointError, MergeConfig, WorkError, merge
from paddle_merge.checkpoints.files import Files
from paddle_merge.checkpoints.open import open_checkpoint
from tests.support import checkpoints
from tests.support.checkpoints import damaged

RANDOM = np.random.default_rng(6)
STORAGES = {"<f4": "FloatStorage", "<f8": "DoubleStorage", "<f2": "HalfStorage", "<u2": "BFloat16Storage",
            "<i8": "LongStorage", "|u1": "ByteStorage", "|b1": "BoolStorage"}  # fmt: skip
MODEL = "pytorch_model.bin"


def run(*models: Path, out: Path, **fields: Any) -> Path:
    """Merge; the output folder."""
    merge(MergeConfig(model_path_list=[str(path) for path in models], output_path=str(out), **fields))
    return out


def word(module: str, name: str) -> bytes:
    return f"c{module}\n{name}\n".encode()


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value.encode())) + value.encode()


def numbers(values: Any) -> bytes:
    return b"(" + b"".join(b"J" + struct.pack("<i", value) for value in values) + b"t"


def storage(kind: bytes, key: str, count: int) -> bytes:
    return b"(" + text("storage") + kind + text(key) + text("cpu") + b"J" + struct.pack("<i", count) + b"tQ"


def tensor(where: bytes, offset: int, shape: Any, strides: Any) -> bytes:
    """torch._utils._rebuild_tensor_v2(storage, offset, shape, strides, False, OrderedDict())."""
    hooks = b"\x89" + word("collections", "OrderedDict") + b")R"
    place = b"J" + struct.pack("<i", offset) + numbers(shape) + numbers(strides)
    return word("torch._utils", "_rebuild_tensor_v2") + b"(" + where + place + hooks + b"tR"


def pickled(tensors: dict[str, bytes]) -> bytes:
    """An OrderedDict with the _metadata that nn.Module.state_dict gives it."""
    items = b"".join(text(name) + code for name, code in tensors.items())
    ordered = word("collections", "OrderedDict") + b")R"
    return b"\x80\x02" + ordered + b"(" + items + b"u}" + text("_metadata") + ordered + b"sb."


def write_zip(file: Path, code: bytes, members: dict[str, bytes], byteorder: bytes = b"little", zip64: bool = False) -> Path:
    file.parent.mkdir(exist_ok=True, parents=True)
    with zipfile.ZipFile(file, "w") as archive:
        contents = {"data.pkl": code, "byteorder": byteorder, **{f"data/{key}": data for key, data in members.items()}}
        for name, data in contents.items():
            with archive.open(f"archive/{name}", "w", force_zip64=zip64) as member:
                member.write(data)
    return file


def array_code(key: str, x: np.ndarray) -> bytes:
    """One contiguous tensor that is a whole storage."""
    strides = [stride // x.itemsize for stride in np.empty(x.shape, x.dtype).strides]
    return tensor(storage(word("torch", STORAGES[x.dtype.str]), key, x.size), 0, x.shape, strides)


def write(folder: Path, tensors: dict[str, np.ndarray], name: str = MODEL, **options: Any) -> Path:
    keys = {name: str(number) for number, name in enumerate(tensors)}
    code = pickled({name: array_code(keys[name], x) for name, x in tensors.items()})
    write_zip(folder / name, code, {keys[name]: x.tobytes() for name, x in tensors.items()}, **options)
    return folder


def values(dtype: str) -> dict[str, np.ndarray]:
    floats = {"w": RANDOM.normal(size=(30, 17)), "b": RANDOM.normal(size=17), "s": np.array(2.5), "none": np.ones((0, 3))}
    stored = {name: checkpoints.to_bits(x, dtype) for name, x in floats.items()}
    return {**stored, "steps": np.arange(4), "mask": np.array([True, False])}


@pytest.mark.parametrize("zip64", [False, True])
@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32", "float64"])
def test_merges_as_safetensors_do(tmp_path: Path, dtype: str, zip64: bool) -> None:
    bits = [values(dtype), values(dtype)]
    for name, tensors in zip("ab", bits, strict=True):
        write(tmp_path / name, tensors, zip64=zip64)
        whole = {key: checkpoints.from_bits(x, dtype) if x.dtype.str != "<i8" else x for key, x in tensors.items()}
        whole["mask"] = tensors["mask"]
        checkpoints.write(tmp_path / f"s{name}", whole, dtype, format="pt")
    expected = run(tmp_path / "sa", tmp_path / "sb", out=tmp_path / "o")
    for a, b in (("a", "b"), ("a", "sb"), ("sa", "b")):
        found = run(tmp_path / a, tmp_path / b, out=tmp_path / f"o{a}{b}")
        assert checkpoints.dtypes(found) == checkpoints.dtypes(expected)
        for name, x in checkpoints.read(expected).items():
            assert np.array_equal(checkpoints.read(found)[name], x)


def test_views_and_tied_weights(tmp_path: Path) -> None:
    whole = RANDOM.normal(size=(40, 50)).astype(np.float32)
    where = storage(word("torch", "FloatStorage"), "0", whole.size)
    views = {
        "whole": (0, (40, 50), (50, 1), whole),
        "tied": (0, (40, 50), (50, 1), whole),
        "transposed": (0, (50, 40), (1, 50), whole.T),
        "slice": (10 * 50 + 5, (10, 4), (50, 1), whole[10:20, 5:9]),
        "steps": (0, (14, 8), (150, 7), whole[::3, ::7]),
        "row": (50, (50,), (1,), whole[1]),
        "column": (3, (40,), (50,), whole[:, 3]),
        "expanded": (7, (6, 40), (0, 50), np.broadcast_to(whole[:, 7], (6, 40))),
        "one": (77, (), (), whole[1, 27]),
        "none": (2000, (0, 5), (5, 1), whole[:0, :5]),
    }
    parameter = word("torch._utils", "_rebuild_parameter") + b"(" + tensor(where, 0, (40, 50), (50, 1)) + b"\x88}tR"
    code = pickled({**{name: tensor(where, *view[:3]) for name, view in views.items()}, "parameter": parameter})
    write_zip(tmp_path / "a" / MODEL, code, {"0": whole.tobytes()})
    found = checkpoints.read(run(tmp_path / "a", tmp_path / "a", out=tmp_path / "o"))
    for name, (*_, expected) in views.items():
        assert found[name].shape == expected.shape
        assert np.array_equal(found[name], expected), name
    assert np.array_equal(found["parameter"], whole)


def test_sharded(tmp_path: Path) -> None:
    names = ["pytorch_model-00001-of-00002.bin", "pytorch_model-00002-of-00002.bin"]
    for folder, value in (("a", 1), ("b", 2)):
        for name, key in zip(names, "wv", strict=True):
            write(tmp_path / folder, {key: np.full(3, value, np.float32)}, name)
        index = {"metadata": {}, "weight_map": dict(zip("wv", names, strict=True))}
        (tmp_path / folder / f"{MODEL}.index.json").write_text(json.dumps(index))
    out = run(tmp_path / "a", tmp_path / "b", out=tmp_path / "o")
    assert {name: x.tolist() for name, x in checkpoints.read(out).items()} == {"w": [1.5] * 3, "v": [1.5] * 3}


ONES = np.ones(6, np.float32)
WHERE = storage(word("torch", "FloatStorage"), "0", 6)


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (pickled({"w": tensor(WHERE, 1, (6,), (1,))}), "reaches 28 bytes into a storage of 24"),
        (pickled({"w": tensor(WHERE, 0, (3, 3), (2, 1))}), "reaches 28 bytes"),
        (pickled({"w": tensor(WHERE, -1, (2,), (1,))}), "is an incomplete tensor"),
        (pickled({"w": tensor(WHERE, 5, (2,), (-1,))}), "is an incomplete tensor"),
        (pickled({"w": tensor(WHERE, 0, (2, 3), (1,))}), "tensor 'w'"),
        (pickled({"w": tensor(b"N", 0, (2,), (1,))}), "is an incomplete tensor"),
        (pickled({"w": tensor(storage(word("torch", "FloatStorage"), "0", 5), 0, (5,), (1,))}), "24 bytes in storage '0'"),
        (
            pickled({"w": tensor(storage(word("torch", "FloatStorage"), "1", 6), 0, (6,), (1,))}),
            "refers to 'data/1', which is not in",
        ),
        (
            pickled({"w": tensor(storage(word("torch", "FloatStorage"), "../data.pkl", 6), 0, (6,), (1,))}),
            "which is not in its zip",
        ),
        (
            pickled({"w": tensor(storage(word("torch._utils", "_rebuild_parameter"), "0", 6), 0, (6,), (1,))}),
            "not the storage",
        ),
        (pickled({"w": b"K\x03Q"}), "damaged"),
        (pickled({"w": b"K\x03"}), "holds 'w', which is not a tensor"),
        (pickled({"model": b"}"}), "torch.load("),
        (b"\x80\x02" + word("torch.hub", "load") + text("x") + b"\x85R.", "asks for torch.hub.load"),
        (b"\x80\x02" + word("torch", "load") + text("x") + b"\x85R.", "asks for torch.load"),
        (b"\x80\x02" + word("torch", "FloatStorage.from_file") + text("x") + b"\x85R.", "asks for"),
        (b"\x80\x02" + word("torch", "FloatStorage") + text("/etc/passwd") + b"\x85R.", "files of weights never call"),
        (b"\x80\x02" + word("posix", "system") + text("touch canary") + b"\x85R.", "asks for posix.system"),
    ],
)
def test_what_is_refused(tmp_path: Path, code: bytes, words: str) -> None:
    write_zip(tmp_path / MODEL, code, {"0": ONES.tobytes()})
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(str(tmp_path))
    (sentence,) = caught.value.problems
    assert words in sentence
    assert str(tmp_path / MODEL) in sentence


def write_newer(folder: Path, dtype: str, data: bytes) -> Path:
    """A tensor (6, 4), stored transposed, of a dtype that has no storage class, as torch 2.13 writes it."""
    folder.mkdir()
    kind = b"\x89" + word("collections", "OrderedDict") + b")R" + word("torch", dtype)
    where = storage(word("torch.storage", "UntypedStorage"), "0", 24)
    call = b"(" + where + b"K\x00" + numbers([6, 4]) + numbers([1, 6]) + kind + b"tR"
    write_zip(folder / MODEL, pickled({"w": word("torch._utils", "_rebuild_tensor_v3") + call}), {"0": data})
    return folder


@pytest.mark.parametrize("dtype", checkpoints.FLOAT8)
def test_float8(tmp_path: Path, dtype: str) -> None:
    x = RANDOM.normal(size=(4, 6))
    a = write_newer(tmp_path / "a", dtype, checkpoints.to_bits(x, dtype).tobytes())
    out = run(a, a, out=tmp_path / "out")
    assert checkpoints.dtypes(out) == {"w": dtype}
    rounded = checkpoints.from_bits(checkpoints.to_bits(x, dtype), dtype)
    assert (checkpoints.read(out)["w"] == rounded.T).all()


def test_float8_of_other_kinds_is_named(tmp_path: Path) -> None:
    write_newer(tmp_path / "a", "float8_e4m3fnuz", ONES.tobytes())
    with pytest.raises(CheckpointError, match="tensor 'w' has dtype float8_e4m3fnuz"):
        open_checkpoint(str(tmp_path / "a"))


def test_zips_that_are_not_torchs(tmp_path: Path) -> None:
    good = pickled({"w": array_code("0", ONES)})
    file = tmp_path / MODEL
    write_zip(file, good, {"0": ONES.tobytes()}, byteorder=b"big")
    with pytest.raises(CheckpointError, match="big-endian"):
        open_checkpoint(str(file))
    with zipfile.ZipFile(file, "w", compression=zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", good * 10)
    with pytest.raises(CheckpointError, match="is compressed"):
        open_checkpoint(str(file))
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("word/document.xml", "x")
    with pytest.raises(CheckpointError, match="holds no data"):
        open_checkpoint(str(file))
    file.write_bytes(b"PK\x03\x04 and nothing more")
    with pytest.raises(CheckpointError, match="not a whole zip"):
        open_checkpoint(str(file))


@pytest.mark.parametrize("trials", [400, pytest.param(3000, marks=pytest.mark.exhaustive)])
def test_flipped_bits_and_cut_files(tmp_path: Path, trials: int) -> None:
    tensors = {"w": RANDOM.integers(0, 9, (3, 2)).astype("<u2"), "b": RANDOM.normal(size=3).astype("<f4")}
    good = (write(tmp_path, tensors) / MODEL).read_bytes()
    file = tmp_path / "damaged.bin"
    outcomes, nameless = {"read": 0, "refused": 0}, list[str]()
    for trial in range(trials):
        file.write_bytes(damaged(good, RANDOM, cut=trial % 10 == 0, first=4))
        reader = Files()
        try:
            for entry in open_checkpoint(str(file)).tensors.values():
                reader.read(entry, 0, np.empty(entry.nbytes // entry.dtype.itemsize, entry.dtype.raw))
            outcomes["read"] += 1
        except (CheckpointError, WorkError) as error:
            nameless += [sentence for sentence in error.problems if str(file) not in sentence]
            outcomes["refused"] += 1
        reader.close()
    assert nameless == []
    assert min(outcomes.values()) > trials // 100
