"""Compute with language models of transformers."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ....checkpoints.config_json import read_config
from .models import ROWS, ModelSettings, check_missing, length_of


class TorchModel:
    """A model of transformers; see models.LanguageModel."""

    def __init__(self, model: Any, tokenizer: Any, length: int):
        self.model, self.tokenizer, self.length = model, tokenizer, length
        first = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
        self.prefix: int | None = first

    def encode(self, text: str, special: bool = True) -> list[int]:
        start = self.tokenizer.bos_token
        special = special and not (start and text.startswith(start))
        return list(self.tokenizer(text, add_special_tokens=special)["input_ids"])

    def decode(self, tokens: Sequence[int]) -> str:
        return str(self.tokenizer.decode(list(tokens), skip_special_tokens=True))

    def slots(self) -> Mapping[str, Any]:
        shared = {name for name, _ in self.model.named_parameters(remove_duplicate=False)}
        others = [name for name in self.model.state_dict() if name not in shared]
        return {} if others else dict(self.model.named_parameters())

    def holds(self, slot: Any, values: np.ndarray) -> bool:
        import torch

        same = tuple(slot.shape) == values.shape
        return same and torch.equal(slot.data.cpu(), torch.tensor(values).to(slot.dtype))

    def put(self, slot: Any, values: np.ndarray) -> None:
        import torch

        slot.data.copy_(torch.tensor(values))

    def score(self, tokens: np.ndarray, targets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        import torch

        values, likeliest = np.zeros(targets.shape), np.zeros(targets.shape, bool)
        device = self.model.device
        with torch.inference_mode():
            logits = self.model(input_ids=torch.from_numpy(tokens).to(device), use_cache=False).logits
            rows, columns = np.nonzero(targets >= 0)
            for start in range(0, len(rows), ROWS):
                row, column = rows[start : start + ROWS], columns[start : start + ROWS]
                picked = logits[torch.from_numpy(row).to(device), torch.from_numpy(column).to(device)].float()
                wanted = torch.from_numpy(targets[row, column]).to(device)
                found = picked.gather(1, wanted[:, None])[:, 0] - picked.logsumexp(-1)
                values[row, column] = found.double().cpu().numpy()
                likeliest[row, column] = (picked.argmax(-1) == wanted).cpu().numpy()
        return values, likeliest

    def hidden_states(self, tokens: Sequence[int]) -> np.ndarray:
        import torch

        given = torch.tensor([list(tokens)], device=self.model.device)
        with torch.inference_mode():
            found = self.model(input_ids=given, use_cache=False, output_hidden_states=True).hidden_states
        return np.stack([one[0].float().cpu().numpy() for one in found[:-1]])

    def generate(self, tokens: Sequence[int], most: int) -> list[int]:
        import torch

        given = torch.tensor([list(tokens)], device=self.model.device)
        with torch.inference_mode():
            found = self.model.generate(
                given, attention_mask=torch.ones_like(given), max_new_tokens=most, do_sample=False, num_beams=1
            )
        told = self.model.generation_config.eos_token_id
        ends = told if isinstance(told, list) else [told]
        return list(itertools.takewhile(lambda token: token not in ends, found[0, given.shape[1] :].tolist()))


def import_library(library: str) -> None:
    """Import transformers and torch."""
    import torch  # noqa: F401
    from transformers import AutoModelForCausalLM, AutoTokenizer  # noqa: F401


def load(folder: str, library: str, layout: str, settings: ModelSettings) -> TorchModel:
    """Open a folder. Raises EvaluationError if it lacks weights; transformers may raise anything else."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging as messages

    messages.set_verbosity_error()
    messages.disable_progress_bar()
    logging.getLogger("transformers").setLevel(logging.ERROR)
    device = (settings.device or ("cuda" if torch.cuda.is_available() else "cpu")).replace("gpu", "cuda")
    dtype = settings.dtype or ("float32" if device == "cpu" else "auto")
    model, told = AutoModelForCausalLM.from_pretrained(
        folder, dtype=dtype if dtype == "auto" else getattr(torch, dtype), output_loading_info=True
    )
    check_missing(sorted(told["missing_keys"]), library)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    return TorchModel(model.to(device).eval(), tokenizer, length_of(read_config(folder), settings))
