"""When a reply ends: stop tokens by id, stop strings by text, special tokens included.

A stop string may begin in one token and end in another, and it may contain a special token that is
never shown. So strings are searched in the text as the model said it, and text that could still
become a stop string is held back. Knows nothing of tokenizers or models.
Invariant: what has been given out never contains a stop string, nor a part of the one that matched.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class TextPart:
    """Some text that the model said; special tokens are said but not shown."""

    text: str
    is_shown: bool = True


class StopDetector:
    """Follows one reply token by token and finds where it ends.

    Stop string ``"END"``: the texts ``"the E"``, ``"N"``, ``"D."`` give out ``"the "``, ``""``,
    ``""``, and the reply has stopped.

    Args:
        stop_ids: tokens that end the reply; their own text is not part of it.
        stop_strings: texts that end the reply, none empty; the earliest match counts.
    """

    def __init__(self, stop_ids: Collection[int], stop_strings: Sequence[str]) -> None:
        assert all(stop_strings), "an empty stop string would stop everything"
        self._stop_ids = frozenset(stop_ids)
        self._stop_strings = tuple(stop_strings)
        self._held: list[TextPart] = []
        self.num_given = 0
        """Characters that have been dealt with, those of special tokens included."""
        self.stopped_by: int | str | None = None

    @property
    def has_stopped(self) -> bool:
        """The reply has ended; nothing more may be fed."""
        return self.stopped_by is not None

    def is_stop_id(self, token_id: int) -> bool:
        """Tell whether this token ends the reply."""
        return token_id in self._stop_ids

    def feed(self, parts: Sequence[TextPart]) -> str:
        """Take text as it becomes readable, possibly none; give what is safe to show."""
        assert not self.has_stopped, "the reply has already ended"
        self._held += parts
        said = "".join(part.text for part in self._held)
        if found := first_match(said, self._stop_strings):
            position, self.stopped_by = found
            return self._give_out(position)
        return self._give_out(len(said) - longest_open_end(said, self._stop_strings))

    def finish(self, parts: Sequence[TextPart] = (), stop_id: int | None = None) -> str:
        """Give the text that was held back: no token follows.

        Args:
            parts: text that becomes readable only because no token follows.
            stop_id: the stop token that ended the reply, or None where it was cut off.
        """
        shown = self.feed(parts)
        if self.has_stopped:
            return shown
        self.stopped_by = stop_id
        return shown + self._give_out(sum(len(part.text) for part in self._held))

    def _give_out(self, num_characters: int) -> str:
        """Remove so many characters from the front of what is held; give the shown ones."""
        shown = ""
        rest: list[TextPart] = []
        for part in self._held:
            now, later = part.text[:num_characters], part.text[num_characters:]
            num_characters -= len(now)
            self.num_given += len(now)
            if part.is_shown:
                shown += now
            if later:
                rest.append(TextPart(later, part.is_shown))
        self._held = rest
        return shown


def first_match(text: str, stop_strings: Sequence[str]) -> tuple[int, str] | None:
    """Give position and content of the stop string that begins first in ``text``, if any."""
    matches = [(position, stop) for stop in stop_strings if (position := text.find(stop)) >= 0]
    return min(matches, default=None)


def longest_open_end(text: str, stop_strings: Sequence[str]) -> int:
    """Count the last characters of ``text`` with which some stop string could begin.

    ``"abEN"`` with stops ``["END", "N."]`` gives 2.
    """
    return max(
        (
            length
            for stop in stop_strings
            for length in range(1, min(len(stop) - 1, len(text)) + 1)
            if text.endswith(stop[:length])
        ),
        default=0,
    )
