"""The best approximation of a matrix by one of low rank: its largest singular values and their vectors, in float64.

Two ways to them. Where few are wanted of many, a block Krylov method (Musco and Musco 2015, with every block
orthogonalised against all before it): some products with the matrix instead of a full decomposition, and for the spectra of
fine-tuning the same digits. Else, and where that doesn't converge, the eigenvectors of the smaller Gram matrix.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

OVERSAMPLE = 16  # columns beyond those wanted, so that the last of those is found well too
SPREAD = (
    4  # the Krylov space may grow to so small a part of the matrix's smaller side; from there on the other way is faster
)
TOLERANCE = 1e-8  # of a squared singular value, from one step to the next
NEGLIGIBLE = 1e-15  # of the largest squared singular value: what float64 can't tell from nothing


@dataclass(frozen=True)
class LowRankFactors:
    """left [m, r] @ right [r, n] approximates an m x n matrix; both float64, singular values shared equally between them.

    values [r]: the singular values kept, largest first; remaining: the largest that isn't, 0.0 if all are.
    """

    left: np.ndarray
    right: np.ndarray
    values: np.ndarray
    remaining: float


def low_rank(matrix: np.ndarray, rank: int, energy: float | None = None) -> LowRankFactors:
    """The approximation of rank `rank`, or of the smaller side of the matrix if that is less.

    matrix: [m, n] float64, finite and not all zeros.
    energy: in (0, 1]: of a lower rank, if its singular values hold this share of the sum of squares.
    """
    vectors, products = _leading(matrix, min(rank + 1, *matrix.shape))
    squares = np.einsum("ij,ij->i", products, products)
    kept = min(rank, len(squares))
    if energy is not None:
        held = np.cumsum(squares)
        wanted = energy * np.einsum("ij,ij->", matrix, matrix) * (1 - 1e-12)  # sums of squares round
        kept = min(kept, 1 + int(np.searchsorted(held, wanted)))
    values = np.sqrt(squares)
    u, products, roots = vectors[:, :kept], products[:kept], np.sqrt(values[:kept])
    largest = np.abs(u).argmax(axis=0)
    signs = np.where(u[largest, np.arange(kept)] < 0, -1.0, 1.0)  # else they are anyone's choice
    left = u * (signs * roots)
    right = products * (signs / np.where(roots > 0, roots, 1.0))[:, None]
    return LowRankFactors(left, right, values[:kept], float(values[kept]) if kept < len(values) else 0.0)


def _leading(matrix: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """vectors [m, count], orthonormal, of the largest singular values, largest first; and vectors.T @ matrix [count, n]."""
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
    """The same vectors [m, count] from the span of matrix @ (matrix.T @ matrix)^k @ noise, k = 0, 1 ...; None where that
    costs more than the Gram matrix would."""
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
        for _ in range(2):  # once leaves rounding's share of what is subtracted
            block = np.linalg.qr(block - basis @ (basis.T @ block))[0]
        basis = np.concatenate([basis, block], axis=1)
        images = np.concatenate([images, matrix.T @ block], axis=1)
