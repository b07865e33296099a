"""Which stretch of a rendered document is whose turn: to explain a mask, never to make one.

A template is asked once, with turns that hold nothing but a mark, what it writes around them; the
same words are then found again in a document. A text that says them itself is told wrongly, which
changes no mask.
"""

import re
from typing import NamedTuple

from workbench.data.chat_template import ChatTemplate
from workbench.errors import DataError

# Words that no template writes and none trims.
_MARKS = {"system": "Qsystemq", "user": "Quserq", "assistant": "Qassistantq", "tool": "Qtoolq"}
_CONVERSATIONS = (
    ("system", "user", "assistant", "user", "assistant"),
    ("user", "assistant", "user", "assistant"),
    ("user", "assistant", "tool", "assistant", "user"),
)


class Stretch(NamedTuple):
    """Characters from ``begin`` to before ``end``; ``role`` is None for the template's own."""

    begin: int
    end: int
    role: str | None


class Turns:
    """What a template writes between turns.

    Args:
        template: asked for a few tiny conversations; those it refuses are left out.
    """

    def __init__(self, template: ChatTemplate) -> None:
        self._openings: dict[str, str] = {}  # at the very beginning of a document: text → role
        self._between: dict[str, str] = {}  # anywhere: text → role that follows
        for roles in _CONVERSATIONS:
            messages = [{"role": role, "content": _MARKS[role]} for role in roles]
            try:
                text = template.render(messages)
            except DataError:
                continue
            self._learn(text, roles)
        spelled = sorted(filter(str.strip, self._between), key=len, reverse=True)
        self._pattern = re.compile("|".join(map(re.escape, spelled))) if spelled else None

    def _learn(self, text: str, roles: tuple[str, ...]) -> None:
        at = 0
        for number, role in enumerate(roles):
            found = text.find(_MARKS[role], at)
            if found < 0:
                return
            written = text[at:found]
            known = self._between if number else self._openings
            # The same words before two roles tell neither.
            known[written] = role if known.get(written, role) == role else ""
            at = found + len(_MARKS[role])
        self._between.setdefault(text[at:], "")

    def stretches(self, text: str) -> list[Stretch]:
        """Part a document into turns and what the template writes around them, in order.

        What stands before the first words of the template is the rest of a turn whose beginning
        is not there: its role is "".
        """
        found: list[Stretch] = []
        role, at = "", 0
        for opening in sorted(filter(str.strip, self._openings), key=len, reverse=True):
            if text.startswith(opening):
                role, at = self._openings[opening], len(opening)
                found.append(Stretch(0, at, None))
                break
        for match in self._pattern.finditer(text, at) if self._pattern else ():
            found.append(Stretch(at, match.start(), role))
            found.append(Stretch(match.start(), match.end(), None))
            role, at = self._between[match.group()], match.end()
        found.append(Stretch(at, len(text), role))
        return [stretch for stretch in found if stretch.end > stretch.begin]
