"""JSON files of a model folder, which strangers write: read within bounds, or refused by name.

Whatever lies in a folder's place of a file, a pipe, a folder, gigabytes, a million brackets, ends
in an error that says so. Knows nothing of what the files mean.
"""

import json
import os
import stat
from pathlib import Path
from typing import Any

from workbench.errors import RunError, WorkbenchError

LARGEST_JSON_BYTES = 100_000_000
"""No config comes near; tokenizers of a quarter of a million tokens have a third of it."""

_COPY_ANEW = "copy the file anew from the model's source"


def read_json_object(path: Path, error_kind: type[WorkbenchError]) -> dict[str, Any]:
    """Read a JSON object.

    Args:
        path: of the file.
        error_kind: is raised where it cannot be read.

    Raises:
        FileNotFoundError: nothing is there.
        WorkbenchError: of ``error_kind``: it is no file, too large, no JSON, or no object.
    """
    check_plain_file(path, error_kind)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise
    except OSError as error:
        raise error_kind(
            f"cannot be read: {error.strerror}", where=str(path), remedy="check its permissions"
        ) from error
    except ValueError as error:
        raise error_kind(f"is not JSON: {error}", where=str(path), remedy=_COPY_ANEW) from error
    except RecursionError as error:
        raise error_kind(
            "is not JSON: nested too deeply", where=str(path), remedy=_COPY_ANEW
        ) from error
    if not isinstance(content, dict):
        raise error_kind("is not a JSON object", where=str(path), remedy=_COPY_ANEW)
    return content


def check_there(path: Path) -> None:
    """See that what lies beside the weights is a file that can be read.

    Raises:
        RunError: it is none, or too large.
    """
    try:
        check_plain_file(path, RunError)
    except FileNotFoundError as error:
        raise RunError("leads to nothing", where=str(path), remedy=_COPY_ANEW) from error


def check_plain_file(
    path: Path, error_kind: type[WorkbenchError], most_bytes: int = LARGEST_JSON_BYTES
) -> None:
    """See that a path is a file that can be read to its end: who opens a pipe may wait for ever.

    Raises:
        FileNotFoundError: nothing is there.
        WorkbenchError: of ``error_kind``: it is no file, or larger than such a file may be.
    """
    try:
        found = path.stat()
    except FileNotFoundError:
        raise
    except OSError as error:
        raise error_kind(
            f"cannot be read: {error.strerror}", where=str(path), remedy=_COPY_ANEW
        ) from error
    if not stat.S_ISREG(found.st_mode):
        raise error_kind("is no file", where=str(path), remedy=_COPY_ANEW)
    if not os.access(path, os.R_OK, effective_ids=True):
        raise error_kind("may not be read", where=str(path), remedy="check its permissions")
    if found.st_size > most_bytes:
        raise error_kind(
            f"has {found.st_size / 1e6:,.0f} MB, more than such a file can need",
            where=str(path),
            remedy=_COPY_ANEW,
        )
