"""Write the account of a plan as a JSON file (--account): everything that is known of a merge before it begins."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import os
from collections.abc import Mapping, Sequence
from typing import Any

from ...checkpoints.adapters import split_spec
from ...errors import OutputError
from ...plan.account import Account, InputTensorAccount
from ...plan.describe import parameters
from ...plan.plan import Plan
from ...plan.tensor_account import TensorAccount
from ...recipe.request import Request
from ...version import __version__

log = logging.getLogger("paddle_merge")
MARK = "paddle_merge_account"  # the first key of the file; a file without it is not replaced
Predicted = Mapping[str, Any]


def as_json(plan: Plan, request: Request, accounted: Account, predicted: Predicted) -> dict[str, Any]:
    """Return the content of the file: how each tensor of the output is made, and what happens to each tensor of every
    input."""
    recipe = plan.recipe
    return {
        MARK: __version__,
        "method": recipe.title,
        "parameters": parameters(plan),
        "models": [{"path": recipe.titles[number], "weight": weight} for number, weight in plan.weights],
        "base": recipe.base,
        "layout": plan.layout,
        "tokens": _vocabulary(plan),
        "output": request.output,
        "predicted": predicted,
        "refused": [],
        "tensors": [_made(made) for made in accounted.made],
        "inputs": [
            {
                "path": one.path,
                "role": one.role,
                "tensors": len(one.fates),
                "used": len(one.fates) - len(one.left_out),
                "left_out": len(one.left_out),
                "each": [_fate(fate) for fate in one.fates],
            }
            for one in accounted.inputs
        ],
    }


def _vocabulary(plan: Plan) -> dict[str, Any] | None:
    tokens = plan.tokens
    if tokens is None:
        return None
    titles = plan.recipe.titles
    fates = [{"path": titles[fate.number], **dataclasses.asdict(fate)} for fate in tokens.alignments]
    size = {"source": tokens.title, "tokens": len(tokens.vocabulary.ids), "rows": tokens.rows}
    return {**size, "in_no_model": tokens.nowhere, "inputs": fates}


def _made(made: TensorAccount) -> dict[str, Any]:
    return {
        "name": made.name,
        "shape": list(made.shape),
        "dtypes": list(made.dtypes),
        "dtype": made.dtype,
        "how": made.how,
        "notes": list(made.notes),
        "parameters": dict(made.values),
        "made_of": [list(names) for names in made.sources],
    }


def _fate(fate: InputTensorAccount) -> dict[str, Any]:
    row = {"name": fate.name, "shape": list(fate.shape), "dtype": fate.dtype}
    return row | ({"into": list(fate.into)} if fate.into else {"left_out": fate.why})


def refused(request: Request, problems: Sequence[str]) -> None:
    """Write the reasons why there is no plan to the file that was to hold its account, if it can be written.

    Raises OutputError.
    """
    paths = [path for spec in request.sources for path in split_spec(spec)]
    with contextlib.suppress(OutputError):
        check_account(request, [*paths, *([request.config_from] if request.config_from else [])])
        write(str(request.account), {MARK: __version__, "output": request.output, "refused": list(problems)})


def check_account(request: Request, inputs: Sequence[str]) -> None:
    """Check that the account can be written. inputs: paths of checkpoints and files. Raises OutputError if it can't."""
    if not request.account:
        return
    path, said = os.path.realpath(request.account), f"--account {request.account}"
    folder = os.path.dirname(path)
    if not path.endswith(".json"):
        raise OutputError(f"{said}: is a JSON file, so give it a name that ends in .json")
    if os.path.isdir(path) or not os.path.isdir(folder) or not os.access(folder, os.W_OK):
        raise OutputError(f"{said}: can't be written; give a file in an existing folder")
    with contextlib.suppress(FileNotFoundError), open(path, "rb") as file:
        if MARK.encode() not in file.read(64):
            raise OutputError(f"{said}: exists and is not an account of a merge; give another name")
    held = [os.path.realpath(one) for one in [*inputs, request.output]]
    if any(path == one or path.startswith(one + os.sep) for one in held):
        raise OutputError(f"{said}: lies in an input or in the output folder; give another place")


def write(path: str, content: Mapping[str, Any]) -> None:
    """Write the file, whole or not at all. Raises OutputError."""
    partial = f"{path}.partial"
    try:
        with open(partial, "w", encoding="utf-8", errors="backslashreplace") as file:
            json.dump(content, file, indent=1, ensure_ascii=False)
            file.write("\n")
        os.replace(partial, path)
    except OSError as error:
        raise OutputError(f"--account {path}: can't be written ({error.strerror})") from None
    log.info("account  %s", path)
