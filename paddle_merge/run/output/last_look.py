"""Open finished files of weights as loaders do, and compare them with the plan, before the merge counts as done.

Only headers are read.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ...checkpoints.formats.any import open_file
from ...errors import CheckpointError, OutputError
from ...parsing import tensors_named
from ...plan.plan import Plan

Headers = Mapping[str, tuple[str, tuple[int, ...]]]  # name -> (dtype, as safetensors calls it; shape)


def look(plan: Plan, paths: Sequence[str]) -> None:
    """Compare the names, dtypes and shapes in the files with the plan's. paths: of the shards, in the order of Plan.shards.

    safetensors files are read with the safetensors library, others with this package's reader. Raises OutputError.
    """
    wanted: list[dict[str, tuple[str, tuple[int, ...]]]] = [{} for _ in paths]
    for tensor in plan.tensors:
        wanted[tensor.shard][tensor.name] = tensor.dtype.tag, tensor.shape
    for path, shard, expected in zip(paths, plan.shards, wanted, strict=True):
        found = _by_safetensors(path) if plan.save_format == "safetensors" else _by_ours(path)
        wrong = [name for name in {**expected, **found} if found.get(name) != expected.get(name)]
        if wrong:
            raise OutputError(
                f"{shard.name} as it was written doesn't hold what the plan says of {tensors_named(wrong)}: the disk may be"
                " failing; if it isn't, this is a fault of paddle_merge: please report it"
            )


def _by_safetensors(path: str) -> Headers:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 (it is no mapping)
            return {name: (one.get_dtype(), tuple(one.get_shape())) for name, one in slices.items()}
    except (SafetensorError, OSError) as error:
        raise OutputError(f"{path}: was written, but the safetensors library can't open it ({error})") from None


def _by_ours(path: str) -> Headers:
    try:
        return {name: (entry.dtype.tag, entry.shape) for name, entry in open_file(path).tensors.items()}
    except CheckpointError as error:
        raise OutputError(f"{path}: was written, but can't be read again ({error})") from None
