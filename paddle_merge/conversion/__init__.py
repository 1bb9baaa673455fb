"""Bring the inputs to one form: layout, fused weights, LoRA adapters, vocabularies. No weight is read here."""
