"""Test the laws that hold for every method that a recipe can name, on every backend, for any numbers.

A new method is tested once it is in the registry and has a row in _ROWS; without the row, the first test fails.

Tensors have zero, one, few and many elements, and zero to five axes. "Equal" is to the byte unless a law gives a tolerance.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import itertools
import json
import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from paddle_merge import MergeConfig, merge
from paddle_merge.backends.budget import MemoryBudget
from paddle_merge.backends.engine import Engine
from paddle_merge.methods import registry
from paddle_merge.methods.paddlenlp import MERGE_TYPES, METHODS, SPARSIFIERS
from paddle_merge.methods.registry import NAMED, names
from paddle_merge.methods.shared.method import REQUIRED, Method
from paddle_merge.plan import plan
from paddle_merge.recipe.request import Request
from paddle_merge.run.job import Job, Report
from paddle_merge.run.merge import prepare
from paddle_merge.run.output import journal
from paddle_merge.run.pool import work
from paddle_merge.run.ranks import Ranks
from paddle_merge.run.state_dicts import merge_by_recipe
from paddle_merge.run.worker import Worker
from tests.support.checkpoints import dtypes, from_bits, read, to_bits, write
from tests.support.sweeps import few

State = dict[str, np.ndarray]
SMALL = {
    "w": (33, 65), "bias": (13,), "one": (1,), "scalar": (), "none": (0,), "row": (1, 40), "column": (7, 1),
    "no_rows": (0, 3), "cube": (3, 5, 7), "five": (2, 3, 1, 5, 3), "model.layers.0.w": (6, 6), "model.layers.1.w": (6, 6),
}  # fmt: skip
LARGE = {"large": (130, 701), "long": (70_003,)}  # several blocks, and pieces, of odd sizes
DTYPES = ("bfloat16", "float16", "float32", "float64")
BYTES = ("bfloat16", "float64")  # one for each compute dtype: how others are read and written is test_special_values.py's
EPSILON = {  # a unit in the last place, of 1
    "bfloat16": 2.0**-7,
    "float16": 2.0**-10,
    "float32": 2.0**-23,
    "float64": 2.0**-52,
    "float8_e5m2": 2.0**-2,
}
USUAL = Engine.backend
LEAST = {"float16": 2.0**-24, "float8_e5m2": 2.0**-16}  # the smallest numbers of dtypes that have but large ones


def find(method: str) -> Method:
    found = registry.find(method)
    assert found is not None, method
    return found


@dataclass(frozen=True)
class Law:
    """given: parameters that leave nothing of the formula out, for laws that hold under any; None: the method's example.

    same: parameters under which models equal to each other give just that model, or None if the formula has none (`why`);
    units: by how many units in the last place it may miss, of the model or of the base: of whichever is larger.
    exact: dtypes in which it misses by nothing.
    order: whether the models' order doesn't matter under `given`, but for rounding.
    """

    given: Any = None
    same: str | None = None
    units: int = 0
    exact: tuple[str, ...] = ()
    order: bool = False
    why: str = ""


_FLAGS = "reserve_p: 0.6, scale: 0.7"
_MASKS = "masks go by a model's place"
_ROUNDED = ("bfloat16", "float32")  # both are computed in float64, or in a float32 that the rounding hides
_ROWS = {
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
    "expo": Law("{alpha: 0.4}", "{alpha: 0}", 2),
    "chat_vector": Law("{gamma: 0.7}", "{gamma: 0}", 2),
    "resta": Law("{gamma: 0.7, drop_rate: 0.3}", "{gamma: 0}", 2, why=_MASKS),
    "warp": Law("{eta: 0.4}", "{eta: 1}", 4, why="SLERP of more than two isn't associative"),
    "rewarded_soup": Law("{}", "{}", 2, order=True),
    "safe_merge": Law("{tau: 0.8, alpha: 0.7}", "{tau: 0.8, alpha: 0.7}", 4, why="each model has its role"),
    "paddlenlp:linear": Law("{weight: 0.4, scale: 0.7}", "{weight: 0.4}", 2, _ROUNDED, order=True),
    "paddlenlp:slerp": Law("{slerp_alpha: 0.5, scale: 0.7}", "{slerp_alpha: 0.3}", 2, _ROUNDED, order=True),
    "paddlenlp:ties": Law(f"{{weight: 0.4, {_FLAGS}}}", "{reserve_p: 1}", 4, _ROUNDED, order=True),
    "paddlenlp:dare_linear": Law(f"{{weight: 0.4, {_FLAGS}}}", "{reserve_p: 1}", 4, _ROUNDED, why=_MASKS),
    "paddlenlp:dare_ties": Law(f"{{weight: 0.4, {_FLAGS}}}", "{reserve_p: 1}", 4, _ROUNDED, why=_MASKS),
    "paddlenlp:della": Law(f"{{weight: 0.4, {_FLAGS}}}", "{reserve_p: 1, epsilon: 0}", 2, why=_MASKS),
    "paddlenlp:della_linear": Law(f"{{weight: 0.4, {_FLAGS}}}", "{reserve_p: 1, epsilon: 0}", 2, why=_MASKS),
    "paddlenlp:trim+linear": Law(f"{{weight: 0.4, {_FLAGS}}}", "{reserve_p: 1}", 4, order=True),
    "paddlenlp:trim+slerp": Law(f"{{{_FLAGS}}}", "{reserve_p: 1}", 4, order=True),
    "paddlenlp:dare+slerp": Law(f"{{{_FLAGS}}}", "{reserve_p: 1}", 4, why=_MASKS),
    "paddlenlp:magprune+slerp": Law(f"{{{_FLAGS}}}", "{reserve_p: 1, epsilon: 0}", 2, why=_MASKS),
}
LAWS = {
    name: dataclasses.replace(law, given=json.dumps(dict(find(name).example))) if law.given is None else law
    for name, law in _ROWS.items()
}


def every_method() -> list[str]:
    pairs = (pair for pair in itertools.product(SPARSIFIERS, MERGE_TYPES) if pair not in METHODS.values())
    return [*names(), *(f"paddlenlp:{sparsifier}+{merge_type}" for sparsifier, merge_type in pairs)]


def test_every_method_has_its_laws() -> None:
    assert set(LAWS) == set(every_method())
    assert all(law.why for law in LAWS.values() if law.same is None)


@pytest.mark.parametrize("method", NAMED)
def test_examples_are_parameters_without_problems(method: str) -> None:
    """The benchmark and, unless they say otherwise, the laws run each method with its example."""
    named = NAMED[method]
    known = {parameter.name: parameter for parameter in named.parameters}
    assert named.example.keys() <= known.keys()
    values = {name: named.example.get(name, parameter.default) for name, parameter in known.items()}
    models = min(max(named.least, 2), named.most or 2)
    values |= {name: (values[name],) * models for name, parameter in known.items() if parameter.each}
    values |= {"layer": 0.5} if named.by_layer else {}
    assert REQUIRED not in values.values()
    scale = {"lines": 0.55, "warp": 0.3}.get(method, 1.0)
    assert (named.problems(**values), named.make(**values).scale) == ([], scale)
    assert min(map(len, (named.about, named.about_cn, named.source))) > 0


# One method for each way of measuring a tensor. Long tests take the others in .ci/run only.
FEW = ("linear", "ties", "dare_ties", "della", "nuslerp", "tsv", "sce", "paddlenlp:slerp", "paddlenlp:della")


def few_of(methods: Iterable[str]) -> pytest.MarkDecorator:
    """Give a test these methods, of which the default run takes those that are among FEW."""
    return pytest.mark.parametrize(
        "method", [method if method in FEW else pytest.param(method, marks=pytest.mark.exhaustive) for method in methods]
    )


few_methods = few_of(LAWS)


def count(method: str) -> int:
    """Return how many models a merge by this method takes here, the base aside."""
    found = find(method)
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
        base = f"base_model: {self.folder}/base\n" if find(method).base != "model" else ""
        recipe = f"merge_method: {method}\n{base}models:\n{listed}parameters: {parameters}\n"
        return MergeConfig(recipe_yaml=recipe, output_path=str(self.folder / out), **fields)

    def merged(self, method: str, parameters: str, order: list[int] | None = None, out: str = "out", **fields: Any) -> Path:
        order = list(range(count(method))) if order is None else order
        merge(self.config(method, parameters, order, out, overwrite=True, **fields), progress=False)
        return self.folder / out

    def by_numpy(self, method: str) -> Path:
        """What the method makes of them in one piece, one process, NumPy and the usual blocks."""
        out = self.folder / f"np {method}"
        if not out.exists():
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(Engine, "backend", USUAL)
                self.merged(method, LAWS[method].given, out=out.name)
        return out


def digest(out: Path) -> str:
    return hashlib.sha256((out / "model.safetensors").read_bytes()).hexdigest()


def far(got: State, expected: State, dtype: str, units: int = 0, base: State | None = None) -> list[str]:
    """The tensors that miss by more: units of what is expected or, where it is larger, of the base."""
    assert got.keys() == expected.keys()
    result = []
    for name, values in expected.items():
        least = LEAST.get(dtype, 0.0)
        size = np.maximum(np.abs(values), np.abs(base[name])) if base else np.abs(values)
        bound = units * (EPSILON[dtype] * size + least) if units else 0.0
        if got[name].shape != values.shape or not (np.abs(got[name] - values) <= bound).all():
            result.append(name)
    return result


# --- whatever the backend ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("large", [False, True])
@pytest.mark.parametrize("dtype", [*DTYPES, "float8_e5m2"])
@pytest.mark.parametrize("method", LAWS)
def test_nothing_changes(tmp_path: Path, method: str, dtype: str, large: bool, each_backend: str) -> None:
    """Models equal to the base give the base (and where none is subtracted, models equal to each other, the model), in every
    dtype, which the output keeps."""
    law = LAWS[method]
    based = find(method).base in ("required", "optional")
    base = state(0, dtype, large=large)
    sources = Sources(tmp_path, dtype).put(base, *[base] * count(method))
    out = sources.merged(method, law.given if based else law.same or law.given)
    assert far(read(out), base, dtype, 0 if based else law.units) == []
    assert set(dtypes(out).values()) == {dtype}


@few_methods
def test_zeros_give_zeros(tmp_path: Path, method: str, each_backend: str) -> None:
    zeros = {name: np.zeros(shape) for name, shape in SMALL.items()}
    sources = Sources(tmp_path, "bfloat16").put(zeros, *[zeros] * count(method))
    assert far(read(sources.merged(method, LAWS[method].given)), zeros, "bfloat16", 0) == []


@pytest.mark.parametrize("large", [False, True])
@few_methods
def test_elements_that_are_all_equal(tmp_path: Path, method: str, large: bool, each_backend: str) -> None:
    """Every magnitude is the threshold, every rank is shared."""
    law = LAWS[method]
    zeros = {name: np.zeros(shape) for name, shape in (SMALL | (LARGE if large else {})).items()}
    halves = {name: x + 0.5 for name, x in zeros.items()}
    sources = Sources(tmp_path, "float32").put(halves if find(method).base == "first" else zeros, *[halves] * count(method))
    assert all(np.isfinite(x).all() for x in read(sources.merged(method, law.given)).values())
    if law.same is not None:
        assert far(read(sources.merged(method, law.same)), halves, "float32", law.units) == []


@pytest.mark.parametrize("method", ["dare_linear", "della_linear"])
def test_random_masks_keep_the_mean(tmp_path: Path, method: str, each_backend: str) -> None:
    """Of 210 000 equal elements, whose standard error is below 0.0005."""
    sources = Sources(tmp_path, "float32").put({"w": np.zeros((300, 700))}, *[{"w": np.full((300, 700), 0.5)}] * 3)
    out = sources.merged(f"paddlenlp:{method}", "{}", [0, 1, 2])
    assert abs(read(out)["w"].mean() - 0.5) < 0.003


@few_of(method for method, law in LAWS.items() if "scale: 0.7" in law.given and ":" in method)
def test_scale_zero_gives_the_base(tmp_path: Path, method: str, each_backend: str) -> None:
    base = state(0, "bfloat16")
    models = [state(seed, "bfloat16") for seed in (1, 2, 3)[: count(method)]]
    sources = Sources(tmp_path, "bfloat16").put(base, *models)
    out = sources.merged(method, LAWS[method].given.replace("scale: 0.7", "scale: 0"))
    assert far(read(out), base, "bfloat16", 0) == []


@pytest.mark.parametrize("dtype", DTYPES)
@few_of(method for method, law in LAWS.items() if law.same is not None)
def test_models_equal_to_each_other_give_the_model(tmp_path: Path, method: str, dtype: str, each_backend: str) -> None:
    law, found = LAWS[method], find(method)
    base = state(0, dtype)
    model = state(1, dtype, base)
    units = 0 if dtype in law.exact else law.units
    sources = Sources(tmp_path, dtype).put(model if found.base == "first" else base, *[model] * count(method))
    assert far(read(sources.merged(method, str(law.same))), model, dtype, units, base) == []
    if found.least == 1:
        assert far(read(sources.merged(method, str(law.same), [0])), model, dtype, units, base) == []


@pytest.mark.parametrize("every", [False, pytest.param(True, marks=pytest.mark.exhaustive)])
@few_of(method for method, law in LAWS.items() if law.order and count(method) > 1)
def test_the_order_of_models(tmp_path: Path, method: str, every: bool, each_backend: str) -> None:
    """In float64, where the order of sums changes no sign and no rank."""
    base = state(0, "float64")
    models = [state(seed, "float64", base) for seed in (1, 2, 3)[: count(method)]]
    sources = Sources(tmp_path, "float64").put(base, *models)
    first = read(sources.merged(method, LAWS[method].given))
    orders = list(itertools.permutations(range(count(method))))
    for order in orders[1:] if every else orders[-1:]:
        other = read(sources.merged(method, LAWS[method].given, list(order)))
        for name, values in first.items():
            np.testing.assert_allclose(other[name], values, rtol=1e-9, atol=1e-11, err_msg=name)


@pytest.mark.parametrize("method", ["linear", "ties"])
def test_the_order_of_models_to_the_bit(tmp_path: Path, method: str, each_backend: str) -> None:
    """With their weights: sums of small integers are exact in float64."""
    generator = np.random.default_rng(0)
    models = [{"w": generator.integers(-8, 8, 4096).astype(float)} for _ in range(3)]
    Sources(tmp_path, "float64").put({"w": np.zeros(4096)}, *models)
    fields: dict[str, Any] = {"ties": {"rescale": False}, "linear": {"normalize": False}}[method]
    merged = []
    for order in ([0, 1, 2], [2, 1, 0]):
        config = MergeConfig(
            merge_method=method,
            model_path_list=[str(tmp_path / f"m{number}") for number in order],
            base_model_path=str(tmp_path / "base"),
            weight_list=[2.0**number for number in order],
            output_path=str(tmp_path / "out"),
            overwrite=True,
            **fields,
        )
        merge(config, progress=False)
        merged.append(read(tmp_path / "out")["w"])
    assert (merged[0] == merged[1]).all()


@pytest.mark.parametrize("dtype", few(["bfloat16", "float64"]))
@pytest.mark.parametrize("method", LAWS)
def test_what_is_not_finite_in_all_inputs_stays(
    tmp_path: Path,
    method: str,
    dtype: str,
    each_backend: str,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """To the bit, and without a warning. The other elements are what they are with zeros in these places, in the first and
    the second of three blocks."""
    budget = MemoryBudget(1 << 10, 1 << 10, resident=0, panel=1 << 10, selecting=0)
    if each_backend == "np":
        monkeypatch.setattr("paddle_merge.recipe.request.Engine", functools.partial(Engine, budget=budget))
    places = {3: np.inf, 40: -np.inf, 1041: np.nan}
    base = state(0, dtype)
    models = [state(seed, dtype, base) for seed in (1, 2, 3)]
    for one in (base, *models):
        one["w"].reshape(-1)[list(places)] = 0
    sources = Sources(tmp_path, dtype).put(base, *models)
    zeros = read(sources.merged(method, LAWS[method].given, out="zeros"))["w"].reshape(-1)
    for one in (base, *models):
        one["w"].reshape(-1)[list(places)] = list(places.values())
    sources.put(base, *models)
    logging.getLogger("paddle_merge").propagate = True
    merged = read(sources.merged(method, LAWS[method].given, strict=True))["w"].reshape(-1)
    np.testing.assert_array_equal(merged[list(places)], list(places.values()))
    np.testing.assert_array_equal(np.delete(merged, list(places)), np.delete(zeros, list(places)))
    assert not [message for message in caplog.messages if "NaN" in message]


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


@pytest.fixture(params=BYTES)
def reference(request: pytest.FixtureRequest, by_np: Callable[[str], Sources]) -> tuple[Sources, Path]:
    """Sources, and what the test's method makes of them by NumPy."""
    sources = by_np(request.param)
    return sources, sources.by_numpy(request.node.callspec.params["method"])


@pytest.mark.parametrize("each_backend", ["pd", "pd device"], indirect=True)
@pytest.mark.parametrize("method", LAWS)
def test_the_same_bytes_from_paddle(reference: tuple[Sources, Path], method: str, each_backend: str) -> None:
    """But for the sign of zeros."""
    sources, by_numpy = reference
    assert far(read(sources.merged(method, LAWS[method].given)), read(by_numpy), sources.dtype, 0) == []


def by_workers(sources: Sources, tensor_type: str, n_process: int, monkeypatch: pytest.MonkeyPatch) -> dict[str, Path]:
    """Merge by every method, all with the same worker processes, which start once; return the outputs.

    The workers write into copies of what NumPy made in this process, with every element overwritten before.
    """
    monkeypatch.setattr("paddle_merge.plan.plan.PIECE_BYTES", 1 << 17)
    tensors, pieces, outputs = [], [], {}
    for number, method in enumerate(LAWS):
        order, given = list(range(count(method))), LAWS[method].given
        config = sources.config(method, given, order, "plan", tensor_type=tensor_type, n_process=n_process)
        made = prepare(Request.of(config))[0]
        pieces += [piece._replace(tensor=piece.tensor + len(tensors)) for piece in made.pieces]
        tensors += [dataclasses.replace(tensor, shard=number) for tensor in made.tensors]
        outputs[method] = sources.folder / f"{tensor_type} {n_process} {method}"
        outputs[method].mkdir()
        content = bytearray((sources.by_numpy(method) / "model.safetensors").read_bytes())
        begin = 8 + int.from_bytes(content[:8], "little")
        content[begin:] = b"\x55" * (len(content) - begin)
        (outputs[method] / "model.safetensors").write_bytes(content)
    together = dataclasses.replace(made, tensors=tuple(tensors), pieces=tuple(pieces), n_process=n_process)
    job = Job(tuple(str(out / "model.safetensors") for out in outputs.values()), made.engine)
    assert len(list(work(together, job, False, Ranks(0, ["alone"])))) == len(pieces)
    return outputs


@pytest.mark.exhaustive
@pytest.mark.parametrize("dtype", BYTES)
def test_the_same_bytes_from_a_worker_that_has_paddle(
    by_np: Callable[[str], Sources], dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With --tensor_type pd, a process of its own computes, which no test can change as it does this process."""
    sources = by_np(dtype)
    for method, out in by_workers(sources, "pd", 1, monkeypatch).items():
        assert digest(out) == digest(sources.by_numpy(method)), method


@pytest.mark.parametrize("n_process", few((3, 5)))
@pytest.mark.parametrize("dtype", few(BYTES))
def test_the_same_bytes_from_several_processes(
    by_np: Callable[[str], Sources], dtype: str, n_process: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To a worker, pieces are what they are in the next test."""
    sources = by_np(dtype)
    for method, out in by_workers(sources, "np", n_process, monkeypatch).items():
        assert digest(out) == digest(sources.by_numpy(method)), method


@few_methods
def test_the_same_bytes_however_it_is_cut(
    reference: tuple[Sources, Path], method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In blocks of other sizes; in pieces, stopped and resumed; in memory."""
    sources, whole = reference
    given, expected = LAWS[method].given, digest(whole)
    for block in (1 << 10, 1 << 13):
        with monkeypatch.context() as patch:
            budget = MemoryBudget(block, block, resident=0, panel=block, selecting=0)
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
        patch.setattr("paddle_merge.backends.budget.TOGETHER", 0)  # one piece after the other
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
    for name, values in read(whole).items():
        assert (from_bits(in_memory[name], sources.dtype) == values).all(), name


@pytest.mark.parametrize("size", ["20KB", "300KB"])
@few_methods
def test_the_same_numbers_in_shards(by_np: Callable[[str], Sources], method: str, size: str, each_backend: str) -> None:
    sources = by_np("bfloat16")
    whole = read(sources.merged(method, LAWS[method].given))
    sharded = sources.merged(method, LAWS[method].given, out="shards", max_shard_size=size)
    assert len(list(sharded.glob("model-*.safetensors"))) > 1
    assert far(read(sharded), whole, "bfloat16", 0) == []


@few_methods
def test_another_seed_changes_what_draws_and_nothing_else(tmp_path: Path, method: str) -> None:
    base = state(0, "float32")
    sources = Sources(tmp_path, "float32").put(base, *(state(seed, "float32", base) for seed in (1, 2, 3)))
    one, two = (digest(sources.merged(method, LAWS[method].given, seed=seed)) for seed in (0, 1))
    assert (one != two) == any(name in method for name in ("dare", "della", "magprune", "resta"))
