"""Vocabularies: which token each row of an embedding is, and models that differ in it, aligned token by token."""
