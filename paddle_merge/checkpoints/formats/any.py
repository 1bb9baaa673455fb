"""Open weights of any format; the first bytes of a file decide which format it has."""

from __future__ import annotations

import os

from ...errors import CheckpointError
from ..tensors import Checkpoint
from .folder import SHOWN, read_weight_map, sniff


def open_index(path: str, index: str, single: str | None) -> Checkpoint:
    """The checkpoint in the shards, in the folder `path`, that an index names.

    single: the file that it would be without an index, which must not be there too. Raises CheckpointError.
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
            f"{index}: names shards that are not there: {', '.join(name[:100] for name in missing[:SHOWN])}{more}"
        )
    return open_files(path, path, [os.path.join(path, shard) for shard in shards], weight_map)


def open_file(path: str) -> Checkpoint:
    """The checkpoint that is one file. Raises CheckpointError."""
    if path.endswith((".distcp", ".metadata")):
        raise CheckpointError(f"{path}: is one file of a distributed checkpoint; give the folder that holds them all")
    return open_files(path, os.path.dirname(path) or ".", [path], None)


def open_files(path: str, folder: str, files: list[str], weight_map: dict[str, str] | None) -> Checkpoint:
    from . import pdparams, safetensors, torch_bin

    kinds = {sniff(file) for file in files}
    if len(kinds) > 1:
        raise CheckpointError(f"{path}: its shards are of different formats: {', '.join(sorted(kinds))}")
    openers = {"safetensors": safetensors.open_files, "pdparams": pdparams.open_files, "bin": torch_bin.open_files}
    return openers[kinds.pop()](path, folder, files, weight_map)
