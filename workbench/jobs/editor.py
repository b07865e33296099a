"""Which editor opens files, and how it is started: VS Code from any terminal, $VISUAL, $EDITOR, vi.

VS Code names a socket in ``VSCODE_IPC_HOOK_CLI`` for the terminals it opens. Exported elsewhere, it
makes ``code`` open files in that window; a window that was closed leaves its socket behind, so the
socket is asked first. Knows nothing of configs. Invariant: nothing is started by choosing.
"""

import glob
import os
import shlex
import shutil
import signal
import socket
import subprocess
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from workbench.errors import ConfigError, RunError
from workbench.runs.atomic import write_atomically

VSCODE_SOCKET = "VSCODE_IPC_HOOK_CLI"

_VSCODE_LIKE = frozenset(
    {"code", "code-insiders", "code-oss", "codium", "vscodium", "cursor", "windsurf"}
)
_WAIT_OPTION = dict.fromkeys(_VSCODE_LIKE, "--wait") | {
    "subl": "--wait",
    "zed": "--wait",
    "zeditor": "--wait",
    "mate": "--wait",
    "gedit": "--wait",
    "gnome-text-editor": "--standalone",
    "kate": "--block",
    "gvim": "--nofork",
}
"""Editors with a window of their own, and what makes them stay until the files are closed."""

_ALWAYS_WAITING = frozenset({"mousepad", "geany", "xed", "pluma", "leafpad", "nedit", "xemacs"})
"""Editors with a window of their own that stay by themselves."""

_AT_LINE = frozenset({"vi", "vim", "nvim", "gvim", "view", "nano", "emacs", "emacsclient", "micro"})
"""Editors that take ``+LINE`` before a file."""

_LAST_RESORT = ("vi", "vim", "nano")

_REMOTE_CODE = (
    "~/.vscode-server/**/remote-cli/code",
    "~/.vscode-server-insiders/**/remote-cli/code-insiders",
    "~/.cursor-server/**/remote-cli/cursor",
)
"""Where VS Code keeps the command that its own terminals have on their PATH, on a remote host."""

_SOCKET_SECONDS = 1.0


@dataclass(frozen=True)
class EditorCommand:
    """How files are opened.

    Attributes:
        argv: program and arguments, the files last.
        is_graphical: it has a window of its own; the terminal stays free.
        waits: it ends when the files were closed, not before.
        note: what is told beside, such as a dead socket; None where nothing is.
        name: the editor as a person calls it.
    """

    argv: tuple[str, ...]
    is_graphical: bool
    waits: bool
    note: str | None
    name: str


@dataclass(frozen=True)
class Editor:
    """The editor that was chosen.

    Attributes:
        words: program and its own arguments.
        is_graphical: it has a window of its own; the terminal stays free.
        note: why another one was not taken; None where nothing is to be told.
    """

    words: tuple[str, ...]
    is_graphical: bool
    note: str | None

    def command(
        self, files: Sequence[Path], *, wait: bool = False, line: int | None = None
    ) -> EditorCommand:
        """Give the command that opens files; see ``editor_command``."""
        assert files, "no file to open"
        words = list(self.words)
        program = Path(words[0]).name
        wait_option = _WAIT_OPTION.get(program)
        waits = wait_option is None or not _WAITING_SPELLINGS.isdisjoint(words)
        if wait and wait_option is not None and not waits:
            words.append(wait_option)
            waits = True
        return EditorCommand(
            argv=(*words, *_paths(program, files, line)),
            is_graphical=self.is_graphical,
            waits=waits,
            note=self.note,
            name="VS Code" if program == "code" else program,
        )


def editor_command(
    files: Sequence[Path],
    environment: Mapping[str, str],
    *,
    wait: bool = False,
    line: int | None = None,
) -> EditorCommand:
    """Choose the editor and give the command that opens files in one call.

    Args:
        files: at least one.
        environment: of the process.
        wait: choose the form that ends when the files were closed, where there is one.
        line: of the first file, from 1.

    Raises:
        ConfigError: there is no editor at all.
    """
    return find_editor(environment).command(files, wait=wait, line=line)


def find_editor(environment: Mapping[str, str]) -> Editor:
    """Choose the editor: VS Code where its socket answers, else $VISUAL, $EDITOR, vi.

    Raises:
        ConfigError: there is no editor at all.
    """
    notes: list[str] = []
    words = _vscode(environment, notes)
    for variable in ("VISUAL", "EDITOR"):
        words = words or _from_variable(variable, environment, notes)
    words = words or _last_resort(environment)
    if words is None:
        raise ConfigError(
            "no editor is found" + "".join(f"; {note}" for note in notes),
            where="VISUAL, EDITOR",
            remedy="set EDITOR, such as: export EDITOR=nano",
        )
    return Editor(tuple(words), _has_own_window(words, environment), "; ".join(notes) or None)


_WAITING_SPELLINGS = frozenset({*_WAIT_OPTION.values(), "-w", "-b", "-f"})


def _vscode(environment: Mapping[str, str], notes: list[str]) -> list[str] | None:
    """Give the command of VS Code where its socket answers; say why not where one is named."""
    address = environment.get(VSCODE_SOCKET)
    if not address:
        return None
    how = f"take the name of a new one: env | grep {VSCODE_SOCKET} in a terminal of VS Code"
    if not _answers(address):
        notes.append(f"nothing answers at the socket of VS Code {address}; {how}")
        return None
    program = _found("code", environment) or _remote_code(environment)
    if program is None:
        notes.append(
            "VS Code answers, but its command `code` is not on the PATH; "
            "add the folder that `which code` gives in a terminal of VS Code"
        )
        return None
    return [program]


def _answers(address: str) -> bool:
    """Tell whether somebody listens at a Unix socket."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(_SOCKET_SECONDS)
        try:
            connection.connect(address)
        except (OSError, ValueError):  # nobody listens, or no address at all
            return False
    return True


def _remote_code(environment: Mapping[str, str]) -> str | None:
    """Find the command of VS Code where its server installs it, the newest one."""
    home = environment.get("HOME")
    if not home:
        return None
    found = [
        Path(path)
        for pattern in _REMOTE_CODE
        for path in glob.glob(home + pattern.removeprefix("~"), recursive=True)  # noqa: PTH207
        if os.access(path, os.X_OK)
    ]
    return str(max(found, key=lambda path: path.stat().st_mtime)) if found else None


def _from_variable(
    variable: str, environment: Mapping[str, str], notes: list[str]
) -> list[str] | None:
    """Take an editor with its arguments from a variable, written as for a shell."""
    text = environment.get(variable, "").strip()
    if not text:
        return None
    try:
        words = shlex.split(text)
    except ValueError as error:
        notes.append(f"${variable} ({text}) cannot be read: {str(error).lower()}")
        return None
    if not words or (program := _found(words[0], environment)) is None:
        notes.append(f"${variable} names {words[0] if words else text}, which is not there")
        return None
    return [program, *words[1:]]


def _last_resort(environment: Mapping[str, str]) -> list[str] | None:
    for name in _LAST_RESORT:
        if program := _found(name, environment):
            return [program]
    return None


def _found(program: str, environment: Mapping[str, str]) -> str | None:
    expanded = os.path.expanduser(program)  # noqa: PTH111 - a name without a slash stays one
    return shutil.which(expanded, path=environment.get("PATH", os.defpath))


def _has_own_window(words: Sequence[str], environment: Mapping[str, str]) -> bool:
    name = Path(words[0]).name
    if name == "emacs":
        in_terminal = {"-nw", "--no-window-system", "-t", "--batch"}
        has_display = bool(environment.get("DISPLAY") or environment.get("WAYLAND_DISPLAY"))
        return has_display and in_terminal.isdisjoint(words)
    return name in _WAIT_OPTION or name in _ALWAYS_WAITING


def _paths(name: str, files: Sequence[Path], line: int | None) -> list[str]:
    paths = [str(path) for path in files]
    if line is None:
        return paths
    if name in _VSCODE_LIKE:
        return ["--goto", f"{paths[0]}:{line}", *paths[1:]]
    return [f"+{line}", *paths] if name in _AT_LINE else paths


def run_editor(command: EditorCommand) -> int:
    """Start an editor in this terminal and wait for its process; give its exit status.

    Raises:
        RunError: it cannot be started.
    """
    # Ctrl+c belongs to an editor in the terminal, as in a shell. A handler, not SIG_IGN, because
    # an ignored signal would stay ignored in the editor.
    mine = None if command.is_graphical else signal.signal(signal.SIGINT, lambda *_: None)
    try:
        status = subprocess.run(list(command.argv), check=False).returncode
    except OSError as error:
        raise RunError(
            f"cannot be started: {error.strerror or error}",
            where=command.argv[0],
            remedy="set EDITOR to another one",
        ) from error
    finally:
        if mine is not None:
            signal.signal(signal.SIGINT, mine)
    return status if status >= 0 else 128 - status


# ---- texts that are no files --------------------------------------------------------------------


def edit_text(
    text: str, name: str, environment: Mapping[str, str], *, tell: Callable[[str], None]
) -> Path | None:
    """Open a text that is no file, to look at.

    An editor in the terminal gets a file in a folder of its own, which is gone when this returns.
    One with a window of its own may read the file at any time, so that it stays in the user's
    cache and the next text of that name replaces it.

    Args:
        text: what to show.
        name: of the file, which tells the editor its language: ``7b/default.resolved.yaml``.
        environment: of the process.
        tell: shows a line, before the editor starts.

    Returns:
        The file, where it is kept.

    Raises:
        ConfigError: there is no editor.
        RunError: the file cannot be written, the editor cannot be started or failed.
    """
    editor = find_editor(environment)
    if editor.note:
        tell(editor.note)
    kept = _opened_folder(environment) if editor.is_graphical else None
    folder = kept or Path(tempfile.mkdtemp(prefix="workbench-"))
    path = folder / name
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        write_atomically(path, text.encode(errors="surrogateescape"))
        command = editor.command([path], wait=kept is None)
        if kept is not None:
            tell(f"opened in {command.name}: {path}")
        if status := run_editor(command):
            raise RunError(
                f"ended with status {status}",
                where=command.argv[0],
                remedy="see what it said, or write the text with -o FILE",
            )
    except OSError as error:
        raise RunError(
            f"cannot be written: {error.strerror or error}",
            where=str(path),
            remedy="set XDG_CACHE_HOME to a folder that can be written, or use -o FILE",
        ) from error
    finally:
        if kept is None:
            shutil.rmtree(folder, ignore_errors=True)
    return path if kept is not None else None


def _opened_folder(environment: Mapping[str, str]) -> Path | None:
    """Say where texts lie that stay open in a window; None where no home is known."""
    cache = environment.get("XDG_CACHE_HOME", "")
    if Path(cache).is_absolute():
        return Path(cache) / "workbench" / "opened"
    home = environment.get("HOME")
    return Path(home) / ".cache" / "workbench" / "opened" if home else None
