"""Read model cards with huggingface_hub, or run the lines that they give for loading the model. Run by test_cards.py.

cards.py read CARD RESULT       the card's metadata and results, as JSON
cards.py load CARD RESULT       run its Python in the folder above the card's; write the name of the model's class
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
import sys
from typing import Any


def read(card: str) -> dict[str, Any]:
    from huggingface_hub import ModelCard

    data = ModelCard.load(card).data
    results = [dataclasses.asdict(one) for one in data.eval_results or ()]
    plain = {name: value for name, value in data.to_dict().items() if name != "model-index"}
    return {"metadata": plain, "name": data.get("model_name"), "results": results}


def load(card: str) -> dict[str, Any]:
    with open(card, encoding="utf-8") as file:
        (lines,) = re.findall(r"^```python\n(.*?)^```$", file.read(), re.MULTILINE | re.DOTALL)
    os.chdir(os.path.join(os.path.dirname(card), os.pardir))
    names: dict[str, Any] = {}
    exec(lines, names)
    return {"class": type(names["model"]).__name__}


if __name__ == "__main__":
    found = {"read": read, "load": load}[sys.argv[1]](sys.argv[2])
    with open(sys.argv[3], "w", encoding="utf-8") as file:
        json.dump(found, file)
