"""Test the replacements of PaddleNLP's classes and scripts. Expected numbers are worked out by hand."""

from __future__ import annotations

import dataclasses
import json
import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import paddle_merge
from paddle_merge import CheckpointError, merge
from paddle_merge import MergeConfig as OurConfig
from paddle_merge.backends.engine import import_paddle
from paddle_merge.commands.verify.verify import verify
from paddle_merge.compat.config import MergeConfig
from paddle_merge.compat.model import MergeModel
from paddle_merge.compat.scripts import NAMES, merge_lora_params, mergekit
from paddle_merge.compat.tensors import MergeMethod, SparsifyMethod
from paddle_merge.recipe.fields import Fields
from tests.conversion import test_layout
from tests.conversion.lora import test_lora
from tests.conversion.test_layout import State, laid_out
from tests.support.checkpoints import read, write

ROOT = Path(__file__).parents[2]
# PaddleNLP 3.0.0b4's constructor, in order.
PADDLENLP = [
    "tensor_type", "n_process", "merge_prefix", "merge_method", "merge_type", "sparsify_type", "split_pieces",
    "max_tensor_mem", "model_path_list", "model_path_str", "base_model_path", "output_path", "lora_model_path",
    "copy_file_list", "weight_list", "normalize", "slerp_alpha", "slerp_normalize_eps", "slerp_dot_threshold",
    "ties_elect_type", "rescale", "reserve_p", "epsilon",
]  # fmt: skip
# Two task vectors, to be weighted (3, 1).
DELTAS = [np.array([0.5, -0.25, 0.125, -1]), np.array([-0.25, -0.75, 0.375, 0.5])]


@pytest.fixture
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Folders a, b, c and base in the working directory, with the task vectors above for a and b."""
    monkeypatch.chdir(tmp_path)
    base = np.array([1, -2, 0.5, 4])
    for name, delta in {"a": DELTAS[0], "b": DELTAS[1], "c": np.zeros(4), "base": np.zeros(4)}.items():
        write(tmp_path / name, {"w": base + delta})
    return tmp_path


def merged(**fields: Any) -> np.ndarray:
    MergeModel(MergeConfig(output_path="out", **fields)).merge_model()
    return read(Path("out"))["w"]


# --- MergeConfig


def test_fields_stand_where_paddlenlp_has_them() -> None:
    assert [item.name for item in dataclasses.fields(MergeConfig)][: len(PADDLENLP)] == PADDLENLP
    config = MergeConfig("pd", 2, "master_weights", "ties")
    assert (config.tensor_type, config.n_process, config.merge_prefix, config.merge_method) == (
        "pd",
        2,
        "master_weights",
        "ties",
    )


def test_defaults_are_paddlenlps() -> None:
    config = MergeConfig()
    assert (config.merge_method, config.merge_type, config.sparsify_type) == ("linear", "linear", None)
    ours = Fields()
    others = set(NAMES) - {"merge_method", "merge_type", "device", "n_process"}
    assert {name: getattr(config, name) for name in others} == {name: getattr(ours, name) for name in others}


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"tensor_type": "tf"}, "tensor_type 'tf' must be np or pd"),
        ({"merge_method": "linaer"}, "merge_method 'linaer' must be one of .*; did you mean 'linear'?"),
        ({"merge_method": None, "merge_type": None}, "either merge_method or merge_type must be given"),
        ({"model_path_list": ["a"]}, "model_path_list needs at least two models, not \\['a'\\]"),
        ({"model_path_str": "a,"}, "model_path_list needs at least two models, not \\['a'\\]"),
        ({"model_path_list": ["a", "b"], "weight_list": [1]}, "weight_list has 1 numbers for 2 models"),
        ({"reserve_p": 1.1}, "reserve_p 1.1 must lie between 0 and 1"),
        ({"merge_method": "della", "reserve_p": 0.05}, "--epsilon 0.14 with --reserve_p 0.05"),
        ({"sparsify_type": "magprune", "reserve_p": 0.8, "epsilon": 0.8}, "--epsilon 0.8 with --reserve_p 0.8"),
        ({"lora_model_path": "lora"}, "lora_model_path needs base_model_path"),
        ({"n_process": "two"}, "--n_process must be a whole number or auto, not 'two'"),
    ],
)
def test_what_paddlenlp_refuses_is_refused_and_leaves_nothing(fields: dict[str, Any], sentence: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=sentence) as raised:
        MergeConfig(output_path=str(tmp_path / "out"), **fields)
    assert isinstance(raised.value, paddle_merge.ConfigError)
    assert not (tmp_path / "out").exists()


def test_problems_come_together() -> None:
    with pytest.raises(paddle_merge.ConfigError) as raised:
        MergeConfig(merge_method="x", model_path_list=["a"], reserve_p=2)
    assert len(raised.value.problems) == 3


def test_what_follows_from_other_fields_is_filled_in(tmp_path: Path) -> None:
    config = MergeConfig(model_path_str="a, b,c", normalize=False, output_path=str(tmp_path / "x" / "out"))
    assert config.model_path_list == ["a", "b", "c"]
    assert config.weight_list == [1.0, 1.0, 1.0]
    assert config.normalize is True
    assert (tmp_path / "x" / "out").is_dir()
    assert MergeConfig(model_path_list=["a", "b"], weight_list=[1, 1], normalize=False).normalize is False


def test_a_probability_range_that_paddlenlp_refuses_by_mistake_is_welcome() -> None:
    """0.9 +- 0.07 lies between 0 and 1."""
    assert MergeConfig(merge_method="della", reserve_p=0.9).epsilon == 0.14


def test_saved_and_loaded_it_is_the_same(tmp_path: Path) -> None:
    config = MergeConfig(merge_method="dare_ties", model_path_list=["a", "b"], weight_list=[0.5, 2], reserve_p=0.3)
    config.save_pretrained(str(tmp_path / "saved"))
    assert MergeConfig.from_pretrained(str(tmp_path / "saved")) == config
    assert MergeConfig.from_pretrained(str(tmp_path / "saved"), reserve_p=0.4) == dataclasses.replace(config, reserve_p=0.4)
    assert MergeConfig.from_json_file(str(tmp_path / "saved" / "merge_config.json")) == config.to_dict() == vars(config)
    with pytest.raises(ValueError, match="holds no merge_config"):
        MergeConfig.from_pretrained(str(tmp_path))
    with pytest.raises(AssertionError, match="is a file"):
        config.save_pretrained(str(tmp_path / "saved" / "merge_config.json"))


def test_null_means_not_given(tmp_path: Path) -> None:
    saved = {"merge_method": "ties", "merge_type": None, "weight_list": None, "n_process": None, "sparsify_type": "None"}
    (tmp_path / "merge_config.json").write_text(json.dumps({**saved, "unheard_of": 1}))
    config = MergeConfig.from_pretrained(str(tmp_path), model_path_list=["a", "b"])
    assert (config.n_process, config.weight_list, config.sparsify_type) == (1, [1.0, 1.0], None)


def test_the_record_of_a_merge_loads_unless_it_says_what_paddlenlp_cannot(models: Path) -> None:
    fields: dict[str, Any] = {"model_path_list": ["a", "b"], "merge_method": "ties", "base_model_path": "base"}
    first = merged(**fields)
    config = MergeConfig.from_pretrained("out")
    config.output_path = "again"
    MergeModel(config).merge_model()
    assert (read(Path("again"))["w"] == first).all()
    paddle_merge.merge(paddle_merge.MergeConfig(**fields, scale=0.5, output_path="scaled"))
    with pytest.raises(paddle_merge.ConfigError, match="PaddleNLP has no field scale"):
        MergeConfig.from_pretrained("scaled")


# --- MergeModel


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, [1.125, -2.5, 0.75, 3.75]),
        ({"merge_method": "linear", "weight_list": [3, 1]}, [1.3125, -2.375, 0.6875, 3.375]),
        ({"merge_method": "ties", "weight_list": [3, 1], "reserve_p": 0.5}, [1.625, -3.125, 0.5, 2.75]),
        (
            {"merge_method": None, "merge_type": "ties", "sparsify_type": "trim", "weight_list": [3, 1], "reserve_p": 0.5},
            [1.625, -3.125, 0.5, 2.75],
        ),
        ({"merge_method": "ties", "reserve_p": 0.5, "rescale": False, "weight_list": [3, 1]}, [1.5, -2.75, 0.5, 3]),
        ({"merge_method": "slerp", "weight_list": [3, 1], "slerp_dot_threshold": 0.0}, [1.125, -2.5, 0.75, 3.75]),
    ],
    ids=["default", "linear", "ties", "by types", "no rescale", "slerp"],
)
def test_merges_as_the_config_says(fields: dict[str, Any], expected: list[float], models: Path) -> None:
    assert merged(model_path_list=["a", "b"], base_model_path="base", **fields).tolist() == expected
    assert (models / "out" / "config.json").exists()


def test_an_earlier_merge_and_files_of_the_script_do_not_stand_in_the_way(models: Path) -> None:
    first = merged(model_path_list=["a", "b"])
    (models / "out" / "notes.txt").write_text("kept")
    second = merged(model_path_list=["a", "c"])
    assert (first != second).any()
    assert (models / "out" / "notes.txt").read_text() == "kept"


def test_a_model_can_be_reset(models: Path) -> None:
    config = MergeConfig(model_path_str="a,b", output_path="out")
    model = MergeModel(config)
    assert not model.is_peft
    model.reset_merge_model(merge_param_dict={"merge_method": "ties", "model_path_list": ["a", "b", "c"]})
    assert model.merge_config is config is model.merge_method.merge_config
    assert (config.sparsify_type, config.merge_type, config.weight_list) == ("trim", "ties", [1.0, 1.0, 1.0])
    model.merge_model()
    model.reset_merge_model(MergeConfig(model_path_list=["c", "c"], output_path="out"))
    model.merge_model()
    assert read(models / "out")["w"].tolist() == [1, -2, 0.5, 4]
    with pytest.raises(ValueError, match="'merge_mehtod' is not a field"):
        model.reset_merge_model(merge_param_dict={"merge_mehtod": "ties"})
    with pytest.raises(ValueError, match="reserve_p 3"):
        model.reset_merge_model(merge_param_dict={"reserve_p": 3})


def test_what_has_no_effect_is_said(models: Path, caplog: pytest.LogCaptureFixture) -> None:
    MergeModel(MergeConfig(merge_type="ties"))
    assert "merge_method 'linear' takes precedence" in caplog.text
    caplog.clear()
    MergeModel(MergeConfig(merge_method="slerp", model_path_list=["a", "b"], weight_list=[1, 2]))
    assert "slerp uses slerp_alpha" in caplog.text
    caplog.clear()
    MergeModel(MergeConfig(merge_method="ties", model_path_list=["a", "b"]))
    assert caplog.text == ""


def test_files_are_copied_where_they_are(models: Path, caplog: pytest.LogCaptureFixture) -> None:
    for folder, text in (("a", "of a"), ("base", "of base")):
        (models / folder / "extra.txt").write_text(text)
    fields: dict[str, Any] = {"model_path_list": ["a", "b"], "copy_file_list": ["extra.txt", "absent.txt"]}
    merged(**fields)
    assert (models / "out" / "extra.txt").read_text() == "of a"
    assert "absent.txt is not in a" in caplog.text
    model = MergeModel(MergeConfig(**fields, base_model_path="base", output_path="other"))
    model.copy_file()
    assert (models / "other" / "extra.txt").read_text() == "of base"


def test_missing_and_different_models_are_value_errors_too(models: Path) -> None:
    with pytest.raises(ValueError, match="nowhere"):
        merged(model_path_list=["a", "nowhere"])
    write(models / "odd", {"w": np.zeros(5)})
    with pytest.raises(ValueError, match="'w'"):
        merged(model_path_list=["a", "odd"])
    assert os.listdir("out") == []


@pytest.fixture
def adapted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> State:
    """A folder with a base in PaddleNLP's layout and in Hugging Face's, and an adapter; what they make, in the latter."""
    base, pairs = test_layout.llama(0), test_lora.factors(1)
    for layout in ("paddlenlp", "hf"):
        test_layout.stored(tmp_path / layout, base, layout, dtype="float64")
    test_lora.paddle(tmp_path / "lora", test_lora.in_paddle(pairs, "llama"))
    monkeypatch.chdir(tmp_path)
    return test_lora.folded(base, pairs)


@pytest.mark.parametrize("model", ["hf", "paddlenlp"])
def test_a_lora_that_was_never_trained_is_folded_with_a_warning(
    adapted: State, model: str, caplog: pytest.LogCaptureFixture
) -> None:
    """PaddleFormers' own test of MergeModel folds an adapter right after making it, with lora_B zero. The record repeats the
    merge, and opens in compat again; the command refuses it without a flag."""
    pairs = {name: (a, np.zeros_like(b)) for name, (a, b) in test_lora.factors(1).items()}
    test_lora.paddle(Path("new"), test_lora.in_paddle(pairs, "llama"))
    MergeModel(MergeConfig(lora_model_path="new", base_model_path=model, output_path="out")).merge_model()
    assert "new: changes nothing: every lora_B is zero, as before training; was it saved too early?" in caplog.text
    before, after = read(Path(model)), read(Path("out"))
    assert before.keys() == after.keys()
    for name, values in before.items():
        np.testing.assert_array_equal(after[name], values)
    again = OurConfig.from_mapping({**OurConfig.from_file("out/merge_config.json"), "output_path": "again"})
    merge(again, progress=False)
    assert not verify("out", sample=None, n_process=1, tolerant=False, progress=False).off
    assert MergeConfig.from_pretrained("out").lora_model_path is not None
    assert script(merge_lora_params, "--model_name_or_path", model, "--lora_path", "new", "--output_path", "out2") == 0
    flags = {"lora_model_path": "new", "base_model_path": model, "output_path": "refused"}
    with pytest.raises(CheckpointError, match="was it saved too early\\? --allow_untrained folds it nevertheless"):
        merge(OurConfig(**flags), progress=False)
    merge(OurConfig(**flags, allow_untrained=True), progress=False)


def test_a_lora_is_folded(adapted: State) -> None:
    MergeModel(MergeConfig(lora_model_path="lora", base_model_path="paddlenlp", output_path="out")).merge_model()
    test_lora.close(read(Path("out")), laid_out(adapted, "paddlenlp"))


def test_small_device_memory_and_split_pieces_are_no_obstacle(models: Path) -> None:
    assert merged(model_path_list=["a", "b"], max_tensor_mem=0.001, split_pieces=4).shape == (4,)


@pytest.mark.exhaustive
def test_pd_computes_where_paddle_is_set_to(models: Path) -> None:
    config = MergeConfig(model_path_list=["a", "b"], tensor_type="pd", output_path="out")
    assert config.ours().device == import_paddle().device.get_device()
    MergeModel(config).merge_model()
    assert read(models / "out")["w"].tolist() == [1.125, -2.5, 0.75, 3.75]


# --- MergeMethod and SparsifyMethod


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"merge_type": "linear"}, [0.3125, -0.375, 0.1875, -0.625]),
        ({"merge_type": "linear", "normalize": False}, [1.25, -1.5, 0.75, -2.5]),
        ({"merge_type": "ties"}, [0.5, -0.375, 0.1875, -1]),
        ({"merge_type": "ties", "normalize": False}, [1.5, -1.5, 0.75, -3]),
        ({"merge_type": "ties", "ties_elect_type": "count"}, [0.5, -0.375, 0.1875, 0.5]),
        ({"merge_type": "slerp", "slerp_dot_threshold": 0.0}, [0.125, -0.5, 0.25, -0.25]),
    ],
)
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_tensors_merge(fields: dict[str, Any], expected: list[float], dtype: str) -> None:
    config = MergeConfig(weight_list=[3, 1], **fields)
    tensors = [delta.astype(dtype).reshape(2, 2) for delta in DELTAS]
    result = MergeMethod(config).merge(tensors)
    assert result.dtype == dtype
    assert result.tolist() == np.array(expected).reshape(2, 2).tolist()
    assert (getattr(MergeMethod(config), fields["merge_type"])(tensors) == result).all()
    assert (tensors[0].reshape(-1) == DELTAS[0]).all()


def test_arrays_of_a_derived_class() -> None:
    class Weights(np.ndarray):
        """An array of another library."""

    arrays = [np.ones(2, "float32"), np.full(2, 3, "float32").view(Weights)]
    result = MergeMethod(MergeConfig(model_path_list=["a", "b"], merge_type="linear")).merge(arrays)
    assert result.tolist() == [2, 2]


def test_slerp_turns_by_the_angle() -> None:
    """Half way between (2, 0) and (0, 4), 90 degrees apart: both times sin 45 / sin 90."""
    result = MergeMethod(MergeConfig(merge_type="slerp")).merge([np.array([2.0, 0]), np.array([0, 4.0])])
    assert result == pytest.approx([2**0.5, 8**0.5], rel=1e-15)
    with pytest.raises(ValueError, match="slerp merges two models, not 3"):
        MergeMethod(MergeConfig(merge_type="slerp")).merge([np.ones(2)] * 3)


def test_trim_keeps_the_largest_and_their_norm() -> None:
    tensor = DELTAS[0].astype(np.float32).reshape(2, 2)
    config = MergeConfig(sparsify_type="trim", reserve_p=0.5)
    assert SparsifyMethod(config).sparsify(tensor).tolist() == [[0.625, 0], [0, -1.25]]
    config.rescale = False
    assert SparsifyMethod(config).trim(tensor).tolist() == [[0.5, 0], [0, -1]]
    assert SparsifyMethod(MergeConfig()).sparsify(tensor) is tensor


@pytest.mark.parametrize("kind", ["dare", "magprune"])
def test_masks_are_new_for_each_call_and_the_same_in_each_run(kind: str) -> None:
    tensor = np.random.default_rng(0).standard_normal((100, 200)).astype(np.float32)
    config = MergeConfig(sparsify_type=kind, reserve_p=0.7)
    method = SparsifyMethod(config)
    first, second = method.sparsify(tensor), method.sparsify(tensor)
    assert ((first != 0) != (second != 0)).mean() == pytest.approx(2 * 0.7 * 0.3, abs=0.03)
    again = SparsifyMethod(config)
    assert (again.sparsify(tensor) == first).all()
    assert (getattr(again, kind)(tensor) == second).all()
    assert (SparsifyMethod(dataclasses.replace(config, seed=1)).sparsify(tensor) != first).any()
    assert (first != 0).mean() == pytest.approx(0.7, abs=0.02)
    assert first.mean(dtype=np.float64) == pytest.approx(tensor.mean(dtype=np.float64), abs=0.02)
    if kind == "dare":
        kept = first != 0
        assert first[kept] == pytest.approx(tensor[kept] / 0.7)


def test_a_method_sparsifies_each_tensor_first() -> None:
    config = MergeConfig(merge_type="ties", sparsify_type="trim", weight_list=[3, 1], reserve_p=0.5)
    result = MergeMethod(config, SparsifyMethod(config)).merge(DELTAS)
    assert result.tolist() == [0.625, -1.125, 0, -1.25]


def test_paddle_tensors_stay_paddle_tensors() -> None:
    paddle = import_paddle()
    config = MergeConfig(tensor_type="pd", merge_type="ties", sparsify_type="trim", weight_list=[3, 1], reserve_p=0.5)
    tensors = [paddle.to_tensor(delta, dtype="bfloat16") for delta in DELTAS]
    result = MergeMethod(config, SparsifyMethod(config)).merge(tensors)
    assert result.dtype == paddle.bfloat16
    assert result.astype("float32").tolist() == [0.625, -1.125, 0, -1.25]
    with pytest.raises(CheckpointError, match=r"tensors of different libraries, where one is needed: paddle, numpy$"):
        MergeMethod(config).merge([tensors[0], np.ones(4, "float32")])


@pytest.mark.parametrize(
    ("tensors", "fields", "error", "sentence"),
    [
        ([np.ones(2), np.ones(3)], {}, ValueError, "tensors of different shapes, where one is needed: \\[2\\], \\[3\\]"),
        ([np.ones(2), np.ones(2, "float16")], {}, ValueError, "different dtypes, where one is needed: float64, float16$"),
        ([np.ones(2)], {}, ValueError, "at least two tensors"),
        ([np.ones(2)] * 3, {"weight_list": [1, 2]}, ValueError, "weight_list has 2 numbers for 3"),
        ([np.ones(2, int)] * 2, {}, ValueError, "tensor_list\\[0\\] is int64, which can't be merged"),
        ([[1.0], [2.0]], {}, ValueError, "tensor_list\\[0\\] is list"),
        ([np.ones(2)] * 2, {"merge_type": "krum"}, NotImplementedError, "'krum' must be one of"),
    ],
)
def test_tensors_that_cannot_be_merged(tensors: list[Any], fields: Any, error: Any, sentence: str) -> None:
    with pytest.raises(error, match=sentence):
        MergeMethod(MergeConfig(**fields)).merge(tensors)


# --- the scripts


def script(main: Any, *argv: str) -> int:
    try:
        main(list(argv))
    except SystemExit as exit:
        return int(exit.code or 0)
    return 0


def test_the_script_takes_paddlenlps_spellings(models: Path) -> None:
    flags = "--merge_m ties --model_path_l a b --base base --weight_ 3 1 --reserve 0.5 --no_resc --norm yes --output out"
    assert script(mergekit, *flags.split()) == 0
    assert read(models / "out")["w"].tolist() == [1.5, -2.75, 0.5, 3]


def test_the_script_takes_a_json_file_that_flags_override(models: Path) -> None:
    config = MergeConfig(merge_method="ties", model_path_str="a,b", base_model_path="base", output_path="first")
    config.save_pretrained(".")
    assert json.loads(Path("merge_config.json").read_text())["merge_type"] == "linear"  # ties decides all the same
    assert script(mergekit, "merge_config.json", "--model_path_list", "a", "a") == 0
    assert "ties" in Path("first/README.md").read_text()
    assert read(models / "first")["w"].tolist() != read(models / "a")["w"].tolist()  # trimmed
    assert (
        script(mergekit, "merge_config.json", "--merge_method", "linear", "--weight_list", "1", "0", "--output", "a2") == 0
    )
    assert read(models / "a2")["w"].tolist() == read(models / "a")["w"].tolist()
    assert script(mergekit, "merge_config.json", "--sparsify_type", "None", "--output_path", "nothing said") == 0
    assert "ties" in Path("nothing said/README.md").read_text()


def test_types_on_the_command_line_are_meant(models: Path) -> None:
    flags = ["--merge_type", "ties", "--sparsify_type", "trim", "--reserve_p", "0.5", "--weight_list", "3", "1"]
    assert script(mergekit, *flags, "--model_path_list", "a", "b", "--base_model_path", "base", "--output_path", "out") == 0
    assert read(models / "out")["w"].tolist() == [1.625, -3.125, 0.5, 2.75]


@pytest.mark.parametrize("method", [{}, {"merge_method": None}])
def test_types_in_a_file_are_meant(models: Path, method: dict[str, None]) -> None:
    fields = {"merge_type": "ties", "sparsify_type": "trim", "reserve_p": 0.5, "weight_list": [3, 1], **method}
    paths = {"model_path_list": ["a", "b"], "base_model_path": "base", "output_path": "out"}
    Path("types.json").write_text(json.dumps(fields | paths))
    assert script(mergekit, "types.json") == 0
    assert read(models / "out")["w"].tolist() == [1.625, -3.125, 0.5, 2.75]


@pytest.mark.parametrize(
    ("argv", "sentence"),
    [
        (["--model_path_list", "a", "--output_path", "out"], "model_path_list needs at least two models"),
        (["--merge", "ties"], "unknown flag --merge; did you mean"),  # _method, _type or _prefix
        (["--output_path", "out", "--scale", "2"], "PaddleNLP has no field scale"),
        (["nothere.json"], "nothere.json: can't be read"),
    ],
)
def test_the_script_refuses_in_a_sentence(
    argv: list[str], sentence: str, models: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert script(mergekit, *argv) == 1
    assert sentence in capsys.readouterr().err
    assert not Path("out").exists()


def test_the_scripts_explain_themselves(capsys: pytest.CaptureFixture[str]) -> None:
    assert script(mergekit, "--help") == 0
    shown = capsys.readouterr().out
    assert [name for name in NAMES if f"--{name}: " not in shown] == []
    assert script(mergekit, "") == 0  # "$CONFIG", which is empty
    assert capsys.readouterr().out == shown
    assert script(merge_lora_params, "--help") == 0
    assert "--safe_serialization" in capsys.readouterr().out
    assert script(merge_lora_params, "--lora_path", "x") == 2


LORA = ("--model_name_or_path", "base", "--lora_path", "lora", "--output_path", "out")


@pytest.mark.parametrize("base", ["paddlenlp", "hf"])
@pytest.mark.parametrize("safe", [True, False])
def test_the_lora_script_folds(adapted: State, base: str, safe: bool) -> None:
    """Pickles are PaddleNLP's, in its layout, whatever the base was."""
    flags = ("--lora_path", "lora", "--output_path", "out", "--safe_serialization", str(safe), "--device", "cpu")
    assert script(merge_lora_params if safe else mergekit, "--model_name_or_path", base, *flags) == 0
    assert os.path.exists("out/model.safetensors" if safe else "out/model_state.pdparams")
    if safe:
        test_lora.close(read(Path("out")), laid_out(adapted, base))
    else:
        got = pickle.loads(Path("out/model_state.pdparams").read_bytes())
        assert isinstance(got.pop("StructuredToParameterName@@"), dict)
        test_lora.close(got, laid_out(adapted, "paddlenlp"))


@pytest.mark.usefixtures("adapted")
def test_the_lora_script_takes_beginnings_and_writes_one_pickle() -> None:
    """As argparse does, and as PaddleNLP's script does: it saves pickles of up to 100 GB."""
    words = ("--model", "hf", "--lora=lora", "--output", "out", "--safe", "no", "--dev", "cpu")
    assert script(merge_lora_params, *words) == 0
    assert Path("out/model_state.pdparams").exists()
    assert json.loads(Path("out/merge_config.json").read_text())["max_shard_size"] == "100GB"


def test_the_lora_script_refuses_in_a_sentence(models: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert script(merge_lora_params, *LORA, "--safe_serialization", "perhaps", "--device", "toaster") == 1
    error = capsys.readouterr().err
    assert "--safe_serialization takes True or False, not 'perhaps'" in error
    assert "--device 'toaster' must be one of gpu, npu, cpu" in error
    assert not Path("out").exists()


@pytest.mark.parametrize("name", ["mergekit.py", "merge_lora_params.py"])
def test_the_files_in_tools_are_the_scripts(name: str, tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, str(ROOT / "tools" / name), "--help"], capture_output=True, text=True, cwd=tmp_path, env=environment
    )
    assert done.returncode == 0, done.stderr
    assert "--output_path" in done.stdout


def test_importing_costs_no_paddle_and_no_numba() -> None:
    code = "import sys, paddle_merge.compat; print([m for m in ('numba', 'paddle') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"
