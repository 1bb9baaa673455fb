"""Test diff: how the numbers of two checkpoints differ, against numbers worked out by hand and the definitions in NumPy."""

from __future__ import annotations

import contextlib
import json
import math
import pickle
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paddle_merge import CheckpointError, ConfigError, DiffConfig, MergeConfig, WorkError, diff, merge
from paddle_merge.checkpoints.files import Files
from paddle_merge.checkpoints.names import LAYOUTS, layer_of, pattern_of, word_of
from paddle_merge.checkpoints.tensors import StoredEntry, TensorEntry
from paddle_merge.commands.diff.diff import compare, open_models
from paddle_merge.commands.diff.measure import PIECE, Pair, Sums, added, measure
from paddle_merge.commands.diff.show import lines
from paddle_merge.commands.main import main
from paddle_merge.commands.pairs import BLOCK
from paddle_merge.commands.tables import count, percent, table
from paddle_merge.dtypes import DTYPES
from tests.conversion.lora.test_lora import factors, in_paddle, in_peft, paddle, peft
from tests.conversion.test_layout import CONFIG, llama, stored
from tests.support.checkpoints import RAW, from_bits, to_bits, write

BY_NAME = {dtype.name: dtype for dtype in DTYPES}
FLOAT = ("bfloat16", "float16", "float32", "float64", "float8_e4m3fn", "float8_e5m2")
INTEGER = ("int64", "int32", "uint8", "bool")
DTYPE_PAIRS = [(a, b) for a in FLOAT for b in FLOAT] + [(a, a) for a in INTEGER] + [("int32", "int64"), ("uint8", "float32")]
PRECISION = {"float8_e5m2": 2, "float8_e4m3fn": 3, "bfloat16": 7, "float16": 10, "float32": 23, "float64": 52}


def report(a: Any, b: Any, **fields: Any) -> dict[str, Any]:
    return diff(DiffConfig([str(a), str(b)], **fields), progress=False)


# --- by hand -----------------------------------------------------------------------------------------------------------


def test_by_hand(tmp_path: Path) -> None:
    """Near 2 float32's spacing is 2**-22, so 2.5 is 2**21 numbers from 2; 4 is 2**22 numbers from 3."""
    a = write(tmp_path / "a", {"w": np.array([1.0, 2.0, 3.0, 4.0]), "same": np.ones(2)})
    b = write(tmp_path / "b", {"w": np.array([1.0, 2.5, 3.0, 3.0]), "same": np.ones(2)})
    found = report(a, b)
    row = found["tensors"][0]
    assert row["name"] == "w"
    assert (row["max"], row["mean"], row["changed"], row["changed_fraction"]) == (1.0, 0.375, 2, 0.5)
    assert row["relative"] == pytest.approx(math.sqrt(1.25 / 30), rel=1e-15)
    assert row["cosine"] == pytest.approx((1 + 5 + 9 + 12) / math.sqrt(30 * 25.25), rel=1e-15)
    apart = {name: held for name, held in row["distances"].items() if held}
    assert apart == {"0": 2, f"{2**21}-{2**22 - 1}": 1, f"{2**22}-{2**23 - 1}": 1}
    total = found["total"]
    assert (found["same"], found["changed_tensors"], found["compared_tensors"]) == (False, 1, 2)
    assert (total["elements"], total["changed"], total["mean"]) == (6, 2, 0.25)
    assert total["relative"] == pytest.approx(math.sqrt(1.25 / 32), rel=1e-15)
    assert found["distances"]["float32"]["0"] == 4


def test_units_in_the_last_place_of_bfloat16(tmp_path: Path) -> None:
    """Next to 1: 1 + 2**-7 and 1 + 2**-6; across 1 the spacing halves, so 1 - 2**-8 is a neighbour too; zeros are equal, and
    the smallest numbers of both signs, 2**-133, are two apart."""
    tiny = 2.0**-133
    a = write(tmp_path / "a", {"w": np.array([1.0, 1.0, 1.0, 0.0, -tiny, 1.0])}, "bfloat16")
    b = write(tmp_path / "b", {"w": np.array([1 + 2**-7, 1 + 2**-6, 1 - 2**-8, -0.0, tiny, 1.0])}, "bfloat16")
    (row,) = report(a, b)["tensors"]
    assert row["distances"] == {"0": 2, "1": 2, "2-3": 2}
    assert (row["changed"], row["units"]) == (4, "bfloat16")


@pytest.mark.exhaustive
def test_integers_are_told_apart_exactly(tmp_path: Path) -> None:
    big = 2**62
    a = write(tmp_path / "a", {"i": np.array([big, -big, 5, 7]), "m": np.array([True, False])})
    b = write(tmp_path / "b", {"i": np.array([big + 1, big, 5, 4]), "m": np.array([True, True])})
    rows = {row["name"]: row for row in report(a, b)["tensors"]}
    assert rows["i"]["changed"] == 3
    assert {name: held for name, held in rows["i"]["distances"].items() if held} == {
        "0": 1, "1": 1, "2-3": 1, f"{2**63}-{2**64 - 1}": 1
    }  # fmt: skip
    assert (rows["m"]["changed"], rows["m"]["max"]) == (1, 1.0)


@pytest.mark.parametrize("dtype", ["bfloat16", "float32", "float64", "float8_e5m2"])
def test_nan_and_inf_are_counted_and_left_out(tmp_path: Path, dtype: str) -> None:
    """NaN equals NaN, Inf equals Inf of its sign; the sums are of the last two elements."""
    a = write(tmp_path / "a", {"w": np.array([np.nan, np.nan, np.inf, np.inf, 1.0, 2.0])}, dtype)
    b = write(tmp_path / "b", {"w": np.array([np.nan, 1.0, np.inf, -np.inf, 1.0, 4.0])}, dtype)
    found = report(a, b)
    (row,) = found["tensors"]
    assert (row["not_finite_a"], row["not_finite_b"], row["changed"], row["elements"]) == (4, 3, 3, 6)
    assert (row["max"], row["mean"], sum(row["distances"].values())) == (2.0, 1.0, 2)
    assert row["relative"] == pytest.approx(2 / math.sqrt(5))
    assert report(a, a)["same"]


def test_what_float64_cannot_square_is_none_not_nonsense(tmp_path: Path) -> None:
    a = write(tmp_path / "a", {"w": np.array([1e308, 1.0]), "s": np.array([1e200, 1.0]), "v": np.ones(2)}, "float64")
    b = write(tmp_path / "b", {"w": np.array([-1e308, 1.0]), "s": np.array([1e200, 0.0]), "v": np.ones(2)}, "float64")
    found = report(a, b)
    w, s, v = found["tensors"]
    assert [w[name] for name in ("max", "mean", "relative", "cosine", "overflowed")] == [None] * 4 + [True]
    assert [s[name] for name in ("max", "mean", "relative", "cosine", "overflowed")] == [1.0, 0.5, None, None, True]
    assert (w["changed"], w["not_finite_a"], v["overflowed"]) == (1, 0, False)
    json.dumps(found, allow_nan=False)
    assert "overflow   of sums in float64, which are shown as -: 2: w, s" in list(lines(found, 3))


def test_from_zero(tmp_path: Path) -> None:
    a = write(tmp_path / "a", {"w": np.zeros(3), "z": np.zeros(2), "e": np.zeros((0, 4))})
    b = write(tmp_path / "b", {"w": np.ones(3), "z": np.zeros(2), "e": np.zeros((0, 4))})
    rows = {row["name"]: row for row in report(a, b)["tensors"]}
    assert (rows["w"]["relative"], rows["w"]["cosine"], rows["w"]["mean"]) == (None, None, 1.0)
    assert (rows["z"]["relative"], rows["z"]["cosine"]) == (0.0, None)
    assert (rows["e"]["elements"], rows["e"]["max"], rows["e"]["changed_fraction"]) == (0, None, None)


# --- against NumPy -----------------------------------------------------------------------------------------------------


def key(raw: np.ndarray, dtype: str) -> list[int]:
    """Return each number's position in the order of its dtype's numbers, with both zeros at 0."""
    if dtype in INTEGER:
        return [int(one) for one in raw]
    width = raw.dtype.itemsize * 8
    codes = [int(one) for one in raw.view(f"<u{raw.dtype.itemsize}")]
    return [code if code < 1 << (width - 1) else (1 << (width - 1)) - code for code in codes]


def bucket(distance: int) -> str:
    low = 1 << (distance.bit_length() - 1) if distance else 0
    return str(distance) if distance < 2 else f"{low}-{2 * low - 1}"


def check(a: np.ndarray, b: np.ndarray, a_dtype: str, b_dtype: str, found: Sums) -> None:
    """a, b: as they are stored."""
    with np.errstate(over="ignore", invalid="ignore"):
        x, y = (from_bits(raw, dtype).astype(np.float64) for raw, dtype in ((a, a_dtype), (b, b_dtype)))
        finite = np.isfinite(x) & np.isfinite(y)
        gap = np.abs(x - y)[finite]
    assert found.elements == x.size
    assert (found.compared, found.not_finite_a, found.not_finite_b) == (
        finite.sum(), (~np.isfinite(x)).sum(), (~np.isfinite(y)).sum()
    )  # fmt: skip
    assert found.changed == (~((x == y) | (np.isnan(x) & np.isnan(y)))).sum()
    assert found.largest == (gap.max() if gap.size else 0)
    for got, terms in (
        (found.absolute, gap), (found.squares, gap**2), (found.squares_a, x[finite] ** 2), (found.squares_b, y[finite] ** 2)
    ):  # fmt: skip
        assert got == pytest.approx(math.fsum(terms), rel=1e-13, abs=1e-300)
    assert found.products == pytest.approx(math.fsum(x[finite] * y[finite]), abs=1e-13 * np.abs(x[finite] * y[finite]).sum())
    norms = [np.linalg.norm(one[finite] / np.abs(one[finite]).max(initial=1e-300)) for one in (x, y)]
    assert (found.cosine is None) == (0 in norms)
    if (a_dtype in FLOAT) == (b_dtype in FLOAT):
        units = min(a_dtype, b_dtype, key=lambda dtype: PRECISION[dtype]) if a_dtype in FLOAT else a_dtype
        with np.errstate(all="ignore"):
            keys = [
                key(raw if dtype == units else to_bits(from_bits(raw, dtype), units) if units in FLOAT else raw, units)
                for raw, dtype in ((a, a_dtype), (b, b_dtype))
            ]
        expected = Counter(bucket(abs(p - q)) for p, q, ok in zip(*keys, finite, strict=True) if ok)
        names = ["0", "1", *(f"{1 << power}-{(2 << power) - 1}" for power in range(1, 64))]
        assert dict(zip(names, found.buckets, strict=False)) == {
            name: expected[name] for name in names[: len(found.buckets)]
        }
        assert sum(found.buckets) == finite.sum()
    else:
        assert found.buckets == ()


def entry(path: Path, raw: np.ndarray, dtype: str) -> TensorEntry:
    path.write_bytes(raw.tobytes())
    return StoredEntry("w", BY_NAME[dtype], raw.shape, str(path), 0)


def measured(folder: Path, a: np.ndarray, b: np.ndarray, a_dtype: str, b_dtype: str) -> Sums:
    pair = Pair(entry(folder / "a.bin", a, a_dtype), entry(folder / "b.bin", b, b_dtype))
    with contextlib.closing(Files()) as files:
        return added(measure(pair, *piece, files, lambda _: None) for piece in pair.pieces())


@pytest.mark.exhaustive
@settings(deadline=None, max_examples=40)
@given(
    st.sampled_from(DTYPE_PAIRS),
    st.integers(0, 700),
    st.sampled_from(["anything", "close", "small"]),
    st.integers(0, 2**32),
)  # fmt: skip
def test_all_dtypes_against_numpy(
    tmp_path_factory: pytest.TempPathFactory, dtypes: tuple[str, str], size: int, how: str, seed: int
) -> None:
    """anything: any bits, so NaN, Inf and denormals too, where squares stay within float64; close: a few of them changed."""
    random = np.random.default_rng(seed)
    raws = []
    for dtype in dtypes:
        if dtype == "bool":
            raws.append(random.random(size) < 0.5)
        elif how == "anything" and dtype != "float64":
            raws.append(random.integers(0, 256, size * np.dtype(RAW[dtype]).itemsize, np.uint8).view(RAW[dtype]))
        elif dtype in FLOAT:
            values = random.standard_normal(size) * (1e-3 if how == "small" else 1)
            values[random.random(size) < 0.1] = random.choice([0.0, -0.0, np.nan, np.inf, -np.inf])
            raws.append(to_bits(values.astype(np.float32), dtype))  # to_bits rounds float64 twice
        else:
            raws.append(random.integers(0, 100, size).astype(RAW[dtype]))
    if how == "close" and dtypes[0] == dtypes[1] and dtypes[0] != "bool":
        raws[1] = np.where(random.random(size) < 0.7, raws[0], raws[1])
    check(*raws, *dtypes, measured(tmp_path_factory.mktemp("raw"), *raws, *dtypes))


@pytest.mark.parametrize("size", [BLOCK - 1, BLOCK, BLOCK + 1, 2 * BLOCK + 300])
def test_blocks_against_numpy(tmp_path: Path, size: int) -> None:
    random = np.random.default_rng(size)
    a = to_bits(random.standard_normal(size), "bfloat16")
    b = np.where(random.random(size) < 0.5, a, a + random.integers(0, 3, size).astype(np.uint16))
    check(a, b, "bfloat16", "bfloat16", measured(tmp_path, a, b, "bfloat16", "bfloat16"))


def test_the_same_numbers_for_any_number_of_workers(tmp_path: Path) -> None:
    """Over several pieces, and of a matrix that is read on its side."""
    random = np.random.default_rng(0)
    large = random.standard_normal(PIECE + BLOCK // 2 + 7)
    a, b = llama(0), llama(1)
    a["large"], b["large"] = large, large + random.standard_normal(large.size) * 0.1
    paths = stored(tmp_path / "a", a, "hf"), stored(tmp_path / "b", b, "paddlenlp")
    alone = report(*paths, n_process=1)
    assert report(*paths, n_process=3) == report(*paths) == alone
    x, y = (to_bits(one["large"], "bfloat16") for one in (a, b))
    pair = next(row for row in alone["tensors"] if row["name"] == "large")
    gap = np.abs(from_bits(x, "bfloat16") - from_bits(y, "bfloat16"))
    assert pair["mean"] == pytest.approx(gap.mean(), rel=1e-12)
    assert pair["max"] == gap.max()
    assert pair["changed"] == (gap > 0).sum()


# --- checkpoints -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("second", LAYOUTS)
@pytest.mark.parametrize("first", LAYOUTS)
def test_layouts_are_compared_in_one(tmp_path: Path, first: str, second: str) -> None:
    a = llama(0)
    b = dict(a)
    b["model.layers.1.self_attn.q_proj.weight"] = a["model.layers.1.self_attn.q_proj.weight"].copy()
    b["model.layers.1.self_attn.q_proj.weight"][2, 3] += 1
    path = stored(tmp_path / "a", a, first)
    assert report(path, stored(tmp_path / "same", a, second, dtype="float32"))["same"]
    found = report(path, stored(tmp_path / "b", b, second))
    changed = [row["name"] for row in found["tensors"] if row["changed"]]
    assert [word_of(name) for name in changed] == ["q_proj"]
    assert [(row["layer"], row["changed"]) for row in found["layers"]] == [(0, 0), (1, 1)]
    assert {row["kind"]: row["changed"] for row in found["kinds"]}["q_proj"] == 1
    assert found["layout"] == first


def test_formats(tmp_path: Path) -> None:
    a = {name: value.astype(np.float32) for name, value in llama(0).items()}
    (tmp_path / "pd").mkdir()
    (tmp_path / "pd" / "config.json").write_text(json.dumps(CONFIG))
    transposed = {name: v.T.copy() if name.endswith("_proj.weight") else v for name, v in a.items()}
    (tmp_path / "pd" / "model_state.pdparams").write_bytes(pickle.dumps(transposed, protocol=4))
    assert report(write(tmp_path / "hf", a, "float32", config=CONFIG, format="pt"), tmp_path / "pd")["same"]


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("kind", ["peft", "paddle", "dora"])
def test_an_adapter_behind_its_base_is_the_model_it_folds_into(tmp_path: Path, kind: str, dtype: str) -> None:
    """Equal to the bit, although the output is in another layout, from which tensors are read transposed."""
    base, pairs = stored(tmp_path / "base", llama(0), "hf", dtype=dtype), factors(1)
    if kind == "paddle":
        adapter = paddle(tmp_path / "ad", in_paddle(pairs))
    else:
        lengths = {}
        if kind == "dora":
            lengths = {f"{name}.lora_magnitude_vector": np.linspace(1, 2, b.shape[1]) for name, (_, b) in pairs.items()}
        adapter = peft(tmp_path / "ad", in_peft(pairs) | lengths, use_dora=kind == "dora")
    out = str(tmp_path / "out")
    merge(MergeConfig(lora_model_path=adapter, base_model_path=base, output_path=out, output_layout="paddlenlp"))
    found = report(out, f"{base}+{adapter}")
    assert found["same"], [row["name"] for row in found["tensors"] if row["changed"]]
    against = report(base, f"{base}+{adapter}")
    assert {row["name"] for row in against["tensors"] if row["changed"]} == {f"{name}.weight" for name in pairs}


def test_names_shapes_and_dtypes_that_differ(tmp_path: Path) -> None:
    a = write(tmp_path / "a", {"w": np.ones(3), "gone": np.ones(2), "s": np.ones((2, 3))}, "float32")
    b = write(tmp_path / "b", {"w": np.ones(3), "new": np.ones(2), "s": np.ones((3, 2))}, "bfloat16")
    found = report(a, b)
    assert (found["same"], found["only_in_a"], found["only_in_b"]) == (False, ["gone"], ["new"])
    assert found["different_shapes"] == [{"name": "s", "a": [2, 3], "b": [3, 2]}]
    assert found["different_dtypes"] == [{"name": "w", "a": "float32", "b": "bfloat16"}]
    assert (found["compared_tensors"], found["changed_tensors"]) == (1, 0)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_tied_and_an_untied_model_can_be_compared(tmp_path: Path, layout: str) -> None:
    untied, tied = llama(0), llama(0, tied=True)
    config = {**CONFIG, "tie_word_embeddings": True}
    found = report(stored(tmp_path / "a", untied, "hf"), stored(tmp_path / "b", tied, layout, config))
    assert (found["only_in_a"], found["only_in_b"], found["changed_tensors"]) == (["lm_head.weight"], [], 0)
    assert found["compared_tensors"] == len(tied)
    assert "compared nevertheless" in found["notes"][0]
    assert "can't be merged" not in found["notes"][0]  # they can: the output unties


def test_quantised_models_are_compared_as_codes_and_said_to_be(tmp_path: Path) -> None:
    tensors = {"l.weight": np.arange(6, dtype=np.uint8), "l.weight_scale": np.ones(1)}
    a = write(tmp_path / "a", tensors, config={"quantization_config": {"bits": 8}})
    found = report(a, a)
    assert found["same"]
    assert "its codes are compared as plain numbers" in found["notes"][0]


def test_a_file_cut_while_comparing_is_said(tmp_path: Path) -> None:
    a = write(tmp_path / "a", {"w": np.ones(1000)})
    b = write(tmp_path / "b", {"w": np.ones(1000)})
    models = open_models((str(a), str(b)), (None, None), "model")
    with open(b / "model.safetensors", "r+b") as file:
        file.truncate(2000)
    with pytest.raises(WorkError, match=r"model.safetensors: ends before tensor 'w' does"):
        compare(models, 2, False)


def test_words_for_numbers() -> None:
    shares = [None, 0.0, 1.0, 0.5, 1e-5, 1e-12, 1 - 1e-12, 0.9996]
    assert [percent(share) for share in shares] == [
        "-", "0.0%", "100.0%", "50.0%", "0.0010%", "<0.0001%", ">99.9999%", "99.9600%"
    ]  # fmt: skip
    assert [count(0), count(1, "tensor"), count(1200, "tensor")] == ["0", "1 tensor", "1,200 tensors"]
    rows = table(["", "x"], [("a" * 99, "1"), ("new\nline", "22")])
    assert [len(row) for row in rows] == [100, 100, 100]
    assert rows[1].startswith("...aaa")
    assert rows[2].startswith("new\\nline ")
    title = "a title that is longer than the column below it"
    assert table(["", "x"], [(title,), ("a", "1")]) == ["   x", title, "a  1"]
    assert table(["", "分"], [("数学", "1"), ("a", "2")]) == [
        "      分",
        "数学   1",
        "a      2",
    ]  # two columns for a character
    assert table(["", "x"], [("数" * 60, "1")])[1] == f"...{'数' * 47}  1"


def test_names() -> None:
    assert layer_of("model.layers.3.mlp.up_proj.weight") == ("model.layers", 3)
    assert layer_of("transformer.h.11.attn.c_attn.bias") == ("transformer.h", 11)
    assert layer_of("blocks.0.w") == ("blocks", 0)
    assert layer_of("encoder.layer.2.output.dense.weight") == ("encoder.layer", 2)
    assert layer_of("visual.blocks.7.norm1.weight") == ("visual.blocks", 7)
    assert layer_of("model.layers.1.mlp.experts.5.down_proj.weight") == ("model.layers", 1)
    assert layer_of("lm_head.weight") is layer_of("width.3.w") is layer_of("layers.norm.weight") is None
    assert pattern_of("model.layers.3.mlp.experts.5.w") == "model.layers.*.mlp.experts.5.w"
    names = ["a.layers.0.q_proj.weight", "a.q_proj.bias", "w", "layers.0.weight", "e.experts.5.up.weight", "x.lora_A"]
    assert [word_of(name) for name in names] == ["q_proj", "q_proj.bias", "w", "layers", "up", "lora_A"]


# --- the command -------------------------------------------------------------------------------------------------------


def run(capsys: pytest.CaptureFixture[str], *argv: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as caught:
        main(["diff", *argv])
    out, err = capsys.readouterr()
    return int(caught.value.code or 0), out, err


def test_the_page_fits_and_says_what_counts_first(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a, b = llama(0), llama(0)
    b["model.layers.1.mlp.up_proj.weight"] = b["model.layers.1.mlp.up_proj.weight"] * 2
    b["model.norm.weight"] = np.full(16, np.nan)
    long = "model.layers.0." + "very_" * 20 + "long.weight"
    a[long], b[long] = np.ones(3), np.array([1.0, 1.0, 2.0])
    a["only.weight"] = np.ones(1)
    b["lm_head.weight"] = a["lm_head.weight"] + np.where(np.arange(16) == 0, 1, 0)
    code, out, err = run(capsys, stored(tmp_path / "a", a, "hf"), stored(tmp_path / "b", b, "hf"), "--top", "3")
    page = out.splitlines()
    assert (code, err) == (0, "")
    assert max(map(len, page)) <= 100
    assert page[0] == f"A  {tmp_path / 'a'}"
    assert page[3].startswith("different   4 of 22 tensors, 441 of 5,203 elements (8.5%)")
    assert page[4:6] == [
        "only in A   only.weight",
        "NaN or Inf  in B, not included in sums: model.norm.weight (16)",
    ]
    assert "tensors that changed most (3 of 4)" in out
    assert [line.split()[0][-12:] for line in page if line.startswith("...")] == ["ry_very_long", "_long.weight"]
    up = next(line for line in page if line.startswith("  model.layers.1.mlp.up_proj.weight"))
    assert up.split()[1] == "1"


def test_equal_ones(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = stored(tmp_path / "a", llama(0), "hf")
    code, out, _ = run(capsys, path, path)
    assert code == 0
    assert out.splitlines()[3] == "identical  all 21 tensors, 5,200 elements"
    code, out, err = run(capsys, "--json", path, path, "--top", "3")
    assert (code, err, json.loads(out)["same"]) == (0, "", True)


def test_the_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    a, b = (stored(tmp_path / name, llama(seed), "hf") for seed, name in enumerate("ab"))
    picture = tmp_path / "p.png"
    assert run(capsys, a, b, "--plot", str(picture))[0] == 0
    assert picture.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    plain = str(write(tmp_path / "plain", {"w": np.ones(2)}))
    with pytest.raises(CheckpointError, match="no tensor's name contains the number of a layer"):
        report(plain, plain, plot=str(picture))
    monkeypatch.setitem(sys.modules, "matplotlib", None)  # as if it weren't installed
    code, _, err = run(capsys, a, b, "--plot", str(picture))
    assert (code, err) == (1, "error: --plot needs matplotlib: pip install matplotlib\n")


def test_problems_come_together(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = DiffConfig(["a", "b", "c"], top=-1, n_process=0, plot="x/y.jpg", layout=["hf", "hf", "pd"])
    with pytest.raises(ConfigError) as caught:
        diff(config)
    assert caught.value.problems == [
        "--layout 'pd' must be one of hf, paddlenlp, paddleformers",
        "--top -1 must be at least 0",
        "--n_process 0 must be at least 1",
        "give two checkpoints, not 3: python -m paddle_merge diff A B",
        "--layout has 3 words for 2 models",
        "--plot x/y.jpg must end in .png",
        "--plot x/y.jpg: no such folder; create it first",
    ]
    a = str(tmp_path / "none")
    assert run(capsys, a, f"{a}/2", "--top", "-1")[::2] == (
        1,
        f"error: --top -1 must be at least 0\nerror: {a}: no such file or folder\nerror: {a}/2: no such file or folder\n",
    )
    assert run(capsys, a, "--tpo", "3")[2] == "error: unknown flag --tpo; did you mean 'top'?\n"
    assert run(capsys, a, a, "--top", "x")[2] == "error: --top must be a whole number, not 'x'\n"
