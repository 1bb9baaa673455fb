"""Stands in for PaddleNLP's llm/tools/merge_lora_params.py: the same flags, our fold."""

from paddle_merge.compat.scripts import merge_lora_params

if __name__ == "__main__":
    merge_lora_params()
