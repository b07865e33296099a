"""Files from the configs screen in an editor: a real little program in place of vi."""

import os
import socket
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from textual.pilot import Pilot

from tests.short_folder import short_folder
from tests.tui.conftest import screen_text, type_into, wait_until
from tests.tui.test_configs_screen import choose, on_configs
from tests.tui.test_terminal import terminal
from workbench.cli.main import VERBS
from workbench.tui import keys
from workbench.tui.app import WorkbenchApp
from workbench.tui.surroundings import Surroundings
from workbench.tui.widgets.config_list import ConfigList

MakeEditor = Callable[..., Path]


@pytest.fixture
def make_editor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> MakeEditor:
    """Writes the program that ``$EDITOR`` names: it notes its arguments, then does as told."""
    programs = tmp_path / "programs"
    programs.mkdir()
    for variable in ("VISUAL", "VSCODE_IPC_HOOK_CLI", "DISPLAY"):
        monkeypatch.delenv(variable, raising=False)

    def make(name: str = "vim", does: str = "") -> Path:
        program = programs / name
        noted = tmp_path / "opened"
        program.write_text(f'#!/bin/sh\nprintf "%s " "$@" >> {noted}\necho >> {noted}\n{does}\n')
        program.chmod(0o755)
        monkeypatch.setenv("EDITOR", str(program))
        return noted

    return make


def opened(noted: Path, project: Path) -> list[list[str]]:
    """The calls of the editor, paths as seen from the project's configs."""
    folder = f"{project / 'configs'}/"
    lines = noted.read_text().splitlines() if noted.exists() else []
    return [[word.removeprefix(folder) for word in line.split()] for line in lines]


def last_said(pilot: Pilot[None]) -> str:
    app = pilot.app
    assert isinstance(app, WorkbenchApp)
    return app.history[-1].text if app.history else ""


async def test_a_mistake_made_in_the_editor_is_shown_with_file_and_line_and_can_be_mended(
    surroundings: Surroundings, make_editor: MakeEditor
) -> None:
    noted = make_editor(does='printf "batch:\\n  trian: 3\\n" >> "$1"')
    async with on_configs(surroundings) as (pilot, screen):
        await choose(pilot, screen, "small/quick")
        await pilot.press("e")
        await wait_until(pilot, lambda: "no such key" in last_said(pilot))
        assert opened(noted, surroundings.project) == [["small/quick.yaml"]]
        # The config that extends it has the mistake as well, and it is told once.
        assert last_said(pilot).startswith("configs/small/quick.yaml:7 batch.trian: no such key")
        assert "more" not in last_said(pilot)
        assert "✗ configs/small/quick.yaml:7 batch.trian" in screen_text(pilot)
        await wait_until(pilot, lambda: screen.resolution and screen.resolution.problems)
        rows = {row.name: row for row in screen.query_one("#config-list", ConfigList).rows}
        assert rows["small/longer"].problem
        # A broken config is opened where its mistake is.
        make_editor(does='sed -i "/^batch/,\\$ d" "$2"')
        await pilot.press("e")
        await wait_until(pilot, lambda: "no new mistake" in last_said(pilot))
        assert opened(noted, surroundings.project)[1:] == [["+7", "small/quick.yaml"]]
        # small/wrong extends it and has a mistake of its own, which is no news.
        assert last_said(pilot) == "1 file changed; 3 configs read again, no new mistake"
        await wait_until(pilot, lambda: screen.resolution and screen.resolution.resolved)


async def test_a_file_of_the_tree_is_opened_and_marked_ones_together_in_one_call(
    surroundings: Surroundings, make_editor: MakeEditor
) -> None:
    noted = make_editor()
    async with on_configs(surroundings) as (pilot, screen):
        await choose(pilot, screen, "small/longer")
        screen.query_one("#config-tree").focus()
        await pilot.press("j", "j", "e")
        await wait_until(pilot, lambda: "nothing changed; 3 configs" in last_said(pilot))
        await pilot.press("g", "space", "j", "space")
        assert "* small/longer.yaml" in screen_text(pilot)
        assert "extends quick.yaml" in screen_text(pilot)
        await pilot.press("e")
        await wait_until(pilot, lambda: len(opened(noted, surroundings.project)) == 2)
        assert opened(noted, surroundings.project) == [
            ["base/common.yaml"],
            ["small/longer.yaml", "base/common.yaml"],
        ]
        await wait_until(pilot, lambda: "* " not in screen_text(pilot))


async def test_marks_stay_with_their_config(
    surroundings: Surroundings, make_editor: MakeEditor
) -> None:
    noted = make_editor()
    async with on_configs(surroundings) as (pilot, screen):
        await choose(pilot, screen, "small/longer")
        screen.query_one("#config-tree").focus()
        await pilot.press("space", "g", "space", "g", "space")
        await choose(pilot, screen, "small/quick")
        screen.query_one("#config-list").focus()
        await pilot.press("e")
        await wait_until(pilot, lambda: opened(noted, surroundings.project))
        assert opened(noted, surroundings.project) == [["small/quick.yaml"]]


async def test_a_key_is_opened_at_the_line_that_sets_it(
    surroundings: Surroundings, make_editor: MakeEditor
) -> None:
    noted = make_editor()
    async with on_configs(surroundings) as (pilot, screen):
        await choose(pilot, screen, "small/longer")
        screen.query_one("#key-table").focus()
        await pilot.press("slash")
        await type_into(pilot, "#key-filter", "learning_rate")
        await pilot.press("enter", "e")
        await wait_until(pilot, lambda: opened(noted, surroundings.project))
        assert opened(noted, surroundings.project) == [["+4", "small/longer.yaml"]]
        await wait_until(pilot, lambda: "mistake" in last_said(pilot))
        await pilot.press("slash")
        await type_into(pilot, "#key-filter", "seed")
        await pilot.press("enter", "e")
        await wait_until(pilot, lambda: "training.seed is stated by no file" in last_said(pilot))
        assert len(opened(noted, surroundings.project)) == 1


async def test_the_screens_go_on_beside_an_editor_with_a_window_of_its_own(
    surroundings: Surroundings, make_editor: MakeEditor, tmp_path: Path
) -> None:
    gate = tmp_path / "gate"
    os.mkfifo(gate)
    noted = make_editor("gedit", does=f'read _ < {gate}; echo "description: other" > "$2"')
    async with on_configs(surroundings) as (pilot, screen):
        await choose(pilot, screen, "small/quick")
        await pilot.press("e")
        await wait_until(pilot, lambda: opened(noted, surroundings.project))
        assert opened(noted, surroundings.project) == [["--wait", "small/quick.yaml"]]
        assert "opened in gedit" in last_said(pilot)
        await choose(pilot, screen, "small/longer")  # nothing waits for the editor
        with gate.open("w") as file:
            file.write("close\n")
        await wait_until(pilot, lambda: "1 file changed" in last_said(pilot))
        row = next(
            each
            for each in screen.query_one("#config-list", ConfigList).rows
            if each.name == "small/quick"
        )
        assert row.description == "other"


async def test_vs_code_is_asked_by_its_socket_and_a_dead_one_is_told(
    surroundings: Surroundings, make_editor: MakeEditor, monkeypatch: pytest.MonkeyPatch
) -> None:
    noted = make_editor("code")
    program = Path(os.environ["EDITOR"])
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    with short_folder() as folder:
        address = folder / "vscode.sock"
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        listener.bind(str(address))
        listener.listen()
        monkeypatch.setenv("VSCODE_IPC_HOOK_CLI", str(address))
        async with on_configs(surroundings) as (pilot, screen):
            await choose(pilot, screen, "small/quick")
            await pilot.press("e")
            await wait_until(pilot, lambda: "mistake" in last_said(pilot))
            assert opened(noted, surroundings.project) == [["--wait", "small/quick.yaml"]]
            assert "opened in VS Code" in [said.text[:17] for said in pilot.app.history]  # type: ignore[attr-defined]
            listener.close()
            make_editor("vim")
            await pilot.press("e")
            await wait_until(pilot, lambda: "nothing answers at the socket" in last_said(pilot))
            await wait_until(pilot, lambda: "read again" in last_said(pilot))
            assert opened(noted, surroundings.project)[1:] == [["small/quick.yaml"]]


async def test_an_editor_that_fails_or_is_not_there_is_told(
    surroundings: Surroundings, make_editor: MakeEditor, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_editor(does="exit 3")
    async with on_configs(surroundings) as (pilot, screen):
        await choose(pilot, screen, "small/quick")
        await pilot.press("e")
        await wait_until(pilot, lambda: "vim ended with status 3" in last_said(pilot))
        monkeypatch.setenv("EDITOR", "no-such-editor")
        monkeypatch.setenv("PATH", "/nowhere")
        await pilot.press("e")
        await wait_until(pilot, lambda: "no editor is found" in last_said(pilot))
        assert "set EDITOR" in last_said(pilot)


async def test_a_reader_edits_nothing(surroundings: Surroundings, make_editor: MakeEditor) -> None:
    noted = make_editor()
    async with on_configs(replace(surroundings, readonly=True)) as (pilot, screen):
        await choose(pilot, screen, "small/quick")
        await pilot.press("e")
        await wait_until(pilot, lambda: "started with --readonly" in last_said(pilot))
        assert not noted.exists()


async def test_the_palette_tells_the_command_line_of_what_it_offers(
    surroundings: Surroundings,
) -> None:
    async with on_configs(surroundings) as (pilot, screen):
        await choose(pilot, screen, "small/quick")
        app = pilot.app
        offered = {each.title.split("  ")[0]: each.help for each in app.get_system_commands(screen)}
        assert offered["Launch"].endswith(" · workbench train -t small/quick")
        assert offered["Edit"].endswith(" · workbench edit FILE")
        assert offered["demo"].endswith(" · workbench train -t demo")


async def test_the_palette_copies_the_commands_that_take_the_selected_config(
    surroundings: Surroundings,
) -> None:
    async with on_configs(surroundings) as (pilot, screen):
        await choose(pilot, screen, "small/quick")
        app = pilot.app
        offered = {each.title: each.callback for each in app.get_system_commands(screen)}
        offered["Copy workbench data preview -t small/quick"]()
        assert app.clipboard == "workbench data preview -t small/quick"
        assert last_said(pilot) == "copied: workbench data preview -t small/quick"
        await pilot.press("2")
        await wait_until(pilot, lambda: app.screen is not screen)
        elsewhere = [each.title for each in app.get_system_commands(app.screen)]
        assert not [title for title in elsewhere if title.startswith("Copy workbench")]


def test_every_command_that_takes_a_config_is_offered_and_is_one() -> None:
    named = [words[1] for words in (command.split() for command, _ in keys.ON_A_CONFIG)]
    with_keys = ("ls", "edit", "schema", "control", "serve", "chat", "completion")
    on_models_and_runs = ("checkpoints", "convert", "finalize", "tb")
    assert set(named) | set(with_keys) | set(on_models_and_runs) == set(VERBS)


def test_an_editor_in_the_terminal_has_it_to_itself_and_the_screens_come_back(
    project: Path, tmp_path: Path, make_editor: MakeEditor
) -> None:
    make_editor(
        "ed",
        does=f'stty -a > {tmp_path}/modes; printf "EDITING "; read answer; '
        f'echo "$answer" > {tmp_path}/answer; echo "description: $answer" > "$1"',
    )
    with terminal(project, "-t", "small/quick") as seen:
        seen.read_until(b"ten steps on a CPU")
        before = seen.modes()
        seen.press(b"e")
        seen.read_until(b"EDITING ")
        assert b"\x1b[?1049l" in seen.seen  # the other screen was given back
        seen.seen = b""
        seen.press(b"words q 1\n")  # no key of this reaches the screens
        seen.read_until(b"no new mistake")
        assert b"\x1b[?1049h" in seen.seen
        assert (tmp_path / "answer").read_text() == "words q 1\n"
        assert " echo " in (tmp_path / "modes").read_text().replace(";", " ")
        assert " icanon " in (tmp_path / "modes").read_text().replace(";", " ")
        assert seen.modes() == before
        seen.press(b"q")
        seen.read_to_the_end()
        assert seen.process.returncode == 0
