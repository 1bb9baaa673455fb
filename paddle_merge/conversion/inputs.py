"""Open the inputs of a merge, or of a command that compares checkpoints, and check that their tensors match.

    open_inputs     for a merge: checkpoints and adapters, before they are converted
    differences     for a merge: how the tensors of the inputs differ
    open_together   for diff, analyze and extract-lora: checkpoints in one layout with their adapters folded in

Only headers are read, and the values of a few tensors that may be tied.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, NamedTuple

from ..checkpoints import hub
from ..checkpoints.adapters import Adapter, open_model
from ..checkpoints.config_json import read_config, widths
from ..checkpoints.formats.folder import shards_alone
from ..checkpoints.names import EMBEDDINGS, HEAD, last_word
from ..checkpoints.quantised import signs
from ..checkpoints.tensors import Checkpoint, StoredEntry, TensorEntry, stored
from ..dtypes import DType, ScaledForm
from ..errors import CheckpointError
from ..parsing import tensors_named
from ..records import record
from .detect import detect
from .layout import normalise
from .lora.adapt import adapt
from .scaled import Numbers, as_numbers

# Fields of config.json that determine how weights are used, and that shapes don't show.
SETTINGS = (
    "model_type",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "hidden_act",
    "rms_norm_eps",
    "layer_norm_eps",
    "rope_theta",
    "partial_rotary_factor",
    "sliding_window",
)


class OpenedInput(NamedTuple):
    """Hold an input. checkpoint: as it is stored. numbers: the same as it is merged, if it is quantised."""

    checkpoint: Checkpoint
    adapters: Sequence[Adapter]
    numbers: Numbers


@hub.each_once()
def open_inputs(specs: Sequence[str], prefix: str) -> list[OpenedInput]:
    """Read the headers of checkpoints, and of the adapters to fold into each.

    specs: paths, or `base+adapter` with any number of adapters. prefix: as of open.open_checkpoint. Raises CheckpointError
    listing everything wrong with any of them, such as that one is quantised in a way that can't be read.
    """
    inputs: list[OpenedInput] = []
    problems: list[str] = []
    for spec in specs:
        try:
            checkpoint, adapters = open_model(spec, prefix)
            adapters = [dataclasses.replace(one, tensors=_marked(one.path, one.tensors)) for one in adapters]
            checkpoint = dataclasses.replace(checkpoint, tensors=_marked(checkpoint.path, checkpoint.tensors))
            inputs.append(OpenedInput(checkpoint, adapters, as_numbers(checkpoint)))
        except CheckpointError as error:
            problems += error.problems
    if problems:
        raise CheckpointError(list(dict.fromkeys(problems)))
    return inputs


def _marked(path: str, tensors: Mapping[str, TensorEntry]) -> dict[str, TensorEntry]:
    """Return the same tensors with their origin set to (path, name), which is kept through all conversions."""
    found: dict[str, TensorEntry] = {}
    for name, entry in tensors.items():
        entry = stored(entry)
        if entry.origin == (path, name) and not entry.parts:
            found[name] = entry
            continue
        parts = tuple(dataclasses.replace(part, origin=(path, name)) for part in entry.parts)
        found[name] = StoredEntry(entry.name, entry.dtype, entry.shape, entry.file, entry.offset, parts, (path, name))
    return found


def differences(
    inputs: Sequence[Checkpoint],
    out_dtype: DType | ScaledForm | None,
    aligned: Callable[[str], bool] = lambda name: False,
    offered: Collection[str] = ("out_dtype", "recipes", "modules"),
    partial: bool = False,
) -> list[str]:
    """Return a sentence on the tensors that are missing in some inputs, and on those that differ in shape or dtype between
    them: one for each cause.

    out_dtype: of the output, if one is given; then float dtypes may differ. aligned: whether the tensor of a name will be
    aligned to one vocabulary; then its shapes may differ. offered: what the caller could do about it, and sentences name.
    partial: whether some inputs may lack tensors.
    Returns an empty list if the inputs match.
    """
    everywhere = {name: None for checkpoint in inputs for name in checkpoint.tensors}
    if not everywhere:
        return [f"{inputs[0].path}: holds no tensors"]
    # What is said of tensors -> their names; in the order of the answer.
    missing, shapes, dtypes = (dict[Any, list[str]]() for _ in range(3))
    for name in everywhere:
        if len({(one.shape, one.dtype) if (one := checkpoint.tensors.get(name)) else None for checkpoint in inputs}) == 1:
            continue  # as nearly all do
        holders = [checkpoint for checkpoint in inputs if name in checkpoint.tensors]
        lacking = [checkpoint.path for checkpoint in inputs if name not in checkpoint.tensors]
        if lacking and not partial:
            cause = ", ".join(lacking), ", ".join(checkpoint.path for checkpoint in holders)
            missing.setdefault(cause, []).append(name)
        entries = [(checkpoint.path, checkpoint.tensors[name]) for checkpoint in holders]
        if len({entry.shape for _, entry in entries}) > 1 and not aligned(name):
            # One sentence for all tensors whose shapes differ between the same inputs, whatever the shapes are.
            alike = tuple(entries[0][1].shape == entry.shape for _, entry in entries)
            shapes.setdefault((tuple(path for path, _ in entries), alike, _holds_tokens(name)), []).append(name)
        all_float = all(entry.dtype.is_float for _, entry in entries)
        if len({entry.dtype for _, entry in entries}) > 1 and not (all_float and out_dtype):
            shown = ", ".join(f"{entry.dtype.name} in {path}" for path, entry in entries)
            remedy = (
                "; to merge them, give the dtype of the result with --out_dtype"
                if all_float and "out_dtype" in offered
                else ""
            )
            dtypes.setdefault(f"different dtypes: {shown}{remedy}", []).append(name)
    problems = []
    types = _types(inputs) if len(missing) > 1 and "missing_tensors" in offered else []
    if apart := len({kind for _, kind in types}) > 1:  # each has tensors that others lack: a union would be no model
        problems.append(f"the models' types differ: {', '.join(f'{kind} in {path}' for path, kind in types)}")
    shards = shards_alone([one.path for one in inputs]) if missing or shapes else []
    problems += shards
    remediable = "missing_tensors" in offered and not apart and not shards
    for (without, having), names in missing.items():
        are, they, them = ("is", "it is", "it") if len(names) == 1 else ("are", "they are", "them")
        remedy = f"; --missing_tensors union merges {them} nevertheless" if remediable else ""
        problems.append(f"{tensors_named(names)} {are} missing in {without} ({they} in {having}){remedy}")
    sizes = _hidden_sizes(inputs) if shapes else []
    if len({size for _, size in sizes}) > 1:
        problems.append(f"the models' hidden sizes differ: {', '.join(f'{size} in {path}' for path, size in sizes)}")
        shapes.clear()
    for (_, _, tokens), names in shapes.items():
        held = [(one.path, one.tensors[names[0]]) for one in inputs if names[0] in one.tensors]
        shown = ", ".join(f"{list(entry.shape)} in {path}" for path, entry in held)
        which = "" if len(names) == 1 else f" (of {names[0]!r})"
        shapes_held, count = [entry.shape for _, entry in held], len(everywhere) if "modules" in offered else 0
        remedy = _remedy(names, shapes_held, tokens, count) if "recipes" in offered and not shards else ""
        problems.append(f"{tensors_named(names)} {_have(names)} different shapes: {shown}{which}{remedy}")
    return problems + [f"{tensors_named(names)} {_have(names)} {said}" for said, names in dtypes.items()]


def _hidden_sizes(inputs: Sequence[Checkpoint]) -> list[tuple[str, int]]:
    """Return (path, hidden size) of each input whose config.json gives it."""
    sizes = [(one.path, widths(read_config(one.folder)).get("hidden")) for one in inputs]
    return [(path, size) for path, size in sizes if size is not None]


def _types(inputs: Sequence[Checkpoint]) -> list[tuple[str, str]]:
    """Return (path, model type) of each input whose config.json gives it."""
    types = [(one.path, read_config(one.folder).get("model_type")) for one in inputs]
    return [(path, str(kind)) for path, kind in types if kind]


def _remedy(names: Sequence[str], shapes: Sequence[tuple[int, ...]], tokens: bool, count: int) -> str:
    """Return what can be done about tensors of different shapes. count: how many tensors the models have; 0 if
    modules can't be used."""
    axes = [len(set(sizes)) > 1 for sizes in zip(*shapes, strict=False)]
    if tokens and len({len(shape) for shape in shapes}) == 1 and sum(axes) == 1:
        return "; --tokenizer_source union (or base) aligns different vocabularies"
    if len(names) > 3 or count in (0, len(names)):
        return ""
    modules = ", ".join(f"{one}: ..." for one in dict.fromkeys(name.rpartition(".")[0] or name for name in names))
    return f"; to merge all else, take it from one model by a recipe with modules: {{{modules}, default: ...}}"


def _have(names: Sequence[str]) -> str:
    return "has" if len(names) == 1 else "have"


def _holds_tokens(name: str) -> bool:
    """Return whether a tensor has a row per token: an embedding or lm_head."""
    return last_word(name) in (*EMBEDDINGS, last_word(HEAD))


def setting(config: Mapping[str, Any], name: str) -> Any:
    """Return the value of one of SETTINGS in a config; None if it is absent."""
    rope = config.get("rope_parameters")  # where transformers 5 writes some of them
    value = config.get(name)
    return rope.get(name) if value is None and isinstance(rope, dict) else value


def in_one_layout(
    checkpoints: Sequence[Checkpoint], given: Sequence[str | None], prefix: str
) -> tuple[tuple[Checkpoint, ...], str | None, list[str]]:
    """Convert checkpoints to the first one's layout, also those that can't be merged with one another.

    This is layout.normalise of all of them. If that refuses them (for example because one ties lm_head and another doesn't),
    each is converted alone; if that fails too, and all have one layout, they stay as they are stored.
    given: the layouts that the user states, one each, or an empty sequence. prefix: "model" or "master_weights".

    Returns the checkpoints; the layout, None if it is unknown; and sentences on what was done. Raises CheckpointError.
    """
    config = next((found for one in checkpoints if (found := read_config(one.folder))), {})
    try:
        one = normalise(inputs=checkpoints, given=given, target=None, strict=False, prefix=prefix, fallback=config)
        return one.inputs, one.layout, one.notes
    except CheckpointError as error:
        pairs = list(zip(checkpoints, given or [None] * len(checkpoints), strict=True))
        layouts = [detect(one, prefix, config, said).layout for one, said in pairs]
        notes = [f"{line} (compared nevertheless)" for line in error.problems]
        if None in layouts:
            raise
        try:
            alone = [
                normalise(inputs=[one], given=[said], target=layouts[0], strict=False, prefix=prefix, fallback=config)
                for one, said in pairs
            ]
            return tuple(found.inputs[0] for found in alone), layouts[0], notes
        except CheckpointError:
            if len(set(layouts)) > 1:
                raise
        return tuple(checkpoints), layouts[0], notes


@record(frozen=True)
class Opened:
    """Hold checkpoints in one layout. layout: None if it is unknown. notes: sentences on what was converted or folded in."""

    checkpoints: tuple[Checkpoint, ...]
    layout: str | None
    notes: list[str]


@hub.each_once()
def open_together(specs: Sequence[str], layouts: Sequence[str | None], prefix: str) -> Opened:
    """Open checkpoints of any format and layout in the first one's layout, with their adapters folded in.

    specs: paths, or `base+adapter`. layouts: those that the user states, one each, or an empty sequence. prefix: as of
    open.open_checkpoint. Raises CheckpointError listing everything wrong with any of them.
    """
    opened, notes, problems = [], list[str](), []
    for spec in specs:
        try:
            checkpoint, its = open_model(spec, prefix)
            try:
                numbers = as_numbers(checkpoint)
            except CheckpointError:
                said = "; ".join(signs(checkpoint, read_config(checkpoint.folder)))
                numbers = Numbers(
                    checkpoint, f"{checkpoint.path} is quantised ({said}): its codes are compared as plain numbers"
                )
            opened.append((numbers.checkpoint, its))
            notes += filter(None, [numbers.note])
        except CheckpointError as error:
            problems += error.problems
    if problems:
        raise CheckpointError(list(dict.fromkeys(problems)))
    checkpoints, adapters = [checkpoint for checkpoint, _ in opened], [held for _, held in opened]
    fallback = next((config for one in checkpoints if (config := read_config(one.folder))), {})
    viewed, layout, more = in_one_layout(checkpoints, layouts, prefix)
    adapted = adapt(viewed, adapters, specs, layout, fallback, allow_untrained=True)
    return Opened(adapted.checkpoints, layout, [*notes, *more, *adapted.notes, *adapted.warnings])
