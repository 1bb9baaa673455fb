"""Compute merges independently of the package, in float64, from the papers and from PaddleNLP's documented rules.

This module shares no code with the package. Inputs are lists of float64 vectors, one per model.
"""

from __future__ import annotations

import functools
import math
from hashlib import blake2b

import numpy as np

Vector = np.ndarray


@functools.cache
def hashes(seed: int, model: int, tensor: str, size: int) -> list[int]:
    """Return the random 32-bit integers of a tensor: two keyed rounds of lowbias32 over a counter, in Python's integers."""
    digest = blake2b(f"{seed}\0{model}\0{tensor}".encode(), digest_size=8).digest()
    k0, k1 = int.from_bytes(digest[:4], "little"), int.from_bytes(digest[4:], "little")
    out = []
    for i in range(size):
        x = (i + k0) % 2**32
        x ^= x >> 16
        x = x * 0x7FEB352D % 2**32
        x ^= x >> 15
        x = x * 0x846CA68B % 2**32
        x ^= x >> 16
        x ^= k1
        x ^= x >> 16
        x = x * 0x21F0AAAD % 2**32
        x ^= x >> 15
        x = x * 0xD35A2D97 % 2**32
        x ^= x >> 15
        out.append(x)
    return out


def trim(x: Vector, density: float, rescale: bool, narrow: bool) -> Vector:
    """Keep |x| >= quantile(|x|, 1 - density), PaddleNLP's rule. narrow: compare in float32, as for float32 and below."""
    size = np.abs(x).astype(np.float32 if narrow else np.float64)
    kept = np.where(size >= np.quantile(size, 1 - density), x, 0.0)
    if rescale and np.abs(kept).sum() > 0:
        kept = kept * (np.abs(x).sum() / np.abs(kept).sum())
    return kept


def dare(x: Vector, density: float, rescale: bool, h: list[int]) -> Vector:
    """Keep random elements, each with probability `density`. h: the random integer of each element."""
    keep = np.array(h) < round(density * 2**32)
    return np.where(keep, x / density if rescale else x, 0.0)


def keep_probability(x: Vector, density: float, epsilon: float) -> Vector:
    """Return each element's keep probability, by its mean rank among magnitudes.

    Magnitudes whose float32 bits are equal but for the last 13 share a rank.
    """
    n = len(x)
    size = np.abs(x).astype(np.float32)
    coarse = (size.view(np.uint32) // 2**13).astype(np.int64)
    _, place, equal = np.unique(coarse, return_inverse=True, return_counts=True)
    larger = n - np.cumsum(equal)
    ranks = (larger + (equal - 1) / 2)[place]
    return 1 - ((1 - density) - epsilon / 2 + epsilon / n * ranks)


def magprune(x: Vector, density: float, epsilon: float, rescale: bool, h: list[int]) -> Vector:
    """Keep random elements, larger ones with a higher probability. h: the random integer of each element."""
    p = keep_probability(x, density, epsilon)
    keep = np.array(h) < np.rint(p * 2**32)
    return np.where(keep, x / p if rescale else x, 0.0)


def linear(xs: list[Vector], weights: list[float], normalize: bool) -> Vector:
    """Return the weighted sum, divided by the sum of the weights if `normalize`."""
    total = sum(weights) if normalize else 1.0
    return sum(w * x for w, x in zip(weights, xs, strict=True)) / total


def slerp(xs: list[Vector], t: float) -> Vector:
    """Interpolate two vectors spherically, or linearly if they are nearly parallel."""
    a, b = xs
    na, nb = np.linalg.norm(a), np.linalg.norm(b)
    cosine = float((a / (na if na > 1e-8 else 1)) @ (b / (nb if nb > 1e-8 else 1)))
    if abs(cosine) > 0.9995:
        return (1 - t) * a + t * b
    angle = math.acos(cosine)
    return (math.sin((1 - t) * angle) * a + math.sin(t * angle) * b) / math.sin(angle)


def one_after_the_other(xs: list[Vector]) -> Vector:
    """Interpolate spherically between many vectors: the m-th with what came of those before it, at 1 / m (WARP)."""
    merged = xs[0]
    for m, x in enumerate(xs[1:], 2):
        lengths = np.linalg.norm(merged), np.linalg.norm(x)
        cosine = 1.0 if min(lengths) == 0 else float(np.clip((merged / lengths[0]) @ (x / lengths[1]), -1, 1))
        angle = math.acos(cosine)
        if math.sin(angle) < 1e-7:
            merged = (1 - 1 / m) * merged + x / m
        else:
            merged = (math.sin((1 - 1 / m) * angle) * merged + math.sin(angle / m) * x) / math.sin(angle)
    return merged


def alignment_cosine(aligned: np.ndarray, unaligned: np.ndarray, tuned: np.ndarray) -> float:
    """Return the cosine between a matrix's change and its projection onto what alignment changed (SafeMERGE).

    Matrices are [out, in].
    """
    v, d = aligned - unaligned, tuned - aligned
    if not v.any() or not d.any():
        return 0.0
    c = v @ v.T / np.linalg.norm(v)
    projected = c @ d
    return float((projected * d).sum() / (np.linalg.norm(projected) * np.linalg.norm(d)))


def safe_merge(
    aligned: np.ndarray, tuned: np.ndarray, safe: np.ndarray, unaligned: np.ndarray, tau: float, alpha: float
) -> np.ndarray:
    """Mix a safe model's matrix into a fine-tuned one that left the directions of alignment."""
    kept = alignment_cosine(aligned, unaligned, tuned) >= tau
    return tuned if kept else alpha * tuned + (1 - alpha) * safe


def sign_of(value: float) -> int:
    """Return -1, 0 or 1; 0 for NaN."""
    return 1 if value > 0 else -1 if value < 0 else 0


def ties(xs: list[Vector], weights: list[float], normalize: bool, elect: str, zero_sign: str) -> Vector:
    """Elect signs and merge the elements that agree, element by element as the paper describes."""
    n = len(xs[0])
    weighted = [w * x for w, x in zip(weights, xs, strict=True)]
    votes = []
    for i in range(n):
        column = [v[i] for v in weighted]
        votes.append(sum(column) if elect == "sum" else sum(map(sign_of, column)))
    signs = [sign_of(vote) for vote in votes]
    balance = sum(signs)
    instead = {"positive": 1, "drop": 0, "majority": sign_of(balance)}[zero_sign]
    merged = np.zeros(n)
    for i in range(n):
        sign = signs[i] or instead
        agree = [k for k in range(len(xs)) if weighted[k][i] * sign > 0]
        total = sum(weighted[k][i] for k in agree)
        if agree:
            merged[i] = total / sum(weights[k] for k in agree) if normalize else total
    return merged


def decided(xs: list[Vector], weights: list[float]) -> Vector:
    """Return, per element, whether the sign of the vote is independent of rounding errors of the weights or the rescaling.

    Where it isn't, float64 isn't right either; other tests cover votes that cancel exactly, with exact numbers.
    """
    terms = np.array([w * x for w, x in zip(weights, xs, strict=True)])
    return np.abs(terms.sum(0)) >= 1e-5 * np.abs(terms).sum(0)


def merge(
    models: list[Vector],
    base: Vector | None,
    *,
    tensor: str,
    sparsify: str = "none",
    merge_type: str = "linear",
    weights: list[float] | None = None,
    normalize: bool = True,
    density: float = 0.7,
    epsilon: float = 0.14,
    rescale: bool = True,
    t: float = 0.5,
    elect: str = "sum",
    zero_sign: str = "positive",
    scale: float = 1.0,
    seed: int = 0,
    narrow: bool = True,
) -> tuple[Vector, Vector]:
    """Merge one flattened tensor. Return the result, and per element whether it is certain."""
    xs = [model - base if base is not None else model.copy() for model in models]
    for k, x in enumerate(xs):
        if sparsify == "trim":
            xs[k] = trim(x, density, rescale, narrow)
        elif sparsify == "dare":
            xs[k] = dare(x, density, rescale, hashes(seed, k, tensor, len(x)))
        elif sparsify == "magprune":
            xs[k] = magprune(x, density, epsilon, rescale, hashes(seed, k, tensor, len(x)))
    weights = weights or [1.0] * len(xs)
    if merge_type == "linear":
        merged = linear(xs, weights, normalize)
    elif merge_type == "slerp":
        merged = slerp(xs, t)
    else:
        merged = ties(xs, weights, normalize, elect, zero_sign)
    exact = merge_type != "ties" or elect == "count" or (sparsify == "none" and all(w in (1, -1) for w in weights))
    certain = np.full(len(merged), True) if exact else decided(xs, weights)
    return merged if base is None else base + scale * merged, certain
