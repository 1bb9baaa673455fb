"""Looking at checkpoints: `python -m paddle_merge inspect` reads their headers, `... diff` their numbers."""
