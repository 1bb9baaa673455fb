"""Write a recipe as mergekit's YAML, in the form that yaml_read.py reads."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import yaml

from ..methods.paddlenlp import PREFIX
from ..methods.shared.method import Method
from .recipe import Recipe, Setting, Slice, Stage, Tokenizer, TokenRow, parts
from .yaml_mixture import document as mixture_document

_FOLD = {f"{PREFIX}fold": f"{PREFIX}linear"}  # what to_recipe.py calls the merge of one model alone -> a method's name


def to_yaml(recipe: Recipe, absolute: Callable[[str], str] = str) -> str:
    """Return the YAML text of a recipe; yaml_read.parse makes the same recipe of it.

    absolute: a function that is applied to the paths of the models and of the tokenizer, by default none.
    """
    paths = [*map(absolute, recipe.sources), *(stage.name for stage in recipe.stages)]
    documents = [{"name": stage.name, **_document(stage, paths, absolute)} for stage in recipe.stages]
    template = {"chat_template": recipe.chat_template} if recipe.chat_template else {}
    alignment = recipe.expert_alignment
    if alignment not in ("index", "match"):
        alignment = absolute(alignment)
    experts = {"expert_alignment": alignment} if alignment != "index" else {}
    experts |= {"router": recipe.router} if recipe.router != "merge" else {}
    smaller = _smaller(recipe, absolute is not str)
    own = mixture_document(recipe, recipe.mixture, paths) if recipe.mixture else _document(recipe, paths, absolute)
    documents.append({**own, **experts, **template, **smaller})
    return yaml.dump_all(documents, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)


def _document(recipe: Recipe | Stage, paths: Sequence[str], absolute: Callable[[str], str]) -> dict[str, Any]:
    name = recipe.method.name
    content: dict[str, Any] = {"merge_method": _FOLD.get(name, name)}
    base = _common_base(recipe)
    content |= {"base_model": paths[base]} if base is not None else {}
    modules = {module: _slices(slices, recipe.method, base, paths) for module, slices in parts(recipe)}
    content |= modules.get(None, {"modules": modules})
    content |= {"parameters": _plain(recipe.settings)} if recipe.settings else {}
    content |= {"out_dtype": recipe.out_dtype.name} if recipe.out_dtype else {}
    content |= _tokenizer(recipe.tokenizer, paths, absolute) if recipe.tokenizer is not None else {}
    return content | ({"seed": recipe.seed} if recipe.seed else {})


def _smaller(recipe: Recipe, absolute: bool) -> dict[str, Any]:
    """Return which experts are kept, and which layers are dropped."""
    content = {"keep_experts": recipe.keep_experts.plain(absolute)} if recipe.keep_experts is not None else {}
    return content | ({"drop_layers": list(recipe.drop_layers)} if recipe.drop_layers else {})


def _tokenizer(tokenizer: Tokenizer, paths: Sequence[str], absolute: Callable[[str], str]) -> dict[str, Any]:
    source = tokenizer.source
    if isinstance(source, int):
        source = "base" if source == tokenizer.base else paths[source]
    elif source != "union":
        source = absolute(source)
    if tokenizer.multiple is None and not tokenizer.rows and tokenizer.missing is None:
        return {"tokenizer_source": source}
    content: dict[str, Any] = {"source": source}
    content |= {"tokens": {row.token: _row(row, paths) for row in tokenizer.rows}} if tokenizer.rows else {}
    content |= {"pad_to_multiple_of": tokenizer.multiple} if tokenizer.multiple is not None else {}
    content |= {"missing": dataclasses.asdict(tokenizer.missing)} if tokenizer.missing is not None else {}
    return {"tokenizer": content}


def _row(row: TokenRow, paths: Sequence[str]) -> dict[str, Any]:
    """Return an entry of the table `tokens`."""
    if row.model is None:
        source: Any = {"kind": "zero"} if row.zeros else None
    elif row.row is None:
        source = paths[row.model]
    else:
        key = "token" if isinstance(row.row, str) else "token_id"
        source = {"kind": "model_token", "model": paths[row.model], key: row.row}
    return {**({"source": source} if source is not None else {}), **({"force": True} if row.force else {})}


def _slices(slices: Sequence[Slice], method: Method, common: int | None, paths: Sequence[str]) -> dict[str, Any]:
    """Return the models or slices of a module, or of a recipe without modules."""
    written = [_part(part, method, common, paths) for part in slices]
    if slices[0].layers is not None:
        return {"slices": written}
    whole = written[0]
    return {"models": whole.pop("sources"), **whole}


def _common_base(recipe: Recipe | Stage) -> int | None:
    """Return the number of the base of all slices that don't name another; None if there is none.

    A recipe's own base gives config.json and the tokenizer, too.
    """
    own = _base_of(recipe.slices[0], recipe.method)
    if not isinstance(recipe, Recipe):
        return own
    if recipe.slices[0].layers is None and own is not None:
        return own
    if recipe.base is not None:
        return len(recipe.models)
    return own if own is not None and own >= len(recipe.sources) else None


def _base_of(part: Slice, method: Method) -> int | None:
    if method.base == "first":
        return part.inputs[0].number
    return part.base.number if part.base is not None else None


def _part(part: Slice, method: Method, common: int | None, paths: Sequence[str]) -> dict[str, Any]:
    sources = []
    models = [one for one in part.inputs if part.base is None or one.number != part.base.number]
    for one in (*models, *((part.base,) if part.base else ())):
        source: dict[str, Any] = {"model": paths[one.number]}
        source |= {"layer_range": [one.first, one.first + part.layers]} if part.layers is not None else {}
        source |= {"parameters": _plain(one.settings)} if one.settings else {}
        sources.append(source)
    content: dict[str, Any] = {"sources": sources}
    own = _base_of(part, method)
    content |= {"base_model": paths[own]} if own not in (None, common) else {}
    return content | ({"parameters": _plain(part.settings)} if part.settings else {})


def _plain(settings: Mapping[str, Setting]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, setting in settings.items():
        values = [list(one.value) if isinstance(one.value, tuple) else one.value for one in setting]
        alone = len(setting) == 1 and setting[0].filter is None
        conditions = [
            {**({"filter": one.filter} if one.filter is not None else {}), "value": value}
            for one, value in zip(setting, values, strict=True)
        ]
        found[name] = values[0] if alone else conditions
    return found


class _Dumper(yaml.SafeDumper):
    """Write lists of plain values on one line, and escape line breaks in text, which YAML would fold."""

    def represent_list(self, data: Any) -> yaml.SequenceNode:
        flow = not any(isinstance(item, dict) for item in data)
        return self.represent_sequence("tag:yaml.org,2002:seq", data, flow_style=flow)

    def represent_str(self, data: str) -> yaml.ScalarNode:
        style = '"' if data.splitlines() != [data] else None
        return self.represent_scalar("tag:yaml.org,2002:str", data, style=style)


_Dumper.add_representer(list, _Dumper.represent_list)
_Dumper.add_representer(str, _Dumper.represent_str)
