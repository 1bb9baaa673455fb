"""Give small models the tokenizers of others with this program and with mergekit, and report how far the rows are apart.

    python tools/compare_transplant.py --mergekit PYTHON    # Python of mergekit's environment

Two byte-level tokenizers are trained on two halves of Python's own library, and a Llama with random weights in float32 is
made for each. For every method the largest difference is given, relative to the largest number of the tensor, and how many
rows differ by more than 1e-5 of it. Where mergekit splits text otherwise (it doesn't decode the letters of byte-level
tokens), rows by subword differ; its weighted_mean weighs the pieces in reverse, so it isn't compared.
"""

from __future__ import annotations

import json
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path
from typing import Annotated

import numpy as np
import tokenizers
import typer

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from paddle_merge.checkpoints.formats.header import Held
from paddle_merge.checkpoints.formats.safetensors import header
from paddle_merge.dtypes import FLOAT32
from tools.compare_with_mergekit import EMBEDDINGS, Tensors, llama, load

# Name -> flags of this program, and mergekit's.
METHODS = {
    "omp, k 16": (["--k", "16"], ["-a", "omp", "-k", "16"]),
    "omp, k 4": (["--k", "4"], ["-a", "omp", "-k", "4"]),
    "subword, mean": (["--method", "subword"], ["-a", "subword"]),
    "subword, sum": (["--method", "subword", "--subword_method", "sum"], ["-a", "subword", "-s", "sum"]),
    "subword, last": (["--method", "subword", "--subword_method", "last"], ["-a", "subword", "-s", "first_last"]),
    "zeros": (["--method", "zeros"], ["-a", "zero"]),
}


def make(folder: Path, files: list[str], words: int, special: list[str], seed: int, tied: bool) -> None:
    """Write a checkpoint of a Llama with a tokenizer of so many words, trained on text files."""
    level = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    trained = tokenizers.Tokenizer(tokenizers.models.BPE())
    trained.pre_tokenizer, trained.decoder = level, tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=words, special_tokens=special, initial_alphabet=level.alphabet(), show_progress=False
    )
    trained.train(files, trainer)
    folder.mkdir(parents=True)
    trained.save(str(folder / "tokenizer.json"))
    roles = {"bos_token": special[0], "eos_token": special[1], "unk_token": special[2], "pad_token": special[2]}
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizerFast", **roles}))
    random, tensors = np.random.default_rng(seed), llama(2, seed, None)
    width = tensors["model.norm.weight"].size
    for name in [name for name in tensors if name.startswith(EMBEDDINGS)]:
        tensors[name] = random.standard_normal((words, width)).astype(np.float32)
    if tied:
        del tensors["lm_head.weight"]
    head = header([Held(name, FLOAT32, x.shape, x.nbytes) for name, x in tensors.items()], "pt").pieces[0][1]
    (folder / "model.safetensors").write_bytes(head + b"".join(x.tobytes() for x in tensors.values()))
    config = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "torch_dtype": "float32", "vocab_size": words}
    config |= {"hidden_size": width, "intermediate_size": len(tensors["model.layers.0.mlp.up_proj.weight"])}
    config |= {"num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 4, "tie_word_embeddings": tied}
    (folder / "config.json").write_text(json.dumps({**config, "bos_token_id": 0, "eos_token_id": 1}))


def compared(ours: Tensors, theirs: Tensors) -> str:
    """Return a line on how far apart the tensors are."""
    worst, rows = 0.0, 0
    for name, one in ours.items():
        other = theirs[name][: len(one)]
        apart = np.abs(one - other) / max(np.abs(other).max(), 1e-30)
        worst = max(worst, float(apart.max()))
        rows += int((apart.reshape(len(one), -1).max(axis=1) > 1e-5).sum())
    return f"{worst:.1e} of the largest number; {rows} rows differ by more than 1e-5"


def main(
    mergekit: Annotated[str, typer.Option(help="The Python of mergekit's environment.")],
    words: Annotated[
        int, typer.Option(help="How many tokens the model's tokenizer has; the donor's has a fifth more.")
    ] = 1000,
) -> None:
    """Compare transplants of tokenizers with mergekit's."""
    files = sorted(map(str, Path(sysconfig.get_paths()["stdlib"]).glob("*.py")))
    surgeon = "from mergekit.scripts.tokensurgeon import main; main()"
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary)
        for tied in (False, True):
            kind = "tied" if tied else "untied"
            model, donor = work / f"{kind}-model", work / f"{kind}-donor"
            make(model, files[::2], words, ["<s>", "</s>", "<unk>"], 1, tied)
            make(donor, files[1::2], words * 6 // 5, ["<begin>", "<end>", "<unknown>"], 2, tied)
            for name, (flags, theirs) in METHODS.items():
                out = [work / f"{kind}-{name}-{program}" for program in ("ours", "mergekit")]
                program = [sys.executable, "-m", "paddle_merge", "transplant", str(model), str(donor), "--quiet"]
                subprocess.run([*program, *flags, "--output_path", str(out[0])], check=True)
                call = [mergekit, "-c", surgeon, str(model), str(donor), str(out[1]), *theirs]
                subprocess.run(call, check=True, capture_output=True)
                print(f"{name} ({kind}): {compared(load(out[0]), load(out[1]))}", flush=True)


if __name__ == "__main__":
    typer.run(main)
