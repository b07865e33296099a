"""Where a job's socket is, and the checks before using it.

All sockets of a user lie in one folder that nobody else can enter. An address holds 107 bytes, so
names are short and job.json tells them; the run folder's path never becomes one. Invariant: no
path that was read from a file is used before ``check_address`` has accepted it.
"""

import contextlib
import errno
import os
import re
import secrets
import socket
import stat
import struct
import tempfile
from pathlib import Path

from workbench.errors import ControlError

LONGEST_ADDRESS_BYTES = 107
"""sun_path has 108 bytes on Linux and ends with a zero."""

SOCKET_NAME = re.compile(r"(?:[0-9a-f]{12}|serve-\d{1,5})\.sock")
_PEER_CREDENTIALS = struct.Struct("3i")


def socket_folder() -> Path:
    """Say where the sockets of this user lie; nothing is made or checked."""
    runtime = os.environ.get("XDG_RUNTIME_DIR", "")
    if Path(runtime).is_absolute() and Path(runtime).is_dir():
        return Path(runtime) / "workbench"
    return Path(tempfile.gettempdir()) / f"workbench-{os.getuid()}"


def ready_socket_folder() -> Path:
    """Make the folder where it is missing, and check it.

    Raises:
        ControlError: it cannot be made, is a link, belongs to someone else, or others may enter.
    """
    folder = socket_folder()
    try:
        # The mode given here is cut by the umask, never widened.
        folder.mkdir(mode=0o700, exist_ok=True)
    except OSError as error:
        raise ControlError(
            f"cannot be made: {error.strerror}",
            where=str(folder),
            remedy="set XDG_RUNTIME_DIR to a folder of yours that can be written",
        ) from error
    check_folder(folder)
    return folder


def check_folder(folder: Path) -> None:
    """Make sure that only this user can put a socket into the folder.

    Raises:
        ControlError: it is missing, a link, somebody else's, or open to others.
    """
    try:
        found = folder.lstat()
    except OSError as error:
        raise ControlError(
            f"cannot be looked at: {error.strerror}",
            where=str(folder),
            remedy="start a job, which makes the folder",
        ) from error
    if not stat.S_ISDIR(found.st_mode):
        problem = "is a link" if stat.S_ISLNK(found.st_mode) else "is no folder"
    elif found.st_uid != os.getuid():
        problem = f"belongs to user {found.st_uid}"
    elif found.st_mode & 0o077:
        problem = f"has mode {stat.S_IMODE(found.st_mode):04o}, others may enter"
    else:
        return
    raise ControlError(
        problem,
        where=str(folder),
        remedy="remove it, or chmod 700 it if it is yours; or set XDG_RUNTIME_DIR",
    )


def new_address() -> Path:
    """Draw a name for a job's socket in the checked folder.

    Raises:
        ControlError: the folder is not safe, or its path leaves no room for a name.
    """
    address = ready_socket_folder() / f"{secrets.token_hex(6)}.sock"
    check_length(address)
    return address


def serve_address(port: int) -> Path:
    """Give where ``workbench serve`` on a port has its socket; the folder is made and checked."""
    address = ready_socket_folder() / f"serve-{port}.sock"
    check_length(address)
    return address


def check_length(address: Path) -> None:
    """Make sure that the kernel takes the address.

    Raises:
        ControlError: it is longer than ``LONGEST_ADDRESS_BYTES``.
    """
    length = len(os.fsencode(address))
    if length > LONGEST_ADDRESS_BYTES:
        raise ControlError(
            f"the socket's path has {length} bytes, an address holds {LONGEST_ADDRESS_BYTES}",
            where=str(address),
            remedy="set XDG_RUNTIME_DIR (or TMPDIR, where it is unset) to a shorter path",
        )


def check_address(address: Path) -> None:
    """Accept the path of a socket that was read from a file, before connecting to it.

    Raises:
        ControlError: it does not lie in a folder that is ours alone, or is no socket of ours.
    """
    if not address.is_absolute() or not SOCKET_NAME.fullmatch(address.name):
        raise ControlError(
            "is not the address of a socket of workbench",
            where=str(address),
            remedy="look at the run folder's job.json: somebody has changed it",
        )
    check_length(address)
    check_folder(address.parent)
    try:
        found = address.lstat()
    except OSError as error:
        raise ControlError(
            f"there is no socket: {error.strerror}",
            where=str(address),
            remedy="the job has ended, or was lost: workbench control list",
        ) from error
    if not stat.S_ISSOCK(found.st_mode) or found.st_uid != os.getuid():
        raise ControlError("is no socket of yours", where=str(address), remedy="remove it")


def peer_uid(connection: socket.socket) -> int:
    """Give the user id of the process at the other end of a Unix socket."""
    size = _PEER_CREDENTIALS.size
    credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size)
    _, uid, _ = _PEER_CREDENTIALS.unpack(credentials)
    return int(uid)


def answers(address: Path) -> bool:
    """Tell whether somebody listens at a checked address."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(2.0)
        try:
            probe.connect(os.fspath(address))
        except (ConnectionRefusedError, FileNotFoundError):
            return False
        except OSError as error:
            # A full backlog or a slow peer is somebody who listens.
            return error.errno not in (errno.ENOTSOCK, errno.EPROTOTYPE)
    return True


def remove_stale(address: Path) -> None:
    """Remove a left-over socket that refuses connections.

    Call it only under the lock of the run folder whose job.json named the address. Anything that is
    not a socket of ours in our own folder is left alone.
    """
    if address.parent != socket_folder():
        return
    with contextlib.suppress(ControlError):
        check_address(address)
        if not answers(address):
            address.unlink(missing_ok=True)
