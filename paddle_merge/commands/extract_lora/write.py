"""Write an adapter's files, all or none."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np

from ...checkpoints.files import Files
from ...errors import OutputError
from ...run.output.disk import ShardFiles, json_bytes
from ...run.output.last_look import look
from ...run.output.writer import Output
from ..pairs import BLOCK
from .adapter_files import NewAdapter, Stored


def write_adapter(
    folder: str,
    adapter: NewAdapter,
    tensors: Iterable[tuple[str, Stored]],
    record: str,
    report: Callable[[], Mapping[str, Any]],
    files: Files,
) -> None:
    """Write all files of an adapter or none.

    tensors: every tensor of the adapter once, in any order; each is written before the next is asked for. record: name of
    the file that is written last, with what `report` then returns. Raises OutputError, and what `tensors` raises.
    """
    output, written = Output(folder, adapter, record), None
    try:
        output.create()
        (path,) = output.partial_paths
        written = ShardFiles()
        for name, tensor in tensors:
            offset = adapter.offsets[name]
            if isinstance(tensor, np.ndarray):
                written.write(path, offset, tensor)
                continue
            size = math.prod(tensor.shape)
            for start in range(0, size, BLOCK):
                raw = np.empty(min(BLOCK, size - start), tensor.dtype.raw)
                files.read(tensor, start, raw)
                written.write(path, offset + start * tensor.dtype.itemsize, raw)
        look({path: adapter.held}, adapter.save_format)
        output.finish(adapter.configs, json_bytes(report()))
    except BaseException as error:
        output.abandon()
        if isinstance(error, OSError):
            raise OutputError(f"{folder}: can't be written to ({error.strerror})") from None
        raise
    finally:
        if written is not None:
            written.close()
