"""Test the model card: its metadata, which nothing private and no unproven name is in; and that its recipe, with its
command, repeats the merge byte for byte."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from paddle_merge import MergeConfig, merge
from paddle_merge.commands.verify.verify import verify
from paddle_merge.methods.registry import find, names
from paddle_merge.version import __version__
from tests.support.checkpoints import read, write
from tests.support.command_lines import cli

LLAMA = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": 4, "num_attention_heads": 1}
LLAMA |= {"intermediate_size": 6, "vocab_size": 7, "num_hidden_layers": 4}
UP = "model.layers.0.mlp.up_proj"


def model(folder: Path, seed: int) -> None:
    random = np.random.default_rng(seed)
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (7, 4), "model.norm.weight": (4,)}
    shapes |= {UP.replace("0", str(layer)) + ".weight": (6, 4) for layer in range(4)} | {"lm_head.weight": (7, 4)}
    tensors = {name: random.standard_normal(shape) for name, shape in shapes.items()}
    write(folder, tensors, format="pt", config=LLAMA)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Models math, code and base of transformers, in a folder that is nobody's business, beside the current one."""
    hidden = tmp_path / "secret"
    for number, name in enumerate(("math", "code", "base")):
        model(hidden / name, number)
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    return hidden


def card_of(out: Path) -> tuple[dict[str, Any], str]:
    """Return the metadata of a card, and the text below it."""
    _, front, text = (out / "README.md").read_text().split("---\n", 2)
    return yaml.safe_load(front), text


def carded(folder: Path, *models: str, **fields: Any) -> tuple[dict[str, Any], str]:
    out = folder.parent / "here" / "merged"
    merge(MergeConfig(model_path_list=[str(folder / one) for one in models], output_path=str(out), **fields), progress=False)
    return card_of(out)


def say(folder: Path, metadata: str) -> None:
    (folder / "README.md").write_text(f"---\n{metadata}\n---\n# A model\n")


# --- metadata ----------------------------------------------------------------------------------------------------------


def test_the_whole_card(folder: Path) -> None:
    say(
        folder / "math",
        "license: apache-2.0\nlanguage: no\nbase_model: org/base-1\npipeline_tag: text-generation\ntags: [sft]",
    )
    say(folder / "code", "license: apache-2.0\nlanguage: [en, zh]\nbase_model: org/base-1")
    say(folder / "base", "license: apache-2.0\nbase_model: models/base")
    carded(
        folder,
        *("math", "code"),
        base_model_path=str(folder / "base"),
        merge_method="dare_ties",
        weight_list=[0.75, 0.25],
        reserve_p=0.5,
        seed=7,
        out_dtype="bfloat16",
    )
    assert (
        Path("merged/README.md").read_text()
        == f"""\
---
base_model:
- org/base-1
base_model_relation: merge
library_name: transformers
pipeline_tag: text-generation
license: apache-2.0
language:
- 'no'
- en
- zh
tags:
- merge
- paddle_merge
- dare_ties
---

# merged

This model was merged by [`dare_ties`](https://arxiv.org/abs/2311.03099), as changes to base, made with paddle_merge {__version__}.

## Models

| model | weight |
| --- | ---: |
| math | 0.75 |
| code | 0.25 |
| base | the base model |

Parameters: reserve_p 0.5, rescale True, normalize True, ties_elect_type sum, ties_zero_sign positive, scale 1, seed 7.

## How to load it

```python
from transformers import AutoModelForCausalLM

model = AutoModelForCausalLM.from_pretrained('./merged', dtype="auto")
```

## Recipe

```yaml
merge_method: paddlenlp:dare_ties
base_model: ./base
models:
- model: ./math
  parameters:
    weight: 0.75
- model: ./code
  parameters:
    weight: 0.25
- model: ./base
parameters:
  reserve_p: 0.5
  rescale: true
  normalize: true
  ties_elect_type: sum
  ties_zero_sign: positive
  scale: 1.0
out_dtype: bfloat16
seed: 7
```

As `recipe.yaml`, beside the models that it names, it repeats the merge byte for byte:

```bash
python -m paddle_merge recipe.yaml --output_path ./merged
```

`merge_config.json` is the same merge with the paths that it was made with. `merge_lock.json` has fingerprints of everything that was read and written; `python -m paddle_merge verify` compares them.
"""  # noqa: E501
    )


def test_without_facts_there_are_no_empty_blocks(folder: Path) -> None:
    metadata, text = carded(folder, "math", "code")
    assert metadata == {"library_name": "transformers", "tags": ["merge", "paddle_merge", "linear"]}
    assert "License" not in text
    assert "{}" not in text


def test_licences_that_differ_are_listed_and_not_chosen_from(folder: Path) -> None:
    say(folder / "math", "license: mit")
    say(folder / "code", "license: other\nlicense_name: llama3 *x*")
    metadata, text = carded(folder, "math", "code", "base")
    assert "license" not in metadata
    assert "mit (math); llama3 \\*x\\* (code); none stated (base)" in text


def test_an_earlier_merge_is_no_link_but_what_it_declares_is(folder: Path) -> None:
    say(folder / "math", "base_model: org/one")
    merge(
        MergeConfig(model_path_list=[str(folder / "math"), str(folder / "code")], output_path=str(folder / "first")), False
    )
    metadata, _ = carded(folder, "first", "base")
    assert metadata["base_model"] == ["org/one"]


def test_no_path_of_this_machine_is_told(folder: Path, tmp_path: Path) -> None:
    (folder / "tokens").mkdir()
    for name in ("math", "tokens"):
        (folder / name / "config.json").write_text(json.dumps(LLAMA | {"_name_or_path": str(folder / "base")}))
    carded(folder, "math", "code", base_model_path=str(folder / "base"), config_from=str(folder / "tokens"))
    card = Path("merged/README.md").read_text()
    for part in (*tmp_path.parts[1:], "secret"):
        assert part not in card.replace("paddle_merge", "")
    assert "--config_from ./tokens" in card


def test_a_tokenizer_of_the_same_name_is_told_apart(folder: Path) -> None:
    model(folder / "other" / "math", 5)
    _, text = carded(folder, "math", "code", config_from=str(folder / "other" / "math"))
    assert "- model: ./secret/math\n" in text
    assert "--config_from ./other/math\n" in text


def test_models_of_the_same_name_are_told_apart(folder: Path) -> None:
    for run in ("run1", "run2"):
        model(folder / run / "checkpoint-5", len(run))
    _, text = carded(folder, "run1/checkpoint-5", "run2/checkpoint-5")
    assert "| run1/checkpoint-5 | 0.5 |\n| run2/checkpoint-5 | 0.5 |" in text
    assert "- model: ./run2/checkpoint-5" in text


def test_parameters_in_which_models_differ_are_columns(folder: Path) -> None:
    recipe = f"""\
merge_method: ties
base_model: {folder}/base
models:
- {{model: {folder}/math, parameters: {{weight: 1, density: 0.5}}}}
- {{model: {folder}/code, parameters: {{weight: 2, density: 0.25}}}}
"""
    merge(MergeConfig(recipe_yaml=recipe, output_path="merged"), progress=False)
    _, text = card_of(Path("merged"))
    assert "| model | weight | density |\n| --- | ---: | ---: |\n| math | 1 | 0.5 |\n| code | 2 | 0.25 |\n" in text
    assert "| base | the base model |  |" in text


def test_a_chat_template_with_a_fence_stays_in_its_block(folder: Path) -> None:
    _, text = carded(folder, "math", "code", chat_template="{{ messages }}\n```\n# not a heading\n")
    assert re.search(r"^````yaml$.*^````$", text, re.MULTILINE | re.DOTALL)


def test_a_name_with_a_fence_stays_in_its_blocks(folder: Path) -> None:
    out = "x\n```\n# not a heading"
    merge(MergeConfig([str(folder / "math"), str(folder / "code")], output_path=out), progress=False)
    text = (Path(out) / "README.md").read_text()
    assert re.search(r"^````bash$.*^````$", text, re.MULTILINE | re.DOTALL)
    assert re.search(r"^````python$.*^````$", text, re.MULTILINE | re.DOTALL)


def test_every_paper_is_an_address(folder: Path) -> None:
    found = {name: method.paper for name in names() if (method := find(name)) is not None}
    assert all(
        re.fullmatch(r"https://(arxiv\.org/abs/\d{4}\.\d{5}|doi\.org/10\.\d+/\S+|)", paper or "https://")
        for paper in found.values()
    )
    assert {name for name, paper in found.items() if not paper} == {
        "arcee_fusion",
        "multislerp",
        "nearswap",
        "nuslerp",
        "passthrough",
    }


def test_the_card_may_be_edited_or_brought_along(folder: Path) -> None:
    carded(folder, "math", "code")
    with Path("merged/README.md").open("a") as file:
        file.write("My words.\n")
    assert verify("merged", sample=0, n_process=1, tolerant=False).off == []
    say(folder / "math", "license: mit")
    both = [str(folder / "math"), str(folder / "code")]
    merge(MergeConfig(both, output_path="copied", copy_file_list=["README.md"]), progress=False)
    assert Path("copied/README.md").read_text() == (folder / "math/README.md").read_text()


# --- loading -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "fields", "library", "line"),
    [
        (
            {"architectures": ["LlamaForCausalLM"]},
            {},
            "transformers",
            "AutoModelForCausalLM.from_pretrained('./merged', dtype=\"auto\")",
        ),
        ({"architectures": ["BertForMaskedLM"]}, {}, "transformers", "AutoModelForMaskedLM.from_pretrained("),
        ({"architectures": ["XForConditionalGeneration"]}, {}, "transformers", "import XForConditionalGeneration\n"),
        ({"architectures": ["GPT2LMHeadModel"]}, {}, "transformers", "AutoModelForCausalLM.from_pretrained("),
        ({"architectures": ["x; import os"]}, {}, "transformers", ""),
        ({"architectures": []}, {}, "transformers", ""),
        (
            {"architectures": ["LlamaForCausalLM"]},
            {"output_layout": "paddleformers"},
            "paddleformers",
            'load_checkpoint_format="unified_checkpoint", convert_from_hf=False',
        ),
        (
            {"architectures": ["LlamaForCausalLM"]},
            {"output_layout": "paddlenlp", "save_format": "pdparams"},
            "paddlenlp",
            "from paddlenlp.transformers import AutoModelForCausalLM\n",
        ),
    ],
)
def test_how_to_load_it(folder: Path, config: dict[str, Any], fields: dict[str, Any], library: str, line: str) -> None:
    for name in ("math", "code"):
        (folder / name / "config.json").write_text(json.dumps(LLAMA | config))
    metadata, text = carded(folder, "math", "code", **fields)
    assert metadata["library_name"] == library
    assert (line in text) if line else ("How to load" not in text)


def test_no_loader_opens_master_weights(folder: Path) -> None:
    for name in ("math", "code"):
        (folder / name / "model.safetensors").rename(folder / name / "master_weights.safetensors")
    _, text = carded(folder, "math", "code", merge_prefix="master_weights")
    assert "How to load" not in text


# --- the command -------------------------------------------------------------------------------------------------------

STAGES = """\
name: first
merge_method: linear
models: [{{model: {0}/math, parameters: {{weight: 1}}}}, {{model: {0}/code, parameters: {{weight: 3}}}}]
---
merge_method: ties
base_model: {0}/base
models: [{{model: first, parameters: {{weight: [0, 1], density: 0.5}}}}, {{model: {0}/math, parameters: {{weight: 0.5}}}}]
"""
LAYERS = """\
slices:
- sources: [{{model: {0}/math, layer_range: [0, 2]}}]
- sources: [{{model: {0}/code, layer_range: [1, 4]}}]
merge_method: passthrough
"""


@pytest.mark.parametrize(
    "fields",
    [
        {"recipe_yaml": STAGES},
        *(
            pytest.param(fields, marks=pytest.mark.exhaustive)
            for fields in (
                {"output_layout": "paddlenlp", "save_format": "pdparams", "merge_method": "slerp", "out_dtype": "float16"},
                {"weight_list": [0.3, -0.7], "normalize": False, "base_model_path": "base"},
                {"merge_method": "dare_linear", "seed": 3, "base_model_path": "base", "max_shard_size": "400"},
                {"merge_type": "slerp", "sparsify_type": "magprune", "slerp_alpha": 0.3, "base_model_path": "base"},
                {"merge_method": "breadcrumbs", "method_parameters": ["gamma=0.1"], "base_model_path": "base"},
                {"merge_method": "karcher", "tie": "untie", "config_from": "base", "copy_file_list": ["notes.txt"]},
                {"recipe_yaml": LAYERS},
            )
        ),
    ],
    ids=str,
)
def test_recipe_and_command_repeat_the_merge(folder: Path, fields: dict[str, Any]) -> None:
    (folder / "base/notes.txt").write_text("notes")
    places = {"base_model_path", "config_from"}
    fields = {name: str(folder / value) if name in places else value for name, value in fields.items()}
    if "recipe_yaml" in fields:
        fields["recipe_yaml"] = fields["recipe_yaml"].format(folder)
    else:
        fields["model_path_list"] = [str(folder / "math"), str(folder / "code")]
    merge(MergeConfig(output_path=str(folder / "merged"), **fields), progress=False)
    repeat(folder)


def test_what_becomes_of_missing_tensors_is_repeated(folder: Path) -> None:
    write(folder / "math", {**read(folder / "math"), "model.extra.weight": np.ones((2, 2))}, format="pt")
    models = [str(folder / "math"), str(folder / "code")]
    merge(MergeConfig(models, missing_tensors="union", output_path=str(folder / "merged")), progress=False)
    repeat(folder)


def test_a_folded_adapter_is_told_and_repeated(folder: Path) -> None:
    generator = np.random.default_rng(0)
    factors = {"A": generator.standard_normal((2, 4)), "B": generator.standard_normal((6, 2))}
    named = {f"base_model.model.{UP}.lora_{one}.weight": value for one, value in factors.items()}
    write(folder / "lora", named, prefix="adapter_model", format="pt")
    (folder / "lora/config.json").unlink()
    (folder / "lora/adapter_config.json").write_text('{"peft_type": "LORA", "r": 2, "lora_alpha": 2}')
    say(folder / "base", "base_model: org/base-1\nlicense: mit")
    out = str(folder / "merged")
    merge(MergeConfig(base_model_path=str(folder / "base"), lora_model_path=str(folder / "lora"), output_path=out), False)
    metadata, text = card_of(folder / "merged")
    assert (metadata["base_model"], metadata["base_model_relation"]) == (["org/base-1"], "finetune")
    assert f"This model is base with lora folded in, made with paddle_merge {__version__}." in text
    assert "license" not in metadata, "the adapter states none"
    repeat(folder)


def repeat(folder: Path) -> None:
    """Run the card's command with the card's recipe, where models have the names that it says; compare all bytes."""
    text = (folder / "merged/README.md").read_text()
    recipe, command = (re.findall(rf"^```{kind}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL) for kind in ("yaml", "bash"))
    Path("recipe.yaml").write_text(recipe[0])
    for one in folder.iterdir():
        if one.name != "merged":
            Path(one.name).symlink_to(one)
    words = shlex.split(command[0])
    assert words[:3] == ["python", "-m", "paddle_merge"]
    assert cli(*words[3:]) == 0
    different = {"merge_config.json", "merge_lock.json"}  # which hold paths
    different |= {"README.md"} if "folded in" in text else set()  # in YAML it is a merge of one model
    files = sorted(one.name for one in (folder / "merged").iterdir())
    assert files == sorted(one.name for one in Path("merged").iterdir())
    for name in files:
        assert name in different or Path("merged", name).read_bytes() == (folder / "merged" / name).read_bytes(), name
