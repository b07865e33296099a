"""One file per setting and day in the form that ``results/README.md`` states.

Machine-readable first: the line after the first ``json`` fence is the summary that the README's
table is made from, the last fence holds every raw record. A file that is there is never changed: a
second one of a day gets a number.
"""

import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from machine import gpu_slug
from settings import Setting, Verdict

from workbench.config.memory_parts import GIB

HEADER = (
    "| system | row × rows | allocated GiB | reserved GiB | on card GiB | host GiB | median s | "
    "min s | spread | tok/s | MFU | predicted GiB | predicted s |"
)


def write_result(
    folder: Path,
    setting: Setting,
    *,
    command: str,
    machine: dict[str, str],
    date: str,
    records: Sequence[dict[str, Any]],
    verdict: Verdict,
    measured: str,
    notes: Sequence[str] = (),
) -> Path:
    """Write the file of a setting; give its path.

    Args:
        folder: where result files lie.
        setting: what was run.
        command: as it was typed.
        machine: as ``machine.describe`` gives it.
        date: of the measurement, ``2026-11-23``.
        records: of every trial, ours and the baseline's.
        verdict: against the setting's target.
        measured: the figure to quote, in words.
        notes: sentences below the table.
    """
    stem = f"{setting.name}_{gpu_slug(machine['gpu'])}_{date}"
    path, number = folder / f"{stem}.md", 1
    while path.exists():
        number += 1
        path = folder / f"{stem}_{number}.md"
    folder.mkdir(parents=True, exist_ok=True)
    path.write_text(
        render(
            setting,
            command=command,
            machine=machine,
            date=date,
            records=records,
            verdict=verdict,
            measured=measured,
            notes=notes,
        ),
        encoding="utf-8",
    )
    return path


def render(
    setting: Setting,
    *,
    command: str,
    machine: dict[str, str],
    date: str,
    records: Sequence[dict[str, Any]],
    verdict: Verdict,
    measured: str,
    notes: Sequence[str] = (),
) -> str:
    """Give the text of a result file; arguments as in ``write_result``."""
    baseline = next((each for each in records if _is_rival(each) and "failed" not in each), None)
    summary = {
        "setting": setting.name,
        "title": setting.title,
        "target": target_words(setting),
        "measured": measured,
        "hit": verdict.is_hit,
        "rival": _speed_and_peak(baseline) + ", here" if baseline else setting.rival,
        "probe": setting.probe,
        "gpu": machine["gpu"],
        "date": date,
    }
    lines = [
        f"# {setting.name}: {setting.title}, {date}",
        "",
        f"`{command}`",
        "",
        f"**Target** {summary['target']}: **{verdict}**.",
        "",
        "```json",
        json.dumps(summary, ensure_ascii=False),
        "```",
        "",
        *(f"* {name}: {value}" for name, value in machine.items()),
        "",
    ]
    if found := next((each["ceilings"] for each in records if "ceilings" in each), None):
        lines += [_ceilings(found), ""]
    tabled = [each for each in records if "seconds" in each]
    if tabled:
        lines += [HEADER, "|" + " --- |" * HEADER.count(" | ") + " --- |"]
        lines += [_row(each) for each in tabled]
        lines.append("")
    for each in records:
        if "plan" in each:
            lines.append(f"* plan of {_name(each)}: {_plan_words(each['plan'])}")
        if each.get("times"):
            lines.append(f"* seconds of a timed step of {_name(each)}: {share_words(each)}")
        if each.get("warmup_seconds"):
            lines.append(f"* first steps of {_name(each)}: {each['warmup_seconds']} s")
        if "failed" in each:
            lines.append(f"* {_name(each)} failed: {each['failed']}: {each.get('message', '')}")
    lines += [f"* {note}" for note in notes]
    lines += ["", "Raw values:", "", "```json"]
    lines += [json.dumps(each, ensure_ascii=False) for each in records]
    return "\n".join([*lines, "```", ""])


def target_words(setting: Setting) -> str:
    """Give a target in words; E10 and E11 have several that no field of ``Target`` holds."""
    special = {
        "E10": "optimizer ≤ 3 %, telemetry and control ≤ 0.5 %",
        "E11": "peak within 5 %, time within 10 %, never under by more than 2 %",
        "stress": "200 steps within the budget, without growth",
    }
    return special.get(setting.name, str(setting.target))


def share_words(record: dict[str, Any]) -> str:
    """Say where the seconds of a timed step went: ``step 1.480 s, up 0.450 (30.4 %) …``."""
    times = record["times"]
    parts = [f"step {times['step']:.3f} s"]
    for name, seconds in times.items():
        if name != "step":
            parts.append(f"{name} {seconds:.3f} ({100 * seconds / times['step']:.1f} %)")
    return ", ".join(parts)


def speed_and_peak(record: dict[str, Any]) -> str:
    """Give the two figures that are quoted: ``11,240 tok/s at 17.4 GiB``."""
    return _speed_and_peak(record)


def _speed_and_peak(record: dict[str, Any]) -> str:
    if "failed" in record:
        return f"failed: {record['failed']}"
    speed = f"{record['tokens_per_second']:,.0f} tok/s"
    return f"{speed} at {record['reserved'] / GIB:.2f} GiB" if record["reserved"] else speed


def _row(record: dict[str, Any]) -> str:
    trial, seconds = record["trial"], record["seconds"]

    def gib(name: str) -> str:
        return f"{record[name] / GIB:.2f}" if record.get(name) else "–"

    mfu, predicted = record.get("mfu"), record.get("predicted_seconds")
    cells = [
        _name(record),
        f"{trial['row']} × {trial['rows']}",
        gib("allocated"),
        gib("reserved"),
        gib("on_card"),
        gib("host_peak"),
        f"{statistics.median(seconds):.3f}",
        f"{min(seconds):.3f}",
        f"{100 * (max(seconds) / min(seconds) - 1):.1f} %",
        f"{record['tokens_per_second']:,.0f}",
        "–" if mfu is None else f"{100 * mfu:.1f} %",
        gib("predicted_reserved"),
        "–" if predicted is None else f"{predicted:.3f}",
    ]
    return "| " + " | ".join(cells) + " |"


def _name(record: dict[str, Any]) -> str:
    label = record["trial"].get("label") or "trial"
    layers = record.get("layers")
    shapes = record["trial"]["shapes"] + (f", {layers} blocks" if layers else "")
    who = "by hand" if _is_rival(record) else "workbench"
    return f"{who}, {shapes}, {label}"


def _is_rival(record: dict[str, Any]) -> bool:
    return record.get("system", "workbench") != "workbench"


def _plan_words(plan: dict[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in plan.items())


def _ceilings(found: dict[str, float]) -> str:
    words = [
        f"products {found['product_flops'] / 1e12:,.3g} TFLOP/s",
        f"at the model's shapes {found['model_product_flops'] / 1e12:,.3g}",
        f"memory {found['memory_bytes_per_second'] / 1e9:,.0f} GB/s",
    ]
    if "up_bytes_per_second" in found:
        words += [
            f"copies up {found['up_bytes_per_second'] / 1e9:.1f} GB/s",
            f"down {found['down_bytes_per_second'] / 1e9:.1f}",
            f"each of both {found['both_bytes_per_second'] / 1e9:.1f}",
        ]
    return "Ceilings, same process: " + " · ".join(words) + "."
