"""The page about chatting says what can be typed: its commands are taken, its words are those."""

import ast
import re
import shlex
from pathlib import Path

import pytest

from workbench.cli import chat, talk

PAGE = (Path(__file__).parents[2] / "docs" / "how_to" / "chat.md").read_text("utf-8")
COMMANDS = re.findall(r"^\$ workbench chat (.*)$", PAGE, re.M)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_of_the_page_is_taken(command: str) -> None:
    options = chat.parse(shlex.split(command.partition("<")[0]))
    kinds = (options.message, options.completion, options.interactive or None)
    assert sum(kind is not None for kind in kinds) == 1


def test_the_page_tells_every_word_of_a_talk() -> None:
    assert len(COMMANDS) >= 6
    words = re.findall(r"^(/\w+|\w+, \w+, \w+)", talk.HELP, re.M)
    assert {"/retry", "/save"} < set(words)
    for word in words:
        spelled = ", ".join(f"`{each}`" for each in word.split(", "))
        assert spelled in PAGE or f"`{word} " in PAGE, word


def test_the_program_of_the_page_names_what_there_is() -> None:
    (program,) = re.findall(r"^```python\n(.*?)^```$", PAGE, re.M | re.S)
    for node in ast.walk(ast.parse(program)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("workbench"):
            module = __import__(str(node.module), fromlist=["_"])
            assert all(hasattr(module, name.name) for name in node.names)
