"""Define the plan of a merge: for every tensor of the output its inputs, its method and the place of its bytes.

Before: planner.py makes a Plan from a recipe and the headers of its inputs. After: run/merge.py hands its pieces to workers,
and run/pipeline.py merges a tensor as its TensorPlan (tensor_plan.py) says.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import cached_property

from ..backends.engine import Engine
from ..checkpoints.adapters import Adapter
from ..checkpoints.fingerprint import BLOCK
from ..checkpoints.tensors import Checkpoint, Origin, StoredEntry, files_of
from ..conversion.vocabulary.vocabularies import Tokens
from ..methods.shared.method import ResolvedMethod
from ..recipe.parameters import is_uniform
from ..recipe.recipe import Recipe
from ..records import record
from .added_tokens import AddedTokens
from .chat import ChatTemplate
from .config_source import ConfigSource
from .expert_alignment import Experts
from .provenance import Provenance
from .storage import Storage
from .tensor_plan import Piece, TensorPlan

WORKER_BYTES = 1 << 27  # that a worker must have to read and write for its start to pay
MOST_THREADS = 8  # that merge one tensor; more would wait for Python's interpreter
PIECE_BYTES = 64 << 20  # of output; larger tensors are shared out among workers where the method allows it


@record(frozen=True)
class Shard:
    """An output file: its final name, the bytes around the tensors, each with its offset, and its size in bytes."""

    name: str
    header: tuple[tuple[int, bytes], ...]
    nbytes: int


@record(frozen=True)
class Plan:
    """Everything that is decided before weights are read.

    tensors: in the order of the output. pieces: the largest first. warnings: sentences for the user before the merge begins.
    """

    recipe: Recipe
    inputs: tuple[Checkpoint, ...]  # as Recipe.sources
    config_source: ConfigSource
    tensors: tuple[TensorPlan, ...]
    shards: tuple[Shard, ...]
    pieces: tuple[Piece, ...]
    n_process: int
    ranks: int  # how many processes, of n_process workers each, share the pieces
    engine: Engine
    layout: str | None  # of the output, if it is known
    layout_notes: tuple[str, ...]  # a sentence on each input that is read in another layout than its own
    experts: Experts  # how mixtures of experts correspond, and where routers come from
    left_out: Mapping[Origin, str]  # why stored tensors are not read, by their origins: those that no loader needs
    cut: Mapping[Origin, float]  # how many bytes of stored tensors belong to experts and layers that are dropped
    smaller: tuple[str, ...]  # a sentence each on experts and layers that the output has less of than the merged model
    tied: bool | None  # whether lm_head is tied to the embedding, if that is otherwise than in some input; else None
    folded: tuple[str, ...]  # a sentence on each adapter
    warnings: tuple[str, ...]
    tokens: Tokens | None  # of the output, if vocabularies are aligned
    added: AddedTokens | None  # that an adapter brings to the output, if vocabularies aren't aligned
    opened: tuple[tuple[Checkpoint, Sequence[Adapter]], ...]  # the inputs as they are stored
    chat_template: ChatTemplate | None  # None: the tokenizer's own
    tokens_known: tuple[int, ...]  # how many tokens each vocabulary has that was read, or made
    provenance: Provenance  # of the inputs, for the model card
    storage: Storage  # which weights are stored as codes, if any are

    @property
    def resolved(self) -> ResolvedMethod | None:
        """How all tensors are merged; None if the recipe has parameters that vary by layer, tensor or slice."""
        return self.typical.resolved if self.typical is not None else None

    @cached_property
    def typical(self) -> TensorPlan | None:
        """A tensor that is merged of all models as the recipe says; None if there is none, or parameters vary."""
        models = len(self.recipe.slices[0].inputs)
        of_all = (one for one in self.tensors if not one.how and len(one.weights) == models)
        return next(of_all, None) if is_uniform(self.recipe) else None

    @property
    def weights(self) -> list[tuple[int, float | None]]:
        """What is merged, by its place in Recipe.titles, and how much it counts; None where that varies."""
        inputs = [one.number for part in self.recipe.slices for one in part.inputs]
        if self.typical is None:
            return [(number, None) for number in dict.fromkeys(inputs)]
        return list(zip(inputs, self.typical.weights, strict=True))

    @property
    def prefix(self) -> str:
        """The beginning of the names of the output's files: "model" or "master_weights"."""
        return self.recipe.prefix

    @property
    def save_format(self) -> str:
        return self.recipe.save_format

    @property
    def measures(self) -> bool:
        """Whether some tensor is read twice: once to measure it, and once to merge it."""
        return any(tensor.merged and tensor.resolved.measures for tensor in self.tensors)

    @cached_property
    def files(self) -> Sequence[str]:
        """The paths of all files that are read for tensors, sorted."""
        return sorted(files_of(entry for tensor in self.tensors for entry in tensor.inputs))

    @cached_property
    def bytes_in(self) -> int:
        return sum(entry.bytes_read for tensor in self.tensors for entry in tensor.inputs)

    @property
    def bytes_out(self) -> int:
        return sum(shard.nbytes for shard in self.shards)

    def share(self, rank: int, ranks: int) -> tuple[Piece, ...]:
        """Return the pieces that one of several ranks merges: each piece goes to the rank with the least to do so far."""
        if ranks == 1:
            return self.pieces
        loads = [0] * ranks
        mine = []
        for piece in self.pieces:
            least = loads.index(min(loads))
            loads[least] += self.traffic(piece)
            if least == rank:
                mine.append(piece)
        return tuple(mine)

    def traffic(self, piece: Piece) -> int:
        """Return the bytes that a piece reads (once) and writes."""
        tensor = self.tensors[piece.tensor]
        return (piece.stop - piece.start) * tensor.itemsizes

    def index(self) -> bytes | None:
        """Return the content of the index file; None if the output is one file."""
        if len(self.shards) == 1:
            return None
        weight_map = {held.name: self.shards[one.shard].name for one in self.tensors for held in one.stored}
        total = sum(held.nbytes for one in self.tensors for held in one.stored)
        content = {"metadata": {"total_size": total}, "weight_map": weight_map}
        return (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode()


def suited(tensors: Sequence[TensorPlan], most: int, ranks: int = 1) -> int:
    """Return how many workers a merge should have. most: that can work at the same time, of all ranks together."""
    nbytes = sum(tensor.traffic for tensor in tensors)
    return max(1, min(most, nbytes // WORKER_BYTES) // ranks)


def cut(tensors: Sequence[TensorPlan], workers: int) -> tuple[Piece, ...]:
    """Cut tensors into pieces of at most PIECE_BYTES, largest first, so that workers finish together; and those of one shape
    together, since many small tensors of one shape can be merged as one (run/together.py).

    A tensor that must be measured before it is merged stays in one piece. If it is more than a worker's share of everything,
    several threads merge it.
    """
    pieces, share = list[Piece](), sum(tensor.traffic for tensor in tensors) // workers if workers > 1 else 0
    for number, tensor in enumerate(tensors):
        unit = BLOCK if tensor.scales is None else tensor.scales.unit
        step, threads = max(1, PIECE_BYTES // tensor.dtype.itemsize // unit) * unit, 1
        if workers == 1 or (tensor.merged and tensor.resolved.measures) or any(entry.whole for entry in tensor.inputs):
            step = max(1, tensor.size)
            if workers > 1 and step * tensor.dtype.itemsize > PIECE_BYTES and _in_threads(tensor):
                threads = min(workers, MOST_THREADS, -(-tensor.traffic // share))
        for start in range(0, tensor.size, step):
            pieces.append(Piece(number, start, min(start + step, tensor.size), threads))
    return tuple(sorted(pieces, key=lambda piece: (piece.start - piece.stop, tensors[piece.tensor].shape)))


def _in_threads(tensor: TensorPlan) -> bool:
    """Return whether several threads can merge a tensor: each opens its inputs, so these must be stored as they are."""
    return tensor.merged and all(isinstance(entry, StoredEntry) for entry in tensor.inputs)
