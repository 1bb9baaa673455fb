"""Fold LoRA adapters into the models that they were trained on.

adapt folds the adapters of all inputs; fold.Fold decides, from headers, which tensors of one change and how;
adapted.AdaptedReader computes the changed elements when they are read. For fold, config checks an adapter and gives its
scale, targets finds the tensors that it is for (and parameters those of experts), updates and experts express its modules as
changes of these, whole fits tensors that replace others, tied handles tensors that share their values, and missing finds
what an adapter lacks.
"""
