"""Test the backends' common protocol, and the loops that formulas name."""

from __future__ import annotations

import ast
import inspect
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import paddle_merge
from paddle_merge.backends.backend import Backend
from paddle_merge.backends.formula import KERNELS, MEASURES, formula
from paddle_merge.backends.np_backend import NumpyBackend, find_kernel
from paddle_merge.methods import registry
from tests.support.sweeps import few

ROOT = Path(paddle_merge.__file__).parent
OPERATIONS = [name for name in vars(Backend) if not name.startswith("_") and callable(getattr(Backend, name))]


def test_every_named_kernel_exists() -> None:
    assert registry.NAMED  # all methods are imported
    named = {one.__name__: name for names in (KERNELS, MEASURES) for one, name in names.items()}
    assert {"ties", "dare", "linear", "elect", "magnitude_bins"} <= named.keys()
    missing = []
    for names in (KERNELS, MEASURES):
        for one, name in names.items():
            try:
                find_kernel(name)
            except LookupError:
                missing.append(f"{one.__module__}.{one.__name__} names {name}")
    assert not missing


def test_every_formula_with_a_loop_of_its_name_declares_it() -> None:
    """Else it would be run as it stands, which is slow, without a word."""
    loops = {
        node.name
        for path in (ROOT / "backends" / "kernels").glob("*.py")
        for node in ast.parse(path.read_text()).body
        if isinstance(node, ast.FunctionDef)
    }
    declared = {one.__name__ for names in (KERNELS, MEASURES) for one in names}
    for path in (ROOT / "methods").rglob("*.py"):
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.FunctionDef) and [one.arg for one in node.args.args[:2]] == ["xp", "x"]:
                assert node.name in declared or node.name not in loops, f"{path.name}: {node.name}"


@pytest.mark.parametrize("name", ["mergers.no_such_loop", "no_such_file.ties", "ties", "mergers", ""])
def test_a_kernel_that_does_not_exist_is_an_error(name: str) -> None:
    @formula(kernel=name, measure=name)
    def doubled(xp: Any, x: Any, *args: Any) -> Any:
        return x * 2

    try:
        backend = NumpyBackend("float32")
        with pytest.raises(LookupError, match=f"names the kernel '{name}', which is not in"):
            backend.apply(doubled, np.ones(3, np.float32))
        with pytest.raises(LookupError, match="names the kernel"):
            backend.apply_masked(doubled, np.ones(3, np.float32), (1, 2))
        with pytest.raises(LookupError, match="names the kernel"):
            backend.add_bins(doubled, np.ones(3, np.float32), np.zeros(4, np.uint32))
    finally:
        del KERNELS[doubled], MEASURES[doubled]


def test_a_formula_without_a_kernel_runs_as_it_stands() -> None:
    def doubled(xp: Any, x: Any) -> Any:
        return x * 2

    def where_even(xp: Any, x: Any, hashes: Any) -> Any:
        return x * (hashes % 2 == 0)

    def bins(xp: Any, x: Any) -> Any:
        return x.astype(int)

    def sign(xp: Any, weighted: Any, by_count: bool, zero_sign: float) -> Any:
        return np.sign(weighted[0] + weighted[1])

    backend = NumpyBackend("float32")
    assert backend.apply(doubled, np.array([1.0, 2.0], np.float32)).tolist() == [2.0, 4.0]
    masked = backend.apply_masked(where_even, np.ones(1000, np.float32), (1, 2))
    assert 400 < masked.sum() < 600
    counts = np.zeros(4, np.uint32)
    backend.add_bins(bins, np.array([0.0, 2.0, 2.0], np.float32), counts)
    assert counts.tolist() == [1, 0, 2, 0]
    x = np.array([[1.0, -1.0, 1.0], [1.0, 0.5, -1.0]], np.float32)
    assert backend.elected_balance(sign, x, np.ones(2, np.float32), False) == 0
    assert backend.elected_balance(sign, x, np.array([2.0, 1.0], np.float32), False) == 1


@pytest.mark.parametrize(
    "module", few(["run.worker", "run.state_dicts", "methods.registry", "plan.planner", "run.merge"], 2)
)
def test_numba_is_imported_by_what_computes_only(module: str) -> None:
    """Help pages, plans, refused merges and workers that compute with Paddle don't wait for Numba. A worker that does
    import it first says that Numba shall do without SciPy, which takes effect only if the worker's module hasn't."""
    code = f"import sys, paddle_merge.{module}\nassert not {{'numba', 'scipy', 'paddle'}} & sys.modules.keys()"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("module", ["np_backend", "pd_backend"])
def test_backends_declare_what_the_protocol_declares(module: str) -> None:
    """Every operation of the protocol, with its parameters' names, on each of the two facing pages."""
    tree = ast.parse((ROOT / "backends" / f"{module}.py").read_text())
    (one,) = (node for node in tree.body if isinstance(node, ast.ClassDef) and ast.unparse(node.bases[0]) == "Backend")
    own = {node.name: [one.arg for one in node.args.args] for node in one.body if isinstance(node, ast.FunctionDef)}
    assert OPERATIONS
    for name in OPERATIONS:
        declared = inspect.signature(getattr(Backend, name)).parameters
        assert own.get(name) == [one for one in declared if one != "args"], name
    extra = {name for name in own if not name.startswith("_")} - set(OPERATIONS)
    assert not extra, extra


def test_every_operation_is_described() -> None:
    for name in OPERATIONS:
        assert inspect.getdoc(getattr(Backend, name)), name
        assert inspect.getdoc(getattr(NumpyBackend, name)), name
