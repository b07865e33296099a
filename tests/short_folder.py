"""A folder with a short path, for sockets: tests with long names have long temporary folders."""

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def short_folder() -> Iterator[Path]:
    """Make a folder of this user alone, and remove it with all it holds."""
    path = Path(tempfile.mkdtemp(prefix="wb-"))
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)
