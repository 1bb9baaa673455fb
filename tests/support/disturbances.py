"""Define the kinds of faults that tools/chaos.py injects: functions that disturb a trial's merges and check the results."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import signal
import subprocess
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil

from tests.run.test_ranks import free_ports
from tests.support import power
from tests.support.chaos import RECIPES, BrokenPromiseError, Trial, undisturbed

SIGNALS = (signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGSTOP)
WRITES = ("pwrite", "fsync", "replace", "unlink", "open")


def nth(trial: Trial, calls: tuple[str, ...]) -> tuple[str, int]:
    """Return a system call, and which of its occurrences to disturb; a merge usually makes that many."""
    call = trial.random.choice(calls)
    most = undisturbed(RECIPES[trial.recipe].replace(" --overwrite", ""), trial.models)[1].get(call, 3)
    if call == "fsync" and trial.seconds:  # with seconds between fsyncs there are fewer
        most = 16
    return call, trial.random.randint(1, most + most // 8)


def again_and_again(trial: Trial, disturb: Callable[[list[str]], int]) -> None:
    """Disturb a merge, sometimes the resumed ones too; then complete it without faults."""
    trial.begin()
    more: list[str] = []
    for _ in range(trial.random.choice([1, 1, 2, 3])):
        code = disturb(more)
        trial.after(code)
        if code == 0 or trial.state() == "whole":
            break
        more = ["--resume"]
    if code != 0:
        trial.go_on()


def kill_at_a_call(trial: Trial) -> None:
    """Send a signal to processes of the merge when it makes a system call."""

    def disturb(more: list[str]) -> int:
        call, at = nth(trial, WRITES)
        whom = trial.random.choice(["self", "parent", "worker", "all"])
        number = int(trial.random.choice(SIGNALS))
        return trial.run(*more, call=call, at=at, fault=["signal", number, whom])

    again_and_again(trial, disturb)


def kill_at_a_time(trial: Trial) -> None:
    """Send a signal to processes of the merge after a random time, up to 1.5 s."""

    def disturb(more: list[str]) -> int:
        with trial.merging(*more) as process:
            limit = time.monotonic() + trial.random.uniform(0, 1.5)
            while time.monotonic() < limit and process.poll() is None:
                time.sleep(0.002)
            with contextlib.suppress(psutil.NoSuchProcess):
                root = psutil.Process(process.pid)
                family = [root, *root.children(recursive=True)]
                number = trial.random.choice(SIGNALS)
                for one in trial.random.choice([[root], [trial.random.choice(family)], family]):
                    with contextlib.suppress(psutil.NoSuchProcess):
                        one.send_signal(number)
                        trial.events["faults"] += one is root
                        if number == signal.SIGSTOP:
                            trial.kill(process)
            return trial.end(process)

    again_and_again(trial, disturb)


@contextlib.contextmanager
def small_disk(folder: Path, megabytes: int) -> Iterator[bool]:
    """Mount a file system of this size in memory; yield whether mounting is allowed."""
    folder.mkdir(parents=True)
    command = ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", str(folder)]
    mounted = bool(shutil.which("mount")) and subprocess.run(command, capture_output=True).returncode == 0
    try:
        yield mounted
    finally:
        if mounted:
            subprocess.run(["umount", "-l", str(folder)], check=True)


def full_disk(trial: Trial) -> None:
    """Fill the disk during the merge; where nothing can be mounted, let every write fail with ENOSPC instead."""
    with small_disk(trial.place, 40) as mounted:
        filler = trial.place / "filler"

        def disturb(more: list[str]) -> int:
            call, at = nth(trial, ("pwrite", "pwrite", "fsync", "open", "replace"))
            spare = trial.random.choice([0, 4096, trial.random.randint(0, 5_000_000)])
            fault = ["fill", str(filler), spare] if mounted else ["errno from here on", errno.ENOSPC]
            code = trial.run(*more, call=call if mounted else "pwrite", at=at, fault=fault)
            if code > 0 and "No space left" in trial.said[-1] and "free some" not in trial.said[-1]:
                raise BrokenPromiseError(f"the message names no remedy: {trial.said[-1]}")
            filler.unlink(missing_ok=True)
            return code

        again_and_again(trial, disturb)


def system_errors(trial: Trial) -> None:
    """Let a write, a sync or a rename fail with a system error: once, or from then on."""

    def disturb(more: list[str]) -> int:
        call, at = nth(trial, WRITES)
        word = trial.random.choice(["errno", "errno from here on"])
        number = trial.random.choice([errno.EIO, errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES])
        return trial.run(*more, call=call, at=at, fault=[word, number])

    again_and_again(trial, disturb)


def short_calls(trial: Trial) -> None:
    """Let reads and writes transfer fewer bytes than requested, and be interrupted by signals; the merge must not fail."""
    trial.begin()
    code = trial.run(call=trial.random.choice(["preadv", "pwrite"]), fault=["short"])
    if code != 0:
        raise BrokenPromiseError(f"it fails: {trial.said[-1]}")
    trial.after(code)


def bad_reads(trial: Trial) -> None:
    """Let a read of an input fail."""

    def disturb(more: list[str]) -> int:
        fault = ["errno", trial.random.choice([errno.EIO, errno.ESTALE])]
        return trial.run(*more, scope=str(trial.inputs), call="preadv", at=nth(trial, ("preadv",))[1], fault=fault)

    again_and_again(trial, disturb)


def changed_inputs(trial: Trial) -> None:
    """Truncate, delete or change an input during the merge: the merge must fail, or must not have read what changed."""
    trial.recipe = trial.random.choice([name for name in RECIPES if name not in ("pdparams", "pdparams again")])
    trial.inputs = Path(shutil.copytree(trial.models, trial.folder / "inputs", ignore=shutil.ignore_patterns("right")))
    trial.begin()
    name = f"model-0000{trial.random.choice([1, 2])}-of-00002.safetensors"
    victim = trial.inputs / trial.random.choice(["a", "b", "base"]) / name
    saved = trial.folder / "saved"
    shutil.copy2(victim, saved)
    other = trial.folder / "other"
    content = bytearray(victim.read_bytes())
    half = len(content) // 2
    content[half:] = content[half:][::-1]
    other.write_bytes(content)
    word = trial.random.choice(["truncate", "unlink", "replace", "rewrite"])
    fault: list[object] = [word, str(victim)]
    fault += {"truncate": [trial.random.randint(0, len(content))], "unlink": []}.get(word, [str(other)])
    scope = trial.random.choice([str(trial.inputs), str(trial.place)])
    call, at = ("preadv", nth(trial, ("preadv",))[1]) if scope == str(trial.inputs) else nth(trial, ("pwrite", "fsync"))
    try:
        code = trial.run(scope=scope, call=call, at=at, fault=fault)
        trial.after(code)
        journal = any("merge_journal" in name for name in trial.files())
        if code != 0 and journal and word != "unlink":
            if trial.run("--resume") != 1 or not any(
                words in trial.said[-1] for words in ("has changed since", "is truncated")
            ):
                raise BrokenPromiseError(f"--resume goes on with a changed input: {trial.said[-1]}")
            trial.state()
    finally:
        shutil.copy2(saved, victim)
    if code != 0:  # the input is as before, its time of modification included
        trial.go_on()


def power_cut(trial: Trial) -> None:
    """Cut the power at a system call, or after the merge has ended."""
    trial.begin()
    more: list[str] = []
    for _ in range(trial.random.choice([1, 1, 2])):
        before = {str(path): path.stat().st_ino for path in trial.place.rglob("*") if path.is_file()}
        call, at = nth(trial, WRITES)
        at = 0 if trial.random.random() < 0.1 else at
        code = trial.run(*more, call=call, at=at, fault=["signal", int(signal.SIGKILL), "all"], shadow=True)
        power.cut(trial.place, trial.control, before, trial.random)
        state = trial.state()
        if code == 0:
            if state != "whole":
                raise BrokenPromiseError(f"it was finished, and after a power cut holds {sorted(trial.files())}")
            trial.events["finished"] = 1
            return
        trial.events["stopped"] = 1
        if state == "whole":
            break
        more = ["--resume"]
    trial.go_on()


def memory(trial: Trial) -> None:
    """Let an allocation fail, or limit the memory of the process."""

    def disturb(more: list[str]) -> int:
        faults = [["memory error"], ["little memory", trial.random.choice([0, 1 << 20, 1 << 24])]]
        call, at = nth(trial, ("pwrite", "preadv", "fsync", "open"))
        scope = str(trial.inputs if call == "preadv" else trial.place)
        return trial.run(*more, scope=scope, call=call, at=at, fault=trial.random.choice(faults))

    again_and_again(trial, disturb)


def exit_codes(trial: Trial) -> None:
    """Let a worker exit in the middle of its work."""
    trial.recipe = "dare"

    def disturb(more: list[str]) -> int:
        code = trial.random.choice([0, 1, 3, 139])
        return trial.run(*more, who="worker", call="pwrite", at=nth(trial, ("pwrite",))[1], fault=["exit", code])

    again_and_again(trial, disturb)


def locks(trial: Trial) -> None:
    """Start a second merge while the first runs, and after the first was killed and its workers live on."""
    trial.begin()
    call, at = nth(trial, ("pwrite", "fsync"))
    whom = trial.random.choice(["all", "parent"])
    with trial.merging(call=call, at=at, fault=["signal", int(signal.SIGSTOP), whom]) as first:
        limit = time.monotonic() + 30
        while not (trial.control / "fired").exists() and first.poll() is None and time.monotonic() < limit:
            time.sleep(0.005)
        if first.poll() is None:
            time.sleep(0.05)
            for more in ([], ["--resume"], ["--overwrite"]):
                words = "another merge is being written there"
                recipe = RECIPES[trial.recipe] if more else RECIPES[trial.recipe].replace(" --overwrite", "")
                before = trial.files()
                if trial.second(*more, recipe=recipe) != 1 or (words not in trial.said[-1] and more):
                    raise BrokenPromiseError(f"a second merge {more} isn't refused: {trial.said[-1]}")
                if whom == "all" and trial.files() != before:
                    raise BrokenPromiseError(f"a second merge {more} changes what the first writes")
            if trial.random.random() < 0.5:
                family = [psutil.Process(first.pid), *psutil.Process(first.pid).children(recursive=True)]
                for one in family:
                    one.resume()
                trial.after(trial.end(first))
                return
            orphans = psutil.Process(first.pid).children(recursive=True)
            os.kill(first.pid, signal.SIGKILL)
            first.wait()
            try:
                if (
                    whom == "all"
                    and orphans
                    and (trial.second("--resume", recipe=RECIPES[trial.recipe]), words in trial.said[-1]) != (1, True)
                ):
                    raise BrokenPromiseError(f"workers of the first may still write, and a second goes on: {trial.said[-1]}")
                if whom == "parent" and psutil.wait_procs(orphans, timeout=5)[1]:
                    raise BrokenPromiseError("workers outlive the merge")
            finally:
                for one in orphans:
                    with contextlib.suppress(psutil.NoSuchProcess):
                        one.kill()
        elif first.returncode == 0:
            trial.after(trial.end(first))
            return
    trial.events["stopped"] = 1
    trial.go_on()


def ranks(trial: Trial) -> None:
    """Kill one of several ranks of a job."""
    trial.recipe = trial.random.choice(["linear", "dare", "pdparams", "same names"])
    count = trial.random.choice([2, 3])

    def together(victim: int, *more: str) -> list[int]:
        ends = [f"127.0.0.1:{port}" for port in free_ports(count)]
        shared = {"PADDLE_TRAINERS_NUM": str(count), "PADDLE_TRAINER_ENDPOINTS": ",".join(ends)}
        call, at = nth(trial, WRITES if victim == 0 else ("pwrite", "fsync"))
        fault = ["signal", int(trial.random.choice(SIGNALS[:4])), trial.random.choice(["self", "parent", "all"])]
        with contextlib.ExitStack() as stack:
            processes = []
            for rank in range(count):
                env = shared | {"PADDLE_TRAINER_ID": str(rank), "PADDLE_CURRENT_ENDPOINT": ends[rank]}
                chaos = {"call": call, "at": max(1, at // count), "fault": fault} if rank == victim else {}
                processes.append(stack.enter_context(trial.merging(*more, env=env, **chaos)))
            return [trial.end(process) for process in processes]

    trial.begin()
    codes = together(trial.random.randrange(count))
    if any(codes) and trial.state() != "whole":
        trial.events["stopped"] = 1
        codes = together(-1, "--resume")
        trial.events["resumed"] = 1
    if any(codes) and trial.state() != "whole":
        raise BrokenPromiseError(f"ranks fail: {trial.said}")
    trial.events["finished"] = 1
    if not any(codes):
        trial.tidy()


KINDS: dict[str, Callable[[Trial], None]] = {
    "kill-call": kill_at_a_call,
    "kill-time": kill_at_a_time,
    "disk": full_disk,
    "errors": system_errors,
    "short": short_calls,
    "reads": bad_reads,
    "inputs": changed_inputs,
    "power": power_cut,
    "memory": memory,
    "exit": exit_codes,
    "locks": locks,
    "ranks": ranks,
}


def run(word: str, root: Path, models: Path) -> tuple[Counter[str], str]:
    """Run the trial KIND:NUMBER. Return the counts of its events, and a description of the violation, or ""."""
    kind, _, number = word.partition(":")
    folder = root / word.replace(":", "-")
    folder.mkdir(parents=True)
    trial = Trial(kind, int(number), folder, models)
    try:
        KINDS[kind](trial)
    except BrokenPromiseError as violation:
        return trial.events, f"[{trial.recipe}] {violation}"
    except Exception:
        return trial.events, f"[{trial.recipe}] the trial itself failed: {traceback.format_exc()}"
    finally:
        shutil.rmtree(folder)
    return trial.events, ""
