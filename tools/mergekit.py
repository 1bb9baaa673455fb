"""Stands in for PaddleNLP's llm/tools/mergekit.py: the same flags, our merge."""

from paddle_merge.compat.scripts import mergekit

if __name__ == "__main__":
    mergekit()
