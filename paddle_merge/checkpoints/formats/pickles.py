"""Pickles without pickle: the few instructions that weights files need, carried out on stand-ins of our own.

Nothing of Python is called, imported or looked up, whatever the file says: a name outside the caller's list of words is an
error, and so is every other instruction. Payloads of arrays are noted by place, not read.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any, BinaryIO

from ...errors import CheckpointError, MalformedError
from ..json_files import open_regular

MAX_STEPS = 1 << 23  # instructions; a quarter of a million tensors need fewer. Bounds time and memory
MAX_TEXT = 1 << 16  # bytes; longer text is a payload (protocol 2), and is not read
MAX_DEPTH = 1 << 12  # marks within marks


class Text(str):
    """A string, and the bytes in the file that it was read from; empty if they are more than MAX_TEXT."""

    offset: int
    nbytes: int


@dataclass(frozen=True, eq=False)
class Bytes:
    """A byte string by its place in the file. text: it is stored as UTF-8 of latin-1 text (protocol 2)."""

    offset: int
    nbytes: int
    text: bool = False


@dataclass(frozen=True, eq=False)
class Word:
    """What stands for an importable name: `make` takes the arguments of the call and gives a stand-in."""

    name: str
    make: Callable[..., Any]


class Standin:
    """What stands for an object. Keys of dicts are compared by identity if they are stand-ins."""

    def build(self, state: Any) -> None:
        """Take the state that the file gives. Raises MalformedError."""
        raise MalformedError("sets the state of what has none")


class Record(Standin):
    """What stands for a plain object: its attributes, as the file sets them."""

    def __init__(self) -> None:
        self.fields: dict[str, Any] = {}

    def build(self, state: Any) -> None:
        if not isinstance(state, dict) or not all(isinstance(key, str) for key in state):
            raise MalformedError("sets attributes that have no names")
        self.fields = state


_MARK = Standin()  # on the stack, where a mark is
Words = Mapping[tuple[str, str], Callable[..., Any]]


class Window:
    """The bytes start..stop of an open file, read in order. Closes the file."""

    def __init__(self, path: str, file: BinaryIO, start: int, stop: int):
        self.path, self._file, self.at, self.stop = path, file, start, stop
        file.seek(start)

    def __enter__(self) -> Window:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._file.close()

    def read(self, count: int) -> bytes:
        """Raises MalformedError if there aren't so many."""
        if count > self.stop - self.at:
            raise MalformedError(f"is cut off, or damaged (byte {self.at})")
        found = self._file.read(count)
        if len(found) != count:
            raise MalformedError("changes while it is read")
        self.at += count
        return found

    def skip(self, count: int) -> int:
        """Where the skipped bytes begin. Raises MalformedError if there aren't so many."""
        if count > self.stop - self.at:
            raise MalformedError(f"is cut off, or damaged (byte {self.at})")
        self._file.seek(count, os.SEEK_CUR)
        self.at += count
        return self.at - count

    def line(self) -> str:
        found = self._file.readline(MAX_TEXT)
        self.at += len(found)
        if self.at > self.stop or not found.endswith(b"\n"):
            raise MalformedError(f"is cut off, or damaged (byte {self.at})")
        return found[:-1].decode()


def open_window(path: str) -> Window:
    """The whole file. Raises CheckpointError."""
    try:
        file = open_regular(path)
        return Window(path, file, 0, os.fstat(file.fileno()).st_size)
    except OSError as error:
        raise CheckpointError(f"{path}: can't be read ({error.strerror})") from None


def load(window: Window, words: Words, persistent: Callable[[Any], Any] | None = None, plain: bool = False) -> Any:
    """What the pickle in the window describes: dicts, lists, tuples, numbers, Text, Bytes, and what `words` make.

    persistent: makes a stand-in of a persistent id. plain: dicts may have state set, which is ignored (OrderedDict).
    Raises CheckpointError in one sentence, whatever the bytes are.
    """
    try:
        value = _run(window, words, persistent, plain)
        if window.at != window.stop:
            raise MalformedError("goes on after its pickle has ended: it is damaged")
        return value
    except MalformedError as error:
        raise CheckpointError(f"{window.path}: {error}") from None
    except OSError as error:
        raise CheckpointError(f"{window.path}: can't be read ({error.strerror})") from None
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError, RecursionError, struct.error):
        raise CheckpointError(f"{window.path}: is not a whole pickle: it is damaged (near byte {window.at})") from None


def _run(window: Window, words: Words, persistent: Callable[[Any], Any] | None, plain: bool) -> Any:
    """The machine: a stack, the places of marks in it, and a memo. Frames say what to read ahead; that instructions fill
    them shows that no byte was lost on the way."""
    read, stack, marks, memo = window.read, list[Any](), list[int](), dict[int, Any]()
    header = 0  # where the frame ends that this instruction is in

    def marked() -> list[Any]:
        start = marks.pop()
        found = stack[start:]
        del stack[start:]
        if found.pop(0) is not _MARK:
            raise MalformedError(f"is not a whole pickle: it is damaged (byte {window.at})")
        return found

    def top() -> Any:
        if stack[-1] is _MARK:
            raise MalformedError(f"is not a whole pickle: it is damaged (byte {window.at})")
        return stack[-1]

    for _ in range(MAX_STEPS):
        if window.at == header:
            header = 0
        match read(1):
            case b"h":  # BINGET
                stack.append(memo[read(1)[0]])
            case b"\x94":  # MEMOIZE
                memo[len(memo)] = top()
            case b"q":  # BINPUT
                memo[read(1)[0]] = top()
            case b"\x8c":  # SHORT_BINUNICODE
                stack.append(_text(window, read(1)[0]))
            case b"K":  # BININT1
                stack.append(read(1)[0])
            case b"(":  # MARK
                if len(marks) == MAX_DEPTH:
                    raise MalformedError("is nested too deeply for weights")
                marks.append(len(stack))
                stack.append(_MARK)
            case b"t":  # TUPLE
                stack.append(tuple(marked()))
            case b"R":  # REDUCE
                arguments = stack.pop()
                stack[-1] = _call(stack[-1], arguments)
            case b"b":  # BUILD
                state = stack.pop()
                if isinstance(stack[-1], Standin):
                    stack[-1].build(state)
                elif not (plain and isinstance(stack[-1], dict)):
                    raise MalformedError("sets the state of what has none")
            case b"X":  # BINUNICODE
                stack.append(_text(window, struct.unpack("<I", read(4))[0]))
            case b"j":  # LONG_BINGET
                stack.append(memo[struct.unpack("<I", read(4))[0]])
            case b"r":  # LONG_BINPUT
                memo[struct.unpack("<I", read(4))[0]] = top()
            case b"\x85":  # TUPLE1
                stack[-1:] = [(stack[-1],)]
            case b"\x86":  # TUPLE2
                stack[-2:] = [(stack[-2], stack[-1])]
            case b"\x87":  # TUPLE3
                stack[-3:] = [(stack[-3], stack[-2], stack[-1])]
            case b"J":  # BININT
                stack.append(struct.unpack("<i", read(4))[0])
            case b"M":  # BININT2
                stack.append(struct.unpack("<H", read(2))[0])
            case b"\x8a":  # LONG1
                stack.append(int.from_bytes(read(read(1)[0]), "little", signed=True))
            case b"G":  # BINFLOAT
                stack.append(struct.unpack(">d", read(8))[0])
            case b"N":
                stack.append(None)
            case b"\x88":  # NEWTRUE
                stack.append(True)
            case b"\x89":  # NEWFALSE
                stack.append(False)
            case b"C":  # SHORT_BINBYTES
                stack.append(_bytes(window, read(1)[0]))
            case b"B":  # BINBYTES
                stack.append(_bytes(window, struct.unpack("<I", read(4))[0]))
            case b"\x8e":  # BINBYTES8
                stack.append(_bytes(window, struct.unpack("<Q", read(8))[0]))
            case b"\x8d":  # BINUNICODE8
                stack.append(_text(window, struct.unpack("<Q", read(8))[0]))
            case b")":  # EMPTY_TUPLE
                stack.append(())
            case b"]":  # EMPTY_LIST
                stack.append([])
            case b"}":  # EMPTY_DICT
                stack.append({})
            case b"a":  # APPEND
                _extend(stack[-2], [stack.pop()])
            case b"e":  # APPENDS
                items = marked()
                _extend(stack[-1], items)
            case b"s":  # SETITEM
                items = stack[-2:]
                del stack[-2:]
                _update(stack[-1], items)
            case b"u":  # SETITEMS
                items = marked()
                _update(stack[-1], items)
            case b"c":  # GLOBAL
                stack.append(_word(window.line(), window.line(), words))
            case b"\x93":  # STACK_GLOBAL
                name = stack.pop()
                stack.append(_word(stack.pop(), name, words))
            case b"\x81":  # NEWOBJ
                arguments = stack.pop()
                stack[-1] = _call(stack[-1], arguments)
            case b"Q":  # BINPERSID
                if persistent is None:
                    raise MalformedError("refers to objects outside of it, which no weights file of Paddle does")
                stack.append(persistent(stack.pop()))
            case b"\x95":  # FRAME
                within, header = header, struct.unpack("<Q", read(8))[0] + window.at
                if within or header > window.stop:
                    raise MalformedError(f"is cut off, or damaged (byte {window.at})")
            case b"\x80":  # PROTO
                version = read(1)[0]
                if not 2 <= version <= 4:
                    raise MalformedError(f"is a pickle of protocol {version}; weights are saved with protocols 2 to 4")
            case b".":  # STOP
                (value,) = stack
                if header not in (0, window.at):
                    raise MalformedError(f"is cut off, or damaged (byte {window.at})")
                return value
            case code:
                raise MalformedError(f"holds an instruction that no weights file needs ({code!r}); nothing in it was run")
    raise MalformedError(f"has more than {MAX_STEPS} instructions: more than any weights need")


def _word(module: Any, name: Any, words: Words) -> Word:
    if not (isinstance(module, str) and isinstance(name, str)):
        raise MalformedError("asks for something that has no name")
    full = f"{module}.{name}"
    if (module, name) not in words:
        shown = full.encode("unicode_escape").decode()[:100]
        raise MalformedError(f"asks for {shown}, which weights don't need and pickle would run; nothing in it was run")
    return Word(full, words[module, name])


def _call(word: Any, arguments: Any) -> Any:
    if not isinstance(word, Word) or type(arguments) is not tuple:
        raise MalformedError("calls what can't be called")
    return word.make(*arguments)


def _extend(target: Any, items: list[Any]) -> None:
    if type(target) is not list:
        raise MalformedError("appends to what is no list")
    target.extend(items)


def _update(target: Any, items: list[Any]) -> None:
    if type(target) is not dict or len(items) % 2:
        raise MalformedError("sets items of what is no dict")
    for key, value in zip(items[::2], items[1::2], strict=True):
        # The hash of nested tuples can take forever, and so can a dict of large numbers that are chosen to collide.
        if not isinstance(key, str | int | Standin) or (isinstance(key, int) and abs(key) >= 2**31):
            raise MalformedError("holds a dict whose keys are no names")
        if key in target:
            raise MalformedError(f"holds {str(key)[:100]!r} twice")
        target[key] = value


def _text(window: Window, count: int) -> Text:
    short = count <= MAX_TEXT
    offset = window.at if short else window.skip(count)
    text = Text(window.read(count).decode("utf-8", "surrogatepass") if short else "")
    text.offset, text.nbytes = offset, count
    return text


def _bytes(window: Window, count: int) -> Bytes:
    return Bytes(window.skip(count), count)
