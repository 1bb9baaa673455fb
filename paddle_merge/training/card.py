"""Make the model card of a merge say what it is of a training, whose checkpoints are gone when people read it."""

from __future__ import annotations

import contextlib
import os
import re

from ..plan.file_names import CARD, LOCK

_NAMELESS = "passthrough"  # the method that writes one model as it is: it says nothing about what that is


def tell(folder: str, about: str) -> None:
    """Change the card of a merge, where it has one, and remove merge_lock.json.

    The lock and the card's recipe are for repeating the merge from its inputs, and these are states of a training that
    nobody has any more. about: what the model is, as the end of a sentence.
    """
    with contextlib.suppress(FileNotFoundError):
        os.remove(os.path.join(folder, LOCK))
    file = os.path.join(folder, CARD)
    if not os.path.exists(file):
        return
    with open(file, encoding="utf-8") as stream:
        first, *sections = re.split(r"^(?=## )", stream.read(), flags=re.MULTILINE)
    kept = [section for section in sections if not section.startswith("## Recipe\n")]
    sentence = f"This model is {about}. A callback of paddle_merge wrote it during the training."
    if f"\n- {_NAMELESS}\n" in first:
        first = first.replace(f"\n- {_NAMELESS}\n", "\n")
        first = re.sub(r"^This model was merged by .*$", lambda _: sentence, first, flags=re.MULTILINE)
        kept = [section for section in kept if not section.startswith("## Models\n")]
    else:
        first = f"{first.rstrip()} It is {about}. A callback of paddle_merge wrote it during the training.\n\n"
    with open(file, "w", encoding="utf-8") as stream:
        stream.write("".join([first, *kept]).rstrip() + "\n")
