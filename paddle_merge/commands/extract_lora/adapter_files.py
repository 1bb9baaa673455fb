"""Arrange LoRA adapters in the formats that PEFT, PaddleNLP and PaddleFormers read. Nothing is read or written here.

    format          files                                           added to the weight of layer X
    peft            adapter_config.json, adapter_model.safetensors  X.lora_B.weight [out, r] @ X.lora_A.weight [r, in], both
                                                                    named after "base_model.model."
    paddlenlp,      lora_config.json, peft_model.safetensors.index  X.lora_A [in, r] @ X.lora_B [r, out]
    paddleformers   .json, peft_model-00001-of-00001.safetensors

All scale the product by alpha / r, which is 1 here. Beside the factors, an adapter can hold tensors that replace those of
the base model: in PEFT biases, and all tensors of the modules in `modules_to_save`; in Paddle those in `trainable_modules`.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Collection, Mapping, Sequence

import numpy as np

from ...checkpoints.formats.header import Held
from ...checkpoints.formats.safetensors import header
from ...checkpoints.tensors import TensorEntry
from ...conversion.naming import in_memory
from ...dtypes import DType
from ...plan.plan import Shard
from ...records import record
from ...run.output.disk import json_bytes

# Format -> the layout of its names and factors.
LAYOUTS = {"peft": "hf", "paddlenlp": "paddlenlp", "paddleformers": "paddleformers"}
# Format -> the beginning of the name of the weights file.
PREFIXES = {"peft": "adapter_model", "paddlenlp": "peft_model", "paddleformers": "peft_model"}
# The elements of a tensor as they are stored, C-contiguous; or the tensor of a checkpoint to copy.
Stored = np.ndarray | TensorEntry


@record(frozen=True)
class Factors:
    """The factors of the change of a weight [m, n]: left [m, r] @ right [r, n], in the weight's layout.

    The elements of both are as they are stored in `dtype`.
    """

    left: np.ndarray
    right: np.ndarray
    dtype: DType

    @property
    def rank(self) -> int:
        """The rank r."""
        return len(self.right)


@record(frozen=True)
class NewAdapter:
    """A LoRA adapter to be written, without its tensors' elements.

    prefix: of the name of the weights file. shards: one. offsets: tensor -> byte offset in the shard. configs: name ->
    content of the files beside the weights. held: the tensors as they are stored. indexed: whether an index file is written.
    """

    prefix: str
    shards: tuple[Shard, ...]
    offsets: Mapping[str, int]
    configs: Mapping[str, bytes]
    held: tuple[Held, ...]
    indexed: bool
    save_format: str = "safetensors"

    def index(self) -> bytes | None:
        """Return the content of the index file, which PaddleNLP requires of a single shard too; None if there is none."""
        if not self.indexed:
            return None
        shard = self.shards[0]
        content = {
            "metadata": {"total_size": sum(one.nbytes for one in self.held)},
            "weight_map": dict.fromkeys((one.name for one in self.held), shard.name),
        }
        return json_bytes(content)


def make_adapter(
    format: str,
    factors: Mapping[str, Factors],
    whole: Mapping[str, TensorEntry],
    base: Mapping[str, TensorEntry],
    base_path: str,
    family: str,
) -> tuple[NewAdapter, dict[str, Stored]]:
    """Return the adapter in a format, one of LAYOUTS, and its tensors by name.

    factors: name of the weight -> its factors; at least one. whole: name -> tensor that replaces the base's; for PEFT, all
    tensors of a module, see `whole_modules`. base: all tensors of the base model by name, in the format's layout. base_path:
    the path of the base model, for the adapter's config. family: the base model's model_type.
    """
    if format != "peft":
        return _paddle(factors, whole, base, base_path)
    return _peft(factors, whole, base, base_path, functools.partial(in_memory, family=family))


def whole_modules(names: Collection[str], factors: Collection[str], tensors: Collection[str]) -> list[str]:
    """Return the names of the tensors to store whole so that PEFT can replace `names`.

    These are all tensors of their modules; only the bias of modules in which nothing else changed, or which have factors.
    """
    modules = {module_of(name) for name in names if not name.endswith(".bias")} - {module_of(name) for name in factors}
    return [name for name in tensors if name in names or module_of(name) in modules]


def _peft(
    factors: Mapping[str, Factors],
    whole: Mapping[str, TensorEntry],
    base: Mapping[str, TensorEntry],
    base_path: str,
    live: Callable[[str], str],
) -> tuple[NewAdapter, dict[str, Stored]]:
    """Return an adapter for PEFT. live: function that returns the name that a module has in memory."""
    rank = max(item.rank for item in factors.values())
    ranks = {live(module_of(name)): item.rank for name, item in factors.items() if item.rank != rank}
    targets = [module_of(name) for name in factors]
    modules = {module_of(name) for name in whole if not name.endswith(".bias")}
    biases = any(module_of(name) not in modules for name in whole)
    tensors: dict[str, Stored] = {}
    dtypes: dict[str, DType] = {}
    for name, item in factors.items():
        for key, value in (("lora_A", item.right), ("lora_B", item.left)):
            tensors[f"base_model.model.{live(module_of(name))}.{key}.weight"] = value
            dtypes[f"base_model.model.{live(module_of(name))}.{key}.weight"] = item.dtype
    for name, entry in whole.items():
        inner = "base_layer." if module_of(name) in targets else ""
        key = f"base_model.model.{live(module_of(name))}.{inner}{name.rpartition('.')[2]}"
        tensors[key], dtypes[key] = entry, entry.dtype
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base_path,
        "r": rank,
        "lora_alpha": rank,
        "rank_pattern": ranks,
        "alpha_pattern": ranks,
        "target_modules": last_words(targets, base) or [live(name) for name in targets],
        "modules_to_save": sorted(map(live, modules)) or None,
        "bias": "all" if biases else "none",
        "lora_dropout": 0.0,
        "fan_in_fan_out": False,
        "init_lora_weights": True,
        "use_rslora": False,
        "use_dora": False,
        "inference_mode": True,
    }
    return arranged("peft", _held(tensors, dtypes), {"adapter_config.json": json_bytes(config)}), tensors


def _paddle(
    factors: Mapping[str, Factors], whole: Mapping[str, TensorEntry], base: Mapping[str, TensorEntry], base_path: str
) -> tuple[NewAdapter, dict[str, Stored]]:
    """Return an adapter for PaddleNLP or PaddleFormers. All its factors have one rank: lower ones are padded with zeros."""
    rank = max(item.rank for item in factors.values())
    targets = [module_of(name) for name in factors]
    words = last_words(targets, base)
    tensors: dict[str, Stored] = {}
    dtypes: dict[str, DType] = {}
    for name, item in factors.items():
        missing = rank - item.rank
        tensors[f"{module_of(name)}.lora_A"] = np.ascontiguousarray(np.pad(item.left, ((0, 0), (0, missing))))
        tensors[f"{module_of(name)}.lora_B"] = np.ascontiguousarray(np.pad(item.right, ((0, missing), (0, 0))))
        dtypes |= {f"{module_of(name)}.{key}": item.dtype for key in ("lora_A", "lora_B")}
    for name, entry in whole.items():
        tensors[name], dtypes[name] = entry, entry.dtype
    config = {
        "base_model_name_or_path": base_path,
        "r": rank,
        "lora_alpha": rank,
        "scaling": 1.0,
        "target_modules": [rf".*\.{re.escape(word)}" for word in words] or [re.escape(name) for name in targets],
        "trainable_modules": [re.escape(name) for name in whole] or None,
        "dtype": next(iter(factors.values())).dtype.name,
        "lora_dropout": 0.0,
        "rslora": False,
    }
    return arranged("paddlenlp", _held(tensors, dtypes), {"lora_config.json": json_bytes(config)}), tensors


def _held(tensors: Mapping[str, Stored], dtypes: Mapping[str, DType]) -> list[Held]:
    return [Held(name, dtypes[name], tuple(value.shape), value.nbytes) for name, value in tensors.items()]


def arranged(format: str, held: Sequence[Held], configs: Mapping[str, bytes]) -> NewAdapter:
    """Return an adapter of these tensors in one safetensors file, wide dtypes first so that each is aligned to its width."""
    prefix, held = PREFIXES[format], sorted(held, key=lambda one: -one.dtype.itemsize)
    indexed = format != "peft"
    around = header(held, "np" if indexed else "pt")
    name = f"{prefix}-00001-of-00001.safetensors" if indexed else f"{prefix}.safetensors"
    return NewAdapter(
        prefix=prefix,
        shards=(Shard(name, around.pieces, around.nbytes),),
        offsets=dict(zip((one.name for one in held), around.offsets, strict=True)),
        configs=configs,
        held=tuple(held),
        indexed=indexed,
    )


def last_words(modules: Collection[str], base: Mapping[str, TensorEntry]) -> list[str]:
    """Return the last words of the modules' names, such as ["q_proj"], if no other module of the base has them; else []."""
    words = {module.rpartition(".")[2] for module in modules}
    meant = {module for module in map(module_of, base) if module.rpartition(".")[2] in words}
    return sorted(words) if meant == set(modules) and all("." in module for module in modules) else []


def module_of(name: str) -> str:
    """Return the name of the module of a tensor: "model.norm" for "model.norm.weight"."""
    return name.rpartition(".")[0]
