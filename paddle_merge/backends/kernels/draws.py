"""Loops that draw normal numbers, and those that draw neurons of a matrix anew (conversion/mixture/)."""

from __future__ import annotations

import numpy as np
from numpy import float64

from .compiling import jit
from .folds import hash_of


@jit
def normal_of(i, u0, u1, v0, v1):
    """Return the standard normal number of element i, by Box and Muller's transform of two hashes."""
    u = (float64(hash_of(i, u0, u1)) + 0.5) / 4294967296.0
    v = (float64(hash_of(i, v0, v1)) + 0.5) / 4294967296.0
    return np.sqrt(-2.0 * np.log(u)) * np.cos(2.0 * np.pi * v)


@jit
def fill_normal(out, u0, u1, v0, v1):
    """Fill out (n,), float64, with the numbers of elements 0..n under these keys."""
    for i in range(out.size):
        out[i] = normal_of(i, u0, u1, v0, v1)


@jit
def add_normal(x, scale, u0, u1, v0, v1):
    """Add to x (n,) the numbers of elements 0..n under these keys, times scale."""
    for i in range(x.size):
        x[i] += scale * normal_of(i, u0, u1, v0, v1)


@jit
def sum_neurons(x, start, columns, axis, neurons):
    """Return count, sum and sum of squares of the elements of x that belong to chosen neurons.

    x: the elements from `start` on of a matrix with so many columns. neurons: whether each row (axis 0) or column is chosen.
    """
    count, total, squares = 0, 0.0, 0.0
    for i in range(x.size):
        row = (start + i) // columns
        if neurons[row if axis == 0 else start + i - row * columns]:
            value = float64(x[i])
            count += 1
            total += value
            squares += value * value
    return count, total, squares


@jit
def draw_neurons(x, start, columns, axis, neurons, mean, std, u0, u1, v0, v1):
    """Replace the elements of x that belong to chosen neurons by mean + std * their numbers under these keys."""
    for i in range(x.size):
        row = (start + i) // columns
        if neurons[row if axis == 0 else start + i - row * columns]:
            x[i] = mean + std * normal_of(i, u0, u1, v0, v1)
