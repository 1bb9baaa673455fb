"""Merge models. Replaces PaddleNLP's llm/tools/mergekit.py and, with --lora_path, merge_lora_params.py; same flags."""

from paddle_merge.compat.scripts import mergekit

if __name__ == "__main__":
    mergekit()
