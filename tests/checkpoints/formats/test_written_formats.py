"""Test the weights files that are written: pickle, Paddle, the safetensors library and our readers read them back."""

from __future__ import annotations

import json
import math
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors
from hypothesis import given, settings
from hypothesis import strategies as st

from paddle_merge import CheckpointError, ConfigError, MergeConfig, OutputError, merge
from paddle_merge.backends.engine import import_paddle
from paddle_merge.checkpoints.formats import pdparams as pdparams_frame
from paddle_merge.checkpoints.formats.header import Header, Held
from paddle_merge.checkpoints.formats.naming import FORMATS, index_name, is_weights, shard_name
from paddle_merge.checkpoints.open import open_checkpoint
from paddle_merge.dtypes import DTYPES, UINT16
from tests.conversion.test_layout import CONFIG, laid_out, llama, means, stored
from tests.support.checkpoints import from_bits, read, to_bits, write
from tests.support.sweeps import few

FLOATS = ("bfloat16", "float16", "float32", "float64")


def tensors(seed: int) -> dict[str, np.ndarray]:
    """Every kind: matrices, a scalar, empty ones, integers, a name that isn't ASCII, more than 255 and 65535 long."""
    generator = np.random.default_rng(seed)
    return {
        "layer.weight": generator.standard_normal((300, 7)),
        "long": generator.standard_normal(70_000),
        "层": generator.standard_normal((2, 3, 4)),
        "scalar": np.array(2.5),
        "empty": np.zeros((0, 3)),
        "int64": np.arange(-3, 4),
        "int32": np.arange(5, dtype="i4"),
        "uint8": np.arange(7, dtype="u1"),
        "bool": np.array([[True], [False]]),
        "one": np.array(7),
    }


def merged(tmp_path: Path, out: str, dtype: str, **fields: Any) -> Path:
    paths = [str(write(tmp_path / f"{dtype}{seed}", {**tensors(0), **floats(seed)}, dtype)) for seed in range(2)]
    merge(MergeConfig(model_path_list=paths, output_path=str(tmp_path / out), **fields))
    return tmp_path / out


def floats(seed: int) -> dict[str, np.ndarray]:
    return {name: value for name, value in tensors(seed).items() if value.dtype.kind == "f"}


# --- one file ---


def filled(header: Header, data: list[bytes]) -> bytes:
    """The file, if the pieces and the tensors' bytes cover it without overlapping."""
    places = [*header.pieces, *zip(header.offsets, data, strict=True)]
    content = b""
    for offset, piece in sorted(places, key=lambda place: (place[0], len(place[1]))):
        assert offset == len(content)
        content += piece
    assert len(content) == header.nbytes
    return content


held = st.tuples(
    st.text(st.characters(codec="utf-8"), max_size=300),
    st.sampled_from([dtype for dtype in DTYPES if dtype.name in pdparams_frame.HELD]),
    st.lists(st.integers(0, 3) | st.sampled_from([255, 256]), max_size=3).filter(lambda shape: math.prod(shape) < 5000),
)


@given(st.lists(held, max_size=8, unique_by=lambda item: item[0]), st.integers(0, 2**32 - 1))
@settings(max_examples=100, deadline=None)
def test_pickle_reads_what_is_put_into_the_frame(items: list[Any], seed: int) -> None:
    """pickle and NumPy, whatever their versions, are the judges; the table of names is what makes Paddle give tensors."""
    generator = np.random.default_rng(seed)
    group, data = [], []
    for name, dtype, shape in items:
        nbytes = math.prod(shape) * dtype.itemsize
        group.append(Held(name, dtype, tuple(shape), nbytes))
        data.append(generator.integers(0, 2, nbytes, np.uint8).tobytes())
    loaded = pickle.loads(filled(pdparams_frame.header(group, "np"), data))
    assert loaded.pop("StructuredToParameterName@@") == {name: name for name, _, _ in items}
    assert list(loaded) == [name for name, _, _ in items]
    for tensor, content in zip(group, data, strict=True):
        array = loaded[tensor.name]
        assert array.dtype == np.dtype("<f2" if tensor.dtype.name == "float16" else tensor.dtype.raw)
        assert array.shape == tensor.shape
        assert array.tobytes() == content


def test_large_dimensions_and_offsets() -> None:
    """Beyond 2**32, where nothing can be written here: only headers are."""
    group = [Held(name, DTYPES[2], (2**33, 3), 3 * 2**35) for name in "ab"]
    header = pdparams_frame.header(group, None)
    first, second, last = (content for _, content in header.pieces)
    assert pickle.dumps(2**33, 2)[2:-1] in first
    assert first.endswith((3 * 2**35).to_bytes(8, "little"))
    assert header.offsets[1] == header.offsets[0] + 3 * 2**35 + len(second)
    assert header.nbytes == header.offsets[1] + 3 * 2**35 + len(last)


def test_what_paddle_has_no_tensors_of() -> None:
    bad = Held("ids", next(dtype for dtype in DTYPES if dtype.name == "uint32"), (1,), 4)
    good = Held("w", DTYPES[0], (1,), 2)
    table = good._replace(name="StructuredToParameterName@@")
    assert pdparams_frame.problems([good]) == []
    assert [
        problem.split(",")[0] for problem in pdparams_frame.problems([bad, good, bad._replace(dtype=UINT16), table])
    ] == [
        "tensor 'ids' is uint32",
        "tensor 'ids' is uint16",
        "tensor 'StructuredToParameterName@@' has the name that Paddle reserves for its table of names; rename it",
    ]


# --- merges ---


@pytest.mark.parametrize("n_process", few([1, 2]))
@pytest.mark.parametrize("size", ["5GB", "10KB"])
@pytest.mark.parametrize("dtype", FLOATS)
def test_paddle_loads_what_the_safetensors_hold(tmp_path: Path, dtype: str, size: str, n_process: int) -> None:
    paddle = import_paddle()
    expected = {}
    folder = merged(tmp_path, "st", dtype)
    for name, info in safetensors.deserialize((folder / "model.safetensors").read_bytes()):
        expected[name] = (info["dtype"], tuple(info["shape"]), bytes(info["data"]))
    out = merged(tmp_path, "pd", dtype, save_format="pdparams", max_shard_size=size, n_process=n_process)
    assert not list(out.glob("*.safetensors*"))
    if size == "5GB":
        files = ["model_state.pdparams"]
    else:
        index = json.loads((out / "model_state.pdparams.index.json").read_text())
        assert index["metadata"]["total_size"] == sum(len(data) for _, _, data in expected.values())
        files = sorted(set(index["weight_map"].values()))
        assert len(files) == 3
        assert files[0] == f"model_state-00001-of-0000{len(files)}.pdparams"
    assert sorted(files) == sorted(path.name for path in out.glob("*.pdparams"))
    found = {name: tensor for file in files for name, tensor in paddle.load(str(out / file)).items()}
    arrays = {name: tensor for file in files for name, tensor in paddle.load(str(out / file), return_numpy=True).items()}
    assert found.keys() == arrays.keys() == expected.keys()
    tags = {stored.tag: stored.name for stored in DTYPES}
    for name, (tag, shape, data) in expected.items():
        assert isinstance(found[name], paddle.Tensor)
        assert str(found[name].dtype) == f"paddle.{tags[tag]}"
        assert tuple(found[name].shape) == shape
        assert arrays[name].tobytes() == data
    held = open_checkpoint(str(out)).tensors
    assert {name: (entry.dtype.tag, entry.shape) for name, entry in held.items()} == {
        name: (tag, shape) for name, (tag, shape, _) in expected.items()
    }
    config = json.loads((out / "config.json").read_text())
    assert config["dtype"] == config.get("torch_dtype", dtype) == dtype


def test_any_number_of_workers_and_a_second_merge(tmp_path: Path) -> None:
    one = merged(tmp_path, "one", "bfloat16", save_format="pdparams", merge_method="dare_linear", max_shard_size="10KB")
    two = merged(
        tmp_path, "two", "bfloat16", save_format="pdparams", merge_method="dare_linear", max_shard_size="10KB", n_process=3
    )
    for path in one.glob("model_state*"):
        assert path.read_bytes() == (two / path.name).read_bytes()
    merge(MergeConfig(model_path_list=[str(one), str(two)], output_path=str(tmp_path / "again")))
    assert read(tmp_path / "again").keys() == tensors(0).keys()


def test_master_weights(tmp_path: Path) -> None:
    values = {"w": np.arange(6.0).reshape(2, 3)}
    path = str(write(tmp_path / "a", values, "float32", prefix="master_weights"))
    config = MergeConfig(model_path_list=[path, path], output_path=str(tmp_path / "out"), save_format="pdparams")
    config.merge_prefix = "master_weights"
    merge(config)
    with open(tmp_path / "out" / "master_weights.pdparams", "rb") as file:
        assert (pickle.load(file)["w"] == values["w"]).all()


def test_paddles_layout_is_for_paddles_files(tmp_path: Path) -> None:
    a, b = llama(0), llama(1)
    paths = [stored(tmp_path / "a", a, "hf", CONFIG), stored(tmp_path / "b", b, "paddlenlp", CONFIG)]
    config = MergeConfig(model_path_list=paths, output_path=str(tmp_path / "out"), save_format="pdparams")
    with pytest.raises(CheckpointError, match="pass --output_layout paddlenlp or paddleformers too"):
        merge(config)
    config.output_layout = "hf"
    with pytest.raises(CheckpointError, match="pass --output_layout paddlenlp or paddleformers too"):
        merge(config)
    config.output_layout = "paddlenlp"
    merge(config)
    with open(tmp_path / "out" / "model_state.pdparams", "rb") as file:
        found = pickle.load(file)
    del found["StructuredToParameterName@@"]
    expected = laid_out(means(a, b), "paddlenlp")
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert (from_bits(found[name], "bfloat16") == from_bits(to_bits(value, "bfloat16"), "bfloat16")).all()


def test_torchs_files_of_unknown_models_may_be_turned(tmp_path: Path) -> None:
    """Paddle would load a square [out, in] matrix without a word."""
    values = {"blocks.0.proj.weight": np.arange(64.0).reshape(8, 8), "blocks.0.proj.bias": np.ones(8)}
    path = str(write(tmp_path / "a", values, "float32", format="pt"))
    config = MergeConfig(model_path_list=[path, path], output_path=str(tmp_path / "out"), save_format="pdparams")
    with pytest.raises(CheckpointError, match=r"saved by torch, which may store 'blocks.0.proj.weight' transposed; state"):
        merge(config)
    config.layout = ["paddleformers"] * 2
    merge(config)
    with open(tmp_path / "out" / "model_state.pdparams", "rb") as file:
        assert (pickle.load(file)["blocks.0.proj.weight"] == values["blocks.0.proj.weight"]).all()


def test_integers_that_paddle_has_not(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.mkdir()
    header = json.dumps({"ids": {"dtype": "U32", "shape": [1], "data_offsets": [0, 4]}}).encode()
    (path / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + b"\1\0\0\0")
    config = MergeConfig(model_path_list=[str(path)] * 2, output_path=str(tmp_path / "out"), save_format="pdparams")
    with pytest.raises(CheckpointError, match="tensor 'ids' is uint32, a dtype that Paddle doesn't have"):
        merge(config)
    assert not (tmp_path / "out").exists()


def test_a_name_that_safetensors_has_taken(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "model_state.pdparams").write_bytes(pickle.dumps({"__metadata__": np.ones(3, "f4")}, protocol=4))
    config = MergeConfig(model_path_list=[str(tmp_path / "a")] * 2, output_path=str(tmp_path / "out"))
    with pytest.raises(CheckpointError, match="'__metadata__' has the name that safetensors reserves for metadata"):
        merge(config)
    config.save_format = "pdparams"
    merge(config)


# --- the output folder ---


def test_names_of_files() -> None:
    assert shard_name("pdparams", "model", 0, 1) == "model_state.pdparams"
    assert shard_name("pdparams", "model", 1, 3) == "model_state-00002-of-00003.pdparams"
    assert shard_name("safetensors", "model", 1, 3) == "model-00002-of-00003.safetensors"
    assert index_name("pdparams", "master_weights") == "master_weights.pdparams.index.json"
    for save_format in FORMATS:
        names = [shard_name(save_format, "model", 0, count) for count in (1, 2)] + [index_name(save_format, "model")]
        assert all(is_weights(name, save_format, "model") for name in names)
        assert not any(is_weights(f"{name}x", save_format, "model") for name in names)
        for other in FORMATS.keys() - {save_format}:
            assert not any(is_weights(name, other, "model") for name in names)


@pytest.mark.parametrize(("first", "second"), [("safetensors", "pdparams"), ("pdparams", "safetensors")])
def test_a_folder_never_holds_both(tmp_path: Path, first: str, second: str) -> None:
    out = merged(tmp_path, "out", "float32", save_format=first)
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    with pytest.raises(OutputError, match=r"mix with the merged ones: .*; move them away, or choose another folder"):
        merged(tmp_path, "out", "float32", save_format=second, overwrite=True)
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before


def test_overwriting_shards_by_one_file(tmp_path: Path) -> None:
    out = merged(tmp_path, "out", "float32", save_format="pdparams", max_shard_size="10KB")
    assert (out / "model_state.pdparams.index.json").exists()
    merged(tmp_path, "out", "float32", save_format="pdparams", overwrite=True)
    assert [path.name for path in out.glob("model_state*")] == ["model_state.pdparams"]


def test_what_a_killed_merge_left_goes(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    for name in ("model_state-00001-of-00002.pdparams.partial", "model.safetensors.partial"):
        (out / name).write_bytes(b"half")
    merged(tmp_path, "out", "float32", save_format="pdparams")
    assert not list(out.glob("*.partial"))


def test_what_a_killed_merge_set_aside_goes_when_a_merge_stands(tmp_path: Path) -> None:
    """Until then it is the only copy of an earlier merge."""
    out = tmp_path / "out"
    out.mkdir()
    left = [out / name for name in ("model.safetensors.replaced", "merge_config.json.replaced")]
    for path in left:
        path.write_bytes(b"whole")
    (out / "mine.replaced").touch()
    with pytest.raises(OutputError, match="is not empty; pass --overwrite"):
        merged(tmp_path, "out", "float32", save_format="pdparams")
    assert all(path.exists() for path in left)
    merged(tmp_path, "out", "float32", save_format="pdparams", overwrite=True)
    assert [path.name for path in out.glob("*.replaced")] == ["mine.replaced"]


def test_a_format_that_is_none(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "model_state.pdparams").touch()
    with pytest.raises(ConfigError, match="--save_format 'pdparam' must be one of safetensors, pdparams") as caught:
        merged(tmp_path, "out", "float32", save_format="pdparam")
    assert "Traceback" not in str(caught.value)
