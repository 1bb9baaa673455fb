"""Read pickles without Python's pickle module: interpret the few instructions that files of weights need.

load() makes stand-ins (standins.py) instead of objects. It never calls, imports or looks up anything that the file names: a
name outside of the caller's `words` is an error, and so is every other instruction. Of an array's bytes only the location
is kept; they are not read.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any, BinaryIO

from ...errors import CheckpointError, MalformedError
from ..json_files import open_regular
from .standins import Bytes, Opaque, Standin, Text, Word

MAX_STEPS = 1 << 23  # instructions, to bound time and memory; 250,000 tensors need fewer
MAX_TEXT = 1 << 16  # bytes; longer text is an array's payload (protocol 2), and is not read
MAX_DEPTH = 1 << 12  # nested MARK instructions


_MARK = Standin()  # what a MARK instruction pushes onto the stack
Words = Mapping[tuple[str, str], Callable[..., Any]]  # (module, name) -> function that makes a stand-in for a call's result


class Window:
    """Read the bytes start..stop of an open file in order. As a context manager, it closes the file.

    at: the byte offset in the file of the next read.
    """

    def __init__(self, path: str, file: BinaryIO, start: int, stop: int):
        self.path, self._file, self.at, self.stop = path, file, start, stop
        file.seek(start)

    def __enter__(self) -> Window:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._file.close()

    def read(self, count: int) -> bytes:
        """Return the next `count` bytes. Raises MalformedError if fewer are left."""
        if count > self.stop - self.at:
            raise MalformedError(f"is damaged or truncated (byte {self.at})")
        found = self._file.read(count)
        if len(found) != count:
            raise MalformedError("changed while it was read")
        self.at += count
        return found

    def skip(self, count: int) -> int:
        """Skip `count` bytes and return the offset where they begin. Raises MalformedError if fewer are left."""
        if count > self.stop - self.at:
            raise MalformedError(f"is damaged or truncated (byte {self.at})")
        self._file.seek(count, os.SEEK_CUR)
        self.at += count
        return self.at - count

    def line(self) -> str:
        """Return the text up to the next line feed. Raises MalformedError if there is none."""
        found = self._file.readline(MAX_TEXT)
        self.at += len(found)
        if self.at > self.stop or not found.endswith(b"\n"):
            raise MalformedError(f"is damaged or truncated (byte {self.at})")
        return found[:-1].decode()


def open_window(path: str) -> Window:
    """Open a file as a window of all its bytes. Raises CheckpointError."""
    try:
        file = open_regular(path)
        return Window(path, file, 0, os.fstat(file.fileno()).st_size)
    except OSError as error:
        raise CheckpointError(f"{path}: can't be read ({error.strerror})") from None


def load(window: Window, words: Words, persistent: Callable[[Any], Any] | None = None, plain: bool = False) -> Any:
    """Return what the pickle in the window describes: dicts, lists, tuples, numbers, Text, Bytes, and what `words` make.

    persistent: makes a stand-in for a persistent id; None if the format has none. plain: whether dicts may have state set,
    as OrderedDict has, which is ignored. Raises CheckpointError of one sentence, whatever the bytes are.
    """
    value = load_next(window, words, persistent, plain)
    if window.at != window.stop:
        raise CheckpointError(f"{window.path}: has bytes after the end of its pickle: it is damaged")
    return value


def load_next(window: Window, words: Words, persistent: Callable[[Any], Any] | None = None, plain: bool = False) -> Any:
    """Return what the next pickle in the window describes, of several that follow each other. Arguments: as of load."""
    try:
        return _run(window, words, persistent, plain)
    except MalformedError as error:
        raise CheckpointError(f"{window.path}: {error}") from None
    except OSError as error:
        raise CheckpointError(f"{window.path}: can't be read ({error.strerror})") from None
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError, RecursionError, struct.error):
        raise CheckpointError(f"{window.path}: is not a valid pickle: it is damaged (near byte {window.at})") from None


def _run(window: Window, words: Words, persistent: Callable[[Any], Any] | None, plain: bool) -> Any:
    """Run the pickle machine: a stack, the positions of marks in it, and a memo. Arguments and errors: as of load.

    A FRAME instruction gives the number of bytes that the next instructions take; a pickle whose instructions don't end
    where a frame ends has lost bytes.
    """
    read, stack, marks, memo = window.read, list[Any](), list[int](), dict[int, Any]()
    frame_end = 0  # offset of the end of the current frame; 0 outside of frames

    def marked() -> list[Any]:
        """Pop and return what was pushed since the last mark."""
        start = marks.pop()
        found = stack[start:]
        del stack[start:]
        if found.pop(0) is not _MARK:
            raise MalformedError(f"is not a valid pickle: it is damaged (byte {window.at})")
        return found

    def top() -> Any:
        """Return the value on top of the stack."""
        if stack[-1] is _MARK:
            raise MalformedError(f"is not a valid pickle: it is damaged (byte {window.at})")
        return stack[-1]

    for _ in range(MAX_STEPS):
        if window.at == frame_end:
            frame_end = 0
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
                    raise MalformedError("is nested more deeply than any file of weights")
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
                    raise MalformedError("sets the state of an object that has none")
            case b"U":  # SHORT_BINSTRING: text of Python 2
                stack.append(_text(window, read(1)[0]))
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
            case b"\x96":  # BYTEARRAY8
                stack.append(_bytes(window, struct.unpack("<Q", read(8))[0]))
            case b"\x8d":  # BINUNICODE8
                stack.append(_text(window, struct.unpack("<Q", read(8))[0]))
            case b")":  # EMPTY_TUPLE
                stack.append(())
            case b"]":  # EMPTY_LIST
                stack.append([])
            case b"}":  # EMPTY_DICT
                stack.append({})
            case b"\x8f":  # EMPTY_SET
                stack.append(Opaque())
            case b"\x90":  # ADDITEMS
                marked()
                if not isinstance(stack[-1], Opaque):
                    raise MalformedError("adds items to an object that is not a set")
            case b"\x91":  # FROZENSET
                stack.append(Opaque(*marked()))
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
                    raise MalformedError("refers to objects outside of the pickle, which no file of weights of Paddle does")
                stack.append(persistent(stack.pop()))
            case b"\x95":  # FRAME
                nested, frame_end = frame_end, struct.unpack("<Q", read(8))[0] + window.at
                if nested or frame_end > window.stop:
                    raise MalformedError(f"is damaged or truncated (byte {window.at})")
            case b"\x80":  # PROTO
                version = read(1)[0]
                if not 2 <= version <= 5:
                    raise MalformedError(f"is a pickle of protocol {version}; weights are saved with protocols 2 to 5")
            case b".":  # STOP
                (value,) = stack
                if frame_end not in (0, window.at):
                    raise MalformedError(f"is damaged or truncated (byte {window.at})")
                return value
            case code:
                raise MalformedError(f"holds an instruction that no weights file needs ({code!r}); nothing in it was run")
    raise MalformedError(f"has more than {MAX_STEPS} instructions: more than any weights need")


def _word(module: Any, name: Any, words: Words) -> Word:
    """Return the stand-in for an importable name. Raises MalformedError if `words` doesn't have it."""
    if not (isinstance(module, str) and isinstance(name, str)):
        raise MalformedError("asks for an object without a name")
    full = f"{module}.{name}"
    if (module, name) not in words:
        shown = full.encode("unicode_escape").decode()[:100]
        raise MalformedError(
            f"asks for {shown}, which weights don't need and pickle would run; nothing in it was run; save the weights alone"
        )
    return Word(full, words[module, name])


def _call(word: Any, arguments: Any) -> Any:
    """Return the stand-in for the result of a call. Raises MalformedError."""
    if not isinstance(word, Word) or type(arguments) is not tuple:
        raise MalformedError("calls an object that is not callable")
    return word.make(*arguments)


def _extend(target: Any, items: list[Any]) -> None:
    """Append the items to a list. Raises MalformedError."""
    if type(target) is not list:
        raise MalformedError("appends to an object that is not a list")
    target.extend(items)


def _update(target: Any, items: list[Any]) -> None:
    """Set the items of a dict: key, value, key, value and so on. Raises MalformedError, also for a key that occurs twice."""
    if type(target) is not dict or len(items) % 2:
        raise MalformedError("sets items of an object that is not a dict")
    for key, value in zip(items[::2], items[1::2], strict=True):
        # Hashing nested tuples can take exponential time, and large numbers can be chosen so that their hashes collide.
        if not isinstance(key, str | int | Standin) or (isinstance(key, int) and abs(key) >= 2**31):
            key = Opaque()  # it is no name of a tensor, and never looked up
        if key in target:
            raise MalformedError(f"holds {str(key)[:100]!r} twice")
        target[key] = value


def _text(window: Window, count: int) -> Text:
    """Read a string of `count` bytes of UTF-8, or skip it if it is long."""
    short = count <= MAX_TEXT
    offset = window.at if short else window.skip(count)
    text = Text(window.read(count).decode("utf-8", "surrogatepass") if short else "")
    text.offset, text.nbytes = offset, count
    return text


def _bytes(window: Window, count: int) -> Bytes:
    """Skip a byte string of `count` bytes, and return its location."""
    return Bytes(window.skip(count), count)
