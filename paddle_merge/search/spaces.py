"""Choose the space that a search file describes."""

from __future__ import annotations

from ..recipe.yaml_nodes import documents
from .merger import Merger
from .space import RecipeSpace, Space, without_sections


def space_of(text: str, where: str, merger: Merger) -> Space:
    """Return the candidates of a search file. Raises ConfigError listing every mistake, and CheckpointError."""
    return RecipeSpace(without_sections(documents(text, where)), where, merger.layers)
