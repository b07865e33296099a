"""Where sockets are, and what is refused before one is used."""

import os
import socket
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.short_folder import short_folder
from workbench.control.address import (
    LONGEST_ADDRESS_BYTES,
    answers,
    check_address,
    check_folder,
    new_address,
    peer_uid,
    ready_socket_folder,
    remove_stale,
    serve_address,
    socket_folder,
)
from workbench.errors import ControlError


@pytest.fixture(autouse=True)
def runtime(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    with short_folder() as folder:
        monkeypatch.setenv("XDG_RUNTIME_DIR", str(folder))
        yield folder


def listening(address: Path) -> socket.socket:
    server = socket.socket(socket.AF_UNIX)
    server.bind(str(address))
    server.listen()
    return server


def test_a_socket_lies_in_a_folder_of_this_user_alone(runtime: Path) -> None:
    address = new_address()
    assert address.parent == runtime / "workbench"
    assert stat.S_IMODE(address.parent.stat().st_mode) == 0o700
    assert new_address() != address
    assert serve_address(8000).name == "serve-8000.sock"


def test_without_a_runtime_folder_the_temporary_one_is_used(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for value in ("", "relative", "/nowhere/at/all"):
        monkeypatch.setenv("XDG_RUNTIME_DIR", value)
        assert socket_folder().name == f"workbench-{os.getuid()}"


def test_a_path_of_107_bytes_is_taken_and_one_of_108_refused(
    runtime: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fixed = len("/workbench/0123456789ab.sock")
    room = LONGEST_ADDRESS_BYTES - fixed - len(str(runtime)) - 1
    assert room > 1
    for length, fits in ((room, True), (room + 1, False)):
        folder = runtime / ("x" * length)
        folder.mkdir(mode=0o700)
        monkeypatch.setenv("XDG_RUNTIME_DIR", str(folder))
        if fits:
            listening(new_address()).close()
        else:
            with pytest.raises(ControlError, match="an address holds 107") as raised:
                new_address()
            assert "XDG_RUNTIME_DIR" in raised.value.remedy


def test_a_folder_that_others_may_enter_is_refused(runtime: Path) -> None:
    (runtime / "workbench").mkdir(mode=0o700)
    (runtime / "workbench").chmod(0o755)
    with pytest.raises(ControlError, match="0755"):
        ready_socket_folder()


def test_a_link_is_no_socket_folder(runtime: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir(mode=0o700)
    (runtime / "workbench").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ControlError, match="is a link"):
        ready_socket_folder()


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give a folder away")
def test_somebody_elses_folder_is_refused(runtime: Path) -> None:
    (runtime / "workbench").mkdir(mode=0o700)
    os.chown(runtime / "workbench", 12345, 12345)
    with pytest.raises(ControlError, match="user 12345"):
        check_folder(runtime / "workbench")


def test_only_a_socket_of_ours_is_connected_to(runtime: Path) -> None:
    address = new_address()
    for wrong in (
        Path("relative/0123456789ab.sock"),
        address.with_name("evil.sock"),
        address.with_name("0123456789ab.sock.d"),
        address,
    ):
        with pytest.raises(ControlError):
            check_address(wrong)
    address.write_text("a file")
    with pytest.raises(ControlError, match="no socket"):
        check_address(address)
    address.unlink()
    with listening(address):
        check_address(address)


def test_the_kernel_tells_who_is_at_the_other_end() -> None:
    one, other = socket.socketpair(socket.AF_UNIX)
    with one, other:
        assert peer_uid(one) == os.getuid()


def test_a_left_over_socket_is_removed_and_a_living_one_kept(runtime: Path) -> None:
    left, living = new_address(), new_address()
    listening(left).close()
    with listening(living):
        assert answers(living)
        assert not answers(left)
        remove_stale(left)
        remove_stale(living)
        assert not left.exists()
        assert living.exists()


def test_nothing_but_a_socket_in_our_own_folder_is_removed(runtime: Path, tmp_path: Path) -> None:
    ready_socket_folder()
    file = runtime / "workbench" / "0123456789ab.sock"
    file.write_text("precious")
    private = tmp_path / "private"
    private.mkdir(mode=0o700)
    elsewhere = private / "0123456789ab.sock"
    listening(elsewhere).close()
    remove_stale(file)
    remove_stale(elsewhere)
    assert file.read_text() == "precious"
    assert elsewhere.exists()
