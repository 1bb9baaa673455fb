"""LoRA adapters on disk: PEFT's (adapter_config.json) and Paddle's (lora_config.json), in any format that weights have; and
the words that join them to a model, `base+adapter`."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..errors import CheckpointError
from .json_files import read_json
from .tensors import Checkpoint, TensorEntry

_OTHERS = ("vera_config.json", "lokr_config.json", "dislora_config.json", "prefix_config.json")  # PaddleNLP's other kinds
CONFIGS = {"peft": "adapter_config.json", "paddle": "lora_config.json"}


@dataclass(frozen=True)
class Adapter:
    """What the headers of an adapter say.

    kind: "peft" or "paddle", whose names and shapes it has. config: its JSON file.
    """

    path: str
    kind: str
    config: Mapping[str, Any]
    tensors: Mapping[str, TensorEntry]


# What an adapter's tensor is, by the end of its name; before it stands the name of a module. All others replace a tensor.
_ENDINGS = {
    "peft": {
        r"\.lora_A(?:\.default)?\.weight": "A",
        r"\.lora_B(?:\.default)?\.weight": "B",
        r"\.lora_B(?:\.default)?\.bias": "bias",
        r"\.lora_embedding_A(?:\.default)?": "embedding A",
        r"\.lora_embedding_B(?:\.default)?": "embedding B",
        r"\.lora_magnitude_vector(?:\.default)?(?:\.weight)?": "lengths",
    },
    "paddle": {r"\.lora_A": "A", r"\.lora_B": "B", r"\.lora_AB": "AB"},
}


@dataclass
class Module:
    """An adapter's tensors for one module, by what they are: "A", "B", "AB" ...; by no such word, if there are several."""

    name: str
    tensors: dict[str, TensorEntry] = field(default_factory=dict)


def kind_of(path: str) -> str | None:
    """Whose adapter a folder holds; None if it holds none."""
    return next((kind for kind, name in CONFIGS.items() if os.path.isfile(os.path.join(path, name))), None)


def split(spec: str) -> list[str]:
    """ "base+adapter" -> ["base", "adapter"], any number of adapters. A path that exists may hold a + itself."""
    words, paths = spec.split("+"), []
    while words:
        ends = range(len(words), 0, -1)
        end = next((end for end in ends if os.path.exists(os.path.expanduser("+".join(words[:end])))), 1)
        paths.append(os.path.expanduser("+".join(words[:end])))
        words = words[end:]
    return paths


def absolute(spec: str) -> str:
    """The same words, paths made absolute; a name on a hub stays one."""
    from . import hub

    return "+".join(part if hub.is_name(part) else os.path.abspath(part) for part in split(spec))


def open_adapter(path: str) -> Adapter:
    """Read the headers of the adapter in the folder `path`. Raises CheckpointError listing everything wrong with it."""
    from . import open
    from .formats import folder

    if not os.path.isdir(path):
        raise CheckpointError(f"{path}: no such folder (of a LoRA adapter)")
    kind = kind_of(path)
    other = next((name for name in _OTHERS if os.path.isfile(os.path.join(path, name))), None)
    if kind is None and other:
        raise CheckpointError(f"{path}: can't be folded: it holds {other}, and only LoRA adapters are W + s B A")
    if kind is None:
        raise CheckpointError(
            f"{path}: is no LoRA adapter: it has neither {' nor '.join(CONFIGS.values())}, which hold its r and alpha; if"
            " training wrote the file elsewhere, copy it there"
        )
    config = read_json(os.path.join(path, CONFIGS[kind]))
    if not isinstance(config, dict):
        raise CheckpointError(f"{os.path.join(path, CONFIGS[kind])}: is not a JSON object")
    return Adapter(path, kind, config, open.open_folder(path, folder.ADAPTER).tensors)


def open_model(spec: str, prefix: str) -> tuple[Checkpoint, Sequence[Adapter]]:
    """The checkpoint, and the adapters to fold into it, of a path or of paths joined by +.

    Raises CheckpointError listing everything wrong with any of them.
    """
    from .open import open_checkpoint

    base, *paths = split(spec)
    if not spec:
        raise CheckpointError("one of the models' paths is empty; give the path of a folder or file for each")
    if not all((base, *paths)):
        raise CheckpointError(f"{spec}: + stands between a model and its adapters, and on one side of it there is nothing")
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
    """The model and its adapters that these words name too, besides a path that holds a +, such as an earlier merge's; none,
    if there is but one way to read them."""
    words = spec.split("+")
    for end in range(1, len(words)):
        model, *paths = split("+".join(words[:end])) + split("+".join(words[end:]))
        if [model, *paths] != split(spec) and os.path.exists(model) and all(map(kind_of, paths)):
            return [model, *paths]
    return []


def sort(adapter: Adapter) -> tuple[list[Module], list[tuple[str, TensorEntry]]]:
    """The adapter's tensors by module; and those that replace others, under these names."""
    modules: dict[str, Module] = {}
    others = []
    for name, entry in adapter.tensors.items():
        plain = name.removeprefix("base_model.model.") if adapter.kind == "peft" else name
        for ending, role in _ENDINGS[adapter.kind].items():
            if found := re.fullmatch(rf"(.+){ending}", plain):
                tensors = modules.setdefault(found[1], Module(found[1])).tensors
                tensors[role if role not in tensors else f"{role} again: {name}"] = entry
                break
        else:
            if adapter.kind == "peft":
                plain = re.sub(r"\.(base_layer|modules_to_save(\.default)?)(?=\.(weight|bias)$)", "", plain)
            others.append((plain, entry))
    return list(modules.values()), others
