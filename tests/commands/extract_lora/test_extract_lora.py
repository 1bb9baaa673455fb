"""Test extract-lora: folding an extracted adapter back by hand gives what the report says."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paddle_merge import (
    CheckpointError,
    ConfigError,
    ExtractConfig,
    MergeConfig,
    MergeError,
    OutputError,
    extract_lora,
    merge,
)
from paddle_merge.commands.extract_lora.low_rank import _krylov, low_rank
from paddle_merge.commands.main import main
from tests.conversion.test_layout import CONFIG, HIDDEN, State, laid_out, llama, stored
from tests.support.checkpoints import dtypes, read, write

LINEAR = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
PREFIX = {"peft": "adapter_model", "paddlenlp": "peft_model", "paddleformers": "peft_model"}
LAYOUT = {"peft": "hf", "paddlenlp": "paddlenlp", "paddleformers": "paddleformers"}


def is_linear(name: str) -> bool:
    return name.endswith(".weight") and name.split(".")[-2] in LINEAR


def tuned(base: State, rank: int | None, seed: int = 1, rest: bool = True) -> State:
    """The base with changes of this rank (None: full) in every Linear matrix but one, and small ones elsewhere if `rest`."""
    generator = np.random.default_rng(seed)
    result = dict(base)
    for name, value in base.items():
        if is_linear(name) and "layers.1.mlp.up_proj" not in name:
            m, n = value.shape
            result[name] = value + generator.standard_normal((m, rank or n)) @ generator.standard_normal((rank or n, n)) / 16
        elif rest and not is_linear(name) and "layers.0.input" not in name:
            result[name] = value + generator.standard_normal(value.shape) / 16
    return {name: value.astype(np.float32).astype(np.float64) for name, value in result.items()}


def folded(base: State, folder: Path, format: str) -> State:
    """The base, laid out as the format wants it, plus the adapter in `folder`, by FORMATS' formulas, in float64."""
    result = dict(laid_out(base, LAYOUT[format]))
    tensors = read(folder, PREFIX[format])
    config = json.loads((folder / ("adapter_config.json" if format == "peft" else "lora_config.json")).read_text())
    for name, value in tensors.items():
        if format == "peft":
            name = name.removeprefix("base_model.model.").replace("base_layer.", "")
        module, last = name.removesuffix(".weight").rpartition(".")[::2]
        if last == "lora_A":
            other = tensors[f"base_model.model.{module}.lora_B.weight" if format == "peft" else f"{module}.lora_B"]
            rank = config.get("rank_pattern", {}).get(module, config["r"])
            alpha = config.get("alpha_pattern", {}).get(module, config["lora_alpha"])
            assert rank == alpha == value.shape[0 if format == "peft" else 1]
            product = other @ value if format == "peft" else value @ other
            result[f"{module}.weight"] = result[f"{module}.weight"] + product
        elif last != "lora_B":
            result[name] = value
    return result


def pair(folder: Path, base: State, fine: State, layouts: tuple[str, str] = ("hf", "hf"), **more: Any) -> dict[str, str]:
    return {
        "finetuned_path": stored(folder / "ft", fine, layouts[0], dtype="float32", **more),
        "base_model_path": stored(folder / "base", base, layouts[1], dtype="float32", **more),
        "output_path": str(folder / "out"),
    }


# --- the approximation -----------------------------------------------------------------------------------------------


def with_values(m: int, n: int, values: np.ndarray, seed: int) -> np.ndarray:
    """An m x n matrix of these singular values."""
    generator = np.random.default_rng(seed)
    u, v = (np.linalg.qr(generator.standard_normal((size, len(values))))[0] for size in (m, n))
    return np.asarray((u * values) @ v.T)


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 45), st.integers(0, 9))
def test_low_rank_is_numpys_svd_cut_off(m: int, n: int, rank: int, seed: int) -> None:
    matrix = np.random.default_rng(seed).standard_normal((m, n))
    u, s, vt = np.linalg.svd(matrix, full_matrices=False)
    found = low_rank(matrix, rank)
    kept = min(rank, m, n)
    assert found.left.shape == (m, kept)
    assert found.right.shape == (kept, n)
    np.testing.assert_allclose(found.values, s[:kept], atol=1e-6 * s[0])
    assert found.remaining == pytest.approx(s[kept] if kept < len(s) else 0, abs=1e-6 * s[0])
    best = ((matrix - (u[:, :kept] * s[:kept]) @ vt[:kept]) ** 2).sum()
    assert ((matrix - found.left @ found.right) ** 2).sum() == pytest.approx(best, abs=1e-10 * s[0] ** 2)
    np.testing.assert_allclose((found.left**2).sum(0), (found.right**2).sum(1), rtol=1e-6)  # shared equally


@pytest.mark.parametrize("shape", [(700, 800), (800, 700)])
@pytest.mark.parametrize("decay", [1.0, 3.0])
def test_large_matrices_go_by_krylov_to_the_same_values(shape: tuple[int, int], decay: float) -> None:
    values = np.arange(1, 701, dtype=np.float64) ** -decay
    matrix = with_values(*shape, values, 0)
    assert _krylov(matrix, 9) is not None
    found = low_rank(matrix, 8)
    np.testing.assert_allclose(found.values, values[:8], rtol=1e-9)
    assert found.remaining == pytest.approx(values[8], rel=1e-7)
    assert ((matrix - found.left @ found.right) ** 2).sum() == pytest.approx((values[8:] ** 2).sum(), rel=1e-9)


def test_noise_without_an_edge_goes_by_the_gram_matrix() -> None:
    matrix = np.random.default_rng(0).standard_normal((700, 700))
    assert _krylov(matrix, 9) is None
    np.testing.assert_allclose(low_rank(matrix, 8).values, np.linalg.svd(matrix, compute_uv=False)[:8], rtol=1e-9)


@pytest.mark.parametrize(("energy", "rank"), [(0.5, 1), (0.64, 1), (0.65, 2), (0.79, 2), (0.9, 3), (0.999, 4), (1.0, 4)])
@pytest.mark.parametrize("size", [(10, 20), (20, 10)])
def test_energy_takes_the_smallest_rank_that_holds_it(energy: float, rank: int, size: tuple[int, int]) -> None:
    """Singular values 8, 4, 4, 2 have squares 64, 16, 16, 4 of 100."""
    matrix = with_values(*size, np.array([8.0, 4.0, 4.0, 2.0]), 0)
    found = low_rank(matrix, 10, energy)
    assert len(found.values) == rank
    assert found.remaining == pytest.approx([8, 4, 4, 2, 0][rank], abs=1e-6)
    assert len(low_rank(matrix, 2, energy).values) == min(rank, 2)


# --- adapters ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("format", LAYOUT)
@pytest.mark.parametrize("layouts", [("hf", "hf"), ("paddlenlp", "hf"), ("paddleformers", "paddlenlp")])
def test_a_change_of_low_rank_comes_back_whole(tmp_path: Path, layouts: tuple[str, str], format: str) -> None:
    """With everything else that changed, from any layouts."""
    base = llama(0)
    fine = tuned(base, 3)
    report = extract_lora(ExtractConfig(**pair(tmp_path, base, fine, layouts), rank=3, format=format))
    got, expected = folded(base, tmp_path / "out", format), laid_out(fine, LAYOUT[format])
    assert got.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(got[name], value, atol=1e-6, err_msg=name)
    assert report["kept"] == pytest.approx(1, abs=1e-11)
    assert {row["rank"] for row in report["factors"]} == {3}
    assert report["unchanged_tensors"] == 2
    assert sorted(len(report[key]) for key in ("factors", "whole", "left_out")) == [0, 6, 13]


@pytest.mark.parametrize("format", LAYOUT)
@pytest.mark.parametrize(
    "how", [{"rank": 5}, {"energy": 0.8}, {"energy": 0.8, "rank": 6}, {"rank": 4, "out_dtype": "bfloat16"}]
)
def test_the_report_is_what_folding_gives(tmp_path: Path, format: str, how: dict[str, Any]) -> None:
    base = llama(0)
    fine = tuned(base, None)
    report = extract_lora(ExtractConfig(**pair(tmp_path, base, fine), format=format, **how))
    got = folded(base, tmp_path / "out", format)
    before, after = laid_out(base, LAYOUT[format]), laid_out(fine, LAYOUT[format])
    lost = total = 0.0
    for row in report["factors"]:
        delta = after[row["name"]] - before[row["name"]]
        loss = ((after[row["name"]] - got[row["name"]]) ** 2).sum()
        s = np.linalg.svd(delta, compute_uv=False)
        held = np.cumsum(s**2) / (s**2).sum()
        rank = how.get("rank", len(s))
        if "energy" in how:
            rank = min(rank, 1 + int((held < how["energy"]).sum()))
        assert row["rank"] == rank
        assert row["kept"] == pytest.approx(1 - loss / (s**2).sum(), abs=1e-9)
        assert row["kept"] == pytest.approx(held[rank - 1], abs=1e-4 if "out_dtype" in how else 1e-9)
        assert row["change_norm"] == pytest.approx(np.linalg.norm(delta))
        assert row["largest_singular_value"] == pytest.approx(s[0])
        assert row["largest_remaining_singular_value"] == pytest.approx(s[rank])
        lost, total = lost + loss, total + (s**2).sum()
    rest = sum(((after[name] - before[name]) ** 2).sum() for name in after if not is_linear(name))
    assert report["kept_by_factors"] == pytest.approx(1 - lost / total, abs=1e-9)
    assert report["kept"] == pytest.approx(1 - lost / (total + rest), abs=1e-9)
    assert json.loads((tmp_path / "out" / "extract_report.json").read_text()) == report


def test_only_what_changed_is_targeted(tmp_path: Path) -> None:
    """q_proj of both layers by their word; k_proj of one layer takes whole names."""
    base = llama(0)
    fine = dict(base)
    for name in base:
        if "q_proj.weight" in name:
            fine[name] = base[name] + np.outer(np.ones(len(base[name])), np.arange(HIDDEN)) / 8
    files = pair(tmp_path, base, fine)
    extract_lora(ExtractConfig(**files, rank=1))
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert config["target_modules"] == ["q_proj"]
    assert (config["modules_to_save"], config["bias"], config["r"], config["lora_alpha"]) == (None, "none", 1, 1)
    assert len(read(tmp_path / "out", "adapter_model")) == 4

    fine["model.layers.1.self_attn.k_proj.weight"] = base["model.layers.1.self_attn.k_proj.weight"] + 1
    files = pair(tmp_path, base, fine)
    extract_lora(ExtractConfig(**files, rank=1, overwrite=True))
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert config["target_modules"] == [
        "model.layers.0.self_attn.q_proj", "model.layers.1.self_attn.q_proj", "model.layers.1.self_attn.k_proj"
    ]  # fmt: skip
    extract_lora(ExtractConfig(**{**files, "output_path": str(tmp_path / "nlp")}, rank=1, format="paddlenlp"))
    config = json.loads((tmp_path / "nlp" / "lora_config.json").read_text())
    assert config["target_modules"][0] == r"llama\.layers\.0\.self_attn\.q_proj"


def test_peft_replaces_whole_modules_and_single_biases(tmp_path: Path) -> None:
    """A norm with a bias comes with both, though one changed; the bias of a layer with factors comes alone."""
    base = {**llama(0), "model.norm.bias": np.zeros(HIDDEN)}
    fine = tuned(base, 2, rest=False)
    fine["model.norm.weight"] = base["model.norm.weight"] + 1
    fine["model.layers.0.self_attn.q_proj.bias"] = base["model.layers.0.self_attn.q_proj.bias"] + 1
    extract_lora(ExtractConfig(**pair(tmp_path, base, fine), rank=2))
    whole = {name for name in read(tmp_path / "out", "adapter_model") if "lora_" not in name}
    assert whole == {
        f"base_model.model.{name}"
        for name in ("model.norm.weight", "model.norm.bias", "model.layers.0.self_attn.q_proj.base_layer.bias")
    }
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert config["modules_to_save"] == ["model.norm"]
    assert config["bias"] == "all"


@pytest.mark.parametrize("format", LAYOUT)
def test_tied_models(tmp_path: Path, format: str) -> None:
    """Their lm_head goes where the embedding goes, also in PEFT, where replacing the one leaves the other what it was."""
    base = llama(0, tied=True)
    fine = tuned(base, 2)
    config = {**CONFIG, "tie_word_embeddings": True}
    extract_lora(ExtractConfig(**pair(tmp_path, base, fine, config=config), rank=2, format=format))
    got = folded(base, tmp_path / "out", format)
    embedding = next(value for name, value in got.items() if "embed_tokens" in name)
    np.testing.assert_array_equal(got["lm_head.weight"], embedding)
    np.testing.assert_array_equal(embedding, fine["model.embed_tokens.weight"])
    base_path, out = str(tmp_path / "base"), str(tmp_path / "whole")
    merge(MergeConfig(lora_model_path=str(tmp_path / "out"), base_model_path=base_path, output_path=out))
    np.testing.assert_array_equal(read(Path(out))["model.embed_tokens.weight"], embedding)


def test_a_tied_base_of_an_untied_model_is_untied_as_the_message_says(tmp_path: Path) -> None:
    base, fields = llama(0), pair(tmp_path, llama(0), tuned(llama(0), 2))
    tied = stored(tmp_path / "tied", llama(0, tied=True), "hf", {**CONFIG, "tie_word_embeddings": True})
    (sentence,) = refused({**fields, "base_model_path": str(tied)})
    assert sentence.endswith(f"unties {tied}: --model_path_list {tied} {tied} --tie untie")
    merge(MergeConfig(model_path_list=[str(tied)] * 2, tie="untie", output_path=str(tmp_path / "untied")))
    extract_lora(ExtractConfig(**{**fields, "base_model_path": str(tmp_path / "untied")}, rank=2))
    assert read(tmp_path / "untied")["lm_head.weight"].shape == base["lm_head.weight"].shape


@pytest.mark.parametrize("format", LAYOUT)
def test_a_tied_lm_head_counts_once(tmp_path: Path, format: str) -> None:
    """What is left out of a tied model is the same share of the change, whether or not the layout stores lm_head."""
    base = llama(0, tied=True)
    fine = tuned(base, 2)
    fields = pair(tmp_path, base, fine, config={**CONFIG, "tie_word_embeddings": True})
    report = extract_lora(ExtractConfig(**fields, rank=2, format=format, only_linear=True))
    squares = {name: ((fine[name] - base[name].astype(np.float32)) ** 2).sum() for name in base}
    of_factors = sum(value for name, value in squares.items() if is_linear(name))
    assert report["kept"] == pytest.approx(of_factors / sum(squares.values()), abs=1e-6)


def test_only_linear_leaves_the_rest_out_by_name(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    base = llama(0)
    report = extract_lora(ExtractConfig(**pair(tmp_path, base, tuned(base, 2)), rank=2, only_linear=True))
    assert all("lora_" in name for name in read(tmp_path / "out", "adapter_model"))
    left_out = [row["name"] for row in report["left_out"]]
    assert "model.norm.weight" in left_out
    assert f"not in the adapter, although they changed: {', '.join(left_out)}" in caplog.text
    squares = sum(row["change_norm"] ** 2 for row in report["left_out"])
    total = squares + sum(row["change_norm"] ** 2 for row in report["factors"])
    assert report["kept"] == pytest.approx(1 - squares / total, abs=1e-9)


@pytest.mark.parametrize(("format", "expected"), [("peft", "float32"), ("paddlenlp", "bfloat16")])
def test_factors_are_of_the_dtype_that_their_library_needs(tmp_path: Path, format: str, expected: str) -> None:
    base = llama(0)
    paths = [stored(tmp_path / name, model, "hf") for name, model in (("ft", tuned(base, 2)), ("base", base))]
    extract_lora(ExtractConfig(*paths, output_path=str(tmp_path / "out"), format=format, only_linear=True))
    prefix = "adapter_model" if format == "peft" else "peft_model-00001-of-00001"
    assert set(dtypes(tmp_path / "out", prefix).values()) == {expected}


@pytest.mark.exhaustive
def test_the_same_bytes_again_in_another_process(tmp_path: Path) -> None:
    base = llama(0)
    files = pair(tmp_path, base, tuned(base, None))
    extract_lora(ExtractConfig(**files, rank=4))
    command = [sys.executable, "-m", "paddle_merge", "extract-lora", files["finetuned_path"], "--rank", "4", "-q"]
    again = [*command, "--base-model-path", files["base_model_path"], "--output-path", str(tmp_path / "again")]
    assert subprocess.run(again, capture_output=True, check=True).stderr == b""
    hashes = [hashlib.sha256((tmp_path / x / "adapter_model.safetensors").read_bytes()).digest() for x in ("out", "again")]
    assert hashes[0] == hashes[1]
    assert sorted(path.name for path in (tmp_path / "again").iterdir()) == [
        "adapter_config.json", "adapter_model.safetensors", "extract_report.json"
    ]  # fmt: skip


# --- refusals ------------------------------------------------------------------------------------------------------------


def refused(config: dict[str, Any]) -> list[str]:
    with pytest.raises(MergeError) as caught:
        extract_lora(ExtractConfig(**config))
    assert not Path(config["output_path"]).exists()
    return caught.value.problems


def test_nothing_changed(tmp_path: Path) -> None:
    files = pair(tmp_path, llama(0), llama(0))
    (problem,) = refused(files)
    assert problem.endswith("have the same weights, so there is nothing to extract")


@pytest.mark.parametrize(("size", "word"), [(1e200, "much"), (1e-200, "little")])
def test_changes_beyond_float64(tmp_path: Path, size: float, word: str) -> None:
    base = {name: np.zeros_like(value) for name, value in llama(0).items()}
    name = "model.layers.0.self_attn.q_proj.weight"
    fine = base | {name: np.full(base[name].shape, size)}
    paths = [stored(tmp_path / key, model, "hf", dtype="float64") for key, model in (("ft", fine), ("base", base))]
    with pytest.raises(CheckpointError, match=rf"{name}' changes by so {word} that the square doesn't fit into float64"):
        extract_lora(ExtractConfig(*paths, output_path=str(tmp_path / "out")))


def test_nothing_to_factor(tmp_path: Path) -> None:
    base = llama(0)
    fine = {**base, "model.norm.weight": base["model.norm.weight"] + 1}
    paths = pair(tmp_path, base, fine)
    assert refused(paths) == [
        f"{paths['finetuned_path']}: no matrix that is known as a Linear layer's changed from {paths['base_model_path']}, so"
        " there is nothing to approximate; changed: model.norm.weight"
    ]


def test_all_that_does_not_fit_is_told_at_once(tmp_path: Path) -> None:
    base = {**llama(0), "steps": np.arange(3), "model.layers.0.self_attn.q_proj.bias": np.full(16, np.nan)}
    fine = {**tuned(llama(0), 2), "steps": np.arange(3) + 1}
    problems = refused(pair(tmp_path, base, fine))
    assert sorted(problem.partition(",")[0] for problem in problems) == [
        f"tensor 'model.layers.0.self_attn.q_proj.bias' differs and holds NaN or Inf in {tmp_path}/ft/model.safetensors"
        f" or {tmp_path}/base/model.safetensors",
        "tensor 'steps' is int64 and differs",
    ]
    del fine["steps"]
    fine["model.norm.weight"] = np.zeros(3)
    problems = refused(pair(tmp_path, base, fine))
    assert [problem.split(" is ")[0].split(" has ")[0] for problem in problems] == [
        "tensor 'steps'", "tensor 'model.norm.weight'"
    ]  # fmt: skip


def test_flags_and_output_are_refused_together(tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").write_text("mine")
    with pytest.raises(ConfigError) as caught:
        extract_lora(ExtractConfig(rank=0, energy=1.5, format="pft", output_path=str(tmp_path / "full")))
    assert [problem.split(":")[0] for problem in caught.value.problems] == [
        "--format 'pft' must be one of peft, paddlenlp, paddleformers, paddle; did you mean 'peft'?",
        "--rank 0 must be at least 1",
        "give the fine-tuned model",
        "--base_model_path is missing",
        "--energy 1.5 must be above 0 and at most 1",
        f"--output_path {tmp_path / 'full'} exists and is not empty; pass --overwrite to replace the weights in it",
    ]


def test_an_unknown_layout_must_be_said(tmp_path: Path) -> None:
    base = {"blocks.0.q_proj.weight": np.eye(4), "blocks.0.norm.weight": np.ones(4)}
    fine = {**base, "blocks.0.q_proj.weight": np.eye(4) + 1}
    write(tmp_path / "base", base)
    write(tmp_path / "ft", fine)
    config = {"finetuned_path": str(tmp_path / "ft"), "base_model_path": str(tmp_path / "base")}
    config["output_path"] = str(tmp_path / "out")
    (problem,) = refused(config)
    assert "its layout is unknown" in problem
    assert "--layout" in problem
    extract_lora(ExtractConfig(**config, layout=["hf"], rank=1))
    assert (tmp_path / "out" / "adapter_model.safetensors").exists()


def test_paddle_alone_does_not_say_which_library_for_a_base_of_hugging_face(tmp_path: Path) -> None:
    base = llama(0)
    files = pair(tmp_path, base, tuned(base, 2))
    (problem,) = refused({**files, "format": "paddle"})
    assert "--format paddlenlp or --format paddleformers" in problem
    files = pair(tmp_path, base, tuned(base, 2), ("hf", "paddlenlp"))
    assert extract_lora(ExtractConfig(**files, format="paddle"))["format"] == "paddlenlp"


def test_a_failure_while_writing_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from paddle_merge.run.output.disk import ShardFiles

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    base = llama(0)
    files = pair(tmp_path, base, tuned(base, 2))
    monkeypatch.setattr(ShardFiles, "write", full)
    with pytest.raises(OutputError, match="No space left on device"):
        extract_lora(ExtractConfig(**files))
    assert not (tmp_path / "out").exists()


def test_an_input_is_never_overwritten(tmp_path: Path) -> None:
    base = llama(0)
    files = pair(tmp_path, base, tuned(base, 2))
    with pytest.raises(MergeError, match="holds one of the inputs"):
        extract_lora(ExtractConfig(**{**files, "output_path": files["base_model_path"]}, overwrite=True))


def test_different_shapes_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="different shapes"):
        extract_lora(ExtractConfig(**pair(tmp_path, llama(0), llama(0, inter=32))))


@pytest.mark.parametrize(
    ("argv", "sentence"),
    [
        (["a", "--rnk", "3"], "unknown flag --rnk; did you mean 'rank'?"),
        (["a", "b"], "unexpected 'b'; only the fine-tuned model, the first word, is given without a flag"),
        (["a", "--rank", "3.5", "--base_model_path", "b"], "--rank must be a whole number, not '3.5'"),
        (["a", "--only_linear", "maybe"], "--only_linear takes True or False, not 'maybe'"),
    ],
)
def test_wrong_commands(argv: list[str], sentence: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["extract-lora", *argv])
    assert caught.value.code == 1
    assert capsys.readouterr().err == f"error: {sentence}\n"
