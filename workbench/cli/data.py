"""``workbench data``: check, prepare and preview the data of a config.

Invariant: nothing is trained and no run folder is written; what is prepared is kept for the run.
"""

import argparse
import difflib
import itertools
import os
import shlex
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import msgspec

from workbench.cli import output
from workbench.cli.config_arguments import ConfigArguments, read_config_arguments
from workbench.cli.main import split_at_verb
from workbench.cli.narration import size
from workbench.cli.paint import Paint, broken, visible, wants_colour
from workbench.cli.preparing import Preparing
from workbench.cli.preview_text import (
    before_lines,
    behind_lines,
    document_heading,
    document_lines,
    head_lines,
    padding_line,
    row_heading,
    row_legend,
    row_lines,
    text_legend,
    token_legend,
    token_lines,
)
from workbench.cli.statistics_text import statistics_lines
from workbench.jobs import data_worker
from workbench.jobs.data_worker import (
    AnyRecord,
    Done,
    Finding,
    Progress,
    Refused,
    Row,
    Statistics,
    Step,
    Token,
)
from workbench.jobs.preflight import counts_in_words

VERBS = {
    "check": "find everything that is wrong with the data, each with its cause and remedy",
    "prepare": "tokenize and pack it now, so that a run starts at once",
    "preview": "show what is trained on: the very batches of the run, lengths, padding",
}

_MOST_COLUMNS = 160
_SHOWN_DOCUMENTS, _SHOWN_ROWS = 3, 4


def run(arguments: list[str]) -> int:
    """Run one of the data verbs."""
    before, verb, behind = split_at_verb(arguments)
    match verb:
        case "check":
            return _check(before + behind)
        case "prepare":
            return _prepare(before + behind)
        case "preview":
            return _preview(before + behind)
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


def _page_width() -> int:
    return min(shutil.get_terminal_size((80, 24)).columns, _MOST_COLUMNS)


def _take_progress(records: Iterator[AnyRecord]) -> Iterator[AnyRecord]:
    """Show how far preparing is, and give the other records."""
    with Preparing() as preparing:
        for record in records:
            if isinstance(record, Progress):
                preparing.show(record)
            else:
                output.passing("")
                yield record


# ---- check ------------------------------------------------------------------------------------


def _check(arguments: Sequence[str]) -> int:
    read = read_config_arguments(
        arguments,
        verb="data check",
        summary="Find everything that is wrong with the data of a config, all at once.",
        add_options=_add_check_options,
    )
    shows_all = read.options.all or read.options.json
    records = _take_progress(data_worker.check(read.resolved, shows_all=shows_all))
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
        paint = _paint(read)
        for line in itertools.chain(
            _check_heading(read.resolved.name, findings, done, paint),
            finding_lines(findings, paint, _page_width()),
            _check_ending(_all_of(arguments), findings, done, paint),
        ):
            output.result(line)
    return 2 if any(found.severity == "error" for found in findings) else 0


def _add_check_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--all", action="store_true", help="every finding, not only the first of each kind"
    )
    _add_shared_options(parser)
    _add_examples(
        parser,
        "workbench data check -t 1gpu_llama_7b/default",
        "workbench data check -t mine --all | less",
        "workbench data check -t mine data.skip_bad_rows=true",
    )


def _add_shared_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--no-color", action="store_true", help="no colour, also on a terminal")
    parser.add_argument("--json", action="store_true", help="one JSON object")


def _add_examples(parser: argparse.ArgumentParser, *examples: str) -> None:
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = "\n".join(("examples:", *(f"  {example}" for example in examples)))


def _paint(read: ConfigArguments) -> Paint:
    return Paint(has_colour=wants_colour(os.environ, is_refused=read.options.no_color))


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


def finding_lines(findings: Sequence[Finding], paint: Paint, width: int) -> Iterator[str]:
    """Give findings: under one remedy all that have it, under one heading all that say the same."""
    for (severity, remedy), alike in itertools.groupby(
        findings, key=lambda found: (found.severity, found.remedy)
    ):
        yield ""
        mark = paint("✗", "bad") if severity == "error" else paint("!", "warn")
        for what, group in itertools.groupby(alike, key=lambda found: found.what):
            places = [visible(found.where) for found in group]
            said = visible(what) if len(places) > 1 else f"{places[0]}: {visible(what)}"
            first, *others = broken(said, width - 2)
            yield f"{mark} {first}"
            yield from (f"  {line}" for line in others)
            if len(places) > 1:
                yield from (f"    {place}" for place in places)
        first, *others = broken(visible(remedy), width - 4)
        yield paint(f"  → {first}", "quiet")
        yield from (paint(f"    {line}", "quiet") for line in others)


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
        "findings": [_finding_json(found) for found in findings],
        "counts": None if done is None else msgspec.to_builtins(done.counts),
        "cache": None if done is None else done.cache,
    }


def _finding_json(found: Finding) -> dict[str, str]:
    return {
        "severity": found.severity,
        "where": found.where,
        "what": found.what,
        "remedy": found.remedy,
    }


# ---- prepare ----------------------------------------------------------------------------------


def _prepare(arguments: Sequence[str]) -> int:
    read = read_config_arguments(
        arguments,
        verb="data prepare",
        summary="Tokenize and pack the data of a config now, so that a run starts at once.",
        add_options=_add_prepare_options,
    )
    findings: list[Finding] = []
    done: Done | None = None
    for record in _take_progress(data_worker.prepare(read.resolved)):
        if isinstance(record, Finding):
            findings.append(record)
        elif isinstance(record, Done):
            done = record
    paint = _paint(read)
    has_errors = any(found.severity == "error" for found in findings)
    if read.options.json:
        found_json = _check_json(read, findings, done)
        was_cached = done is not None and done.was_cached
        output.result_json({**found_json, "was_prepared": was_cached})
        return 2 if has_errors else 0
    for line in finding_lines(findings, paint, _page_width()):
        output.narrate(line)
    if has_errors or done is None:
        output.narrate(f"\nnot prepared; {_all_of(arguments)} shows every finding")
        return 2
    output.result(counts_in_words(done))
    if done.cache is not None:
        when = "was prepared already, in" if done.was_cached else "prepared in"
        output.result(f"{when} {done.cache} ({size(done.cache_bytes)})")
    return 0


def _add_prepare_options(parser: argparse.ArgumentParser) -> None:
    _add_shared_options(parser)
    _add_examples(
        parser,
        "workbench data prepare -t 1gpu_llama_7b/default",
        "workbench data prepare -t mine data.num_workers=8",
    )


# ---- preview ----------------------------------------------------------------------------------


def _preview(arguments: Sequence[str]) -> int:
    read = read_config_arguments(
        arguments,
        verb="data preview",
        summary="Show what is trained on: the very batches of the run, their mask, lengths, "
        "padding.",
        add_options=_add_preview_options,
    )
    options = read.options
    records = _take_progress(
        data_worker.preview(
            read.resolved,
            split=options.split,
            step=options.step,
            num_rows=_num_shown(options),
            document=options.document,
            statistics=options.document is None,
        )
    )
    if options.json:
        return _preview_json(read, records)
    page = _Page(read, _paint(read), _page_width())
    for record in records:
        for line in page.lines(record):
            output.result(line)
    for line in page.ending():
        output.result(line)
    return 2 if page.has_errors else 0


def _add_preview_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "-n",
        "--number",
        type=_positive,
        metavar="N",
        help=f"how many documents; default: {_SHOWN_DOCUMENTS}, with --tokens 1; with --rows, "
        f"rows, default {_SHOWN_ROWS}",
    )
    parser.add_argument(
        "--split", choices=["train", "validation"], default="train", help="which rows"
    )
    parser.add_argument(
        "--step",
        type=_positive,
        default=1,
        metavar="K",
        help="of the run, from 1; with --split validation, batch of an evaluation",
    )
    parser.add_argument(
        "--document", type=_positive, metavar="K", help="this one of the split, from 1"
    )
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--tokens", action="store_true", help="a line for each token")
    how.add_argument(
        "--rows", action="store_true", help="rows as the model gets them, without their text"
    )
    _add_shared_options(parser)
    _add_examples(
        parser,
        "workbench data preview -t demo",
        "workbench data preview -t demo -n 10 --step 40",
        "workbench data preview -t demo --document 17 --tokens",
        "workbench data preview -t demo --rows data.packing=best_fit",
        "workbench data preview -t demo --split validation --json",
    )


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no number from 1 on")
    return int(text)


def _num_shown(options: argparse.Namespace) -> int:
    """How many documents are shown, or with ``--rows`` rows; each row holds a document."""
    if options.number is not None:
        return int(options.number)
    return _SHOWN_ROWS if options.rows else 1 if options.tokens else _SHOWN_DOCUMENTS


@dataclass
class _Page:
    """Turns records into lines as they come, so that the first text is there at once."""

    read: ConfigArguments
    paint: Paint
    width: int
    has_errors: bool = False
    has_rows: bool = False
    done: Done | None = None
    _findings: list[Finding] = field(default_factory=list)
    _step: Step | None = None
    _num_shown: int = 0
    _num_left: int = 0

    def lines(self, record: AnyRecord) -> Iterator[str]:
        """Give the lines of one record."""
        match record:
            case Finding():
                self.has_errors = self.has_errors or record.severity == "error"
                self._findings.append(record)
            case Step():
                yield from self._tell_findings()
                self._step = record
                yield from head_lines(self.read.resolved.name, record, self.paint, self.width)
                yield self._legend()
            case Row():
                self.has_rows = True
                yield from self._row(record)
            case Statistics():
                yield from self._left_out()
                yield ""
                yield from statistics_lines(record, self.paint, self.width)
            case Done():
                self.done = record
            case Progress() | Refused():
                pass

    def _legend(self) -> str:
        if self.read.options.rows:
            return row_legend(self.paint)
        return token_legend() if self.read.options.tokens else text_legend(self.paint)

    def _row(self, row: Row) -> Iterator[str]:
        assert self._step is not None, "a step comes before its rows"
        options, paint, width = self.read.options, self.paint, self.width
        if options.rows:
            yield ""
            yield from row_lines(row, self._step, paint, width)
            return
        limit = _num_shown(options)
        if len(row.documents) > 1 and self._num_shown < limit:
            yield ""
            yield row_heading(row, self._step, paint, width)
        for document in row.documents:
            if self._num_shown >= limit:
                self._num_left += 1
                continue
            self._num_shown += 1
            yield ""
            yield from document_heading(document, self._step, paint, width)
            yield from before_lines(document, paint)
            if options.tokens:
                yield from token_lines(document, paint, width)
            else:
                yield from document_lines(document, paint, width)
            yield from behind_lines(document, self._step, paint)
        if row.num_padding and not self._num_left:
            yield padding_line(row, paint)

    def _left_out(self) -> Iterator[str]:
        """Say that not all of a step is shown."""
        step = self._step
        if step is None or step.step is None:
            return
        yield ""
        if self.read.options.rows:
            left = step.num_rows - _num_shown(self.read.options)
            if left > 0:
                yield self.paint(f"… {left:,} more rows in this step: -n {step.num_rows}", "quiet")
        elif self._num_left or step.num_rows > _num_shown(self.read.options):
            yield self.paint("… more documents in this step: -n shows as many as you say", "quiet")

    def _tell_findings(self) -> Iterator[str]:
        if not self._findings:
            return
        yield from list(finding_lines(self._findings, self.paint, self.width))[1:]
        yield ""
        self._findings = []

    def ending(self) -> Iterator[str]:
        """Give what is left to say when all records have come."""
        yield from self._tell_findings()
        if not self.has_rows and not self.has_errors:
            yield f"the {self.read.options.split} split has no rows"
        elif self.has_errors:
            yield f"{self.paint('✗', 'bad')} a run is refused until the errors are mended"
        if self.done is not None and self.done.num_hidden:
            yield ""
            yield f"workbench data check -t {shlex.quote(self.read.resolved.name)} --all shows " + (
                f"all {self.done.num_errors + self.done.num_warnings:,} findings"
            )


def _preview_json(read: ConfigArguments, records: Iterator[AnyRecord]) -> int:
    findings: list[dict[str, str]] = []
    rows: list[object] = []
    step: object = None
    statistics: object = None
    done: Done | None = None
    for record in records:
        match record:
            case Finding():
                findings.append(_finding_json(record))
            case Step():
                step = msgspec.to_builtins(record)
            case Row():
                rows.append(_row_json(record))
            case Statistics():
                statistics = msgspec.to_builtins(record, str_keys=True)
            case Done():
                done = record
            case Progress() | Refused():
                pass
    output.result_json(
        {
            "config": read.resolved.name,
            "findings": findings,
            "step": step,
            "rows": rows,
            "statistics": statistics,
            "counts": None if done is None else msgspec.to_builtins(done.counts),
        }
    )
    return 2 if any(found["severity"] == "error" for found in findings) else 0


def _row_json(row: Row) -> dict[str, object]:
    """Give a row for machines, its tokens as objects."""
    return {
        "number": row.number,
        "index": row.index,
        "num_padding": row.num_padding,
        "documents": [
            {
                "number": document.number,
                "where": document.where,
                "start": document.start,
                "num_targets": document.num_targets,
                "tokens": [_token_json(token) for token in document.tokens],
            }
            for document in row.documents
        ],
    }


def _token_json(token: Token) -> dict[str, object]:
    return {name: getattr(token, name) for name in token.__struct_fields__}
