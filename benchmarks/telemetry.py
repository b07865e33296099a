"""E10: what telemetry and control cost, by the same steps with and without them.

    python benchmarks/telemetry.py
    python benchmarks/telemetry.py --shapes 1b --whole-card --steps 10 --pairs 20 --log-every 10

Blocks of steps over one engine and the same rows, alternating: *on* is the training loop as it is
in a rank, with its control point, its publisher's thread on a real socket whose other end reads
every message, a metrics record and TensorBoard point per window; *off* are bare calls of the
engine. Each block ends with a synchronization. The cost is the median over pairs of neighbours, one
on and one off, of how much longer the one took: a card's clock drifts by more than what is looked
for, but not from one block to the next. The error given with it is that of the mean of the pairs.
The optimizer's share comes from the steps the engine timed.

Without options it is E1's step, and a record every other step, five times as often as a config asks
for: 90 s on an H200. ``--results DIR`` writes the result file of E10. A step of ``--shapes 1b`` is
an eighth as long and has the same telemetry.
"""

import argparse
import dataclasses
import math
import os
import queue
import shlex
import socket
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import torch
from machine import choose_device, describe, synchronize
from our_step import Trial, described, dimensions_of, make_engine, plan_of
from result_file import write_result
from settings import SETTINGS, Verdict
from shapes import SHAPES, random_rows

from workbench.control.framing import encode
from workbench.control.messages import PROTOCOL_VERSION, Hello
from workbench.data.loader import StepRows
from workbench.runs.json_lines import read_lines
from workbench.runs.layout import RunFolder
from workbench.runs.metrics import MetricsRecord
from workbench.training.checkpoint import Content
from workbench.training.control_point import ControlPoint, Wish
from workbench.training.distributed import Ranks
from workbench.training.engine.plan import facts_of_dimensions, take_budget
from workbench.training.engine.step import LayerMajorEngine
from workbench.training.loop import Intervals, Training
from workbench.training.publisher import Publisher
from workbench.training.report import Report
from workbench.training.state import TrainingState
from workbench.training.utilization import Utilization, peak_flops_of

_JOB = "telemetry-000000"
MOST_TELEMETRY, MOST_OPTIMIZER = 0.005, 0.03


class RepeatedRows:
    """A few steps of rows again and again, in the place of a loader."""

    steps_per_epoch = 1 << 30

    def __init__(self, made: Sequence[StepRows]) -> None:
        self._made = made

    def step(self, number: int) -> StepRows:
        """Give the rows of a step."""
        return self._made[number % len(self._made)]


@contextmanager
def supervisor(path: Path) -> Iterator[list[int]]:
    """Listen in the place of a supervisor; give a list that holds how many bytes it was told."""
    told = [0]
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listening:
        listening.bind(str(path))
        listening.listen()

        def serve() -> None:
            connection, _ = listening.accept()
            with connection:
                told[0] += len(connection.recv(1 << 16))
                connection.sendall(
                    encode(
                        Hello(
                            protocol=PROTOCOL_VERSION,
                            role="supervisor",
                            program="benchmark",
                            host="here",
                            pid=os.getpid(),
                            job=_JOB,
                        )
                    )
                )
                while data := connection.recv(1 << 16):
                    told[0] += len(data)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield told


def measure(trial: Trial, *, steps: int, pairs: int, log_every: int) -> dict[str, Any]:
    """Run alternating blocks; give seconds per step of each, and the shares."""
    device = choose_device()
    torch.set_float32_matmul_precision("high")
    dims = dimensions_of(trial)
    plan = plan_of(trial, dims, take_budget(device, trial.budget_gib))
    engine = make_engine(trial, dims, plan, device)
    rows = RepeatedRows(
        [random_rows(dims, trial.rows, trial.row, plan.microbatches, seed) for seed in range(8)]
    )
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else None
    utilization = Utilization(facts_of_dimensions(dims), peak_flops_of(name))
    state = TrainingState()
    seconds: dict[str, list[float]] = {"on": [], "off": []}
    with tempfile.TemporaryDirectory() as folder:
        run = RunFolder(folder)
        wishes: queue.SimpleQueue[Wish] = queue.SimpleQueue()
        with supervisor(Path(folder) / "socket") as told:
            publisher = Publisher(str(Path(folder) / "socket"), _JOB, wishes)
            report = Report(
                run,
                Ranks(),
                attempt=1,
                device=device,
                resumed_step=0,
                name=None,
                utilization=utilization,
            )

            def on() -> None:
                Training(
                    run=run,
                    ranks=Ranks(),
                    attempt=1,
                    engine=engine,
                    rows=rows,  # type: ignore[arg-type]
                    validation=None,
                    rate=lambda step: 1e-6,
                    max_steps=state.step + steps,
                    intervals=Intervals(log_every, None, None, None, save_at_end=False, keep=1),
                    nonfinite="skip",
                    content=Content({}, {}, {}, device),
                    control=ControlPoint(Ranks(), wishes),
                    publisher=publisher,
                    report=report,
                    state=state,
                ).train()

            def off() -> None:
                bare_steps(engine, rows, state, steps)

            # The first block of each is a warm-up.
            for number in range(pairs + 1):
                order = (("on", on), ("off", off))
                for kind, do in order if number % 2 else reversed(order):
                    spent = timed(do, device) / steps
                    if number:
                        seconds[kind].append(spent)
            report.close()
        lines, _ = read_lines(run.metrics)
        records = [msgspec.json.decode(line.content, type=MetricsRecord) for line in lines]
    costs = [on / off - 1 for on, off in zip(seconds["on"], seconds["off"], strict=True)]
    shares = [each.optimizer_share for each in records if each.optimizer_share is not None]
    waits = [each.waiting_share for each in records if each.waiting_share is not None]
    return {
        "system": "workbench",
        "trial": dataclasses.asdict(trial),
        "layers": dims.num_layers,
        "plan": described(plan),
        "seconds_per_step": seconds,
        "steps_per_block": steps,
        "log_every": log_every,
        "telemetry_share": statistics.median(costs),
        "error": statistics.stdev(costs) / math.sqrt(len(costs)) if len(costs) > 1 else None,
        "optimizer_share": statistics.median(shares) if shares else None,
        "waiting_share": statistics.median(waits) if waits else None,
        "num_records": len(records),
        "bytes_told": told[0],
    }


def bare_steps(
    engine: LayerMajorEngine, rows: RepeatedRows, state: TrainingState, steps: int
) -> None:
    """Take steps and nothing else; the same numbers as the loop would give them."""
    for _ in range(steps):
        state.step += 1
        engine.step(rows.step(state.step - 1), state.step, 1e-6)


def timed(do: Callable[[], None], device: torch.device) -> float:
    synchronize(device)
    begin = time.perf_counter()
    do()
    synchronize(device)
    return time.perf_counter() - begin


def judge(record: dict[str, Any]) -> Verdict:
    """Hold both shares against E10."""
    telemetry, optimizer = record["telemetry_share"], record["optimizer_share"]
    is_hit = telemetry <= MOST_TELEMETRY
    error = "" if record["error"] is None else f" ± {100 * record['error']:.2f}"
    words = [f"telemetry and control {100 * telemetry:.2f}{error} %"]
    if optimizer is None:
        words.append("no step was timed")
        is_hit = False
    else:
        words.append(f"optimizer {100 * optimizer:.2f} %")
        is_hit = is_hit and optimizer <= MOST_OPTIMIZER
    return Verdict(is_hit, words)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shapes", choices=sorted(SHAPES), default="mistral-7b")
    parser.add_argument("--row", type=int, default=4096)
    parser.add_argument("--rows", type=int, default=4)
    parser.add_argument("--budget-gib", type=float, default=22.8)
    parser.add_argument("--whole-card", action="store_true", help="no budget")
    parser.add_argument("--steps", type=int, default=4, help="of a block")
    parser.add_argument("--pairs", type=int, default=5, help="of a block with and one without")
    parser.add_argument("--log-every", type=int, default=2, help="steps of a metrics record")
    parser.add_argument("--results", type=Path, help="write the result file of E10 here")
    parser.add_argument("--commit", help="of the code, where it is no checkout")
    options = parser.parse_args(arguments)
    os.environ.setdefault("PYTORCH_ALLOC_CONF", "expandable_segments:True")
    trial = Trial(
        shapes=options.shapes,
        row=options.row,
        rows=options.rows,
        budget_gib=None if options.whole_card else options.budget_gib,
        label="alternating",
    )
    record = measure(trial, steps=options.steps, pairs=options.pairs, log_every=options.log_every)
    verdict = judge(record)
    print(msgspec.json.encode(record).decode())
    print(f"E10 {verdict}", file=sys.stderr)
    if options.results is not None:
        machine = describe(choose_device())
        if options.commit:
            machine["commit"] = options.commit
        path = write_result(
            options.results,
            SETTINGS["E10"],
            command=shlex.join(["python", "benchmarks/telemetry.py", *(arguments or sys.argv[1:])]),
            machine=machine,
            date=time.strftime("%Y-%m-%d", time.gmtime()),
            records=[record],
            verdict=verdict,
            measured=", ".join(verdict.words),
            notes=[
                f"seconds per step, {kind}: {[round(each, 4) for each in found]}"
                for kind, found in record["seconds_per_step"].items()
            ],
        )
        print(path, file=sys.stderr)
    return int(not verdict.is_hit)


if __name__ == "__main__":
    sys.exit(main())
