"""What is looked at before a launch: config, model, folder, disk, GPUs, memory, data, time.

Gives one check after the other, cheap ones first, and writes nothing. Invariant: when no check is
an error, the run folder can be written and a supervisor can be started.
"""

import importlib.util
import os
import shutil
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from workbench.config import memory_fit
from workbench.config.checks import check_model, left_open, not_in_this_version
from workbench.config.end_ids import stated_end_ids
from workbench.config.hub_id import model_name
from workbench.config.inherit import is_file
from workbench.config.load import ResolvedConfig, at_origins
from workbench.config.memory_fit import Machine, is_row_certain
from workbench.config.memory_parts import GIB
from workbench.config.memory_plan import (
    bytes_of_a_checkpoint,
    checkpoints_at_once,
    gib_enough,
    host_words,
    lacks_host_memory,
    needed_budget,
    total_words,
)
from workbench.config.model_facts import (
    ModelFacts,
    read_model_facts,
)
from workbench.config.problems import Problem
from workbench.config.schema.config import Config
from workbench.config.template_source import template_source
from workbench.config.weight_files import (
    check_whole,
    find_weight_files,
    missing_weight_files,
)
from workbench.control.address import check_length, new_address
from workbench.errors import WorkbenchError
from workbench.jobs import data_worker
from workbench.jobs.data_worker import Done, Finding, Progress
from workbench.jobs.fit import (
    counts_for_plan,
    estimate_of_start,
    machine_here,
    machine_of,
    num_ranks,
    shapes_of,
    usable_gpus,
)
from workbench.jobs.forecast_words import memory_remedy, time_words
from workbench.jobs.start_point import StartPoint, start_point, start_words
from workbench.runs.create import PlannedRun, plan_run
from workbench.runs.registry import state_folder

CheckState = Literal["ok", "warning", "error"]


@dataclass(frozen=True)
class Check:
    """What was looked at, and what was found.

    Attributes:
        name: one word: config, model, template, folder, start (where it goes on from), socket (and
            the registry beside it), disk, device, memory, data, time.
        state: error keeps a run from starting.
        message: what was found; for a mistake it begins with where.
        remedy: what to do, "" where there is nothing to do.
        exit_status: of a command that ends because of an error: 2 a mistake, 4 refused or no room.
    """

    name: str
    state: CheckState
    message: str
    remedy: str = ""
    exit_status: int = 2

    def __str__(self) -> str:
        return f"{self.message}; {self.remedy}" if self.remedy else self.message


def output_root(project: Path | None) -> Path:
    """Say where numbered run folders are made: ``output`` of the project, else of this folder."""
    return (project if project is not None else Path.cwd()).absolute() / "output"


def preflight(
    resolved: ResolvedConfig,
    *,
    project: Path | None = None,
    devices: str | None = None,
    starts: bool = True,
) -> Iterator[Check | Progress]:
    """Check everything that can be known before a process starts.

    The data check reads and tokenizes every conversation in a worker, so it comes last, and only
    when what it needs is sound; meanwhile ``Progress`` says how far it is. Closing the iterator
    ends the worker.

    Args:
        resolved: the config.
        project: folder whose ``output`` holds the numbered runs.
        devices: GPUs as the user names them; None: all.
        starts: False for a dry run, which may name an engine that is not built: a warning then.
    """
    errors: set[str] = set()
    for check in _quick_checks(resolved, project, devices, starts):
        if check.state == "error":
            errors.add(check.name)
        yield check
    counts: memory_fit.Counts | None = None
    if not errors:
        done = yield from check_data(resolved)
        if done is not None:
            yield from check_memory_again(resolved, project, done, devices, starts=starts)
            counts = counts_for_plan(done.counts)
    # A model that is only named has no folder, and yet a forecast.
    if not errors - {"model"}:
        yield from check_time(resolved, project, counts, devices, starts=starts)


def _quick_checks(
    resolved: ResolvedConfig, project: Path | None, devices: str | None, starts: bool
) -> Iterator[Check]:
    config = resolved.config
    problems = at_origins(list(left_open(config)), resolved)
    not_built = at_origins(list(not_in_this_version(config)), resolved)
    for problem in problems:
        yield Check("config", "error", f"{problem.where}: {problem.what}", problem.remedy)
    not_here = at_origins(list(_missing_packages(config)), resolved)
    for problem in [*not_built, *not_here]:
        state: CheckState = "error" if starts else "warning"
        yield Check("config", state, f"{problem.where}: {problem.what}", problem.remedy)
    if not problems and not not_built and not not_here:
        yield Check("config", "ok", f"{resolved.name}: {len(resolved.leaves)} keys, 0 errors")
    planned, trouble = _planned(resolved, project)
    point, lost = _point(config, planned)
    if config.model.path is not None:
        yield from _check_model(resolved, resumes=point.checkpoint is not None)
    shapes = shapes_of(resolved)
    facts = None if shapes is None else shapes.facts
    if shapes is not None and not shapes.is_published:
        yield from _check_template(resolved)
    if trouble is not None:
        yield trouble
    elif planned is not None:
        yield Check("folder", "ok", _told(planned))
        if lost is not None:
            yield lost
        elif point.checkpoint is not None or planned.attempt > 1:
            yield Check("start", "ok", f"begins {start_words(point, config)}")
    try:
        state_folder()
        check_length(new_address())
    except WorkbenchError as error:
        yield Check("socket", "error", f"{error.where}: {error.what}", error.remedy)
    if planned is not None and facts is not None:
        yield from _check_disk(resolved, planned, facts)
    try:
        gpus = usable_gpus(devices)[: num_ranks(config)]
    except WorkbenchError as error:
        yield _error("device", error)
        return
    yield _check_device(config, gpus, devices)
    attention, device = config.model.attention, config.training.device
    if attention in ("varlen", "flex") and (device == "cpu" or not gpus):
        problem = Problem(
            key="model.attention",
            what=f"{attention} attention does not train on a CPU",
            remedy="set model.attention: auto",
        )
        (problem,) = at_origins([problem], resolved)
        # A dry run may be meant for a machine with a GPU.
        bad: CheckState = "error" if starts or device == "cpu" else "warning"
        yield Check("config", bad, f"{problem.where}: {problem.what}", problem.remedy)
    if facts is not None:
        machine = machine_of(gpus)
        yield from check_memory(resolved, facts, project, machine=machine, starts=starts)


def _planned(
    resolved: ResolvedConfig, project: Path | None
) -> tuple[PlannedRun | None, Check | None]:
    """Say where a start goes, or why nowhere."""
    try:
        return plan_run(resolved, output_root(project)), None
    except WorkbenchError as error:
        return None, _error("folder", error)


def _point(config: Config, planned: PlannedRun | None) -> tuple[StartPoint, Check | None]:
    """Say where a start begins, or why that cannot be."""
    at_first = StartPoint(None, 0, is_own=False)
    if planned is None:
        return at_first, None
    try:
        return start_point(config, planned), None
    except WorkbenchError as error:
        return at_first, _error("start", error)


def _missing_packages(config: Config) -> Iterator[Problem]:
    """Give the keys that need a package which is not installed beside this program.

    Ranks are started with this very interpreter; nothing is imported to find out.
    """
    name = config.optimizer.name
    if name in ("adamw_8bit", "adamw_4bit") and importlib.util.find_spec("torchao") is None:
        yield Problem(
            key="optimizer.name",
            what=f"{name} needs the package torchao, which is not installed here",
            remedy="install it: python -m pip install torchao; or set optimizer.name: adamw",
        )


def _check_model(resolved: ResolvedConfig, *, resumes: bool) -> Iterator[Check]:
    config = resolved.config
    assert config.model.path is not None
    folder = Path(config.model.path)
    try:
        facts = read_model_facts(folder)
        problems = at_origins(list(check_model(config, facts)), resolved)
        # What goes on from a checkpoint reads no weights here.
        reads_weights = config.model.weights == "load" and not resumes
        missing = missing_weight_files(folder) if reads_weights else []
        stated_end_ids(folder)
        if reads_weights and not missing and not is_file(folder):
            check_whole(find_weight_files(folder).files)
    except WorkbenchError as error:
        yield _error("model", error)
        return
    for problem in problems:
        yield Check("model", "error", f"{problem.where}: {problem.what}", problem.remedy)
    if is_file(folder):
        yield Check(
            "model",
            "error",
            f"model {folder}: is a file, which is enough for an estimate alone",
            "give the folder of a model in Hugging Face layout: --model PATH",
        )
        return
    if missing:
        yield Check(
            "model",
            "error",
            f"model folder {folder}: lacks weight files: {', '.join(missing)}",
            "download them, or set model.weights: random",
        )
    if not (folder / "tokenizer.json").is_file():
        has_older = (folder / "tokenizer.model").is_file()
        beside = "; its tokenizer.model alone is not read" if has_older else ""
        yield Check(
            "model",
            "error",
            f"model folder {folder}: has no tokenizer.json{beside}",
            "download the tokenizer's files into it"
            + (", or write it once with transformers' save_pretrained" if has_older else ""),
        )
    elif not missing and not problems:
        weights = "random weights" if config.model.weights == "random" else "weights complete"
        if resumes:
            weights = "weights come from the checkpoint"
        millions = facts.num_parameters / 1e6
        yield Check(
            "model",
            "ok",
            f"{model_name(folder)}: {facts.family}, {millions:,.1f} M parameters, {weights}",
        )


def _check_template(resolved: ResolvedConfig) -> Iterator[Check]:
    config = resolved.config
    assert config.model.path is not None
    try:
        template_source(config.data.chat_template, Path(config.model.path))
    except WorkbenchError as error:
        yield _error("template", error)
    else:
        yield Check("template", "ok", f"template {Path(config.data.chat_template).stem}")


def _told(planned: PlannedRun) -> str:
    if planned.is_new:
        return f"new run in {planned.folder.path}"
    changed = f", changed: {', '.join(planned.changed)}" if planned.changed else ""
    return f"attempt {planned.attempt} of the run in {planned.folder.path}{changed}"


def _check_disk(
    resolved: ResolvedConfig, planned: PlannedRun, facts: ModelFacts
) -> Iterator[Check]:
    nearest = planned.folder.path
    while not nearest.exists():
        nearest = nearest.parent
    try:
        free = shutil.disk_usage(nearest).free
    except OSError as error:
        yield Check("disk", "warning", f"{nearest}: free space is not known: {error.strerror}")
        return
    one = bytes_of_a_checkpoint(resolved.config, facts)
    num_kept = checkpoints_at_once(resolved.config)
    if num_kept == 0:
        yield Check("disk", "ok", f"{_size(free)} free, nothing is saved unasked")
    elif free < one:
        yield Check(
            "disk",
            "error",
            f"{nearest}: a checkpoint needs {_size(one)}, {_size(free)} are free",
            "free space, or name another folder: --output-dir DIR",
            exit_status=4,
        )
    elif free < one * num_kept:
        yield Check(
            "disk",
            "warning",
            f"{nearest}: {num_kept} checkpoints need {_size(one * num_kept)}, "
            f"{_size(free)} are free",
            "free space, or lower checkpoints.keep",
        )
    else:
        yield Check("disk", "ok", f"{_size(free)} free, the plan needs {_size(one * num_kept)}")


def _size(num_bytes: int) -> str:
    """Say a size in a unit in which it does not look like nothing."""
    gib = num_bytes / 2**30
    return f"{gib:,.1f} GiB" if gib >= 1 else f"{gib * 1024:,.1f} MiB"


def _check_device(
    config: Config, gpus: Sequence[Mapping[str, object]], devices: str | None
) -> Check:
    """Judge the device that is to train, by the GPUs that ranks would get."""
    device, cores = config.training.device, len(os.sched_getaffinity(0))
    if device == "cpu":
        return Check("device", "ok", f"CPU, {cores} cores")
    if gpus:
        names = ", ".join(f"GPU {gpu['index']} {gpu['name']}" for gpu in gpus)
        return Check("device", "ok", names)
    if device == "cuda":
        return Check(
            "device",
            "error",
            "training.device is cuda, and nvidia-smi finds no GPU",
            "install the driver, or set training.device: cpu",
        )
    if devices is not None:
        what = f"-d/--devices: names {devices}, and nvidia-smi finds no GPU: the CPU would train"
        return Check("device", "warning", what, "leave it out, or install the driver")
    return Check("device", "ok", f"no GPU: CPU, {cores} cores")


def check_memory(
    resolved: ResolvedConfig,
    facts: ModelFacts,
    project: Path | None,
    counts: memory_fit.Counts | None = None,
    *,
    machine: Machine,
    starts: bool = True,
) -> Iterator[Check]:
    """Hold what a step takes against the budget, the free GPU, or the host where the CPU trains.

    A plan takes what is free where a budget names more, as a screen or another job holds the rest.
    Where rows may be shorter than ``data.max_length`` and their lengths are not known yet, too
    much is a warning: ``check_memory_again`` decides once the data is prepared.
    """
    found = estimate_of_start(
        resolved, facts, output_root(project), counts, machine=machine, starts=starts
    )
    kind = "GPU memory" if found.fit.is_gpu else "host memory"
    told = f"{kind} {total_words(found)}, peak in: {found.fit.worst.peak_phase}"
    shapes = shapes_of(resolved)
    if shapes is not None and shapes.is_published:
        told += f"; by the published shapes of {shapes.name}, whose folder is not here"
    needed = needed_budget(found)
    if needed is not None:
        told += f"; the smallest budget for these settings is {gib_enough(needed)} GiB"
    if found.fit.is_gpu and found.fit.worst.host.pinned and not lacks_host_memory(found):
        told += f"; host memory {_size(found.fit.host_needed)}"
        if found.fit.host_available is not None and machine.is_meant:
            told += f" of {_size(found.fit.host_available)}"
    remedy = memory_remedy(found, resolved)
    if lacks_host_memory(found):
        told += (
            f"; it needs {_size(found.fit.host_needed)} of host memory and may take "
            f"{_size(found.fit.host_room or 0)} of the {_size(found.fit.host_available or 0)} that "
            f"can be had (GiB: {host_words(found.fit.worst.host)})"
        )
        remedy = f"end what else takes host memory, or {remedy}"
    free, stated = machine.gpu_free_bytes, resolved.config.memory.budget_gib
    if not found.fit.is_gpu and stated is not None:
        told += f"; memory.budget_gib: {stated:g}, the budget of a GPU, does not count"
    if found.fit.is_gpu and free is not None and stated is not None and free < stated * GIB:
        told += f"; the GPU has {_size(free)} free, less than memory.budget_gib: {stated:g}"
        remedy = f"free the GPU, or choose another: -d; or {remedy}"
    if found.verdict == "will_not_fit":
        state: CheckState = "error" if found.row_is_certain else "warning"
        if not found.row_is_certain:
            told += f", if a row is {resolved.config.data.max_length:,} tokens long"
        yield Check("memory", state, told, remedy, exit_status=4)
    elif found.verdict == "tight":
        yield Check("memory", "warning", told, remedy)
    else:
        yield Check("memory", "ok", told)


def check_memory_again(
    resolved: ResolvedConfig,
    project: Path | None,
    done: Done,
    devices: str | None = None,
    *,
    starts: bool = True,
) -> Iterator[Check]:
    """Decide by the longest row of the data what could not be decided without it."""
    counts = counts_for_plan(done.counts)
    if is_row_certain(resolved.config) or counts is None or resolved.config.model.path is None:
        return
    facts = read_model_facts(resolved.config.model.path)
    # Preparing may have taken minutes: what is free is looked at anew.
    machine = machine_here(devices, num_ranks(resolved.config))
    for check in check_memory(resolved, facts, project, counts, machine=machine, starts=starts):
        if check.state == "error" or counts.longest_row < resolved.config.data.max_length:
            yield check


def check_time(
    resolved: ResolvedConfig,
    project: Path | None,
    counts: memory_fit.Counts | None,
    devices: str | None = None,
    *,
    starts: bool = True,
) -> Iterator[Check]:
    """Say how long the run takes, with what happens between its steps; this is never a mistake."""
    shapes = shapes_of(resolved)
    if shapes is None:
        return
    try:
        planned = plan_run(resolved, output_root(project))
        first_step = start_point(resolved.config, planned).step
        machine = machine_here(devices, num_ranks(resolved.config))
        found = estimate_of_start(
            resolved,
            shapes.facts,
            output_root(project),
            counts,
            machine=machine,
            starts=starts,
            first_step=first_step,
        )
    except WorkbenchError:  # the checks before this one have told it
        return
    if found.verdict == "will_not_fit":
        return
    yield Check("time", "ok", time_words(found))


def check_data(
    resolved: ResolvedConfig,
) -> Generator[Check | Progress, None, Done | None]:
    """Let the data check's worker read every conversation; give its findings.

    What it prepares is kept, so that the ranks of the run begin with it.

    Returns:
        What the data comes to; None where it cannot be trained on.
    """
    done: Done | None = None
    num_errors = 0
    try:
        for record in data_worker.check(resolved, is_brief=True):
            match record:
                case Progress():
                    yield record
                case Finding(severity=severity, where=where, what=what, remedy=remedy):
                    num_errors += severity == "error"
                    yield Check("data", severity, f"{where}: {what}", remedy)
                case Done():
                    done = record
    except WorkbenchError as error:
        yield _error("data", error)
        return None
    if done is not None and done.num_hidden:
        yield Check(
            "data",
            "error" if num_errors else "warning",
            f"{done.num_errors + done.num_warnings:,} findings, the first of each kind shown",
            f"workbench data check -t {resolved.name} --all shows every one",
        )
    if done is None or num_errors:
        return None
    yield Check("data", "ok", counts_in_words(done))
    return done


def counts_in_words(done: Done) -> str:
    """Say what a data set comes to."""
    counts = done.counts
    assert counts is not None, "there is data where no finding is an error"
    return (
        f"{_number_of(counts.train_conversations, 'conversation')} to train, "
        f"{counts.validation_conversations:,} to validate, {counts.test_conversations:,} left for "
        f"tests; {_number_of(counts.train_rows, 'row')}, "
        f"{_number_of(counts.train_tokens, 'token')}, {counts.train_targets:,} of them targets; "
        f"{_number_of(counts.steps_per_epoch, 'step')} per epoch"
    )


def _number_of(number: int, noun: str) -> str:
    return f"{number:,} {noun}" + ("" if number == 1 else "s")


def _error(name: str, error: WorkbenchError) -> Check:
    status = 2 if error.exit_status == 3 else error.exit_status
    return Check(name, "error", f"{error.where}: {error.what}", error.remedy, exit_status=status)
