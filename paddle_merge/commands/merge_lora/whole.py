"""Merge the tensors that adapters hold whole, which replace those of the base model: of modules_to_save, biases.

T of the output is T of the base + the sum of w (T of the adapter - T of the base), over the adapters that hold it. Where
their weights add up to 1, the base cancels. A T that equals the base's, wherever it is held, stays as it is.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping, Sequence

import numpy as np

from ...backends.np_backend import NumpyBackend
from ...checkpoints.compare import equal
from ...checkpoints.files import Files
from ...checkpoints.tensors import TensorEntry
from ...dtypes import FLOAT32, FLOAT64, DType
from ...errors import CheckpointError
from ...records import record
from ..pairs import BLOCK, TensorReader

_FROZEN = ".base_layer.weight"  # PEFT saves these with adapters of embeddings, untrained


@record(frozen=True)
class Whole:
    """A tensor that the output holds whole.

    held: adapter's number -> the tensor there. kept: whether all are the same, and it is copied. base: the base model's;
    None if there is none, or if it isn't needed. Its dtype is that of the adapters'; if they differ, float32, or float64
    where one is.
    """

    name: str
    held: Mapping[int, TensorEntry]
    kept: bool
    base: TensorEntry | None

    @property
    def first(self) -> TensorEntry:
        return next(iter(self.held.values()))

    @property
    def dtype(self) -> DType:
        return common({entry.dtype for entry in self.held.values()})

    @property
    def shape(self) -> tuple[int, ...]:
        return self.first.shape


def common(dtypes: Collection[DType]) -> DType:
    """Return the dtype for what is made of these: the only one; of several, float64 if it is among them, else float32."""
    return next(iter(dtypes)) if len(dtypes) == 1 else FLOAT64 if FLOAT64 in dtypes else FLOAT32


def whole_tensors(
    held: Sequence[Mapping[str, TensorEntry]],
    weights: Sequence[float],
    paths: Sequence[str],
    base: Mapping[str, TensorEntry] | None,
    by_method: bool,
) -> list[Whole]:
    """Return the tensors that the output holds whole.

    held: of each adapter, its whole tensors by name. paths: the adapters', for messages. base: the base model's tensors,
    None without one. by_method: whether a method of `merge` merges them, which needs the base for all that is trained.
    Raises CheckpointError listing those that can't be merged.
    """
    found: dict[str, dict[int, TensorEntry]] = {}
    for number, tensors in enumerate(held):
        for name, entry in tensors.items():
            found.setdefault(name, {})[number] = entry
    problems: list[str] = []
    unknown: list[str] = []
    result = []
    for name, its in found.items():
        (number, first), *others = its.items()
        differing = [other for other, entry in others if entry.shape != first.shape]
        if differing:
            shapes = f"{list(first.shape)} in {paths[number]} and {list(its[differing[0]].shape)} in {paths[differing[0]]}"
            problems.append(f"tensor {name!r} is {shapes}, which can't be added up; were tokens added in training?")
            continue
        same = all(equal(first, entry) for _, entry in others)
        frozen = any(_FROZEN in entry.name for entry in its.values())
        if frozen and not same:
            problems.append(
                f"tensor {name!r} is the base model's in each adapter, and differs; were they trained on one model?"
            )
            continue
        under = base.get(name) if base is not None else None
        under = under if under is not None and under.shape == first.shape else None
        alone = math.isclose(sum(weights[one] for one in its), 1.0, rel_tol=1e-9) and not by_method
        kept = frozen or (same and (alone or (under is not None and equal(first, under))))
        if not kept and under is None and not alone:
            unknown.append(name)
        result.append(Whole(name, its, kept, None if kept or alone else under))
    if unknown:
        names = ", ".join(map(repr, unknown[:3])) + (f" and {len(unknown) - 3} more" if len(unknown) > 3 else "")
        why = "by a method" if by_method else "by weights that don't add up to 1 over the adapters that hold them"
        lacking = ", which has them in the same shape" if base is not None else ""
        problems.append(
            f"{names}: trained whole, and merged {why}, so what training changed has to be known: give"
            f" --base_model_path{lacking}"
        )
    if problems:
        raise CheckpointError(problems)
    return result


def blocks(whole: Whole, weights: Sequence[float], files: Files) -> Iterator[tuple[int, np.ndarray]]:
    """Yield (index of the first, elements as they are stored) of a whole tensor that is merged by weights.

    It is computed in float64 and rounded once. Raises CheckpointError if a tensor holds NaN or Inf, or the sum is too large.
    """
    held = {0: whole.first} if whole.kept else whole.held
    terms = [(1.0 if whole.kept else weights[number], TensorReader(entry, files)) for number, entry in held.items()]
    if whole.base is not None:
        terms.append((1.0 - math.fsum(weight for weight, _ in terms), TensorReader(whole.base, files)))
    backend, size = NumpyBackend("float64"), math.prod(whole.shape)
    for start in range(0, size, BLOCK):
        total = np.zeros(min(BLOCK, size - start))
        for weight, reader in terms:
            reader.read(start, len(total))
            total += weight * reader.numbers.astype(np.float64)
        raw, bad = backend.store(total, whole.dtype)
        if bad:
            raise CheckpointError(f"tensor {whole.name!r} holds NaN or Inf, or its sum is too large for {whole.dtype.name}")
        yield start, raw
