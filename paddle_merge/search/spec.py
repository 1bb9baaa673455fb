"""Define what a search file asks for, and the file: its text, its documents and the places in it.

sections.py reads the sections `search` and `evaluate`, sweep_spec.py the section `sweep`; everything else in the file is a
recipe (space.py).
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import field
from typing import Any

import yaml

from ..errors import ConfigError
from ..recipe.yaml_nodes import documents
from ..records import record
from .rule import Rule

OPTIMIZERS = ("cma", "sep_cma", "cat_cma", "nsga2", "como", "random", "grid", "optuna")
KINDS = ("command", "python", "perplexity", "multiple_choice", "lm_eval")  # of evaluators


@record(frozen=True)
class Evaluation:
    """What scores candidates.

    kind: one of KINDS. what: the command, the function, the tasks ... settings: the further keys of the section, as plain
    values. time_limit: of one evaluation, in seconds; None: none. at: file, line and column, for messages; places: the same
    for each key of the section, and of `what` if that is a mapping.
    """

    kind: str
    what: Any
    settings: Mapping[str, Any] = field(default_factory=dict)
    time_limit: float | None = None
    at: str = ""
    places: Mapping[str, str] = field(default_factory=dict)


@record(frozen=True)
class Data:
    """The samples of each split: paths of files, or what else the evaluator takes; None where nothing is said.

    shared: whether the two may share samples. places: file, line and column of each split's, for messages.
    """

    search: str | None = None
    report: str | None = None
    shared: bool = False
    places: Mapping[str, str] = field(default_factory=dict)

    def of(self, split: str) -> str | None:
        return self.search if split == "search" else self.report


@record(frozen=True)
class Race:
    """How candidates race: all are scored on `first` samples, the best 1/eta of them on eta times as many, and so on."""

    first: int
    eta: int = 3


@record(frozen=True)
class SearchSpec:
    """What the section `search` asks for.

    objectives: metric -> "maximize" or "minimize". optimizer: None: chosen by the space. population: candidates of one
    generation; None: the optimiser's own. sigma: the first step of CMA-ES, as a share of the bounds; None: its own. noisy:
    whether scores are noisy, so that CMA-ES adapts its learning rate. pick: which of several best candidates is written.
    samples: how many samples of the search split are used; None: all. finalists: how many of the best are scored in full at
    the end. then: how the file's paths (paths.py) are searched, with the best values that this search finds for everything
    else; None: paths, if there are any, are searched together with everything else.
    """

    evaluate: Evaluation
    objectives: Mapping[str, str]
    data: Data = field(default_factory=Data)
    optimizer: str | None = None
    evaluations: int = 100
    population: int | None = None
    sigma: float | None = None
    noisy: bool = False
    seed: int = 0
    workers: int = 1
    race: Race | None = None
    pick: Rule | None = None
    samples: int | None = None
    finalists: int = 3
    tensor_type: str = "np"
    device: str = "cpu"
    then: SearchSpec | None = None


@record(frozen=True)
class SoupSpec:
    """What a greedy soup (soup.py) asks for: as of SearchSpec. The candidates are recipes, which the file doesn't have.

    config_from: the folder with config.json, if the checkpoints have none; "" if they have it.
    """

    evaluate: Evaluation
    objectives: Mapping[str, str]
    data: Data = field(default_factory=Data)
    seed: int = 0
    workers: int = 1
    config_from: str = ""
    tensor_type: str = "np"
    device: str = "cpu"


@record(frozen=True)
class File:
    """A search file, read once: its text, its documents, and where it lies."""

    where: str
    text: str
    nodes: tuple[yaml.Node, ...]

    @property
    def folder(self) -> str:
        return os.path.dirname(os.path.abspath(self.where))

    def at(self, *keys: str) -> str:
        """Return file, line and column of a key of a section, such as ("objectives", "acc"), for messages.

        Only the file, if the key isn't there.
        """
        roots = [value for node in self.nodes for name in ("search", "sweep") if (value := child(node, name)) is not None]
        for root in (*roots, *self.nodes):
            node: yaml.Node | None = root
            for key in keys:
                node = child(node, key)
            if node is not None:
                return f"{self.where}:{node.start_mark.line + 1}:{node.start_mark.column + 1}"
        return self.where


def child(node: yaml.Node | None, name: str) -> yaml.Node | None:
    """Return the value that a mapping has at a key."""
    pairs = node.value if isinstance(node, yaml.MappingNode) else ()
    return next((value for key, value in pairs if getattr(key, "value", None) == name), None)


def read_file(path: str) -> File:
    """Return a file's documents. Raises ConfigError."""
    try:
        with open(path, encoding="utf-8-sig") as file:
            text = file.read()
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise ConfigError(f"{path}: can't be read ({reason})") from None
    return File(path, text, tuple(documents(text, path)))
