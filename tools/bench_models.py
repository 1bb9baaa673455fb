"""Write checkpoints with the shapes of real models, for benchmarks: weights are random."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import numpy as np

MODELS = {
    # name: hidden size, intermediate size, layers, width of keys and values, vocabulary size
    "tiny": (256, 1024, 4, 64, 30_000),
    "small": (128, 512, 4, 32, 1000),  # a million parameters, merged in no time: what is measured is everything else
    "66m": (512, 2048, 8, 128, 50_000),
    "0.5b": (896, 4864, 24, 128, 151_936),
    "1b": (896, 4864, 48, 128, 303_872),  # 0.5b twice
    "many": (16, 8, 48, 16, 64),  # 18,914 tensors of a few hundred elements: the experts of Qwen3-30B-A3B, made tiny
    "2gb-tensor": (1024, 1024, 1, 128, 1_048_576),  # an embedding of 2.1 GB in bfloat16
}
EXPERTS = {"many": 128}  # model -> experts of each layer
RANK = 32  # rank of the adapter


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
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, shape in shapes(model).items():
        size = 2 * int(np.prod(shape))
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [end, end + size]}
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
        config: dict[str, object] = {
            "architectures": ["Qwen2ForCausalLM"],
            "model_type": "qwen2",
            "dtype": "bfloat16",
            "torch_dtype": "bfloat16",
        }
        config |= {"hidden_size": hidden, "intermediate_size": intermediate, "num_hidden_layers": layers}
        config |= {"vocab_size": vocabulary, "num_attention_heads": 14, "tie_word_embeddings": True}
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
