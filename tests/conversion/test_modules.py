"""Test modules of recipes: models of several parts, found by the names of tensors, and the errors if they aren't found."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from paddle_merge import CheckpointError, ConfigError, MergeConfig, merge
from paddle_merge.commands.verify.verify import verify
from paddle_merge.conversion.modules import module_of
from paddle_merge.recipe.yaml_read import parse
from paddle_merge.recipe.yaml_write import to_yaml
from tests.support.checkpoints import read, write

PARTS = ("text_decoder", "multi_modal_projector", "vision_tower")


def text(number: int) -> str:
    return f"model.language_model.layers.{number}.mlp.up_proj.weight"


def vision(number: int) -> str:
    return f"model.visual.blocks.{number}.attn.qkv.weight"


EMBED, NORM, HEAD = "model.language_model.embed_tokens.weight", "model.language_model.norm.weight", "lm_head.weight"
PATCH, MERGER = "model.visual.patch_embed.proj.weight", "model.visual.merger.linear_fc1.weight"
DEEPSTACK = "model.visual.deepstack_merger_list.0.linear_fc1.weight"


def model(folder: Path, seed: int, layers: int = 4, blocks: int = 3) -> str:
    """As Qwen3-VL's files are."""
    random = np.random.default_rng(seed)
    names = [EMBED, *map(text, range(layers)), NORM, PATCH, *map(vision, range(blocks)), MERGER, DEEPSTACK, HEAD]
    config = {
        "text_config": {
            "num_hidden_layers": layers,
            "layer_types": [f"type{number}" for number in range(layers)],
            "rope_theta": 5.0,
        },
        "vision_config": {"depth": blocks, "deepstack_visual_indexes": [0]},
    }
    return str(write(folder, {name: random.standard_normal((5, 3)) for name in names}, config=config))


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for seed, name in enumerate("abc"):
        model(tmp_path / name, seed)
    model(tmp_path / "deep", 9, layers=6, blocks=5)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def made(recipe: str, out: str = "out", **fields: Any) -> dict[str, np.ndarray]:
    merge(MergeConfig(recipe_yaml=f"{recipe}\n", output_path=out, **fields), progress=False)
    return read(Path(out))


def models(*names: str) -> list[dict[str, np.ndarray]]:
    return [read(Path(name)) for name in names]


# --- which tensor is whose -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "modules", "expected"),
    [
        # Qwen3-VL
        (text(3), PARTS, "text_decoder"),
        (HEAD, PARTS, "text_decoder"),
        (vision(2), PARTS, "vision_tower"),
        (PATCH, PARTS, "vision_tower"),
        (MERGER, PARTS, "multi_modal_projector"),
        (DEEPSTACK, PARTS, "multi_modal_projector"),
        (MERGER, ("text_decoder", "vision_tower"), "vision_tower"),
        # Qwen2-VL
        ("model.layers.0.mlp.up_proj.weight", PARTS, "text_decoder"),
        ("visual.blocks.0.attn.qkv.weight", PARTS, "vision_tower"),
        ("visual.merger.mlp.0.weight", PARTS, "multi_modal_projector"),
        # Gemma 3, Llama 4
        ("language_model.model.layers.0.mlp.up_proj.weight", PARTS, "text_decoder"),
        ("vision_tower.vision_model.encoder.layers.0.layer_norm1.bias", PARTS, "vision_tower"),
        ("multi_modal_projector.linear_1.weight", PARTS, "multi_modal_projector"),
        ("vision_model.model.layers.0.input_layernorm.weight", (*PARTS[:2], "vision_model"), "vision_model"),
        # PaddleFormers' ERNIE 4.5 VL and PaddleOCR-VL
        ("model.resampler_model.mlp.weight", PARTS, "multi_modal_projector"),
        ("mlp_AR.linear_1.weight", PARTS, "multi_modal_projector"),
        # T5, Whisper
        ("encoder.block.0.layer.0.SelfAttention.q.weight", ("encoder", "decoder", "shared"), "encoder"),
        ("decoder.block.3.layer.1.EncDecAttention.q.weight", ("encoder", "decoder", "shared"), "decoder"),
        ("lm_head.weight", ("encoder", "decoder", "shared"), "shared"),
        ("model.decoder.layers.0.encoder_attn.k_proj.weight", ("encoder", "decoder"), "decoder"),
        # as mergekit calls what it has no list of: by the beginnings of names
        (vision(0), ("model.visual.blocks", "default"), "model.visual.blocks"),
        (PATCH, ("model.visual.blocks", "default"), "default"),
        (vision(0), ("model.vis", "default"), "default"),
        # the language model's are what no other part is known by
        (vision(0), ("text_decoder", "multi_modal_projector"), None),
        (vision(0), ("text_decoder", "default"), "default"),
        ("model.audio_tower.layers.0.fc1.weight", PARTS, None),
        ("encoder.w", ("decoder", "vision_tower"), None),
        # of two that mean the same, the one that is written
        (text(0), ("text_decoder", "language_model"), "language_model"),
        (HEAD, ("text_decoder", "language_model"), None),
        # what is called so within a layer doesn't count
        ("model.layers.0.vision_tower.weight", PARTS, "text_decoder"),
    ],
)
def test_whose_a_tensor_is(name: str, modules: tuple[str, ...], expected: str | None) -> None:
    assert module_of(name, modules) == expected


WORDS = st.sampled_from(
    ["model", "visual", "layers", "0", "1", "merger", "language_model", "lm_head", "x", "default", "encoder"]
)


@given(st.lists(WORDS, min_size=1).map(".".join), st.lists(WORDS, min_size=1, max_size=4, unique=True), st.randoms())
def test_the_order_of_modules_does_not_matter(name: str, modules: list[str], random: Any) -> None:
    mixed = list(modules)
    random.shuffle(mixed)
    found = module_of(name, tuple(modules))
    assert found == module_of(name, tuple(mixed))
    assert found is None or found in modules


# --- merges ----------------------------------------------------------------------------------------------------------------

MODULES = """
modules:
  text_decoder:
    models:
      - {model: a}
      - {model: b, parameters: {weight: [{filter: lm_head, value: 2}, {value: [0, 3]}]}}
    parameters: {weight: 1}
  vision_tower:
    models: [{model: a}, {model: c, parameters: {weight: [1, 0]}}]
  multi_modal_projector:
    models: [{model: b}]
merge_method: linear
parameters: {weight: 4, normalize: false}
"""


def test_each_module_has_its_own_parameters(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Gradients go over the layers of the module: 0, 1, 2, 3 over four of text, 1, 1/2, 0 over three of vision."""
    a, b, c = models("a", "b", "c")
    expected = {text(number): a[text(number)] + number * b[text(number)] for number in range(4)}
    expected |= {EMBED: a[EMBED], NORM: a[NORM], HEAD: a[HEAD] + 2 * b[HEAD]}  # in no layer: the gradient's first
    expected |= {vision(number): 4 * a[vision(number)] + (1 - number / 2) * c[vision(number)] for number in range(3)}
    expected |= {PATCH: 4 * a[PATCH] + c[PATCH], MERGER: 4 * b[MERGER], DEEPSTACK: 4 * b[DEEPSTACK]}
    merge(MergeConfig(recipe_yaml=MODULES, output_path="out", dry_run=True), progress=False)
    said = capsys.readouterr().out
    assert "module   text_decoder: 7 tensors, 4 layers of model.language_model.layers\n" in said
    assert "module   multi_modal_projector: 2 tensors\n" in said
    out = made(MODULES, account="account.json")
    assert out.keys() == expected.keys() == a.keys()
    for name, values in expected.items():
        np.testing.assert_allclose(out[name], values, rtol=1e-6, atol=1e-6)
    config = json.loads(Path("out/config.json").read_text())
    assert (config["text_config"]["num_hidden_layers"], config["vision_config"]["depth"]) == (4, 3)
    assert verify("out", None, 1, False, progress=False).off == []
    inputs = {one["path"]: one for one in json.loads(Path("account.json").read_text())["inputs"]}
    left_out = {path: {row["name"] for row in one["each"] if "left_out" in row} for path, one in inputs.items()}
    texts, visions = {*map(text, range(4)), EMBED, NORM, HEAD}, {*map(vision, range(3)), PATCH}
    whys = {row["left_out"] for one in inputs.values() for row in one["each"] if "left_out" in row}
    assert whys == {"the recipe takes this module of other models"}
    assert left_out == {"a": {MERGER, DEEPSTACK}, "b": visions, "c": texts | {MERGER, DEEPSTACK}}


def test_what_is_recorded_repeats_it(here: Path) -> None:
    made(MODULES)
    again = MergeConfig.from_mapping(MergeConfig.from_file("out/merge_config.json"))
    again.output_path = "again"
    merge(again, progress=False)
    assert Path("again/model.safetensors").read_bytes() == Path("out/model.safetensors").read_bytes()


SLICED = """
modules:
  vision_tower:
    models: [{model: a}]
  text_decoder:
    slices:
      - sources: [{model: a, layer_range: [0, 3]}]
      - sources: [{model: b, layer_range: [1, 4]}]
        parameters: {scale: [{filter: up_proj, value: 2}]}
    parameters: {scale: [{filter: lm_head, value: 0.5}, {value: 1}]}
merge_method: passthrough
"""


def test_slices_of_one_module(here: Path) -> None:
    a, b = models("a", "b")
    expected = {text(number): a[text(number)] for number in range(3)}
    expected |= {text(number): 2 * b[text(number - 2)] for number in range(3, 6)}
    expected |= {EMBED: a[EMBED], NORM: b[NORM], HEAD: b[HEAD] / 2}
    expected |= {name: a[name] for name in (PATCH, MERGER, DEEPSTACK, *map(vision, range(3)))}
    out = made(SLICED)
    assert out.keys() == expected.keys()
    for name, values in expected.items():
        np.testing.assert_allclose(out[name], values, rtol=1e-6)
    config = json.loads(Path("out/config.json").read_text())
    assert config["text_config"]["num_hidden_layers"] == 6
    assert config["text_config"]["layer_types"] == ["type0", "type1", "type2", "type1", "type2", "type3"]
    assert config["vision_config"] == {"depth": 3, "deepstack_visual_indexes": [0]}
    assert "num_hidden_layers" not in config


def test_slices_of_vision(here: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Of models of different depth; the base is subtracted from the same layers of the module."""
    recipe = """
modules:
  text_decoder: {models: [{model: a}]}
  vision_tower:
    slices: [{sources: [{model: deep, layer_range: [3, 5]}, {model: c, layer_range: [0, 2]}]}]
merge_method: task_arithmetic
base_model: c
parameters: {weight: 0.5}
"""
    a, c, deep = models("a", "c", "deep")
    out = made(recipe)
    for number in range(2):
        np.testing.assert_allclose(
            out[vision(number)], (deep[vision(number + 3)] + c[vision(number)]) / 2, rtol=1e-5, atol=1e-6
        )
    np.testing.assert_allclose(out[text(3)], (a[text(3)] + c[text(3)]) / 2, rtol=1e-5, atol=1e-6)
    assert vision(2) not in out
    config = json.loads(Path("out/config.json").read_text())
    assert (config["text_config"]["num_hidden_layers"], config["vision_config"]["depth"]) == (4, 2)
    assert config["vision_config"]["deepstack_visual_indexes"] == []  # it was layer 0, which isn't among them


def test_modules_in_a_merge_that_another_takes(here: Path) -> None:
    """As if it had been written in between."""
    last = "models: [{{model: {}}}, {{model: c}}]\nmerge_method: linear\nparameters: {{weight: 1}}"
    made(MODULES, "first")
    made(last.format("first"), "written")
    made(f"name: x\n{MODULES}---\n{last.format('x')}", "staged")
    assert Path("staged/model.safetensors").read_bytes() == Path("written/model.safetensors").read_bytes()


@pytest.mark.parametrize("recipe", [MODULES, SLICED])
def test_what_is_written_is_what_was_read(recipe: str) -> None:
    read_once = parse(recipe, "r").recipe
    again = parse(to_yaml(read_once), "r").recipe
    assert again.slices == read_once.slices
    assert (again.settings, again.models) == (read_once.settings, read_once.models)


@given(st.text(max_size=40), st.integers(0, 400))
def test_no_text_in_it_breaks_the_reader(text: str, place: int) -> None:
    try:
        told = parse(MODULES[:place] + text + MODULES[place:], "r")
    except ConfigError as error:
        told, problems = None, error.problems
    if told is None:
        assert all(sentence.startswith("r:") for sentence in problems)
    else:
        assert parse(to_yaml(told.recipe), "r").recipe.slices == told.recipe.slices


def test_one_module_has_all_tensors(here: Path) -> None:
    told = parse("modules: {any: {models: [{model: a}, {model: b}], parameters: {weight: 2}}}\nmerge_method: linear", "r")
    assert told.notes == ("r:1:11: the only module merges all tensors, whatever its name is",)
    assert told.recipe.slices[0].module is None


# --- mistakes --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("recipe", "problems"),
    [
        ("modules: {}\nmerge_method: linear", ["r.yaml:1:10: modules is empty"]),
        (
            "modules: [a]\nmerge_method: linear",
            ["r.yaml:1:10: modules must be a mapping of names to values", "r.yaml:1:10: modules is"],
        ),
        (
            "modules:\n  x: {models: [{model: a}]}\n  x: {models: [{model: a}]}\nmerge_method: linear",
            ["r.yaml:3:3: key 'x' stands twice"],
        ),
        (
            "modules:\n  x: {}\n  y: {models: [], slices: []}\nmerge_method: linear",
            ["r.yaml:2:6: module 'x' must have models or slices", "r.yaml:3:6: module 'y' must have models or slices"],
        ),
        (
            "modules:\n  x: {models: [{model: a}], base: c}\n  y: {slices: [{sources: [{model: a}]}]}\n"
            "merge_method: passthrough",
            ["r.yaml:2:29: unknown key 'base'", "r.yaml:3:27: layer_range is missing"],
        ),
        (
            "modules:\n  x: {models: [{model: a}], parameters: {t: x}}\n  y: {models: [{model: a}]}\n"
            "merge_method: slerp\nbase_model: b",
            ["r.yaml:2:45: parameter 't' must be a number below 1e30, not 'x'"],
        ),
        (
            "modules:\n  x: {models: [{model: a}]}\n  y: {models: [{model: a}, {model: b}]}\nmerge_method: passthrough",
            ["r.yaml:3:15: passthrough takes 1 model, not 2"],
        ),
    ],
)
def test_mistakes_by_line_and_column(recipe: str, problems: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(recipe, "r.yaml")
    assert len(caught.value.problems) == len(problems)
    for said, expected in zip(caught.value.problems, problems, strict=True):
        assert said.startswith(expected)


def refused(recipe: str) -> list[str]:
    Path("r.yaml").write_text(recipe)
    with pytest.raises(CheckpointError) as caught:
        merge(MergeConfig(recipe_yaml="r.yaml", output_path="out"), progress=False)
    assert not Path("out").exists()
    return caught.value.problems


def whole(*names: str) -> str:
    rows = "".join(f"  {name}: {{models: [{{model: a}}, {{model: b}}]}}\n" for name in names)
    return f"modules:\n{rows}merge_method: linear\nparameters: {{weight: 1}}\n"


def test_tensors_that_belong_to_no_module(here: Path) -> None:
    assert refused(whole("text_decoder", "multi_modal_projector")) == [
        f"r.yaml:2:3: tensor {PATCH!r} (and 7 more) of a belongs to none of text_decoder, multi_modal_projector; add"
        " vision_tower, or default, which takes what is in no other"
    ]
    assert refused(whole("vision_tower", "multi_modal_projector")) == [
        f"r.yaml:2:3: tensor {EMBED!r} (and 13 more) of a belongs to none of vision_tower, multi_modal_projector; add"
        " text_decoder, or default, which takes what is in no other"
    ]


def test_tensors_that_belong_to_two(here: Path) -> None:
    assert refused(whole("text_decoder", "language_model", "visual")) == [
        f"r.yaml:2:3: tensor {HEAD!r} (and 1 more) of a belongs to text_decoder and language_model alike; leave one of them"
        " out"
    ]


def test_modules_that_no_tensor_belongs_to(here: Path) -> None:
    assert refused(whole("text_decoder", "vision_twoer", "visual")) == [
        f"r.yaml:3:3: {path} has no tensor of a module 'vision_twoer'; did you mean 'vision_tower'?; it has text_decoder,"
        " vision_tower, multi_modal_projector, and a module may also be called as its tensors' names begin"
        for path in "ab"
    ]


def test_slices_without_modules_say_how_to_write_them(here: Path) -> None:
    recipe = "slices: [{{sources: [{{model: {}, layer_range: [0, 2]}}]}}]\nmerge_method: passthrough\n"
    assert refused(recipe.format("a")) == [
        "a: layer_range needs a model of one stack of layers, and it has model.language_model.layers, model.visual.blocks;"
        " write slices below a module, as in modules: {text_decoder: {slices: ...}, vision_tower: {models: ...}}"
    ]
    write(here / "t5", {f"{one}.block.0.layer.0.w": np.ones(2) for one in ("encoder", "decoder")})
    (problem,) = refused(recipe.format("t5"))
    assert problem.endswith("as in modules: {encoder: {slices: ...}, decoder: {models: ...}}")


def test_slices_of_a_module_that_can_not_be(here: Path) -> None:
    sliced = "{}: {{slices: [{{sources: [{{model: a, layer_range: {}}}]}}]}}"
    recipe = f"modules:\n  text_decoder: {{{{models: [{{{{model: a}}}}]}}}}\n  {sliced}\n"
    rest = "merge_method: passthrough\n"
    assert refused(recipe.format("vision_tower", "[1, 4]") + rest) == [
        "r.yaml:3:3: a: has no layer 3 of model.visual.blocks; it has 3, counted from 0"
    ]
    (problem,) = refused(
        recipe.format("multi_modal_projector", "[0, 1]") + "  vision_tower: {models: [{model: a}]}\n" + rest
    )
    assert problem == (
        "r.yaml:3:3: a: layer_range needs a model of one stack of layers, and it has none in module 'multi_modal_projector';"
        " merge it whole, with models instead of slices"
    )


def test_modules_of_models_that_do_not_match(here: Path) -> None:
    recipe = (
        "modules:\n  text_decoder: {models: [{model: a}, {model: b}]}\n  visual: {models: [{model: a}, {model: deep}]}\n"
    )
    problems = refused(recipe + "merge_method: linear\nparameters: {weight: 1}\n")
    assert problems == [f"tensors {vision(3)!r} and {vision(4)!r} are missing in a (they are in deep)"]


@pytest.mark.parametrize(
    ("stack", "config", "expected", "worried"),
    [
        ("decoder.layers", {"decoder_layers": 4, "encoder_layers": 4}, {"decoder_layers": 2, "encoder_layers": 4}, False),
        ("decoder.layers", {"num_decoder_layers": 4, "num_layers": 4}, {"num_decoder_layers": 2, "num_layers": 4}, False),
        ("encoder.block", {"num_decoder_layers": 4, "num_layers": 4}, {"num_decoder_layers": 4, "num_layers": 2}, False),
        ("vision_tower.layers", {"num_hidden_layers": 4}, {"num_hidden_layers": 4}, True),
        ("model.visual.blocks", {"vision_config": {"depth": 4}}, {"vision_config": {"depth": 2}}, False),
        (
            "visual.blocks",
            {"depth": 4, "vision_config": {"num_hidden_layers": 4, "layer_types": list("wxyz")}},
            {"depth": 4, "vision_config": {"num_hidden_layers": 2, "layer_types": ["x", "y"]}},
            False,
        ),
    ],
)
def test_where_layers_are_counted(
    here: Path, caplog: pytest.LogCaptureFixture, stack: str, config: Any, expected: Any, worried: bool
) -> None:
    """Layers 1 and 2 of four."""
    other = "encoder.block" if stack.startswith("decoder") else "decoder.layers"
    names = [f"{one}.{number}.mlp.weight" for one in (stack, other) for number in range(4)]
    write(here / "m", {name: np.ones((2, 3)) for name in names}, config=config)
    sliced = f"{stack.rpartition('.')[0]}: {{slices: [{{sources: [{{model: m, layer_range: [1, 3]}}]}}]}}"
    rest = f"{other.partition('.')[0]}: {{models: [{{model: m}}]}}"
    out = made(f"modules: {{{sliced}, {rest}}}\nmerge_method: passthrough\n")
    assert len(out) == 6
    told = json.loads(Path("out/config.json").read_text())
    assert {name: told[name] for name in expected} == expected
    sentence = f"config.json doesn't give the number of layers of {stack} where it was expected; set it to 2"
    assert (sentence in caplog.text) == worried


def test_the_language_part_without_a_word_of_its_own_beside_default(here: Path) -> None:
    """Qwen2-VL's model.layers and visual.blocks, with the language model that it was made of."""
    language = {"model.layers.0.mlp.up_proj.weight": np.ones((3, 2)), "lm_head.weight": np.ones((4, 2))}
    rest = {"visual.blocks.0.attn.proj.weight": np.ones((2, 2)), "vpm.layers.0.w.weight": np.ones((2, 2))}
    write(here / "vl", language | rest)
    write(here / "math", {name: values + 2 for name, values in language.items()})
    out = made(
        "modules:\n  text_decoder: {models: [{model: vl}, {model: math}]}\n  default: {models: [{model: vl}]}\n"
        "merge_method: linear\nparameters: {weight: 1}\n"
    )
    assert {name: values.mean() for name, values in out.items()} == dict.fromkeys(language, 2.0) | dict.fromkeys(rest, 1.0)
