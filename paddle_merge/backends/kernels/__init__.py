"""Loops compiled by Numba: the np backend's twins of the formulas in methods/, and what measures a tensor."""
