"""Prepared data on disk, found again by a key made of all that it depends on.

Knows folders, keys and sizes, nothing of what the files mean. An entry is filled in a folder of its
filler's own, made durable and renamed: whoever finds it finds all of it. Two fillers of one key end
with the entry of the first. A crash leaves its ``.partial`` folder, which the next filler removes:
a lock that its owner held says whether that one is gone.
"""

import fcntl
import hashlib
import json
import os
import re
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import msgspec

from workbench.data.token_store import sync_files
from workbench.runs.atomic import sync_folder

KEPT_DAYS = 30.0

_MANIFEST = "manifest.json"
_OWNER = "owner"
_ENTRY_NAME = re.compile(r"[0-9a-f]{32}")
_PARTIAL_NAME = re.compile(r"[0-9a-f]{32}\.[0-9a-z_]+\.partial")
_SECONDS_PER_DAY = 86400.0


class _Manifest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What makes an entry one: whose it is, and the size in bytes of each file."""

    key: str
    files: dict[str, int]


def cache_folder() -> Path:
    """Say where prepared data is kept; nothing is made.

    Raises:
        OSError: neither XDG_CACHE_HOME nor a home folder is known.
    """
    cache_home = Path(os.environ.get("XDG_CACHE_HOME", ""))
    if not cache_home.is_absolute():
        try:
            cache_home = Path.home() / ".cache"
        except RuntimeError as error:
            raise OSError("this user has no home folder, and XDG_CACHE_HOME is not set") from error
    return cache_home / "workbench" / "data"


def key_of(inputs: Mapping[str, Any]) -> str:
    """Hash what an entry depends on: 32 hexadecimal digits.

    Args:
        inputs: as JSON can state them; their order does not count.
    """
    stated = json.dumps(inputs, sort_keys=True, ensure_ascii=True, separators=(",", ":"))
    return hashlib.sha256(stated.encode()).hexdigest()[:32]


def find_entry(folder: Path, key: str) -> Path | None:
    """Give the entry of a key if it is whole; one that is not is no entry.

    Args:
        folder: of the cache.
        key: of the entry.
    """
    entry = folder / key
    try:
        manifest = msgspec.json.decode((entry / _MANIFEST).read_bytes(), type=_Manifest)
        sizes = {name: (entry / name).stat().st_size for name in manifest.files}
    except (OSError, ValueError):
        return None
    if manifest.key != key or sizes != manifest.files:
        return None
    return entry


def mark_used(entry: Path) -> None:
    """Note that an entry is used, which keeps it for another while."""
    with suppress(OSError):  # a cache that others made may be read-only to us, and is as good
        os.utime(entry / _MANIFEST)


def discard(entry: Path) -> None:
    """Remove an entry whose files turned out to be unusable."""
    _remove(entry)


@dataclass(frozen=True)
class Filling:
    """An entry on its way.

    Attributes:
        folder: to write its files into.
    """

    folder: Path
    _cache: Path
    _key: str

    def finish(self) -> Path:
        """Make the entry durable and put it in its place; give where it is.

        Raises:
            OSError: it cannot be written.
        """
        paths = [path for path in self.folder.rglob("*") if path.is_file()]
        files = {str(path.relative_to(self.folder)): path.stat().st_size for path in paths}
        del files[_OWNER]
        manifest = _Manifest(key=self._key, files=files)
        (self.folder / _MANIFEST).write_bytes(msgspec.json.encode(manifest))
        sync_files(self.folder)
        entry = self._cache / self._key
        if find_entry(self._cache, self._key) is None:
            _remove(entry)  # one that is not whole: a rename takes no place that is taken
            try:
                self.folder.rename(entry)
            except OSError:
                # Somebody else was faster by so little; theirs has the same content.
                if find_entry(self._cache, self._key) is None:
                    raise
            else:
                (entry / _OWNER).unlink()
                sync_folder(self._cache)
        return entry


@contextmanager
def filling(folder: Path, key: str) -> Iterator[Filling]:
    """Make a folder to fill an entry in; what is not finished is removed.

    Left-overs of fillers that died are removed first, and entries that nobody has used for 30
    days.

    Args:
        folder: of the cache; made if it is not there.
        key: of the entry.

    Raises:
        OSError: the folder cannot be written.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    with _locked(folder / "lock"):
        # Under the lock, so that nobody takes a folder whose owner is not in yet for left over.
        _remove_left_over(folder)
        _remove_unused(folder, time.time() - KEPT_DAYS * _SECONDS_PER_DAY)
        partial = Path(mkdtemp(prefix=f"{key}.", suffix=".partial", dir=folder))
        owner = _lock_owner(partial)
    try:
        yield Filling(partial, folder, key)
    finally:
        _remove(partial)
        os.close(owner)


def _lock_owner(partial: Path) -> int:
    descriptor = os.open(partial / _OWNER, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    return descriptor


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _remove_left_over(folder: Path) -> None:
    """Remove the folders of fillers that are gone."""
    for partial in folder.iterdir():
        if not _PARTIAL_NAME.fullmatch(partial.name):
            continue
        try:
            descriptor = os.open(partial / _OWNER, os.O_RDWR | os.O_CLOEXEC)
        except OSError:
            _remove(partial)  # its owner died before it could lock it
            continue
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            _remove(partial)
        except BlockingIOError:
            pass  # it is being filled
        finally:
            os.close(descriptor)


def _remove_unused(folder: Path, before: float) -> None:
    """Remove entries that were last used before a point in time, in seconds since the epoch."""
    for entry in folder.iterdir():
        if not _ENTRY_NAME.fullmatch(entry.name):
            continue
        used = entry / _MANIFEST if (entry / _MANIFEST).exists() else entry
        if used.lstat().st_mtime < before:
            _remove(entry)


def _remove(path: Path) -> None:
    """Remove one of our folders, or what stands in its place; a link is not followed.

    The manifest goes first, so that half of an entry is none. What cannot be removed stays: a
    filler that needs the place finds it taken.
    """
    with suppress(OSError):
        if path.is_symlink() or path.is_file():
            path.unlink()
            return
        (path / _MANIFEST).unlink(missing_ok=True)
        shutil.rmtree(path, ignore_errors=True)
