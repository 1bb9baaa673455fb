"""Give lm-eval the models of PaddleFormers and PaddleNLP.

Importing this module registers the model class as "paddle_merge", so that lm-eval runs it by name:

    import paddle_merge.search.evaluators.libraries.lm_eval_model
    lm_eval.simple_evaluate(model="paddle_merge", model_args="pretrained=./merged,library=paddlenlp", tasks=["my_task"])

It needs neither torch nor transformers. Texts are encoded, and long ones are cut or computed in parts, as lm-eval's own
class for transformers (HFLM) does it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lm_eval.api.model import LM
from lm_eval.api.registry import register_model

from ...contract import EvaluationError
from .likelihood import Text, likelihoods, pair
from .models import LanguageModel, ModelSettings, StoredModel, chosen, opened

PIECE = 32  # tokens that are generated before stop texts are looked for
MOST = 256  # tokens that are generated where a task doesn't say (as in HFLM)


@register_model("paddle_merge")
class PaddleLM(LM):  # type: ignore[misc]
    """A language model of Paddle's libraries, as lm-eval calls models.

    pretrained: a checkpoint folder, or a model that is open already. library, device, dtype, max_length, batch_size: as of
    models.ModelSettings. Raises ConfigError if no library is installed, EvaluationError if the model can't be opened.
    """

    def __init__(
        self,
        pretrained: str | LanguageModel,
        library: str | None = None,
        device: str | None = None,
        dtype: str | None = None,
        max_length: int | None = None,
        batch_size: int | str | None = None,
        max_batch_size: int | None = None,
    ):
        super().__init__()
        self._batch = int(batch_size) if batch_size and str(batch_size).isdecimal() else ModelSettings.batch_size
        if isinstance(pretrained, str):
            length = None if max_length is None else int(max_length)
            settings = ModelSettings(library, device, dtype, length, self._batch)
            self.model: LanguageModel = opened(StoredModel(pretrained), chosen(settings, pretrained), settings)
        else:
            self.model = pretrained

    def loglikelihood(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """Return the log-likelihood of each continuation, and whether it is the likeliest text."""
        texts = [pair(self.model, *request.args) for request in requests]
        return [(one.total, one.greedy) for one in likelihoods(self.model, texts, self._batch)]

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
        """Return the log-likelihood of each text, its first token included, which follows on the prefix token."""
        first = [] if self.model.prefix is None else [self.model.prefix]
        texts = [Text([*first, *self.model.encode(request.args[0])]) for request in requests]
        return [one.total for one in likelihoods(self.model, texts, self._batch)]

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """Return the text that follows on each context, up to the first stop text."""
        return [self._generated(*request.args) for request in requests]

    def _generated(self, context: str, options: Mapping[str, Any]) -> str:
        if options.get("do_sample") and options.get("temperature", 1.0) != 0:
            raise EvaluationError("the task samples its answers (do_sample), and models of Paddle generate greedily here")
        until = options.get("until") or []
        stops = [stop for stop in ([until] if isinstance(until, str) else until) if stop]
        most = int(options.get("max_gen_toks", options.get("max_new_tokens", MOST)))
        most = min(most, self.model.length - 1)
        tokens, made = self.model.encode(context)[most - self.model.length :], list[int]()
        while len(made) < most:
            wanted = min(PIECE, most - len(made))
            piece = self.model.generate([*tokens, *made], wanted)
            made += piece
            text = self.model.decode(made)
            if len(piece) < wanted or any(stop in text for stop in stops):
                break
        text = self.model.decode(made)
        return text[: min([len(text), *(place for stop in stops if (place := text.find(stop)) >= 0)])]

    # --- chat templates

    @property
    def tokenizer_name(self) -> str:
        """A name for the cache of requests, which this package doesn't use."""
        return type(self.model).__name__

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """Return a conversation as text, by the tokenizer's chat template. Raises EvaluationError if it has none."""
        of = getattr(self.model, "chat", None)
        if of is None:
            raise EvaluationError("the model's tokenizer has no chat template; leave out apply_chat_template")
        return str(of(chat_history, add_generation_prompt))
