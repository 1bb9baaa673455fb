"""Make small mixtures of experts, and compute with them in NumPy, independently of the package."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from tests.support.checkpoints import write

HIDDEN, INNER = 8, 6


def tensors(
    seed: int, experts: int = 4, layers: int = 3, stacked: bool = False, dense: tuple[int, ...] = ()
) -> dict[str, Any]:
    """Return a model whose routers have a bias. stacked: whether experts are two tensors. dense: layers without experts."""
    random = np.random.default_rng(seed)
    made = {"model.embed_tokens.weight": random.normal(size=(16, HIDDEN))}
    for layer in range(layers):
        at = f"model.layers.{layer}."
        made[f"{at}input_layernorm.weight"] = random.normal(size=HIDDEN)
        if layer in dense:
            made[f"{at}mlp.gate_proj.weight"] = random.normal(size=(2 * INNER, HIDDEN))
            continue
        made[f"{at}mlp.gate.weight"] = random.normal(size=(experts, HIDDEN))
        made[f"{at}mlp.gate.e_score_correction_bias"] = random.normal(size=experts)
        shared = {"gate": (experts, HIDDEN), "up": (experts, HIDDEN), "down": (HIDDEN, experts)}  # as many neurons by chance
        made |= {f"{at}mlp.shared_experts.{word}_proj.weight": random.normal(size=its) for word, its in shared.items()}
        gate_up, down = random.normal(size=(experts, 2 * INNER, HIDDEN)), random.normal(size=(experts, HIDDEN, INNER))
        if stacked:
            made |= {f"{at}mlp.experts.gate_up_proj": gate_up, f"{at}mlp.experts.down_proj": down}
            continue
        for expert in range(experts):
            own = f"{at}mlp.experts.{expert}"
            made[f"{own}.gate_proj.weight"], made[f"{own}.up_proj.weight"] = np.split(gate_up[expert], 2)
            made[f"{own}.down_proj.weight"] = down[expert]
    return {**made, "model.norm.weight": random.normal(size=HIDDEN)}


def model(folder: Path, seed: int = 0, config: dict[str, Any] | None = None, dtype: str = "float32", **shape: Any) -> str:
    """Write such a model; return its folder. shape: as of tensors."""
    made = tensors(seed, **shape)
    said = {
        "model_type": "qwen3_moe",
        "hidden_size": HIDDEN,
        "num_hidden_layers": shape.get("layers", 3),
        "num_experts": shape.get("experts", 4),
        "num_experts_per_tok": 1,
        "mlp_only_layers": list(shape.get("dense", ())),
    }
    return str(write(folder, made, dtype, format="pt", config={**said, **(config or {})}))


def mixture(made: dict[str, Any], at: str, x: np.ndarray, top: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return what a mixture makes of x, (n, hidden); the chosen experts, (n, top); their gates, and their outputs' norms.

    made: float64, with split experts. at: what the names begin with. Gates are probabilities that add up to 1.
    """
    router = made[f"{at}gate.weight"]
    logits = x @ router.T
    probabilities = np.exp(logits - logits.max(1, keepdims=True))
    chosen = np.argsort(-logits, axis=1, kind="stable")[:, :top]
    gates = np.take_along_axis(probabilities, chosen, 1)
    gates /= gates.sum(1, keepdims=True)
    norms, result = np.zeros_like(gates), np.zeros_like(x)
    for row, place in np.ndindex(*chosen.shape):
        gate, up, down = (made[f"{at}experts.{chosen[row, place]}.{word}_proj.weight"] for word in ("gate", "up", "down"))
        inner = gate @ x[row]
        output = down @ (inner / (1 + np.exp(-inner)) * (up @ x[row]))
        norms[row, place] = np.linalg.norm(output)
        result[row] += gates[row, place] * output
    return result, chosen, gates, norms
