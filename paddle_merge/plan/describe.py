"""Describe a plan in a few lines of text."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from ..backends.budget import DEFAULT_BUDGET
from ..backends.engine import GIB
from ..conversion.vocabulary.write import is_tokenizer_file
from ..methods.paddlenlp import PREFIX
from ..parsing import count_text, size_text
from ..recipe.request import Request
from . import chat, mixture, modules
from .account import Account
from .file_names import CARD, EXPERTS
from .plan import Plan
from .tensor_account import TensorAccount

log = logging.getLogger("paddle_merge")
SHOWN = 40  # kinds of tensors in the text; the file has all tensors
TOKENS = 4  # of those that were filled, or dropped
FEW = 8  # values of a parameter over the layers
_NUMBER = re.compile(r"(?<![^.])\d+(?![^.])")  # a whole word of a tensor's name


def describe(plan: Plan, request: Request, sidecars: Mapping[str, bytes], memory: int) -> list[str]:
    """Return the plan in lines of a word and what it is. memory: that all processes take together, in bytes."""
    recipe = plan.recipe
    merged = [tensor for tensor in plan.tensors if tensor.merged]
    dtypes = ", ".join(sorted({tensor.dtype.name for tensor in merged})) or "none"
    count = sum(tensor.size for tensor in merged)
    copied = len(plan.tensors) - len(merged)
    shards = f"{len(plan.shards)} file{'s' if len(plan.shards) > 1 else ''}"
    alone = recipe.title == "fold"
    if recipe.mixture is not None:
        lines = mixture.described(recipe, recipe.mixture, plan.config_source.config)
    else:
        lines = ["method   fold the adapter into its base" if alone else f"method   {recipe.title}: {_shown(plan)}"]
        lines += [f"model    {weight}{path}{role}" for path, weight, role in _models(plan)]
    bases = dict.fromkeys(recipe.titles[part.base.number] for part in recipe.slices if part.base is not None)
    lines += [f"module   {line}" for line in modules.described(recipe, (tensor.name for tensor in plan.tensors))]
    if not alone and recipe.mixture is None:
        base = recipe.base or ", ".join(bases)  # slices may have bases where the recipe has none
        role = _as(recipe.method.base_role) if base else ""
        lines.append(f"base     {base or 'none: the weights themselves are merged'}{role}")
    lines += [f"adapter  {sentence}" for sentence in plan.folded]
    lines += [f"config   {plan.config_source.note}"] if plan.config_source.note else []
    lines += [f"card     {plan.provenance.note}"] if plan.provenance.note else []
    lines += [f"chat     {plan.chat_template.origin}"] if plan.chat_template is not None else []
    lines += [f"smaller  {sentence}" for sentence in plan.smaller]
    lines += [f"layout   {sentence}" for sentence in plan.layout_notes]
    lines += [f"experts  {sentence}" for sentence in plan.experts.notes]
    lines += _tokens(plan) if plan.tokens is not None else []
    if (added := plan.added) is not None:
        rows = f"{added.rows} rows, as an adapter has them" if added.rows is not None else "the rows that there are"
        lines.append(f"tokens   {rows}" + (f"; the tokenizer of {added.folder}" if added.folder else ""))
    lines.append(
        f"tensors  {len(merged)} merged ({count_text(count)} parameters, {dtypes})"
        + (f", {copied} copied (integers, equal in all models)" if copied else "")
    )
    lines += [f"stored   {line}" for line in plan.storage.described(plan.tensors)]
    twice = ", some tensors read twice: to measure and to merge them" if plan.measures else ""
    lines.append(f"input    {size_text(plan.bytes_in)}{twice}")
    lines.append(f"output   {request.output}: {size_text(plan.bytes_out)} in {shards}")
    ours = (CARD, EXPERTS, *([chat.FILE] if plan.chat_template is not None else []))
    tokenizers = plan.tokens.source.folder if plan.tokens is not None else plan.added and plan.added.folder
    copied_from: dict[str, list[str]] = {plan.config_source.folder: []}
    for name in sidecars:
        if name not in ours:
            others = tokenizers if is_tokenizer_file(name) else None
            copied_from.setdefault(others or plan.config_source.folder, []).append(name)
    shown = "; ".join(f"{', '.join(names) or 'nothing'} from {folder}" for folder, names in copied_from.items())
    lines.append(f"copied   {shown}")
    if plan.engine.tensor_type == "pd":
        limit = f", in at most {plan.engine.memory / GIB:g} GiB of it" if plan.engine.budgeted else ""
        lines.append(f"engine   Paddle on {plan.engine.device}{limit}")
    asked = request.n_process
    fewer = f" of {asked}, for --max_memory" if request.max_memory and asked is not None and plan.n_process < asked else ""
    smaller = "" if plan.engine.budget == DEFAULT_BUDGET else ", with smaller buffers for --max_memory"
    lines.append(f"workers  {plan.n_process}{fewer}{smaller}, together at most about {size_text(memory)} of memory")
    return lines


def _tokens(plan: Plan) -> list[str]:
    """Return lines on the tokens of the output, and on what happens to the tokens of every input."""
    tokens = plan.tokens
    assert tokens is not None
    lines = [f"tokens   {tokens.title}: {len(tokens.vocabulary.ids)} tokens in {tokens.rows} rows"]
    for fate in tokens.alignments:
        unnamed = f", {fate.unnamed} rows without a token dropped" if fate.unnamed else ""
        said = f"{fate.matched} matched, {_few(fate.filled, 'filled')}, {_few(fate.dropped, 'dropped')}{unnamed}"
        lines.append(f"         {plan.recipe.titles[fate.number]}: {said}")
    lines += [f"         rows said by the recipe: {_few(tokens.given, 'tokens')}"] if tokens.given else []
    return lines + ([f"         in no model: {_few(tokens.nowhere, tokens.filled)}"] if tokens.nowhere else [])


def _few(tokens: Sequence[str], what: str) -> str:
    shown = f" ({', '.join(map(repr, tokens[:TOKENS]))}{' ...' if len(tokens) > TOKENS else ''})" if tokens else ""
    return f"{len(tokens)} {what}{shown}"


def _models(plan: Plan) -> list[tuple[str, str, str]]:
    """Return the titles of the models, their weights ("" for a weight that varies), and their roles, if they differ."""
    titles, roles = plan.recipe.titles, plan.recipe.method.roles
    orders = {tuple(one.number for one in part.inputs) for part in plan.recipe.slices}
    if len(orders) > 1 or len(roles) != len(plan.weights):  # slices may give a model different ones
        roles = ("",) * len(plan.weights)
    return [
        (titles[number], "" if weight is None else f"{weight:<8.4g} x ", _as(role))
        for (number, weight), role in zip(plan.weights, roles, strict=True)
    ]


def _as(role: str) -> str:
    return f" ({role})" if role else ""


def _shown(plan: Plan) -> str:
    """Return the method's parameters in a line."""
    found = parameters(plan)
    if found is None:
        return "parameters by layer and tensor, as the recipe says"
    return ", ".join(f"{name} {value}" for name, value in found.items()) or "no parameters"


def parameters(plan: Plan) -> dict[str, Any] | None:
    """Return the method's effective parameters, without those that each model has its own of; None where they vary.

    PaddleNLP's are called by their flags, mergekit's as in recipes.
    """
    recipe, typical = plan.recipe, plan.typical
    if typical is None:
        return None
    values, resolved = dict(typical.values), typical.resolved
    found = {one.name: values[one.name] for one in recipe.method.parameters if not one.each}
    if recipe.method.name.startswith(PREFIX) and recipe.base is None:
        del found["scale"]  # there is no task vector for it
    if resolved.sparsifier is not None and resolved.sparsifier.random:
        found["seed"] = recipe.seed
    return found


def sidecar_bytes(sidecars: Mapping[str, bytes]) -> int:
    return sum(map(len, sidecars.values()))


# --- the account as text -------------------------------------------------------------------------------------------------


def input_lines(accounted: Account) -> Iterator[str]:
    """Yield how many tensors of every input are used, and which are not."""
    for one in accounted.inputs:
        left_out = one.left_out
        used = f"{len(one.tensors) - len(left_out)} used" if left_out else "all used"
        yield f"from     {one.path} ({one.role}): {len(one.tensors)} tensors, {used}"
        for why, fates in _by(left_out, lambda fate: fate.why).items():
            for name, count in _names(fate.name for fate in fates):
                yield f"         not used: {_times(count)}{name}: {why}"


def tensor_lines(accounted: Account, varying: bool) -> Iterator[str]:
    """Yield a line for each kind of tensors of the output. varying: whether the method's parameters vary by tensor."""

    def kind(made: TensorAccount) -> object:
        return _template(made.name), made.shape, made.dtypes, made.dtype, made.how, made.notes

    rows = []
    for group in _by(accounted.made, kind).values():
        (name, count), *_ = _names(made.name for made in group)
        made = group[0]
        dtypes = " ".join(dict.fromkeys(made.dtypes))
        dtype = made.dtype if dtypes == made.dtype else f"{dtypes} -> {made.dtype}"
        shape = f"[{', '.join(map(str, made.shape))}]"
        rows.append((name, f"{_times(count)}{shape} {dtype}: {'; '.join([made.how, *made.notes])}"))
        if varying and made.values:
            rows[-1] = (name, f"{rows[-1][1]}\nwith {_values([dict(one.values) for one in group])}")
    width = min(60, max((len(name) for name, _ in rows[:SHOWN]), default=0))
    for name, rest in rows[:SHOWN]:
        first, *more = rest.split("\n")
        yield f"  {name:{width}}  {first}"
        yield from (f"  {'':{width}}  {line}" for line in more)
    if len(rows) > SHOWN:
        yield f"  and {len(rows) - SHOWN} kinds of tensors more; --account FILE.json lists every tensor"


def _values(group: Sequence[Mapping[str, Any]]) -> str:
    """Return the parameters of tensors of one kind, in the order of layers: one value where they agree, else a few of
    them."""

    def word(value: Any) -> str:
        if isinstance(value, tuple):
            return " ".join(map(word, value))
        return f"{value:.4g}" if isinstance(value, float) else str(value)

    found = []
    for name in group[0]:
        words = [word(values[name]) for values in group]
        if len(set(words)) == 1:
            words = words[:1]
        if len(words) > FEW:
            words = [*words[: FEW // 2], "...", *words[-(FEW // 2) :]]
        found.append(f"{name} {', '.join(words)}")
    return "; ".join(found)


def _times(count: int) -> str:
    return f"{count} x " if count > 1 else ""


def _by(rows: Iterable[Any], key: Any) -> dict[Any, list[Any]]:
    found: dict[Any, list[Any]] = {}
    for row in rows:
        found.setdefault(key(row), []).append(row)
    return found


def _template(name: str) -> str:
    return _NUMBER.sub("#", name)


def _names(names: Iterable[str]) -> list[tuple[str, int]]:
    """Return names that differ in numbers only as one, "layers.{0..79}.w", each with the count of names that it stands
    for."""
    found = []
    for template, group in _by(names, _template).items():
        columns = zip(template.split("."), zip(*(name.split(".") for name in group), strict=True), strict=True)
        shown = [_ranges(set(map(int, column))) if word == "#" else word for word, column in columns]
        found.append((".".join(shown), len(group)))
    return found


def _ranges(numbers: set[int]) -> str:
    if len(numbers) == 1:
        return str(*numbers)
    runs: list[list[int]] = []
    for number in sorted(numbers):
        if runs and runs[-1][1] == number - 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return "{" + ",".join(str(first) if first == last else f"{first}..{last}" for first, last in runs) + "}"
