"""Test what torch pickles around tensors, and the format before torch 1.6: files put together by hand, byte by byte.

tests/loaders/test_torch_files.py compares with files that torch writes.
"""

from __future__ import annotations

import pickle
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from paddle_merge import CheckpointError, MergeConfig, WorkError, merge
from paddle_merge.checkpoints.files import Files
from paddle_merge.checkpoints.open import open_checkpoint
from tests.checkpoints.formats.test_torch_bin import MODEL, numbers, pickled, storage, tensor, text, word, write_zip
from tests.support import checkpoints
from tests.support.checkpoints import damaged

VALUES = np.array([[1, 2, 3], [4, 5, 6]], np.float32)
FLOATS = word("torch", "FloatStorage")
WHERE = storage(FLOATS, "0", 6)
ARGUMENTS = WHERE + b"K\x00" + numbers([2, 3]) + numbers([3, 1]) + b"\x89" + word("collections", "OrderedDict") + b")R"
TENSOR = tensor(WHERE, 0, (2, 3), (3, 1))
REBUILD = word("torch._utils", "_rebuild_tensor_v2")
WRAPPER, DISTRIBUTED = word("torch._utils", "_rebuild_wrapper_subclass"), "torch.distributed.tensor"
CAST = word("torch._utils", "_rebuild_device_tensor_from_cpu_tensor")


def call(function: bytes, *arguments: bytes) -> bytes:
    return function + b"(" + b"".join(arguments) + b"tR"


def typed(make: bytes, kind: bytes, arguments: bytes, state: bytes) -> bytes:
    return call(word("torch._tensor", "_rebuild_from_type_v2"), make, kind, b"(" + arguments + b"t", state)


def opened(folder: Path, code: bytes) -> dict[str, list[Any]]:
    """The tensors of a zip file with this pickle, whose only storage is VALUES."""
    write_zip(folder / "a" / MODEL, code, {"0": VALUES.tobytes()})
    return values_of(folder / "a")


def values_of(path: Path) -> dict[str, list[Any]]:
    reader, found = Files(), {}
    for name, entry in open_checkpoint(str(path)).tensors.items():
        out = np.empty(entry.nbytes // entry.dtype.itemsize, entry.dtype.raw)
        reader.read(entry, 0, out)
        found[name] = out.reshape(entry.shape).tolist()
    reader.close()
    return found


SET = word("__builtin__", "set") + b"](" + text("x") + text("y") + b"e\x85R"
STATE = b"}(" + b"".join((
    text("axes"), SET,
    text("new"), b"\x8f(K\x01K\x02\x90",
    text("number"), call(word("__builtin__", "complex"), b"G" + struct.pack(">d", 1), b"G" + struct.pack(">d", 2)),
    text("bytes"), call(word("_codecs", "encode"), text("\xff"), text("latin1")),
    text("array"), call(word("__builtin__", "bytearray"), text("\xff"), text("latin-1")),
    text("size"), call(word("torch", "Size"), numbers([1, 2])),
    text("device"), call(word("torch", "device"), text("cuda"), b"K\x01"),
    text("layout"), call(word("torch.serialization", "_get_layout"), text("torch.sparse_coo")),
    text("dtype"), word("torch", "float16"),
    text("counts"), call(word("collections", "Counter"), b"}(" + text("a") + b"K\x02u"),
    text("keys"), b"}(K\x01K\x02K\x01K\x02\x86K\x03NK\x04u",
    text("tensor"), TENSOR,
)) + b"u"  # fmt: skip
TYPED = typed(REBUILD, word("torch", "Tensor"), ARGUMENTS, STATE)


@pytest.mark.parametrize(
    "code",
    [
        TYPED,
        typed(REBUILD, word("torch.nn.parameter", "Buffer"), ARGUMENTS, STATE),
        typed(REBUILD, word("torch", "Tensor"), ARGUMENTS, b"}" + STATE + b"\x86"),  # of a class with slots
        call(word("torch._utils", "_rebuild_parameter_with_state"), TENSOR, b"\x88", b"}", STATE),
        call(word("torch._utils", "_rebuild_parameter_with_state"), TYPED, b"\x88", b"}", STATE),
        call(word("torch.nn.parameter", "Parameter"), TENSOR) + b"(\x88\x89}tb",  # torch 0.3
        call(word("torch._utils", "_rebuild_tensor"), WHERE, b"K\x00", numbers([2, 3]), numbers([3, 1])),  # torch 0.3
        call(CAST, TENSOR, word("torch", "float32"), text("xla:0"), b"\x89"),
    ],
)
def test_objects_around_a_tensor_are_ignored(tmp_path: Path, code: bytes) -> None:
    assert opened(tmp_path, pickled({"w": code})) == {"w": [[1, 2, 3], [4, 5, 6]]}


def test_dicts_of_all_kinds(tmp_path: Path) -> None:
    items = b"(" + text("w") + TENSOR + b"u."
    default = call(word("collections", "defaultdict"), word("__builtin__", "dict"))
    python2 = word("collections", "OrderedDict") + b"](](U\x01w" + TENSOR + b"ee\x85R."  # [["w", tensor]]
    for code in (default + items, b"}" + items, python2):
        assert opened(tmp_path, b"\x80\x02" + code) == {"w": [[1, 2, 3], [4, 5, 6]]}


def test_a_memory_bomb_of_dicts(tmp_path: Path) -> None:
    """A list of 100 thousand pairs, of which ten thousand dicts were made, would take more than 100 GB."""
    pairs = b"](" + b"".join(b"](" + text(str(number)) + b"Ne" for number in range(100_000)) + b"e\x85q\x00"
    again = word("collections", "OrderedDict") + b"h\x00R"
    with pytest.raises(CheckpointError, match="makes a dict in a way that Python doesn't"):
        opened(tmp_path, b"\x80\x02(" + pairs + again * 10_000 + b"t.")


def test_an_array_of_numpy_as_torch_keeps_it_for_devices_without_storages(tmp_path: Path) -> None:
    def code(dtype: str, array: np.ndarray) -> bytes:
        whole = pickle.dumps(array, protocol=2)[2:-1]
        return call(
            word("torch._utils", "_rebuild_device_tensor_from_numpy"), whole, word("torch", dtype), text("xla:0"), b"\x89"
        )

    assert opened(tmp_path, pickled({"w": code("float32", VALUES)})) == {"w": [[1, 2, 3], [4, 5, 6]]}
    for dtype, array in (("bfloat16", VALUES), ("bfloat16", VALUES.astype(np.uint16)), ("uint16", VALUES.astype(np.uint16))):
        with pytest.raises(CheckpointError, match="tensor 'w' is stored in another dtype than its own; load it with torch"):
            opened(tmp_path, pickled({"w": code(dtype, array)}))


TWO = b"}(" + text("neg") + b"\x88u"
REFUSED = {
    # The elements of these are not those stored.
    "negative": (call(REBUILD, ARGUMENTS, TWO), "'w' is a view with torch's negative or conjugate bit; save its"),
    "negative within": (typed(REBUILD, word("torch", "Tensor"), ARGUMENTS + TWO, STATE), "'w' is a view with torch's neg"),
    "sparse": (call(word("torch._utils", "_rebuild_sparse_tensor"), b"N", TENSOR), "tensor 'w' is sparse: only"),
    "quantized": (call(word("torch._utils", "_rebuild_qtensor"), ARGUMENTS), "tensor 'w' is quantized"),
    "meta": (call(word("torch._utils", "_rebuild_meta_tensor_no_storage"), ARGUMENTS), "'w' was on the meta device"),
    "cast": (
        call(CAST, TENSOR, word("torch", "float16"), text("x"), b"\x89"),
        "tensor 'w' is stored in another dtype",
    ),
    "complex": (
        tensor(storage(word("torch", "ComplexFloatStorage"), "0", 3), 0, (3,), (1,)),
        "tensor 'w' has dtype complex64, which isn't supported; save torch.view_as_real of it",
    ),
    "distributed": (
        typed(WRAPPER, word(DISTRIBUTED, "DTensor"), word(DISTRIBUTED, "DTensor") + word("torch", "float32"), STATE),
        "'w' is a DTensor, of which every process has a part; save its full_tensor()",
    ),
    "elsewhere": (typed(WRAPPER, word("torch", "Tensor"), word("torch", "Tensor"), STATE), "'w' is of a class that holds"),
    # Nothing of these is called.
    "its own class": (typed(REBUILD, word("mine", "Tensor"), ARGUMENTS, STATE), "asks for mine.Tensor"),
    "a class that is none": (typed(REBUILD, REBUILD, ARGUMENTS, STATE), "makes a tensor in a way that torch doesn't"),
    "no function": (typed(text("eval"), word("torch", "Tensor"), ARGUMENTS, STATE), "makes a tensor in a way that torch"),
    "another function": (
        typed(word("__builtin__", "complex"), word("torch", "Tensor"), b"K\x01", STATE),
        "makes a tensor in a way that torch",
    ),
    "a called class": (call(word("torch", "Tensor"), b"K\x03"), "calls an object that files of weights never call"),
    "a forbidden function": (typed(word("os", "system"), word("torch", "Tensor"), text("x"), STATE), "asks for os.system"),
    "no set": (b"](\x90", "adds items to an object that is not a set"),
    "a set": (SET, "holds 'w', which is not a tensor"),
    "a size": (call(word("torch", "Size"), numbers([1])), "holds 'w', which is not a tensor"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused(tmp_path: Path, name: str) -> None:
    code, words = REFUSED[name]
    with pytest.raises(CheckpointError) as caught:
        opened(tmp_path, pickled({"w": code, "v": TENSOR}))
    (sentence,) = caught.value.problems
    assert words in sentence
    assert str(tmp_path / "a" / MODEL) in sentence


def test_refused_tensors_are_all_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError) as caught:
        opened(tmp_path, pickled({name: REFUSED[name][0] for name in ("negative", "sparse", "complex")}))
    assert [problem.split("tensor ")[1].split()[0] for problem in caught.value.problems] == [
        "'negative'",
        "'sparse'",
        "'complex'",
    ]


# --- the format before torch 1.6 ---------------------------------------------------------------------------------------


def old_storage(kind: bytes, key: str, count: int, view: bytes = b"N") -> bytes:
    return b"(" + text("storage") + kind + text(key) + text("cpu") + b"J" + struct.pack("<i", count) + view + b"tQ"


def old_file(
    tensors: dict[str, bytes], storages: dict[str, tuple[int, bytes]], protocol: int = 2, version: int = 1001
) -> bytes:
    machine = {"protocol_version": 1001, "little_endian": True, "type_sizes": {"short": 2, "int": 4, "long": 4}}
    head = [0x1950A86A20F9469CFC6C, version, machine]
    frame = b"".join(pickle.dumps(one, protocol=protocol) for one in head)
    data = b"".join(struct.pack("<q", count) + held for count, held in storages.values())
    return frame + pickled(tensors) + pickle.dumps(list(storages), protocol=protocol) + data


PART = b"(" + text("9") + b"K\x02K\x03t"  # a view of elements 2, 3 and 4, as torch before 0.4 wrote it
OLD = {
    "w": tensor(old_storage(FLOATS, "77", 6), 0, (2, 3), (3, 1)),
    "transposed": tensor(old_storage(FLOATS, "77", 6), 0, (3, 2), (1, 3)),
    "view": tensor(old_storage(FLOATS, "77", 6, PART), 1, (2,), (1,)),
    "b": tensor(old_storage(word("torch.cuda", "LongStorage"), "5", 2), 0, (2,), (1,)),
    "none": tensor(old_storage(FLOATS, "6", 0), 0, (0, 3), (3, 1)),
}
HELD = {"5": (2, struct.pack("<qq", -7, 8)), "6": (0, b""), "77": (6, VALUES.tobytes())}


def with_x(code: bytes) -> bytes:
    """The file of OLD with one entry more."""
    return old_file(OLD | {"x": code}, HELD)


@pytest.mark.parametrize("protocol", [2, 3, 4])
def test_old_files(tmp_path: Path, protocol: int) -> None:
    (tmp_path / MODEL).write_bytes(old_file(OLD, HELD, protocol))
    assert values_of(tmp_path) == {
        "w": [[1, 2, 3], [4, 5, 6]],
        "transposed": [[1, 4], [2, 5], [3, 6]],
        "view": [4, 5],
        "b": [-7, 8],
        "none": [],
    }
    merge(MergeConfig(model_path_list=[str(tmp_path), str(tmp_path)], output_path=str(tmp_path / "out")), progress=False)
    assert checkpoints.read(tmp_path / "out")["transposed"].tolist() == [[1, 4], [2, 5], [3, 6]]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (old_file(OLD, HELD)[:-1], "is damaged or truncated"),
        (old_file(OLD, HELD) + b"x", "has bytes after its last storage"),
        (old_file(OLD, HELD | {"77": (5, VALUES.tobytes())}), "has 5 elements in storage 77, which should have 6"),
        (old_file(OLD, HELD | {"8": (0, b"")}), "has other storages than its tensors refer to"),
        (old_file(OLD, {"77": HELD["77"]}), "has other storages than its tensors refer to"),
        (old_file(OLD, HELD, version=1002), "has a version of torch's format that isn't known"),
        (
            with_x(tensor(old_storage(word("torch", "IntStorage"), "77", 6), 0, (6,), (1,))),
            "describes storage 77 in two ways",
        ),
        (
            with_x(tensor(old_storage(FLOATS, "77", 6, b"(" + text("8") + b"K\x04K\x03t"), 0, (1,), (1,))),
            "has a view that reaches beyond storage 77",
        ),
        (with_x(tensor(old_storage(FLOATS, "77", 6), 1, (6,), (1,))), "reaches 28 bytes into a storage of 24"),
        (with_x(word("posix", "system") + b"U\x02ls\x85R"), "asks for posix.system"),
    ],
)  # fmt: skip
def test_old_files_that_are_refused(tmp_path: Path, content: bytes, words: str) -> None:
    (tmp_path / MODEL).write_bytes(content)
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(str(tmp_path))
    (sentence,) = caught.value.problems
    assert words in sentence
    assert str(tmp_path / MODEL) in sentence


@pytest.mark.parametrize("trials", [300, pytest.param(3000, marks=pytest.mark.exhaustive)])
def test_flipped_bits_and_cut_old_files(tmp_path: Path, trials: int) -> None:
    good, random = old_file(OLD, HELD), np.random.default_rng(5)
    file = tmp_path / "damaged.bin"
    outcomes, nameless = {"read": 0, "refused": 0}, list[str]()
    for trial in range(trials):
        file.write_bytes(damaged(good, random, cut=trial % 10 == 0, first=14))
        try:
            values_of(file)
            outcomes["read"] += 1
        except (CheckpointError, WorkError) as error:
            nameless += [sentence for sentence in error.problems if str(file) not in sentence]
            outcomes["refused"] += 1
    assert nameless == []
    assert min(outcomes.values()) > trials // 100
