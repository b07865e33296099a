"""Where weights live over a resume, and memory that runs out: the real program, end to end."""

import json
import resource
import subprocess
import sys

import pytest

from tests.end_to_end.conftest import LIMIT_SECONDS, SMALL, Workplace, losses_of, outcome_of
from workbench.runs.checkpoints import newest_complete
from workbench.runs.layout import RunFolder
from workbench.runs.manifest import verify

pytestmark = pytest.mark.end_to_end

STREAMED = [
    "memory.resident_fraction=0",
    "memory.block_inputs=pinned",
    "memory.recompute=selective",
]


def train(workplace: Workplace, name: str, max_steps: int, *more: str) -> RunFolder:
    ended = workplace.workbench(
        "--batch", "-t", "demo.yaml", "--max-steps", str(max_steps),
        "--output-dir", f"output/{name}", *SMALL, "checkpoints.every_steps=4", *more,
    )  # fmt: skip
    assert ended.status == 0, ended.stderr
    return workplace.run_folder(name)


def test_a_run_that_streamed_goes_on_resident_bit_for_bit(workplace: Workplace) -> None:
    """What lies where may change between two attempts, and changes no loss."""
    whole = train(workplace, "resident", 8)
    train(workplace, "moved", 4, *STREAMED)
    moved = train(workplace, "moved", 8)
    plans = [json.loads(run.plan.read_bytes()) for run in (whole, moved)]
    assert [plan["resident_blocks"] for plan in plans] == [4, 4]
    assert outcome_of(moved).attempt == 2
    assert len(losses_of(moved)) == 8
    assert losses_of(moved) == losses_of(whole)


def address_space_of_a_rank() -> int:
    """Bytes that a rank maps before it has read a config."""
    program = (
        "from pathlib import Path\n"
        "import workbench.training.rank\n"
        "print(Path('/proc/self/statm').read_text().split()[0])\n"
    )
    pages = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True).stdout
    return int(pages) * resource.getpagesize()


def test_memory_that_runs_out_ends_with_ranked_remedies_and_spares_the_checkpoint(
    workplace: Workplace,
) -> None:
    """The second attempt keeps all activations of 32 rows in an address space without room."""
    rows = ["data.max_length=256", "batch.train=32", "--output-dir", "output/short"]
    first = workplace.workbench(
        "--batch", "-t", "demo.yaml", *SMALL, *rows, "--max-steps", "1", "batch.microbatches=8"
    )
    assert first.status == 0, first.stderr
    run = workplace.run_folder("short")
    limit = address_space_of_a_rank() + (256 << 20)
    again = [
        sys.executable, "-m", "workbench", "--batch", "-t", "demo.yaml", *SMALL, *rows,
        "--max-steps", "9", "batch.microbatches=1", "memory.recompute=none",
    ]  # fmt: skip
    ended = subprocess.run(
        ["sh", "-c", f'ulimit -v {limit >> 10}; exec "$@"', "sh", *again],
        cwd=workplace.path,
        env=workplace.environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=LIMIT_SECONDS,
        check=False,
    )
    assert ended.returncode == 1, ended.stderr
    outcome = outcome_of(run)
    assert (outcome.attempt, outcome.state, outcome.reason) == (2, "failed", "out_of_memory")
    assert outcome.exit_codes == {"0": 1}
    assert outcome.first_error is not None
    told = outcome.first_error.remedy.splitlines()
    assert told[0].startswith("1. raise the limit of ")
    assert [line[:2] for line in told] == [f"{number}." for number in range(1, len(told) + 1)]
    keys = [line.split()[1] for line in told[2:]]  # each with its value and what it takes off
    assert keys[0] == "batch.microbatches:", told
    assert all(line in ended.stderr.splitlines() for line in told)
    assert told[0] in run.log.read_text()
    newest = newest_complete(run)
    assert newest is not None
    assert newest.step == 1
    verify(newest.path)
