"""Test sparsifiers: each selection rule with each way to rescale."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from paddle_merge.backends.masks import Key, mask_key
from paddle_merge.backends.np_backend import NumpyBackend
from paddle_merge.methods import mergekit, paddlenlp
from paddle_merge.methods.breadcrumbs import Breadcrumbs
from paddle_merge.methods.dare import Bernoulli
from paddle_merge.methods.della import ByRowRank, ByTensorRank
from paddle_merge.methods.shared.sparsify import Keep, KeepAndRescale, Rescale
from paddle_merge.methods.trim import Largest, Threshold

RULES: dict[str, Keep] = {
    "threshold": Threshold(0.6),
    "largest": Largest((0.6, 0.6)),
    "breadcrumbs": Breadcrumbs((0.6, 0.6), (0.1, 0.1)),
    "bernoulli": Bernoulli(0.6),
    "bernoulli of each": Bernoulli((0.6, 0.6)),
    "by tensor rank": ByTensorRank(0.6, 0.2),
    "by row rank": ByRowRank((0.6, 0.6), (0.2, 0.2)),
}


class InMemory:
    """A tensor (40, 50) of two models."""

    name, shape, size, models, transposed, narrow = "w", (40, 50), 2000, 2, False, True

    def __init__(self) -> None:
        self.x = np.random.default_rng(0).standard_normal((2, 2000)).astype(np.float32)

    def mask_key(self, model: int) -> Key:
        return mask_key(3, model, self.name)

    def deltas(self) -> Iterator[tuple[int, Any]]:
        for start in (0, 1024):
            yield start, self.x[:, start : start + 1024].copy()

    sparsified = deltas


def sparsified(sparsifier: KeepAndRescale) -> tuple[np.ndarray, np.ndarray]:
    """Return the tensor, and what the sparsifier makes of it."""
    tensor, backend = InMemory(), NumpyBackend("float32")
    states = sparsifier.prepare(tensor, backend)  # type: ignore[arg-type]
    made = np.empty_like(tensor.x)
    for start, x in tensor.deltas():
        for model, row in enumerate(x):
            made[model, start : start + x.shape[1]] = sparsifier.apply(row, start, states[model], backend)
    return tensor.x, made


@pytest.mark.parametrize("rescale", list(Rescale))
@pytest.mark.parametrize("rule", RULES)
def test_what_is_kept_and_what_it_is_multiplied_by(rule: str, rescale: Rescale) -> None:
    keep = RULES[rule]
    if rescale is Rescale.PROBABILITY and not keep.has_probabilities:
        with pytest.raises(ValueError, match="can't divide by the probability"):
            KeepAndRescale("x", keep, rescale)
        return
    sparsifier = KeepAndRescale("x", keep, rescale)
    x, made = sparsified(sparsifier)
    kept = made != 0
    assert np.abs(kept.mean(1) - 0.6).max() < (0.001 if not keep.random else 0.04)
    factors = made[kept] / x[kept]
    if rescale is Rescale.NONE:
        assert (made[kept] == x[kept]).all()
    elif rescale is Rescale.L1:
        np.testing.assert_allclose(np.abs(made).sum(1), np.abs(x).sum(1), rtol=1e-5)
    else:
        assert np.abs(factors - 1 / 0.6).max() < (1e-6 if rule.startswith("bernoulli") else 0.34)
    if keep.random and rescale is Rescale.NONE:
        assert (made[0] != 0).tolist() != (made[1] != 0).tolist()
    assert sparsifier.measures == (keep.measures or rescale is Rescale.L1)


def test_a_density_for_all_is_each_models() -> None:
    one, each = (KeepAndRescale("x", RULES[name], Rescale.L1) for name in ("bernoulli", "bernoulli of each"))
    assert (sparsified(one)[1] == sparsified(each)[1]).all()


@pytest.mark.parametrize(("density", "kept"), [(1.0, 1.0), (2.0, 1.0), (0.0, 0.0), (-1.0, 0.0)])
@pytest.mark.parametrize("rescale", [Rescale.NONE, Rescale.L1])
@pytest.mark.parametrize("make", [Largest, Bernoulli, lambda density: ByRowRank(density, (0.1, 0.1))])
def test_all_and_nothing(make: Any, rescale: Rescale, density: float, kept: float) -> None:
    x, made = sparsified(KeepAndRescale("x", make((density, density)), rescale))
    assert (made == x * np.float32(kept)).all()


def test_the_facing_tables() -> None:
    """Names and parameters are those of merge_lock.json; both tables make sparsifiers of the same kind."""
    trim = paddlenlp.sparsifier("trim", 0.2, False)
    dare = paddlenlp.sparsifier("dare", 0.2, True)
    magprune = paddlenlp.sparsifier("magprune", 0.2, True, epsilon=0.1)
    assert [(one.name, one.parameters()) for one in (trim, dare, magprune)] == [
        ("trim", {"density": 0.2, "rescale": False}),
        ("dare", {"density": 0.2, "rescale": True}),
        ("magprune", {"density": 0.2, "epsilon": 0.1, "rescale": True}),
    ]
    assert [one.rescale for one in (trim, dare, magprune)] == [Rescale.NONE, Rescale.PROBABILITY, Rescale.PROBABILITY]
    named = {one.name: one for one in mergekit.METHODS}
    values = {"weight": (1.0,), "density": (0.2,), "normalize": True, "rescale": True, "lambda": 1.0}
    made = [
        named["ties"].make(**values),
        named["dare_linear"].make(**values),
        named["della"].make(**values, epsilon=(0.1,)),
        named["breadcrumbs"].make(**values, gamma=(0.1,)),
    ]
    parts = [one.sparsifier for one in made if one.sparsifier is not None]
    assert [(one.name, one.parameters()) for one in parts] == [
        ("magnitude", {"density": (0.2,), "rescale": True}),
        ("bernoulli", {"density": (0.2,), "rescale": True}),
        ("della", {"density": (0.2,), "epsilon": (0.1,), "rescale": True}),
        ("breadcrumbs", {"density": (0.2,), "gamma": (0.1,), "rescale": True}),
    ]
