"""Draws the finished screen in ASCII: one character for one, at the very last stage.

Invariant: no text changes its width; characters of other scripts (a user's own words) stay.
"""

from rich.segment import Segment
from textual.color import Color
from textual.filter import LineFilter

_SAME_WIDTH = {
    "─": "-", "━": "=", "│": "|", "┃": "|", "╌": "-", "╸": "=", "╺": "-",
    "╭": "+", "╮": "+", "╰": "+", "╯": "+", "┌": "+", "┐": "+", "└": "+", "┘": "+",
    "├": "+", "┤": "+", "┬": "+", "┴": "+", "┼": "+", "┊": ":",
    "●": "R", "◐": "~", "◌": ".", "‖": "=", "✓": "+", "■": "#", "✗": "x",
    "▌": ">", "▏": "|", "▕": "|", "█": "#", "▉": "#", "▊": "#", "▋": "=", "▍": "-", "▎": "-",
    "·": ".", "…": "~", "→": ">", "←": "<", "↑": "^", "↓": "v", "▼": "v", "▲": "^", "▬": "=",
    "–": "-", "—": "-", "−": "-", "×": "x", "≈": "~", "‹": "<", "›": ">", "▔": "-", "▁": "_",
    "▂": "_", "▃": "_", "▄": "_", "▅": "#", "▆": "#", "▇": "#", "ⁿ": "n",
    "▸": ">", "▾": "v", "⏎": "$", "′": "'", "“": '"', "”": '"', "’": "'", "‘": "'",
}  # fmt: skip


def _braille() -> dict[int, str]:
    """A cell of braille is a star from three dots on, else a point."""
    return {
        0x2800 + bits: "*" if bits.bit_count() >= 3 else "." if bits else " " for bits in range(256)
    }


TABLE: dict[int, str] = {**str.maketrans(_SAME_WIDTH), **_braille()}


class AsciiFilter(LineFilter):
    """Turns every line that is about to be drawn into ASCII."""

    def apply(self, segments: list[Segment], background: Color) -> list[Segment]:
        """Give the segments with their characters replaced; styles stay."""
        del background
        return [
            segment
            if segment.text.isascii()
            else segment._replace(text=segment.text.translate(TABLE))
            for segment in segments
        ]
