"""The command `analyze`: measure the task vectors of models before a merge."""
