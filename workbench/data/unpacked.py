"""Files that end in .gz, unpacked once into the cache, so that rows in them are found by offset.

What lies there is named by the hash of the packed file and may be deleted at any time; what nobody
has used for as long as the cache of prepared data keeps things goes with the next unpacking.
"""

import gzip
import os
import shutil
import time
import zlib
from contextlib import suppress
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import IO

from workbench.data.cache import KEPT_DAYS, cache_folder
from workbench.data.raw_rows import hash_files, reading
from workbench.errors import DataError

_SECONDS_PER_DAY = 86400.0


def unpack(file: Path, label: str) -> Path:
    """Give a file with the unpacked content; unpacking takes place once for each content.

    Args:
        file: ends in .gz.
        label: its name as complaints show it.

    Raises:
        DataError: it is no gzip file, is damaged, or there is no room for its content.
    """
    name = hash_files([file])
    folder: Path | None = None
    try:
        folder = cache_folder().with_name("unpacked")
        unpacked = folder / name
        if unpacked.is_file():
            with suppress(OSError):  # a cache that others made may be read-only to us
                os.utime(unpacked)
            return unpacked
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        _remove_unused(folder, time.time() - KEPT_DAYS * _SECONDS_PER_DAY)
        with NamedTemporaryFile(dir=folder, suffix=".partial", delete=False) as beside:
            try:
                with reading(file), gzip.open(file) as packed:
                    _copy(packed, beside, label)
                beside.flush()
                Path(beside.name).replace(unpacked)
            finally:
                Path(beside.name).unlink(missing_ok=True)
    except OSError as error:
        raise DataError(
            f"{label} cannot be unpacked here: {error.strerror or error}",
            where=str(folder or "XDG_CACHE_HOME"),
            remedy="make room, set XDG_CACHE_HOME to another folder, or unpack the file yourself",
        ) from error
    return unpacked


def _copy(packed: gzip.GzipFile, unpacked: IO[bytes], label: str) -> None:
    try:
        shutil.copyfileobj(packed, unpacked, 1 << 20)
    except gzip.BadGzipFile as error:
        raise DataError(
            f"is no whole gzip file: {error}",
            where=label,
            remedy="fetch or pack it anew, or take .gz off its name if it is not packed",
        ) from error
    except (EOFError, zlib.error) as error:
        raise DataError(
            f"is a damaged gzip file: {error}", where=label, remedy="fetch or pack it anew"
        ) from error


def _remove_unused(folder: Path, before: float) -> None:
    for path in folder.iterdir():
        with suppress(OSError):  # another process may have removed it
            if path.stat().st_mtime < before:
                path.unlink()
