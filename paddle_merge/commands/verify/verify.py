"""Check that the output of a merge is what the merge wrote, and that its inputs still give the same result."""

from __future__ import annotations

import dataclasses
import os
import random
import re
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import xxhash

from ...checkpoints.fingerprint import of_file, sum_of
from ...errors import CheckpointError, MergeError
from ...parsing import tensors_named
from ...plan.file_names import EXPERTS, RECORD, WEIGHTS
from ...plan.plan import Plan
from ...plan.planner import make_plan
from ...plan.tensor_plan import TensorPlan
from ...recipe.config import MergeConfig
from ...recipe.request import Request
from ...run.gates import gated_again
from ...run.job import Job, Report
from ...run.output.lock import MergeRecord, WrittenTensor, read_lock
from ...run.pool import work
from ...run.ranks import Ranks

STEP = 1 << 24  # elements of a tensor that a thread takes at a time


@dataclass
class Findings:
    """The result of a verification.

    output: the folder. files, tensors, nbytes: how many files and tensors the merge wrote, and how many bytes of weights.
    remade: the names of the tensors that were computed again from the inputs. off: a sentence for each difference. notes: a
    sentence for each thing that could not be checked.
    """

    output: str
    files: int = 0
    tensors: int = 0
    nbytes: int = 0
    remade: list[str] = field(default_factory=list)
    off: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def verify(folder: str, sample: int | None, n_process: int, tolerant: bool, progress: bool | None = None) -> Findings:
    """Compare all bytes of the output with the record, then compute `sample` tensors again (None: all) and compare them.

    tolerant: whether missing inputs are a note instead of an error. progress: whether to show a progress bar; None: if
    standard error is a terminal. Raises CheckpointError, WorkError.
    """
    lock = read_lock(folder)
    found = Findings(folder, len(lock.files) + len(lock.shards), len(lock.tensors), sum(n for n, _ in lock.shards.values()))
    found.off += differing_files(folder, lock).values()
    found.off += _differing_tensors(folder, lock, n_process)
    if sample == 0 or any(sentence.startswith(os.path.join(folder, RECORD)) for sentence in found.off):
        found.notes.append(
            f"no tensor was computed again from the inputs: {'--sample 0' if sample == 0 else f'{RECORD} differs'}"
        )
        return found
    try:
        _remake(folder=folder, lock=lock, sample=sample, n_process=n_process, progress=progress, found=found)
    except CheckpointError as error:
        if not tolerant:
            raise
        found.notes += [f"no tensor was computed again from the inputs: {problem}" for problem in error.problems]
    return found


# --- the output against the record


def differing_files(folder: str, lock: MergeRecord) -> dict[str, str]:
    """Return a sentence for each file that isn't as the record says: files that aren't weights, the headers of the weights,
    and files with other weights. By the file's name; elements of tensors are not read."""
    off = {}
    for name, checksum in lock.files.items():
        path = os.path.join(folder, name)
        try:
            with open(path, "rb") as file:
                if xxhash.xxh3_128_hexdigest(file.read()) != checksum:
                    off[name] = f"{path}: has changed since the merge"
        except OSError as error:
            off[name] = f"{path}: can't be read ({error.strerror})"
    for name, (nbytes, header) in lock.shards.items():
        path = os.path.join(folder, name)
        tensors = [tensor for tensor in lock.tensors.values() if tensor.shard == name]
        try:
            if (size := os.path.getsize(path)) != nbytes:
                off[name] = f"{path}: has {size:,} bytes, and the merge wrote {nbytes:,}"
            elif _frame(path, nbytes, tensors) != header:
                off[name] = f"{path}: the header, that is all bytes outside of tensors, isn't what the merge wrote"
        except OSError as error:
            held = f"{len(tensors):,} tensor{'s' * (len(tensors) != 1)}"
            off[name] = f"{path}: can't be read ({error.strerror}); the merge wrote {held} to it"
    for name in sorted(os.listdir(folder)):
        if name.endswith(WEIGHTS) and name not in {*lock.shards, *lock.files}:
            path = os.path.join(folder, name)
            off[name] = f"{path}: doesn't belong to this merge, but loaders may read it as weights"
    return off


def _frame(path: str, nbytes: int, tensors: Sequence[WrittenTensor]) -> str:
    """Return the XXH3 checksum of all bytes outside of tensors. Raises OSError."""
    checksum, at = xxhash.xxh3_128(), 0
    with open(path, "rb") as file:
        for start, stop in [
            *sorted((one.offset, one.offset + one.size * one.itemsize) for one in tensors),
            (nbytes, nbytes),
        ]:
            file.seek(at)
            checksum.update(file.read(max(0, start - at)))
            at = stop
    return checksum.hexdigest()


def _differing_tensors(folder: str, lock: MergeRecord, n_process: int) -> list[str]:
    """Return a sentence for each tensor of which the bytes differ, or one for all tensors of a file.

    Bytes are read in threads: hashing and reading release Python's interpreter lock. Of files that can't be read,
    differing_files says so.
    """
    readable = {shard for shard in lock.shards if os.access(os.path.join(folder, shard), os.R_OK)}
    tensors = {name: tensor for name, tensor in lock.tensors.items() if tensor.shard in readable}

    def stretches() -> Iterator[tuple[str, int, int]]:
        for name, tensor in tensors.items():
            step = max(1, STEP // tensor.block) * tensor.block
            for start in range(0, tensor.size, step):
                yield name, start, min(start + step, tensor.size)

    def take(stretch: tuple[str, int, int]) -> str:
        name, start, stop = stretch
        tensor = tensors[name]
        try:
            path = os.path.join(folder, tensor.shard)
            return of_file(path, tensor.offset, tensor.itemsize, start, stop, tensor.block)
        except (OSError, EOFError):
            return ""  # no fingerprint: these bytes can't be read

    pieces: dict[str, list[str]] = {name: [] for name in tensors}
    with ThreadPoolExecutor(n_process) as pool:
        for (name, _, _), fingerprint in zip(stretches(), pool.map(take, stretches()), strict=True):
            pieces[name].append(fingerprint)
    differing: dict[str, list[str]] = {}  # names of tensors by shard
    for name, tensor in tensors.items():
        if "" in pieces[name] or sum_of(pieces[name]) != tensor.written:
            differing.setdefault(tensor.shard, []).append(name)
    off = []
    for shard, names in differing.items():
        path = os.path.join(folder, shard)
        if 1 < len(names) == sum(tensor.shard == shard and tensor.size > 0 for tensor in tensors.values()):
            off.append(f"{path}: none of its {len(names):,} tensors is what the merge wrote")
        else:
            off += [f"tensor {name!r} in {path} isn't what the merge wrote" for name in names]
    return off


# --- the inputs against the record


def _remake(
    folder: str, lock: MergeRecord, sample: int | None, n_process: int, progress: bool | None, found: Findings
) -> None:
    """Compute tensors again from the inputs, without writing them, and compare. Raises CheckpointError, WorkError."""
    path = os.path.join(folder, RECORD)
    try:
        request = Request.of(MergeConfig.from_mapping(MergeConfig.from_file(path), path))
        recipe = request.checked_recipe()
        if recipe.expert_alignment != "index" and os.path.isfile(orders := os.path.join(folder, EXPERTS)):
            recipe = dataclasses.replace(recipe, expert_alignment=orders)
        plan, unknown = gated_again(make_plan(recipe, n_process, request.shard_bytes, request.engine))
    except MergeError as error:
        raise CheckpointError(error.problems) from None
    made = {held.name: (held.dtype.name, held.shape) for tensor in plan.tensors for held in tensor.stored}
    if made != {name: (tensor.dtype, tensor.shape) for name, tensor in lock.tensors.items()}:
        found.off.append(f"the inputs that {path} names don't have the tensors, dtypes, or shapes any more that were merged")
        return
    if unknown:
        found.notes.append(f"{tensors_named(unknown)}: not computed again, as a library did it, whose results may differ")
    filled = [tensor.name for tensor in plan.tensors if tensor.size and tensor.name not in unknown]
    chosen = set(filled if sample is None else _choose(filled, sample))
    pieces = tuple(piece for piece in plan.pieces if plan.tensors[piece.tensor].name in chosen)
    if not pieces:
        return
    plan = dataclasses.replace(plan, pieces=pieces, n_process=min(n_process, len(pieces)))
    reports: dict[str, list[Report]] = {}
    for report in work(plan, Job(None, plan.engine), progress, Ranks(0, ["alone"]), doing="verifying"):
        reports.setdefault(report.tensor, []).append(report)
    tensors = {tensor.name: tensor for tensor in plan.tensors}
    for name in filter(reports.__contains__, tensors):
        found.remade.append(name)
        found.off += _judge(plan, tensors[name], reports[name], lock)


def _judge(plan: Plan, tensor: TensorPlan, reports: Sequence[Report], lock: MergeRecord) -> list[str]:
    """Return a sentence for each difference between a tensor that was computed again and the record."""
    name, then = tensor.name, lock.tensors[tensor.name]
    if len(then.read) != len(tensor.numbers):
        return [f"tensor {name!r} is made from {len(tensor.numbers)} inputs, but from {len(then.read)} in the record"]
    off = []
    for place, number in enumerate(tensor.numbers):
        if sum_of(report.read[place] for report in reports) != then.read[place]:
            off.append(f"tensor {name!r} of {plan.recipe.titles[number]} isn't what was merged")
    same = sum_of(report.written for report in reports) == then.written
    if tensor.scales is not None:
        same &= sum_of(report.scales for report in reports) == lock.tensors[tensor.scales.name].written
    if not off and not same:
        by = ", ".join(f"{what} {which}" for what, which in lock.versions.items())
        off.append(f"tensor {name!r}, computed again from the same inputs, isn't what the merge wrote with {by}")
    return off


def _choose(names: Sequence[str], count: int) -> list[str]:
    """Choose `count` names at random: one of each kind (names that differ in numbers only) before a second of any."""
    kinds: dict[str, list[str]] = {}
    for name in random.sample(names, len(names)):
        kinds.setdefault(re.sub(r"\d+", "#", name), []).append(name)
    ranked = [(turn, name) for kind in kinds.values() for turn, name in enumerate(kind)]
    return [name for _, name in sorted(ranked, key=lambda pair: pair[0])][:count]
