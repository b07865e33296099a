"""``workbench tb``: the right folder, and nobody but this machine."""

import json
import os
import re
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Sequence
from pathlib import Path

import pytest
from torch.utils.tensorboard import SummaryWriter

from workbench.cli.main import main
from workbench.cli.tb import folder_of, tensorboard_command
from workbench.errors import ControlError, RunError
from workbench.runs.layout import RunFolder


def a_run(path: Path, *, age: float = 0.0) -> RunFolder:
    """What tells a run folder, and two points and a text for TensorBoard."""
    run = RunFolder(path)
    path.mkdir(parents=True)
    run.config.write_text("training: {}\n")
    run.origins.write_text("{}")
    written = run.config.stat().st_mtime - age
    os.utime(run.config, (written, written))
    with SummaryWriter(str(run.tensorboard)) as board:
        board.add_scalar("train-loss", 0.0, 1)
        board.add_scalar("train-loss", 2.0, 2)
        board.add_text("samples", "    > Hi\n    Hello!", 2)
    return run


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    a_run(tmp_path / "output" / "older-1", age=100.0)
    a_run(tmp_path / "output" / "newer-1")
    return tmp_path / "output"


def test_the_newest_run_of_a_folder_is_shown_unless_all_are_asked_for(
    runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    newest, older = runs / "newer-1", runs / "older-1"
    assert folder_of(None, str(runs), takes_all=False) == newest / "tensorboard"
    assert folder_of(None, str(older), takes_all=False) == older / "tensorboard"
    assert folder_of(str(older), None, takes_all=False) == older / "tensorboard"
    assert folder_of(None, str(runs), takes_all=True) == runs
    assert folder_of(str(older), None, takes_all=True) == runs
    monkeypatch.chdir(runs.parent)
    assert folder_of(None, None, takes_all=False) == newest / "tensorboard"
    assert folder_of(None, None, takes_all=True) == runs


def test_where_there_is_no_run_it_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    with pytest.raises(RunError, match="there is no run"):
        folder_of(None, str(tmp_path), takes_all=False)
    with pytest.raises(RunError, match="no such folder"):
        folder_of(None, str(tmp_path / "nowhere"), takes_all=True)
    with pytest.raises(ControlError, match="no such job"):
        folder_of("nobody-1", None, takes_all=False)
    assert main(["tb", "--output-dir", str(tmp_path)]) == 2
    assert "name a run" in capsys.readouterr().err
    assert main(["tb", "a-run", "--output-dir", str(tmp_path)]) == 2
    assert "not allowed with" in capsys.readouterr().err


def test_a_run_that_has_drawn_nothing_yet_is_waited_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = a_run(tmp_path / "fresh-1")
    for path in run.tensorboard.iterdir():
        path.unlink()
    run.tensorboard.rmdir()
    assert folder_of(str(run.path), None, takes_all=False) == run.tensorboard
    assert "nothing is drawn yet" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "is_local"),
    [
        ([], True),
        (["--port", "6007"], True),
        (["--bind_all"], False),
        (["--bind_all=true"], False),
        (["--host", "0.0.0.0"], False),
        (["--host=10.0.0.1"], False),
        (["--window_title", "bind_all"], True),
    ],
)
def test_it_listens_to_this_machine_alone_unless_told_otherwise(
    arguments: Sequence[str], is_local: bool
) -> None:
    command = tensorboard_command(Path("/runs"), arguments)
    assert (command[-len(arguments) - 2 :][:2] == ["--host", "127.0.0.1"]) == is_local
    assert command.count("--logdir") == 1
    assert command[len(command) - len(arguments) :] == list(arguments)


def test_without_tensorboard_it_says_what_to_install(
    runs: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    assert main(["tb", "--output-dir", str(runs), "--", "--port", "0"]) == 2
    assert "pip install tensorboard" in capsys.readouterr().err


def test_tensorboard_serves_the_curves_and_texts_of_the_run_on_loopback(runs: Path) -> None:
    # A folder with the program's name where the command is typed must not be taken for it.
    process = subprocess.Popen(
        [sys.executable, "-m", "workbench", "tb", ".", "--", "--port", "0"],
        cwd=runs / "newer-1",
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stderr is not None
        told: list[str] = []
        while not (url := re.search(r"at (http://\S+:(\d+)/)", told[-1] if told else "")):
            line = process.stderr.readline()
            assert line, told
            told.append(line)
        assert url[1].startswith("http://127.0.0.1:")
        assert told[0] == f"TensorBoard on {runs / 'newer-1' / 'tensorboard'}\n"
        listening = [
            line.split()[1]
            for line in Path("/proc/net/tcp").read_text().splitlines()[1:]
            if line.split()[3] == "0A" and int(line.split()[1].split(":")[1], 16) == int(url[2])
        ]
        assert [each.split(":")[0] for each in listening] == ["0100007F"]

        def get(path: str) -> object:
            with urllib.request.urlopen(url[1] + path, timeout=20) as answer:
                return json.load(answer)

        assert get("data/runs") == ["."]
        scalars = get("data/plugin/scalars/scalars?run=.&tag=train-loss")
        assert isinstance(scalars, list)
        assert [point[1:] for point in scalars] == [[1, 0.0], [2, 2.0]], "zero is drawn too"
        texts = get("data/plugin/text/text?run=.&tag=samples/text_summary")
        assert "Hello!" in json.dumps(texts)
        process.send_signal(signal.SIGINT)
        process.wait(timeout=20)
    finally:
        process.kill()
        process.wait()
        if process.stderr is not None:
            process.stderr.close()
