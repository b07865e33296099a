"""Publishes and verifies model folders in a worker that knows tensors.

What comes is typed in ``control/publish_records``. Invariant: however the caller leaves, the worker
is gone, and of a folder that is not complete nothing is left.
"""

from collections.abc import Generator, Iterator, Sequence
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import msgspec

from workbench.control.publish_records import (
    AnyRecord,
    Done,
    Notice,
    Progress,
    Published,
    Refused,
    Verified,
)
from workbench.errors import ConfigError, RefusedError, RunError, WorkbenchError
from workbench.jobs.short_workers import run_worker
from workbench.runs.whole_folder import check_free, remove_left_over

__all__ = ["Notice", "Progress", "Published", "Verified", "publish", "verify_logits"]

_MODULE = "workbench.model"
_KINDS: dict[int, type[WorkbenchError]] = {
    kind.exit_status: kind for kind in (WorkbenchError, ConfigError, RefusedError)
}


def publish(
    folders: Sequence[Path], destination: Path, gguf: str | None = None
) -> Iterator[Progress | Notice | Published]:
    """Publish a checkpoint; ``Published`` comes last.

    Args:
        folders: the checkpoint; further ones are what other hosts hold of it.
        destination: a folder that is not there yet.
        gguf: also write a GGUF file of this type.

    Raises:
        WorkbenchError: it was refused, or the worker died; nothing is at the destination.
    """
    check_free(destination)
    request = {
        "folders": [str(folder.absolute()) for folder in folders],
        "destination": str(destination.absolute()),
        "gguf": gguf,
    }
    try:
        with closing(_records("finalize", request)) as records:
            for record in records:
                assert isinstance(record, Progress | Notice | Published), record
                yield record
    finally:
        # A worker that was left or killed had no time for it.
        with suppress(RunError, OSError):
            remove_left_over(destination)


def verify_logits(folder: Path) -> Iterator[Progress | Verified]:
    """Compare our logits of a model folder with those of transformers; ``Verified`` comes last.

    Raises:
        WorkbenchError: they differ, the folder is no model of ours, or the worker died.
    """
    with closing(_records("verify", {"folder": str(folder.absolute())})) as records:
        for record in records:
            assert isinstance(record, Progress | Verified), record
            yield record


def _records(mode: str, request: object) -> Generator[AnyRecord, None, None]:
    with closing(run_worker(_MODULE, [mode], request)) as contents:
        for content in contents:
            if content is None:
                continue
            record = _read(content, mode)
            if isinstance(record, Refused):
                kind = _KINDS.get(record.exit_status, RunError)
                raise kind(record.what, where=record.where, remedy=record.remedy)
            if not isinstance(record, Done):
                yield record


def _read(content: dict[str, Any], mode: str) -> AnyRecord:
    try:
        record: AnyRecord = msgspec.convert(content, AnyRecord)
    except msgspec.ValidationError as error:
        raise RunError(
            f"printed a record that is not known: {error}",
            where=f"python -m {_MODULE} {mode}",
            remedy="install one version of workbench, not parts of two",
        ) from error
    return record
