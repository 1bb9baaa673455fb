"""Define what a search or a sweep is asked to do besides its file."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import TypeVar

from ..errors import Attempts
from .contract import Evaluator
from .data import check_file, check_splits
from .output import check_folder
from .rule import Rule, parse_rule
from .spec import File, SearchSpec, SoupSpec
from .sweep_spec import SweepSpec

Spec = TypeVar("Spec", SearchSpec, SweepSpec)


@dataclass
class Asked:
    """What a search or a sweep is asked to do besides the file.

    output: the folder for what it finds. resume: whether to go on with what is there; overwrite: whether to begin again.
    workers, pick, evaluator: in place of the file's. Of a search in two parts, pick is of the second one: what the first one
    hands on stays what the file's rule picks, or else the journal's scores of the second one would be of other candidates.
    memory: bytes of inputs that all processes together may keep in memory. ray: the address of a Ray cluster that scores
    candidates, by the file's evaluator; None: this machine does.
    """

    file: str
    output: str
    resume: bool = False
    overwrite: bool = False
    workers: int | None = None
    pick: str | None = None
    memory: int = 0
    ray: str | None = None
    evaluator: Evaluator | None = field(default=None, repr=False)

    def applied(self, spec: Spec, attempt: Attempts) -> Spec:
        """Return what the file asks for, with what this puts in its place. Problems are attempt's."""
        if self.workers is not None:
            spec = dataclasses.replace(spec, workers=self.workers)
        rule: Rule | None = attempt(parse_rule, self.pick, "--pick", spec.objectives) if self.pick is not None else spec.pick
        if isinstance(spec, SweepSpec) or spec.then is None:
            return dataclasses.replace(spec, pick=rule)
        return dataclasses.replace(spec, then=dataclasses.replace(spec.then, workers=spec.workers, pick=rule))

    def check(self, spec: SearchSpec | SweepSpec | SoupSpec, file: File, attempt: Attempts) -> None:
        """Check the samples and the output folder. Problems are attempt's."""
        attempt(check_splits, spec.data, file.folder)
        for split in ("search", "report") if self.evaluator is None else ():
            attempt(check_file, spec.evaluate.kind, spec.data, split, file)
        attempt(check_folder, self.output, self.resume, self.overwrite)
