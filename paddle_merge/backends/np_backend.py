"""Compute with NumPy arrays on the CPU: the operations of backend.py, compiled loops for what touches each element."""

from __future__ import annotations

import contextlib
import functools
import importlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from ..dtypes import BFLOAT16, FLOAT8_E4M3FN, FLOAT8_E5M2, FLOAT16, DType
from .backend import Backend, Formula
from .budget import DEFAULT_BUDGET, MemoryBudget
from .formula import KERNELS, MEASURES
from .kernels import bits, measures, mergers
from .masks import Key, hash_block
from .scratch import Scratch

_LOAD = {
    BFLOAT16: bits.load_bfloat16,
    FLOAT16: bits.load_float16,
    FLOAT8_E4M3FN: bits.load_float8_e4m3fn,
    FLOAT8_E5M2: bits.load_float8_e5m2,
}
_STORE = {
    BFLOAT16: bits.store_bfloat16,
    FLOAT16: bits.store_float16,
    FLOAT8_E4M3FN: bits.store_float8_e4m3fn,
    FLOAT8_E5M2: bits.store_float8_e5m2,
}


@functools.cache
def find_kernel(name: str) -> Any:
    """Return the compiled loop that a formula names: "mergers.ties" is `ties` in kernels/mergers.py.

    Raises LookupError if there is none.
    """
    module, _, function = name.partition(".")
    package = f"{__package__}.kernels"
    with contextlib.suppress(ModuleNotFoundError):
        loop = getattr(importlib.import_module(f"{package}.{module}"), function, None)
        if loop is not None:
            return loop
    raise LookupError(f"a formula names the kernel {name!r}, which is not in {package}")


def _kernel(names: dict[Formula, str], formula: Formula) -> Any:
    """Return the loop that the formula declares in `names`; None: it declares none."""
    name = names.get(formula)
    return None if name is None else find_kernel(name)


def widen(raw: np.ndarray, dtype: DType, out: np.ndarray) -> None:
    """Convert stored elements raw (n,) to numbers, into out (n,), float32 or float64."""
    _LOAD.get(dtype, bits.load_float)(raw, np.empty(0, out.dtype), out)


class NumpyBackend(Backend):
    """Compute on the CPU, in NumPy arrays: formulas run by their compiled loops, in the memory of their rows.

    compute: "float32" or "float64". budget: how much memory one worker may take.
    """

    in_place = True
    ahead = 0

    def __init__(self, compute: str, budget: MemoryBudget = DEFAULT_BUDGET):
        self.dtype = np.dtype(compute)
        self.budget = budget
        self._scratch = Scratch()
        self._nothing = np.empty(0, self.dtype)
        self._rows = np.empty((0, 0), self.dtype)  # where `load` writes, and each of them
        self._each = list[np.ndarray]()
        self._eights = np.empty(bits.CHUNK // 8, np.uint64)
        self._flags = self._eights.view(np.uint8)

    def block(self, models: int) -> int:
        return self.budget.block

    @contextlib.contextmanager
    def at_work(self) -> Iterator[Any]:
        with np.errstate(all="ignore"):  # numbers may become NaN or Inf; `load` and `store` look for them
            yield

    def peak(self) -> int:
        return 0

    # --- constants of formulas

    def array(self, values: Sequence[float]) -> Any:
        return np.array(values, self.dtype)

    def scalar(self, value: float) -> Any:
        return self.dtype.type(value)

    def constant(self, values: np.ndarray) -> Any:
        return values

    def mask_constant(self, values: np.ndarray) -> Any:
        return values

    # --- from stored elements to numbers, and back

    def load(self, raws: Sequence[Any], dtypes: Sequence[DType], based: bool) -> tuple[Any, Any, list[Any]]:
        shape = len(raws), len(raws[0])
        if self._rows.shape != shape:
            self._rows = self._scratch.array("rows", shape[0] * shape[1], self.dtype).reshape(shape)
            self._each = list(self._rows)
        loops = [_LOAD.get(dtype, bits.load_float) for dtype in dtypes]
        if not based:
            bad = [loop(raw, self._nothing, row) for loop, raw, row in zip(loops, raws, self._each, strict=True)]
            return self._rows, None, bad
        *models, base = self._each
        last = loops.pop()(raws[-1], self._nothing, base)
        bad = [loop(raw, base, row) for loop, raw, row in zip(loops, raws, models, strict=False)]
        return self._rows[:-1], base, [*bad, last]

    def store(self, values: np.ndarray, dtype: DType) -> tuple[Any, Any]:
        raw = self._scratch.array("raw", len(values), dtype.raw)
        if values.dtype == np.float64 and dtype in _STORE:
            values, exact = self._scratch.array("odd", len(values), np.float32), values
            bits.round_to_odd(exact, values)
        return raw, bool(_STORE.get(dtype, bits.store_float)(values, raw))

    def put(self, raw: np.ndarray, dtype: DType) -> np.ndarray:
        return raw

    def fetch(self, values: np.ndarray) -> Callable[[], np.ndarray]:
        return lambda: values

    def add_scaled(self, base: np.ndarray, x: np.ndarray, scale: float) -> np.ndarray:
        mergers.add_scaled(base, x, self.scalar(scale))
        return x

    # --- formulas

    def apply(self, formula: Formula, x: np.ndarray, *args: Any) -> np.ndarray:
        """Run the formula's loop, or the formula if it declares none: (models, n) -> its first row, or (n,) in place.

        Raises LookupError if the formula names a loop that doesn't exist.
        """
        out = x[0] if x.ndim == 2 else x
        loop = _kernel(KERNELS, formula)
        if loop is None:
            out[...] = formula(np, x, *args)
        else:
            loop(x, *args)
        return out

    def apply_masked(self, formula: Formula, x: np.ndarray, key: Key, *args: Any) -> np.ndarray:
        """Run the formula's loop, which computes the hashes as it goes, or the formula if it declares none: (n,) in place.

        Raises LookupError as `apply` does.
        """
        loop = _kernel(KERNELS, formula)
        if loop is None:
            x[...] = formula(np, x, hash_block(key, 0, x.size), *args)
        else:
            loop(x, np.uint32(key[0]), np.uint32(key[1]), *args)
        return x

    def stacked(self, rows: Sequence[np.ndarray]) -> Any:
        return np.stack(rows)

    def replace(self, x: np.ndarray, rows: Sequence[np.ndarray]) -> np.ndarray:
        return x  # they were changed in place

    def joined(self, x: np.ndarray, parts: Sequence[np.ndarray]) -> np.ndarray:
        return x  # they were changed in place

    # --- measurements

    def elected_balance(self, elect: Formula, x: np.ndarray, weights: np.ndarray, by_count: bool) -> int:
        loop = _kernel(MEASURES, elect)
        if loop is not None:
            return int(loop(x, weights, by_count))
        sign = elect(np, [weight * row for weight, row in zip(weights, x, strict=True)], by_count, 0.0)
        return int(np.count_nonzero(sign > 0)) - int(np.count_nonzero(sign < 0))

    def add_bins(self, bins: Formula, x: np.ndarray, counts: np.ndarray) -> None:
        loop = _kernel(MEASURES, bins)
        if loop is not None:
            loop(x, counts)
        else:
            counts += np.bincount(bins(np, x), minlength=len(counts)).astype(counts.dtype)

    def add_magnitudes(self, x: np.ndarray, unit: float, sums: np.ndarray) -> None:
        measures.add_magnitudes(x, unit, sums)

    def add_gram(self, x: np.ndarray, gram: np.ndarray) -> None:
        measures.add_gram(x, gram)

    def add_row_grams(self, x: np.ndarray, start: int, across: bool, width: int, grams: np.ndarray) -> None:
        measures.add_row_grams(x, start, across, width, grams)

    def count_active(self, x: np.ndarray, epsilon: Any, counts: np.ndarray) -> None:
        measures.count_active(x, epsilon, counts)

    def count_equal(self, x: np.ndarray, value: Any) -> int:
        return int(measures.count_equal(x, np.array([value])))

    def count_between(
        self, x: np.ndarray, bounds: np.ndarray, stride: int, counts: np.ndarray, sums: np.ndarray, values: np.ndarray
    ) -> None:
        measures.count_between(x, bounds, stride, counts, sums, values, self._flags, self._eights)
