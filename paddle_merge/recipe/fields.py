"""Every field of a merge's configuration, with its default and its help text: PaddleNLP's and PaddleFormers' mergekit
fields, name for name, and ours. The flags of the command line are made of them; config.py says what they mean together.
"""

from __future__ import annotations

import dataclasses
import os
from dataclasses import dataclass, field
from typing import Any

from ..checkpoints.formats.naming import FORMATS
from ..checkpoints.names import LAYOUTS
from ..dtypes import FLOATS, LARGEST
from ..errors import ConfigError
from ..methods.paddlenlp import MERGE_TYPES, METHODS, SPARSIFIERS
from ..methods.registry import NAMED
from ..parsing import coerce, nearest

_MODELS, _METHOD, _TUNE, _OUTPUT, _RUN, _PADDLE = (
    "What to merge",
    "How to merge",
    "Parameters of the methods",
    "Output",
    "Running",
    "PaddleNLP compatibility",
)


def _flag(group: str, help: str, default: Any = None, **metadata: Any) -> Any:
    """A field with its help. shown: the default as --help shows it. choices: the allowed strings."""
    extra = {"group": group, "help": help, **metadata}
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata=extra)
    return field(default=default, metadata=extra)


@dataclass
class Fields:
    """The fields of MergeConfig. Lists may be given as lists or tuples; None means "not given"."""

    model_path_list: list[str] | None = _flag(
        _MODELS, "Folders (or files) of the models to merge: `--model_path_list a b c`."
    )
    model_path_str: str | None = _flag(_MODELS, "The same in one word, separated by commas; wins over model_path_list.")
    base_model_path: str | None = _flag(
        _MODELS,
        "The model that all of them were fine-tuned from. With it, methods work on task vectors (model minus base) and add"
        " the base back; every method but linear and slerp needs it to do what its paper says.",
    )
    lora_model_path: str | None = _flag(
        _MODELS,
        "Fold this LoRA adapter, PEFT's or Paddle's, into base_model_path. To merge adapters by any method, write each"
        " behind its base: `--model_path_list base+math base+code --base_model_path base`.",
    )
    merge_prefix: str = _flag(
        _MODELS,
        "Which weights of a folder: model (model.safetensors) or master_weights. `--merge_preifx` works too.",
        "model",
        choices=("model", "master_weights"),
    )
    recipe_yaml: str | None = _flag(
        _MODELS,
        "A recipe in mergekit's YAML, instead of models, method and its parameters: the path of a file, or the YAML itself."
        " `python -m paddle_merge recipe.yaml` is the usual way.",
    )
    print_recipe: bool = _flag(_MODELS, "Print the recipe that the flags mean, in YAML, and do nothing.", False)
    weight_list: list[float] | None = _flag(
        _METHOD, "One weight per model: `--weight_list 0.3 0.7`. Without it all count the same.", shown="1 each, normalised"
    )
    merge_method: str | None = _flag(
        _METHOD,
        "A named pair of sparsifier and merge type, or another of mergekit's methods.",
        choices=(*METHODS, *(name for name in NAMED if name not in METHODS)),
        shown="linear",
    )
    method_parameters: list[str] | None = _flag(
        _METHOD,
        "Parameters of methods that PaddleNLP doesn't have, by mergekit's names: `--method_parameters gamma=0.02`."
        " normalize=true and rescale=true turn on what such a method leaves off.",
    )
    merge_type: str | None = _flag(
        _METHOD, "Instead of a method: how task vectors become one.", choices=MERGE_TYPES, shown="linear"
    )
    sparsify_type: str | None = _flag(
        _METHOD,
        "Instead of a method: what is kept of each task vector. trim: the largest elements; dare: random ones; magprune:"
        " random ones, large ones more readily.",
        choices=("none", *SPARSIFIERS),
        shown="none",
    )
    normalize: bool = _flag(_METHOD, "Divide by the sum of the weights (ties: of the models that agree).", True)
    scale: float = _flag(_METHOD, "Factor on the merged task vector before the base is added back. Needs a base model.", 1.0)
    reserve_p: float = _flag(
        _TUNE, "trim, dare, magprune: the fraction of elements to keep (papers: density, 1 - drop rate).", 0.7
    )
    rescale: bool = _flag(
        _TUNE,
        "Scale up what is kept: dare and magprune by 1 / keep probability, trim to the tensor's L1 norm. trim's is"
        " PaddleNLP's, not the paper's: with many models it makes the merge too strong, so try --no_rescale.",
        True,
    )
    epsilon: float = _flag(_TUNE, "magprune: full width of the range of keep probabilities (DELLA's code: half).", 0.14)
    ties_elect_type: str = _flag(
        _TUNE,
        "ties: elect signs by the sum of the weighted values, or by the count of their signs.",
        "sum",
        choices=("sum", "count"),
    )
    ties_zero_sign: str = _flag(
        _TUNE,
        "ties: what a vote that cancels exactly elects. positive: plus, as PaddleNLP (a bias, with bfloat16 models);"
        " majority: the tensor's most frequent sign; drop: nothing, the element stays the base's.",
        "positive",
        choices=("positive", "majority", "drop"),
    )
    slerp_alpha: float = _flag(_TUNE, "slerp: 0 is the first model, 1 the second.", 0.5)
    slerp_dot_threshold: float = _flag(_TUNE, "slerp: beyond this |cosine| interpolate linearly.", 0.9995)
    slerp_normalize_eps: float = _flag(_TUNE, "slerp: a norm up to this counts as 1.", 1e-8)
    seed: int | None = _flag(
        _TUNE, "The same seed gives the same random masks, for any number of workers.", shown="0, or the recipe's own"
    )
    output_path: str | None = _flag(_OUTPUT, "Folder to write to.", shown="./merged-<method>")
    overwrite: bool = _flag(_OUTPUT, "Replace the weights of an earlier merge in that folder.", False)
    resume: bool = _flag(
        _OUTPUT,
        "Go on with a merge into that folder that was stopped, given the same flags and inputs; if there is none, begin.",
        False,
    )
    max_shard_size: str = _flag(
        _OUTPUT, "Split the output into files of at most this size; it is one file if it fits.", "5GB"
    )
    out_dtype: str | None = _flag(
        _OUTPUT, "Storage dtype of the output's floating-point tensors.", choices=tuple(FLOATS), shown="each tensor's own"
    )
    layout: list[str] | None = _flag(
        _MODELS,
        "Where it can't be detected: how each model, and then the base, stores Linear weights. hf: [out, in]; paddleformers:"
        " [in, out]; paddlenlp: that, under PaddleNLP's names.",
        choices=LAYOUTS,
        shown="detected",
    )
    strict_layout: bool = _flag(_MODELS, "Refuse to merge models of different layouts, instead of turning them.", False)
    output_layout: str | None = _flag(
        _OUTPUT, "Layout to store the merged model in, so that it loads there.", choices=LAYOUTS, shown="the first model's"
    )
    save_format: str = _flag(
        _OUTPUT,
        "Files to store the merged model in: safetensors, or pdparams, Paddle's pickles, for pipelines that want them.",
        "safetensors",
        choices=tuple(FORMATS),
    )
    config_from: str | None = _flag(
        _OUTPUT,
        "Folder to take config.json and the tokenizer from. The config also helps to detect the layout of models without"
        " one, such as a PaddleFormers checkpoint-N.",
        shown="the base model's, else the first model's that has them",
    )
    tokenizer_source: str | None = _flag(
        _OUTPUT,
        "Align vocabularies that differ, token by token, to those of one tokenizer, which the output gets: union (all tokens"
        " of all models), base (the base's, else the first model's), one of the models, or the folder of another.",
        shown="none: rows are merged as they stand",
    )
    copy_file_list: list[str] | None = _flag(
        _OUTPUT, "More files to copy from the folder that config and tokenizer come from, beside them."
    )
    chat_template: str | None = _flag(
        _OUTPUT,
        "The output's chat template: alpaca, chatml, exaone, llama3, mistral; auto, what most inputs have; or one in Jinja.",
        shown="that of the tokenizer",
    )
    n_process: int = _flag(_RUN, "Worker processes. The result doesn't depend on it.", 1)
    max_memory: str | None = _flag(
        _RUN,
        "A ceiling for all processes of this command (of each rank, if there are several), such as 2GB: only as many workers"
        " start, and each keeps only as much at a time, as stay within it; a merge that can't stay within it says what it"
        " needs.",
        shown="none",
    )
    tensor_type: str = _flag(
        _RUN,
        "What computes. np: NumPy, on the CPU. pd: Paddle, on `--device`; on the CPU the same result, but slower.",
        "np",
        choices=("np", "pd"),
    )
    device: str = _flag(
        _RUN,
        "Where pd computes: cpu; gpu, which takes up to 70 % of a GPU's memory; low_gpu_mem, a GPU too, which"
        " stays within max_tensor_mem; xpu or npu, likewise, with a Paddle built for them. gpu:1 is the second GPU; if no"
        " number is given, workers are spread over all.",
        "cpu",
    )
    max_tensor_mem: float = _flag(
        _RUN,
        "low_gpu_mem, xpu, npu: how many GiB of a device's memory to take, for tensors of any size. Elsewhere: no effect.",
        0.5,
    )
    dry_run: bool = _flag(
        _RUN,
        "Write nothing, and print the plan: what becomes of every tensor, and what memory, disk and time it takes, for which"
        " it merges a few pieces for two seconds. (Models named on a hub are downloaded, though.)",
        False,
    )
    account: str | None = _flag(
        _RUN,
        "A JSON file to write, in a dry run too: how every tensor of the output is made, and what becomes of every tensor of"
        " every input.",
        shown="none",
    )
    strict: bool = _flag(
        _RUN, "Make errors of the warnings: NaN or Inf in an input, sparsifying without a base model.", False
    )
    split_pieces: int = _flag(_PADDLE, "Has no effect: tensors are streamed, statistics are always of the whole tensor.", 8)
    convert_from_hf: bool = _flag(
        _PADDLE,
        "Inputs are detected, so it only counts together with save_to_hf: if they are equal, the layout stays.",
        True,
    )
    save_to_hf: bool = _flag(
        _PADDLE,
        "Unlike convert_from_hf: True stores as `--output_layout hf`, False as `--output_layout paddleformers`.",
        True,
    )
    merge_with_qdq_base_model: bool = _flag(
        _PADDLE,
        "Only counts where the base's config.json has a quantization_config, and folding into such a base is refused.",
        False,
    )


def of_fields(config: Any) -> list[str]:
    """What is wrong with single fields of a dataclass of flags: words that aren't choices, numbers that are none."""
    found: list[str] = []
    for item in dataclasses.fields(config):
        value, choices = getattr(config, item.name), item.metadata.get("choices")
        for word in value if isinstance(value, list) else [value]:
            if choices and word is not None and word not in choices:
                found.append(f"--{item.name} {word!r} must be one of {', '.join(choices)}{nearest(str(word), choices)}")
        numbers = value if isinstance(value, list | tuple) else [value]
        if any(isinstance(number, float) and not abs(number) < LARGEST for number in numbers):
            found.append(f"--{item.name} must be finite and smaller than {LARGEST:g}")
    return found


def to_types(config: Any) -> None:
    """Bring every field of a dataclass of flags to its type, `~` in paths to the home folder. Raises ConfigError."""
    problems = []
    for item in dataclasses.fields(config):
        value = getattr(config, item.name)
        if value is None:
            continue
        try:
            value = coerce(value, str(item.type))
        except ValueError as error:
            problems.append(f"--{item.name} {error}")
            continue
        if "_path" in item.name or item.name in ("config_from", "account", "tokenizer_source"):
            value = [os.path.expanduser(path) for path in value] if isinstance(value, list) else os.path.expanduser(value)
            if not _can_be_paths(value):
                problems.append(f"--{item.name} {value!r} holds a character that no path can")
        setattr(config, item.name, value)
    if problems:
        raise ConfigError(problems)


def _can_be_paths(value: str | list[str]) -> bool:
    """Whether there is no NUL in it, and no half of a surrogate pair that doesn't stand for a byte."""
    try:
        return b"\0" not in os.fsencode("".join(value))
    except UnicodeEncodeError:
        return False
