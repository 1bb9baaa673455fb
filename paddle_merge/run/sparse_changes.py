"""Warn of sign election between models that changed few elements, as reinforcement learning with verifiable rewards does.

Such updates are sparse and nearly orthogonal, and are reported to merge badly by TIES (arXiv 2606.18521). Reinforcement
learning changes 5 to 30 % of the elements, fine-tuning most of them (Mukherjee et al. 2025). A sample tells them apart: a
few megabytes of large tensors are read, and stored elements are compared as they are.
"""

from __future__ import annotations

import random
from contextlib import closing

import numpy as np

from ..checkpoints.files import Files, StoredReader
from ..checkpoints.tensors import StoredEntry
from ..plan.plan import Plan
from ..plan.provenance import electing
from ..plan.tensor_plan import TensorPlan

FEW = 0.35  # share of changed elements, among tensors that changed at all: an adapter leaves most tensors as they are
TENSORS, PLACES, WIDTH = 16, 8, 1 << 12  # how much is read: elements at so many places of each of so many tensors
LEAST = 1 << 14  # elements of a model; a smaller sample says nothing


def warnings(plan: Plan) -> list[str]:
    """Return a sentence if several models changed few elements of the base, and a sign is elected between them.

    None if the models themselves say so, which Provenance.warnings reports.

    Raises CheckpointError or WorkError if a file can't be read.
    """
    if plan.provenance.rewarded(plan.tensors):
        return []
    elect = [tensor for tensor in electing(plan.tensors) if tensor.base is not None]
    large = [tensor for tensor in elect if tensor.size >= PLACES * WIDTH]
    large = random.Random(0).sample(large, min(TENSORS, len(large)))
    seen, changed = dict[int, int](), dict[int, int]()
    with closing(Files(panel=plan.engine.budget.panel)) as files:
        for tensor in large:
            for number, (count, differing) in _compared(tensor, files).items():
                if differing:
                    seen[number] = seen.get(number, 0) + count
                    changed[number] = changed.get(number, 0) + differing
    shares = {number: changed[number] / count for number, count in seen.items() if count >= LEAST}
    sparse = {number: share for number, share in shares.items() if share < FEW}
    if len(sparse) < 2:
        return []
    listed = ", ".join(f"{plan.recipe.titles[number]} ({share:.0%})" for number, share in sorted(sparse.items()))
    return [
        f"{listed} changed few elements of the base model, as reinforcement learning with verifiable rewards does: such"
        " models are reported to merge badly by an election of signs, as in TIES; ram is made for them"
    ]


def _compared(tensor: TensorPlan, files: Files) -> dict[int, tuple[int, int]]:
    """Return, by each model's place in Recipe.titles, how many elements were compared with the base, and how many differ.

    Models whose elements aren't stored as the base's are (another dtype, an adapter) are left out.
    """
    base = tensor.base
    if not isinstance(base, StoredEntry):
        return {}
    known = StoredReader(base, files)
    step, found = tensor.size // PLACES, {}
    for number, entry in zip(tensor.numbers, tensor.sources, strict=False):
        if not isinstance(entry, StoredEntry) or entry.dtype != base.dtype:
            continue
        reader, differing = StoredReader(entry, files), 0
        for start in range(0, PLACES * step, step):
            values = np.empty((2, WIDTH), base.dtype.raw)
            known.read(start, values[0])
            reader.read(start, values[1])
            differing += int(np.count_nonzero(values[0] != values[1]))
        found[number] = PLACES * WIDTH, differing
    return found
