"""Run one trial of fuzzing: merge randomly damaged inputs, and check the outcome.

A merge must give the right result, or raise MergeError and write nothing. It may only open files in the folders of the
models and of the output, must not run code from a file, and may use no more memory than its files need and a constant.
"""

from __future__ import annotations

import itertools
import json
import logging
import os
import resource
import shutil
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import numpy as np

from paddle_merge import MergeConfig, MergeError, merge
from paddle_merge.backends import machine
from paddle_merge.commands.diff.cli import DiffConfig, diff
from paddle_merge.commands.diff.show import lines as diff_lines
from paddle_merge.commands.extract_lora.config import ExtractConfig
from paddle_merge.commands.extract_lora.run import extract_lora
from paddle_merge.commands.inspect.cli import InspectConfig, inspect
from paddle_merge.commands.inspect.show import lines as inspect_lines
from paddle_merge.commands.merge_lora.config import MergeLoraConfig
from paddle_merge.commands.merge_lora.run import merge_lora
from paddle_merge.recipe.request import Request
from tests.support import attacks, checkpoints
from tests.support.mutations import damaged
from tests.support.specimens import KINDS, Specimen, State

SECONDS = 10.0  # time limit of a trial
MEMORY = 256 << 20  # bytes that even the smallest merge may need: blocks, and modules imported late
FORBIDDEN = ("os.system", "os.exec", "os.posix_spawn", "os.spawn", "os.fork", "os.forkpty", "pty.spawn",
             "subprocess.Popen", "socket.connect", "socket.bind",
             "pickle.find_class", "os.symlink", "os.link", "os.chown", "urllib.Request", "webbrowser.open")  # fmt: skip
PATHS = (
    "open",
    "os.listdir",
    "os.scandir",
    "os.mkdir",
    "os.remove",
    "os.rmdir",
    "os.rename",
    "os.truncate",
    "os.chmod",
    "shutil.rmtree",
)
_SPECIMENS: dict[str, list[Specimen]] = {}
_RIGHT: dict[int, State] = {}


@dataclass(frozen=True)
class Outcome:
    """How a trial ended.

    ending: "refused", "merged" (the result is as without damage), "changed" (it is as an independent reader finds), "fault".
    """

    ending: str
    detail: str = ""


# Which say how many cores and how much memory there are, and to threadpoolctl which libraries are loaded.
MACHINE = (machine.ROOT, machine.MEMBERSHIP, "/proc/meminfo", "/proc/self/maps")


class Guard:
    """Records which forbidden files or programs the process opens or runs while `on` is set."""

    def __init__(self) -> None:
        self.folder, self.on, self.seen = "", False, list[str]()
        self.anywhere = False  # whether reading any file is allowed
        self._libraries = (os.path.dirname(os.__file__), *map(os.path.abspath, filter(None, sys.path)), sys.prefix)
        sys.addaudithook(self._hook)

    def _hook(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self.on:
            return
        if event in FORBIDDEN:
            self.seen.append(f"{event} {arguments!r:.200}")
        elif event in PATHS:
            for path in arguments[:2] if event == "os.rename" else arguments[:1]:
                if isinstance(path, str | bytes | os.PathLike):
                    self._look(event, os.path.abspath(os.fsdecode(path)), arguments)

    def _look(self, event: str, path: str, arguments: tuple[Any, ...]) -> None:
        writes = event not in ("open", "os.listdir", "os.scandir")
        if event == "open" and isinstance(arguments[2], int):
            writes = bool(arguments[2] & (os.O_WRONLY | os.O_RDWR))
        inside = [
            f"{self.folder}/{name}" for name in (("out",) if writes else ("a", "b", "out", "merge.json", "merge.yaml"))
        ]
        if event == "open" and path == self.folder and not writes:  # to fsync the name of a new folder
            return
        if any(path == place or path.startswith(f"{place}/") for place in inside):
            return
        if not writes and path.startswith(MACHINE):
            return
        library = path.startswith(self._libraries) and not path.startswith(self.folder)  # modules imported late
        if not (library and (not writes or "__pycache__" in path)) and (writes or not self.anywhere):
            self.seen.append(f"{event} {path!r}")


def limit_memory() -> None:
    """Limit the process to MEMORY bytes more than it uses now."""
    with open("/proc/self/statm") as file:
        pages = int(file.read().split()[0])
    soft = pages * resource.getpagesize() + MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (soft, resource.getrlimit(resource.RLIMIT_AS)[1]))


def specimens(kind: str) -> list[Specimen]:
    """Return the specimens of a kind; they are made on the first call."""
    if kind not in _SPECIMENS:
        _SPECIMENS[kind] = KINDS[kind]()
    return _SPECIMENS[kind]


def right(specimen: Specimen, folder: Path) -> State:
    """Return the result of the merge without damage, after checking it against the independent reader."""
    if id(specimen) not in _RIGHT:
        _put(folder, specimen.files)
        _merge(specimen, folder)
        _RIGHT[id(specimen)] = merged = checkpoints.read(folder / "out")
        expected = specimen.expected(folder)
        assert not expected or same(merged, expected), "the specimen itself is wrong"
    return _RIGHT[id(specimen)]


def trial(word: str, folder: Path, guard: Guard) -> tuple[Outcome, dict[str, bytes]]:
    """Run the trial that a word, "kind:number", determines, in a folder. Return its outcome and the damaged files."""
    random = Random(word)
    pool = specimens(word.partition(":")[0])
    specimen = pool[random.randrange(len(pool))]
    wanted = right(specimen, folder)
    made: dict[str, bytes] = {}
    for _ in range(random.choice((1, 1, 1, 1, 2))):
        name = random.choice(specimen.targets)
        others = [content for content in specimen.files.values() if content]
        made[name] = damaged(random, name, made.get(name, specimen.files[name]), others)
    if random.randrange(4) == 0:  # damage both models alike, so that comparing them finds nothing
        made |= {
            "b" + name[1:]: content for name, content in made.items() if name[0] == "a" and "b" + name[1:] in specimen.files
        }
    outcome = judged(specimen, made, folder, guard, wanted)
    if outcome.ending != "fault" and random.randrange(3) == 0 and not specimen.merge_config:
        command = random.choice(ON_ADAPTERS if "lora_model_path" in specimen.fields else COMMANDS)
        outcome = looked_at(specimen, made, folder, guard, command) or outcome
    return outcome, made


def judged(specimen: Specimen, made: dict[str, bytes], folder: Path, guard: Guard, wanted: State) -> Outcome:
    """Merge a specimen with the damaged files `made`, and return the outcome. wanted: the result without damage."""
    _put(folder, {**specimen.files, **made})
    before = _listing(folder)
    guard.folder, guard.anywhere, guard.on = str(folder), specimen.merge_config is not None, True
    started = time.monotonic()
    sentences: list[str] = []
    try:
        _merge(specimen, folder)
    except MergeError as error:
        sentences = error.problems or ["(no sentence)"]
    except Exception:
        return Outcome("fault", "a traceback: " + traceback.format_exc())
    finally:
        guard.on = False
        seconds = time.monotonic() - started
        seen, guard.seen = guard.seen, []
    if seen:
        return Outcome("fault", f"opened or ran what it must not: {seen[:5]}")
    if seconds > SECONDS:
        return Outcome("fault", f"took {seconds:.0f} s")
    if sentences:
        return _refused(sentences, before, folder, not specimen.merge_config)
    left = [name for name in _listing(folder) - before if not name.startswith("out/") and name != "out"]
    if left or any(name.endswith((".partial", ".replaced")) for name in os.listdir(folder / "out")):
        return Outcome("fault", f"left {left or 'parts'} behind")
    return _compared(specimen, folder, wanted)


def warm_up(folder: Path) -> None:
    """Compile the loops that the commands other than merge need, for all dtypes."""
    specimen = specimens("config")[0]
    for one, other in itertools.product(("float32", "float64", "bfloat16"), repeat=2):
        _put(folder, specimen.files)
        os.chdir(folder)
        for name, dtype in (("a", one), ("b", other)):
            tensors = checkpoints.read(folder / name)
            (folder / name / "model.safetensors").unlink()
            config = json.loads((folder / name / "config.json").read_bytes())
            checkpoints.write(folder / name, tensors, dtype, config=config | {"dtype": dtype})
        for command in COMMANDS:
            command(str(folder / "a"), str(folder / "b"), folder)
    for specimen in specimens("adapter"):
        _put(folder, specimen.files)
        os.chdir(folder)
        _merge_lora(f"{folder / 'a'}+{folder / 'b'}", str(folder / "a"), folder)


def looked_at(
    specimen: Specimen, made: dict[str, bytes], folder: Path, guard: Guard, command: Callable[[str, str, Path], None]
) -> Outcome | None:
    """Run a command other than merge on a damaged specimen. Return its fault, or None."""
    _put(folder, {**specimen.files, **made})
    before = _listing(folder)
    a, b = str(folder / "a"), str(folder / "b")
    if "lora_model_path" in specimen.fields:
        a, b = f"{a}+{b}", a
    guard.folder, guard.anywhere, guard.on = str(folder), False, True
    os.chdir(folder)
    started = time.monotonic()
    refused: Outcome | None = None
    try:
        command(a, b, folder)
    except MergeError as error:
        guard.on = False
        refused = _refused(error.problems or ["(no sentence)"], before, folder, True)
    except Exception:
        return Outcome("fault", f"a traceback of {command.__name__}: " + traceback.format_exc())
    finally:
        guard.on = False
        seconds = time.monotonic() - started
        seen, guard.seen = guard.seen, []
    if seen:
        return Outcome("fault", f"{command.__name__} opened or ran what it must not: {seen[:5]}")
    if seconds > SECONDS:
        return Outcome("fault", f"{command.__name__} took {seconds:.0f} s")
    if refused is not None and refused.ending == "fault":
        return Outcome("fault", f"{command.__name__}: {refused.detail}")
    left = [name for name in _listing(folder) - before if name.split("/")[0] != "out"]
    return Outcome("fault", f"{command.__name__} left {left} behind") if left else None


def _inspect(a: str, b: str, folder: Path) -> None:
    found = inspect(InspectConfig([a, b]))
    text = json.dumps(found) + "".join(inspect_lines(found))
    text.encode()
    assert text.isprintable(), "what controls terminals"


def _diff(a: str, b: str, folder: Path) -> None:
    found = diff(DiffConfig([a, b], n_process=1), progress=False)
    text = json.dumps(found, allow_nan=False) + "".join(diff_lines(found, 10))
    text.encode()
    assert text.isprintable(), "what controls terminals"


def _extract(a: str, b: str, folder: Path) -> None:
    config = ExtractConfig(finetuned_path=a, base_model_path=b, rank=2, output_path=str(folder / "out"))
    extract_lora(config, progress=False)
    json.loads((folder / "out" / "extract_report.json").read_bytes())


def _merge_lora(a: str, b: str, folder: Path) -> None:
    adapter = a.partition("+")[2]
    ways: list[dict[str, Any]] = [{}, {"rank": 1}, {"merge_method": "ties"}, {"base_model_path": b, "format": "peft"}]
    for number, fields in enumerate(ways):
        out = folder / "out" / str(number)
        merge_lora(MergeLoraConfig([adapter, adapter], n_process=1, output_path=str(out), **fields), progress=False)
        json.loads((out / "merge_lora_report.json").read_bytes())


COMMANDS = (_inspect, _diff, _extract)
ON_ADAPTERS = (_inspect, _diff, _merge_lora)


def _refused(sentences: list[str], before: set[str], folder: Path, whole_paths: bool) -> Outcome:
    left = _listing(folder) ^ before
    if left:
        return Outcome("fault", f"refused, but left or took {sorted(left)}")
    for sentence in sentences:
        if not sentence.isprintable():
            return Outcome("fault", f"a sentence with characters that control terminals: {sentence!r:.500}")
        if len(sentence) > 4000:
            return Outcome("fault", f"a sentence of {len(sentence)} characters: {sentence:.300}")
        if whole_paths and not (str(folder) in sentence or "tensor" in sentence):
            return Outcome("fault", f"a sentence that names nothing: {sentence:.500}")
        if "out of memory" in sentence or "Error:" in sentence:
            return Outcome("fault", f"a sentence about our own fault: {sentence:.500}")
    return Outcome("refused", sentences[0])


def _compared(specimen: Specimen, folder: Path, wanted: State) -> Outcome:
    found = checkpoints.read(folder / "out")
    json.loads((folder / "out" / "merge_config.json").read_bytes())
    if specimen.merge_config:  # another method or other weights change numbers, but not the tensors
        fits = {name: x.shape for name, x in found.items()} == {name: x.shape for name, x in wanted.items()}
        return Outcome("changed" if fits else "fault", "" if fits else "not the tensors of the inputs")
    if same(found, wanted):
        return Outcome("merged")
    try:
        expected = specimen.expected(folder)
    except Exception as error:
        return Outcome(
            "fault", f"merged to something else what an independent reader refuses: {type(error).__name__}: {error}"
        )
    if not expected:  # config.json may transpose weights, or tie a head to the embedding, but change no number
        head = found.pop("lm_head.weight", None)
        transposed = {name: x if x.shape == wanted[name].shape else x.T for name, x in found.items() if name in wanted}
        tied = head is None or same({"x": head}, {"x": found["model.embed_tokens.weight"]})
        fits = tied and found.keys() == wanted.keys() and same(transposed, wanted)
        return Outcome("changed") if fits else Outcome("fault", "merged to something else")
    if same(found, expected):
        return Outcome("changed")
    different = [
        name
        for name in sorted(found.keys() | expected.keys(), key=str)
        if not same(_only(found, name), _only(expected, name))
    ]
    return Outcome("fault", f"merged to something else than an independent reader: {different}")


def _only(state: State, name: str) -> State:
    return {name: state[name]} if name in state else {}


def same(one: State, other: State) -> bool:
    """Return whether all tensors are equal up to the precision of bfloat16."""
    if {name: x.shape for name, x in one.items()} != {name: x.shape for name, x in other.items()}:
        return False
    for name, x in one.items():
        with np.errstate(all="ignore"):
            y, x = np.asarray(other[name], np.float64), np.asarray(x, np.float64)
            x, y = (np.where(np.abs(z) > 3.3e38, np.copysign(np.inf, z), z) for z in (x, y))
            if not np.allclose(
                x, y, rtol=2**-7, atol=1e-6 + 1e-6 * np.max(np.abs(y[np.isfinite(y)]), initial=0), equal_nan=True
            ):
                return False
    return True


def _merge(specimen: Specimen, folder: Path) -> None:
    os.chdir(folder)
    logging.disable()
    fields = dict(specimen.fields)
    if specimen.merge_config:
        fields = MergeConfig.known_fields(MergeConfig.from_file(str(folder / specimen.merge_config)), specimen.merge_config)
        if (
            fields.get("tensor_type", "np") != "np" or fields.get("n_process", 1) > 1
        ):  # Paddle and processes take seconds each to start
            fields["dry_run"] = True
        if os.path.abspath(os.path.expanduser(fields.get("output_path", "?"))) != str(folder / "out"):
            fields["dry_run"] = True  # a damaged path must not be written to
        if fields.get("dry_run"):
            from paddle_merge.run.merge import prepare

            prepare(Request.of(MergeConfig(**fields)))
            raise MergeError("--dry_run")
    else:
        for name, value in fields.items():
            fields[name] = [str(folder / word) for word in value] if isinstance(value, list) else str(folder / value)
    merge(MergeConfig(**fields), progress=False)


def _put(folder: Path, files: dict[str, bytes]) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


def _listing(folder: Path) -> set[str]:
    found = {
        os.path.join(os.path.relpath(at, folder), name).removeprefix("./")
        for at, names, files in os.walk(folder)
        for name in names + files
    }
    assert not any(attacks.CANARY in name for name in found), "an attack ran"
    return found
