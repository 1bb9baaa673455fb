"""Read checkpoints: which tensors a checkpoint has, where their bytes are stored, and what those bytes are.

To open a checkpoint of any kind: open.open_checkpoint. To read elements of its tensors: files.Files.read.
"""
