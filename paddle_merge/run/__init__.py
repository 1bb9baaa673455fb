"""Carry out a plan: the only package with readers and a writer."""
