"""Name the files that a merge writes, and those that it leaves when it is stopped."""

from __future__ import annotations

import re

from ..conversion.vocabulary.write import FILES as TOKENIZER

JOURNALS = "merge_journal-*.partial"  # a pattern of the journals of all ranks


def journal_name(rank: int, new: bool = False) -> str:
    """Return the name of a rank's journal; new: while it is not yet whole itself."""
    return f"merge_journal{'.new' if new else ''}-{rank}.partial"


def is_journal(name: str) -> bool:
    """Return whether a file of this name is a journal, or was going to be one."""
    return re.fullmatch(r"merge_journal(\.new)?-\d+\.partial", name) is not None


PARTIAL = ".partial"  # the ending of a file that is not whole yet
REPLACED = ".replaced"  # the ending of an earlier merge's file, until the new merge is complete
NAMES = "merge_names.partial"  # lists the final names of a merge's files, while it renames them
# What is copied from an input, by pattern: never weights, indexes, optimizer states or what loaders and trainers leave.
COPIED = (
    "config.json",
    "configuration.json",  # ModelScope's
    "generation_config*.json",
    *TOKENIZER,
    "*preprocessor_config.json",  # of images, videos or sound
    "processor_config.json",
    "modules.json",  # of sentence-transformers, as the next two
    "sentence_*_config.json",
    "config_sentence_transformers.json",
)

CODE = "*.py"  # copied too, where config.json names code

CARD = "README.md"
RECORD = "merge_config.json"  # what was asked
LOCK = "merge_lock.json"  # what was read and written
EXPERTS = "expert_alignment.npz"  # which experts of the inputs were merged with which
EXTRACT_REPORT = "extract_report.json"
MERGE_LORA_REPORT = "merge_lora_report.json"
# Beside an adapter's weights.
ADAPTERS = ("adapter_config.json", "lora_config.json", EXTRACT_REPORT, MERGE_LORA_REPORT)
# The endings of files that loaders take for weights or their index.
WEIGHTS = (".safetensors", ".pdparams", ".bin", ".distcp", ".metadata", ".index.json")
