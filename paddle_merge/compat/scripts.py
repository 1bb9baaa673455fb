"""Replacements of PaddleNLP's two merging scripts, with the same flags."""

from __future__ import annotations

import dataclasses
import inspect
import sys
from collections.abc import Sequence
from typing import Annotated, Any

import typer

from ..checkpoints.open import open_checkpoint
from ..commands.command import command, set_up_logging
from ..commands.merge import FIELDS, LINE, read_fields, run
from ..conversion.detect import detect
from ..errors import ConfigError
from ..parsing import parse_bool
from ..recipe.config import MergeConfig as OurConfig
from .config import MergeConfig
from .model import MergeModel

NAMES = [item.name for item in dataclasses.fields(MergeConfig)]


def mergekit(argv: Sequence[str] | None = None) -> None:
    """Merge models: llm/tools/mergekit.py [CONFIG.json] --model_path_list a b --output_path out ...

    The flags are the fields of PaddleNLP's and PaddleFormers' MergeConfig. They can also be given in a JSON file, as the
    first argument. Flags may be abbreviated if they stay unique. An earlier merge in output_path is replaced. With
    --lora_path, the command is that of llm/tools/merge_lora_params.py instead.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    if any(_spelled_out(word).partition("=")[0] == "--lora_path" for word in argv):
        merge_lora_params(argv)
        return
    with command():
        given = LINE.parse(argv, NAMES)
        if "help" in given.switches or not (given.first or given.flags):
            flags_help = [f"--{name}: {FIELDS[name].metadata['help']}" for name in NAMES]
            print("\n".join([inspect.cleandoc(str(mergekit.__doc__)), "", *flags_help]))
            return
        set_up_logging("verbose" in given.switches, "quiet" in given.switches)
        config = given.first
        fields = read_fields(config, given.flags)
        MergeModel(MergeConfig(**MergeConfig.known_fields(fields, config or "the command"))).merge_model()


def merge_lora_params(argv: Sequence[str] | None = None) -> None:
    """Run llm/tools/merge_lora_params.py, which folds a LoRA adapter into its base model."""
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command()(_merge_lora_params)
    with command():
        words = [_spelled_out(word) for word in (sys.argv[1:] if argv is None else argv)]
        app(words, prog_name="merge_lora_params.py")


def _spelled_out(word: str) -> str:
    """Return a command-line word with an abbreviated flag of this script completed, as argparse does."""
    flag, equals, value = word.partition("=")
    names = [f"--{name}" for name in inspect.signature(_merge_lora_params).parameters if f"--{name}".startswith(flag)]
    return f"{names[0]}{equals}{value}" if len(flag) > 2 and len(names) == 1 else word


def _merge_lora_params(
    model_name_or_path: Annotated[str, typer.Option("--model_name_or_path", help="Folder of the base model.")],
    lora_path: Annotated[str, typer.Option("--lora_path", help="Folder of the adapter.")],
    output_path: Annotated[
        str, typer.Option("--output_path", help="Folder to write to; an earlier merge in it is replaced.")
    ],
    safe_serialization: Annotated[
        str, typer.Option("--safe_serialization", help="True: write safetensors; False: model_state.pdparams.")
    ] = "False",
    device: Annotated[
        str,
        typer.Option(
            "--device", help="gpu, npu or cpu. No effect: folding runs on the CPU, where reading the files takes longer."
        ),
    ] = "gpu",
) -> None:
    """Fold a LoRA adapter into its base model. Weights keep the base model's dtype, as in PaddleNLP's script."""
    problems = []
    safe = parse_bool(safe_serialization)
    if safe is None:
        problems.append(f"--safe_serialization takes True or False, not {safe_serialization!r}")
    if device.partition(":")[0] not in ("gpu", "npu", "xpu", "cpu"):
        problems.append(f"--device {device!r} must be one of gpu, npu, cpu")
    if problems:
        raise ConfigError(problems)
    set_up_logging(False, False)
    fields: dict[str, Any] = {}
    if not safe:  # a single file, which deployment pipelines look for
        layout = _paddle_layout(model_name_or_path)
        fields |= {"save_format": "pdparams", "output_layout": layout, "max_shard_size": "100GB"}
    fields |= {"lora_model_path": lora_path, "base_model_path": model_name_or_path, "output_path": output_path}
    run(OurConfig(**fields, overwrite=True, allow_untrained=True))


def _paddle_layout(path: str) -> str | None:
    """Return the layout to store pickles in: PaddleNLP's for a model in Hugging Face's layout, as PaddleNLP would save it.

    None means the layout of the model itself. Raises CheckpointError if the model can't be read.
    """
    return "paddlenlp" if detect(open_checkpoint(path), "model", {}).layout == "hf" else None
