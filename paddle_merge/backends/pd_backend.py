"""Compute with Paddle tensors on one device: the operations of backend.py, in the order of np_backend.py.

Formulas run as they stand, operation by operation in the models' order, and sums fold the same chunks in the same order as
the loops in kernels/. So results don't depend on the size of a block, and agree with NumPy's.

Rows are separate tensors: a formula gets a list of them, and makes new ones.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import paddle

from ..dtypes import BFLOAT16, FLOAT8_E4M3FN, FLOAT8_E5M2, FLOAT16, DType
from . import pd_words as xp
from .backend import Backend, Formula
from .budget import DEFAULT_BUDGET, MemoryBudget
from .kernels.bits import float8_values
from .masks import Key

CHUNK = 1024  # elements; as in kernels/bits.py
TABLES = 5 << 20  # bytes per model that magprune's tables and counters take
_TOP_BIT = np.uint32(0x80000000)
_FRACTION = {BFLOAT16: 16, FLOAT16: 13}  # bits of a float32 that rounding drops
# Bits of the fraction, bias of the exponent, codes of the largest number, of what is larger, of NaN (as in bits.py).
# They are uint8 here: Paddle has few operations for them, and older versions none.
_FLOAT8 = {FLOAT8_E4M3FN: (3, 7, 0x7E, 0x7F, 0x7F), FLOAT8_E5M2: (2, 15, 0x7B, 0x7C, 0x7E)}


class PaddleBackend(Backend):
    """Compute on one device of Paddle.

    compute: "float32" or "float64". device: "cpu", "gpu:0" or "npu:0". device_budget: how many bytes of the device's memory
    blocks may take. budget: how much of the host's memory, which holds the sources of two blocks.
    """

    in_place = False

    def __init__(self, compute: str, device: str, device_budget: int, budget: MemoryBudget = DEFAULT_BUDGET):
        self.dtype: Any = np.dtype(compute)
        self._compute, self._device, self._device_budget, self.budget = compute, device, device_budget, budget
        with self.at_work() as place:
            self._place = place
        self._cuda = device.startswith("gpu")
        self.ahead = int(self._cuda)
        self._pinned: list[list[Any]] = [[], []]  # the host's side of copies that may still be under way

    def block(self, models: int) -> int:
        """Return the largest power of two for which rows, and formulas' own tensors, stay within the device's budget."""
        budget = (self._device_budget - models * TABLES) // block_bytes(self.dtype.itemsize, models)
        return int(min(max(CHUNK, 1 << max(budget, 1).bit_length() - 1), self.budget.device_block))

    @contextmanager
    def at_work(self) -> Iterator[Any]:
        """Select the device and switch gradients and AMP off; restore afterwards what the caller had."""
        before = paddle.device.get_device()
        try:
            with paddle.no_grad(), paddle.amp.auto_cast(enable=False):
                yield paddle.device.set_device(self._device)
        finally:
            if before != self._device:
                paddle.device.set_device(before)

    def peak(self) -> int:
        """Return the most bytes of the GPU's memory that Paddle has reserved so far, with what its allocator keeps."""
        return int(paddle.device.cuda.max_memory_reserved(self._place)) if self._cuda else 0

    # --- constants of formulas

    def array(self, values: Sequence[float]) -> Any:
        return list(map(float, values))

    def scalar(self, value: float) -> Any:
        return float(value)

    def constant(self, values: np.ndarray) -> Any:
        return paddle.to_tensor(values, place=self._place)

    def mask_constant(self, values: np.ndarray) -> Any:
        return self.constant((values ^ _TOP_BIT).view(np.int32) if values.dtype == np.uint32 else values)

    # --- from stored elements to numbers, and back

    def load(self, raws: Sequence[Any], dtypes: Sequence[DType], based: bool) -> tuple[Any, Any, list[Any]]:
        self._pinned = [self._pinned[1], []]
        rows = [self._widened(self.put(raw, dtype), dtype) for raw, dtype in zip(raws, dtypes, strict=True)]
        bad = [~paddle.isfinite(row).all() for row in rows]
        if not based:
            return rows, None, bad
        return [row - rows[-1] for row in rows[:-1]], rows[-1], bad

    def put(self, raw: Any, dtype: DType) -> Any:
        if not isinstance(raw, np.ndarray):
            return raw if raw.place._equals(self._place) else raw._copy_to(self._place, True)
        raw = raw.view(np.float16) if dtype == FLOAT16 else raw  # uint16 is Paddle's bfloat16 in NumPy
        if not self._cuda:
            return paddle.to_tensor(raw, place=self._place)
        pinned = paddle.to_tensor(raw, place=paddle.CUDAPinnedPlace())
        self._pinned[1].append(pinned)
        return pinned.cuda(self._place.get_device_id(), False)

    def _widened(self, stored: Any, dtype: DType) -> Any:
        """Return stored elements in compute dtype."""
        if dtype in _FLOAT8:
            stored = paddle.gather(self.constant(float8_values(*_FLOAT8[dtype][:4])), stored.astype("int32"))
        return stored.astype(self._compute)

    def store(self, values: Any, dtype: DType) -> tuple[Any, Any]:
        if dtype in _FLOAT8:
            codes = _to_float8(_to_odd(values) if self._compute == "float64" else values, dtype)
            return codes.astype("uint8"), ((codes & xp.full(0x7F)) > xp.full(_FLOAT8[dtype][2])).any()
        if dtype in _FRACTION:
            values = _rounded(_to_odd(values) if self._compute == "float64" else values, dtype)
        stored = values.astype(dtype.name)
        finite = paddle.isfinite(values if dtype in _FRACTION else stored).all()
        return stored, ~finite

    def fetch(self, values: Any) -> Callable[[], np.ndarray]:
        if not self._cuda:
            return lambda: _raw(values.numpy())
        pinned = values.pin_memory(False)
        copied: Any = paddle.device.cuda.Event()
        copied.record()

        def end() -> np.ndarray:
            copied.synchronize()
            return _raw(pinned.numpy())

        return end

    def add_scaled(self, base: Any, x: Any, scale: float) -> Any:
        return base + x * scale

    # --- formulas

    def apply(self, formula: Formula, x: Any, *args: Any) -> Any:
        return formula(xp, x, *args)

    def apply_masked(self, formula: Formula, x: Any, key: Key, *args: Any) -> Any:
        return formula(xp, x, _hashes(key, x.shape[0]), *args)

    def stacked(self, rows: Sequence[Any]) -> Any:
        return rows

    def replace(self, x: Any, rows: Sequence[Any]) -> Any:
        return rows

    def joined(self, x: Any, parts: Sequence[Any]) -> Any:
        return parts[0] if len(parts) == 1 else paddle.concat(list(parts))

    # --- measurements

    def elected_balance(self, elect: Formula, x: Any, weights: Any, by_count: bool) -> int:
        sign = elect(xp, [weight * row for weight, row in zip(weights, x, strict=True)], by_count, 0.0)
        return int((sign > 0).astype("int64").sum() - (sign < 0).astype("int64").sum())

    def add_bins(self, bins: Formula, x: Any, counts: np.ndarray) -> None:
        counts += paddle.bincount(bins(xp, x), minlength=len(counts)).numpy().astype(counts.dtype)

    def add_magnitudes(self, x: Any, unit: float, sums: np.ndarray) -> None:
        sums[0] = _add_up(sums[0], paddle.abs(x).astype("float64") * unit)

    def add_gram(self, x: Any, gram: np.ndarray) -> None:
        wide = [row.astype("float64") for row in x]
        for j in range(len(wide)):
            for k in range(j + 1):
                gram[j, k] = gram[k, j] = _add_up(gram[j, k], wide[j] * wide[k])

    def add_row_grams(self, x: Any, start: int, across: bool, width: int, grams: np.ndarray) -> None:
        from .kernels.measures import add_row_grams

        # On the host: a device would add them in an order of its own.
        add_row_grams(np.stack([row.numpy() for row in x]), start, across, width, grams)

    def count_active(self, x: Any, epsilon: float, counts: np.ndarray) -> None:
        active = [paddle.abs(row) > epsilon for row in x]
        together = functools.reduce(operator.add, [one.astype("int32") for one in active])
        for count, one in zip(counts, active, strict=True):
            shared = paddle.logical_and(one, together > 1).astype("int64").sum()
            count += np.array([int(one.astype("int64").sum() - shared), int(shared)])

    def count_equal(self, x: Any, value: Any) -> int:
        limit = paddle.to_tensor(np.array([value]), place=self._place)
        size = paddle.abs(x).astype(limit.dtype)
        equal = ~(size < limit) if np.isinf(value) else _equal(size, limit)
        return int(equal.astype("int64").sum())

    def count_between(
        self, x: Any, bounds: np.ndarray, stride: int, counts: np.ndarray, sums: np.ndarray, values: np.ndarray
    ) -> None:
        lo, hi = (paddle.to_tensor(bounds[k : k + 1], place=self._place) for k in (0, 1))
        exact = paddle.abs(x)
        size = exact.astype(lo.dtype)
        size = paddle.where(paddle.isnan(size), paddle.full([1], float("inf"), lo.dtype), size)
        below, at_lo, at_hi = size < lo, _equal(size, lo), _equal(size, hi)
        inside = paddle.logical_and(size > lo, size < hi)
        found = paddle.stack([mask.astype("int64").sum() for mask in (below, at_lo, inside, at_hi)]).numpy()
        if bounds[0] == bounds[1]:
            found[3] = 0

        if sums.size:
            wide = exact.astype("float64")
            nothing = paddle.zeros([1], "float64")
            of_hi = paddle.where(size >= hi, wide, nothing)
            of_lo = [paddle.where(at_lo, wide, nothing)] if sums.size == 3 else []
            for number, terms in enumerate([wide, of_hi, *of_lo]):
                sums[number] = _add_up(sums[number], terms)

        skipped = -int(counts[2]) % stride
        between = paddle.masked_select(exact, inside).numpy()[skipped::stride] if found[2] else values[:0]
        first = int(counts[4])
        between = between[: len(values) - first]
        values[first : first + len(between)] = between
        counts[4] += len(between)
        counts[:4] += found


def block_bytes(itemsize: int, models: int) -> int:
    """Return an upper estimate of the bytes that one element of every model takes on the device, with formulas' temporary
    tensors. The most is in ties, which holds rows, weighted rows and rows along the elected sign."""
    return itemsize * (6 * models + 6) + 24


def _equal(x: Any, y: Any) -> Any:
    """Tell which elements are equal. (Paddle's `==` is also true of numbers within 1e-8 of each other.)"""
    return paddle.logical_and(x <= y, x >= y)


def _raw(values: np.ndarray) -> np.ndarray:
    return values.view(np.uint16) if values.dtype == np.float16 else values


def _hashes(key: Key, size: int) -> Any:
    """Return masks.hash_block's hashes, (size,) int32, with the top bit flipped, so that signed numbers keep their order."""
    x = paddle.arange(size, dtype="int32") + xp.full(key[0])
    for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B)):
        x = (x ^ xp.right_shift(x, shift)) * xp.full(factor)
    x = x ^ xp.right_shift(x, 16) ^ xp.full(key[1])
    for shift, factor in ((16, 0x21F0AAAD), (15, 0xD35A2D97)):
        x = (x ^ xp.right_shift(x, shift)) * xp.full(factor)
    return x ^ xp.right_shift(x, 15) ^ xp.full(int(_TOP_BIT))


def _add_up(start: float, terms: Any) -> float:
    """Return start + the sum of terms (n,) float64: chunks folded in halves, then added in order."""
    short = -terms.shape[0] % CHUNK
    if short:
        terms = paddle.concat([terms, paddle.zeros([short], terms.dtype)])
    terms = terms.reshape([-1, CHUNK])
    for width in (512, 256, 128, 64, 32, 16, 8, 4, 2, 1):
        terms = terms[:, :width] + terms[:, width:]
    with np.errstate(over="ignore"):
        return float(np.cumsum(np.concatenate([[start], terms.numpy().reshape(-1)]))[-1])


def _to_odd(values: Any) -> Any:
    """Round float64 to float32 so that rounding the result to 16 or 8 bits rounds the float64 once (bits.round_to_odd)."""
    near = values.astype("float32")
    back = near.astype("float64")
    inexact = paddle.logical_and(paddle.logical_or(back < values, back > values), paddle.isfinite(near))
    away = paddle.logical_and(inexact, paddle.abs(back) > paddle.abs(values))
    return ((near.view("int32") - away.astype("int32")) | inexact.astype("int32")).view("float32")


def _rounded(values: Any, dtype: DType) -> Any:
    """Round float32 to numbers that dtype can hold, to nearest even, as float32. Paddle's own conversions round twice or not
    at all on some devices and versions."""
    fraction = _FRACTION[dtype]
    bits = values.view("int32")
    odd = xp.right_shift(bits, fraction) & xp.full(1)
    rounded = (bits + xp.full((1 << fraction - 1) - 1) + odd) & xp.full(-1 << fraction)
    result = rounded.view("float32")
    if dtype == FLOAT16:
        size = paddle.abs(values)
        half = paddle.full([1], 0.5, "float32")
        tiny = (size + half) - half  # rounds to the spacing of float16's denormals
        result = paddle.where(size < 2.0**-14, tiny, result)
        result = paddle.where(size >= 65520.0, paddle.full([1], float("inf"), "float32"), result)
    result = paddle.where(paddle.isnan(values), paddle.full([1], float("nan"), "float32"), result)
    return (result.view("int32") | (bits & xp.full(int(_TOP_BIT)))).view("float32")  # of zeros too


def _to_float8(values: Any, dtype: DType) -> Any:
    """Return the codes of float32 as an 8-bit float, int32, to nearest even: bits._store_float8 in Paddle's operations."""
    fraction, bias, largest, infinity, nan = _FLOAT8[dtype]
    dropped, lift = 23 - fraction, 127 - bias
    bits = values.view("int32")
    size = bits & xp.full(0x7FFFFFFF)
    magic = paddle.full([1], 2.0 ** (24 - bias - fraction), "float32")
    tiny = (paddle.abs(values) + magic).view("int32") - magic.view("int32")
    odd = xp.right_shift(size, dropped) & xp.full(1)
    normal = xp.right_shift(size - xp.full(lift << 23) + xp.full((1 << dropped - 1) - 1) + odd, dropped)
    codes = paddle.where(size < xp.full(lift + 1 << 23), tiny, normal)
    codes = paddle.where(codes > xp.full(largest), xp.full(infinity), codes)
    codes = paddle.where(size > xp.full(0x7F800000), xp.full(nan), codes)
    return codes | (xp.right_shift(bits, 24) & xp.full(0x80))
