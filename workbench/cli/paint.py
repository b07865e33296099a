"""Looks of text on a terminal, and text that can do a terminal no harm.

Knows nothing of what is shown. Invariant: without colour no escape code is written, and what comes
from data never is one.
"""

import argparse
import os
import shutil
import sys
import unicodedata
from collections.abc import Mapping
from typing import Literal

from rich.cells import cell_len

Look = Literal[
    "plain", "title", "trained", "context", "sign", "trained sign", "quiet", "good", "bad", "warn"
]

# Each says by more than its colour what it is, for those who see none: trained is bold and
# underlined, what is context dim, a sign reversed.
_CODES: Mapping[Look, str] = {
    "title": "1",
    "trained": "1;4;32",
    "context": "2",
    "sign": "2;7",
    "trained sign": "1;4;7;32",
    "quiet": "2",
    "good": "32",
    "bad": "1;31",
    "warn": "33",
}
_MOST_COLUMNS = 160
_VISIBLE = {"\n": "⏎", "\t": "⇥", "\r": "␍"}
# They join or choose the characters beside them, such as those of an emoji.
_JOINERS = "\u200c\u200d"


class Paint:
    """Gives text its looks, or leaves it as it is.

    Args:
        has_colour: the reader is a terminal that wants it.
    """

    def __init__(self, *, has_colour: bool) -> None:
        self.has_colour = has_colour

    def __call__(self, text: str, look: Look) -> str:
        """Give the text with its look; an empty text stays empty."""
        code = _CODES.get(look)
        if not self.has_colour or code is None or not text:
            return text
        return f"\x1b[{code}m{text}\x1b[0m"


def add_look_options(parser: argparse.ArgumentParser) -> None:
    """Add ``--no-color`` and ``--json``."""
    parser.add_argument("--no-color", action="store_true", help="no colour, also on a terminal")
    parser.add_argument("--json", action="store_true", help="one JSON object")


def paint_of(options: argparse.Namespace) -> Paint:
    """Give the paint that ``--no-color`` and the environment allow."""
    return Paint(has_colour=wants_colour(os.environ, is_refused=options.no_color))


def page_width() -> int:
    """Give the columns of a page: the terminal's, as long as lines can be read."""
    return min(shutil.get_terminal_size((80, 24)).columns, _MOST_COLUMNS)


def wants_colour(environment: Mapping[str, str], *, is_refused: bool) -> bool:
    """Say whether results are coloured: on a terminal, unless someone asks for none.

    Source: no-color.org, for NO_COLOR.
    """
    if is_refused or environment.get("NO_COLOR") or environment.get("TERM") == "dumb":
        return False
    return sys.stdout.isatty()


def visible(text: str) -> str:
    """Show what has no shape of its own: ends of lines, tabs, control characters.

    A tab gives "⇥"; the character that begins an escape code gives "␛".
    """
    return "".join(map(_visible, text))


def _visible(character: str) -> str:
    if character in _VISIBLE:
        return _VISIBLE[character]
    number = ord(character)
    if number < 0x20:
        return chr(0x2400 + number)
    if number == 0x7F:
        return "␡"
    kind = unicodedata.category(character)
    if kind in ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp") and character not in _JOINERS:
        # Also those that turn the direction of writing, and with it what stands beside them.
        return f"‹{number:04X}›"
    return character


def cells(text: str) -> int:
    """Count the columns a text takes on a terminal: two for each of 日本."""
    return cell_len(text)


def fitted(text: str, width: int) -> str:
    """Cut a text to a number of columns, and say by … that it is cut."""
    if cells(text) <= width:
        return text
    kept = ""
    for character in text:
        if cells(kept + character) > width - 1:
            break
        kept += character
    return kept + "…"


def padded(text: str, width: int) -> str:
    """Fill a text up to a number of columns, or cut it to them."""
    text = fitted(text, width)
    return text + " " * (width - cells(text))


def broken(text: str, width: int) -> list[str]:
    """Break a text between words into lines of at most ``width`` columns; at least one line."""
    lines = [""]
    for word in text.split(" "):
        longer = f"{lines[-1]} {word}" if lines[-1] else word
        if cells(longer) <= width or not lines[-1]:
            lines[-1] = longer
        else:
            lines.append(word)
    return lines
