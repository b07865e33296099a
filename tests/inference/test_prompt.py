"""What the model reads when serving is what it read in training; what ends its reply."""

from pathlib import Path

import pytest
from tokenizers import processors

from workbench.config.template_source import template_source
from workbench.data.chat_template import ChatTemplate
from workbench.data.formats import Conversation, Message
from workbench.data.tokenizer import Tokenizer, load_tokenizer
from workbench.errors import DataError
from workbench.inference.prompt import PromptWriter, read_prompt_writer

TURNS = [("system", "Be kind."), ("user", "Hello"), ("assistant", "Hi!"), ("user", "Name?")]


def test_a_prompt_is_the_training_text_up_to_the_reply(tiny_model: Path) -> None:
    tokenizer = load_tokenizer(tiny_model)
    prompts = read_prompt_writer(tiny_model, tokenizer, None, [])
    messages = tuple(
        Message(role, content) for role, content in [*TURNS, ("assistant", "Samantha")]
    )
    template = ChatTemplate(template_source("auto", tiny_model), tokenizer.special_tokens)
    trained = template.encode(Conversation(messages, "a test"), tokenizer)
    prompt = prompts.ids(TURNS)
    assert trained.ids[: len(prompt)].tolist() == prompt
    assert trained.mask[len(prompt) :].any()
    assert not trained.mask[len(prompts.ids(TURNS[:2])) + 4 : len(prompt)].any()


@pytest.mark.parametrize("template_writes_it", [True, False])
def test_the_token_that_begins_every_text_stands_there_once(
    tiny_model: Path, tmp_path: Path, template_writes_it: bool
) -> None:
    tokenizer = tokenizer_that_adds_bos(tiny_model, tmp_path)
    source = "{{ bos_token }}" if template_writes_it else ""
    source += template_source("chatml", tiny_model)
    prompts = PromptWriter(ChatTemplate(source, tokenizer.special_tokens), tokenizer)
    ids = prompts.ids(TURNS)
    assert tokenizer.bos_id is not None
    assert ids.count(tokenizer.bos_id) == 1
    assert ids[0] == tokenizer.bos_id


def test_the_templates_own_stop_token_ends_a_reply(tiny_model: Path) -> None:
    tokenizer = load_tokenizer(tiny_model)
    prompts = PromptWriter(ChatTemplate(template_source("chatml", tiny_model)), tokenizer)
    assert prompts.stop_texts == ["<|im_end|>"]
    assert prompts.stop_strings == ()


def test_a_stop_that_is_no_token_ends_a_reply_as_text(tiny_model: Path) -> None:
    source = template_source("chatml", tiny_model).replace("<|im_end|>", "[over]")
    prompts = PromptWriter(ChatTemplate(source), load_tokenizer(tiny_model), stop=["\nuser:"])
    assert prompts.stop_ids == frozenset()
    assert prompts.stop_strings == ("[over]", "\nuser:")


def test_a_stop_of_pieces_and_a_token_is_looked_for_up_to_the_token(tiny_model: Path) -> None:
    source = template_source("chatml", tiny_model).replace("<|im_end|>", "[over] <|im_end|>")
    prompts = PromptWriter(ChatTemplate(source), load_tokenizer(tiny_model))
    assert (prompts.stop_ids, prompts.stop_strings) == (frozenset(), ("[over]",))


def test_end_tokens_of_all_the_models_files_end_a_reply(tiny_model: Path) -> None:
    prompts = read_prompt_writer(tiny_model, load_tokenizer(tiny_model), None, [])
    assert sorted(prompts.stop_texts) == ["<|endoftext|>", "<|im_end|>"]


def test_a_template_that_refuses_a_conversation_says_why(tiny_model: Path) -> None:
    source = (
        "{% if messages[0].role == 'system' %}{{ raise_exception('no system turn') }}{% endif %}x"
    )
    prompts = PromptWriter(ChatTemplate(source), load_tokenizer(tiny_model))
    with pytest.raises(DataError, match="no system turn"):
        prompts.ids(TURNS)


def tokenizer_that_adds_bos(model: Path, folder: Path) -> Tokenizer:
    from tokenizers import Tokenizer as Backend

    backend = Backend.from_file(str(model / "tokenizer.json"))
    bos = "<|endoftext|>"
    backend.post_processor = processors.TemplateProcessing(
        single=f"{bos} $A", special_tokens=[(bos, backend.token_to_id(bos))]
    )
    backend.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(f'{{"bos_token": "{bos}"}}')
    tokenizer = load_tokenizer(folder)
    assert tokenizer.adds_bos
    return tokenizer


@pytest.mark.parametrize(
    ("template", "said"),
    [
        (
            "{% for a in range(99999) %}{% for b in range(99999) %}x{% endfor %}{% endfor %}",
            "loops",
        ),
        ("{{ ''.__class__.__mro__[1].__subclasses__() }}", "unsafe"),
        ("{{ 'x' * 1000000000 }}", "multiplies"),
        ("{% macro again() %}{{ again() }}{% endmacro %}{{ again() }}", "recursion"),
        ("{% include '/etc/passwd' %}", "no blocks or imports"),
        ("{{ messages", "not valid Jinja"),
    ],
)
def test_a_hostile_template_is_refused_before_a_model_is_loaded(
    tiny_model: Path, tmp_path: Path, template: str, said: str
) -> None:
    path = tmp_path / "hostile.jinja"
    path.write_text(template)
    with pytest.raises(DataError, match=said):
        read_prompt_writer(tiny_model, load_tokenizer(tiny_model), str(path), ())


def test_a_template_that_turns_hostile_later_refuses_the_conversation(
    tiny_model: Path, tmp_path: Path
) -> None:
    path = tmp_path / "hostile.jinja"
    loop = "{% for a in range(99999) %}{% for b in range(99999) %}x{% endfor %}{% endfor %}"
    path.write_text(
        "{% if messages|length > 2 %}" + loop + "{% endif %}"
        "{% for message in messages %}{{ message.content }}{% endfor %}"
    )
    writer = read_prompt_writer(tiny_model, load_tokenizer(tiny_model), str(path), ())
    assert writer.ids([("user", "a")])
    with pytest.raises(DataError, match="rounds"):
        writer.ids([("user", "a"), ("assistant", "b"), ("user", "c")])


def test_a_text_to_continue_has_no_template_and_its_beginning_once(tiny_model: Path) -> None:
    tokenizer = load_tokenizer(tiny_model)
    writer = read_prompt_writer(tiny_model, tokenizer, None, ("never",))
    plain = tokenizer.encode(["Hello"])[0].ids.tolist()
    assert writer.text_ids("Hello") == plain
    assert writer.text_ids("") == []
    assert writer.added_stops == ("never",)
    assert writer.end_ids <= writer.stop_ids


def test_tokens_are_spelled_one_by_one(tiny_model: Path) -> None:
    tokenizer = load_tokenizer(tiny_model)
    writer = read_prompt_writer(tiny_model, tokenizer, None, ())
    ids = tokenizer.encode([" name is €<|im_end|>"])[0].ids.tolist()
    spelled = writer.spelled(ids)
    assert "".join(spelled[:-4]) == " name is "
    assert spelled[-4:] == ["\ufffd", "\ufffd", "\ufffd", "<|im_end|>"]
