"""AverageCallback: the average of a run's last checkpoints, whatever save_total_limit leaves of them."""

from __future__ import annotations

import logging
import os
import shutil
import time
from collections.abc import Sequence
from typing import Any

from ..errors import ConfigError, WorkError
from ..recipe.decay import average_weights
from .adapters import passthrough, with_base
from .callback import TrainingCallback, harmless, meet
from .checkpoints import (
    adapter_file,
    describe,
    form_of,
    is_lora,
    is_ready,
    keep_weights,
    never_comes,
    path_of,
    steps_in,
    will_exist,
)
from .written import write

log = logging.getLogger("paddle_merge")


class AverageCallback(TrainingCallback):
    """Average the last checkpoints of a run when it ends: WSM, PMA, LAWA (recipe/decay.py).

    At each save the weights are linked into a hidden folder of the run, so that they stay when the Trainer removes the
    checkpoint; only those of the last checkpoints are kept. At the end they are merged, streaming, by rank 0.
    """

    def __init__(
        self,
        last: int = 5,
        decay: str | Sequence[float] = "uniform",
        output: str = "average",
        *,
        base: str | None = None,
        wait: float = 600,
    ):
        """last: how many checkpoints; if a run saves fewer, those. decay: of recipe/decay.py. output: the folder to write.

        base: of a run that trains LoRA: the model that is trained on. The output is then the exact average, as a whole
            model. Without it, the output is an adapter with the averages of lora_A and of lora_B, which isn't the same.
        wait: seconds to wait for files that a Trainer writes behind the scenes, at the end of the training.
        Raises ConfigError.
        """
        super().__init__(output)
        if not isinstance(last, int) or last < 1:
            raise ConfigError(f"last must be a number of checkpoints, 1 or more, not {last!r}")
        average_weights(decay, last)
        self.last, self.decay, self.base, self.wait = last, decay, base, wait
        self._pending: list[int] = []

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Check the settings, and what earlier processes of this run have kept. Raises ConfigError."""
        self.failed, self._pending = False, []
        self.check_output(args)
        strategy = getattr(args.save_strategy, "value", args.save_strategy)
        if strategy == "no":
            raise ConfigError(
                "AverageCallback averages saved checkpoints, and save_strategy is no; set it to steps or epoch"
            )
        if "skip_save_model_weight" in (getattr(args, "unified_checkpoint_config", None) or ()):
            raise ConfigError(
                "AverageCallback needs the weights of checkpoints, and unified_checkpoint_config has skip_save_model_weight"
            )
        if self.base is not None and not is_lora(kwargs["model"]):
            raise ConfigError("base is for models with LoRA; this one is trained as a whole")
        if self.base is not None and not os.path.isdir(os.path.expanduser(self.base)):
            raise ConfigError(f"base {self.base}: no such folder")
        if is_lora(kwargs["model"]) and self.base is None:
            log.warning(
                "AverageCallback: lora_A and lora_B are averaged each for itself; give base, the path of the model that is"
                " trained on, for the exact average as a whole model"
            )
        if state.is_world_process_zero:
            for step in steps_in(self.scratch(args)):
                if step > state.global_step or state.global_step == 0:  # of what this run does again, or of another run
                    shutil.rmtree(os.path.join(self.scratch(args), f"checkpoint-{step}"))
            for step in steps_in(args.output_dir) if state.global_step else ():
                if step <= state.global_step and form_of(path_of(args, step)) is not None:
                    self._keep(args, step, kwargs["model"], kwargs.get("tokenizer"))
            self._drop(args)
        meet(args)

    @harmless
    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.is_world_process_zero and will_exist(args, state.global_step):
            self._pending.append(state.global_step)
            if args.world_size <= 1:  # else the other ranks have written their files only when the next step is done
                self._collect(args, kwargs["model"], kwargs.get("tokenizer"))

    @harmless
    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self._pending:
            self._collect(args, kwargs["model"], kwargs.get("tokenizer"))

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.finish(args, state, lambda: self._finish(args, state, kwargs["model"], kwargs.get("tokenizer")))

    def _collect(self, args: Any, model: Any, tokenizer: Any) -> None:
        """Keep the weights of the checkpoints that have become complete."""
        for step in list(self._pending):
            if never_comes(args, step):
                self._pending.remove(step)
                log.warning("AverageCallback: checkpoint-%d was removed before it was complete, and is not averaged", step)
                continue
            if not is_ready(args, step):
                continue
            self._pending.remove(step)
            self._keep(args, step, model, tokenizer)
            self._drop(args)

    def _keep(self, args: Any, step: int, model: Any, tokenizer: Any) -> None:
        kept = os.path.join(self.scratch(args), f"checkpoint-{step}")
        keep_weights(path_of(args, step), kept)
        describe(model, kept, tokenizer)

    def _drop(self, args: Any) -> None:
        """Remove what has become too old."""
        for step in steps_in(self.scratch(args))[: -self.last]:
            shutil.rmtree(os.path.join(self.scratch(args), f"checkpoint-{step}"))

    def _finish(self, args: Any, state: Any, model: Any, tokenizer: Any) -> None:
        until = time.monotonic() + self.wait
        self._collect(args, model, tokenizer)
        while self._pending and time.monotonic() < until:
            time.sleep(1.0)
            self._collect(args, model, tokenizer)
        if self._pending:
            names = ", ".join(f"checkpoint-{step}" for step in self._pending)
            raise WorkError(f"{names} was not complete {self.wait:g} s after the end of the training")
        steps = steps_in(self.scratch(args))
        if not steps:
            raise WorkError("the run has saved no checkpoint")
        if len(steps) < self.last:
            log.warning("AverageCallback: the run has %d checkpoints to average, not %d", len(steps), self.last)
        weights = average_weights(self.decay, len(steps))
        kept = [os.path.join(self.scratch(args), f"checkpoint-{step}") for step in steps]
        lora = is_lora(model) and self.base is None
        models = self._models(kept, lora)
        fields = {"model_path_list": models, "weight_list": list(weights)}
        if len(models) == 1:
            fields = {"recipe_yaml": passthrough(models[0])}
        like = path_of(args, steps[-1]) if os.path.isdir(path_of(args, steps[-1])) else kept[-1]
        write(self.folder(args), None if self.base is not None else like, fields, args, model, lora)
        log.info("%s is the average of steps %s", self.folder(args), ", ".join(map(str, steps)))
        if state.global_step >= state.max_steps:  # else it may be continued
            shutil.rmtree(self.scratch(args))

    def _models(self, kept: Sequence[str], lora: bool) -> list[str]:
        if self.base is not None:
            return [with_base(os.path.expanduser(self.base), folder) for folder in kept]
        if lora and form_of(kept[0]) != "flex":
            return [adapter_file(folder) or folder for folder in kept]
        return list(kept)
