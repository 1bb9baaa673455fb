"""NumPy blocks on the CPU, with Numba loops for everything that touches each element."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from ..dtypes import BFLOAT16, FLOAT8_E4M3FN, FLOAT8_E5M2, FLOAT16, DType
from .budget import DEFAULT_BUDGET, MemoryBudget
from .kernels import bits, measures, mergers, sparsifiers
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
_LOOPS = (mergers, sparsifiers)


def widen(raw: np.ndarray, dtype: DType, out: np.ndarray) -> None:
    """Stored elements raw (n,) -> out (n,), float32 or float64."""
    _LOAD.get(dtype, bits.load_float)(raw, np.empty(0, out.dtype), out)


class NumpyBackend:
    """The words that methods and blocks are written in, for one compute dtype ("float32" or "float64").

    in_place: formulas overwrite their rows, so that a block must be loaded again for every pass over it.
    ahead: how many blocks may be on their way back from the device while the next one is computed.
    room: what memory may be taken.
    """

    in_place = True
    ahead = 0

    def __init__(self, compute: str, budget: MemoryBudget = DEFAULT_BUDGET):
        self.dtype: Any = np.dtype(compute)
        self.budget = budget
        self._scratch = Scratch()
        self._nothing = np.empty(0, self.dtype)

    def block(self, models: int) -> int:
        """How many elements of each of so many models to take at a time."""
        return self.budget.block

    @contextmanager
    def at_work(self) -> Iterator[Any]:
        """What surrounds all calls but the constructor's: numbers may become NaN or Inf, which is looked for in the end."""
        with np.errstate(all="ignore"):
            yield

    def peak(self) -> int:
        """The most bytes of device memory taken so far."""
        return 0

    # --- constants of formulas

    def array(self, values: Sequence[float]) -> Any:
        return np.array(values, self.dtype)

    def scalar(self, value: float) -> Any:
        return self.dtype.type(value)

    def constant(self, values: np.ndarray) -> Any:
        """An array for `apply`."""
        return values

    def mask_constant(self, values: np.ndarray) -> Any:
        """An array for `apply_masked`: limits of hashes (uint32), or factors."""
        return values

    # --- the way in and the way out

    def load(self, raws: Sequence[Any], dtypes: Sequence[DType], based: bool) -> tuple[Any, Any, list[Any]]:
        """Stored elements (n,) of each source -> (x, base, bad): x, a row (n,) per model in compute dtype, less the base;
        base (n,), or None; for each source whether it holds a NaN or Inf.

        based: whether the last source is the base. What is returned overlaps what the last call returned.
        """
        size = len(raws[0])
        rows = self._scratch.array("rows", len(raws) * size, self.dtype).reshape(len(raws), size)
        base, bad = self._nothing, [False] * len(raws)
        for source in [-1, *range(len(raws) - 1)] if based else range(len(raws)):
            loop = _LOAD.get(dtypes[source], bits.load_float)
            bad[source] = bool(loop(raws[source], base, rows[source]))
            if based:
                base = rows[-1]
        return (rows[:-1], base, bad) if based else (rows, None, bad)

    def store(self, values: np.ndarray, dtype: DType) -> tuple[Any, Any]:
        """values (n,) -> (elements (n,) as they are stored, whether any is not finite), rounded once to nearest even."""
        raw = self._scratch.array("raw", len(values), dtype.raw)
        if values.dtype == np.float64 and dtype in _STORE:
            values, exact = self._scratch.array("odd", len(values), np.float32), values
            bits.round_to_odd(exact, values)
        return raw, bool(_STORE.get(dtype, bits.store_float)(values, raw))

    def fetch(self, values: np.ndarray) -> Callable[[], np.ndarray]:
        """Begin to bring values to the host's memory; the call that ends it gives them in NumPy, narrow floats as bits."""
        return lambda: values

    def add_scaled(self, base: np.ndarray, x: np.ndarray, scale: float) -> np.ndarray:
        """base + scale * x. May reuse x's memory."""
        mergers.add_scaled(base, x, self.scalar(scale))
        return x

    # --- formulas

    def apply(self, formula: Callable[..., Any], x: np.ndarray, *args: Any) -> np.ndarray:
        """The formula of x, by its loop in a file of kernels if there is one: (models, n) -> (n,), or (n,) in place."""
        out = x[0] if x.ndim == 2 else x
        loop = next((getattr(file, formula.__name__) for file in _LOOPS if hasattr(file, formula.__name__)), None)
        if loop is None:
            out[...] = formula(np, x, *args)
        else:
            loop(x, *args)
        return out

    def apply_masked(self, formula: Callable[..., Any], x: np.ndarray, key: Key, *args: Any) -> np.ndarray:
        """The same for a formula of x (n,) and its elements' hashes, which a loop computes as it goes."""
        loop = getattr(sparsifiers, formula.__name__, None)
        if loop is None:
            x[...] = formula(np, x, hash_block(key, 0, x.size), *args)
        else:
            loop(x, np.uint32(key[0]), np.uint32(key[1]), *args)
        return x

    def rows(self, rows: Sequence[np.ndarray]) -> Any:
        """Rows (n,), one per model, as formulas and measurements take them."""
        return np.stack(rows)

    def replace(self, x: np.ndarray, rows: Sequence[np.ndarray]) -> np.ndarray:
        """x with its rows replaced by what formulas made of them."""
        return x  # they were changed in place

    def joined(self, x: np.ndarray, parts: Sequence[np.ndarray]) -> np.ndarray:
        """The block x (n,) of the parts that formulas made of it."""
        return x  # they were changed in place

    # --- measuring

    def elected_balance(self, elect: Callable[..., Any], x: np.ndarray, weights: np.ndarray, by_count: bool) -> int:
        """The number of elements of x whose elected sign is plus, less those whose sign is minus; `elect`, the formula that
        elects, has its loop here."""
        return int(measures.elected_balance(x, weights, by_count))

    def add_bins(self, bins: Callable[..., Any], x: np.ndarray, counts: np.ndarray) -> None:
        """counts (bins,) += the histogram of x (n,) over the formula `bins`, which gives each element's bin; it has its loop
        here."""
        measures.add_bins(x, counts)

    def add_magnitudes(self, x: np.ndarray, unit: float, sums: np.ndarray) -> None:
        """sums (1,) float64 += the sum of |x| * unit, for x (n,)."""
        measures.add_magnitudes(x, unit, sums)

    def add_gram(self, x: np.ndarray, gram: np.ndarray) -> None:
        """gram (models, models) float64 += x @ x.T."""
        measures.add_gram(x, gram)

    def add_line_grams(self, x: np.ndarray, start: int, across: bool, width: int, grams: np.ndarray) -> None:
        """grams (pairs, lines) float64 += the dot products of all pairs of rows in each line (methods/gram.py); x: the
        elements from `start` on."""
        measures.add_line_grams(x, start, across, width, grams)

    def count_active(self, x: np.ndarray, epsilon: Any, counts: np.ndarray) -> None:
        """counts (models, 2) += how many elements of each row are beyond epsilon where no other row's is, and where some
        other's is."""
        measures.count_active(x, epsilon, counts)

    def count_equal(self, x: np.ndarray, value: Any) -> int:
        """How many |x| of x (n,) equal a scalar in the dtype in which magnitudes are compared; NaN counts as infinite."""
        return int(measures.count_equal(x, np.array([value])))

    def count_between(
        self, x: np.ndarray, bounds: np.ndarray, stride: int, counts: np.ndarray, sums: np.ndarray, values: np.ndarray
    ) -> None:
        """Count x (n,) of magnitudes below, at, between and above two bounds, and collect some of those between.

        bounds: (2,), lo <= hi, in the dtype in which magnitudes are compared; NaN counts as infinite.
        counts: (5,) int64 += [below lo, equal to lo, strictly between, equal to hi (if not lo), collected].
        sums: (3,) float64 += |x| of [all, at or above hi, equal to lo]; (0,) if they aren't needed.
        values: takes every stride-th of the values strictly between, from index counts[4] on.
        """
        measures.count_between(x, bounds, stride, counts, sums, values)
