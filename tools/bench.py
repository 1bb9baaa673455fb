"""Measure the time and peak memory of merges, and of the same merges by other tools.

The time of a whole process is divided by the floor: the time to read every input byte and to write every output byte, on
the same files, with the same number of processes, measured in turn with the merge. The floor of the model `small` is the
time of `python -c "import numba"`: no merge can take less.

    python tools/bench.py                       # Qwen2-0.5B's shapes, three experts and a base: 5 GB read and written
    python tools/bench.py --model tiny          # takes a minute
    python tools/bench.py --model small,0.5b,many --folder /tmp/bench,/dev/shm/bench --json now.json  # also files in memory
    python tools/bench.py --json now.json --against before.json   # what has become slower?
    python tools/bench.py --methods recipe:ties,recipe:sce  # methods of recipes; recipes: all of them
    python tools/bench.py --search              # candidates per second of a search
    python tools/bench.py --tensor_type pd --device gpu     # also the share of the bus's speed
    python tools/bench.py --peers formers=PYTHON --peers nlp=PYTHON --peers mergekit=PYTHON   # of their environments

`--against` compares ratios, which depend less on what else the machine does than times; its status is 1 if one has grown by
more than a fifth. The processes of the floor read blocks of 1 MiB into one buffer each, write as many bytes as the merge to
new files, and call fsync, as the merge does. The buffer begins where a page of memory does: some processors copy four times
as slowly to a place a few bytes behind the one that they copy from, counted from the beginnings of their pages.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Annotated, Any

import psutil
import typer

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from paddle_merge.methods.registry import NAMED
from tools.bench_models import MODELS, make_adapter, make_checkpoints

os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # where it is set, every process compiles all that it imports
SLOWER = 1.2  # how much a ratio may grow between two runs on a noisy machine
IMPORTED = "small"  # the model whose floor is the import of Numba
METHODS = ("linear", "slerp", "dare_linear", "dare_ties", "ties", "della_linear", "della", "fold")
FLOOR = """
import mmap, os, sys
inputs, out, size, part, parts = sys.argv[1].split(','), sys.argv[2], int(sys.argv[3]), int(sys.argv[4]), int(sys.argv[5])
buffer = memoryview(mmap.mmap(-1, 1 << 20))
for path in inputs:
    file = os.open(path, os.O_RDONLY)
    total = os.fstat(file).st_size
    for offset in range(total * part // parts, total * (part + 1) // parts, len(buffer)):
        os.preadv(file, [buffer], offset)
file = os.open(f'{out}.{part}', os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
left = size // parts
while left > 0:
    left -= os.write(file, buffer[:left])
os.fsync(file)
"""
BUS = """
import sys, time
import numpy as np
import paddle
place = paddle.set_device(sys.argv[1])
host = paddle.to_tensor(np.zeros(1 << 28, np.uint8), place=paddle.CUDAPinnedPlace())
best = [1e9, 1e9]
for _ in range(5):
    start = time.perf_counter()
    there = host.cuda(place.get_device_id(), True)
    paddle.device.synchronize()
    middle = time.perf_counter()
    there.pin_memory(True)
    paddle.device.synchronize()
    best = [min(best[0], middle - start), min(best[1], time.perf_counter() - middle)]
print(best[0] / (1 << 28), best[1] / (1 << 28))
"""
FORMERS = """
import sys
from {module}.mergekit import MergeConfig, MergeModel
method, base, out, n_process, tensor_type, *models = sys.argv[1:]
config = dict(merge_method=method, model_path_list=models, output_path=out)
config |= dict(n_process=int(n_process), tensor_type=tensor_type)
if base != "-":
    config["base_model_path"] = base
MergeModel(MergeConfig(**config)).merge_model()
"""


def seconds(command: list[str], **kwargs: object) -> float:
    """Run a command and return its wall time in seconds. Exits with an error message if the command fails."""
    start = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, **kwargs)  # type: ignore[call-overload]
    taken = time.perf_counter() - start
    if done.returncode:
        raise SystemExit(f"{' '.join(command[:6])} ...: exit {done.returncode}\n{done.stderr[-2000:]}")
    return taken


def import_seconds() -> float:
    """Return the seconds that Python takes to import Numba."""
    return seconds([sys.executable, "-c", "import numba"])


def floor_seconds(inputs: list[Path], out: Path, n_process: int) -> float:
    """Return the seconds to read all inputs and to write as many bytes as the first one has, in `n_process` processes."""
    files = ",".join(str(path / "model.safetensors") for path in inputs)
    size = str((inputs[0] / "model.safetensors").stat().st_size)
    start = time.perf_counter()
    processes = [
        subprocess.Popen([sys.executable, "-S", "-E", "-c", FLOOR, files, str(out), size, str(part), str(n_process)])
        for part in range(n_process)
    ]
    if any(process.wait() for process in processes):
        raise SystemExit("a process of the floor failed")
    taken = time.perf_counter() - start
    for part in range(n_process):
        os.unlink(f"{out}.{part}")
    return taken


def bus_seconds(device: str) -> tuple[float, float]:
    """Return the seconds per byte of copies from pinned memory to an idle device, and back."""
    name = device.replace("low_gpu_mem", "gpu")
    command = [sys.executable, "-c", BUS, name if ":" in name else f"{name}:0"]
    there, back = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    return float(there), float(back)


def merge_command(
    method: str, paths: list[Path], out: Path, n_process: int, tensor_type: str, device: str
) -> tuple[list[str], list[Path]]:
    """Return the command of a merge, and the checkpoints that it reads."""
    base, *models, adapter = paths
    command = [sys.executable, "-m", "paddle_merge", "--output_path", str(out), "--n_process", str(n_process), "--quiet"]
    command += ["--max_shard_size", "100GB", "--tensor_type", tensor_type, "--device", device]
    if method == "fold":
        return [*command, "--lora_model_path", str(adapter), "--base_model_path", str(base)], [base]
    if method.startswith("recipe:"):
        path, inputs = write_recipe(method.removeprefix("recipe:"), base, models, out)
        return [*command[:3], str(path), *command[3:]], inputs
    models = models[:2] if method == "slerp" else models
    inputs = models if method == "slerp" else [*models, base]
    command += ["--merge_method", method, "--model_path_list", *map(str, models)]
    if method != "slerp":
        command += ["--base_model_path", str(base)]
    return command, inputs


def write_recipe(name: str, base: Path, models: list[Path], out: Path) -> tuple[Path, list[Path]]:
    """Write a recipe of the method, which mergekit can read too; return its path, and the checkpoints that it names."""
    method = NAMED[name]
    models = models[: (method.most or 3) - (method.base == "first")]
    based = method.base != "model" and name not in ("nuslerp", "multislerp")
    recipe: dict[str, object] = {"merge_method": name, "dtype": "bfloat16", "parameters": dict(method.example)}
    recipe["models"] = [{"model": str(path)} for path in ([base, *models] if method.base == "first" else models)]
    if based:
        recipe["base_model"] = str(base)
    path = out.with_suffix(".yaml")
    path.write_text(json.dumps(recipe, indent=1))
    return path, [*models, base] if based else models


def peak_memory(command: list[str], may_fail: bool = False, every: float = 0.01) -> int:
    """Run a command and return its peak memory: the bytes that it and its descendants hold, sampled every so many seconds.

    Pages that several share count once where the system tells (on Linux), else once for each. Exits with an error message if
    the command fails, unless it may.
    """
    process = subprocess.Popen(command)
    peak = 0
    root = psutil.Process(process.pid)

    def watch() -> None:
        nonlocal peak
        while process.poll() is None:
            total = 0
            with contextlib.suppress(psutil.NoSuchProcess):  # a process that has just ended
                for member in [root, *root.children(recursive=True)]:
                    info = member.memory_full_info()
                    total += getattr(info, "pss", info.rss)
            peak = max(peak, total)
            time.sleep(every)

    thread = threading.Thread(target=watch)
    thread.start()
    if process.wait() and not may_fail:
        raise SystemExit("the merge failed")
    thread.join()
    return peak


def device_memory(command: list[str]) -> float:
    """Run a merge and return the peak device memory per worker that it reports, in MB."""
    loud = [word for word in command if word != "--quiet"]
    text = subprocess.run(loud, capture_output=True, text=True, check=True).stderr
    return float(text.rpartition("device memory: at most ")[2].split()[0])


def peer_command(
    peer: str, python: str, method: str, inputs: list[Path], out: Path, n_process: int, tensor_type: str
) -> list[str]:
    """Return the command of the same merge with another tool. peer: formers, nlp or mergekit. python: of its environment."""
    if method.startswith("recipe:"):  # written by merge_command
        return [str(Path(python).parent / "mergekit-yaml"), str(out.with_suffix(".yaml")), str(out), "--allow-crimes"]
    has_base = method != "slerp"
    base, models = (inputs[-1], inputs[:-1]) if has_base else (None, inputs)
    if peer == "mergekit":
        recipe: dict[str, object] = {"merge_method": {"linear": "task_arithmetic"}.get(method, method), "dtype": "bfloat16"}
        recipe["base_model"] = str(base or models[0])
        parameters = {} if method == "slerp" else {"parameters": {"weight": 1.0, "density": 0.7}}
        recipe["models"] = [{"model": str(path), **parameters} for path in models]
        recipe["parameters"] = {"t": 0.5} if method == "slerp" else {"normalize": True}
        path = out.with_suffix(".yaml")
        path.write_text(json.dumps(recipe))
        return [str(Path(python).parent / "mergekit-yaml"), str(path), str(out), "--allow-crimes"]
    module = {"formers": "paddleformers", "nlp": "paddlenlp"}[peer]
    code = FORMERS.format(module=module)
    return [python, "-c", code, method, str(base or "-"), str(out), str(n_process), tensor_type, *map(str, models)]


def measure(
    method: str, model: str, root: Path, n_process: int, repeats: int, memory: bool, tensor_type: str, device: str
) -> tuple[dict[str, Any], list[Path]]:
    """Measure a method, and return the row of its results by the headings of the columns, and what it read.

    root: the folder of the checkpoints, and of the output, which isn't left there.
    """
    paths, out = [*make_checkpoints(root, model), make_adapter(root, model)], root / "out"
    command, inputs = merge_command(method, paths, out, n_process, tensor_type, device)
    moved = sum((path / "model.safetensors").stat().st_size for path in [*inputs, inputs[0]])
    seconds(command)  # compiles the loops on their first use, and fills the page cache
    floors, merges = [], []
    for _ in range(repeats):
        shutil.rmtree(out)
        floors.append(import_seconds() if model == IMPORTED else floor_seconds(inputs, root / "floor", n_process))
        merges.append(seconds(command))
    shutil.rmtree(out)
    row: dict[str, Any] = {
        "model": model,
        "folder": str(root),
        "method": method,
        "GB moved": round(moved / 1e9, 2),
        "floor s": round(statistics.median(floors), 3),
        "merge s": round(statistics.median(merges), 3),
        "ratio": round(statistics.median(merge / floor for merge, floor in zip(merges, floors, strict=True)), 2),
    }
    if memory:
        row["peak MB"] = round(peak_memory(command) / 1e6)
        shutil.rmtree(out)
    if device != "cpu":
        there, back = bus_seconds(device)
        size = (inputs[0] / "model.safetensors").stat().st_size
        row["bus to, GB/s"], row["bus from, GB/s"] = round(1e-9 / there, 1), round(1e-9 / back, 1)
        row["of the bus"] = round((size * len(inputs) * there + size * back) / statistics.median(merges), 2)
        row["device MB"] = round(device_memory(command))
        shutil.rmtree(out)
    return row, inputs


def measure_peers(row: dict[str, Any], inputs: list[Path], peers: dict[str, str], n_process: int, tensor_type: str) -> None:
    """Add to a row the seconds of other tools for the same merge, and how often they take those of paddle_merge."""
    method, out = row["method"], Path(row["folder"]) / "out"
    name = method.removeprefix("recipe:")
    for peer, python in peers.items():
        # PaddleFormers folds with a package that isn't on PyPI, PaddleNLP from its own layout
        if method == "fold" or (name != method and (peer != "mergekit" or not NAMED[name].mergekit)):
            continue
        command = peer_command(peer, python, method, inputs, out, n_process, tensor_type)
        row[f"{peer} s"] = round(seconds(command, cwd=out.parent), 1)
        row[f"{peer} x"] = round(row[f"{peer} s"] / row["merge s"], 1)
        shutil.rmtree(out, ignore_errors=True)


def compare(rows: list[dict[str, Any]], earlier: list[dict[str, Any]]) -> list[str]:
    """Add to each row the ratio that it had earlier; return a sentence on each that has grown by more than SLOWER."""
    keys = ("model", "folder", "method")
    before = {tuple(row[key] for key in keys): row["ratio"] for row in earlier}
    found = []
    for row in rows:
        row["before"] = before.get(tuple(row[key] for key in keys))
        if row["before"] and row["ratio"] > SLOWER * row["before"]:
            names = f"{row['method']} of {row['model']} in {row['folder']}"
            found.append(f"{names}: {row['ratio']} times its floor, which was {row['before']} before")
    return found


def table_of(rows: list[dict[str, Any]]) -> str:
    """Return rows as a Markdown table with a column for everything that any of them has."""
    heads = list(dict.fromkeys(head for row in rows for head in row))
    words = [["" if row.get(head) is None else str(row[head]) for head in heads] for row in rows]
    rules = ["---" if head in ("model", "folder", "method") else "---:" for head in heads]
    return "\n".join(f"| {' | '.join(line)} |" for line in [heads, rules, *words])


def main(
    model: Annotated[
        str, typer.Option(help=f"Models that give the shapes, separated by commas: {', '.join(MODELS)}.")
    ] = "0.5b",
    folder: Annotated[
        str, typer.Option(help="Folders for checkpoints and outputs, on the disks to measure, with commas.")
    ] = "",
    methods: Annotated[str, typer.Option(help="Methods to measure, separated by commas.")] = ",".join(METHODS),
    n_process: Annotated[int, typer.Option("--n_process", help="Number of processes, of all that is measured.")] = 2,
    repeats: Annotated[int, typer.Option(help="Number of pairs of floor and merge. The table shows medians.")] = 3,
    memory: Annotated[bool, typer.Option(help="Also measure the peak memory, in a separate run.")] = True,
    peers: Annotated[
        list[str] | None, typer.Option(help="Other tools, as formers=PYTHON, nlp=PYTHON, mergekit=PYTHON.")
    ] = None,
    tensor_type: Annotated[str, typer.Option("--tensor_type", help="np or pd, for paddle_merge, formers and nlp.")] = "np",
    device: Annotated[str, typer.Option(help="Device of paddle_merge with pd: cpu, gpu or low_gpu_mem.")] = "cpu",
    json_: Annotated[str, typer.Option("--json", help="Also write the results to this file.")] = "",
    against: Annotated[str, typer.Option(help="Compare the ratios with those in a file that --json has written.")] = "",
    search: Annotated[bool, typer.Option(help="Instead, measure the inner loop of searches.")] = False,
) -> None:
    """Measure the time of each method, compared with the floor and with other tools, and its peak memory."""
    folder = folder or str(Path(tempfile.gettempdir()) / "paddle_merge_bench")
    if search:
        from tools import bench_search

        bench_search.main(models=",".join(dict.fromkeys(["small", *model.split(",")])), folder=folder)
        return
    earlier = json.loads(Path(against).read_text())["rows"] if against else []
    named = dict(peer.split("=", 1) for peer in peers or [])
    machine = {
        "processor": platform.processor() or platform.machine(),
        "CPUs": os.cpu_count(),
        "Python": platform.python_version(),
        "computes": tensor_type if tensor_type == "np" else f"{tensor_type} on {device}",
        "processes": n_process,
        "repeats": repeats,
    }
    print(", ".join(f"{name}: {value}" for name, value in machine.items()), flush=True)
    rows: list[dict[str, Any]] = []

    def keep() -> None:
        if json_:
            Path(json_).write_text(json.dumps({"machine": machine, "rows": rows}, indent=2) + "\n")

    for root in folder.split(","):
        for shaped in model.split(","):
            for method in methods.replace("recipes", ",".join(f"recipe:{name}" for name in NAMED)).split(","):
                row, inputs = measure(method, shaped, Path(root), n_process, repeats, memory, tensor_type, device)
                measure_peers(row, inputs, named, n_process, tensor_type)
                rows.append(row)
                print(f"{shaped}, {method}: {row['ratio']} times the floor", file=sys.stderr, flush=True)
                keep()  # after each row: what was measured stays if a later one fails
    slower = compare(rows, earlier) if against else []
    keep()
    print(table_of(rows), flush=True)
    if slower:
        raise SystemExit("\n".join(slower))


if __name__ == "__main__":
    typer.run(main)
