"""Train tiny models with the Trainer of PaddleNLP or PaddleFormers and paddle_merge's callbacks, and open what they write.

Usage: train.py LIBRARY JOB, where JOB is a JSON file with a list of tasks, done in order:

    train    trains, and writes the weights after each step, as "step/name", to the file `snapshots`
    load     opens a folder with from_pretrained, and writes the weights to the file `weights`
    resume   lets a Trainer go on from a folder, and writes the weights with which it begins to the file `weights`
"""

from __future__ import annotations

import contextlib
import importlib
import json
import logging
import os
import sys
from pathlib import Path

import numpy as np
import paddle

sys.path.insert(0, str(Path(__file__).parents[3]))
from paddle_merge import training

LIBRARY = sys.argv[1]
trainer_module, transformers, peft = (
    importlib.import_module(f"{LIBRARY}.{name}") for name in ("trainer", "transformers", "peft")
)
CALLBACKS = {
    "average": training.AverageCallback,
    "ema": training.EmaCallback,
    "merge": training.MergeCallback,
    "window": training.WindowCallback,
}
SETTINGS = {
    "per_device_train_batch_size": 2,
    "learning_rate": 0.01,
    "device": "cpu",
    "save_steps": 2,
    "logging_steps": 100,
    "max_steps": 8,
    "report_to": "none",
    **({"amp_master_grad": False} if LIBRARY == "paddleformers" else {}),
}


class Words(paddle.io.Dataset):
    def __len__(self) -> int:
        return 64

    def __getitem__(self, number: int) -> dict[str, np.ndarray]:
        words = np.random.default_rng(number).integers(0, 40, 9)
        return {"input_ids": words[:-1], "labels": words[1:]}


class Rotating(trainer_module.Trainer):
    """Removes old checkpoints also in a training of one process, where PaddleNLP's Trainer leaves them."""

    def _save_checkpoint(self, *args, **kwargs):
        super()._save_checkpoint(*args, **kwargs)
        self._rotate_checkpoints(use_mtime=True, output_dir=self.args.output_dir)


class KilledError(Exception):
    """Ends a training as a crash does."""


class Watch(trainer_module.TrainerCallback):
    """Keep the weights of every step, and of the beginning; kill the training after a step."""

    def __init__(self, stop: int | None):
        self.stop, self.weights, self.begun = stop, {}, {}

    def on_train_begin(self, args, state, control, model=None, **kwargs):
        self.begun = arrays(model)

    def on_step_end(self, args, state, control, model=None, **kwargs):
        self.weights |= {f"{state.global_step}/{name}": value for name, value in arrays(model).items()}
        if state.global_step == self.stop:
            raise KilledError


def arrays(model) -> dict[str, np.ndarray]:
    return {name: value.numpy().copy() for name, value in model.state_dict().items()}


def model_of(config: dict[str, object]):
    settings = transformers.LlamaConfig(**config)
    settings.fuse_rms_norm = False  # the fused kernel is a GPU's
    return transformers.LlamaForCausalLM(settings)


def built(config: dict[str, object], lora: bool, base: str | None):
    paddle.seed(0)
    model = model_of(config)
    if base is not None and not os.path.isdir(base):
        model.save_pretrained(base)
    if lora:
        model = peft.LoRAModel(model, peft.LoRAConfig(target_modules=[".*q_proj.*", ".*v_proj.*"], r=4, lora_alpha=8))
        model.mark_only_lora_as_trainable()
    return model


def trained(output, config, callbacks, settings, stop=None, resume=None, lora=False, base=None) -> Watch:
    with paddle.utils.unique_name.guard():  # parameters are named as in a new process
        return _trained(output, config, callbacks, settings, stop, resume, lora, base)


def _trained(output, config, callbacks, settings, stop, resume, lora, base) -> Watch:
    watch = Watch(stop)
    made = [CALLBACKS[kind](**options) for kind, options in callbacks]
    arguments = trainer_module.TrainingArguments(output_dir=output, **{**SETTINGS, **settings})
    trainer = Rotating(model=built(config, lora, base), args=arguments, train_dataset=Words(), callbacks=[*made, watch])
    with contextlib.suppress(KilledError):
        trainer.train(resume_from_checkpoint=resume)
    return watch


def train(snapshots, **task) -> None:
    np.savez(snapshots.format(rank=paddle.distributed.get_rank()), **trained(**task).weights)


def resume(folder, weights, **task) -> None:
    np.savez(weights, **trained(resume=folder, callbacks=[], stop=9, **task).begun)


def load(folder, weights, config, lora=False, base=None) -> None:
    if base is not None and not os.path.isdir(base):
        built(config, False, base)
    if lora:
        model = peft.LoRAModel.from_pretrained(built(config, False, base), folder)
    else:
        settings = transformers.LlamaConfig.from_pretrained(folder)
        settings.fuse_rms_norm = False
        model = transformers.LlamaForCausalLM.from_pretrained(folder, config=settings)
    np.savez(weights, **arrays(model))


if __name__ == "__main__":
    if LIBRARY == "paddleformers":
        paddle.distributed.fleet.init(is_collective=True)  # without it, its Trainer can't resume in a single process
    logging.basicConfig(level=logging.WARNING)
    with open(sys.argv[2]) as file:
        for task in json.load(file):
            {"train": train, "resume": resume, "load": load}[task.pop("do")](**task)
