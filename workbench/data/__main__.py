"""``python -m workbench.data check``: what is wrong with a config's data, before a job starts.

The first line of standard input is ``{"config": {…}}``, a resolved config. Standard output is
newline-delimited JSON: ``progress``, then every ``finding``, last ``done`` with the counts. It
ends when standard input closes. Exit status: 0, or 2 when a finding is an error.
"""

import json
import os
import sys
import threading
from pathlib import Path

import msgspec

from workbench.config.schema.config import Config
from workbench.config.template_source import template_source
from workbench.data.loader import Loader
from workbench.data.prepare import PreparedData, Progress, prepare_in_steps
from workbench.errors import ConfigError, WorkbenchError

_LEFT_ALONE = 130


def main(arguments: list[str]) -> int:
    """Run one of this package's tasks; there is one, ``check``."""
    if arguments != ["check"]:
        sys.stderr.write("usage: python -m workbench.data check, with a config on stdin\n")
        return 2
    try:
        config = _read_request(sys.stdin.readline())
        threading.Thread(target=_end_with_stdin, daemon=True).start()
        return _check(config)
    except WorkbenchError as error:
        _say("finding", severity="error", where=error.where, what=error.what, remedy=error.remedy)
        return 2
    except BrokenPipeError:
        os._exit(_LEFT_ALONE)


def _read_request(line: str) -> Config:
    try:
        return msgspec.convert(json.loads(line)["config"], Config)
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"the request is not a resolved config: {error}",
            where="standard input",
            remedy='send {"config": {…}} as one line',
        ) from error


def _end_with_stdin() -> None:
    """Leave at once when nobody is there any more to read what is found."""
    while os.read(sys.stdin.fileno(), 4096):
        pass
    os._exit(_LEFT_ALONE)


def _check(config: Config) -> int:
    if config.model.path is None:
        raise ConfigError("is not set", where="model.path", remedy="name a model folder: -M PATH")
    folder = Path(config.model.path)
    template = template_source(config.data.chat_template, folder)
    prepared = None
    for item in prepare_in_steps(config, folder, template):
        if isinstance(item, Progress):
            _say("progress", stage=item.stage, done=item.done, total=item.total)
        else:
            prepared = item
    assert prepared is not None, "the last item is the data"
    for finding in prepared.findings.shown():
        _say("finding", **vars(finding))
    _say("done", counts=_counts(prepared, config))
    return 2 if prepared.findings.num_errors else 0


def _counts(prepared: PreparedData, config: Config) -> dict[str, int]:
    conversations = prepared.num_conversations
    return {
        "train_conversations": conversations.train,
        "validation_conversations": conversations.validation,
        "test_conversations": conversations.test,
        "train_rows": len(prepared.train),
        "train_tokens": prepared.train.num_tokens,
        "train_targets": prepared.train.num_targets,
        "longest_row": prepared.train.longest,
        "validation_rows": len(prepared.validation),
        "validation_targets": prepared.validation.num_targets,
        "steps_per_epoch": _steps_per_epoch(prepared, config),
    }


def _steps_per_epoch(prepared: PreparedData, config: Config) -> int:
    if not len(prepared.train):
        return 0
    return Loader(
        prepared.train,
        rows_per_step=config.batch.train,
        shuffle=config.data.shuffle,
        seed=config.training.seed,
        pad_id=prepared.pad_id,
        row_length=None,
    ).steps_per_epoch


def _say(kind: str, **fields: object) -> None:
    sys.stdout.write(json.dumps({"type": kind, **fields}, ensure_ascii=False) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
