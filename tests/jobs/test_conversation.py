"""Conversations as a tree: what the model is told after asking again, editing and dropping."""

import asyncio
import random
from collections.abc import AsyncGenerator
from contextlib import aclosing

import pytest

from workbench.errors import ControlError
from workbench.jobs.chat_client import ChatTurn, Piece, Usage
from workbench.jobs.chat_settings import ChatSettings
from workbench.jobs.conversation import BROKEN_OFF, EDITED, STOPPED, Conversation, Turn

SETTINGS = ChatSettings(seed=7)


class SayingClient:
    """Answers with prepared pieces; an exception among them is raised in its place."""

    def __init__(self, *pieces: Piece | Exception) -> None:
        self.pieces = pieces
        self.told: list[list[ChatTurn]] = []
        self.num_closed = 0

    async def stream(
        self, turns: list[ChatTurn], settings: ChatSettings | None = None
    ) -> AsyncGenerator[Piece, None]:
        assert settings is not None
        self.told.append(turns)
        try:
            for piece in self.pieces:
                if isinstance(piece, Exception):
                    raise piece
                yield piece
        finally:
            self.num_closed += 1


async def answered(conversation: Conversation, question: Turn, text: str) -> Turn:
    client = SayingClient(Piece(text), Piece("", "stop"))
    async with aclosing(conversation.answer(question, client, SETTINGS, model="m")) as pieces:
        async for _ in pieces:
            pass
    return question.after[question.shown]


def shown(conversation: Conversation) -> list[str]:
    return [turn.text for turn in conversation.path]


async def three_exchanges() -> tuple[Conversation, list[Turn]]:
    conversation = Conversation("Be kind.")
    for number in (1, 2, 3):
        await answered(conversation, conversation.say(f"q{number}"), f"a{number}")
    return conversation, conversation.path


async def test_the_model_is_told_the_way_to_the_message_and_nothing_beside_it() -> None:
    conversation, turns = await three_exchanges()
    assert conversation.told(turns[2]) == [
        ChatTurn("system", "Be kind."),
        ChatTurn("user", "q1"),
        ChatTurn("assistant", "a1"),
        ChatTurn("user", "q2"),
    ]
    conversation.system = " "
    assert conversation.told(turns[0]) == [ChatTurn("user", "q1")]


async def test_answering_again_keeps_the_answer_before_and_what_followed_it() -> None:
    conversation, turns = await three_exchanges()
    again = await answered(conversation, turns[2], "b2")
    assert shown(conversation) == ["q1", "a1", "q2", "b2"]
    assert conversation.siblings(again) == [turns[3], again]
    assert conversation.show_beside(again, -1) is turns[3]
    assert shown(conversation) == ["q1", "a1", "q2", "a2", "q3", "a3"]
    assert conversation.show_beside(turns[3], 9) is again


async def test_an_edited_message_is_a_branch_without_answer() -> None:
    conversation, turns = await three_exchanges()
    other = conversation.edit(turns[2], "other")
    assert shown(conversation) == ["q1", "a1", "other"]
    assert conversation.question is other
    await answered(conversation, other, "c2")
    assert [[turn.text for turn in way] for way in conversation.ways()] == [
        ["q1", "a1", "q2", "a2", "q3", "a3"],
        ["q1", "a1", "other", "c2"],
    ]


async def test_an_edited_answer_is_what_the_model_is_told_it_said() -> None:
    conversation, turns = await three_exchanges()
    edited = conversation.edit(turns[5], "better")
    assert (edited.ended, edited.is_whole, edited.model) == (EDITED, True, "m")
    question = conversation.say("q4")
    assert conversation.told(question)[-2] == ChatTurn("assistant", "better")


async def test_a_dropped_turn_takes_along_what_followed_it() -> None:
    conversation, turns = await three_exchanges()
    conversation.drop(turns[2])
    assert shown(conversation) == ["q1", "a1"]
    conversation.say("new")
    assert shown(conversation) == ["q1", "a1", "new"]
    conversation.drop(turns[0])
    assert conversation.path == []
    assert conversation.last is None
    assert conversation.question is None


async def test_of_several_answers_the_one_before_the_dropped_is_shown() -> None:
    conversation = Conversation()
    question = conversation.say("q")
    answers = [await answered(conversation, question, text) for text in "abc"]
    conversation.show(answers[1])
    conversation.drop(answers[1])
    assert shown(conversation) == ["q", "a"]
    conversation.drop(answers[0])
    assert shown(conversation) == ["q", "c"]
    conversation.drop(answers[2])
    assert shown(conversation) == ["q"]


async def test_what_is_shown_stays_when_an_earlier_sibling_is_dropped() -> None:
    conversation = Conversation()
    question = conversation.say("q")
    answers = [await answered(conversation, question, text) for text in "abc"]
    conversation.drop(answers[0])
    assert shown(conversation) == ["q", "c"]


async def test_a_branch_is_a_conversation_of_its_own() -> None:
    conversation, turns = await three_exchanges()
    other = conversation.branch(turns[3])
    assert other.id != conversation.id
    assert (shown(other), other.system) == (["q1", "a1", "q2", "a2"], "Be kind.")
    assert [turn.ended for turn in other.path] == ["", "stop", "", "stop"]
    other.drop(other.path[0])
    other.say("new")
    assert shown(conversation) == ["q1", "a1", "q2", "a2", "q3", "a3"]


async def test_a_cleared_conversation_is_a_new_one_under_the_same_system_prompt() -> None:
    conversation, _ = await three_exchanges()
    before = conversation.id
    conversation.clear()
    assert conversation.id != before
    assert conversation.told(conversation.say("q")) == [
        ChatTurn("system", "Be kind."),
        ChatTurn("user", "q"),
    ]


async def test_an_answer_says_how_it_was_made() -> None:
    conversation = Conversation(clock=lambda: 100.0)
    question = conversation.say("q")
    ticks = iter([1.0, 2.0, 3.0, 5.0])
    client = SayingClient(
        Piece("Hi "), Piece("you"), Piece("", "length"), Piece(usage=Usage(20, 2))
    )
    pieces = conversation.answer(
        question, client, SETTINGS, model="tiny", stopwatch=lambda: next(ticks, 5.0)
    )
    async with aclosing(pieces):
        async for _ in pieces:
            assert conversation.last is question.next
    answer = question.next
    assert answer is not None
    assert (answer.text, answer.ended, answer.is_whole) == ("Hi you", "length", False)
    assert (answer.model, answer.seed, answer.num_tokens, answer.time) == ("tiny", 7, 2, 100.0)
    assert answer.tokens_per_second == 0.5
    assert conversation.usage == Usage(20, 2)


async def test_closing_the_answer_stops_it_and_keeps_what_came() -> None:
    conversation = Conversation()
    question = conversation.say("q")
    client = SayingClient(Piece("One "), Piece("two"))
    async with aclosing(conversation.answer(question, client, SETTINGS)) as pieces:
        async for _ in pieces:
            break
    assert client.num_closed == 1
    assert [(turn.text, turn.ended) for turn in question.after] == [("One ", STOPPED)]


async def test_cancelling_the_reader_stops_the_answer() -> None:
    conversation = Conversation()
    question = conversation.say("q")
    client = SayingClient(Piece("One "), Piece("two"))
    has_begun = asyncio.Event()

    async def read() -> None:
        async with aclosing(conversation.answer(question, client, SETTINGS)) as pieces:
            async for _ in pieces:
                has_begun.set()
                await asyncio.Event().wait()

    reading = asyncio.create_task(read())
    await has_begun.wait()
    reading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reading
    assert client.num_closed == 1
    assert [(turn.text, turn.ended) for turn in question.after] == [("One ", STOPPED)]


@pytest.mark.parametrize(("said", "left"), [((), []), (("One ",), [("One ", BROKEN_OFF)])])
async def test_an_answer_that_fails_stays_only_if_something_came(
    said: tuple[str, ...], left: list[tuple[str, str]]
) -> None:
    conversation = Conversation()
    question = conversation.say("q")
    before = await answered(conversation, question, "before")
    failure = ControlError("gone", where="there", remedy="start it")
    client = SayingClient(*(Piece(text) for text in said), failure)
    pieces = conversation.answer(question, client, SETTINGS)
    with pytest.raises(ControlError, match="gone"):
        assert [piece async for piece in pieces] == []
    assert [(turn.text, turn.ended) for turn in question.after] == [("before", "stop"), *left]
    assert conversation.last is (question.after[1] if left else before)


@pytest.mark.parametrize("seed", range(20))
async def test_whatever_is_done_messages_and_answers_alternate_and_ways_are_found(
    seed: int,
) -> None:
    """The invariants of the tree, after 60 random deeds."""
    dice = random.Random(seed)
    conversation = Conversation()
    num_branches = 0
    for number in range(60):
        path = conversation.path
        deed = dice.choice(["say", "say", "again", "edit", "drop", "beside"])
        if deed == "say" or not path:
            if not path or path[-1].role == "assistant":
                conversation.say(f"q{number}")
            question = conversation.question
            assert question is not None
            await answered(conversation, question, f"a{number}")
        elif deed == "again":
            questions = [turn for turn in path if turn.role == "user"]
            await answered(conversation, dice.choice(questions), f"a{number}")
        elif deed == "edit":
            conversation.edit(dice.choice(path), f"e{number}")
        elif deed == "drop" and dice.random() < 0.3:
            conversation.drop(dice.choice(path))
        else:
            conversation.show_beside(dice.choice(path), dice.choice([-1, 1]))
        path = conversation.path
        assert [turn.role for turn in path] == (["user", "assistant"] * len(path))[: len(path)]
        ways = conversation.ways()
        assert path == [] or path in ways
        assert len({id(way[-1]) for way in ways}) == len(ways)
        for way in ways:
            assert conversation.way_to(way[-1]) == way
        num_branches = max(num_branches, len(ways))
    assert num_branches > 2
