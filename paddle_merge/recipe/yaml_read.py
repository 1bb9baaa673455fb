"""Read mergekit's recipes: YAML -> Recipe. Error messages name the line and column, and suggest what was meant.

Differences from mergekit:
- What would give NaN, or is hardly intended, is refused: weights that are divided by their sum, which is zero; true for a
  number; a key that stands twice.
- A base that slices don't list is taken with the same layers as their sources, where mergekit refuses the recipe. Methods to
  which the base is a model like the others leave it out of such slices, as in mergekit.
- A model may stand in one slice with several ranges of its layers.
- Of the tensors after the layers (norm, lm_head), mergekit takes only as many of the last slice's models as the first slice
  has, which is a fault; here they are taken from all models.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from ..dtypes import ScaledForm
from ..errors import ConfigError
from .config_file import SECTIONS
from .recipe import Input, ParsedRecipe, Recipe, Slice, Stage, assign_roles, count_problem
from .yaml_documents import Draft, Drafts
from .yaml_experts import read_drop_layers, read_keep_experts
from .yaml_mixture import MixtureReader, is_mixture
from .yaml_nodes import documents, is_null


def read(recipe: str) -> ParsedRecipe:
    """Return the recipe of a file or a YAML text. Raises ConfigError listing every mistake.

    recipe: the path of a file; text of more than one line is YAML.
    """
    if "\n" in recipe:
        return parse(recipe, "recipe_yaml")
    try:
        with open(recipe, encoding="utf-8-sig") as file:
            text = file.read()
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise ConfigError(f"{recipe}: can't be read ({reason})") from None
    return parse(text, recipe)


@functools.lru_cache(8)
def parse(text: str, where: str) -> ParsedRecipe:
    """Return the recipe of a YAML text. Raises ConfigError listing every mistake.

    where: what error messages call the text.
    """
    nodes = documents(text, where)
    try:
        return parse_documents(nodes, where)
    except ConfigError:
        keys = [key for node in nodes if isinstance(node, yaml.MappingNode) for key, _ in node.value]
        if name := next((key.value for key in keys if isinstance(key, yaml.ScalarNode) and key.value in SECTIONS), None):
            command = f"python -m paddle_merge {SECTIONS[name]}"
            raise ConfigError(
                f"{where}: is no recipe to merge by: it has a section {name!r}, which {command} takes"
            ) from None
        raise


def parse_documents(nodes: Sequence[yaml.Node], where: str) -> ParsedRecipe:
    """Return the recipe of YAML documents, as yaml_nodes.documents returns them. Raises ConfigError listing every mistake.

    where: what error messages call the text.
    """
    if is_mixture(nodes):
        reader = MixtureReader(where)
        recipe = reader.recipe(nodes)
        if reader.problems or recipe is None:
            raise ConfigError(list(dict.fromkeys(reader.problems)))
        return ParsedRecipe(recipe, tuple(dict.fromkeys(reader.notes)))
    return _Reader(where).read(nodes)


class _Reader(Drafts):
    def read(self, nodes: Sequence[yaml.Node]) -> ParsedRecipe:
        try:
            recipe = self._recipe(nodes)
        except RecursionError:
            raise ConfigError(f"{self._where}: is nested too deeply") from None
        if self.problems or recipe is None:
            raise ConfigError(list(dict.fromkeys(self.problems)))  # of what stands in several places once
        return ParsedRecipe(recipe, tuple(dict.fromkeys(self.notes)))

    # --- the documents

    def _recipe(self, nodes: Sequence[yaml.Node]) -> Recipe | None:
        """Return the recipe of all documents, each of which is a merge; None if there are problems.

        A model that is called by the name of another document is that document's output.
        """
        nodes = [node for node in nodes if not is_null(node)]
        drafts = [draft for node in nodes if (draft := self.draft(node)) is not None]
        if not nodes:
            self.problems.append(f"{self._where}: contains no recipe")
        if self.problems or not drafts:
            return None
        final, stages = self._in_order(drafts)
        used = {spec for draft in [*stages, final] for spec in draft.specs} - {stage.name for stage in stages}
        real = [spec for spec in self.specs if spec in used]
        base = final.base if final.base in real else None
        order = [*(spec for spec in real if spec != base), *([base] if base else [])]
        place = {spec: number for number, spec in enumerate([*order, *(stage.name for stage in stages)])}
        made = [self._stage(draft, place) for draft in [*stages, final]]
        for stage in stages:
            if isinstance(stage.out_dtype, ScaledForm):
                self.wrong(stage.node, f"out_dtype {stage.out_dtype.name} is only for the last merge of a recipe")
        if self.problems:
            return None
        *before, last = made
        for stage in stages:
            if stage.chat_template is not None:
                self.note(stage.chat_template, "'chat_template' has no effect in a merge whose output another merge uses")
            for key in ("expert_alignment", "router", "keep_experts", "drop_layers"):
                if (node := getattr(stage, key)) is not None:
                    self.wrong(node, f"{key!r} belongs into the last merge, whose output is written")
        kept = read_keep_experts(self, final.keep_experts) if final.keep_experts is not None else None
        dropped = read_drop_layers(self, final.drop_layers) if final.drop_layers is not None else ()
        if self.problems:
            return None
        return Recipe(
            models=tuple(order[:-1] if base else order),
            base=base,
            method=last.method,
            slices=last.slices,
            settings=last.settings,
            stages=tuple(before),
            seed=last.seed,
            out_dtype=last.out_dtype,
            tokenizer=last.tokenizer,
            chat_template=self.text(final.chat_template) if final.chat_template is not None else None,
            expert_alignment=self.text(final.expert_alignment) if final.expert_alignment is not None else "index",
            router=self.text(final.router) if final.router is not None else "merge",
            keep_experts=kept,
            drop_layers=dropped,
        )

    def _in_order(self, drafts: Sequence[Draft]) -> tuple[Draft, list[Draft]]:
        """Return the merge that is asked for, and those that it needs, in the order in which to make them.

        The merge that is asked for is the one without a name; if all have names, it is the last.
        """
        unnamed = [draft for draft in drafts if not draft.name]
        final = unnamed[0] if unnamed else drafts[-1]
        for draft in unnamed[1:]:
            self.wrong(draft.node, "a second recipe without a name; name every recipe that another one uses")
        named: dict[str, Draft] = {}
        for draft in drafts:
            if draft is final:
                continue
            if draft.name in named:
                self.wrong(draft.node, f"two recipes are named {draft.name!r}")
            named[draft.name] = draft
        order: list[Draft] = []
        by_name = {**named, **({final.name: final} if final.name else {})}

        def visit(draft: Draft, above: tuple[Draft, ...]) -> None:
            if draft in above:
                self.wrong(draft.node, f"{draft.name!r} uses its own output")
            elif draft not in order:
                for spec in draft.specs:
                    if spec in by_name:
                        visit(by_name[spec], (*above, draft))
                order.append(draft)

        visit(final, ())
        for draft in named.values():
            if draft not in order:
                self.note(draft.node, f"no recipe uses {draft.name!r}, so it is not made")
        return final, [draft for draft in order if draft is not final]

    def _stage(self, draft: Draft, place: Mapping[str, int]) -> Stage:
        """Return a document's merge. place: the number of each input by its path or name."""
        slices = [self._slice(draft, part, place) for part in draft.parts]
        found = tuple(one for one in slices if one is not None)
        tokenizer = None
        if draft.tokenizer is not None:
            base = place[draft.base] if draft.base else None
            first = found[0].inputs[0].number if found else 0
            tokenizer = draft.tokenizer.resolved(self, place, draft.specs, base, first)
        return Stage(
            name=draft.name,
            method=draft.method,
            slices=found,
            settings=draft.settings,
            seed=draft.seed,
            out_dtype=draft.out_dtype,
            tokenizer=tokenizer,
        )

    def _slice(self, draft: Draft, part: dict[str, Any], place: Mapping[str, int]) -> Slice | None:
        """Return a slice with its models and its base in their roles; None if it lacks a base that the method needs."""
        node, sources, method, base = part["node"], list(part["sources"]), draft.method, part["base"] or draft.base
        if base is None and method.base in ("required", "first"):
            role = f" ({method.base_role})" if method.base_role else ""
            self.wrong(draft.node, f"{method.name} needs base_model{role}, which is missing")
            return None
        scales = [one.value for its in (draft.settings, part["settings"]) for one in its.get("scale", ())]
        if base is None and method.base == "optional" and set(scales) - {1.0}:
            self.wrong(node, "'scale' is a factor on the merged task vector, so it needs base_model")
        lengths = {source["layers"][1] - source["layers"][0] for source in sources if source["layers"]}
        if len(lengths) > 1:
            self.wrong(node, "all sources of a slice must have the same number of layers")
        based = [source for source in sources if source["spec"] == base]
        missing = None  # the base where it isn't among the sources: the same layers as theirs
        if base is not None and (based or method.base != "model" or not lengths):  # else it is none of them, as in mergekit
            ranges = list(dict.fromkeys(source["layers"] for source in sources))
            if not based and len(ranges) > 1:
                self.wrong(
                    node,
                    f"the sources have different layer ranges, so list {base!r}, the base, with the layers to take of it",
                )
            missing = Input(place[base], ranges[0][0] if ranges and ranges[0] else 0)
        if method.base in ("required", "optional") and len(based) > 1:
            self.wrong(node, f"{base!r}, the base, is listed twice")
        listed = [
            Input(place[source["spec"]], source["layers"][0] if source["layers"] else 0, source["settings"])
            for source in sources
        ]
        inputs, subtracted = assign_roles(method, listed, missing)
        if problem := count_problem(method, len(inputs)):
            self.wrong(node, problem)
        layers = next(iter(lengths)) if lengths else None
        return Slice(
            inputs=inputs,
            base=subtracted,
            layers=layers,
            settings=part["settings"],
            module=part.get("module"),
            at=part.get("at", ""),
        )
