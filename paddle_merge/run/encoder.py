"""Store merged numbers as 8-bit codes, with a scale for each block of them.

A scale follows from the largest number of its block, so codes are known only when all rows of a block are merged: a band.
Before: pipeline.py merges a tensor in blocks that fit into the processor's cache. Here: they are put together to bands, and
encoded. After: worker.py writes the codes, and the scales, at their places.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from ..backends.scratch import Scratch
from ..dtypes import BFLOAT16
from ..plan.tensor_plan import Piece, TensorPlan

Write = Callable[[np.ndarray, int], None]  # raw elements, and the index of the first of them in the tensor


class Encoder:
    """Encodes the elements of one piece of a tensor, which come in order.

    codes, scales: take what is finished. scratch: memory that is used again for the next tensor.
    """

    def __init__(self, tensor: TensorPlan, piece: Piece, codes: Write, scales: Write, scratch: Scratch):
        assert tensor.scales is not None
        from ..backends.kernels import bits, encoding  # planning does without

        self._encode, self._round, self._scales = encoding.encode_e4m3fn, bits.store_bfloat16, tensor.scales
        self._write_codes, self._write_scales = codes, scales
        self._at, self._stop = piece.start, piece.stop
        self._scratch, self._filled = scratch, 0
        self._values = self._next()

    def add(self, raw: np.ndarray, start: int) -> None:
        """Take the merged elements (n,) float32 from index `start` on, the next ones."""
        if start != self._at + self._filled:
            raise RuntimeError("the elements of a block don't come in order")
        while len(raw):
            part = raw[: len(self._values) - self._filled]
            self._values[self._filled : self._filled + len(part)] = part
            self._filled, raw = self._filled + len(part), raw[len(part) :]
            if self._filled == len(self._values):
                self._finish()

    def _next(self) -> np.ndarray:
        """Return room for the elements that are encoded together: whole bands of one matrix, from `_at` on."""
        *_, rows, columns = self._scales.shape
        matrix = rows * columns
        count = min(self._scales.together, matrix - self._at % matrix, self._stop - self._at)
        return self._scratch.array("bands", count, np.float32)

    def _finish(self) -> None:
        """Encode what has been put together, and hand it on."""
        values, (rows, width), columns = self._values, self._scales.block, self._scales.shape[-1]
        codes = self._scratch.array("codes", len(values), np.uint8)
        bands, blocks = -(-len(values) // (rows * columns)), self._scales.grid[-1]
        scales = self._scratch.array("scales", bands * blocks, np.float32)
        narrow = self._scales.dtype is BFLOAT16
        grid, table = scales.reshape(bands, blocks), codes.reshape(-1, columns)
        self._encode(values.reshape(-1, columns), rows, width, narrow, self._scales.powers, table, grid)
        if narrow:
            scales, exact = self._scratch.array("narrow scales", len(scales), BFLOAT16.raw), scales
            self._round(exact, scales)
        self._write_scales(scales, self._scales.first(self._at))
        self._write_codes(codes, self._at)
        self._at, self._filled = self._at + len(values), 0
        if self._at < self._stop:
            self._values = self._next()
