"""The list that completes a checkpoint: size and hash of every file in it.

Written last, into the folder that is still ``.partial``. Reading it costs a stat per file; hashes
are compared only when somebody asks for it. Invariant: a checkpoint without a manifest that agrees
is not one.
"""

import hashlib
import os
from collections.abc import Generator, Iterator, Mapping
from pathlib import Path, PurePosixPath

import msgspec

from workbench.errors import RunError
from workbench.runs.atomic import write_atomically
from workbench.runs.layout import CheckpointFolder

MANIFEST_VERSION = 1
# A manifest has some hundred bytes per file; anything near this is not one of ours.
_LARGEST_MANIFEST_BYTES = 16 << 20
_HASH_CHUNK_BYTES = 1 << 20


class WrittenFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What was written: number of bytes, and their SHA-256 in hexadecimal digits."""

    bytes: int
    sha256: str


class Manifest(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True
):
    """Every file of a checkpoint by its path inside the folder, with ``/`` between the parts.

    Attributes:
        version: of this format.
        step: optimizer updates that the checkpoint holds.
        num_ranks: ranks that wrote it.
        files: what lies in this folder.
        elsewhere: what lies in the folders of other hosts, by host; only where each keeps its own.
    """

    version: int
    step: int
    num_ranks: int
    files: dict[str, WrittenFile]
    elsewhere: dict[str, dict[str, WrittenFile]] = {}

    @property
    def total_bytes(self) -> int:
        """Sum over all files, the manifest itself left out."""
        return sum(written.bytes for written in self.files.values())


def write_manifest(
    folder: Path,
    files: Mapping[str, WrittenFile],
    step: int,
    num_ranks: int,
    elsewhere: Mapping[str, Mapping[str, WrittenFile]] | None = None,
) -> Manifest:
    """Write ``manifest.json``, durable when this returns.

    Args:
        folder: the checkpoint, usually still ``.partial``.
        files: what was written, by path relative to the folder.
        step: optimizer updates that the checkpoint holds.
        num_ranks: ranks that wrote it.
        elsewhere: what other hosts keep of it, by host.

    Raises:
        OSError: the folder cannot be written.
    """
    for name in files:
        assert _is_inside(name), f"{name!r} does not lie in the checkpoint"
    manifest = Manifest(
        version=MANIFEST_VERSION,
        step=step,
        num_ranks=num_ranks,
        files=dict(sorted(files.items())),
        elsewhere={host: dict(held) for host, held in (elsewhere or {}).items()},
    )
    content = msgspec.json.format(msgspec.json.encode(manifest), indent=2) + b"\n"
    write_atomically(CheckpointFolder(folder).manifest, content)
    return manifest


def read_manifest(folder: Path) -> Manifest:
    """Read the manifest of a checkpoint.

    Raises:
        RunError: there is none, or it is not a manifest of this version.
    """
    path = CheckpointFolder(folder).manifest
    remedy = "use another checkpoint; this one was not completed"
    try:
        if path.stat().st_size > _LARGEST_MANIFEST_BYTES:
            raise RunError("is too large for a manifest", where=str(path), remedy=remedy)
        manifest = msgspec.json.decode(path.read_bytes(), type=Manifest)
    except OSError as error:
        raise RunError(
            f"has no readable manifest ({error.strerror})", where=str(folder), remedy=remedy
        ) from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise RunError(f"is not a manifest: {error}", where=str(path), remedy=remedy) from error
    if manifest.version != MANIFEST_VERSION:
        raise RunError(
            f"has version {manifest.version}, this program reads {MANIFEST_VERSION}",
            where=str(path),
            remedy="use the version of workbench that wrote it",
        )
    return manifest


def disagreements(folder: Path, manifest: Manifest) -> Iterator[str]:
    """Say each way in which the folder differs from its manifest in names and sizes.

    Files that the manifest does not name are left alone: a user's note spoils no checkpoint.
    """
    for name, written in manifest.files.items():
        if not _is_inside(name):
            yield f"{name!r} does not lie in the checkpoint"
            continue
        try:
            found = (folder / name).stat()
        except OSError:
            yield f"{name} is missing"
            continue
        if found.st_size != written.bytes:
            yield f"{name} has {found.st_size:,} bytes, manifest says {written.bytes:,}"


def problem_of(folder: Path) -> str | None:
    """Say why a checkpoint is not complete, or None where its manifest agrees."""
    try:
        manifest = read_manifest(folder)
    except RunError as error:
        return error.what
    return next(disagreements(folder, manifest), None)


def agrees(folder: Path) -> bool:
    """Tell whether the manifest agrees with the folder in names and sizes."""
    return problem_of(folder) is None


def verify(folder: Path) -> Manifest:
    """Compare names, sizes and hashes; read every byte.

    Raises:
        RunError: the first file that differs.
    """
    steps = verifying(folder)
    while True:
        try:
            next(steps)
        except StopIteration as end:
            manifest: Manifest = end.value
            return manifest


def verifying(folder: Path) -> Generator[int, None, Manifest]:
    """Do what ``verify`` does and yield after each piece how many bytes have been read so far.

    Raises:
        RunError: the first file that differs.
    """
    manifest = read_manifest(folder)
    for difference in disagreements(folder, manifest):
        raise RunError(difference, where=str(folder), remedy="use another checkpoint")
    num_before = 0
    for name, written in manifest.files.items():
        digest = hashlib.sha256()
        for num_bytes in _read_into(digest, folder / name):
            yield num_before + num_bytes
        if digest.hexdigest() != written.sha256:
            raise RunError(
                f"{name} has other content than when it was saved",
                where=str(folder),
                remedy="use another checkpoint",
            )
        num_before += written.bytes
    return manifest


def hash_file(path: Path) -> WrittenFile:
    """Give size and hash of a file as it lies on disk."""
    digest = hashlib.sha256()
    num_bytes = max(_read_into(digest, path), default=0)
    return WrittenFile(num_bytes, digest.hexdigest())


def _read_into(digest: "hashlib._Hash", path: Path) -> Iterator[int]:
    """Feed a file to a digest; yield how many of its bytes have been fed."""
    num_bytes = 0
    with path.open("rb") as file:
        while chunk := file.read(_HASH_CHUNK_BYTES):
            digest.update(chunk)
            num_bytes += len(chunk)
            yield num_bytes


def write_hashed(path: Path, content: bytes) -> WrittenFile:
    """Write a file, durable when this returns, and give its size and hash."""
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    return WrittenFile(len(content), hashlib.sha256(content).hexdigest())


def _is_inside(name: str) -> bool:
    parts = PurePosixPath(name).parts
    return bool(parts) and parts[0] != "/" and ".." not in parts
