"""Stands in for PaddleNLP's llm/tools/mergekit.py, and with --lora_path for its merge_lora_params.py: our merge."""

from paddle_merge.compat.scripts import mergekit

if __name__ == "__main__":
    mergekit()
