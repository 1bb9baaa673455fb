"""The settings of a merge of adapters, which are the flags of `python -m paddle_merge merge-lora`."""

from __future__ import annotations

from dataclasses import dataclass

from ...dtypes import FLOATS, LARGEST
from ...errors import ConfigError
from ...methods.paddlenlp import METHODS
from ...methods.registry import NAMED
from ...recipe.fields import flag, to_types
from .. import common_flags
from ..extract_lora.adapter_files import LAYOUTS
from ..flags import PROGRAM
from .peft_types import ELECTING, PRUNING, TRUNCATED, TYPES

_INPUTS, _HOW, _TUNE = "What to merge", "How to merge", "With --merge_method"


@dataclass
class MergeLoraConfig:
    """The settings of a merge of adapters."""

    adapter_path_list: list[str] = flag(
        _INPUTS, "Folders of the LoRA adapters. On the command line they are the words without a flag.", []
    )
    weight_list: list[float] | None = flag(
        _INPUTS,
        "One weight per adapter: `--weight_list 0.7 0.3`. A negative weight takes an adapter's change away.",
        shown="1 each: the adapters' changes add up",
    )
    base_model_path: str | None = flag(
        _INPUTS,
        "The model that the adapters were trained on. It is needed where the adapters, or they and --format, are of"
        " different libraries, because it gives the layers' names; and to add up whole tensors that were trained, such as"
        " those in modules_to_save, unless the weights of the adapters that hold them add up to 1. Its weights are read only"
        " for the latter.",
        shown="none",
    )
    layout: str | None = common_flags.layout(_INPUTS, "that of the base model")
    combination_type: str | None = flag(
        _HOW,
        "How to combine adapters, by the names of PEFT's add_weighted_adapter. cat: side by side, exactly; the rank adds up."
        " svd: the same, cut off to --rank or --energy. The types that end in _svd compute with the changes, the others with"
        " the low-rank matrices themselves, which approximates nothing in particular.",
        choices=TYPES,
        shown="cat; svd with --rank or --energy",
    )
    merge_method: str | None = flag(
        _HOW,
        "Instead of a combination type: merge the adapters' changes as `merge` merges task vectors, by any of its methods,"
        " and cut the result off to --rank or --energy.",
        choices=(*METHODS, *(name for name in NAMED if name not in METHODS)),
        shown="none",
    )
    rank: int | None = flag(
        _HOW,
        "Highest rank of the output, where it is cut off.",
        shown="the highest rank among the adapters; none with --energy",
        least=1,
    )
    energy: float | None = flag(
        _HOW,
        "Give each matrix the lowest rank that keeps this share of the sum of squares of the merged change, such as 0.99;"
        " with --rank, at most that rank.",
        shown="none",
    )
    reserve_p: float | None = flag(
        _HOW,
        "Share of elements that pruning keeps; PEFT's density, so `--density` works too. PEFT's types need it.",
        shown="0.7 with --merge_method",
    )
    majority_sign_method: str = flag(
        _HOW,
        "ties, dare_ties, ties_svd, dare_ties_svd: elect the sign of each element by the sum of the values (total) or of"
        " their signs (frequency), before weights.",
        "total",
        choices=("total", "frequency"),
    )
    seed: int = flag(_HOW, "Seed of the random masks. The same seed gives the same masks.", 0)
    method_parameters: list[str] | None = common_flags.as_in_merge(_TUNE, "method_parameters")
    normalize: bool = common_flags.as_in_merge(_TUNE, "normalize")
    scale: float = common_flags.as_in_merge(_TUNE, "scale")
    rescale: bool = common_flags.as_in_merge(_TUNE, "rescale")
    epsilon: float = common_flags.as_in_merge(_TUNE, "epsilon")
    ties_elect_type: str = common_flags.as_in_merge(_TUNE, "ties_elect_type")
    ties_zero_sign: str = common_flags.as_in_merge(_TUNE, "ties_zero_sign")
    slerp_alpha: float = common_flags.as_in_merge(_TUNE, "slerp_alpha")
    output_path: str = flag(common_flags.OUTPUT, "Folder for the adapter and merge_lora_report.json.", "lora_merged")
    format: str | None = flag(
        common_flags.OUTPUT,
        "The library that is to load the adapter.",
        choices=tuple(LAYOUTS),
        shown="the adapters' own",
    )
    out_dtype: str | None = flag(
        common_flags.OUTPUT,
        "Storage dtype of the low-rank matrices.",
        choices=tuple(FLOATS),
        shown="the adapters' own; if they differ, float32",
    )
    overwrite: bool = flag(common_flags.OUTPUT, "Replace an adapter in the output folder.", False)
    n_process: int | None = common_flags.n_process()
    dry_run: bool = flag(common_flags.RUNNING, "Check everything, print what would be done, and write nothing.", False)

    def __post_init__(self) -> None:
        """Convert the fields to their types. Raises ConfigError."""
        to_types(self)

    @property
    def type(self) -> str | None:
        """The combination type, given or by default; None with --merge_method."""
        default = "cat" if self.rank is None and self.energy is None else "svd"
        return (self.combination_type or default) if self.merge_method is None else None

    @property
    def truncates(self) -> bool:
        """Whether the merged change is cut off to a rank."""
        return self.type is None or self.type in TRUNCATED

    @property
    def weights(self) -> list[float]:
        """One weight per adapter, as the exact sum has them."""
        return self.weight_list or [1.0] * len(self.adapter_path_list)

    def check(self) -> None:
        """Raise ConfigError listing everything that is wrong, as far as no file has to be opened."""
        found, count = common_flags.problems(self), len(self.adapter_path_list)
        if not count:
            found.append(f"give the adapters to merge: {PROGRAM} merge-lora ADAPTER ADAPTER --output_path FOLDER")
        if self.weight_list is not None and count and len(self.weight_list) != count:
            found.append(f"--weight_list has {len(self.weight_list)} numbers for {count} adapters")
        if any(0 < abs(weight) < 1 / LARGEST for weight in self.weight_list or ()):
            found.append(
                f"--weight_list has a weight smaller than {1 / LARGEST:g}, too small for float32; scale them all up"
            )
        if self.layout is not None and self.base_model_path is None:
            found.append("--layout is that of the base model, so it needs --base_model_path")
        if self.energy is not None and not 0 < self.energy <= 1:
            found.append(f"--energy {self.energy:g} must be above 0 and at most 1: the share to keep")
        if self.merge_method and self.combination_type:
            found.append("--merge_method and --combination_type are two ways to merge; give one of them")
        if (self.rank is not None or self.energy is not None) and not self.truncates:
            remedy = "svd" if self.type in ("cat", "linear") else f"{self.type}_svd"
            found.append(
                f"--rank and --energy cut the merged change off, which --combination_type {self.type} doesn't do; use"
                f" {remedy}"
            )
        found += self._of_types() if self.merge_method is None else self._of_methods()
        if found:
            raise ConfigError(found)

    def _of_types(self) -> list[str]:
        """Return what is wrong with flags of PEFT's types."""
        found = []
        if self.type in PRUNING and self.reserve_p is None:
            found.append(f"--combination_type {self.type} needs --density, the share of elements to keep, such as 0.5")
        if self.type not in PRUNING and self.reserve_p is not None:
            found.append(f"--density has no effect with --combination_type {self.type}; leave it out")
        if self.reserve_p is not None and not 0 < self.reserve_p <= 1:
            found.append(f"--density {self.reserve_p:g} must be above 0 and at most 1: the share to keep")
        if self.type not in ELECTING and self.majority_sign_method != "total":
            found.append(f"--majority_sign_method has no effect with --combination_type {self.type}; leave it out")
        idle = [
            name
            for name, item in self.__dataclass_fields__.items()
            if item.metadata["group"] == _TUNE and getattr(self, name) != item.default
        ]
        if idle:
            found.append(f"{', '.join(f'--{name}' for name in idle)}: for --merge_method only; leave out, or give a method")
        return found

    def _of_methods(self) -> list[str]:
        """Return what is wrong with flags beside --merge_method, as far as by_method.py doesn't say it."""
        found = []
        if self.majority_sign_method != "total":
            found.append("--majority_sign_method is for PEFT's types; with --merge_method give --ties_elect_type")
        method = NAMED.get(str(self.merge_method))
        if self.merge_method not in METHODS and method is not None and (method.base == "first" or method.most == 1):
            found.append(f"--merge_method {method.name} changes one model, and several adapters have none in common")
        return found
