"""Laws that hold for every method on every backend, whatever the numbers."""

from __future__ import annotations

import functools
import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from paddle_merge import MergeConfig, merge
from paddle_merge.backends.budget import MemoryBudget
from paddle_merge.backends.engine import Engine
from paddle_merge.methods.paddlenlp import METHODS
from tests.support.checkpoints import from_bits, read, to_bits, write

pytestmark = pytest.mark.usefixtures("each_backend")
SHAPES = {"w": (33, 65), "bias": (13,), "one": (1,), "scalar": (), "none": (0,), "large": (300, 700)}


def stored(values: np.ndarray, dtype: str) -> np.ndarray:
    return from_bits(to_bits(values, dtype), dtype)


def tensors(seed: int, dtype: str, scale: float = 1.0) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(seed)
    return {name: stored(np.asarray(scale * generator.standard_normal(shape)), dtype) for name, shape in SHAPES.items()}


def run(
    tmp_path: Path,
    models: list[dict[str, np.ndarray]],
    base: dict[str, np.ndarray] | None,
    dtype: str,
    method: str,
    **fields: Any,
) -> Path:
    sources = [str(write(tmp_path / f"m{number}", model, dtype)) for number, model in enumerate(models)]
    if base is not None:
        fields["base_model_path"] = str(write(tmp_path / "base", base, dtype))
    out = tmp_path / fields.pop("out", "out")
    merge(MergeConfig(merge_method=method, model_path_list=sources, output_path=str(out), **fields))
    return out


def models_for(method: str, make: Any) -> list[dict[str, np.ndarray]]:
    return [make(number) for number in range(2 if method == "slerp" else 3)]


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32", "float64", "float8_e5m2"])
@pytest.mark.parametrize("method", METHODS)
def test_models_equal_to_the_base_give_the_base(tmp_path: Path, method: str, dtype: str) -> None:
    base = tensors(0, dtype)
    result = read(run(tmp_path, models_for(method, lambda _: base), base, dtype, method))
    for name in SHAPES:
        assert (result[name] == base[name]).all(), name


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("method", ["linear", "slerp", "ties", "dare_linear", "dare_ties"])
def test_identical_models_kept_whole_give_the_model(tmp_path: Path, method: str, dtype: str) -> None:
    """Density 1 keeps everything; the mean of equals is each of them."""
    base, noise = tensors(0, dtype), tensors(1, dtype)
    model = {name: stored(values * (1 + 0.1 * noise[name]), dtype) for name, values in base.items()}
    result = read(run(tmp_path, models_for(method, lambda _: model), base, dtype, method, reserve_p=1.0))
    for name in SHAPES:
        assert (result[name] == model[name]).all(), name


@pytest.mark.parametrize("method", METHODS)
def test_all_zero_models_give_zero(tmp_path: Path, method: str) -> None:
    zeros = {name: np.zeros(shape) for name, shape in SHAPES.items()}
    result = read(run(tmp_path, models_for(method, lambda _: zeros), zeros, "bfloat16", method))
    assert all((values == 0).all() for values in result.values())


@pytest.mark.parametrize("method", METHODS)
def test_all_equal_elements(tmp_path: Path, method: str) -> None:
    """Every magnitude is the threshold, every rank is shared."""
    base = {name: np.zeros(shape) for name, shape in SHAPES.items()}
    result = read(
        run(tmp_path, models_for(method, lambda _: {n: v + 0.5 for n, v in base.items()}), base, "float32", method)
    )
    allowed = {"ties": [0.5], "linear": [0.5], "slerp": [0.5]}.get(method)
    for name, values in result.items():
        assert np.isfinite(values).all()
        if allowed:
            assert (values == 0.5).all(), name
    if method in ("dare_linear", "della_linear"):  # unbiased: 210 000 elements, standard error below 0.0005
        assert abs(result["large"].mean() - 0.5) < 0.003


@pytest.mark.parametrize("method", METHODS)
def test_scale_zero_gives_the_base(tmp_path: Path, method: str) -> None:
    base = tensors(0, "bfloat16")
    models = models_for(method, lambda number: tensors(number + 1, "bfloat16"))
    result = read(run(tmp_path, models, base, "bfloat16", method, scale=0.0))
    assert all((result[name] == base[name]).all() for name in SHAPES)


@pytest.mark.parametrize("method", ["linear", "ties"])
def test_order_of_models_does_not_matter(tmp_path: Path, method: str) -> None:
    """With their weights; elements are exact in float64 (small integers), so to the bit."""
    generator = np.random.default_rng(0)
    models = [{"w": generator.integers(-8, 8, 4096).astype(float)} for _ in range(3)]
    base = {"w": np.zeros(4096)}
    weights = [1.0, 2.0, 4.0]
    fields: dict[str, Any] = {"ties": {"rescale": False}, "linear": {"normalize": False}}[method]
    a = read(run(tmp_path / "a", models, base, "float64", method, weight_list=weights, **fields))
    b = read(run(tmp_path / "b", models[::-1], base, "float64", method, weight_list=weights[::-1], **fields))
    assert (a["w"] == b["w"]).all()


@pytest.mark.parametrize("method", METHODS)
def test_same_bytes_for_any_workers_blocks_and_shards(tmp_path: Path, method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    base = tensors(0, "bfloat16")
    models = models_for(method, lambda number: tensors(number + 1, "bfloat16"))
    fields: dict[str, Any] = {"ties_zero_sign": "majority"} if METHODS[method][1] == "ties" else {}
    first = run(tmp_path, models, base, "bfloat16", method, out="first", **fields)

    def digest(out: Path) -> str:
        return hashlib.sha256((out / "model.safetensors").read_bytes()).hexdigest()

    expected = digest(first)
    for n_process in (1, 2, 5):
        out = run(tmp_path, models, base, "bfloat16", method, out=f"n{n_process}", n_process=n_process, **fields)
        assert digest(out) == expected
    reference = read(first)
    for size in ("20KB", "300KB"):
        sharded = run(tmp_path, models, base, "bfloat16", method, out=f"s{size}", max_shard_size=size, n_process=2, **fields)
        assert len(list(sharded.glob("model-*.safetensors"))) > 1
        assert all((values == reference[name]).all() for name, values in read(sharded).items())
    for block in (1 << 10, 1 << 13):
        budget = MemoryBudget(block, block, resident=0, panel=block)
        monkeypatch.setattr("paddle_merge.recipe.request.Engine", functools.partial(Engine, budget=budget))
        assert digest(run(tmp_path, models, base, "bfloat16", method, out=f"b{block}", **fields)) == expected


def test_pieces_of_one_tensor_make_the_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A tensor shared out among workers gets the same mask and the same bytes."""
    base, models = tensors(0, "float32"), [tensors(1, "float32"), tensors(2, "float32")]
    whole = run(tmp_path, models, base, "float32", "dare_linear", out="whole")
    monkeypatch.setattr("paddle_merge.plan.plan.PIECE_BYTES", 1 << 18)  # 2**16 elements
    cut = run(tmp_path, models, base, "float32", "dare_linear", out="cut", n_process=2)
    assert (whole / "model.safetensors").read_bytes() == (cut / "model.safetensors").read_bytes()


@pytest.mark.parametrize("method", METHODS)
def test_another_seed_changes_only_random_methods(tmp_path: Path, method: str) -> None:
    base = tensors(0, "float32")
    models = models_for(method, lambda number: tensors(number + 1, "float32"))
    a = run(tmp_path, models, base, "float32", method, out="a", seed=1)
    b = run(tmp_path, models, base, "float32", method, out="b", seed=2)
    same = (a / "model.safetensors").read_bytes() == (b / "model.safetensors").read_bytes()
    assert same == (METHODS[method][0] not in ("dare", "magprune"))
