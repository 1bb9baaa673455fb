"""Looking at models before merging them: `python -m paddle_merge analyze` measures their task vectors."""
