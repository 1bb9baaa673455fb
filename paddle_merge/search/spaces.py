"""Choose the space that a search file describes."""

from __future__ import annotations

from ..recipe.yaml_nodes import documents
from .alignment import AlignmentSpace
from .merger import Merger
from .space import RecipeSpace, Space, without_sections
from .spec import File, has_section
from .sweep_spec import sweep_spec


def space_of(text: str, where: str, merger: Merger) -> Space:
    """Return the candidates of a search file. Raises ConfigError listing every mistake, and CheckpointError."""
    nodes = documents(text, where)
    alignment = sweep_spec(File(where, text, tuple(nodes))).alignment if has_section(nodes, "sweep") else None
    if alignment is not None:
        return AlignmentSpace(alignment, where, merger)
    return RecipeSpace(without_sections(nodes), where, merger.layers)
