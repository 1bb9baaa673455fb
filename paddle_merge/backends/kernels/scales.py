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
        row, number = x[i], (row_phase + i) // row_block
        if column_block == 1:  # a scale for each column, as in the transpose of a matrix with one for each row
            some = scales[number, column_phase : column_phase + columns]
            if zeros.size:
                less = zeros[number, column_phase : column_phase + columns]
                for j in range(columns):
                    row[j] = (float32(row[j]) - less[j]) * some[j]
            else:
                for j in range(columns):
                    row[j] = float32(row[j]) * some[j]
            continue
        done = 0
        while done < columns:
            block = (column_phase + done) // column_block
            stop = min(columns, (block + 1) * column_block - column_phase)
            part, scale = row[done:stop], scales[number, block]
            if zeros.size:
                zero = zeros[number, block]
                for j in range(stop - done):
                    part[j] = (float32(part[j]) - zero) * scale
            else:
                for j in range(stop - done):
                    part[j] = float32(part[j]) * scale
            done = stop
