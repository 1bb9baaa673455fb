"""Read what a document of a recipe says of the output's tokenizer: mergekit's `tokenizer_source` and `tokenizer`."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping

import yaml

from ..parsing import nearest, shown
from ..records import record
from .missing_tokens import METHODS, MOST, PIECES, MissingTokens
from .recipe import Tokenizer, TokenRow, tokenizer_of
from .yaml_nodes import Nodes

Spec = Callable[[yaml.Node], str]  # reads the path or name of a model


@record(frozen=True)
class _DraftRow:
    """What an entry of `tokens` says. node: of the model's name. The rest is as of TokenRow, with the name of the model."""

    node: yaml.Node
    token: str
    model: str | None = None
    row: str | int | None = None
    zeros: bool = False
    force: bool = False


@record(frozen=True)
class DraftTokenizer:
    """What a document says of the tokenizer, before the names of models are resolved. Fields: as of Tokenizer."""

    source: str
    multiple: int | None = None
    rows: tuple[_DraftRow, ...] = ()
    missing: MissingTokens | None = None

    def resolved(
        self, nodes: Nodes, places: Mapping[str, int], specs: Collection[str], base: int | None, first: int
    ) -> Tokenizer:
        """Return the tokenizer; an unknown model is a problem.

        places: the inputs' numbers by their names. specs: the names of those that the document merges. base, first: as of
        tokenizer_of.
        """
        rows = []
        for one in self.rows:
            if one.model is not None and one.model not in specs:
                nodes.wrong(
                    one.node,
                    f"the row of {shown(one.token)} is taken from {one.model!r}, which is none of the models that are"
                    f" merged{nearest(one.model, specs)}",
                )
                continue
            number = None if one.model is None else places[one.model]
            rows.append(TokenRow(one.token, number, one.row, one.zeros, one.force))
        return tokenizer_of(self.source, self.multiple, places, base, first, tuple(rows), self.missing)


def read_tokenizer(nodes: Nodes, given: Mapping[str, yaml.Node], spec: Spec) -> DraftTokenizer | None:
    """Return what a document says of the tokenizer; None if it says nothing. given: the document's values by their keys."""
    if "tokenizer" not in given:
        if "tokenizer_source" not in given:
            return None
        return DraftTokenizer(nodes.text(given["tokenizer_source"]).removeprefix("model:"))  # as in older mergekit
    if "tokenizer_source" in given:
        nodes.wrong(given["tokenizer_source"], "give one of tokenizer_source and tokenizer, not both")
    inner = nodes.known(given["tokenizer"], ("source", "tokens", "pad_to_multiple_of", "missing"), "tokenizer")
    multiple = nodes.scalar(inner["pad_to_multiple_of"]) if "pad_to_multiple_of" in inner else None
    if multiple is not None and (type(multiple) is not int or not 1 <= multiple <= 1 << 20):
        nodes.wrong(inner["pad_to_multiple_of"], "pad_to_multiple_of must be a whole number of at least 1")
        multiple = None
    source = _source(nodes, inner["source"], spec) if "source" in inner else "union"
    table = nodes.mapping(inner["tokens"], "tokens") if "tokens" in inner else {}
    rows = tuple(_row(nodes, token, value, spec) for token, (_, value) in table.items())
    missing = _missing(nodes, inner["missing"]) if "missing" in inner else None
    return DraftTokenizer(source, multiple, rows, missing)


def _missing(nodes: Nodes, node: yaml.Node) -> MissingTokens:
    """Return how rows of tokens are made that no model has: the name of a method, or a mapping."""
    if isinstance(node, yaml.MappingNode):
        inner = nodes.known(node, ("method", "k", "pieces"), "missing")
    else:
        inner = {"method": node}
    words = {}
    for key, allowed, otherwise in (("method", METHODS, "omp"), ("pieces", PIECES, "mean")):
        words[key] = nodes.text(inner[key]) if key in inner else otherwise
        if words[key] not in allowed:
            nodes.wrong(inner[key], f"{key} {shown(words[key])} must be one of {', '.join(allowed)}")
    k = nodes.scalar(inner["k"]) if "k" in inner else 64
    if type(k) is not int or not 1 <= k <= MOST:
        nodes.wrong(inner["k"], f"k must be a whole number from 1 to {MOST}")
        k = 64
    return MissingTokens(words["method"], k, words["pieces"])


def _source(nodes: Nodes, node: yaml.Node, spec: Spec) -> str:
    """Return where the tokenizer is from: "union", "base", or the name of a model, which mergekit may write as a mapping."""
    return spec(node) if isinstance(node, yaml.MappingNode) else nodes.text(node)


def _row(nodes: Nodes, token: str, node: yaml.Node, spec: Spec) -> _DraftRow:
    """Return what one entry of `tokens` says. token: its key. node: its value, a mapping."""
    inner = nodes.known(node, ("source", "force"), "an entry of tokens")
    force = nodes.scalar(inner["force"]) if "force" in inner else False
    if not isinstance(force, bool):
        nodes.wrong(inner["force"], "force must be true or false")
    source = inner.get("source")
    if source is None:
        if force:
            nodes.wrong(node, f"force replaces the row of {shown(token)} in every model, so it needs a source")
        return _DraftRow(node, token)
    kind = dict(nodes.mapping(source, "source")) if isinstance(source, yaml.MappingNode) else {}
    if "kind" not in kind:
        return _DraftRow(source, token, spec(source), force=bool(force))
    name = nodes.text(kind["kind"][1])
    if name == "zero":
        nodes.known(source, ("kind",), "a source of kind zero")
        return _DraftRow(source, token, zeros=True, force=bool(force))
    if name != "model_token":
        nodes.wrong(kind["kind"][1], f"unknown kind {name!r}; there are zero and model_token")
        return _DraftRow(source, token)
    said = nodes.known(source, ("kind", "model", "token", "token_id"), "a source of kind model_token")
    which: list[str] = [key for key in ("token", "token_id") if key in said]
    if "model" not in said or len(which) != 1:
        nodes.wrong(source, "a source of kind model_token needs model, and one of token and token_id")
        return _DraftRow(source, token)
    row = nodes.text(said["token"]) if which == ["token"] else nodes.scalar(said["token_id"])
    if which == ["token_id"] and (type(row) is not int or row < 0):
        nodes.wrong(said["token_id"], "token_id must be a whole number of at least 0")
    return _DraftRow(said["model"], token, spec(said["model"]), row, force=bool(force))  # type: ignore[arg-type]
