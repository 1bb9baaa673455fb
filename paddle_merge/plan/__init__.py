"""Decide what will be done, from headers alone: every tensor's sources, method, parameters and place in the output."""
