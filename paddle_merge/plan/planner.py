"""Make the plan of a merge from a recipe and the headers of its inputs, and find everything that is wrong with them.

Before: recipe/request.py says what is asked for. Here: the inputs are opened and made to match (matched.py), the output's
tensors are assembled from theirs (assemble.py), and each gets its place in an output file. After: run/merge.py
carries out the Plan (plan.py).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Hashable, Mapping, Sequence, Set
from typing import Any

from ..backends.engine import NUMPY, Engine
from ..checkpoints.config_json import read_config
from ..checkpoints.names import LAYOUTS
from ..checkpoints.tensors import Checkpoint, Origin, TensorEntry
from ..conversion import modules
from ..conversion.inputs import differences
from ..conversion.layout import transposed_in
from ..conversion.vocabulary.align import Aligner
from ..conversion.vocabulary.given import Given
from ..conversion.vocabulary.missing import Missing
from ..conversion.vocabulary.vocabularies import Vocabularies
from ..errors import CheckpointError
from ..parsing import tensors_named
from ..recipe.recipe import Recipe, Stage, names_of, parts
from ..records import record
from . import chat, roles
from .added_tokens import added_tokens
from .assemble import AssembledTensor, assemble
from .config_source import warnings
from .copies import masked_as, originals
from .donor import open_donor
from .matched import Matched, matched
from .mixture import assemble_mixture, in_hf_layout
from .output_config import output_config, wrong_kinds
from .partial import Partial
from .plan import Plan, cut, suited
from .provenance import provenance
from .shards import lay_out
from .smaller import Smaller, smaller
from .storage import storage
from .tensor_plan import StagedEntry, TensorPlan


@record(frozen=True)
class Made:
    """Hold the tensors of a recipe's output before each has its place in a file.

    inputs: as Recipe.titles. aligner: None if the recipe has no tokenizer. idle: a sentence on each filter that matches
    nothing, or on what is likely not meant. recipe: with the experts that were chosen. left_out, cut, smaller: as of Plan.
    """

    tensors: Sequence[AssembledTensor]
    inputs: tuple[Checkpoint, ...]
    vocabularies: Vocabularies
    aligner: Aligner | None
    idle: tuple[str, ...]
    recipe: Recipe
    left_out: Mapping[Origin, str]
    cut: Mapping[Origin, float]
    smaller: tuple[str, ...]


def make(recipe: Recipe, its: Matched, also: Sequence[str] = ()) -> Made:
    """Return the tensors that a recipe makes of its inputs.

    also: what is wrong besides. Raises CheckpointError listing everything that doesn't fit; ConfigError for parameters that
    don't.
    """
    vocabularies = Vocabularies(its.inputs)
    if recipe.mixture is not None:
        found = assemble_mixture(recipe, recipe.mixture, its.inputs)
        return Made(found.tensors, its.inputs, vocabularies, None, tuple(found.warnings), recipe, found.left_out, {}, ())
    idle = _with_stages(recipe, vocabularies, its.layout, its.family)
    inputs = tuple(vocabularies.inputs)
    aligner = _aligner(recipe, vocabularies, its.layout, recipe.prefix)
    if problems := [*_differences(recipe, inputs, aligner), *also]:
        raise CheckpointError(problems)
    made, more = assemble(recipe, inputs, aligner, its.averaged, its.experts.routers)
    left = Smaller(made, recipe)
    if recipe.keep_experts is not None or recipe.drop_layers:
        transposed = _transposed(made, its.layout, its.family)
        config, path = read_config(its.config_source.folder), its.inputs[0].path
        left = smaller(recipe, made, transposed, its.layout, config, path)
    return Made(
        left.tensors, inputs, vocabularies, aligner, (*idle, *more), left.recipe, left.left_out, left.cut, left.notes
    )


def plan_tensors(recipe: Recipe, its: Matched, known: dict[Any, Hashable] | None = None) -> list[TensorPlan]:
    """Return the plan of each tensor of the output, without a place in a file.

    its: of this recipe, or of one that differs from it in parameters only. known: as of copies.originals. Raises as make.
    """
    made = make(recipe, its).tensors
    same, transposed = masked_as(made, known=known), _transposed(made, its.layout, its.family)
    return [one.plan(recipe, masked_as=same[one.name], transposed=one.name in transposed) for one in made]


def make_plan(
    recipe: Recipe,
    n_process: int | None = 1,
    shard_bytes: int = 5_000_000_000,
    engine: Engine = NUMPY,
    ranks: int = 1,
    measure: bool = True,
) -> Plan:
    """Return the plan of a merge, made from the headers of its inputs.

    n_process: workers of each rank; None: as many as are worth while, engine.workers at most. shard_bytes: the largest size
    of an output file. engine: what computes. ranks: how many processes, of n_process workers each, share the plan.
    measure: whether to match experts, if the recipe asks for that, which reads their weights (matched.py).
    Raises CheckpointError listing everything in the inputs that doesn't fit; ConfigError for parameters that don't.
    """
    recipe = in_hf_layout(recipe)
    its = matched(recipe, measure)
    layout, config_source = its.layout, its.config_source
    found = make(recipe, its, _not_paddles(its.inputs, layout) if recipe.save_format == "pdparams" else ())
    made, inputs, vocabularies, aligner = found.tensors, found.inputs, found.vocabularies, found.aligner
    recipe = found.recipe
    unaligned = vocabularies.mismatched(recipe.taken) if aligner is None and recipe.mixture is None else ()
    idle = [*found.idle, *vocabularies.notes, *unaligned]
    pattern = recipe.slices[0].base or recipe.slices[0].inputs[0]
    transposed = _transposed(made, layout, its.family)
    stored, uneven = storage(recipe, made, inputs[pattern.number], layout, transposed)
    tensors, shards = lay_out(made, stored, inputs[pattern.number].format, shard_bytes, transposed)
    if n_process is None:
        n_process = suited(tensors, engine.workers, ranks)
    pieces = cut(tensors, n_process * ranks)
    folders = [(one.path, one.tokens_folder) for one in its.inputs]
    tokens = aligner.tokens if aligner is not None else None
    added = added_tokens(made, inputs, recipe.config_from) if aligner is None else None
    ours = tokens.source.folder if tokens else (added and added.folder) or config_source.folder
    template, doubts = chat.choose(recipe.chat_template, folders, ours)
    config, unsaid = output_config(config_source.config, recipe, tensors, inputs)
    if recipe.drop_layers and (wrong := wrong_kinds(config_source.config, config, recipe, tensors, inputs)):
        raise CheckpointError(wrong)
    doubts = [*doubts, *_nothing_kept(made), *unsaid, *roles.doubts(recipe, tensors), *uneven]
    other = recipe.tokenizer.source if recipe.tokenizer is not None else None
    further = [other] if isinstance(other, str) and other != "union" else []
    origins = provenance(its.opened, [*further, *([recipe.config_from] if recipe.config_from else [])])
    return Plan(
        recipe=recipe,
        inputs=inputs,
        config_source=config_source,
        tensors=tensors,
        shards=shards,
        pieces=pieces,
        n_process=max(1, min(n_process, len(pieces))),
        ranks=ranks,
        engine=engine,
        layout=layout,
        layout_notes=its.notes,
        experts=its.experts,
        left_out={**its.left_out, **found.left_out},
        cut=found.cut,
        smaller=found.smaller,
        tied=its.tied,
        folded=its.folded,
        warnings=(*idle, *its.warnings, *doubts, *warnings(inputs, config_source), *origins.warnings(tensors)),
        tokens=tokens,
        added=added,
        opened=its.opened,
        chat_template=template,
        tokens_known=vocabularies.counts(tokens),
        provenance=origins,
        storage=stored,
    )


def _aligner(recipe: Recipe | Stage, vocabularies: Vocabularies, layout: str | None, prefix: str) -> Aligner | None:
    """Return what aligns vocabularies as the recipe says; None if it doesn't. Raises CheckpointError if it must.

    prefix: which weights of a folder are merged.
    """
    if recipe.tokenizer is not None:
        wanted, said, donor = recipe.tokenizer, recipe.tokenizer.missing, None
        other = isinstance(wanted.source, str) and wanted.source != "union"
        if said is not None and said.method == "omp" and other:
            donor = open_donor(str(wanted.source), prefix)
        return Aligner(
            source=donor.folder if donor is not None else wanted.source,
            missing=Missing(said.method, said.k, said.pieces, donor) if said is not None else None,
            base=wanted.base,
            multiple=wanted.multiple,
            given=[Given(one.token, one.model, one.row, one.zeros, one.force) for one in wanted.rows],
            taken=recipe.taken,
            vocabularies=vocabularies,
            layout=layout,
        )
    if problems := vocabularies.realigned(recipe.taken):
        raise CheckpointError(problems)
    return None


def _differences(recipe: Recipe | Stage, inputs: Sequence[Checkpoint], aligner: Aligner | None) -> list[str]:
    """Return how the tensors of whole models, or modules, don't match. (assemble.py compares slices of layers one by
    one.)"""
    found, names = list[str](), names_of(recipe)
    aligned = aligner.has if aligner is not None else lambda name: False
    alone = isinstance(recipe, Recipe) and not recipe.stages and not names
    offered = ["out_dtype", "recipes", *(["missing_tensors"] if alone else [])]
    if not isinstance(recipe, Recipe) or recipe.missing_tensors == "error":
        offered.append("modules")  # which --missing_tensors doesn't go with (partial.py)
    for module, (part, *_) in parts(recipe):
        its = [modules.within(inputs[one.number].tensors, module, names) for one in part.everything]
        compared = [
            dataclasses.replace(inputs[one.number], tensors=tensors)
            for one, tensors in zip(part.everything, its, strict=True)
        ]
        if part.layers is None and (module is None or all(its)):
            found += differences(compared, recipe.out_dtype, aligned, offered, Partial(recipe).allowed)
    return found


def _nothing_kept(made: Sequence[AssembledTensor]) -> list[str]:
    """Return a sentence on the tensors of which the parameters keep nothing of any model."""
    emptied = [one for one in made if dict(one.values).get("density") in (0.0, (0.0,) * len(one.sources))]
    if not emptied:
        return []
    becomes = "the base's" if emptied[0].base is not None else "zeros"
    return [
        f"{tensors_named([one.name for one in emptied])}: density 0 keeps nothing of the models, so values are {becomes}"
    ]


def _transposed(made: Sequence[AssembledTensor], layout: str | None, family: Any) -> Set[str]:
    """Return the names of the matrices that are [in, out]. family: config.json's model_type."""
    return transposed_in({one.name: one.entries[-1] for one in made}, layout, family)


def _with_stages(recipe: Recipe, vocabularies: Vocabularies, layout: str | None, family: Any) -> list[str]:
    """Append the outputs of the recipe's earlier stages to the inputs; return a sentence on each filter that matches
    nothing, and on each input whose rows stand for other tokens than those that they are merged with.

    Their tensors are merged when they are read. Raises CheckpointError, ConfigError.
    """
    idle = list[str]()
    for stage in recipe.stages:
        found, aligner = vocabularies.inputs, _aligner(stage, vocabularies, layout, recipe.prefix)
        if problems := _differences(stage, found, aligner):
            raise CheckpointError(problems)
        idle += vocabularies.mismatched(stage.taken) if aligner is None else []
        made, more = assemble(stage, found, aligner)
        title = recipe.titles[len(found)]
        entries = _staged(made, stage, title, _transposed(made, layout, family))
        like = made[0].numbers[0]
        output = dataclasses.replace(found[like], path=title, tensors=entries)
        vocabularies.add(output, like, aligner.tokens.vocabulary if aligner is not None else None)
        idle += more
    return idle


def _staged(made: Sequence[AssembledTensor], stage: Stage, title: str, transposed: Set[str]) -> dict[str, TensorEntry]:
    """Return the tensors of an earlier merge.

    A tensor that is made of the same bytes as another, in the same way, is that very tensor, so that a tied lm_head
    stays the embedding; one that is made of equal values gets the same masks. transposed: names of matrices [in, out].
    """
    entries: dict[str, TensorEntry] = {}
    same = originals(made)
    for one in made:
        like = same[one.name]
        other = entries.get(like)
        made_of = tuple(entry.nameless for entry in other.made_of) if other is not None else ()
        if isinstance(other, StagedEntry) and (made_of, other.plan.resolved) == (one.made_of, one.resolved):
            entries[one.name] = other.renamed(one.name)
            continue
        plan = one.plan(stage, masked_as=like, transposed=one.name in transposed)
        entries[one.name] = StagedEntry(one.name, plan.dtype, plan.shape, plan, title)
    return entries


def _not_paddles(inputs: Sequence[Checkpoint], layout: str | None) -> list[str]:
    """Return why the merged model can't be saved in Paddle's files, which hold matrices [in, out]."""
    if layout == "hf":
        return [
            "--save_format pdparams is for Paddle, and the merged model would be in Hugging Face's layout: pass"
            " --output_layout paddlenlp or paddleformers too"
        ]
    torch = [checkpoint for checkpoint in inputs if checkpoint.kind == "bin" or checkpoint.format == "pt"]
    if layout is not None or not torch:
        return []
    matrices = [name for name, entry in torch[0].tensors.items() if len(entry.shape) == 2 and min(entry.shape) > 1]
    return [
        f"--save_format pdparams is for Paddle, and {torch[0].path} was saved by torch, which may store {name!r} transposed;"
        f" state its layout with --layout, one of {', '.join(LAYOUTS)} for each model and then for the base, and pass"
        " --output_layout paddlenlp or paddleformers too"
        for name in matrices[:1]
    ]
