"""Check from an adapter's config file whether it can be folded into a model, and compute its scale."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

from ...checkpoints.adapters import Adapter, Module
from ...dtypes import LARGEST
from ...errors import MalformedError
from ...parsing import shown

# Fields of lora_config.json and adapter_config.json that, if set, mean that the adapted weight is not W + s B A; and why.
_PADDLE = {
    "pissa": "PiSSA changes the base: it subtracts the initial adapter from the model",
    "use_mora": "PaddleNLP's own folding of MoRA differs from what it computes in training",
    "do_qat": "it was trained with quantised weights",
    "enable_lora_list": "it adapts some of a fused layer's outputs, in an order that its file doesn't give",
    "use_vera": "VeRA's random matrices are not in the file",
}
_PEFT = {
    "use_qalora": "QA-LoRA pools its inputs; PEFT's merge_and_unload folds it: give the model that it makes",
    "alora_invocation_tokens": "aLoRA is active only after certain tokens, which weights can't express",
    "layer_replication": "it repeats layers",
    "arrow_config": "Arrow chooses among adapters for every token",
    "use_bdlora": "BD-LoRA's matrices are block-diagonal",
    "kasa_config": "KaSA changes the base model",
    "monteclora_config": "MonteCLoRA's adapters are random",
    "velora_config": "VeLoRA is not supported",
    "megatron_config": "Megatron's adapters are split among ranks",
}
# Other types of PEFT's adapters: those that PEFT 0.21 folds itself, and those that no library can fold.
_PEFT_FOLDS = (
    *("ADALORA", "BOFT", "C3A", "DELORA", "FOURIERFT", "HRA", "IA3", "LN_TUNING", "LOHA", "LOKR", "MISS", "OFT", "RANDLORA"),
    *("SHIRA", "VBLORA", "VERA"),
)
_NO_WEIGHTS = ("PROMPT_TUNING", "PREFIX_TUNING", "P_TUNING", "MULTITASK_PROMPT_TUNING", "ADAPTION_PROMPT", "CPT")
# Types of the fields that are read here. They are checked because the string "false" would count as true.
_TYPES: dict[str, tuple[type, ...]] = {
    **dict.fromkeys(("rank_pattern", "alpha_pattern"), (dict,)),
    **dict.fromkeys(("use_rslora", "rslora", "use_dora", "lora_bias", "fan_in_fan_out", "loraga"), (bool,)),
    "lora_use_mixer": (bool,),
    "scaling": (int, float),
    "target_parameters": (list,),
    "trainable_token_indices": (list, dict),
}
_SLOW = re.compile(r"\)[*+{]|\\[1-9]|\(\?P=")  # repeated groups and backreferences, which can take exponential time
# Initialisations (init_lora_weights) that change the base model. PEFT sets the field to True in adapters that it converts.
_CHANGE_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")
# Fields that, if true, mean that every module has a further tensor: (its role as in adapters.Module, its name).
_TENSORS = {
    "use_dora": ("lengths", "lora_magnitude_vector"),
    "lora_bias": ("bias", "lora_B.bias"),
    "lora_use_mixer": ("AB", "lora_AB"),
}


def config_problems(adapter: Adapter) -> list[str]:
    """Return a sentence on each setting in an adapter's config that makes it impossible to fold it into any model."""
    config, found = adapter.config, []
    for name, why in (_PADDLE if adapter.kind == "paddle" else _PEFT).items():
        if config.get(name):
            found.append(f"{adapter.path}: can't be folded: its config sets {name}, and {why}")
    for name, types in _TYPES.items():
        if config.get(name) is not None and type(config[name]) not in types:
            found.append(f"{adapter.path}: its config sets {name} to {shown(config[name])}, which has a wrong type")
    if adapter.kind == "peft":
        kind = config.get("peft_type")
        if kind not in ("LORA", "TRAINABLE_TOKENS"):
            remedy = "; PEFT's merge_and_unload folds it: give the model that it makes" if kind in _PEFT_FOLDS else ""
            remedy = "; it changes what goes into layers, and no weights" if kind in _NO_WEIGHTS else remedy
            found.append(
                f"{adapter.path}: can't be folded: its config has peft_type {shown(kind)}, and only LORA and"
                f" TRAINABLE_TOKENS are supported{remedy}"
            )
        if any(".base_layer.out_proj.lora_" in name for name in adapter.tensors):
            found.append(
                f"{adapter.path}: can't be folded: it adapts torch's own MultiheadAttention, and PEFT 0.21 adds the"
                " factors of its out_proj twice; PEFT's merge_and_unload folds it: give the model that it makes"
            )
        start = config.get("init_lora_weights", True)
        if isinstance(start, str) and start.lower().startswith(_CHANGE_BASE):
            found.append(
                f"{adapter.path}: can't be folded: it was initialised with init_lora_weights {shown(start)}, which changes"
                " the base model; convert it with PEFT's path_initial_model_for_weight_conversion first"
            )
        if config.get("bias", "none") not in ("none", "all", "lora_only"):
            found.append(f"{adapter.path}: its config sets bias to {shown(config['bias'])}, which is not supported")
    return found


def check_tensors(adapter: Adapter, module: Module) -> None:
    """Raise MalformedError unless a module has all tensors that the config implies, no others, none empty, all of floats."""
    held = module.tensors
    if empty := [entry.name for entry in held.values() if 0 in entry.shape]:
        raise MalformedError(
            f"can't be folded: {empty[0]!r} is empty, as DeepSpeed's ZeRO-3 saves it; save the adapter with its weights"
            " gathered (stage3_gather_16bit_weights_on_model_save)"
        )
    if "rows" in held:
        if len(held) > 1:
            raise MalformedError("has low-rank factors and rows of single tokens, which PEFT doesn't train together")
        return
    for one, other in (("A", "B"), ("embedding A", "embedding B")):
        if (one in held) != (other in held):
            raise MalformedError(f"has no lora_{other if one in held else one}, so it can't be folded")
    if not {"A", "embedding A"} & held.keys():
        raise MalformedError("has neither lora_A nor lora_B")
    known = ("embedding A", "embedding B", "lengths") if "embedding A" in held else ("A", "AB", "B", "bias", "lengths")
    if more := [entry.name for role, entry in held.items() if role not in known]:
        raise MalformedError(f"has more tensors than those of one layer: {', '.join(map(repr, more))}")
    if others := [f"{entry.name!r} is {entry.dtype.name}" for entry in held.values() if not entry.dtype.is_float]:
        raise MalformedError(f"can't be folded: {', '.join(others)}")
    for name, (role, called) in _TENSORS.items():
        if role in known and bool(adapter.config.get(name)) != (role in held):
            fault = "has a" if role in held else "has no"
            raise MalformedError(f"{fault} {called}, but its config sets {name} to {adapter.config.get(name)}")


def scaling(adapter: Adapter, module: str, rank: int) -> float:
    """Return the scale s of W + s B A for one module: alpha / r, or alpha / sqrt(r) for rsLoRA.

    rank: that of the module's factors. Raises MalformedError if the config contradicts it, or gives no usable r and alpha.
    """
    config, r = adapter.config, stated_rank(adapter, module)
    alpha = _of(config, "alpha_pattern", module)
    alpha = config.get("lora_alpha") if alpha is None else alpha
    if type(r) is not int or r < 1 or not _is_number(alpha):
        raise MalformedError(f"can't be scaled: the adapter's config has r {shown(r)} and lora_alpha {shown(alpha)}")
    wide = adapter.kind == "paddle" and config.get("loraga")  # LoRA-GA is saved as [A | A0] and [B; -B0], of twice the rank
    if rank not in ((r, 2 * r) if wide else (r,)):
        raise MalformedError(f"has rank {rank}, but the adapter's config says {shown(r)}")
    root = config.get("use_rslora" if adapter.kind == "peft" else "rslora")
    scale = float(alpha) / (math.sqrt(r) if root else r)  # type: ignore[arg-type]
    stated = config.get("scaling") if adapter.kind == "paddle" else None
    if stated is not None and not (_is_number(stated) and math.isclose(stated, scale, rel_tol=1e-6)):
        raise MalformedError(f"would be scaled by {scale:g}, but the adapter's config says scaling {shown(stated)}")
    return scale


def stated_rank(adapter: Adapter, module: str) -> Any:
    """Return the rank that an adapter's config states for a module, of whatever type it is. Raises MalformedError."""
    return _of(adapter.config, "rank_pattern", module) or adapter.config.get("r")


def token_numbers(adapter: Adapter, module: str) -> list[int]:
    """Return the numbers of the rows that an adapter of PEFT replaces in an embedding or lm_head.

    Raises MalformedError if its config doesn't give them.
    """
    whole = adapter.config.get("peft_type") == "TRAINABLE_TOKENS"
    given: Any = adapter.config.get("token_indices" if whole else "trainable_token_indices")
    if isinstance(given, dict):
        given = next((numbers for name, numbers in given.items() if f".{module}".endswith(f".{name}")), None)
    if not isinstance(given, list) or not given or any(type(number) is not int or number < 0 for number in given):
        raise MalformedError(f"has rows, but the adapter's config doesn't say for which tokens: {shown(given)}")
    return given


def _is_number(value: Any) -> bool:
    """Return whether it is a finite number of at most LARGEST."""
    return type(value) in (int, float) and -LARGEST < value < LARGEST


def is_slow(pattern: str) -> bool:
    """Return whether a regular expression could take very long to match."""
    return bool(_SLOW.search(pattern)) or len(re.findall(r"[*+{]", pattern)) > 3


def _of(config: Mapping[str, Any], patterns: str, module: str) -> Any:
    """Return the value of the first pattern in the table `patterns` that matches the end of a module's name, as PEFT does.

    None if no pattern matches. Raises MalformedError for a pattern that is invalid, or that could take very long to match.
    """
    table = config.get(patterns) or {}
    if not isinstance(table, dict):  # `config_problems` reports this too, but inspect calls scaling() nevertheless
        raise MalformedError(f"can't be scaled: the adapter's {patterns} is {shown(table)}")
    for pattern, value in table.items():
        if is_slow(pattern):
            raise MalformedError(
                f"can't be scaled: the adapter's {patterns} has {shown(pattern)}, which could take very long to match; name"
                " the modules with fewer repetitions"
            )
        try:
            if re.match(rf"(.*\.)?({pattern})$", module):
                return value
        except (re.error, OverflowError, RecursionError) as error:
            raise MalformedError(
                f"can't be scaled: the adapter's {patterns} has {shown(pattern)}, which isn't a valid pattern ({error})"
            ) from None
    return None
