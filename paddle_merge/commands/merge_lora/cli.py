"""The command line of `python -m paddle_merge merge-lora`: flags -> MergeLoraConfig -> merge_lora."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..flags import CommandLine, fields_of
from ..run_line import run_line
from .config import MergeLoraConfig

HELP = """Merge LoRA adapters into one LoRA adapter, without the base model.

By default the adapters are put side by side: loaded with the base model, or folded into it, the merged adapter adds the
sum of the adapters' changes, each times its weight. That is exact to the rounding of the dtype, and the rank is the sum of
the adapters' ranks. With --rank or --energy the sum is cut off to a lower rank, with the least error possible.

Adapters may have different ranks, alphas and layers. --combination_type has the other ways of PEFT's add_weighted_adapter,
with the same numbers; --merge_method merges the changes by any method of `merge`, and cuts the result off.
merge_lora_report.json gives, for each layer, how far the output is from the sum, and what cutting it off has lost.
"""
FIELDS = fields_of(MergeLoraConfig, "adapter_path_list")
LINE = CommandLine(
    name="merge-lora",
    fields=FIELDS,
    argument=("ADAPTER ...", "Folders of LoRA adapters, in PEFT's or Paddle's formats."),
    help=HELP,
    examples=[
        (
            "The weighted sum, exact to the rounding of the dtype:",
            "./math_lora ./code_lora --weight_list 0.7 0.3 --output_path ./both_lora",
        ),
        (
            "The same, at the rank of the adapters:",
            "./math_lora ./code_lora --combination_type svd --output_path ./both_lora",
        ),
        (
            "TIES on the changes, at the lowest rank that keeps 99 % of what it makes:",
            "./math_lora ./code_lora --merge_method ties --energy 0.99 --output_path ./both_lora",
        ),
        (
            "An adapter of PaddleNLP, for PEFT:",
            "./nlp_lora --base_model_path ./base --format peft --output_path ./peft_lora",
        ),
    ],
    aliases={"base_model_name_or_path": "base_model_path", "density": "reserve_p", "weights": "weight_list"},
)


def main(argv: Sequence[str]) -> None:
    """Run `python -m paddle_merge merge-lora *argv`. Raises MergeError."""
    run_line(LINE, argv, _run)


def _run(adapters: list[str], flags: dict[str, Any]) -> None:
    config = MergeLoraConfig(adapter_path_list=adapters, **flags)
    from .run import merge_lora

    merge_lora(config)
