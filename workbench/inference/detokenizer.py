"""Token by token to readable text: half a character is never given out.

Knows no model and no tokenizer, only how to decode a list of ids. Invariant: the shown parts of a
reply, joined, are the reply decoded at once (except for bytes that are no text at all).
"""

from collections.abc import Callable, Mapping, Sequence

from workbench.inference.stop import TextPart

_UNREADABLE = "\N{REPLACEMENT CHARACTER}"
# A character has at most four bytes, so at most four tokens. Text that is still unreadable after
# twice as many is not text, and must not hold back the rest of the reply.
_MOST_HELD_TOKENS = 8


class Detokenizer:
    """Turns the ids of one reply into text, as early as it can be read.

    With bytes as tokens, the three tokens of ``€`` give nothing, nothing, ``€``.

    Args:
        decode: ids to text, special tokens left out.
        special_texts: the text of each special token by id.
    """

    def __init__(
        self, decode: Callable[[Sequence[int]], str], special_texts: Mapping[int, str]
    ) -> None:
        self._decode = decode
        self._special_texts = special_texts
        self._ids: list[int] = []
        # A token may read differently at the start of a text (a dropped leading space), so it is
        # decoded behind the tokens of the last text that was given out: ids[context:given].
        self._context = 0
        self._given = 0

    def feed(self, token_id: int) -> list[TextPart]:
        """Take the next token; give what has become readable."""
        special = self._special_texts.get(token_id)
        if special is not None:
            return [*self.finish(), TextPart(special, is_shown=False)]
        self._ids.append(token_id)
        text = self._pending_text()
        is_half = text.endswith(_UNREADABLE)
        if is_half and len(self._ids) - self._given < _MOST_HELD_TOKENS:
            return []
        return self._give(text)

    def finish(self) -> list[TextPart]:
        """Give the rest, without half a character at its end: no token will complete it."""
        return self._give(self._pending_text().rstrip(_UNREADABLE))

    def _pending_text(self) -> str:
        context = self._decode(self._ids[self._context : self._given])
        return self._decode(self._ids[self._context :])[len(context) :]

    def _give(self, text: str) -> list[TextPart]:
        if len(self._ids) > self._given:
            self._context, self._given = self._given, len(self._ids)
        return [TextPart(text)] if text else []
