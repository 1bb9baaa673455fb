"""Small models with mixtures of experts, what they compute, and the same with experts and neurons in another order."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

EXPERTS, HIDDEN, NEURONS, LAYERS, TOP = 4, 6, 5, 2, 2
State = dict[str, np.ndarray]
# How families store experts: (prefix, router, its bias, the score correction); and whether experts are apart.
FAMILIES = {
    "mixtral": ("block_sparse_moe", "gate.weight", None, None),
    "qwen3_moe": ("mlp", "gate.weight", None, None),
    "deepseek_v3": ("mlp", "gate.weight", None, "gate.e_score_correction_bias"),
    "ernie4_5_moe": ("mlp", "gate.weight", None, "moe_statics.e_score_correction_bias"),
    "stacked": ("mlp", "gate.weight", None, None),
    "granitemoe": ("block_sparse_moe", "router.layer.weight", None, None),
    "gpt_oss": ("mlp", "router.weight", "router.bias", None),
    "llama4_text": ("feed_forward", "router.weight", None, None),
}
WORDS = {"mixtral": ("w1", "w3", "w2")}
STACKED = ("stacked", "granitemoe", "gpt_oss", "llama4_text")
Layer = dict[str, np.ndarray]  # router [E, h], bias [E], correction [E], gate and up [E, i, h], down [E, h, i], biases


def layer(random: np.random.Generator) -> Layer:
    """The weights of a layer of experts, whatever its family."""
    sizes = {
        "router": (EXPERTS, HIDDEN), "bias": (EXPERTS,), "correction": (EXPERTS,),
        "gate": (EXPERTS, NEURONS, HIDDEN), "up": (EXPERTS, NEURONS, HIDDEN), "down": (EXPERTS, HIDDEN, NEURONS),
        "gate_bias": (EXPERTS, NEURONS), "up_bias": (EXPERTS, NEURONS), "down_bias": (EXPERTS, HIDDEN),
    }  # fmt: skip
    return {name: random.normal(size=shape) for name, shape in sizes.items()}


def shuffled(one: Layer, experts: Sequence[int], neurons: np.ndarray) -> Layer:
    """Another order: place e gets expert experts[e], and its neuron n is neuron neurons[e, n] of that expert."""
    found = {name: values[list(experts)] for name, values in one.items()}
    for place, order in enumerate(neurons):
        for name in ("gate", "up", "gate_bias", "up_bias"):
            found[name][place] = found[name][place][order]
        found["down"][place] = found["down"][place][:, order]
    return found


def computed(one: Layer, x: np.ndarray, family: str) -> np.ndarray:
    """What the layer makes of tokens x [n, h]: top-k routing, gated experts, as the libraries compute them."""
    _, _, bias, correction = FAMILIES[family]
    biased = bias is not None
    logits = x @ one["router"].T + (one["bias"] if biased else 0)
    scores = 1 / (1 + np.exp(-logits))
    chosen = np.argsort(-(scores + (one["correction"] if correction else 0)), axis=1)[:, :TOP]
    result = np.zeros_like(x)
    for token, its in enumerate(chosen):
        for expert in its:
            gate = one["gate"][expert] @ x[token] + (one["gate_bias"][expert] if biased else 0)
            up = one["up"][expert] @ x[token] + (one["up_bias"][expert] if biased else 0)
            inner = gate / (1 + np.exp(-gate)) * up
            result[token] += scores[token, expert] * (
                one["down"][expert] @ inner + (one["down_bias"][expert] if biased else 0)
            )
    return result


def stored(layers: Sequence[Layer], family: str) -> State:
    """The layers as files of the family have them, with a shared expert and an embedding beside."""
    prefix, router, bias, correction = FAMILIES[family]
    state: State = {"model.embed_tokens.weight": np.arange(8.0 * HIDDEN).reshape(8, HIDDEN)}
    for number, one in enumerate(layers):
        start = f"model.layers.{number}.{prefix}."
        state[start + router] = one["router"]
        state |= {start + bias: one["bias"]} if bias else {}
        if correction:
            state[start + correction] = one["correction"].reshape((1, -1) if family == "ernie4_5_moe" else -1)
        gate_up = np.concatenate([one["gate"], one["up"]], axis=1)
        if family == "stacked":
            state |= {f"{start}experts.gate_up_proj": gate_up, f"{start}experts.down_proj": one["down"]}
        elif family == "granitemoe":
            state |= {f"{start}input_linear.weight": gate_up, f"{start}output_linear.weight": one["down"]}
        elif family == "llama4_text":
            state |= {f"{start}experts.gate_up_proj": gate_up.transpose(0, 2, 1)}
            state |= {f"{start}experts.down_proj": one["down"].transpose(0, 2, 1)}
        elif family == "gpt_oss":
            pairs = np.stack([one["gate"], one["up"]], axis=2).reshape(EXPERTS, 2 * NEURONS, HIDDEN)
            state |= {f"{start}experts.gate_up_proj": pairs.transpose(0, 2, 1)}
            state |= {f"{start}experts.down_proj": one["down"].transpose(0, 2, 1)}
            both = np.stack([one["gate_bias"], one["up_bias"]], axis=2).reshape(EXPERTS, 2 * NEURONS)
            state |= {f"{start}experts.gate_up_proj_bias": both, f"{start}experts.down_proj_bias": one["down_bias"]}
        else:
            for expert in range(EXPERTS):
                for word, name in zip(
                    WORDS.get(family, ("gate_proj", "up_proj", "down_proj")), ("gate", "up", "down"), strict=True
                ):
                    state[f"{start}experts.{expert}.{word}.weight"] = one[name][expert]
        state[f"{start}shared_expert_gate.weight"] = np.ones((1, HIDDEN))
        for word, shape in (("gate_proj", (9, HIDDEN)), ("up_proj", (9, HIDDEN)), ("down_proj", (HIDDEN, 9))):
            state[f"{start}shared_experts.{word}.weight"] = np.full(shape, 0.5)
    return state


def loaded(state: Mapping[str, np.ndarray], family: str) -> list[Layer]:
    """The layers of a state: the inverse of `stored`, as far as the family has tensors."""
    prefix, router, bias, correction = FAMILIES[family]
    found = []
    for number in range(LAYERS):
        start = f"model.layers.{number}.{prefix}."
        one = {"router": state[start + router]}
        one |= {"bias": state[start + bias]} if bias else {}
        one |= {"correction": state[start + correction].reshape(-1)} if correction else {}
        if family in STACKED:
            names = ("input_linear.weight", "output_linear.weight")
            up, down = (
                state[start + name]
                for name in (names if family == "granitemoe" else ("experts.gate_up_proj", "experts.down_proj"))
            )
            if family in ("gpt_oss", "llama4_text"):
                up, down = up.transpose(0, 2, 1), down.transpose(0, 2, 1)
            one |= {"gate": up[:, :NEURONS], "up": up[:, NEURONS:], "down": down}
            if family == "gpt_oss":
                both = state[f"{start}experts.gate_up_proj_bias"]
                one |= {"gate": up[:, ::2], "up": up[:, 1::2], "gate_bias": both[:, ::2], "up_bias": both[:, 1::2]}
                one["down_bias"] = state[f"{start}experts.down_proj_bias"]
        else:
            words = WORDS.get(family, ("gate_proj", "up_proj", "down_proj"))
            for word, name in zip(words, ("gate", "up", "down"), strict=True):
                one[name] = np.stack([state[f"{start}experts.{e}.{word}.weight"] for e in range(EXPERTS)])
        found.append(one)
    return found


def config(family: str) -> dict[str, object]:
    return {"model_type": "qwen3_moe" if family == "stacked" else family, "hidden_size": HIDDEN, "num_hidden_layers": LAYERS}
