"""AverageCallback: the average of a run's last checkpoints, whatever save_total_limit leaves of them."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import shutil
import time
from collections.abc import Sequence
from typing import Any

from ..errors import ConfigError, WorkError
from ..recipe.decay import average_weights
from .adapters import passthrough, with_base
from .callback import TrainingCallback, harmless, number_from, path_from, together, whole_from
from .checkpoints import adapter_file, describe, form_of, is_lora, keep_weights, never_comes, path_of, saves_slices, steps_in
from .identity import fits, identity
from .written import write

log = logging.getLogger("paddle_merge")
SAVED = "saved.json"  # in the scratch folder: step -> the identity of the weights that this run saved


class AverageCallback(TrainingCallback):
    """Average the last checkpoints of a run when it ends: WSM, PMA, LAWA (recipe/decay.py).

    At each save the weights are linked into a hidden folder of the run, so that they stay when the Trainer removes the
    checkpoint; only those of the last checkpoints are kept. At the end they are merged, streaming, by rank 0.
    """

    def __init__(
        self,
        last: int = 5,
        decay: str | Sequence[float] = "uniform",
        output: str | os.PathLike[str] = "average",
        *,
        base: str | os.PathLike[str] | None = None,
        wait: float = 600,
    ):
        """last: how many checkpoints; if a run saves fewer, those. decay: of recipe/decay.py. output: the folder to write.

        base: of a run that trains LoRA: the model that is trained on. The output is then the exact average, as a whole
            model. Without it, the output is an adapter with the averages of lora_A and of lora_B, which isn't the same.
        wait: seconds to wait for files that a Trainer writes behind the scenes, at the end of the training.
        Raises ConfigError.
        """
        super().__init__(output)
        self.last, self.decay = whole_from("last", last, "checkpoints"), decay
        average_weights(decay, self.last)
        self.base = None if base is None else path_from("base", base)
        self.wait = number_from("wait", wait)
        self._pending: list[int] = []
        self._saved: dict[str, dict[str, str]] = {}
        self._lost: list[str] = []  # sentences on checkpoints that are not averaged

    @together
    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Check the settings, and what earlier processes of this run have kept. Raises ConfigError."""
        self.begin(args, state)
        self._pending, self._saved, self._lost = [], {}, []
        strategy = getattr(args.save_strategy, "value", args.save_strategy)
        if strategy == "no":
            raise ConfigError(
                "AverageCallback averages saved checkpoints, and save_strategy is no; set it to steps or epoch"
            )
        self.check_weights(args)
        if self.base is not None and not is_lora(kwargs["model"]):
            raise ConfigError("base is for models with LoRA; this one is trained as a whole")
        if self.base is not None and not os.path.isdir(self.base):
            raise ConfigError(f"base {self.base}: no such folder")
        if is_lora(kwargs["model"]) and self.base is None and saves_slices(args):
            raise ConfigError(
                "AverageCallback: each rank saves its slice of the adapter; give base, the path of the model that is trained"
                " on, or set unified_checkpoint"
            )
        if is_lora(kwargs["model"]) and self.base is None:
            log.warning(
                "AverageCallback: lora_A and lora_B are averaged each for itself; give base, the path of the model that is"
                " trained on, for the exact average as a whole model"
            )
        if state.is_world_process_zero:
            self._go_on(args, state, kwargs["model"], kwargs.get("tokenizer"))

    def _go_on(self, args: Any, state: Any, model: Any, tokenizer: Any) -> None:
        """Go on with the checkpoints that this run has kept before; forget what is of another run, or is done again."""
        scratch, step = self.scratch(args), state.global_step
        with contextlib.suppress(OSError, ValueError), open(os.path.join(scratch, SAVED), encoding="utf-8") as stream:
            self._saved = json.load(stream)
        known = step > 0 and str(step) in self._saved and fits(self._saved[str(step)], model)
        self._saved = {name: found for name, found in self._saved.items() if known and int(name) <= step}
        for kept in steps_in(scratch):
            if str(kept) not in self._saved:
                shutil.rmtree(self._kept(args, kept))
        if step and not known:
            log.warning(
                "AverageCallback: %s holds no weights of the run that goes on from step %d, so the average is of the"
                " checkpoints that it saves from now on",
                scratch,
                step,
            )
        there = {int(name) for name in self._saved if form_of(path_of(args, int(name))) and self.ready(args, int(name))}
        for missing in sorted({*steps_in(scratch), *there})[-self.last :]:
            if not os.path.isdir(self._kept(args, missing)):
                self._keep(args, missing, model, tokenizer)
        self._drop(args)

    @harmless
    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.saved(args, state):
            self._note(args, state.global_step, kwargs["model"])
            if state.global_step not in self._pending:
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
                self._lose(f"checkpoint-{step} was removed before it was complete")
                continue
            if not self.ready(args, step):
                continue
            self._pending.remove(step)
            self._keep(args, step, model, tokenizer)
            self._drop(args)

    def _kept(self, args: Any, step: int) -> str:
        return os.path.join(self.scratch(args), f"checkpoint-{step}")

    def _note(self, args: Any, step: int, model: Any) -> None:
        """Write down that this run has saved a step, and with which weights. Without it, a run that goes on begins anew."""
        self._saved[str(step)] = identity(model)
        file = os.path.join(self.scratch(args), SAVED)
        try:
            os.makedirs(os.path.dirname(file), exist_ok=True)
            with open(f"{file}.partial", "w", encoding="utf-8") as stream:
                json.dump(self._saved, stream)
            os.replace(f"{file}.partial", file)
        except OSError as error:
            log.warning("AverageCallback: %s: %s; a run that goes on won't know its checkpoints", file, error)

    def _keep(self, args: Any, step: int, model: Any, tokenizer: Any) -> None:
        """Keep the weights of a checkpoint. One that can't be kept is left out of the average."""
        kept = self._kept(args, step)
        try:
            keep_weights(path_of(args, step), kept)
            describe(model, kept, tokenizer)
        except Exception as error:
            shutil.rmtree(kept, ignore_errors=True)
            self._lose(f"checkpoint-{step} can't be kept ({error})")

    def _lose(self, sentence: str) -> None:
        log.error("AverageCallback: %s, and is not averaged", sentence)
        self._lost.append(sentence)

    def _drop(self, args: Any) -> None:
        """Remove what has become too old."""
        for step in steps_in(self.scratch(args))[: -self.last]:
            shutil.rmtree(self._kept(args, step))

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
            raise WorkError("; ".join(["the run has saved no checkpoint that could be kept", *self._lost]))
        if len(steps) < self.last:
            log.warning("AverageCallback: the run has %d checkpoints to average, not %d", len(steps), self.last)
        weights = average_weights(self.decay, len(steps))
        kept = [self._kept(args, step) for step in steps]
        lora = is_lora(model) and self.base is None
        models = self._models(kept, lora)
        fields = {"model_path_list": models, "weight_list": list(weights)}
        if len(models) == 1:
            fields = {"recipe_yaml": passthrough(models[0])}
        like = path_of(args, steps[-1]) if os.path.isdir(path_of(args, steps[-1])) else kept[-1]
        shares = ", ".join(f"{step} ({weight:.4g})" for step, weight in zip(steps, weights, strict=True))
        about = f"the average of a training's checkpoints after steps {shares}, with these weights"
        write(self.folder(args), None if self.base is not None else like, fields, args, model, lora, about=about)
        log.info("%s is the average of steps %s", self.folder(args), ", ".join(map(str, steps)))
        if self._lost:
            log.error("%s is not the average of all checkpoints: %s", self.folder(args), "; ".join(self._lost))
        if state.global_step >= state.max_steps:  # else it may be continued
            for step in steps:
                shutil.rmtree(self._kept(args, step))
            with contextlib.suppress(OSError):  # as where somebody else has something in the folder
                os.remove(os.path.join(self.scratch(args), SAVED))
                os.rmdir(self.scratch(args))

    def _models(self, kept: Sequence[str], lora: bool) -> list[str]:
        if self.base is not None:
            return [with_base(self.base, folder) for folder in kept]
        if lora and form_of(kept[0]) != "flex":
            return [adapter_file(folder) or folder for folder in kept]
        return list(kept)
