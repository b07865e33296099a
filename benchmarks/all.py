"""Measure many settings in one call, each in processes of its own with a time limit.

    python benchmarks/all.py --settings E1 E2 E3 E4 E8 --out "$OUT/records.jsonl" --seconds 560 \\
        2>"$OUT/log.txt"
    python benchmarks/all.py --settings E6 --host-gib 235 --out "$OUT/records.jsonl"
    python benchmarks/all.py --list
    python benchmarks/write_results.py records.jsonl

What fails or takes too long becomes a record of that, and the next one begins. Nothing begins that
would not be done within ``--seconds`` of the start; what was left out is named last. Every record
is a JSON line, written as soon as it is there; ``write_results.py`` makes result files of them, and
these can be several calls' and another machine's.

Names are E1 to E11 and ``stress``; ``E1.1`` is the second trial of E1. ``E11`` runs three points of
its grid: its other nine predictions are those of trials of E1 to E8. Kernels that one process has
compiled are there for the next, except for E9, which begins without any. ``--shapes demo`` is a
rehearsal, for a CPU, too. ``--host-gib`` is for machines whose memory grows as it is used.
"""

import argparse
import contextlib
import ctypes
import dataclasses
import json
import math
import mmap
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from machine import describe_apart
from memory import GRID
from our_step import Trial
from settings import SETTINGS
from shapes import SHAPES, dimensions
from stress import BUDGETS, stress_trial
from throughput import measured_words, rehearsal, run_script, trials_of

from workbench.config.memory_parts import GIB
from workbench.config.time_plan import forward_flop_per_token
from workbench.runs.host_memory import available_host_memory
from workbench.training.engine.plan import facts_of_dimensions

NAMES = (*SETTINGS, "stress")
# Of the grid those that differ most from what other settings run anyway: other rows, other cuts.
POINTS = (GRID[0], GRID[4], GRID[10])

# To foresee how long a trial takes on an H200; nothing that is measured rests on them.
_FLOPS, _LINK, _PINNED_PER_SECOND = 600e12, 45e9, 14 * GIB
_START_SECONDS, _RIVAL_START_SECONDS, _OTHER_SECONDS = 14.0, 26.0, {"E9": 60.0, "E10": 90.0}
_LONGEST_ROW = 300_000
_TOUCHED_BYTES = 1 << 30


@dataclass(frozen=True)
class Job:
    """One process.

    Attributes:
        name: of the setting, with the number of the trial: ``E1.0``.
        setting: that it belongs to, or ``stress``.
        script: of this folder.
        arguments: of the script.
        trial: that it runs; None where the script has a trial of its own.
        seconds: that it is expected to take on an H200.
    """

    name: str
    setting: str
    script: str
    arguments: tuple[str, ...]
    trial: Trial | None
    seconds: float

    @property
    def limit_seconds(self) -> float:
        """After these something hangs."""
        return 45 + 2 * self.seconds


def jobs_of(setting: str, shapes: str | None = None) -> list[Job]:
    """Give the processes of a setting.

    Args:
        setting: E1 to E11, or ``stress``.
        shapes: of a rehearsal; None runs what is meant.
    """
    jobs = []
    for number, (script, trial, options) in enumerate(_trials(setting, shapes)):
        text = json.dumps(dataclasses.asdict(trial))
        seconds = expected_seconds(script, trial)
        jobs.append(Job(f"{setting}.{number}", setting, script, (text, *options), trial, seconds))
    if setting == "E9":
        small = ["--shapes", shapes, "--row", "256", "--dtype", "float32"] if shapes else []
        jobs.append(_plain(setting, "first_step.py", small or ["--budget-gib", "22.8"]))
    elif setting == "E10":
        small = "--shapes demo --row 64 --rows 2 --whole-card --steps 10 --pairs 2 --log-every 5"
        jobs.append(_plain(setting, "telemetry.py", small.split() if shapes else []))
    return jobs


def _plain(setting: str, script: str, arguments: Sequence[str]) -> Job:
    seconds = _OTHER_SECONDS[setting]
    return Job(f"{setting}.0", setting, script, tuple(arguments), None, seconds)


def _trials(setting: str, shapes: str | None) -> Iterator[tuple[str, Trial, tuple[str, ...]]]:
    if setting == "stress":
        row, steps = (2048, 200) if shapes is None else (96, 4)
        for budget in BUDGETS:
            trial = stress_trial(shapes or "mistral-7b", row, 1, steps, budget)
            yield "stress.py", trial, ("--child",)
    elif setting == "E11":
        for trial in POINTS:
            if shapes is not None:
                trial = dataclasses.replace(trial, shapes=shapes, row=64, rows=4, steps=1)
            yield "our_step.py", trial, ()
    else:
        known = SETTINGS[setting] if shapes is None else rehearsal(setting, shapes)
        yield from trials_of(known, first_only=False, beside=True)


def expected_seconds(script: str, trial: Trial) -> float:
    """Foresee how long a process takes on an H200: start, pinned memory, steps.

    A step takes its FLOP with everything computed again, or what travels of the weights, whichever
    is longer.
    """
    facts = facts_of_dimensions(dimensions(trial.shapes, trial.layers or None))
    row = _LONGEST_ROW if "memory.py" in script and trial.label == "longest" else trial.row
    tokens = row * trial.rows
    seen = row if trial.one_document else min(row, 871)
    computing = 4 * tokens * forward_flop_per_token(facts, seen) / _FLOPS
    weights = 2.0 * facts.num_parameters
    stays = weights if trial.budget_gib is None else 0.7 * trial.budget_gib * GIB
    travels = max(0.0, weights - stays)
    step = max(computing, 2 * travels / _LINK) + 0.05
    start = _RIVAL_START_SECONDS if script == "rival.py" else _START_SECONDS
    start += 2 * travels / _PINNED_PER_SECOND  # as much again for what is kept for backward
    return start + step * (trial.warmup if script != "stress.py" else 0) + step * trial.steps


# ---- host memory that grows ----------------------------------------------------------------------


def fill_host_memory(wanted_gib: float) -> float:
    """Take host memory once and give it back, until so much is available; give how much is.

    A virtual machine may show little memory at first and get more as it is used. Whoever sizes
    itself from what is available, as the engine does, then sees too little. A child takes it, the
    first to be ended where the machine grows more slowly than it is filled.
    """
    found = _available_gib()
    while found < wanted_gib:
        before = found
        with contextlib.suppress(subprocess.TimeoutExpired):
            subprocess.run(
                [sys.executable, __file__, "--fill", str(wanted_gib)], check=False, timeout=240
            )
        found = _available_gib()
        if found < before + 1:
            break
    return found


def _available_gib() -> float:
    memory = available_host_memory()
    return math.inf if memory is None else memory.available_bytes / GIB


def _fill(wanted_gib: float) -> int:
    # As the kernel reads it: this process goes first when memory ends.
    Path("/proc/self/oom_score_adj").write_text("1000")
    kept: list[mmap.mmap] = []

    def take(_: int) -> None:
        pages = mmap.mmap(-1, _TOUCHED_BYTES, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        kept.append(pages)
        buffer = (ctypes.c_char * _TOUCHED_BYTES).from_buffer(pages)
        ctypes.memset(buffer, 1, _TOUCHED_BYTES)
        del buffer

    with ThreadPoolExecutor(2) as threads:
        list(threads.map(take, range(int(wanted_gib))))
    return 0


# ---- the command ---------------------------------------------------------------------------------


def run_job(job: Job) -> dict[str, Any]:
    """Run a job; give its record, or what became of it."""
    record = run_script(job.script, *job.arguments, limit_seconds=job.limit_seconds)
    if "failed" in record:
        who = "rival" if job.script == "rival.py" else "workbench"
        trial = dataclasses.asdict(job.trial or Trial(label=job.setting))
        record = {"system": who, "trial": trial} | record
    return record


def chosen_jobs(names: Sequence[str], shapes: str | None) -> list[Job]:
    """Give the jobs of names as they are typed: ``E1`` is all of it, ``E1.1`` its second trial.

    Raises:
        SystemExit: a name is unknown.
    """
    chosen: list[Job] = []
    for name in names:
        setting, _, _number = name.partition(".")
        if setting not in NAMES:
            raise SystemExit(f"{name}: is none of {', '.join(NAMES)}")
        found = [job for job in jobs_of(setting, shapes) if name in (setting, job.name)]
        if not found:
            raise SystemExit(f"{name}: {setting} has {len(jobs_of(setting, shapes))} trials")
        chosen += found
    return chosen


def short_words(record: dict[str, Any]) -> str:
    """Give what a line of the table says of a record."""
    if "failed" in record:
        return f"failed: {record['failed']}: {record.get('message', '')[:160]}".replace("\n", " ")
    if "seconds_to_first_step" in record:
        return f"{record['seconds_to_first_step']:.1f} s to the first step"
    if "telemetry_share" in record:
        optimizer = record["optimizer_share"]
        words = "–" if optimizer is None else f"{100 * optimizer:.2f} %"
        return f"telemetry {100 * record['telemetry_share']:.2f} %, optimizer {words}"
    if "reserved_settled" in record:
        return f"{record['steps']} steps at {record['reserved'] / GIB:.2f} GiB, no growth"
    words = measured_words(SETTINGS["E7" if "tried" in record else "E1"], record | _row_of(record))
    if record.get("predicted_reserved") and record["reserved"]:
        off = record["predicted_reserved"] / record["reserved"] - 1
        words += f", predicted {100 * off:+.1f} %"
    if record.get("predicted_seconds"):
        seconds = sorted(record["seconds"])
        off = record["predicted_seconds"] / seconds[len(seconds) // 2] - 1
        words += f", time {100 * off:+.1f} %"
    return words


def _row_of(record: dict[str, Any]) -> dict[str, Any]:
    return {"row": record.get("row", record["trial"]["row"])}


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--settings", nargs="+", default=list(NAMES), metavar="NAME")
    parser.add_argument("--out", type=Path, default=Path("records.jsonl"), help="lines are added")
    parser.add_argument("--seconds", type=float, default=3600.0, help="nothing ends after these")
    parser.add_argument("--host-gib", type=float, help="of host memory, taken once before")
    parser.add_argument("--shapes", choices=sorted(SHAPES), help="demo, for a rehearsal")
    parser.add_argument("--commit", help="of the code, where it is no checkout")
    parser.add_argument("--list", action="store_true", help="say how long each takes, run nothing")
    parser.add_argument("--fill", type=float, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.fill:
        return _fill(options.fill)
    begin = time.monotonic()
    jobs = chosen_jobs(options.settings, options.shapes)
    if options.list:
        for job in jobs:
            print(f"{job.name:9} {job.seconds:4.0f} s  {_label(job)}")
        print(f"{'all':9} {sum(job.seconds for job in jobs):4.0f} s")
        return 0
    if options.host_gib:
        print(f"{fill_host_memory(options.host_gib):.0f} GiB of host memory are available")
    machine = describe_apart()
    if options.commit:
        machine["commit"] = options.commit
    # Where the records went is of no use to anybody who runs it again.
    out = options.out
    typed = [out.name if each == str(out) else each for each in arguments or sys.argv[1:]]
    command = shlex.join(["python", "benchmarks/all.py", *typed])
    options.out.parent.mkdir(parents=True, exist_ok=True)
    table: list[str] = []
    left_out: list[str] = []
    for job in jobs:
        spent = time.monotonic() - begin
        if spent + job.seconds > options.seconds:
            left_out.append(job.name)
            continue
        # What would end after everybody has gone is ended before.
        limit = min(job.limit_seconds, options.seconds - spent)
        started = time.monotonic()
        record = run_job(dataclasses.replace(job, seconds=(limit - 45) / 2))
        took = time.monotonic() - started
        line = {
            "setting": job.setting,
            "name": job.name,
            "date": time.strftime("%Y-%m-%d", time.gmtime()),
            "command": command,
            "machine": machine,
            "wall_seconds": round(took, 1),
            "record": record,
        }
        with options.out.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line, ensure_ascii=False) + "\n")
        table.append(f"{job.name:9} {took:4.0f} s  {_label(job)}: {short_words(record)}")
        print(table[-1], flush=True)
    print("\n".join(["", *table]))
    if left_out:
        print(f"no time was left for: {' '.join(left_out)}")
    return int(bool(left_out) or any(": failed: " in line for line in table))


def _label(job: Job) -> str:
    if job.trial is None:
        return job.script
    who = "by hand, " if job.script == "rival.py" else ""
    return f"{who}{job.trial.shapes} {job.trial.row} × {job.trial.rows}, {job.trial.label}"


if __name__ == "__main__":
    sys.exit(main())
