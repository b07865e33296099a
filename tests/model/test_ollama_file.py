"""The Modelfile says what the chat template says, or says nothing."""

import json
import random
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.inference.tiny_model import write_tiny_model
from workbench.config.find import shipped_templates
from workbench.data.chat_template import ChatTemplate
from workbench.data.tokenizer import load_tokenizer
from workbench.errors import DataError
from workbench.model.ollama_file import LARGEST_CONTEXT, TurnTexts, modelfile, turn_texts

GO_PROGRAM = Path(__file__).parent.parent / "assets" / "model" / "ollama_render.go"
NAMES = sorted(path.stem for path in shipped_templates().glob("*.jinja"))
NAMED = {"bos_token": "<s>", "eos_token": "<|endoftext|>"}
PIECES = ["{{ .Content }}", "{", "}}", '"', '"""', "\\", "\n", "\n\n", " ", "\t", "é", "日本", "🪁"]
PIECES += ["\u00a0x", "{{/* a */}}", "{{-", "word", "System", "<s>", "[INST]", "%", "$last", "`"]

Turns = list[dict[str, str]]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture(scope="module")
def go(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the program that renders templates as Ollama does."""
    if shutil.which("go") is None:
        pytest.skip("there is no go, in whose language Ollama's templates are")
    folder = tmp_path_factory.mktemp("go")
    subprocess.run(
        ["go", "build", "-o", folder / "render", GO_PROGRAM],
        check=True,
        env={"PATH": "/usr/bin:/bin:/usr/local/bin", "GOCACHE": str(folder / "cache")},
    )
    return folder / "render"


def run_go(program: Path, template: str, conversations: Sequence[Turns]) -> list[str]:
    lines = [json.dumps({"Template": template, "Messages": messages}) for messages in conversations]
    ended = subprocess.run(
        [program], input="\n".join(lines), capture_output=True, text=True, check=True
    )
    return [json.loads(line) for line in ended.stdout.splitlines()]


def conversations(chance: random.Random, number: int) -> list[Turns]:
    """Make conversations as Ollama gives them to a template: roles alternate behind the system."""

    def content() -> str:
        # Some templates strip what is said, Ollama does not: nothing here begins or ends blank.
        return (
            f"a{''.join(chance.choices(PIECES, k=chance.randrange(6)))}z{chance.randrange(10**9)}"
        )

    made = []
    for _ in range(number):
        roles = ["system"] * chance.randrange(2) + ["assistant"] * (chance.random() < 0.3)
        roles += ["user", "assistant"] * chance.randrange(4) + ["user"] * chance.randrange(2)
        if "user" not in roles:
            roles.append("user")
        made.append([{"role": role, "content": content()} for role in roles])
    return made


def expected_of(template: ChatTemplate, messages: Turns) -> str:
    """Render as our server does; an answer that is last is left open, to be gone on with."""
    try:
        text = template.render(messages, add_generation_prompt=True)
    except DataError:
        # The template has no conversations that begin with an answer: there it is left out.
        first = next(at for at, each in enumerate(messages) if each["role"] == "assistant")
        return expected_of(template, messages[:first] + messages[first + 1 :])
    last = messages[-1]
    if last["role"] == "assistant":
        text = text[: text.rindex(last["content"]) + len(last["content"])]
    return text


@pytest.mark.parametrize("name", NAMES)
def test_every_shipped_template_is_said_in_ollamas_language(
    model: Path, go: Path, name: str
) -> None:
    source = (shipped_templates() / f"{name}.jinja").read_text("utf-8")
    template = ChatTemplate(source, NAMED)
    texts = turn_texts(template, load_tokenizer(model))
    assert texts is not None
    spoken = conversations(random.Random(name), 300)
    expected = [expected_of(template, messages) for messages in spoken]
    assert [texts.render(messages) for messages in spoken] == expected
    assert run_go(go, texts.go_template(), spoken) == expected
    forms = {tuple(each["role"] for each in messages) for messages in spoken}
    assert len(forms) > 12


def test_turns_that_a_template_has_no_word_for_change_nothing_else(model: Path, go: Path) -> None:
    source = (shipped_templates() / "chatml.jinja").read_text("utf-8")
    texts = turn_texts(ChatTemplate(source, NAMED), load_tokenizer(model))
    assert texts is not None
    turns = [
        {"role": "user", "content": "What is the time?"},
        {"role": "tool", "content": "12:00"},
        {"role": "system", "content": "Be brief."},
        {"role": "system", "content": "Be kind."},
        {"role": "assistant", "content": "Noon."},
        {"role": "user", "content": "Thank"},
        {"role": "user", "content": "you."},
    ]
    as_said = [
        {"role": "system", "content": "Be brief.\n\nBe kind."},
        turns[0],
        turns[4],
        {"role": "user", "content": "Thank\n\nyou."},
    ]
    (found,) = run_go(go, texts.go_template(), [turns])
    assert found == ChatTemplate(source, NAMED).render(as_said, add_generation_prompt=True)


AWKWARD = [
    "{",
    "{{",
    "{{{",
    "}}",
    "{{/*",
    '"""',
    '""',
    '{"a":',
    "\u00a0",
    "\x1b",
    "\U000e0001",
    "｜▁",
]


@pytest.mark.parametrize("text", AWKWARD)
def test_what_go_or_a_modelfile_would_read_as_its_own_is_spelled(go: Path, text: str) -> None:
    texts = TurnTexts(text, text, text, text, text, text, text, text)
    written = texts.go_template()
    assert '"""' not in written
    assert all(each.isprintable() or each == "\n" for each in written)
    spoken = conversations(random.Random(1), 40)
    assert run_go(go, written, spoken) == [texts.render(messages) for messages in spoken]


def test_the_template_is_the_one_that_ollama_was_seen_to_run(model: Path) -> None:
    """Holds where there is no go, too."""
    source = (shipped_templates() / "mistral.jinja").read_text("utf-8")
    texts = turn_texts(ChatTemplate(source, NAMED), load_tokenizer(model))
    assert texts is not None
    assert texts.go_template() == (
        '{{ $last := "" }}{{ range .Messages }}{{ if eq .Role "user" }}{{ if $last }}'
        "<|endoftext|> [INST] {{ else if $.System }}<s> [INST] {{ $.System }}\n\n{{ else }}"
        "<s> [INST] {{ end }}{{ .Content }}{{ $last = .Role }}"
        '{{ else if eq .Role "assistant" }}{{ if $last }} [/INST] {{ .Content }}'
        '{{ $last = .Role }}{{ end }}{{ end }}{{ end }}{{ if ne $last "assistant" }} [/INST]'
        "{{ end }}"
    )


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
    assert [what for what, _ in notices] == [
        "the chat template takes no system turn, so it is left out"
    ]
    assert ".System" not in content
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
    assert [what for what, _ in notices] == ["the model has no chat template"]
    assert "TEMPLATE" not in content


def test_numbers_are_written_so_that_ollama_takes_the_file(model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(model, folder)
    (folder / "generation_config.json").write_text(
        '{"top_k": 20.0, "temperature": 1, "top_p": NaN, "min_p": "0.1", '
        '"repetition_penalty": 1e99}'
    )
    content, _ = modelfile(folder, "tiny.gguf", 512)
    parameters = dict(
        line.split(" ")[1:] for line in content.splitlines() if line.startswith("PARAMETER")
    )
    del parameters["stop"]
    assert parameters == {"top_k": "20", "temperature": "1.0", "num_ctx": "512"}


def test_stop_texts_are_quoted_as_a_modelfile_reads_them(model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(model, folder)
    (folder / "generation_config.json").write_text("{}")
    config = json.loads((folder / "config.json").read_text()) | {"eos_token_id": None}
    (folder / "config.json").write_text(json.dumps(config))
    found = {}
    for number, end in enumerate(['"end"\n', "one\ntwo", "a\x07b"]):
        (folder / "chat_template.jinja").write_text(
            "{% for m in messages %}{{ m.role }}: {{ m.content }}" + end + "{% endfor %}"
        )
        content, notices = modelfile(folder, "tiny.gguf", 512)
        found[number] = (content, [what for what, _ in notices])
    assert 'PARAMETER stop """"end""""\n' in found[0][0]
    assert 'PARAMETER stop """one\ntwo"""\n' in found[1][0]
    assert found[2][1] == ["the stop text 'a\\x07b' cannot be said in it"]
    assert "\x07" not in found[2][0]
