"""Test adapters of all experts of a layer: PEFT's target_parameters, and PaddleFormers' stacks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from paddle_merge import CheckpointError, MergeConfig, merge
from paddle_merge.conversion.lora import adapted
from tests.conversion.lora.test_lora import close, fold, paddle
from tests.conversion.lora.test_lora import peft as saved
from tests.support.checkpoints import read, write

State = dict[str, np.ndarray]
E, H, INNER, R = 3, 4, 5, 2  # experts, hidden and inner width, rank
LAYER = "model.layers.0.mlp."
TARGETS = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]


def base(folder: Path, tensors: State, **config: Any) -> str:
    config = {"architectures": ["X"], "model_type": "qwen3_moe", **config}
    return str(write(folder, tensors, "float64", format="pt", config=config))


def peft(folder: Path, its: State, **config: Any) -> str:
    return saved(folder, its, **({"peft_version": "0.21.2"} | config))


def stacks(seed: int, inner: int = INNER) -> State:
    """As transformers holds experts: [E, out, in]."""
    random = np.random.default_rng(seed)
    shapes = {"gate_up_proj": (E, 2 * inner, H), "down_proj": (E, H, inner)}
    return {f"{LAYER}experts.{name}": random.standard_normal(shape) for name, shape in shapes.items()}


def apart(stacked: State) -> State:
    """As Qwen3-MoE stores experts."""
    gate_up, down = stacked[f"{LAYER}experts.gate_up_proj"], stacked[f"{LAYER}experts.down_proj"]
    found = {}
    for expert in range(E):
        gate, up = np.split(gate_up[expert], 2)
        found |= {f"{LAYER}experts.{expert}.gate_proj.weight": gate, f"{LAYER}experts.{expert}.up_proj.weight": up}
        found[f"{LAYER}experts.{expert}.down_proj.weight"] = down[expert]
    return found


def mixtral(state: State) -> State:
    words = {"gate_proj": "w1", "down_proj": "w2", "up_proj": "w3", ".mlp.": ".block_sparse_moe."}
    for old, new in words.items():
        state = {name.replace(old, new): value for name, value in state.items()}
    return state


def turned(state: State) -> State:
    """As gpt-oss and Qwen3-VL-MoE store experts: [E, in, out]."""
    return {name: np.ascontiguousarray(value.swapaxes(1, 2)) for name, value in state.items()}


def factors(seed: int, inner: int = INNER, rank: int = R) -> State:
    """PEFT's: gate_up_proj was wrapped first. A [E r, in], B [out, r E]."""
    random = np.random.default_rng(seed)
    name = f"{LAYER}experts."
    shapes = {
        f"{name}base_layer.lora_A.weight": (E * rank, H),
        f"{name}base_layer.lora_B.weight": (2 * inner, rank * E),
        f"{name}lora_A.weight": (E * rank, inner),
        f"{name}lora_B.weight": (H, rank * E),
    }
    return {name: random.standard_normal(shape) for name, shape in shapes.items()}


def folded(stacked: State, its: State, scale: float) -> State:
    """By PEFT's own formula, ParamWrapper.get_delta_weight: einsum("o r e, e r i -> e o i")."""
    result = dict(stacked)
    for name, path in (("gate_up_proj", "experts.base_layer"), ("down_proj", "experts")):
        a, b = its[f"{LAYER}{path}.lora_A.weight"], its[f"{LAYER}{path}.lora_B.weight"]
        a, b = a.reshape(E, -1, a.shape[1]), b.reshape(b.shape[0], -1, E)
        result[f"{LAYER}experts.{name}"] = stacked[f"{LAYER}experts.{name}"] + scale * np.einsum("ore,eri->eoi", b, a)
    return result


def test_by_hand(tmp_path: Path) -> None:
    """Two experts of rank 1, scale 2: the delta of expert e is 2 * B[:, e] A[e]."""
    w = np.zeros((2, 2, 2))
    a, b = np.array([[1.0, 2.0], [3.0, 4.0]]), np.array([[1.0, 10.0], [0.0, 100.0]])
    path = base(tmp_path / "base", {f"{LAYER}experts.down_proj": w})
    its = {f"{LAYER}experts.lora_A.weight": a, f"{LAYER}experts.lora_B.weight": b}
    got = fold(tmp_path, path, peft(tmp_path / "ad", its, r=1, lora_alpha=2, target_parameters=["experts.down_proj"]))
    expected = [[[2.0, 4.0], [0.0, 0.0]], [[60.0, 80.0], [600.0, 800.0]]]
    assert got[f"{LAYER}experts.down_proj"].tolist() == expected


@pytest.mark.parametrize("step", [7, 1 << 16])
@pytest.mark.parametrize("form", ["apart", "mixtral", "stacked", "turned"])
def test_however_the_base_stores_experts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str, step: int) -> None:
    make = {"apart": apart, "mixtral": lambda state: mixtral(apart(state)), "stacked": dict, "turned": turned}[form]
    monkeypatch.setattr(adapted, "STEP", step)
    its = factors(1)
    adapter = peft(tmp_path / "ad", its, r=R, lora_alpha=3, target_modules=[], target_parameters=TARGETS)
    got = fold(tmp_path, base(tmp_path / "base", make(stacks(0))), adapter)
    close(got, make(folded(stacks(0), its, 1.5)))


@pytest.mark.parametrize("output", ["paddleformers", "paddlenlp"])
def test_onto_experts_in_paddles_layouts(tmp_path: Path, output: str) -> None:
    """PaddleFormers fuses gate and up of Qwen3-MoE's experts: [gate | up] along the outputs, as the parameter is."""
    its = factors(1)
    adapter = peft(tmp_path / "ad", its, r=R, lora_alpha=3, target_modules=[], target_parameters=TARGETS)
    path = base(tmp_path / "base", apart(stacks(0)), moe_intermediate_size=INNER, hidden_size=H)
    got = fold(tmp_path, path, adapter, output_layout=output)
    expected = {name: value.T for name, value in apart(folded(stacks(0), its, 1.5)).items()}
    if output == "paddlenlp":
        expected = {name.replace("model.", "qwen3_moe."): value for name, value in expected.items()}
    for name in [name for name in expected if "gate_proj" in name] if output == "paddleformers" else ():
        gate, up = expected.pop(name), expected.pop(name.replace("gate_proj", "up_proj"))
        expected[name.replace("gate_proj", "up_gate_proj")] = np.concatenate([gate, up], axis=1)
    close(got, expected)


def test_ranks_by_pattern(tmp_path: Path) -> None:
    """PEFT matches patterns with the parameter's name. So it writes adapters of transformers 4: gate and up were two."""
    its = {name: value for name, value in factors(1, rank=4).items() if "base_layer" in name} | {
        name: value for name, value in factors(1).items() if "base_layer" not in name
    }
    patterns = {"rank_pattern": {r".*\.gate_up_proj": 4}, "alpha_pattern": {r".*\.gate_up_proj": 6}}
    config = {"target_parameters": ["gate_up_proj", "down_proj", "gate.weight"], **patterns}
    adapter = peft(tmp_path / "ad", its, r=R, lora_alpha=3, target_modules=["q_proj"], **config)
    close(fold(tmp_path, base(tmp_path / "base", apart(stacks(0))), adapter), apart(folded(stacks(0), its, 1.5)))


def test_one_parameter_and_a_router(tmp_path: Path) -> None:
    """A parameter that is a layer's weight is that layer's; its pattern's name ends in weight."""
    random = np.random.default_rng(2)
    gate, (a, b) = random.standard_normal((E, H)), (random.standard_normal((R, H)), random.standard_normal((E, R)))
    its = {name: value for name, value in factors(1).items() if "base_layer" not in name}
    its |= {f"{LAYER}gate.lora_A.weight": a, f"{LAYER}gate.lora_B.weight": b}
    config = {"target_parameters": ["down_proj", "gate.weight"], "alpha_pattern": {"gate.weight": 8, "gate": 5}}
    adapter = peft(tmp_path / "ad", its, r=R, lora_alpha=3, **config)
    got = fold(tmp_path, base(tmp_path / "base", apart(stacks(0)) | {f"{LAYER}gate.weight": gate}), adapter)
    full = its | {name: np.zeros_like(value) for name, value in factors(1).items() if "base_layer" in name}
    close(got, apart(folded(stacks(0), full, 1.5)) | {f"{LAYER}gate.weight": gate + 4 * b @ a})


@pytest.mark.parametrize("form", ["stacked", "apart"])
@pytest.mark.parametrize(
    ("version", "family", "first"),
    [
        ("0.21.2", "gpt_oss", True),
        ("0.21.2", "qwen3_moe", False),
        ("0.19.1", "qwen3_moe", False),
        ("0.19.0", "gpt_oss", False),
        ("0.19.0", "qwen3_moe", True),
        ("0.18.1", "qwen3_moe", True),
        ("0.17.0", "gpt_oss", True),
        (None, "gpt_oss", True),
    ],
)
def test_square_matrices(tmp_path: Path, version: str | None, family: str, first: bool, form: str) -> None:
    """gpt-oss has down_proj [32, 2880, 2880]. What A [E r, 2880] is for depends on the version: ParamWrapper in each."""
    its = {name: value for name, value in factors(1, inner=H).items() if "base_layer" not in name}
    a, b = its[f"{LAYER}experts.lora_A.weight"], its[f"{LAYER}experts.lora_B.weight"]
    a, b = a.reshape(E, R, H), b.reshape(H, R, E)
    delta = np.einsum("ore,eri->eio" if first else "ore,eri->eoi", b, a)
    state = stacks(0, inner=H)
    name, make = f"{LAYER}experts.down_proj", apart if form == "apart" else dict
    adapter = peft(tmp_path / "ad", its, r=R, lora_alpha=3, target_parameters=["down_proj"], peft_version=version)
    got = fold(tmp_path, base(tmp_path / "base", make(state), model_type=family), adapter)
    close(got, make(state | {name: state[name] + 1.5 * delta}))


@pytest.mark.parametrize("form", ["stacked", "apart"])
def test_other_matrices_show_what_square_ones_do_not(tmp_path: Path, form: str) -> None:
    """A and B exchanged, as before PEFT 0.19.1, whatever version is named: gate_up_proj [E, 8, 4] shows it."""
    its, state = factors(1, inner=H), stacks(0, inner=H)
    make = apart if form == "apart" else dict
    gate_up = np.random.default_rng(5).standard_normal((E * R, 2 * H)), np.random.default_rng(6).standard_normal((H, R * E))
    its[f"{LAYER}experts.base_layer.lora_A.weight"], its[f"{LAYER}experts.base_layer.lora_B.weight"] = gate_up
    expected = dict(state)
    for name, path in (("gate_up_proj", "experts.base_layer"), ("down_proj", "experts")):
        a, b = its[f"{LAYER}{path}.lora_A.weight"], its[f"{LAYER}{path}.lora_B.weight"]
        a, b = a.reshape(E, R, -1), b.reshape(-1, R, E)
        expected[f"{LAYER}experts.{name}"] = state[f"{LAYER}experts.{name}"] + 1.5 * np.einsum("ore,eri->eio", b, a)
    adapter = peft(tmp_path / "ad", its, r=R, lora_alpha=3, target_parameters=TARGETS)
    close(fold(tmp_path, base(tmp_path / "base", make(state)), adapter), make(expected))


def test_stacks_of_square_matrices_that_may_be_stored_either_way(tmp_path: Path) -> None:
    its = {name: value for name, value in factors(1, inner=H).items() if "base_layer" not in name}
    adapter = peft(tmp_path / "ad", its, r=R, lora_alpha=3, target_parameters=["down_proj"])
    with pytest.raises(CheckpointError, match="whose matrices are square"):
        fold(tmp_path, base(tmp_path / "base", stacks(0, inner=H), model_type="qwen3_vl_moe_text"), adapter)


@pytest.mark.parametrize("form", ["turned", "stacked", "apart", "square"])
def test_paddleformers_stacks(tmp_path: Path, form: str) -> None:
    """W[e] [in, out] + s A[e] B[e], by LoRAMoeExperts.get_delta_weight of PaddleFormers 1.2."""
    random = np.random.default_rng(1)
    inner = H if form == "square" else INNER
    a, b = random.standard_normal((E, H, R)), random.standard_normal((E, R, 2 * inner))
    c, d = random.standard_normal((E, inner, R)), random.standard_normal((E, R, H))
    name = f"{LAYER}experts."
    its = {f"{name}gate_up_proj_lora_A": a, f"{name}gate_up_proj_lora_B": b}
    its |= {f"{name}down_proj_lora_A": c, f"{name}down_proj_lora_B": d}
    make = {"apart": lambda state: apart(turned(state)), "stacked": turned}.get(form, dict)
    stacked = turned(stacks(0, inner))
    expected = {f"{name}gate_up_proj": stacked[f"{name}gate_up_proj"] + 1.5 * a @ b}
    expected[f"{name}down_proj"] = stacked[f"{name}down_proj"] + 1.5 * c @ d
    path = base(tmp_path / "base", make(stacked), model_type="qwen3_vl_moe")
    adapter = paddle(tmp_path / "ad", its, r=R, lora_alpha=3, trainable_modules=None, trainable_bias=None)
    close(fold(tmp_path, path, adapter), make(expected))


def test_paddleformers_stacks_on_square_matrices_of_torch(tmp_path: Path) -> None:
    """transformers 5 has Qwen3-MoE's experts as [E, out, in] in memory, so a state dict may hold them so."""
    its = {f"{LAYER}experts.down_proj_lora_A": np.ones((E, H, R)), f"{LAYER}experts.down_proj_lora_B": np.ones((E, R, H))}
    adapter = paddle(tmp_path / "ad", its, r=R, lora_alpha=3)
    with pytest.raises(CheckpointError, match="whose matrices are square"):
        fold(tmp_path, base(tmp_path / "base", stacks(0, inner=H)), adapter)


def test_a_stack_merges_as_the_model_it_makes(tmp_path: Path) -> None:
    its = factors(1)
    path = base(tmp_path / "base", stacks(0))
    adapter = peft(tmp_path / "ad", its, r=R, lora_alpha=3, target_parameters=TARGETS)
    whole = base(tmp_path / "whole", folded(stacks(0), its, 1.5))
    got = {}
    for name, one in (("adapted", f"{path}+{adapter}"), ("whole", whole)):
        config = MergeConfig(
            model_path_list=[one, path], base_model_path=path, merge_method="ties", output_path=str(tmp_path / f"of {name}")
        )
        merge(config)
        got[name] = read(tmp_path / f"of {name}")
    close(got["adapted"], got["whole"])


def refusal(tmp_path: Path, tensors: State, its: State, **config: Any) -> str:
    config = {"r": R, "lora_alpha": 3, "target_parameters": TARGETS} | config
    with pytest.raises(CheckpointError) as error:
        fold(tmp_path, base(tmp_path / "base", tensors), peft(tmp_path / "ad", its, **config))
    return str(error.value)


def test_what_does_not_fit(tmp_path: Path) -> None:
    its = factors(1)
    inner = {name: value for name, value in its.items() if "base_layer" in name}
    said = refusal(tmp_path / "pairs", stacks(0), inner)
    assert "it isn't known which factors of 'model.layers.0.mlp.experts' are for which parameter: it has 1 pairs" in said
    assert "has 'gate_up_proj', 'down_proj'" in said
    assert "aren't those of 4 experts" in refusal(
        tmp_path / "more", {name: np.concatenate([value, value[:1]]) for name, value in stacks(0).items()}, its
    )
    assert "has rank 2, but the adapter's config says 3" in refusal(tmp_path / "rank", stacks(0), its, r=3)
    wide = {name: np.zeros((E, 7, 9)) for name in stacks(0)}
    assert "is for matrices of 4 inputs and 10 outputs, but" in refusal(tmp_path / "wide", wide, its)
    no = {f"{LAYER}up_proj.weight": np.zeros((2, 2))}
    assert "was it trained on another model?" in refusal(tmp_path / "none", no, its)
    said = refusal(tmp_path / "type", stacks(0), its, target_parameters="experts.down_proj")
    assert "sets target_parameters to 'experts.down_proj', which has a wrong type" in said


def test_the_account_says_once_what_is_done(tmp_path: Path) -> None:
    path, account = base(tmp_path / "base", stacks(0)), tmp_path / "account.json"
    adapter = peft(tmp_path / "ad", factors(1), r=R, lora_alpha=3, target_parameters=TARGETS)
    fold(tmp_path, path, adapter, account=str(account))
    assert account.read_text().count("plus an adapter's r=2, scale 1.5") == 2
