"""What holds for every method that a recipe can name, on every backend. A method joins by joining the registry; all
there is to write for it is its row in LAWS, without which the first test fails.

Tensors are of zero, one, few, and many elements, of no axis to five. "Equal" is to the byte unless a law says how near.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from paddle_merge import MergeConfig, merge
from paddle_merge.backends.budget import MemoryBudget
from paddle_merge.backends.engine import Engine
from paddle_merge.methods.paddlenlp import MERGE_TYPES, METHODS, SPARSIFIERS
from paddle_merge.methods.registry import NAMED, find, names
from paddle_merge.plan import plan
from paddle_merge.recipe.request import Request
from paddle_merge.run.job import Report
from paddle_merge.run.output import journal
from paddle_merge.run.state_dicts import merge_by_recipe
from paddle_merge.run.worker import Worker
from tests.support.checkpoints import dtypes, from_bits, read, to_bits, write
from tools.bench import RECIPES

State = dict[str, np.ndarray]
SMALL = {
    "w": (33, 65), "bias": (13,), "one": (1,), "scalar": (), "none": (0,), "row": (1, 40), "column": (7, 1),
    "no_rows": (0, 3), "cube": (3, 5, 7), "five": (2, 3, 1, 5, 3), "model.layers.0.w": (6, 6), "model.layers.1.w": (6, 6),
}  # fmt: skip
LARGE = {"large": (130, 701), "long": (70_003,)}  # several blocks, and pieces, of odd sizes
DTYPES = ("bfloat16", "float16", "float32", "float64")
BYTES = ("bfloat16", "float64")  # one for each compute dtype: how others are read and written is test_special_values.py's
EPSILON = {"bfloat16": 2.0**-7, "float16": 2.0**-10, "float32": 2.0**-23, "float64": 2.0**-52}  # a unit, of 1


@dataclass(frozen=True)
class Law:
    """given: parameters that leave nothing of the formula out, for laws that hold under any.

    same: parameters under which models equal to each other give just that model, or None if the formula has none (`why`);
    units: by how many units in the last place it may miss, of the model or of the base: of whichever is larger.
    order: whether the models' order doesn't matter under `given`, but for rounding.
    """

    given: str = "{}"
    same: str | None = None
    units: int = 0
    order: bool = False
    why: str = ""


_FLAGS = "reserve_p: 0.6, scale: 0.7"
_MASKS = "masks go by a model's place"
LAWS = {
    "linear": Law("{weight: 0.4}", "{weight: 0.4}", 2, order=True),
    "task_arithmetic": Law("{weight: 0.4, lambda: 0.8}", "{weight: 0.4, normalize: true}", 4, order=True),
    "slerp": Law("{t: 0.3}", "{t: 0.3}", 2, why="t goes from the base to the model"),
    "passthrough": Law("{scale: 0.7}", "{scale: 1}"),
    "ties": Law("{weight: 0.4, density: 0.6, rescale: true}", "{weight: 0.4, density: 1}", 4, order=True),
    "dare_linear": Law("{weight: 0.4, density: 0.6}", "{weight: 0.4, density: 1, normalize: true}", 4, why=_MASKS),
    "dare_ties": Law("{weight: 0.4, density: 0.6}", "{weight: 0.4, density: 1, normalize: true}", 4, why=_MASKS),
    "della": Law("{weight: 0.4, density: 0.6, epsilon: 0.2}", "{weight: 0.4, density: 1}", 4, why=_MASKS),
    "della_linear": Law(
        "{weight: 0.4, density: 0.6, epsilon: 0.2}", "{weight: 0.4, density: 1, normalize: true}", 4, why=_MASKS
    ),
    "breadcrumbs": Law(
        "{weight: 0.4, density: 0.6, gamma: 0.05, rescale: true}",
        "{weight: 0.4, density: 1, normalize: true}",
        2,
        order=True,
    ),
    "breadcrumbs_ties": Law(
        "{weight: 0.4, density: 0.6, gamma: 0.05}", "{weight: 0.4, density: 1, normalize: true}", 4, order=True
    ),
    "nuslerp": Law("{weight: 1, nuslerp_flatten: false}", "{weight: 1}", 2, order=True),
    "multislerp": Law("{weight: 1}", "{weight: 1}", 4, order=True),
    "karcher": Law("{}", "{}", 4, order=True),
    "model_stock": Law("{filter_wise: true}", "{}", 2, order=True),
    "nearswap": Law("{t: 0.05}", "{t: 1.0e+9}"),
    "ram": Law("{epsilon: 0.01}", "{epsilon: 0}", 2, order=True),
    "ramplus_tl": Law("{epsilon: 0.1, r: 0.5}", "{epsilon: 0}", 2, order=True),
    "sce": Law("{select_topk: 0.6}", "{}", 2, order=True),
    "arcee_fusion": Law(why="of a model it takes over the most important changes, and there are always others"),
    "tsv": Law(
        "{lambda: 0.9}", why="its smallest singular vectors are dropped: test_whole_matrix.py says what is kept", order=True
    ),
    "iso_c": Law("{lambda: 0.9}", why="singular values are made equal", order=True),
    "consensus_ta": Law("{weight: 0.4, lambda_mask: 0.3}", why="it is a sum", order=True),
    "lines": Law("{alpha: 0.3, beta: 0.5}", why="it is a sum, scaled by layer", order=True),
    "paddlenlp:linear": Law("{weight: 0.4, scale: 0.7}", "{weight: 0.4}", 2, order=True),
    "paddlenlp:slerp": Law("{slerp_alpha: 0.5, scale: 0.7}", "{slerp_alpha: 0.3}", 2, order=True),
    "paddlenlp:ties": Law(f"{{weight: 0.4, {_FLAGS}}}", "{reserve_p: 1}", 4, order=True),
    "paddlenlp:dare_linear": Law(f"{{weight: 0.4, {_FLAGS}}}", "{reserve_p: 1}", 4, why=_MASKS),
    "paddlenlp:dare_ties": Law(f"{{weight: 0.4, {_FLAGS}}}", "{reserve_p: 1}", 4, why=_MASKS),
    "paddlenlp:della": Law(f"{{weight: 0.4, {_FLAGS}}}", "{reserve_p: 1, epsilon: 0}", 2, why=_MASKS),
    "paddlenlp:della_linear": Law(f"{{weight: 0.4, {_FLAGS}}}", "{reserve_p: 1, epsilon: 0}", 2, why=_MASKS),
    "paddlenlp:trim+linear": Law(f"{{weight: 0.4, {_FLAGS}}}", "{reserve_p: 1}", 4, order=True),
    "paddlenlp:trim+slerp": Law(f"{{{_FLAGS}}}", "{reserve_p: 1}", 4, order=True),
    "paddlenlp:dare+slerp": Law(f"{{{_FLAGS}}}", "{reserve_p: 1}", 4, why=_MASKS),
    "paddlenlp:magprune+slerp": Law(f"{{{_FLAGS}}}", "{reserve_p: 1, epsilon: 0}", 2, why=_MASKS),
}


def every_method() -> list[str]:
    pairs = (pair for pair in itertools.product(SPARSIFIERS, MERGE_TYPES) if pair not in METHODS.values())
    return [*names(), *(f"paddlenlp:{sparsifier}+{merge_type}" for sparsifier, merge_type in pairs)]


def test_every_method_has_its_laws() -> None:
    assert set(LAWS) == set(every_method())
    assert all(law.why for law in LAWS.values() if law.same is None)
    assert set(RECIPES) == set(NAMED)  # the bench knows them too


def count(method: str) -> int:
    """How many models, the base aside."""
    found = find(method)
    assert found is not None
    return min(3, found.most or 3) - (found.base == "first")


def stored(values: np.ndarray, dtype: str) -> np.ndarray:
    return from_bits(to_bits(np.asarray(values), dtype), dtype)


def state(seed: int, dtype: str, about: State | None = None, large: bool = False) -> State:
    """Random, or a tenth away from another; rounded to the dtype."""
    random = np.random.default_rng(seed)
    drawn = {name: random.standard_normal(shape) for name, shape in (SMALL | (LARGE if large else {})).items()}
    return {name: stored(x if about is None else about[name] + 0.1 * x, dtype) for name, x in drawn.items()}


@dataclass
class Sources:
    """A base and models, on disk."""

    folder: Path
    dtype: str

    def put(self, base: State, *models: State) -> Sources:
        write(self.folder / "base", base, self.dtype)
        for number, model in enumerate(models):
            write(self.folder / f"m{number}", model, self.dtype)
        return self

    def config(self, method: str, parameters: str, order: list[int], out: str, **fields: Any) -> MergeConfig:
        listed = "".join(f"  - model: {self.folder}/m{number}\n" for number in order)
        found = find(method)
        assert found is not None
        base = f"base_model: {self.folder}/base\n" if found.base != "model" else ""
        recipe = f"merge_method: {method}\n{base}models:\n{listed}parameters: {parameters}\n"
        return MergeConfig(recipe_yaml=recipe, output_path=str(self.folder / out), **fields)

    def merged(self, method: str, parameters: str, order: list[int] | None = None, out: str = "out", **fields: Any) -> Path:
        order = list(range(count(method))) if order is None else order
        merge(self.config(method, parameters, order, out, overwrite=True, **fields), progress=False)
        return self.folder / out


def digest(out: Path) -> str:
    return hashlib.sha256((out / "model.safetensors").read_bytes()).hexdigest()


def far(got: State, expected: State, dtype: str, units: int = 0, base: State | None = None) -> list[str]:
    """The tensors that miss by more: units of what is expected or, where it is larger, of the base."""
    assert got.keys() == expected.keys()
    result = []
    for name, values in expected.items():
        least = 2.0**-24 if dtype == "float16" else 0.0  # its smallest number
        size = np.maximum(np.abs(values), np.abs(base[name])) if base else np.abs(values)
        bound = units * (EPSILON[dtype] * size + least) if units else 0.0
        if got[name].shape != values.shape or not (np.abs(got[name] - values) <= bound).all():
            result.append(name)
    return result


# --- whatever the backend ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", LAWS)
def test_nothing_changes(tmp_path: Path, method: str, each_backend: str) -> None:
    """Models equal to the base give the base (and where none is subtracted, models equal to each other, the model), in every
    dtype, which the output keeps; zeros give zeros."""
    law = LAWS[method]
    found = find(method)
    assert found is not None
    parameters = law.given if found.base in ("required", "optional") else law.same or law.given
    for dtype in DTYPES:
        base = state(0, dtype)
        sources = Sources(tmp_path / dtype, dtype).put(base, *[base] * count(method))
        out = sources.merged(method, parameters)
        assert far(read(out), base, dtype, 0 if found.base in ("required", "optional") else law.units) == []
        assert set(dtypes(out).values()) == {dtype}
    zeros = {name: np.zeros(shape) for name, shape in SMALL.items()}
    sources = Sources(tmp_path / "zeros", "bfloat16").put(zeros, *[zeros] * count(method))
    assert far(read(sources.merged(method, law.given)), zeros, "bfloat16", 0) == []


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("method", [method for method, law in LAWS.items() if law.same is not None])
def test_models_equal_to_each_other_give_the_model(tmp_path: Path, method: str, dtype: str, each_backend: str) -> None:
    law = LAWS[method]
    base = state(0, dtype)
    model = state(1, dtype, base)
    found = find(method)
    assert found is not None
    sources = Sources(tmp_path, dtype).put(model if found.base == "first" else base, *[model] * count(method))
    assert far(read(sources.merged(method, str(law.same))), model, dtype, law.units, base) == []
    if found.least == 1:
        assert far(read(sources.merged(method, str(law.same), [0])), model, dtype, law.units, base) == []


@pytest.mark.parametrize("method", [method for method, law in LAWS.items() if law.order and count(method) > 1])
def test_the_order_of_models(tmp_path: Path, method: str, each_backend: str) -> None:
    """In float64, where the order of sums changes no sign and no rank."""
    base = state(0, "float64")
    models = [state(seed, "float64", base) for seed in (1, 2, 3)[: count(method)]]
    sources = Sources(tmp_path, "float64").put(base, *models)
    first = read(sources.merged(method, LAWS[method].given))
    for order in list(itertools.permutations(range(count(method))))[1:]:
        other = read(sources.merged(method, LAWS[method].given, list(order)))
        for name, values in first.items():
            np.testing.assert_allclose(other[name], values, rtol=1e-9, atol=1e-11, err_msg=name)


# --- the same bytes ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def by_np(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Sources]:
    """A base and three models of a dtype, each a tenth away from it, with large tensors too."""

    @functools.cache
    def made(dtype: str) -> Sources:
        base = state(0, dtype, large=True)
        models = [state(seed, dtype, base, large=True) for seed in (1, 2, 3)]
        return Sources(tmp_path_factory.mktemp(dtype), dtype).put(base, *models)

    return made


@pytest.fixture(scope="module", params=BYTES)
def merges(request: pytest.FixtureRequest, by_np: Callable[[str], Sources]) -> tuple[Sources, dict[str, Path]]:
    """What every method makes of them in one piece, one process, NumPy and the usual blocks."""
    sources = by_np(request.param)
    return sources, {method: sources.merged(method, law.given, out=f"np {method}") for method, law in LAWS.items()}


@pytest.mark.parametrize("each_backend", ["pd", "pd device"], indirect=True)
@pytest.mark.parametrize("method", LAWS)
def test_the_same_bytes_from_paddle(merges: tuple[Sources, dict[str, Path]], method: str, each_backend: str) -> None:
    """But for the sign of zeros."""
    sources, made = merges
    merged = read(sources.merged(method, LAWS[method].given, tensor_type="pd"))
    assert far(merged, read(made[method]), sources.dtype, 0) == []


@pytest.mark.parametrize("method", LAWS)
def test_the_same_bytes_however_it_is_cut(
    merges: tuple[Sources, dict[str, Path]], method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In blocks of other sizes; in pieces, stopped and resumed; in memory."""
    sources, made = merges
    given, expected = LAWS[method].given, digest(made[method])
    with monkeypatch.context() as patch:
        budget = MemoryBudget(1 << 13, 1 << 13, resident=0, panel=1 << 13, selecting=0)
        patch.setattr("paddle_merge.recipe.request.Engine", functools.partial(Engine, budget=budget))
        assert digest(sources.merged(method, given)) == expected

    right, done = Worker.merge, 0

    def merge_few(self: Worker, *args: Any) -> Report:
        nonlocal done
        done += 1
        if done > 5:
            raise KeyboardInterrupt
        return right(self, *args)

    with monkeypatch.context() as patch:
        patch.setattr("paddle_merge.plan.plan.PIECE_BYTES", 1 << 17)
        patch.setattr("paddle_merge.plan.planner.cut", lambda tensors, _: plan.cut(tensors, 2))  # as for two workers
        patch.setattr(journal, "SECONDS", 0.0)
        patch.setattr(Worker, "merge", merge_few)
        with pytest.raises(KeyboardInterrupt):
            sources.merged(method, given, out=f"stopped {method}")
        patch.setattr(Worker, "merge", right)
        config = sources.config(method, given, list(range(count(method))), f"stopped {method}", resume=True)
        merge(config, progress=False)
        assert digest(sources.folder / f"stopped {method}") == expected

    config = sources.config(method, given, list(range(count(method))), "out")
    recipe = Request.of(config).checked_recipe()
    states = []
    for path in recipe.sources:
        values = read(Path(path))
        states.append({name: to_bits(x, sources.dtype) for name, x in values.items()})
    in_memory = merge_by_recipe(states, recipe, Request.of(config).engine)
    for name, values in read(made[method]).items():
        assert (from_bits(in_memory[name], sources.dtype) == values).all(), name


@pytest.mark.parametrize("method", ["dare_ties", "ties", "della", "nuslerp", "tsv", "paddlenlp:della"])
def test_the_same_bytes_from_three_processes(
    by_np: Callable[[str], Sources], method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One method for each way of measuring a tensor: to a worker, pieces are what they are in the test above."""
    sources = by_np("bfloat16")
    expected = digest(sources.merged(method, LAWS[method].given))
    monkeypatch.setattr("paddle_merge.plan.plan.PIECE_BYTES", 1 << 17)
    assert digest(sources.merged(method, LAWS[method].given, n_process=3)) == expected


@pytest.mark.parametrize("method", LAWS)
def test_another_seed_changes_what_draws_and_nothing_else(by_np: Callable[[str], Sources], method: str) -> None:
    sources = by_np("float32")
    one, two = (digest(sources.merged(method, LAWS[method].given, seed=seed)) for seed in (0, 1))
    assert (one != two) == any(name in method for name in ("dare", "della", "magprune"))
