"""Families of mixtures of experts: which dense models each is made of, and what it calls its tensors and settings.

Names are those of Hugging Face's files, with a matrix for each expert, as transformers 4 and 5 and Paddle's libraries read.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import field
from typing import Any

from ..records import record

MLP = ("gate_proj", "up_proj", "down_proj")  # the matrices of a dense model's MLP; the last one is the residual's
_MATRIX = re.compile(rf"(?P<layer>(?:.*\.)?layers\.\d+\.)mlp\.(?P<word>{'|'.join(MLP)})\.weight")
_QKV = ("q_proj", "k_proj", "v_proj")
_LLAMA = ("llama", "mistral")

# What transformers takes where a dense model's config.json says nothing, as old ones do: the classes of mixtures, or other
# libraries, would take something else.
_COMMON = {"hidden_act": "silu", "rms_norm_eps": 1e-6, "rope_theta": 10000.0, "tie_word_embeddings": False}
DEFAULTS: Mapping[str, Mapping[str, Any]] = {
    "llama": {**_COMMON, "max_position_embeddings": 2048},
    "mistral": {**_COMMON, "max_position_embeddings": 131072, "num_key_value_heads": 8, "sliding_window": 4096},
    "qwen2": {**_COMMON, "max_position_embeddings": 32768, "use_sliding_window": False, "max_window_layers": 28},
    "qwen3": {**_COMMON, "max_position_embeddings": 32768, "use_sliding_window": False, "head_dim": 128},
    "ernie4_5": {
        **_COMMON,
        **{"rms_norm_eps": 1e-5, "rope_theta": 500000.0, "tie_word_embeddings": True, "head_dim": 128},
        **{"max_position_embeddings": 131072, "num_key_value_heads": 2},
    },
}


@record(frozen=True)
class Mlp:
    """Locate a matrix of a dense model's MLP. layer: the beginning of its name, "model.layers.3."; word: one of MLP."""

    layer: str
    word: str

    @property
    def residual(self) -> bool:
        """Return whether it is the one whose output is added to the residual stream."""
        return self.word == MLP[-1]


def mlp_of(name: str) -> Mlp | None:
    """Return which matrix of an MLP a dense model's tensor is; None if it is something else."""
    found = _MATRIX.fullmatch(name)
    return Mlp(found["layer"], found["word"]) if found else None


@record(frozen=True)
class Zeros:
    """A tensor that a family has and the dense model lacks, which changes nothing where it is zeros.

    name: behind the layer's prefix. like: the dense model's tensor whose rows it has as elements; "": one row of an element
    per expert. dtype: None: that of the dense model's tensors.
    """

    name: str
    like: str = ""
    dtype: str | None = None


@record(frozen=True)
class Family:
    """A family of mixtures.

    title: as `architecture` of a recipe calls it. aliases: what else it may be called. model_type, architecture: of
    config.json. dense: the model types that it is made of.
    expert: the name of a matrix of an expert behind the layer's prefix, of its number and the matrix's own word; words: what
    the matrices are called where not as in dense models. router: name of the router's weight.
    shared: the beginning of the shared expert's names; "" if the family has none. shared_gate: the weight of its gate.
    least_shared: how many it must have; at most one is made. biases: the projections of attention that may have a bias.
    zeros: tensors to add. settings: what config.json says, of the dense one's content, the number of experts, of shared
    ones, and of experts per token.
    """

    title: str
    aliases: tuple[str, ...]
    model_type: str
    architecture: str
    dense: tuple[str, ...]
    settings: Callable[[Mapping[str, Any], int, int, int], dict[str, Any]]
    expert: str = "mlp.experts.{number}.{word}.weight"
    words: Mapping[str, str] = field(default_factory=dict)
    router: str = "mlp.gate.weight"
    shared: str = ""
    shared_gate: str = ""
    least_shared: int = 0
    biases: tuple[str, ...] = ()
    zeros: tuple[Zeros, ...] = ()

    def config(self, dense: Mapping[str, Any], experts: int, shared: int, per_token: int) -> dict[str, Any]:
        """Return the content of config.json. dense: that of the dense model.

        experts, shared: how many there are. per_token: how many each token is given to.
        """
        kind = str(dense.get("model_type"))
        filled = {**DEFAULTS.get(kind, {}), **({"num_key_value_heads": dense.get("num_attention_heads")}), **_held(dense)}
        if isinstance(dense.get("rope_parameters"), Mapping) and "rope_theta" not in dense:
            del filled["rope_theta"]
        filled.pop("auto_map", None)
        said = {"model_type": self.model_type, "architectures": [self.architecture]}
        return {**filled, **said, **self.settings(filled, experts, shared, per_token)}


def _held(dense: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a config says, without empty values of what has a default that isn't empty."""
    kind = DEFAULTS.get(str(dense.get("model_type")), {})
    asked = {*kind, "num_key_value_heads"} - {"sliding_window"}
    return {name: value for name, value in dense.items() if value is not None or name not in asked}


def _mixtral(dense: Mapping[str, Any], experts: int, shared: int, per_token: int) -> dict[str, Any]:
    return {
        "num_local_experts": experts,
        "num_experts_per_tok": per_token,
        "sliding_window": dense.get("sliding_window"),
        "output_router_logits": False,
    }


def _qwen(dense: Mapping[str, Any], experts: int, shared: int, per_token: int) -> dict[str, Any]:
    return {
        "num_experts": experts,
        "num_experts_per_tok": per_token,
        "moe_intermediate_size": dense.get("intermediate_size"),
        "norm_topk_prob": True,
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
        "output_router_logits": False,
    }


def _qwen2(dense: Mapping[str, Any], experts: int, shared: int, per_token: int) -> dict[str, Any]:
    windows: dict[str, Any] = {}
    if "use_sliding_window" not in dense:  # of llama or mistral, where a window counts for all layers
        windows = {"use_sliding_window": dense.get("sliding_window") is not None, "max_window_layers": 0}
    said, layers = {**dense, **windows}, dense.get("num_hidden_layers")
    if said["use_sliding_window"] and not said.get("layer_types") and isinstance(layers, int):
        # Unlike Qwen2, its mixture reads max_window_layers as the end of the layers with windows, in transformers 5.
        kinds, first = ("full_attention", "sliding_attention"), said["max_window_layers"]
        windows["layer_types"] = [kinds[number >= first] for number in range(layers)]
    own = {"shared_expert_intermediate_size": dense.get("intermediate_size"), "qkv_bias": True}
    return {**_qwen(dense, experts, shared, per_token), **own, **windows}


def _deepseek(dense: Mapping[str, Any], experts: int, shared: int, per_token: int) -> dict[str, Any]:
    code = "deepseek-ai/deepseek-moe-16b-base--"
    return {
        "n_routed_experts": experts,
        "n_shared_experts": shared or None,
        "num_experts_per_tok": per_token,
        "moe_intermediate_size": dense.get("intermediate_size"),
        "first_k_dense_replace": 0,
        "moe_layer_freq": 1,
        "scoring_func": "softmax",
        "norm_topk_prob": True,
        "auto_map": {
            "AutoConfig": f"{code}configuration_deepseek.DeepseekConfig",
            "AutoModel": f"{code}modeling_deepseek.DeepseekModel",
            "AutoModelForCausalLM": f"{code}modeling_deepseek.DeepseekForCausalLM",
        },
    }


def _ernie(dense: Mapping[str, Any], experts: int, shared: int, per_token: int) -> dict[str, Any]:
    layers = dense.get("num_hidden_layers")
    return {
        "moe_num_experts": experts,
        "moe_k": per_token,
        "moe_num_shared_experts": shared,
        "moe_intermediate_size": dense.get("intermediate_size"),
        "moe_layer_start_index": 0,
        "moe_layer_end_index": layers - 1 if isinstance(layers, int) else -1,
        "moe_layer_interval": 1,
        "moe_norm_min": 1e-12,
        "moe_use_aux_free": True,
        "num_nextn_predict_layers": 0,  # else PaddleFormers expects a layer that predicts further tokens
    }


# In the order in which one is chosen that fits the models; it is mergekit-moe's.
FAMILIES = (
    Family(
        title="mixtral",
        aliases=(),
        model_type="mixtral",
        architecture="MixtralForCausalLM",
        dense=_LLAMA,
        settings=_mixtral,
        expert="block_sparse_moe.experts.{number}.{word}.weight",
        words=dict(zip(MLP, ("w1", "w3", "w2"), strict=True)),
        router="block_sparse_moe.gate.weight",
    ),
    Family(
        title="deepseek",
        aliases=("deepseekmoe",),
        model_type="deepseek",
        architecture="DeepseekForCausalLM",
        dense=_LLAMA,
        settings=_deepseek,
        shared="mlp.shared_experts.",
    ),
    Family(
        title="qwen2_moe",
        aliases=("qwenmoe",),
        model_type="qwen2_moe",
        architecture="Qwen2MoeForCausalLM",
        dense=("qwen2", *_LLAMA),
        settings=_qwen2,
        shared="mlp.shared_expert.",
        shared_gate="mlp.shared_expert_gate.weight",
        least_shared=1,
        biases=_QKV,
        zeros=tuple(Zeros(f"self_attn.{word}.bias", f"self_attn.{word}.weight") for word in _QKV),
    ),
    Family(
        title="qwen3_moe",
        aliases=(),
        model_type="qwen3_moe",
        architecture="Qwen3MoeForCausalLM",
        dense=("qwen3",),
        settings=_qwen,
        biases=(*_QKV, "o_proj"),
    ),
    Family(
        title="ernie4_5_moe",
        aliases=("erniemoe",),
        model_type="ernie4_5_moe",
        architecture="Ernie4_5_MoeForCausalLM",
        dense=("ernie4_5",),
        settings=_ernie,
        shared="mlp.shared_experts.",
        zeros=(Zeros("mlp.moe_statics.e_score_correction_bias", dtype="float32"),),
    ),
)


def families_named(name: str) -> Sequence[Family]:
    """Return the families that a recipe's `architecture` may mean: those whose title or alias begins so, as in mergekit."""
    word = _plain(name)
    return [one for one in FAMILIES if word and any(_plain(alias).startswith(word) for alias in (one.title, *one.aliases))]


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())
