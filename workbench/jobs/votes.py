"""Which of two answers was the better one: a line of JSON for each vote.

A line holds both answers with what each model was told, so that it says all there is to know of the
vote. Invariant: voting again on the same answers replaces the line, and touches no other.
"""

from pathlib import Path
from typing import Any, Literal

import msgspec

from workbench.errors import DataError
from workbench.jobs.conversation import Conversation, Turn
from workbench.jobs.transcripts import other_lines
from workbench.runs.atomic import write_atomically

FILE_NAME = "votes.jsonl"

Choice = Literal["a", "b", "tie"]


def vote_of(
    choice: Choice,
    conversations: tuple[Conversation, Conversation],
    models: tuple[Path, Path],
    time: float,
) -> dict[str, Any]:
    """Give the line of a vote on the last answers of two conversations.

    Args:
        choice: which answer is better.
        conversations: of side a and side b; the last message of each is answered.
        models: what answered, of either side.
        time: of the vote, seconds since the epoch.
    """
    answers = []
    for conversation in conversations:
        answer = conversation.last
        assert answer is not None, "nothing was said yet"
        assert answer.role == "assistant", "the last message has no answer"
        answers.append(answer)
    settings = answers[0].settings
    chosen = {} if settings is None else msgspec.to_builtins(settings)
    return {
        # The same for either order of the sides.
        "id": "-".join(
            sorted(_name_of(*each) for each in zip(conversations, answers, strict=True))
        ),
        "time": time,
        "vote": choice,
        "settings": {key: value for key, value in chosen.items() if value is not None},
        **{
            side: _side(conversation, model, answer)
            for side, conversation, model, answer in zip(
                "ab", conversations, models, answers, strict=True
            )
        },
    }


def save_vote(vote: dict[str, Any], path: Path) -> None:
    """Write a vote at the end of a file, or in the place of the one on the same answers.

    Raises:
        DataError: the file cannot be read or written, or holds other things than votes.
    """
    path = path.resolve()
    try:
        kept = other_lines(path, vote["id"], key="vote", kind="vote", remedy="move the file away")
        lines = [*kept, msgspec.json.encode(vote)]
        write_atomically(path, b"\n".join(lines) + b"\n")
    except (OSError, UnicodeEncodeError) as error:
        told = error.strerror if isinstance(error, OSError) else "its text is no UTF-8"
        raise DataError(
            f"cannot be saved: {told}", where=str(path), remedy="make the folder writable"
        ) from error


def _name_of(conversation: Conversation, answer: Turn) -> str:
    question = answer.before
    assert question is not None
    num_before = len(conversation.way_to(question))
    return f"{conversation.id}.{num_before}.{question.after.index(answer)}"


def _side(conversation: Conversation, model: Path, answer: Turn) -> dict[str, Any]:
    question = answer.before
    assert question is not None
    return {
        "model": str(model),
        "messages": msgspec.to_builtins(conversation.told(question)),
        "answer": answer.text,
        "num_tokens": answer.num_tokens,
        "seconds": round(answer.seconds, 3),
        "ended": answer.ended,
    }
