"""Keep a running average of a model's weights in memory, and store it with every checkpoint.

After weights w_1 ... w_k for the states theta_1 ... theta_k, the average is sum_j w_j theta_j / sum_j w_j. It is updated in
place, in float32 (float64 for float64 weights): average += (w_k / sum_j w_j) (theta_k - average), so that of k states only
one is held.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from typing import Any

from ..errors import CheckpointError, ConfigError
from .checkpoints import describe, is_lora, state_of
from .identity import fits, identity, trained

# How a Trainer may spread a model over ranks, so that none has all of the weights that it has just updated.
_PARALLEL = (
    ("tensor_parallel_degree", "tensor parallelism"),
    ("tensor_model_parallel_size", "tensor parallelism"),
    ("pipeline_parallel_degree", "pipeline parallelism"),
    ("pipeline_model_parallel_size", "pipeline parallelism"),
    ("expert_parallel_degree", "expert parallelism"),
    ("expert_model_parallel_size", "expert parallelism"),
)
_LATE = ("enable_stage1_broadcast_overlap", "enable_stage1_allgather_overlap", "enable_stage2_overlap")
STATE, WEIGHTS = "average.json", "weights"  # the description of an average, and in it what the model was then


def check_whole(args: Any) -> None:
    """Check that every rank has all weights after a step. Raises ConfigError. args: the Trainer's TrainingArguments."""
    found = [title for name, title in _PARALLEL if (getattr(args, name, 1) or 1) > 1]
    if getattr(args, "use_expert_parallel", False):
        found.append("expert parallelism")
    if any("stage3" in str(getattr(option, "value", option)) for option in getattr(args, "sharding", None) or ()):
        found.append("sharding stage 3")
    found += [name for name in _LATE if name in str(getattr(args, "sharding_parallel_config", ""))]
    if getattr(args, "enable_auto_parallel", False):
        found.append("automatic parallelism")
    if found:
        raise ConfigError(
            f"an average in memory needs a rank that has all weights after each step, and with {found[0]} there is none;"
            " AverageCallback, which averages saved checkpoints, works"
        )


class LiveAverage:
    """Hold the average of the trained weights of a model: of one with LoRA, those of the adapter, each for itself."""

    def __init__(self, device: str = "cpu"):
        """device: "cpu", or "model": the device on which each weight is."""
        self._device = device
        self._average: dict[str, Any] = {}
        self.total = 0.0
        self.count = 0

    def add(self, model: Any, weight: float, decay: float = 1.0) -> None:
        """Take in the weights of a model as they are now. decay: the factor on the weights of all earlier ones."""
        import paddle

        self.total = self.total * decay + weight
        self.count += 1
        rate = weight / self.total
        with paddle.no_grad():
            for name, tensor in trained(model):
                value = tensor.detach()
                if self._device == "cpu" and not value.place.is_cpu_place():
                    value = value.cpu()
                held = self._average.get(name)
                if held is None:
                    self._average[name] = value.clone() if value.dtype == paddle.float64 else _single(value)
                else:
                    held.lerp_(value.astype(held.dtype), paddle.full([], rate, held.dtype))

    def save(self, folder: str, step: int, model: Any, **more: Any) -> None:
        """Write the average as it is, for `load`. model: as it is saved. more: further values for its description.

        Raises OSError.
        """
        import paddle

        partial = f"{folder}.partial"
        shutil.rmtree(partial, ignore_errors=True)
        os.makedirs(partial)
        if self.count:
            paddle.save(self._average, os.path.join(partial, "average.pdparams"))
        state = {"step": step, "count": self.count, "total": self.total, **more, WEIGHTS: identity(model)}
        with open(os.path.join(partial, STATE), "w", encoding="utf-8") as stream:
            json.dump(state, stream, indent=2)
        shutil.rmtree(folder, ignore_errors=True)
        os.rename(partial, folder)

    def load(self, folder: str, model: Any, state: Mapping[str, Any]) -> None:
        """Go on with an average that was saved. state: its description, by `state_in`. Raises CheckpointError."""
        import paddle

        self.count, self.total = state["count"], state["total"]
        if not self.count:
            return
        try:
            average = paddle.load(os.path.join(folder, "average.pdparams"))
        except Exception as error:  # of Paddle's, of many kinds
            raise CheckpointError(_damaged(os.path.join(folder, "average.pdparams"), error)) from error
        shapes = {name: list(tensor.shape) for name, tensor in trained(model)}
        if shapes != {name: list(tensor.shape) for name, tensor in average.items()}:
            raise CheckpointError(f"{folder}: is the average of another model: names or shapes of weights differ")
        places = {name: tensor.place for name, tensor in trained(model)}
        on_cpu = self._device == "cpu"
        self._average = {
            name: value.cpu() if on_cpu else value._copy_to(places[name], True) for name, value in average.items()
        }

    def write(self, folder: str, model: Any, whole: bool, tokenizer: Any = None, exact: bool = False) -> str:
        """Write the average as a model of the library's own layout; return the path that a merge takes for it.

        Every weight is rounded to the dtype that the model has it in, unless it is to be exact. whole: whether to write a
        LoRA model with its base, as it is in memory; else only the adapter. Weights that aren't trained are the model's.
        """
        import paddle

        shutil.rmtree(folder, ignore_errors=True)
        os.makedirs(folder)
        describe(model, folder, tokenizer)
        averaged = dict(self._average)
        if not exact:
            averaged = {name: averaged[name].astype(tensor.dtype) for name, tensor in trained(model)}
        if is_lora(model) and not whole:
            file = os.path.join(folder, "lora_model_state.pdparams")
            paddle.save(averaged, file)
            return file
        paddle.save({**state_of(model), **averaged}, os.path.join(folder, "model_state.pdparams"))
        return folder


def _single(value: Any) -> Any:
    """Return a tensor's values in float32, in memory of their own."""
    single = value.astype("float32")
    return single.clone() if single is value or value.dtype == single.dtype else single


def state_in(folder: str) -> dict[str, Any] | None:
    """Return the description of the average in a folder; None if there is none. Raises CheckpointError if it is damaged."""
    file = os.path.join(folder, STATE)
    if not os.path.exists(file):
        return None
    try:
        with open(file, encoding="utf-8") as stream:
            state = json.load(stream)
        if not isinstance(state, dict) or not {"count", "total"} <= state.keys():
            raise ValueError("no description of an average")
    except (OSError, ValueError) as error:
        raise CheckpointError(_damaged(file, error)) from error
    return state


def is_of(state: Mapping[str, Any], model: Any) -> bool:
    """Return whether an average was saved together with the weights that a model has now."""
    return fits(state.get(WEIGHTS, {}), model)


def _damaged(file: str, error: Exception) -> str:
    return f"{file} can't be read ({error}); go on from another checkpoint, or remove {os.path.dirname(file)} to begin anew"
