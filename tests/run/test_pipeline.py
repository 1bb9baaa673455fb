"""Test how often the pipeline of one tensor loads its blocks."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from paddle_merge import MergeConfig, merge_state_dicts
from paddle_merge.backends.np_backend import NumpyBackend


@pytest.mark.parametrize(
    ("method", "size", "loads"),
    [
        ("linear", 1000, 1),
        ("ties", 1000, 1),  # measured and merged
        ("della", 1 << 16, 1),
        ("della", (1 << 16) + 1, 4),  # two blocks, twice
    ],
)
def test_a_tensor_of_one_block_is_loaded_once(method: str, size: int, loads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    found = list[int]()
    load = NumpyBackend.load

    def counted(self: NumpyBackend, raws: Any, *args: Any) -> Any:
        found.append(len(raws[0]))
        return load(self, raws, *args)

    monkeypatch.setattr(NumpyBackend, "load", counted)
    rng = np.random.default_rng(0)
    base, *models = ({"w": rng.standard_normal(size).astype(np.float32)} for _ in range(4))
    merge_state_dicts(models, MergeConfig(merge_method=method), base=base)
    assert len(found) == loads
    assert sum(found) == size * max(1, loads // 2)


def test_measuring_a_block_leaves_it_as_it_was() -> None:
    """TIES whose election is of the majority sparsifies the only block, in place, before it is merged."""
    rng = np.random.default_rng(0)
    base, *models = ({"w": rng.standard_normal(3000).astype(np.float32)} for _ in range(4))
    parts = [{"w": np.zeros(1 << 16, np.float32)} for _ in range(4)]  # the same behind it, so that there are two blocks
    longer = [{"w": np.concatenate([one["w"], part["w"]])} for one, part in zip((base, *models), parts, strict=True)]
    config = MergeConfig(merge_method="dare_ties", ties_zero_sign="majority", reserve_p=0.5)
    alone = merge_state_dicts(models, config, base=base)["w"]
    assert np.array_equal(alone, merge_state_dicts(longer[1:], config, base=longer[0])["w"][:3000])
