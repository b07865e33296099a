"""The Modelfile says what the chat template says, or says nothing."""

import re
import shutil
from pathlib import Path

import pytest

from tests.inference.tiny_model import write_tiny_model
from workbench.config.find import shipped_templates
from workbench.data.chat_template import ChatTemplate
from workbench.data.tokenizer import load_tokenizer
from workbench.model.ollama_file import LARGEST_CONTEXT, modelfile, turn_texts

CONVERSATION = [
    {"role": "system", "content": "You are brief."},
    {"role": "user", "content": "Who are you?"},
    {"role": "assistant", "content": "Samantha."},
    {"role": "user", "content": "And {{ I }}?"},
]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("model") / "tiny")


def run_go(template: str, messages: list[dict[str, str]]) -> str:
    """Run the few words of Go's template language that we write: the slow and obvious reader."""
    tokens = re.split(r"(\{\{ .*? \}\})", template)
    system = "\n\n".join(each["content"] for each in messages if each["role"] == "system")

    def block(at: int) -> int:
        """Give where the block that begins at a token ends: its else, or its end."""
        depth = 0
        for number in range(at + 1, len(tokens)):
            word = tokens[number].removeprefix("{{ ").split(" ")[0]
            if not tokens[number].startswith("{{ "):
                continue
            if word in ("if", "range"):
                depth += 1
            elif depth == 0 and word in ("else", "end"):
                return number
            elif word == "end":
                depth -= 1
        raise AssertionError("a block without an end")

    def run(begin: int, end: int, state: dict[str, object]) -> str:
        text, at = "", begin
        while at < end:
            token = tokens[at]
            if not (token.startswith("{{ ") and token.endswith(" }}")):
                text += token
                at += 1
                continue
            words = token[3:-3]
            if words == ".System":
                text += system
            elif words == ".Content":
                text += str(state["content"])
            elif words.startswith('"'):
                text += words.strip('"')
            elif words.startswith("$asked"):
                state["$asked"] = words.endswith("true")
            elif words == "range .Messages":
                stop = block(at)
                for message in messages:
                    state |= {"content": message["content"], "role": message["role"]}
                    text += run(at + 1, stop, state)
                at = stop
            else:
                at, written = choose(at, state)
                text += written
            at += 1
        return text

    def choose(at: int, state: dict[str, object]) -> tuple[int, str]:
        written = None
        while True:
            words = tokens[at][3:-3].removeprefix("else ")
            holds = {
                "if .System": bool(system),
                "if $asked": bool(state.get("$asked")),
                'if eq .Role "user"': state.get("role") == "user",
                'if eq .Role "assistant"': state.get("role") == "assistant",
                "else": True,
            }[words]
            stop = block(at)
            if holds and written is None:
                written = run(at + 1, stop, state)
            at = stop
            if tokens[at] == "{{ end }}":
                return at, written or ""

    return run(0, len(tokens), {})


@pytest.mark.parametrize("name", sorted(path.stem for path in shipped_templates().glob("*.jinja")))
def test_every_shipped_template_is_said_in_ollamas_language(model: Path, name: str) -> None:
    tokenizer = load_tokenizer(model)
    source = (shipped_templates() / f"{name}.jinja").read_text("utf-8")
    named = {"bos_token": "<s>", "eos_token": "<|endoftext|>"}
    template = ChatTemplate(source, named)
    texts = turn_texts(template, tokenizer)
    assert texts is not None
    for messages in (CONVERSATION, CONVERSATION[1:], CONVERSATION[1:2]):
        expected = template.render(messages, add_generation_prompt=True)
        assert texts.render(messages) == expected
        assert run_go(texts.go_template(), messages) == expected


def test_a_template_that_counts_turns_is_not_said() -> None:
    source = (
        "{% for message in messages %}{{ loop.index }} {{ message.role }}: {{ message.content }}\n"
        "{% endfor %}"
    )
    assert turn_texts(ChatTemplate(source, {}), _NoBos()) is None  # type: ignore[arg-type]


class _NoBos:
    """A tokenizer as far as it is asked: it begins no text by itself."""

    special_tokens: dict[str, str] = {}  # noqa: RUF012
    adds_bos = False


def test_a_template_without_system_turns_is_told(model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(model, folder)
    (folder / "chat_template.jinja").write_text(
        "{% for message in messages %}{% if message.role == 'system' %}"
        "{{ raise_exception('no system turns') }}{% endif %}"
        "[{{ message.role }}]{{ message.content }}<|im_end|>{% endfor %}"
        "{% if add_generation_prompt %}[assistant]{% endif %}"
    )
    content, notices = modelfile(folder, "tiny.gguf", 512)
    assert notices == ["the chat template takes no system turn, so it is left out"]
    assert "{{ if .System }}" not in content
    assert "TEMPLATE" in content


def test_stops_context_and_sampling_are_in_it(model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(model, folder)
    (folder / "generation_config.json").write_text(
        '{"eos_token_id": [0], "temperature": 0.7, "top_k": 20, "repetition_penalty": 1.1}'
    )
    content, notices = modelfile(folder, "tiny.gguf", 1 << 20)
    lines = content.splitlines()
    assert notices == []
    assert lines[0] == "FROM ./tiny.gguf"
    assert {'PARAMETER stop "<|endoftext|>"', 'PARAMETER stop "<|im_end|>"'} <= set(lines)
    assert "PARAMETER temperature 0.7" in lines
    assert "PARAMETER top_k 20" in lines
    assert "PARAMETER repeat_penalty 1.1" in lines
    assert lines[-1] == f"PARAMETER num_ctx {LARGEST_CONTEXT}"
    (folder / "chat_template.jinja").unlink()
    content, notices = modelfile(folder, "tiny.gguf", 1 << 20)
    assert notices == ["the model has no chat template"]
    assert "TEMPLATE" not in content
