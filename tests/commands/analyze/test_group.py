"""Test that small tensors that are measured together give what each of them gives alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paddle_merge import AnalyzeConfig, analyze
from paddle_merge.checkpoints.open import open_checkpoint
from paddle_merge.commands.analyze import group, report
from paddle_merge.commands.analyze.group import groups
from paddle_merge.commands.analyze.tensors import survey
from tests.support.checkpoints import write


def test_groups_by_hand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the same size, in the same models, in the same dtypes: 0, 2, 3 and 7; at most two together."""
    monkeypatch.setattr(group, "MOST", 2)
    shapes = {"0": (6,), "1": (5,), "2": (2, 3), "3": (6, 1), "4": (group.SMALL,), "5": (6,), "6": (0,), "7": (1, 6)}
    base = {name: np.ones(shape) for name, shape in shapes.items()}
    models = [base, {name: x for name, x in base.items() if name != "5"}]
    opened = [
        open_checkpoint(str(write(tmp_path / f"{number}", state, "bfloat16")))
        for number, state in enumerate([*models, base])
    ]
    found = survey(opened[:2], opened[2])
    names = [tensor.name for tensor in found.compared]
    assert [[names[number] for number in its] for its in groups(found.compared)] == [
        ["0", "2"], ["1"], ["3", "7"], ["4"], ["5"], ["6"]
    ]  # fmt: skip


def test_float64_is_measured_alone(tmp_path: Path) -> None:
    """Its sums may leave the range of float64, which changes how all models of a tensor are measured."""
    state = {"a": np.ones(3), "b": np.ones(3)}
    one, base = (open_checkpoint(str(write(tmp_path / name, state, "float64"))) for name in ("one", "base"))
    assert groups(survey([one], base).compared) == [[0], [1]]


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_together_as_alone(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    """To the last bit, also with NaN and Inf in some tensors, and with numbers whose sums overflow float32."""
    random = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    dtype, models = data.draw(st.sampled_from(["bfloat16", "float16", "float32"])), data.draw(st.integers(1, 4))
    sizes = data.draw(st.lists(st.sampled_from([1, 2, 7, 256, 300]), min_size=2, max_size=12))
    scale = data.draw(st.sampled_from([1.0, 3e4 if dtype == "float16" else 3e38, 1e-7]))
    base = {f"model.layers.{k}.weight": scale * random.uniform(-1, 1, size) for k, size in enumerate(sizes)}
    states = [{name: np.where(random.random(x.shape) < 0.5, x, -x) for name, x in base.items()} for _ in range(models)]
    for _ in range(data.draw(st.integers(0, 3))):
        name = data.draw(st.sampled_from(sorted(base)))
        changed = data.draw(st.sampled_from([base, *states]))
        changed[name][random.integers(len(changed[name]))] = data.draw(st.sampled_from([np.nan, np.inf, -np.inf]))
    folder = tmp_path_factory.mktemp("together")
    paths = [str(write(folder / f"{number}", state, dtype)) for number, state in enumerate([*states, base])]
    fields: dict[str, Any] = {
        "reserve_p": data.draw(st.sampled_from([0.2, 0.5, 1.0])), "rescale": data.draw(st.booleans()),
    }  # fmt: skip

    def found() -> dict[str, Any]:
        return analyze(AnalyzeConfig(paths[:-1], base_model_path=paths[-1], n_process=1, **fields), progress=False)

    together = found()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(report, "groups", lambda compared: [[number] for number in range(len(compared))])
        alone = found()
    assert repr(together) == repr(alone)


def test_progress_counts_each_byte_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also of tensors that are read again one by one, for one of them has a NaN."""
    state = {name: np.arange(5.0) for name in "abc"}
    nan = state | {"b": np.array([1.0, np.nan, 1.0, 1.0, 1.0])}
    one, base = (write(tmp_path / name, its, "bfloat16") for name, its in (("one", nan), ("base", state)))
    heard: list[int] = []

    real = report.in_threads

    def listening(*, worker: Any, nbytes: int, **others: Any) -> Any:
        def hearing(files: Any, advance: Any) -> Any:
            def hear(count: int) -> None:
                heard.append(count)
                advance(count)

            return worker(files, hear)

        assert nbytes == 3 * 5 * 2 * 2
        return real(worker=hearing, nbytes=nbytes, **others)

    monkeypatch.setattr(report, "in_threads", listening)
    found = analyze(AnalyzeConfig([str(one)], base_model_path=str(base)), progress=False)
    assert found["not_finite"] == {"b": ["A"]}
    assert sum(heard) == 3 * 5 * 2 * 2
