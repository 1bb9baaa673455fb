"""Read and write recipes of mixtures of experts: mergekit-moe's YAML, and keys of our own.

    base_model, experts, shared_experts, gate_mode, experts_per_token, architecture, dtype    as mergekit-moe has them
    upcycle       copies of the base as experts, of which a share of the neurons may be drawn anew
    non_experts   what isn't expert is the base's, or the average of the experts' models
    router_std    the standard deviation of a router that is drawn at random
    seed          of everything random

Differences from mergekit-moe: only gates that are computed of prompts need prompts; experts that are all the same model are
allowed, with a note.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from ..checkpoints.mixtures import FAMILIES, families_named
from ..methods.shared.method import Parameter
from .mixture import GATE_MODES, METHOD, NON_EXPERTS, RANDOM, Expert, Mixture
from .recipe import Input, Recipe, Slice
from .yaml_documents import Drafts
from .yaml_nodes import is_null

KEYS = (
    *("base_model", "experts", "shared_experts", "gate_mode", "experts_per_token", "architecture", "dtype", "out_dtype"),
    *("upcycle", "non_experts", "router_std", "seed"),
)
_EXPERT = ("source_model", "positive_prompts", "negative_prompts", "noise_scale", "residual_scale")
_OF_MERGES = ("expert_alignment", "router", "keep_experts", "drop_layers")
_UPCYCLE = ("experts", "drop_rate")
_SMALL = 0.02  # router_std of upcycled models, whose routers are to be trained (Komatsuzaki et al. 2023)


def is_mixture(nodes: Sequence[yaml.Node]) -> bool:
    """Return whether documents are, or contain, a recipe of a mixture of experts."""
    pairs = [pair for node in nodes if isinstance(node, yaml.MappingNode) for pair in node.value]
    return any(isinstance(key, yaml.ScalarNode) and key.value in ("experts", "upcycle") for key, _ in pairs)


class MixtureReader(Drafts):
    """Read the one document of such a recipe; `problems` are what is wrong with it."""

    def __init__(self, where: str):
        super().__init__(where)
        self.meant = {*KEYS, *_EXPERT, *_OF_MERGES}

    def recipe(self, nodes: Sequence[yaml.Node]) -> Recipe | None:
        """Return the recipe; None if there are problems."""
        nodes = [node for node in nodes if not is_null(node)]
        if len(nodes) > 1:
            self.wrong(nodes[1], "a mixture of experts is a recipe of its own, without others beside it; merge those first")
            return None
        (node,) = nodes
        given = self.known(node, KEYS, "a recipe of a mixture of experts")
        if "base_model" not in given:
            self.wrong(node, "base_model, which gives everything but the experts, is missing")
        base = self._spec(given["base_model"]) if "base_model" in given else ""
        both = [key for key in ("experts", "upcycle") if key in given]
        if len(both) != 1:
            self.wrong(node, f"give one of experts and upcycle, not {' and '.join(both) or 'none of them'}")
            return None
        upcycled, drop_rate = "upcycle" in given, 0.0
        if upcycled:
            count, drop_rate = self._upcycle(given["upcycle"])
            experts = [(base, Expert(0))] * count
        else:
            experts = self._experts(given["experts"], "experts")
        shared = self._experts(given["shared_experts"], "shared_experts") if "shared_experts" in given else []
        mode = self._word(given, "gate_mode", GATE_MODES, "random" if upcycled else "hidden")
        non_experts = self._word(given, "non_experts", NON_EXPERTS, "base")
        per_token = self._number(given, "experts_per_token", int, min(2, len(experts) or 1))
        std = self._number(given, "router_std", float, _SMALL if upcycled else 1.0)
        seed = self._number(given, "seed", int, 0)
        out_dtype = self._dtype(given, "out_dtype") or self._dtype(given, "dtype")
        architecture = self._architecture(given)
        if "experts_per_token" in given and not 1 <= per_token <= len(experts):
            self.wrong(
                given["experts_per_token"], f"experts_per_token must be from 1 to {len(experts)}, the number of experts"
            )
        if "router_std" in given and mode != "random":
            self.note(given["router_std"], f"'router_std' has no effect with gate_mode {mode}")
        if std < 0:
            self.wrong(given["router_std"], "router_std must not be negative")
        self._check_prompts(node, given, mode, experts, shared)
        if not upcycled and len({spec for spec, _ in experts}) == 1 and len(experts) > 1:
            self.note(given["experts"], "all experts are the same model, so they compute the same until they are trained")
        if self.problems:
            return None
        order = list(dict.fromkeys([*(spec for spec, _ in (*experts, *shared) if spec != base), base]))
        place = {spec: number for number, spec in enumerate(order)}
        mixture = Mixture(
            base=place[base],
            experts=tuple(dataclasses.replace(one, number=place[spec]) for spec, one in experts),
            shared=tuple(dataclasses.replace(one, number=place[spec]) for spec, one in shared),
            per_token=per_token,
            gate_mode=mode,
            router_std=std,
            architecture=architecture,
            non_experts=non_experts,
            upcycled=upcycled,
            drop_rate=drop_rate,
        )
        return Recipe(
            models=tuple(order[:-1]),
            base=base,
            method=METHOD,
            slices=(Slice(tuple(Input(number) for number in range(len(order)))),),
            seed=seed,
            out_dtype=out_dtype,
            mixture=mixture,
        )

    # --- the keys

    def _upcycle(self, node: yaml.Node) -> tuple[int, float]:
        """Return how many copies of the base there are, and which share of their neurons is drawn anew."""
        given = self.known(node, _UPCYCLE, "upcycle")
        if "experts" not in given:
            self.wrong(node, "upcycle needs experts, the number of copies of the base")
        count, rate = self._number(given, "experts", int, 0), self._number(given, "drop_rate", float, 0.0)
        if "experts" in given and not 1 <= count <= 4096:
            self.wrong(given["experts"], "experts must be a whole number from 1 to 4096")
        if not 0 <= rate <= 1:
            self.wrong(given["drop_rate"], "drop_rate must be from 0 (sparse upcycling) to 1; drop-upcycling has 0.5")
        return count, rate

    def _experts(self, node: yaml.Node, what: str) -> list[tuple[str, Expert]]:
        """Return the path of each expert's model, and the expert, not yet numbered."""
        items, found = self.list(node, what), list[tuple[str, Expert]]()
        if not items and isinstance(node, yaml.SequenceNode) and what == "experts":
            self.wrong(node, "experts is empty")
        for item in items:
            given = self.known(item, _EXPERT, "an expert")
            if "source_model" not in given:
                self.wrong(item, "source_model, the path of a checkpoint, is missing")
                continue
            noise, scale = self._number(given, "noise_scale", float, 0.0), self._number(given, "residual_scale", float, 1.0)
            if noise < 0:
                self.wrong(given["noise_scale"], "noise_scale must not be negative")
            prompts = [self._prompts(given, key) for key in ("positive_prompts", "negative_prompts")]
            found.append((self._spec(given["source_model"]), Expert(0, prompts[0], prompts[1], noise, scale)))
        return found

    def _prompts(self, given: Mapping[str, yaml.Node], key: str) -> tuple[str, ...]:
        items = self.list(given[key], key) if key in given else []
        return tuple(str(item.value) if isinstance(item, yaml.ScalarNode) else self.text(item) for item in items)

    def _number(self, given: Mapping[str, yaml.Node], key: str, kind: type, default: Any) -> Any:
        value = self._value(given[key], Parameter(key, kind)) if key in given else default
        return value if isinstance(value, int | float) else default

    def _word(self, given: Mapping[str, yaml.Node], key: str, known: Sequence[str], default: str) -> str:
        word = self.text(given[key]) if key in given else default
        if word and word not in known:
            self.wrong(given[key], f"{key} {word!r} must be one of {', '.join(known)}")
        return word

    def _architecture(self, given: Mapping[str, yaml.Node]) -> str | None:
        name = self.text(given["architecture"]) if "architecture" in given else None
        if name and not families_named(name):
            known = ", ".join(one.title for one in FAMILIES)
            self.wrong(given["architecture"], f"architecture {name!r} must be one of {known}")
        return name

    def _check_prompts(
        self, node: yaml.Node, given: Mapping[str, yaml.Node], mode: str, experts: list[Any], shared: list[Any]
    ) -> None:
        """Check that gates that are computed of prompts have some, and not the same ones for all."""
        prompts = [(one.positive, one.negative) for _, one in experts]
        if mode in RANDOM:
            if any(any(pair) for pair in (*prompts, *((one.positive, one.negative) for _, one in shared))):
                self.note(node, f"prompts have no effect with gate_mode {mode}")
            return
        remedy = "; or say gate_mode: random, for a router that is to be trained"
        if without := [str(number) for number, (positive, _) in enumerate(prompts) if not positive]:
            self.wrong(
                given.get("experts", node),
                f"gate_mode {mode} needs positive_prompts, texts that an expert shall get, which expert"
                f" {', '.join(without)} (counted from 0) lacks{remedy}",
            )
        elif len(prompts) > 1 and len(set(prompts)) == 1:
            self.wrong(
                given["experts"],
                f"all experts have the same prompts, so the router could not tell them apart: give each its own{remedy}",
            )


def document(recipe: Recipe, mixture: Mixture, paths: Sequence[str]) -> dict[str, Any]:
    """Return the content of a mixture's recipe, as MixtureReader reads it. paths: of the inputs."""
    content: dict[str, Any] = {"base_model": paths[mixture.base]}
    if mixture.upcycled:
        rate = {"drop_rate": mixture.drop_rate} if mixture.drop_rate else {}
        content["upcycle"] = {"experts": len(mixture.experts), **rate}
    else:
        content["experts"] = [_expert(one, paths) for one in mixture.experts]
    content |= {"shared_experts": [_expert(one, paths) for one in mixture.shared]} if mixture.shared else {}
    content |= {"gate_mode": mixture.gate_mode, "experts_per_token": mixture.per_token}
    content |= {"router_std": mixture.router_std} if mixture.gate_mode == "random" else {}
    content |= {"architecture": mixture.architecture} if mixture.architecture else {}
    content |= {"non_experts": mixture.non_experts} if mixture.non_experts != "base" else {}
    content |= {"out_dtype": recipe.out_dtype.name} if recipe.out_dtype else {}
    return content | ({"seed": recipe.seed} if recipe.seed else {})


def _expert(one: Expert, paths: Sequence[str]) -> dict[str, Any]:
    return {
        "source_model": paths[one.number],
        **({"positive_prompts": list(one.positive)} if one.positive else {}),
        **({"negative_prompts": list(one.negative)} if one.negative else {}),
        **({"noise_scale": one.noise} if one.noise else {}),
        **({"residual_scale": one.residual} if one.residual != 1 else {}),
    }
