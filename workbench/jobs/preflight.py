"""What is looked at before a launch: config, model files, template, folder, disk, GPUs, data.

Gives one check after the other, cheap ones first, and writes nothing. Invariant: when no check is
an error, the run folder can be written and a supervisor can be started.
"""

import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from workbench.config.checks import check_model, left_open, not_in_this_version
from workbench.config.load import ResolvedConfig, at_origins
from workbench.config.model_facts import ModelFacts, missing_weight_files, read_model_facts
from workbench.config.template_source import template_source
from workbench.control.address import check_length, new_address
from workbench.errors import WorkbenchError
from workbench.jobs import data_worker
from workbench.jobs.data_worker import Done, Finding, Progress
from workbench.runs.create import PlannedRun, plan_run
from workbench.runs.environment import list_gpus
from workbench.runs.registry import state_folder

CheckState = Literal["ok", "warning", "error"]

_BYTES = {"bfloat16": 2, "float32": 4}
# Factored statistics have a row and a column per matrix; tokenizer and state are small files.
_BESIDE_WEIGHTS = 1.05


@dataclass(frozen=True)
class Check:
    """What was looked at, and what was found.

    Attributes:
        name: one word: config, model, template, folder, socket (and the registry beside it), disk,
            device, data.
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
    resolved: ResolvedConfig, *, project: Path | None = None, starts: bool = True
) -> Iterator[Check | Progress]:
    """Check everything that can be known before a process starts.

    The data check reads and tokenizes every conversation in a worker, so it comes last, and only
    when what it needs is sound; meanwhile ``Progress`` says how far it is. Closing the iterator
    ends the worker.

    Args:
        resolved: the config.
        project: folder whose ``output`` holds the numbered runs.
        starts: False for a dry run, which may name an engine that is not built: a warning then.
    """
    num_errors = 0
    for check in _quick_checks(resolved, project, starts):
        num_errors += check.state == "error"
        yield check
    if num_errors == 0:
        yield from check_data(resolved)


def _quick_checks(resolved: ResolvedConfig, project: Path | None, starts: bool) -> Iterator[Check]:
    config = resolved.config
    problems = at_origins(list(left_open(config)), resolved)
    not_built = at_origins(list(not_in_this_version(config)), resolved)
    for problem in problems:
        yield Check("config", "error", f"{problem.where}: {problem.what}", problem.remedy)
    for problem in not_built:
        state: CheckState = "error" if starts else "warning"
        yield Check("config", state, f"{problem.where}: {problem.what}", problem.remedy)
    if not problems and not not_built:
        yield Check("config", "ok", f"{resolved.name}: {len(resolved.leaves)} keys, 0 errors")
    facts: ModelFacts | None = None
    if config.model.path is not None:
        yield from _check_model(resolved)
        try:
            facts = read_model_facts(config.model.path)
        except WorkbenchError:
            facts = None
    if facts is not None:
        yield from _check_template(resolved)
    planned: PlannedRun | None = None
    try:
        planned = plan_run(resolved, output_root(project))
    except WorkbenchError as error:
        yield _error("folder", error)
    else:
        yield Check("folder", "ok", _told(planned))
    try:
        state_folder()
        check_length(new_address())
    except WorkbenchError as error:
        yield Check("socket", "error", f"{error.where}: {error.what}", error.remedy)
    if planned is not None and facts is not None:
        yield from _check_disk(resolved, planned, facts)
    yield from _check_device(resolved)


def _check_model(resolved: ResolvedConfig) -> Iterator[Check]:
    config = resolved.config
    assert config.model.path is not None
    folder = Path(config.model.path)
    try:
        facts = read_model_facts(folder)
        problems = at_origins(list(check_model(config, facts)), resolved)
        missing = missing_weight_files(folder) if config.model.weights == "load" else []
    except WorkbenchError as error:
        yield _error("model", error)
        return
    for problem in problems:
        yield Check("model", "error", f"{problem.where}: {problem.what}", problem.remedy)
    if missing:
        yield Check(
            "model",
            "error",
            f"model folder {folder}: lacks weight files: {', '.join(missing)}",
            "download them (safetensors), or set model.weights: random",
        )
    if not (folder / "tokenizer.json").is_file():
        yield Check(
            "model",
            "error",
            f"model folder {folder}: has no tokenizer.json",
            "download the tokenizer's files into it",
        )
    elif not missing and not problems:
        weights = "random weights" if config.model.weights == "random" else "weights complete"
        millions = facts.num_parameters / 1e6
        yield Check(
            "model",
            "ok",
            f"{folder.name}: {facts.family}, {millions:,.1f} M parameters, {weights}",
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


def checkpoint_bytes(resolved: ResolvedConfig, facts: ModelFacts) -> int:
    """Estimate the bytes of one checkpoint on disk."""
    return int(facts.num_parameters * _BYTES[resolved.config.model.dtype] * _BESIDE_WEIGHTS)


def _check_disk(
    resolved: ResolvedConfig, planned: PlannedRun, facts: ModelFacts
) -> Iterator[Check]:
    checkpoints = resolved.config.checkpoints
    nearest = planned.folder.path
    while not nearest.exists():
        nearest = nearest.parent
    try:
        free = shutil.disk_usage(nearest).free
    except OSError as error:
        yield Check("disk", "warning", f"{nearest}: free space is not known: {error.strerror}")
        return
    one = checkpoint_bytes(resolved, facts)
    # What pruning spares, and the one that is written while they are all still there.
    num_kept = checkpoints.keep + 2
    if checkpoints.save_strategy == "no":
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


def _check_device(resolved: ResolvedConfig) -> Iterator[Check]:
    device = resolved.config.training.device
    if device == "cpu":
        yield Check("device", "ok", f"CPU, {len(os.sched_getaffinity(0))} cores")
        return
    gpus = list_gpus()
    if gpus:
        names = ", ".join(f"GPU {gpu['index']} {gpu['name']}" for gpu in gpus)
        yield Check("device", "ok", names)
    elif device == "cuda":
        yield Check(
            "device",
            "error",
            "training.device is cuda, and nvidia-smi finds no GPU",
            "install the driver, or set training.device: cpu",
        )
    else:
        yield Check("device", "ok", f"no GPU: CPU, {len(os.sched_getaffinity(0))} cores")


def check_data(resolved: ResolvedConfig) -> Iterator[Check | Progress]:
    """Let the data check's worker read every conversation; give its findings.

    What it prepares is kept, so that the ranks of the run begin with it.
    """
    done: Done | None = None
    num_errors = 0
    try:
        for record in data_worker.check(resolved):
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
        return
    if done is not None and done.num_hidden:
        yield Check(
            "data",
            "error" if num_errors else "warning",
            f"{done.num_errors + done.num_warnings:,} findings, the first of each kind shown",
            f"workbench data check -t {resolved.name} --all shows every one",
        )
    if done is not None and not num_errors:
        yield Check("data", "ok", counts_in_words(done))


def counts_in_words(done: Done) -> str:
    """Say what a data set comes to."""
    counts = done.counts
    assert counts is not None, "there is data where no finding is an error"
    return (
        f"{counts.train_conversations:,} conversations to train, "
        f"{counts.validation_conversations:,} to validate; {counts.train_rows:,} rows, "
        f"{counts.train_tokens:,} tokens, {counts.train_targets:,} of them targets; "
        f"{counts.steps_per_epoch:,} steps per epoch"
    )


def _error(name: str, error: WorkbenchError) -> Check:
    status = 2 if error.exit_status == 3 else error.exit_status
    return Check(name, "error", f"{error.where}: {error.what}", error.remedy, exit_status=status)
