"""Read elements of tensors from files, a bounded number of which are kept open.

Before: an entry (tensors.py) says where a tensor's elements are stored. After: run/sources.py hands them to the pipeline.
"""

from __future__ import annotations

import math
import os
import resource
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from operator import itemgetter

import numpy as np

from ..errors import WorkError
from .gather import GAP, gather, is_dense, rearrange
from .tensors import TEXT_STEP, Part, StoredEntry, TensorEntry, stored

OPEN_FILES = 256  # the most that one Files object keeps open
PANEL = 16 << 20  # bytes of a scattered tensor that are read together, unless the memory budget allows less
NEAR = 1 << 18  # bytes of small tensors that are read together
FEW = 1 << 12  # a read of no more bytes than this is a sample, for which no panel is read


class OpenFiles:
    """Keep files open by path. A file is opened when first used, and the least recently used are closed.

    flags: of os.open.
    """

    def __init__(self, flags: int):
        self._flags = flags
        self._limit = max(8, min(OPEN_FILES, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 4))
        self._open: OrderedDict[str, int] = OrderedDict()

    def _file(self, path: str) -> int:
        """Return the descriptor of a file, opened if it isn't yet. Raises OSError."""
        file = self._open.get(path)
        if file is not None:
            self._open.move_to_end(path)
            return file
        if len(self._open) >= self._limit:
            os.close(self._open.popitem(last=False)[1])
        file = self._open[path] = os.open(path, self._flags)
        return file

    def close(self) -> None:
        """Close all files."""
        while self._open:
            os.close(self._open.popitem()[1])


class Files(OpenFiles):
    """Read tensors from files.

    panel: bytes of a scattered tensor (TensorEntry.scattered) that are read together; default 16 MiB.
    """

    def __init__(self, panel: int = PANEL) -> None:
        super().__init__(os.O_RDONLY)
        self._panel = panel
        self._panels_of = ""
        self._panels: dict[tuple[str, int], tuple[int, np.ndarray]] = {}  # first element, and the elements

    def read(self, entry: TensorEntry, start: int, out: np.ndarray) -> None:
        """Fill `out` with the elements of a stored tensor from index `start` on, in row-major order.

        out: C-contiguous, in the entry's raw dtype. Raises WorkError if the file can't be read or has become shorter, and
        ValueError for an entry that is not stored as it is.
        """
        entry = stored(entry)
        try:
            if not entry.parts:
                self._fill(entry.file, entry.offset + start * entry.dtype.itemsize, out.data)
            elif entry.scattered and FEW < out.nbytes < self._panel:
                self._read_panels(entry, start, out.view(np.uint8).view(entry.dtype.raw))
            else:
                gather(self._fetch, entry, start, out.view(np.uint8).view(entry.dtype.raw))
        except EOFError as error:
            raise WorkError(f"{error}: ends before tensor {entry.name!r} does; was it changed while merging?") from None
        except UnicodeError:
            raise WorkError(f"{entry.file}: tensor {entry.name!r} is damaged; was it changed while merging?") from None
        except OSError as error:
            raise WorkError(f"{entry.file}: can't read tensor {entry.name!r} ({error.strerror})") from None

    def read_all(self, entries: Iterable[TensorEntry], out: np.ndarray) -> None:
        """Fill `out` as `read` does, with all elements of stored tensors of one dtype, one tensor behind the other.

        Small ones that are near one another in a file are read together.
        """
        near: dict[str, list[tuple[int, int, int, StoredEntry]]] = {}  # path -> places in the file and in `out`, bytes
        at = 0
        for entry in entries:
            entry, size = stored(entry), math.prod(entry.shape)
            nbytes, parts = size * out.itemsize, entry.parts
            if not nbytes <= NEAR or (parts and (len(parts) > 1 or not _is_simple(parts[0], entry))):
                self.read(entry, 0, out[at : at + size])
            elif size:
                near.setdefault(entry.file, []).append((entry.offset, at, nbytes, entry))
            at += size
        for path, found in near.items():
            try:
                self._read_near(path, sorted(found, key=itemgetter(0)), out)
            except (OSError, EOFError):  # to be told of which tensor it is
                for _, at, nbytes, entry in found:
                    self.read(entry, 0, out[at : at + nbytes // out.itemsize])
            else:
                rearrange([(at, entry.parts[0]) for _, at, _, entry in found if entry.parts], out)

    def _read_near(self, path: str, found: Sequence[tuple[int, int, int, StoredEntry]], out: np.ndarray) -> None:
        """Copy the bytes of tensors of one file to `out`. found: as in read_all, by places in the file. Raises OSError,
        EOFError."""
        memory, first = out.view(np.uint8).data, 0
        while first < len(found):
            begin, stop, end = found[first][0], first, 0
            while stop < len(found):
                offset, _, nbytes, _ = found[stop]
                if stop > first and (offset > end + GAP or offset + nbytes > begin + NEAR):
                    break
                end, stop = max(end, offset + nbytes), stop + 1
            read = np.empty(end - begin, np.uint8).data
            self._fill(path, begin, read)
            for offset, at, nbytes, _ in found[first:stop]:
                to, source = at * out.itemsize, offset - begin
                memory[to : to + nbytes] = read[source : source + nbytes]
            first = stop

    def _fill(self, path: str, offset: int, view: memoryview) -> None:
        """Fill view, C-contiguous, with a file's bytes from `offset` on. Raises OSError, or EOFError with the path if the
        file ends."""
        file, done, nbytes = self._file(path), 0, view.nbytes
        while done < nbytes:
            rest = np.frombuffer(view, np.uint8)[done:].data if done else view
            count = os.preadv(file, [rest], offset + done)
            if count == 0:
                raise EOFError(path)
            done += count

    def _fill_nibbles(self, path: str, first: int, view: memoryview) -> None:
        """Fill view with a file's nibbles from number `first` on, one per byte. Raises OSError, or EOFError."""
        raw = np.empty((first % 2 + len(view) + 1) // 2, np.uint8)
        self._fill(path, first // 2, raw.data)
        both = np.stack((raw & 15, raw >> 4), axis=1).reshape(-1)
        np.frombuffer(view, np.uint8)[:] = both[first % 2 :][: len(view)]

    def _fetch(self, part: Part, position: int, view: memoryview) -> None:
        """Fill view with a part's bytes from `position` of it on, decoding text and nibbles.

        Raises OSError, EOFError, UnicodeError.
        """
        if part.nibbles:
            self._fill_nibbles(part.file, part.offset + position, view)
            return
        if not part.text:
            self._fill(part.file, part.offset + position, view)
            return
        while view:
            first = position // TEXT_STEP
            last = min(first + 16, -(-(position + len(view)) // TEXT_STEP), len(part.text) - 1)
            text = bytearray(part.text[last] - part.text[first])
            self._fill(part.file, part.text[first], memoryview(text))
            piece = text.decode().encode("latin-1")[position - first * TEXT_STEP :][: len(view)]
            if not piece:
                raise EOFError(part.file)
            view[: len(piece)] = piece
            view, position = view[len(piece) :], position + len(piece)

    def _read_panels(self, entry: StoredEntry, start: int, out: np.ndarray) -> None:
        """Fill `out` as read() does, from a panel: as many whole rows as fit into self._panel bytes, gathered at once.

        The panel is kept for the next call, because successive blocks of a scattered tensor need many small reads of the
        same places in the file.
        """
        row = max(1, math.prod(entry.shape[1:]))
        most = self._panel // entry.dtype.itemsize
        length = most // row * row or most
        if self._panels_of != entry.name:
            self._panels_of = entry.name
            self._panels.clear()
        while out.size:
            first = start // length * length
            key = (entry.file, entry.offset)
            if key not in self._panels or self._panels[key][0] != first:
                panel = np.empty(min(length, math.prod(entry.shape) - first), entry.dtype.raw)
                gather(self._fetch, entry, first, panel)
                self._panels[key] = first, panel
            piece = self._panels[key][1][start - first :][: out.size]
            out[: piece.size] = piece
            out, start = out[piece.size :], start + piece.size


def _is_simple(part: Part, entry: StoredEntry) -> bool:
    """Return whether a part is all of a tensor, and its bytes are those of the elements, without gaps."""
    return is_dense(part, entry.shape) and not part.text and not part.nibbles


class StoredReader:
    """Read a stored tensor in its storage dtype: the ElementReader of StoredEntry."""

    def __init__(self, entry: StoredEntry, files: Files):
        self.dtype, self._entry, self._files = entry.dtype, entry, files

    def read(self, start: int, out: np.ndarray) -> None:
        """Fill `out`, of shape (n,), with the elements from index `start` on. Raises WorkError."""
        self._files.read(self._entry, start, out)
