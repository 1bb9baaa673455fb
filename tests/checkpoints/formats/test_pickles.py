"""Test malicious and invalid pickles: each is refused at once with one sentence, and none of its code runs."""

from __future__ import annotations

import builtins
import pickle
import resource
import struct
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from paddle_merge import CheckpointError
from paddle_merge.checkpoints.open import open_checkpoint


def refused(file: Path, content: bytes) -> str:
    """The one sentence in which a .pdparams file of this content is refused, in well under a second."""
    file.write_bytes(content)
    started = time.process_time()
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(str(file))
    assert time.process_time() - started < 10
    (sentence,) = caught.value.problems
    assert sentence.startswith(f"{file}: ")
    assert len(sentence) < 500 + len(str(file))
    assert "\n" not in sentence
    return sentence


class Call:
    """Pickles as a call of function(*arguments)."""

    def __init__(self, function: Any, *arguments: Any):
        self.call = function, arguments

    def __reduce__(self) -> Any:
        return self.call


def stack_global(module: str, name: str) -> bytes:
    return b"".join(b"\x8c" + bytes([len(word)]) + word.encode() for word in (module, name)) + b"\x93"


def text(word: str) -> bytes:
    return b"X" + struct.pack("<I", len(word)) + word.encode()


NAMES = [
    ("os", "system"),
    ("posix", "system"),
    ("nt", "system"),
    ("subprocess", "Popen"),
    ("builtins", "eval"),
    ("builtins", "exec"),
    ("builtins", "getattr"),
    ("builtins", "__import__"),
    ("__builtin__", "eval"),
    ("builtins", "tuple.__class__"),
    ("builtins", "tuple.__subclasses__"),
    ("numpy", "load"),
    ("numpy", "core.multiarray._reconstruct.__globals__"),
    ("numpy.core", "multiarray._reconstruct"),
    ("numpy", "ndarray.tofile"),
    ("numpy.testing._private.utils", "runstring"),
    ("numpy.f2py.diagnose", "run_command"),
    ("numpy._core.numeric", "_frombuffer"),
    ("torch.hub", "load"),
    ("torch", "load"),
    ("torch.serialization", "load"),
    ("paddle", "load"),
    ("pickle", "loads"),
    ("_pickle", "loads"),
    ("pip", "main"),
    ("pydoc", "pipepager"),
    ("webbrowser", "open"),
    ("runpy", "_run_code"),
    ("timeit", "timeit"),
    ("operator", "attrgetter"),
    ("functools", "partial"),
    ("codecs", "encode"),
    ("_codecs", "decode"),
    ("copyreg", "_reconstructor"),
    ("collections", "OrderedDict.fromkeys"),
    ("collections", "defaultdict"),
    ("ml_dtypes", "bfloat16"),
    ("paddle.framework.io", "GeneratorState"),
    ("os\nsystem", "x"),
    ("", ""),
    ("\u202eos", "system"),
]


@pytest.mark.parametrize(("module", "name"), NAMES)
def test_no_name_outside_the_list_gets_anywhere(tmp_path: Path, module: str, name: str) -> None:
    canary = tmp_path / "canary"
    argument = b"\x8c" + bytes([len(str(canary)) + 6]) + f"touch {canary}".encode() + b"\x85"
    content = b"\x80\x04" + b"".join(b"X" + struct.pack("<I", len(word.encode())) + word.encode() for word in (module, name))
    sentence = refused(tmp_path / "a.pdparams", content + b"\x93" + argument + b"R.")
    assert "nothing in it was run" in sentence
    if "\n" not in module:
        refused(tmp_path / "b.pdparams", b"\x80\x02c" + f"{module}\n{name}\n".encode() + argument + b"R.")
        refused(tmp_path / "c.pdparams", b"\x80\x02c" + f"{module}\n{name}\n".encode() + b")\x81}b.")
    assert not canary.exists()


def test_a_call_hidden_among_weights(tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    touch = f"open({str(canary)!r}, 'w').close()"
    for protocol in (2, 3, 4):
        for harm in (
            Call(builtins.eval, touch),
            Call(builtins.exec, touch),
            Call(getattr, Call(__import__, "os"), "system"),
            {"w": Call(np.load, str(canary), None, True)},
            [Call(pickle.loads, pickle.dumps(Call(builtins.exec, touch)))],
        ):
            content = pickle.dumps({"w": np.ones(3, np.float32), "x": harm}, protocol=protocol)
            assert "asks for" in refused(tmp_path / f"{protocol}.pdparams", content)
    assert not canary.exists()


NOTHING = b"\x80\x04"
WORD = stack_global("builtins", "tuple")
ARRAY = stack_global("numpy.core.multiarray", "_reconstruct")
MADE = ARRAY + stack_global("numpy", "ndarray") + b"K\x00\x85C\x01b\x87R"  # an array, still empty
CRAFTED: dict[str, bytes] = {
    "INST": b"\x80\x02(X\x02\x00\x00\x00lsios\nsystem\n.",
    "OBJ": b"\x80\x02(cos\nsystem\nX\x02\x00\x00\x00lso.",
    "OBJ of an allowed word": b"\x80\x02(cnumpy\nndarray\no.",
    "NEWOBJ_EX": NOTHING + WORD + b")}\x92.",
    "EXT1": NOTHING + b"\x82\x01.",
    "EXT2": NOTHING + b"\x83\x01\x00.",
    "EXT4": NOTHING + b"\x84\x01\x00\x00\x00.",
    "PERSID": b"\x80\x02Pxyz\n.",
    "BINPERSID": NOTHING + text("x") + b"Q.",
    "protocol 0": b"cos\nsystem\n(S'ls'\ntR.",
    "protocol 0, marked 4": b"\x80\x04I1\n.",
    "protocol 5": pickle.dumps({"w": 1}, protocol=5),
    "protocol 255": b"\x80\xff.",
    "NEXT_BUFFER": NOTHING + b"\x97.",
    "BYTEARRAY8": NOTHING + b"\x96" + struct.pack("<Q", 2**62) + b".",
    "LONG4 of 2 GB": NOTHING + b"\x8b\xff\xff\xff\x7f.",
    "LONG4 of a negative length": NOTHING + b"\x8b\xff\xff\xff\xff.",
    "BINBYTES8 of 2^63": NOTHING + b"\x8e" + struct.pack("<Q", 2**63) + b".",
    "BINBYTES8 of 2^40": NOTHING + b"\x8e" + struct.pack("<Q", 2**40) + b".",
    "BINUNICODE8 of 2^63": NOTHING + b"\x8d" + struct.pack("<Q", 2**63) + b".",
    "BINUNICODE of 4 GB": NOTHING + b"X\xff\xff\xff\xff.",
    "a line without an end": b"\x80\x02c" + b"a" * 300_000,
    "marks": NOTHING + b"(" * 200_000 + b".",
    "nested tuples as a key": NOTHING + b"})" + b"\x86".join([b"2"] * 60) + b"K\x01s.",
    "doubling tuples as a key": NOTHING + b"}q\x00)" + b"q\x01h\x01\x86" * 80 + b"K\x01s.",
    "doubling tuples as an argument": NOTHING + WORD + b")" + b"q\x01h\x01\x86" * 80 + b"\x85R.",
    "deep tuples": NOTHING + b")" + b"\x85" * 100_000 + b".",
    "deep lists": NOTHING + b"]q\x00" + b"]a" * 100_000 + b".",
    "deep dicts": NOTHING + b"}" + b"K\x01}" * 100_000 + b"s" * 100_000 + b".",
    "a list within itself": NOTHING + b"]q\x00h\x00a.",
    "a dict within itself": NOTHING + b"}q\x00" + text("w") + b"h\x00s.",
    "memo from nowhere": NOTHING + b"h\x07.",
    "a memo of billions": NOTHING + b"Nr\xff\xff\xff\xff.",
    "an empty stack": NOTHING + b".",
    "two results": NOTHING + b"NN.",
    "no STOP": NOTHING + b"}",
    "empty after the protocol": NOTHING,
    "data after the end": NOTHING + b"}." + b"x",
    "pop from nothing": NOTHING + b"t.",
    "BUILD on a dict": NOTHING + b"}}b.",
    "BUILD on a word": NOTHING + WORD + b"}b.",
    "BUILD on a tuple": NOTHING + b")}b.",
    "REDUCE of a string": NOTHING + text("os.system") + b")R.",
    "REDUCE of an array": NOTHING + MADE + b")R.",
    "REDUCE with a list": NOTHING + WORD + b"]R.",
    "APPEND to an array": NOTHING + MADE + b"Na.",
    "SETITEM of an array": NOTHING + MADE + b"" + text("shape") + b"Ns.",
    "SETITEMS, odd": NOTHING + b"}(Nu.",
    "a name twice": NOTHING + b"}(" + text("w") + b"N" + text("w") + b"Nu.",
    "STACK_GLOBAL of numbers": NOTHING + b"K\x01K\x02\x93.",
    "STACK_GLOBAL of words": NOTHING + WORD + WORD + b"\x93.",
    "a name of half a pair": NOTHING + b"}X\x03\x00\x00\x00\xed\xa0\x80Ns.",
    "text that isn't UTF-8": NOTHING + b"}X\x03\x00\x00\x00\xff\xff\xffNs.",
    "bytes as a name": NOTHING + b"}C\x01wNs.",
    "None": NOTHING + b"N.",
    "a list": NOTHING + b"].",
    "one array": NOTHING + MADE + b".",
    "an unfinished array": NOTHING + b"}" + text("w") + MADE + b"s.",
    "an array of strange state": NOTHING + b"}" + text("w") + MADE + b"}bs.",
    "an array of itself": NOTHING + b"}" + text("w") + MADE + b"q\x00(K\x01h\x00h\x00h\x00h\x00tbs.",
}


@pytest.mark.parametrize("name", CRAFTED)
def test_crafted(tmp_path: Path, name: str) -> None:
    refused(tmp_path / "model_state.pdparams", CRAFTED[name])


def crafted_array(shape: tuple[Any, ...], code: object = "f4", order: object = "<", data: bytes = b"") -> bytes:
    """{"w": an array of this state}, with stand-ins for what NumPy would not make itself."""
    return (
        NOTHING
        + b"}"
        + text("w")
        + MADE
        + b"(K\x01"
        + pickle.dumps(shape, protocol=3)[2:-1]
        + stack_global("numpy", "dtype")
        + pickle.dumps((code, False, True), protocol=3)[2:-1].replace(b"\x94", b"")
        + b"R"
        + pickle.dumps((3, order, None, None, None, -1, -1, 0), protocol=3)[2:-1].replace(b"\x94", b"")
        + b"b\x89"
        + b"C"
        + bytes([len(data)])
        + data
        + b"tbs."
    )


def test_the_crafted_array_would_be_fine(tmp_path: Path) -> None:
    file = tmp_path / "a.pdparams"
    file.write_bytes(crafted_array((2,), data=bytes(8)))
    assert open_checkpoint(str(file)).tensors["w"].shape == (2,)


@pytest.mark.parametrize(
    "fields",
    [
        {"shape": (3,), "data": bytes(8)},
        {"shape": (-2,), "data": bytes(8)},
        {"shape": (2**62, 4), "data": b""},
        {"shape": (2**80,), "data": b""},
        {"shape": (1,) * 65, "data": bytes(4)},
        {"shape": (1.5,), "data": bytes(4)},
        {"shape": ("2",), "data": bytes(8)},
        {"shape": (True,), "data": bytes(4)},
        {"shape": (2,), "data": bytes(8), "order": ">"},
        {"shape": (1,), "data": bytes(8), "code": "O8"},
        {"shape": (1,), "data": bytes(8), "code": "c8"},
        {"shape": (1,), "data": bytes(8), "code": "V8"},
        {"shape": (1,), "data": bytes(8), "code": 7},
    ],
)
def test_arrays_that_are_none(tmp_path: Path, fields: dict[str, Any]) -> None:
    assert "tensor 'w'" in refused(tmp_path / "a.pdparams", crafted_array(**fields))


def test_objects_in_arrays_are_not_looked_at(tmp_path: Path) -> None:
    array = np.array([Call(builtins.exec, "raise SystemExit")], dtype=object)
    refused(tmp_path / "a.pdparams", pickle.dumps({"w": array}, protocol=4))


@pytest.mark.exhaustive  # it takes seconds
def test_millions_of_instructions_end_soon_and_in_little_memory(tmp_path: Path) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for step in (b"}", b"N\x94", b"]"):
        (tmp_path / "a.pdparams").write_bytes(NOTHING + step * 2_000_000 + b".")
        with pytest.raises(CheckpointError):
            open_checkpoint(str(tmp_path / "a.pdparams"))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 800_000  # KiB
