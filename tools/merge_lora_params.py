"""Fold a LoRA adapter into its base model. Replaces PaddleNLP's llm/tools/merge_lora_params.py, with the same flags."""

from paddle_merge.compat.scripts import merge_lora_params

if __name__ == "__main__":
    merge_lora_params()
