"""Open files of weights whose format is not known in advance; the first bytes of a file decide which format it has.

    open_file    one file
    open_index   the shards that an index file names
    open_files   several files that are one checkpoint

Users' paths go through open.open_checkpoint, which calls these once it has found the files.
"""

from __future__ import annotations

import os

from ...errors import CheckpointError
from ..tensors import Checkpoint
from .folder import SHOWN, foreign, read_weight_map, sniff


def open_index(path: str, index: str, single: str | None) -> Checkpoint:
    """Read the headers of the shards that the file `index` names, in the folder `path`.

    single: the path of the same model as one file; None if there can't be one. Loaders disagree about which of the two
    counts, so the file must not exist too. Raises CheckpointError.
    """
    weight_map = read_weight_map(index)
    shards = sorted(set(weight_map.values()))
    if single is not None and os.path.isfile(single) and shards != [os.path.basename(single)]:
        raise CheckpointError(
            f"{path}: has both {os.path.basename(single)} and {os.path.basename(index)}, and loaders disagree about which"
            " counts; remove the stale one"
        )
    missing = [shard for shard in shards if not os.path.isfile(os.path.join(path, shard))]
    if missing:
        more = f" and {len(missing) - SHOWN} more" if len(missing) > SHOWN else ""
        raise CheckpointError(
            f"{index}: names shards that don't exist: {', '.join(name[:100] for name in missing[:SHOWN])}{more}"
        )
    return open_files(path, path, [os.path.join(path, shard) for shard in shards], weight_map)


def open_file(path: str) -> Checkpoint:
    """Read the header of a checkpoint that is the single file `path`. Raises CheckpointError."""
    if path.endswith((".distcp", ".metadata")):
        raise CheckpointError(f"{path}: is one file of a distributed checkpoint; give the folder that holds all its files")
    if said := foreign(path):
        raise CheckpointError(f"{path}: {said}")
    if path.endswith(".index.json"):
        raise CheckpointError(f"{path}: is an index of files of weights; give the folder that holds it")
    return open_files(path, os.path.dirname(path) or ".", [path], None)


def open_files(path: str, folder: str, files: list[str], weight_map: dict[str, str] | None) -> Checkpoint:
    """Read the headers of files that are one checkpoint, all of one format.

    path: what the user calls the checkpoint. folder: where its config and tokenizer are. weight_map: tensor name -> shard
    name, which must agree with what the files hold; None without an index. Raises CheckpointError.
    """
    from . import pdparams, safetensors, torch_bin

    kinds = {sniff(file) for file in files}
    if len(kinds) > 1:
        raise CheckpointError(f"{path}: its shards are of different formats: {', '.join(sorted(kinds))}")
    openers = {"safetensors": safetensors.open_files, "pdparams": pdparams.open_files, "bin": torch_bin.open_files}
    return openers[kinds.pop()](path, folder, files, weight_map)
