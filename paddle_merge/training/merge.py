"""MergeCallback: at the end of a training, its result merged with the model that it began from, or another reference."""

from __future__ import annotations

import json
import logging
import os
import shutil
import time
from collections.abc import Mapping
from typing import Any

from ..errors import ConfigError, WorkError
from ..recipe.config import MergeConfig
from ..recipe.request import Request
from .adapters import with_base
from .callback import TrainingCallback, meet
from .checkpoints import describe, form_of, is_lora, is_ready, keep_weights, last_in, steps_in
from .sweeping import filled, swept
from .written import write

log = logging.getLogger("paddle_merge")
BETWEEN = ("linear", "slerp", "lines")  # methods of which toward_aligned is the position between the two models


class MergeCallback(TrainingCallback):
    """Merge the last checkpoint (the best one, where the Trainer loads that at the end) with a reference model.

    With theta_0 of the reference, theta of the checkpoint and a = toward_aligned, the methods are

        linear  theta_0 + a (theta - theta_0): 0 gives the reference, 1 the checkpoint; beyond 1 it extrapolates (ExPO)
        slerp   along the arc between the two
        lines   a in the first layer, 1 in the last, evenly between

    and every other method of paddle_merge, with a as the weight of the checkpoint's task vector, not normalised. Lin et al.
    (2024, Mitigating the alignment tax of RLHF) find that models between the two keep most of what alignment gained, and
    buy back what it cost.
    """

    def __init__(
        self,
        reference: str,
        toward_aligned: float = 0.8,
        method: str = "linear",
        output: str = "merged",
        *,
        sweep: str | None = None,
        base: str | None = None,
        wait: float = 600,
        **parameters: Any,
    ):
        """reference: the folder of the base, SFT or reference model. output: the folder to write.

        sweep: a file with a section `sweep` (paddle_merge/search/README.md) that says how merges are scored, and which is
            picked; pre and aligned are filled in here. It replaces toward_aligned and method.
        base: of a run that trains LoRA: the model that is trained on, if it isn't the reference.
        wait: seconds to wait for files that a Trainer writes behind the scenes, at the end of the training.
        parameters: of the method, as fields of MergeConfig: reserve_p=0.5.
        Raises ConfigError.
        """
        super().__init__(output)
        self.reference, self.base = os.path.expanduser(reference), os.path.expanduser(base or reference)
        self.toward, self.method, self.parameters, self.wait = float(toward_aligned), method, parameters, wait
        self.sweep = None if sweep is None else os.path.expanduser(sweep)
        if self.sweep is not None:
            filled(self.sweep, self.reference, self.reference)
        else:
            Request.of(MergeConfig(**self._fields("checkpoint"), output_path=output)).checked_recipe()

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Check that there is something to merge. Raises ConfigError."""
        self.failed = False
        self.check_output(args)
        for name, path in {"reference": self.reference, "base": self.base}.items():
            if not os.path.isdir(path):
                raise ConfigError(f"{name} {path}: no such folder")
        if getattr(args.save_strategy, "value", args.save_strategy) == "no":
            raise ConfigError("MergeCallback merges a saved checkpoint, and save_strategy is no; set it to steps or epoch")
        meet(args)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.finish(args, state, lambda: self._finish(args, state, kwargs["model"], kwargs.get("tokenizer")))

    def _finish(self, args: Any, state: Any, model: Any, tokenizer: Any) -> None:
        last = self._last(args, state)
        kept = os.path.join(self.scratch(args), os.path.basename(last))
        keep_weights(last, kept)
        describe(model, kept, tokenizer)
        lora = is_lora(model)
        aligned = with_base(self.base, kept) if lora else kept
        if self.sweep is not None:
            found = os.path.join(self.scratch(args), "sweep")
            fields: Mapping[str, Any] = {"recipe_yaml": swept(self.sweep, self.reference, aligned, found)}
        else:
            fields = self._fields(aligned)
        fields = {**fields, "config_from": self.base if lora else kept}
        output = self.folder(args)
        write(output, None if lora else last, fields, args, model, lora=False)
        if self.sweep is not None:
            shutil.rmtree(f"{output}-sweep", ignore_errors=True)
            os.rename(found, f"{output}-sweep")
        shutil.rmtree(self.scratch(args))
        log.info("%s is %s merged with %s", output, last, self.reference)

    def _last(self, args: Any, state: Any) -> str:
        """Return the folder of the checkpoint to merge; wait until its files are there. Raises WorkError."""
        best = state.best_model_checkpoint if getattr(args, "load_best_model_at_end", False) else None
        if best:
            return str(best)
        until = time.monotonic() + self.wait
        saved = [step for step in steps_in(args.output_dir) if step <= state.global_step]
        while saved and not is_ready(args, saved[-1]) and time.monotonic() < until:
            time.sleep(1.0)
        last = last_in(args, state.global_step)
        if last is None or form_of(last) is None:
            raise WorkError("the run has saved no checkpoint with weights")
        if not last.endswith(f"-{state.global_step}"):
            log.warning("MergeCallback: the training ended at step %d, and %s is what is merged", state.global_step, last)
        return last

    def _fields(self, aligned: str) -> dict[str, Any]:
        """Return the fields of the merge. aligned: the path of the checkpoint."""
        if self.method not in BETWEEN:
            return {
                "merge_method": self.method,
                "model_path_list": [aligned],
                "base_model_path": self.reference,
                "weight_list": [self.toward],
                "normalize": False,
                **self.parameters,
            }
        models: list[dict[str, Any]] = [{"model": aligned, "parameters": {"weight": self.toward}}]
        recipe: dict[str, Any] = {"merge_method": "task_arithmetic", "base_model": self.reference, "models": models}
        if self.method == "slerp":
            models[:] = [{"model": self.reference}, {"model": aligned}]
            recipe |= {"merge_method": "slerp", "parameters": {"t": self.toward}}
        if self.method == "lines":
            models[0]["parameters"]["weight"] = 1.0
            recipe |= {"merge_method": "lines", "parameters": {"alpha": self.toward}}
        return {"recipe_yaml": json.dumps(recipe) + "\n", **self.parameters}
