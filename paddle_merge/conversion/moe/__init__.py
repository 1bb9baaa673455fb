"""Mixtures of experts: which tensors belong to experts and routers, how experts correspond, and how they are stored.

layers.py               which tensors a layer of experts consists of, and what their axes are
features.py             what experts are compared by
matching.py             which expert, and which neuron of it, matches which of a reference
order.py                that for all layers and models; as a file, too
reorder.py              a model with its experts in another order
entry.py, reordered.py  a tensor with slices in another order, and its reader
stacks.py               a matrix for each expert, or stacks of all, as --expert_layout says
"""
