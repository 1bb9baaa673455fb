"""Run one script after another in a library's environment: importing the library takes longer than most jobs.

Each line of the standard input is a path of a script and its arguments, with tabs between them. The answer is "done" or
"failed".
What scripts and libraries print goes to the standard error.
"""

from __future__ import annotations

import os
import runpy
import sys
import traceback

if __name__ == "__main__":
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for line in sys.stdin:
        sys.argv = line.rstrip("\n").split("\t")
        try:
            runpy.run_path(sys.argv[0], run_name="__main__")
            said = "done"
        except BaseException:  # the job's test fails, and the next job is run
            traceback.print_exc()
            said = "failed"
        print(said, file=answers, flush=True)
