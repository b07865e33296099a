"""The table of commands: what is found, what is refused, and with which exit status."""

import importlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.config.configs_on_disk import write_configs
from workbench import __version__
from workbench.cli.main import VERBS, WITHOUT_VERB, main, split_at_verb
from workbench.cli.verb_table import read_table
from workbench.errors import (
    ConfigError,
    ControlError,
    DataError,
    RefusedError,
    RunError,
    WorkbenchError,
)

ASSETS = Path(__file__).parent.parent / "assets" / "config"


def test_the_version_and_the_help_are_results(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"workbench {__version__}\n"
    assert main(["--help"]) == 0
    shown = capsys.readouterr().out
    for verb, (_, line) in VERBS.items():
        assert [each for each in shown.splitlines() if verb in each.split() and line in each]


def words_of_helps() -> list[str]:
    hand_made = [f"data {verb}" for verb in read_table()["data"].verbs]
    return [*VERBS, "--batch", *hand_made]


@pytest.mark.parametrize("words", words_of_helps())
def test_the_help_of_every_verb_says_how_it_is_used(
    words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*words.split(), "--help"]) == 0
    shown = capsys.readouterr().out
    assert f"usage: workbench {words}" in shown
    if words == "data":
        return  # a list of verbs, each with a help of its own
    commands = re.findall(rf"workbench {re.escape(words)}\b.*", shown.partition("usage:")[2])
    assert len(commands) > 1, "no example"


@pytest.mark.parametrize(
    "target", [target for target, _ in [*VERBS.values(), *WITHOUT_VERB.values()]]
)
def test_every_verb_has_its_function(target: str) -> None:
    module, _, function = target.partition(":")
    assert callable(getattr(importlib.import_module(f"workbench.cli.{module}"), function or "run"))


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["ls"], ([], "ls", [])),
        (["-t", "ls", "show"], (["-t", "ls"], "show", [])),
        (["show", "-t", "demo"], ([], "show", ["-t", "demo"])),
        (
            ["-p", "x", "-t", "y", "train", "--lr", "3"],
            (["-p", "x", "-t", "y"], "train", ["--lr", "3"]),
        ),
        (["--batch", "-t", "x"], ([], "--batch", ["-t", "x"])),
        (["-t", "x", "--batch", "a=b"], (["-t", "x"], "--batch", ["a=b"])),
        (["--project=x", "ls"], (["--project=x"], "ls", [])),
        (["-t", "x"], (["-t", "x"], None, [])),
        ([], ([], None, [])),
    ],
)
def test_the_verb_is_the_first_argument_that_is_no_option(
    arguments: list[str], expected: tuple[list[str], str | None, list[str]]
) -> None:
    assert split_at_verb(arguments) == expected


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["sho"], "did you mean show?"),
        (["nothing-like-it"], "no such command"),
        (["--json", "ls"], "behind the command"),
        (["show"], "no config is named"),
        (["show", "-t"], "expected one argument"),
        (["ls", "--nonsense"], "--nonsense"),
        (["ls", "extra"], "extra"),
        (["show", "-t", "base/training", "--lrr", "1"], "did you mean --lr?"),
        (["show", "-t", "base/training", "--zzz"], "it offers --model"),
        (["show", "-t", "base/training", "loose"], "unexpected argument"),
        (["show", "-t", "base/training", "--lr", "fast"], "expected a number"),
        (["show", "-t", "base/training", "optimizer.lr=1"], "no such key"),
        (["show", "-t", "base/training", "--", "--nnodes", "2"], "behind --"),
        (["show", "-t", "bas/training"], "did you mean"),
        (["tree", "-t", "base/training", "--format", "png"], "png"),
        (["show", "-t", "base/training", "-o", "/nowhere/at/all.yaml"], "cannot be written"),
        (["-p", "/nowhere", "ls"], "is not there"),
    ],
)
def test_a_mistake_on_the_command_line_ends_with_status_2_and_one_line(
    capsys: pytest.CaptureFixture[str], arguments: list[str], said: str
) -> None:
    assert main(arguments) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert said in shown.err
    assert "Traceback" not in shown.err


def test_all_mistakes_of_a_config_are_shown_on_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["show", "-t", str(ASSETS / "wrong_types.yaml")]) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert len(shown.err.splitlines()) == 17


@pytest.mark.parametrize(
    ("kind", "status"),
    [
        (WorkbenchError, 1),
        (ConfigError, 2),
        (DataError, 2),
        (RunError, 2),
        (ControlError, 3),
        (RefusedError, 4),
        (KeyboardInterrupt, 130),
        (SystemExit, 0),
    ],
)
def test_each_kind_of_error_has_its_exit_status(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    kind: type[BaseException],
    status: int,
) -> None:
    def run(arguments: list[str]) -> int:
        if issubclass(kind, WorkbenchError):
            raise kind("is wrong", where="here", remedy="mend it")
        raise kind

    monkeypatch.setitem(VERBS, "fail", ("configs:run_fail", "fails"))
    monkeypatch.setattr("workbench.cli.configs.run_fail", run, raising=False)
    assert main(["fail"]) == status
    shown = capsys.readouterr()
    assert shown.out == ""
    assert ("here: is wrong; mend it" in shown.err) is issubclass(kind, WorkbenchError)


def test_a_reader_who_stops_reading_is_no_failure() -> None:
    read_end, write_end = os.pipe()
    os.close(read_end)
    process = subprocess.run(
        [sys.executable, "-m", "workbench", "show", "-t", "base/training"],
        stdout=write_end,
        stderr=subprocess.PIPE,
        text=True,
        timeout=60,
        check=False,
    )
    os.close(write_end)
    assert (process.returncode, process.stderr) == (0, "")


def test_ctrl_c_ends_with_status_130_and_no_traceback() -> None:
    program = (
        "import os, signal, sys\n"
        "from workbench.cli import configs, main\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "def run(arguments):\n"
        "    os.kill(os.getpid(), signal.SIGINT)\n"
        "    signal.pause()\n"
        "configs.run_ls = run\n"
        "sys.exit(main.main(['ls']))\n"
    )
    process = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert process.returncode == 130
    assert process.stderr == "interrupted\n"


HEAVY = ("textual", "rich", "numpy", "httpx", "torch", "transformers", "tokenizers", "asyncio")


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["--version"],
        ["ls"],
        ["show", "-t", "base/training"],
        ["tree", "-t", "base/1gpu"],
    ],
)
def test_looking_at_configs_imports_nothing_heavy(arguments: list[str]) -> None:
    program = (
        "import json, sys\n"
        "from workbench.cli.main import main\n"
        f"status = main({arguments!r})\n"
        f"heavy = [name for name in {HEAVY!r} if name in sys.modules]\n"
        "print(json.dumps([status, heavy]), file=sys.stderr)\n"
    )
    process = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True
    )
    assert process.stdout
    assert json.loads(process.stderr) == [0, []]


def test_a_terminal_that_knows_few_characters_gets_substitutes(tmp_path: Path) -> None:
    write_configs(tmp_path, {"configs/a.yaml": "description: naïve → ☃"})
    process = subprocess.run(
        [sys.executable, "-m", "workbench", "ls", "-p", str(tmp_path)],
        capture_output=True,
        env={**os.environ, "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"},
        timeout=60,
        check=False,
    )
    assert process.returncode == 0
    assert b"na?ve ? ?" in process.stdout


def test_nothing_is_imported_for_a_verb_that_was_not_asked_for() -> None:
    process = subprocess.run(
        [sys.executable, "-c", "import sys, workbench.cli.main; print(*sys.modules)"],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    loaded = {name for name in process.stdout.split() if name.startswith("workbench")}
    assert loaded == {
        "workbench",
        "workbench.cli",
        "workbench.cli.main",
        "workbench.cli.output",
        "workbench.errors",
    }


@pytest.mark.parametrize(
    ("redirected", "status", "said"),
    [
        ("2>&-", 0, ""),
        (">&-", 0, ""),
        ("</dev/null <&- 2>/dev/full", 0, ""),
        (">/dev/full", 1, "stdout: cannot be written: No space left on device"),
    ],
)
def test_streams_that_are_closed_or_full_make_no_traceback(
    redirected: str, status: int, said: str
) -> None:
    command = f'exec "$0" -m workbench --help {redirected}'
    ended = subprocess.run(
        ["sh", "-c", command, sys.executable], capture_output=True, text=True, check=False
    )
    assert (ended.returncode, "Traceback" in ended.stderr) == (status, False)
    assert said in ended.stderr


def test_narration_stays_off_stdout_when_stderr_is_closed() -> None:
    ended = subprocess.run(
        ["sh", "-c", 'exec "$0" -m workbench frob 2>&-', sys.executable],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (ended.returncode, ended.stdout) == (2, "")


@pytest.mark.parametrize(
    "arguments",
    [
        ["-p", "~nobody-of-that-name"],
        ["ls", "-p", "$NOT_SET_AT_ALL"],
        ["train", "-t", "demo", "-p", "~nobody-of-that-name"],
        ["show", "-t", "demo", "--output", "~nobody-of-that-name/x"],
        ["serve", "-m", "~nobody-of-that-name"],
        ["chat", "-m", "~nobody-of-that-name", "--message", "x"],
    ],
)
def test_a_path_of_an_unknown_user_or_variable_is_a_mistake_in_words(
    capsys: pytest.CaptureFixture[str], arguments: list[str]
) -> None:
    assert main(arguments) == 2
    told = capsys.readouterr().err
    assert "write the path out" in told
