"""WindowCallback: the average of the weights in the last steps of a run, without any checkpoint."""

from __future__ import annotations

import numbers
import os
from collections.abc import Mapping, Sequence
from typing import Any

from ..errors import ConfigError
from ..recipe.decay import average_weights
from .callback import harmless, together
from .ema import LiveCallback


class WindowCallback(LiveCallback):
    """Average the weights after every n-th step of a window at the end of a run, or anywhere in it (WSM).

    The weights of the average are those that replace a decay of the learning rate over the window (recipe/decay.py). They
    are known before the first step, so the average is a running one: one copy of the weights, however long the window is.
    """

    def __init__(
        self,
        steps: int | tuple[int, int],
        every: int = 1,
        decay: str | Sequence[float] = "uniform",
        output: str | os.PathLike[str] = "window",
        *,
        device: str = "cpu",
    ):
        """steps: the length of a window that ends with the run; or (first, last). every: steps between weights that are
        averaged, counted back from the last step of the window. decay: of recipe/decay.py, over the averaged weights.
        output, device: as of EmaCallback. Raises ConfigError.
        """
        super().__init__(output, every, device)
        ends = (1, steps) if isinstance(steps, int) else tuple(steps) if isinstance(steps, Sequence) else ()
        whole = all(isinstance(end, numbers.Integral) and not isinstance(end, bool) for end in ends)
        if len(ends) != 2 or not whole or not 1 <= ends[0] <= ends[1]:
            raise ConfigError(f"steps must be a number of steps, or (first, last) with 1 <= first <= last, not {steps!r}")
        first, last = ends
        self.window, self.decay = steps if isinstance(steps, int) else (first, last), decay
        average_weights(decay, self._count(last - first + 1))
        self._weights: dict[int, float] = {}  # step -> the weight of the state after it

    def _count(self, length: int) -> int:
        return 1 + (length - 1) // self.every

    def settings(self) -> dict[str, Any]:
        steps = sorted(self._weights)
        decay = self.decay if isinstance(self.decay, str) else list(self.decay)
        return {"kind": "window", "first": steps[0], "last": steps[-1], "every": self.every, "decay": decay}

    def goes_on(self, step: int) -> bool:
        return step >= min(self._weights)

    def about(self) -> str:
        steps = sorted(self._weights)
        how = f"decay {self.decay}" if isinstance(self.decay, str) else "a decay given as a list"
        return (
            f"the average of the weights of a training in a window of steps: {self.average.count} of them from {steps[0]} to"
            f" {steps[-1]}, with {how}"
        )

    def _otherwise(self, step: int) -> str:
        return f"go on from a checkpoint before step {min(self._weights)}, or give a window that begins after step {step}"

    def missing(self, step: int, why: str) -> None:
        raise ConfigError(
            f"the window begins with step {min(self._weights)}, and the run goes on from step {step} without the average"
            f" of the steps before: {why}; if the checkpoint that holds it is elsewhere, name it:"
            f" TrainingArguments(resume_from_checkpoint=PATH); else {self._otherwise(step)}"
        )

    def remedy(self, step: int, state: Mapping[str, Any]) -> str:
        window = f"WindowCallback(steps=({state.get('first')}, {state.get('last')}), every={state.get('every')})"
        return f"restore them, as in {window} with decay {state.get('decay')}, or {self._otherwise(step)}"

    @together
    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Check the settings, and go on with the average of the checkpoint that the run goes on from. Raises MergeError."""
        end = int(state.max_steps or 0)
        first, last = (end - self.window + 1, end) if isinstance(self.window, int) else self.window
        if end <= 0:
            raise ConfigError("a window needs the number of steps before the training begins: set max_steps")
        if first < 1 or last > end:
            raise ConfigError(f"the window of steps {self.window} doesn't fit into the {end} steps of the training")
        count = self._count(last - first + 1)
        weights = average_weights(self.decay, count)
        self._weights = {last - (count - 1 - number) * self.every: weight for number, weight in enumerate(weights)}
        self.start(args, state, kwargs["model"])

    @harmless
    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        weight = self._weights.get(state.global_step, 0.0)
        if state.is_world_process_zero and weight:
            self.average.add(kwargs["model"], weight)
