"""Estimate how much memory a merge takes, and keep it below a limit, by fewer workers or smaller buffers.

The estimate is an upper bound of the resident memory of all processes; a page that several share counts once, and the page
cache doesn't count. What Python and its libraries take was measured; the rest follows from the plan.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from itertools import zip_longest

from ..backends.budget import DEFAULT_BUDGET, MOST_TOGETHER, MemoryBudget
from ..backends.engine import Engine
from ..backends.machine import cores, free_memory
from ..checkpoints.tensors import StoredEntry
from ..errors import ConfigError
from ..parsing import size_text
from .plan import Plan
from .tensor_plan import TensorPlan

# Memory budgets from the fastest to the smallest, and the relative speed of a worker with each. Small panels cost most, but
# only where there are scattered tensors, so fewer workers are tried first.
BUDGETS = (
    (DEFAULT_BUDGET, 1.0),
    (MemoryBudget(1 << 16, 1 << 23, 8 << 20, 8 << 20, 1 << 25), 0.8),
    (MemoryBudget(1 << 14, 1 << 20, 1 << 20, 2 << 20, 0), 0.4),
)
_COMMAND = 50 << 20  # the command: Python with NumPy
_SERVER = 60 << 20  # the process that forks workers: Python with NumPy and LLVM
_COMPILING = 130 << 20  # Numba, which one process imports if loops are to be compiled, and LLVM, which compiles them
_WORKER = 32 << 20  # what a worker doesn't share with the one that forks it
_PADDLE = 330 << 20  # Paddle's libraries and what it holds
_HEADER = 1 << 10  # the command, for each tensor of each input
_TOKEN = 200  # of a vocabulary
_TOKENIZER = 1450  # per token, while the library, or JSON, has a tokenizer in memory
_STEP = 1 << 16  # elements of an earlier merge's tensor merged at a time
_OBJECTS = 2 << 10  # of Python, for each input of each small tensor, while several are merged as one
_COPIED = 5 << 20  # while parts of scattered tensors, or of those stored as text, are copied


def memory(plan: Plan, beside: int = 0) -> int:
    """Return the bytes of all processes of one rank together. beside: the bytes of config and tokenizer."""
    worker = _Worker(plan)
    return _command(plan, beside) + worker.memory(plan.engine, plan.n_process)


def within(plan: Plan, limit: int, beside: int = 0) -> Plan:
    """Return the plan with the number of workers and the memory budget that are fastest within `limit` bytes.

    beside: the bytes of config and tokenizer. Raises ConfigError if the limit is too small for any.
    """
    worker, usable = _Worker(plan), cores()
    found: list[tuple[float, Plan]] = []
    needed = 0
    for budget, speed in BUDGETS:
        for count in range(plan.n_process, 0, -1):
            other = dataclasses.replace(plan, n_process=count, engine=dataclasses.replace(plan.engine, budget=budget))
            needed = _command(other, beside) + worker.memory(other.engine, count)
            if needed <= limit:
                found.append((min(count, usable) * speed, other))
                break
    if not found:
        raise ConfigError(
            f"--max_memory {size_text(limit)} is too little: with one worker, this merge needs about"
            f" {size_text(needed, round_up=True)}"
        )
    return max(found, key=lambda pair: pair[0])[1]  # of equals the first


def fitting(plan: Plan, beside: int = 0) -> Plan:
    """Return the plan with as many of its workers as fit into half of the memory that is free, at least one."""
    if plan.n_process == 1 or memory(plan, beside) <= (limit := free_memory() // 2):
        return plan
    others = (dataclasses.replace(plan, n_process=count) for count in range(plan.n_process - 1, 0, -1))
    return next((other for other in others if memory(other, beside) <= limit or other.n_process == 1), plan)


def _command(plan: Plan, beside: int) -> int:
    """Return the bytes of the command's own process and of the one that forks workers."""
    headers = len(plan.tensors) * (len(plan.inputs) + 1) * _HEADER
    tokens = _TOKEN * sum(plan.tokens_known) + _TOKENIZER * max(plan.tokens_known, default=0)
    orders = 4 * plan.experts.nbytes  # as arrays, in entries, in the file, and on their way to workers
    return beside + headers + tokens + orders + _COMMAND + _SERVER + _COMPILING


class _Worker:
    """What the workers of a plan hold: of each kind of buffer the largest that any tensor needs, since buffers are used
    again."""

    def __init__(self, plan: Plan):
        self._kinds = list({_kind(tensor): tensor for tensor in plan.tensors if tensor.merged}.values())
        others = [one for one in plan.tensors if any(type(entry) is not StoredEntry or entry.parts for entry in one.inputs)]
        self._readers = _most(sum(entry.memory for entry in tensor.inputs) for tensor in others)
        self._in_parts = any(one.parts for tensor in others for entry in tensor.inputs for one in entry.in_blocks)
        self._in_threads = [(plan.tensors[piece.tensor], piece.threads) for piece in plan.pieces if piece.threads > 1]

    def memory(self, engine: Engine, count: int) -> int:
        """Return the bytes of `count` workers together."""
        return count * self._one(engine) + (self._further(engine.budget, count) if engine.tensor_type == "np" else 0)

    def _further(self, budget: MemoryBudget, count: int) -> int:
        """Return the bytes that all threads but the first take, for tensors that several threads merge."""
        found = 0
        for tensor, threads in self._in_threads:
            one = dataclasses.replace(tensor, sources=tensor.sources[:1])  # a thread measures one model at a time
            each = _measured(one, budget) + _block(tensor, budget.block) + sum(_each(budget.panel, [tensor]))
            found += (min(threads, count) - 1) * each
        return found

    def _one(self, engine: Engine) -> int:
        budget = engine.budget
        found = _WORKER + self._readers + (_COPIED if self._in_parts else 0)
        found += sum(_each(budget.panel, self._kinds))
        found += sum(_kept(budget.resident, [one for one in self._kinds if one.resolved.measures]))
        found += _most(_measured(one, budget) for one in self._kinds) + _most(map(_staged, self._kinds))
        if engine.tensor_type == "np":
            return found + _most(max(_alone(one, budget), _group(one, budget)) for one in self._kinds)
        plain = [one for one in self._kinds if one.resolved.sparsifier is None]  # Paddle merges only these as one
        blocks = max(_most(_block(one, budget.block) for one in self._kinds), _most(_group(one, budget) for one in plain))
        if engine.on_cpu:
            return found + _PADDLE + 2 * blocks
        # On the host: the sources of two blocks, pinned, and of one that is not.
        device = _most(3 * _block(one, budget.device_block) for one in self._kinds)
        return found + _PADDLE + (min(device, 2 * engine.memory) if engine.budgeted else device)


def _kind(tensor: TensorPlan) -> object:
    """Return a key that is equal for tensors that take the same memory."""
    return (
        tensor.shape,
        tensor.transposed,
        tensor.dtype,
        tensor.scales is None,
        tensor.resolved,
        *((entry.dtype, entry.scattered, entry.computed) for entry in tensor.inputs),
        *map(_kind, tensor.stages),
    )


def _most(numbers: Iterable[int]) -> int:
    return max(numbers, default=0)


def _wide(tensor: TensorPlan) -> int:
    """Return the bytes of an element in the dtype that the tensor is merged in."""
    return 8 if tensor.compute == "float64" else 4


def _measured(tensor: TensorPlan, budget: MemoryBudget) -> int:
    """Return the bytes of what the method measures of a tensor."""
    models, wide = len(tensor.sources), _wide(tensor)
    return tensor.resolved.memory(models, tensor.size, wide, budget) + tensor.resolved.row_memory(
        models, tensor.shape, tensor.transposed, wide
    )


def _itemsizes(tensor: TensorPlan) -> list[int]:
    """Return the bytes of an element of every input as it is handed to the computation."""
    return [_wide(tensor) if entry.computed else entry.dtype.itemsize for entry in tensor.inputs]


def _block(tensor: TensorPlan, block: int) -> int:
    """Return the bytes of a block: as it is read, as it is computed with (twice, for both compute dtypes), and as it is
    written."""
    inputs = _itemsizes(tensor)
    each = sum(inputs) + (len(inputs) + 1) * (_wide(tensor) + 4) + tensor.rounded.itemsize
    return min(block, tensor.size) * each + _encoded(tensor)


def _alone(tensor: TensorPlan, budget: MemoryBudget) -> int:
    """Return the bytes of a block where NumPy computes: of a tensor that is measured it is copied if it is all of it."""
    copied = tensor.resolved.measures and tensor.size <= budget.block
    return _block(tensor, budget.block) + (_copies(tensor) if copied else 0)


def _copies(tensor: TensorPlan) -> int:
    """Return the bytes of a tensor's only block as it is kept for the next pass, and as that pass gets it."""
    return 2 * len(tensor.inputs) * tensor.size * _wide(tensor)


def _group(tensor: TensorPlan, budget: MemoryBudget) -> int:
    """Return the bytes of tensors like this one that are merged as one (run/together.py): their blocks and what is told of
    each; and for a sparsifier (run/alike.py) copies of all of them, and what it measures."""
    if not 0 < tensor.size <= budget.together // 2:
        return 0
    count = min(MOST_TOGETHER, budget.together // tensor.size)
    found = count * len(tensor.inputs) * _OBJECTS
    if (sparsifier := tensor.resolved.sparsifier) is not None:
        models = [model for model in range(len(tensor.sources)) for _ in range(count)]  # as they are measured
        one, wide = sparsifier.of_models(models), _wide(tensor)
        found += count * _copies(tensor) + one.memory(len(models), tensor.size, wide, budget)
        found += one.row_memory(len(models), tensor.shape, tensor.transposed, wide)
    return found + _block(dataclasses.replace(tensor, shape=(count * tensor.size,)), budget.block)


def _encoded(tensor: TensorPlan) -> int:
    """Return the bytes of what is encoded together: numbers and codes, and a few numbers for each column and block."""
    if (scales := tensor.scales) is None:
        return 0
    columns = scales.shape[-1]
    return scales.together * (tensor.rounded.itemsize + tensor.dtype.itemsize) + 16 * columns + 3 * scales.nbytes


def _staged(tensor: TensorPlan) -> int:
    """Return the bytes that earlier merges of the recipe take while their tensors are read."""
    return sum(
        _measured(plan, DEFAULT_BUDGET) + _block(plan, DEFAULT_BUDGET.block) + _STEP * 8 + _staged(plan)
        for plan in tensor.stages
    )


def _each(panel: int, tensors: Iterable[TensorPlan]) -> list[int]:
    """Return the sizes of the panels of a tensor's scattered inputs, and of the one that replaces one of them."""
    sizes = [
        [min(panel, one.nbytes) for entry in tensor.inputs for one in entry.in_blocks if one.scattered] for tensor in tensors
    ]
    return max(([*one, max(one)] for one in sizes if one), key=sum, default=[])


def _kept(resident: int, tensors: Iterable[TensorPlan]) -> list[int]:
    """Return, for each input, the size of the largest tensor that is kept in memory between two passes."""
    found: list[int] = []
    for tensor in tensors:
        sizes = [tensor.size * itemsize for itemsize in _itemsizes(tensor)]
        if sum(sizes) <= resident:
            found = [max(pair) for pair in zip_longest(sizes, found, fillvalue=0)]
    return found
