"""Make result files, the golden peaks and the README's table of what ``all.py`` has recorded.

    python benchmarks/write_results.py first.jsonl second.jsonl

Needs no GPU. Of two records of one trial the later one counts, whichever file it is in. Writes a
file per setting into ``benchmarks/results`` (one that is there is never changed), every peak of the
engine into ``tests/assets/measured_peaks.json``, and the table of README.md.
"""

import argparse
import json
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import readme_table
import telemetry
from machine import REPOSITORY
from memory import judge_grid
from result_file import write_result
from settings import PREDICTED_TOO, SETTINGS, Setting, Target, Verdict, judge
from stress import SETTLED_STEPS
from throughput import measured_words, with_all_blocks

from workbench.config.memory_parts import GIB

GOLDEN = REPOSITORY / "tests" / "assets" / "measured_peaks.json"
STRESS = Setting(
    "stress",
    "200 random packed batches of a 7B under each budget",
    Target(),
    kind="stress",
)
# What a golden record holds: what a prediction starts from, and what was seen.
_GOLDEN_FIELDS = (
    "trial", "layers", "row_documents", "plan", "allocated", "reserved", "on_card", "seen_tokens",
    "seconds",
)  # fmt: skip


def read_lines(paths: Sequence[Path]) -> list[dict[str, Any]]:
    """Read lines of ``all.py``, the last one of each trial, in the order of the settings."""
    last: dict[str, dict[str, Any]] = {}
    for path in paths:
        for text in path.read_text(encoding="utf-8").splitlines():
            line = json.loads(text)
            last[line["name"]] = line
    order = [*SETTINGS, STRESS.name]

    def place(line: dict[str, Any]) -> tuple[int, int]:
        return order.index(line["setting"]), int(line["name"].partition(".")[2])

    return sorted(last.values(), key=place)


def lines_of(setting: str, lines: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Give the lines of a setting; those of E11 begin with the points that others ran for it."""
    own = [line for line in lines if line["setting"] == setting]
    if setting == "E11" and own:
        own = [line for line in lines if line["name"] in PREDICTED_TOO] + own
    return own


def outcome(setting: Setting, records: Sequence[dict[str, Any]]) -> tuple[Verdict, str, list[str]]:
    """Hold the records of a setting against its target.

    Args:
        setting: that was run.
        records: of its trials.
    Returns:
        The verdict, the figure to quote, notes.
    """
    first, notes = records[0], list[str]()
    if setting.kind == "grid":
        verdict, notes = judge_grid(records)
        return verdict, verdict.words[0], notes
    if setting.kind == "stress":
        notes = [_stress_words(each) for each in records]
        kept = sum("failed" not in each for each in records)
        verdict = Verdict(kept == len(records), [f"{kept} of {len(records)} budgets kept"])
        return verdict, verdict.words[0], notes
    if setting.kind == "longest":
        ran = [each for each in records if _is_mistral(each) and "failed" not in each]
        rows = [each | {"row": each.get("row", each["trial"]["row"])} for each in ran]
        within = [each for each in rows if _is_within_budget(each)]
        first = max(within, key=lambda each: each["row"], default=first)
        notes = [
            f"{each['row']:,} tokens trained, too, and took {each['on_card'] / GIB:.2f} GiB of the "
            f"card, more than its budget"
            for each in rows
            if not _is_within_budget(each)
        ]
    if "failed" in first:
        return judge(setting.target, first), f"failed: {first['failed']}", []
    if setting.kind == "first step":
        notes = [
            f"states of the job, seconds since the command began: {first['states']}",
            f"from the supervisor's start {first['since_supervisor']:.1f} s",
        ]
        seconds = f"{first['seconds_to_first_step']:.1f} s"
        return judge(setting.target, first), seconds, notes
    if setting.kind == "telemetry":
        notes = [
            f"seconds per step, {kind}: {[round(each, 4) for each in found]}"
            for kind, found in first["seconds_per_step"].items()
        ]
        verdict = telemetry.judge(first)
        return verdict, ", ".join(verdict.words), notes
    return judge(setting.target, with_all_blocks(first)), measured_words(setting, first), notes


def _is_mistral(record: dict[str, Any]) -> bool:
    return bool(record["trial"]["shapes"] == SETTINGS["E7"].trials[0].shapes)


def _other_calls(lines: Sequence[dict[str, Any]]) -> list[str]:
    """Say which trials another call has measured, and what was another there than in the first."""
    first = lines[0]
    others: dict[str, list[dict[str, Any]]] = {}
    for line in lines[1:]:
        if line["command"] != first["command"]:
            others.setdefault(line["command"], []).append(line)
    return [
        ", ".join(
            [f"{' '.join(line['name'] for line in some)}: `{command}`"]
            + [
                f"{name} {value}"
                for name, value in some[0]["machine"].items()
                if value != first["machine"].get(name)
            ]
        )
        for command, some in others.items()
    ]


def _is_within_budget(record: dict[str, Any]) -> bool:
    """Say whether all that a process took of its card, the driver's part too, was granted to it."""
    return bool(record.get("on_card", 0) <= record["trial"]["budget_gib"] * GIB)


def _stress_words(record: dict[str, Any]) -> str:
    label = record["trial"]["label"]
    if "failed" in record:
        return f"{label}: {record['failed']}: {record.get('message', '')[:300]}"
    few, many = record["documents"]
    return (
        f"{label}: {record['steps']} steps of {record['trial']['rows']} × "
        f"{record['trial']['row']} tokens, {few} to {many} documents a step, "
        f"{record['reserved'] / GIB:.2f} GiB reserved from step {SETTLED_STEPS} on "
        f"(predicted {record['predicted_reserved'] / GIB:.2f}), "
        f"losses {record['losses'][0]:.2f} to {record['losses'][1]:.2f}"
    )


def golden_text(lines: Sequence[dict[str, Any]], known: dict[str, Any]) -> str:
    """Give the file of golden peaks with these lines' records in it, one a line.

    Args:
        lines: of ``all.py``.
        known: the file as it is; its shapes stay, and records of other trials.
    """
    names = {line["name"] for line in lines}
    peaks = [each for each in known["peaks"] if each["trial"]["label"].split()[0] not in names]
    num_known = len(peaks)
    for line in lines:
        record = line["record"]
        is_ours = record.get("system") == "workbench" and "failed" not in record
        if is_ours and record.get("reserved") and "row_documents" in record:
            kept = {name: record[name] for name in _GOLDEN_FIELDS if name in record}
            kept["trial"] = kept["trial"] | {"label": f"{line['name']} {record['trial']['label']}"}
            if "seconds" in kept:
                kept["seconds"] = round(statistics.median(kept["seconds"]), 4)
            peaks.append(kept)
    head = {name: value for name, value in known.items() if name != "peaks"}
    if len(peaks) > num_known:
        machine = next(line["machine"] for line in lines)
        head["machine"] = f"{machine['gpu']}, torch {machine['torch']}, expandable_segments:True"
    shapes = ",\n".join(
        f"    {json.dumps(name)}: {json.dumps(each)}" for name, each in head.pop("shapes").items()
    )
    parts = [f"  {json.dumps(name)}: {json.dumps(value)}" for name, value in head.items()]
    parts.append(f'  "shapes": {{\n{shapes}\n  }}')
    body = ",\n".join(f"    {json.dumps(each, ensure_ascii=False)}" for each in peaks)
    parts.append(f'  "peaks": [\n{body}\n  ]' if peaks else '  "peaks": []')
    return "{\n" + ",\n".join(parts) + "\n}\n"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("records", nargs="+", type=Path, help="lines of all.py, oldest file first")
    parser.add_argument("--results", type=Path, default=REPOSITORY / "benchmarks" / "results")
    parser.add_argument("--golden", type=Path, default=GOLDEN)
    parser.add_argument("--readme", type=Path, default=REPOSITORY / "README.md")
    options = parser.parse_args(arguments)
    lines = read_lines(options.records)
    for setting in (*SETTINGS.values(), STRESS):
        own = lines_of(setting.name, lines)
        if not own:
            continue
        records = [line["record"] for line in own]
        verdict, measured, notes = outcome(setting, records)
        path = write_result(
            options.results,
            setting,
            command=own[0]["command"],
            machine=own[0]["machine"],
            date=max(line["date"] for line in own),
            records=records,
            verdict=verdict,
            measured=measured,
            notes=[*notes, *_other_calls(own)],
        )
        print(f"{setting.name} {verdict}; {path}")
    golden = golden_text(lines, json.loads(options.golden.read_text(encoding="utf-8")))
    options.golden.write_text(golden, encoding="utf-8")
    return readme_table.main(["--readme", str(options.readme), "--results", str(options.results)])


if __name__ == "__main__":
    sys.exit(main())
