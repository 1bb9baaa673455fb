"""MergeConfig: PaddleNLP's and PaddleFormers' mergekit fields, name for name, and ours. It makes a Recipe.

The command line is built from these fields too, so their help texts are the documentation of the flags.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from . import checks
from .config_file import read_config_file
from .detect import LAYOUTS
from .dtypes import FLOATS
from .engine import GIB, Engine
from .errors import ConfigError
from .methods import MERGE_TYPES, METHODS, SPARSIFIERS
from .methods.dare import Dare
from .methods.linear import Linear
from .methods.magprune import Magprune
from .methods.slerp import Slerp
from .methods.ties import Ties
from .methods.trim import Trim
from .parsing import coerce, nearest, parse_size
from .recipe import Recipe

# Other names that PaddleNLP's documentation and older versions use for a field.
ALIASES = {
    "merge_preifx": "merge_prefix",
    "model_name_or_path_list": "model_path_list",
    "base_model_name_or_path": "base_model_path",
}
# Written beside the fields into merge_config.json; ignored when it is read back.
RECORD_KEYS = ("paddle_merge_version",)

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
class MergeConfig:
    """Everything a merge can be told, with PaddleNLP's names and defaults. `recipe()` checks it.

    Lists may be given as lists or tuples; None means "not given".
    """

    model_path_list: list[str] | None = _flag(
        _MODELS, "Folders (or files) of the models to merge: `--model_path_list a b c`."
    )
    model_path_str: str | None = _flag(_MODELS, "The same in one word, separated by commas; wins over model_path_list.")
    base_model_path: str | None = _flag(
        _MODELS,
        "The model that all of them were fine-tuned from. With it, methods work on task vectors (model minus base) and add"
        " the base back; every method but linear and slerp needs it to do what its paper says.",
    )
    merge_prefix: str = _flag(
        _MODELS,
        "Which weights of a folder: model (model.safetensors) or master_weights. `--merge_preifx` works too.",
        "model",
        choices=("model", "master_weights"),
    )
    weight_list: list[float] | None = _flag(
        _METHOD, "One weight per model: `--weight_list 0.3 0.7`. Without it all count the same.", shown="1 each, normalised"
    )
    merge_method: str | None = _flag(
        _METHOD, "A named pair of sparsifier and merge type.", choices=tuple(METHODS), shown="linear"
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
    seed: int = _flag(_TUNE, "dare, magprune: the same seed gives the same masks, for any number of workers.", 0)
    output_path: str | None = _flag(_OUTPUT, "Folder to write to.", shown="./merged-<method>")
    overwrite: bool = _flag(_OUTPUT, "Replace the weights of an earlier merge in that folder.", False)
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
    copy_file_list: list[str] | None = _flag(
        _OUTPUT, "More files to copy from the base model's folder (else the first model's), beside config and tokenizer."
    )
    n_process: int = _flag(_RUN, "Worker processes. The result doesn't depend on it.", 1)
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
    dry_run: bool = _flag(_RUN, "Print the plan and touch nothing.", False)
    strict: bool = _flag(
        _RUN, "Make errors of the warnings: NaN or Inf in an input, sparsifying without a base model.", False
    )
    lora_model_path: str | None = _flag(_PADDLE, "Folding LoRA adapters isn't there yet.")
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
    merge_with_qdq_base_model: bool = _flag(_PADDLE, "Quantised base models aren't there yet.", False)

    def __post_init__(self) -> None:
        """Bring every field to its type, `~` in paths to the home folder. Raises ConfigError."""
        problems = []
        for item in dataclasses.fields(self):
            value = getattr(self, item.name)
            if value is None:
                continue
            try:
                value = coerce(value, str(item.type))
            except ValueError as error:
                problems.append(f"--{item.name} {error}")
                continue
            if "_path" in item.name:
                value = (
                    [os.path.expanduser(path) for path in value] if isinstance(value, list) else os.path.expanduser(value)
                )
                if "\0" in "".join(value):
                    problems.append(f"--{item.name} {value!r} holds a NUL character")
            setattr(self, item.name, value)
        if problems:
            raise ConfigError(problems)

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any], where: str = "the config") -> MergeConfig:
        """From a JSON or YAML object of these fields, as PaddleNLP reads and writes it: null and "None" mean not given.

        Raises ConfigError listing every unknown field and wrong type.
        """
        return cls(**cls.known_fields(values, where))

    @classmethod
    def known_fields(cls, values: Mapping[str, Any], where: str) -> dict[str, Any]:
        """The given fields by their right names. Raises ConfigError listing all that don't exist or are of a wrong type."""
        problems: list[str] = []
        known: dict[str, Any] = {}
        types = {item.name: str(item.type) for item in dataclasses.fields(cls)}
        for key, value in values.items():
            name = ALIASES.get(key, key)
            if name in RECORD_KEYS or value is None or value == "None":
                continue
            if name not in types:
                problems.append(f"{where}: unknown field {key!r}{nearest(key, types)}")
                continue
            if name in known and known[name] != value:
                problems.append(f"{where}: {key!r} and another spelling of it disagree")
            try:
                known[name] = coerce(value, types[name])
            except ValueError as error:
                problems.append(f"{where}: {key!r} {error}")
        if problems:
            raise ConfigError(problems)
        return known

    from_file = staticmethod(read_config_file)

    # --- what it resolves to

    @property
    def models(self) -> list[str]:
        """The models' paths: model_path_str if given, else model_path_list."""
        if self.model_path_str:
            return [part.strip() for part in self.model_path_str.split(",") if part.strip()]
        return list(self.model_path_list or [])

    @property
    def parts(self) -> tuple[str | None, str]:
        """(sparsifier, merge type) by name."""
        if self.merge_method in METHODS:
            return METHODS[self.merge_method]
        sparsifier = None if self.sparsify_type in (None, "none") else self.sparsify_type
        return sparsifier, self.merge_type or "linear"

    @property
    def method(self) -> str:
        """The name of the pair: a merge method's if there is one, else "trim+slerp"."""
        names = {pair: name for name, pair in METHODS.items()}
        sparsifier, merge_type = self.parts
        return names.get((sparsifier, merge_type), f"{sparsifier}+{merge_type}")

    @property
    def output(self) -> str:
        """output_path, or ./merged-<method>."""
        return self.output_path or os.path.join(".", f"merged-{self.method}")

    @property
    def engine(self) -> Engine:
        """What computes. np computes on the CPU, whatever the device (checks.warnings says so)."""
        device = "cpu" if self.tensor_type == "np" else self.device
        return Engine(self.tensor_type, device, int(self.max_tensor_mem * GIB), workers=self.n_process)

    @property
    def stored_layout(self) -> str | None:
        """output_layout, or what PaddleFormers' two flags mean; None: the first model's."""
        if self.output_layout or self.convert_from_hf == self.save_to_hf:
            return self.output_layout
        return "hf" if self.save_to_hf else "paddleformers"

    def shard_bytes(self) -> int:
        """max_shard_size in bytes: "5GB" is 5e9, "5GiB" 5 * 2**30. Raises ValueError."""
        return parse_size(self.max_shard_size)

    def recipe(self) -> Recipe:
        """What is asked, checked. Raises ConfigError listing everything that is wrong."""
        problems = checks.problems(self)
        weights = tuple(self.weight_list) if self.weight_list is not None else (1.0,) * len(self.models)
        normalize = self.normalize or self.weight_list is None
        sparsifier_name, merge_type = self.parts
        sparsifiers: dict[str | None, Any] = {
            None: None,
            "trim": Trim(self.reserve_p, self.rescale),
            "dare": Dare(self.reserve_p, self.rescale),
            "magprune": Magprune(self.reserve_p, self.epsilon, self.rescale),
        }
        mergers: dict[str, Any] = {
            "linear": Linear(weights, normalize),
            "ties": Ties(weights, normalize, self.ties_elect_type, self.ties_zero_sign),
            "slerp": Slerp(self.slerp_alpha, self.slerp_normalize_eps, self.slerp_dot_threshold),
        }
        sparsifier, merger = sparsifiers.get(sparsifier_name), mergers.get(merge_type)
        if sparsifier is not None:
            problems += sparsifier.problems()
        if merger is not None and len(weights) == len(self.models) >= 2:
            problems += merger.problems(len(self.models))
        if problems:
            raise ConfigError(problems)
        return Recipe(
            models=tuple(self.models),
            base=self.base_model_path,
            sparsifier=sparsifier,
            merger=merger,
            method=self.method,
            scale=self.scale,
            seed=self.seed,
            prefix=self.merge_prefix,
            out_dtype=FLOATS[self.out_dtype] if self.out_dtype else None,
            layouts=tuple(self.layout or ()),
            output_layout=self.stored_layout,
            strict_layout=self.strict_layout,
        )

    def to_record(self) -> dict[str, Any]:
        """The fields that, read back from any folder, repeat this merge: paths made absolute, the method resolved."""
        record = dataclasses.asdict(self)
        for name in ("model_path_str", "overwrite", "dry_run"):
            del record[name]
        sparsifier, merge_type = self.parts
        record.update(
            model_path_list=[os.path.abspath(path) for path in self.models],
            base_model_path=os.path.abspath(self.base_model_path) if self.base_model_path else None,
            output_path=os.path.abspath(self.output),
            merge_method=self.method if self.method in METHODS else None,
            merge_type=merge_type,
            sparsify_type=sparsifier,
        )
        return record
