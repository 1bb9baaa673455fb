"""Open a checkpoint, whatever its kind: the entry point of this package.

    open_checkpoint   a path that the user gives: a folder, a file, or the name of a model on a hub
    open_folder       a folder that is known to exist (LoRA adapters, too, with the prefix folder.ADAPTER)

Both read headers only, never weights. A model's path may also name adapters (`base+adapter`): see adapters.open_model.
The modules below choose less: formats.folder finds a folder's files, formats.any opens files of any format by their first
bytes, and each other module of formats opens files of one format.
"""

from __future__ import annotations

import os
from dataclasses import replace

from ..errors import CheckpointError
from .formats.any import open_file, open_files, open_index
from .formats.folder import no_weights_message, single_file_names
from .tensors import Checkpoint


def open_checkpoint(path: str, prefix: str = "model") -> Checkpoint:
    """Read the headers of the checkpoint at `path`: a folder, one file of any format, or the name of a model on a hub.

    prefix: which weights of a folder are opened, "model" or "master_weights"; see folder.single_file_names.
    Raises CheckpointError listing everything wrong with the checkpoint.
    """
    from . import hub

    if hub.is_name(path):
        return replace(open_folder(hub.fetch(path, prefix), prefix), path=path)
    if not os.path.exists(path):
        raise CheckpointError(f"{path}: no such file or folder")
    return open_folder(path, prefix) if os.path.isdir(path) else open_file(path)


def open_folder(path: str, prefix: str) -> Checkpoint:
    """Read the headers of the weights in a folder.

    These are the first of single_file_names(prefix) that exists, as one file or as shards with an index; else the first of
    them that tensor- or pipeline-parallel training saved one file per rank; else a distributed ("flex")
    checkpoint. Raises CheckpointError listing everything wrong with them, or if there are none.
    """
    from .formats import flex, parallel

    if not os.access(path, os.R_OK | os.X_OK):
        raise CheckpointError(f"{path}: can't be read (no permission to list or enter the folder)")
    for name in single_file_names(prefix):
        single = os.path.join(path, name)
        if os.path.isfile(f"{single}.index.json"):
            return open_index(path, f"{single}.index.json", single)
        if os.path.isfile(single):
            return open_files(path, path, [single], None)
    for name in single_file_names(prefix):
        files, indexes = parallel.rank_files(path, name), parallel.rank_files(path, f"{name}.index.json")
        if files or indexes:
            return parallel.open_ranks(path, files, indexes)
    if (folder := flex.metadata_folder(path, prefix)) is not None:
        return flex.open_folder(path, folder)
    raise CheckpointError(no_weights_message(path, prefix))
