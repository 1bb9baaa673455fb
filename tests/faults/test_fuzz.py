"""Test randomly damaged inputs: trials of tools/fuzz.py, faults that its long runs found, and its checks."""

from __future__ import annotations

import json
import logging
import os
import pickle
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from paddle_merge import CheckpointError, ConfigError, MergeConfig, merge
from paddle_merge.checkpoints.open import open_checkpoint
from tests.checkpoints.formats.test_flex import Described, Index, Metadata, write_metadata
from tests.checkpoints.formats.test_pickles import MADE, text
from tests.checkpoints.formats.test_torch_bin import array_code, pickled, write_zip
from tests.support import attacks, specimens, trials
from tests.support.sweeps import few

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("count", few([2000], 0))
def test_trials(tmp_path: Path, count: int) -> None:
    fuzz = [sys.executable, str(ROOT / "tools" / "fuzz.py"), "--count", str(count), "--seed", "7"]
    done = subprocess.run([*fuzz, "--failures", str(tmp_path)], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{count} trials" in done.stdout
    table = [row.split("|")[2:-1] for row in done.stdout.splitlines() if row.startswith("| ")]
    rows = [list(map(int, row)) for row in table[2:]]
    assert len(rows) == len(specimens.KINDS)
    assert all(refused > count // 40 and fault == 0 for refused, _, _, fault in rows)
    assert sum(merged + changed for _, merged, changed, _ in rows) > count // 20


# --- the judge -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def guard() -> Iterator[trials.Guard]:
    yield trials.Guard()
    logging.disable(logging.NOTSET)  # trials do without


def _wrong_numbers(specimen: specimens.Specimen, folder: Path) -> None:
    os.chdir(folder)
    merge(MergeConfig(model_path_list=[str(folder / "a")] * 2, output_path=str(folder / "out")))


def _elsewhere(specimen: specimens.Specimen, folder: Path) -> None:
    (folder / "secret.safetensors").open("rb").close()
    trials_merge(specimen, folder)


def _left(specimen: specimens.Specimen, folder: Path) -> None:
    (folder / "out").mkdir()
    raise CheckpointError(f"{folder}: refused")


def _traceback(specimen: specimens.Specimen, folder: Path) -> None:
    raise KeyError("x")


def _runs(specimen: specimens.Specimen, folder: Path) -> None:
    subprocess.run(["true"], check=True)
    trials_merge(specimen, folder)


trials_merge = trials._merge


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        (_wrong_numbers, "independent reader"),
        (_elsewhere, "secret.safetensors"),
        (_left, "left or took ['out']"),
        (_traceback, "KeyError"),
        (_runs, "subprocess.Popen"),
    ],
)
def test_the_judge_sees(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, guard: trials.Guard, fault: Any, words: str
) -> None:
    monkeypatch.chdir(tmp_path)
    specimen = specimens.safetensors_index()
    wanted = trials.right(specimen, tmp_path / "t")
    assert trials.judged(specimen, {}, tmp_path / "t", guard, wanted).ending == "merged"
    monkeypatch.setattr(trials, "_merge", fault)
    outcome = trials.judged(specimen, {}, tmp_path / "t", guard, wanted)
    assert outcome.ending == "fault"
    assert words in outcome.detail


# --- found by it -----------------------------------------------------------------------------------------------------


def refused(path: Path) -> str:
    """The one sentence in which a checkpoint is refused, soon."""
    started = time.process_time()
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(str(path))
    assert time.process_time() - started < 10
    (sentence,) = caught.value.problems
    assert sentence.isprintable()
    assert len(sentence) < 3000
    return sentence


def header(folder: Path, content: dict[str, Any], data: bytes = b"") -> Path:
    words = json.dumps(content).encode()
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(words)) + words + data)
    return folder


@pytest.mark.parametrize(
    ("info", "words"),
    [
        ({"shape": [2**62] * 400}, "malformed shape"),  # its product has too many digits to print, or to compute soon
        ({"shape": [0, 2**62]}, "too large to address"),
        ({"dtype": [[[list(range(9999))]]]}, "isn't supported"),
        ({"dtype": "\x1b[2J\u202e"}, r"has dtype \x1b[2J\u202e,"),
        ({"byteorder": "big"}, "malformed header entry"),
    ],
)
def test_headers_of_safetensors(tmp_path: Path, info: dict[str, Any], words: str) -> None:
    assert words in refused(header(tmp_path, {"w": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0], **info}}))


def test_metadata_that_is_a_list(tmp_path: Path) -> None:
    assert "__metadata__" in refused(
        header(tmp_path, {"__metadata__": [], "w": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}})
    )


@pytest.mark.parametrize(
    "text_",
    [
        "model_path_list: !!int ''",
        "seed: !!bool x",
        "seed: !!timestamp x",
        "seed: 1\nseed: 2",
        "output_path: !!binary aGk=",
        "[" + "&l0 [a,a], " + ", ".join(f"&l{n} [*l{n - 1},*l{n - 1},*l{n - 1}]" for n in range(1, 40)) + "]",
        "seed: [" + "&l0 [a,a], " + ", ".join(f"&l{n} [*l{n - 1},*l{n - 1},*l{n - 1}]" for n in range(1, 40)) + "]",
        "seed: [0x" + "f" * 5000 + ", 2]",
        "seed: 0x" + "f" * 5000,
        'output_path: "\\ud800"',
    ],
)
def test_merge_configs(tmp_path: Path, text_: str) -> None:
    (tmp_path / "merge.yaml").write_text(text_)
    started = time.process_time()
    with pytest.raises(ConfigError) as caught:
        MergeConfig.from_mapping(MergeConfig.from_file(str(tmp_path / "merge.yaml")))
    assert time.process_time() - started < 10
    assert all(len(sentence) < 2000 for sentence in caught.value.problems)


def test_paths_that_are_no_text(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"--output_path '.*ud800' holds a character that paths can't have"):
        MergeConfig(output_path="\ud800")


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"rank_pattern": "x"}, "has a wrong type"),
        ({"alpha_pattern": [1]}, "has a wrong type"),
        ({"rank_pattern": {"(a+)+$": 2}}, "could take very long"),
        ({"rank_pattern": {".*.*.*.*x": 2}}, "could take very long"),
        ({"rank_pattern": {"a{99999999999}": 2}}, "isn't a valid pattern"),
        ({"lora_alpha": 10**400}, "can't be scaled"),
        ({"lora_alpha": 1e300}, "can't be scaled"),
        ({"r": list(range(10_000))}, "can't be scaled"),
        ({"bias": {"a": list(range(10_000))}}, "is not supported"),
    ],
)
def test_adapter_configs(tmp_path: Path, config: dict[str, Any], words: str) -> None:
    for name, content in specimens.adapter("peft").files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(content)
    path = tmp_path / "b" / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **config}))
    fields = MergeConfig(
        base_model_path=str(tmp_path / "a"), lora_model_path=str(tmp_path / "b"), output_path=str(tmp_path / "o")
    )
    with pytest.raises(CheckpointError, match=words) as caught:
        merge(fields)
    assert all(len(sentence) < 2000 for sentence in caught.value.problems)


@pytest.mark.parametrize("told", ["64", [8], 2.5, -2])
def test_a_head_dim_that_is_no_number(tmp_path: Path, told: Any) -> None:
    for name, content in specimens.ranks().files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(content)
    path = tmp_path / "a" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "head_dim": told}))
    with pytest.raises(CheckpointError, match=r"config\.json doesn't give its whole shape"):
        open_checkpoint(str(tmp_path / "a"))


def test_billions_of_heads(tmp_path: Path) -> None:
    """One slice each would be listed."""
    specimen = specimens.config_json(True)
    config = {
        "hidden_size": 8,
        "num_attention_heads": 10**9,
        "num_key_value_heads": 10**9,
        "head_dim": 1,
        "model_type": "llama",
    }
    for name, content in specimen.files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(json.dumps(config).encode() if name.endswith("/config.json") else content)
    with pytest.raises(CheckpointError):
        merge(
            MergeConfig(
                model_path_list=[str(tmp_path / "a"), str(tmp_path / "b")],
                output_path=str(tmp_path / "o"),
                layout=["paddleformers"] * 2,
            )
        )


def test_a_memory_bomb_of_tuples(tmp_path: Path) -> None:
    """A list of a million, made a tuple of ten thousand times, would be 80 GB."""
    content = b"\x80\x04](" + b"N" * 1_000_000 + b"e\x85q\x00" + attacks.TUPLE + b"q\x01(" + b"h\x01h\x00R" * 10_000 + b"t."
    (tmp_path / "model_state.pdparams").write_bytes(content)
    assert "calls tuple() with an object that is not a tuple" in refused(tmp_path)


def test_numbers_that_collide_as_keys(tmp_path: Path) -> None:
    prime = 2**61 - 1  # Python's hash of a number is its remainder
    keys = b"".join(b"\x8a\x0c" + (n * prime).to_bytes(12, "little") + b"N" for n in range(100_000))
    (tmp_path / "model_state.pdparams").write_bytes(b"\x80\x04}(" + keys + b"u.")
    assert "keys are not names" in refused(tmp_path)


def test_tables_of_slices_by_number(tmp_path: Path) -> None:
    x = np.ones(3, np.float32)
    content = {"a": x, "UnpackBigParamInfor@@": {5: {"OriginShape": (3,), "slices": ["a"]}}}
    (tmp_path / "model_state.pdparams").write_bytes(pickle.dumps(content, protocol=2))
    assert "table of slices is damaged" in refused(tmp_path)


@pytest.mark.parametrize("steps", [b"(q\x01u", b"](\x85t0", b"N(\x85ts", b"NN(su"])
def test_marks_are_not_taken_for_values(tmp_path: Path, steps: bytes) -> None:
    (tmp_path / "model_state.pdparams").write_bytes(b"\x80\x02}" + steps + b".")
    refused(tmp_path)


@pytest.mark.parametrize("shift", [-8, 1, 4])
def test_frames_show_what_was_lost(tmp_path: Path, shift: int) -> None:
    content = bytearray(pickle.dumps({"w": np.ones(3, np.float32)}, protocol=4))
    content[3:11] = struct.pack("<Q", struct.unpack("<Q", content[3:11])[0] + shift)
    (tmp_path / "model_state.pdparams").write_bytes(content)
    assert "damaged or truncated" in refused(tmp_path)


@pytest.mark.parametrize(
    ("good", "bad"),
    [
        (b"K\x00\x85C\x01b\x87R", b"NC\x01b\x87R"),  # _reconstruct of no shape
        (b"(K\x01K\x02\x85", b"(K\x09K\x02\x85"),  # the state of an array of version 9
        (b"\x89\x88\x87", b"NN\x87"),  # a dtype aligned by nothing
        (b"J\xff\xff\xff\xffJ", b"NJ"),  # a dtype of no size
    ],
)
def test_arrays_as_numpy_never_writes_them(tmp_path: Path, good: bytes, bad: bytes) -> None:
    content = (
        b"\x80\x04}" + text("w") + MADE + b"(K\x01K\x02\x85" + attacks.DTYPE + text("f4") + b"\x89\x88\x87R"
        + b"(K\x03" + text("<") + b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89C\x08" + bytes(8) + b"tbs."
    )  # fmt: skip
    (tmp_path / "model_state.pdparams").write_bytes(content)
    assert open_checkpoint(str(tmp_path)).tensors["w"].shape == (2,)
    assert good in content
    (tmp_path / "model_state.pdparams").write_bytes(content.replace(good, bad))
    refused(tmp_path)


def flex(folder: Path, shapes: list[Any], boxes: list[tuple[tuple[int, ...], tuple[int, ...]]]) -> Path:
    """One tensor in boxes of one element, all in one file."""
    described = [Described(at, size, "float32", shape, False, None) for (at, size), shape in zip(boxes, shapes, strict=True)]
    stored = {Index("w", at, False, None, None, size): "0_0.distcp" for at, size in boxes}
    write_metadata(folder, Metadata({"w": described}, stored, {}))
    held = {"w": np.ones(boxes[0][1], np.float32)}
    (folder / "0_0.distcp").write_bytes(pickle.dumps(held, protocol=4))
    return folder


def test_flex_metadata(tmp_path: Path) -> None:
    assert "an invalid shape" in refused(flex(tmp_path, [(-2,)], [((0,), (2,))]))
    boxes = [((0,), (1,)), ((0, 1), (1, 1))]
    (tmp_path / "1_0.distcp").write_bytes(pickle.dumps({"w": np.ones((1, 1), np.float32)}, protocol=4))
    described = [Described(at, size, "float32", None, False, None) for at, size in boxes]
    stored = {Index("w", at, False, None, None, size): f"{n}_0.distcp" for n, (at, size) in enumerate(boxes)}
    (tmp_path / "0_0.distcp").write_bytes(pickle.dumps({"w": np.ones(1, np.float32)}, protocol=4))
    write_metadata(tmp_path, Metadata({"w": described}, stored, {}))
    assert "different dimensions" in refused(tmp_path)


def test_thousands_of_boxes_are_checked_soon(tmp_path: Path) -> None:
    corners = [tuple(int(bit) for bit in f"{number:012b}") for number in range(4096)]
    folder = flex(tmp_path, [(2,) * 12] * 4096, [(corner, (1,) * 12) for corner in corners])
    started = time.process_time()
    assert open_checkpoint(str(folder)).tensors["w"].shape == (2,) * 12
    assert time.process_time() - started < 10


@pytest.mark.exhaustive
def test_one_shard_described_millions_of_times(tmp_path: Path) -> None:
    shards = [Described((0,), (2,), "float32", (2,), False, None)] * 1000
    write_metadata(tmp_path, Metadata({f"w{n}": shards for n in range(1000)}, {}, {}))
    (tmp_path / "0_0.distcp").write_bytes(pickle.dumps({}, protocol=4))
    assert "more shards than it can hold" in refused(tmp_path)


def test_zips_with_members_far_away_or_odd(tmp_path: Path) -> None:
    x = np.ones(3, np.float32)
    file = write_zip(tmp_path / "pytorch_model.bin", pickled({"w": array_code("0", x)}), {"0": x.tobytes()})
    good = file.read_bytes()
    assert open_checkpoint(str(tmp_path)).tensors["w"].shape == (3,)
    at = good.index(b"PK\x01\x02")
    file.write_bytes(good[: at + 8] + b"\x20\x00" + good[at + 10 :])  # flag 5: patched data
    assert "compressed or encrypted" in refused(tmp_path)
