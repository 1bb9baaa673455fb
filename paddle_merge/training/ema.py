"""EmaCallback: the exponential moving average of the weights."""

from __future__ import annotations

import logging
import os
import shutil
from typing import Any

from ..errors import ConfigError, WorkError
from .adapters import passthrough
from .callback import TrainingCallback, harmless, meet
from .checkpoints import form_of, last_in, path_of, will_exist
from .live import LiveAverage, check_whole, saved_state
from .written import write

log = logging.getLogger("paddle_merge")


class LiveCallback(TrainingCallback):
    """Keep an average in rank 0's memory, store it with each checkpoint, go on with it, and write it at the end."""

    def __init__(self, output: str, every: int, device: str):
        super().__init__(output)
        if not isinstance(every, int) or every < 1:
            raise ConfigError(f"every must be a number of steps, 1 or more, not {every!r}")
        if device not in ("cpu", "model"):
            raise ConfigError(f"device must be cpu, or model (where the model's weights are), not {device!r}")
        self.every, self.device = every, device
        self.average = LiveAverage(device)

    def settings(self) -> dict[str, Any]:
        """Return what must not change when a run goes on."""
        raise NotImplementedError

    def goes_on(self, step: int) -> bool:
        """Return whether the average includes weights of a step or of earlier ones."""
        return True

    def missing(self, step: int) -> None:
        """Say what it means that a run goes on from a step without the state of this callback. May raise ConfigError."""
        raise NotImplementedError

    def begin(self, args: Any, state: Any, model: Any) -> None:
        """Start at the beginning of a training, or go on. Raises ConfigError, CheckpointError."""
        self.failed, self.average = False, LiveAverage(self.device)
        check_whole(args)
        self.check_output(args)
        if state.global_step and self.goes_on(state.global_step):
            folder = saved_state(args, state.global_step, self._name(args))
            if folder is None:
                self.missing(state.global_step)
            elif state.is_world_process_zero:
                self.average.load(folder, model, **self.settings())
        meet(args)

    def _name(self, args: Any) -> str:
        return os.path.basename(self.scratch(args))

    @harmless
    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.is_world_process_zero and will_exist(args, state.global_step):
            folder = path_of(args, state.global_step)
            os.makedirs(folder, exist_ok=True)  # a zero-cost checkpoint's is made later
            self.average.save(os.path.join(folder, self._name(args)), state.global_step, **self.settings())

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.finish(args, state, lambda: self._finish(args, state, kwargs["model"], kwargs.get("tokenizer")))

    def _finish(self, args: Any, state: Any, model: Any, tokenizer: Any) -> None:
        if not self.average.count:
            raise WorkError(f"no weights were averaged in the {state.global_step} steps of the training")
        like = last_in(args, state.global_step)
        whole = like is not None and form_of(like) == "flex"
        source = self.average.write(self.scratch(args), model, whole, tokenizer)
        write(self.folder(args), like, {"recipe_yaml": passthrough(source)}, args, model)
        shutil.rmtree(self.scratch(args))
        log.info("%s is the average of %d states of the model", self.folder(args), self.average.count)


class EmaCallback(LiveCallback):
    """Average the weights after each step (or every n-th), with weights that decay into the past.

    After k updates the weight of the j-th is (1 - d) d^(k-j) / (1 - d^k): a moving average that starts from zero, with the
    correction of Kingma and Ba (2015, Adam, section 3), so that neither zeros nor the initial weights have a share in it.
    """

    def __init__(self, decay: float = 0.999, every: int = 1, output: str = "ema", *, device: str = "cpu"):
        """decay: d, between 0 and 1, for each update. every: steps between updates. output: the folder to write.

        device: "cpu": the average is in rank 0's main memory, 4 bytes for each weight, to which the weights are copied for
            every update; "model": on the device of the weights. Raises ConfigError.
        """
        super().__init__(output, every, device)
        if not 0.0 <= decay < 1.0:
            raise ConfigError(f"decay must be at least 0 and less than 1, not {decay!r}")
        self.decay = float(decay)

    def settings(self) -> dict[str, Any]:
        return {"kind": "ema", "decay": self.decay, "every": self.every}

    def missing(self, step: int) -> None:
        log.warning("EmaCallback: checkpoint-%d holds no average that could go on, so it begins with the next step", step)

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Check the settings, and go on with the average of the checkpoint that the run goes on from. Raises MergeError."""
        self.begin(args, state, kwargs["model"])

    @harmless
    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.is_world_process_zero and state.global_step % self.every == 0:
            self.average.add(kwargs["model"], 1.0 - self.decay, self.decay)
