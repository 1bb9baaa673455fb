"""EmaCallback: the exponential moving average of the weights."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Mapping
from typing import Any

from ..errors import CheckpointError, ConfigError, WorkError
from .adapters import passthrough
from .callback import TrainingCallback, harmless, number_from, together, whole_from
from .checkpoints import form_of, path_of
from .identity import trained
from .live import LiveAverage, check_whole, is_of, state_in
from .written import write

log = logging.getLogger("paddle_merge")


class LiveCallback(TrainingCallback):
    """Keep an average in rank 0's memory, store it with each checkpoint, go on with it, and write it at the end."""

    def __init__(self, output: str | os.PathLike[str], every: int, device: str):
        super().__init__(output)
        if device not in ("cpu", "model"):
            raise ConfigError(f"device must be cpu, or model (where the model's weights are), not {device!r}")
        self.every, self.device = whole_from("every", every, "steps"), device
        self.average = LiveAverage(device)

    def settings(self) -> dict[str, Any]:
        """Return what must not change when a run goes on."""
        raise NotImplementedError

    def about(self) -> str:
        """Return what the output is, as the end of a sentence."""
        raise NotImplementedError

    def goes_on(self, step: int) -> bool:
        """Return whether the average includes weights of a step or of earlier ones."""
        return True

    def missing(self, step: int, why: str) -> None:
        """Say what it means that a run goes on from a step without the state of this callback. May raise ConfigError."""
        raise NotImplementedError

    def remedy(self, step: int, state: Mapping[str, Any]) -> str:
        """Return what to do when the average that was stored at a step, with this description, is of other settings."""
        raise NotImplementedError

    def start(self, args: Any, state: Any, model: Any) -> None:
        """Start at the beginning of a training, or go on. Raises ConfigError, CheckpointError."""
        self.average = LiveAverage(self.device)
        check_whole(args)
        self.begin(args, state)
        if state.is_world_process_zero and state.global_step and self.goes_on(state.global_step):
            self._go_on(args, state.global_step, model)

    def _go_on(self, args: Any, step: int, model: Any) -> None:
        """Go on with the average in the checkpoint that the model's weights are of.

        The Trainer doesn't say which one it goes on from: it may be the one that the arguments name, the one in the run's
        folder, or one that only a call of `train` named.
        """
        places = dict.fromkeys((self.resumed or path_of(args, step), path_of(args, step)))
        folders = [os.path.join(place, self._name(args)) for place in places]
        found = {folder: held for folder in folders if (held := state_in(folder)) is not None}
        fitting = next((folder for folder, held in found.items() if is_of(held, model)), None)
        if fitting is None:
            why = [f"no average is stored in {folders[0]}"] if not found else []
            why += [f"the average in {folder} is of other weights than those that the run goes on from" for folder in found]
            self.resumed = None if found else self.resumed
            self.missing(step, "; ".join(why))
            return
        self.resumed = os.path.dirname(fitting)
        held = found[fitting]
        changed = [
            f"{name} was {held.get(name)}, not {value}" for name, value in self.settings().items() if held.get(name) != value
        ]
        if changed:
            raise CheckpointError(
                f"{fitting}: an average can't go on with other settings: {'; '.join(changed)}; {self.remedy(step, held)}"
            )
        self.average.load(fitting, model, held)

    def _name(self, args: Any) -> str:
        return os.path.basename(self.scratch(args))

    @harmless
    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if not self.saved(args, state):
            return
        folder = path_of(args, state.global_step)
        try:
            os.makedirs(folder, exist_ok=True)  # a zero-cost checkpoint's is made later
            self.average.save(os.path.join(folder, self._name(args)), state.global_step, kwargs["model"], **self.settings())
        except OSError as error:
            log.error(
                "%s: the average can't be stored in %s, so no run goes on with it from there: %s",
                type(self).__name__,
                folder,
                error,
            )

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.finish(args, state, lambda: self._finish(args, state, kwargs["model"], kwargs.get("tokenizer")))

    def _finish(self, args: Any, state: Any, model: Any, tokenizer: Any) -> None:
        if not self.average.count:
            raise WorkError(f"no weights were averaged in the {state.global_step} steps of the training")
        like, scratch = self.last_checkpoint(args), self.weights(args)
        whole = like is not None and form_of(like) == "flex"
        shutil.rmtree(scratch, ignore_errors=True)
        source = self.average.write(os.path.join(scratch, "weights"), model, whole, tokenizer)
        fields, exact = {"recipe_yaml": passthrough(source)}, None
        if any(tensor.element_size() < 4 for _, tensor in trained(model)):  # then an optimizer may hold masters
            unrounded = self.average.write(os.path.join(scratch, "exact"), model, whole, tokenizer, exact=True)
            exact = {"recipe_yaml": passthrough(unrounded)}
        write(self.folder(args), like, fields, args, model, exact=exact, about=self.about())
        shutil.rmtree(scratch)
        log.info("%s is the average of %d states of the model", self.folder(args), self.average.count)


class EmaCallback(LiveCallback):
    """Average the weights after each step (or every n-th), with weights that decay into the past.

    After k updates the weight of the j-th is (1 - d) d^(k-j) / (1 - d^k): a moving average that starts from zero, with the
    correction of Kingma and Ba (2015, Adam, section 3), so that neither zeros nor the initial weights have a share in it.
    """

    def __init__(self, decay: float = 0.999, every: int = 1, output: str | os.PathLike[str] = "ema", *, device: str = "cpu"):
        """decay: d, between 0 and 1, for each update. every: steps between updates. output: the folder to write.

        device: "cpu": the average is in rank 0's main memory, 4 bytes for each weight, to which the weights are copied for
            every update; "model": on the device of the weights. Raises ConfigError.
        """
        super().__init__(output, every, device)
        self.decay = number_from("decay", decay)
        if not 0.0 <= self.decay < 1.0:
            raise ConfigError(f"decay must be at least 0 and less than 1, not {decay!r}")

    def settings(self) -> dict[str, Any]:
        return {"kind": "ema", "decay": self.decay, "every": self.every}

    def about(self) -> str:
        every = "each step" if self.every == 1 else f"every {self.every} steps"
        return (
            f"the exponential moving average of the weights of a training, with decay {self.decay:g} after {every}, over"
            f" {self.average.count} updates"
        )

    def missing(self, step: int, why: str) -> None:
        log.warning(
            "EmaCallback: the average begins anew after step %d: %s. If the checkpoint that holds it is elsewhere, name it:"
            " TrainingArguments(resume_from_checkpoint=PATH)",
            step,
            why,
        )

    def remedy(self, step: int, state: Mapping[str, Any]) -> str:
        return "restore them, or give output another name, to begin anew"

    @together
    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Check the settings, and go on with the average of the checkpoint that the run goes on from. Raises MergeError."""
        self.start(args, state, kwargs["model"])

    @harmless
    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.is_world_process_zero and state.global_step % self.every == 0:
            self.average.add(kwargs["model"], 1.0 - self.decay, self.decay)
