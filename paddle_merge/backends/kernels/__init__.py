"""Numba loops that the np backend runs: one for each formula in methods/, and those that measure a tensor.

Three rules keep them fast. Numba makes uint64 of uint32 op uint32, so every integer step is cast back. A branch on random
data costs ten times an arithmetic select, so loops over elements have hardly any. Work is done in chunks that stay in the
first-level cache. One rule makes results the same everywhere: reductions fold chunks of fixed size in a fixed order, so they
depend neither on the size of blocks nor on the width of the machine's vectors.
"""
