"""LoRA adapters folded into their base: on paper (fold.py), and element by element while the base is read (adapted.py)."""
