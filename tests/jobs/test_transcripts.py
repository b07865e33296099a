"""Conversations on disk are training conversations: the data worker's own reader takes them."""

from pathlib import Path

import pytest

from workbench.data.formats import Message, convert, recognise
from workbench.data.json_files import index_rows
from workbench.errors import DataError
from workbench.jobs.conversation import STOPPED, Conversation
from workbench.jobs.transcripts import rows_of, save


def talked(*exchanges: tuple[str, str], system: str = "") -> Conversation:
    conversation = Conversation(system)
    for message, reply in exchanges:
        answer = conversation.begin_answer(conversation.say(message), model="tiny")
        answer.text, answer.ended = reply, "stop"
    return conversation


def read_back(path: Path) -> list[list[Message]]:
    """Read a file as training does."""
    conversations = []
    index = index_rows(path, path.name)
    for number, row, problem in index.read(0, len(index.spans)):
        assert problem is None
        form = recognise(row)
        assert form == "messages"
        conversation, complaints = convert(row, form, {}, f"row {number}")
        assert complaints == []
        conversations.append(list(conversation.messages))
    return conversations


def test_what_was_saved_is_read_as_training_conversations(tmp_path: Path) -> None:
    path = tmp_path / "chat.jsonl"
    odd = ' two\n\nlines, "quotes", \u2028 and \u00e4\U0001f600'
    assert save(talked(("Hello", odd), ("And?", "So.")), path) == 1
    assert save(talked(("Hi", "Yes"), system="Be kind."), path) == 1
    first, second = read_back(path)
    assert [(m.role, m.content, m.train) for m in first] == [
        ("user", "Hello", True),
        ("assistant", odd, True),
        ("user", "And?", True),
        ("assistant", "So.", True),
    ]
    assert [(m.role, m.content) for m in second] == [
        ("system", "Be kind."),
        ("user", "Hi"),
        ("assistant", "Yes"),
    ]


def test_saving_again_replaces_the_rows_of_this_conversation_alone(tmp_path: Path) -> None:
    path = tmp_path / "chat.jsonl"
    other, conversation = talked(("other", "yes")), talked(("a", "b"))
    save(other, path)
    save(conversation, path)
    before = path.read_text().splitlines()
    conversation.begin_answer(conversation.say("c")).text = "d"
    save(conversation, path)
    assert path.read_text().splitlines()[0] == before[0]
    assert [len(messages) for messages in read_back(path)] == [2, 4]


def test_an_answer_that_was_cut_off_is_not_learned(tmp_path: Path) -> None:
    path = tmp_path / "chat.jsonl"
    conversation = talked(("a", "half"), ("b", "whole"))
    conversation.path[1].ended = STOPPED
    save(conversation, path)
    assert [m.train for m in read_back(path)[0] if m.role == "assistant"] == [False, True]


def test_each_branch_is_a_row_where_all_are_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "chat.jsonl"
    conversation = talked(("q1", "a1"), ("q2", "a2"))
    again = conversation.begin_answer(conversation.path[2])
    again.text, again.ended = "b2", "stop"
    # Edited, but not answered: the way to it is no branch with something to learn of its own.
    conversation.edit(conversation.path[0], "other")
    assert save(conversation, path, all_branches=True) == 2
    assert [messages[-1].content for messages in read_back(path)] == ["a2", "b2"]
    conversation.show(again)
    assert save(conversation, path) == 1
    assert [messages[-1].content for messages in read_back(path)] == ["b2"]


def test_messages_without_a_word_of_answer_are_left_out() -> None:
    conversation = talked(("a", " \n"), ("b", "yes"))
    conversation.say("c")
    (row,) = rows_of(conversation)
    assert [turn["content"] for turn in row["messages"]] == ["b", "yes"]


def test_without_an_answer_there_is_nothing_to_save(tmp_path: Path) -> None:
    conversation = Conversation("Be kind.")
    conversation.say("Hello")
    with pytest.raises(DataError, match="no answer to save"):
        save(conversation, tmp_path / "chat.jsonl")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("notes.txt", None, r"is no \.jsonl; name it notes\.jsonl"),
        ("a.jsonl", '[{"messages": []}]\n', "line 1 is no conversation"),
        ("a.jsonl", '{"messages": []}\n{"text": "x"}\n', "line 2 is no conversation"),
        ("a.jsonl", "not json\n", "line 1 is no conversation"),
        ("missing/a.jsonl", None, "cannot be saved: No such file"),
    ],
)
def test_a_file_of_another_kind_is_not_touched(
    tmp_path: Path, name: str, content: str | None, said: str
) -> None:
    path = tmp_path / name
    if content is not None:
        path.write_text(content)
    with pytest.raises(DataError, match=said):
        save(talked(("a", "b")), path)
    assert [found.name for found in tmp_path.iterdir()] == ([] if content is None else [name])
    assert content is None or path.read_text() == content


def test_a_link_stays_a_link(tmp_path: Path) -> None:
    link = tmp_path / "chat.jsonl"
    link.symlink_to(tmp_path / "real.jsonl")
    save(talked(("a", "b")), link)
    assert link.is_symlink()
    assert len(read_back(tmp_path / "real.jsonl")) == 1
