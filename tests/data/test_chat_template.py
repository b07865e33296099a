import json
from collections.abc import Sequence
from pathlib import Path

import pytest
from tokenizers import Tokenizer as Backend
from tokenizers.processors import TemplateProcessing
from transformers import AutoTokenizer

from tests.data.conftest import CHATML_TOKENS, MakeFolder
from workbench.config.find import shipped_templates
from workbench.config.template_source import template_source
from workbench.data.chat_template import ChatTemplate, Targets
from workbench.data.formats import Conversation, Message, Role
from workbench.data.tokenizer import load_tokenizer
from workbench.errors import DataError

TURNS: list[tuple[Role, str]] = [
    ("system", "Be kind.  \n"),
    ("user", "Hello, what is your name? "),
    ("assistant", "My name is Samantha.\n\nAnd <yours>?"),
    ("user", "Zürich 🙂"),
    ("assistant", " The weather…"),
]
MARKED = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n"
    "{% if message.role == 'assistant' %}{% generation %}{{ message.content }}<|im_end|>"
    "{% endgeneration %}{{ '\n' }}{% else %}{{ message.content }}<|im_end|>\n{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def conversation(turns: Sequence[tuple[Role, str]] = TURNS, **train: bool) -> Conversation:
    """Make a conversation; ``turn_3=False`` leaves the third turn out of the loss."""
    return Conversation(
        tuple(
            Message(role, content, train.get(f"turn_{number}", True), number)
            for number, (role, content) in enumerate(turns, start=1)
        ),
        "test",
    )


def as_mappings(turns: Sequence[tuple[Role, str]] = TURNS) -> list[dict[str, object]]:
    return [{"role": role, "content": content} for role, content in turns]


def trained_texts(
    template: ChatTemplate, folder: Path, targets: Targets = "assistant", **train: bool
) -> list[str]:
    """Decode each run of trained tokens."""
    tokenizer = load_tokenizer(folder)
    encoded = template.encode(conversation(**train), tokenizer, targets)
    runs: list[list[int]] = []
    previous = False
    for number, trained in zip(encoded.ids.tolist(), encoded.mask.tolist(), strict=True):
        if trained and not previous:
            runs.append([])
        if trained:
            runs[-1].append(number)
        previous = trained
    return [tokenizer.decode(run) for run in runs]


def chatml() -> ChatTemplate:
    return ChatTemplate(template_source("chatml", Path()))


ANSWERS = ["My name is Samantha.\n\nAnd <yours>?<|im_end|>", " The weather…<|im_end|>"]


def test_answers_and_their_stop_token_are_trained_and_nothing_else(chatml_folder: Path) -> None:
    assert trained_texts(chatml(), chatml_folder) == ANSWERS


def test_the_last_answer_alone_can_be_trained(chatml_folder: Path) -> None:
    assert trained_texts(chatml(), chatml_folder, "last") == ANSWERS[1:]


def test_all_turns_can_be_trained_without_their_headers(chatml_folder: Path) -> None:
    assert trained_texts(chatml(), chatml_folder, "all") == [
        "Be kind.<|im_end|>",
        "Hello, what is your name?<|im_end|>",
        ANSWERS[0],
        "Zürich 🙂<|im_end|>",
        ANSWERS[1],
    ]


def test_a_turn_can_be_left_out(chatml_folder: Path) -> None:
    assert trained_texts(chatml(), chatml_folder, turn_3=False) == ANSWERS[1:]
    assert trained_texts(chatml(), chatml_folder, "last", turn_5=False) == []


def test_marks_in_the_template_say_the_same_as_growing_prefixes(chatml_folder: Path) -> None:
    marked = ChatTemplate(MARKED)
    assert marked.marks_targets
    assert trained_texts(marked, chatml_folder) == ANSWERS
    assert marked.render(as_mappings(TURNS[1:3])) == (
        "<|im_start|>user\nHello, what is your name? <|im_end|>\n"
        "<|im_start|>assistant\nMy name is Samantha.\n\nAnd <yours>?<|im_end|>\n"
    )


def test_the_text_of_chatml_is_golden() -> None:
    assert chatml().render(as_mappings(), add_generation_prompt=True) == (
        "<|im_start|>system\nBe kind.<|im_end|>\n"
        "<|im_start|>user\nHello, what is your name?<|im_end|>\n"
        "<|im_start|>assistant\nMy name is Samantha.\n\nAnd <yours>?<|im_end|>\n"
        "<|im_start|>user\nZürich 🙂<|im_end|>\n"
        "<|im_start|>assistant\n The weather…<|im_end|>\n"
        "<|im_start|>assistant\n"
    )


USES_EVERYTHING = """{{ bos_token }}{{ {'ü': [1, '<']} | tojson }}{{ strftime_now('%Y') }}
{%- for message in messages %}
    {% if loop.index == 2 %}{% continue %}{% endif %}
    {%- set shown = message.content | trim %}
  {{ message.role }}: {{ shown }}{{ eos_token }}
{% endfor %}
{% if add_generation_prompt %}assistant:{% endif %}"""


@pytest.mark.parametrize("prompt", [True, False])
@pytest.mark.parametrize("source", ["chatml", "marked", "everything"])
def test_text_and_ids_equal_those_of_transformers(
    make_folder: MakeFolder, source: str, prompt: bool
) -> None:
    folder = make_folder(
        tokens=[*CHATML_TOKENS, "<s>", "<|pad|>"],
        bos_token="<s>",
        eos_token="<|im_end|>",
        pad_token="<|pad|>",
    )
    jinja = {
        "chatml": template_source("chatml", folder),
        "marked": MARKED,
        "everything": USES_EVERYTHING,
    }[source]
    reference = AutoTokenizer.from_pretrained(folder)
    tokenizer = load_tokenizer(folder)
    template = ChatTemplate(jinja, tokenizer.special_tokens)
    text = template.render(as_mappings(), add_generation_prompt=prompt)
    assert text == reference.apply_chat_template(
        as_mappings(), chat_template=jinja, add_generation_prompt=prompt, tokenize=False
    )
    expected = reference.apply_chat_template(
        as_mappings(),
        chat_template=jinja,
        add_generation_prompt=prompt,
        return_dict=False,
    )
    if prompt:
        ids = template.encode_prompt(as_mappings(), tokenizer)
        assert ids.tolist() == expected
    elif source != "everything":
        assert template.encode(conversation(), tokenizer).ids.tolist() == expected


def test_serving_reads_what_training_read(chatml_folder: Path) -> None:
    tokenizer, template = load_tokenizer(chatml_folder), chatml()
    whole = template.encode(conversation(), tokenizer).ids.tolist()
    prompt = template.encode_prompt(as_mappings(TURNS[:4]), tokenizer).tolist()
    assert whole[: len(prompt)] == prompt


@pytest.mark.parametrize("source", ["{{ bos_token }}hi", "hi"])
def test_a_document_begins_with_one_bos(make_folder: MakeFolder, source: str) -> None:
    folder = make_folder(tokens=["<s>"], bos_token="<s>", adds_bos=True)
    tokenizer = load_tokenizer(folder)
    template = ChatTemplate(source, tokenizer.special_tokens)
    assert tokenizer.adds_bos
    ids = template.encode_prompt([], tokenizer).tolist()
    assert ids.count(tokenizer.bos_id) == 1
    assert ids[0] == tokenizer.bos_id


def test_an_added_bos_is_no_target_and_moves_no_mask(make_folder: MakeFolder) -> None:
    folder = make_folder(tokens=[*CHATML_TOKENS, "<s>"], bos_token="<s>", adds_bos=True)
    encoded = chatml().encode(conversation(), load_tokenizer(folder))
    assert not encoded.mask[0]
    assert trained_texts(chatml(), folder) == ANSWERS


def test_a_token_that_straddles_the_border_is_not_trained(make_folder: MakeFolder) -> None:
    # Two newlines are one token here: the header's last character and the answer's first.
    folder = make_folder(tokens=[*CHATML_TOKENS, "\n\n"])
    tokenizer, template = load_tokenizer(folder), chatml()
    turns: list[tuple[Role, str]] = [("user", "Hello"), ("assistant", "\nReally?")]
    rendered = template.mark(conversation(turns))
    ((begin, _),) = rendered.trained
    assert rendered.text[begin - 1 : begin + 1] == "\n\n"
    encoded = template.encode(conversation(turns), tokenizer)
    at = int(encoded.mask.argmax())
    assert tokenizer.decode([int(encoded.ids[at - 1])]) == "\n\n"
    trained = [int(number) for number in encoded.ids[encoded.mask]]
    assert tokenizer.decode(trained) == "Really?<|im_end|>"


def test_a_stop_that_is_ordinary_pieces_is_trained_as_far_as_it_is_whole(
    make_folder: MakeFolder,
) -> None:
    folder = make_folder(tokens=["<|pad|>"])
    tokenizer, template = load_tokenizer(folder), chatml()
    assert len(template.stop_ids(tokenizer)) > 1
    assert template.encode(conversation(), tokenizer).num_stops == 2
    assert trained_texts(template, folder) == ANSWERS


def test_a_template_that_rewrites_earlier_turns_is_refused() -> None:
    source = "{{ messages | length }}" + template_source("chatml", Path())
    with pytest.raises(DataError, match="writes turn 3 differently when more follows"):
        ChatTemplate(source).mark(conversation())


def test_marks_that_do_not_match_the_turns_are_refused() -> None:
    source = "{% generation %}{{ messages[2].content }}{% endgeneration %}"
    with pytest.raises(DataError, match="marks 1 turns as generated, the conversation has 2"):
        ChatTemplate(source).mark(conversation())


CHATML_LIKE = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ SAID }}<|im_end|>\n{% endfor %}"
PROMPT = "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"


@pytest.mark.parametrize(
    ("said", "told"),
    [
        (
            "m.content if m.role != 'user' else ''",
            r"leaves out .* turn 2 \(user\) says",
        ),
        ("m.content.split(' is ')[-1]", r"leaves out or changes what turn 2 \(user\)"),
        ("m.content | upper", r"leaves out or changes what turn 1 \(system\) says"),
        ("m.content if m.role != 'assistant' else ''", r"turn 3 \(assistant\) says"),
    ],
)
def test_a_template_that_leaves_something_out_is_refused(said: str, told: str) -> None:
    template = ChatTemplate(CHATML_LIKE.replace("SAID", said) + PROMPT)
    with pytest.raises(DataError, match=told):
        template.mark(conversation())
    assert template.stop_text in ("<|im_end|>", "")


def test_a_template_that_writes_an_answer_elsewhere_is_refused() -> None:
    source = (
        "{% for i in [0, 1, 3] %}{{ messages[i].content }}{% endfor %}{% for i in [4, 2] %}"
        "{% generation %}{{ messages[i].content }}{% endgeneration %}{% endfor %}"
    )
    with pytest.raises(DataError, match=r"misplaces what turn 3 \(assistant\) says"):
        ChatTemplate(source).mark(conversation())


@pytest.mark.parametrize(
    "said", ["m.content | trim", "m.content.replace('\n', ' ')", "m.content | tojson"]
)
def test_spaces_and_json_around_what_is_said_are_the_templates_business(said: str) -> None:
    template = ChatTemplate(CHATML_LIKE.replace("SAID", said) + PROMPT)
    assert len(template.mark(conversation()).trained) == 2


def test_characters_that_are_none_do_not_confuse_what_is_trained(chatml_folder: Path) -> None:
    turns: list[tuple[Role, str]] = [("user", "a\ufdd2b\ufdd0"), ("assistant", "c\ufdd1d\ufdd2")]
    rendered = chatml().mark(conversation(turns))
    ((begin, end),) = rendered.trained
    assert rendered.text[begin:end] == "c\ufdd1d\ufdd2<|im_end|>"
    with pytest.raises(DataError, match="no characters"):
        ChatTemplate(MARKED).mark(conversation(turns))


@pytest.mark.parametrize("adds", ["nothing", "bos", "bos and eos"])
def test_a_plain_text_is_trained_whole_with_what_the_tokenizer_adds(
    make_folder: MakeFolder, adds: str
) -> None:
    folder = make_folder(tokens=["<s>", "</s>"], bos_token="<s>", eos_token="</s>")
    begin, end = "<s> " * ("bos" in adds), " </s>" * ("eos" in adds)
    if begin:
        backend = Backend.from_file(str(folder / "tokenizer.json"))
        ids = [(token, backend.token_to_id(token)) for token in ("<s>", "</s>")]
        backend.post_processor = TemplateProcessing(single=f"{begin}$A{end}", special_tokens=ids)
        backend.save(str(folder / "tokenizer.json"))
    tokenizer = load_tokenizer(folder)
    for text in ("Hello, what is\n", "<s>Hello</s>", "Hello</s>\n"):
        rendered = chatml().mark(Conversation((), "a file", text))
        assert (rendered.text, rendered.trained, rendered.stops) == (text, ((0, len(text)),), ())
        encoded = chatml().encode(Conversation((), "a file", text), tokenizer)
        written = "<s>" * (bool(begin) and not text.startswith("<s>")) + text
        written += "</s>" * (bool(end) and "</s>" not in text)
        assert tokenizer.decode(encoded.ids.tolist()) == written
        assert encoded.mask.tolist() == [False] + [True] * (encoded.ids.size - 1)
        assert encoded.num_stops == 0


def test_an_end_of_text_that_a_chat_does_not_write_is_added_and_not_trained(
    make_folder: MakeFolder,
) -> None:
    folder = make_folder(tokens=[*CHATML_TOKENS, "</s>"], eos_token="</s>")
    backend = Backend.from_file(str(folder / "tokenizer.json"))
    end = ("</s>", backend.token_to_id("</s>"))
    backend.post_processor = TemplateProcessing(single="$A </s>", special_tokens=[end])
    backend.save(str(folder / "tokenizer.json"))
    tokenizer = load_tokenizer(folder)
    assert tokenizer.adds_eos
    encoded = chatml().encode(conversation(), tokenizer)
    assert encoded.ids[-1] == tokenizer.eos_id != encoded.ids[-2]
    assert not encoded.mask[-1]
    with_end = ChatTemplate(template_source("chatml_eos", folder), tokenizer.special_tokens)
    encoded = with_end.encode(conversation(), tokenizer)
    assert encoded.ids.tolist().count(tokenizer.eos_id) == 2 == encoded.num_stops


@pytest.mark.parametrize(
    "source",
    [
        "{{ ''.__class__.__mro__ }}",
        "{{ messages.append(1) }}",
        "{{ raise_exception('no system turns') }}",
        "{{ 1 / 0 }}",
        "{{ messages[0].content + 1 }}",
    ],
)
def test_what_a_template_may_not_do_is_an_error_and_no_crash(source: str) -> None:
    with pytest.raises(DataError, match="refuses this conversation"):
        ChatTemplate(source).render(as_mappings())


def test_a_template_that_is_no_jinja_names_its_line() -> None:
    with pytest.raises(DataError, match="line 2: is not valid Jinja"):
        ChatTemplate("a\n{% if %}")


def test_auto_takes_the_file_then_the_config_then_chatml(make_folder: MakeFolder) -> None:
    plain = make_folder("plain")
    assert template_source("auto", plain) == template_source("chatml", plain)
    stated = make_folder("stated", chat_template="from the config")
    assert template_source("auto", stated) == "from the config"
    several = make_folder(
        "several",
        chat_template=[
            {"name": "tool_use", "template": "no"},
            {"name": "default", "template": "the default"},
        ],
    )
    assert template_source("auto", several) == "the default"
    (stated / "chat_template.jinja").write_text("from the file")
    assert template_source("auto", stated) == "from the file"
    assert template_source(str(stated / "chat_template.jinja"), plain) == "from the file"


def test_a_list_of_templates_without_a_default_is_refused(make_folder: MakeFolder) -> None:
    folder = make_folder(chat_template=[{"name": "tool_use", "template": "no"}])
    with pytest.raises(DataError, match="names the chat templates tool_use, and none"):
        template_source("auto", folder)
    assert template_source("chatml", folder)


def test_an_unknown_template_is_refused_with_the_names_there_are(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no template 'chatlm'.*chatml"):
        template_source("chatlm", tmp_path)
    with pytest.raises(DataError, match="cannot be read"):
        template_source(str(tmp_path / "mine.jinja"), tmp_path)


@pytest.mark.parametrize("file", sorted(shipped_templates().glob("*.jinja")), ids=lambda f: f.stem)
def test_every_shipped_template_ends_its_answers(file: Path, chatml_folder: Path) -> None:
    tokenizer = load_tokenizer(chatml_folder)
    template = ChatTemplate(template_source(file.stem, chatml_folder), tokenizer.special_tokens)
    encoded = template.encode(conversation(), tokenizer)
    assert encoded.num_stops == 2


def test_a_padding_id_is_never_that_of_end_of_text(make_folder: MakeFolder) -> None:
    own = load_tokenizer(make_folder("own", eos_token="<|im_end|>", pad_token="<|pad|>"))
    same = load_tokenizer(make_folder("same", eos_token="<|im_end|>", pad_token="<|im_end|>"))
    none = load_tokenizer(make_folder("none", eos_token="<|im_start|>"))
    assert own.pad_id != own.eos_id
    assert own.decode([own.pad_id]) == "<|pad|>"
    assert same.pad_id != same.eos_id
    assert none.eos_id == 0
    assert none.pad_id != none.eos_id


def test_tokens_that_only_the_config_lists_are_known(make_folder: MakeFolder) -> None:
    folder = make_folder("more", tokens=[])
    size = load_tokenizer(folder).vocabulary_size
    stated = {
        "eos_token": {"content": "<|im_end|>"},
        "added_tokens_decoder": {str(size): {"content": "<|im_end|>", "special": True}},
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(stated))
    tokenizer = load_tokenizer(folder)
    assert tokenizer.eos_id == size
    assert chatml().stop_ids(tokenizer) == (size,)


def test_a_broken_tokenizer_is_named(make_folder: MakeFolder, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such model folder"):
        load_tokenizer(tmp_path / "absent")
    with pytest.raises(DataError, match=r"has no tokenizer\.json"):
        load_tokenizer(tmp_path)
    folder = make_folder("bad", eos_token="<absent>")
    with pytest.raises(DataError, match="eos_token '<absent>' is not in the vocabulary"):
        load_tokenizer(folder)
    (folder / "tokenizer.json").write_text("{}")
    with pytest.raises(DataError, match="cannot be read as a tokenizer"):
        load_tokenizer(folder)
