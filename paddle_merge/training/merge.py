"""MergeCallback: at the end of a training, its result merged with the model that it began from, or another reference."""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import shutil
import time
from collections.abc import Mapping, Sequence
from typing import Any

from ..errors import ConfigError, WorkError
from ..parsing import nearest
from ..recipe.config import MergeConfig
from ..recipe.request import Request
from .adapters import with_base
from .callback import TrainingCallback, harmless, number_from, path_from, together
from .checkpoints import describe, is_lora, keep_weights
from .outputs import contains, publish, scratch_of
from .sweeping import SWEPT, checked, filled, swept
from .written import write

log = logging.getLogger("paddle_merge")
BETWEEN = ("linear", "slerp", "lines")  # methods of which toward_aligned is the position between the two models
# Fields of a merge that this callback fills in: what is merged; the form of the output, which is the last checkpoint's; and
# that it is written.
_OWN = {
    *("merge_method", "model_path_list", "model_path_str", "base_model_path", "lora_model_path", "recipe_yaml"),
    *("merge_prefix", "config_from", "output_layout", "save_format"),
    *("output_path", "overwrite", "resume", "dry_run", "print_recipe"),
}


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
        reference: str | os.PathLike[str],
        toward_aligned: float = 0.8,
        method: str = "linear",
        output: str | os.PathLike[str] = "merged",
        *,
        sweep: str | os.PathLike[str] | None = None,
        base: str | os.PathLike[str] | None = None,
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
        self.reference = path_from("reference", reference)
        self.base = self.reference if base is None else path_from("base", base)
        self.toward, self.wait = number_from("toward_aligned", toward_aligned), number_from("wait", wait)
        known = {field.name for field in dataclasses.fields(MergeConfig)} - _OWN
        if unknown := sorted(parameters.keys() - known):
            why = {name: ", which sets it itself" if name in _OWN else nearest(name, known) for name in unknown}
            raise ConfigError([f"{name!r} is no setting of MergeCallback{why[name]}" for name in unknown])
        self.method, self.parameters = method, parameters
        self.sweep = None if sweep is None else path_from("sweep", sweep)
        if self.sweep is not None:
            if parameters:
                raise ConfigError(f"the file of sweep says how models are merged: leave out {', '.join(sorted(parameters))}")
            filled(self.sweep, self.reference, self.reference)
        else:
            Request.of(MergeConfig(**self._fields("checkpoint"), output_path=self.output)).checked_recipe()

    def outputs(self, args: Any) -> dict[str, Sequence[str]]:
        folder = self.folder(args)
        return {**super().outputs(args), **({f"{folder}-sweep": SWEPT} if self.sweep is not None else {})}

    @together
    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Check that there is something to merge, and that it can be scored. Raises ConfigError."""
        self.begin(args, state)
        for name, path in {"reference": self.reference, "base": self.base}.items():
            if not os.path.isdir(path):
                raise ConfigError(f"{name} {path}: no such folder")
            if contains(self.folder(args), path):
                raise ConfigError(f"output {self.folder(args)} is the {name}, or contains it; give another name")
        if getattr(args.save_strategy, "value", args.save_strategy) == "no":
            raise ConfigError("MergeCallback merges a saved checkpoint, and save_strategy is no; set it to steps or epoch")
        self.check_weights(args)
        if self.sweep is not None and state.is_world_process_zero:
            checked(self.sweep, self.reference)

    @harmless
    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.saved(args, state)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.finish(args, state, lambda: self._finish(args, state, kwargs["model"], kwargs.get("tokenizer")))

    def _finish(self, args: Any, state: Any, model: Any, tokenizer: Any) -> None:
        last = self._last(args, state)
        kept = os.path.join(self.weights(args), os.path.basename(last))
        keep_weights(last, kept)
        describe(model, kept, tokenizer)
        lora = is_lora(model)
        aligned = with_base(self.base, kept) if lora else kept
        how = f"{self.method}, with {self.toward:g} toward the training's result"
        if self.sweep is not None:
            fields: Mapping[str, Any] = {"recipe_yaml": self._swept(self.sweep, f"{self.folder(args)}-sweep", aligned)}
            how = "the recipe that a sweep picked"
        else:
            fields = self._fields(aligned)
        fields = {**fields, "config_from": self.base if lora else kept}
        about = f"a training's result, {os.path.basename(last)}, merged with {os.path.basename(self.reference)} by {how}"
        output = self.folder(args)
        write(output, None if lora else last, fields, args, model, lora=False, about=about)
        shutil.rmtree(self.weights(args))
        log.info("%s is %s merged with %s", output, last, self.reference)

    def _swept(self, file: str, folder: str, aligned: str) -> str:
        """Sweep, and return the path of the recipe that is picked. folder: for report and picture."""
        found = os.path.join(scratch_of(folder), os.path.basename(folder))
        shutil.rmtree(scratch_of(folder), ignore_errors=True)
        os.makedirs(scratch_of(folder))
        try:
            best = swept(file, self.reference, aligned, found)
        finally:
            if all(os.path.exists(os.path.join(found, name)) for name in SWEPT):  # also if no point meets the rule
                publish(found, folder, SWEPT)
                shutil.rmtree(scratch_of(folder))
            elif os.path.isdir(found):
                log.warning("MergeCallback: what the sweep has scored is in %s", found)
        return os.path.join(folder, best)

    def _last(self, args: Any, state: Any) -> str:
        """Return the folder of the checkpoint to merge; wait until its files are there. Raises WorkError."""
        best = state.best_model_checkpoint if getattr(args, "load_best_model_at_end", False) else None
        if best:
            places = [str(best), os.path.join(args.output_dir, os.path.basename(str(best)))]  # of a run that was moved since
            found = next((place for place in places if os.path.isdir(place)), None)
            if found is None:
                raise WorkError(f"the best checkpoint, {best}, isn't there")
            return found
        until = time.monotonic() + self.wait
        while self.steps and not self.ready(args, self.steps[-1]) and time.monotonic() < until:
            time.sleep(1.0)
        last = self.last_checkpoint(args)
        if last is None:
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
