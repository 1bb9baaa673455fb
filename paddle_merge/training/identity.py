"""Recognise the weights that a training goes on from, since a Trainer doesn't tell callbacks which checkpoint it resumes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from .checkpoints import is_lora, state_of

_TENSORS, _ELEMENTS = 32, 64  # that are compared, at most


def trained(model: Any) -> Iterator[tuple[str, Any]]:
    """Yield the floating-point tensors of a model that a training changes, by name: with LoRA, those of the adapter."""
    lora = is_lora(model)
    for name, tensor in state_of(model).items():
        if tensor.is_floating_point() and not (lora and tensor.stop_gradient):
            yield name, tensor


def identity(model: Any) -> dict[str, str]:
    """Return hashes of a model's weights as they are now, by name and shape: of up to 64 elements of up to 32 tensors."""
    import paddle
    import xxhash

    tensors = sorted(trained(model), key=lambda pair: pair[0])
    found = {}
    for name, tensor in tensors[:: max(1, -(-len(tensors) // _TENSORS))]:
        step = max(1, int(tensor.size) // _ELEMENTS)
        with paddle.no_grad():
            some = tensor.detach().flatten()[::step].astype("float64").numpy()
        found[f"{name} {list(tensor.shape)}"] = xxhash.xxh3_64_hexdigest(some.tobytes())
    return found


def fits(stored: Mapping[str, str], model: Any) -> bool:
    """Return whether a model has the weights of which an identity was stored.

    Only tensors of the same name and shape are compared: when a run goes on with other parallelism, ranks have other parts.
    """
    now = identity(model)
    return all(now[name] == value for name, value in stored.items() if name in now)
