"""Choose the experts that each layer keeps: those that a recipe lists, or those with the highest scores.

    reap         mean of gate * ||output|| over the tokens that are sent to the expert (REAP, arXiv 2510.13999)
    output_norm  mean of ||output|| over these tokens (MAN, arXiv 2606.15716)
    frequency    how many tokens are sent to it
    router_norm  the L2 norm of its row of the router

The first three are computed from a file of statistics. The others are dropped; or merged, each into the kept expert whose
row of the router is most similar to its own (cosine), weighted by frequency: M-SMoE (arXiv 2310.01334) without the alignment
of neurons, and with rows of routers instead of their outputs.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence

import numpy as np

from ..checkpoints.expert_statistics import ExpertStatistics, read_statistics
from ..conversion.moe.layers import MoeLayer
from ..errors import CheckpointError
from ..recipe.keep_experts import Group, KeepExperts

Rows = Callable[[MoeLayer], np.ndarray]  # the router's weights, float64 [experts, n]
Chosen = dict[int, tuple[Group, ...]]  # layer -> what becomes each expert of the output


def chosen(
    keep: KeepExperts, layers: Mapping[int, MoeLayer], rows: Rows, path: str, dropped: Collection[int] = ()
) -> Chosen:
    """Return what becomes each expert of each layer of the output; weights of a group add up to 1.

    layers: by their numbers. Of those that are routed to by groups of experts, as many of each group are kept. rows: reads
    routers, where needed. path: of the model, for messages. dropped: layers that the output doesn't get. Raises
    CheckpointError listing what doesn't fit; WorkError.
    """
    found = _by_score(keep, layers, rows, path, dropped) if keep.count else _listed(keep, layers, path)
    sizes = {number: len(groups) for number, groups in found.items()}
    if len(set(sizes.values())) > 1:
        (few, fewer), (many, more) = (pick(sizes.items(), key=lambda item: item[1]) for pick in (min, max))
        raise CheckpointError(
            f"keep_experts keeps {fewer} experts of layer {few} and {more} of layer {many}, and config.json has one number"
            " for all layers: keep as many in each"
        )
    for number, one in layers.items():
        homes = [group[0][0] // (one.count // one.groups) for group in found[number]]
        share = len(homes) // one.groups
        if homes != [home for home in range(one.groups) for _ in range(share)] and one.groups > 1:
            raise CheckpointError(
                f"{path}: its router chooses among {one.groups} groups of {one.count // one.groups} experts (n_group), so"
                f" keep_experts must keep as many of each, in order: of layer {number} it keeps"
                f" {[homes.count(home) for home in range(one.groups)]}"
            )
    return {number: tuple(map(_normalised, groups)) for number, groups in found.items()}


def _listed(keep: KeepExperts, layers: Mapping[int, MoeLayer], path: str) -> Chosen:
    problems = list[str]()
    if unknown := [number for number in keep.layers if number is not None and number not in layers]:
        problems.append(f"keep_experts says something of layer {unknown[0]}, which has no experts in {path}")
    if missing := [number for number in layers if keep.of(number) is None]:
        problems.append(f"keep_experts says nothing of layer {missing[0]}, and must of every layer that has experts")
    for number, one in layers.items():
        named = {expert for group in keep.of(number) or () for expert, _ in group}
        if beyond := sorted(named - set(range(one.count))):
            problems.append(f"keep_experts names expert {beyond[0]}, and layer {number} has 0 to {one.count - 1}")
            break
    if problems:
        raise CheckpointError(problems)
    return {number: keep.of(number) or () for number in layers}


def _by_score(keep: KeepExperts, layers: Mapping[int, MoeLayer], rows: Rows, path: str, dropped: Collection[int]) -> Chosen:
    statistics = read_statistics(keep.statistics) if keep.statistics else None
    if statistics is not None and (others := sorted(set(statistics.layers) - {*layers, *dropped})):
        raise CheckpointError(
            f"{keep.statistics}: has layer {others[0]}, which has no experts in the merged model: it is of another model, or"
            " slices gave its layers other numbers; measure the merged model"
        )
    for number, one in layers.items():
        if problem := _problem(keep, number, one, statistics, path):
            raise CheckpointError(problem)
    found = {}
    for number, one in layers.items():
        matrix = rows(one) if keep.by == "router_norm" or keep.merge else np.zeros((one.count, 0))
        its = statistics.layers[number] if statistics is not None else None
        if its is None or keep.by == "router_norm":
            scores = np.linalg.norm(matrix, axis=1)
        else:
            scores = np.array(its.scores(keep.by), np.float64)
        parts = np.arange(one.count).reshape(one.groups, -1)
        best = [part[np.argsort(-scores[part], kind="stable")][: keep.count // one.groups] for part in parts]
        kept = sorted(int(expert) for part in best for expert in part)
        counts = its.count if its is not None else [1.0] * one.count
        found[number] = _grouped(kept, matrix, counts) if keep.merge else tuple(((expert, 1.0),) for expert in kept)
    return found


def _problem(keep: KeepExperts, number: int, one: MoeLayer, statistics: ExpertStatistics | None, path: str) -> str:
    """Return why the experts of layer `number` can't be chosen by their scores; "" if they can."""
    if keep.count > one.count:
        return f"keep_experts: count {keep.count} is more than the {one.count} experts of layer {number}"
    if keep.count % one.groups:
        return (
            f"{path}: its router chooses among {one.groups} groups of experts (n_group), so as many of each are kept: count"
            f" {keep.count} must be divisible by {one.groups}"
        )
    if statistics is None:
        return ""
    if (its := statistics.layers.get(number)) is None:
        return (
            f"{keep.statistics}: has no layer {number}, whose experts are to be chosen; measure {path}, or leave the layer"
            f" out (drop_layers: [{number}]) if it only predicts further tokens, as libraries don't open such layers"
        )
    if len(its.count) != one.count:
        return (
            f"{keep.statistics}: has {len(its.count)} experts in layer {number}, and {path} has {one.count}: it is of"
            " another model"
        )
    return ""


def _grouped(kept: Sequence[int], rows: np.ndarray, counts: Sequence[float]) -> tuple[Group, ...]:
    """Return the kept experts, each with those whose rows are more similar to its own than to those of the other ones."""
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    unit = rows / np.where(lengths > 0, lengths, 1.0)
    groups = {expert: [expert] for expert in kept}
    for expert in range(len(rows)):
        if expert not in groups:
            groups[kept[int(np.argmax(unit[list(kept)] @ unit[expert]))]].append(expert)
    return tuple(tuple((expert, float(counts[expert])) for expert in members) for members in groups.values())


def _normalised(group: Group) -> Group:
    """Return a group with weights that add up to 1; equal ones if all are 0. Weights that do are left as they are, so that
    those in the record of a merge are the same again."""
    total = sum(weight for _, weight in group)
    if abs(total - 1) < 1e-9:
        return group
    return tuple((expert, weight / total if total else 1 / len(group)) for expert, weight in group)
