"""Make tiny mixtures of experts with transformers, measure their experts, and compute with smaller ones.

python smaller_experts.py make FOLDER
    FOLDER/jobs.json has a config for each family. Writes the model to FOLDER/family, with stats.json, what expert-stats
    measures, and inputs.npz, what each layer's mixture is given, text by text.
python smaller_experts.py compare FOLDER
    FOLDER/family-small is the model with some experts, which FOLDER/kept.json lists by family and layer. Writes
    FOLDER/compared.json: what loading says, and the largest difference of its logits to those of the whole model whose
    router has -inf as the logits of the other experts.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import sys
from pathlib import Path

import numpy as np
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

sys.path.insert(0, str(Path(__file__).parents[3]))

from paddle_merge.commands.main import main as command


def make(folder: Path) -> None:
    for family, config in json.loads((folder / "jobs.json").read_text()).items():
        torch.manual_seed(3)
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**config), dtype=torch.float32).eval()
        for name, buffer in model.named_buffers():
            if name.endswith("e_score_correction_bias"):
                buffer.copy_(torch.randn(buffer.shape) * 0.1)
        model.save_pretrained(folder / family)
        for name in ("tokenizer.json", "tokenizer_config.json"):
            shutil.copy(folder / name, folder / family / name)
        texts, out = folder / "texts.jsonl", folder / family / "stats.json"
        words = [str(folder / family), "--prompts", str(texts), "--output", str(out), "--batch_size", "2"]
        with contextlib.suppress(SystemExit):  # with status 0; else there is no file
            command(["expert-stats", *words])
        inputs: dict[str, list[np.ndarray]] = {}
        for name, module in model.named_modules():
            if hasattr(module, "experts"):
                held = inputs.setdefault(name.split(".")[2], [])
                module.register_forward_pre_hook(
                    lambda _, args, held=held: held.append(args[0].detach().numpy().reshape(-1, args[0].shape[-1]))
                )
        tokenizer = AutoTokenizer.from_pretrained(folder / family)
        with torch.no_grad():
            for line in texts.read_text().splitlines():
                model(torch.tensor([tokenizer(json.loads(line)["text"])["input_ids"]]))
        np.savez(folder / family / "inputs.npz", **{layer: np.concatenate(one) for layer, one in inputs.items()})


def compare(folder: Path) -> None:
    found, linear = {}, torch.nn.functional.linear
    for family, kept in json.loads((folder / "kept.json").read_text()).items():
        whole = AutoModelForCausalLM.from_pretrained(folder / family, dtype=torch.float32).eval()
        small, info = AutoModelForCausalLM.from_pretrained(
            folder / f"{family}-small", dtype=torch.float32, output_loading_info=True
        )
        dropped = {}
        for name, module in whole.named_modules():
            if hasattr(module, "experts"):
                others = [one for one in range(module.experts.num_experts) if one not in kept[name.split(".")[2]]]
                router = module.router if hasattr(module, "router") else module.gate
                dropped[id(router.weight)] = others
                if hasattr(router, "e_score_correction_bias"):
                    router.e_score_correction_bias[others] = -torch.inf

        def masked(x, weight, bias=None, dropped=dropped):
            logits = linear(x, weight, bias)
            if id(weight) in dropped:
                logits[..., dropped[id(weight)]] = -torch.inf
            return logits

        tokens = torch.arange(40)[None] % 23
        with torch.no_grad():
            torch.nn.functional.linear = masked
            expected = whole(tokens).logits
            torch.nn.functional.linear = linear
            logits = small.eval()(tokens).logits
        wrong = {name: sorted(map(str, value)) for name, value in info.items() if value}
        off = float((logits - expected).abs().max() / expected.abs().max())
        found[family] = {"wrong": wrong, "difference": off, "size": sum(map(torch.numel, small.state_dict().values()))}
    (folder / "compared.json").write_text(json.dumps(found))


if __name__ == "__main__":
    {"make": make, "compare": compare}[sys.argv[1]](Path(sys.argv[2]))
