"""Shipped templates against texts that people have read: tests/assets/templates/NAME/CASE.txt.

In these files « and » stand around what is trained, ▷ stands before what invites the next answer,
and every newline of the text is written ¶ and newline, so that no space at an end is invisible.
"""

import json
from pathlib import Path

import jinja2
import pytest
from jinja2.sandbox import ImmutableSandboxedEnvironment

from workbench.config.find import shipped_templates
from workbench.config.template_source import template_source
from workbench.data.chat_template import ChatTemplate
from workbench.data.formats import Conversation, Message
from workbench.errors import DataError

GOLDEN = Path(__file__).parents[1] / "assets" / "templates"
CONVERSATIONS = json.loads((GOLDEN / "conversations.json").read_text("utf-8"))
TOKENS = {"bos_token": "<s>", "eos_token": "</s>"}
STOPS = {
    "alpaca": "</s>",
    "chatml": "<|im_end|>",
    "chatml_eos": "<|im_end|></s>",
    "llama2": "</s>",
    "llama3": "<|eot_id|>",
    "mistral": "</s>",
    "qwen": "<|im_end|>",
}


def drawn(name: str, case: str) -> str:
    """Write a conversation as the golden files do."""
    template = ChatTemplate(template_source(name, Path()), TOKENS)
    turns = CONVERSATIONS[case]
    messages = tuple(Message(role, text, True, at) for at, (role, text) in enumerate(turns, 1))
    try:
        rendered = template.mark(Conversation(messages, case))
    except DataError as error:
        return f"refused: {error}\n"
    text = rendered.text
    if turns[-1][0] == "user":
        whole = template.render(as_mappings(case), add_generation_prompt=True)
        assert whole.startswith(text)
        text += "▷" + whole[len(text) :]
    for begin, end in reversed(rendered.trained):
        text = f"{text[:begin]}«{text[begin:end]}»{text[end:]}"
    return text.replace("\n", "¶\n") + "\n"


def as_mappings(case: str) -> list[dict[str, object]]:
    return [{"role": role, "content": content} for role, content in CONVERSATIONS[case]]


def test_every_shipped_template_has_golden_texts_of_every_case() -> None:
    names = {path.stem for path in shipped_templates().glob("*.jinja")}
    assert names == set(STOPS)
    assert len(CONVERSATIONS) > 5
    wanted = {f"{name}/{case}" for name in names for case in CONVERSATIONS}
    there = {f"{path.parent.name}/{path.stem}" for path in GOLDEN.glob("*/*.txt")}
    assert there == wanted


@pytest.mark.parametrize("case", sorted(CONVERSATIONS))
@pytest.mark.parametrize("name", sorted(STOPS))
def test_a_template_gives_its_golden_text(name: str, case: str) -> None:
    assert drawn(name, case) == (GOLDEN / name / f"{case}.txt").read_text("utf-8")


@pytest.mark.parametrize("name", sorted(STOPS))
def test_a_template_ends_its_answers_with_its_stop(name: str) -> None:
    template = ChatTemplate(template_source(name, Path()), TOKENS)
    assert template.stop_text == STOPS[name]
    turns = (Message("user", "Hello"), Message("assistant", "Hi."))
    rendered = template.mark(Conversation(turns, "test"))
    ((begin, end),) = rendered.trained
    assert rendered.text[begin:end].endswith(STOPS[name])
    assert rendered.stops == (end - 1,)


@pytest.mark.parametrize("keeps_newline", [False, True])
@pytest.mark.parametrize("strips", [False, True])
@pytest.mark.parametrize("name", sorted(STOPS))
def test_the_layout_of_a_template_never_reaches_the_text(
    name: str, strips: bool, keeps_newline: bool
) -> None:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=strips,
        lstrip_blocks=strips,
        keep_trailing_newline=keeps_newline,
        undefined=jinja2.StrictUndefined,
    )
    source = template_source(name, Path())
    ours, template = ChatTemplate(source, TOKENS), environment.from_string(source)
    for case in ("system", "whitespace"):
        values = {"messages": as_mappings(case), "add_generation_prompt": False, **TOKENS}
        assert template.render(values) == ours.render(as_mappings(case))


def test_an_end_of_text_that_is_the_end_of_turn_is_written_once() -> None:
    with_end = ChatTemplate(template_source("chatml_eos", Path()), {"eos_token": "<|im_end|>"})
    plain = ChatTemplate(template_source("chatml", Path()))
    assert with_end.render(as_mappings("system")) == plain.render(as_mappings("system"))


@pytest.mark.parametrize("name", ["alpaca", "chatml_eos", "llama2", "mistral"])
def test_a_template_that_needs_an_end_of_text_says_so(name: str) -> None:
    template = ChatTemplate(template_source(name, Path()), {"bos_token": "<s>"})
    with pytest.raises(DataError, match=r"line \d+\) .*'eos_token' is undefined"):
        template.render(as_mappings("one_turn"))
