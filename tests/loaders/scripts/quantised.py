"""Write quantised checkpoints with compressed-tensors, and compare models in transformers, in an environment with both.

quantised.py write FOLDER         of each format a model in FOLDER/NAME, and what the library makes of its weight in
                                  FOLDER/NAME.safetensors
quantised.py same FP8 MERGED      load a model with blocks of FP8, dequantised by transformers, and a merged one; every
                                  parameter must have the same bits
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

ROWS, COLUMNS = 44, 64  # 44: zero points end within a word of 8
FORMATS: dict[str, tuple[str, dict[str, Any]]] = {
    "float-channel": ("float-quantized", {"type": "float", "strategy": "channel"}),
    "float-tensor": ("float-quantized", {"type": "float", "strategy": "tensor"}),
    "float-block": ("float-quantized", {"type": "float", "strategy": "block", "block_structure": [11, 8]}),
    "naive-channel": ("naive-quantized", {"type": "float", "strategy": "channel"}),
    "int-channel": ("int-quantized", {"strategy": "channel"}),
    "int-channel-zeros": ("int-quantized", {"strategy": "channel", "symmetric": False}),
    "int-group": ("int-quantized", {"strategy": "group", "group_size": 8}),
    "pack-4": ("pack-quantized", {"num_bits": 4, "strategy": "group", "group_size": 8}),
    "pack-4-zeros": ("pack-quantized", {"num_bits": 4, "strategy": "group", "group_size": 8, "symmetric": False}),
    "pack-4-channel": ("pack-quantized", {"num_bits": 4, "strategy": "channel"}),
    "pack-8-zeros": ("pack-quantized", {"strategy": "group", "group_size": 16, "symmetric": False}),
    "mxfp8": (
        "mxfp8-quantized",
        {"type": "float", "strategy": "group", "group_size": 32, "scale_dtype": "torch.uint8"},
    ),
}


def write(folder: Path) -> None:
    from compressed_tensors.compressors import BaseCompressor
    from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme

    torch.manual_seed(1)
    for name, (kind, said) in FORMATS.items():
        weights = QuantizationArgs(**{"num_bits": 8, "type": "int", "symmetric": True, **said})
        scheme = QuantizationScheme(targets=["Linear"], weights=weights, format=kind)
        grid = {
            "tensor": (1,),
            "channel": (ROWS, 1),
            "block": (ROWS // 11, COLUMNS // 8),
            "group": (ROWS, COLUMNS // said.get("group_size", 1)),
        }[said["strategy"]]
        scales = torch.exp2(torch.randint(-6, 2, grid)) if kind.startswith("mx") else torch.rand(grid) / 20 + 0.01
        state = {"weight": torch.randn(ROWS, COLUMNS).bfloat16(), "weight_scale": scales.bfloat16()}
        if not weights.symmetric:
            limit = 1 << (weights.num_bits - 1)
            state["weight_zero_point"] = torch.randint(-limit, limit, grid).to(torch.int8)
        library = BaseCompressor.get_value_from_registry(kind)
        stored = library.compress(state, scheme)
        (folder / name).mkdir(parents=True)
        tensors = {f"l.{word}": tensor.contiguous() for word, tensor in stored.items()}
        save_file(tensors, folder / name / "model.safetensors", metadata={"format": "pt"})
        save_file({"l.weight": library.decompress(stored, scheme)["weight"].contiguous()}, folder / f"{name}.safetensors")
        config = {"quant_method": "compressed-tensors", "format": kind}
        config["config_groups"] = {"group_0": json.loads(scheme.model_dump_json())}
        config = {"architectures": ["Tiny"], "dtype": "bfloat16", "quantization_config": config}
        (folder / name / "config.json").write_text(json.dumps(config))


def same(quantised: str, merged: str) -> None:
    from transformers import AutoModelForCausalLM, FineGrainedFP8Config

    said = json.loads((Path(quantised) / "config.json").read_text())["quantization_config"]
    how = FineGrainedFP8Config(dequantize=True, weight_block_size=tuple(said["weight_block_size"]))
    one = AutoModelForCausalLM.from_pretrained(quantised, dtype=torch.bfloat16, quantization_config=how).state_dict()
    other = AutoModelForCausalLM.from_pretrained(merged, dtype=torch.bfloat16).state_dict()
    assert one.keys() == other.keys()
    different = [name for name in one if not torch.equal(one[name].view(torch.int16), other[name].view(torch.int16))]
    assert not different, different


if __name__ == "__main__":
    task, *arguments = sys.argv[1:]
    if task == "write":
        write(Path(arguments[0]))
    else:
        same(*arguments)
