"""Show what a merge of models of DeepSeek-V3's size takes, on a machine that couldn't hold one of them.

    python tools/giants.py /tmp/giants
    python tools/giants.py /tmp/giants --form bf16 --layer 60

It writes a base and two models of 671 billion parameters in sparse files. Such a file takes room on the disk only for what
was written to it, here its header and one layer's norms, router and first expert; everything else is read as zeros.
Forms: `fp8`, as DeepSeek publishes it, 0.7 TB in 90,000 tensors, with scales of 128 x 128 blocks; `bf16`, 1.3 TB in 45,000.

Then it runs a dry run of the whole merge, and a merge of one layer with all its experts (15 GB in FP8, 27 GB in bfloat16,
embeddings included), and prints for each the seconds that it takes, and the memory of all its processes.
"""

from __future__ import annotations

import json
import math
import re
import shutil
import struct
import sys
import time
from collections.abc import Iterator
from enum import Enum
from pathlib import Path
from typing import Annotated

import numpy as np
import typer

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from tools.bench import peak_memory

HIDDEN, INTERMEDIATE, EXPERT, VOCABULARY = 7168, 18432, 2048, 129_280
HEADS, NOPE, ROPE, VALUE, Q_RANK, KV_RANK = 128, 128, 64, 128, 1536, 512
DENSE, EXPERTS, LAYERS = 3, 256, 61
SIDE = 128  # of a block that has one scale
SHARD = 4_300_000_000  # bytes
NAMES = ("base", "a", "b")
FILLED = re.compile(r"model\.layers\.(\d+)\.(?:\w+norm|mlp\.gate|mlp\.experts\.0)\.")
METHOD = {"merge_method": "ties", "parameters": {"weight": 1.0, "density": 0.5}}  # the output is stored as the base is


class Form(str, Enum):
    """How weights are stored."""

    FP8 = "fp8"
    BF16 = "bf16"


def mlp(prefix: str, inner: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Yield the names and shapes of an MLP's matrices."""
    yield f"{prefix}.gate_proj.weight", (inner, HIDDEN)
    yield f"{prefix}.up_proj.weight", (inner, HIDDEN)
    yield f"{prefix}.down_proj.weight", (HIDDEN, inner)


def weights(layers: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Yield the names and shapes of DeepSeek-V3's weights, without the layer that predicts further tokens."""
    yield "model.embed_tokens.weight", (VOCABULARY, HIDDEN)
    for layer in range(layers):
        at = f"model.layers.{layer}"
        yield f"{at}.input_layernorm.weight", (HIDDEN,)
        yield f"{at}.self_attn.q_a_proj.weight", (Q_RANK, HIDDEN)
        yield f"{at}.self_attn.q_a_layernorm.weight", (Q_RANK,)
        yield f"{at}.self_attn.q_b_proj.weight", (HEADS * (NOPE + ROPE), Q_RANK)
        yield f"{at}.self_attn.kv_a_proj_with_mqa.weight", (KV_RANK + ROPE, HIDDEN)
        yield f"{at}.self_attn.kv_a_layernorm.weight", (KV_RANK,)
        yield f"{at}.self_attn.kv_b_proj.weight", (HEADS * (NOPE + VALUE), KV_RANK)
        yield f"{at}.self_attn.o_proj.weight", (HIDDEN, HEADS * VALUE)
        yield f"{at}.post_attention_layernorm.weight", (HIDDEN,)
        if layer < DENSE:
            yield from mlp(f"{at}.mlp", INTERMEDIATE)
            continue
        yield f"{at}.mlp.gate.weight", (EXPERTS, HIDDEN)
        yield f"{at}.mlp.gate.e_score_correction_bias", (EXPERTS,)
        for expert in range(EXPERTS):
            yield from mlp(f"{at}.mlp.experts.{expert}", EXPERT)
        yield from mlp(f"{at}.mlp.shared_experts", EXPERT)
    yield "model.norm.weight", (HIDDEN,)
    yield "lm_head.weight", (VOCABULARY, HIDDEN)


def stored(form: Form, layers: int) -> Iterator[tuple[str, str, tuple[int, ...]]]:
    """Yield the name, safetensors dtype and shape of every tensor of a checkpoint."""
    for name, shape in weights(layers):
        if name.endswith("correction_bias"):
            yield name, "F32", shape
        elif form is Form.FP8 and "_proj" in name:
            yield name, "F8_E4M3", shape
            yield f"{name}_scale_inv", "F32", tuple(-(-size // SIDE) for size in shape)
        else:
            yield name, "BF16", shape


def numbers(dtype: str, count: int, random: np.random.Generator) -> bytes:
    """Return random numbers of about the size of weights; for FP8, codes that are finite."""
    if dtype == "F8_E4M3":
        return (random.integers(0, 0x7F, count, np.uint8) | (random.integers(0, 2, count, np.uint8) << 7)).tobytes()
    values = random.standard_normal(count, dtype=np.float32) * np.float32(0.02)
    if dtype == "F32":
        return np.abs(values * np.float32(0.01)).tobytes()
    return (values.view(np.uint32) >> 16).astype("<u2").tobytes()


def write(folder: Path, form: Form, layers: int, filled: int, seed: int) -> int:
    """Write a checkpoint in which only tensors of layer `filled` are other than zeros; return how many tensors it has."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    width = {"BF16": 2, "F32": 4, "F8_E4M3": 1}
    shards: list[list[tuple[str, str, tuple[int, ...]]]] = [[]]
    size = total = 0
    for one in stored(form, layers):
        nbytes = math.prod(one[2]) * width[one[1]]
        if shards[-1] and size + nbytes > SHARD:
            shards.append([])
            size = 0
        shards[-1].append(one)
        size, total = size + nbytes, total + nbytes
    where: dict[str, str] = {}
    random = np.random.default_rng(seed)
    for number, shard in enumerate(shards, 1):
        file = f"model-{number:05}-of-{len(shards):05}.safetensors"
        header: dict[str, object] = {"__metadata__": {"format": "pt"}}
        end = 0
        for name, dtype, shape in shard:
            start, end = end, end + math.prod(shape) * width[dtype]
            header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}
            where[name] = file
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % 8)
        with open(folder / file, "wb") as out:
            out.write(struct.pack("<Q", len(text)) + text)
            at = out.tell()
            for name, dtype, shape in shard:
                count = math.prod(shape)
                if (found := FILLED.match(name)) and int(found[1]) == filled:
                    out.seek(at)
                    out.write(numbers(dtype, count, random))
                at += count * width[dtype]
            out.truncate(at)
    index = {"metadata": {"total_size": total}, "weight_map": where}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "config.json").write_text(json.dumps(config(form, layers), indent=1))
    return len(where)


def config(form: Form, layers: int) -> dict[str, object]:
    """Return a config.json."""
    result: dict[str, object] = {
        "architectures": ["DeepseekV3ForCausalLM"],
        "model_type": "deepseek_v3",
        "torch_dtype": "bfloat16",
        "hidden_size": HIDDEN,
        "intermediate_size": INTERMEDIATE,
        "moe_intermediate_size": EXPERT,
        "num_hidden_layers": layers,
        "first_k_dense_replace": DENSE,
        "n_routed_experts": EXPERTS,
        "n_shared_experts": 1,
        "num_experts_per_tok": 8,
        "n_group": 8,
        "topk_group": 4,
        "num_attention_heads": HEADS,
        "num_key_value_heads": HEADS,
        "q_lora_rank": Q_RANK,
        "kv_lora_rank": KV_RANK,
        "qk_nope_head_dim": NOPE,
        "qk_rope_head_dim": ROPE,
        "v_head_dim": VALUE,
        "vocab_size": VOCABULARY,
        "tie_word_embeddings": False,
    }
    if form is Form.FP8:
        scales = {"quant_method": "fp8", "fmt": "e4m3", "weight_block_size": [SIDE, SIDE], "activation_scheme": "dynamic"}
        result["quantization_config"] = scales
    return result


def recipe(root: Path, layers: range | None) -> Path:
    """Write the recipe of a merge of whole models, or of these layers; return its path."""
    models = [{"model": str(root / name)} for name in NAMES[1:]]
    document: dict[str, object] = {**METHOD, "base_model": str(root / NAMES[0])}
    if layers is None:
        document["models"] = models
    else:
        at = [layers.start, layers.stop]
        document["slices"] = [
            {"sources": [{**one, "layer_range": at} for one in [*models, {"model": str(root / NAMES[0])}]]}
        ]
    path = root / ("whole.yaml" if layers is None else "layer.yaml")
    path.write_text(json.dumps(document, indent=1))
    return path


def main(
    folder: Annotated[Path, typer.Argument(help="Folder for the models. Its file system must know sparse files.")],
    form: Annotated[Form, typer.Option(help="How the weights are stored.")] = Form.FP8,
    layers: Annotated[int, typer.Option(help="Layers of a model, the first three without experts.")] = LAYERS,
    layer: Annotated[int, typer.Option(help="The layer that is merged.")] = DENSE,
    output: Annotated[Path | None, typer.Option(help="Where the merged layer is written. It is deleted again.")] = None,
    merge: Annotated[bool, typer.Option(help="Merge the layer too.")] = True,
) -> None:
    """Write giants, foretell their merge, and merge one of their layers."""
    root = folder / form.value
    begun = time.perf_counter()
    counts = {write(root / name, form, layers, layer, seed) for seed, name in enumerate(NAMES)}
    print(f"3 models of {max(counts):,} tensors each, written in {time.perf_counter() - begun:.0f} s")
    out = output or root / "merged"
    tries = {"dry run of the whole merge": [str(recipe(root, None)), "--dry_run"]}
    if merge:
        tries["merge of one layer"] = [str(recipe(root, range(layer, layer + 1)))]
    rows = []
    for title, words in tries.items():
        begun = time.perf_counter()
        # A dry run fails where the disk is too small, after it has printed the plan.
        peak = peak_memory(
            [sys.executable, "-m", "paddle_merge", *words, "--output_path", str(out)], may_fail=not rows, every=0.2
        )
        rows.append((title, time.perf_counter() - begun, peak / 1e6))
        shutil.rmtree(out, ignore_errors=True)
    print("\n| what | s | peak, MB |\n| --- | ---: | ---: |")
    for title, taken, peak in rows:
        print(f"| {title} | {taken:.1f} | {peak:.0f} |")


if __name__ == "__main__":
    typer.run(main)
