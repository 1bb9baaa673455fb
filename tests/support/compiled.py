"""Compile the loops of all methods before tests run in parallel: else every process compiles them for itself.

python -m tests.support.compiled DTYPE...    merges small models of these dtypes by every method
"""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from paddle_merge.backends.kernels import kept_code

LOOPS = 50  # of the 63 that compile_all compiles; one more or less doesn't matter
# One process for each compute dtype: the two compile different loops. float32 is computed in float64.
SHARES = (("bfloat16", "float16", "float8_e5m2"), ("float64", "float32"))


def is_needed() -> bool:
    """Return whether the loops' machine code beside their source is missing, or that of an older version."""
    compiled = list((kept_code.HERE / "__pycache__").glob(f"*-{kept_code.source_stamp()}.code"))
    return "NUMBA_CACHE_DIR" not in os.environ and len(compiled) < LOOPS


def compile_all() -> None:
    """Run a process for each share, at the same time. A failure is left to the tests."""
    command = [sys.executable, "-m", "tests.support.compiled"]
    processes = [subprocess.Popen([*command, *share], cwd=kept_code.HERE.parents[2]) for share in SHARES]
    for process in processes:
        process.wait()


def main(dtypes: list[str]) -> None:
    from tests.methods.test_laws import LAWS, Sources, count, state

    logging.getLogger("paddle_merge").setLevel(logging.ERROR)
    for dtype in dtypes:
        with tempfile.TemporaryDirectory() as folder:
            base = state(0, dtype)
            sources = Sources(Path(folder), dtype).put(base, *(state(seed, dtype, base) for seed in (1, 2, 3)))
            for method in LAWS if dtype == dtypes[0] else ("linear", "ties", "paddlenlp:della"):
                sources.merged(method, LAWS[method].given, list(range(count(method))))


if __name__ == "__main__":
    main(sys.argv[1:])
