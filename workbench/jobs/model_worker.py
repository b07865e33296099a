"""Converts, publishes and verifies model folders in a worker that knows tensors.

What comes is typed in ``control/publish_records``. Invariant: however the caller leaves, the worker
is gone, and of a folder that is not complete nothing is left.
"""

from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import msgspec

from workbench.config.added_tokens_file import AddedTokens
from workbench.control.publish_records import (
    AnyRecord,
    Converted,
    Done,
    Fetched,
    Notice,
    Planned,
    Progress,
    Published,
    Refused,
    Verified,
)
from workbench.errors import ConfigError, RefusedError, RunError, WorkbenchError
from workbench.jobs.short_workers import run_worker
from workbench.runs.whole_folder import check_free, remove_left_over

__all__ = [
    "Converted",
    "Notice",
    "Planned",
    "Progress",
    "Published",
    "Verified",
    "convert",
    "fetch_model",
    "publish",
    "verify_logits",
]

_MODULE = "workbench.model"
_KINDS: dict[int, type[WorkbenchError]] = {
    kind.exit_status: kind for kind in (WorkbenchError, ConfigError, RefusedError)
}


def publish(
    folders: Sequence[Path],
    destination: Path,
    gguf: str | None = None,
    *,
    is_unwanted: Callable[[], bool] = lambda: False,
) -> Iterator[Progress | Notice | Published]:
    """Publish a checkpoint; ``Published`` comes last, unless it is unwanted.

    Args:
        folders: the checkpoint; further ones are what other hosts hold of it.
        destination: a folder that is not there yet.
        gguf: also write a GGUF file of this type.
        is_unwanted: asked several times a second; once it is true the worker ends.

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
        with closing(_records("finalize", request, is_unwanted)) as records:
            for record in records:
                assert isinstance(record, Progress | Notice | Published), record
                yield record
    finally:
        # A worker that was left or killed had no time for it.
        with suppress(RunError, OSError):
            remove_left_over(destination)


def convert(
    source: Path,
    destination: Path,
    *,
    dtype: str | None = None,
    max_length: int | None = None,
    template: str | None = None,
    added: AddedTokens | None = None,
    max_shard_bytes: int | None = None,
    is_dry: bool = False,
    is_unwanted: Callable[[], bool] = lambda: False,
) -> Iterator[Progress | Planned | Converted]:
    """Prepare a model: ``Planned`` comes first, ``Converted`` last; of a dry run the first alone.

    Once it is unwanted nothing more comes.

    Args:
        source: a model folder.
        destination: a folder that is not there yet.
        dtype: of all weights; None: as they are.
        max_length: longest document, tokens; None: as it is.
        template: Jinja source of a chat template; None: as it is.
        added: tokens; None: none.
        max_shard_bytes: no file of weights holds more; None: as is usual.
        is_dry: only plan, write nothing.
        is_unwanted: asked several times a second; once it is true the worker ends.

    Raises:
        WorkbenchError: it was refused, the new folder is not the same model, or the worker died;
            nothing is at the destination.
    """
    check_free(destination)
    request = {
        "source": str(source.absolute()),
        "destination": None if is_dry else str(destination.absolute()),
        "dtype": dtype,
        "max_length": max_length,
        "template": template,
        "added": added,
        "max_shard_bytes": max_shard_bytes,
    }
    try:
        with closing(_records("convert", request, is_unwanted)) as records:
            for record in records:
                assert isinstance(record, Progress | Planned | Converted), record
                yield record
    finally:
        # A worker that was left or killed had no time for it.
        with suppress(RunError, OSError):
            if not is_dry:
                remove_left_over(destination)


def fetch_model(hub_id: str) -> Path:
    """Download a model of the hub into the cache of its library; give its folder there.

    Raises:
        WorkbenchError: there is none, it may not be read, or the hub cannot be reached.
    """
    with closing(_records("fetch", {"hub_id": hub_id})) as records:
        for record in records:
            if isinstance(record, Fetched):
                return Path(record.path)
    raise AssertionError("a worker that ends without a last record has died")


def verify_logits(folder: Path) -> Iterator[Progress | Verified]:
    """Compare our logits of a model folder with those of transformers; ``Verified`` comes last.

    Raises:
        WorkbenchError: they differ, the folder is no model of ours, or the worker died.
    """
    with closing(_records("verify", {"folder": str(folder.absolute())})) as records:
        for record in records:
            assert isinstance(record, Progress | Verified), record
            yield record


def _records(
    mode: str, request: object, is_unwanted: Callable[[], bool] = lambda: False
) -> Generator[AnyRecord, None, None]:
    with closing(run_worker(_MODULE, [mode], request)) as contents:
        for content in contents:
            if is_unwanted():
                return
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
