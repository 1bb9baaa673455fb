"""Recipe: what to merge and how, checked as far as that is possible without reading a checkpoint.

Flags and YAML files make the same Recipe. Each parameter has a setting: a value, a gradient over the layers, or a list of
these with filters on tensor names (parameters.py says which one applies to a tensor).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import field

from ..dtypes import DType, ScaledForm
from ..methods.shared.method import REQUIRED, Method
from ..records import record
from .keep_experts import KeepExperts
from .missing_tokens import MissingTokens
from .mixture import Mixture

Value = bool | int | float | str


@record(frozen=True)
class Condition:
    """The value of a parameter for the tensors whose names match the filter (None: all tensors).

    value: one value; or a tuple, a gradient whose values are spaced evenly over the layers.
    """

    value: Value | tuple[Value, ...]
    filter: str | None = None


Setting = tuple[Condition, ...]  # the first that matches applies
Settings = Mapping[str, Setting]


def constant(value: Value) -> Setting:
    """Return the setting that has this value for every tensor."""
    return (Condition(value),)


@record(frozen=True)
class Input:
    """A model of a slice.

    number: its index in Recipe.titles.
    first: the index of the first of its layers that the slice takes.
    settings: parameters of this model alone.
    """

    number: int
    first: int = 0
    settings: Settings = field(default_factory=dict)


@record(frozen=True)
class Slice:
    """Consecutive layers of the output, or whole models.

    inputs: the models that are merged, without the base that is subtracted from them.
    base: the base that is subtracted; None if there is none.
    layers: the number of layers; None: whole models.
    settings: parameters of this slice alone.
    module: the name of the part of the models that the slice belongs to (plan/modules.py); None if the recipe names none.
    at: the file, line and column where a recipe names the module, for error messages.
    """

    inputs: tuple[Input, ...]
    base: Input | None = None
    layers: int | None = None
    settings: Settings = field(default_factory=dict)
    module: str | None = None
    at: str = field(default="", compare=False, repr=False)

    @property
    def everything(self) -> tuple[Input, ...]:
        """The models, then the base if there is one."""
        return self.inputs if self.base is None else (*self.inputs, self.base)


@record(frozen=True)
class TokenRow:
    """The row of a token where a recipe says it (mergekit's table `tokens`): a row of a model, or zeros.

    The output gets the token if it doesn't have it. Without model and zeros, its row follows the usual rules.
    model: the number of an input.
    row: a token of that input, or the number of a row of its embedding; None: the same token.
    zeros: whether the row is zeros.
    force: whether also models that have the token get the row; else only the others do.
    """

    token: str
    model: int | None = None
    row: str | int | None = None
    zeros: bool = False
    force: bool = False


@record(frozen=True)
class Tokenizer:
    """The output's tokenizer, to whose tokens all vocabularies are aligned.

    source: "union" (the tokens of all inputs); the number of the input that it is taken from; or the folder of another one.
    base: the number of the input whose tokens come first in a union, and whose rows are taken unchanged instead of
        averaged; None: the first model's tokens come first.
    multiple: the number of rows is rounded up to a multiple of this; None: the output has as many rows as the input that the
        tokenizer is taken from.
    rows: tokens whose rows the recipe gives.
    missing: how rows of tokens are made that no model has; None: they are zeros.
    """

    source: int | str
    base: int | None = None
    multiple: int | None = None
    rows: tuple[TokenRow, ...] = ()
    missing: MissingTokens | None = None


def tokenizer_of(
    source: str,
    multiple: int | None,
    places: Mapping[str, int],
    base: int | None,
    first: int,
    rows: tuple[TokenRow, ...] = (),
    missing: MissingTokens | None = None,
) -> Tokenizer:
    """Return the tokenizer that a recipe or a flag names.

    source: "union", "base", the path or name of an input, or a folder.
    multiple, rows, missing: as of Tokenizer.
    places: the inputs' numbers by their paths or names.
    base: the base's number; None if there is no base.
    first: the first model's number, which stands for the base where there is none.
    """
    if source == "union":
        return Tokenizer(source, base, multiple, rows, missing)
    main = base if base is not None else first
    return Tokenizer(main if source == "base" else places.get(source, source), base, multiple, rows, missing)


@record(frozen=True)
class Stage:
    """A merge whose output is an input of a later merge of the same recipe. Its fields are those of Recipe."""

    name: str
    method: Method
    slices: tuple[Slice, ...]
    settings: Settings
    seed: int
    out_dtype: DType | ScaledForm | None
    tokenizer: Tokenizer | None = None

    @property
    def taken(self) -> list[int]:
        """The numbers of the inputs that it merges; the base's is the last."""
        return _taken(self.slices)


@record(frozen=True)
class Recipe:
    """A merge: its inputs, its method and the method's parameters, and the form of the output.

    models: paths of the checkpoints to merge; the order decides which weight and which mask belongs to which model.
    base: path of the base model. With it methods merge task vectors, without it the weights themselves.
    method: the merge method.
    slices: the slices of the output in order; a single one of whole models unless layers are selected.
    settings: parameters for all slices.
    stages: merges to be made before this one. Their outputs are numbered after Recipe.sources, in order.
    seed: of the random masks.
    prefix: which weights of a checkpoint folder are merged, "model" or "master_weights".
    out_dtype: storage dtype of all floating-point tensors, or the form in which Linear layers' weights are stored; None:
        each tensor keeps its own.
    layouts: the layout of each source (checkpoints/names.py); None where it is to be detected; empty: detect all.
    output_layout: the layout of the output; None: the first source's.
    tie: whether the output ties lm_head to the embedding: "auto", "keep" or "untie", as of conversion.layout.normalise.
    strict_layout: whether sources of different layouts are refused.
    allow_untrained: whether adapters that change nothing are folded, instead of refused.
    missing_tensors: what becomes of tensors that only some inputs have, as of plan.partial.
    requantise: whether the weights that an adapter was trained on in quantised form are quantised and dequantised first.
    save_format: "safetensors" or "pdparams".
    config_from: the folder to take config.json and the tokenizer from; None: the base's, or a model's.
    tokenizer: the output's tokenizer; None: embedding rows are merged by their index.
    expert_alignment: how experts correspond: "index"; "match", those that resemble one another; or the file of orders that
    an
        earlier merge found.
    router: whether the routers of experts are merged ("merge") or the base's ("base").
    expert_layout: whether experts are stored as a matrix for each ("split") or as stacks ("stacked"); None: as the inputs.
    chat_template: a template's name, "auto", or Jinja text (chat_template.py); None: the tokenizer's own.
    mixture: the mixture of experts that is made of the inputs, instead of a merge; None: it is a merge.
    keep_experts: the experts that the output keeps of the merged model's; None: all.
    drop_layers: the numbers of the merged model's layers that the output doesn't get, ascending.
    """

    models: tuple[str, ...]
    base: str | None
    method: Method
    slices: tuple[Slice, ...]
    settings: Settings = field(default_factory=dict)
    stages: tuple[Stage, ...] = ()
    seed: int = 0
    prefix: str = "model"
    out_dtype: DType | ScaledForm | None = None
    layouts: tuple[str | None, ...] = ()
    output_layout: str | None = None
    tie: str = "auto"
    strict_layout: bool = False
    allow_untrained: bool = False
    missing_tensors: str = "error"
    requantise: bool = False
    save_format: str = "safetensors"
    config_from: str | None = None
    tokenizer: Tokenizer | None = None
    chat_template: str | None = None
    expert_alignment: str = "index"
    router: str = "merge"
    expert_layout: str | None = None
    keep_experts: KeepExperts | None = None
    drop_layers: tuple[int, ...] = ()
    mixture: Mixture | None = None

    @property
    def taken(self) -> list[int]:
        """The numbers of the inputs that the last merge takes; the base's is the last."""
        return _taken(self.slices)

    @property
    def title(self) -> str:
        """The method's name without a prefix: "ties" for "paddlenlp:ties" too."""
        return self.method.name.rpartition(":")[2]

    @property
    def sources(self) -> tuple[str, ...]:
        """All input paths: the models, then the base."""
        return self.models if self.base is None else (*self.models, self.base)

    @property
    def titles(self) -> tuple[str, ...]:
        """The name of each input for messages: its path, or the name of its stage."""
        return (*self.sources, *(f"{stage.name} (merged by this recipe)" for stage in self.stages))


@record(frozen=True)
class ParsedRecipe:
    """A recipe, and sentences on what is allowed in it but likely not meant."""

    recipe: Recipe
    notes: tuple[str, ...] = ()


def assign_roles(method: Method, sources: Sequence[Input], base: Input | None) -> tuple[tuple[Input, ...], Input | None]:
    """Return the inputs that the method merges, and the base that it subtracts from them (None: it subtracts nothing).

    sources: the models as they are listed, the base perhaps among them.
    base: what to take of the base where it isn't among them; None if there is no base.
    """
    based = [one for one in sources if base is not None and one.number == base.number]
    others = [one for one in sources if base is None or one.number != base.number]
    based = based or ([base] if base is not None else [])
    subtracts = method.base in ("required", "optional")
    if subtracts and based and not others and method.least == 1 and method.most is None:
        needed = [one.name for one in method.parameters if one.each and one.default is REQUIRED]
        others = [dataclasses.replace(based[0], settings=dict.fromkeys(needed, constant(1.0)))]  # the base stays as it is
    if method.name == "passthrough" and others:
        return tuple(sources), None  # a base that isn't listed only gives config and tokenizer
    if not subtracts:
        return (*based, *others), None
    return tuple(others), based[0] if based else None


def count_problem(method: Method, models: int) -> str | None:
    """Return a sentence that says how many models the method takes, if it doesn't take this many."""
    if method.least <= models <= (method.most or models):
        return None
    most = f" to {method.most}" if method.most and method.most > method.least else ""
    more = " or more" if method.most is None else ""
    taken = "1 model" if method.most == 1 else f"{method.least}{most}{more} models"
    roles = f": {', then '.join(method.roles)}; the base model is {method.base_role}" if method.roles else ""
    return f"{method.name} takes {taken}, not {models}{roles}"


def _taken(slices: Sequence[Slice]) -> list[int]:
    inputs = [one.number for part in slices for one in part.inputs]
    bases = [part.base.number for part in slices if part.base is not None]
    return list(dict.fromkeys([*inputs, *bases]))


def parts(recipe: Recipe | Stage) -> list[tuple[str | None, list[Slice]]]:
    """Return (module, slices) of each module, in order; the module is None if the recipe names none."""
    found: dict[str | None, list[Slice]] = {}
    for part in recipe.slices:
        found.setdefault(part.module, []).append(part)
    return list(found.items())


def names_of(recipe: Recipe | Stage) -> tuple[str, ...]:
    """Return the names of the recipe's modules; () if it names none."""
    return tuple(name for name, _ in parts(recipe) if name is not None)
