"""Open the model whose tokenizer, and rows of tokens, say how another model gets that tokenizer."""

from __future__ import annotations

from ..checkpoints.names import HEAD, TOKEN_EMBEDDINGS, last_word, layer_of
from ..checkpoints.views import transpose
from ..conversion.inputs import open_together
from ..conversion.layout import transposed_in
from ..conversion.vocabulary.missing import Donor
from ..conversion.vocabulary.rows import sizes
from ..errors import CheckpointError


def open_donor(path: str, prefix: str) -> Donor:
    """Return what the model at `path` gives. prefix: as of open.open_checkpoint.

    Raises CheckpointError if it can't be opened, or if it isn't known which of its tensors has its tokens.
    """
    opened = open_together([path], (), prefix)
    checkpoint = opened.checkpoints[0]
    rows, width = sizes(checkpoint)
    outside = {name: entry for name, entry in checkpoint.tensors.items() if layer_of(name) is None}
    embedding = next(
        entry for name, entry in outside.items() if last_word(name) in TOKEN_EMBEDDINGS and entry.shape == (rows, width)
    )
    head = next((one for name, one in outside.items() if last_word(name) == last_word(HEAD) and len(one.shape) == 2), None)
    if head is None:
        head = embedding
    elif head.shape == (width, rows) and (rows != width or head.name in transposed_in(checkpoint.tensors, opened.layout)):
        head = transpose(head, head.name)
    if not embedding.dtype.is_float or not head.dtype.is_float or head.shape != (rows, width):
        raise CheckpointError(
            f"{path}: tensors {embedding.name!r} and {head.name!r} must be of floating-point numbers, and have a row for"
            " each token; without them, make rows of missing tokens in another way: subword or mean"
        )
    return Donor(path, checkpoint.tokens_folder, embedding, head)
