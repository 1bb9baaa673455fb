"""The loop that turns codes of quantised weights into numbers."""

from __future__ import annotations

from numpy import float32

from .compiling import jit


@jit
def scale_blocks(x, scales, zeros, row_block, row_phase, column_block, column_phase):
    """Replace x (rows, columns) by (x - zero) * scale, in float32 arithmetic, with the scale and zero of each block.

    x: float32 or float64, rounded to float32. scales, zeros: of the blocks, float32 (rows of blocks, columns of blocks);
    zeros may be (0, 0), for none. row_block, column_block: the size of a block. row_phase, column_phase: how many rows and
    columns of the first blocks lie before x.
    """
    columns = x.shape[1]
    for i in range(x.shape[0]):
        row = x[i]
        scale_row = scales[(row_phase + i) // row_block]
        done = 0
        while done < columns:
            block = (column_phase + done) // column_block
            stop = min(columns, (block + 1) * column_block - column_phase)
            scale = scale_row[block]
            if zeros.size:
                zero = zeros[(row_phase + i) // row_block, block]
                for j in range(done, stop):
                    row[j] = (float32(row[j]) - zero) * scale
            else:
                for j in range(done, stop):
                    row[j] = float32(row[j]) * scale
            done = stop
