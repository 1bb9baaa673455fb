"""End a search: score the finalists in full and the models that they are compared with, and choose the winners."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

from ..recipe.recipe import Value
from .gene import Values
from .job import Result
from .objectives import best, losses
from .outcome import Scored
from .pick import picked
from .scoring import Scoring, check_some
from .space import Space
from .spec import SearchSpec

UNIFORM = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)  # places within the bounds that the tuned uniform merge is sought at


def finalists(scoring: Scoring, spec: SearchSpec, found: Sequence[Scored], mean: Values | None) -> list[Scored]:
    """Return the best candidates, and the centre of the optimiser's distribution, scored in full.

    found: all candidates. mean: the centre; None: there is none. Raises ConfigError if all candidates failed, or all
    finalists.
    """
    check_some(found, "candidates")
    last = max(one.round for one in found)
    complete = [one for one in found if one.round == last and not one.known.error] or [
        one for one in found if not one.known.error
    ]
    rows = losses([one.known for one in complete], spec.objectives)
    if len(spec.objectives) > 1:
        chosen = [complete[place] for place in best(rows)]
    else:
        ranked = sorted(range(len(rows)), key=lambda place: (rows[place], place))
        unique: dict[Values, Scored] = {}
        for place in ranked:
            unique.setdefault(complete[place].values, complete[place])
        chosen = list(unique.values())[: spec.finalists]
    if mean is not None and all(mean != one.values for one in chosen):
        chosen.append(Scored("the optimiser's mean", None, values=mean))
    partial = spec.samples is not None
    todo = [place for place, one in enumerate(chosen) if one.result is None or partial or one.round < last]
    models = [dataclasses.replace(chosen[place], generation=-1) for place in todo]
    for place, scored in zip(todo, scoring.score_models("final", models, todo), strict=True):
        chosen[place] = dataclasses.replace(chosen[place], result=scored.result)
    check_some(chosen, "finalists")
    return [one for one in chosen if not one.known.error]


def baselines(scoring: Scoring, spec: SearchSpec, space: Space) -> list[Scored]:
    """Return each input, the uniform merge, and the best of the uniform merges, scored on the search split.

    A space may have merges of its own to compare with, in place of the uniform ones.
    """
    own = _own(space)
    merges = [Scored(title, None, values=values) for title, values in own or _uniform(space)]
    inputs = [Scored(path, None, path=path) for path in inputs_of(space)]
    scored = scoring.score_models("baselines", [*inputs, *merges])
    inputs, merges = scored[: len(inputs)], scored[len(inputs) :]
    if own:
        return scored
    tuned = [one for one in merges if not one.known.error]
    if not tuned:
        return [*inputs, merges[0]]
    rows = losses([one.known for one in tuned], spec.objectives)
    top = tuned[min(range(len(rows)), key=lambda place: (rows[place], place))]
    return [*inputs, merges[0], dataclasses.replace(top, title=f"the tuned uniform merge ({top.title})")]


def inputs_of(space: Space) -> list[str]:
    """Return the paths of the models that baselines() scores as they are, which a rule may name."""
    merges = [values for _, values in _own(space)] or [tuple(gene.start for gene in space.genes)]
    return list(dict.fromkeys(path for values in merges for path in space.recipe(values).sources))


def winners(finalists: Sequence[Scored], baselines: Sequence[Scored], spec: SearchSpec) -> list[Scored]:
    """Return the finalists that no other one beats, the one that is picked first. Raises ConfigError."""
    rows = losses([one.known for one in finalists], spec.objectives)
    front = [finalists[place] for place in best(rows)]
    named: Mapping[str, Result] = {one.path: one.known for one in baselines if one.path}
    first = picked(finalists, front, spec.objectives, spec.pick, named)
    return [first, *(one for one in front if one is not first)]


def _own(space: Space) -> Sequence[tuple[str, Values]]:
    """Return titles and values of a space's own merges to compare with; none if the uniform ones are these."""
    own: Sequence[tuple[str, Values]] = getattr(space, "baselines", ())
    return own


def _uniform(space: Space) -> list[tuple[str, Values]]:
    """Return titles and values of the uniform merges: at the start, and with all numbers at one place in their bounds."""

    def at(unit: float) -> tuple[Value, ...]:
        return tuple(gene.start if gene.choices else gene.value(unit) for gene in space.genes)

    found: dict[Values, str] = {tuple(gene.start for gene in space.genes): "the uniform merge"}
    for unit in UNIFORM:
        found.setdefault(at(unit), f"uniform at {unit:g} of the bounds")
    return [(title, values) for values, title in found.items()]
