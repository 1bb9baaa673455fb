"""Read LoRA adapters, and parse paths of the form `base+adapter`.

An adapter is a folder of PEFT (adapter_config.json) or of Paddle (lora_config.json), with weights in any format. What its
tensors do to a model is in conversion/lora.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from ..errors import CheckpointError
from ..parsing import short_paths
from ..records import record
from . import hub
from .formats.folder import ADAPTER, ADAPTER_CONFIGS
from .json_files import read_json
from .tensors import Checkpoint, TensorEntry

_FACTOR = re.compile(r"[._]lora_(embedding_)?(A|B|AB)(\.|$)")
_OTHERS = ("vera_config.json", "lokr_config.json", "dislora_config.json", "prefix_config.json")  # PaddleNLP's other kinds


@dataclass
class Module:
    """Hold an adapter's tensors for one module, by role: "A", "B", "AB" and so on, as in _ENDINGS.

    A second tensor of one role has the key "ROLE again: NAME", which check_tensors reports. parameter: which one of the
    module is adapted, such as the experts' "gate_up_proj"; "" for the weight, as of most modules. first_axis: of experts,
    whether A is for the first axis of each matrix, and B for the last; None if that is unknown.
    """

    name: str
    tensors: dict[str, TensorEntry] = field(default_factory=dict)
    parameter: str = ""
    first_axis: bool | None = True

    @property
    def title(self) -> str:
        """Return the name that the library's patterns of ranks and scales are matched with."""
        return f"{self.name}.{self.parameter}" if self.parameter else self.name


@record(frozen=True)
class Adapter:
    """Hold what the headers of an adapter say.

    path: its folder, or its name on a hub. kind: "peft" or "paddle", which determines the names and shapes of its tensors.
    config: the content of its config file. tensors: by name. folder: where its files are.
    """

    path: str
    kind: str
    config: Mapping[str, Any]
    tensors: Mapping[str, TensorEntry]
    folder: str

    @cached_property
    def grouped(self) -> tuple[Sequence[Module], Sequence[tuple[str, TensorEntry]]]:
        """The tensors by module; and those that replace tensors of the model, each with the name there.

        The names of modules and tensors are without PEFT's wrappers ("base_model.model.", ".base_layer",
        ".modules_to_save").
        """
        return _grouped(self.kind, self.tensors)


# The role of an adapter's tensor, by the end of its name, which follows the name of a module. Other tensors replace those of
# the model.
_ENDINGS = {
    "peft": {
        r"\.lora_A(?:\.default)?\.weight": "A",
        r"\.lora_B(?:\.default)?\.weight": "B",
        r"\.lora_B(?:\.default)?\.bias": "bias",
        r"\.lora_embedding_A(?:\.default)?": "embedding A",
        r"\.lora_embedding_B(?:\.default)?": "embedding B",
        r"\.lora_magnitude_vector(?:\.default)?(?:\.weight)?": "lengths",
        r"(?:\.token_adapter)?\.trainable_tokens_delta(?:\.default)?": "rows",
    },
    "paddle": {
        r"\.lora_A": "A",
        r"\.lora_B": "B",
        r"\.lora_AB": "AB",
        r"\.(?P<parameter>[^.]+)_lora_A": "A",  # of stacked experts
        r"\.(?P<parameter>[^.]+)_lora_B": "B",
    },
}
_PATTERNS = {
    kind: [(re.compile(rf"{ending}\Z"), role) for ending, role in endings.items()] for kind, endings in _ENDINGS.items()
}


def is_factor(name: str) -> bool:
    """Return whether a tensor is one of an adapter's low-rank factors, by its name."""
    return "lora_" in name and _FACTOR.search(name) is not None


def kind_of(path: str) -> str | None:
    """Return the kind of the adapter in a folder, "peft" or "paddle"; None if it holds none."""
    return next((kind for kind, name in ADAPTER_CONFIGS.items() if os.path.isfile(os.path.join(path, name))), None)


def split_spec(spec: str) -> list[str]:
    """Split "base+adapter+..." into its paths, with ~ expanded. Paths that exist may contain a + themselves."""
    words, paths = spec.split("+"), []
    while words:
        ends = range(len(words), 0, -1)
        end = next((end for end in ends if os.path.exists(os.path.expanduser("+".join(words[:end])))), 1)
        paths.append(os.path.expanduser("+".join(words[:end])))
        words = words[end:]
    return paths


def short_specs(specs: Sequence[str]) -> list[str]:
    """Return specs as publications call them: names on a hub as they are, and of paths the last parts."""
    split = [split_spec(spec) for spec in specs]
    local = list(dict.fromkeys(path for its in split for path in its if not hub.is_name(path)))
    known = dict(zip(local, short_paths(local), strict=True))
    return ["+".join(known.get(path, path) for path in its) for its in split]


def absolute_spec(spec: str) -> str:
    """Return the same spec with absolute paths; names on a hub stay as they are."""
    from . import hub

    return "+".join(part if hub.is_name(part) else os.path.abspath(part) for part in split_spec(spec))


def open_adapter(path: str) -> Adapter:
    """Read the headers of the adapter in the folder `path`, or of this name on a hub.

    Raises CheckpointError listing everything wrong with it.
    """
    from . import hub
    from .open import open_folder

    if hub.is_name(path):
        return replace(open_adapter(hub.fetch(path, ADAPTER)), path=path)
    if not os.path.isdir(path):
        raise CheckpointError(f"{path}: no such folder (of a LoRA adapter)")
    kind = kind_of(path)
    other = next((name for name in _OTHERS if os.path.isfile(os.path.join(path, name))), None)
    if kind is None and other:
        raise CheckpointError(f"{path}: can't be folded: it holds {other}, and only LoRA adapters (W + s B A) are supported")
    within = [name for name in sorted(os.listdir(path)) if kind_of(os.path.join(path, name))]
    if kind is None and within:
        more = f" (there are also {', '.join(within[1:4])})" if len(within) > 1 else ""
        raise CheckpointError(f"{path}: is not a LoRA adapter, but holds one: give {os.path.join(path, within[0])}{more}")
    if kind is None:
        raise CheckpointError(
            f"{path}: is not a LoRA adapter: it has neither {' nor '.join(ADAPTER_CONFIGS.values())}, which give its r and"
            " alpha; if training wrote the file elsewhere, copy it into this folder"
        )
    config = read_json(os.path.join(path, ADAPTER_CONFIGS[kind]))
    if not isinstance(config, dict):
        raise CheckpointError(f"{os.path.join(path, ADAPTER_CONFIGS[kind])}: is not a JSON object")
    return Adapter(path, kind, config, open_folder(path, ADAPTER).tensors, path)


def open_model(spec: str, prefix: str) -> tuple[Checkpoint, Sequence[Adapter]]:
    """Read the headers of a model, and of the adapters that are to be folded into it.

    spec: a path, or `base+adapter` with any number of adapters. prefix: as of open.open_checkpoint. Raises CheckpointError
    listing everything wrong with any of them, also if the spec can be read in two ways.
    """
    from .open import open_checkpoint

    base, *paths = split_spec(spec)
    if not spec:
        raise CheckpointError("one of the models' paths is empty; give the path of a folder or file for each model")
    if not all((base, *paths)):
        raise CheckpointError(f"{spec}: + joins a model and its adapters, and the path on one side of it is empty")
    if other := _other_reading(spec):
        raise CheckpointError(
            f"{spec}: may be the folder of this name, or {' with the adapter '.join(other)}; rename one of them, or write"
            f" {other[0]}{os.sep}+{'+'.join(other[1:])}"
        )
    problems: list[str] = []
    adapters = []
    checkpoint = None
    try:
        checkpoint = open_checkpoint(base, prefix)
    except CheckpointError as error:
        problems += error.problems
        if kind_of(base):
            problems = [f"{base}: is a LoRA adapter; write BASE+{base}, with the model that it was trained on for BASE"]
    for path in paths:
        try:
            adapters.append(open_adapter(path))
        except CheckpointError as error:
            problems += error.problems
    if checkpoint is None or problems:
        raise CheckpointError(problems)
    return checkpoint, adapters


def _other_reading(spec: str) -> list[str]:
    """Return the paths of another model and its adapters that the spec may mean; empty if it can be read in one way only.

    A folder's name may contain a +, such as that of an earlier merge's output.
    """
    words = spec.split("+")
    for end in range(1, len(words)):
        model, *paths = split_spec("+".join(words[:end])) + split_spec("+".join(words[end:]))
        if [model, *paths] != split_spec(spec) and os.path.exists(model) and all(map(kind_of, paths)):
            return [model, *paths]
    return []


_WRAPPER = re.compile(r"(\.token_adapter)?\.(base_layer|modules_to_save(\.default)?)(?=\.(weight|bias)$)")


def _grouped(kind: str, tensors: Mapping[str, TensorEntry]) -> tuple[Sequence[Module], Sequence[tuple[str, TensorEntry]]]:
    """Return what Adapter.grouped does."""
    modules: dict[str, Module] = {}
    others = []
    for name, entry in tensors.items():
        plain = name.removeprefix("base_model.model.") if kind == "peft" else name
        for pattern, role in _PATTERNS[kind]:
            if found := pattern.search(plain, 1):  # a module has a name
                module, parameter = plain[: found.start()], found["parameter"] if pattern.groups else ""
                title = f"{module}.{parameter}" if parameter else module
                if title not in modules:
                    modules[title] = Module(module, parameter=parameter)
                held = modules[title].tensors
                held[role if role not in held else f"{role} again: {name}"] = entry
                break
        else:
            if kind == "peft":
                plain = _WRAPPER.sub("", plain)
            others.append((plain, entry))
    return list(modules.values()), others
