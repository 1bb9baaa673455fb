"""Test what tools/gpu_check.py makes of reports, and what it says without a GPU."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from paddle_merge.backends.engine import import_paddle
from tools.gpu_check import outcomes_of

ROOT = Path(__file__).parents[1]
REPORT = """<testsuites><testsuite>
<testcase classname="tests.a" name="one"/>
<testcase classname="tests.a" name="two[gpu]"><failure message="no"/></testcase>
<testcase classname="tests.a" name="three"><skipped/></testcase>
</testsuite></testsuites>"""


def test_a_report_of_tests() -> None:
    assert outcomes_of(REPORT) == {"passed": 1, "skipped": 1, "failed": ["tests.a.two[gpu]"]}


@pytest.mark.exhaustive
def test_without_a_gpu_it_says_so() -> None:
    paddle = import_paddle()
    if paddle.is_compiled_with_cuda() and paddle.device.cuda.device_count():
        pytest.skip("there is a GPU, on which it takes minutes")
    done = subprocess.run([sys.executable, "tools/gpu_check.py"], cwd=ROOT, capture_output=True, text=True)
    found = json.loads(done.stdout)
    assert done.returncode == 1
    assert found["machine"]["gpus"] == []
    assert found["problems"] == [
        "machine: Paddle sees no GPU: python -m pip install paddlepaddle-gpu, and look at nvidia-smi"
    ]
