"""Carry out a merge from the request to the finished checkpoint.

Before: recipe/request.py makes a Request of flags and recipe. Here: the plan is made (plan/planner.py) and printed
(announce.py), the output's files are created (output/writer.py), workers merge the plan's pieces (pool.py), and the
files get their final names. After: worker_process.py receives pieces, and worker.py merges one; pipeline.py merges it
block by block.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import logging
import time
from collections.abc import Sequence

from ..checkpoints import adapters, hub
from ..checkpoints.compare import differing
from ..checkpoints.formats.header import Held
from ..checkpoints.tensors import stored
from ..conversion.inputs import open_inputs
from ..errors import Attempts, CheckpointError, MergeError, OutputError, WorkError
from ..parsing import size_text, tensors_named
from ..plan import memory_estimate
from ..plan.config_source import given_config
from ..plan.expert_alignment import MATCH
from ..plan.file_names import LOCK, RECORD
from ..plan.plan import Plan
from ..plan.planner import make_plan
from ..recipe.config import MergeConfig
from ..recipe.request import Request
from . import sparse_changes, unlike_routers
from .announce import announce
from .gates import check_gates, with_gates
from .job import Job, Report, notice
from .output import journal as journals
from .output.account_file import check_account, refused
from .output.destination import check_output, shortage
from .output.flock import is_held, refusal
from .output.journal import Journal, remaining, whole
from .output.last_look import look
from .output.leftovers import is_unfinished
from .output.lock import make_lock
from .output.sidecars import read_sidecars, record
from .output.signals import uninterrupted
from .output.writer import Output
from .pool import work
from .ranks import Ranks

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
        request = Request.of(config)
        _merge(request, progress, ranks)
    except BaseException as error:
        ranks.fail(error.problems if isinstance(error, MergeError) else ["it was interrupted"])
        raise
    finally:
        ranks.close()
    return request.output


def _merge(request: Request, progress: bool | None, ranks: Ranks) -> None:
    started = time.perf_counter()
    try:
        plan, sidecars, merge_record = prepare(request, ranks.count)
    except MergeError as error:
        if request.account and ranks.number == 0:
            refused(request, error.problems)
        raise
    leads = ranks.number == 0
    _agree(plan, ranks)
    if leads:
        for warning in [*request.warnings, *plan.warnings, *sparse_changes.warnings(plan), *unlike_routers.warnings(plan)]:
            log.warning("%s", warning)
        announce(plan, request, sidecars, time.perf_counter() - started)
    if request.dry_run:
        _check_disk(request, plan)
        return

    plan = with_gates(plan, ranks)
    output = Output(request.output, plan)
    journal = Journal(output.folder, ranks.number, plan, output.partial_paths)
    try:
        done = _begin(request, plan, output, journal, ranks)
        output.wait_until_seen()
        left = dataclasses.replace(plan, pieces=remaining(plan, done))
        reports = done if leads else []
        for report in work(left, Job(output.partial_paths, plan.engine), progress, ranks, output.lock):
            journal.add(report)
            reports.append(report)
        journal.close(stopped=False)
        if not leads:
            output.sync()
        others = ranks.gather([] if leads else [report._asdict() for report in reports])
        if leads:
            reports += [Report.of(report) for part in others for report in part]
            notice(reports, plan.tensors, plan.recipe.titles, request.strict)
            look(_held(plan, output.partial_paths), plan.save_format, paddle=plan.engine.tensor_type == "pd")
            lock = make_lock(plan, reports, {**sidecars, RECORD: merge_record})
            output.finish({**sidecars, LOCK: lock.to_bytes()}, merge_record)
    except BaseException:
        with uninterrupted():
            journal.close(stopped=True)
            kept = output.abandon(leads and journals.read(output.folder) is not None)
        if kept:
            log.warning("the completed part is kept in %s: run the same command with --resume to continue", request.output)
        raise
    if not leads:
        ranks.gather(None)
        return
    # The checkpoint is complete, whatever happens to the other ranks from here on.
    with contextlib.suppress(WorkError, KeyboardInterrupt):
        ranks.gather(None)
    seconds = time.perf_counter() - started
    rate = size_text((plan.bytes_in + plan.bytes_out) / seconds)
    log.info("merged into %s in %.1f s (%s/s read and written)", request.output, seconds, rate)
    device_memory = max((report.device_memory for report in reports), default=0)
    if device_memory:
        log.info("device memory: at most %s per worker", size_text(device_memory))


def _held(plan: Plan, paths: Sequence[str]) -> dict[str, list[Held]]:
    """Return the tensors of each shard by its path. paths: in the order of Plan.shards."""
    found = {path: list[Held]() for path in paths}
    for tensor in plan.tensors:
        found[paths[tensor.shard]] += tensor.stored
    return found


def _begin(request: Request, plan: Plan, output: Output, journal: Journal, ranks: Ranks) -> list[Report]:
    """Create the output's files and this rank's journal; return the reports of what an interrupted merge has completed."""
    leads, done = ranks.number == 0, []
    header = journals.describe(request, plan)
    if leads:
        stopped = journals.read(output.folder) if request.resume else None
        output.create(resume=stopped is not None)
        if stopped is not None:
            done = whole(stopped.reports, plan, output.partial_paths)
            share = sum(report.stop - report.start for report in done) / sum(tensor.size for tensor in plan.tensors)
            log.info("resume   %.0f %% of the output is already complete", 100 * share)
        journal.start(header, done)
        output.drop_journals(but=0)
    done = [Report.of(report) for report in ranks.gather([report._asdict() for report in done])[0]]
    if not leads:
        journal.start(header, [])
    return done


def _agree(plan: Plan, ranks: Ranks) -> None:
    """Check that all ranks have made the same plan. Raises WorkError on rank 0, which passes it on to the others."""
    if ranks.count == 1:
        return
    digest = hashlib.sha256(repr((plan.recipe, plan.shards, plan.pieces)).encode("utf-8", "surrogatepass"))
    for tensor in plan.tensors:
        digest.update(repr(tensor).encode("utf-8", "surrogatepass"))
    digests = ranks.gather(digest.hexdigest())
    others = [str(number) for number, other in enumerate(digests) if other != digests[0]]
    if others and ranks.number == 0:
        raise WorkError(
            f"rank {', '.join(others)} would merge something else than rank 0: give all ranks the same flags, and the same"
            " files under the same paths"
        )


def prepare(request: Request, ranks: int = 1) -> tuple[Plan, dict[str, bytes], bytes]:
    """Return the plan, the files to write beside the weights, by name, and the content of merge_config.json.

    ranks: how many share the plan. Writes nothing. Raises MergeError with the problems of flags, inputs and output together;
    its class is that of the first problem.

    Where experts are to be matched, all is checked before their weights are read, and a dry run reads none.
    """
    if request.recipe is None or request.recipe.expert_alignment != MATCH:
        return _prepared(request, ranks)
    found = _prepared(request, ranks, measure=False)
    return found if request.dry_run else _prepared(request, ranks)


def _prepared(request: Request, ranks: int, measure: bool = True) -> tuple[Plan, dict[str, bytes], bytes]:
    """Return what `prepare` does. measure: as of make_plan; an interrupted merge is only compared with what is measured."""
    attempt = Attempts()
    specs = request.sources
    paths = [path for spec in specs for path in adapters.split_spec(spec)]
    recipe = attempt(request.checked_recipe)
    plan = sidecars = None
    if request.config_from:
        attempt(given_config, request.config_from)
    if recipe is None:
        # Nothing is downloaded for a merge that can't be done.
        remote = {spec for spec in specs if hub.installed() and any(map(hub.is_name, adapters.split_spec(spec)))}
        attempt(open_inputs, [spec for spec in specs if spec not in remote], request.prefix)
    else:
        plan = attempt(
            make_plan,
            recipe,
            n_process=request.n_process,
            shard_bytes=request.shard_bytes,
            engine=request.engine,
            ranks=ranks,
            measure=measure,
        )
    if plan is not None:
        sidecars = attempt(read_sidecars, plan, request)
        beside = sum(map(len, (sidecars or {}).values()))
        if request.max_memory:
            plan = attempt(memory_estimate.within, plan, request.max_memory, beside) or plan
        elif request.n_process is None:
            plan = memory_estimate.fitting(plan, beside)
        attempt(_check_equal, plan)
        attempt(check_gates, plan)
        paths += plan.files
    paths += [request.config_from] if request.config_from else []
    paths += [plan.tokens.source.folder] if plan is not None and plan.tokens is not None else []
    names = *(sidecars or ()), LOCK
    output, overwrite = request.output, request.overwrite
    problems = check_output(output, paths, request.save_format, request.prefix, names, overwrite, request.resume)
    if problems:
        attempt.errors.append(OutputError(problems))
    attempt(_may_go_on, request, plan if measure else None)
    attempt(check_account, request, paths)
    if not request.dry_run or attempt.errors:  # else _merge raises it when the plan is printed
        attempt(_check_disk, request, plan)
    attempt.finish()
    assert plan is not None
    assert sidecars is not None
    return plan, sidecars, record(request, plan)


def _check_disk(request: Request, plan: Plan | None) -> None:
    """Raise OutputError if the output's disk is too small for the plan."""
    if short := shortage(request.output, request.prefix, plan.bytes_out if plan else 0):
        raise OutputError(short)


def _may_go_on(request: Request, plan: Plan | None) -> None:
    """Check for an interrupted merge in the output folder. Raises OutputError if the request can't go on with it or
    begin again."""
    stopped = journals.read(request.output)
    if stopped is None:
        return
    if is_held(request.output):
        raise OutputError(refusal(request.output))
    if not is_unfinished(request.output):  # it was killed when it stood
        return
    if not request.resume and not request.overwrite:
        raise OutputError(
            f"--output_path {request.output} holds an unfinished merge; --resume continues it, --overwrite starts again"
        )
    changed = journals.changes(stopped.header, journals.describe(request, plan)) if request.resume and plan else []
    if changed:
        raise OutputError(
            f"--resume can't continue the merge in {request.output}: {'; '.join(changed)}; --overwrite without --resume"
            " starts again"
        )


def _check_equal(plan: Plan) -> None:
    """Check that integers and booleans, which can't be averaged, are the same in all inputs. Raises CheckpointError."""
    found: dict[tuple[str, str, str], list[str]] = {}
    for tensor in plan.tensors:
        if not tensor.merged and (unequal := differing(tensor.inputs)):
            others = ", ".join(sorted({stored(entry).file for entry in unequal}))
            found.setdefault((tensor.dtype.name, stored(tensor.inputs[0]).file, others), []).append(tensor.name)
    problems = []
    for (dtype, first, others), names in found.items():
        one = len(names) == 1
        problems.append(
            f"{tensors_named(names)} {'is' if one else 'are'} {dtype}, which can't be averaged, and"
            f" {'differs' if one else 'differ'} between {first} and {others}; remove {'it' if one else 'them'} from the"
            f" checkpoints, or make {'it' if one else 'them'} equal"
        )
    if problems:
        raise CheckpointError(problems)
