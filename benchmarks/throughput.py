"""Measure steps of the engine, and beside them what a skilled user writes by hand.

    python benchmarks/throughput.py --shapes mistral-7b --row 4096 --rows 4 --budget-gib 22.8 \\
        --beside hf-liger-hooks
    python benchmarks/throughput.py --settings E1 E2 E3 E8

Weights, ids and masks are random (products run faster on zeros than on data), rows are packed with
documents of 100 to 1,300 tokens, half of the tokens are targets. Ceilings of the machine come
first, then warm-up steps, then those that device events time, waiting for nothing in between;
``--budget-gib`` caps torch's allocator. Every trial is a process of its own, so that its peaks are.

``--settings`` runs the named settings of ``settings.py`` and writes one file each; ``all.py`` says
how long they take, and runs those of the other scripts too. ``--first-only`` runs the trial that
decides and nothing beside it. ``--shapes demo`` with it is a rehearsal: every trial at the size of
the demo, which takes seconds. Results go to ``--results``; old files are never changed.
"""

import argparse
import dataclasses
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from machine import describe_apart
from our_step import Trial
from result_file import share_words, speed_and_peak, write_result
from settings import SETTINGS, Setting, judge, script_of
from shapes import SHAPES

HERE = Path(__file__).parent
# Of a rehearsal: rows of some thousand tokens of the demo's shapes fit beside the context.
_REHEARSED_GIB = 0.9
STEP_SETTINGS = [name for name, setting in SETTINGS.items() if setting.kind == "step"]
MEMORY_SETTINGS = [name for name, each in SETTINGS.items() if each.kind in ("least", "longest")]


def run_trial(
    script: str, trial: Trial, *options: str, limit_seconds: float | None = None
) -> dict[str, Any]:
    """Run a trial in a process of its own; give its record, or what became of it instead."""
    text = json.dumps(dataclasses.asdict(trial))
    record = run_script(script, text, *options, limit_seconds=limit_seconds)
    if "trial" not in record:
        record["system"] = "workbench" if script != "rival.py" else "rival"
        record["trial"] = dataclasses.asdict(trial)
    return record


def run_script(script: str, *arguments: str, limit_seconds: float | None = None) -> dict[str, Any]:
    """Run a script of this folder and give its last line, a JSON record.

    Args:
        script: its name.
        arguments: of the script.
        limit_seconds: after these it is killed with all that it started; None waits.

    Returns:
        Where there is no record: ``failed``, and the end of what it said as ``message``.
    """
    with subprocess.Popen(
        [sys.executable, str(HERE / script), *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # As ranks have it: the allocator reads this before its first allocation.
        env={"PYTORCH_ALLOC_CONF": "expandable_segments:True"} | dict(os.environ),
        # What it starts in turn stays in its group and ends with it.
        process_group=None if limit_seconds is None else 0,
    ) as process:
        failed = ""
        try:
            said, told = process.communicate(timeout=limit_seconds)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            said, told = process.communicate()
            failed = f"not done after {limit_seconds:.0f} s"
    sys.stderr.write(told)
    lines = said.strip().splitlines()
    if not failed:
        try:
            return dict(json.loads(lines[-1]))
        except (IndexError, TypeError, ValueError):
            failed = f"exit status {process.returncode}"
    return {"failed": failed, "message": "\n".join([*lines, *told.strip().splitlines()][-4:])}


def run_setting(setting: Setting, *, first_only: bool, beside: bool) -> list[dict[str, Any]]:
    """Run the trials of a setting, and the baseline between them; print each as it is done."""
    records = []
    for script, trial, options in trials_of(setting, first_only=first_only, beside=beside):
        records.append(run_trial(script, trial, *options))
        tell(records[-1])
    return records


def trials_of(
    setting: Setting, *, first_only: bool, beside: bool
) -> Iterator[tuple[str, Trial, tuple[str, ...]]]:
    """Give script, trial and options of what a setting runs, ours and the baseline alternating."""
    ours = list(setting.trials[:1] if first_only else setting.trials)
    theirs = list(setting.beside) if beside else []
    # Alternating: whatever the machine does over time meets both.
    while ours or theirs:
        if ours:
            trial = ours.pop(0)
            script, *options = script_of(trial)
            yield script, trial, tuple(options)
        if theirs:
            yield "rival.py", theirs.pop(0), ()


def rehearsal(name: str, shapes: str) -> Setting:
    """Give a setting whose trials are small ones of other shapes, to see that it runs."""

    def small(trial: Trial) -> Trial:
        return dataclasses.replace(
            trial,
            shapes=shapes,
            row=64,
            rows=min(trial.rows, 4),
            steps=2,
            warmup=1,
            layers=None,
            budget_gib=None if trial.budget_gib is None else _REHEARSED_GIB,
        )

    setting = SETTINGS[name]
    return dataclasses.replace(
        setting,
        trials=tuple(small(trial) for trial in setting.trials),
        beside=tuple(small(trial) for trial in setting.beside),
    )


def tell(record: dict[str, Any]) -> None:
    """Print a record as a line for people, on stderr, and as JSON on stdout."""
    trial = record["trial"]
    who = "workbench" if record.get("system", "workbench") == "workbench" else "by hand"
    words = f"{who} {trial['shapes']} {trial['row']} × {trial['rows']} {trial['label']}: "
    words += speed_and_peak(record)
    if record.get("mfu") is not None:
        words += f", MFU {100 * record['mfu']:.1f} %"
    if record.get("times"):
        words += f"; {share_words(record)}"
    if "failed" in record:
        words += f" {record.get('message', '')}"
    print(words, file=sys.stderr)
    print(json.dumps(record), flush=True)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--settings", nargs="+", choices=STEP_SETTINGS + MEMORY_SETTINGS)
    parser.add_argument("--first-only", action="store_true", help="of a setting what decides")
    parser.add_argument("--no-beside", action="store_true", help="of a setting no baseline")
    parser.add_argument("--shapes", choices=sorted(SHAPES), help="demo, where nothing is named")
    parser.add_argument("--row", type=int, default=256, help="tokens of a row")
    parser.add_argument("--rows", type=int, default=8, help="rows of a step")
    parser.add_argument("--microbatches", type=int, default=None)
    parser.add_argument("--budget-gib", type=float, default=None)
    parser.add_argument(
        "--layers", type=int, default=None, help="fewer blocks; 0: as many as host memory holds"
    )
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--warmup", type=int, default=3)
    parser.add_argument("--one-document", action="store_true", help="each row is one document")
    parser.add_argument("--dtype", choices=["bfloat16", "float32"], default="bfloat16")
    parser.add_argument("--beside", choices=["hf-liger-hooks"], help="the baseline, same rows")
    parser.add_argument("--results", type=Path, default=HERE / "results")
    parser.add_argument("--commit", help="of the code, where it is no checkout")
    options = parser.parse_args(arguments)
    command = shlex.join(["python", "benchmarks/throughput.py", *(arguments or sys.argv[1:])])
    if options.settings:
        return _run_settings(options, command)
    trial = Trial(
        shapes=options.shapes or "demo",
        row=options.row,
        rows=options.rows,
        budget_gib=options.budget_gib,
        microbatches=options.microbatches or "auto",
        layers=options.layers,
        steps=options.steps,
        warmup=options.warmup,
        one_document=options.one_document,
        dtype=options.dtype,
        ceilings=True,
        label="trial",
    )
    records = [run_trial("our_step.py", trial)]
    tell(records[0])
    if options.beside:
        records.append(run_trial("rival.py", dataclasses.replace(trial, ceilings=False)))
        tell(records[1])
    return int("failed" in records[0])


def _run_settings(options: argparse.Namespace, command: str) -> int:
    machine = describe_apart()
    if options.commit:
        machine["commit"] = options.commit
    missed = 0
    for name in options.settings:
        setting = SETTINGS[name] if options.shapes is None else rehearsal(name, options.shapes)
        records = run_setting(setting, first_only=options.first_only, beside=not options.no_beside)
        verdict = judge(setting.target, with_all_blocks(records[0]))
        missed += not verdict.is_hit
        path = write_result(
            options.results,
            setting,
            command=command,
            machine=machine,
            date=time.strftime("%Y-%m-%d", time.gmtime()),
            records=records,
            verdict=verdict,
            measured=measured_words(setting, records[0]),
        )
        print(f"{name} {verdict}; {path}", file=sys.stderr)
    return int(missed > 0)


def measured_words(setting: Setting, record: dict[str, Any]) -> str:
    """Give the figure of a setting that is quoted."""
    if "failed" in record:
        return f"failed: {record['failed']}"
    words = speed_and_peak(record)
    if setting.kind == "longest":
        return f"{record['row']:,} tokens: {words}"
    full = SHAPES[record["trial"]["shapes"]][2]
    if record["layers"] == full:
        return words
    scaled = with_all_blocks(record)["tokens_per_second"]
    return f"{words}, {record['layers']} of {full} blocks ({scaled:,.0f} tok/s reckoned for all)"


def with_all_blocks(record: dict[str, Any]) -> dict[str, Any]:
    """Reckon the speed of a trial with fewer blocks as if it had them all.

    Head and embedding are counted with the blocks, so what is reckoned is a little too low.
    """
    if "failed" in record or "layers" not in record:
        return record
    share = record["layers"] / SHAPES[record["trial"]["shapes"]][2]
    return record | {"tokens_per_second": record["tokens_per_second"] * share}


if __name__ == "__main__":
    sys.exit(main())
