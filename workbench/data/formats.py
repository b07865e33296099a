"""Rows of a file, as conversations: ShareGPT and OpenAI messages, told apart and checked.

Roles go by name, never by position. Rules for what is odd:

* Turns of one speaker in a row are joined by a blank line (user, assistant, system), and counted.
  They are refused when only some of them say ``train: false``. Tool turns may follow each other.
* A user turn at the end stays as context, and is counted.
* A system turn without text is left out; any other turn without text is refused.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

Role = Literal["system", "user", "assistant", "tool"]
Format = Literal["sharegpt", "messages", "alpaca", "text"]

ROLES: Mapping[str, Role] = {
    "system": "system",
    "developer": "system",
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "bing": "assistant",
    "chatgpt": "assistant",
    "tool": "tool",
}
# In the order in which they are looked for: rows of the first Alpaca data set have a "text" too.
_KEYS: Mapping[Format, str] = {
    "sharegpt": "conversations",
    "messages": "messages",
    "alpaca": "instruction",
    "text": "text",
}
_TURN_KEYS: Mapping[Format, tuple[str, str]] = {
    "sharegpt": ("from", "value"),
    "messages": ("role", "content"),
}


@dataclass(frozen=True)
class Message:
    """One turn.

    Attributes:
        role: who speaks.
        content: what is said, not empty.
        train: False when the data asks to leave this turn out of the loss.
        turn: its number in the data, from 1.
    """

    role: Role
    content: str
    train: bool = True
    turn: int = 0


@dataclass(frozen=True)
class Conversation:
    """One row of a data set: turns, or one plain text.

    Attributes:
        messages: at least one, at least one of them the assistant's; none of a plain text.
        where: file and row, for complaints.
        text: of a document that is trained whole, without a template; None of turns.
    """

    messages: tuple[Message, ...]
    where: str
    text: str | None = None


@dataclass(frozen=True)
class Complaint:
    """What is wrong with a row; ``turn`` is None when it is the row as a whole."""

    kind: str
    what: str
    remedy: str
    turn: int | None = None


class BadRowError(Exception):
    """A row that cannot become a conversation; carries everything that is wrong with it."""

    def __init__(self, complaints: list[Complaint]) -> None:
        super().__init__("; ".join(complaint.what for complaint in complaints))
        self.complaints = complaints


def recognise(row: object) -> Format | None:
    """Say which form a row has; None if none of the four."""
    if isinstance(row, dict):
        for name, key in _KEYS.items():
            if key in row:
                return name
    return None


def convert(
    row: object, form: Format, roles: Mapping[str, Role], where: str
) -> tuple[Conversation, list[Complaint]]:
    """Turn a row into a conversation.

    Args:
        row: as parsed from JSON.
        form: of the row.
        roles: further role names, before the table of this module.
        where: file and row.

    Returns:
        The conversation, and what was odd but could be used.

    Raises:
        BadRowError: with every reason why the row cannot be used.
    """
    turns = _turns(row, form)
    complaints: list[Complaint] = []
    messages: list[Message] = []
    for number, turn in enumerate(turns, start=1):
        message, wrong = _message(turn, form, roles, number)
        complaints += wrong
        if message is not None:
            messages.append(message)
    if not complaints and not any(message.role == "assistant" for message in messages):
        complaints.append(
            Complaint(
                "no assistant turn",
                "has no assistant turn, so there is nothing to learn from it",
                "add one, or drop the row with data.skip_bad_rows",
            )
        )
    if complaints:
        raise BadRowError(complaints)
    merged, notes = _merge(messages)
    if merged[-1].role == "user":
        notes.append(
            Complaint(
                "trailing user turn",
                "ends with a user turn; it is kept as context and not trained",
                "add the answer, or drop the turn",
                merged[-1].turn,
            )
        )
    return Conversation(tuple(merged), where), notes


def _turns(row: object, form: Format) -> list[Any]:
    key = _KEYS[form]
    if not isinstance(row, dict):
        raise _bad_row("not an object", f"is {_kind(row)}, not an object with {key!r}")
    turns = row.get(key)
    if not isinstance(turns, list):
        stated = f"{key!r} is {_kind(turns)}" if key in row else f"has no {key!r}"
        raise _bad_row("no turns", f"{stated}, a list of turns is needed")
    if not turns:
        raise _bad_row("no turns", f"{key!r} is an empty list")
    system = row.get("system")
    if form == "sharegpt" and isinstance(system, str) and system.strip():
        return [{"from": "system", "value": system}, *turns]
    return turns


def _bad_row(kind: str, what: str) -> BadRowError:
    remedy = "correct the row, or drop it with data.skip_bad_rows"
    return BadRowError([Complaint(kind, what, remedy)])


def _message(
    turn: object, form: Format, roles: Mapping[str, Role], number: int
) -> tuple[Message | None, list[Complaint]]:
    """Read one turn; None without a complaint is an empty system turn."""
    remedy = "correct the turn, or drop the row with data.skip_bad_rows"

    def refused(kind: str, what: str, remedy: str = remedy) -> tuple[None, list[Complaint]]:
        return None, [Complaint(kind, what, remedy, number)]

    role_key, content_key = _TURN_KEYS[form]
    if not isinstance(turn, dict):
        return refused("not an object", f"is {_kind(turn)}, not an object")
    stated = turn.get(role_key)
    if not isinstance(stated, str):
        what = f"has no {role_key!r}" if stated is None else f"{role_key!r} is {_kind(stated)}"
        return refused("no role", f"{what}, the speaker's name is needed")
    role = roles.get(stated) or ROLES.get(stated)
    if role is None:
        return refused(
            f"role {stated}",
            f"role {stated!r} is unknown",
            "map it under data.roles, or drop the row with data.skip_bad_rows",
        )
    if turn.get("tool_calls"):
        return refused("tool calls", "has tool_calls, which are not supported")
    content = turn.get(content_key)
    if not isinstance(content, str):
        what = f"has no {content_key!r}" if content is None else f"{content_key!r} is"
        what += "" if content is None else f" {_kind(content)}"
        return refused("no text", f"{what}, text is needed")
    flaw = _flaw(content)
    if flaw is not None:
        return refused("bad text", flaw)
    if form == "sharegpt":
        content = content.strip()
    if not content.strip():
        return (None, []) if role == "system" else refused("empty turn", "has no text")
    train = turn.get("train", True)
    if not isinstance(train, bool):
        return refused("bad train", f"'train' is {_kind(train)}, not true or false")
    return Message(role, content, train, number), []


def _flaw(text: str) -> str | None:
    if "\0" in text:
        return "contains a null character"
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return "contains half of a surrogate pair, which is no character"
    return None


def _merge(messages: list[Message]) -> tuple[list[Message], list[Complaint]]:
    merged: list[Message] = []
    notes: list[Complaint] = []
    for message in messages:
        previous = merged[-1] if merged else None
        if previous is None or previous.role != message.role or message.role == "tool":
            merged.append(message)
            continue
        if previous.train != message.train:
            raise BadRowError(
                [
                    Complaint(
                        "repeated speaker",
                        f"follows another {message.role} turn, but only one of them is trained",
                        "give both the same 'train', or drop the row with data.skip_bad_rows",
                        message.turn,
                    )
                ]
            )
        merged[-1] = replace(previous, content=f"{previous.content}\n\n{message.content}")
        notes.append(
            Complaint(
                "repeated speaker",
                f"is the second {message.role} turn in a row; joined to it by a blank line",
                "nothing, if that is what the data means",
                message.turn,
            )
        )
    return merged, notes


def _kind(value: object) -> str:
    """Name a JSON value's type as a reader of JSON would."""
    names: Iterator[tuple[type, str]] = iter(
        [(bool, "true or false"), (dict, "an object"), (list, "a list"), (str, "text")]
    )
    if value is None:
        return "null"
    return next((name for kind, name in names if isinstance(value, kind)), "a number")
