"""The command line of `python -m paddle_merge extract-lora`: flags -> ExtractConfig -> extract_lora."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..flags import CommandLine, fields_of
from ..run_line import run_line
from .config import ExtractConfig

HELP = """Make a LoRA adapter from a fine-tuned model and its base.

The two models may have any formats and layouts. The change of the weight matrix of each Linear layer is approximated by
the product of two matrices of low rank: the best approximation that the rank allows, a truncated singular value
decomposition. Everything else that changed (embeddings, norms, biases, lm_head) is stored whole. Loaded with the base
model, or folded into it, the adapter reproduces the fine-tuned model up to the error of the approximation, which
extract_report.json gives for each tensor, measured on the stored matrices.

If the model was fine-tuned with LoRA of rank 8, `--rank 8` recovers the change up to the rounding of the weights that the
adapter was folded into. How well a full fine-tuning can be approximated depends on the model; `--energy 0.95` chooses for
each matrix the lowest rank that keeps this share of the sum of squares of its change.
"""
FIELDS = fields_of(ExtractConfig, "finetuned_path")
LINE = CommandLine(
    name="extract-lora",
    fields=FIELDS,
    argument=("FINETUNED", "The fine-tuned model: a folder, or a file of any format."),
    help=HELP,
    examples=[
        ("Rank 32 for every matrix:", "./math --base_model_path ./base --rank 32 --output_path ./math_lora"),
        (
            "Ranks up to 256 that keep 95 % of each change, for PEFT:",
            "./math --base_model_path ./base --energy 0.95 --rank 256 --format peft --output_path ./math_lora",
        ),
    ],
    aliases={"base_model_name_or_path": "base_model_path"},
    many=False,
    hint="; only the fine-tuned model, the first word, is given without a flag",
)


def main(argv: Sequence[str]) -> None:
    """Run `python -m paddle_merge extract-lora *argv`. Raises MergeError."""
    run_line(LINE, argv, _run)


def _run(finetuned: str | None, flags: dict[str, Any]) -> None:
    config = ExtractConfig(finetuned_path=finetuned or "", **flags)
    from .run import extract_lora

    extract_lora(config)
