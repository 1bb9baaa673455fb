"""Test that the libraries use an output's chat template: they write tokenizers, we merge, they format conversations.

test_loaders.py says what this needs.
"""

from __future__ import annotations

import json
import shutil
from typing import Any

import numpy as np
import pytest

from paddle_merge import MergeConfig, merge
from tests.loaders.test_loaders import pytestmark, work  # noqa: F401 - pytest reads pytestmark
from tests.support.checkpoints import write
from tests.support.libraries import LIBRARIES

# By hand, of job.CHAT; the tokens are those of Qwen2's tokenizers: none that begins a text, and one that ends it.
EXPECTED = {
    "chatml": "<|im_start|>system\nb<|im_end|>\n<|im_start|>user\nab c<|im_end|>\n<|im_start|>assistant\na<|im_end|>\n"
    "<|im_start|>user\nc<|im_end|>\n<|im_start|>assistant\n",
    "llama3": "<|start_header_id|>system<|end_header_id|>\n\nb<|eot_id|><|start_header_id|>user<|end_header_id|>\n\nab c"
    "<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\na<|eot_id|><|start_header_id|>user<|end_header_id|>\n\nc<|eot_id|>"
    "<|start_header_id|>assistant<|end_header_id|>\n\n",
    "exaone": "[|system|]b[|endofturn|]\n[|user|]ab c\n[|assistant|]a[|endofturn|]\n[|user|]c\n[|assistant|]",
    "mistral": " [INST] b\n\nab c [/INST] a<|endoftext|> [INST] c [/INST]",
    "alpaca": "b\n\n### Instruction:\nab c\n\n### Response:\na<|endoftext|>\n\n### Instruction:\nc\n\n### Response:\n",
    "{% for m in messages %}\n  {{ m['role'] }};\n{% endfor %}\n": "  system;\n  user;\n  assistant;\n  user;\n",
}
# Who reads a tokenizer that these two wrote, and how.
READS: list[tuple[str, str, dict[str, Any]]] = [
    ("transformers", "transformers", {}),
    ("transformers", "paddlenlp", {"use_fast": True}),  # its other one can't read tokenizer.json
    ("transformers", "paddleformers", {}),
    ("paddlenlp", "paddlenlp", {}),
    ("paddlenlp", "paddleformers", {}),
]
# What would win, or fail to load, if it stayed.
STALE = {
    "transformers": {"chat_template": "{{ 'old' }}"},
    "paddlenlp": {"system": None, "query": "old {{query}}", "conversation": ["{{user}}", "{{bot}}"]},
}


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, str]]:
    folder = tmp_path_factory.mktemp("chat")
    words = ("a", "b", "c", "\u0120", "ab", "\u0120c", "<|endoftext|>")
    (folder / "vocab.json").write_text(json.dumps({word: number for number, word in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\na b\n\u0120 c\n")
    files = {"vocab": str(folder / "vocab.json"), "merges": str(folder / "merges.txt")}
    work(folder / "saving", {name: {"save_tokenizer": [{"folder": str(folder / name), **files}]} for name in STALE})
    jobs: dict[str, dict[str, list[Any]]] = {library: {"chat": []} for library in LIBRARIES}
    for writer, stale in STALE.items():
        tensors = {"w": np.random.default_rng(0).standard_normal((3, 3))}
        write(folder / writer, tensors, config={"model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"]})
        (folder / writer / "chat_template.json").write_text(json.dumps(stale))
        shutil.copytree(folder / writer, folder / f"{writer}-b")
        models = [str(folder / writer), str(folder / f"{writer}-b")]
        for number, template in enumerate(EXPECTED):
            out = str(folder / f"{writer}-{number}")
            merge(MergeConfig(model_path_list=models, chat_template=template, output_path=out), progress=False)
            for its, reader, options in READS:
                if its == writer:
                    jobs[reader]["chat"].append({"name": f"{writer} {template}", "folder": out, **options})
    return {library: said for library, (said, _) in work(folder / "loading", jobs).items()}


@pytest.mark.parametrize("template", EXPECTED)
@pytest.mark.parametrize(("writer", "reader", "options"), READS)
def test_libraries_use_the_template(
    answers: dict[str, dict[str, str]], template: str, writer: str, reader: str, options: dict[str, Any]
) -> None:
    assert answers[reader][f"{writer} {template}"] == EXPECTED[template]
