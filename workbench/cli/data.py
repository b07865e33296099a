"""``workbench data``: check and prepare the data of a config; the preview is beside this file.

Invariant: nothing is trained and no run folder is written; what is prepared is kept for the run.
"""

import argparse
import difflib
import itertools
import shlex
from collections.abc import Iterator, Sequence

import msgspec

from workbench.cli import output
from workbench.cli.config_arguments import ConfigArguments, read_config_arguments
from workbench.cli.data_preview import run_preview
from workbench.cli.findings_text import finding_json, finding_lines
from workbench.cli.main import split_at_verb
from workbench.cli.narration import size
from workbench.cli.paint import Paint, add_look_options, page_width, paint_of
from workbench.cli.preparing import take_progress
from workbench.jobs import data_worker
from workbench.jobs.data_worker import Done, Finding
from workbench.jobs.preflight import counts_in_words

VERBS = {
    "check": "find everything that is wrong with the data, each with its cause and remedy",
    "prepare": "tokenize and pack it now, so that a run starts at once",
    "preview": "show what is trained on: the very batches of the run, lengths, padding",
}


def run(arguments: list[str]) -> int:
    """Run one of the data verbs."""
    before, verb, behind = split_at_verb(arguments)
    match verb:
        case "check":
            return _check(before + behind)
        case "prepare":
            return _prepare(before + behind)
        case "preview":
            return run_preview(before + behind)
        case None if "-h" in before or "--help" in before:
            output.result(_help())
            return 0
        case None:
            output.usage_error("data needs a verb: " + ", ".join(VERBS))
            return 2
        case _:
            near = difflib.get_close_matches(verb, VERBS, n=1)
            guess = f"; did you mean {near[0]}?" if near else ""
            output.usage_error(f"data has no verb {verb}{guess}; see workbench data --help")
            return 2


def _help() -> str:
    lines = "\n".join(f"  {verb:<8}  {line}" for verb, line in VERBS.items())
    return f"""\
usage: workbench data VERB -t CONFIG [OPTIONS] [FLAGS] [KEY=VALUE …]

{lines}

workbench data VERB --help says more."""


# ---- check ------------------------------------------------------------------------------------


def _check(arguments: Sequence[str]) -> int:
    read = read_config_arguments(
        arguments,
        verb="data check",
        summary="Find everything that is wrong with the data of a config, all at once.",
        add_options=_add_check_options,
        examples=(
            ("data check -t 1gpu_llama_7b/default", "the first findings of each kind"),
            ("data check -t mine --all | less", "every one"),
            ("data check -t mine data.skip_bad_rows=true", "as a run that drops bad rows sees it"),
        ),
    )
    shows_all = read.options.all or read.options.json
    records = take_progress(data_worker.check(read.resolved, shows_all=shows_all))
    findings: list[Finding] = []
    done: Done | None = None
    for record in records:
        if isinstance(record, Finding):
            findings.append(record)
        elif isinstance(record, Done):
            done = record
    if read.options.json:
        output.result_json(_check_json(read, findings, done))
    else:
        paint = paint_of(read.options)
        for line in itertools.chain(
            _check_heading(read.resolved.name, findings, done, paint),
            finding_lines(findings, paint, page_width()),
            _check_ending(_all_of(arguments), findings, done, paint),
        ):
            output.result(line)
    return 2 if any(found.severity == "error" for found in findings) else 0


def _add_check_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--all", action="store_true", help="every finding, not only the first of each kind"
    )
    add_look_options(parser)


def _check_heading(
    name: str, findings: Sequence[Finding], done: Done | None, paint: Paint
) -> Iterator[str]:
    num_errors, num_warnings = _num_findings(findings, done)
    told = [
        f"{number:,} {word}{'' if number == 1 else 's'}"
        for number, word in ((num_errors, "error"), (num_warnings, "warning"))
        if number
    ]
    yield f"{paint('Data check', 'title')} · {name}: {', '.join(told) or 'nothing is wrong'}"


def _num_findings(findings: Sequence[Finding], done: Done | None) -> tuple[int, int]:
    if done is not None:
        return done.num_errors, done.num_warnings
    num_errors = sum(found.severity == "error" for found in findings)
    return num_errors, len(findings) - num_errors


def _all_of(arguments: Sequence[str]) -> str:
    """Give the command that shows every finding of what was typed."""
    return shlex.join(["workbench", "data", "check", *arguments, "--all"])


def _check_ending(
    command: str, findings: Sequence[Finding], done: Done | None, paint: Paint
) -> Iterator[str]:
    yield ""
    if done is not None and done.num_hidden:
        yield f"{command} shows every one"
    if any(found.severity == "error" for found in findings):
        yield f"{paint('✗', 'bad')} a run is refused until the errors are mended"
    elif done is not None:
        yield f"{paint('✓', 'good')} {counts_in_words(done)}"


def _check_json(
    read: ConfigArguments, findings: Sequence[Finding], done: Done | None
) -> dict[str, object]:
    num_errors, num_warnings = _num_findings(findings, done)
    return {
        "config": read.resolved.name,
        "num_errors": num_errors,
        "num_warnings": num_warnings,
        "findings": [finding_json(found) for found in findings],
        "counts": None if done is None else msgspec.to_builtins(done.counts),
        "cache": None if done is None else done.cache,
    }


# ---- prepare ----------------------------------------------------------------------------------


def _prepare(arguments: Sequence[str]) -> int:
    read = read_config_arguments(
        arguments,
        verb="data prepare",
        summary="Tokenize and pack the data of a config now, so that a run starts at once.",
        add_options=add_look_options,
        examples=(
            ("data prepare -t 1gpu_llama_7b/default", "once; a start then needs seconds"),
            ("data prepare -t mine data.num_workers=8", "by eight processes"),
        ),
    )
    findings: list[Finding] = []
    done: Done | None = None
    for record in take_progress(data_worker.prepare(read.resolved)):
        if isinstance(record, Finding):
            findings.append(record)
        elif isinstance(record, Done):
            done = record
    paint = paint_of(read.options)
    has_errors = any(found.severity == "error" for found in findings)
    if read.options.json:
        found_json = _check_json(read, findings, done)
        was_cached = done is not None and done.was_cached
        output.result_json({**found_json, "was_prepared": was_cached})
        return 2 if has_errors else 0
    for line in finding_lines(findings, paint, page_width()):
        output.narrate(line)
    if has_errors or done is None:
        output.narrate(f"\nnot prepared; {_all_of(arguments)} shows every finding")
        return 2
    output.result(counts_in_words(done))
    if done.cache is not None:
        when = "was prepared already, in" if done.was_cached else "prepared in"
        output.result(f"{when} {done.cache} ({size(done.cache_bytes)})")
    return 0
