"""Convert the inputs of a merge to one form: one layout, the same fused weights, LoRA adapters folded in, one vocabulary.

    inputs       open the inputs, and check that they match
    detect       find the layout of a checkpoint
    layout       convert checkpoints to one layout
    orientation  know which tensors Paddle's layouts store transposed
    fused        split and fuse query, key and value, or gate and up
    leftovers    handle what PaddleFormers leaves fused where it writes Hugging Face's layout
    modules      find the part of a multimodal model that a tensor belongs to
    lora/        fold LoRA adapters into their base models
    vocabulary/  align models with different vocabularies

Conversion works on headers: tensors become views of the same bytes, or entries that are computed when they are read. Values
are only read to find out whether tensors are equal or zero.
"""
