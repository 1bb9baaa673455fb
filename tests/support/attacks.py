"""Define published attacks on pickle loaders and scanners; their code would create a file named CANARY.

They come from the CVEs and advisories on torch.load, picklescan, fickling, modelscan and Hugging Face's scanner, and from
pickle's own opcodes: together they cover every way from bytes to a function call.
"""

from __future__ import annotations

import builtins
import io
import pickle
import struct
import zipfile
from typing import Any

CANARY = "canary-of-an-attack"
TOUCH = f"open({CANARY!r}, 'w').close()"
SHELL = f"touch {CANARY}"


class Call:
    """An object that is pickled as a call of function(*arguments)."""

    def __init__(self, function: Any, *arguments: Any):
        self.call = function, arguments

    def __reduce__(self) -> Any:
        return self.call


def text(word: str) -> bytes:
    """Return the opcode that pushes a str."""
    return b"X" + struct.pack("<I", len(word.encode())) + word.encode()


def name(module: str, word: str) -> bytes:
    """Return the opcodes that push an object of a module, by its name."""
    return text(module) + text(word) + b"\x93"


def reduced(function: bytes, *arguments: bytes) -> bytes:
    """Return the opcodes that call a function. function, arguments: opcodes that push them."""
    return function + b"(" + b"".join(arguments) + b"tR"


SYSTEM, EVAL, EXEC, GETATTR = (
    name("posix", "system"),
    name("builtins", "eval"),
    name("builtins", "exec"),
    name("builtins", "getattr"),
)
IMPORT = name("builtins", "__import__")
RECONSTRUCT, NDARRAY, DTYPE = name("numpy.core.multiarray", "_reconstruct"), name("numpy", "ndarray"), name("numpy", "dtype")
TUPLE = name("builtins", "tuple")
_SCRIPT = (  # module, function, argument: what pickles that scanners failed to detect have called
    ("os", "system", SHELL),
    ("nt", "system", SHELL),
    ("os", "popen", SHELL),
    ("os", "execv", SHELL),
    ("subprocess", "check_output", SHELL),
    ("subprocess", "getoutput", SHELL),
    ("commands", "getoutput", SHELL),
    ("pty", "spawn", SHELL),
    ("asyncio.unix_events", "_UnixSubprocessTransport._start", SHELL),
    ("asyncio", "run", SHELL),
    ("timeit", "timeit", TOUCH),
    ("profile", "run", TOUCH),
    ("cProfile", "run", TOUCH),
    ("cProfile", "runctx", TOUCH),
    ("trace", "Trace.run", TOUCH),
    ("bdb", "Bdb.run", TOUCH),
    ("pdb", "run", TOUCH),
    ("doctest", "debug_script", TOUCH),
    ("code", "InteractiveInterpreter.runcode", TOUCH),
    ("codeop", "compile_command", TOUCH),
    ("idlelib.pyshell", "ModifiedInterpreter.runcode", TOUCH),
    ("idlelib.run", "Executive.runcode", TOUCH),
    ("lib2to3.pgen2.grammar", "Grammar.loads", TOUCH),
    ("ensurepip", "_run_pip", SHELL),
    ("pip", "main", SHELL),
    ("pip._internal", "main", SHELL),
    ("pydoc", "pipepager", SHELL),
    ("pydoc", "locate", SHELL),
    ("runpy", "run_path", CANARY),
    ("importlib", "import_module", "os"),
    ("importlib.util", "_module_to_load", "os"),
    ("pkgutil", "resolve_name", "os:system"),
    ("uuid", "_get_command_stdout", SHELL),
    ("_aix_support", "_read_cmd_output", SHELL),
    ("_osx_support", "_read_output", SHELL),
    ("_pyrepl.pager", "pipe_pager", SHELL),
    ("imaplib", "IMAP4_stream", SHELL),
    ("test.support.script_helper", "assert_python_ok", TOUCH),
    ("torch", "load", CANARY),
    ("torch.jit", "load", CANARY),
    ("torch.hub", "load", CANARY),
    ("torch._dynamo.guards", "GuardBuilder.get", TOUCH),
    ("torch._inductor.codecache", "compile_file", TOUCH),
    ("torch.fx.experimental.symbolic_shapes", "ShapeEnv.evaluate_guards_expression", TOUCH),
    ("torch.utils._config_module", "ConfigModule.load_config", CANARY),
    ("torch.utils.bottleneck.__main__", "run_cprofile", TOUCH),
    ("torch.utils.collect_env", "run", SHELL),
    ("torch.serialization", "load", CANARY),
    ("paddle", "load", CANARY),
    ("paddle.utils.cpp_extension", "run_cmd", SHELL),
    ("paddle.jit", "load", CANARY),
    ("numpy", "load", CANARY),
    ("numpy.testing._private.utils", "runstring", TOUCH),
    ("numpy.f2py.crackfortran", "myeval", TOUCH),
    ("numpy.f2py.crackfortran", "getlincoef", TOUCH),
    ("numpy.f2py.crackfortran", "_eval_length", TOUCH),
    ("numpy.distutils.exec_command", "exec_command", SHELL),
    ("numpy.core.multiarray", "_reconstruct.__globals__", TOUCH),
    ("numpy.core.multiarray", "fromfile", CANARY),
    ("numpy._core._internal", "_dtype_from_pep3118", TOUCH),
    ("pickle", "loads", TOUCH),
    ("_pickle", "loads", TOUCH),
    ("dill", "loads", TOUCH),
    ("cloudpickle.cloudpickle", "_make_skeleton_class", TOUCH),
    ("joblib", "load", CANARY),
    ("shelve", "open", CANARY),
    ("builtins", "open", CANARY),
    ("io", "open", CANARY),
    ("_io", "FileIO", CANARY),
    ("logging", "FileHandler", CANARY),
    ("logging.config", "listen", CANARY),
    ("shutil", "rmtree", CANARY),
    ("urllib.request", "urlopen", "http://localhost"),
    ("ssl", "get_server_certificate", "localhost"),
    ("socket", "create_connection", "localhost"),
    ("webbrowser", "open", "http://localhost"),
    ("ctypes", "CDLL", CANARY),
    ("operator", "methodcaller", "system"),
    ("operator", "attrgetter", "system"),
    ("functools", "partial", TOUCH),
    ("types", "CodeType", TOUCH),
    ("types", "FunctionType", TOUCH),
    ("copyreg", "_reconstructor", TOUCH),
    ("copyreg", "add_extension", "os"),
    ("collections", "namedtuple", TOUCH),
    ("builtins", "tuple.__subclasses__", TOUCH),
    ("builtins", "bytes.fromhex", TOUCH),
    ("_codecs", "lookup", TOUCH),
    ("collections", "OrderedDict.__reduce__", TOUCH),
)

# Opcodes that each push one object. A reader of weights must refuse each of them wherever a tensor is allowed.
VALUES: dict[str, bytes] = {
    **{f"{module}.{word}": reduced(name(module, word), text(argument)) for module, word, argument in _SCRIPT},
    **{
        f"GLOBAL {module}.{word}": f"c{module}\n{word}\n".encode() + text(argument) + b"\x85R"
        for module, word, argument in _SCRIPT[:8]
    },
    "eval": reduced(EVAL, text(TOUCH)),
    "exec": reduced(EXEC, text(TOUCH)),
    "getattr chain": reduced(reduced(GETATTR, reduced(IMPORT, text("os")), text("system")), text(SHELL)),
    "getattr of globals": reduced(GETATTR, EVAL, text("__self__")),
    "map": reduced(name("builtins", "map"), EXEC, b"(" + text(TOUCH) + b"t"),
    "type": reduced(name("builtins", "type"), text("x"), b")", b"}"),
    "apply of a list": EXEC + b"]" + text(TOUCH) + b"aR",
    "INST": b"(" + text(SHELL) + b"iposix\nsystem\n",
    "OBJ": b"(" + SYSTEM + text(SHELL) + b"o",
    "NEWOBJ": SYSTEM + text(SHELL) + b"\x85\x81",
    "NEWOBJ_EX": EXEC + text(TOUCH) + b"\x85}\x92",
    "BUILD with __setstate__": TUPLE + b")R}" + text("__setstate__") + SYSTEM + b"sb" + text(SHELL) + b"b",
    "BUILD of slots": TUPLE + b")RN}" + text("__class__") + SYSTEM + b"s\x86b",
    "BUILD of a word": TUPLE + b"}" + text("__call__") + SYSTEM + b"sb",
    "BUILD of an array with slots": RECONSTRUCT + b")RN}" + text("__array_finalize__") + SYSTEM + b"s\x86b",
    "STACK_GLOBAL by way of the memo": text("system")
    + b"q\x07"
    + text("posix")
    + b"q\x08h\x07\x93"
    + text(SHELL)
    + b"\x85R",
    "STACK_GLOBAL, memo of another name": text("tuple")
    + b"q\x07"
    + text("system")
    + b"q\x07"
    + text("posix")
    + b"h\x07\x93"
    + text(SHELL)
    + b"\x85R",
    "STACK_GLOBAL of parts of tuples": b"(" + text("posix") + text("system") + b"t\x93",
    "a dotted name": name("builtins", "tuple.__class__.__base__.__subclasses__") + b")R",
    "a name that folds to an allowed one": name("ｂuiltins", "tuple") + b")R",
    "a name with NUL": name("builtins\0", "tuple") + b")R",
    "a name with a space": name("builtins ", "tuple") + b")R",
    "EXT1": b"\x82\x01)R",
    "EXT2": b"\x83\x01\x01)R",
    "EXT4": b"\x84\x01\x00\x00\x01)R",
    "PERSID": b"Pposix\n",
    "BINPERSID of code": SYSTEM + b"Q",
    "nested pickle": reduced(name("pickle", "loads"), b"C\x20" + bytes(32)),
    "nested pickle by _codecs": reduced(name("_codecs", "decode"), text("x"), text("rot13")),
    "encode with a codec that is none": reduced(name("_codecs", "encode"), text("x"), text("unicode_escape")),
    "_reconstruct of a function": reduced(RECONSTRUCT, SYSTEM, text(SHELL), b"C\x01b"),
    "_reconstruct of a type of its own": reduced(RECONSTRUCT, name("builtins", "object"), b"K\x00\x85", b"C\x01b") + b"b",
    "_reconstruct of nothing": RECONSTRUCT + b"N\x85R",
    "_reconstruct with too much": reduced(RECONSTRUCT, *([NDARRAY] * 9)),
    "_reconstruct called twice": reduced(RECONSTRUCT, NDARRAY, b"K\x00\x85", b"C\x01b") + b")R",
    "an array of objects": reduced(RECONSTRUCT, NDARRAY, b"K\x00\x85", b"C\x01b")
    + b"(K\x01K\x01\x85"
    + reduced(DTYPE, text("O8"), b"\x89", b"\x88")
    + b"(K\x03"
    + text("|")
    + b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK?tb\x89]"
    + reduced(EXEC, text(TOUCH))
    + b"atb",
    "ndarray itself": NDARRAY + b"K\x01\x85\x85R",
    "dtype of code": reduced(DTYPE, reduced(EVAL, text(TOUCH))),
    "dtype with metadata": reduced(DTYPE, text("f4"), b"\x89", b"\x88")
    + b"(K\x04"
    + text("<")
    + b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00}tb",
    "tuple of a word": reduced(TUPLE, SYSTEM),
    "text protocol": b"cposix\nsystem\n(S'" + SHELL.encode() + b"'\ntR",
    "text protocol, raw unicode": b"cposix\nsystem\n(V" + SHELL.encode() + b"\ntR",
    "POP hides it": reduced(EXEC, text(TOUCH)) + b"0N",
    "POP_MARK hides it": b"(" + reduced(EXEC, text(TOUCH)) + b"1N",
    "DUP": EXEC + b"2" + text(TOUCH) + b"\x85R",
    "within frames": b"\x95\x02\x00\x00\x00\x00\x00\x00\x00" + reduced(EXEC, text(TOUCH)),
    "a protocol within": b"\x80\x02" + reduced(EXEC, text(TOUCH)),
}


def pickles(value: bytes) -> dict[str, bytes]:
    """Return complete pickles that contain these opcodes where a loader might run them before it checks them."""
    weights = pickle.dumps({"w": [1.0]}, protocol=2)
    broken = b"\x80\x04" + value + b"\x00not an instruction"
    return {
        "as it is": b"\x80\x04" + value + b".",
        "as a tensor": b"\x80\x02}" + text("w") + value + b"s.",
        "as a name": b"\x80\x04}" + value + b"K\x01s.",
        "before an error": broken,
        "after the weights": weights + b"\x80\x02" + value + b".",
        "before the weights": b"\x80\x02" + value + b"0" + weights[2:],
        "of protocol 0": value + b".",
    }


def archives(code: bytes) -> dict[str, bytes]:
    """Return zip files in torch's format with which a scanner may read another pickle than a loader does."""
    good = b"\x80\x02}."
    made = {}
    for label, members in {
        "one": [("archive/data.pkl", code)],
        "the same name twice": [("archive/data.pkl", good), ("archive/data.pkl", code)],
        "two roots": [("archive/data.pkl", good), ("b/data.pkl", code)],
        "another ending": [("archive/data.pkl", code), ("archive/data.pkl.txt", good)],
        "outside": [("archive/data.pkl", code), ("../archive/data.pkl", code), ("/archive/data.pkl", code)],
        "with code of TorchScript": [("archive/data.pkl", code), ("archive/code/x.py", TOUCH.encode())],
    }.items():
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w") as archive:
            for member, content in members:
                info = zipfile.ZipInfo(member)
                if member in archive.NameToInfo:
                    archive.NameToInfo.pop(member)  # otherwise zipfile warns
                archive.writestr(info, content)
        made[label] = buffer.getvalue()
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        link = zipfile.ZipInfo("archive/data.pkl")
        link.create_system, link.external_attr = 3, 0o120777 << 16
        archive.writestr(link, "/etc/passwd")
    made["a link"] = buffer.getvalue()
    made["junk before it"] = b"PK\x03\x04" + b"\0" * 60 + made["one"]
    made["a pickle before it"] = code + made["one"]
    made["flags of encryption"] = made["one"].replace(b"PK\x01\x02\x14\x03\x14\x00\x00", b"PK\x01\x02\x14\x03\x14\x00\x01")
    made["another name in front"] = made["one"].replace(b"archive/data.pkl", b"archive/fake.pkl", 1)
    made["a wrong CRC"] = made["one"].replace(struct.pack("<I", zipfile.crc32(code)), b"\1\2\3\4")
    return made


def python_pickles() -> dict[str, bytes]:
    """Return pickles of attacks as Python's pickle module writes them, in each protocol."""
    harm: dict[str, Any] = {
        "eval": Call(builtins.eval, TOUCH),
        "exec": Call(builtins.exec, TOUCH),
        "getattr": Call(getattr, Call(__import__, "os"), "system"),
        "within a tuple": (1, [Call(builtins.exec, TOUCH)]),
        "a pickle in a pickle": Call(pickle.loads, pickle.dumps(Call(builtins.exec, TOUCH))),
    }
    return {
        f"{label}, protocol {protocol}": pickle.dumps({"w": value}, protocol=protocol)
        for label, value in harm.items()
        for protocol in range(6)
    }
