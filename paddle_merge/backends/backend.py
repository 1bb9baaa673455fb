"""The operations that methods, and the pipeline that runs them, are written in.

Every backend has all of them: np_backend.py on NumPy arrays, pd_backend.py on Paddle tensors, pd_host.py on Paddle tensors
of the CPU. What an array or a block is depends on the backend; methods only hand them on, index them as NumPy does, and
combine them in formulas (formula.py).

Compute dtype: float32, or float64 for tensors with sources of float64. Rows: of a block x of n elements, an array (n,) for
each model, x[k]: (models, n) in NumPy, a list of tensors in Paddle. Sums that measure a tensor are float64 in NumPy arrays
on the host, folded in a fixed order, so that they don't depend on the backend or on the size of blocks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol

import numpy as np

from ..dtypes import DType
from .budget import MemoryBudget
from .masks import Key

Formula = Callable[..., Any]


class Backend(Protocol):
    """Compute with blocks of tensors, in one compute dtype on one device.

    dtype: compute dtype, as NumPy has it.
    budget: how much of the host's memory one worker may take.
    in_place: whether formulas overwrite the rows they are given, which are NumPy arrays then: every pass over a tensor needs
        its blocks anew.
    ahead: how many blocks may be on their way back from the device while the next one is computed.
    """

    dtype: Any
    budget: MemoryBudget
    in_place: bool
    ahead: int

    def block(self, models: int) -> int:
        """Return how many elements of each of so many models to take at a time: a power of two, at least 1024."""

    def at_work(self) -> AbstractContextManager[Any]:
        """Set up the device, and the handling of NaN and Inf, that all other calls need; restore what was before."""

    def peak(self) -> int:
        """Return the most bytes of device memory taken so far; 0 where the device is the CPU."""

    # --- constants of formulas

    def array(self, values: Sequence[float]) -> Any:
        """Return a few numbers, one per model, in compute dtype, for `apply`."""

    def scalar(self, value: float) -> Any:
        """Return a number in compute dtype, for `apply`."""

    def constant(self, values: np.ndarray) -> Any:
        """Bring an array of any dtype to the device, for `apply`."""

    def mask_constant(self, values: np.ndarray) -> Any:
        """Bring an array to the device, for `apply_masked`: limits of hashes (uint32), or factors (compute dtype)."""

    # --- from stored elements to numbers, and back

    def load(self, raws: Sequence[Any], dtypes: Sequence[DType], based: bool) -> tuple[Any, Any, list[Any]]:
        """Convert stored elements (n,) of each source to compute dtype, and subtract the base.

        raws: the stored elements, models in order, then the base; NumPy arrays or Paddle tensors. dtypes: of these.
        based: whether the last source is the base model.

        Returns (x, base, bad). x: a row (n,) per model, less the base. base: (n,), or None. bad: for each source whether it
        holds a NaN or Inf, as a bool or something that becomes one. The memory may be that of the previous call's results.
        """

    def store(self, values: Any, dtype: DType) -> tuple[Any, Any]:
        """Round values (n,), once and to nearest even, to a storage dtype.

        Returns the stored elements (n,), and whether any of them is NaN or Inf.
        """

    def put(self, raw: Any, dtype: DType) -> Any:
        """Bring stored elements (n,) to the device, where `store` would leave them."""

    def fetch(self, values: Any) -> Callable[[], np.ndarray]:
        """Begin to copy values to the host's memory. The returned function waits for the copy and gives it in NumPy;
        bfloat16, float16 and 8-bit floats as their bits."""

    def add_scaled(self, base: Any, x: Any, scale: float) -> Any:
        """Return base + scale * x. May reuse x's memory."""

    # --- formulas

    def apply(self, formula: Formula, x: Any, *args: Any) -> Any:
        """Return formula(xp, x, *args), (n,), for x rows (n,) or one row. May reuse x's memory."""

    def apply_masked(self, formula: Formula, x: Any, key: Key, *args: Any) -> Any:
        """Return formula(xp, x, hashes, *args), (n,), for one row x (n,). May reuse x's memory.

        hashes: (n,) 32-bit integers; that of element i is the hash of i under the key (masks.hash_block). `args` may hold
        limits on them.
        """

    def stacked(self, rows: Sequence[Any]) -> Any:
        """Return rows (n,), one per model, as one x that formulas and measurements take."""

    def replace(self, x: Any, rows: Sequence[Any]) -> Any:
        """Return x with its rows replaced by what formulas made of them."""

    def joined(self, x: Any, parts: Sequence[Any]) -> Any:
        """Return the row x (n,) put together from what formulas made of its consecutive parts."""

    # --- measurements: added to NumPy arrays on the host

    def elected_balance(self, elect: Formula, x: Any, weights: Any, by_count: bool) -> int:
        """Return in how many elements of x the formula `elect` gives a positive sign, less those where it gives a negative
        one. weights: (models,), from `array`; x's rows are multiplied by them first."""

    def add_bins(self, bins: Formula, x: Any, counts: np.ndarray) -> None:
        """Add to counts (bins,) the histogram of x (n,) over the formula `bins`, which gives each element's bin."""

    def add_magnitudes(self, x: Any, unit: float, sums: np.ndarray) -> None:
        """Add to sums (1,) float64 the sum of |x| * unit, for x (n,)."""

    def add_gram(self, x: Any, gram: np.ndarray) -> None:
        """Add to gram (models, models) float64 the dot products of all pairs of rows."""

    def add_row_grams(self, x: Any, start: int, across: bool, width: int, grams: np.ndarray) -> None:
        """Add to grams (pairs, vectors) float64 the dot products of all pairs of models in each vector of the tensor.

        x: the elements from `start` on. across, width: how vectors lie in the tensor (methods/shared/rows.py). Pairs are in
        the order 0 0, 1 0, 1 1, 2 0 ...
        """

    def count_active(self, x: Any, epsilon: Any, counts: np.ndarray) -> None:
        """Add to counts (models, 2) how many elements of each row are beyond epsilon where no other row's is, and how many
        where some other row's is.

        epsilon: from `scalar`.
        """

    def count_equal(self, x: Any, value: Any) -> int:
        """Return how many |x| of x (n,) equal a NumPy scalar in the dtype in which magnitudes are compared (float32, or
        float64 for float64 storage). NaN counts as infinite."""

    def count_between(
        self, x: Any, bounds: np.ndarray, stride: int, counts: np.ndarray, sums: np.ndarray, values: np.ndarray
    ) -> None:
        """Count the magnitudes of x (n,) below, at, between and above two bounds, and collect some of those between.

        bounds: (2,), lo <= hi, in the dtype in which magnitudes are compared. NaN counts as infinite.
        counts: (5,) int64 += [below lo, equal to lo, strictly between, equal to hi (if not lo), collected].
        sums: (3,) float64 += |x| of [all, at or above hi, equal to lo]; (2,) or (0,): only the first are needed.
        values: (capacity,) in compute dtype, takes every stride-th of the values strictly between, from index counts[4] on.
        """
