"""MergeConfig: what the fields of a configuration mean together. It makes a Recipe."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..backends.engine import GIB, Engine
from ..checkpoints.adapters import absolute
from ..dtypes import FLOATS
from ..errors import ConfigError
from ..methods.paddlenlp import MERGE_TYPES, METHODS, SPARSIFIERS, method
from ..methods.registry import NAMED
from ..methods.shared.method import Method
from ..parsing import coerce, nearest, parse_size
from . import checks, fields
from .config_file import read_config_file
from .fields import Fields, to_types
from .parameters import Resolver
from .recipe import Input, Recipe, Slice, constant, tokenizer_of

if TYPE_CHECKING:
    from .yaml_read import Told

# Other names that PaddleNLP's documentation and older versions use for a field.
ALIASES = {
    "merge_preifx": "merge_prefix",
    "model_name_or_path_list": "model_path_list",
    "base_model_name_or_path": "base_model_path",
}
# Written beside the fields into merge_config.json; ignored when it is read back.
RECORD_KEYS = ("paddle_merge_version",)


@dataclass
class MergeConfig(Fields):
    """Everything a merge can be told, with PaddleNLP's names and defaults (fields.py). `recipe()` checks it."""

    def __post_init__(self) -> None:
        """Raises ConfigError."""
        to_types(self)

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any], where: str = "the config") -> MergeConfig:
        """From a JSON or YAML object of these fields, as PaddleNLP reads and writes it: null and "None" mean not given.

        Raises ConfigError listing every unknown field and wrong type.
        """
        return cls(**cls.known_fields(values, where))

    @classmethod
    def known_fields(cls, values: Mapping[str, Any], where: str) -> dict[str, Any]:
        """The given fields by their right names. Raises ConfigError listing all that don't exist or are of a wrong type."""
        problems: list[str] = []
        known: dict[str, Any] = {}
        types = {item.name: str(item.type) for item in dataclasses.fields(cls)}
        for key, value in values.items():
            name = ALIASES.get(key, key)
            if name in RECORD_KEYS or value is None or value == "None":
                continue
            if name not in types:
                problems.append(f"{where}: unknown field {key!r}{nearest(key, types)}")
                continue
            if name in known and known[name] != value:
                problems.append(f"{where}: {key!r} and another spelling of it disagree")
            try:
                known[name] = coerce(value, types[name])
            except ValueError as error:
                problems.append(f"{where}: {key!r} {error}")
        if problems:
            raise ConfigError(problems)
        return known

    from_file = staticmethod(read_config_file)

    # --- what it resolves to

    @property
    def told(self) -> Told | None:
        """The recipe that recipe_yaml holds, or that the flags mean where the method isn't one of PaddleNLP's. Raises
        ConfigError."""
        if self.recipe_yaml:
            from .yaml_read import read  # and with it YAML

            return read(self.recipe_yaml)
        if self.merge_method in METHODS or self.merge_method not in NAMED:
            return None
        from .request import as_yaml
        from .yaml_read import parse

        return parse(as_yaml(self), "the flags, as a recipe")

    @property
    def models(self) -> list[str]:
        """The models' paths: the recipe's, or model_path_str if given, else model_path_list; or the base and the adapter to
        fold into it."""
        if self.recipe_yaml and self.told is not None:
            return list(self.told.recipe.models)
        if self.lora_model_path:
            return [f"{self.base_model_path}+{self.lora_model_path}"] if self.base_model_path else []
        if self.model_path_str:
            return [part.strip() for part in self.model_path_str.split(",") if part.strip()]
        return list(self.model_path_list or [])

    @property
    def base(self) -> str | None:
        """The base model's path; None where the one model is a base with its adapter, to be written as it is."""
        if self.recipe_yaml and self.told is not None:
            return self.told.recipe.base
        return None if self.lora_model_path else self.base_model_path

    @property
    def sources(self) -> list[str]:
        """The models, then the base."""
        return [*self.models, *([self.base] if self.base else [])]

    @property
    def parts(self) -> tuple[str | None, str]:
        """(sparsifier, merge type) by name."""
        if self.merge_method in METHODS:
            return METHODS[self.merge_method]
        sparsifier = None if self.sparsify_type in (None, "none") else self.sparsify_type
        return sparsifier, self.merge_type or "linear"

    @property
    def method(self) -> str:
        """The name of the pair: a merge method's if there is one, else "trim+slerp"; "fold" of one model alone."""
        if self.told is not None:
            return self.told.recipe.title
        if len(self.models) == 1 and self.base is None:
            return "fold"
        names = {pair: name for name, pair in METHODS.items()}
        sparsifier, merge_type = self.parts
        return names.get((sparsifier, merge_type), f"{sparsifier}+{merge_type}")

    @property
    def output(self) -> str:
        """output_path, or ./merged-<method>."""
        return self.output_path or os.path.join(".", f"merged-{self.method}")

    @property
    def engine(self) -> Engine:
        """What computes. np computes on the CPU, whatever the device (checks.warnings says so)."""
        device = "cpu" if self.tensor_type == "np" else self.device
        return Engine(self.tensor_type, device, int(self.max_tensor_mem * GIB), workers=self.n_process)

    @property
    def stored_layout(self) -> str | None:
        """output_layout, or what PaddleFormers' two flags mean; None: the first model's."""
        if self.output_layout or self.convert_from_hf == self.save_to_hf:
            return self.output_layout
        return "hf" if self.save_to_hf else "paddleformers"

    def shard_bytes(self) -> int:
        """max_shard_size in bytes: "5GB" is 5e9, "5GiB" 5 * 2**30. Raises ValueError."""
        return parse_size(self.max_shard_size)

    def recipe(self) -> Recipe:
        """What is asked, checked. Raises ConfigError listing everything that is wrong."""
        problems = checks.problems(self)
        if self.told is not None:
            if problems:
                raise ConfigError(problems)
            return self._with_flags(self.told.recipe)
        sparsifier, merge_type = self.parts
        are_numbers = not fields.of_fields(self)  # else there is nothing to add
        if are_numbers and (sparsifier is None or sparsifier in SPARSIFIERS) and merge_type in MERGE_TYPES:
            recipe = self._recipe(method(sparsifier, merge_type, self.method))
            weighted = self.weight_list is None or len(self.weight_list) == len(self.models) >= 1
            resolver = Resolver(recipe)
            resolved = resolver.resolved(resolver.values(recipe.slices[0], "", 0.0))
            problems += resolved.sparsifier.problems() if resolved.sparsifier is not None else []
            problems += resolved.merger.problems(len(self.models)) if weighted and self.models else []
        if problems:
            raise ConfigError(problems)
        return recipe

    def _recipe(self, method: Method) -> Recipe:
        weights = self.weight_list if self.weight_list is not None else [1.0] * len(self.models)
        given = {**dataclasses.asdict(self), "normalize": self.normalize or self.weight_list is None}
        settings = {one.name: constant(given[one.name]) for one in method.parameters if not one.each}
        inputs = [Input(number, settings={"weight": constant(weight)}) for number, weight in enumerate(weights)]
        base = Input(len(self.models)) if self.base else None
        recipe = Recipe(
            models=tuple(self.models),
            base=self.base,
            method=method,
            slices=(Slice(tuple(inputs), base),),
            settings=settings,
        )
        return self._with_flags(recipe)

    def _with_flags(self, recipe: Recipe) -> Recipe:
        """What flags say of any recipe."""
        tokenizer = recipe.tokenizer
        if self.tokenizer_source:
            places = {absolute(path): number for number, path in enumerate(recipe.sources)}
            base = len(recipe.models) if recipe.base is not None else None
            tokenizer = tokenizer_of(str(self._tokenizer_source), None, places, base, recipe.taken[0])
        return dataclasses.replace(
            recipe,
            seed=recipe.seed if self.seed is None else self.seed,
            stages=tuple(
                dataclasses.replace(stage, seed=stage.seed if self.seed is None else self.seed) for stage in recipe.stages
            ),
            prefix=self.merge_prefix,
            out_dtype=FLOATS.get(self.out_dtype or "") or recipe.out_dtype,
            layouts=tuple(self.layout or ()),
            output_layout=self.stored_layout,
            strict_layout=self.strict_layout,
            save_format=self.save_format,
            config_from=self.config_from,
            tokenizer=tokenizer,
            chat_template=self.chat_template or recipe.chat_template,
        )

    @property
    def _tokenizer_source(self) -> str | None:
        """A path made absolute."""
        source = self.tokenizer_source
        return source if source in (None, "union", "base") else absolute(str(source))

    def to_record(self) -> dict[str, Any]:
        """The fields that, read back from any folder, repeat this merge: paths made absolute, the method resolved."""
        record = {**dataclasses.asdict(self), "tokenizer_source": self._tokenizer_source}
        for name in ("model_path_str", "overwrite", "resume", "dry_run", "account", "print_recipe"):
            del record[name]
        sparsifier, merge_type = self.parts
        if self.told is not None:
            from .yaml_write import to_yaml

            defaults = type(self)()
            told = {*checks.OF_RECIPES, "method_parameters"} & record.keys()
            record.update({name: getattr(defaults, name) for name in told})
            record["recipe_yaml"] = to_yaml(self.told.recipe, absolute)
            record["output_path"] = os.path.abspath(self.output)
            record["config_from"] = os.path.abspath(self.config_from) if self.config_from else None
            return record
        record.update(
            model_path_list=None if self.lora_model_path else [absolute(spec) for spec in self.models],
            lora_model_path=absolute(self.lora_model_path) if self.lora_model_path else None,
            base_model_path=absolute(self.base_model_path) if self.base_model_path else None,
            config_from=os.path.abspath(self.config_from) if self.config_from else None,
            output_path=os.path.abspath(self.output),
            merge_method=self.method if self.method in METHODS else None,
            merge_type=merge_type,
            sparsify_type=sparsifier,
        )
        return record
