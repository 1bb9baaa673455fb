"""Record what the experts of a model of transformers do, by hooks on its modules.

transformers 5 has one module for all experts of a layer, `experts`, which takes hidden states, (n, hidden), and for each the
chosen experts and their gates, (n, k). The output of a single expert is what the same module gives if each state goes to one
expert with a gate of 1; so nothing of a family's own formula is repeated here.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from ...checkpoints.expert_statistics import LayerStatistics
from ...checkpoints.names import layer_of
from ...search.contract import EvaluationError

ROWS = 8192  # outputs of single experts that are computed at a time
CLOSE = 0.02  # the largest relative error of the sum of gates times outputs, from rounding in bfloat16


class Recorder:
    """Adds up the statistics of a model's experts, while it computes. layers: their numbers."""

    def __init__(self, model: Any):
        """Raises EvaluationError if the model has no experts whose outputs can be told apart."""
        self._sums: dict[int, torch.Tensor] = {}  # (4, experts) float64: count, gate, norm, gated_norm
        self._mask: torch.Tensor | None = None  # (n,) bool: which states are those of tokens, not padding
        self._busy = False
        for name, module in _experts(model):
            number = (layer_of(f"{name}.") or ("", -1))[1]
            if number < 0 or number in self._sums:
                raise EvaluationError(f"{name} has experts, and their layer's number doesn't tell them from others'")
            self._sums[number] = torch.zeros(4, int(module.num_experts), dtype=torch.float64)
            module.register_forward_hook(_Hook(self, number, name), with_kwargs=True)
        if not self._sums:
            raise EvaluationError(
                "it has no module `experts` that holds all experts of a layer, as the mixtures of experts of transformers 5"
                " have (but for Llama 4): install a newer transformers, or give another model"
            )

    def run(self, model: Any, tokens: np.ndarray, lengths: list[int]) -> None:
        """Compute with the model, and record. tokens: int64 (batch, length), padded behind. Raises EvaluationError."""
        given = torch.from_numpy(tokens).to(model.device)
        mask = torch.arange(given.shape[1])[None, :] < torch.tensor(lengths)[:, None]
        self._mask = mask.reshape(-1).to(model.device)
        with torch.inference_mode():
            model(input_ids=given, attention_mask=mask.to(model.device).long(), use_cache=False)

    def layers(self) -> dict[int, LayerStatistics]:
        """Return what was recorded."""
        found = {}
        for number, sums in sorted(self._sums.items()):
            if not bool(torch.isfinite(sums).all()):
                raise EvaluationError(f"the outputs of experts of layer {number} are NaN or infinite")
            count, gate, norm, gated_norm = sums.tolist()
            found[number] = LayerStatistics([int(one) for one in count], gate, norm, gated_norm)
        return found

    def record(self, number: int, name: str, module: Any, given: list[Any], output: Any) -> None:
        """Add the statistics of one call of a layer's experts. Raises EvaluationError if they aren't as expected."""
        if self._busy or self._mask is None:
            return
        states, chosen, gates = given[:3]
        if states.shape[0] != self._mask.shape[0] or chosen.shape != gates.shape or chosen.dim() != 2:
            raise EvaluationError(
                f"{name} is given states {list(states.shape)} and gates {list(gates.shape)}, which isn't"
                " known to be a state for each token and a gate for each expert that it is sent to"
            )
        kept = self._mask
        states, chosen, gates, output = states[kept], chosen[kept], gates[kept], output.reshape(len(kept), -1)[kept]
        top = chosen.shape[1]
        step = max(1, ROWS // top)
        for start in range(0, len(states), step):
            rows, its, weights = states[start : start + step], chosen[start : start + step], gates[start : start + step]
            self._busy = True
            try:
                each = module(rows.repeat_interleave(top, 0), its.reshape(-1, 1), torch.ones_like(weights).reshape(-1, 1))
            finally:
                self._busy = False
            each = each.reshape(len(rows), top, -1).double()
            total, wanted = (each * weights.double()[..., None]).sum(1), output[start : start + step].double()
            if float((total - wanted).norm()) > CLOSE * float(wanted.norm()):
                raise EvaluationError(f"what {name} computes is not the sum of its experts' outputs times their gates")
            norms, weights = each.norm(dim=2).reshape(-1), weights.double().reshape(-1)
            values = torch.stack([torch.ones_like(norms), weights, norms, weights * norms])
            places = torch.nn.functional.one_hot(its.reshape(-1), self._sums[number].shape[1]).double()
            self._sums[number] += (values @ places).cpu()


class _Hook:
    """A forward hook of one layer's experts."""

    def __init__(self, recorder: Recorder, number: int, name: str):
        self._recorder, self._number, self._name = recorder, number, name

    def __call__(self, module: Any, args: Any, kwargs: Any, output: Any) -> None:
        given = [*args, *kwargs.values()]
        self._recorder.record(self._number, self._name, module, given, output[0] if isinstance(output, tuple) else output)


def _experts(model: Any) -> Iterator[tuple[str, Any]]:
    """Yield the modules that hold all experts of a layer, with their names."""
    for name, module in model.named_modules():
        if name.rpartition(".")[2] == "experts" and isinstance(getattr(module, "num_experts", None), int):
            yield name, module
