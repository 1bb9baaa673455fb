"""Find the order of the experts of every model in which they match those of a reference; keep it in a file, too."""

from __future__ import annotations

import io
import json
import logging
import math
import os
import sys
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from ...backends.machine import cores, free_memory
from ...checkpoints.tensors import Checkpoint
from ...errors import CheckpointError, MalformedError
from ...parsing import nearest
from ...records import record
from .layers import MoeLayer, moe_layers
from .matching import LayerOrder, Side, match

log = logging.getLogger("paddle_merge")


@record(frozen=True)
class Orders:
    """Hold the order of the experts of every model. reference: the number of the input that gives it; by_input: of the
    others, by number and by prefix."""

    reference: int
    by_input: Mapping[int, Mapping[str, LayerOrder]]

    def to_bytes(self, titles: Sequence[str]) -> bytes:
        """Return the content of a file with the orders. titles: what the inputs are called, in their order."""
        arrays, cosines = dict[str, np.ndarray](), dict[str, dict[str, float | None]]()
        for number, layers in self.by_input.items():
            its = cosines[str(number)] = {}
            for prefix, order in sorted(layers.items()):
                its[prefix] = None if math.isnan(order.cosine) else order.cosine
                arrays[f"{number}/{prefix}/experts"], arrays[f"{number}/{prefix}/neurons"] = order.experts, order.neurons
        about = {"reference": self.reference, "inputs": list(titles), "cosines": cosines}
        held = io.BytesIO()
        with zipfile.ZipFile(held, "w", zipfile.ZIP_DEFLATED) as file:
            _add(file, "about.json", json.dumps(about, indent=1).encode())
            for name, array in arrays.items():
                content = io.BytesIO()
                np.lib.format.write_array(content, array, allow_pickle=False)
                _add(file, f"{name}.npy", content.getvalue())
        return held.getvalue()


def _add(file: zipfile.ZipFile, name: str, content: bytes) -> None:
    """Add a file to an archive, without the time of day, so that the archive's bytes are always the same."""
    file.writestr(zipfile.ZipInfo(name), content, zipfile.ZIP_DEFLATED)


def layers_of(one: Checkpoint, config: Mapping[str, Any], layout: str | None) -> dict[str, MoeLayer]:
    """Return the layers of experts of an input, as layers.moe_layers. Raises CheckpointError."""
    try:
        return moe_layers(one.tensors, config, layout)
    except MalformedError as error:
        raise CheckpointError(f"{one.path}: {error}") from None


def comparable(inputs: Sequence[Checkpoint], layers: Sequence[Mapping[str, MoeLayer]], reference: int) -> None:
    """Check that experts of all inputs can match the reference's. Raises CheckpointError listing all that can't."""
    problems = []
    ours, like = layers[reference], inputs[reference]
    if not ours:
        problems.append(f"{like.path}: has no mixture of experts, so there are none to match: leave expert_alignment out")
    for one, its in zip(inputs, layers, strict=True) if ours else ():
        if lacking := [prefix for prefix in (*ours, *its) if prefix not in ours or prefix not in its]:
            without, having = (like, one) if lacking[0] in its else (one, like)
            more = f" (and {len(lacking) - 1} more)" if lacking[1:] else ""
            problems.append(
                f"{without.path}: has no experts in {lacking[0]}{more}, and {having.path} has; leave expert_alignment out,"
                " or give models with experts in the same layers"
            )
            continue
        for prefix, layer in its.items():
            found, wanted = (_size(one, layer), _size(like, ours[prefix]))
            if found != wanted:
                problems.append(
                    f"{one.path}: {prefix} has {found[0]} experts of {found[1]} neurons, and {like.path} {wanted[0]} of"
                    f" {wanted[1]}, or other tensors; only experts of the same size and form can match"
                )
                break
    if problems:
        raise CheckpointError(problems)


def _size(one: Checkpoint, layer: MoeLayer) -> tuple[Any, ...]:
    """Return what must be equal for experts that can match."""
    tensors = [
        (tensor.word, tensor.neurons, one.tensors[tensor.names[0]].shape[tensor.stacked :]) for tensor in layer.experts
    ]
    return layer.count, layer.neurons, sorted(map(str, tensors)), layer.groups, len(layer.router)


def measured(inputs: Sequence[Checkpoint], layers: Sequence[Mapping[str, MoeLayer]], reference: int) -> Orders:
    """Return the orders in which the experts of all inputs match the reference's, after `comparable` has passed.

    All weights of experts are read twice. Threads work on one expert each, as many as cores and half of the free memory
    allow; BLAS itself has one thread, for its results depend on their number. Raises WorkError.
    """
    from threadpoolctl import threadpool_limits
    from tqdm import tqdm

    others = [number for number in range(len(inputs)) if number != reference]
    disable = not log.isEnabledFor(logging.INFO) or not sys.stderr.isatty()
    found: dict[int, dict[str, LayerOrder]] = {number: {} for number in others}
    total = len(others) * sum(layer.count for layer in layers[reference].values())
    with (
        threadpool_limits(1, "blas"),
        ThreadPoolExecutor(_threads(inputs[reference], layers[reference].values())) as pool,
        tqdm(total=total, unit=" experts", desc="matching experts", disable=disable) as bar,
    ):

        def run(work: Callable[[int], Any], experts: Iterable[int]) -> Iterator[Any]:
            return pool.map(work, experts)

        for prefix, layer in layers[reference].items():
            for number in others:
                ours, theirs = (Side(inputs[k].tensors, layers[k][prefix]) for k in (reference, number))
                found[number][prefix] = match(ours, theirs, run)
                bar.update(layer.count)
    return Orders(reference, found)


def _threads(one: Checkpoint, layers: Iterable[MoeLayer]) -> int:
    """Return how many pairs of experts are compared at the same time."""
    most = 1
    for layer in layers:
        weights = max(math.prod(one.tensors[tensor.names[0]].shape[tensor.stacked :]) for tensor in layer.experts)
        most = max(most, 4 * (layer.neurons**2 + 4 * weights))
    return max(1, min(cores(), free_memory() // 2 // most))


def read_orders(path: str, inputs: Sequence[str], layers: Sequence[Mapping[str, MoeLayer]], reference: int) -> Orders:
    """Return the orders of a file that an earlier merge of the same inputs wrote.

    inputs: what they are called. Raises CheckpointError if the file isn't one, or is of other inputs.
    """
    if not os.path.isfile(path):
        meant = nearest(os.path.basename(path), ("index", "match"))
        raise CheckpointError(f"--expert_alignment {path}: is neither index nor match, and no file{meant}")
    try:
        with zipfile.ZipFile(path) as archive, np.load(path, allow_pickle=False) as file:
            about = json.loads(archive.read("about.json"))
            if (about["reference"], about["inputs"]) != (reference, list(inputs)):
                named = ", ".join(map(str, about["inputs"]))
                raise CheckpointError(
                    f"--expert_alignment {path}: is of other inputs, or of another base: {named}; pass match, which finds"
                    " their orders anew"
                )
            found: dict[int, dict[str, LayerOrder]] = {}
            for number, its in enumerate(layers):
                for prefix, layer in its.items() if number != reference else ():
                    cosine = about["cosines"][str(number)][prefix]
                    experts, neurons = (file[f"{number}/{prefix}/{what}"] for what in ("experts", "neurons"))
                    order = LayerOrder(experts, neurons, float("nan") if cosine is None else float(cosine))
                    if not _is_order(order, layer):
                        raise ValueError(prefix)
                    found.setdefault(number, {})[prefix] = order
    except CheckpointError:  # is a ValueError, too
        raise
    except (OSError, ValueError, KeyError, TypeError, zipfile.BadZipFile) as error:
        raise CheckpointError(
            f"--expert_alignment {path}: isn't a file of expert orders that an earlier merge of these models wrote ({error})"
        ) from None
    return Orders(reference, found)


def _is_order(order: LayerOrder, layer: MoeLayer) -> bool:
    """Return whether an order has each expert and each neuron of a layer once, and keeps its groups together."""
    experts, neurons = np.sort(order.experts), np.sort(order.neurons, axis=-1)
    if order.neurons.shape != (layer.count, layer.neurons) or experts.shape != (layer.count,):
        return False
    blocks = order.experts.reshape(layer.groups, -1) // (layer.count // layer.groups)
    return bool(
        (experts == np.arange(layer.count)).all()
        and (neurons == np.arange(layer.neurons)).all()
        and (blocks == blocks[:, :1]).all()
    )
