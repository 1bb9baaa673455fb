"""Score a tiny model by tasks of lm-eval, with its own class for transformers (HFLM) and with ours.

    python run_lm_eval.py FOLDER

FOLDER holds hf (a model) and tasks (a folder of tasks). Writes FOLDER/lm_eval.json. In an environment that has PaddleNLP and
no torch, only our class runs.
"""

from __future__ import annotations

import json
import logging
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[3]))

from paddle_merge.errors import ConfigError
from paddle_merge.search.contract import EvaluationError, Scores
from paddle_merge.search.evaluators import cautions, lm_eval, make
from paddle_merge.search.evaluators.libraries import models
from paddle_merge.search.job import Setup
from paddle_merge.search.spec import Data, Evaluation

LENGTH = 16  # tokens, so that the longest text takes several parts


class Stored:
    """A candidate on disk."""

    config: dict[str, object] = {}  # noqa: RUF012

    def __init__(self, folder: Path):
        self.title = self._folder = str(folder)

    def folder(self) -> str:
        return self._folder


def main(folder: Path) -> None:
    def setup(tasks: object, data: Data | None = None, **settings: object) -> Setup:
        evaluation = Evaluation(
            "lm_eval", tasks, {"include_path": "tasks", "max_length": LENGTH, **settings}, at="e.yaml:1:2"
        )
        return Setup(evaluation, data or Data(), folder=str(folder))

    def problems(tasks: object, data: Data | None = None, **settings: object) -> list[str]:
        try:
            make(setup(tasks, data, **settings))
        except ConfigError as error:
            return error.problems
        return []

    def told(scores: Scores) -> dict[str, object]:
        samples = {name: list(values) for name, values in scores.samples.items()}
        return {"metrics": dict(scores.metrics), "samples": samples, "cost": dict(scores.cost)}

    def run(tasks: list[str], samples: list[int] | None = None, seed: int = 0, **settings: object) -> dict[str, object]:
        return told(make(setup(tasks, **settings))(Stored(folder / "hf"), "search", seed, samples))

    def everything() -> dict[str, object]:
        evaluator = make(setup(["my_qa", "my_text", "my_gen"], batch_size=2))
        candidate = Stored(folder / "hf")
        found = {
            "count": evaluator.count("search"),
            "all": told(evaluator(candidate, "search", 0, None)),
            "again": told(evaluator(candidate, "search", 0, None)),
            "chosen": told(evaluator(candidate, "search", 0, [1, 5])),
            "shots": run(["my_qa"], num_fewshot=1),
            "generated": run(["my_gen"])["samples"],
        }
        try:
            found["sampled"] = [run(["my_sampled"], seed=3), run(["my_sampled"], seed=3)]
        except EvaluationError as error:
            found["sampled"] = str(error)
        return found

    found: dict[str, object] = {"library": models.installed()[0]}
    if "transformers" in models.installed():
        found["theirs"] = everything()
        lm_eval._as_lm = ours
    found["ours"] = everything()
    found["by name"] = by_name(folder)
    found["cautions"] = cautions(make(setup(["my_qa"])))
    evaluator = make(setup(["my_qa"], Data(report="my_copy", shared=True)))
    evaluator._own = set()
    found["caution"] = cautions(evaluator)
    found["problems"] = {
        "unknown": problems(["my_qa", "my_copi"]),
        "folder": problems(["my_qa"], include_path="nowhere"),
        "none": problems(True),
        "same": problems("my_qa", Data(search="my_qa, my_gen", report="my_gen")),
        "content": problems("my_qa", Data(search="my_qa", report="my_copy")),
        "allowed": problems("my_qa", Data(search="my_qa", report="my_copy", shared=True)),
    }
    (folder / "lm_eval.json").write_text(json.dumps(found))


def ours(model: object, settings: lm_eval.TaskSettings) -> object:
    from paddle_merge.search.evaluators.libraries.lm_eval_model import PaddleLM

    return PaddleLM(model, batch_size=settings.batch_size)


def by_name(folder: Path) -> dict[str, float]:
    """What simple_evaluate gives for our class by its name."""
    import lm_eval as library
    from lm_eval.tasks import TaskManager

    import paddle_merge.search.evaluators.libraries.lm_eval_model  # noqa: F401 - registers the class

    manager = TaskManager(include_path=str(folder / "tasks"), include_defaults=False)
    found = library.simple_evaluate(
        model="paddle_merge",
        model_args=f"pretrained={folder / 'hf'},max_length={LENGTH}",
        tasks=["my_qa"],
        task_manager=manager,
        bootstrap_iters=0,
        batch_size=2,
    )
    return {name: value for name, value in found["results"]["my_qa"].items() if name in ("acc,none", "acc_norm,none")}


if __name__ == "__main__":
    os.environ["HF_HUB_OFFLINE"] = "1"
    logging.disable(logging.WARNING)
    main(Path(sys.argv[1]))
