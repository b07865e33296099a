"""Conversations on disk: a line of JSON each, in the form that data sets have.

A row is one way through a conversation: ``messages`` as ``workbench data`` reads them, with
``id`` and ``models`` beside them. An answer that was cut off says ``"train": false``: a model would
learn from it to end in the middle. Invariants: saving a conversation again replaces its own lines
and no others; a file is written whole or not at all.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec

from workbench.errors import DataError
from workbench.jobs.conversation import Conversation, Turn
from workbench.runs.atomic import write_atomically

SUFFIX = ".jsonl"


def rows_of(conversation: Conversation, *, all_branches: bool = False) -> list[dict[str, Any]]:
    """Give the rows of a data set that a conversation is.

    Args:
        conversation: as it stands.
        all_branches: a row for each branch; else one, of the path that is shown.

    Returns:
        Rows that have at least one answer; a message without an answer is in none.
    """
    ways = conversation.ways() if all_branches else [conversation.path]
    rows: list[dict[str, Any]] = []
    for way in ways:
        answered = _answered(way)
        row = _row(conversation, answered)
        # A branch that ends in an unanswered message is the way to it, once.
        if answered and row not in rows:
            rows.append(row)
    return rows


def save(conversation: Conversation, path: Path, *, all_branches: bool = False) -> int:
    """Write a conversation at the end of a file, or in the place of its own earlier lines.

    Args:
        conversation: as it stands.
        path: a ``.jsonl``; its folder exists.
        all_branches: a row for each branch; else one, of the path that is shown.

    Returns:
        How many rows it is.

    Raises:
        DataError: there is no answer to save; or the file cannot be read or written, is of another
            kind, or holds other things than conversations.
    """
    rows = rows_of(conversation, all_branches=all_branches)
    if not rows:
        raise _refused(path, "there is no answer to save yet", "say something first")
    if path.suffix != SUFFIX:
        raise _refused(path, f"is no {SUFFIX}", f"name it {path.stem or 'chat'}{SUFFIX}")
    # A link stays one, and leads to what is written.
    path = path.resolve()
    try:
        kept = list(
            other_lines(
                path,
                conversation.id,
                key="messages",
                kind="conversation with 'messages'",
                remedy="name another file",
            )
        )
        lines = [*kept, *(msgspec.json.encode(row) for row in rows)]
        write_atomically(path, b"\n".join(lines) + b"\n")
    except (OSError, UnicodeEncodeError) as error:
        told = error.strerror if isinstance(error, OSError) else "its text is no UTF-8"
        raise _refused(path, f"cannot be saved: {told}", "name another file") from error
    return len(rows)


def _answered(way: Sequence[Turn]) -> list[Turn]:
    """Leave out messages without an answer that has words: no data set takes them."""
    pairs = zip(way[::2], way[1::2], strict=False)
    return [turn for pair in pairs if pair[1].text.strip() for turn in pair]


def _row(conversation: Conversation, way: Sequence[Turn]) -> dict[str, Any]:
    messages: list[dict[str, Any]] = []
    if conversation.system.strip():
        messages.append({"role": "system", "content": conversation.system})
    for turn in way:
        message: dict[str, Any] = {"role": turn.role, "content": turn.text}
        if turn.role == "assistant" and not turn.is_whole:
            message["train"] = False
        messages.append(message)
    models = list(dict.fromkeys(turn.model for turn in way if turn.model))
    return {"id": conversation.id, "messages": messages, "models": models}


def other_lines(path: Path, own_id: str, *, key: str, kind: str, remedy: str) -> Iterator[bytes]:
    """Give the lines of a file that stay when one is written anew.

    Args:
        path: of JSON lines; there are none where it does not exist.
        own_id: ``id`` of the line that is replaced.
        key: that every line must have.
        kind: what such a line is, for the error.
        remedy: what to do about a file that holds others.

    Raises:
        DataError: a line is something else; nothing of it is to be lost.
    """
    if not path.exists():
        return
    for number, line in enumerate(path.read_bytes().split(b"\n"), start=1):
        if not line.strip():
            continue
        try:
            row = msgspec.json.decode(line)
        except (msgspec.DecodeError, UnicodeDecodeError):
            row = None
        if not isinstance(row, dict) or key not in row:
            raise _refused(path, f"line {number} is no {kind}", remedy)
        if row.get("id") != own_id:
            yield line.rstrip(b"\r")


def _refused(path: Path, what: str, remedy: str) -> DataError:
    return DataError(what, where=str(path), remedy=remedy)
