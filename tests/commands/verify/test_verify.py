"""Test the record of a merge, and what `verify` reports when a file differs from it."""

from __future__ import annotations

import itertools
import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xxhash
from hypothesis import given
from hypothesis import strategies as st

from paddle_merge import CheckpointError, MergeConfig, merge
from paddle_merge.checkpoints.fingerprint import BLOCK, Fingerprint, of_elements, of_file, sum_of
from paddle_merge.commands.main import main
from paddle_merge.commands.verify.verify import Findings, verify
from paddle_merge.run.output.lock import WrittenTensor, read_lock
from tests.conversion.lora.test_lora import factors, in_peft, peft
from tests.conversion.test_layout import llama, stored
from tests.support import checkpoints

# --- fingerprints ------------------------------------------------------------------------------------------------------


def by_definition(values: np.ndarray) -> str:
    blocks = [values[start : start + BLOCK] for start in range(0, len(values), BLOCK)]
    hashes = [xxhash.xxh3_128_intdigest(block.tobytes(), seed=number) for number, block in enumerate(blocks)]
    return f"{sum(hashes) % 2**128:032x}"


VALUES = np.random.default_rng(0).integers(0, 1 << 16, 3 * BLOCK + 77, np.uint16)


@given(
    cuts=st.lists(st.integers(0, len(VALUES)), max_size=5),
    pieces=st.lists(st.integers(0, len(VALUES) // BLOCK), max_size=3),
    stop=st.integers(0, len(VALUES)),
)
def test_a_fingerprint_is_of_the_elements_however_they_come(cuts: list[int], pieces: list[int], stop: int) -> None:
    values = VALUES[:stop]
    bounds = sorted({0, stop, *(piece * BLOCK for piece in pieces if piece * BLOCK < stop)})
    found = []
    for start, end in itertools.pairwise(bounds):
        fingerprint = Fingerprint(start)
        steps = sorted({start, end, *(cut for cut in cuts if start < cut < end)})
        for first, last in itertools.pairwise(steps):
            fingerprint.add(values[first:last], first)
            fingerprint.add(values[start:last], start)  # a second pass is no news
        assert fingerprint.stop == end
        found.append(fingerprint.hexdigest())
        assert of_elements(values[start:end], start) == found[-1]
    assert sum_of(found) == by_definition(values)


TEXT = st.text(st.characters(exclude_categories=[]), max_size=9)


@given(
    texts=st.tuples(TEXT, TEXT, TEXT),
    numbers=st.tuples(st.integers(0), st.integers(0)),
    shape=st.lists(st.integers(0)),
    read=st.lists(TEXT),
    block=st.sampled_from([BLOCK, 1, 9]),
)
def test_a_row_of_the_lock_is_json(
    texts: tuple[str, str, str], numbers: tuple[int, int], shape: list[int], read: list[str], block: int
) -> None:
    (shard, dtype, written), (offset, mix) = texts, numbers
    tensor = WrittenTensor(shard, offset, dtype, tuple(shape), mix, written, tuple(read), block)
    content = {name: value for name, value in vars(tensor).items() if name != "block" or value != BLOCK}
    assert tensor.row == json.dumps(content)


def test_blocks_that_change_places_are_noticed(tmp_path: Path) -> None:
    swapped = np.concatenate([VALUES[BLOCK : 2 * BLOCK], VALUES[:BLOCK], VALUES[2 * BLOCK :]])
    assert by_definition(swapped) != by_definition(VALUES)
    (tmp_path / "f").write_bytes(b"head" + swapped.tobytes())
    assert of_file(str(tmp_path / "f"), 4, 2, 0, len(swapped)) == by_definition(swapped)
    with pytest.raises(EOFError):
        of_file(str(tmp_path / "f"), 5, 2, 0, len(swapped))


def test_pieces_begin_where_blocks_do() -> None:
    with pytest.raises(ValueError, match="begin a block"):
        Fingerprint(BLOCK + 1)


# --- a merge and its record --------------------------------------------------------------------------------------------


def model(folder: Path, seed: int, dtype: str = "bfloat16") -> str:
    generator = np.random.default_rng(seed)
    tensors: dict[str, np.ndarray] = {f"layers.{k}.up": generator.standard_normal((300, 700)) for k in range(6)}
    tensors |= {f"layers.{k}.norm": generator.standard_normal(700) for k in range(6)}
    tensors |= {"ids": np.arange(900), "none": np.zeros((0, 3))}
    checkpoints.write(folder, tensors, dtype, shards=2)
    (folder / "config.json").write_text('{"model_type": "made_up"}\n')
    (folder / "tokenizer.json").write_text("{}\n")
    return str(folder)


@pytest.fixture
def made(tmp_path: Path) -> Path:
    """Inputs a, b and base, and what ties makes of them in out, in several files."""
    models = [model(tmp_path / name, seed) for seed, name in enumerate(("a", "b", "base"))]
    return run(tmp_path / "out", models[:2], models[2])


def run(out: Path, models: list[str], base: str | None = None, **fields: Any) -> Path:
    fields = {"merge_method": "ties", "reserve_p": 0.4, "max_shard_size": "1MB", **fields}
    merge(MergeConfig(model_path_list=models, base_model_path=base, output_path=str(out), **fields), progress=False)
    return out


def check(out: Path, sample: int | None = None, tolerant: bool = False, n_process: int = 1) -> Findings:
    return verify(str(out), sample, n_process, tolerant, progress=False)


def change(path: Path, offset: int, by: int = 1) -> None:
    """One bit, in place."""
    with open(path, "r+b") as file:
        file.seek(offset)
        byte = file.read(1)[0]
        file.seek(offset)
        file.write(bytes([byte ^ by]))


@pytest.mark.parametrize("n_process", [1, 2])
def test_what_a_merge_wrote_is_found_whole(made: Path, n_process: int) -> None:
    found = check(made, None, n_process=n_process)
    assert (found.off, found.notes) == ([], [])
    assert (found.tensors, len(found.remade)) == (14, 13)  # one has no elements
    assert found.nbytes == sum(path.stat().st_size for path in made.glob("*.safetensors"))


@pytest.mark.exhaustive
def test_the_record_is_the_same_for_any_n_process(made: Path, tmp_path: Path) -> None:
    again = run(tmp_path / "again", [str(tmp_path / "a"), str(tmp_path / "b")], str(tmp_path / "base"), n_process=3)
    locks = [json.loads((out / "merge_lock.json").read_text()) for out in (made, again)]
    for lock in locks:
        del lock["files"]["merge_config.json"]  # which says where the output is, and n_process
    assert locks[0] == locks[1]


def test_what_the_record_says(made: Path, tmp_path: Path) -> None:
    """The fingerprints are those of the files' bytes, of inputs and output alike."""
    lock = read_lock(str(made))
    row = lock.tensors["layers.3.up"]
    assert (row.dtype, row.shape) == ("bfloat16", (300, 700))
    stored = {
        name: by_definition(checkpoints.to_bits(checkpoints.read(tmp_path / name)["layers.3.up"], "bfloat16").reshape(-1))
        for name in ("a", "b", "base", "out")
    }
    assert row.written == stored["out"]
    assert row.read == (stored["a"], stored["b"], stored["base"])
    assert lock.recipe["method"] == "paddlenlp:ties"
    (resolved,) = lock.recipe["mixes"]
    assert resolved == {
        "sparsifier": {"name": "trim", "density": 0.4, "rescale": True},
        "merger": {"name": "ties", "weights": [1, 1], "normalize": True, "elect": "sum", "zero_sign": "positive"},
        "scale": 1.0,
    }
    assert [Path(one["path"]).name for one in lock.inputs] == ["a", "b", "base"]
    assert lock.files["tokenizer.json"] == xxhash.xxh3_128_hexdigest(b"{}\n")
    assert set(lock.files) == {"config.json", "tokenizer.json", "merge_config.json", "model.safetensors.index.json"}


def test_every_byte_of_the_output_is_looked_at(made: Path) -> None:
    """A bit anywhere in any weights file; the tensor is named, or the header."""
    lock = read_lock(str(made))
    generator = np.random.default_rng(1)
    for path in sorted(made.glob("*.safetensors")):
        size = path.stat().st_size
        for offset in [0, 9, size - 1, *generator.integers(0, size, 12).tolist()]:
            change(path, offset)
            at = [
                name
                for name, row in lock.tensors.items()
                if row.shard == path.name and row.offset <= offset < row.offset + row.size * row.itemsize
            ]
            (sentence,) = check(made, 0).off
            assert sentence == (
                f"tensor {at[0]!r} in {path} isn't what the merge wrote"
                if at
                else f"{path}: the header, that is all bytes outside of tensors, isn't what the merge wrote"
            )
            change(path, offset)
    assert check(made, 0).off == []


def test_files_beside_the_weights(made: Path) -> None:
    (made / "README.md").write_text("the card may be edited")
    (made / "notes.txt").write_text("mine")
    assert check(made, 0).off == []
    (made / "config.json").write_text("{}")
    (made / "tokenizer.json").unlink()
    (made / "pytorch_model.bin").write_bytes(b"")
    assert check(made, 0).off == [
        f"{made}/config.json: has changed since the merge",
        f"{made}/tokenizer.json: can't be read (No such file or directory)",
        f"{made}/pytorch_model.bin: doesn't belong to this merge, but loaders may read it as weights",
    ]


def test_weights_that_are_cut_off_or_gone(made: Path) -> None:
    """Of a file that is gone, one line is enough; of one that is cut off, the tensors tell how much is lost."""
    first, second, *_ = sorted(made.glob("*.safetensors"))
    size = first.stat().st_size
    os.truncate(first, size - 2)
    second.unlink()
    rows = read_lock(str(made)).tensors
    held = sum(row.shard == second.name for row in rows.values())
    (last,) = (
        name for name, row in rows.items() if row.shard == first.name and row.offset + row.size * row.itemsize == size
    )
    assert check(made, 0).off == [
        f"{first}: has {size - 2:,} bytes, and the merge wrote {size:,}",
        f"{second}: can't be read (No such file or directory); the merge wrote {held} tensors to it",
        f"tensor {last!r} in {first} isn't what the merge wrote",
    ]


def test_a_file_of_other_weights_is_one_line(made: Path) -> None:
    shards: dict[str, list[WrittenTensor]] = {}
    for row in read_lock(str(made)).tensors.values():
        shards.setdefault(row.shard, []).append(row)
    shard, rows = max(shards.items(), key=lambda item: len(item[1]))
    for row in rows:
        if row.size:
            change(made / shard, row.offset)
    count = sum(row.size > 0 for row in rows)
    assert count > 1
    assert check(made, 0).off == [f"{made / shard}: none of its {count} tensors is what the merge wrote"]


@pytest.mark.parametrize("which", ["a", "b", "base"])
@pytest.mark.parametrize("tensor", ["layers.4.norm", "ids"])
def test_an_input_that_has_changed_is_named(made: Path, tmp_path: Path, which: str, tensor: str) -> None:
    tensors = checkpoints.read(tmp_path / which)
    tensors[tensor][0] += 1
    ints = {"ids": tensors["ids"].astype(np.int64)}
    checkpoints.write(tmp_path / which, {**tensors, **ints}, "bfloat16", shards=2)
    assert check(made).off == [f"tensor {tensor!r} of {tmp_path / which} isn't what was merged"]


def test_other_inputs_altogether(made: Path, tmp_path: Path) -> None:
    for which in ("a", "b", "base"):
        tensors = checkpoints.read(tmp_path / which)
        del tensors["layers.0.up"]
        checkpoints.write(tmp_path / which, tensors, "bfloat16", shards=2)
    (sentence,) = check(made).off
    assert sentence.endswith("don't have the tensors, dtypes, or shapes any more that were merged")


def test_a_result_that_the_inputs_do_not_make(made: Path) -> None:
    """Output and record agree, and both are wrong: as if another program, or a broken machine, had made them."""
    row = read_lock(str(made)).tensors["layers.2.norm"]
    change(made / row.shard, row.offset + 8)
    content = json.loads((made / "merge_lock.json").read_text())
    content["tensors"]["layers.2.norm"]["written"] = of_file(str(made / row.shard), row.offset, 2, 0, 700)
    (made / "merge_lock.json").write_text(json.dumps(content))
    assert check(made, 0).off == []
    (sentence,) = check(made).off
    assert sentence.startswith(
        "tensor 'layers.2.norm', computed again from the same inputs, isn't what the merge wrote with paddle_merge "
    )


def test_a_sample_has_some_of_every_kind(made: Path) -> None:
    for count in (1, 2, 3, 5):
        found = check(made, count)
        assert len(found.remade) == count
        assert len({name.split(".")[-1] for name in found.remade}) == min(count, 3)  # up, norm, ids


def test_without_the_inputs(made: Path, tmp_path: Path) -> None:
    shutil.rmtree(tmp_path / "b")
    found = check(made, 16, tolerant=True)
    assert (found.off, found.remade) == ([], [])
    (note,) = found.notes
    assert note.startswith("no tensor was computed again from the inputs: ")
    assert str(tmp_path / "b") in note
    with pytest.raises(CheckpointError, match=str(tmp_path / "b")):
        check(made)


@pytest.mark.parametrize("fields", [{"save_format": "pdparams"}, {"out_dtype": "float16"}, {"merge_method": "dare_ties"}])
def test_other_formats_dtypes_and_methods(tmp_path: Path, fields: dict[str, Any]) -> None:
    models = [model(tmp_path / name, seed) for seed, name in enumerate(("a", "b", "base"))]
    out = run(tmp_path / "out", models[:2], models[2], **fields)
    assert check(out).off == []
    path = next(path for path in out.iterdir() if path.suffix in (".pdparams", ".safetensors"))
    change(path, path.stat().st_size - 3)
    assert len(check(out, 0).off) == 1


def test_adapters_and_turned_layouts(tmp_path: Path) -> None:
    """Inputs are recorded as they were merged: transposed, with the adapter folded in. A changed adapter is reported."""
    base = stored(tmp_path / "base", llama(0), "paddlenlp")
    other = stored(tmp_path / "other", llama(1), "hf")
    adapter = peft(tmp_path / "lora", in_peft(factors(1)), "float32")
    layout = {"layout": ["paddlenlp", "hf"], "output_layout": "hf"}
    out = run(tmp_path / "out", [f"{base}+{adapter}", str(other)], merge_method="linear", **layout)
    assert check(out).off == []
    (tmp_path / "lora").joinpath("adapter_config.json").unlink()
    shutil.rmtree(tmp_path / "lora")
    peft(tmp_path / "lora", in_peft(factors(2)), "float32")
    off = check(out).off
    assert off
    assert all(f"of {base}+{adapter} isn't what was merged" in sentence for sentence in off)


def test_through_the_command_line(made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def cli(*words: str) -> int:
        with pytest.raises(SystemExit) as caught:
            main(["verify", *words])
        return int(caught.value.code or 0)

    assert cli(str(made), "--full") == 0
    assert "what the merge wrote" in capsys.readouterr().out
    change(made / "config.json", 0)
    assert cli(str(made)) == 1
    streams = capsys.readouterr()
    assert streams.err.strip() == f"differs: {made}/config.json: has changed since the merge"
    assert cli(str(made), "--json") == 1
    content = json.loads(capsys.readouterr().out)
    assert (content["same"], len(content["off"]), len(content["remade"])) == (False, 1, 13)
    assert cli(str(tmp_path / "a"), "-q") == 1
    assert "holds no merge_lock.json" in capsys.readouterr().err
    assert cli(str(made), str(made), "--n_process", "0", "--sample", "-1", "--full") == 1
    assert len(capsys.readouterr().err.splitlines()) == 4


@pytest.mark.parametrize(
    "damage",
    [
        lambda lock: lock.pop("tensors"),
        lambda lock: lock.update(files=[1]),
        lambda lock: lock["tensors"]["ids"].update(shape=[-1]),
        lambda lock: lock["tensors"]["ids"].update(dtype="float7"),
        lambda lock: lock["tensors"]["ids"].update(written="xyz"),
        lambda lock: lock["tensors"]["ids"].update(shard="../elsewhere"),
        lambda lock: lock["files"].update({"../../etc/passwd": "0"}),
        lambda lock: lock["shards"].update({"/etc/passwd": [1, "0"]}),
        lambda lock: lock.update(inputs=[1]),
    ],
)
def test_a_damaged_record_is_one_sentence(made: Path, damage: Any) -> None:
    path = made / "merge_lock.json"
    content = json.loads(path.read_text())
    damage(content)
    path.write_text(json.dumps(content))
    with pytest.raises(CheckpointError) as caught:
        check(made)
    assert caught.value.problems == [f"{path}: is damaged: it doesn't say what a merge writes there"]
