"""The command line of `python -m paddle_merge soup`: flags -> checkpoints and weights -> a linear merge of them."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ...checkpoints.adapters import absolute_spec
from .. import common_flags
from ..flags import CommandLine
from ..run_line import run_line
from ..search_flags import resumable
from .config import FIELDS, MERGE, SoupConfig

if TYPE_CHECKING:
    from ...recipe.config import MergeConfig
    from .choose import Found

HELP = """Average the checkpoints of a training run.

Finds the checkpoints in the run's output folder (checkpoint-N and hf_checkpoint-N of PaddleNLP's, PaddleFormers' and
transformers' Trainers, with what they scored), shows them with their weights in the average, and with --output_path writes
the average. It is computed by streaming, as every merge: memory doesn't grow with models or their number.

--decay replaces the decay of the learning rate: train at a constant rate, and average the last checkpoints with the
weights that follow from the curve (WSM, arXiv 2507.17634). How many steps they span matters most, so try several --last.
With --with FILE, a greedy soup is made (Wortsman et al. 2022): a checkpoint stays in the average if the score doesn't fall.

Moving averages that PaddleFormers' zero-cost checkpoints keep start from zeros; with --kind ema_state they are read
corrected.
"""
LINE = CommandLine(
    name="soup",
    fields=FIELDS,
    argument=("RUN_DIR", "The output folder of a training run."),
    help=HELP,
    examples=[
        ("Show the checkpoints of a run:", "./output"),
        ("In place of a decay over the last five:", "./output --last 5 --decay 1-sqrt --output_path ./soup"),
        ("A greedy soup:", "./output --last 8 --with eval.yaml --output_path ./soup"),
        ("Of a run that trained a LoRA adapter:", "./output --base_model_path ./base --last 3 --output_path ./soup"),
    ],
    aliases={"base_model_name_or_path": "base_model_path"},
)


def main(argv: Sequence[str]) -> None:
    """Run `python -m paddle_merge soup *argv`. Raises MergeError."""
    run_line(LINE, argv, _run)


def _run(paths: list[str], flags: dict[str, Any]) -> None:
    merge = {name: value for name, value in flags.items() if name in MERGE}
    config = SoupConfig(
        paths, **{f"{name}_" if name == "with" else name: flags[name] for name in flags.keys() - merge.keys()}
    )
    config.check(merge)
    from .choose import choose
    from .show import as_json, lines

    found = choose(config)
    if not config.json:
        print("\n".join(lines(found)))
    elif config.with_ is None:
        print_json(as_json(found))
    if "output_path" not in merge:
        if not config.json:
            print("to write the average, give --output_path")
    elif config.with_ is not None:
        _greedy(found, config, merge)
    else:
        from ...run.merge import merge as run

        run(merge_config(found, merge))


def _greedy(found: Found, config: SoupConfig, merge: Mapping[str, Any]) -> None:
    """Make a greedy soup of the chosen checkpoints, and write its merge and report."""
    from ...recipe.request import Request
    from ...run.merge import merge as run
    from ...run.merge import prepare
    from ...search.asked import Asked
    from ...search.output import write_report
    from ...search.soup import greedy_soup, soup_report
    from .show import as_json, soup_lines

    of_merge = {**merge, "overwrite": True, "resume": False}  # these two are about the journal here
    dtype = merge.get("out_dtype") or found.dtype

    def average(numbers: Sequence[int]) -> MergeConfig:
        return merge_config(found.only(numbers), of_merge)

    titles = [os.path.relpath(member.saved.path, found.run) for member in found.chosen]
    plan, _, _ = prepare(Request.of(average(range(len(titles)))))  # what can't be merged is said before anything is scored
    asked = Asked(
        file=os.path.expanduser(config.with_ or ""),
        output=os.path.expanduser(merge["output_path"]),
        resume=merge.get("resume", False),
        overwrite=merge.get("overwrite", False),
        workers=config.workers,
        memory=common_flags.memory_for_inputs(1),
    )
    with resumable(asked.output):
        soup = greedy_soup(
            asked,
            titles,
            plan.files,
            lambda numbers: recipe(found.only(numbers), dtype),
            merge.get("config_from") or found.config or "",
        )
    run(average(soup.members), progress=False)
    write_report(asked.output, soup_report(soup))
    if config.json:
        print_json({**as_json(found), "soup": soup_report(soup)})
    else:
        print("\n".join(soup_lines(soup)))


def print_json(content: Any) -> None:
    """Print a JSON value; numbers that aren't finite, which JSON lacks, as null."""

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: plain(one) for key, one in value.items()}
        if isinstance(value, list | tuple):
            return [plain(one) for one in value]
        return None if isinstance(value, float) and not math.isfinite(value) else value

    print(json.dumps(plain(content), indent=2))


def merge_config(found: Found, merge: Mapping[str, Any]) -> MergeConfig:
    """Return the merge that makes the average. merge: fields of it, which go before those that follow from the run."""
    from ...recipe.config import MergeConfig

    return MergeConfig(recipe_yaml=recipe(found), **{"config_from": found.config, "out_dtype": found.dtype, **merge})


def recipe(found: Found, dtype: str | None = None) -> str:
    """Return the recipe of the average, in YAML (of which JSON is a part). dtype: of the output; None: as of the inputs."""
    models = [
        {"model": absolute_spec(member.spec), "parameters": {"weight": member.weight / member.share}}
        for member in found.chosen
    ]
    content: dict[str, Any] = {"merge_method": "linear", "models": models, "parameters": {"normalize": False}}
    return json.dumps(content | ({"out_dtype": dtype} if dtype else {}), indent=1) + "\n"
