"""Compute with language models of PaddleFormers and PaddleNLP."""

from __future__ import annotations

import contextlib
import inspect
import itertools
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from importlib import import_module
from typing import Any

import numpy as np

from ....backends.engine import import_paddle
from ....checkpoints.config_json import read_config
from ...contract import EvaluationError
from .models import ROWS, ModelSettings, check_missing, length_of

# Library and layout -> options of from_pretrained.
_OPTIONS: dict[tuple[str, str], dict[str, Any]] = {
    ("paddleformers", "hf"): {},
    ("paddleformers", "paddleformers"): {"load_checkpoint_format": "unified_checkpoint", "convert_from_hf": False},
    ("paddlenlp", "hf"): {"convert_from_torch": True},
    ("paddlenlp", "paddlenlp"): {},
}


class PaddleModel:
    """A model of PaddleFormers or PaddleNLP; see models.LanguageModel."""

    def __init__(self, model: Any, tokenizer: _Tokenizer, length: int):
        self.model, self.tokenizer, self.length = model, tokenizer, length
        self.prefix: int | None = tokenizer.first
        parameters = inspect.signature(model.forward).parameters
        self._options = {"use_cache": False} if "use_cache" in parameters else {}

    def encode(self, text: str, special: bool = True) -> list[int]:
        return self.tokenizer.encode(text, special)

    def decode(self, tokens: Sequence[int]) -> str:
        return self.tokenizer.decode(tokens)

    def chat(self, messages: list[dict[str, str]], prompt: bool) -> str:
        """Return a conversation as text. prompt: with the beginning of the answer. Raises EvaluationError if it can't."""
        return self.tokenizer.chat(messages, prompt)

    def slots(self) -> Mapping[str, Any]:
        found = dict(self.model.named_parameters())
        held = {id(parameter) for parameter in found.values()}
        others = [name for name, tensor in self.model.state_dict().items() if name not in found and id(tensor) not in held]
        return {} if others else found

    def holds(self, slot: Any, values: np.ndarray) -> bool:
        paddle = import_paddle()
        same = tuple(slot.shape) == values.shape
        return same and bool(paddle.equal_all(paddle.to_tensor(values).astype(slot.dtype), slot))

    def put(self, slot: Any, values: np.ndarray) -> None:
        slot.set_value(import_paddle().to_tensor(values).astype(slot.dtype))

    def score(self, tokens: np.ndarray, targets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        paddle = import_paddle()
        values, likeliest = np.zeros(targets.shape), np.zeros(targets.shape, bool)
        with paddle.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            logits = self._logits(paddle.to_tensor(tokens))
            rows, columns = np.nonzero(targets >= 0)
            for start in range(0, len(rows), ROWS):
                row, column = rows[start : start + ROWS], columns[start : start + ROWS]
                places = paddle.to_tensor(np.stack([row, column], axis=1))
                picked = paddle.gather_nd(logits, places).astype("float32")
                wanted = paddle.to_tensor(targets[row, column])
                found = paddle.take_along_axis(picked, wanted[:, None], 1)[:, 0] - paddle.logsumexp(picked, -1)
                values[row, column] = found.numpy()
                likeliest[row, column] = picked.argmax(-1).numpy() == targets[row, column]
        return values, likeliest

    def hidden_states(self, tokens: Sequence[int]) -> np.ndarray:
        paddle, found = import_paddle(), list[np.ndarray]()
        layers = next(
            module
            for name, module in self.model.named_sublayers()
            if name.rpartition(".")[2] == "layers" and isinstance(module, paddle.nn.LayerList)
        )

        def keep(layer: Any, inputs: Any) -> None:
            found.append(inputs[0].astype("float32").numpy().reshape(len(tokens), -1))

        hooks = [layer.register_forward_pre_hook(keep) for layer in layers]
        try:
            with paddle.no_grad(), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                self._logits(paddle.to_tensor(np.array([list(tokens)], np.int64)))
        finally:
            for hook in hooks:
                hook.remove()
        return np.stack(found)

    def generate(self, tokens: Sequence[int], most: int) -> list[int]:
        paddle = import_paddle()
        given, ends = paddle.to_tensor(np.array([tokens], np.int64)), sorted(self.tokenizer.ends)
        with paddle.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            made, _ = self.model.generate(
                given,
                attention_mask=paddle.ones_like(given),
                max_new_tokens=most,
                decode_strategy="greedy_search",
                pad_token_id=ends[0] if ends else 0,
                **({"eos_token_id": ends[0] if len(ends) == 1 else ends} if ends else {}),
            )
        return list(itertools.takewhile(lambda token: token not in ends, made[0].tolist()))

    def _logits(self, tokens: Any) -> Any:
        out = self.model(input_ids=tokens, **self._options)
        out = out[0] if isinstance(out, tuple | list) else out
        return out.logits if hasattr(out, "logits") else out


class _Tokenizer:
    """The tokenizer of a folder: the library's, or tokenizer.json where the library can't open it.

    first: the token that begins a sequence, else the one that ends it. ends: tokens that end a text.
    """

    def __init__(self, folder: str, library: Any):
        config, path = read_config(folder), os.path.join(folder, "tokenizer.json")
        told = config.get("eos_token_id")
        self.ends = set(told if isinstance(told, list) else [] if told is None else [told])
        self._of_library: Any = None
        self._reason = "the model's tokenizer has none"
        try:
            own = self._of_library = library.AutoTokenizer.from_pretrained(folder)
            begin, self._start = own.bos_token_id, own.bos_token
            self.ends |= {own.eos_token_id} - {None}
            end = own.eos_token_id
        except (ImportError, ValueError) as error:  # a class that only other versions of transformers know
            if not os.path.exists(path):
                raise
            from tokenizers import Tokenizer

            self._reason = f"the library can't open its tokenizer ({type(error).__name__}: {' '.join(str(error).split())})"
            self._of_file = Tokenizer.from_file(path)
            begin, end = config.get("bos_token_id"), min(self.ends, default=None)
            self._start = None if begin is None else self._of_file.id_to_token(begin)
        self.first: int | None = begin if begin is not None else end

    def encode(self, text: str, special: bool) -> list[int]:
        special = special and not (self._start and text.startswith(self._start))
        if self._of_library is None:
            return list(self._of_file.encode(text, add_special_tokens=special).ids)
        return list(self._of_library(text, add_special_tokens=special)["input_ids"])

    def chat(self, messages: list[dict[str, str]], prompt: bool) -> str:
        if self._of_library is None or not getattr(self._of_library, "chat_template", None):
            raise EvaluationError(f"there is no chat template: {self._reason}; leave out apply_chat_template")
        return str(self._of_library.apply_chat_template(messages, tokenize=False, add_generation_prompt=prompt))

    def decode(self, tokens: Sequence[int]) -> str:
        of = self._of_file if self._of_library is None else self._of_library
        return str(of.decode(list(tokens), skip_special_tokens=True))


def import_library(library: str) -> None:
    """Import PaddleFormers or PaddleNLP."""
    import_module(f"{library}.transformers")


def load(folder: str, library: str, layout: str, settings: ModelSettings) -> PaddleModel:
    """Open a folder. Raises EvaluationError if it lacks weights; the library may raise anything else."""
    paddle = import_paddle()
    package = import_module(f"{library}.transformers")
    import_module(f"{library}.utils.log").logger.set_level("ERROR")
    if settings.device is not None:
        paddle.set_device(settings.device.replace("cuda", "gpu"))
    on_cpu = paddle.get_device() == "cpu"
    dtype = settings.dtype or ("float32" if on_cpu else None)
    if on_cpu and dtype in ("float16", "bfloat16"):
        raise EvaluationError(f"dtype: Paddle doesn't compute {dtype} on a CPU; leave it out")
    config = package.AutoConfig.from_pretrained(folder)
    if on_cpu:
        config.fuse_rms_norm = False  # the fused kernel is a GPU's
    if read_config(folder).get("pad_token_id") is None:
        config.pad_token_id = None  # else PaddleFormers takes 0, and computes with zeros for that token
    missing: list[str] = []
    options = {**_OPTIONS[library, layout], **({"dtype": dtype} if dtype else {})}
    _forget()
    with _told(package, missing), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = package.AutoModelForCausalLM.from_pretrained(folder, config=config, **options)
    held = model.state_dict()
    given = {id(tensor) for name, tensor in held.items() if name not in missing}  # tied ones have several names
    check_missing(sorted(name for name in missing if id(held.get(name)) not in given), library)
    model.eval()
    return PaddleModel(model, _Tokenizer(folder, package), length_of(read_config(folder), settings))


def _forget() -> None:
    """Clear what Paddle keeps of a checkpoint that it failed to load: it would take it for the next one's metadata."""
    with contextlib.suppress(ImportError, AttributeError):  # another version of Paddle
        import_module("paddle.distributed.flex_checkpoint.dcp.load_state_dict")._metadata_manager.clear()


@contextlib.contextmanager
def _told(package: Any, missing: list[str]) -> Iterator[None]:
    """Collect the names of the weights that a model is loaded without, of which the libraries only warn."""
    base = package.PretrainedModel
    original = base.__dict__["_load_pretrained_model"]

    def load(cls: Any, *args: Any, **named: Any) -> Any:
        found = original.__func__(cls, *args, **named)
        missing.extend(found[1])
        return found

    base._load_pretrained_model = classmethod(load)
    try:
        yield
    finally:
        base._load_pretrained_model = original
