"""Test the command line of a merge: every spelling of a flag, config files, error messages, help, the record."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml

from paddle_merge.commands.merge import LINE, recipe_text
from paddle_merge.errors import ConfigError
from paddle_merge.methods.paddlenlp import METHODS
from paddle_merge.recipe.config import MergeConfig
from tests.support import checkpoints
from tests.support.command_lines import cli
from tests.support.names import not_utf8
from tests.support.sweeps import few

ROOT = Path(__file__).parents[2]
FIELDS = [item.name for item in dataclasses.fields(MergeConfig)]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with models a, b, c (holding 1, 2, 4) and base (0), where `here / "a"` is just `a`."""
    for name, value in (("a", 1.0), ("b", 2.0), ("c", 4.0), ("base", 0.0)):
        checkpoints.write(tmp_path / name, {"w": np.full((3, 5), value)})
    monkeypatch.chdir(tmp_path)
    return tmp_path


def merged_value(folder: Path) -> float:
    (value,) = set(checkpoints.read(folder)["w"].flat)
    return float(value)


def errors(capsys: pytest.CaptureFixture[str]) -> list[str]:
    """What was printed to standard error since the last call: "error: " lines only, and no traceback."""
    text = capsys.readouterr().err
    assert "Traceback" not in text
    assert all(line.startswith("error: ") for line in text.splitlines()), text
    return [line.removeprefix("error: ") for line in text.splitlines()]


# --- spellings --------------------------------------------------------------------------------------------------------


def spelled(argv: list[str]) -> list[str]:
    """Return what a command line gives, in one spelling."""
    given = LINE.parse(argv)
    flags = [(name, values if isinstance(values, list) else [values]) for name, values in given.flags.items()]
    switches = [f"--{name}" for name in sorted(given.switches)]
    return [*given.words, *switches, *(f"--{name}={value}" for name, values in flags for value in values)]


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["--model_path_list", "a", "b", "c"], ["--model_path_list=a", "--model_path_list=b", "--model_path_list=c"]),
        (["--model-path-list=a", "b"], ["--model_path_list=a", "--model_path_list=b"]),
        (["--weight_list", "0.3", "-0.7", "-1e-3"], ["--weight_list=0.3", "--weight_list=-0.7", "--weight_list=-1e-3"]),
        (["--weight-list", "-.5"], ["--weight_list=-.5"]),
        (["--seed=3"], ["--seed=3"]),
        (["--seed", "-3"], ["--seed=-3"]),
        (["--reserve-p=0.5"], ["--reserve_p=0.5"]),
        (["--output_path=a=b"], ["--output_path=a=b"]),
        (["--output_path=with-dash_and_bar"], ["--output_path=with-dash_and_bar"]),
        (["--normalize"], ["--normalize=True"]),
        (["--normalize", "True"], ["--normalize=True"]),
        (["--normalize=yes"], ["--normalize=True"]),
        (["--normalize", "False"], ["--normalize=False"]),
        (["--normalize", "0"], ["--normalize=False"]),
        (["--normalize=No"], ["--normalize=False"]),
        (["--no_normalize"], ["--normalize=False"]),
        (["--no-normalize"], ["--normalize=False"]),
        (["--normalize", "False", "--normalize"], ["--normalize=True"]),
        (["--normalize", "--no-normalize"], ["--normalize=False"]),
        (["--seed", "1", "--seed", "2"], ["--seed=2"]),
        (["--model_path_list", "a", "b", "--model_path_list", "c", "d"], ["--model_path_list=c", "--model_path_list=d"]),
        (["--merge_preifx", "master_weights"], ["--merge_prefix=master_weights"]),
        (["--merge_preifx", "x", "--merge_prefix", "model"], ["--merge_prefix=model"]),
        (["--model_path_str", "a,b"], ["--model_path_str=a,b"]),
        (["--base_model_name_or_path", "x"], ["--base_model_path=x"]),
        (["--model_name_or_path_list", "x", "y"], ["--model_path_list=x", "--model_path_list=y"]),
        (["config.json", "--seed", "1"], ["config.json", "--seed=1"]),
        (["-q", "--dry_run"], ["--quiet", "--dry_run=True"]),
        ([], []),
    ],
)
def test_every_spelling_says_the_same(argv: list[str], expected: list[str]) -> None:
    assert spelled(argv) == expected


@pytest.mark.parametrize("name", FIELDS)
def test_every_field_is_a_flag_with_underscores_and_dashes(name: str) -> None:
    values = ["--dashes-stay"[2:]] if dataclasses.fields(MergeConfig)[FIELDS.index(name)].type != "bool" else []
    assert spelled([f"--{name}", *values]) == spelled([f"--{name.replace('_', '-')}", *values])


@pytest.mark.parametrize(
    ("argv", "sentence"),
    [
        (["--weight_lst", "1"], "unknown flag --weight_lst; did you mean 'weight_list'?"),
        (["--density", "1"], "unknown flag --density; it is called 'reserve_p' here"),
        (["--models", "a", "b"], "unknown flag --models; it is called 'model_path_list' here"),
        (["--weight_list"], "--weight_list needs at least one value"),
        (
            ["--weight_list", "0.3,0.7"],
            "--weight_list must be a number, not '0.3,0.7'; a list is 1 2 in a command, and [1, 2] elsewhere",
        ),
        (["--seed"], "--seed takes one value, not 0"),
        (["--seed", "1", "2"], "--seed takes one value, not 2: 1 2"),
        (["--normalize", "maybe"], "--normalize takes True or False, not 'maybe'"),
        (["--no_normalize", "True"], "--no_normalize takes no value, so 'True' doesn't belong there"),
        (["--no_seed", "1"], "unknown flag --no_seed; did you mean 'seed'?"),
        (["--quiet", "a"], "--quiet takes no value, so 'a' doesn't belong there"),
        (["a.json", "b.json"], "unexpected 'b.json'; paths follow --model_path_list"),
    ],
)
def test_a_wrong_flag_is_named_in_one_sentence(argv: list[str], sentence: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli(*argv) == 1
    assert errors(capsys) == [sentence]


def test_all_wrong_flags_are_listed_at_once(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli("--modle_path_list", "a", "b", "--zzz", "--normalize", "2") == 1
    assert errors(capsys) == [
        "unknown flag --modle_path_list; did you mean 'model_path_list'?",
        "unknown flag --zzz",
        "--normalize takes True or False, not '2'",
    ]


def test_a_number_that_is_none_is_refused_without_a_traceback(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli("--model_path_list", "a", "b", "--n_process", "two") in (1, 2)
    captured = capsys.readouterr()
    assert "n_process" in captured.err
    assert "Traceback" not in captured.err
    assert not (here / "merged-linear").exists()


# --- what is merged is what was asked ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("argv", "value"),
    [
        (["--model_path_list", "a", "b"], 1.5),
        (["--model_path_list=a", "b"], 1.5),
        (["--model_path_str", "a,c"], 2.5),
        (["--model_path_str", "a, c", "--model_path_list", "a", "b"], 2.5),
        (["--model_path_list", "a", "b", "--weight_list", "3", "1"], 1.25),
        (["--model_path_list", "a", "b", "--weight_list", "3", "1", "--no_normalize"], 5.0),
        (["--model_path_list", "a", "b", "--weight_list", "3", "1", "--normalize", "False"], 5.0),
        (["--model_path_list", "a", "b", "--weight-list=3", "-1", "--normalize=f"], 1.0),
        (["--model_path_list", "a", "b", "--weight_list", "-1", "3"], 2.5),
        (["--model_path_list", "a", "b", "--weight_list", "9", "9", "--weight_list", "3", "1"], 1.25),
        (["--model_path_list", "a", "b", "--base_model_path", "base", "--scale", "2"], 3.0),
        (["--model_path_list", "a", "b", "--base_model_path", "None"], 1.5),
        (["--model_path_list", "a", "b", "--merge_type", "linear", "--sparsify_type", "none"], 1.5),
        (["--model_path_list", "a", "b", "--merge_type", "linear", "--sparsify_type", "None"], 1.5),
        (["--model_path_list", "a", "b", "--merge_preifx", "model"], 1.5),
        (["--model_path_list", "a", "b", "--no_normalize"], 1.5),  # PaddleNLP: without weights they are normalised
        (["--model_path_list", "a/", "./b/"], 1.5),
        (["--model_path_list", "a/model.safetensors", "b"], 1.5),
    ],
)
def test_flags_do_what_they_say(here: Path, argv: list[str], value: float) -> None:
    assert cli(*argv, "--output_path", "out", "--quiet") == 0
    assert merged_value(here / "out") == value


def test_without_output_path_the_folder_is_named_after_the_method(here: Path) -> None:
    assert cli("--model_path_list", "a", "b", "-q") == 0
    assert merged_value(here / "merged-linear") == 1.5
    flags = ["--model_path_list", "a", "b", "--base_model_path", "base", "--reserve_p", "1", "-q"]
    assert cli(*flags, "--merge_method", "dare_ties") == 0
    assert merged_value(here / "merged-dare_ties") == 1.5
    assert cli(*flags, "--sparsify_type", "dare", "--merge_type", "ties", "--output_path", "pair") == 0
    assert (here / "pair/model.safetensors").read_bytes() == (here / "merged-dare_ties/model.safetensors").read_bytes()
    assert cli(*flags, "--sparsify_type", "trim") == 0
    assert merged_value(here / "merged-trim+linear") == 1.5


@pytest.mark.parametrize("folder", ["with space", "ünï/cödé", "nested/not/there/yet", "trailing/", "q'uote$", "x" * 250])
def test_odd_folders(here: Path, folder: str) -> None:
    os.rename("a", "möd el")
    Path("link").symlink_to("möd el", target_is_directory=True)
    assert cli("--model_path_list", "link/", str(here / "b"), "--output_path", folder, "-q") == 0
    assert merged_value(here / folder) == 1.5


def test_an_output_through_a_folder_that_is_not_there(here: Path) -> None:
    assert cli("--model_path_list", "a", "b", "--output_path", "not_there/../o", "-q") == 0
    assert merged_value(here / "o") == 1.5


# --- config files -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", ["json", "yaml", "yml"])
def test_a_config_file_and_flags_that_override_it(here: Path, suffix: str) -> None:
    fields = {"model_path_list": ["a", "b"], "weight_list": [3, 1], "merge_method": "linear", "output_path": "o"}
    text = json.dumps(fields) if suffix == "json" else "".join(f"{key}: {value}\n" for key, value in fields.items())
    Path(f"c.{suffix}").write_text(text)
    assert cli(f"c.{suffix}", "-q") == 0
    assert merged_value(here / "o") == 1.25
    assert cli(f"c.{suffix}", "-q", "--weight_list", "1", "3", "--output_path", "p") == 0
    assert merged_value(here / "p") == 1.75
    assert cli(f"c.{suffix}", "-q", "--no_normalize", "--output_path", "q") == 0
    assert merged_value(here / "q") == 5.0


def test_a_model_path_list_flag_beats_a_model_path_str_in_the_file(here: Path) -> None:
    Path("c.json").write_text('{"model_path_str": "a,b", "output_path": "o"}')
    assert cli("c.json", "--model_path_list", "b", "c", "-q") == 0
    assert merged_value(here / "o") == 3.0


def test_a_merge_method_flag_beats_the_types_in_the_file(here: Path) -> None:
    """A saved merge_config.json holds method and types; overriding one of them must not contradict the other."""
    assert cli("--model_path_list", "a", "b", "--base_model_path", "base", "--output_path", "o", "-q") == 0
    record = "o/merge_config.json"
    flags = ["--merge_method", "dare_ties", "--reserve_p", "1", "--output_path", "p", "-q"]
    assert cli(record, *flags) == 0
    assert json.loads(Path("p/merge_config.json").read_text())["merge_method"] == "dare_ties"
    assert cli("p/merge_config.json", "--merge_type", "linear", "--sparsify_type", "none", "--output_path", "q", "-q") == 0
    assert json.loads(Path("q/merge_config.json").read_text())["merge_method"] == "linear"


def test_the_merge_config_that_paddlenlp_saves(here: Path) -> None:
    """Every field of PaddleNLP 3.0.0b4's and PaddleFormers 1.2.0's dataclass, as save_pretrained writes them."""
    saved = {
        "tensor_type": "np",
        "n_process": 1,
        "merge_prefix": "model",
        "merge_method": "linear",
        "merge_type": "linear",
        "sparsify_type": None,
        "split_pieces": 8,
        "max_tensor_mem": 0.5,
        "model_path_list": ["a", "b"],
        "model_path_str": "a,b",
        "base_model_path": None,
        "output_path": "o",
        "lora_model_path": None,
        "copy_file_list": None,
        "weight_list": [3.0, 1.0],
        "normalize": True,
        "slerp_alpha": 0.5,
        "slerp_normalize_eps": 1e-08,
        "slerp_dot_threshold": 0.9995,
        "ties_elect_type": "sum",
        "rescale": True,
        "reserve_p": 0.7,
        "epsilon": 0.14,
        "device": "cpu",
        "convert_from_hf": True,
        "save_to_hf": True,
        "merge_with_qdq_base_model": False,
    }
    Path("saved.json").write_text(json.dumps(saved, indent=2, sort_keys=True))
    assert cli("saved.json", "-q") == 0
    assert merged_value(here / "o") == 1.25
    nones = {key: "None" if value is None else value for key, value in saved.items()}
    Path("nones.json").write_text(json.dumps({**nones, "output_path": "p", "weight_list": None}))
    assert cli("nones.json", "-q") == 0
    assert merged_value(here / "p") == 1.5
    slerp = {**saved, "merge_method": "slerp", "merge_type": "slerp", "weight_list": [1.0, 1.0], "output_path": "q"}
    Path("slerp.json").write_text(json.dumps(slerp))
    assert cli("slerp.json", "-q") == 0
    assert merged_value(here / "q") == 1.5


def test_wrong_fields_are_listed_at_once(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("c.json").write_text('{"wieght_list": [1], "reserve_p": "much", "normalize": 3, "n_process": 1.5, "bogus": {}}')
    assert cli("c.json") == 1
    assert errors(capsys) == [
        "c.json: unknown field 'wieght_list'; did you mean 'weight_list'?",
        "c.json: 'reserve_p' must be a number, not 'much'",
        "c.json: 'normalize' must be True or False, not 3",
        "c.json: 'n_process' must be a whole number or auto, not 1.5",
        "c.json: unknown field 'bogus'",
    ]


@pytest.mark.parametrize(
    ("file", "text", "words"),
    [
        ("c.json", "{", "can't be parsed"),
        ("c.json", "[1]", "must hold the fields of a merge"),
        ("c.yaml", "a: [1", "can't be parsed"),
        ("c.yaml", "", "must hold the fields of a merge"),
        ("c.yaml", "models: [a, b]\nmerge_method: tis", "c.yaml:2:15: unknown merge_method"),
        ("c.yaml", "1: 2", "unknown field 1"),
        ("c.yaml", "yes: no", "unknown field True"),
        ("c.json", '{"scale": 1' + "0" * 400 + "}", "'scale'"),
        ("c.json", '{"merge_prefix": "model", "merge_preifx": "master_weights"}', "another spelling of it disagree"),
        ("c.json", '{"model_path_list": ["a", "b"], "output_path": "x\\u0000y"}', "--output_path"),
        ("c.json", '{"model_path_list": ["a\\u0000", "b"], "output_path": "o"}', "that paths can't have"),
        (
            "c.json",
            '{"model_path_list": ["a", "b"], "reserve_p": NaN}',
            "--reserve_p must be finite",
        ),
        ("missing.json", None, "can't be read (No such file or directory)"),
        ("a", None, "can't be read (Is a directory); models follow --model_path_list"),
    ],
)
def test_a_config_file_that_cannot_be_used(
    here: Path, file: str, text: str | None, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    if text is not None:
        Path(file).write_text(text)
    assert cli(file) == 1
    assert words in "\n".join(errors(capsys))


def test_a_tilde_in_a_config_file_is_the_home_folder(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The shell expands it on the command line; a JSON file must not make a folder called ~."""
    monkeypatch.setenv("HOME", str(here))
    Path("c.json").write_text('{"model_path_list": ["~/a", "b"], "output_path": "~/o"}')
    assert cli("c.json", "-q") == 0
    assert merged_value(here / "o") == 1.5
    assert not (here / "~").exists()


@pytest.mark.parametrize(
    "words",
    [
        "~/recipe.yaml --output_path=~/o",
        "verify ~/merged --sample 0",
        "push ~/merged --to huggingface --repo a/b --dry_run",
        "layer-shuffle ~/a ~/b --full_random --write_yaml=~/r.yaml --output_path=~/o",
    ],
)
def test_a_tilde_on_the_command_line_is_the_home_folder(here: Path, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Shells don't expand it behind an equals sign or in quotes."""
    layers = {f"model.layers.{number}.w": np.ones((2, 2), np.float32) for number in range(2)}
    for name in "ab":
        checkpoints.write(here / name, layers)
    (here / "recipe.yaml").write_text("{merge_method: passthrough, models: [{model: ~/a}]}")
    monkeypatch.setenv("HOME", str(here))
    assert cli("merge", "recipe.yaml", "--output_path", "merged", "-q") == 0
    assert cli(*words.split()) == 0
    assert not (here / "~").exists()
    assert (here / "r.yaml").exists() == ("r.yaml" in words)


# --- refusals ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ("--device cuda", "--device 'cuda' must be one of cpu, gpu, low_gpu_mem, xpu, npu"),
        ("--lora_model_path lora", "--lora_model_path needs --base_model_path"),
        ("--tensor_type tf", "must be one of np, pd"),
        ("--merge_method tise", "--merge_method 'tise' must be one of"),
        ("--merge_method ties --merge_type linear", "means --sparsify_type trim --merge_type ties"),
        ("--merge_method dare_linear --sparsify_type magprune", "means --sparsify_type dare --merge_type linear"),
        ("--merge_method linear --sparsify_type dare", "means --sparsify_type none --merge_type linear"),
        ("--weight_list 1 -1", "--weight_list 1 -1 sums to zero"),
        ("--weight_list -1 0", "would flip every sign"),
        ("--weight_list 0 0", "sums to zero"),
        ("--weight_list 1 1 1", "--weight_list has 3 numbers for 2 models"),
        ("--weight_list 1 nan", "--weight_list must be finite"),
        ("--merge_method slerp --weight_list 1 2", "slerp uses --slerp_alpha"),
        ("--merge_method slerp --slerp_alpha 1.5", "--slerp_alpha 1.5"),
        ("--scale 2", "needs --base_model_path"),
        ("--n_process 0", "--n_process 0 must be at least 1"),
        ("--max_shard_size lots", "'lots' must be a size"),
        ("--max_shard_size -5GB", "'-5GB' must be a size"),
        ("--merge_method ties --reserve_p 1.5", "--reserve_p 1.5"),
        ("--merge_method dare_ties --reserve_p 0", "--reserve_p 0"),
        ("--merge_method della --reserve_p 0.05", "--epsilon 0.14 with --reserve_p 0.05"),
        ("--merge_method ties --ties_elect_type max", "must be one of sum, count"),
        ("--out_dtype int8", "--out_dtype 'int8' must be one of"),
        ("--merge_prefix weights", "--merge_prefix 'weights' must be one of model, master_weights"),
        ("--merge_method ties --strict", "without --base_model_path"),
        ("--method_parameters gamma=1", "the parameters of linear are flags, such as --weight_list and --reserve_p"),
        ("--merge_method ties --method_parameters density=0.1", "the parameters of ties are flags"),
    ],
)
def test_one_sentence_says_what_is_wrong(here: Path, flags: str, words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli("--model_path_list", "a", "b", "--output_path", "o", *flags.split()) == 1
    found = [line for line in errors(capsys) if words in line]
    assert len(found) == 1
    assert not (here / "o").exists()


def test_parameters_beside_a_recipe_are_refused(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (here / "r").write_text("{merge_method: passthrough, models: [{model: a}]}")
    assert cli("merge", "r", "--method_parameters", "scale=2", "--output_path", "o") == 1
    sentence = "--method_parameters: a recipe gives the models, the method and the parameters, so leave these flags out"
    assert errors(capsys) == [sentence]


def test_one_or_no_model_is_refused(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli("--model_path_list", "a") == 1
    assert errors(capsys) == ["give at least two models: --model_path_list a b; or one model and its --base_model_path"]
    assert cli("--seed", "1") == 1
    assert errors(capsys) == ["give at least two models: --model_path_list a b; or one model and its --base_model_path"]


def test_slerp_of_three_is_refused(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli("--merge_method", "slerp", "--model_path_list", "a", "b", "c") == 1
    assert errors(capsys) == ["slerp merges two models, not 3; use linear or ties for more"]


def test_flags_inputs_and_output_are_checked_together(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("full").mkdir()
    Path("full/precious.txt").touch()
    argv = ["--merge_method", "ties", "--merge_type", "linear", "--reserve_p", "7", "--device", "cuda"]
    assert cli(*argv, "--model_path_list", "a", "./gone", "--output_path", "full") == 1
    found = errors(capsys)
    wanted = ["--merge_method ties means", "--reserve_p 7", "--device 'cuda'", "gone: no such file", "is not empty"]
    for words in wanted:
        assert len([line for line in found if words in line]) == 1, words
    assert len(found) == len(wanted)


def test_without_a_base_a_sparsifier_warns_before_the_work(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli("--sparsify_type", "dare", "--model_path_list", "a", "b", "--reserve_p", "0.5", "--output_path", "o") == 0
    text = capsys.readouterr().err
    warning = "warning: without --base_model_path, dare zeroes 50% of the models' weights"
    assert -1 < text.find(warning) < text.find("merged into o")


def test_flags_without_effect_are_said(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli("--model_path_list", "a", "b", "--reserve_p", "0.1", "--split_pieces", "4", "--output_path", "o") == 0
    assert "warning: --reserve_p, --split_pieces: no effect with linear" in capsys.readouterr().err.splitlines()
    assert cli("--model_path_list", "a", "b", "--merge_with_qdq_base_model", "--output_path", "p") == 0
    assert "warning: --merge_with_qdq_base_model: no effect with linear" in capsys.readouterr().err.splitlines()


@pytest.mark.parametrize(
    "words", ["--model_path_list a b", "--model_path_list a --base_model_path b --merge_method expo", "r"]
)
def test_a_device_without_effect_is_said(here: Path, words: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Whichever way the merge is asked for."""
    (here / "r").write_text("{merge_method: passthrough, models: [{model: a}]}")
    assert cli("merge", *words.split(), "--device", "gpu", "--output_path", "o") == 0
    sentence = "--device gpu has no effect: np computes on the CPU; pass --tensor_type pd to compute on the device"
    assert f"warning: {sentence}" in capsys.readouterr().err.splitlines()


# --- dry run, quiet, verbose ------------------------------------------------------------------------------------------


def test_a_dry_run_prints_the_plan_and_touches_nothing(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def state() -> list[tuple[str, int]]:
        return sorted((str(path), path.stat().st_mtime_ns) for path in here.rglob("*"))

    before = state()
    argv = ["--model_path_list", "a", "b", "--weight_list", "3", "1", "--n_process", "2"]
    assert cli(*argv, "--output_path", "deep/out", "--dry_run") == 0
    assert state() == before
    text = capsys.readouterr().out
    for words in ("linear", "0.75     x a", "0.25     x b", "float32", "deep/out", "config.json from a", "workers"):
        assert words in text


def test_a_dry_run_finds_what_the_run_would_find(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    checkpoints.write(here / "a", {"w": np.ones(2), "steps": np.array([1])})
    checkpoints.write(here / "b", {"w": np.ones(2), "steps": np.array([2])})
    assert cli("--model_path_list", "a", "b", "--output_path", "o", "--dry_run") == 1
    assert "steps" in capsys.readouterr().err


def test_quiet_says_nothing_and_verbose_no_less_than_usual(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["--model_path_list", "a", "a", "--output_path"]
    assert cli(*argv, "o", "--quiet") == 0
    assert capsys.readouterr() == ("", "")
    assert cli(*argv, "p") == 0
    usual = capsys.readouterr().err
    assert "warning: a is given more than once" in usual
    assert usual.splitlines()[-1].startswith("merged into p in ")
    assert usual.rstrip().endswith("B/s read and written)")
    assert "\r" not in usual, "no progress bar when standard error is not a terminal"
    assert cli(*argv, "q", "--verbose") == 0
    assert len(capsys.readouterr().err.splitlines()) >= len(usual.splitlines())


def test_quiet_still_says_errors(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli("--model_path_list", "a", "gone", "-q") == 1
    assert len(errors(capsys)) == 1


# --- help -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("argv", [["merge"], ["merge", "--help"], ["merge", "-h"], ["--seed", "1", "--help"]])
@pytest.mark.parametrize("columns", ["80", "200"])
def test_the_help_page_names_every_flag_and_every_method(
    argv: list[str], columns: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    monkeypatch.setenv("TERMINAL_WIDTH", columns)
    assert cli(*argv) == 0
    text = capsys.readouterr().out
    assert [name for name in FIELDS if f"--{name}" not in text] == []
    assert [method for method in METHODS if f"--merge_method {method} " not in text] == []


@pytest.mark.parametrize(
    ("flag", "default"),
    [
        ("reserve_p", "0.7"),
        ("epsilon", "0.14"),
        ("max_shard_size", "5GB"),
        ("seed", "0, or the recipe's own"),
        ("n_process", "auto"),
        ("output_path", "./merged-<method>"),
        ("ties_zero_sign", "positive"),
    ],
)
def test_the_help_page_shows_defaults(flag: str, default: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli("merge", "--help") == 0
    text = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert f"[default: {default}]" in text.split(f" --{flag} ", 1)[1].split(" --", 1)[0]


def in_fresh_python(code: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", code]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, env=environment, timeout=120)


def test_importing_the_package_imports_nothing_heavy() -> None:
    code = 'import sys, paddle_merge; print({"numpy", "numba", "paddle", "typer"} & sys.modules.keys())'
    assert in_fresh_python(code).stdout == "set()\n"


def test_a_merge_imports_no_paddle(here: Path) -> None:
    code = """
import sys
from paddle_merge import MergeConfig, merge
merge(MergeConfig(model_path_list=["a", "b"], output_path="o"))
print("paddle" in sys.modules)
"""
    assert in_fresh_python(code, here).stdout == "False\n"
    assert merged_value(here / "o") == 1.5


def test_python_m_is_the_same_command(here: Path) -> None:
    command = [sys.executable, "-m", "paddle_merge", "--model_path_list", "a", "b", "--output_path", "o"]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)}, timeout=120)
    assert done.returncode == 0
    assert done.stdout == ""
    assert merged_value(here / "o") == 1.5


def test_the_console_script_is_the_same_command() -> None:
    assert "paddle-merge = paddle_merge.__main__:main" in (ROOT / "setup.py").read_text()


# --- from Python ------------------------------------------------------------------------------------------------------


def test_from_python_paths_and_numpy_numbers_are_welcome(here: Path) -> None:
    from paddle_merge import merge

    config = MergeConfig(
        model_path_list=[here / "a", here / "b"],  # type: ignore[list-item]
        base_model_path=here / "base",  # type: ignore[arg-type]
        output_path=here / "o",  # type: ignore[arg-type]
        weight_list=[np.float32(3), np.float32(1)],  # type: ignore[list-item]
    )
    assert Path(merge(config)) == here / "o"
    assert merged_value(here / "o") == 1.25
    assert json.loads((here / "o/merge_config.json").read_text())["weight_list"] == [3.0, 1.0]


def test_from_python_a_wrong_type_is_a_config_error(here: Path) -> None:
    """model_path_list="ab" is one path, not the paths "a" and "b"."""
    from paddle_merge import merge

    with pytest.raises(ConfigError):
        merge(MergeConfig(model_path_list="ab", output_path="o"))  # type: ignore[arg-type]
    assert not (here / "o").exists()


# --- the record -------------------------------------------------------------------------------------------------------


def sha256(folder: Path) -> str:
    return hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()


@pytest.mark.parametrize("method", few([*METHODS, "trim+slerp", "magprune+slerp", "trim+linear"]))
def test_the_record_repeats_the_merge_from_another_folder(
    tmp_path: Path, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    generator = np.random.default_rng(7)
    for name in ("a", "b", "base"):
        tensors = {"w": generator.normal(size=(40, 50)), "v": generator.normal(size=33)}
        checkpoints.write(tmp_path / name, tensors, "bfloat16")
    monkeypatch.chdir(tmp_path)
    if method in METHODS:
        chosen = ["--merge_method", method]
    else:
        sparsify, merge_type = method.split("+")
        chosen = ["--sparsify_type", sparsify, "--merge_type", merge_type]
    weights = [] if "slerp" in method else ["--weight_list", "0.3", "0.1234567890123"]
    argv = [*chosen, *weights, "--seed", "5", "--reserve_p", "0.6", "--ties_zero_sign", "drop", "--out_dtype", "float16"]
    models = ["--model_path_str", "a,b", "--base_model_path", "base"]
    assert cli(*argv, *models, "--output_path", "o", "-q") == 0

    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    assert cli("../o/merge_config.json", "--output_path", "again", "--n_process", "2", "-q") == 0
    assert sha256(elsewhere / "again") == sha256(tmp_path / "o")
    first, second = (json.loads((path / "merge_config.json").read_text()) for path in (tmp_path / "o", elsewhere / "again"))
    assert second.pop("n_process") == 2
    assert {key for key in first if first[key] != second[key]} == {"output_path"}


def test_the_record_without_output_path_finds_its_output_taken(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli("--model_path_list", "a", "b", "--output_path", "o", "-q") == 0
    assert cli("o/merge_config.json", "-q") == 1
    (line,) = errors(capsys)
    assert "exists and is not empty; pass --overwrite" in line


# --- odd surroundings -------------------------------------------------------------------------------------------------


@pytest.mark.exhaustive
@pytest.mark.parametrize("workers", ["2", "1"])
@pytest.mark.parametrize("closed", ["<&- >&- 2>&-", "<&-", ">&-", "2>&-"])
def test_closed_standard_streams(here: Path, closed: str, workers: str) -> None:
    """As under cron, some daemons and pythonw."""
    command = f"{sys.executable} -m paddle_merge --model_path_list a b --output_path o --n_process {workers} {closed}"
    done = subprocess.run(["sh", "-c", command], env={**os.environ, "PYTHONPATH": str(ROOT)}, timeout=120)
    assert done.returncode == 0
    assert merged_value(here / "o") == 1.5


def test_workers_do_not_import_from_the_working_directory(here: Path) -> None:
    """A numpy.py lying where the user happens to be must not replace NumPy, as it doesn't in the main process."""
    (here / "numpy.py").write_text("raise SystemExit('the wrong numpy')")
    (here / "bin").mkdir()
    (here / "bin/start.py").write_text("from paddle_merge.commands.main import main\nmain()\n")
    command = [sys.executable, "bin/start.py", "--model_path_list", "a", "b", "--output_path", "o", "--n_process", "2", "-q"]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)}, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("odd", ["model", "output"])
def test_file_names_that_are_not_utf8(here: Path, odd: str) -> None:
    name = not_utf8(here)
    if odd == "model":
        os.rename("a", name)
    model, output = (name, "o") if odd == "model" else ("a", name)
    assert cli("--model_path_list", model, "b", "--output_path", output, "-q") == 0
    assert merged_value(here / output) == 1.5
    assert cli(f"{output}/merge_config.json", "--output_path", "again", "-q") == 0
    assert merged_value(here / "again") == 1.5
    assert cli("verify", output, "--full") == 0


@pytest.mark.parametrize("name", ["a", "数学", "a: [b] #", "\U0001f600", os.fsdecode(b"caf\xe9"), 'quo"te\\u0041'])
def test_a_recipe_that_commands_write_holds_any_name(name: str) -> None:
    assert yaml.safe_load(recipe_text({"model": name})) == {"model": name}
