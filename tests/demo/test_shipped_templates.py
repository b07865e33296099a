"""What the shipped templates write, under our renderer, transformers' and a plain one."""

from pathlib import Path

import jinja2
import pytest
from jinja2.sandbox import ImmutableSandboxedEnvironment
from transformers import AutoTokenizer

from tests.demo.demo_files import MODEL
from workbench.config.load import shipped_templates
from workbench.config.template_source import template_source
from workbench.data.chat_template import ChatTemplate

MESSAGES: list[dict[str, object]] = [
    {"role": "system", "content": "Be kind. \n"},
    {"role": "user", "content": "  Hello, what is\n\nyour name?  \n"},
    {"role": "assistant", "content": " My name is\n\n  Samantha. "},
    {"role": "user", "content": "Grüße {{ 1 + 1 }} {% if %} 🙂"},
    {"role": "assistant", "content": "Hello!\n"},
]
CHATML = (
    "<|im_start|>system\nBe kind.<|im_end|>\n"
    "<|im_start|>user\n  Hello, what is\n\nyour name?<|im_end|>\n"
    "<|im_start|>assistant\n My name is\n\n  Samantha. <|im_end|>\n"
    "<|im_start|>user\nGrüße {{ 1 + 1 }} {% if %} 🙂<|im_end|>\n"
    "<|im_start|>assistant\nHello!\n<|im_end|>\n"
)
CHATML_EOS = CHATML.replace("Samantha. <|im_end|>", "Samantha. <|im_end|></s>").replace(
    "Hello!\n<|im_end|>", "Hello!\n<|im_end|></s>"
)
GOLDEN = {"chatml": CHATML, "chatml_eos": CHATML_EOS}
TOKENS = {"bos_token": "<s>", "eos_token": "</s>"}


def test_every_shipped_template_has_a_golden_text() -> None:
    assert {path.stem for path in shipped_templates().glob("*.jinja")} == set(GOLDEN)


@pytest.mark.parametrize("add_generation_prompt", [False, True])
@pytest.mark.parametrize("name", sorted(GOLDEN))
def test_a_template_gives_its_golden_text(name: str, add_generation_prompt: bool) -> None:
    expected = GOLDEN[name] + "<|im_start|>assistant\n" * add_generation_prompt
    source = template_source(name, Path())
    template = ChatTemplate(source, TOKENS)
    assert template.render(MESSAGES, add_generation_prompt=add_generation_prompt) == expected
    tokenizer = AutoTokenizer.from_pretrained(MODEL, eos_token="</s>")
    theirs = tokenizer.apply_chat_template(
        MESSAGES,
        chat_template=source,
        add_generation_prompt=add_generation_prompt,
        tokenize=False,
    )
    assert theirs == expected


@pytest.mark.parametrize("keeps_newline", [False, True])
@pytest.mark.parametrize("strips", [False, True])
@pytest.mark.parametrize("name", sorted(GOLDEN))
def test_the_layout_of_a_template_never_reaches_the_text(
    name: str, strips: bool, keeps_newline: bool
) -> None:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=strips,
        lstrip_blocks=strips,
        keep_trailing_newline=keeps_newline,
        undefined=jinja2.StrictUndefined,
    )
    template = environment.from_string(template_source(name, Path()))
    values = {"messages": MESSAGES, "add_generation_prompt": False, **TOKENS}
    assert template.render(values) == GOLDEN[name]


def test_an_end_of_text_that_is_the_end_of_turn_is_written_once() -> None:
    template = ChatTemplate(template_source("chatml_eos", Path()), {"eos_token": "<|im_end|>"})
    assert template.render(MESSAGES) == CHATML
