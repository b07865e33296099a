"""Settings as they are typed: what is taken here is taken by the server, and nothing else is."""

from dataclasses import fields

import pydantic
import pytest

from workbench.errors import ConfigError
from workbench.inference.openai_types import ChatRequest
from workbench.jobs.chat_settings import BEGINNING, FIELD_OF, FIELDS, ChatSettings

TYPED = {
    "temperature": ("0", "0.7", "2", "2.01", "-0.1", "-0", "1e-3", "nan", "inf", "hot"),
    "top_p": ("0", "1e-9", "0.95", "1", "1.1", "-1", "nan"),
    "top_k": ("0", "50", "-1", "100000", "1.5", "x"),
    "min_p": ("0", "0.05", "1", "1.01", "-0.01", "nan"),
    "repetition_penalty": ("0", "0.1", "1", "10", "10.5", "-1", "inf"),
    "max_tokens": ("0", "1", "4096", "-3", "many", "2.0"),
    "seed": ("0", "7", "9223372036854775807", "9223372036854775808", "-1", "x"),
    "stop": ("END", '"\\n\\n" END', "a " * 16, "a " * 17, "x" * 200, "x" * 201, '""', "\ud800"),
}


def is_taken_by_the_server(name: str, value: object) -> bool:
    body = {"messages": [{"role": "user", "content": "a"}]}
    if value is not None:
        body[name] = list(value) if isinstance(value, tuple) else value  # type: ignore[assignment]
    try:
        ChatRequest.model_validate(body)
    except pydantic.ValidationError:
        return False
    return True


def as_sent(name: str, typed: str) -> object:
    """Give what would be sent if nobody checked it; no number stays a text, as in JSON."""
    if name == "stop":
        return [""] if typed == '""' else typed.split()
    kind = int if name in ("top_k", "max_tokens", "seed") else float
    try:
        return kind(typed)
    except ValueError:
        return typed


@pytest.mark.parametrize(
    ("name", "typed"), [(name, typed) for name, all_typed in TYPED.items() for typed in all_typed]
)
def test_a_value_is_taken_exactly_where_the_server_takes_it(name: str, typed: str) -> None:
    field = FIELD_OF[name]
    if is_taken_by_the_server(name, as_sent(name, typed)):
        assert is_taken_by_the_server(name, field.read(typed))
    else:
        with pytest.raises(ConfigError) as refused:
            field.read(typed)
        assert refused.value.where == field.label
        assert refused.value.remedy == f"give {field.limits}"


def test_every_setting_of_a_request_can_be_typed() -> None:
    assert {each.name for each in FIELDS} == {each.name for each in fields(ChatSettings)}
    assert set(TYPED) == set(FIELD_OF)


@pytest.mark.parametrize(
    ("name", "value", "written"),
    [
        ("temperature", 0.0, "0"),
        ("temperature", 0.7, ""),
        ("top_p", 0.95, "0.95"),
        ("seed", 7, "7"),
        ("seed", None, ""),
        ("stop", ("END", "\n\n", "two words", "it's", "a\"'b"), r'END \n\n "two words"'),
    ],
)
def test_what_is_written_is_read_back(name: str, value: object, written: str) -> None:
    settings = ChatSettings(**{name: value})  # type: ignore[arg-type]
    field = FIELD_OF[name]
    assert field.written(settings).startswith(written)
    assert field.read(field.written(settings)) == value


def test_nothing_typed_is_what_a_conversation_begins_with() -> None:
    assert ChatSettings(**{each.name: each.read(" ") for each in FIELDS}) == BEGINNING
    assert [each.shown(BEGINNING) for each in FIELDS] == [each.unset for each in FIELDS]
