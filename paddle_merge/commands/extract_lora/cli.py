"""python -m paddle_merge extract-lora: flags -> ExtractConfig -> extract_lora. Computes nothing."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from ..command import set_up_logging
from ..flags import build_app, normal_form
from .config import ExtractConfig

FIELDS = {item.name: item for item in dataclasses.fields(ExtractConfig) if item.name != "finetuned_path"}
ALIASES = {"base_model_name_or_path": "base_model_path"}

HELP = """Make a LoRA adapter of a fine-tuned model: what fine-tuning changed, as matrices of low rank.

Give the fine-tuned model and the base model it came from, in any formats and layouts. Each Linear layer's matrix that
changed becomes two small factors, whose product is the best approximation of the change that their rank allows; whatever
else changed (embeddings, norms, biases, lm_head) is stored whole. Loaded beside the base model, or folded into it, the
adapter gives the fine-tuned model, but for what the factors don't keep: extract_report.json says how much that is, for
each tensor, measured.

What LoRA of rank 8 changed comes back with `--rank 8`, up to the rounding of the weights it was folded into; how well full
fine-tuning fits into a rank depends on the model, and `--energy 0.95` finds the ranks that keep that share of each change.
"""
EPILOG = """[bold]Examples[/bold] (after python -m paddle_merge):

extract-lora ./math --base_model_path ./base --rank 32 --output_path ./math_lora

extract-lora ./math --base_model_path ./base --energy 0.95 --rank 256 --format peft --output_path ./math_lora
"""


def main(argv: Sequence[str]) -> None:
    """python -m paddle_merge extract-lora *argv. Raises MergeError."""
    words = normal_form(argv, FIELDS, ALIASES, "; one fine-tuned model comes first") or ["--help"]
    argument = "FINETUNED", "The fine-tuned model: a folder, or a file of any format."
    build_app(FIELDS, _run, argument, HELP, EPILOG)(words, prog_name="python -m paddle_merge extract-lora")


def _run(finetuned: str | None, verbose: bool, quiet: bool, flags: dict[str, Any]) -> None:
    set_up_logging(verbose, quiet)
    given = {name: value for name, value in flags.items() if value not in (None, [])}
    config = ExtractConfig(finetuned_path=finetuned or "", **given)
    from .run import extract_lora

    extract_lora(config)
