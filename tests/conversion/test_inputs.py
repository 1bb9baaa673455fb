"""Test inputs: what is compared, refused, copied and left out; damaged headers; and the files of the output folder."""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import shutil
import stat
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from paddle_merge import CheckpointError, MergeConfig, MergeError, merge
from tests.support import checkpoints
from tests.support.sweeps import few

RANDOM = np.random.default_rng(11)


def run(*models: Path, out: Path, **fields: Any) -> Path:
    """Merge; the output folder."""
    merge(MergeConfig(model_path_list=[str(path) for path in models], output_path=str(out), **fields))
    return out


def refusal(*models: Path, out: Path, **fields: Any) -> list[str]:
    """The sentences of the CheckpointError that merging these raises, before anything was written."""
    with pytest.raises(CheckpointError) as caught:
        run(*models, out=out, **fields)
    assert not out.exists()
    return caught.value.problems


def header_of(file: Path) -> tuple[dict[str, Any], bytes]:
    """A safetensors file as (header, data)."""
    content = file.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    return json.loads(content[8 : 8 + length]), content[8 + length :]


def write_raw(file: Path, header: str | bytes | dict[str, Any], data: bytes, length: int | None = None) -> None:
    """A safetensors file from its parts, right or wrong."""
    if isinstance(header, dict):
        header = json.dumps(header)
    text = header.encode() if isinstance(header, str) else header
    file.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + data)


# --- do they fit together? --------------------------------------------------------------------------------------------


def test_all_differences_are_listed_at_once(tmp_path: Path) -> None:
    common = {"same": np.ones(3), "shape": np.ones((2, 3)), "kind": np.ones(4)}
    a = checkpoints.write(tmp_path / "a", {**common, "only a": np.ones(1)})
    b = checkpoints.write(tmp_path / "b", {**common, "shape": np.ones((3, 2)), "kind": np.arange(4)})
    base = checkpoints.write(tmp_path / "base", {**common, "only base": np.ones(1)})
    found = refusal(a, b, out=tmp_path / "o", base_model_path=str(base))
    assert sorted(found) == sorted(
        [
            f"tensor 'only a' is missing in {b}, {base} (it is in {a}); --missing_tensors union merges it nevertheless",
            f"tensor 'only base' is missing in {a}, {b} (it is in {base}); --missing_tensors union merges it nevertheless",
            f"tensor 'shape' has different shapes: [2, 3] in {a}, [3, 2] in {b}, [2, 3] in {base}; to merge all else,"
            " take it from one model by a recipe with modules: {shape: ..., default: ...}",
            f"tensor 'kind' has different dtypes: float32 in {a}, int64 in {b}, float32 in {base}",
        ]
    )


def test_models_of_different_types_are_told_apart(tmp_path: Path) -> None:
    """A union of a dense model and a mixture of experts has both kinds of layers, and is neither."""
    a, b = (
        checkpoints.write(tmp_path / kind, {"norm": np.ones(3), name: np.ones(1)}, config={"model_type": kind})
        for kind, name in (("dense", "mlp"), ("sparse", "experts"))
    )
    assert refusal(a, b, out=tmp_path / "o") == [
        f"the models' types differ: dense in {a}, sparse in {b}",
        f"tensor 'mlp' is missing in {b} (it is in {a})",
        f"tensor 'experts' is missing in {a} (it is in {b})",
    ]


def test_same_bytes_in_another_shape_do_not_fit(tmp_path: Path) -> None:
    a = checkpoints.write(tmp_path / "a", {"w": np.ones((2, 3))})
    b = checkpoints.write(tmp_path / "b", {"w": np.ones(6)})
    (sentence,) = refusal(a, b, out=tmp_path / "o")
    assert "'w' has different shapes" in sentence


def test_different_float_dtypes_need_out_dtype(tmp_path: Path) -> None:
    a = checkpoints.write(tmp_path / "a", {"w": np.array([1.0, 3.0])}, "float32")
    b = checkpoints.write(tmp_path / "b", {"w": np.array([2.0, 5.0])}, "bfloat16")
    (sentence,) = refusal(a, b, out=tmp_path / "o")
    assert "'w' has different dtypes" in sentence
    assert "--out_dtype" in sentence
    out = run(a, b, out=tmp_path / "o", out_dtype="float16")
    assert checkpoints.dtypes(out) == {"w": "float16"}
    assert checkpoints.read(out)["w"].tolist() == [1.5, 4.0]


def test_different_integer_dtypes_are_not_helped_by_out_dtype(tmp_path: Path) -> None:
    a = checkpoints.write(tmp_path / "a", {"i": np.arange(3, dtype=np.int64)})
    b = checkpoints.write(tmp_path / "b", {"i": np.arange(3, dtype=np.int32)})
    (sentence,) = refusal(a, b, out=tmp_path / "o", out_dtype="float32")
    assert "'i' has different dtypes" in sentence
    assert "--out_dtype" not in sentence


def test_a_model_without_tensors_is_refused(tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / name).mkdir()
        write_raw(tmp_path / name / "model.safetensors", "{}", b"")
    (sentence,) = refusal(tmp_path / "a", tmp_path / "b", out=tmp_path / "o")
    assert "holds no tensors" in sentence


def test_tensors_of_no_elements_and_of_no_dimensions(tmp_path: Path) -> None:
    tensors = {
        "empty": np.ones((0, 4)),
        "scalar": np.array(3.0),
        "no ints": np.ones((5, 0), np.int64),
        "n" * 5000: np.ones(1),
    }
    a = checkpoints.write(tmp_path / "a", tensors)
    b = checkpoints.write(tmp_path / "b", tensors)
    for workers in (1, 8):
        out = run(a, b, out=tmp_path / f"o{workers}", n_process=workers, merge_method="della", base_model_path=str(a))
        merged = checkpoints.read(out)
        assert {name: values.shape for name, values in merged.items()} == {
            "empty": (0, 4),
            "scalar": (),
            "no ints": (5, 0),
            "n" * 5000: (1,),
        }
        assert merged["scalar"] == 3.0


def test_only_empty_tensors(tmp_path: Path) -> None:
    a = checkpoints.write(tmp_path / "a", {"e": np.ones((0, 4))})
    out = run(a, a, out=tmp_path / "o", n_process=2)
    assert checkpoints.read(out)["e"].shape == (0, 4)


@pytest.mark.parametrize("base", [False, True])
def test_equal_integers_and_booleans_are_copied(tmp_path: Path, base: bool) -> None:
    tensors = {
        "w": RANDOM.normal(size=5),
        "i64": np.array([-(2**62), 2**62 + 1]),
        "i32": np.arange(400_000, dtype=np.int32),
        "u8": np.arange(256, dtype=np.uint8),
        "mask": np.array([[True, False]]),
    }
    a = checkpoints.write(tmp_path / "a", tensors)
    b = checkpoints.write(tmp_path / "b", tensors)
    fields = {"base_model_path": str(a), "merge_method": "ties"} if base else {}
    out = run(a, b, out=tmp_path / "o", out_dtype="bfloat16", **fields)
    merged = checkpoints.read(out)
    for name in ("i64", "i32", "u8", "mask"):
        assert merged[name].dtype == tensors[name].dtype
        assert np.array_equal(merged[name], tensors[name])
    assert checkpoints.dtypes(out)["w"] == "bfloat16"


def test_unequal_integers_are_all_named_before_anything_is_written(tmp_path: Path) -> None:
    steps = np.arange(300_000)
    tensors = {"w": np.ones(2), "steps": steps, "mask": np.array([True, False]), "fine": np.arange(3)}
    a = checkpoints.write(tmp_path / "a", tensors)
    late = steps.copy()
    late[-1] += 1
    b = checkpoints.write(tmp_path / "b", {**tensors, "steps": late})
    base = checkpoints.write(tmp_path / "base", {**tensors, "mask": np.array([True, True])})
    found = refusal(a, b, out=tmp_path / "o", base_model_path=str(base))
    assert len(found) == 2
    (about_steps,) = [sentence for sentence in found if "'steps' is int64, which can't be averaged" in sentence]
    (about_mask,) = [sentence for sentence in found if "'mask' is bool, which can't be averaged" in sentence]
    assert str(b) in about_steps
    assert str(base) not in about_steps
    assert str(base) in about_mask


# --- uint16 -----------------------------------------------------------------------------------------------------------


def paddlenlp_style(folder: Path, values: np.ndarray, config: dict[str, object] | None) -> Path:
    """bfloat16 bits under the tag U16, as PaddleNLP writes them."""
    checkpoints.write(folder, {"w": checkpoints.to_bits(values, "bfloat16").astype(np.uint16)})
    (folder / "config.json").unlink()
    if config is not None:
        (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize("key", ["dtype", "torch_dtype"])
def test_uint16_is_bfloat16_where_the_config_says_so(tmp_path: Path, key: str) -> None:
    a = paddlenlp_style(tmp_path / "a", np.array([1.0, -2.0]), {key: "bfloat16", "architectures": ["Tiny"]})
    b = paddlenlp_style(tmp_path / "b", np.array([2.0, -4.0]), {key: "bfloat16"})
    out = run(a, b, out=tmp_path / "o")
    assert checkpoints.dtypes(out) == {"w": "bfloat16"}
    assert checkpoints.read(out)["w"].tolist() == [1.5, -3.0]
    assert json.loads((out / "config.json").read_text())[key] == "bfloat16"


@pytest.mark.parametrize("config", [None, {}, {"dtype": "float32"}, {"dtype": "float16", "torch_dtype": "bfloat16"}])
def test_uint16_is_refused_otherwise(tmp_path: Path, config: dict[str, object] | None) -> None:
    a = paddlenlp_style(tmp_path / "a", np.ones(2), config)
    b = paddlenlp_style(tmp_path / "b", np.ones(2), {"dtype": "bfloat16"})
    (sentence,) = refusal(a, b, out=tmp_path / "o")
    assert f"{a}/model.safetensors: tensor 'w' has dtype U16" in sentence
    assert '"dtype": "bfloat16"' in sentence


# --- which files? -----------------------------------------------------------------------------------------------------


def test_sharded_and_single_inputs_merge_alike(tmp_path: Path) -> None:
    one = {f"t{number}": RANDOM.normal(size=(7, number + 1)) for number in range(9)}
    two = {name: RANDOM.normal(size=values.shape) for name, values in one.items()}
    a, b = checkpoints.write(tmp_path / "a", one), checkpoints.write(tmp_path / "b", two)
    a4, b3 = checkpoints.write(tmp_path / "a4", one, shards=4), checkpoints.write(tmp_path / "b3", two, shards=3)
    single = checkpoints.read(run(a, b, out=tmp_path / "o1"))
    mixed = checkpoints.read(run(a4, b3, out=tmp_path / "o2"))
    assert single.keys() == mixed.keys() == one.keys()
    for name in one:
        assert np.array_equal(single[name], mixed[name])
        stored = [checkpoints.from_bits(checkpoints.to_bits(x[name], "float32"), "float32") for x in (one, two)]
        expected = checkpoints.from_bits(checkpoints.to_bits((stored[0] + stored[1]) / 2, "float32"), "float32")
        assert np.array_equal(single[name], expected)


def test_master_weights(tmp_path: Path) -> None:
    for name, value in (("a", 1.0), ("b", 2.0)):
        checkpoints.write(tmp_path / name, {"w": np.full(3, value)}, "bfloat16")
        checkpoints.write(tmp_path / name, {"w": np.full(3, value * 10)}, "float32", prefix="master_weights", shards=2)
    out = run(tmp_path / "a", tmp_path / "b", out=tmp_path / "o", merge_prefix="master_weights")
    assert checkpoints.read(out, "master_weights")["w"].tolist() == [15.0] * 3
    assert checkpoints.dtypes(out, "master_weights") == {"w": "float32"}
    assert not (out / "model.safetensors").exists()


def test_a_prefix_that_is_not_there_is_said_with_what_is(tmp_path: Path) -> None:
    a = checkpoints.write(tmp_path / "a", {"w": np.ones(1)})
    b = tmp_path / "b"
    b.mkdir()
    (b / "model_state.pdparams").touch()
    c = tmp_path / "c"
    c.mkdir()
    found = refusal(a, b, c, out=tmp_path / "o", merge_prefix="master_weights")
    assert [
        f"{path}: has no master_weights.safetensors" in sentence for path, sentence in zip((a, b, c), found, strict=True)
    ]
    assert "it has model.safetensors: pass --merge_prefix model to merge that" in found[0]
    assert "it has model_state.pdparams: pass --merge_prefix model to merge that" in found[1]


Damage = Callable[[Path], None]


def index_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "model.safetensors.index.json").read_text())


def set_index(folder: Path, index: object) -> None:
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def put_in_wrong_shard(folder: Path) -> None:
    index = index_of(folder)
    index["weight_map"]["t0"] = "model-00002-of-00002.safetensors"
    set_index(folder, index)


def unlist(folder: Path) -> None:
    index = index_of(folder)
    del index["weight_map"]["t3"]
    set_index(folder, index)


def list_too_much(folder: Path) -> None:
    index = index_of(folder)
    index["weight_map"]["ghost"] = "model-00001-of-00002.safetensors"
    set_index(folder, index)


def leave_the_folder(folder: Path) -> None:
    index = index_of(folder)
    shutil.copy(folder / "model-00001-of-00002.safetensors", folder.parent / "outside.safetensors")
    index["weight_map"]["t0"] = "../outside.safetensors"
    set_index(folder, index)


def add_single(folder: Path) -> None:
    shutil.copy(folder / "model-00001-of-00002.safetensors", folder / "model.safetensors")


def hold_twice(folder: Path) -> None:
    shutil.copy(folder / "model-00001-of-00002.safetensors", folder / "model-00002-of-00002.safetensors")


def duplicate_in_index(folder: Path) -> None:
    file = folder / "model.safetensors.index.json"
    file.write_text(file.read_text().replace('"t0":', '"t0": "model-00001-of-00002.safetensors", "t0":'))


INDEX_DAMAGE: list[tuple[Damage, str]] = [
    (lambda folder: (folder / "model-00002-of-00002.safetensors").unlink(), "shards that don't exist: model-00002-of"),
    (
        put_in_wrong_shard,
        "tensor 't0' is in model-00001-of-00002.safetensors, but the index says that it is in model-00002-of",
    ),
    (unlist, "tensor 't3' is in model-00002-of-00002.safetensors, but the index doesn't list it"),
    (list_too_much, "tensor 'ghost' is in no file, but the index says that it is in model-00001-of"),
    (leave_the_folder, "names a shard outside its folder: '../outside.safetensors'"),
    (add_single, "has both model.safetensors and model.safetensors.index.json"),
    (hold_twice, "is also in"),
    (duplicate_in_index, "the same key twice"),
    (lambda folder: set_index(folder, {"metadata": {}}), "has no weight_map"),
    (lambda folder: set_index(folder, {"weight_map": {}}), "weight_map is empty"),
    (lambda folder: set_index(folder, {"weight_map": {"t0": 3}}), "has no weight_map"),
    (lambda folder: set_index(folder, {"weight_map": {"t0": "/etc/passwd"}}), "outside its folder"),
    (lambda folder: set_index(folder, {"weight_map": {"t0": ".."}}), "outside its folder"),
    (lambda folder: set_index(folder, {"weight_map": {"t0": "a\0b"}}), "a"),
    (lambda folder: set_index(folder, [1]), "has no weight_map"),
    (lambda folder: (folder / "model.safetensors.index.json").write_bytes(b"\xff{"), "is not valid JSON"),
]


@pytest.mark.parametrize(("damage", "words"), INDEX_DAMAGE, ids=[words[:40] for _, words in INDEX_DAMAGE])
def test_an_index_that_lies_is_refused(tmp_path: Path, damage: Damage, words: str) -> None:
    tensors = {f"t{number}": np.ones(number + 1) for number in range(4)}
    a = checkpoints.write(tmp_path / "a", tensors, shards=2)
    b = checkpoints.write(tmp_path / "b", tensors)
    damage(a)
    found = refusal(a, b, out=tmp_path / "o")
    assert words in "\n".join(found)
    assert all(str(a) in sentence for sentence in found)


# --- damaged headers --------------------------------------------------------------------------------------------------

GOOD = {
    "w": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]},
    "v": {"dtype": "F32", "shape": [1], "data_offsets": [8, 12]},
}


def entry(name: str, **changes: object) -> dict[str, Any]:
    return {**GOOD, name: {**GOOD[name], **changes}}


HEADER_DAMAGE: list[tuple[str, Any, bytes, int | None, str]] = [
    ("empty file", None, b"", None, "truncated within its header"),
    ("half a length", None, b"\x10\0\0", None, "truncated within its header"),
    ("length beyond the file", GOOD, b"\0" * 12, 10_000, "truncated within its header"),
    ("length beyond everything", GOOD, b"\0" * 12, 2**64 - 1, "truncated within its header"),
    ("length zero", GOOD, b"\0" * 12, 0, "truncated within its header"),
    ("length too small", GOOD, b"\0" * 12, 20, "header is not valid JSON"),
    ("truncated data", GOOD, b"\0" * 11, None, "is truncated"),
    ("trailing bytes", GOOD, b"\0" * 13, None, "is longer than its header says"),
    ("not JSON", "{nonsense}", b"", None, "header is not valid JSON"),
    ("not UTF-8", b'{"\xff": 1}', b"", None, "header is not valid JSON"),
    ("a list", "[1, 2]", b"", None, "header is not a JSON object"),
    ("deep nesting", "[" * 100_000, b"", None, "header is not valid JSON"),
    ("an endless number", '{"w": ' + "9" * 5000 + "}", b"", None, "header"),
    ("a key twice", '{"w": {"dtype": "F32"}, "w": {}}', b"", None, "the same key twice"),
    (
        "a field twice",
        '{"w": {"dtype": "F32", "dtype": "F16", "shape": [1], "data_offsets": [0, 4]}}',
        b"\0" * 4,
        None,
        "twice",
    ),
    ("overlap", entry("v", data_offsets=[4, 8]), b"\0" * 8, None, "overlaps another, or leaves a gap"),
    ("gap", entry("v", data_offsets=[12, 16]), b"\0" * 16, None, "overlaps another, or leaves a gap"),
    ("gap at the start", {"w": {"dtype": "U8", "shape": [1], "data_offsets": [1, 2]}}, b"\0" * 2, None, "leaves a gap"),
    (
        "too small for its shape",
        entry("w", shape=[3]),
        b"\0" * 12,
        None,
        "float32 [3], 12 bytes, but its data_offsets span 8",
    ),
    ("too large for its shape", entry("w", shape=[1]), b"\0" * 12, None, "4 bytes, but its data_offsets span 8"),
    ("reversed offsets", entry("w", data_offsets=[8, 0]), b"\0" * 12, None, "data_offsets span -8"),
    ("negative shape", entry("w", shape=[-1, -2]), b"\0" * 12, None, "malformed shape or data_offsets"),
    ("fractional shape", entry("w", shape=[2.0]), b"\0" * 12, None, "malformed shape or data_offsets"),
    ("boolean shape", entry("w", shape=[True, 2]), b"\0" * 12, None, "malformed shape or data_offsets"),
    ("shape as text", entry("w", shape="2"), b"\0" * 12, None, "malformed shape or data_offsets"),
    ("huge shape", entry("w", shape=[2**62, 2**62]), b"\0" * 12, None, "'w'"),
    ("one offset", entry("w", data_offsets=[0]), b"\0" * 12, None, "malformed shape or data_offsets"),
    ("no dtype", {"w": {"shape": [1], "data_offsets": [0, 4]}}, b"\0" * 4, None, "has dtype None"),
    ("unknown dtype", entry("w", dtype="F7"), b"\0" * 12, None, "has dtype F7"),
    ("dtype not a word", entry("w", dtype=["F32"]), b"\0" * 12, None, "has dtype"),
    ("float4", entry("w", dtype="F4"), b"\0" * 12, None, "has dtype F4, which isn't supported"),
    ("not an object", {**GOOD, "w": 5}, b"\0" * 12, None, "malformed header entry"),
    ("metadata not text", {**GOOD, "__metadata__": {"format": 1}}, b"\0" * 12, None, "__metadata__ is not a map"),
    ("metadata a list", {**GOOD, "__metadata__": ["pt"]}, b"\0" * 12, None, "__metadata__ is not a map"),
    (
        "a name that is no text",
        '{"\\ud800": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}',
        b"\0" * 4,
        None,
        "model.safetensors",
    ),
    (
        "a format that is no text",
        json.dumps({**GOOD, "__metadata__": {"format": "\ud800"}}),
        b"\0" * 12,
        None,
        "model.safetensors",
    ),
]


@pytest.mark.parametrize(
    ("header", "data", "length", "words"),
    [damage[1:] for damage in HEADER_DAMAGE],
    ids=[damage[0] for damage in HEADER_DAMAGE],
)
def test_a_damaged_file_is_refused_by_name(tmp_path: Path, header: Any, data: bytes, length: int | None, words: str) -> None:
    """Both inputs are damaged, so that it isn't the other one that saves us: both are named."""
    for name in "ab":
        (tmp_path / name).mkdir()
        file = tmp_path / name / "model.safetensors"
        if header is None:
            file.write_bytes(data)
        else:
            write_raw(file, header, data, length)
    found = refusal(tmp_path / "a", tmp_path / "b", out=tmp_path / "o")
    for name in "ab":
        assert [sentence for sentence in found if words in sentence and str(tmp_path / name) in sentence]


def test_several_faults_of_one_file_are_listed_together(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    header = {"w": {**GOOD["w"], "dtype": "X"}, "v": {**GOOD["v"], "shape": [7]}}
    write_raw(tmp_path / "a/model.safetensors", header, b"\0" * 12)
    found = refusal(tmp_path / "a", tmp_path / "gone", out=tmp_path / "o")
    assert len(found) == 3


def test_the_good_header_is_good(tmp_path: Path) -> None:
    """What HEADER_DAMAGE damages is read without complaint, padded or not."""
    for name, padding in (("a", ""), ("b", "   ")):
        (tmp_path / name).mkdir()
        write_raw(tmp_path / name / "model.safetensors", json.dumps(GOOD) + padding, struct.pack("<3f", 1, 2, 3))
    out = run(tmp_path / "a", tmp_path / "b", out=tmp_path / "o")
    assert {name: values.tolist() for name, values in checkpoints.read(out).items()} == {"w": [1.0, 2.0], "v": [3.0]}


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    tensors = {"a.weight": np.ones((2, 3)), "b": np.ones(4), "i": np.arange(3), "empty": np.ones((0, 2))}
    return checkpoints.write(tmp_path_factory.mktemp("small") / "m", tensors, "bfloat16", format="pt")


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_whatever_is_damaged_it_merges_readably_or_is_refused(small: Path, tmp_path: Path, data: st.DataObject) -> None:
    """Bytes of the header (and its length) replaced, swapped for characters that matter in JSON, the file cut or grown."""
    content = bytearray((small / "model.safetensors").read_bytes())
    end = 8 + struct.unpack("<Q", content[:8])[0]
    places = st.integers(0, end - 1)
    values = st.one_of(st.integers(0, 255), st.sampled_from(list(b'{}[]",:0123456789-.eE\\u dFBSHPV')))
    for place, value in data.draw(st.lists(st.tuples(places, values), max_size=4)):
        content[place] = value
    if data.draw(st.booleans()):
        content = content[: data.draw(st.integers(0, len(content)))]
    content += data.draw(st.binary(max_size=3))

    damaged = tmp_path / "damaged"
    shutil.rmtree(damaged, ignore_errors=True)
    shutil.rmtree(tmp_path / "o", ignore_errors=True)
    shutil.copytree(small, damaged)
    (damaged / "model.safetensors").write_bytes(content)
    logging.disable()
    try:
        run(damaged, damaged, out=tmp_path / "o", merge_method="linear")
    except MergeError:
        assert not (tmp_path / "o").exists()
    else:
        merged = safetensors.deserialize((tmp_path / "o/model.safetensors").read_bytes())
        assert len(merged) == len(checkpoints_of(damaged))
    finally:
        logging.disable(logging.NOTSET)


def checkpoints_of(folder: Path) -> dict[str, Any]:
    header, _ = header_of(folder / "model.safetensors")
    return {name: info for name, info in header.items() if name != "__metadata__"}


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    header=st.recursive(
        st.none()
        | st.booleans()
        | st.integers(-(2**70), 2**70)
        | st.floats()
        | st.sampled_from(["F32", "", "pt", "\ud800"]),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from(["dtype", "shape", "data_offsets", "__metadata__", "w", "\ud800"]), inner, max_size=4
            )
        ),
        max_leaves=12,
    )
)
def test_any_json_for_a_header_is_refused_or_merged(tmp_path: Path, header: Any) -> None:
    folder = tmp_path / "m"
    folder.mkdir(exist_ok=True)
    shutil.rmtree(tmp_path / "o", ignore_errors=True)
    write_raw(folder / "model.safetensors", json.dumps(header), b"")
    try:
        run(folder, folder, out=tmp_path / "o")
    except MergeError:
        assert not (tmp_path / "o").exists()
    else:
        safetensors.deserialize((tmp_path / "o/model.safetensors").read_bytes())


# --- the output -------------------------------------------------------------------------------------------------------


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path]:
    """Two models of 20 tensors, 40 + 40 + ... + 8 * 20 bytes."""
    tensors = {f"layer.{number}.w": RANDOM.normal(size=(number + 1, 2)) for number in range(20)}
    return tuple(checkpoints.write(tmp_path / name, tensors, "float32", format="pt") for name in "ab")  # type: ignore[return-value]


def test_sharded_output_is_what_the_single_file_is(tmp_path: Path, pair: tuple[Path, Path]) -> None:
    single = run(*pair, out=tmp_path / "single")
    sharded = run(*pair, out=tmp_path / "sharded", max_shard_size="500", n_process=2)
    index = index_of(sharded)
    files = sorted(path.name for path in sharded.glob("*.safetensors"))
    count = len(files)
    assert count > 3
    assert files == [f"model-{number:05d}-of-{count:05d}.safetensors" for number in range(1, count + 1)]
    assert sorted(set(index["weight_map"].values())) == files
    assert index["metadata"]["total_size"] == sum(8 * (number + 1) for number in range(20))
    assert index["weight_map"].keys() == {f"layer.{number}.w" for number in range(20)}
    for file in files:
        header, data = header_of(sharded / file)
        assert header.pop("__metadata__") == {"format": "pt"}
        assert {name for name, shard in index["weight_map"].items() if shard == file} == header.keys()
        assert len(data) <= 500
    whole, parts = checkpoints.read(single), checkpoints.read(sharded)
    assert whole.keys() == parts.keys()
    assert all(np.array_equal(whole[name], parts[name]) for name in whole)
    assert not (single / "model.safetensors.index.json").exists()
    again = run(sharded, pair[0], out=tmp_path / "again", weight_list=[1.0, 0.0])
    assert all(np.array_equal(values, whole[name]) for name, values in checkpoints.read(again).items())


def test_a_tensor_larger_than_a_shard_has_one_of_its_own(tmp_path: Path, pair: tuple[Path, Path]) -> None:
    out = run(*pair, out=tmp_path / "o", max_shard_size="1")
    assert len(list(out.glob("model-*-of-00020.safetensors"))) == 20
    assert len(checkpoints.read(out)) == 20


def test_more_shards_than_files_may_be_open(tmp_path: Path) -> None:
    import resource

    tensors = {f"t{number}": np.ones(1) for number in range(300)}
    a, b = checkpoints.write(tmp_path / "a", tensors, shards=100), checkpoints.write(tmp_path / "b", tensors)
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (200, before[1]))
    try:
        for workers in (1, 2):
            out = run(a, b, out=tmp_path / f"o{workers}", max_shard_size="1", n_process=workers)
            assert len(checkpoints.read(out)) == 300
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


@pytest.mark.parametrize("format", ["pt", "np", "pd", None, "ünusual"])
def test_the_metadata_format_is_kept(tmp_path: Path, format: str | None) -> None:
    a = checkpoints.write(tmp_path / "a", {"w": np.ones(2)}, format=format)
    b = checkpoints.write(tmp_path / "b", {"w": np.ones(2)}, format=format)
    header, _ = header_of(run(a, b, out=tmp_path / "o") / "model.safetensors")
    assert header.get("__metadata__") == ({"format": format} if format else None)


def test_formats_that_differ_are_warned_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    a = checkpoints.write(tmp_path / "a", {"w": np.ones(2)}, format="pt")
    b = checkpoints.write(tmp_path / "b", {"w": np.ones(2)}, format="np")
    header, _ = header_of(run(a, b, out=tmp_path / "o", base_model_path=str(b)) / "model.safetensors")
    assert header["__metadata__"] == {"format": "np"}, "the base model's"
    (warning,) = [record.getMessage() for record in caplog.records if "metadata formats differ" in record.getMessage()]
    assert f"pt in {a}" in warning
    assert f"np in {b}" in warning


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32", "float64"])
def test_out_dtype_converts_and_config_follows(tmp_path: Path, dtype: str) -> None:
    values = RANDOM.normal(size=100)
    kept = {"hidden_size": 4, "torch_dtype": "float32"}
    a = checkpoints.write(tmp_path / "a", {"w": values, "i": np.arange(2)}, "float32", config=kept)
    out = run(a, a, out=tmp_path / "o", out_dtype=dtype)
    assert checkpoints.dtypes(out) == {"w": dtype, "i": "int64"}
    stored = checkpoints.from_bits(checkpoints.to_bits(values, "float32"), "float32")
    expected = checkpoints.from_bits(checkpoints.to_bits(stored, dtype), dtype)
    assert np.array_equal(checkpoints.read(out)["w"], expected)
    config = json.loads((out / "config.json").read_text())
    assert config == {"architectures": ["Tiny"], "hidden_size": 4, "dtype": dtype, "torch_dtype": dtype}


def test_config_names_the_dtype_even_if_it_did_not(tmp_path: Path) -> None:
    """PaddleNLP writes none for float32, and Paddle's libraries load as float32 where it is missing."""
    a = checkpoints.write(tmp_path / "a", {"w": RANDOM.normal(size=9)}, "bfloat16")
    (a / "config.json").write_text(json.dumps({"architectures": ["Tiny"], "model_type": "tiny"}))
    config = json.loads((run(a, a, out=tmp_path / "o") / "config.json").read_text())
    assert config == {"architectures": ["Tiny"], "model_type": "tiny", "dtype": "bfloat16", "torch_dtype": "bfloat16"}


LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "original_max_position_embeddings": 64}


@pytest.mark.parametrize(
    ("before", "added"),
    [
        ({"rope_parameters": {"rope_theta": 5e5, "rope_type": "default"}}, {"rope_theta": 5e5}),
        ({"rope_parameters": {"rope_theta": 5e5, **LLAMA3}}, {"rope_theta": 5e5, "rope_scaling": LLAMA3}),
        (
            {"rope_parameters": {"rope_theta": 5e5, **LLAMA3}, "rope_scaling": None},
            {"rope_theta": 5e5, "rope_scaling": LLAMA3},
        ),
        ({"rope_parameters": {"rope_theta": 5e5, "rope_type": "default"}, "rope_theta": 5e5, "rope_scaling": None}, {}),
        ({"rope_parameters": {"full_attention": {"rope_theta": 1e6, "rope_type": "default"}}}, {}),
        ({"rope_theta": 5e5, "rope_scaling": LLAMA3}, {}),
        (
            {"rope_parameters": {"rope_theta": 5e5, "partial_rotary_factor": 0.5, **LLAMA3}},
            {"rope_theta": 5e5, "partial_rotary_factor": 0.5, "rope_scaling": LLAMA3},
        ),
        (
            {"text_config": {"rope_parameters": {"rope_theta": 5e5, "rope_type": "default"}}},
            {"text_config": {"rope_parameters": {"rope_theta": 5e5, "rope_type": "default"}, "rope_theta": 5e5}},
        ),
    ],
)
def test_rotary_embeddings_in_the_words_of_all_libraries(
    tmp_path: Path, pair: tuple[Path, Path], before: dict[str, object], added: dict[str, object]
) -> None:
    """transformers 5 writes rope_parameters; PaddleNLP and transformers 4 don't know them and take their defaults."""
    (pair[0] / "config.json").write_text(json.dumps(before))
    assert json.loads((run(*pair, out=tmp_path / "o") / "config.json").read_text()) == {**before, **added}


def test_a_config_without_architectures(tmp_path: Path, pair: tuple[Path, Path], caplog: pytest.LogCaptureFixture) -> None:
    (pair[0] / "config.json").write_text(json.dumps({"model_type": "llama"}))
    run(*pair, out=tmp_path / "o")
    (warning,) = [record.getMessage() for record in caplog.records if "architectures" in record.getMessage()]
    assert warning.startswith(f"{pair[0]}/config.json names no architectures")
    caplog.clear()
    (pair[0] / "config.json").write_text(json.dumps({"model_type": "llama", "architectures": ["L"]}))
    run(*pair, out=tmp_path / "p")
    assert not caplog.records


def test_configs_that_use_weights_otherwise(
    tmp_path: Path, pair: tuple[Path, Path], caplog: pytest.LogCaptureFixture
) -> None:
    """Where transformers 5 keeps rope_theta counts too; what one config leaves out is not compared."""
    one = {"rope_theta": 1e6, "num_attention_heads": 8, "rms_norm_eps": 1e-6, "sliding_window": 4}
    other = {"rope_parameters": {"rope_theta": 1e4}, "num_attention_heads": 8, "rms_norm_eps": 1e-5}
    for path, config in zip(pair, (one, other), strict=True):
        (path / "config.json").write_text(json.dumps(config))
    run(*pair, out=tmp_path / "o")
    assert [record.getMessage() for record in caplog.records] == [
        f"{pair[1]} was trained with rms_norm_eps 1e-05 (not 1e-06), rope_theta 10000.0 (not 1000000.0):"
        f" the output gets config.json from {pair[0]}"
    ]


def test_without_out_dtype_config_is_copied_to_the_byte(tmp_path: Path, pair: tuple[Path, Path]) -> None:
    (pair[0] / "config.json").write_bytes(b'{"a":   1,\r\n "b": "\xc3\xa9"}')
    out = run(*pair, out=tmp_path / "o")
    assert (out / "config.json").read_bytes() == b'{"a":   1,\r\n "b": "\xc3\xa9"}'


def test_a_config_that_cannot_take_out_dtype_is_found_before_the_merge(tmp_path: Path, pair: tuple[Path, Path]) -> None:
    (pair[0] / "config.json").write_text("{not json")
    with pytest.raises(CheckpointError, match=r"config\.json"):
        run(*pair, out=tmp_path / "o", out_dtype="bfloat16", dry_run=True)


def test_config_and_tokenizer_come_from_the_base_else_the_first(tmp_path: Path, pair: tuple[Path, Path]) -> None:
    a, b = pair
    copied = [
        "config.json",
        "generation_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "tokenizer.model",
        "special_tokens_map.json",
        "added_tokens.json",
        "vocab.json",
        "merges.txt",
        "chat_template.jinja",
        "preprocessor_config.json",
    ]
    litter = [
        "optimizer.safetensors",
        "optimizer.pdopt",
        "model_state.pdparams",
        "training_args.bin",
        "trainer_state.json",
        "model.safetensors.index.json.old",
        "rng_state_0.pth",
        "saved_signal_0",
        "flex-ckpt.auto_generated.metadata",
        ".model_weight.done.0",
        "scheduler.pdparams",
    ]
    for folder in pair:
        for name in copied + litter:
            (folder / name).write_text(f'{{"{name}": "{folder.name}"}}')
        (folder / "tokenizer").mkdir()
    own = {"model.safetensors", "README.md", "merge_config.json", "merge_lock.json"}
    for out, config_source, fields in ((tmp_path / "o1", a, {}), (tmp_path / "o2", b, {"base_model_path": str(b)})):
        run(a, b, out=out, **fields)
        assert {path.name for path in out.iterdir()} == {*own, *copied}
        assert all((out / name).read_bytes() == (config_source / name).read_bytes() for name in copied)


def test_copy_file_list_comes_on_top(tmp_path: Path, pair: tuple[Path, Path]) -> None:
    (pair[0] / "LICENSE").write_text("mine")
    (pair[0] / "code").mkdir()
    (pair[0] / "code/modeling.py").write_text("x = 1")
    wanted = ["LICENSE", "code/modeling.py", "./config.json", "LICENSE"]
    out = run(*pair, out=tmp_path / "o", copy_file_list=wanted)
    assert (out / "LICENSE").read_text() == "mine"
    assert (out / "code/modeling.py").read_text() == "x = 1"
    config = json.loads((pair[0] / "config.json").read_text())
    assert json.loads((out / "config.json").read_text()) == {**config, "torch_dtype": config["dtype"]}
    assert not list(out.rglob("*.partial"))


@pytest.mark.parametrize("name", ["gone.txt", "../b/config.json", "/etc/hostname", "code"])
def test_copy_file_list_refuses_what_is_not_a_file_of_the_config_source(
    tmp_path: Path, pair: tuple[Path, Path], name: str
) -> None:
    (pair[0] / "code").mkdir()
    (sentence,) = refusal(*pair, out=tmp_path / "o", copy_file_list=[name])
    assert sentence.startswith(f"--copy_file_list {name}: ")


@pytest.mark.parametrize(
    "name",
    [
        "model.safetensors",
        "model.safetensors.index.json",
        "model-00001-of-00002.safetensors",
        "merge_config.json",
        "merge_lock.json",
        "model_state.pdparams",
    ],
)
def test_copy_file_list_cannot_bring_back_the_old_weights_or_record(
    tmp_path: Path, pair: tuple[Path, Path], name: str
) -> None:
    """An old index or shard beside the merged weights is what loaders would read instead of, or with, them."""
    a = checkpoints.write(tmp_path / "sharded", checkpoints.read(pair[0]), shards=2, format="pt")
    if not (a / name).exists():
        (a / name).write_text("{}")
    if name == "model.safetensors":
        a = pair[0]
    (sentence,) = refusal(a, pair[1], out=tmp_path / "o", copy_file_list=[name])
    assert f"--copy_file_list {name}" in sentence


def test_the_model_card_says_what_was_merged(tmp_path: Path, pair: tuple[Path, Path]) -> None:
    out = run(
        *pair, out=tmp_path / "o", weight_list=[3.0, 1.0], base_model_path=str(pair[1]), reserve_p=0.4, merge_method="ties"
    )
    card = (out / "README.md").read_text()
    assert card.startswith("---\n")
    assert "# o\n" in card
    for words in ("`ties`", "| a | 3 |", "| b | 1 |", "changes to b", "reserve_p 0.4", "weight: 3.0", "merge_config.json"):
        assert words in card


def test_the_card_gives_the_weights_that_counted(tmp_path: Path, pair: tuple[Path, Path]) -> None:
    card = (run(*pair, out=tmp_path / "o", weight_list=[3.0, 1.0]) / "README.md").read_text()
    assert "| a | 0.75 |" in card
    assert "| b | 0.25 |" in card


@pytest.mark.parametrize("umask", [0o022, 0o077, 0o002])
def test_files_follow_the_umask(tmp_path: Path, pair: tuple[Path, Path], umask: int) -> None:
    """safetensors 0.8 makes files that only their owner may read, whatever the umask."""
    os.chmod(pair[0] / "config.json", 0o400)
    before = os.umask(umask)
    try:
        out = run(*pair, out=tmp_path / "o", max_shard_size="900")
    finally:
        os.umask(before)
    assert {stat.S_IMODE(path.stat().st_mode) for path in out.iterdir()} == {0o666 & ~umask}
    assert stat.S_IMODE(out.stat().st_mode) == 0o777 & ~umask


def test_inputs_may_be_read_only_and_are_left_alone(tmp_path: Path, pair: tuple[Path, Path]) -> None:
    def state() -> list[tuple[str, int, bytes]]:
        files = [path for folder in pair for path in sorted(folder.iterdir())]
        return [(str(path), path.stat().st_mtime_ns, path.read_bytes()) for path in files]

    before = state()
    for folder in pair:
        for path in folder.iterdir():
            path.chmod(0o444)
        folder.chmod(0o555)
    try:
        run(*pair, out=tmp_path / "o", n_process=2)
    finally:
        for folder in pair:
            folder.chmod(0o755)
    assert state() == before


@pytest.mark.parametrize("workers", few([3, 1, 2]))
def test_any_number_of_workers_writes_the_same_bytes(tmp_path: Path, pair: tuple[Path, Path], workers: int) -> None:
    fields: dict[str, Any] = {"merge_method": "dare_ties", "base_model_path": str(pair[1]), "max_shard_size": "700"}
    first = run(*pair, out=tmp_path / "one", **fields)
    other = run(*pair, out=tmp_path / "other", n_process=workers, **fields)
    names = sorted(path.name for path in first.glob("model*"))
    assert names == sorted(path.name for path in other.glob("model*"))
    assert all((first / name).read_bytes() == (other / name).read_bytes() for name in names)


def test_shards_reached_through_links_as_in_a_hub_cache(tmp_path: Path, pair: tuple[Path, Path]) -> None:
    snapshot = tmp_path / "snapshots/abc"
    snapshot.mkdir(parents=True)
    for path in pair[0].iterdir():
        (snapshot / path.name).symlink_to(path)
    out = run(snapshot, pair[1], out=tmp_path / "o")
    assert not any(path.is_symlink() for path in out.iterdir())
    direct = run(*pair, out=tmp_path / "p")
    assert (out / "model.safetensors").read_bytes() == (direct / "model.safetensors").read_bytes()


def test_a_model_given_twice_counts_twice(tmp_path: Path, pair: tuple[Path, Path], caplog: pytest.LogCaptureFixture) -> None:
    out = run(pair[0], pair[0], out=tmp_path / "o")
    whole = checkpoints.read(pair[0])
    assert all(np.array_equal(values, whole[name]) for name, values in checkpoints.read(out).items())
    assert f"{pair[0]} is given more than once" in [record.getMessage() for record in caplog.records]


def test_every_field_of_the_config_is_recorded_or_left_out_on_purpose(tmp_path: Path, pair: tuple[Path, Path]) -> None:
    record = json.loads(
        (run(*pair, out=tmp_path / "o") / "merge_config.json").read_text()
    )  # n_process only if it isn't auto
    fields = {item.name for item in dataclasses.fields(MergeConfig)}
    assert fields - record.keys() == {
        "n_process",
        "model_path_str",
        "overwrite",
        "resume",
        "dry_run",
        "account",
        "print_recipe",
    }
    assert record.keys() - fields == {"paddle_merge_version"}
