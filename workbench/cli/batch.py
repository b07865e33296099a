"""``workbench --batch``: preflight, run, follow, end, without a screen.

Invariant: stdout holds JSON lines only: the records of events.jsonl and metrics.jsonl as they
appear, last the content of outcome.json.
"""

import asyncio

from workbench.cli import output
from workbench.cli.config_arguments import read_config_arguments
from workbench.cli.follow import follow, passed
from workbench.cli.narration import ending_lines
from workbench.cli.train import add_devices, read_options
from workbench.jobs.launch import launch


def run(arguments: list[str]) -> int:
    """Train without a screen; the exit status is the job's."""
    read = read_config_arguments(
        arguments,
        verb="--batch",
        summary="Train without a screen: JSON lines on stdout, narration on stderr.",
        add_options=add_devices,
        takes_torchrun=True,
        examples=(
            ("--batch -t demo > records.jsonl", "the exit status is the job's"),
            ("--batch -t demo --max-steps 20 training.seed=7", "with values of yours"),
        ),
    )
    options = read_options(read)
    if status := passed(read.resolved, options):
        return status
    folder, job_file = launch(
        read.resolved,
        project=options.project,
        devices=options.devices,
        torchrun_arguments=read.torchrun_arguments,
    )
    output.narrate(f"job {job_file.job} in {folder.path}")
    outcome, screen, was_interrupted = asyncio.run(
        follow(folder, job_file.attempt, records_on_stdout=True)
    )
    for line in ending_lines(folder, outcome, screen.last):
        output.narrate(line)
    return 130 if was_interrupted else outcome.exit_status
