"""Solve linear assignment problems: which column each row gets, so that the sum of the costs is smallest."""

from __future__ import annotations

import numpy as np
from numpy import float64

from .compiling import jit


@jit
def assign(cost, column_of):
    """Write to column_of (n,) int64 the column of each row, of which the costs (n, n) have the smallest sum. All are finite.

    Rows are assigned one after the other along shortest augmenting paths, with prices in float64 (Jonker and Volgenant 1987,
    "A shortest augmenting path algorithm for dense and sparse linear assignment problems"). Prices begin with the smallest
    cost of each column, with which most rows find a free column at once where most pairs are clear. O(n^3) at worst.
    """
    n = cost.shape[0]
    price, offer = np.empty(n, np.float64), np.zeros(n, np.float64)  # of columns, and of rows
    row_of = np.full(n, -1, np.int64)
    column_of[:] = -1
    for j in range(n):
        price[j] = np.inf
    for i in range(n):
        for j in range(n):
            if cost[i, j] < price[j]:
                price[j] = cost[i, j]
    for i in range(n):  # rows whose cheapest column is free
        best, least = -1, np.inf
        for j in range(n):
            reduced = float64(cost[i, j]) - price[j]
            if reduced < least:
                best, least = j, reduced
        offer[i] = least
        if row_of[best] < 0:
            row_of[best], column_of[i] = i, best
    distance, before = np.empty(n, np.float64), np.empty(n, np.int64)  # of each column: its path, and that path's last row
    left, done = np.empty(n, np.int64), np.empty(n, np.int64)  # columns whose path is not certain, and those where it is
    for start in range(n):
        if column_of[start] >= 0:
            continue
        for j in range(n):
            distance[j], before[j], left[j] = np.inf, start, j
        i, reached, many, finished, end = start, 0.0, n, 0, -1
        while end < 0:
            place, least = -1, np.inf
            for k in range(many):
                j = left[k]
                length = reached + (float64(cost[i, j]) - offer[i] - price[j])
                if length < distance[j]:
                    distance[j], before[j] = length, i
                # Of equal paths one that ends in a free column; else the first column.
                if distance[j] < least or (distance[j] == least and row_of[j] < 0 and row_of[left[place]] >= 0):
                    place, least = k, distance[j]
            j, reached = left[place], least
            many -= 1
            left[place] = left[many]
            done[finished] = j
            finished += 1
            if row_of[j] < 0:
                end = j
            else:
                i = row_of[j]
        offer[start] += reached
        for k in range(finished - 1):
            j = done[k]
            offer[row_of[j]] += reached - distance[j]
            price[j] -= reached - distance[j]
        j = end
        while True:
            i = before[j]
            row_of[j] = i
            column_of[i], j = j, column_of[i]
            if i == start:
                break
