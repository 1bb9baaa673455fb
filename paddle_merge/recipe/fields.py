"""The fields of a merge's configuration, with defaults and help texts.

They are the fields of PaddleNLP's and PaddleFormers' mergekit, under the same names, and further ones. The command line
makes a flag of each; request.py says what they mean together.
"""

from __future__ import annotations

import dataclasses
import os
from dataclasses import dataclass, field
from typing import Any, Literal

from ..checkpoints.formats.folder import PREFIXES
from ..checkpoints.formats.naming import FORMATS
from ..checkpoints.names import LAYOUTS
from ..dtypes import LARGEST, OUT_DTYPES
from ..errors import ConfigError
from ..methods.paddlenlp import MERGE_TYPES, METHODS, SPARSIFIERS
from ..methods.registry import NAMED
from ..parsing import coerce, nearest

# The groups of flags in --help.
_MODELS, _METHOD, _TUNE = "What to merge", "How to merge", "Parameters of the methods"
_OUTPUT, _RUN, _PADDLE = "Output", "Running", "PaddleNLP compatibility"


def flag(group: str, help: str, default: Any = None, **metadata: Any) -> Any:
    """Return a dataclass field with its help text.

    metadata: `shown` is the default as --help shows it, `choices` are the allowed strings.
    """
    extra = {"group": group, "help": help, **metadata}
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata=extra)
    return field(default=default, metadata=extra)


@dataclass
class Fields:
    """Declare the fields of MergeConfig. Lists may be given as lists or tuples; None means "not given"."""

    model_path_list: list[str] | None = flag(_MODELS, "Folders or files of the models to merge: `--model_path_list a b c`.")
    model_path_str: str | None = flag(
        _MODELS, "The models to merge as one string, separated by commas. It replaces model_path_list."
    )
    base_model_path: str | None = flag(
        _MODELS,
        "The model that all the others were fine-tuned from. With it, methods merge task vectors (model minus base) and add"
        " the result to the base. Every method except linear and slerp needs it to do what its paper describes.",
    )
    lora_model_path: str | None = flag(
        _MODELS,
        "Folder of a LoRA adapter, in PEFT's or Paddle's format, to fold into base_model_path. To merge adapters by any"
        " method, write each after its base: `--model_path_list base+math base+code --base_model_path base`.",
    )
    allow_untrained: bool = flag(
        _MODELS,
        "Fold adapters that change nothing, because they were never trained (every lora_B is zero), with a warning, instead"
        " of refusing them.",
        False,
    )
    merge_prefix: str = flag(
        _MODELS,
        "Weights of a folder to merge, and of the output: model (model.safetensors), master_weights, or"
        " diffusion_pytorch_model, which is also taken if all models are of diffusers. `--merge_preifx` works too.",
        "model",
        choices=PREFIXES,
    )
    recipe_yaml: str | None = flag(
        _MODELS,
        "A recipe in mergekit's YAML that gives models, method and parameters: the path of a file, or the YAML text itself."
        " The usual way to give one is `python -m paddle_merge recipe.yaml`.",
    )
    print_recipe: bool = flag(_MODELS, "Print the recipe that the flags describe, in YAML, and don't merge.", False)
    weight_list: list[float] | None = flag(
        _METHOD,
        "One weight per model: `--weight_list 0.3 0.7`. By default all are equal.",
        shown="1 each, normalised",
    )
    merge_method: str | None = flag(
        _METHOD,
        "The merge method: one of PaddleNLP's, which are named pairs of sparsifier and merge type, or one of those that"
        " recipes name.",
        choices=(*METHODS, *(name for name in NAMED if name not in METHODS)),
        shown="linear",
    )
    method_parameters: list[str] | None = flag(
        _METHOD,
        "Parameters of a method that PaddleNLP doesn't have, by their names in recipes: `--method_parameters gamma=0.02`."
        " normalize=true and rescale=true turn these on for methods where they are off by default.",
    )
    merge_type: str | None = flag(
        _METHOD, "Instead of merge_method: how the task vectors are combined.", choices=MERGE_TYPES, shown="linear"
    )
    sparsify_type: str | None = flag(
        _METHOD,
        "Instead of merge_method: which elements of each task vector are kept. trim: the largest; dare: random ones;"
        " magprune: random ones, with a higher probability for larger ones.",
        choices=("none", *SPARSIFIERS),
        shown="none",
    )
    normalize: bool = flag(
        _METHOD, "Divide by the sum of the weights (ties: of the models that agree with the elected sign).", True
    )
    scale: float = flag(_METHOD, "Factor on the merged task vector that is added to the base model, which it needs.", 1.0)
    reserve_p: float = flag(
        _TUNE, "trim, dare, magprune: fraction of elements to keep (density, or 1 - drop rate, in the papers).", 0.7
    )
    rescale: bool = flag(
        _TUNE,
        "Scale the kept elements up: dare and magprune by 1 / keep probability, trim so that the tensor keeps its L1 norm."
        " For trim, PaddleNLP does this and the TIES paper doesn't; it makes a merge of many models too strong, so try"
        " --no_rescale.",
        True,
    )
    epsilon: float = flag(
        _TUNE, "magprune: full width of the range of keep probabilities (DELLA's code gives half of it).", 0.14
    )
    ties_elect_type: str = flag(
        _TUNE,
        "ties: elect the sign of each element by the sum of the weighted values, or by the count of their signs.",
        "sum",
        choices=("sum", "count"),
    )
    ties_zero_sign: str = flag(
        _TUNE,
        "ties: the sign to elect where the votes cancel exactly. positive: plus, as in PaddleNLP (which biases merges of"
        " bfloat16 models); majority: the tensor's most frequent sign; drop: none, so the element keeps the base's value.",
        "positive",
        choices=("positive", "majority", "drop"),
    )
    slerp_alpha: float = flag(_TUNE, "slerp: interpolation factor; 0 gives the first model, 1 the second.", 0.5)
    slerp_dot_threshold: float = flag(
        _TUNE, "slerp: interpolate linearly where the absolute cosine of the two tensors is above this.", 0.9995
    )
    slerp_normalize_eps: float = flag(_TUNE, "slerp: a norm up to this value is taken as 1.", 1e-8)
    seed: int | None = flag(
        _TUNE,
        "Seed of the random masks. The same seed gives the same masks, for any number of workers.",
        shown="0, or the recipe's own",
    )
    missing_tensors: str = flag(
        _METHOD,
        "What becomes of tensors that only some of the models have. error: the merge is refused; union: the output has them,"
        " made of the models that have them; fill: the output has the base model's tensors, so what a model lacks is the"
        " others', or the base's, and what the base lacks is left out; intersection: all of them are left out.",
        "error",
        choices=("error", "union", "fill", "intersection"),
    )
    output_path: str | None = flag(_OUTPUT, "Folder to write the merged checkpoint to.", shown="./merged-<method>")
    overwrite: bool = flag(_OUTPUT, "Replace the checkpoint of an earlier merge in output_path.", False)
    resume: bool = flag(
        _OUTPUT,
        "Continue an interrupted merge into output_path, given the same flags and inputs; if there is none, start one.",
        False,
    )
    max_shard_size: str = flag(
        _OUTPUT,
        "Split the output into files of at most this size; it is one file if it fits. 5GB is 5e9 bytes, 5GiB 5 * 2^30.",
        "5GB",
    )
    out_dtype: str | None = flag(
        _OUTPUT,
        "Storage dtype of the output's floating-point tensors. fp8_block: the weights of Linear layers as float8_e4m3fn,"
        " with a float32 scale for each block of 128 x 128, as in DeepSeek-V3 and Qwen3-FP8, and the others as bfloat16;"
        " fp8_channel: with a bfloat16 scale for each row, as llm-compressor's FP8_DYNAMIC.",
        choices=tuple(OUT_DTYPES),
        shown="each tensor's own",
    )
    layout: list[str] | None = flag(
        _MODELS,
        "How each model, and then the base, stores Linear weights, where this can't be detected. hf: [out, in];"
        " paddleformers: [in, out]; paddlenlp: [in, out], with PaddleNLP's tensor names.",
        choices=LAYOUTS,
        shown="detected",
    )
    strict_layout: bool = flag(
        _MODELS, "Refuse to merge models of different layouts, instead of transposing weights.", False
    )
    tie: str = flag(
        _OUTPUT,
        "Whether lm_head is tied to the embedding. auto: as in the models, and not if only some of them tie it; keep: tied,"
        " even if some models don't tie it, whose own lm_head is then left out; untie: not tied, even if all models tie it.",
        "auto",
        choices=("auto", "keep", "untie"),
    )
    output_layout: str | None = flag(
        _OUTPUT,
        "Layout to store the merged model in: that of the library which is to load it.",
        choices=LAYOUTS,
        shown="the first model's",
    )
    save_format: str = flag(
        _OUTPUT,
        "File format of the merged model: safetensors, or pdparams (Paddle's pickle format) for pipelines that need it.",
        "safetensors",
        choices=tuple(FORMATS),
    )
    config_from: str | None = flag(
        _OUTPUT,
        "Folder to take config.json and the tokenizer from. Its config.json is also used to detect the layout of models"
        " that have none, such as a PaddleFormers checkpoint-N.",
        shown="the base model's, else the first model's that has them",
    )
    tokenizer_source: str | None = flag(
        _OUTPUT,
        "Align different vocabularies, token by token, to one tokenizer, which the output gets: union (all tokens of all"
        " models), base (the base model's, else the first model's), the path of one of the models, or another folder.",
        shown="none: embedding rows are merged by their index",
    )
    expert_alignment: str | None = flag(
        _METHOD,
        "Which experts of mixtures of experts are merged with which. index: expert k with expert k, right for models of one"
        " base; match: those that resemble one another, for models that were trained apart, whose neurons are matched too;"
        " or the path of an expert_alignment.npz that an earlier merge of the same models wrote.",
        shown="index",
    )
    router: str | None = flag(
        _METHOD,
        "The routers of mixtures of experts. merge: by the method, as all tensors; base: those of base_model_path, with"
        " which tokens find the experts that they went to before fine-tuning.",
        choices=("merge", "base"),
        shown="merge",
    )
    expert_layout: str | None = flag(
        _OUTPUT,
        "How to store experts. split: a matrix for each, as transformers' and PaddleFormers' files of most models; stacked:"
        " one tensor for all experts of a layer, as transformers 5 has them in memory.",
        choices=("split", "stacked"),
        shown="as in the models; split if they differ",
    )
    copy_file_list: list[str] | None = flag(
        _OUTPUT, "Further files to copy from the folder that config.json and the tokenizer are taken from."
    )
    chat_template: str | None = flag(
        _OUTPUT,
        "Chat template of the output: alpaca, chatml, exaone, llama3 or mistral; auto (the one that most inputs have); or a"
        " Jinja template.",
        shown="the tokenizer's",
    )
    n_process: int | Literal["auto"] = flag(
        _RUN,
        "Number of worker processes. auto: one for each core that this process may use (on GPUs one for each), as far as"
        " memory and the size of the merge make them worth while. The result doesn't depend on it.",
        "auto",
    )
    max_memory: str | None = flag(
        _RUN,
        "Memory limit for all processes of this command (of each rank, if there are several), such as 2GB. To stay within"
        " it, fewer workers are started, and each holds less data at a time. If that isn't enough, the command says how"
        " much memory the merge needs.",
        shown="none",
    )
    tensor_type: str = flag(
        _RUN,
        "Library that computes. np: NumPy, on the CPU. pd: Paddle, on `--device`; on the CPU it gives the same result, more"
        " slowly.",
        "np",
        choices=("np", "pd"),
    )
    device: str = flag(
        _RUN,
        "Device that pd computes on. cpu; gpu: a GPU, up to 70 % of its memory; low_gpu_mem: a GPU, within max_tensor_mem;"
        " xpu or npu: within max_tensor_mem, with a Paddle built for them. gpu:1 is the second GPU; without a number, the"
        " workers are spread over all devices.",
        "cpu",
    )
    max_tensor_mem: float = flag(
        _RUN,
        "low_gpu_mem, xpu, npu: GiB of memory to use on each device, for tensors of any size. No effect on other devices.",
        0.5,
    )
    dry_run: bool = flag(
        _RUN,
        "Print the plan and write nothing: what happens to every tensor, and how much memory, disk space and time the merge"
        " takes. To estimate the time, parts of tensors are merged for about two seconds. Models named on a hub are"
        " downloaded.",
        False,
    )
    account: str | None = flag(
        _RUN,
        "JSON file to write, in a dry run too: how every tensor of the output is made, and what happens to every tensor of"
        " every input.",
        shown="none",
    )
    strict: bool = flag(
        _RUN, "Treat two warnings as errors: NaN or Inf in an input, and sparsification without a base model.", False
    )
    split_pieces: int = flag(
        _PADDLE, "No effect: tensors are streamed, and statistics are always those of the whole tensor.", 8
    )
    convert_from_hf: bool = flag(
        _PADDLE,
        "Only compared with save_to_hf, since the layout of the inputs is detected: if the two are equal, the output has the"
        " first model's layout.",
        True,
    )
    save_to_hf: bool = flag(
        _PADDLE,
        "If it differs from convert_from_hf, True means `--output_layout hf`, and False `--output_layout paddleformers`.",
        True,
    )
    merge_with_qdq_base_model: bool = flag(
        _PADDLE,
        "Quantise and dequantise weights before an adapter is folded in that was trained on quantised ones: those that the"
        " quantization_config of the config.json beside the adapter lists (weight_only_int8, weight_only_int4). A base model"
        " that is itself quantised is read as the numbers that its codes stand for, with or without this.",
        False,
    )


def of_fields(config: Any) -> list[str]:
    """Return what is wrong with single fields of a dataclass of flags: values that aren't choices, or not finite."""
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
    """Convert every field of a dataclass of flags to its type, and `~` in paths to the home folder.

    Raises ConfigError listing the values that can't be converted.
    """
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
        if "_path" in item.name or item.name in ("config_from", "account", "tokenizer_source", "expert_alignment"):
            value = [os.path.expanduser(path) for path in value] if isinstance(value, list) else os.path.expanduser(value)
            if not _can_be_paths(value):
                problems.append(f"--{item.name} {value!r} holds a character that paths can't have")
        setattr(config, item.name, value)
    if problems:
        raise ConfigError(problems)


def _can_be_paths(value: str | list[str]) -> bool:
    """Return whether the text has neither a NUL nor a lone surrogate that doesn't stand for a byte of a file name."""
    try:
        return b"\0" not in os.fsencode("".join(value))
    except UnicodeEncodeError:
        return False
