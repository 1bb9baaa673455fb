"""Approximate rows by sparse combinations of others: orthogonal matching pursuit.

Pati, Rezaiifar and Krishnaprasad 1993; for tokens of another vocabulary: Goddard and Fernandes Neto 2025 (arXiv 2506.06607).
At each step the atom is added whose inner product with the residual is the largest in absolute value, and the residual is
made orthogonal to all atoms so far. As in mergekit, atoms aren't normalised for the choice.

Inner products, which take nearly all the time, are computed in the atoms' dtype, everything else in float64. Atoms are read
in blocks, and BLAS gets one thread for each of a block's parts, so that results don't depend on the number of cores.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from ...backends.machine import cores

Blocks = Callable[[], Iterator[tuple[int, np.ndarray]]]  # yields (the first atom, (m, width)), all atoms in order
EPSILON = 1e-6  # relative to an atom or a target: shorter vectors are rounding errors of float32
_PART = 1 << 19  # elements of atoms that one thread multiplies


def pursue(targets: np.ndarray, blocks: Blocks, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Return which atoms make up each target, (n, k) int64, and their coefficients, (n, k) float64.

    targets: (n, width) float64. blocks: gives the atoms, at least k of them, each time anew. A target that fewer atoms make
    up has coefficients 0 behind these. Raises ValueError if some number is NaN or infinite.
    """
    from threadpoolctl import threadpool_limits

    n, width = targets.shape
    chosen, scales = np.zeros((n, k), np.int64), np.zeros((n, k))
    basis, upper = np.zeros((n, k, width)), np.tile(np.eye(k), (n, 1, 1))
    residual, sizes = targets.copy(), np.linalg.norm(targets, axis=1)
    if not np.isfinite(sizes).all():
        raise ValueError("holds NaN or Inf")
    everyone = np.arange(n)
    with threadpool_limits(1, "blas"), ThreadPoolExecutor(cores()) as pool:
        for step in range(k):
            going = np.linalg.norm(residual, axis=1) > EPSILON * sizes
            if not going.any():
                break
            best, atoms = _best(residual, chosen[:, :step], blocks, pool)
            chosen[:, step] = best
            lengths = np.linalg.norm(atoms, axis=1)
            before = basis[:, :step]
            for _ in range(2):  # once more, for what rounding has left
                inner = np.matmul(before, atoms[:, :, None])[:, :, 0]
                atoms -= np.matmul(inner[:, None, :], before)[:, 0, :]
                upper[:, :step, step] += inner
            norms = np.linalg.norm(atoms, axis=1)
            going &= norms > EPSILON * lengths
            upper[~going, :step, step] = 0
            norms[~going] = 1
            upper[everyone, step, step] = norms
            atoms[~going] = 0
            basis[:, step] = atoms / norms[:, None]
            scales[:, step] = np.einsum("nw,nw->n", basis[:, step], residual)
            residual -= scales[:, step, None] * basis[:, step]
        return chosen, np.linalg.solve(upper, scales[:, :, None])[:, :, 0]


def _best(
    residual: np.ndarray, chosen: np.ndarray, blocks: Blocks, pool: ThreadPoolExecutor
) -> tuple[np.ndarray, np.ndarray]:
    """Return the atom, none of those chosen, with the largest inner product with each residual, (n,), and its elements,
    (n, width).

    Of equal atoms the first is returned.
    """
    n, width = residual.shape
    best, most, found = np.zeros(n, np.int64), np.full(n, -np.inf), np.zeros((n, width))
    everyone, step = np.arange(n), max(1, _PART // width)
    narrow = {dtype: np.ascontiguousarray(residual.T, dtype) for dtype in (np.dtype(np.float32), np.dtype(np.float64))}

    def product(first: int, part: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the best of the atoms `part`, of which the first has this number, for each residual, and the products."""
        inner = np.abs(part @ narrow[part.dtype])  # (m, n)
        at = chosen - first
        who, which = np.nonzero((at >= 0) & (at < len(part)))
        inner[at[who, which], who] = -1
        top = inner.argmax(axis=0)
        return first + top, inner[top, everyone]

    for first, block in blocks():
        starts = range(0, len(block), step)
        parts = [first + start for start in starts], [block[start : start + step] for start in starts]
        for atoms, products in pool.map(product, *parts):
            if not np.isfinite(products).all():  # of a column with NaN, argmax returns the NaN
                raise ValueError("holds NaN or Inf")
            better = products > most
            best[better], most[better] = atoms[better], products[better]
        here = np.flatnonzero((best >= first) & (best < first + len(block)))
        found[here] = block[best[here] - first]
    return best, found
