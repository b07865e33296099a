"""Checks, prepares and shows a config's data, in a worker that knows tokenizer and template.

What comes is typed in ``control/data_records``: ``Progress`` while data is prepared, then findings,
then what was asked for, last ``Done``. Closing an iterator ends its worker; what is prepared by
then is not kept. A silent worker's last ``Progress`` is repeated, so that a thread can leave.
"""

from collections.abc import Iterator, Mapping

import msgspec

from workbench.config.load import ResolvedConfig
from workbench.control.data_records import (
    AnyRecord,
    Bar,
    Counts,
    Document,
    Done,
    Finding,
    Padding,
    Progress,
    Refused,
    Row,
    Share,
    Split,
    Statistics,
    Step,
    Token,
)
from workbench.errors import DataError, RunError
from workbench.jobs.short_workers import run_worker

__all__ = [
    "AnyRecord",
    "Bar",
    "Counts",
    "Document",
    "Done",
    "Finding",
    "Padding",
    "Progress",
    "Refused",
    "Row",
    "Share",
    "Split",
    "Statistics",
    "Step",
    "Token",
    "check",
    "counts",
    "prepare",
    "preview",
]

_MODULE = "workbench.data"


def check(
    resolved: ResolvedConfig, *, shows_all: bool = False, is_brief: bool = False
) -> Iterator[Progress | Finding | Done]:
    """Find everything that is wrong with the data; fill the cache where it is not.

    Args:
        resolved: the config.
        shows_all: give every finding; else the first of each kind, and how many there are.
        is_brief: give the first two of each kind.

    Raises:
        RunError: the worker died.
    """
    for record in _records("check", resolved, {"all": shows_all, "brief": is_brief}):
        assert isinstance(record, Progress | Finding | Done), record
        yield record


def prepare(resolved: ResolvedConfig) -> Iterator[Progress | Finding | Done]:
    """Fill the cache, so that a run starts at once.

    Raises:
        RunError: the worker died.
    """
    for record in _records("prepare", resolved, {}):
        assert isinstance(record, Progress | Finding | Done), record
        yield record


def preview(
    resolved: ResolvedConfig,
    *,
    split: Split = "train",
    step: int = 1,
    num_rows: int | None = None,
    document: int | None = None,
    statistics: bool = True,
) -> Iterator[AnyRecord]:
    """Give the rows of a step of the run as the model gets them, and then the statistics.

    Of findings come the first two of each kind.

    Args:
        resolved: the config.
        split: which rows; of validation, a step is a batch of an evaluation.
        step: from 1.
        num_rows: of the step; None gives all of them.
        document: give this one of the split, from 1, in place of a step.
        statistics: give them behind the rows; they look at every length.

    Raises:
        DataError: there is no such step or document.
        RunError: the worker died.
    """
    request = {
        "split": split,
        "step": step,
        "num_rows": num_rows,
        "document": document,
        "statistics": statistics,
        "brief": True,
    }
    yield from _records("preview", resolved, request)


def counts(resolved: ResolvedConfig) -> Done | None:
    """Say what the data comes to, if it is prepared; None if it is not.

    Raises:
        DataError: a file, the template or the tokenizer is wrong.
        RunError: the worker died.
    """
    for record in _records("counts", resolved, {}):
        if isinstance(record, Finding):
            raise DataError(record.what, where=record.where, remedy=record.remedy)
        if isinstance(record, Done):
            return record if record.prepared else None
    raise AssertionError("a worker that ends without a last record has died")


def _records(
    mode: str, resolved: ResolvedConfig, request: Mapping[str, object]
) -> Iterator[AnyRecord]:
    said = {"config": msgspec.to_builtins(resolved.config), **request}
    latest = Progress(stage="starting", done=0, total=0)
    yield latest
    is_preparing = True
    for content in run_worker(_MODULE, [mode], said):
        if content is None:
            if is_preparing:
                yield latest
            continue
        try:
            record = msgspec.convert(content, AnyRecord, str_keys=True)
        except msgspec.ValidationError as error:
            raise RunError(
                f"printed a record that is not known: {error}",
                where=f"python -m {_MODULE} {mode}",
                remedy="install one version of workbench, not parts of two",
            ) from error
        if isinstance(record, Refused):
            raise DataError(record.what, where=record.where, remedy=record.remedy)
        if isinstance(record, Progress):
            latest = record
        else:
            is_preparing = False
        yield record
