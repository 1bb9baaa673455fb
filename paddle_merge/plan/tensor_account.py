"""Account for one tensor of the output: what it is made of, and what is done to that."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ..checkpoints.parts import as_boxes, pieces
from ..checkpoints.tensors import Origin, Part, StoredEntry, TensorEntry, stored
from ..conversion.lora.entry import AdaptedEntry
from ..errors import MalformedError
from ..records import record
from .plan import Plan
from .tensor_plan import StagedEntry, TensorPlan


@record(frozen=True)
class TensorAccount:
    """A tensor of the output. dtypes: of each input. how: in a word or a few. notes: on what is special about it, each
    true of every tensor of its kind. sources: for each input the names, there, of what it is made of. values: the method's
    parameters, resolved for it."""

    name: str
    shape: tuple[int, ...]
    dtypes: tuple[str, ...]
    dtype: str
    how: str
    notes: tuple[str, ...]
    sources: tuple[tuple[str, ...], ...]
    values: tuple[tuple[str, Any], ...] = ()


def tensor_account(tensor: TensorPlan, plan: Plan, held: Sequence[Mapping[Origin, TensorEntry]]) -> TensorAccount:
    """Return how a tensor of the output is made. held: what each checkpoint stores."""
    remarks: dict[str, list[str]] = {}
    for entry, number in zip(tensor.inputs, tensor.numbers, strict=True):
        if isinstance(entry, StoredEntry) and _is_whole(entry, held[number].get(entry.origin)):
            continue
        for remark in dict.fromkeys(_remarks(entry, number, held)):
            remarks.setdefault(remark, []).append(plan.recipe.titles[number])
    everywhere = len(tensor.inputs)
    notes = [remark if len(paths) == everywhere else f"{remark} in {', '.join(paths)}" for remark, paths in remarks.items()]
    if tensor.masked_as not in ("", tensor.name, tensor.was) and plan.recipe.mixture is None:
        notes.append(f"tied to {tensor.masked_as}: the same bytes, the same masks")
    if tensor.scales is not None:
        rows, columns = tensor.scales.block
        word = tensor.scales.name.rpartition(".")[2]
        notes.append(f"with a scale for each block of {rows} x {columns} ({word})")
    if plan.recipe.missing_tensors in ("union", "fill"):
        lacking = [plan.recipe.titles[number] for number in plan.recipe.taken if number not in tensor.numbers]
        notes += [f"not in {', '.join(lacking)}"] if lacking and tensor.merged else []
    if tensor.how:
        how = tensor.how
    elif not tensor.merged:
        how = f"copied from {stored(tensor.inputs[-1]).file}, equal in all inputs"
    elif plan.recipe.title == "fold":
        how = "folded" if any(isinstance(entry, AdaptedEntry) for entry in tensor.inputs) else "as it is"
    else:
        base = " and the base" if tensor.base is not None else ""
        how = f"{plan.recipe.title} of {len(tensor.sources)} model{'s' if len(tensor.sources) > 1 else ''}{base}"
    return TensorAccount(
        name=tensor.name,
        shape=tensor.shape,
        dtypes=tuple([(one.stored if isinstance(one, AdaptedEntry) else one).dtype.name for one in tensor.inputs]),
        dtype=tensor.dtype.name,
        how=how,
        notes=tuple(notes),
        sources=tuple([_names_in(entry) for entry in tensor.inputs]),
        values=tensor.values if tensor.merged else (),
    )


def _names_in(entry: TensorEntry) -> tuple[str, ...]:
    """Return the names, in its checkpoint, of what is read for a tensor."""
    if isinstance(entry, StoredEntry) and not entry.parts:
        return (entry.origin[1],)
    return tuple(dict.fromkeys(name for (_, name), _, _ in pieces(entry)))


def _remarks(entry: TensorEntry, number: int, held: Sequence[Mapping[Origin, TensorEntry]]) -> Iterator[str]:
    """Yield what is done to the tensor of input `number` before it is merged, in this order. held: what each checkpoint
    stores."""
    if not isinstance(entry, StagedEntry):
        parts = entry.parts_of(number)
        for its, part in parts:
            yield from _remarks(part, number, held) if its == number else ()
        for read in () if parts else entry.in_blocks:
            yield from _moved(read, held[number])
    yield from entry.remarks


def _moved(read: StoredEntry, held: Mapping[Origin, TensorEntry]) -> Iterator[str]:
    """Yield how a tensor is taken from what a checkpoint stores."""
    found = list(dict.fromkeys(origin for origin, _, _ in pieces(read)))
    words = [_word(name) for _, name in found]
    if len(found) > 1:
        yield f"joined from {', '.join(words)}"
    elif found and found[0] in held and held[found[0]].nbytes > sum(nbytes for _, _, nbytes in pieces(read)):
        yield f"cut out of {words[0]}"
    if found and found[0] in held and _is_transposed(read, held[found[0]]):
        yield f"transposed {_axes(read.shape[::-1])} -> {_axes(read.shape)}"


def _is_whole(entry: StoredEntry, held: TensorEntry | None) -> bool:
    """Whether an entry is a tensor as a checkpoint stores it, in one piece. Most are, so this saves much time."""
    return isinstance(held, StoredEntry) and not entry.parts and not held.parts and held.shape == entry.shape


def _axes(shape: tuple[int, ...]) -> str:
    return f"[{', '.join(map(str, shape))}]"


def _word(name: str) -> str:
    """Return the layer that a tensor belongs to: q_proj of model.layers.0.self_attn.q_proj.weight."""
    words = name.split(".")
    return words[-2] if len(words) > 1 else name


def _is_transposed(entry: TensorEntry, stored: TensorEntry) -> bool:
    """Whether a matrix is read transposed."""
    if len(entry.shape) != 2 or len(stored.shape) != 2 or min(entry.shape) < 2:
        return False
    try:
        strides, before = (_first(one).strides for one in (entry, stored))
    except MalformedError:  # stored in pieces of text, which can't be transposed
        return False
    return strides != before and strides == before[::-1]


def _first(entry: TensorEntry) -> Part:
    return as_boxes(entry)[0]
