"""Votes on disk: a line each, which says all there is to know of it."""

import json
from pathlib import Path

import pytest

from workbench.errors import DataError
from workbench.jobs.chat_settings import ChatSettings
from workbench.jobs.conversation import Conversation
from workbench.jobs.votes import save_vote, vote_of

MODELS = (Path("/runs/a"), Path("/runs/b"))
SETTINGS = ChatSettings(temperature=0.7, seed=7)


def asked(system: str = "") -> tuple[Conversation, Conversation]:
    pair = (Conversation(system), Conversation(system))
    for conversation in pair:
        conversation.say("Who?")
    return pair


def answer(pair: tuple[Conversation, Conversation]) -> None:
    for conversation, reply in zip(pair, ("I", "You"), strict=True):
        assert conversation.question is not None
        turn = conversation.begin_answer(conversation.question, seed=7)
        turn.text, turn.ended, turn.settings, turn.num_tokens = reply, "stop", SETTINGS, 1


def test_a_vote_holds_both_answers_and_what_led_to_them(tmp_path: Path) -> None:
    pair = asked("Be kind.")
    answer(pair)
    save_vote(vote_of("b", pair, MODELS, 5.0), tmp_path / "votes.jsonl")
    (line,) = (tmp_path / "votes.jsonl").read_text().splitlines()
    row = json.loads(line)
    assert row["vote"] == "b"
    assert row["time"] == 5.0
    assert row["settings"] == {"temperature": 0.7, "seed": 7}
    told = [
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": "Who?"},
    ]
    assert row["a"]["model"] == "/runs/a"
    assert (row["a"]["messages"], row["a"]["answer"]) == (told, "I")
    assert (row["b"]["messages"], row["b"]["answer"]) == (told, "You")


def test_voting_again_replaces_the_vote_on_the_same_answers_alone(tmp_path: Path) -> None:
    path = tmp_path / "votes.jsonl"
    pair = asked()
    answer(pair)
    save_vote(vote_of("a", pair, MODELS, 1.0), path)
    answer(pair)  # regenerated: other answers
    save_vote(vote_of("a", pair, MODELS, 2.0), path)
    swapped = (pair[1], pair[0])
    save_vote(vote_of("tie", swapped, MODELS[::-1], 3.0), path)
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert [(row["vote"], row["time"]) for row in rows] == [("a", 1.0), ("tie", 3.0)]
    assert rows[1]["a"]["model"] == "/runs/b"
    assert rows[1]["a"]["answer"] == "You"


@pytest.mark.parametrize("content", ["not json\n", '{"messages": []}\n', "[1]\n"])
def test_a_file_of_another_kind_is_not_touched(tmp_path: Path, content: str) -> None:
    path = tmp_path / "votes.jsonl"
    path.write_text(content)
    pair = asked()
    answer(pair)
    with pytest.raises(DataError, match="line 1 is no vote"):
        save_vote(vote_of("a", pair, MODELS, 1.0), path)
    assert path.read_text() == content


def test_a_folder_that_is_not_there_is_told(tmp_path: Path) -> None:
    pair = asked()
    answer(pair)
    with pytest.raises(DataError, match="cannot be saved: No such file"):
        save_vote(vote_of("a", pair, MODELS, 1.0), tmp_path / "none" / "votes.jsonl")
