"""A folder that appears whole or not at all: written beside its name, renamed when it is complete.

What is being written is called ``NAME.partial`` and holds a marker, locked as long as its writer
lives. Whoever dies leaves a ``.partial`` that the next writer removes; one without our marker is
somebody else's and is left alone. Invariant: under ``NAME`` there is nothing, or everything.
"""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from workbench.errors import DataError, RunError
from workbench.runs.atomic import sync_folder
from workbench.runs.layout import PARTIAL_SUFFIX
from workbench.runs.lock import is_locked, take_lock

MARKER = ".workbench-writing"


def partial_of(destination: Path) -> Path:
    """Give the name under which a folder is being written."""
    return destination.with_name(f"{destination.name}{PARTIAL_SUFFIX}")


@contextmanager
def whole_folder(destination: Path, source: Path | None = None) -> Iterator[Path]:
    """Give a folder to write into; it gets its name when the block ends, durable, else it goes.

    Files in it must be durable by then.

    Args:
        destination: must not be there, or be an empty folder; parents are made.
        source: what is written comes from here, so a mistake in it is told of here: what was being
            written is gone by then.

    Raises:
        RunError: the destination is taken, somebody else writes it, or it cannot be written.
    """
    check_free(destination)
    partial = partial_of(destination)
    try:
        destination.parent.mkdir(parents=True, exist_ok=True)
        remove_left_over(destination)
        partial.mkdir()
        lock = take_lock(partial / MARKER)
    except FileExistsError as error:
        raise _foreign(partial) from error
    except OSError as error:
        raise _unwritable(destination, error) from error
    assert lock is not None, "a folder just made is nobody else's"
    try:
        yield partial
        for folder, _, _ in os.walk(partial, topdown=False):
            sync_folder(Path(folder))
        check_free(destination)
        partial.rename(destination)
        sync_folder(destination.parent)
    except OSError as error:
        _remove(partial)
        raise _unwritable(destination, error) from error
    except (DataError, RunError) as error:
        _remove(partial)
        if source is None or str(partial) not in error.where:
            raise
        where = error.where.replace(str(partial), str(source))
        remedy = error.remedy.replace(str(partial), str(source))
        raise type(error)(error.what, where=where, remedy=remedy) from error
    except BaseException:
        _remove(partial)
        raise
    finally:
        # A crash before this leaves an empty hidden file in a folder that is complete.
        with suppress(FileNotFoundError):
            (destination / MARKER).unlink()
        lock.release()


def check_free(destination: Path) -> None:
    """See that a name is free for a folder.

    Raises:
        RunError: something is there, apart from an empty folder.
    """
    if not destination.name or destination.name in (".", ".."):
        raise RunError(
            "is no name of a new folder", where=str(destination), remedy="name a folder to make"
        )
    if destination.is_symlink() or destination.exists():
        is_empty = (
            destination.is_dir()
            and not destination.is_symlink()
            and next(destination.iterdir(), None) is None
        )
        if not is_empty:
            raise RunError(
                "is there already",
                where=str(destination),
                remedy="name another folder, or remove this one",
            )


def remove_left_over(destination: Path) -> bool:
    """Remove what a writer that died left of a folder; tell whether there was something.

    Raises:
        RunError: a writer is at work, or the folder is not one of ours.
        OSError: it cannot be removed.
    """
    partial = partial_of(destination)
    if not partial.exists() and not partial.is_symlink():
        return False
    is_empty = (
        partial.is_dir() and not partial.is_symlink() and next(partial.iterdir(), None) is None
    )
    if partial.is_symlink() or not (is_empty or (partial / MARKER).is_file()):
        raise _foreign(partial)
    if is_locked(partial / MARKER):
        raise RunError(
            "is being written by another process",
            where=str(partial),
            remedy="wait for it, or name another folder",
        )
    _remove(partial)
    return True


def _remove(partial: Path) -> None:
    """Remove a folder, the marker last: what is left of it stays recognisable."""
    if not partial.is_dir():
        return
    for path in partial.iterdir():
        if path.name == MARKER:
            continue
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()
    (partial / MARKER).unlink(missing_ok=True)
    partial.rmdir()


def _foreign(partial: Path) -> RunError:
    return RunError(
        "is there, and no finished or interrupted work of this program",
        where=str(partial),
        remedy="move it away, or name another folder",
    )


def _unwritable(destination: Path, error: OSError) -> RunError:
    return RunError(
        f"cannot be written: {error.strerror or error}",
        where=str(destination),
        remedy="free space, or name a folder that can be written",
    )
