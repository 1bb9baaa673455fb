"""Fold LoRA adapters into the models that they were trained on.

fold.adapt decides, from headers, which tensors change and how; adapted.AdaptedReader computes the changed elements when they
are read. For fold, config checks an adapter and gives its scale, targets finds the tensors that it is for, updates expresses
its modules as changes of those, and tied handles tensors that share their values.
"""
