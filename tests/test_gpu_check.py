"""Test what tools/gpu_check.py makes of reports and tables, and what it says without a GPU."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from paddle_merge.backends.engine import import_paddle
from tools.gpu_check import outcomes_of, rows_of

ROOT = Path(__file__).parents[1]
REPORT = """<testsuites><testsuite>
<testcase classname="tests.a" name="one"/>
<testcase classname="tests.a" name="two[gpu]"><failure message="no"/></testcase>
<testcase classname="tests.a" name="three"><skipped/></testcase>
</testsuite></testsuites>"""
TABLE = """0.5b, bfloat16, pd on gpu, 1 processes, 10 GB free, 2 CPUs
bus: 12.5 GB/s to the device, 11.0 GB/s from it, one process, pinned memory
| method | GB moved | floor s | merge s | ratio | peak MB | of the bus | device MB |
| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |
| linear | 4.94 | 1.80 | 1.96 | 1.15 | nan | 60% | 900 |
"""


def test_a_report_of_tests() -> None:
    assert outcomes_of(REPORT) == {"passed": 1, "skipped": 1, "failed": ["tests.a.two[gpu]"]}


def test_a_table_of_the_benchmark() -> None:
    (row,) = rows_of(TABLE)
    assert (row["method"], row["ratio"], row["of the bus"], row["device MB"]) == ("linear", "1.15", "60%", "900")
    assert rows_of("") == []


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
