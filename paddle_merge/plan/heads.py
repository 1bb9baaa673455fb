"""Merge the heads of models over a base that has none, or another one: reward models over the language model they come from.

Without a value of the base there is no task vector, so such tensors become the average of the models'.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import field

from ..checkpoints.names import TOKEN_EMBEDDINGS, last_word, layer_of
from ..checkpoints.tensors import Checkpoint, Origin, origins
from ..parsing import tensors_named
from ..recipe.recipe import Recipe, names_of
from ..records import record


@record(frozen=True)
class Heads:
    """Hold inputs whose tensors match but for the values of heads in the base.

    inputs: the base has a model's tensors in place of those in `names`, which it lacks. notes: sentences on what becomes of
    heads. why: the reason for each tensor that is no longer read, by its origin.
    """

    inputs: tuple[Checkpoint, ...]
    names: frozenset[str] = frozenset()
    notes: tuple[str, ...] = ()
    why: Mapping[Origin, str] = field(default_factory=dict)


def heads_of(recipe: Recipe, inputs: Sequence[Checkpoint]) -> Heads:
    """Find heads that all models have and the base lacks, and leave out those that only the base has.

    Only for whole models: recipes with modules or slices say themselves where tensors come from.
    """
    (part, *others), none = recipe.slices, Heads(tuple(inputs))
    if others or part.base is None or part.layers is not None or names_of(recipe):
        return none
    if any(one.number >= len(inputs) for one in part.everything):  # made by an earlier merge of the recipe
        return none
    base, models = inputs[part.base.number], [inputs[one.number] for one in part.inputs]
    common = set.intersection(*(set(model.tensors) for model in models))
    common -= base.tensors.keys()
    names = [name for name in models[0].tensors if name in common and _is_head(name)]
    if not names:
        return none
    somewhere = {name for model in models for name in model.tensors}
    left = [name for name in base.tensors if name not in somewhere and _is_head(name)]
    notes = [f"{tensors_named(names)}: {base.path} has none, so the models' average is taken"]
    if left:
        notes.append(f"{tensors_named(left)} of {base.path}: left out, for no model has it")
    kept = {name: entry for name, entry in base.tensors.items() if name not in left}
    filled = dataclasses.replace(base, tensors={**kept, **{name: models[0].tensors[name] for name in names}})
    return Heads(
        inputs=tuple(filled if one is base else one for one in inputs),
        names=frozenset(names),
        notes=tuple(notes),
        why={origin: "no model has it" for name in left for origin in origins(base.tensors[name])},
    )


def _is_head(name: str) -> bool:
    """Return whether a tensor may belong to a head: it is in no layer, and neither an embedding nor a normalisation."""
    named = "emb" in name or "norm" in name.lower() or last_word(name) in TOKEN_EMBEDDINGS
    return layer_of(name) is None and not named
