"""Take over the tokenizer that training left beside the adapters."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Collection, Mapping, Sequence

from ...checkpoints.json_files import read_small
from ...conversion.vocabulary.tokens import MAX_FILE, same_files
from ...conversion.vocabulary.write import is_tokenizer_file
from ...errors import CheckpointError
from ...plan import chat


def tokenizer_of(folders: Sequence[str]) -> tuple[Mapping[str, bytes], list[str]]:
    """Return the files of the tokenizer that adapters' folders hold, by name; and a sentence if they can't be taken over.

    There are none if no folder has a tokenizer, or if the folders' give tokens different ids, or different chat templates.
    """
    named = {folder: sorted(filter(is_tokenizer_file, os.listdir(folder))) for folder in folders}
    having = [folder for folder, names in named.items() if names]
    if not having:
        return {}, []
    first, *others = having
    try:
        differing = [folder for folder in others if not same_files(first, folder)]
        if differing:
            return {}, [f"the tokenizers in {first} and {differing[0]} differ, so the output gets none"]
        template, _ = chat.of_folder(first)
        differing = [folder for folder in others if chat.of_folder(folder)[0].strip() != template.strip()]
        if differing:
            return {}, [
                f"the chat templates in {first} and {differing[0]} differ, so the output gets no tokenizer; copy the files"
                " of the one whose template is to be used"
            ]
        paths = {name: os.path.join(first, name) for name in named[first]}
        return {name: read_small(path, MAX_FILE) for name, path in paths.items() if os.path.isfile(path)}, []
    except (OSError, ValueError, CheckpointError) as error:
        return {}, [f"the tokenizer in {first} can't be read, so the output gets none ({error})"]


def drop_others(folder: str, names: Collection[str]) -> None:
    """Remove the tokenizer files of an earlier output that the new one, whose files have these names, doesn't replace."""
    for name in os.listdir(folder):
        path = os.path.join(folder, name)
        if is_tokenizer_file(name) and name not in names and os.path.isfile(path):
            with contextlib.suppress(OSError):
                os.unlink(path)
