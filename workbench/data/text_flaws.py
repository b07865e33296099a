"""What is odd about the characters of a text: what cannot be trained, and what is seldom meant.

Knows nothing of rows and turns. Invariant: a text without oddities costs one pass over it.
"""

import re
from typing import NamedTuple

# Turns that long were a whole file, or a quotation mark that was forgotten. Documents may be.
LONGEST_USUAL_TURN = 200_000

_ODD = re.compile("[\x00-\x08\x0b\x0e-\x1f\x7f-\x84\x86-\x9f\ufeff\ufffd]")
# Two and three bytes of UTF-8 that were read one by one as Windows-1252 or Latin-1: "Ã©", "â€™".
_CONTINUATION = "\x80-\xbf€‚ƒ„…†‡ˆ‰Š‹ŒŽ‘’“”•–—˜™š›œžŸ"
_READ_WRONGLY = re.compile(f"[ÃÂ][{_CONTINUATION}]|â[{_CONTINUATION}]{{2}}")


class TextFlaw(NamedTuple):
    """One thing about a text: its kind, what is wrong with it, and what to do."""

    kind: str
    what: str
    remedy: str


def why_not_text(text: str) -> str | None:
    """Say why a text cannot be trained on at all; None if it can."""
    if "\0" in text:
        return "contains a null character"
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError:
            return "contains half of a surrogate pair, which is no character"
    return None


def flaws_of_text(text: str) -> list[TextFlaw]:
    """Name what can be trained and is seldom meant, each kind once."""
    flaws: list[TextFlaw] = []
    wrongly_read = _wrongly_read(text)
    if wrongly_read is not None:
        stated, meant = wrongly_read
        flaws.append(
            TextFlaw(
                "text read wrongly",
                f"contains {stated!r}, which is {meant!r} read in the wrong encoding",
                "convert the text anew from its source, as UTF-8",
            )
        )
    odd = set(_ODD.findall(text))
    if "\ufffd" in odd:
        flaws.append(
            TextFlaw(
                "replacement character",
                "contains U+FFFD, which stands for a character that was lost in an earlier "
                "conversion",
                "convert the text anew from its source, as UTF-8",
            )
        )
    if "\ufeff" in odd:
        flaws.append(
            TextFlaw(
                "byte order mark in text",
                "contains U+FEFF, a byte order mark that became part of the text",
                "remove it from the text",
            )
        )
    controls = sorted(odd - {"\ufffd", "\ufeff"})
    if controls and wrongly_read is None:
        names = ", ".join(f"U+{ord(character):04X}" for character in controls[:3])
        flaws.append(
            TextFlaw(
                "control character",
                f"contains control characters, which print nothing: {names}"
                if len(controls) > 1
                else f"contains a control character, which prints nothing: {names}",
                "remove it from the text if that is not meant",
            )
        )
    return flaws


def _wrongly_read(text: str) -> tuple[str, str] | None:
    """Find a character whose bytes were read as characters: as it stands, and as it was meant."""
    # Looking for one character is twenty times as fast as the pattern, and mostly enough.
    if text.isascii() or not any(sign in text for sign in "ÃÂâ"):
        return None
    for found in _READ_WRONGLY.finditer(text):
        stated = found.group()
        for encoding in ("cp1252", "latin-1"):
            try:
                return stated, stated.encode(encoding).decode("utf-8")
            except UnicodeError:
                continue
    return None
