"""Test what evaluators get of a candidate."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import numpy as np
import pytest

from paddle_merge.backends.engine import import_paddle
from paddle_merge.errors import OutputError
from paddle_merge.recipe.yaml_read import parse
from paddle_merge.search.candidates import MergedCandidate, stored_candidate
from paddle_merge.search.contract import EvaluationError
from paddle_merge.search.merger import Merger
from tests.support.checkpoints import read, write

RECIPE = """
merge_method: linear
models: [{{model: {0}/a, parameters: {{weight: 1}}}}, {{model: {0}/b, parameters: {{weight: 3}}}}]
"""


def merged(folder: Path, dtype: str = "float32") -> MergedCandidate:
    """(1 * 0 + 3 * 4) / 4 = 3 everywhere."""
    for name, value in (("a", 0.0), ("b", 4.0)):
        write(folder / name, {"weight": np.full((3, 2), value), "bias": np.full(2, value)}, dtype)
    (folder / "near").mkdir()
    return MergedCandidate("m", parse(RECIPE.format(folder), "x.yaml").recipe, Merger(), str(folder / "near"))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_its_tensors_are_new_memory(tmp_path: Path, dtype: str) -> None:
    candidate = merged(tmp_path, dtype)
    first = candidate.state_dict()
    assert {name: (value.dtype, value.tolist()) for name, value in first.items()} == {
        "weight": (np.float32, [[3.0, 3.0]] * 3),
        "bias": (np.float32, [3.0, 3.0]),
    }
    first["weight"][...] = 0
    assert (candidate.state_dict()["weight"] == 3).all()
    paddle = import_paddle()
    of_paddle = candidate.state_dict("pd")
    assert all(isinstance(value, paddle.Tensor) and (value.numpy() == 3).all() for value in of_paddle.values())


def test_it_is_copied_into_a_model(tmp_path: Path) -> None:
    """In place: the model's own tensors get the values."""
    paddle = import_paddle()
    candidate, layer = merged(tmp_path), paddle.nn.Linear(3, 2)
    held = layer.weight
    candidate.load_into(layer)
    assert layer.weight is held
    assert (held.numpy() == 3).all()
    assert (layer.bias.numpy() == 3).all()
    with pytest.raises(EvaluationError, match=r"tensor 'weight' is \[3, 2\], and \[4, 2\] in the model"):
        candidate.load_into(paddle.nn.Linear(4, 2))
    with pytest.raises(EvaluationError, match=r"has no 'x.weight' \(and 1 more\), which the model"):
        candidate.load_into(paddle.nn.LayerDict({"x": paddle.nn.Linear(3, 2)}))


def test_codes_are_scored_as_they_are_written(tmp_path: Path) -> None:
    """Not what they were made of: 1/3 is 74.7 of the block's scale, 2/448, and the codes next to it are 72 and 80."""
    name = "model.layers.0.mlp.up_proj.weight"
    values = np.full((4, 6), 1 / 3)
    values[0, 0] = 2.0
    tensors = {name: values, "model.norm.weight": np.ones(6)}
    write(tmp_path / "a", tensors, "bfloat16", format="pt", config={"model_type": "llama"})
    models = [f"{{model: {tmp_path}/a, parameters: {{weight: 1}}}}"]
    for near, dtype in (("one", "out_dtype: fp8_block\n"), ("two", "")):  # whose first model holds codes, stores some, too
        (tmp_path / near).mkdir()
        recipe = parse(f"{dtype}merge_method: linear\nmodels: [{', '.join(models)}]", "x.yaml").recipe
        candidate = MergedCandidate("m", recipe, Merger(), str(tmp_path / near))
        found = candidate.state_dict()[name]
        np.testing.assert_allclose(found, np.where(values == 2, 2.0, 72 * 2 / 448), rtol=2**-8)
        assert candidate.kind == ""  # so a model that is open in a library doesn't get other values
        models.insert(0, f"{{model: {candidate.folder()}, parameters: {{weight: 1}}}}")


def test_no_room_for_its_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    candidate = merged(tmp_path)
    monkeypatch.setattr("paddle_merge.run.output.destination.free_bytes", lambda *_: 1000)
    with pytest.raises(OutputError) as raised:
        candidate.folder()
    (said,) = raised.value.problems
    assert said.startswith(f"a candidate's folder in {tempfile.gettempdir()}: the merge needs")
    assert said.endswith("; TMPDIR names another place")


def test_its_config_is_that_of_its_folder(tmp_path: Path) -> None:
    """With the merge's dtype, and whatever else a merge changes in it."""
    merged(tmp_path)
    (tmp_path / "a/config.json").write_text('{"model_type": "llama", "dtype": "float32"}')
    recipe = parse(f"dtype: bfloat16\n{RECIPE.format(tmp_path)}", "x.yaml").recipe
    candidate = MergedCandidate("m", recipe, Merger(), str(tmp_path / "near"))
    assert candidate.config["dtype"] == "bfloat16"
    before = candidate.config
    assert before == json.loads(Path(candidate.folder(), "config.json").read_text())
    assert candidate.config is before  # made once


def test_its_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """That of a merge is written when it is asked for; that of a checkpoint is its own."""
    candidate = merged(tmp_path)
    assert not list((tmp_path / "near").iterdir())
    folder = candidate.folder()
    assert (read(Path(folder))["weight"] == 3).all()
    assert candidate.folder() == folder
    stored = stored_candidate(str(tmp_path / "b"), Merger(), str(tmp_path))
    assert stored.folder() == str(tmp_path / "b")
    assert (stored.state_dict()["bias"] == 4).all()
    monkeypatch.chdir(tmp_path)
    assert stored_candidate("b", Merger(), "near").folder() == str(tmp_path / "b")  # for commands run in the file's folder
