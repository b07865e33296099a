"""The commands of docs/how_to/publish.md do what the page says."""

import re
import shlex
from pathlib import Path

import pytest

from tests.inference.tiny_model import add_checkpoint, write_tiny_model
from workbench.cli.main import main
from workbench.runs.checkpoints import Best, list_checkpoints, write_best
from workbench.runs.layout import RunFolder

PAGE = Path(__file__).parents[2] / "docs" / "how_to" / "publish.md"


def test_every_command_of_the_page_works(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("gguf")
    model = write_tiny_model(tmp_path / "model")
    run = RunFolder(tmp_path / "output" / "demo-1")
    run.checkpoints.mkdir(parents=True)
    run.config.write_text("")
    for step in (10, 20, 30):
        add_checkpoint(run, model, step)
    write_best(run, Best(step=20, loss=1.25))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    blocks = re.findall(r"```sh\n(.*?)```", PAGE.read_text("utf-8"), re.DOTALL)
    commands = [line for block in blocks for line in block.splitlines()]
    assert len(commands) == 8
    for command in commands:
        program, *arguments = shlex.split(command)
        assert program == "workbench"
        assert main(arguments) == 0, (command, capsys.readouterr().err)
    made = sorted(path.name for path in (tmp_path / "models").iterdir())
    assert made == ["samantha", "samantha-20", "samantha-gguf", "samantha-only"]
    assert (tmp_path / "models/samantha-gguf/samantha-gguf-q8_0.gguf").is_file()
    assert list_checkpoints(run) == []
    assert (model / "model.safetensors").is_file()
