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
        (
            {"id": 7, "text": "x"},
            None,
            "is a row of form text (it has 'text'), and its file",
        ),
        (
            {"id": 7, "data": []},
            None,
            "has no 'conversations', a list of turns is needed; its keys",
        ),
        ({}, None, "it is an empty object"),
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


def test_a_turn_may_use_the_keys_of_the_other_form() -> None:
    row = {"conversations": [{"role": "user", "content": " Hi "}, {"from": "gpt", "value": "You"}]}
    assert spoken(read(row)) == [("user", "Hi"), ("assistant", "You")]
    turned = {"messages": [{"from": "human", "value": " Hi"}, {"role": "gpt", "content": "You"}]}
    assert spoken(read(turned, "messages")) == [("user", " Hi"), ("assistant", "You")]


def test_content_in_parts_is_joined_as_when_serving() -> None:
    parts = [{"type": "text", "text": "One "}, {"text": "and "}, "two"]
    row: Any = {
        "messages": [{"role": "user", "content": parts}, {"role": "assistant", "content": "3"}]
    }
    assert spoken(read(row, "messages"))[0] == ("user", "One and two")
    for part, what in (
        ({"type": "image_url", "image_url": {}}, "part 2 of 'content' is of type 'image_url'"),
        ({"type": "text"}, "part 2 of 'content' holds no text"),
        (7, "part 2 of 'content' holds no text"),
    ):
        row["messages"][0]["content"] = [{"text": "One"}, part]
        ((turn, found),) = refusal(row, "messages")
        assert turn == 1
        assert what in found


def test_a_weight_of_0_leaves_an_answer_out_of_the_loss() -> None:
    row = messages(("user", "Hi"), ("assistant", "A"), ("user", "And"), ("assistant", "B"))
    row["messages"][1]["weight"], row["messages"][3]["weight"] = 0, 1
    assert [turn.train for turn in read(row, "messages").messages] == [True, False, True, True]
    row["messages"][3]["weight"] = 0.5
    assert refusal(row, "messages") == [(4, "'weight' is 0.5, only 0 and 1 are possible")]


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        (
            {"instruction": "Add. ", "input": " 1 and 2", "output": "3\n", "text": "all of it"},
            [("user", "Add.\n\n1 and 2"), ("assistant", "3")],
        ),
        (
            {"instruction": "Greet.", "input": "", "output": "Hello", "system": None},
            [("user", "Greet."), ("assistant", "Hello")],
        ),
        ({"instruction": "", "input": "1", "output": "2"}, [("user", "1"), ("assistant", "2")]),
        (
            {
                "instruction": "C",
                "output": "D",
                "system": "Be kind.",
                "history": [["A", "B"], ["A2", "B2"]],
            },
            [
                ("system", "Be kind."),
                ("user", "A"),
                ("assistant", "B"),
                ("user", "A2"),
                ("assistant", "B2"),
                ("user", "C"),
                ("assistant", "D"),
            ],
        ),
    ],
)
def test_an_alpaca_row_becomes_turns(row: dict[str, Any], expected: list[tuple[str, str]]) -> None:
    assert recognise(row) == "alpaca"
    conversation, notes = convert(row, "alpaca", {}, "data.json row 1")
    assert spoken(conversation) == expected
    assert [message.turn for message in conversation.messages] == [*range(1, len(expected) + 1)]
    assert notes == []


@pytest.mark.parametrize(
    ("changes", "whats"),
    [
        ({"output": None}, ["has no 'output', text is needed"]),
        ({"output": " "}, ["'output' has no text"]),
        ({"output": 3, "input": ["x"]}, ["'input' is a list,", "'output' is a number,"]),
        ({"instruction": ""}, ["'instruction' has no text"]),
        ({"system": "a\0"}, ["'system' contains a null character"]),
        ({"history": {}}, ["'history' is an object, a list of pairs"]),
        ({"history": [["A", "B"], ["A"]]}, ["pair 2 of 'history' is not two texts"]),
        ({"history": [["A", " "]]}, ["pair 1 of 'history' is not two texts"]),
    ],
)
def test_a_bad_alpaca_row_is_refused_by_key(changes: dict[str, object], whats: list[str]) -> None:
    found = refusal({"instruction": "Add.", "output": "3", **changes}, "alpaca")
    assert len(found) == len(whats)
    for (turn, stated), what in zip(found, whats, strict=True):
        assert turn is None
        assert stated.startswith(what)


def test_a_text_row_is_one_document_as_it_is() -> None:
    row = {"text": " Once upon a time.\n", "url": "x"}
    assert recognise(row) == "text"
    conversation = read(row, "text")
    assert (conversation.messages, conversation.text) == ((), " Once upon a time.\n")
    assert refusal({"text": 5}, "text") == [(None, "'text' is a number, text is needed")]
    assert refusal({"text": "\n"}, "text") == [(None, "'text' has no text")]
    assert refusal({"text": "\ud800"}, "text")[0][1].startswith("'text' contains half of a")


@pytest.mark.parametrize(
    ("text", "kind", "what"),
    [
        ("a\ufffdb", "replacement character", "contains U+FFFD"),
        ("\ufeffab", "byte order mark in text", "contains U+FEFF"),
        ("a\x1b[1mb", "control character", "a control character, which prints nothing: U+001B"),
        ("\x01\x02", "control character", "characters, which print nothing: U+0001, U+0002"),
        ("caf\u00c3\u00a9", "text read wrongly", "contains 'Ã©', which is 'é'"),
        ("I\u00e2\u20ac\u2122m", "text read wrongly", "contains 'â€™', which is '’'"),
        ("I\u00e2\x80\x99m", "text read wrongly", "which is '’' read in the wrong encoding"),
        ("a" * 200_001, "very long turn", "is 200,001 characters long"),
    ],
)
def test_characters_that_are_seldom_meant_are_reported_with_their_turn(
    text: str, kind: str, what: str
) -> None:
    row = sharegpt(("human", "Hi"), ("gpt", f"x{text}x"))
    if kind == "very long turn":
        row = sharegpt(("human", "Hi"), ("gpt", text))
    conversation, notes = convert(row, "sharegpt", {}, "data.json row 1")
    assert text in conversation.messages[1].content
    assert [(note.kind, note.turn) for note in notes] == [(kind, 2)]
    assert what in notes[0].what


@pytest.mark.parametrize(
    "text",
    ["NÃO é SÃO", "naïve «Âge» café 12 °C", "日本語 \U0001f600", "a\tb\r\nc\x0cd", "€ 5 – “ok”"],
)
def test_text_in_any_language_is_not_odd(text: str) -> None:
    row = sharegpt(("human", text), ("gpt", text))
    assert convert(row, "sharegpt", {}, "data.json row 1")[1] == []


def test_a_long_document_is_not_odd() -> None:
    assert convert({"text": "word " * 60_000}, "text", {}, "data.json row 1")[1] == []


def test_all_bad_turns_of_a_row_are_told_at_once() -> None:
    row = sharegpt(("narrator", "Hi"), ("gpt", ""), ("gpt", "fine"))
    assert [turn for turn, _ in refusal(row)] == [1, 2]
