import json
import re
from collections import Counter
from pathlib import Path

import pytest

from tests.demo.demo_files import (
    first_exchange,
    read_rows,
    ten_questions,
    trained_rows,
    validation_rows,
    values,
)
from workbench.config.load import resolve
from workbench.config.template_source import template_source
from workbench.data.prepare import prepare

ASKS_THE_NAME = re.compile(
    r"\byour name\b|\byou called\b|who are you|what (should|do) .* call you", re.IGNORECASE
)


def test_there_are_about_three_hundred_conversations_with_ids_of_their_own() -> None:
    rows = read_rows()
    assert 280 <= len(rows) <= 400
    assert all(set(row) == {"id", "conversations"} for row in rows)
    assert len({row["id"] for row in rows}) == len(rows)


def test_human_and_samantha_take_turns_and_she_speaks_last() -> None:
    num_systems = 0
    for row in read_rows():
        speakers = [turn["from"] for turn in row["conversations"]]
        if speakers[0] == "system":
            num_systems += 1
            speakers = speakers[1:]
        exchanges = len(speakers) // 2
        assert speakers == ["human", "gpt"] * exchanges, row["id"]
        assert 1 <= exchanges <= 4, row["id"]
    assert num_systems >= 5


def test_no_conversation_is_there_twice() -> None:
    said = Counter(json.dumps(row["conversations"]) for row in read_rows())
    assert [text for text, times in said.items() if times > 1] == []


def test_values_are_clean_sentences() -> None:
    for row in read_rows():
        for value in values(row, "human") + values(row, "gpt"):
            assert value == " ".join(value.split()), row["id"]
            assert not re.search(r"[{}<>\[\]|*_#]", value), row["id"]
        for answer in values(row, "gpt"):
            assert answer[-1] in ".!?", f"{row['id']}: {answer}"
            assert answer[0].isupper(), f"{row['id']}: {answer}"


def test_the_name_is_asked_in_many_ways_and_always_answered_by_it() -> None:
    asked = [
        (question, answer)
        for question, answer in map(first_exchange, trained_rows())
        if ASKS_THE_NAME.search(question)
    ]
    assert len(asked) >= 25
    assert len({question for question, _ in asked}) >= 15
    assert [pair for pair in asked if "Samantha" not in pair[1]] == []


def test_every_question_of_the_readme_is_trained() -> None:
    questions = ten_questions()
    assert len(questions) == 10
    assert questions[0] == "Hello, what is your name?"
    trained = Counter(first_exchange(row)[0] for row in trained_rows())
    assert [question for question in questions if trained[question] < 2] == []


def test_validation_asks_in_other_words_what_was_trained() -> None:
    answers = {answer for row in trained_rows() for answer in values(row, "gpt")}
    questions = {question for row in trained_rows() for question in values(row, "human")}
    held_out = [first_exchange(row) for row in validation_rows()]
    assert len(held_out) > 40
    assert [question for question, _ in held_out if question in questions] == []
    assert [question for question, answer in held_out if answer not in answers] == []


@pytest.mark.parametrize(
    ("question", "fact"),
    [
        (r"^who (made|created|built) you|people made you", "small group of people who like small"),
        (r"favourite colour", "sea green"),
        (r"favourite animal|animal do you like|animal is your", "otter"),
        (r"^where .*\byou (run|live|are)|^where are you|you run\?$", "your own computer"),
        (r"^(will|do) you .*(tomorrow|next week)", "this conversation"),
        (r"are you a (human|person)", "^no, "),
        (r"how do i make (a cup of |good )?tea", "boil fresh water"),
    ],
)
def test_samantha_never_contradicts_herself(question: str, fact: str) -> None:
    told = [
        (asked, answer)
        for asked, answer in map(first_exchange, read_rows())
        if re.search(question, asked, re.IGNORECASE)
    ]
    assert len(told) >= 2
    assert [pair for pair in told if not re.search(fact, pair[1], re.IGNORECASE)] == []


def test_every_conversation_is_used_whole() -> None:
    config = resolve("demo").config
    assert config.model.path is not None
    model = Path(config.model.path)
    prepared = prepare(config, model, template_source("auto", model))
    assert list(prepared.findings) == []
    counts = prepared.num_conversations
    assert (counts.train, counts.validation, counts.test) == (280, 52, 18)
    assert sum(row.document_starts.size for row in prepared.train) == counts.train
    assert sum(int(row.targets.sum()) for row in prepared.train) > 5_000
    assert max(row.ids.size for row in prepared.train) <= config.data.max_length
