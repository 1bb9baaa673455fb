"""Write and read merge_lock.json: what a merge read and wrote. commands/verify compares it with the files later.

It is the same for the same merge, whatever the number of workers, and whether it was stopped in between.
"""

from __future__ import annotations

import contextlib
import functools
import json
import math
import os
import platform
from collections.abc import Mapping, Sequence
from json.encoder import encode_basestring_ascii as _text
from typing import Any

import xxhash

from ...checkpoints.adapters import absolute_spec
from ...checkpoints.fingerprint import BLOCK, sum_of
from ...checkpoints.formats.naming import index_name
from ...checkpoints.json_files import read_json
from ...checkpoints.tensors import TensorEntry, files_of
from ...dtypes import BY_NAME
from ...errors import CheckpointError
from ...methods.shared.method import ResolvedMethod
from ...plan.file_names import CARD, LOCK
from ...plan.plan import Plan, Shard
from ...plan.tensor_plan import leaves
from ...records import record
from ...version import __version__
from ..job import Report


@record(frozen=True)
class WrittenTensor:
    """A tensor of the output as it was written.

    shard, offset, dtype, shape: its place and form. mix: how it was merged, as a place in recipe["mixes"]. written: the
    fingerprint of its bytes. read: the fingerprints of each input's, in the output's layout and with adapters folded in;
    none of the scales of another tensor, which are made with it. block: how many elements are hashed together.
    """

    shard: str
    offset: int
    dtype: str
    shape: tuple[int, ...]
    mix: int
    written: str
    read: tuple[str, ...]
    block: int = BLOCK

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    @property
    def itemsize(self) -> int:
        return BY_NAME[self.dtype].itemsize

    @property
    def row(self) -> str:
        """What the file says of it, in JSON.

        Python's json has to be asked anew for every tensor, and there are tens of thousands: so it is for the text only.
        """
        block = f', "block": {self.block}' if self.block != BLOCK else ""
        return (
            f'{{"shard": {_text(self.shard)}, "offset": {self.offset}, "dtype": {_text(self.dtype)},'
            f' "shape": {list(self.shape)}, "mix": {self.mix}, "written": {_text(self.written)},'
            f' "read": [{", ".join(map(_text, self.read))}]{block}}}'
        )


@record(frozen=True)
class MergeRecord:
    """versions: of what computed. recipe: with every default resolved. inputs: of each, its path and the files read, with
    their bytes. files: the XXH3 (128 bits) of each file that isn't weights. shards: of each, the bytes, and the XXH3 of what
    stands around the tensors, in order. tensors: by name, in order of their places."""

    versions: Mapping[str, str]
    recipe: Mapping[str, Any]
    inputs: Sequence[Mapping[str, Any]]
    files: Mapping[str, str]
    shards: Mapping[str, tuple[int, str]]
    tensors: Mapping[str, WrittenTensor]

    def to_bytes(self) -> bytes:
        content = dict(vars(self))
        # A line per tensor: short files, short differences.
        rows = [f"    {_text(name)}: {tensor.row}" for name, tensor in content.pop("tensors").items()]
        head = json.dumps(content, indent=2)
        return (head.removesuffix("\n}") + ',\n  "tensors": {\n' + ",\n".join(rows) + "\n  }\n}\n").encode()


def make_lock(plan: Plan, reports: Sequence[Report], files: Mapping[str, bytes]) -> MergeRecord:
    """Return the record of a merge that is done. files: contents of the files beside the weights and their index, by
    name."""
    if (index := plan.index()) is not None:
        files = {**files, index_name(plan.save_format, plan.prefix): index}
    pieces: dict[str, list[Report]] = {tensor.name: [] for tensor in plan.tensors}
    for report in reports:
        pieces[report.tensor].append(report)
    methods, tensors = _methods(plan), dict[str, WrittenTensor]()
    places = {method: place for place, method in enumerate(dict.fromkeys(methods.values()))}
    mixes = {key: places[method] for key, method in methods.items()}  # not a method's own hash, which takes long
    for tensor in plan.tensors:
        mine = pieces[tensor.name]
        if sum([report.stop - report.start for report in mine]) != tensor.size:
            raise RuntimeError(f"the pieces of tensor {tensor.name!r} don't add up")
        shard, mix = plan.shards[tensor.shard].name, mixes[id(tensor.resolved)]
        if len(mine) == 1:
            read, written = mine[0].read, mine[0].written
        else:
            read = tuple(sum_of(report.read[number] for report in mine) for number in range(len(tensor.inputs)))
            written = sum_of(report.written for report in mine)
        tensors[tensor.name] = WrittenTensor(
            shard, tensor.offset, tensor.dtype.name, tensor.shape, mix=mix, written=written, read=read
        )
        if (scales := tensor.scales) is not None:
            tensors[scales.name] = WrittenTensor(
                shard,
                scales.offset,
                scales.dtype.name,
                scales.grid,
                mix=mix,
                written=sum_of(report.scales for report in mine),
                read=(),
                block=scales.hashed,
            )
    return MergeRecord(
        versions=_versions(plan),
        recipe=_resolved(plan),
        inputs=_inputs(plan),
        files={name: xxhash.xxh3_128_hexdigest(content) for name, content in files.items() if name != CARD},
        shards={shard.name: (shard.nbytes, _frame(shard)) for shard in plan.shards},
        tensors=tensors,
    )


def read_lock(folder: str) -> MergeRecord:
    """Return the record in a folder. Raises CheckpointError if there is none, or it is damaged."""
    path = os.path.join(folder, LOCK)
    if not os.path.isfile(path):
        raise CheckpointError(f"{folder}: holds no {LOCK}, which a merge writes; it can't be verified without")
    content = read_json(path, file_names=True)
    try:
        shards = {str(name): (int(nbytes), str(header)) for name, (nbytes, header) in content["shards"].items()}
        tensors = {str(name): _written(row) for name, row in content["tensors"].items()}
        for tensor in tensors.values():
            if tensor.offset + tensor.size * tensor.itemsize > shards[tensor.shard][0]:
                raise ValueError("a tensor beyond its shard")
        for name in (*shards, *content["files"]):
            if os.path.isabs(name) or ".." in name.split("/"):
                raise ValueError("a file elsewhere")
        versions, recipe = dict(content["versions"]), dict(content["recipe"])
        inputs = [{"path": str(one["path"]), "files": dict(one["files"])} for one in content["inputs"]]
        files = {str(name): str(checksum) for name, checksum in content["files"].items()}
        return MergeRecord(versions=versions, recipe=recipe, inputs=inputs, files=files, shards=shards, tensors=tensors)
    except (KeyError, TypeError, ValueError, AttributeError):
        raise CheckpointError(f"{path}: is damaged: it doesn't say what a merge writes there") from None


def _written(row: Mapping[str, Any]) -> WrittenTensor:
    """Return what a row of the file says. Raises KeyError, TypeError, or ValueError."""
    found = WrittenTensor(
        shard=str(row["shard"]),
        offset=int(row["offset"]),
        dtype=BY_NAME[str(row["dtype"])].name,
        shape=tuple(map(int, row["shape"])),
        mix=int(row["mix"]),
        written=str(row["written"]),
        read=tuple(map(str, row["read"])),
        block=int(row.get("block", BLOCK)),
    )
    if min(found.offset, found.mix, found.block - 1, *found.shape) < 0:
        raise ValueError("a negative size")
    sum_of((found.written, *found.read))  # raises ValueError for what is no fingerprint
    return found


def _versions(plan: Plan) -> dict[str, str]:
    found = {"paddle_merge": __version__, "python": platform.python_version(), "machine": platform.machine()}
    found |= {name: _installed(name) for name in ("numpy", "numba")}
    if plan.engine.tensor_type == "pd":
        found |= {"paddle": _paddle(), "device": plan.engine.device}
    return found


@functools.cache  # a search merges thousands of times, and reading what pip wrote takes a tenth of a small merge
def _installed(name: str) -> str:
    from importlib.metadata import version  # which takes as long to import as several modules here, and few commands need

    return version(name)


def _paddle() -> str:
    """Return the version of Paddle that workers compute with, without importing it."""
    from importlib.metadata import PackageNotFoundError

    for name in ("paddlepaddle", "paddlepaddle-gpu"):
        with contextlib.suppress(PackageNotFoundError):
            return _installed(name)
    return "unknown"


def _resolved(plan: Plan) -> dict[str, Any]:
    """Return what was asked, with every default. mixes: the ways in which tensors were merged; WrittenTensor.mix is a place
    in it."""
    recipe = plan.recipe
    return {
        "method": recipe.method.name,
        "models": [absolute_spec(path) for path in recipe.models],
        "base": absolute_spec(recipe.base) if recipe.base else None,
        "mixes": [_shown(method) for method in dict.fromkeys(_methods(plan).values())],
        "seed": recipe.seed,
        "out_dtype": stored.name if (stored := plan.storage.form or recipe.out_dtype) else None,
        "layout": plan.layout,
        "tokens": plan.tokens.title if plan.tokens is not None else None,
        "save_format": recipe.save_format,
        "chat_template": recipe.chat_template,
    }


def _methods(plan: Plan) -> dict[int, ResolvedMethod]:
    """Return the resolved methods of all tensors by their ids, in order of appearance. Equal ones may be several objects."""
    return {id(tensor.resolved): tensor.resolved for tensor in plan.tensors}


def _shown(method: ResolvedMethod) -> dict[str, Any]:
    parts = {"sparsifier": method.sparsifier, "merger": method.merger}
    shown = {name: {"name": part.name, **part.parameters()} if part is not None else None for name, part in parts.items()}
    return {**shown, "scale": method.scale}


def _inputs(plan: Plan) -> list[dict[str, Any]]:
    read: list[list[TensorEntry]] = [[] for _ in plan.recipe.sources]
    for tensor in plan.tensors:
        for number, entry in leaves(tensor):
            read[number].append(entry)
    files = [sorted(map(os.path.abspath, files_of(entries))) for entries in read]
    return [
        {"path": absolute_spec(spec), "files": {file: os.path.getsize(file) for file in its}}
        for spec, its in zip(plan.recipe.sources, files, strict=True)
    ]


def _frame(shard: Shard) -> str:
    checksum = xxhash.xxh3_128()
    for _, content in sorted(shard.header):
        checksum.update(content)
    return checksum.hexdigest()
