"""Choose the library that computes with language models, and open candidates with it."""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from typing import Any, Protocol, cast

import numpy as np

from ....errors import ConfigError
from ....records import record
from ...contract import EvaluationError, scratch_folder
from ..settings import setting
from . import in_place

LIBRARIES = {  # library -> what must be installed, in the order in which one is chosen
    "paddleformers": ("paddleformers", "paddle"),
    "paddlenlp": ("paddlenlp", "paddle"),
    "transformers": ("transformers", "torch"),
}
_MODULES = {"paddleformers": "paddle_models", "paddlenlp": "paddle_models", "transformers": "torch_models"}
# Library -> (format of the files, layout) of the checkpoints that it reads; others are converted first.
_READS = {
    "paddleformers": {("safetensors", "hf"), ("safetensors", "paddleformers"), ("pdparams", "paddleformers")},
    "paddlenlp": {("safetensors", "hf"), ("safetensors", "paddlenlp"), ("pdparams", "paddlenlp")},
    "transformers": {("safetensors", "hf"), ("bin", "hf")},
}
LENGTH = 2048  # tokens by default, where a model takes more
ROWS = 256  # places whose probabilities are computed at a time: float32 [ROWS, vocabulary]


@dataclass
class ModelSettings:
    """How a language model computes.

    library: one of LIBRARIES; None: the first that is installed. device: "cpu", "gpu", "gpu:1"; None: a GPU if the library
    finds one. dtype: None: the checkpoint's on a GPU, float32 on a CPU. max_length: tokens that it is given at a time; None:
    those that its config.json allows, at most LENGTH. batch_size: texts that are computed at the same time.
    """

    library: str | None = setting(choices=tuple(LIBRARIES))
    device: str | None = setting()
    dtype: str | None = setting(choices=("float32", "bfloat16", "float16"))
    max_length: int | None = setting(least=2)
    batch_size: int = setting(8, least=1)


class LanguageModel(Protocol):
    """A causal language model with its tokenizer.

    length: tokens that it takes at a time. prefix: the token that stands before a text with nothing before it: the beginning
    of a sequence, else its end; None if it has neither.
    """

    length: int
    prefix: int | None

    def encode(self, text: str, special: bool = True) -> list[int]:
        """Return the tokens of a text. special: with those that the tokenizer adds by itself, such as one that begins it."""

    def decode(self, tokens: Sequence[int]) -> str:
        """Return the text of tokens, special ones left out."""

    def score(self, tokens: np.ndarray, targets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return how likely tokens follow on others.

        tokens: int64 [batch, length]. targets: int64 [batch, length], the token that follows on each place; -1 where that
        is not asked. Returns their natural log-probabilities, float64 [batch, length], 0 where not asked; and whether each
        is the likeliest token, bool [batch, length]. They are computed in float32 from the model's logits.
        """

    def hidden_states(self, tokens: Sequence[int]) -> np.ndarray:
        """Return the input of every layer at each token of one text, float32 [layers, length, hidden]."""

    def generate(self, tokens: Sequence[int], most: int) -> list[int]:
        """Return the tokens that follow, up to `most`: those before the first that ends a text.

        Each is the likeliest one (greedy), as the library takes it: with the penalties that generation_config.json sets.
        """


def installed() -> list[str]:
    """Return the libraries that are installed."""
    return [name for name, needed in LIBRARIES.items() if all(find_spec(one) is not None for one in needed)]


def chosen(settings: ModelSettings, at: str) -> str:
    """Return the library that computes. at: file, line and column, for messages. Raises ConfigError if there is none."""
    there = installed()
    if settings.library is None and there:
        return there[0]
    wanted = settings.library or "paddleformers"
    if wanted in there:
        return wanted
    others = "" if settings.library else f"; {' or '.join(name for name in LIBRARIES if name != wanted)} will do too"
    found = f" (installed here: {', '.join(there)})" if there else others
    packages = " ".join("paddlepaddle" if one == "paddle" else one for one in LIBRARIES[wanted])
    raise ConfigError(f"{at}: needs {wanted}: pip install {packages}{found}")


def import_library(library: str) -> None:
    """Import a library, so that it takes no time of the first evaluation."""
    import_module(f".{_MODULES[library]}", __package__).import_library(library)


class HasFolder(Protocol):
    """A candidate, as far as it matters here; see contract.Candidate."""

    def folder(self) -> str: ...


@record(frozen=True)
class StoredModel:
    """A checkpoint folder as a candidate, as far as libraries need one."""

    path: str

    def folder(self) -> str:
        return self.path


class Models:
    """Opens one candidate after another.

    A candidate may say its `kind`: all of the same kind differ in nothing but the values of tensors, which `arrays` returns
    by name. From the third of a kind on, they are put into the open model, if they fit into memory beside it.
    """

    def __init__(self, library: str, settings: ModelSettings):
        self._library, self._settings = library, settings
        self._kind, self._model = "", cast(LanguageModel | None, None)
        self._places: in_place.Places | None = None
        self._size = 0  # bytes of such tensors as float32

    @contextlib.contextmanager
    def opened(self, candidate: HasFolder) -> Iterator[LanguageModel]:
        """Give a candidate as a language model. Raises EvaluationError if the library can't open it, with its reason."""
        kind = str(getattr(candidate, "kind", ""))
        again = bool(kind) and kind == self._kind and 2 * self._size < free_memory()
        tensors: Mapping[str, np.ndarray] = candidate.arrays() if again else {}  # type: ignore[attr-defined]
        model = self._model
        if not (again and model is not None and self._places is not None and self._places.put(_writable(model), tensors)):
            self._model = self._places = model = None  # so that there is memory for the next one
            model = opened(candidate, self._library, self._settings)
            self._kind, self._places = kind, in_place.learn(_writable(model), tensors) if again else None
            self._model = model if self._places is not None else None
            self._size = 4 * sum(math.prod(slot.shape) for slot in _writable(model).slots().values()) if kind else 0
        yield model


def opened(candidate: HasFolder, library: str, settings: ModelSettings) -> LanguageModel:
    """Open a candidate's folder. Raises EvaluationError if the library can't, with its reason."""
    folder = candidate.folder()
    if not os.path.isdir(folder):
        raise EvaluationError(f"{folder} is a file; a language model needs the folder with its config.json and tokenizer")
    with scratch_folder() as near:
        checkpoint, layout = _readable(folder, library, near)
        # Libraries write files of their own beside the weights that they read.
        linked = os.path.join(near, "linked")
        os.mkdir(linked)
        for name in os.listdir(checkpoint):
            if not _written_by_loaders(name):
                os.symlink(os.path.join(os.path.abspath(checkpoint), name), os.path.join(linked, name))
        module = import_module(f".{_MODULES[library]}", __package__)
        try:
            return cast(LanguageModel, module.load(linked, library, layout, settings))
        except (EvaluationError, MemoryError):
            raise
        except Exception as error:  # a library may raise anything
            others = [name for name in installed() if name != library]
            more = f"; library: {others[0]} is installed too" if others else ""
            reason = " ".join(str(error).split()).replace(linked, folder)[:400]
            raise EvaluationError(f"{library} can't open it ({type(error).__name__}: {reason}){more}") from error


def free_memory() -> int:
    """Return the bytes of memory that are free, or would be without the system's caches; 4 GiB if that isn't known."""
    with contextlib.suppress(OSError, ValueError, IndexError), open("/proc/meminfo") as file:
        return next((1024 * int(line.split()[1]) for line in file if line.startswith("MemAvailable:")), 4 << 30)
    return 4 << 30


def _writable(model: Any) -> in_place.Writable:
    return cast(in_place.Writable, model)


def length_of(config: Mapping[str, Any], settings: ModelSettings) -> int:
    """Return how many tokens a model is given at a time. config: the content of its config.json."""
    if settings.max_length is not None:
        return settings.max_length
    text = config.get("text_config")
    both = {**config, **(text if isinstance(text, dict) else {})}
    names = ("max_position_embeddings", "n_positions", "max_sequence_length", "seq_length", "max_seq_len")
    held = [value for name in names if isinstance(value := both.get(name), int) and value > 1]
    return min([LENGTH, *held])


def check_missing(names: Sequence[str], library: str) -> None:
    """Raise EvaluationError if a library has initialised tensors at random that a checkpoint lacks."""
    if names:
        more = f" and {len(names) - 1} more" if names[1:] else ""
        raise EvaluationError(f"{library} finds no weights for {names[0]!r}{more}, so its scores would mean nothing")


def _readable(folder: str, library: str, near: str) -> tuple[str, str]:
    """Return a checkpoint that the library reads, and its layout: the folder, or what is converted into a new one."""
    from ....checkpoints.open import open_checkpoint
    from ....conversion.detect import detect

    checkpoint = open_checkpoint(folder)
    detected = detect(checkpoint, "model", {})
    layout = detected.layout or detected.likely or ("hf" if library == "transformers" else None)
    if layout is None:
        raise EvaluationError(f"the layout of its weights is unknown, and {library} reads several: {detected.evidence}")
    if (checkpoint.kind, layout) in _READS[library]:
        return folder, layout
    from ....recipe.config import MergeConfig
    from ....run.merge import merge
    from ...candidates import alone

    out = os.path.join(near, "converted")
    merge(MergeConfig(recipe_yaml=alone(folder), output_path=out, output_layout="hf"), progress=False)
    return out, "hf"


def _written_by_loaders(name: str) -> bool:
    """Return whether a file is one that a library left when it loaded the model."""
    return name.startswith("flex-ckpt.auto_generated")
