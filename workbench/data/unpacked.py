"""Files that end in .gz, unpacked once into the cache, so that rows in them are found by offset.

What lies there is named by the hash of the packed file and may be deleted at any time.
"""

import gzip
import os
import shutil
import zlib
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import IO

from workbench.data.raw_rows import hash_files, reading
from workbench.errors import DataError


def unpack(file: Path, label: str) -> Path:
    """Give a file with the unpacked content; unpacking takes place once for each content.

    Args:
        file: ends in .gz.
        label: its name as complaints show it.

    Raises:
        DataError: it is no gzip file, is damaged, or there is no room for its content.
    """
    folder = _cache_home() / "workbench" / "unpacked"
    unpacked = folder / hash_files([file])
    if unpacked.is_file():
        return unpacked
    try:
        folder.mkdir(parents=True, exist_ok=True)
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
            where=str(folder),
            remedy="make room, set XDG_CACHE_HOME to another folder, or unpack the file yourself",
        ) from error
    return unpacked


def _copy(packed: gzip.GzipFile, unpacked: IO[bytes], label: str) -> None:
    try:
        shutil.copyfileobj(packed, unpacked, 1 << 20)
    except gzip.BadGzipFile as error:
        raise DataError(
            f"is no whole gzip file: {error}", where=label, remedy="fetch or pack it anew"
        ) from error
    except (EOFError, zlib.error) as error:
        raise DataError(
            f"is a damaged gzip file: {error}", where=label, remedy="fetch or pack it anew"
        ) from error


def _cache_home() -> Path:
    stated = os.environ.get("XDG_CACHE_HOME", "")
    if Path(stated).is_absolute():
        return Path(stated)
    try:
        return Path.home() / ".cache"
    except RuntimeError as error:
        raise DataError(
            "neither it nor a home folder is known",
            where="XDG_CACHE_HOME",
            remedy="set it to a folder that can be written",
        ) from error
