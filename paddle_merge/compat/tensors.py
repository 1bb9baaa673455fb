"""PaddleNLP's MergeMethod and SparsifyMethod: single tensors, computed by the same pipeline as files.

Tensors are NumPy arrays or, with tensor_type "pd", Paddle tensors. Results are of the same kind, dtype and shape, in new
memory. They are computed in a wider dtype and rounded once, so they differ from PaddleNLP's results in the last place.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from ..dtypes import FLOATS
from ..errors import CheckpointError, ConfigError
from ..recipe.recipe import Slice
from ..recipe.request import Request
from .config import MergeConfig


class SparsifyMethod:
    """Sparsify task vectors by merge_config.sparsify_type.

    Every call draws a new mask. The masks are the same in every run: that of an object's n-th call depends on
    merge_config.seed and n.
    """

    def __init__(self, merge_config: MergeConfig):
        self.merge_config = merge_config
        self._calls = 0

    def sparsify(self, tensor: Any) -> Any:
        """Return the tensor with the elements that aren't kept set to 0; the tensor itself if sparsify_type is None.

        Raises ConfigError for parameters out of range, and CheckpointError for a dtype that can't be merged.
        """
        kind = self.merge_config.sparsify_type
        return tensor if kind in (None, "none") else self._sparsify(tensor, str(kind))

    def dare(self, tensor: Any) -> Any:
        """Return the tensor with only random elements kept, whatever sparsify_type is. Raises as `sparsify` does."""
        return self._sparsify(tensor, "dare")

    def magprune(self, tensor: Any) -> Any:
        """Return the tensor with only random elements kept, with a higher probability for larger ones.

        sparsify_type has no influence. Raises as `sparsify` does.
        """
        return self._sparsify(tensor, "magprune")

    def trim(self, tensor: Any) -> Any:
        """Return the tensor with only the largest elements kept, whatever sparsify_type is. Raises as `sparsify` does."""
        return self._sparsify(tensor, "trim")

    def _sparsify(self, tensor: Any, sparsifier: str) -> Any:
        self._calls += 1
        return _merge(self.merge_config, [tensor], sparsifier, "linear", f"call {self._calls}")


class MergeMethod:
    """Merge tensors by merge_config.merge_type, after sparsify_method, if it is given, has sparsified each of them."""

    def __init__(self, merge_config: MergeConfig, sparsify_method: Any = None):
        self.merge_config = merge_config
        self.sparsify_method = sparsify_method

    def merge(self, tensor_list: Sequence[Any]) -> Any:
        """Return the merged tensor.

        Raises ConfigError for parameters out of range or fewer than two tensors, CheckpointError for a dtype that can't be
        merged and for tensors of different libraries, dtypes or shapes, and NotImplementedError for an unknown merge_type.
        """
        _check(tensor_list)  # sparsify_method sees one at a time, and would not know its number
        if self.sparsify_method is not None:
            tensor_list = [self.sparsify_method.sparsify(tensor) for tensor in tensor_list]
        kind = self.merge_config.merge_type
        if kind not in ("linear", "slerp", "ties"):
            raise NotImplementedError(f"merge_type {kind!r} must be one of linear, slerp, ties")
        return _merge(self.merge_config, tensor_list, None, kind)

    def linear(self, tensor_list: Sequence[Any]) -> Any:
        """Return the weighted sum, normalised if the config says so. Raises as `merge` does."""
        return _merge(self.merge_config, tensor_list, None, "linear")

    def slerp(self, tensor_list: Sequence[Any]) -> Any:
        """Return the spherical interpolation of two tensors. Raises as `merge` does."""
        return _merge(self.merge_config, tensor_list, None, "slerp")

    def ties(self, tensor_list: Sequence[Any]) -> Any:
        """Return the sum of the elements that agree with the elected sign. Raises as `merge` does."""
        return _merge(self.merge_config, tensor_list, None, "ties")


def _merge(config: MergeConfig, tensors: Sequence[Any], sparsifier: str | None, merge_type: str, name: str = "") -> Any:
    """Return several tensors merged, or one tensor sparsified.

    sparsifier: its name; None to merge. name: the name of the tensor, which its mask depends on.
    Raises ConfigError and CheckpointError.
    """
    from ..run.state_dicts import merge_by_recipe  # planning does without

    alone = sparsifier is not None
    if len(tensors) < 2 and not alone:
        raise ConfigError(f"give at least two tensors to merge, not {len(tensors)}")
    labels = tuple(f"tensor_list[{number}]" for number in range(len(tensors)))
    fields = dataclasses.replace(
        config.ours(),
        model_path_str=None,
        model_path_list=[*labels * (2 if alone else 1)],
        base_model_path=None,
        lora_model_path=None,
        layout=None,
        weight_list=None if alone or merge_type == "slerp" else config.weight_list,
        merge_method=None,
        merge_type=merge_type,
        sparsify_type=sparsifier,
    )
    request = Request.of(fields)
    recipe = request.checked_recipe()
    if alone:
        recipe = dataclasses.replace(recipe, models=labels, slices=(Slice(recipe.slices[0].inputs[:1]),))
    _check(tensors)
    return merge_by_recipe([{name: tensor} for tensor in tensors], recipe, request.engine)[name]


def _check(tensors: Sequence[Any]) -> None:
    """Raise CheckpointError unless the tensors are of one library, one floating-point dtype and one shape."""
    dtypes = [str(getattr(tensor, "dtype", "")).removeprefix("paddle.") for tensor in tensors]
    for number, (tensor, dtype) in enumerate(zip(tensors, dtypes, strict=True)):
        if dtype not in (*FLOATS, "uint16"):  # which is bfloat16's bits
            found = dtype or type(tensor).__name__
            raise CheckpointError(
                f"tensor_list[{number}] is {found}, which can't be merged; convert it to a floating-point dtype"
            )
    alike = {
        "libraries": [_library(tensor) for tensor in tensors],
        "dtypes": dtypes,
        "shapes": [str(list(tensor.shape)) for tensor in tensors],
    }
    for what, kinds in alike.items():
        if len(set(kinds)) > 1:
            raise CheckpointError(f"tensor_list holds tensors of different {what}, where one is needed: {', '.join(kinds)}")


def _library(tensor: Any) -> str:
    """Return the library that a tensor is of, also one of a class that somebody has derived from the library's."""
    names = [kind.__module__.partition(".")[0] for kind in type(tensor).__mro__]
    return next((name for name in names if name in ("numpy", "paddle")), names[0])
