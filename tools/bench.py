"""Measure the time and peak memory of merges, and of the same merges by other tools.

The time of a whole process is divided by the floor: the time to read every input byte and to write every output byte, on
the same files, with the same number of processes, measured in turn with the merge.

    python tools/bench.py                       # Qwen2-0.5B's shapes, three experts and a base: 5 GB read and written
    python tools/bench.py --model tiny          # takes a minute
    python tools/bench.py --methods recipe:ties,recipe:sce  # methods of recipes; recipes: all of them
    python tools/bench.py --search              # candidates per second of a search
    python tools/bench.py --tensor_type pd --device gpu     # also the share of the bus's speed
    python tools/bench.py --peers formers=PYTHON --peers nlp=PYTHON --peers mergekit=PYTHON   # of their environments

The processes of the floor read blocks of 1 MiB into one buffer each, write as many bytes as the merge to new files, and
call fsync, as the merge does.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import statistics
import struct
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Annotated

import numpy as np
import psutil
import typer

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from paddle_merge.methods.registry import NAMED

MODELS = {
    # name: hidden size, intermediate size, layers, width of keys and values, vocabulary size
    "tiny": (256, 1024, 4, 64, 30_000),
    "66m": (512, 2048, 8, 128, 50_000),
    "0.5b": (896, 4864, 24, 128, 151_936),
    "1b": (896, 4864, 48, 128, 303_872),  # 0.5b twice
    "many": (16, 8, 48, 16, 64),  # 18,914 tensors of a few hundred elements: the experts of Qwen3-30B-A3B, made tiny
    "2gb-tensor": (1024, 1024, 1, 128, 1_048_576),  # an embedding of 2.1 GB in bfloat16
}
EXPERTS = {"many": 128}  # model -> experts of each layer
METHODS = ("linear", "slerp", "dare_linear", "dare_ties", "ties", "della_linear", "della", "fold")
RANK = 32  # rank of the adapter that the "fold" row folds into the base
FLOOR = """
import os, sys, threading
inputs, out, size, part, parts = sys.argv[1].split(','), sys.argv[2], int(sys.argv[3]), int(sys.argv[4]), int(sys.argv[5])
buffer = memoryview(bytearray(1 << 20))
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


def shapes(model: str) -> dict[str, tuple[int, ...]]:
    """Return the shapes of a Qwen2 model's tensors by name. model: a key of MODELS."""
    hidden, intermediate, layers, kv, vocabulary = MODELS[model]
    result: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (vocabulary, hidden)}
    mlp = {
        "gate_proj.weight": (intermediate, hidden),
        "up_proj.weight": (intermediate, hidden),
        "down_proj.weight": (hidden, intermediate),
    }
    if model in EXPERTS:
        experts = range(EXPERTS[model])
        mlp = {f"experts.{expert}.{name}": shape for expert in experts for name, shape in mlp.items()}
        mlp |= {"gate.weight": (len(experts), hidden)}
    for layer in range(layers):
        for name, shape in {
            "self_attn.q_proj.weight": (hidden, hidden),
            "self_attn.q_proj.bias": (hidden,),
            "self_attn.k_proj.weight": (kv, hidden),
            "self_attn.k_proj.bias": (kv,),
            "self_attn.v_proj.weight": (kv, hidden),
            "self_attn.v_proj.bias": (kv,),
            "self_attn.o_proj.weight": (hidden, hidden),
            **{f"mlp.{name}": shape for name, shape in mlp.items()},
            "input_layernorm.weight": (hidden,),
            "post_attention_layernorm.weight": (hidden,),
        }.items():
            result[f"model.layers.{layer}.{name}"] = shape
    result["model.norm.weight"] = (hidden,)
    return result


def make_checkpoints(folder: Path, model: str) -> list[Path]:
    """Write the checkpoints base, a, b and c in bfloat16, unless they exist, and return their folders.

    The base's weights have a standard deviation of 0.02, and the differences of the others from it one of 0.001.
    """
    paths = [folder / model / name for name in ("base", "a", "b", "c")]
    if all((path / "config.json").exists() for path in paths):
        return paths
    header, end = {"__metadata__": {"format": "pt"}}, 0
    for name, shape in shapes(model).items():
        size = 2 * int(np.prod(shape))
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [end, end + size]}  # type: ignore[dict-item]
        end += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    generators = [np.random.default_rng(seed) for seed in range(4)]
    files = []
    for path in paths:
        path.mkdir(parents=True, exist_ok=True)
        files.append(open(path / "model.safetensors", "wb"))  # noqa: SIM115 - four at once, closed below
        files[-1].write(struct.pack("<Q", len(text)) + text)
    for start in range(0, end // 2, 1 << 22):
        size = min(1 << 22, end // 2 - start)
        base = generators[0].standard_normal(size, dtype=np.float32) * np.float32(0.02)
        for number, file in enumerate(files):
            values = base
            if number:
                values = base + generators[number].standard_normal(size, dtype=np.float32) * np.float32(0.001)
            file.write(((values.view(np.uint32) + 0x8000) >> 16).astype("<u2").tobytes())
    for path, file in zip(paths, files, strict=True):
        file.close()
        hidden, intermediate, layers, _, vocabulary = MODELS[model]
        config = {
            "architectures": ["Qwen2ForCausalLM"],
            "model_type": "qwen2",
            "dtype": "bfloat16",
            "torch_dtype": "bfloat16",
        }
        config |= {"hidden_size": hidden, "intermediate_size": intermediate, "num_hidden_layers": layers}  # type: ignore[dict-item]
        config |= {"vocab_size": vocabulary, "num_attention_heads": 14, "tie_word_embeddings": True}  # type: ignore[dict-item]
        (path / "config.json").write_text(json.dumps(config))
    return paths


def make_adapter(folder: Path, model: str) -> Path:
    """Write a LoRA adapter of all Linear layers, in PaddleFormers' format and bfloat16, unless it exists."""
    path, name = folder / model / f"lora{RANK}", "peft_model-00001-of-00001.safetensors"
    if (path / "lora_config.json").exists():
        return path
    path.mkdir(exist_ok=True)
    header: dict[str, object] = {"__metadata__": {"format": "np"}}
    end = 0
    for weight, shape in shapes(model).items():
        if len(shape) == 2 and "_proj." in weight:
            for factor, sides in (("lora_A", [shape[1], RANK]), ("lora_B", [RANK, shape[0]])):
                size = 2 * sides[0] * sides[1]
                key = weight.replace("weight", factor)
                header[key] = {"dtype": "BF16", "shape": sides, "data_offsets": [end, end + size]}
                end += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    values = np.random.default_rng(0).standard_normal(end // 2, dtype=np.float32) * np.float32(0.01)
    content = struct.pack("<Q", len(text)) + text + (values.view(np.uint32) >> 16).astype("<u2").tobytes()
    (path / name).write_bytes(content)
    index = {"metadata": {"total_size": end}, "weight_map": {key: name for key in header if key != "__metadata__"}}
    (path / "peft_model.safetensors.index.json").write_text(json.dumps(index))
    config = {"r": RANK, "lora_alpha": 2 * RANK, "target_modules": [".*_proj"]}
    (path / "lora_config.json").write_text(json.dumps(config))
    return path


def seconds(command: list[str], **kwargs: object) -> float:
    """Run a command and return its wall time in seconds. Exits with an error message if the command fails."""
    start = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, **kwargs)  # type: ignore[call-overload]
    taken = time.perf_counter() - start
    if done.returncode:
        raise SystemExit(f"{' '.join(command[:6])} ...: exit {done.returncode}\n{done.stderr[-2000:]}")
    return taken


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


def peak_memory(command: list[str]) -> int:
    """Run a command and return its peak memory: the bytes that it and its descendants hold, sampled every 10 ms.

    Pages that several share count once where the system tells (on Linux), else once for each.
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
            time.sleep(0.01)

    thread = threading.Thread(target=watch)
    thread.start()
    if process.wait():
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


def main(
    model: Annotated[str, typer.Option(help=f"The model whose shapes the checkpoints have: {', '.join(MODELS)}.")] = "0.5b",
    folder: Annotated[str, typer.Option(help="Folder for the checkpoints and outputs, on the disk to measure.")] = "",
    methods: Annotated[str, typer.Option(help="Methods to measure, separated by commas.")] = ",".join(METHODS),
    n_process: Annotated[int, typer.Option("--n_process", help="Number of processes, of all that is measured.")] = 2,
    repeats: Annotated[int, typer.Option(help="Number of pairs of floor and merge. The table shows medians.")] = 3,
    memory: Annotated[bool, typer.Option(help="Also measure the peak memory, in a separate run.")] = True,
    peers: Annotated[
        list[str] | None, typer.Option(help="Other tools, as formers=PYTHON, nlp=PYTHON, mergekit=PYTHON.")
    ] = None,
    tensor_type: Annotated[str, typer.Option("--tensor_type", help="np or pd, for paddle_merge, formers and nlp.")] = "np",
    device: Annotated[str, typer.Option(help="Device of paddle_merge with pd: cpu, gpu or low_gpu_mem.")] = "cpu",
    search: Annotated[bool, typer.Option(help="Instead, measure the inner loop of searches.")] = False,
) -> None:
    """Measure the time of each method, compared with the floor and with other tools, and its peak memory."""
    root = Path(folder or Path(tempfile.gettempdir()) / "paddle_merge_bench")
    if search:
        from tools import bench_search

        bench_search.main(models=f"small,{model}", folder=str(root))
        return
    paths = [*make_checkpoints(root, model), make_adapter(root, model)]
    out = root / "out"
    named = dict(peer.split("=", 1) for peer in peers or [])
    where = "the CPU" if tensor_type == "np" else device
    free = shutil.disk_usage(root).free / 1e9
    print(f"{model}, bfloat16, {tensor_type} on {where}, {n_process} processes, {free:.0f} GB free, {os.cpu_count()} CPUs")
    gpu_head = "" if device == "cpu" else " of the bus | device MB |"
    if device != "cpu":
        there, back = bus_seconds(device)
        print(f"bus: {1e-9 / there:.1f} GB/s to the device, {1e-9 / back:.1f} GB/s from it, one process, pinned memory")
    print(
        "| method | GB moved | floor s | merge s | ratio | peak MB |"
        + gpu_head
        + "".join(f" {peer} s | x |" for peer in named)
    )
    print("| --- |" + " ---: |" * (5 + gpu_head.count("|") + 2 * len(named)), flush=True)
    for method in methods.replace("recipes", ",".join(f"recipe:{name}" for name in NAMED)).split(","):
        command, inputs = merge_command(method, paths, out, n_process, tensor_type, device)
        moved = sum((path / "model.safetensors").stat().st_size for path in [*inputs, inputs[0]])
        seconds(command)  # compiles the loops on their first use, and fills the page cache
        floors, merges = [], []
        for _ in range(repeats):
            shutil.rmtree(out)
            floors.append(floor_seconds(inputs, root / "floor", n_process))
            merges.append(seconds(command))
        ratio = statistics.median(merge / floor for merge, floor in zip(merges, floors, strict=True))
        shutil.rmtree(out)
        peak = peak_memory(command) / 1e6 if memory else float("nan")
        shutil.rmtree(out, ignore_errors=True)
        row = f"| {method} | {moved / 1e9:.2f} | {statistics.median(floors):.2f} | {statistics.median(merges):.2f} |"
        row += f" {ratio:.2f} | {peak:.0f} |"
        if device != "cpu":
            size = (inputs[0] / "model.safetensors").stat().st_size
            share = (size * len(inputs) * there + size * back) / statistics.median(merges)
            row += f" {share:.0%} | {device_memory(command):.0f} |"
            shutil.rmtree(out)
        for peer, python in named.items():
            name = method.removeprefix("recipe:")
            if name != method and (peer != "mergekit" or not NAMED[name].mergekit):
                row += " | |"
                continue
            if method == "fold":  # PaddleFormers needs a package that isn't on PyPI, PaddleNLP its own layout
                row += " | |"
                continue
            taken = seconds(peer_command(peer, python, method, inputs, out, n_process, tensor_type), cwd=root)
            shutil.rmtree(out, ignore_errors=True)
            row += f" {taken:.1f} | {taken / statistics.median(merges):.1f} |"
        print(row, flush=True)


if __name__ == "__main__":
    typer.run(main)
