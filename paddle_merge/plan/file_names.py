"""Names of the files that a merge writes, and of those it leaves when it is stopped."""

from __future__ import annotations

import json
import re
from typing import Any

from ..conversion.vocabulary.write import FILES as TOKENIZER


def name_of(rank: int) -> str:
    """The file of a rank's journal."""
    return f"merge_journal-{rank}.partial"


def is_journal(name: str) -> bool:
    """Whether a file of this name is a journal, or was going to be one."""
    return re.fullmatch(r"merge_journal(\.new)?-\d+\.partial", name) is not None


PARTIAL = ".partial"  # not whole yet
REPLACED = ".replaced"  # an earlier merge's, until the new one stands
NAMES = "merge_names.partial"  # a list of the names that a merge at its end gives, the last of them when it stands
# Never the weights, indexes, optimizer states or the litter that loaders and trainers leave.
COPIED = (
    "config.json",
    "generation_config.json",
    *TOKENIZER,
    "preprocessor_config.json",
    "processor_config.json",
)

CARD = "README.md"
RECORD = "merge_config.json"
LOCK = "merge_lock.json"
ADAPTERS = ("adapter_config.json", "lora_config.json", "extract_report.json")  # beside an adapter's weights
# Endings of what loaders take for weights or their index.
WEIGHTS = (".safetensors", ".pdparams", ".bin", ".distcp", ".metadata", ".index.json")


def json_bytes(content: Any) -> bytes:
    return (json.dumps(content, indent=2) + "\n").encode()
