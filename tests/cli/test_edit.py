"""edit: picking, one call of a real editor, and what is told when it has closed."""

import io
import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import workbench
from tests.config.configs_on_disk import write_configs
from tests.short_folder import short_folder
from workbench.cli.edit import parse_numbers
from workbench.cli.main import main
from workbench.errors import ConfigError
from workbench.jobs.editor import VSCODE_SOCKET

PROJECT = {
    "configs/base/bottom.yaml": """
        optimizer: {learning_rate: 5e-6}
    """,
    "configs/7b/top.yaml": """
        extends: ../base/bottom.yaml
        batch: {train: 4}
    """,
    "configs/other.yaml": "batch: {train: 2}",
    "configs/third.yaml": "extends: base/bottom.yaml",
    "chat_templates/mine.jinja": "{{ messages }}",
}

Editor = Callable[[str], Path]


@pytest.fixture(autouse=True)
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "project"
    folder.mkdir()
    monkeypatch.chdir(write_configs(folder, PROJECT))
    monkeypatch.delenv(VSCODE_SOCKET, raising=False)
    monkeypatch.delenv("VISUAL", raising=False)
    return folder


@pytest.fixture
def editor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Editor:
    """Let an editor be a line of shell; give the file in which its calls are counted."""

    def set_up(script: str = "") -> Path:
        calls = tmp_path / "calls"
        path = tmp_path / "stub-editor"
        path.write_text(f'#!/bin/sh\necho "$@" >>{calls}\n{script}\n')
        path.chmod(0o755)
        monkeypatch.setenv("EDITOR", str(path))
        return calls

    return set_up


def opened(calls: Path) -> list[list[str]]:
    """Give the files of each call of the editor."""
    return [line.split() for line in calls.read_text().splitlines()] if calls.exists() else []


@pytest.fixture
def answer(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Let a person answer the next question."""
    return lambda text: monkeypatch.setattr(sys, "stdin", io.StringIO(text))


@pytest.mark.parametrize(
    ("text", "numbers"),
    [
        ("3,5-7", [3, 5, 6, 7]),
        (" 1 2  , 2-3\n", [1, 2, 3]),
        ("5 - 6", [5, 6]),
        ("7", [7]),
        ("", []),
    ],
)
def test_numbers_and_ranges_are_read(text: str, numbers: list[int]) -> None:
    assert parse_numbers(text, 7) == numbers


@pytest.mark.parametrize("text", ["8", "0", "3-8", "6-5", "x", "1,,x", "-2", "1.5", "9" * 30])
def test_a_number_that_is_not_in_the_list_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="nothing was opened"):
        parse_numbers(text, 7)


def test_all_picked_files_open_in_one_call(
    project: Path,
    editor: Editor,
    answer: Callable[[str], None],
    capsys: pytest.CaptureFixture[str],
) -> None:
    calls = editor()
    answer("1,3-4")
    assert main(["edit"]) == 0
    told = capsys.readouterr().out
    rows = [line.split() for line in told.splitlines()]
    numbered = {int(row[0]): row[1] for row in rows if len(row) == 2 and row[0].isdigit()}
    assert set(numbered.values()) > set(PROJECT)
    headings = [line for line in told.splitlines() if line.endswith(":")]
    assert headings == ["configs:", "what configs extend:", "chat templates:"]
    assert opened(calls) == [[str(project / numbered[number]) for number in (1, 3, 4)]]


@pytest.mark.parametrize("text", ["1,99", "1-99", "1,two"])
def test_with_one_number_out_of_range_nothing_is_opened(
    editor: Editor,
    answer: Callable[[str], None],
    capsys: pytest.CaptureFixture[str],
    text: str,
) -> None:
    calls = editor()
    answer(text)
    assert main(["edit"]) == 2
    assert "nothing was opened" in capsys.readouterr().err
    assert not opened(calls)


@pytest.mark.parametrize("text", ["", "\n"])
def test_an_empty_answer_opens_nothing(
    editor: Editor, answer: Callable[[str], None], text: str
) -> None:
    calls = editor()
    answer(text)
    assert main(["edit"]) == 0
    assert not opened(calls)


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["configs/7b/top.yaml"], ["configs/7b/top.yaml"]),
        (["base/bottom.yaml", "other"], ["configs/base/bottom.yaml", "configs/other.yaml"]),
        (["mine"], ["chat_templates/mine.jinja"]),
        (["mine.jinja", "chat_templates/mine.jinja"], ["chat_templates/mine.jinja"]),
        (["-t", "7b/top"], ["configs/7b/top.yaml"]),
        (["-t", "7b/top", "--with-bases"], ["configs/7b/top.yaml", "configs/base/bottom.yaml"]),
        (["-t", "other", "third"], ["configs/other.yaml", "configs/third.yaml"]),
    ],
)
def test_files_are_found_by_path_and_by_name(
    project: Path, editor: Editor, names: list[str], expected: list[str]
) -> None:
    calls = editor()
    assert main(["edit", *names]) == 0
    assert opened(calls) == [[str(project / name) for name in expected]]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["7b/tap"], "did you mean 7b/top?"),
        (["mina"], "did you mean mine?"),
        (["quite-something-else"], "pick one from the list"),
        (["-t", "nothing"], "no such config"),
        (["--with-bases"], "goes with -t"),
    ],
)
def test_an_unknown_name_is_refused_with_the_nearest_and_nothing_is_opened(
    editor: Editor, arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    calls = editor()
    assert main(["edit", "other", *arguments]) == 2
    assert said in capsys.readouterr().err
    assert not opened(calls)


def test_a_changed_base_is_told_by_the_mistakes_of_those_that_extend_it(
    editor: Editor, capsys: pytest.CaptureFixture[str]
) -> None:
    editor('printf "optimizer:\\n  learning_rate: fast\\n" >"$1"')
    assert main(["edit", "base/bottom"]) == 2
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "changed  configs/base/bottom.yaml"
    assert lines[1].startswith("configs/base/bottom.yaml:2 optimizer.learning_rate: expected")
    (names,) = [line.removeprefix("  in ").split(", ") for line in lines[2:]]
    assert sorted(names) == ["7b/top", "base/bottom", "third"]


def test_a_good_change_is_told_with_the_number_of_configs_read_again(
    editor: Editor, capsys: pytest.CaptureFixture[str]
) -> None:
    editor('sed -i s/5e-6/6e-6/ "$1"')
    assert main(["edit", "base/bottom", "other"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "changed  configs/base/bottom.yaml",
        "unchanged  configs/other.yaml",
        "4 configs read again, no mistake",
    ]


def test_every_mistake_of_every_picked_file_is_told_with_its_line(
    editor: Editor, capsys: pytest.CaptureFixture[str]
) -> None:
    editor('echo "memory: {budget_gib: -1}" >>"$1"; echo "optimizer: {nme: x}" >"$2"')
    assert main(["edit", "base/bottom", "other"]) == 2
    told = capsys.readouterr().out
    assert "configs/base/bottom.yaml:2 memory.budget_gib" in told
    assert "configs/other.yaml:1 optimizer.nme: no such key; did you mean name?" in told


def test_a_file_the_editor_removed_is_told(
    editor: Editor, capsys: pytest.CaptureFixture[str]
) -> None:
    editor('rm "$1"')
    assert main(["edit", "configs/other.yaml"]) == 2
    assert "other" in capsys.readouterr().out


def test_an_editor_that_fails_gives_status_1(
    editor: Editor, capsys: pytest.CaptureFixture[str]
) -> None:
    editor("exit 3")
    assert main(["edit", "other"]) == 1
    assert "ended with status 3" in capsys.readouterr().err


def test_the_list_for_machines_opens_nothing(
    editor: Editor, project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    calls = editor()
    assert main(["edit", "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)
    # A checkout's own configs and templates can be edited too.
    assert {each["path"] for each in listed} > {str(project / name) for name in PROJECT}
    assert not opened(calls)


def test_a_file_that_may_not_be_written_is_refused_before_any_is_opened(
    tmp_path: Path, project: Path, editor: Editor
) -> None:
    if os.geteuid() == 0:
        pytest.skip("the superuser may write everything")
    calls = editor()
    (project / "configs/other.yaml").chmod(0o444)
    assert main(["edit", "third", "other"]) == 2
    assert not opened(calls)


def test_files_of_an_installed_workbench_are_refused_and_new_is_offered(
    tmp_path: Path, project: Path, editor: Editor
) -> None:
    calls = editor()
    package = Path(workbench.__file__).parent
    installed = tmp_path / "site" / "workbench"
    shutil.copytree(package, installed, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("configs", "chat_templates"):
        shutil.copytree(package.parent / name, installed / "shipped" / name)

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "workbench", "edit", *arguments],
            cwd=project,
            env=os.environ | {"PYTHONPATH": str(installed.parent)},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    refused = run("other", "demo")
    assert refused.returncode == 4
    assert "workbench new -t demo NAME" in refused.stderr
    template = run("chatml_eos")
    assert template.returncode == 4
    assert "copy it into chat_templates" in template.stderr
    assert not opened(calls)
    listed = json.loads(run("--json").stdout)
    assert {each["path"] for each in listed} == {str(project / name) for name in PROJECT}


def test_with_a_live_socket_code_is_called_to_wait_and_a_dead_one_is_told(
    tmp_path: Path,
    project: Path,
    editor: Editor,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    calls = editor()
    code = tmp_path / "bin" / "code"
    code.parent.mkdir()
    code.write_text(f'#!/bin/sh\necho code "$@" >>{calls}\n')
    code.chmod(0o755)
    monkeypatch.setenv("PATH", f"{code.parent}:{os.environ['PATH']}")
    path = str(project / "configs/other.yaml")
    with short_folder() as folder:
        address = str(folder / "ipc.sock")
        monkeypatch.setenv(VSCODE_SOCKET, address)
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
            listener.bind(address)
            listener.listen()
            assert main(["edit", "other"]) == 0
            assert "opened in VS Code; close the files there" in capsys.readouterr().err
        assert main(["edit", "other"]) == 0
        assert address in capsys.readouterr().err
    assert opened(calls) == [["code", "--wait", path], [path]]
