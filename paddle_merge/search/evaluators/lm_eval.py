"""Score language models by tasks of lm-eval, by name or from a local folder.

    evaluate: {lm_eval: [my_task, other], include_path: ./tasks, num_fewshot: 2}

Behind `lm_eval:` stand the tasks, or all settings, the tasks under `tasks`. `data` may name other ones for a split,
separated by commas: `data: {search: my_task, report: arc_easy}`. A group of tasks stands for its tasks.

Metrics are those of the tasks: acc, exact_match/strict-match (with the filter's name, if there is one). With several tasks,
a metric that is a mean over samples is the mean over the samples of all tasks that have it, and each task's own value has
its name before it: my_task/acc. The samples of a split are those of its tasks, one task after the other.

Models of PaddleFormers and PaddleNLP are computed by libraries.lm_eval_model, those of transformers by lm-eval's HFLM.
"""

from __future__ import annotations

import contextlib
import io
import json
import logging
import os
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import numpy as np

from ...errors import Attempts, ConfigError
from ...parsing import nearest
from ..contract import Candidate, EvaluationError, Scores
from ..data import OVERLAP
from ..job import Setup
from .libraries.models import Models, ModelSettings, chosen, import_library
from .samples import SPLITS
from .settings import read_settings, setting


@dataclass
class TaskSettings(ModelSettings):
    """The settings of this evaluator.

    tasks: their names. include_path: the folder of one's own tasks. num_fewshot: examples before each question; None: the
    task's. apply_chat_template: whether questions are put into the model's chat template. confirm_run_unsafe_code: whether
    tasks that run what the model writes may do so.
    """

    tasks: list[str] | None = setting()
    include_path: str | None = setting()
    num_fewshot: int | None = setting(least=0)
    apply_chat_template: bool = setting(False)
    confirm_run_unsafe_code: bool = setting(False)


class Tasks:
    """Runs tasks of lm-eval."""

    metrics = None

    def __init__(self, setup: Setup):
        """Raises ConfigError listing everything wrong with the settings and the names of tasks, or if lm-eval is missing."""
        evaluation, attempt = setup.evaluation, Attempts()
        self._setup = setup
        settings = attempt(read_settings, evaluation, TaskSettings)
        self._settings: TaskSettings = settings or TaskSettings()
        self._library = attempt(chosen, self._settings, evaluation.at) or ""
        if find_spec("lm_eval") is None:
            attempt.errors.append(ConfigError(f"{evaluation.at}: needs lm-eval: pip install 'paddle_merge[lm_eval]'"))
        attempt.finish()
        given = evaluation.what if isinstance(evaluation.what, str | list) else self._settings.tasks or []
        always = _names(given)
        self._names = {split: _names(setup.data.of(split) or "") or always for split in SPLITS}
        self._models = Models(self._library, self._settings)
        self._loaded: dict[str, dict[str, Any]] = {}
        problems = self._problems()
        if problems:
            raise ConfigError(problems)

    def prepare(self) -> None:
        import_library(self._library)

    def count(self, split: str) -> int | None:
        return sum(len(task.eval_docs) for task in self._tasks(split).values())

    def __call__(self, candidate: Candidate, split: str, seed: int, samples: Sequence[int] | None) -> Scores:
        import lm_eval
        from lm_eval.utils import set_torch_seed

        tasks, wanted, settings = self._tasks(split), self._chosen(split, samples), self._settings
        for task in tasks.values():
            task.set_fewshot_seed(seed=seed)  # the same examples for all candidates
        random.seed(seed)
        np.random.seed(seed % 2**32)
        set_torch_seed(seed)
        with self._models.opened(candidate) as model, _silence():
            # Not simple_evaluate, which lists the machine's packages each time, for seconds.
            found = lm_eval.evaluate(
                lm=_as_lm(model, settings),
                task_dict={"tasks": {name: tasks[name] for name in wanted}, "groups": {}},
                samples=wanted if samples is not None else None,
                apply_chat_template=settings.apply_chat_template,
                confirm_run_unsafe_code=settings.confirm_run_unsafe_code,
                bootstrap_iters=0,
                log_samples=True,
            )
        return scores(found["results"], found["samples"], list(wanted), len(tasks) > 1)

    # --- tasks

    def cautions(self) -> list[str]:
        """Return a sentence for public tasks that are searched on."""
        public = [name for name in self._names["search"] if name not in self._own]
        if not public:
            return []
        these = f"{public[0]} is a public benchmark" if len(public) == 1 else f"{', '.join(public)} are public benchmarks"
        return [
            f"{self._setup.evaluation.at}: {these}: a recipe that was searched for on a benchmark fits its questions, so its"
            " score there can't be compared with other models'; search on samples of your own, and report the benchmark"
        ]

    def _problems(self) -> list[str]:
        """Open the index of tasks, and return what is wrong with the names of tasks."""
        from lm_eval.tasks import TaskManager

        evaluation, folder = self._setup.evaluation, self._settings.include_path
        path = None if folder is None else os.path.join(self._setup.folder, os.path.expanduser(folder))
        if path is not None and not os.path.isdir(path):
            return [f"{evaluation.places.get('include_path', evaluation.at)}: include_path {path}: no such folder"]
        named = list(dict.fromkeys(name for names in self._names.values() for name in names))
        if not named:
            return [f"{evaluation.at}: lm_eval needs the name of a task: lm_eval: [my_task]"]
        with _silence():
            self._manager = TaskManager(include_path=path, include_defaults=False)
            self._own = set(self._manager.all_tasks)
            if not self._own.issuperset(named):
                self._manager = TaskManager(include_path=path)
        known = self._manager.all_tasks
        problems = [
            f"{evaluation.at}: lm-eval has no task {name!r}{nearest(name, known)}" for name in named if name not in known
        ]
        data = self._setup.data
        if data.search and data.report and not data.shared:
            twice = [name for name in self._names["search"] if name in self._names["report"]]
            at = data.places.get("report", evaluation.at)
            problems += [f"{at}: data: {name} is in search and report; {OVERLAP}" for name in twice]
            local = self._own.issuperset(named) and not problems  # others might have to be downloaded first
            if local and (both := self._contents("search") & self._contents("report")):
                problems.append(f"{at}: data: the tasks of search and report share {len(both)} samples; {OVERLAP}")
        return problems

    def _contents(self, split: str) -> set[str]:
        """Return the samples of a split as text, so that equal ones are equal."""
        docs = [doc for task in self._tasks(split).values() for doc in task.eval_docs]
        return {json.dumps(doc, sort_keys=True, default=str) for doc in docs}

    def _tasks(self, split: str) -> dict[str, Any]:
        """Return the tasks of a split by name, groups replaced by their tasks."""
        if split not in self._loaded:
            with _silence():
                found = dict(self._manager.load(list(self._names[split]))["tasks"])
            for task in found.values():  # as simple_evaluate does; a task that says 0 means it
                own, asked = task.get_config("num_fewshot"), self._settings.num_fewshot
                if own is None or (asked is not None and own != 0):
                    task.set_config(key="num_fewshot", value=asked or 0)
            self._loaded[split] = found
        return self._loaded[split]

    def _chosen(self, split: str, samples: Sequence[int] | None) -> dict[str, list[int]]:
        """Return the places of the chosen samples in each task; tasks without any are left out (lm-eval would run all)."""
        found, before = dict[str, list[int]](), 0
        for name, task in self._tasks(split).items():
            count = len(task.eval_docs)
            places = range(before, before + count) if samples is None else samples
            its = [place - before for place in places if before <= place < before + count]
            before += count
            if its:
                found[name] = its
        return found


def scores(
    results: Mapping[str, Mapping[str, Any]], logged: Mapping[str, Sequence[Any]], tasks: Sequence[str], several: bool
) -> Scores:
    """Return the metrics of tasks, and values per sample of those that are means.

    results: task -> "metric,filter" -> value. logged: task -> what lm-eval logs of each sample. several: whether the split
    has several tasks, so that metrics are given by task, too. Whether a metric is the mean of its samples' values is seen by
    computing that. Raises EvaluationError if there are no metrics.
    """
    metrics, values = dict[str, float](), dict[str, list[float]]()
    pooled: dict[str, list[list[float]]] = {}  # by metric, the values of each task; [] if it is no mean there
    for task in tasks:
        for key, value in results.get(task, {}).items():
            metric, comma, kept = key.partition(",")
            if not comma or metric.endswith("_stderr") or isinstance(value, bool | str) or value is None:
                continue
            name = metric if kept == "none" else f"{metric}/{kept}"
            full = f"{task}/{name}" if several else name
            metrics[full] = float(value)
            per_sample = _values(logged.get(task, ()), metric, kept)
            is_mean = bool(per_sample) and bool(np.isclose(np.mean(per_sample), value, rtol=1e-9, atol=1e-12))
            pooled.setdefault(name, []).append(per_sample if is_mean else [])
            if is_mean:
                values[full] = per_sample
    if not metrics:
        raise EvaluationError("the tasks gave no metric")
    for name, parts in pooled.items():
        if several and all(parts):
            values[name] = [value for part in parts for value in part]
            metrics[name] = float(np.mean(values[name]))
    return Scores(metrics, values, cost={"samples": float(sum(len(_docs(logged.get(task, ()))) for task in tasks))})


def _values(logged: Sequence[Mapping[str, Any]], metric: str, kept: str) -> list[float]:
    """Return the value of each sample; empty if one of them is no number."""
    found = [one.get(metric) for one in logged if one.get("filter", "none") == kept]
    numbers = all(isinstance(value, int | float | np.number | np.bool_) for value in found)
    return [float(value) for value in found if value is not None] if numbers else []


def _docs(logged: Sequence[Mapping[str, Any]]) -> set[Any]:
    return {one.get("doc_id") for one in logged}


def _names(given: Any) -> list[str]:
    """Return the names of tasks in a list, or in text with commas; empty for what only switches the evaluator on."""
    words = given if isinstance(given, list) else str(given).split(",")
    return [str(word).strip() for word in words if str(word).strip() not in ("", "null", "~", "true", "True")]


def _as_lm(model: Any, settings: TaskSettings) -> Any:
    """Return an open model as lm-eval takes it."""
    from .libraries.torch_models import TorchModel

    if isinstance(model, TorchModel):
        from lm_eval.models.huggingface import HFLM

        options = {"max_length": model.length, "batch_size": settings.batch_size}
        return HFLM(pretrained=model.model, tokenizer=model.tokenizer, **options)
    from .libraries.lm_eval_model import PaddleLM

    return PaddleLM(model, batch_size=settings.batch_size)


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """Keep lm-eval from printing; what goes wrong is raised."""
    logger = logging.getLogger("lm_eval")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logger.setLevel(before)


def make(setup: Setup) -> Tasks:
    """Return the evaluator of `evaluate: {lm_eval: ...}`. Raises ConfigError."""
    return Tasks(setup)
