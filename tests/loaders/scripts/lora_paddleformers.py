"""Train, load and fold adapters with PaddleFormers; see job.py."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import paddle
from job import work, write_weights
from paddleformers.nn.experts import MoeExperts
from paddleformers.peft import LoRAConfig, LoRAModel
from paddleformers.peft.lora.lora_layers import LoRAConv2D, LoRAMoeExperts
from paddleformers.transformers import LlamaConfig, LlamaForCausalLM
from paddleformers.utils.log import logger

IN_PADDLE = {"save_checkpoint_format": "unified_checkpoint", "save_to_hf": False, "safe_serialization": True}


def move(model, amount: float) -> None:
    """Change all that is trained."""
    for parameter in model.parameters():
        if not parameter.stop_gradient:
            parameter.set_value(parameter + amount * paddle.randn(parameter.shape))


def adapt(folder: str, config: dict[str, object], adapters: dict[str, dict[str, object]]) -> None:
    """Into `folder`: base as the library saves it by default, base-hf and base-paddle as it can, tuned (all of it), and each
    adapter, with the model that it makes in NAME-folded; NAME-pdparams is the adapter in the other format."""
    paddle.seed(0)
    settings = LlamaConfig(**config)
    settings.fuse_rms_norm = False  # the fused kernel is a GPU's
    model = LlamaForCausalLM(settings)
    move(model, 0.4)
    model.save_pretrained(f"{folder}/base")
    model.save_pretrained(f"{folder}/base-hf", save_to_hf=True)
    model.save_pretrained(f"{folder}/base-paddle", **IN_PADDLE)
    weights = model.state_dict()
    write_weights(f"{folder}/base-weights", weights)
    for name, lora in adapters.items():
        own = LlamaForCausalLM(settings)
        own.set_state_dict(weights)
        adapted = LoRAModel(own, LoRAConfig(**lora))
        adapted.mark_only_lora_as_trainable()
        move(adapted, 0.05)
        adapted.save_pretrained(f"{folder}/{name}")
        adapted.save_pretrained(f"{folder}/{name}-pdparams", save_checkpoint_format="")
        fold_into(adapted, f"{folder}/{name}-folded")
    move(model, 0.05)
    model.save_pretrained(f"{folder}/tuned")


def adapt_layers(folder: str, lora: dict[str, object]) -> None:
    """Into `folder`: base, with stacked experts and convolutions; an adapter; and the folded model.

    paddlefleet, which is not on PyPI, makes models of these layers. lora: settings of LoRAConfig.
    """
    paddle.seed(0)
    sizes = SimpleNamespace(num_experts=3, moe_intermediate_size=5, hidden_size=4, hidden_act="silu")
    settings = LoRAConfig(target_modules=[".*"], **lora)
    own = {"r": settings.r, "lora_alpha": settings.lora_alpha}
    plain = MoeExperts(sizes)
    move(plain, 0.4)
    layers = {"mlp.experts": LoRAMoeExperts(plain, rslora=settings.rslora, **own)}
    layers |= {"wide": LoRAConv2D(3, 6, (2, 3), **own), "narrow": LoRAConv2D(3, 6, 1, **own)}
    for layer in layers.values():
        move(layer, 0.05)
    state = {f"{name}.{word}": value for name, layer in layers.items() for word, value in layer.state_dict().items()}
    write_weights(f"{folder}/base", state)
    settings.save_pretrained(f"{folder}/lora")
    paddle.save(
        {name: value for name, value in state.items() if "lora_" in name}, f"{folder}/lora/lora_model_state.pdparams"
    )
    for layer in layers.values():
        layer.merge()
    merged = {f"{name}.{word}": value for name, layer in layers.items() for word, value in layer.state_dict().items()}
    write_weights(f"{folder}/lora-folded", merged)


def fold(base: str, adapter: str, folder: str, options: dict[str, object]) -> None:
    settings = LlamaConfig.from_pretrained(base)
    settings.fuse_rms_norm = False
    model = LlamaForCausalLM.from_pretrained(base, config=settings, **options)
    fold_into(LoRAModel.from_pretrained(model, adapter), folder)


def fold_into(adapted, folder: str) -> None:
    adapted.merge()
    write_weights(folder, adapted.model.state_dict())


if __name__ == "__main__":
    logger.set_level("ERROR")
    work(sys.modules[__name__])
