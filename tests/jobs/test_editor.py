"""Which editor opens files: a live socket of VS Code, $VISUAL, $EDITOR, vi; real programs."""

import os
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.short_folder import short_folder
from workbench.errors import ConfigError, RunError
from workbench.jobs.editor import VSCODE_SOCKET, edit_text, editor_command, run_editor

FILES = [Path("/x/a.yaml"), Path("/x/b c.yaml")]


def program(folder: Path, name: str, script: str = "exit 0") -> Path:
    """Make a small program on a PATH of its own."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / name
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return path


@pytest.fixture
def bin_folder(tmp_path: Path) -> Path:
    folder = tmp_path / "bin"
    program(folder, "vi")
    return folder


@pytest.fixture
def environment(tmp_path: Path, bin_folder: Path) -> dict[str, str]:
    return {"PATH": str(bin_folder), "HOME": str(tmp_path / "home")}


@pytest.fixture
def live_socket() -> Iterator[str]:
    with short_folder() as folder, socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        path = str(folder / "vscode-ipc.sock")
        listener.bind(path)
        listener.listen()
        yield path


@pytest.fixture
def dead_socket() -> Iterator[str]:
    with short_folder() as folder:
        path = str(folder / "vscode-ipc.sock")
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
            listener.bind(path)
        assert Path(path).is_socket()
        yield path


def test_a_live_socket_of_vs_code_is_used_before_all_else(
    environment: dict[str, str], bin_folder: Path, live_socket: str
) -> None:
    code = program(bin_folder, "code")
    environment |= {VSCODE_SOCKET: live_socket, "VISUAL": "vi", "EDITOR": "vi"}
    command = editor_command(FILES, environment)
    assert command.argv == (str(code), "/x/a.yaml", "/x/b c.yaml")
    assert command.is_graphical
    assert not command.waits
    assert command.note is None
    waiting = editor_command(FILES, environment, wait=True, line=7)
    assert waiting.argv[1:] == ("--wait", "--goto", "/x/a.yaml:7", "/x/b c.yaml")
    assert waiting.waits


def test_a_dead_socket_falls_back_and_says_so(
    environment: dict[str, str], bin_folder: Path, dead_socket: str
) -> None:
    program(bin_folder, "code")
    command = editor_command(FILES, environment | {VSCODE_SOCKET: dead_socket})
    assert Path(command.argv[0]).name == "vi"
    assert command.note is not None
    assert dead_socket in command.note
    assert f"env | grep {VSCODE_SOCKET}" in command.note


@pytest.mark.parametrize("address", ["/nowhere/at/all.sock", "", "x" * 300, "\0"])
def test_what_is_no_socket_is_no_reason_to_fail(environment: dict[str, str], address: str) -> None:
    command = editor_command(FILES, environment | {VSCODE_SOCKET: address})
    assert Path(command.argv[0]).name == "vi"
    assert bool(command.note) == bool(address)


def test_the_command_of_a_remote_vs_code_is_found_where_its_server_lies(
    environment: dict[str, str], live_socket: str
) -> None:
    environment |= {VSCODE_SOCKET: live_socket}
    without = editor_command(FILES, environment)
    assert Path(without.argv[0]).name == "vi"
    assert "not on the PATH" in (without.note or "")
    home = Path(environment["HOME"])
    code = program(home / ".vscode-server/bin/abc/bin/remote-cli", "code")
    assert editor_command(FILES, environment).argv[0] == str(code)


@pytest.mark.parametrize(
    ("variables", "expected", "noted"),
    [
        ({"EDITOR": "ed -x"}, ["ed", "-x"], ""),
        ({"EDITOR": "ed", "VISUAL": "'my editor' --flag 'two words'"},
         ["my editor", "--flag", "two words"], ""),
        ({"EDITOR": "ed", "VISUAL": "gone -w"}, ["ed"], "$VISUAL names gone, which is not there"),
        ({"EDITOR": "gone", "VISUAL": "'unclosed"}, ["vi"], "cannot be read"),
        ({"EDITOR": "  "}, ["vi"], ""),
        ({}, ["vi"], ""),
    ],
)  # fmt: skip
def test_variables_are_read_as_a_shell_would(
    environment: dict[str, str],
    bin_folder: Path,
    variables: dict[str, str],
    expected: list[str],
    noted: str,
) -> None:
    for name in ("ed", "my editor"):
        program(bin_folder, name)
    command = editor_command(FILES, environment | variables)
    words = command.argv[: -len(FILES)]
    assert [Path(words[0]).name, *words[1:]] == expected
    assert noted in (command.note or "")
    assert not command.is_graphical
    assert command.waits


def test_without_any_editor_the_remedy_names_the_variable(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="export EDITOR="):
        editor_command(FILES, {"PATH": str(tmp_path), "EDITOR": "gone"})


@pytest.mark.parametrize(
    ("editor", "display", "is_graphical", "waiting"),
    [
        ("code", "", True, ["code", "--wait"]),
        ("code --wait", "", True, ["code", "--wait"]),
        ("subl -w", "", True, ["subl", "-w"]),
        ("gvim", "", True, ["gvim", "--nofork"]),
        ("emacs -nw", ":0", False, ["emacs", "-nw"]),
        ("emacs", ":0", True, ["emacs"]),
        ("emacs", "", False, ["emacs"]),
        ("nano", ":0", False, ["nano"]),
    ],
)
def test_an_editor_with_a_window_is_asked_to_wait_where_we_must(
    environment: dict[str, str],
    bin_folder: Path,
    editor: str,
    display: str,
    is_graphical: bool,
    waiting: list[str],
) -> None:
    program(bin_folder, editor.split()[0])
    command = editor_command(FILES, environment | {"EDITOR": editor, "DISPLAY": display}, wait=True)
    words = command.argv[: -len(FILES)]
    assert [Path(words[0]).name, *words[1:]] == waiting
    assert command.is_graphical == is_graphical
    assert command.waits


@pytest.mark.parametrize(("editor", "argument"), [("vi", "+3"), ("nano", "+3")])
def test_the_line_is_given_as_the_editor_takes_it(
    environment: dict[str, str], bin_folder: Path, editor: str, argument: str
) -> None:
    program(bin_folder, editor)
    command = editor_command(FILES[:1], environment | {"EDITOR": editor}, line=3)
    assert command.argv[1:] == (argument, "/x/a.yaml")


# ---- started ------------------------------------------------------------------------------------


def test_a_text_in_a_terminal_editor_lies_in_a_private_folder_and_is_gone_afterwards(
    tmp_path: Path, environment: dict[str, str], bin_folder: Path
) -> None:
    seen = tmp_path / "seen"
    script = f'{{ echo "$1"; stat -c %a "${{1%/*/*}}"; cat "$1"; }} >{seen}'
    program(bin_folder, "ed", script)
    environment |= {"EDITOR": "ed", "PATH": f"{bin_folder}:{os.environ['PATH']}"}
    told: list[str] = []
    assert edit_text("model: 1\n", "7b/top.resolved.yaml", environment, tell=told.append) is None
    path, mode, *content = seen.read_text().splitlines()
    assert path.endswith("/7b/top.resolved.yaml")
    assert mode == "700"
    assert content == ["model: 1"]
    assert not Path(path).exists()
    assert not Path(path).parent.parent.exists()
    assert not told


def test_a_text_in_a_window_stays_in_the_cache_and_is_replaced_by_the_next(
    tmp_path: Path, environment: dict[str, str], bin_folder: Path, live_socket: str
) -> None:
    program(bin_folder, "code", f'echo "$@" >>{tmp_path}/calls')
    environment |= {VSCODE_SOCKET: live_socket, "XDG_CACHE_HOME": str(tmp_path / "cache")}
    told: list[str] = []
    for text in ("a: 1\n", "a: 2\n"):
        path = edit_text(text, "top.resolved.yaml", environment, tell=told.append)
        assert path is not None
        assert path.read_text() == text
    assert path == tmp_path / "cache/workbench/opened/top.resolved.yaml"
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    # Nobody waits for a window: what is shown need not come back.
    assert (tmp_path / "calls").read_text().splitlines() == [str(path)] * 2
    assert told == [f"opened in VS Code: {path}"] * 2


def test_an_editor_that_fails_is_told_with_its_status(
    environment: dict[str, str], bin_folder: Path
) -> None:
    program(bin_folder, "ed", "exit 7")
    with pytest.raises(RunError, match="ended with status 7"):
        edit_text("x", "x.yaml", environment | {"EDITOR": "ed"}, tell=print)


def test_an_editor_that_is_no_program_cannot_be_started(
    environment: dict[str, str], bin_folder: Path
) -> None:
    path = bin_folder / "ed"
    path.write_bytes(b"\x7fELF, not really")
    path.chmod(0o755)
    command = editor_command(FILES, environment | {"EDITOR": "ed"})
    with pytest.raises(RunError, match="cannot be started"):
        run_editor(command)


INTERRUPTED = """
import os, signal, sys
from pathlib import Path
from workbench.jobs.editor import editor_command, run_editor

command = editor_command([Path("x")], {"PATH": sys.argv[1], "EDITOR": "ed"})
status = run_editor(command)
assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
print("status", status)
"""


def test_ctrl_c_in_a_terminal_editor_is_the_editors_business(
    environment: dict[str, str], bin_folder: Path
) -> None:
    # The editor sends what a terminal would: to its whole group, itself among them.
    program(bin_folder, "ed", 'trap "exit 5" INT; kill -INT 0; exit 1')
    done = subprocess.run(
        [sys.executable, "-c", INTERRUPTED, str(bin_folder)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    assert (done.returncode, done.stdout) == (0, "status 5\n"), done.stderr
