"""Run everything that needs a GPU, within eight minutes, and print one JSON object: tests, and speeds beside the bus's.

    python -m pip install -e ".[test]" paddlepaddle-gpu  # in place of paddlepaddle
    python tools/gpu_check.py > gpu.json

The object has `machine`, `tests` (how many passed and were skipped, and the names of those that failed), `bench` (a row for
each method and device, as tools/bench.py writes them), and `problems`, sentences on what could not be done; the exit status
is 1 if there are any.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any
from xml.etree import ElementTree

import typer

ROOT = Path(__file__).resolve().parents[1]
DEVICES = ("gpu", "low_gpu_mem")
LOOK = """
import json, paddle
gpu = paddle.is_compiled_with_cuda() and paddle.device.cuda.device_count()
names = [paddle.device.cuda.get_device_name(one) for one in range(gpu)]
print(json.dumps({"paddle": paddle.__version__, "cuda": str(paddle.version.cuda()), "gpus": names}))
"""


class Check:
    """What is found, and how much time is left. seconds: for all steps together."""

    def __init__(self, seconds: float):
        self.found: dict[str, Any] = {}
        self.problems: list[str] = []
        self._end = time.monotonic() + seconds

    def run(self, what: str, command: Sequence[str], most: float) -> str | None:
        """Run a command for at most `most` seconds; return what it printed; None, and a problem, if it didn't end well."""
        limit = min(most, self._end - time.monotonic())
        if limit <= 0:
            self.problems.append(f"{what}: no time was left")
            return None
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        try:
            done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=limit)
        except subprocess.TimeoutExpired as error:
            self.problems.append(f"{what}: took longer than {limit:.0f} s")
            output = error.stdout
            return output.decode(errors="replace") if isinstance(output, bytes) else output
        if done.returncode:
            said = " ".join((done.stderr.strip() or done.stdout.strip())[-400:].split())
            self.problems.append(f"{what}: exit status {done.returncode}: {said}")
        return done.stdout


def outcomes_of(report: str) -> dict[str, Any]:
    """Return the numbers of tests in a JUnit report, and the names of those that failed."""
    cases = ElementTree.fromstring(report).iter("testcase")
    outcomes = {f"{case.get('classname')}.{case.get('name')}": {child.tag for child in case} for case in cases}
    failed = [name for name, tags in outcomes.items() if tags & {"failure", "error"}]
    skipped = sum("skipped" in tags for tags in outcomes.values())
    return {"passed": len(outcomes) - len(failed) - skipped, "skipped": skipped, "failed": failed}


def main(
    model: Annotated[str, typer.Option(help="The model whose shapes are merged, as in tools/bench.py.")] = "0.5b",
    methods: Annotated[str, typer.Option(help="Methods to measure, separated by commas.")] = "linear,dare_ties,ties",
    seconds: Annotated[float, typer.Option(help="How long all of it may take.")] = 480.0,
) -> None:
    """Test and measure what a GPU computes; print one JSON object. Exits with status 1 if something could not be done."""
    check = Check(seconds)
    looked = check.run("machine", [sys.executable, "-c", LOOK], 60)
    machine = json.loads(looked.splitlines()[-1]) if looked else {}
    check.found["machine"] = {**machine, "cores": os.cpu_count()}
    if not machine.get("gpus"):
        check.problems.append("machine: Paddle sees no GPU: python -m pip install paddlepaddle-gpu, and look at nvidia-smi")
    else:
        with tempfile.TemporaryDirectory() as folder:
            report = Path(folder) / "tests.xml"
            pytest = ["-m", "pytest", "-m", "gpu", "--numprocesses=0", "--dist=no", f"--junitxml={report}", "tests/backends"]
            check.run("tests", [sys.executable, *pytest], 240)
            if report.exists():
                check.found["tests"] = outcomes_of(report.read_text())
        check.found["bench"] = []
        for device in DEVICES:
            with tempfile.NamedTemporaryFile(suffix=".json") as file:
                flags = ["--tensor_type", "pd", "--device", device, "--n_process", "1", "--repeats", "1"]
                command = [sys.executable, "tools/bench.py", "--model", model, "--no-memory", "--methods", methods, *flags]
                check.run(f"bench on {device}", [*command, "--json", file.name], 240)
                text = Path(file.name).read_text()
            check.found["bench"] += [{"device": device, **row} for row in json.loads(text)["rows"]] if text else []
    print(json.dumps({**check.found, "problems": check.problems}, indent=2))
    sys.exit(bool(check.problems))


if __name__ == "__main__":
    typer.run(main)
