"""Rows of a file, as conversations: ShareGPT, OpenAI messages, Alpaca and plain text.

The form of a row goes by its keys, roles go by name, never by position:

* ``sharegpt``, known by ``conversations``: its turns (``from``, ``value``) without the blanks
  around them; ``system`` beside them comes first.
* ``messages``, known by ``messages``: its turns (``role``, ``content``) as they are.
* ``alpaca``, known by ``instruction``: a user turn of ``instruction``, a blank line and ``input``,
  an assistant turn of ``output``; before them ``system`` and the pairs of ``history``; all without
  the blanks around them.
* ``text``, known by ``text``: one document without turns, trained whole, as it is.

A row that has the keys of several is the first of them. A turn of the first two forms may use the
keys of the other. Rules for what is odd:

* Turns of one speaker in a row are joined by a blank line (user, assistant, system), and counted.
  They are refused when only some of them say ``train: false``. Tool turns may follow each other.
* A user turn at the end stays as context, and is counted.
* A system turn without text is left out; any other turn without text is refused.
* Content in parts is joined without anything between them, as when serving; a part that is not
  text is refused, and so are calls of tools.
* ``train: false``, or ``weight: 0`` in OpenAI's words, leaves an assistant's turn out of the loss.
* A row of another form than its file is refused.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol

from workbench.data.text_flaws import LONGEST_USUAL_TURN, flaws_of_text, why_not_text

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
# All keys of a row that convert looks at: readers of tables read no other column.
KEYS_OF_FORM: Mapping[Format, tuple[str, ...]] = {
    "sharegpt": ("conversations", "system"),
    "messages": ("messages",),
    "alpaca": ("instruction", "input", "output", "system", "history"),
    "text": ("text",),
}
_TURN_KEYS: Mapping[Format, tuple[str, str]] = {
    "sharegpt": ("from", "value"),
    "messages": ("role", "content"),
}
_PAIR: tuple[Role, Role] = ("user", "assistant")
_KEYS_NAMED = 6
# What remedies end with, where dropping the row is one.
DROPPING = ", or drop the row with data.skip_bad_rows"
ROW_REMEDY = f"correct the row{DROPPING}"
_TURN_REMEDY = f"correct the turn{DROPPING}"


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
    _check_form(row, form)
    assert isinstance(row, dict), "a row of a form is an object"
    if form == "text":
        text, complaints = _text_of(row, "text")
        if text is None:
            raise BadRowError(complaints)
        return Conversation((), where, text), complaints
    if form == "alpaca":
        messages, complaints, notes = _alpaca_messages(row)
    else:
        messages, complaints, notes = _messages(row, form, roles)
    if not complaints and not any(message.role == "assistant" for message in messages):
        complaints.append(
            Complaint(
                "no assistant turn",
                "has no assistant turn, so there is nothing to learn from it",
                f"add one{DROPPING}",
            )
        )
    if complaints:
        raise BadRowError(complaints)
    merged, joined = _merge(messages)
    notes += joined
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


def _check_form(row: object, form: Format) -> None:
    key = _KEYS[form]
    if not isinstance(row, dict):
        raise _bad_row("not an object", f"is {kind_of(row)}, not an object with {key!r}")
    if key in row:
        return
    other = recognise(row)
    if other is not None:
        raise _bad_row(
            "another form",
            f"is a row of form {other} (it has {_KEYS[other]!r}), and its file is read as {form}",
            f"give each form a file of its own and leave `format` out{DROPPING}",
        )
    keys = ", ".join(repr(name) for name in list(row)[:_KEYS_NAMED])
    stated = f"its keys are {keys}" if row else "it is an empty object"
    needed = "text is needed" if form in ("alpaca", "text") else "a list of turns is needed"
    raise _bad_row("no turns", f"has no {key!r}, {needed}; {stated}")


def _bad_row(kind: str, what: str, remedy: str = ROW_REMEDY) -> BadRowError:
    return BadRowError([Complaint(kind, what, remedy)])


# ---- turns: ShareGPT and messages ------------------------------------------------------------


def _messages(
    row: dict[str, Any], form: Format, roles: Mapping[str, Role]
) -> tuple[list[Message], list[Complaint], list[Complaint]]:
    """Give the turns, what refuses the row, and what is only odd."""
    key = _KEYS[form]
    turns = row[key]
    if not isinstance(turns, list):
        raise _bad_row("no turns", f"{key!r} is {kind_of(turns)}, a list of turns is needed")
    if not turns:
        raise _bad_row("no turns", f"{key!r} is an empty list")
    messages: list[Message] = []
    complaints: list[Complaint] = []
    notes: list[Complaint] = []
    if form == "sharegpt":
        system, odd = _system_beside(row)
        messages += system
        notes += odd
    for number, turn in enumerate(turns, start=1):
        try:
            message = _message(turn, form, roles, number)
        except BadRowError as error:
            complaints += error.complaints
            continue
        if message is not None:
            messages.append(message)
            notes += _notes(message.content, "", number)
    return messages, complaints, notes


def _message(turn: object, form: Format, roles: Mapping[str, Role], number: int) -> Message | None:
    """Read one turn; None is an empty system turn.

    Raises:
        BadRowError: with what is wrong with the turn.
    """

    def refused(kind: str, what: str, remedy: str = _TURN_REMEDY) -> BadRowError:
        return BadRowError([Complaint(kind, what, remedy, number)])

    if not isinstance(turn, dict):
        raise refused("not an object", f"is {kind_of(turn)}, not an object")
    role_key, content_key = _turn_keys(turn, form)
    stated = turn.get(role_key)
    if not isinstance(stated, str):
        what = f"has no {role_key!r}" if stated is None else f"{role_key!r} is {kind_of(stated)}"
        raise refused("no role", f"{what}, the speaker's name is needed")
    role = roles.get(stated) or ROLES.get(stated)
    if role is None:
        raise refused(
            f"role {stated}",
            f"role {stated!r} is unknown",
            f"map it under data.roles{_near_role(stated)}{DROPPING}",
        )
    for key in ("tool_calls", "function_call"):
        if turn.get(key):
            raise refused("tool calls", f"has {key}: calls of tools cannot be trained")
    content = turn.get(content_key)
    if isinstance(content, list) and content_key == "content":
        content = _joined_parts(content, refused)
    if not isinstance(content, str):
        what = f"has no {content_key!r}" if content is None else f"{content_key!r} is"
        what += "" if content is None else f" {kind_of(content)}"
        raise refused("no text", f"{what}, text is needed")
    flaw = why_not_text(content)
    if flaw is not None:
        raise refused("bad text", flaw)
    if form == "sharegpt":
        content = content.strip()
    if not content.strip():
        if role == "system":
            return None
        raise refused("empty turn", "has no text")
    return Message(role, content, _is_trained(turn, role, refused), number)


def _near_role(stated: str) -> str:
    known = ROLES.get(stated.strip().lower())
    return f" ({stated}: {known})" if known else ""


class _Refuse(Protocol):
    def __call__(self, kind: str, what: str, remedy: str = ...) -> BadRowError: ...


def _turn_keys(turn: dict[str, Any], form: Format) -> tuple[str, str]:
    """Give the keys of speaker and text: those of the form, unless the turn has only the others."""
    own, other = _TURN_KEYS[form], _TURN_KEYS["messages" if form == "sharegpt" else "sharegpt"]
    return other if other[0] in turn and own[0] not in turn else own


def _joined_parts(parts: list[Any], refused: _Refuse) -> str:
    texts = []
    for number, part in enumerate(parts, start=1):
        kind = part.get("type", "text") if isinstance(part, dict) else None
        text = part.get("text") if isinstance(part, dict) else part
        if kind not in (None, "text"):
            what = f"part {number} of 'content' is of type {kind!r}, only text can be trained"
            raise refused("not text", what)
        if not isinstance(text, str):
            raise refused("not text", f"part {number} of 'content' holds no text")
        texts.append(text)
    return "".join(texts)


def _is_trained(turn: dict[str, Any], role: Role, refused: _Refuse) -> bool:
    train, weight = turn.get("train"), turn.get("weight")
    if train is not None:
        if not isinstance(train, bool):
            raise refused("bad train", f"'train' is {kind_of(train)}, not true or false")
        return train
    if weight is None or role != "assistant":
        return True
    if isinstance(weight, bool) or weight not in (0, 1):
        raise refused("bad weight", f"'weight' is {weight!r}, only 0 and 1 are possible")
    return bool(weight)


def _system_beside(row: dict[str, Any]) -> tuple[list[Message], list[Complaint]]:
    """Read the system prompt that stands beside the turns; there may be none."""
    system = row.get("system")
    if system is None or (isinstance(system, str) and not system.strip()):
        return [], []
    text, complaints = _text_of(row, "system")
    if text is None:
        raise BadRowError(complaints)
    return [Message("system", text.strip())], complaints


# ---- Alpaca and plain text -------------------------------------------------------------------


def _alpaca_messages(
    row: dict[str, Any],
) -> tuple[list[Message], list[Complaint], list[Complaint]]:
    """Give the turns of an Alpaca row, what refuses it, and what is only odd."""
    refused: list[Complaint] = []
    notes: list[Complaint] = []
    texts: dict[str, str] = {}
    for key in ("system", "instruction", "input", "output"):
        if row.get(key) is None and key in ("system", "input"):
            continue
        # The instruction may stand in the input alone; what may not be empty is the whole turn.
        text, found = _text_of(row, key, may_be_empty=key != "output")
        if text is None:
            refused += found
        else:
            notes += found
            texts[key] = text.strip()
    asked = "\n\n".join(filter(None, (texts.get("instruction"), texts.get("input"))))
    if not refused and not asked:
        refused.append(Complaint("empty turn", "'instruction' has no text", ROW_REMEDY))
    turns: list[tuple[Role, str]] = [("system", texts["system"])] if texts.get("system") else []
    earlier, wrong = _history(row.get("history"))
    refused += wrong
    turns += [*earlier, ("user", asked), ("assistant", texts.get("output", ""))]
    messages = [
        Message(role, content, turn=number) for number, (role, content) in enumerate(turns, 1)
    ]
    return messages, refused, notes


def _history(history: object) -> tuple[list[tuple[Role, str]], list[Complaint]]:
    """Read earlier turns: a list of pairs, what was asked and what was answered."""
    if history is None:
        return [], []
    if not isinstance(history, list):
        what = f"'history' is {kind_of(history)}, a list of pairs is needed"
        return [], [Complaint("bad history", what, ROW_REMEDY)]
    turns: list[tuple[Role, str]] = []
    for number, pair in enumerate(history, start=1):
        is_pair = isinstance(pair, list) and len(pair) == len(_PAIR)
        texts = [text for text in pair if isinstance(text, str) and text.strip()] if is_pair else []
        if len(texts) != len(_PAIR) or any(why_not_text(text) for text in texts):
            what = f"pair {number} of 'history' is not two texts: what was asked, what was answered"
            return [], [Complaint("bad history", what, ROW_REMEDY)]
        turns += [(role, text.strip()) for role, text in zip(_PAIR, texts, strict=True)]
    return turns, []


def _text_of(
    row: dict[str, Any], key: str, *, may_be_empty: bool = False
) -> tuple[str | None, list[Complaint]]:
    """Read the text of a row's key: with what is odd about it, or None and what is wrong."""
    value = row.get(key)
    if not isinstance(value, str):
        stated = f"has no {key!r}" if value is None else f"{key!r} is {kind_of(value)}"
        return None, [Complaint("no text", f"{stated}, text is needed", ROW_REMEDY)]
    flaw = why_not_text(value)
    if flaw is not None:
        return None, [Complaint("bad text", f"{key!r} {flaw}", ROW_REMEDY)]
    if not may_be_empty and not value.strip():
        return None, [Complaint("empty turn", f"{key!r} has no text", ROW_REMEDY)]
    return value, _notes(value, f"{key!r} ", None)


def _notes(text: str, subject: str, turn: int | None) -> list[Complaint]:
    """Name what is odd about a text that can be trained on."""
    notes = [
        Complaint(flaw.kind, f"{subject}{flaw.what}", flaw.remedy, turn)
        for flaw in flaws_of_text(text)
    ]
    if len(text) > LONGEST_USUAL_TURN and subject != "'text' ":
        notes.append(
            Complaint(
                "very long turn",
                f"{subject}is {len(text):,} characters long",
                "look whether the end of a turn was missed",
                turn,
            )
        )
    return notes


# ---- all forms -------------------------------------------------------------------------------


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
                        f"give both the same 'train'{DROPPING}",
                        message.turn,
                    )
                ]
            )
        merged[-1] = replace(previous, content=f"{previous.content}\n\n{message.content}")
        notes.append(
            Complaint(
                "repeated speaker",
                f"is the second {message.role} turn in a row; joined to it by a blank line",
                "leave it so, if that is what the data means",
                message.turn,
            )
        )
    return merged, notes


def kind_of(value: object) -> str:
    """Name a JSON value's type as a reader of JSON would: an object, a list, text, a number."""
    names: Iterator[tuple[type, str]] = iter(
        [(bool, "true or false"), (dict, "an object"), (list, "a list"), (str, "text")]
    )
    if value is None:
        return "null"
    return next((name for kind, name in names if isinstance(value, kind)), "a number")
