"""Make the model card, README.md: what people and hubs read of a merge.

It is written to be published: it names models as hubs do, or by their folders' names, and tells no paths of this machine.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping
from typing import Any

from ...drawing.markdown import escaped, table
from ...methods.shared.method import Method
from ...plan.describe import parameters
from ...plan.file_names import LOCK, RECORD
from ...plan.plan import Plan
from ...recipe.config import MergeConfig
from ...recipe.mixture import Mixture
from ...recipe.recipe import Recipe
from ...recipe.request import Request
from ...version import __version__
from .card_loading import library, loading

PROGRAM = "python -m paddle_merge"
RECIPE = "recipe.yaml"
# What a recipe in YAML doesn't say, and the merged bytes depend on.
_FLAGS = (
    *("merge_prefix", "layout", "output_layout", "convert_from_hf", "save_to_hf", "tie", "allow_untrained"),
    *("config_from", "copy_file_list", "save_format", "max_shard_size"),
    *("missing_tensors", "expert_layout", "merge_with_qdq_base_model"),
)
_ON_DEVICE = ("tensor_type", "device")  # which on the CPU make no difference


def model_card(plan: Plan, request: Request, sidecars: Mapping[str, bytes]) -> str:
    """Return the card of a merge. sidecars: the other files beside the weights, by name."""
    name = os.path.basename(os.path.abspath(request.output))
    sections = [
        f"# {escaped(name)}",
        _summary(plan),
        *_models(plan),
        *_license(plan),
        *_loading(plan, sidecars, name),
        *_recipe(plan, request),
    ]
    return "\n".join(["---", *_yaml(metadata(plan, sidecars)), "---", "", "\n\n".join(sections), ""])


def metadata(plan: Plan, sidecars: Mapping[str, bytes]) -> dict[str, Any]:
    """Return the card's metadata, by the keys that hubs read. What isn't known is left out.

    The tags of the inputs are not among it: they say how those were trained and stored, which isn't true of the merge.
    """
    known = plan.provenance
    alone = plan.recipe.title == "fold" and len(known.base_models) == 1
    return {
        **({"base_model": known.base_models} if known.base_models else {}),
        **({"base_model_relation": "finetune" if alone else "merge"} if known.base_models else {}),
        **({"library_name": name} if (name := library(plan, sidecars)) else {}),
        **({"pipeline_tag": known.task} if known.task else {}),
        **(known.license.metadata if known.license is not None else {}),
        **({"language": known.languages} if known.languages else {}),
        "tags": ["merge", "paddle_merge", *dict.fromkeys(_title(one) for one in _methods(plan.recipe))],
    }


def _yaml(content: Mapping[str, Any]) -> list[str]:
    import yaml

    return yaml.safe_dump(content, sort_keys=False, allow_unicode=True, width=1000).splitlines()


def _methods(recipe: Recipe) -> list[Method]:
    """Return the methods of the recipe, in the order in which its stages use them; none where nothing is merged."""
    return [] if recipe.title == "fold" else [*(stage.method for stage in recipe.stages), recipe.method]


def _title(method: Method) -> str:
    return method.name.rpartition(":")[2]


def _linked(method: Method) -> str:
    return f"[`{_title(method)}`]({method.paper})" if method.paper else f"`{_title(method)}`"


def _summary(plan: Plan) -> str:
    """Return the first sentence: what was merged, by which methods, with the papers."""
    recipe, titles = plan.recipe, [escaped(title) for title in plan.provenance.titles]
    made = f"made with paddle_merge {__version__}"
    if recipe.mixture is not None:
        count, its = len(recipe.mixture.experts), titles[recipe.mixture.base]
        return f"This model is a mixture of {count} experts on the base of {its}, {made}."
    if recipe.title == "fold":
        if len(plan.provenance.inputs[0]) == 1:
            return f"This model is {titles[0]}, {made}."
        folded, *adapters = (escaped(plan.provenance.labels[one.path]) for one in plan.provenance.inputs[0])
        return f"This model is {folded} with {' and '.join(adapters)} folded in, {made}."
    methods = ", then ".join(dict.fromkeys(map(_linked, _methods(recipe))))
    base = recipe.slices[0].base
    subtracted = base is not None and len(recipe.slices) == 1 and base.number < len(titles)
    against = f", as changes to {titles[base.number]}" if subtracted and base is not None else ""
    smaller = "".join(f" Of the merged model, {sentence}." for sentence in plan.smaller)
    return f"This model was merged by {methods}{against}, {made}.{smaller}"


def _models(plan: Plan) -> list[str]:
    """Return the table of the models with their weights, and with the other parameters in which they differ."""
    recipe = plan.recipe
    if recipe.title == "fold":
        return []
    if recipe.mixture is not None:
        return ["## Experts", table(_experts(plan, recipe.mixture))]
    titles = [*plan.provenance.titles, *(stage.name for stage in recipe.stages)]
    values = dict(plan.typical.values) if plan.typical is not None else {}
    each = [one.name for one in recipe.method.parameters if one.each and one.name not in ("weight", "scale")]
    given = {name: values[name] for name in each if isinstance(values.get(name), tuple)}
    own = {name: its for name, its in given.items() if len(set(its)) > 1}
    rows = [["model", "weight", *own]]
    weights = plan.weights
    for place, (number, weight) in enumerate(weights):
        cells = [f"{its[place]:g}" for its in own.values()]
        rows.append([titles[number], "as in the recipe" if weight is None else f"{weight:.6g}", *cells])
    weighed = {number for number, _ in weights}
    for number, title in enumerate(titles):
        if number not in weighed:
            why = "the base model" if number in recipe.taken or number == len(recipe.models) else "in an earlier stage"
            rows.append([title, why, *("" for _ in own)])
    common = {name: its[0] for name, its in given.items() if name not in own} | (parameters(plan) or {})
    words = {name: f"{value:g}" if isinstance(value, float) else str(value) for name, value in common.items()}
    shown = ", ".join(f"{name} {word}" for name, word in words.items())
    return ["## Models", table(rows), *([f"Parameters: {escaped(shown)}."] if shown else [])]


def _experts(plan: Plan, mixture: Mixture) -> list[list[str]]:
    """Return the table of a mixture's experts, and of the model that gives everything else."""
    titles, rows = plan.provenance.titles, [["expert", "model", "prompts", "noise_scale", "residual_scale"]]
    named = [(str(number), one) for number, one in enumerate(mixture.experts)] + [("shared", one) for one in mixture.shared]
    for name, one in named:
        prompts = [f"{len(its)} {word}" for its, word in ((one.positive, "positive"), (one.negative, "negative")) if its]
        rows.append([name, titles[one.number], ", ".join(prompts), f"{one.noise:g}", f"{one.residual:g}"])
    rest = "average of the experts' models" if mixture.non_experts == "average" else titles[mixture.base]
    return [*rows, ["everything else", rest, "", "", ""]]


def _license(plan: Plan) -> list[str]:
    """Return the inputs' licences where they don't agree, so that the metadata has none."""
    known = plan.provenance
    groups = known.license_groups(lambda one: known.labels[one.path])
    if not groups or (known.license is not None and known.license.metadata):
        return []
    return ["## License", f"As the cards of the inputs state it: {escaped(groups)}."]


def _loading(plan: Plan, sidecars: Mapping[str, bytes], name: str) -> list[str]:
    lines = loading(plan, sidecars, f"./{name}")
    return ["## How to load it", _block("python", "\n".join(lines))] if lines else []


def _recipe(plan: Plan, request: Request) -> list[str]:
    """Return the recipe in YAML, and the command that repeats the merge with it."""
    from ...recipe.yaml_write import to_yaml  # imports YAML

    text = to_yaml(plan.recipe, plan.provenance.public)
    return [
        "## Recipe",
        _block("yaml", text.rstrip()),
        f"As `{RECIPE}`, beside the models that it names, it repeats the merge byte for byte:",
        _block("bash", _command(plan, request)),
        f"`{RECORD}` is the same merge with the paths that it was made with. `{LOCK}` has fingerprints of everything that"
        f" was read and written; `{PROGRAM} verify` compares them.",
    ]


def _block(kind: str, text: str) -> str:
    """Return a block of code, whose fence is longer than any run of backticks in it."""
    ticks = "`" * max(3, *(1 + _longest_run(line) for line in text.splitlines()))
    return f"{ticks}{kind}\n{text}\n{ticks}"


def _longest_run(line: str) -> int:
    """Return how many backticks follow one another in a line at most: a fence must be longer."""
    return max(map(len, "".join(letter if letter == "`" else " " for letter in line).split()), default=0)


def _command(plan: Plan, request: Request) -> str:
    """Return the command that merges the recipe of the card, with the flags for what a recipe doesn't say."""
    defaults = MergeConfig()
    words = [*PROGRAM.split(), RECIPE, "--output_path", f"./{os.path.basename(os.path.abspath(request.output))}"]
    for name in _FLAGS if request.engine.device == "cpu" else (*_FLAGS, *_ON_DEVICE):
        value = request.record.get(name)
        if value == getattr(defaults, name):
            continue
        if isinstance(value, bool):
            words += [f"--{name}", str(value)]
        else:
            words += [f"--{name}", *map(str, value if isinstance(value, list) else [value])]
        if name == "config_from":
            words[-1] = plan.provenance.public(str(value))
    return shlex.join(words)
