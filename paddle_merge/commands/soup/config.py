"""Define the flags of `soup`: which checkpoints of a run are averaged, how, and the flags of the merge that does it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ...checkpoints.run_folder import CHECKPOINT, KINDS
from ...errors import ConfigError
from ...recipe.decay import CURVES
from ...recipe.fields import flag, to_types
from .. import common_flags
from ..flags import PROGRAM, fields_of
from ..merge import FIELDS as MERGE_FIELDS

_WHICH, _EMA, _GREEDY = "Which checkpoints", "Moving averages (EMA)", "Greedy soup"
# The flags of a merge that soup takes, too: a soup is a merge of checkpoints.
MERGE = (
    *("output_path", "overwrite", "resume", "max_shard_size", "out_dtype", "output_layout", "save_format", "config_from"),
    *("n_process", "max_memory", "tensor_type", "device", "max_tensor_mem", "dry_run", "account", "strict"),
)


@dataclass
class SoupConfig:
    """The settings of a soup that aren't those of a merge. paths: the run's folder."""

    paths: list[str] = field(default_factory=list)
    last: int | None = flag(_WHICH, "Average the last of the checkpoints, this many.", shown="all", least=1)
    steps: list[int] | None = flag(
        _WHICH, "Average checkpoints from the first to the second of these steps: `--steps 8000 12000`.", shown="all"
    )
    kind: str | None = flag(
        _WHICH,
        "Which folders are the checkpoints: checkpoint-N, hf_checkpoint-N, or moving averages, ema_state in checkpoint-N or"
        " ema_hf_checkpoint-N.",
        choices=KINDS,
        shown="checkpoint, or hf_checkpoint if there are as many",
    )
    decay: list[str] | None = flag(
        _WHICH,
        "The decay of the learning rate that the average replaces: the name of a curve"
        f" ({', '.join(CURVES)}), or factors that fall from 1 to 0, one for each checkpoint. uniform and linear are the"
        " same: the mean.",
        shown="uniform",
    )
    ema_coef: float | None = flag(
        _EMA, "The coefficient c of averages that start from zeros.", shown="as training_args.bin says"
    )
    ema_updates: list[int] | None = flag(
        _EMA,
        "How often each average that is used was updated, in the order of the steps. An average that started from zeros is"
        " divided by 1 - c^updates; 0: it started from the weights, and is used as it is.",
        shown="as training_args.bin says",
    )
    with_: str | None = flag(
        _GREEDY,
        "The file that says how models are scored, as for `evaluate`. Checkpoints are then added to the average in the order"
        " of their scores, each only if the score of the average doesn't fall.",
    )
    workers: int = flag(_GREEDY, "How many checkpoints are scored at the same time.", 1, least=1)
    base_model_path: str | None = flag(
        _WHICH,
        "Of a run that trained a LoRA adapter: the base model. Each checkpoint is the base with its adapter folded in.",
    )
    json: bool = common_flags.as_json("Print what was found, and the weights, as JSON.", _WHICH)

    def __post_init__(self) -> None:
        """Convert the fields to their types. Raises ConfigError."""
        to_types(self)

    @property
    def run(self) -> str:
        """The folder of the run."""
        return os.path.expanduser(self.paths[0])

    @property
    def curve(self) -> str | list[float]:
        """The decay, as average_weights takes it."""
        words = self.decay or ["uniform"]
        try:
            return [float(word) for word in words]
        except ValueError:
            return " ".join(words)

    def check(self, merge: Mapping[str, Any]) -> None:
        """Raise ConfigError listing everything that is wrong with the flags.

        merge: the fields of MergeConfig that were given, by name.
        """
        found = common_flags.problems(self)
        if len(self.paths) != 1:
            found.append(f"give one folder of a run: {PROGRAM} soup ./output --last 5 --output_path ./soup")
        if self.steps is not None and (len(self.steps) != 2 or self.steps[0] > self.steps[1]):
            found.append("--steps takes the first and the last step: --steps 8000 12000")
        if self.ema_updates is not None and min(self.ema_updates) < 0:
            found.append("--ema_updates are numbers of updates, from 0")
        if self.ema_coef is not None and not 0.0 < self.ema_coef < 1.0:
            found.append(f"--ema_coef {self.ema_coef:g} must be between 0 and 1")
        output = merge.get("output_path")
        if output and CHECKPOINT.fullmatch(os.path.basename(os.path.abspath(output))):
            found.append(
                f"--output_path {output}: Trainers take such a folder for a checkpoint of theirs; give another name"
            )
        if self.json and merge.get("dry_run"):
            found.append("--json prints the checkpoints, and --dry_run the plan of the merge; give one of them")
        if self.with_ is not None and self.decay is not None:
            found.append("--with adds checkpoints to a plain mean, so --decay has no effect beside it; give one of them")
        if self.with_ is not None and "output_path" not in merge:
            found.append("--with needs the folder for the journal and the result: --output_path ./soup")
        if self.with_ is None and self.workers != 1:
            found.append("--workers has no effect without --with; --n_process sets the workers of the merge")
        if self.with_ is not None and merge.get("dry_run"):
            found.append(
                "--dry_run plans a merge, and which checkpoints it takes is known only after --with has scored them"
            )
        if found:
            raise ConfigError(found)


FIELDS = {**fields_of(SoupConfig, "paths"), **{name: MERGE_FIELDS[name] for name in MERGE}}
