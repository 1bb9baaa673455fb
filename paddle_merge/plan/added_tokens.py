"""Find the tokens that an adapter adds to an output whose vocabulary isn't aligned."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from ..checkpoints.names import layer_of
from ..checkpoints.tensors import Checkpoint, TensorEntry
from ..conversion.tied_heads import embedding_of
from ..records import record


class Made(Protocol):
    """Describe a tensor of the output, as assemble.AssembledTensor does."""

    @property
    def name(self) -> str: ...
    @property
    def entries(self) -> tuple[TensorEntry, ...]: ...
    @property
    def base(self) -> TensorEntry | None: ...
    @property
    def numbers(self) -> tuple[int, ...]: ...


@record(frozen=True)
class AddedTokens:
    """Describe the tokens of an output that has an adapter's.

    rows: of its embedding, if the adapter changed their number; else None. folder: of the adapter's tokenizer; None if the
    output gets another one.
    """

    rows: int | None
    folder: str | None


def added_tokens(made: Sequence[Made], inputs: Sequence[Checkpoint], config_from: str | None) -> AddedTokens | None:
    """Return what adapters add to the output's tokens, None if they add none.

    The tokenizer is that of the base, or else of the first model, of those that the embedding is made of; if an adapter
    changed the number of rows, any of them may have it. config_from: the folder that is to give the tokenizer, if any.
    """
    embedding = embedding_of({one.name: one.entries[0] for one in made if layer_of(one.name) is None})
    main = next((one for one in made if embedding is not None and one.entries[0] is embedding), None)
    if main is None or embedding is None:
        return None
    numbers = main.numbers if main.base is None else (main.numbers[-1], *main.numbers[:-1])
    models = [inputs[number] for number in numbers]
    resized = any(one.resized for one in models)
    folder = next((one.tokenizer for one in (models if resized else models[:1]) if one.tokenizer), None)
    folder = folder if config_from is None else None
    return AddedTokens(embedding.shape[0] if resized else None, folder) if resized or folder else None
