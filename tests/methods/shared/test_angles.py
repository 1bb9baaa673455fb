"""Test mergekit's methods of angles between models: nuslerp, multislerp, karcher, model_stock; and of changed elements:
nearswap, ram, ramplus_tl."""

from __future__ import annotations

import functools
import json
import math
import re
import tracemalloc
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from paddle_merge import ConfigError, MergeConfig, merge
from paddle_merge.backends.budget import DEFAULT_BUDGET, MemoryBudget
from paddle_merge.backends.engine import Engine, import_paddle
from paddle_merge.backends.np_backend import NumpyBackend
from paddle_merge.checkpoints.names import LAYOUTS
from paddle_merge.checkpoints.open import open_checkpoint
from paddle_merge.conversion.layout import transposed_in
from paddle_merge.methods.registry import NAMED
from paddle_merge.methods.shared.method import ResolvedMethod
from paddle_merge.methods.shared.rows import Rows, rows_of
from paddle_merge.plan import memory_estimate
from paddle_merge.plan.describe import parameters
from paddle_merge.plan.planner import make_plan
from paddle_merge.recipe.config import MergeConfig as Config
from paddle_merge.recipe.request import Request
from paddle_merge.recipe.wording import in_recipes
from tests.conversion.test_layout import CONFIG, laid_out, llama, stored
from tests.support.checkpoints import from_bits, read, to_bits, write

import_paddle()

from paddle_merge.backends.pd_backend import PaddleBackend  # noqa: E402 - it imports Paddle
from paddle_merge.backends.pd_host import PaddleOnHost  # noqa: E402

ANGLES = ("nuslerp", "multislerp", "karcher", "model_stock")
METHODS = (*ANGLES, "nearswap", "ram", "ramplus_tl")
BACKENDS: dict[str, Callable[[str], Any]] = {
    "np": NumpyBackend,
    "pd": PaddleOnHost,
    "pd device": lambda compute: PaddleBackend(compute, "cpu", 64 << 20),
}
# Every method, and every way to cut a tensor into lines -> parameters of its own.
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    **{name: (name, {}) for name in METHODS},
    "nuslerp rows": ("nuslerp", {"nuslerp_flatten": False}),
    "nuslerp columns": ("nuslerp", {"nuslerp_flatten": False, "nuslerp_row_wise": True}),
    "model_stock rows": ("model_stock", {"filter_wise": True}),
}


def resolved(method: str, **given: Any) -> ResolvedMethod:
    named = NAMED[method]
    return named.make(**{parameter.name: given.get(parameter.name, parameter.default) for parameter in named.parameters})


@dataclass
class InMemory:
    """A tensor of one or more models in memory, as methods see it."""

    rows: np.ndarray
    shape: tuple[int, ...]
    backend: Any
    transposed: bool = False
    block: int = 1024
    name: str = "w"
    seed: int = 0

    def __post_init__(self) -> None:
        self.models, self.size = self.rows.shape
        self.narrow = self.rows.dtype == np.float32

    def deltas(self) -> Iterator[tuple[int, Any]]:
        for start in range(0, self.size, self.block):
            block = self.rows[:, start : start + self.block].copy()
            on_paddle = isinstance(self.backend, PaddleBackend)
            yield start, [self.backend.constant(row) for row in block] if on_paddle else block

    sparsified = deltas

    def sample(self, count: int) -> Any:
        raise AssertionError("none of these needs one")


def merged(what: ResolvedMethod, rows: Any, shape: tuple[int, ...] = (), backend: str = "np", **fields: Any) -> np.ndarray:
    """What becomes of rows (models, n), float32 or float64, in a tensor of this shape (n,)."""
    rows = np.asarray(rows)
    words = BACKENDS[backend](rows.dtype.name)
    tensor = InMemory(rows, shape or rows.shape[1:], words, **fields)
    with words.at_work():
        state = what.merger.prepare(tensor, words)
        blocks = [what.merger.apply(x, start, state, words) for start, x in tensor.deltas()]
        return np.concatenate([np.empty(0, rows.dtype), *(words.fetch(block)() for block in blocks)])


def recipe(method: str, models: Sequence[Any], base: Any = None, weights: Sequence[float] = (), **parameters: Any) -> str:
    content: dict[str, Any] = {"merge_method": method, "parameters": parameters}
    content |= {"base_model": str(base)} if base is not None else {}
    content["models"] = [{"model": str(model)} for model in models]
    for one, weight in zip(content["models"], weights, strict=False):
        one["parameters"] = {"weight": weight}
    return json.dumps(content, indent=1)


# --- a second reading, in NumPy and float64 -----------------------------------------------------------------------------


def unit(x: np.ndarray) -> np.ndarray:
    return x / np.linalg.norm(x)


def arc(a: np.ndarray, b: np.ndarray) -> float:
    """Kahan's formula, which is exact for small angles and for large ones."""
    return float(2 * np.arctan2(np.linalg.norm(unit(a) - unit(b)), np.linalg.norm(unit(a) + unit(b))))


def slerp(a: np.ndarray, b: np.ndarray, t: float) -> np.ndarray:
    angle = arc(a, b)
    return (np.sin((1 - t) * angle) * a + np.sin(t * angle) * b) / np.sin(angle)


def multislerp(x: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """In words: project to the sphere, to the tangent space at the mean direction, average there, and go back."""
    units = [unit(row) for row in x]
    mean = unit(sum(w * u for w, u in zip(weights, units, strict=True)))  # type: ignore[arg-type]
    step = sum(w * (u - (u @ mean) * mean) for w, u in zip(weights, units, strict=True))
    length = np.linalg.norm(step)
    there = np.cos(length) * mean + (np.sin(length) / length * step if length else 0)
    return np.asarray(there * sum(w * np.linalg.norm(row) for w, row in zip(weights, x, strict=True)))


def karcher_slope(x: np.ndarray, at: np.ndarray) -> np.ndarray:
    """Of the sum of squared arcs from a point of the sphere to the rows' directions: zero where it is least."""
    total = np.zeros_like(at)
    for row in x:
        away = unit(row) - (unit(row) @ at) * at
        total += arc(row, at) * (unit(away) if np.linalg.norm(away) else away)
    return total / len(x)


def model_stock(x: np.ndarray) -> np.ndarray:
    count = len(x)
    cosine = np.mean([unit(x[i]) @ unit(x[j]) for i in range(count) for j in range(i)])
    return np.asarray(count * cosine / (1 + (count - 1) * cosine) * x.mean(0))


def ram(x: np.ndarray, epsilon: float, r: float = 0.0, alpha: float = 0.0) -> np.ndarray:
    changed = np.abs(x) > epsilon
    factors = []
    for k in range(len(x)):
        shared = sum(bool(changed[k, i]) and changed[:, i].sum() > 1 for i in range(x.shape[1]))
        alone = sum(bool(changed[k, i]) and changed[:, i].sum() == 1 for i in range(x.shape[1]))
        factors.append(1 + r * min(alpha, shared / alone if alone else math.inf))
    result = np.zeros(x.shape[1])
    for i in range(x.shape[1]):
        who = np.flatnonzero(changed[:, i])
        if len(who) == 1:
            result[i] = factors[who[0]] * x[who[0], i]
        elif len(who):
            result[i] = np.mean(x[who, i])
    return result


@st.composite
def matrices(draw: st.DrawFn, models: int = 0) -> np.ndarray:
    """(models, rows, columns): a common part, and one of each."""
    count = models or draw(st.integers(2, 5))
    shape = draw(st.sampled_from([(3, 5), (40, 70), (1, 9), (1100, 3), (2, 1500)]))
    generator = np.random.default_rng(draw(st.integers(0, 2**32)))
    spread = draw(st.sampled_from([0.01, 0.3, 3.0]))
    scales = 10.0 ** generator.uniform(-2, 2, count)[:, None, None]
    return np.asarray(scales * (generator.standard_normal(shape) + spread * generator.standard_normal((count, *shape))))


def conditioning(a: np.ndarray, b: np.ndarray) -> float:
    """Return by how much slerp of almost opposite vectors magnifies rounding: it divides by sin(angle), which is known to
    about 2**-50 / sin(angle)."""
    cosine = float(a @ b / max(np.linalg.norm(a) * np.linalg.norm(b), 1e-300))
    return max(1.0, 1e-8 / max(1.0 - cosine * cosine, 1e-15))


def flat(x: np.ndarray) -> np.ndarray:
    return x.reshape(len(x), -1)


@settings(max_examples=20, deadline=None)
@given(matrices(2), st.sampled_from([0.0, 0.25, 0.5, 1.0, 1.5, -0.3]), st.sampled_from(list(BACKENDS)), st.booleans())
def test_nuslerp_by_its_definition(x: np.ndarray, t: float, backend: str, by_column: bool) -> None:
    weight = (1 - t, t)
    got, expected = merged(resolved("nuslerp", weight=weight), flat(x), backend=backend), slerp(*flat(x), t)
    np.testing.assert_allclose(got, expected, rtol=1e-9 * conditioning(*flat(x)), atol=1e-11 * np.abs(x).max())
    if min(x.shape[1:]) > 1:
        what = resolved("nuslerp", weight=weight, nuslerp_flatten=False, nuslerp_row_wise=by_column)
        got = merged(what, flat(x), x.shape[1:], backend).reshape(x.shape[1:])
        a, b, got = (one.T if by_column else one for one in (*x, got))
        for line, here, there in zip(got, a, b, strict=True):
            tolerance = 1e-7 * conditioning(here, there)
            np.testing.assert_allclose(line, slerp(here, there, t), rtol=tolerance, atol=1e-9 * np.abs(x).max())


@settings(max_examples=40, deadline=None)
@given(matrices(), st.sampled_from(list(BACKENDS)))
def test_multislerp_by_its_definition(x: np.ndarray, backend: str) -> None:
    x = flat(x)
    weights = np.arange(1.0, len(x) + 1)
    got = merged(resolved("multislerp", weight=tuple(weights)), x, backend=backend)
    expected = multislerp(x, weights / weights.sum())
    smallest = min(norm for norm in [*np.linalg.norm(x, axis=1), 1.0] if norm > 0)
    atol = 1e-8 * (1.0 + 2.0 / smallest) * np.abs(expected).max()  # eps, 1e-8, shortens unit vectors where norms are small
    np.testing.assert_allclose(got, expected, rtol=1e-6, atol=atol)


@settings(max_examples=40, deadline=None)
@given(matrices(), st.sampled_from(list(BACKENDS)))
def test_karcher_is_where_the_sum_of_squared_arcs_is_least(x: np.ndarray, backend: str) -> None:
    x = flat(x)
    got = merged(resolved("karcher", max_iter=200, tol=1e-9), x, backend=backend)
    assert np.linalg.norm(got) == pytest.approx(np.linalg.norm(x, axis=1).mean(), rel=1e-9)
    assert np.linalg.norm(karcher_slope(x, unit(got))) < 1e-6


@settings(max_examples=40, deadline=None)
@given(matrices(), st.sampled_from(list(BACKENDS)))
def test_model_stock_by_its_definition(x: np.ndarray, backend: str) -> None:
    expected = model_stock(flat(x))
    got = merged(resolved("model_stock"), flat(x), backend=backend)
    np.testing.assert_allclose(got, expected, rtol=1e-6, atol=1e-9 * np.abs(expected).max())
    if min(x.shape[1:]) > 1:
        rows = merged(resolved("model_stock", filter_wise=True), flat(x), x.shape[1:], backend).reshape(x.shape[1:])
        for number, line in enumerate(rows):
            expected = model_stock(x[:, number])
            np.testing.assert_allclose(line, expected, rtol=1e-6, atol=1e-8 * np.abs(x).max())


@settings(max_examples=40, deadline=None)
@given(matrices(), st.sampled_from([0.0, 0.5]), st.sampled_from([0.0, 0.1, 2.0]), st.sampled_from(list(BACKENDS)))
def test_ram_by_its_definition(x: np.ndarray, epsilon: float, r: float, backend: str) -> None:
    x = flat(x)[:, :3000] * (np.random.default_rng(0).random(flat(x)[:, :3000].shape) < 0.4)
    np.testing.assert_allclose(merged(resolved("ram", epsilon=epsilon), x, backend=backend), ram(x, epsilon), rtol=1e-12)
    for alpha in (0.2, 100.0):
        got = merged(resolved("ramplus_tl", epsilon=epsilon, r=r, alpha=alpha), x, backend=backend)
        np.testing.assert_allclose(got, ram(x, epsilon, r, alpha), rtol=1e-12)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("t", [0.0, 1e-8, 1e-6, 1e-3, 0.5, -1.0])
def test_nearswap_by_its_definition(t: float, dtype: str, backend: str) -> None:
    x = np.concatenate([10.0 ** np.linspace(-9, 3, 500), -(10.0 ** np.linspace(-9, 3, 500)), [0.0]]).astype(dtype)
    expected = x * np.clip(t / np.maximum(np.abs(x.astype(float)), 1e-6), 0, 1)
    np.testing.assert_allclose(merged(resolved("nearswap", t=t), x[None], backend=backend), expected, rtol=3e-7, atol=0)


# --- numbers of others ---------------------------------------------------------------------------------------------------

BASE = np.array([1, -2, 0.5, 4])
FIRST, SECOND = np.array([0.5, -0.25, 0.125, -1]), np.array([-0.25, -0.75, 0.375, 0.5])
# What mergekit 0.1.5 makes of them in float64; weights 3 and 1.
PINNED = {
    "nuslerp": [1.4038468851, -2.6297022612, 0.8148511306, 3.1923062298],
    "karcher": [1.2094408627, -2.5337340346, 0.7530165645, 3.7473237080],  # of the models, as the next
    "multislerp": [1.3768261301, -2.3994809611, 0.6893766270, 3.3707139820],
    "model_stock": [0.8733031330, -1.4932125320, 0.2466062660, 4.2533937340],  # t is negative
    "nearswap": [1.1, -2.1, 0.6, 3.9],  # t 0.1, of the first
    "ram": [1.125, -2.5, 0.75, 3.75],
    "ramplus_tl": [1.125, -2.5, 0.75, 3.75],  # every element is shared
}


@pytest.mark.parametrize("method", PINNED)
def test_mergekits_numbers(tmp_path: Path, method: str, each_backend: str) -> None:
    folders = [write(tmp_path / name, {"w": x}, "float64") for name, x in (("a", BASE + FIRST), ("b", BASE + SECOND))]
    base = write(tmp_path / "base", {"w": BASE}, "float64")
    text = recipe(
        method,
        folders[:1] if method == "nearswap" else folders,
        None if method in ("karcher", "multislerp") else base,
        (3, 1) if method in ("nuslerp", "multislerp") else (),
        **({"t": 0.1} if method == "nearswap" else {}),
    )
    merge(MergeConfig(recipe_yaml=text, output_path=str(tmp_path / "out")))
    np.testing.assert_allclose(read(tmp_path / "out")["w"], PINNED[method], rtol=1e-9)


def test_ramplus_raises_what_one_model_alone_has_changed() -> None:
    """By hand: the first has 1 of 4 shared, 1 + 2 * 1/3; the second, none alone; the third none shared."""
    x = np.array([[1.0, 1, 1, 1, 0], [0, 0, 0, 3, 0], [0, 0, 0, 0, 5]])
    got = merged(resolved("ramplus_tl", r=2.0, alpha=1.0), x)
    np.testing.assert_allclose(got, [5 / 3, 5 / 3, 5 / 3, 2, 5])
    got = merged(resolved("ramplus_tl", r=2.0, alpha=0.25), x)
    np.testing.assert_allclose(got, [1.5, 1.5, 1.5, 2, 5])


def test_epsilon_is_absolute() -> None:
    """A change of just epsilon is none."""
    assert merged(resolved("ram"), np.array([[2e-5, 1e-5, 9e-6], [0, 0, 0]])).tolist() == [2e-5, 0, 0]


# --- laws ----------------------------------------------------------------------------------------------------------------

SHAPES = {"w": (33, 65), "bias": (13,), "one": (1,), "scalar": (), "none": (0,), "large": (300, 700), "conv": (4, 5, 6)}


def tensors(seed: int, dtype: str) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(seed)
    made = {name: np.asarray(generator.standard_normal(shape)) for name, shape in SHAPES.items()}
    return {name: from_bits(to_bits(values, dtype), dtype) for name, values in made.items()}


def run(
    tmp_path: Path, kind: str, models: Sequence[dict[str, np.ndarray]], base: Any, dtype: str, out: str, **more: Any
) -> Path:
    """A merge of as many of the models as the method takes."""
    method, parameters = KINDS[kind]
    count = NAMED[method].most or len(models)
    folders = [write(tmp_path / f"{out}-{number}", model, dtype) for number, model in enumerate(models[:count])]
    below = write(tmp_path / f"{out}-base", base, dtype) if NAMED[method].base != "model" else None
    parameters = {**parameters, **({"t": 0.1} if method == "nearswap" else {})}
    weights = (2, 1, 1) if "slerp" in method else ()
    text = recipe(method, folders, below, weights, **parameters)
    merge(MergeConfig(recipe_yaml=text, output_path=str(tmp_path / out), **more))
    return tmp_path / out


@pytest.mark.usefixtures("each_backend")
class TestLaws:
    @pytest.mark.parametrize("dtype", ["bfloat16", "float64"])
    @pytest.mark.parametrize("kind", KINDS)
    def test_models_equal_to_the_base_give_the_base(self, tmp_path: Path, kind: str, dtype: str) -> None:
        base = tensors(0, dtype)
        result = read(run(tmp_path, kind, [base] * 3, base, dtype, "out"))
        for name in SHAPES:
            np.testing.assert_allclose(result[name], base[name], rtol=1e-14 if dtype == "float64" else 0, err_msg=name)

    @pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "nearswap"])
    def test_identical_models_give_the_model(self, tmp_path: Path, kind: str) -> None:
        base, noise = tensors(0, "bfloat16"), tensors(1, "bfloat16")
        model = {name: from_bits(to_bits(x * (1 + 0.1 * noise[name]), "bfloat16"), "bfloat16") for name, x in base.items()}
        result = read(run(tmp_path, kind, [model] * 3, base, "bfloat16", "out"))
        for name in SHAPES:
            small = 1e-5 if "ram" in kind else 0.0  # a smaller change is none
            np.testing.assert_allclose(result[name], model[name], rtol=0, atol=small, err_msg=name)

    @pytest.mark.parametrize("kind", KINDS)
    def test_zeros_give_zeros(self, tmp_path: Path, kind: str) -> None:
        zeros = {name: np.zeros(shape) for name, shape in SHAPES.items()}
        result = read(run(tmp_path, kind, [zeros] * 3, zeros, "bfloat16", "out"))
        assert all((values == 0).all() for values in result.values())

    @pytest.mark.parametrize("kind", [kind for kind in KINDS if " " in kind])  # of the others test_laws.py says it
    def test_same_bytes_for_any_blocks(self, tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
        base, models = tensors(0, "bfloat16"), [tensors(number, "bfloat16") for number in (1, 2, 3)]
        expected = (run(tmp_path, kind, models, base, "bfloat16", "out") / "model.safetensors").read_bytes()
        for block in (1 << 10, 1 << 14):
            budget = MemoryBudget(block, block, resident=0, panel=block)
            monkeypatch.setattr("paddle_merge.recipe.request.Engine", functools.partial(Engine, budget=budget))
            out = run(tmp_path, kind, models, base, "bfloat16", f"b{block}")
            assert (out / "model.safetensors").read_bytes() == expected

    @pytest.mark.parametrize("kind", KINDS)
    @pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
    def test_nan_and_inf_stay_where_they_are(self, tmp_path: Path, kind: str, value: float) -> None:
        base, models = tensors(0, "bfloat16"), [tensors(number, "bfloat16") for number in (1, 2, 3)]
        models[0]["large"][7, 9] = base["w"][3, 5] = value
        result = read(run(tmp_path, kind, models, base, "bfloat16", "out"))
        assert np.argwhere(~np.isfinite(result["large"])).tolist() == [[7, 9]]
        spoilt = [[3, 5]] if NAMED[KINDS[kind][0]].base != "model" else []  # else there is no base
        assert np.argwhere(~np.isfinite(result["w"])).tolist() == spoilt


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("kind", KINDS)
def test_paddle_gives_nps_bits_in_any_blocks(kind: str, dtype: str) -> None:
    method, parameters = KINDS[kind]
    generator = np.random.default_rng(0)
    for shape in ((7, 900), (900, 7), (6300,), (3, 5, 420)):
        rows = generator.standard_normal((NAMED[method].most or 3, 6300)).astype(dtype)
        what = resolved(method, **{"weight": (3.0, 1.0, 2.0)[: len(rows)], "t": 0.5, "epsilon": 0.5, **parameters})
        expected = merged(what, rows, shape)
        for backend in BACKENDS:
            for block in (1024, 4096, 8192):
                assert (merged(what, rows, shape, backend, block=block) == expected).all(), (shape, backend, block)


@pytest.mark.parametrize("kind", KINDS)
def test_the_formula_is_its_loop(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    method, parameters = KINDS[kind]
    rows = np.random.default_rng(0).standard_normal((NAMED[method].most or 3, 5000)).astype(np.float32)
    what = resolved(method, **{"weight": (3.0, 1.0, 2.0)[: len(rows)], "t": 0.5, "epsilon": 0.5, **parameters})
    expected = merged(what, rows, (50, 100))
    monkeypatch.setattr("paddle_merge.backends.np_backend.KERNELS", {})
    assert (merged(what, rows, (50, 100)) == expected).all()


# --- edges ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [kind for kind in KINDS if KINDS[kind][0] in ANGLES])
@pytest.mark.parametrize("exponent", [600, 1000, -300])
def test_squares_that_leave_float64(kind: str, exponent: int) -> None:
    """A tensor's size alone changes nothing but the result's, as long as tiny is not what mergekit calls so."""
    method, parameters = KINDS[kind]
    what = resolved(method, **{"weight": (3.0, 1.0, 2.0)[: NAMED[method].most or 3], **parameters})
    rows = np.random.default_rng(0).standard_normal((NAMED[method].most or 3, 600))
    rows[:, :30] = 0.0
    got = merged(what, np.ldexp(rows, exponent), (20, 30))
    if exponent > 0:
        np.testing.assert_allclose(np.ldexp(got, -exponent), merged(what, rows, (20, 30)), rtol=1e-8)
    else:
        assert np.isfinite(got).all()


@pytest.mark.parametrize("factor", [1.0, 3.0, 0.1])
@pytest.mark.parametrize("size", [1, 2, 1000, 100_000])
def test_opposite_models(factor: float, size: int) -> None:
    """There is no arc between them: nuslerp and multislerp go straight; karcher stays with the first; no cosine of -1 makes
    model_stock's t infinite."""
    x = np.random.default_rng(0).standard_normal(size).astype(np.float32)
    rows = np.stack([x, -np.float32(factor) * x])
    straight = (0.25 - 0.75 * factor) * x.astype(float)
    at_most = {"rtol": 1e-5, "atol": 1e-6}
    np.testing.assert_allclose(merged(resolved("nuslerp", weight=(1.0, 3.0)), rows), straight, **at_most)
    half = merged(resolved("multislerp", weight=(1.0, 1.0)), rows)
    np.testing.assert_allclose(half, (1 - factor) / 2 * x.astype(float), **at_most)
    np.testing.assert_allclose(merged(resolved("karcher"), rows), (1 + factor) / 2 * x.astype(float), **at_most)
    assert (merged(resolved("model_stock"), rows) == 0).all()  # the base
    assert (merged(resolved("model_stock", filter_wise=True), rows, (1, size)) == 0).all()


def test_weights_that_cancel() -> None:
    rows = np.random.default_rng(0).standard_normal((3, 50))
    rows[2] = rows[0] + rows[1]
    got = merged(resolved("multislerp", weight=(1.0, 1.0, 1.0)), [rows[0], -2 * rows[0], rows[0]])
    assert np.isfinite(got).all()
    got = merged(resolved("multislerp", weight=(2.0, -1.0, -1.0), normalize_weights=False), [rows[0]] * 3)
    np.testing.assert_allclose(got, 0, atol=1e-12)
    got = merged(resolved("nuslerp", weight=(1.0, -1.0)), rows[:2])  # as mergekit: half
    np.testing.assert_allclose(got, slerp(rows[0], rows[1], 0.5))


def test_tiny_vectors_are_what_mergekit_takes_them_for() -> None:
    """Karcher: a norm up to tol has no direction, but counts in the mean of norms."""
    x = np.array([3.0, 4.0])
    np.testing.assert_allclose(merged(resolved("karcher"), [x, 1e-7 * x]), x / 2, rtol=1e-6)
    assert merged(resolved("karcher"), [1e-7 * x, 1e-7 * x]).tolist() == [0, 0]
    assert merged(resolved("karcher"), [1e-7 * x]).tolist() == (1e-7 * x).tolist()
    a, b = np.array([1e-8, 0]), np.array([1e-8, 1e-12])
    half = math.sin(math.acos(0.01) / 2) / math.sin(math.acos(0.01))  # a norm of 1e-8 counts as 1e-7
    np.testing.assert_allclose(merged(resolved("nuslerp", weight=(1.0, 1.0)), [a, b]), half * (a + b), rtol=1e-6)


@pytest.mark.parametrize(
    ("method", "parameters", "words"),
    [
        ("multislerp", {"weight": (1.0, -1.0)}, "'weight' 1 -1 sums to zero.*set normalize_weights: false"),
        ("multislerp", {"weight": (1.0, 1.0), "eps": -1.0}, "'eps' -1 must not be negative"),
        ("karcher", {"max_iter": -1}, "'max_iter' -1 must not be negative"),
        ("karcher", {"tol": math.nan}, "'tol' nan must not be negative"),
        ("ram", {"epsilon": -1.0}, "'epsilon' -1 must not be negative"),
        ("ramplus_tl", {"r": math.inf}, "'r' inf must be a number"),
        ("nearswap", {"t": math.nan}, "'t' nan must be a number"),
    ],
)
def test_what_is_said_of_parameters(method: str, parameters: dict[str, Any], words: str) -> None:
    named = NAMED[method]
    values = {parameter.name: parameters.get(parameter.name, parameter.default) for parameter in named.parameters}
    (problem,) = named.problems(**values)
    assert re.search(words, in_recipes(problem))


@pytest.mark.parametrize(
    ("method", "count", "based", "words"),
    [
        ("nuslerp", 3, False, "nuslerp takes 2 models, not 3"),
        ("model_stock", 1, True, "model_stock takes 2 or more models, not 1"),
        ("model_stock", 2, False, "model_stock needs base_model, which is missing"),
        ("nearswap", 2, True, "nearswap takes 1 model, not 2"),
        ("ram", 2, False, "ram needs base_model, which is missing"),
    ],
)
def test_how_many_models(tmp_path: Path, method: str, count: int, based: bool, words: str) -> None:
    text = recipe(method, [f"m{number}" for number in range(count)], "base" if based else None, (1,) * count)
    with pytest.raises(ConfigError, match=words):
        merge(MergeConfig(recipe_yaml=text, output_path=str(tmp_path / "out")))


# --- lines, and the layout ------------------------------------------------------------------------------------------------


def test_rows_of() -> None:
    assert rows_of((3, 5), False) == rows_of((5, 3), True, first_axis=True).__class__(3, False, 5)
    assert rows_of((5, 3), True) == Rows(3, True, 3)
    assert rows_of((3, 5), False, first_axis=True) == Rows(5, True, 5)
    assert rows_of((5, 3), True, first_axis=True) == Rows(5, False, 3)
    assert rows_of((2, 3, 4), True) == Rows(6, False, 4)
    assert rows_of((2, 3, 4), False, first_axis=True) == Rows(12, True, 12)
    for shape in ((), (7,), (0,), (0, 3), (3, 0)):
        assert rows_of(shape, True) is rows_of(shape, False, True) is None


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_which_matrices_are_turned(tmp_path: Path, layout: str, tied: bool) -> None:
    """Those that the same model has the other way round in Hugging Face's layout."""
    hf = llama(0, tied=tied)
    config = {"model_type": "llama", "tie_word_embeddings": tied}
    path = write(tmp_path / "m", laid_out(hf, layout), config=config)
    there = transposed_in(open_checkpoint(str(path)).tensors, layout)
    names = {name.replace("model.", "llama.") if layout == "paddlenlp" else name: x.shape for name, x in hf.items()}
    shapes = {name: x.shape for name, x in laid_out(hf, layout).items()}
    assert there >= {name for name, shape in shapes.items() if shape != names[name]}
    proj = {name for name in shapes if name.endswith("_proj.weight")}
    head = {"lm_head.weight"} if layout == "paddlenlp" and not tied else set()
    assert there == (set() if layout == "hf" else proj | head)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if " " in kind])
def test_a_model_merges_alike_in_any_layout(tmp_path: Path, kind: str) -> None:
    """Rows of torch's matrices are Paddle's columns; lm_head, tied or not, and embeddings among them."""
    method, parameters = KINDS[kind]
    states = [llama(seed) for seed in (0, 1, 2)]
    results = {}
    for layout in (*LAYOUTS, "turned"):
        stored_in, output = ("hf", "paddlenlp") if layout == "turned" else (layout, None)
        paths = [stored(tmp_path / f"{layout}{number}", x, stored_in, dtype="float32") for number, x in enumerate(states)]
        text = recipe(method, paths[1:], paths[0], (3, 1) if method == "nuslerp" else (), **parameters)
        out = tmp_path / f"{layout}-out"
        merge(MergeConfig(recipe_yaml=text, output_path=str(out), output_layout=output))
        results[layout] = read(out)
    for layout in (*LAYOUTS, "turned"):
        expected = laid_out(results["hf"], "paddlenlp" if layout == "turned" else layout)
        assert results[layout].keys() == expected.keys()
        for name, x in expected.items():
            np.testing.assert_allclose(results[layout][name], x, rtol=1e-5, atol=1e-6, err_msg=name)
    if method == "nuslerp":
        name = "model.layers.0.mlp.up_proj.weight"
        base, a, b = (state[name].T if kind.endswith("columns") else state[name] for state in states)
        expected = np.stack([z + slerp(x - z, y - z, 0.25) for z, x, y in zip(base, a, b, strict=True)])
        got = results["hf"][name]
        np.testing.assert_allclose(got.T if kind.endswith("columns") else got, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_stage_by_rows_is_as_if_it_had_been_written(tmp_path: Path, layout: str, tied: bool) -> None:
    """Its matrices are oriented like those of the merge that uses it."""
    config = {**CONFIG, "tie_word_embeddings": tied}
    base, *paths = (stored(tmp_path / name, llama(seed, tied=tied), layout, config) for seed, name in enumerate("cab"))
    out = tmp_path / "first"
    first = recipe("nuslerp", paths, base, (3, 1), nuslerp_flatten=False)
    merge(MergeConfig(recipe_yaml=first, output_path=str(out)))
    second = recipe("model_stock", [out, paths[0]], base, filter_wise=True)
    merge(MergeConfig(recipe_yaml=second, output_path=str(tmp_path / "written")))
    staged = f"name: x\n{yaml.safe_dump(json.loads(first))}---\n{yaml.safe_dump(json.loads(second.replace(str(out), 'x')))}"
    merge(MergeConfig(recipe_yaml=staged, output_path=str(tmp_path / "staged")))
    got, expected = (read(tmp_path / name) for name in ("staged", "written"))
    assert got.keys() == expected.keys()
    assert all((got[name] == expected[name]).all() for name in expected)


def test_in_no_known_layout_matrices_are_torchs() -> None:
    assert transposed_in({}, None) == frozenset()


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("kind", [kind for kind in KINDS if " " in kind])
@pytest.mark.parametrize("shape", [(30_000, 3), (3, 30_000), (300, 300), (90_000,)])
def test_memory(kind: str, shape: tuple[int, ...], dtype: str) -> None:
    """The announced memory is enough, and not much more than is used."""
    method, parameters = KINDS[kind]
    models = NAMED[method].most or 4
    what = resolved(method, **{"weight": (1.0,) * models, **parameters})
    rows = np.random.default_rng(0).standard_normal((models, 90_000)).astype(dtype)
    foretold = what.row_memory(models, shape, False, rows.itemsize) + what.memory(
        models, 90_000, rows.itemsize, DEFAULT_BUDGET
    )
    backend = NumpyBackend(dtype)
    tensor = InMemory(rows if dtype == "float32" else rows * 1e200, shape, backend)
    what.merger.prepare(tensor, backend)  # so that loops are compiled
    tracemalloc.start()
    what.merger.prepare(tensor, backend)
    taken = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    blocks = (models + 1) * 1024 * rows.itemsize * 2 + (64 << 10)
    assert taken <= foretold + blocks
    assert foretold <= 2.5 * taken + blocks


def test_the_ceiling_counts_lines(tmp_path: Path) -> None:
    paths = [write(tmp_path / name, {"w": np.zeros((50_000, 2))}, "bfloat16") for name in "abc"]
    found = {}
    for filter_wise in (False, True):
        text = recipe("model_stock", paths[1:], paths[0], filter_wise=filter_wise)
        config = Config(recipe_yaml=text, output_path=str(tmp_path / "out"))
        found[filter_wise] = memory_estimate.memory(make_plan(Request.of(config).checked_recipe()))
    assert 50_000 * (3 * 8 + 2 * 4) <= found[True] - found[False] <= 50_000 * 64


def test_the_account_calls_parameters_as_recipes_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = recipe("nuslerp", ["a", "b"], None, (3, 1), nuslerp_flatten=False)
    for name in ("a", "b"):
        write(tmp_path / name, {"w": np.ones((2, 2))}, "float32")
    monkeypatch.chdir(tmp_path)
    plan = make_plan(Request.of(Config(recipe_yaml=text, output_path="out")).checked_recipe())
    assert parameters(plan) == {"nuslerp_flatten": False, "nuslerp_row_wise": False}
