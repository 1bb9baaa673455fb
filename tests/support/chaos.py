"""Run one trial of tools/chaos.py: a merge in real processes, a fault, a check of what it leaves, and a resumed merge.

After a fault, the output folder must hold the files of a merge without faults, byte for byte; or those of the earlier merge
that was to be replaced; or nothing that a loader opens. The same command with --resume must end with the right bytes.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import psutil

from tests.support import checkpoints

ROOT = Path(__file__).parents[2]
SECONDS = 60.0  # time limit of a merge, even on a busy machine
LAUNCH = """
import signal, sys
signal.signal(signal.SIGINT, signal.SIG_DFL)
from paddle_merge.plan import plan
from paddle_merge.run.output import journal
journal.SECONDS, plan.PIECE_BYTES = {seconds}, 200_000
from paddle_merge.commands.main import main
signal.signal(signal.SIGINT, signal.default_int_handler)
main(sys.argv[1:])
"""
WEIGHTS = (".safetensors", ".pdparams", ".bin", ".index.json")
SINGLE = ("model.safetensors", "model_state.pdparams", "pytorch_model.bin")
LITTER = (".partial", ".replaced")
# The flags of each merge, without --model_path_list, --base_model_path and --output_path.
RECIPES = {
    "linear": "--merge_method linear --n_process 1 --max_shard_size 4MB",
    "dare": "--merge_method dare_ties --n_process 2 --max_shard_size 4MB",
    "ties": "--merge_method ties --n_process 2 --copy_file_list notes.txt more/notes.txt",
    "pdparams": "--merge_method linear --n_process 2 --max_shard_size 4MB --save_format pdparams",
    "again": "--merge_method dare_ties --n_process 1 --max_shard_size 4MB --overwrite",
    "same names": "--merge_method linear --n_process 2 --max_shard_size 4MB --overwrite",
    "pdparams again": "--merge_method ties --n_process 2 --save_format pdparams --overwrite",
}
# The flags of the merge that the output folder held before.
EARLIER = {
    "again": "--merge_method linear --n_process 1 --weight_list 3 1",
    "same names": "--merge_method linear --n_process 1 --max_shard_size 4MB --weight_list 3 1",
    "pdparams again": "--merge_method linear --n_process 1 --max_shard_size 4MB --save_format pdparams --weight_list 3 1",
}
Files = dict[str, bytes]


class BrokenPromiseError(Exception):
    """Raised if a merge leaves something that it must not, or reports the wrong error."""


@dataclass
class Trial:
    """A trial in a folder of its own: merges write to `place/out`; `control` is for tests/faults/injection."""

    kind: str
    number: int
    folder: Path
    models: Path
    recipe: str = ""
    seconds: float = 0.0  # between two fsyncs
    said: list[str] = field(default_factory=list)
    events: Counter[str] = field(default_factory=Counter)  # counts of "faults", "stopped", "finished" and "resumed"
    runs: int = 0
    littered: bool = False  # whether a killed merge had left files when the last one started

    def __post_init__(self) -> None:
        self.random = Random(f"{self.kind}:{self.number}")
        chosen = self.random.choice(list(RECIPES))
        self.recipe = self.recipe or chosen
        self.seconds = self.random.choice([0.0, 0.0, 0.05, 10.0])
        self.place = self.folder / "place"
        self.out = self.place / "out"
        self.inputs = self.models

    # --- merges ------------------------------------------------------------------------------------------------------

    def argv(self, *more: str, recipe: str = "") -> list[str]:
        models = [str(self.inputs / name) for name in ("a", "b")]
        given = [
            "--model_path_list",
            *models,
            "--base_model_path",
            str(self.inputs / "base"),
            "--output_path",
            str(self.out),
        ]
        return [*(recipe or RECIPES[self.recipe]).split(), *given, *more]

    @contextlib.contextmanager
    def merging(self, *more: str, recipe: str = "", env: dict[str, str] | None = None, **chaos: Any) -> Iterator[Any]:
        """Start a merge and yield its process; at the end, kill it and its workers."""
        self.runs += 1
        self.littered = any(name.endswith(LITTER) for name in self.files())
        self.control = self.folder / f"control{self.runs}"
        for name in ("inodes", "safe"):
            (self.control / name).mkdir(parents=True)
        nothing = {"call": "", "at": 0, "who": "any", "fault": ["none"]}
        said = {"folder": str(self.control), "scope": str(self.place), **nothing, **chaos}
        process = subprocess.Popen(
            [sys.executable, "-c", LAUNCH.format(seconds=self.seconds), *self.argv(*more, recipe=recipe)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            env={
                **os.environ,
                "PYTHONPATH": f"{ROOT / 'tests/faults/injection'}:{ROOT}",
                **(env or {}),
                **({"CHAOS": json.dumps(said)} if chaos else {}),
            },
            start_new_session=True,
        )
        control = self.control
        try:
            yield process
        finally:
            self.kill(process)
            self.events["faults"] += (control / "fired").exists()

    def kill(self, process: subprocess.Popen[str]) -> None:
        """The whole family at once, as a reboot does."""
        family = []
        with contextlib.suppress(psutil.NoSuchProcess):
            root = psutil.Process(process.pid)
            family = [root, *root.children(recursive=True)]
        for one in family:
            with contextlib.suppress(psutil.NoSuchProcess):
                one.kill()
        process.communicate()

    def end(self, process: subprocess.Popen[str]) -> int:
        """Its exit code, once it has ended by itself."""
        limit = time.monotonic() + SECONDS
        while True:
            try:
                _, said = process.communicate(timeout=0.05)
                break
            except subprocess.TimeoutExpired:
                if time.monotonic() > limit:
                    raise BrokenPromiseError("it hangs") from None
                with contextlib.suppress(psutil.NoSuchProcess):
                    root = psutil.Process(process.pid)
                    if any(one.status() == psutil.STATUS_STOPPED for one in [root, *root.children(recursive=True)]):
                        time.sleep(self.random.uniform(0, 0.1))
                        self.kill(process)
                        self.said.append("")
                        return -signal.SIGKILL
        self.said.append(said)
        if "failed to map segment" in said:  # a library could not be imported for want of memory
            said = f"error: out of memory: {said.replace('Traceback', '')}"
            self.said[-1] = said
        if said.rstrip().endswith("KeyboardInterrupt") and "paddle_merge/commands/main.py" not in said:
            said = self.said[-1] = "interrupted while Python starts"
        if "Traceback" in said or "Exception ignored" in said:
            raise BrokenPromiseError(f"a traceback: {said}")
        return process.returncode

    def run(self, *more: str, **options: Any) -> int:
        with self.merging(*more, **options) as process:
            return self.end(process)

    def second(self, *more: str, recipe: str) -> int:
        """Another merge, while one is there whose injection goes on."""
        control = self.control
        try:
            return self.run(*more, recipe=recipe)
        finally:
            self.control = control

    # --- what they leave ---------------------------------------------------------------------------------------------

    def files(self) -> Files:
        """What stands in the output folder, without what this trial's folder is called."""
        if not self.out.exists():
            return {}
        found = {str(path.relative_to(self.out)): path for path in self.out.rglob("*") if path.is_file()}
        files = {}
        for name, path in sorted(found.items()):
            files[name] = path.read_bytes()
            for token, folder in self.tokens():
                files[name] = files[name].replace(str(folder).encode(), token.encode())
            if name == "merge_lock.json":  # the record's checksum goes by the folder's name too
                files[name] = re.sub(rb'"merge_config.json": "\w+"', b"", files[name])
        return files

    def state(self) -> str:
        """Return what the output folder holds: "whole", "old" or "nothing". Raises BrokenPromiseError otherwise."""
        right, old = wanted(self.recipe, self.models), earlier(self.recipe, self.models)
        there = self.files()
        files = {name: content for name, content in there.items() if not name.endswith(LITTER)}
        if files == right:
            return "whole"
        if files == old:
            return "old" if old else "nothing"
        weights = {name for name in files if name.endswith(WEIGHTS)}
        for source in (right, old):
            theirs = {name for name in source if name.endswith(WEIGHTS)}
            if weights == theirs and all(files[name] == source[name] for name in weights):
                return "nothing"  # all weights are there, but another file is missing
        wrong = [name for name in weights if files[name] not in (right.get(name), old.get(name))]
        if wrong or loads(files):
            raise BrokenPromiseError(f"it left {sorted(there)}, of which {sorted(wrong) or 'a mixture'} would be loaded")
        return "nothing"

    def tidy(self) -> None:
        """Check that the folder holds a complete merge and nothing else. Raises BrokenPromiseError."""
        rest = [name for name in self.files() if name.endswith(LITTER)]
        careless = self.kind == "errors"  # a file that can't be removed stays
        if self.state() != "whole" or (rest and not careless):
            raise BrokenPromiseError(f"it ended well, but the folder holds {sorted(self.files())}")

    def tokens(self) -> list[tuple[str, Path]]:
        """Return the placeholders for this trial's folders in files, the longer path first, as one may contain the other."""
        pairs = [("<inputs>", self.inputs), ("<folder>", self.folder)]
        return sorted(pairs, key=lambda pair: -len(str(pair[1])))

    def put(self, files: Files) -> None:
        """Write files to the output folder, with the placeholders replaced by this trial's folders."""
        for name, content in files.items():
            (self.out / name).parent.mkdir(parents=True, exist_ok=True)
            for token, folder in self.tokens():
                content = content.replace(token.encode(), str(folder).encode())
            (self.out / name).write_bytes(content)

    def begin(self) -> None:
        """Fill the output folder with the earlier merge, if the recipe has one."""
        self.place.mkdir(exist_ok=True)
        self.put(earlier(self.recipe, self.models))

    def after(self, code: int) -> None:
        """Check what a merge with this exit code left, and its message. Raises BrokenPromiseError."""
        state = self.state()
        if code == 0:
            self.events["finished"] = 1
            self.tidy()
            return
        self.events["stopped"] = 1
        said = self.said[-1] if code >= 0 else ""
        if code > 0 and not ("error: " in said or "interrupted" in said or (code, said) == (130, "")):
            raise BrokenPromiseError(f"exit code {code} without an error message: {said}")
        offered = "run the same command with --resume to continue" in said
        left = [name for name in self.files() if name.endswith(LITTER)]
        wrong = (left and not offered and not self.littered) or (offered and not left)
        if code > 0 and state != "whole" and wrong and "could not be restored" not in said:
            raise BrokenPromiseError(f"it left {left}, and said: {said}")
        if code > 0 and earlier(self.recipe, self.models) and state == "nothing" and "could not be restored" not in said:
            raise BrokenPromiseError(f"the earlier merge is gone: {sorted(self.files())}")

    def go_on(self) -> None:
        """Complete the merge, with --resume or, if nothing was kept, without. Raises BrokenPromiseError."""
        if self.state() == "whole":
            self.run("--resume")
            if self.state() != "whole":
                raise BrokenPromiseError(f"a whole merge is broken by --resume: {self.said[-1]}")
            return
        if self.random.random() < 0.3 and "--overwrite" not in RECIPES[self.recipe]:
            code = self.run()
            if code == 0:
                self.tidy()
                return
            if "holds an unfinished merge; --resume continues it" not in self.said[-1]:
                raise BrokenPromiseError(f"it can't be merged again: {self.said[-1]}")
            self.state()
        if self.run("--resume") != 0:
            raise BrokenPromiseError(f"--resume fails: {self.said[-1]}")
        self.events["resumed"] = 1
        self.tidy()


def loads(files: Files) -> bool:
    """Return whether a loader would open these files: a single file, an index with its shards, or a config with weights."""
    for name in files:
        if name.endswith(".index.json"):
            named = set(json.loads(files[name])["weight_map"].values())
            if named <= files.keys():
                return True
    weights = any(name.endswith(WEIGHTS) for name in files)
    return any(name in files for name in SINGLE) or (weights and "config.json" in files)


def make_models(folder: Path) -> Path:
    """Write a base and two models of 4 MB, in two files each, and return the folder."""
    for name in ("base", "a", "b"):
        generator = np.random.default_rng(ord(name[0]))
        tensors: dict[str, np.ndarray] = {f"t{k}": generator.standard_normal((300, 500)) for k in range(14)}
        tensors["ids"] = np.arange(5000)
        checkpoints.write(folder / name, tensors, "bfloat16", shards=2)
    (folder / "base/more").mkdir()
    for name in ("notes.txt", "more/notes.txt"):
        (folder / "base" / name).write_text(name)
    return folder


@cache
def undisturbed(flags: str, models: Path) -> tuple[Files, dict[str, int]]:
    """Return the files of a merge without faults, and how often it makes each call."""
    folder = models / "right" / re.sub(r"\W+", "_", flags)
    trial = Trial("right", 0, folder, models)
    trial.seconds = 0.0
    if trial.run(recipe=flags, scope=str(folder)) != 0:
        raise SystemExit(f"a merge fails without a fault: {trial.said}")
    counts = {path.name[6:]: path.stat().st_size for path in trial.control.glob("count-*")}
    counts["preadv"] = 200
    return trial.files(), counts


def wanted(recipe: str, models: Path) -> Files:
    """Return the files of the recipe's merge without faults."""
    return undisturbed(RECIPES[recipe].replace(" --overwrite", ""), models)[0]


def earlier(recipe: str, models: Path) -> Files:
    """Return the files of the merge that the recipe replaces; none if there is no such merge."""
    return undisturbed(EARLIER[recipe], models)[0] if recipe in EARLIER else {}
