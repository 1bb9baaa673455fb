"""Merge models that are in memory, by the same recipe and pipeline as files."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ..backends.engine import Engine, import_paddle
from ..checkpoints.quantised import problems as quantised
from ..checkpoints.tensors import Checkpoint, StoredEntry, TensorEntry, stored
from ..conversion.inputs import differences
from ..conversion.layout import transposed_in
from ..dtypes import BFLOAT16, DTYPES, FLOAT8_E4M3FN, FLOAT8_E5M2, FLOATS, DType, ScaledForm
from ..errors import CheckpointError, ConfigError
from ..plan.assemble import assemble
from ..plan.copies import originals
from ..plan.tensor_plan import TensorPlan
from ..recipe.config import MergeConfig
from ..recipe.recipe import Recipe
from ..recipe.request import Request
from .job import Report, notice
from .pipeline import merge_tensor
from .worker import Backends

log = logging.getLogger("paddle_merge")
_DTYPES = {dtype.name: dtype for dtype in DTYPES} | {"uint16": BFLOAT16}
_FLOAT8 = (FLOAT8_E4M3FN, FLOAT8_E5M2)
# What to do about tensors of a library where NumPy arrays are needed.
_REMEDIES = {
    "paddle": '; pass tensor_type="pd"',
    "torch": "; pass tensor.detach().cpu().numpy(), and of bfloat16 tensor.detach().cpu().view(torch.uint16).numpy()",
}


def merge_state_dicts(
    state_dicts: Sequence[Mapping[str, Any]], config: MergeConfig, base: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Merge state dicts as `config` says; return the merged one, in new memory.

    state_dicts: one per model, tensor name -> tensor: NumPy arrays with tensor_type "np", Paddle tensors with "pd". NumPy
        arrays of uint16 are bfloat16's bits, as in Paddle; ml_dtypes' bfloat16, float8_e4m3fn and float8_e5m2 work too.
    config: the method, its parameters, out_dtype, strict, tensor_type and device. Paths and n_process are not looked at;
        layout, one for all, is by methods that go by rows of matrices: without it Paddle tensors are taken to be a Paddle
        model's, [in, out], and arrays are taken as they stand.
    base: the base model's state dict.
    Returns tensors of the same kind, names and shapes, in the first model's order and on its device, with the same values as
    a merge of the same tensors from files. Where out_dtype is one that NumPy alone lacks, and the first model's isn't
    ml_dtypes', arrays hold its bits: uint16, or uint8.
    Raises ConfigError and CheckpointError, listing all problems; WorkError for NaN and Inf under config.strict.
    """
    if base is None and config.base_model_path:
        raise ConfigError(f"the base model {config.base_model_path} is not read here; pass its state dict as base=...")
    if config.recipe_yaml:
        raise ConfigError(
            "recipe_yaml names checkpoints, which are not read here; set merge_method and its parameters, or call merge"
        )
    state_dicts = list(state_dicts)
    sources = [*state_dicts, *([] if base is None else [base])]
    _check_kinds(sources, config.tensor_type, config.out_dtype)
    labels = [f"state_dicts[{number}]" for number in range(len(state_dicts))]
    request = Request.of(
        dataclasses.replace(
            config, model_path_list=labels, model_path_str=None, base_model_path=None if base is None else "base"
        )
    )
    recipe = request.checked_recipe()
    for warning in request.warnings:
        log.warning("%s", warning)
    return merge_by_recipe(sources, recipe, request.engine, request.strict)


def merge_by_recipe(
    sources: Sequence[Mapping[str, Any]], recipe: Recipe, engine: Engine, strict: bool = False
) -> dict[str, Any]:
    """Merge state dicts by a recipe, whose sources they are in order; there may be one only. Raises as merge_state_dicts
    does."""
    if recipe.mixture is not None:
        raise ConfigError(
            "a mixture of experts is made of checkpoints, not of state dicts: write the models, and merge with merge"
        )
    if isinstance(recipe.out_dtype, ScaledForm):
        raise ConfigError(f"out_dtype {recipe.out_dtype.name} is for files; in memory give another, such as bfloat16")
    if recipe.tie != "auto":
        raise ConfigError(f"tie {recipe.tie!r}: state dicts are merged as they are, with the tensors that they hold")
    if recipe.tokenizer is not None:
        raise ConfigError("tokenizer_source can't align state dicts: they have no tokenizer that says which token a row is")
    if recipe.expert_alignment != "index" or recipe.router != "merge" or recipe.expert_layout is not None:
        raise ConfigError(
            "expert_alignment, router and expert_layout are for checkpoints: state dicts are merged as they are"
        )
    if recipe.missing_tensors != "error":
        raise ConfigError(
            f"missing_tensors {recipe.missing_tensors!r} is for checkpoints: state dicts must have the same names"
        )
    if recipe.keep_experts is not None or recipe.drop_layers:
        raise ConfigError("keep_experts and drop_layers need checkpoints: save the state dicts, and merge the files")
    backends = Backends(engine)
    kind = _Paddle() if engine.tensor_type == "pd" else _Numpy()
    tensors = _plan(sources, recipe, kind)
    result, reports = {}, []
    for tensor in tensors:
        like = sources[0][tensor.name]
        if not tensor.merged:
            result[tensor.name] = kind.copy(like)
            continue
        backend = backends.of(tensor)
        blocks: list[Any] = []
        with backend.at_work():
            if tensor.size:
                dtypes = [entry.dtype for entry in tensor.inputs]
                values = [sources[number][tensor.name] for number in tensor.numbers]
                flat = [kind.flat(value, dtype) for value, dtype in zip(values, dtypes, strict=True)]
                merging = merge_tensor(tensor, MemorySource(flat, dtypes), backend)
                blocks = [kind.keep(stored, like) for stored, _ in merging.merged()]
                reports.append(Report(tensor.name, merging.not_finite, merging.overflowed))
            result[tensor.name] = kind.join(blocks, like, tensor.dtype)
    notice(reports, tensors, recipe.sources, strict)
    return result


def _check_kinds(sources: Sequence[Any], tensor_type: str, out_dtype: str | None) -> None:
    """Check that the sources are state dicts that can be merged here. Raises ConfigError, CheckpointError."""
    if len(sources) < 2:
        raise ConfigError("give at least two state dicts")
    for source in sources:
        if not isinstance(source, Mapping):
            kind = f"{type(source).__module__}.{type(source).__name__}"
            raise CheckpointError(
                f"a {kind} is no state dict (a mapping from names to tensors); of a Layer, pass .state_dict()"
            )
    if tensor_type == "pd" and not import_paddle().in_dynamic_mode():
        raise ConfigError("Paddle is in static mode, where tensors hold no values; call paddle.disable_static() first")
    if tensor_type == "pd" and out_dtype in FLOATS and not hasattr(import_paddle(), out_dtype):
        raise ConfigError(f"out_dtype {out_dtype}: this version of Paddle has no such tensors; use 3.0 or newer")


def _plan(sources: Sequence[Mapping[str, Any]], recipe: Recipe, kind: _Numpy | _Paddle) -> list[TensorPlan]:
    """Return the plan of every tensor. Raises CheckpointError listing everything that doesn't fit."""
    problems: list[str] = []
    inputs = [_headers(source, label, kind, problems) for source, label in zip(sources, recipe.sources, strict=True)]
    problems = problems or [problem for one in inputs for problem in quantised(one, {})]
    problems = problems or differences(inputs, recipe.out_dtype, offered=("out_dtype",))
    if problems:
        raise CheckpointError(problems)
    tensors = []
    transposed = transposed_in(inputs[0].tensors, _layout(recipe, inputs[0], kind))
    by_label = dict(zip(recipe.sources, sources, strict=True))

    def read(entry: TensorEntry, start: int, out: np.ndarray) -> None:
        flat = kind.flat(by_label[stored(entry).file][entry.name], entry.dtype)
        out[...] = np.asarray(kind.array(flat[start : start + len(out)])).view(out.dtype)

    assembled = assemble(recipe, inputs)[0]
    made, same = {one.name: one for one in assembled}, originals(assembled, read)
    for name in inputs[0].tensors:
        plan = made[name].plan(recipe, masked_as=same[name], transposed=name in transposed)
        tensors.append(plan)
        values = [] if plan.merged else [kind.array(source[name]) for source in sources]
        unequal = [recipe.sources[k] for k, value in enumerate(values) if not np.array_equal(value, values[0])]
        if unequal:
            problems.append(
                f"tensor {name!r} is {plan.dtype.name}, which can't be averaged, and differs in {', '.join(unequal)}"
            )
    if problems:
        raise CheckpointError(problems)
    return tensors


def _layout(recipe: Recipe, first: Checkpoint, kind: _Numpy | _Paddle) -> str | None:
    """Return the layout of all state dicts. Raises CheckpointError if they have several."""
    given = list(dict.fromkeys(layout for layout in recipe.layouts if layout is not None))
    if len(given) > 1:
        raise CheckpointError(
            f"state dicts are merged as they are, so they must be of one layout, not of {', '.join(given)}"
        )
    if given or isinstance(kind, _Numpy):
        return given[0] if given else None
    return "paddleformers" if any(name.startswith("model.") for name in first.tensors) else "paddlenlp"


def _headers(state_dict: Mapping[str, Any], label: str, kind: _Numpy | _Paddle, problems: list[str]) -> Checkpoint:
    """Return a state dict as a checkpoint of headers; a sentence on each value that can't be merged is added to problems.

    The offset of an entry tells values apart: it is the same for one value under several names.
    """
    entries: dict[str, StoredEntry] = {}
    places: dict[int, int] = {}  # the id of a value -> its offset
    held = list(state_dict.items())  # so that no two values have one id, even if the mapping makes them when asked
    for name, value in held:
        try:
            dtype = kind.dtype(value)
        except TypeError as error:
            problems.append(f"{label}: tensor {name!r} {error}")
            continue
        if not isinstance(name, str):
            problems.append(f"{label}: the name {name!r} is not text")
            continue
        shape = tuple(value.shape)
        entries[name] = StoredEntry(name, dtype, shape, label, places.setdefault(id(value), len(places)))
    return Checkpoint(label, label, None, entries)


class MemorySource:
    """Gives the elements of flat tensors in memory, as a pipeline.Source."""

    def __init__(self, flat: Sequence[Any], dtypes: Sequence[DType]):
        self._flat, self.dtypes = flat, dtypes

    def read(self, number: int, start: int, count: int) -> Any:
        return self._flat[number][start : start + count]

    def sample(self, number: int, clusters: int, step: int, width: int) -> Any:
        return self._flat[number][: clusters * step].reshape((clusters, step))[:, :width].reshape((-1,))


class _Numpy:
    """Handles NumPy arrays outside of the backend."""

    def dtype(self, value: Any) -> DType:
        """Return the dtype of a value. Raises TypeError with the rest of a sentence if it can't be merged."""
        if not isinstance(value, np.ndarray | np.generic):
            kind = f"{type(value).__module__}.{type(value).__name__}"
            raise TypeError(f"is a {kind}, not a NumPy array{_REMEDIES.get(kind.partition('.')[0], '')}")
        if value.dtype.name not in _DTYPES:
            raise TypeError(f"is {value.dtype.name}, which can't be merged")
        return _DTYPES[value.dtype.name]

    def flat(self, value: np.ndarray, dtype: DType) -> np.ndarray:
        native = np.asarray(value).astype(value.dtype.newbyteorder("="), order="C", copy=False)
        return np.asarray(native.reshape(-1).view(dtype.raw))

    def keep(self, block: np.ndarray, like: np.ndarray) -> np.ndarray:
        return np.array(block)

    def join(self, blocks: Sequence[np.ndarray], like: np.ndarray, dtype: DType) -> np.ndarray:
        raw = np.concatenate([np.empty(0, dtype.raw), *blocks])
        name: Any = dtype.name
        if dtype in (BFLOAT16, *_FLOAT8):  # NumPy alone has no such numbers
            name = like.dtype if like.dtype.name == dtype.name else dtype.raw
        return np.asarray(raw.view(name).reshape(like.shape))

    def copy(self, value: np.ndarray) -> np.ndarray:
        return np.array(value)

    def array(self, value: np.ndarray) -> np.ndarray:
        return value


class _Paddle:
    """Handles Paddle tensors outside of the backend."""

    def dtype(self, value: Any) -> DType:
        """Return the dtype of a value. Raises TypeError with the rest of a sentence if it can't be merged."""
        import paddle

        if not isinstance(value, paddle.Tensor):
            kind = f"{type(value).__module__}.{type(value).__name__}"
            remedy = '; leave out tensor_type="pd"' if isinstance(value, np.ndarray) else ""
            raise TypeError(f"is a {kind}, not a Paddle tensor{remedy}")
        if not value.is_dense():
            raise TypeError("is sparse or distributed, which can't be merged")
        name = str(value.dtype).removeprefix("paddle.")
        if name not in _DTYPES:
            raise TypeError(f"is {name}, which can't be merged")
        return _DTYPES[name]

    def flat(self, value: Any, dtype: DType) -> Any:
        flat = value.detach().flatten()
        return flat.view("uint8") if dtype in _FLOAT8 else flat

    def keep(self, block: Any, like: Any) -> Any:
        return block if block.place._equals(like.place) else block._copy_to(like.place, True)

    def join(self, blocks: Sequence[Any], like: Any, dtype: DType) -> Any:
        import paddle

        name: Any = dtype.name
        if not blocks:
            nothing = paddle.to_tensor(np.empty(tuple(like.shape), dtype.raw), place=like.place)
            return nothing.view(name) if dtype in _FLOAT8 else nothing.astype(name)
        merged = (paddle.concat(list(blocks)) if len(blocks) > 1 else blocks[0]).reshape(like.shape)
        return merged.view(name) if dtype in _FLOAT8 else merged

    def copy(self, value: Any) -> Any:
        return value.detach().clone() if value.size else self.join([], value, self.dtype(value))

    def array(self, value: Any) -> Any:
        return value.numpy()
