"""Tensors of mixtures of experts made of dense models.

entry      describes tensors that are drawn at random, and experts that are changed
drawing    reads those: every element is a function of (seed, tensor, index)
"""
