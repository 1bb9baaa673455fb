"""Which files of a folder are its weights, and what they are: by their first bytes, for names say little."""

from __future__ import annotations

import os
from dataclasses import replace

from ..errors import CheckpointError
from .formats.any import open_files, open_index
from .formats.folder import nothing_here, singles
from .tensors import Checkpoint


def open_folder(path: str, prefix: str) -> Checkpoint:
    """The first of singles(prefix) that is there, in one file or in the shards its index names.

    If none is: one of them in a file per rank; else a distributed checkpoint. Raises CheckpointError.
    """
    from .formats import flex, parallel

    if not os.access(path, os.R_OK | os.X_OK):
        raise CheckpointError(f"{path}: can't be read (no permission to look into it)")
    for name in singles(prefix):
        single = os.path.join(path, name)
        if os.path.isfile(f"{single}.index.json"):
            return open_index(path, f"{single}.index.json", single)
        if os.path.isfile(single):
            return open_files(path, path, [single], None)
    for name in singles(prefix):
        files, indexes = parallel.rank_files(path, name), parallel.rank_files(path, f"{name}.index.json")
        if files or indexes:
            return parallel.open_ranks(path, files, indexes)
    if (folder := flex.metadata_folder(path, prefix)) is not None:
        return flex.open_folder(path, folder)
    raise CheckpointError(nothing_here(path, prefix))


def open_checkpoint(path: str, prefix: str = "model") -> Checkpoint:
    """Read the headers of the checkpoint at `path`: a folder, one file of any format, or the name of a model on a hub.

    prefix: which weights of the folder, "model" or "master_weights"; see find.open_folder.
    Raises CheckpointError listing everything wrong with it.
    """
    from . import hub, open
    from .formats import any

    if hub.is_name(path):
        return replace(open.open_folder(hub.fetch(path), prefix), path=path)
    if not os.path.exists(path):
        raise CheckpointError(f"{path}: no such file or folder")
    return any.open_file(path) if os.path.isfile(path) else open.open_folder(path, prefix)
