"""Approximate a matrix by one of low rank: the truncated singular value decomposition, in float64.

If few singular values are needed, they are found by a block Krylov method (Musco and Musco, 2015, with every block
orthogonalised against all blocks before it), which takes some products with the matrix instead of a full decomposition, and
gives the same digits for the spectra of fine-tuning. Otherwise, and if that doesn't converge, they are found from the
eigenvectors of the smaller Gram matrix.
"""

from __future__ import annotations

import numpy as np

from ...records import record

OVERSAMPLE = 16  # extra columns of a block, for the accuracy of the last singular vectors
SPREAD = 4  # the Krylov space may have 1 / SPREAD of the dimensions of the smaller side; beyond, Gram matrices are faster
TOLERANCE = 1e-8  # largest relative change of a squared singular value from one step to the next
NEGLIGIBLE = 1e-15  # largest absolute change, relative to the largest squared singular value: float64's accuracy


@record(frozen=True)
class LowRankFactors:
    """Factors whose product left [m, r] @ right [r, n] approximates a matrix [m, n]; both float64.

    Each is scaled by the square roots of the singular values. values: [r], the singular values that are kept, the largest
    first. remaining: the largest that isn't kept, 0.0 if all are.
    """

    left: np.ndarray
    right: np.ndarray
    values: np.ndarray
    remaining: float


def low_rank(matrix: np.ndarray, rank: int, energy: float | None = None) -> LowRankFactors:
    """Return the best approximation of a matrix whose rank is at most `rank`.

    matrix: [m, n] float64, finite and not all zeros. energy: in (0, 1]; use the lowest rank whose singular values have this
    share of the sum of squares.
    """
    vectors, products = _leading(matrix, min(rank + 1, *matrix.shape))
    squares = np.einsum("ij,ij->i", products, products)
    kept = min(rank, len(squares))
    if energy is not None:
        held = np.cumsum(squares)
        wanted = energy * np.einsum("ij,ij->", matrix, matrix) * (1 - 1e-12)  # rounding of the sums
        kept = min(kept, 1 + int(np.searchsorted(held, wanted)))
    values = np.sqrt(squares)
    u, products, roots = vectors[:, :kept], products[:kept], np.sqrt(values[:kept])
    largest = np.abs(u).argmax(axis=0)
    signs = np.where(u[largest, np.arange(kept)] < 0, -1.0, 1.0)  # makes the signs of the vectors unique
    left = u * (signs * roots)
    right = products * (signs / np.where(roots > 0, roots, 1.0))[:, None]
    return LowRankFactors(left, right, values[:kept], float(values[kept]) if kept < len(values) else 0.0)


def _leading(matrix: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Return (vectors, vectors.T @ matrix) of the `count` largest singular values, the largest first.

    vectors: [m, count], orthonormal.
    """
    found = _krylov(matrix, count)
    if found is None:
        tall = matrix.shape[0] > matrix.shape[1]
        gram = matrix.T @ matrix if tall else matrix @ matrix.T
        found = np.linalg.eigh(gram)[1][:, ::-1][:, :count]
        if tall:
            found = np.linalg.qr(matrix @ found)[0]
    products = found.T @ matrix
    order = np.argsort(-np.einsum("ij,ij->i", products, products), kind="stable")
    return found[:, order], products[order]


def _krylov(matrix: np.ndarray, count: int) -> np.ndarray | None:
    """Return the vectors [m, count] from the span of matrix @ (matrix.T @ matrix)^k @ noise for k = 0, 1, ...

    None if that would cost more than the Gram matrix.
    """
    width, limit = count + OVERSAMPLE, min(matrix.shape) // SPREAD
    if 4 * width > limit:
        return None
    start = np.random.default_rng(0).standard_normal((matrix.shape[1], width))
    basis = np.linalg.qr(matrix @ start)[0]  # [m, columns so far]
    images = matrix.T @ basis  # [n, columns so far]
    before = np.zeros(count)
    while True:
        squares, turn = np.linalg.eigh(images.T @ images)
        squares, turn = squares[::-1][:count], turn[:, ::-1][:, :count]
        if (np.abs(squares - before) <= TOLERANCE * squares + NEGLIGIBLE * squares[0]).all():
            vectors: np.ndarray = basis @ turn
            return vectors
        if basis.shape[1] + width > limit:
            return None
        before = squares
        block = matrix @ images[:, -width:]
        for _ in range(2):  # a second time, because of rounding
            block = np.linalg.qr(block - basis @ (basis.T @ block))[0]
        basis = np.concatenate([basis, block], axis=1)
        images = np.concatenate([images, matrix.T @ block], axis=1)
