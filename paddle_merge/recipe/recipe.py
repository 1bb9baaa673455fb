"""Recipe: what was asked, checked as far as it can be without looking at a file.

Flags and YAML recipes make the same Recipe. A parameter is a setting: one value, a gradient over the layers, or one of these
for each group of tensors (parameters.py says which counts for a tensor).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from ..dtypes import DType
from ..methods.shared.method import REQUIRED, Method

Value = bool | int | float | str


@dataclass(frozen=True)
class Condition:
    """What a parameter is for the tensors whose name the filter matches (None: all): a value, or a gradient, whose values
    stand at equal distances over the layers."""

    value: Value | tuple[Value, ...]
    filter: str | None = None


Setting = tuple[Condition, ...]  # the first that matches counts
Settings = Mapping[str, Setting]


def constant(value: Value) -> Setting:
    return (Condition(value),)


@dataclass(frozen=True)
class Input:
    """A model of a slice: its place in Recipe.titles, its first layer, and parameters of its own."""

    number: int
    first: int = 0
    settings: Settings = field(default_factory=dict)


@dataclass(frozen=True)
class Slice:
    """Some layers of the output. inputs: what they are made of, without the base that is subtracted; base: that, as an
    Input, or None; layers: how many; None: whole models, whatever layers they have. module: of which part of the models
    (modules.py); None: they have one; at: where a recipe names it."""

    inputs: tuple[Input, ...]
    base: Input | None = None
    layers: int | None = None
    settings: Settings = field(default_factory=dict)
    module: str | None = None
    at: str = field(default="", compare=False, repr=False)

    @property
    def everything(self) -> tuple[Input, ...]:
        """The models, then the base."""
        return self.inputs if self.base is None else (*self.inputs, self.base)


@dataclass(frozen=True)
class Tokenizer:
    """The output's tokenizer, to whose tokens all vocabularies are aligned.

    source: "union", of all the inputs' tokens; or the input it is taken from, by its number; or the folder of another.
    base: the input that a union begins with and that tokens are taken from rather than averaged, by its number; None: the
    first model begins it.
    multiple: what the number of rows is made a multiple of; None: as many as the input has that it is taken from.
    """

    source: int | str
    base: int | None = None
    multiple: int | None = None


def tokenizer_of(source: str, multiple: int | None, places: Mapping[str, int], base: int | None, first: int) -> Tokenizer:
    """source: "union", "base", what an input is called, or a folder. places: the inputs' numbers by what they are called;
    base: the base's, if there is one; first: the first model's."""
    if source == "union":
        return Tokenizer(source, base, multiple)
    main = base if base is not None else first
    return Tokenizer(main if source == "base" else places.get(source, source), base, multiple)


@dataclass(frozen=True)
class Stage:
    """A merge whose output a later one of the same recipe takes for a model. The fields are as Recipe's."""

    name: str
    method: Method
    slices: tuple[Slice, ...]
    settings: Settings
    seed: int
    out_dtype: DType | None
    tokenizer: Tokenizer | None = None

    @property
    def taken(self) -> list[int]:
        """The numbers of the inputs that it merges, the base's last."""
        return _taken(self.slices)


@dataclass(frozen=True)
class Recipe:
    """A merge, method and all.

    models: paths of the checkpoints to merge, in order; weights and masks go by this order.
    base: path of the base model; with it methods work on task vectors, without it on the weights themselves.
    method: what its parameters mean, and what they make.
    settings: parameters for all slices.
    slices: of the output, in order; one of whole models, unless layers are picked.
    stages: merges before it, whose outputs are numbered after Recipe.sources, in order.
    seed: of the masks.
    prefix: which weights of a checkpoint folder, "model" or "master_weights".
    out_dtype: storage dtype of all floating-point tensors; None: each tensor's own.
    layouts: of each source, as layout.LAYOUTS; None where it is to be detected.
    output_layout: None: the first source's.
    strict_layout: refuse sources of different layouts.
    save_format: "safetensors" or "pdparams".
    config_from: the folder of config.json and the tokenizer; None: the base's, or a model's.
    tokenizer: None: rows are merged as they stand.
    chat_template: a name, "auto", or Jinja (chat.py); None: the tokenizer's own.
    """

    models: tuple[str, ...]
    base: str | None
    method: Method
    slices: tuple[Slice, ...]
    settings: Settings = field(default_factory=dict)
    stages: tuple[Stage, ...] = ()
    seed: int = 0
    prefix: str = "model"
    out_dtype: DType | None = None
    layouts: tuple[str | None, ...] = ()
    output_layout: str | None = None
    strict_layout: bool = False
    save_format: str = "safetensors"
    config_from: str | None = None
    tokenizer: Tokenizer | None = None
    chat_template: str | None = None

    @property
    def taken(self) -> list[int]:
        """The numbers of the inputs that its last merge takes, the base's last."""
        return _taken(self.slices)

    @property
    def title(self) -> str:
        """What to call the method: "ties" for PaddleNLP's too."""
        return self.method.name.rpartition(":")[2]

    @property
    def sources(self) -> tuple[str, ...]:
        """All input paths: the models, then the base."""
        return self.models if self.base is None else (*self.models, self.base)

    @property
    def titles(self) -> tuple[str, ...]:
        """What to call each input: by its path, or its stage."""
        return (*self.sources, *(f"{stage.name} (merged by this recipe)" for stage in self.stages))


@dataclass(frozen=True)
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
    return f"{method.name} takes {method.least}{most}{more} models, not {models}"


def _taken(slices: Sequence[Slice]) -> list[int]:
    inputs = [one.number for part in slices for one in part.inputs]
    bases = [part.base.number for part in slices if part.base is not None]
    return list(dict.fromkeys([*inputs, *bases]))


def parts(recipe: Recipe | Stage) -> list[tuple[str | None, list[Slice]]]:
    """The slices of each module, in order; of the one module None, if the recipe names none."""
    found: dict[str | None, list[Slice]] = {}
    for part in recipe.slices:
        found.setdefault(part.module, []).append(part)
    return list(found.items())


def names_of(recipe: Recipe | Stage) -> tuple[str, ...]:
    """Of its modules; () if it names none."""
    return tuple(name for name, _ in parts(recipe) if name is not None)
