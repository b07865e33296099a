"""Every command of docs/how_to/convert.md, run; and the errors it names are those that are told."""

import re
import shlex
from pathlib import Path

import pytest

from tests.model.model_folders import write_model_folder
from workbench.cli.main import main
from workbench.data.tokenizer import load_tokenizer

REPOSITORY = Path(__file__).parents[2]
PAGE = (REPOSITORY / "docs" / "how_to" / "convert.md").read_text("utf-8")


def test_the_commands_and_the_file_of_tokens_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    write_model_folder(tmp_path / "base")
    (tokens,) = re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)
    (tmp_path / "chat_tokens.yaml").write_text(tokens)
    (commands,) = re.findall(r"```sh\n(.*?)```", PAGE, re.DOTALL)
    lines = [shlex.split(line) for line in commands.splitlines()]
    assert len(lines) == 2
    for program, *arguments in lines:
        assert program == "workbench"
        assert main(arguments) == 0, capsys.readouterr().err
        assert (tmp_path / "made").exists() == ("--dry-run" not in arguments)
    assert load_tokenizer(tmp_path / "made").vocabulary_size == 97 + 3


def test_every_option_is_on_the_page(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["convert", "--help"]) == 0
    options = set(re.findall(r"(?<![\w-])--[a-z-]+", capsys.readouterr().out)) - {"--help"}
    assert len(options) > 6
    assert not {option for option in options - {"--json"} if f"`{option}" not in PAGE}


def test_every_message_of_the_table_is_one_that_is_told() -> None:
    (table,) = re.findall(r"## What is refused\n\n.*?---.*?\n(.*?)\n\n", PAGE, re.DOTALL)
    told = "\n".join(
        re.sub(r'"\s*f?"', "", path.read_text("utf-8"))
        for folder in ("config", "model", "data")
        for path in (REPOSITORY / "workbench" / folder).glob("*.py")
    )
    messages = [
        part.strip()
        for line in table.splitlines()
        for message in re.findall(r"`([^`]+)`", line.split("|")[1])
        for part in message.split("…")
        if part.strip(" ,")
    ]
    assert len(messages) > 10
    assert not [message for message in messages if message.strip(", ") not in told]
