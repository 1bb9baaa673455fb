"""Choose the space that a search file describes."""

from __future__ import annotations

from ..errors import ConfigError
from ..recipe.yaml_nodes import documents, is_null
from .alignment import AlignmentSpace
from .gene import Values
from .merger import Merger
from .path_file import has_paths, without_paths
from .paths import PathSpace
from .sections import has_section
from .space import RecipeSpace, Space, without_sections
from .spec import File
from .sweep_spec import sweep_spec

# Parts of a search that has two: first everything but paths, then paths.
FIRST, THEN = "first", "then"


def space_of(text: str, where: str, merger: Merger, phase: str = "", fixed: Values = ()) -> Space:
    """Return the candidates of a search file.

    phase: "": everything that is free in it is searched together; FIRST: everything but paths; THEN: paths, while everything
    else has the values `fixed`, of the space of FIRST. Raises ConfigError listing every mistake, and CheckpointError.
    """
    everything = documents(text, where)
    if has_section(everything, "sweep"):
        alignment = sweep_spec(File(where, text, tuple(everything))).alignment
        if alignment is not None:
            return AlignmentSpace(alignment, where, merger)
    nodes = [node for node in without_sections(everything) if not is_null(node)]
    if phase and not has_paths(nodes):
        raise ConfigError(f"{where}: then searches paths, and no document has any: paths: {{models: [./a, ./b]}}")
    if phase:
        space = RecipeSpace(without_paths(nodes), where, merger.layers)
        if phase == FIRST:
            return space
        filled = iter(space.filled(fixed or tuple(gene.start for gene in space.genes)))
        nodes = [node if has_paths([node]) else next(filled) for node in nodes]
    return PathSpace(nodes, where, merger) if has_paths(nodes) else RecipeSpace(nodes, where, merger.layers)
