"""Plan -> workers -> finished checkpoint."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import logging
import time
from collections.abc import Iterable
from typing import Any

from . import checks
from . import journal as journals
from .compare import differing
from .config import MergeConfig
from .crew import work
from .donor import given_config
from .errors import Attempts, CheckpointError, MergeError, OutputError, WorkError
from .inputs import open_inputs
from .journal import Journal, remaining, whole
from .lock import make_lock
from .parsing import parse_size
from .plan import Plan, make_plan
from .ranks import Ranks
from .readers import adapters, hub
from .recipe import Mix, Recipe
from .resolve import uniform
from .sidecars import CARD, LOCK, RECORD, read_sidecars, record
from .worker import Job, Report, notice
from .writer import Output, check_output, uninterrupted

log = logging.getLogger("paddle_merge")


def merge(config: MergeConfig, progress: bool | None = None, ranks: Ranks | None = None) -> str:
    """Merge as `config` says; return the output folder.

    progress: whether to show a progress bar; None: if standard error is a terminal.
    ranks: this process among several that all make this call with the same config, each to merge its share; None: it is
        alone.
    Raises MergeError (ConfigError, CheckpointError, OutputError, WorkError), each listing all problems found. A merge that
    fails or is interrupted, on any rank, leaves nothing that looks like a checkpoint.
    """
    ranks = ranks or Ranks(0, ["alone"])
    try:
        ranks.connect()
        _merge(config, progress, ranks)
    except BaseException as error:
        ranks.fail(error.problems if isinstance(error, MergeError) else ["it was interrupted"])
        raise
    finally:
        ranks.close()
    return config.output


def _merge(config: MergeConfig, progress: bool | None, ranks: Ranks) -> None:
    started = time.perf_counter()
    plan, sidecars, merge_record = prepare(config, ranks.count)
    leads = ranks.number == 0
    _agree(plan, ranks)
    if leads:
        for warning in [*checks.warnings(config), *plan.warnings]:
            log.warning("%s", warning)
        if config.dry_run:
            print(describe(plan, config, sidecars))
        else:
            log.info("%s", describe(plan, config, sidecars))
    if config.dry_run:
        return

    output = Output(config.output, plan)
    journal = Journal(output.folder, ranks.number, plan, output.partial_paths)
    try:
        done = _begin(config, plan, output, journal, ranks)
        output.wait_until_seen()
        left = dataclasses.replace(plan, pieces=remaining(plan, done))
        reports = done if leads else []
        for report in work(left, Job(plan.recipe.seed, output.partial_paths, plan.engine), progress, ranks):
            journal.add(report)
            reports.append(report)
        journal.close(stopped=False)
        if not leads:
            output.sync()
        everything = ranks.gather([dataclasses.asdict(report) for report in reports])
        if leads:
            reports = [Report.of(report) for part in everything for report in part]
            notice(reports, plan.tensors, plan.recipe.sources, config.strict)
            lock = make_lock(plan, reports, {**sidecars, RECORD: merge_record})
            output.finish({**sidecars, LOCK: lock.to_bytes()}, merge_record)
    except BaseException:
        with uninterrupted():
            journal.close(stopped=True)
            kept = output.abandon(leads and journals.read(output.folder) is not None)
        if kept:
            log.warning("what is done is kept in %s: the same command with --resume goes on from there", config.output)
        raise
    if not leads:
        ranks.gather(None)
        return
    with contextlib.suppress(WorkError):  # the checkpoint is whole, whatever happens to the others from here on
        ranks.gather(None)
    seconds = time.perf_counter() - started
    rate = (plan.bytes_in + plan.bytes_out) / seconds / 1e9
    log.info("merged into %s in %.1f s (%.2f GB/s read and written)", config.output, seconds, rate)
    device_memory = max((report.device_memory for report in reports), default=0)
    if device_memory:
        log.info("device memory: at most %.0f MB per worker", device_memory / 1e6)


def _begin(config: MergeConfig, plan: Plan, output: Output, journal: Journal, ranks: Ranks) -> list[Report]:
    """Make the output's files and this rank's journal; the pieces that a merge that was stopped has done."""
    leads, done = ranks.number == 0, []
    header = journals.describe(config, plan)
    if leads:
        stopped = journals.read(output.folder) if config.resume else None
        output.create(resume=stopped is not None)
        if stopped is not None:
            done = whole(stopped.reports, plan, output.partial_paths)
            share = sum(report.stop - report.start for report in done) / sum(tensor.size for tensor in plan.tensors)
            log.info("resume   %.0f %% of the output is there, and whole", 100 * share)
        journal.start(header, done)
        output.drop_journals(but=0)
    done = [Report.of(report) for report in ranks.gather([dataclasses.asdict(report) for report in done])[0]]
    if not leads:
        journal.start(header, [])
    return done


def _agree(plan: Plan, ranks: Ranks) -> None:
    """All ranks must have made the same plan. Raises WorkError on rank 0, from which the others hear it."""
    digest = hashlib.sha256(repr((plan.recipe, plan.shards, plan.pieces)).encode("utf-8", "surrogatepass"))
    for tensor in plan.tensors if ranks.count > 1 else ():
        digest.update(repr(tensor).encode("utf-8", "surrogatepass"))
    digests = ranks.gather(digest.hexdigest())
    others = [str(number) for number, other in enumerate(digests) if other != digests[0]]
    if others and ranks.number == 0:
        raise WorkError(
            f"rank {', '.join(others)} would merge something else than rank 0: give all ranks the same flags, and the same"
            " files under the same paths"
        )


def prepare(config: MergeConfig, ranks: int = 1) -> tuple[Plan, dict[str, bytes], bytes]:
    """The plan, shared by so many ranks, the files to write beside the weights, by name, and the content of
    merge_config.json. Touches nothing.

    Raises MergeError with the problems of flags, inputs and output together; of its kinds, the first met.
    """
    attempt = Attempts()
    specs = config.sources
    paths = [path for spec in specs for path in adapters.split(spec)]
    recipe = attempt(config.recipe)
    plan = sidecars = None
    if config.config_from:
        attempt(given_config, config.config_from)
    if recipe is None:
        # Nothing is downloaded for it.
        remote = {spec for spec in specs if hub.installed() and any(map(hub.is_name, adapters.split(spec)))}
        attempt(open_inputs, [spec for spec in specs if spec not in remote], config.merge_prefix)
    else:
        plan = attempt(make_plan, recipe, config.n_process, config.shard_bytes(), config.engine, ranks)
        if plan is not None and config.max_memory:
            plan = attempt(plan.within, parse_size(config.max_memory))
    if plan is not None:
        sidecars = attempt(read_sidecars, plan, config)
        attempt(_check_equal, plan)
        paths += sorted({file for tensor in plan.tensors for entry in tensor.inputs for file in entry.files})
    paths += [config.config_from] if config.config_from else []
    nbytes = plan.bytes_out if plan else 0
    stored = config.save_format, config.merge_prefix, nbytes
    problems = check_output(config.output, paths, *stored, (*(sidecars or ()), LOCK), config.overwrite)
    if problems:
        attempt.errors.append(OutputError(problems))
    attempt(_may_go_on, config, plan)
    attempt.finish()
    assert plan is not None
    assert sidecars is not None
    return plan, sidecars, record(config)


def _may_go_on(config: MergeConfig, plan: Plan | None) -> None:
    """Raises OutputError if a merge into the folder was stopped, and isn't dealt with."""
    stopped = journals.read(config.output)
    if stopped is None:
        return
    if not config.resume and not config.overwrite:
        raise OutputError(
            f"--output_path {config.output} holds an unfinished merge; --resume goes on with it, --overwrite begins again"
        )
    changed = journals.changes(stopped.header, journals.describe(config, plan)) if config.resume and plan else []
    if changed:
        raise OutputError(
            f"--resume can't go on with the merge in {config.output}: {'; '.join(changed)}; --overwrite without --resume"
            " begins again"
        )


def describe(plan: Plan, config: MergeConfig, sidecars: Iterable[str]) -> str:
    """The plan for people: a few lines."""
    recipe = plan.recipe
    merged = [tensor for tensor in plan.tensors if tensor.merged]
    dtypes = ", ".join(sorted({tensor.dtype.name for tensor in merged})) or "none"
    parameters = sum(tensor.size for tensor in merged)
    copied = len(plan.tensors) - len(merged)
    shards = f"{len(plan.shards)} file{'s' if len(plan.shards) > 1 else ''}"
    alone = len(recipe.models) == 1 and not recipe.base and recipe.title == "fold"
    mix = uniform(recipe)
    if mix is not None:
        weights = mix.merger.effective_weights(len(recipe.slices[0].inputs))
        shown = f"{recipe.title}: {_parameters(recipe, mix)}"
        paths = [recipe.sources[one.number] for one in recipe.slices[0].inputs]
        lines = ["method   fold the adapter into its base" if alone else f"method   {shown}"]
        lines += [f"model    {weight:<8.4g} x {path}" for weight, path in zip(weights, paths, strict=True)]
    else:
        lines = [f"method   {recipe.title}: parameters by layer or tensor", *(f"model    {path}" for path in recipe.models)]
    if not alone:
        lines.append(f"base     {recipe.base or 'none: the weights themselves are merged'}")
    lines += [f"adapter  {sentence}" for sentence in plan.folded]
    lines += [f"config   {plan.donor.note}"] if plan.donor.note else []
    lines += [f"layout   {sentence}" for sentence in plan.turned]
    lines.append(
        f"tensors  {len(merged)} merged ({parameters / 1e6:,.1f} M parameters, {dtypes})"
        + (f", {copied} copied (integers, equal in all models)" if copied else "")
    )
    lines.append(
        f"input    {plan.bytes_in / 1e9:.2f} GB{', each tensor measured before it is merged' if plan.measures else ''}"
    )
    lines.append(f"output   {config.output}: {plan.bytes_out / 1e9:.2f} GB in {shards}")
    names = ", ".join(name for name in sidecars if name != CARD)
    lines.append(f"copied   {names or 'nothing'} from {plan.donor.folder}")
    if plan.engine.tensor_type == "pd":
        budget = f", in at most {config.max_tensor_mem:g} GiB of it" if plan.engine.budgeted else ""
        lines.append(f"engine   Paddle on {plan.engine.device}{budget}")
    fewer = f" of {config.n_process}, for --max_memory" if config.max_memory and plan.n_process < config.n_process else ""
    lines.append(f"workers  {plan.n_process}{fewer}, together at most about {plan.memory / 1e6:.0f} MB of memory")
    return "\n".join(lines)


def _parameters(recipe: Recipe, mix: Mix) -> str:
    shown: dict[str, Any] = {}
    for part in (mix.sparsifier, mix.merger):
        if part is not None:
            shown |= {name: value for name, value in vars(part).items() if name != "weights"}
    if recipe.base is not None:
        shown["scale"] = mix.scale
    if mix.sparsifier is not None and mix.sparsifier.random:
        shown["seed"] = recipe.seed
    return ", ".join(f"{name} {value}" for name, value in shown.items()) or "no parameters"


def _check_equal(plan: Plan) -> None:
    """Integers and booleans can't be averaged: they must be the same in all inputs. Raises CheckpointError."""
    problems = []
    for tensor in plan.tensors:
        if not tensor.merged and (unequal := differing(tensor.inputs)):
            problems.append(
                f"tensor {tensor.name!r} is {tensor.dtype.name}, which can't be averaged, and differs between"
                f" {tensor.inputs[0].file} and {', '.join(sorted({entry.file for entry in unequal}))}; remove it from the"
                " checkpoints, or make it equal"
            )
    if problems:
        raise CheckpointError(problems)
