"""``workbench train``: preflight, start, follow; or print the command and start nothing."""

import argparse
import asyncio

from workbench.cli import output
from workbench.cli.config_arguments import (
    ConfigArguments,
    project_folder,
    read_config_arguments,
)
from workbench.cli.estimate import dry_run_lines
from workbench.cli.follow import follow, passed
from workbench.cli.narration import ending_lines
from workbench.jobs.launch import dry_run, launch
from workbench.jobs.torchrun_command import read_extra, visible_devices


def run(arguments: list[str]) -> int:
    """Start a run and follow it; Ctrl-C stops it, twice aborts it."""
    read = read_config_arguments(
        arguments,
        verb="train",
        summary="Start a run and follow it. Ctrl-C stops it and saves; twice aborts it.",
        add_options=_add_options,
        takes_torchrun=True,
        examples=(
            ("train -t demo --max-steps 10 --save-strategy no", "ten steps, nothing kept"),
            ("train -t 1gpu_llama_7b/default -M ~/models/mistral_7b -C chatml", "on a model"),
            ("train -t demo optimizer.learning_rate=1e-4 --dry-run", "the command; no start"),
            ("train -t demo --help", "the flags that this config offers"),
        ),
    )
    options = read_options(read)
    if status := passed(read.resolved, options):
        return status
    if options.dry_run:
        for line in dry_run_lines(read.resolved, options.project, options.devices):
            output.narrate(line)
        folder, command, was_written = dry_run(
            read.resolved,
            project=options.project,
            devices=options.devices,
            torchrun_arguments=read.torchrun_arguments,
        )
        nothing = "nothing was started" if was_written else "nothing was started or written"
        output.narrate(f"{nothing}; the run folder is {folder.path}")
        output.result(command.line)
        return 0
    folder, job_file = launch(
        read.resolved,
        project=options.project,
        devices=options.devices,
        torchrun_arguments=read.torchrun_arguments,
    )
    output.narrate(f"job {job_file.job} in {folder.path}")
    if options.detach:
        output.result(job_file.job)
        return 0
    outcome, screen, was_interrupted = asyncio.run(
        follow(folder, job_file.attempt, records_on_stdout=False)
    )
    first, *rest = ending_lines(folder, outcome, screen.last)
    output.result(first)
    for line in rest:
        output.narrate(line)
    return 130 if was_interrupted else outcome.exit_status


def _add_options(parser: argparse.ArgumentParser) -> None:
    add_devices(parser)
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="check, write the run folder, print the command; start nothing",
    )
    parser.add_argument(
        "--detach", action="store_true", help="print the job id and return once it has started"
    )


def add_devices(parser: argparse.ArgumentParser) -> None:
    """Add ``-d/--devices``."""
    parser.add_argument(
        "-d", "--devices", metavar="GPUS", help="GPUs to use, such as 0 or 0,2; default: all"
    )


def read_options(read: ConfigArguments) -> argparse.Namespace:
    """Check what needs no model and no data: GPUs, torchrun's arguments, the project's path.

    Raises:
        ConfigError: one of them is not what it should be.
    """
    options = read.options
    if options.devices is not None:
        visible_devices(options.devices)
    read_extra(read.resolved.config, read.torchrun_arguments)
    options.project = project_folder(options.project)
    return options
