"""Write Paddle's distributed ("flex") checkpoints, which PaddleFormers' Trainer resumes from, out of .pdparams files.

A .distcp file is a state dict as paddle.save writes it, and so is a .pdparams file: files are moved, not rewritten. The
metadata beside them says which tensor is in which file.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from ..checkpoints.names import last_word
from ..checkpoints.open import open_checkpoint
from ..checkpoints.tensors import TensorEntry, stored


def from_pdparams(source: str, folder: str, ranks: int) -> bool:
    """Move the weights in the folder `source` into `folder` as a flex checkpoint; return whether that could be done.

    ranks: of tensor parallelism. PaddleFormers gives each rank a slice of every tensor, but gate and up are fused in each
    rank for itself: a whole [gate | up] must not be sliced so.
    """
    tensors = open_checkpoint(source, "model").tensors
    if ranks > 1 and any(last_word(name) in ("up_gate_proj", "gate_up_proj") for name in tensors):
        return False
    os.makedirs(folder)
    names: dict[str, str] = {}
    files = sorted({stored(entry).file for entry in tensors.values()})
    for number, file in enumerate(files):
        names[file] = f"{number}_0.distcp"
        os.rename(file, os.path.join(folder, names[file]))
    write_metadata(folder, {name: (entry, names[stored(entry).file]) for name, entry in tensors.items()})
    return True


def write_metadata(folder: str, held: Mapping[str, tuple[TensorEntry, str]]) -> None:
    """Write 0.metadata. held: tensor name -> its description, and the name of the file that holds it whole."""
    import paddle

    described, located, flat = {}, {}, {}
    metadata, description, index = _classes()
    for name, (entry, file) in held.items():
        start, shape = (0,) * len(entry.shape), tuple(entry.shape)
        described[name] = [description(global_offset=start, local_shape=shape, dtype=entry.dtype.name, global_shape=shape)]
        located[index(tensor_key=name, global_offset=start, local_shape=shape)] = file
        flat[name] = (name,)
    paddle.save(
        metadata(state_dict_metadata=described, storage_metadata=located, flat_mapping=flat),
        os.path.join(folder, "0.metadata"),
    )


def _classes() -> tuple[Callable[..., Any], Callable[..., Any], Callable[..., Any]]:
    """Return Paddle's classes Metadata, LocalTensorMetadata and LocalTensorIndex."""
    from paddle.distributed.flex_checkpoint.dcp import metadata

    return metadata.Metadata, metadata.LocalTensorMetadata, metadata.LocalTensorIndex


def adapter_from(source: str, file: str) -> None:
    """Write the adapter's tensors among those in the folder `source`, which holds .pdparams files, into one such file."""
    import paddle

    found: dict[str, Any] = {}
    for part in weights_files(source):
        found |= {name: tensor for name, tensor in paddle.load(part).items() if re.search(r"\.lora_\w+$", name)}
    paddle.save(found, file)


def weights_files(folder: str) -> Iterator[str]:
    """Yield the paths of the .pdparams files in a folder, in order."""
    for name in sorted(os.listdir(folder)):
        if name.endswith(".pdparams"):
            yield os.path.join(folder, name)
