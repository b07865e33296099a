"""``workbench data preview``: what is trained on, as text, tokens or rows, with its statistics.

Invariant: what is shown are the records of the worker, which come from the batches of the run.
"""

import argparse
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import msgspec

from workbench.cli import output
from workbench.cli.config_arguments import ConfigArguments, read_config_arguments
from workbench.cli.findings_text import finding_json, finding_lines
from workbench.cli.paint import Paint, add_look_options, page_width, paint_of
from workbench.cli.preparing import take_progress
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

_SHOWN_DOCUMENTS, _SHOWN_ROWS = 3, 4


def run_preview(arguments: Sequence[str]) -> int:
    """Show batches and statistics as they come from the worker."""
    read = read_config_arguments(
        arguments,
        verb="data preview",
        summary="Show what is trained on: the very batches of the run, their mask, lengths, "
        "padding.",
        add_options=_add_preview_options,
        examples=(
            ("data preview -t demo", "the first batch, lengths, padding, steps"),
            ("data preview -t demo -n 10 --step 40", "ten documents of step 40"),
            ("data preview -t demo --document 17 --tokens", "one, token by token"),
            ("data preview -t demo --rows data.packing=none", "rows as the model gets them"),
            ("data preview -t demo --split validation --json", "what is evaluated, for machines"),
        ),
    )
    options = read.options
    records = take_progress(
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
    page = _Page(read, paint_of(read.options), page_width())
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
    add_look_options(parser)


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
                findings.append(finding_json(record))
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
