"""Backends: what blocks are made of and who computes on them. A backend knows formulas by name, no methods and no files."""
