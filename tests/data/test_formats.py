from typing import Any

import pytest

from workbench.data.formats import BadRowError, Conversation, Format, Role, convert, recognise


def sharegpt(*turns: tuple[str, str], **more: str) -> dict[str, Any]:
    return {"conversations": [{"from": who, "value": text} for who, text in turns], **more}


def messages(*turns: tuple[str, str]) -> dict[str, Any]:
    return {"messages": [{"role": who, "content": text} for who, text in turns]}


def read(row: object, form: Format = "sharegpt", **roles: Role) -> Conversation:
    return convert(row, form, roles, "data.json row 1")[0]


def spoken(conversation: Conversation) -> list[tuple[str, str]]:
    return [(message.role, message.content) for message in conversation.messages]


def refusal(row: object, form: Format = "sharegpt") -> list[tuple[int | None, str]]:
    with pytest.raises(BadRowError) as caught:
        convert(row, form, {}, "data.json row 1")
    return [(complaint.turn, complaint.what) for complaint in caught.value.complaints]


@pytest.mark.parametrize("user", ["human", "user"])
@pytest.mark.parametrize("assistant", ["gpt", "assistant", "bing", "chatgpt"])
def test_sharegpt_roles_go_by_name_and_whitespace_is_stripped(user: str, assistant: str) -> None:
    row = sharegpt(("system", " S\n"), (user, " Hi \n"), ("tool", "4"), (assistant, "\n You "))
    assert recognise(row) == "sharegpt"
    expected = [("system", "S"), ("user", "Hi"), ("tool", "4"), ("assistant", "You")]
    assert spoken(read(row)) == expected


def test_messages_keep_their_whitespace() -> None:
    row = messages(("developer", "S "), ("user", " Hi"), ("assistant", " You\n"))
    assert recognise(row) == "messages"
    assert spoken(read(row, "messages")) == [
        ("system", "S "),
        ("user", " Hi"),
        ("assistant", " You\n"),
    ]


def test_further_role_names_come_from_the_config() -> None:
    row = sharegpt(("narrator", "Hi"), ("gpt", "You"))
    assert refusal(row) == [(1, "role 'narrator' is unknown")]
    assert spoken(read(row, narrator="user"))[0] == ("user", "Hi")


def test_the_system_prompt_beside_the_turns_comes_first() -> None:
    row = sharegpt(("human", "Hi"), ("gpt", "You"), system="Be kind.")
    assert spoken(read(row))[0] == ("system", "Be kind.")
    assert len(read(sharegpt(("human", "Hi"), ("gpt", "You"), system="")).messages) == 2


def test_repeated_speakers_are_joined_by_a_blank_line_and_reported() -> None:
    row = sharegpt(("human", "One"), ("human", "Two"), ("gpt", "A"), ("gpt", "B"))
    conversation, notes = convert(row, "sharegpt", {}, "x")
    assert spoken(conversation) == [("user", "One\n\nTwo"), ("assistant", "A\n\nB")]
    assert [(note.kind, note.turn) for note in notes] == [
        ("repeated speaker", 2),
        ("repeated speaker", 4),
    ]


def test_tool_turns_may_follow_each_other() -> None:
    row = sharegpt(("human", "Hi"), ("tool", "1"), ("tool", "2"), ("gpt", "You"))
    conversation, notes = convert(row, "sharegpt", {}, "x")
    assert len(conversation.messages) == 4
    assert notes == []


def test_repeated_speakers_of_whom_one_is_not_trained_are_refused() -> None:
    row = sharegpt(("human", "Hi"), ("gpt", "A"), ("gpt", "B"))
    row["conversations"][2]["train"] = False
    ((turn, what),) = refusal(row)
    assert turn == 3
    assert "only one of them is trained" in what


def test_a_user_turn_at_the_end_is_kept_and_reported() -> None:
    row = sharegpt(("human", "Hi"), ("gpt", "You"), ("human", "Bye"))
    conversation, notes = convert(row, "sharegpt", {}, "x")
    assert spoken(conversation)[-1] == ("user", "Bye")
    assert [(note.kind, note.turn) for note in notes] == [("trailing user turn", 3)]


def test_train_false_marks_a_turn() -> None:
    row = messages(("user", "Hi"), ("assistant", "A"), ("user", "And"), ("assistant", "B"))
    row["messages"][1]["train"] = False
    assert [message.train for message in read(row, "messages").messages] == [
        True,
        False,
        True,
        True,
    ]


@pytest.mark.parametrize(
    ("row", "turn", "what"),
    [
        (5, None, "is a number, not an object"),
        ({"text": "x"}, None, "has no 'conversations'"),
        ({"conversations": "x"}, None, "'conversations' is text"),
        ({"conversations": []}, None, "is an empty list"),
        (sharegpt(("human", "Hi")), None, "has no assistant turn"),
        ({"conversations": [None]}, 1, "is null, not an object"),
        ({"conversations": [{"value": "x"}]}, 1, "has no 'from'"),
        ({"conversations": [{"from": 1, "value": "x"}]}, 1, "'from' is a number"),
        ({"conversations": [{"from": "gpt"}]}, 1, "has no 'value'"),
        ({"conversations": [{"from": "gpt", "value": ["x"]}]}, 1, "'value' is a list"),
        (sharegpt(("human", "Hi"), ("gpt", " \n")), 2, "has no text"),
        (sharegpt(("human", "Hi"), ("gpt", "a\0b")), 2, "contains a null character"),
        (sharegpt(("human", "Hi"), ("gpt", "\ud800")), 2, "half of a surrogate pair"),
        (
            {"conversations": [{"from": "gpt", "value": "x", "train": 0}]},
            1,
            "'train' is a number, not true or false",
        ),
        (
            {"conversations": [{"from": "gpt", "value": "x", "tool_calls": [{}]}]},
            1,
            "has tool_calls",
        ),
    ],
)
def test_a_bad_row_is_refused_by_turn(row: object, turn: int | None, what: str) -> None:
    ((found_turn, found),) = refusal(row)
    assert found_turn == turn
    assert what in found


def test_all_bad_turns_of_a_row_are_told_at_once() -> None:
    row = sharegpt(("narrator", "Hi"), ("gpt", ""), ("gpt", "fine"))
    assert [turn for turn, _ in refusal(row)] == [1, 2]
