"""``python -m workbench.data check|prepare|preview|counts``: the worker that knows a run's data.

The first line of standard input is a request, ``{"config": {…}, …}`` with a resolved config.
Standard output is newline-delimited JSON, the records of ``control/data_records``: ``progress``
while data is prepared, then findings, what was asked for, last ``done``. It ends when standard
input closes. Exit status: 0, or 2 when a finding is an error.

* ``check`` and ``prepare`` fill the cache; ``"all": true`` shows every finding of a kind.
* ``preview`` gives the rows of a step, or one document, and then the statistics.
* ``counts`` answers from the cache alone.
"""

import os
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

import msgspec

from workbench.config.schema.config import Config
from workbench.config.template_source import template_source
from workbench.control.data_records import (
    AnyRecord,
    Counts,
    Done,
    Finding,
    Progress,
    Refused,
    Split,
)
from workbench.data import prepare
from workbench.data.chat_template import ChatTemplate
from workbench.data.findings import SHOWN_PER_KIND, Findings
from workbench.data.prepare import PreparedData, prepare_in_steps
from workbench.data.preview import Preview
from workbench.data.statistics import loader_of, statistics
from workbench.data.tokenizer import load_tokenizer
from workbench.errors import ConfigError, DataError, WorkbenchError

_LEFT_ALONE = 130
_SHOWN_IN_BRIEF = 2
_MODES = ("check", "prepare", "preview", "counts")


class Request(msgspec.Struct, forbid_unknown_fields=True):
    """What the first line of standard input asks for.

    Attributes:
        config: resolved.
        all: show every finding, not only the first of each kind.
        brief: show still fewer, for who asks about something else.
        split: to preview.
        step: of the run, from 1.
        num_rows: of the step; None gives all of them.
        document: give this one of the split, from 1, in place of a step.
        statistics: give them behind the rows.
    """

    config: Config
    all: bool = False
    brief: bool = False
    split: Split = "train"
    step: int = 1
    num_rows: int | None = None
    document: int | None = None
    statistics: bool = True


def main(arguments: Sequence[str]) -> int:
    """Run one of this package's tasks."""
    if len(arguments) != 1 or arguments[0] not in _MODES:
        sys.stderr.write(
            f"usage: python -m workbench.data {'|'.join(_MODES)}, a request on stdin\n"
        )
        return 2
    (mode,) = arguments
    try:
        request = _read_request(sys.stdin.readline())
        threading.Thread(target=_end_with_stdin, daemon=True).start()
        if mode == "counts":
            return _count(request)
        limit = None if request.all else _SHOWN_IN_BRIEF if request.brief else SHOWN_PER_KIND
        prepared = _prepare(request, limit)
        if mode == "preview" and not _preview(request, prepared):
            return 2
        return _end(request, prepared, limit)
    except WorkbenchError as error:
        _say(Finding(severity="error", where=error.where, what=error.what, remedy=error.remedy))
        return 2
    except BrokenPipeError:
        os._exit(_LEFT_ALONE)


def _read_request(line: str) -> Request:
    try:
        return msgspec.json.decode(line, type=Request)
    except msgspec.MsgspecError as error:
        raise ConfigError(
            f"the request is not one: {error}",
            where="standard input",
            remedy='send {"config": {…}} as one line',
        ) from error


def _end_with_stdin() -> None:
    """Leave at once when nobody is there any more to read what is found."""
    while os.read(sys.stdin.fileno(), 4096):
        pass
    os._exit(_LEFT_ALONE)


def _model_folder(config: Config) -> Path:
    if config.model.path is None:
        raise ConfigError("is not set", where="model.path", remedy="name a model folder: -M PATH")
    return Path(config.model.path)


def _template(config: Config) -> str:
    return template_source(config.data.chat_template, _model_folder(config))


def _prepare(request: Request, limit: int | None) -> PreparedData:
    """Prepare the data, telling how far it is and then what is wrong with it.

    Args:
        request: names the config.
        limit: findings of a kind that are told; None tells all.
    """
    config = request.config
    prepared = None
    for item in prepare_in_steps(config, _model_folder(config), _template(config)):
        if isinstance(item, prepare.Progress):
            _say(Progress(stage=item.stage, done=item.done, total=item.total))
        else:
            prepared = item
    assert prepared is not None, "the last item is the data"
    for finding in _shown(prepared.findings, limit):
        _say(finding)
    return prepared


def _shown(findings: Findings, limit: int | None) -> list[Finding]:
    """Give findings, errors first, those of a kind together."""
    return [
        Finding(severity=found.severity, where=found.where, what=found.what, remedy=found.remedy)
        for found in findings.shown(limit)
    ]


def _preview(request: Request, prepared: PreparedData) -> bool:
    """Say the rows that were asked for, and the statistics; False if there are no such rows."""
    config, split = request.config, request.split
    if not len(prepared.train if split == "train" else prepared.validation):
        return True
    tokenizer = load_tokenizer(_model_folder(config))
    template = ChatTemplate(_template(config), tokenizer.special_tokens)
    preview = Preview(config, prepared, split, tokenizer, template)
    if request.document is None:
        records = preview.step(request.step, request.num_rows)
    else:
        records = preview.document(request.document)
    try:
        for record in records:
            _say(record)
    except DataError as error:
        _say(Refused(where=error.where, what=error.what, remedy=error.remedy))
        return False
    if request.statistics:
        _say(statistics(config, prepared, split))
    return True


def _count(request: Request) -> int:
    config = request.config
    prepared = prepare.find_prepared(config, _model_folder(config), _template(config))
    if prepared is None:
        _say(Done(prepared=False))
        return 0
    return _end(request, prepared, None)


def _end(request: Request, prepared: PreparedData, limit: int | None) -> int:
    """Say what it came to; give the exit status."""
    findings = prepared.findings
    num_findings, num_errors = len(list(findings)), findings.num_errors
    folder = prepared.cache
    _say(
        Done(
            prepared=True,
            counts=_counts(prepared, request.config),
            num_errors=num_errors,
            num_warnings=num_findings - num_errors,
            num_hidden=num_findings - len(_shown(findings, limit)),
            cache=None if folder is None else str(folder),
            cache_bytes=0 if folder is None else _size(folder),
            was_cached=prepared.was_cached,
        )
    )
    return 2 if num_errors else 0


def _counts(prepared: PreparedData, config: Config) -> Counts:
    conversations = prepared.num_conversations
    has_rows = len(prepared.train) > 0
    return Counts(
        train_conversations=conversations.train,
        validation_conversations=conversations.validation,
        test_conversations=conversations.test,
        train_rows=len(prepared.train),
        train_tokens=prepared.train.num_tokens,
        train_targets=prepared.train.num_targets,
        longest_row=prepared.train.longest,
        validation_rows=len(prepared.validation),
        validation_tokens=prepared.validation.num_tokens,
        validation_targets=prepared.validation.num_targets,
        steps_per_epoch=loader_of(config, prepared, "train").steps_per_epoch if has_rows else 0,
        seen_tokens=prepared.train.seen_tokens,
        most_documents=prepared.train.max_documents,
        longest_validation_row=prepared.validation.longest,
    )


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _say(record: AnyRecord) -> None:
    sys.stdout.buffer.write(msgspec.json.encode(record) + b"\n")
    sys.stdout.buffer.flush()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
