"""Take over the tokenizer that training left beside the adapters."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence

from ...checkpoints.json_files import read_small
from ...conversion.vocabulary.tokens import MAX_FILE, same_files
from ...conversion.vocabulary.write import is_tokenizer_file
from ...errors import CheckpointError


def tokenizer_of(folders: Sequence[str]) -> tuple[Mapping[str, bytes], list[str]]:
    """Return the files of the tokenizer that adapters' folders hold, by name; and a sentence if they can't be taken over.

    There are none if no folder has a tokenizer, or if the folders' give tokens different ids.
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
        paths = {name: os.path.join(first, name) for name in named[first]}
        return {name: read_small(path, MAX_FILE) for name, path in paths.items() if os.path.isfile(path)}, []
    except (OSError, ValueError, CheckpointError) as error:
        return {}, [f"the tokenizer in {first} can't be read, so the output gets none ({error})"]
